//! An exception of the host's that somebody throws into a body, once.
//!
//! It goes the way of a kill: at waits and checkpoints, else by force, in the body and nowhere else,
//! held off by the same things. But it is not repeated, and what it says is the host's affair: the
//! core hands it over where it is to be raised.

use std::any::Any;
use std::sync::Arc;

use super::{KillRequest, Phase, Target, Task, TaskInner};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::fork;

/// What is thrown, in the host's terms.
pub type Injected = Arc<dyn Any + Send + Sync>;

/// One on its way.
pub(super) struct Injection {
    what: Injected,
    /// When it may be raised, as for a kill. Held locks hold it off for good.
    pub(super) request: Option<KillRequest>,
    /// Something is, or may be, in the host's slot for it.
    pub(super) posted: bool,
    /// It is being raised.
    raised: bool,
}

impl TaskInner {
    /// It is raised at a wait; [`Task::take_injected`] says what it is. Returns a cause.
    pub(super) fn raise_injected(&mut self) -> Option<Cause> {
        let injection = self.injection.as_mut()?;
        injection.raised = true;
        injection
            .request
            .as_ref()
            .map(|request| request.cause.clone())
    }

    /// What the host raises asynchronously has reached the body, or is being taken back: then it
    /// is not posted any more, and stays.
    pub(super) fn injected_arrives(&mut self) -> Option<Injected> {
        let injection = self.injection.take_if(|injection| injection.posted)?;
        Some(injection.what)
    }
}

impl Task {
    /// Have this raised in the body, once, as soon as nothing holds it off; the last one counts.
    /// Does not wait for it. False: the body is not there, yet or any more.
    pub fn inject(&self, what: Injected) -> bool {
        let cause = Cause::now(CauseKind::Explicit, None, None); // unlocked: it asks the host
        let former = {
            let mut inner = self.inner.lock();
            if !matches!(inner.phase, Phase::Launched | Phase::Running) {
                return false;
            }
            let former = inner.injection.replace(Injection {
                what,
                request: Some(KillRequest {
                    cause,
                    lock_grace_until: Time::NEVER,
                }),
                posted: false,
                raised: false,
            });
            self.note_requests(&inner);
            former
        };
        drop(former); // unlocked: it is the host's
        self.deliver_at_wait();
        self.deliver_injected();
        true
    }

    /// Post it, if it may be raised now, and no wait is about to.
    pub(super) fn deliver_injected(&self) {
        let Some(interrupter) = self.inner.lock().interrupter.clone() else {
            return; // before the body begins, which does it again
        };
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let mut inner = self.inner.lock();
                if inner.due(&self.ledger) != Some(Target::Injected) {
                    return;
                }
                let waiting = |injection: &&mut Injection| !injection.posted && !injection.raised;
                if let Some(injection) = inner.injection.as_mut().filter(waiting) {
                    interrupter.post();
                    injection.posted = true;
                }
            });
        });
    }

    /// What is to be raised where [`Task::kill_due`] or a wait said so, if it is not the kill.
    pub fn take_injected(&self) -> Option<Injected> {
        if !self.is_kill_requested() {
            return None;
        }
        let (injection, posted) = {
            let mut inner = self.inner.lock();
            let injection = inner.injection.take_if(|injection| injection.raised)?;
            self.note_requests(&inner);
            // Posted between the wait's end and now. A kill in the same slot is to stay there.
            let posted = injection.posted && !inner.posted;
            (injection, inner.interrupter.clone().filter(|_| posted))
        };
        if let Some(interrupter) = posted {
            fork::outside(|| interrupter.retract());
        }
        Some(injection.what)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "../../tests/rust/injected.rs"]
mod tests;
