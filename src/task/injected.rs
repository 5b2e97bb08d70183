//! An exception of the host's that another thread has raised in a body, once.
//!
//! Guarantees: it is raised at a wait or checkpoint, or asynchronously, in the body and nowhere else
//! (I22); masks that defer a kill defer it, and held locks do so without limit; it is raised once; a later
//! one replaces an earlier one that has not been raised. One that the host has dropped, because it came
//! out of a finalizer of the host's, does not count as raised, and is posted again.
//!
//! | state | posted | raised | next |
//! |---|---|---|---|
//! | stored by `inject` | no | no | due: a wait raises it, or `deliver_injected` posts it |
//! | posted | yes | no | arrives (`injected_arrives` takes it out), or a mask retracts it: stored again |
//! | raised at a wait | any | yes | `take_injected`, on the same thread, takes it out |
//!
//! The one that was raised last is kept as `raised` until the body comes to its next checkpoint, so that the
//! host can tell which one was dropped ([`Task::inject_again`]).
//!
//! The core knows nothing of the exception: it hands the host's object over where it is to be raised.
//! The object is dropped with no lock held, for its drop is code of the host.

use std::any::Any;
use std::sync::Arc;
use std::thread;

use super::{KillRequest, Phase, RESEND_AFTER, Target, Task, TaskInner};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::fork;

/// The exception, in the host's terms.
pub type Injected = Arc<dyn Any + Send + Sync>;

/// An exception that was injected and has not been raised.
pub(super) struct Injection {
    /// Handed over where it is raised.
    what: Injected,
    /// Decides when it may be raised, as for a kill: its time for locks never ends.
    pub(super) request: Option<KillRequest>,
    /// It is, or may be, in the host's slot for the thread. Set by the injecting thread, cleared by the
    /// body's.
    pub(super) posted: bool,
    /// The body's thread is about to raise it at a wait. It is not posted any more, then.
    raised: bool,
}

impl TaskInner {
    /// On the body's thread: it is raised at a wait, and fetched by [`Task::take_injected`]. Returns a
    /// cause, which is what all stops have, and says nothing here.
    pub(super) fn raise_injected(&mut self) -> Option<Cause> {
        let injection = self.injection.as_mut()?;
        injection.raised = true;
        injection
            .request
            .as_ref()
            .map(|request| request.cause.clone())
    }

    /// On the body's thread: the posted exception has arrived, and is taken out. `None`: it has been
    /// retracted, and stays for later. The second one is to be dropped unlocked.
    pub(super) fn injected_arrives(&mut self) -> Option<(Injected, Option<Injected>)> {
        let injection = self.injection.take_if(|injection| injection.posted)?;
        let former = self.raised.replace(injection.what.clone());
        Some((injection.what, former))
    }
}

/// An exception that is to be raised once.
fn fresh(what: Injected, cause: Cause) -> Injection {
    Injection {
        what,
        request: Some(KillRequest {
            cause,
            lock_grace_until: Time::NEVER,
        }),
        posted: false,
        raised: false,
    }
}

impl Task {
    /// Has this raised in the body, once, as soon as nothing defers it; the last one counts. Does not
    /// wait until it is raised, but may block for the host's lock. False: the body has not been
    /// launched, or has ended.
    pub fn inject(self: &Arc<Self>, what: Injected) -> bool {
        let cause = Cause::now(CauseKind::Explicit, None, None); // unlocked: it asks the host
        let former = {
            let mut inner = self.inner.lock();
            if !matches!(inner.phase, Phase::Launched | Phase::Running) {
                return false;
            }
            let former = inner.injection.replace(fresh(what, cause));
            self.note_requests(&inner);
            former
        };
        drop(former); // unlocked: it is the host's
        self.deliver_at_wait();
        self.deliver_injected();
        true
    }

    /// On the body's thread, for a host that has dropped an exception instead of raising it further: if it
    /// is the one that was raised last, it is raised again, a little later, when the host's finalizer is
    /// over. A wait may raise it earlier. Without effect if another one has been injected since.
    pub fn inject_again(self: &Arc<Self>, is_it: impl FnOnce(&Injected) -> bool) {
        let cause = Cause::now(CauseKind::Explicit, None, None); // unlocked: it asks the host
        {
            let mut inner = self.inner.lock();
            let wanted = inner.phase == Phase::Running && inner.injection.is_none();
            let Some(what) = inner.raised.take_if(|what| wanted && is_it(what)) else {
                return;
            };
            inner.injection = Some(fresh(what, cause));
            self.note_requests(&inner);
        }
        let task = self.clone();
        let resend = move || {
            let at = Time::after(RESEND_AFTER);
            while Time::now() < at {
                thread::park_timeout(at - Time::now());
            }
            let _inside = fork::inside();
            let task = task; // dropped inside, too
            task.deliver_at_wait();
            task.deliver_injected();
        };
        // If no thread can be started, the next wait raises it.
        let _ = thread::Builder::new()
            .name("desist-resend".into())
            .spawn(resend);
    }

    /// At a checkpoint of the body: the exception that was raised last has been raised.
    pub(super) fn settle_raised(&self) {
        let raised = {
            let mut inner = self.inner.lock();
            let raised = inner.raised.take();
            self.note_requests(&inner);
            raised
        };
        drop(raised); // unlocked: it is the host's
    }

    /// Posts it, if it is due, and no wait is about to raise it.
    pub(super) fn deliver_injected(&self) {
        let Some(interrupter) = self.inner.lock().interrupter.clone() else {
            return; // the body has not begun; `open` does it again
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

    /// On the body's thread, where [`Task::kill_due`] or a wait has returned a kill: the exception to raise
    /// in its place. `None`: it is a kill.
    pub fn take_injected(&self) -> Option<Injected> {
        if !self.is_kill_requested() {
            return None;
        }
        let (injection, former, posted) = {
            let mut inner = self.inner.lock();
            let injection = inner.injection.take_if(|injection| injection.raised)?;
            let former = inner.raised.replace(injection.what.clone());
            self.note_requests(&inner);
            // It may have been posted between the wait's end and now. A kill in the same slot stays there.
            let posted = injection.posted && !inner.posted;
            let posted = inner.interrupter.clone().filter(|_| posted);
            (injection, former, posted)
        };
        drop(former); // unlocked: it is the host's
        if let Some(interrupter) = posted {
            fork::outside(|| interrupter.retract());
        }
        Some(injection.what)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "../../tests/rust/injected.rs"]
mod tests;
