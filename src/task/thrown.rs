//! An exception of the host's that somebody throws into a body, once.
//!
//! It goes the way of a kill: at waits and checkpoints, else by force, in the body and nowhere else,
//! held off by the same things. But it is not repeated, and what it says is the host's affair: the
//! core hands it over where it is to be raised.

use std::any::Any;
use std::sync::Arc;

use super::{Control, KillRequest, Phase, Target, Task};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::fork;

/// What is thrown, in the host's terms.
pub type Thrown = Arc<dyn Any + Send + Sync>;

/// One on its way.
pub(super) struct Throw {
    what: Thrown,
    /// When it may be raised, as for a kill. Held locks hold it off for good.
    pub(super) request: Option<KillRequest>,
    /// Something is, or may be, in the host's slot for it.
    pub(super) posted: bool,
    /// It is being raised.
    raised: bool,
}

impl Control {
    /// It is raised at a wait; [`Task::take_thrown`] says what it is. Returns a cause.
    pub(super) fn raise_thrown(&mut self) -> Option<Cause> {
        let throw = self.throw.as_mut()?;
        throw.raised = true;
        throw.request.as_ref().map(|request| request.cause.clone())
    }

    /// What the host raises asynchronously has reached the body, or is being taken back: then it
    /// is not posted any more, and stays.
    pub(super) fn thrown_arrives(&mut self) -> Option<Thrown> {
        let throw = self.throw.take_if(|throw| throw.posted)?;
        Some(throw.what)
    }
}

impl Task {
    /// Have this raised in the body, once, as soon as nothing holds it off; the last one counts.
    /// Does not wait for it. False: the body is not there, yet or any more.
    pub fn throw(&self, what: Thrown) -> bool {
        let cause = Cause::now(CauseKind::Explicit, None, None); // unlocked: it asks the host
        let former = {
            let mut control = self.control.lock();
            if !matches!(control.phase, Phase::Launched | Phase::Running) {
                return false;
            }
            let former = control.throw.replace(Throw {
                what,
                request: Some(KillRequest {
                    cause,
                    lock_grace_until: Time::NEVER,
                }),
                posted: false,
                raised: false,
            });
            self.note_requests(&control);
            former
        };
        drop(former); // unlocked: it is the host's
        self.deliver_at_wait();
        self.deliver_injected();
        true
    }

    /// Post it, if it may be raised now, and no wait is about to.
    pub(super) fn deliver_injected(&self) {
        let Some(interrupter) = self.control.lock().interrupter.clone() else {
            return; // before the body begins, which does it again
        };
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let mut control = self.control.lock();
                if control.due(&self.ledger) != Some(Target::Thrown) {
                    return;
                }
                let waiting = |throw: &&mut Throw| !throw.posted && !throw.raised;
                if let Some(throw) = control.throw.as_mut().filter(waiting) {
                    interrupter.post();
                    throw.posted = true;
                }
            });
        });
    }

    /// What is to be raised where [`Task::kill_due`] or a wait said so, if it is not the kill.
    pub fn take_thrown(&self) -> Option<Thrown> {
        if !self.is_kill_requested() {
            return None;
        }
        let (throw, posted) = {
            let mut control = self.control.lock();
            let throw = control.throw.take_if(|throw| throw.raised)?;
            self.note_requests(&control);
            // Posted between the wait's end and now. A kill in the same slot is to stay there.
            let posted = throw.posted && !control.posted;
            (throw, control.interrupter.clone().filter(|_| posted))
        };
        if let Some(interrupter) = posted {
            fork::outside(|| interrupter.retract());
        }
        Some(throw.what)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "../../tests/rust/thrown.rs"]
mod tests;
