//! Bodies that run in another process.
//!
//! The task's own thread only waits for such a body, and is never struck itself: the rungs that
//! raise something in it are left out, and the process is struck instead, by signals. Whoever
//! strikes asks under the same lock under which a mask is opened, so that the last rung, which
//! nothing over there can hold off, either comes before a commit begins or waits for its end (I32).

use std::sync::Arc;

use super::policy::KillOutcome;
use super::{Mask, Phase, Task, TaskInner};
use crate::cause::Cause;
use crate::clock::Time;

/// How the host strikes a body that runs elsewhere.
pub trait RemoteBody: Send + Sync {
    /// Strike with this rung, if it is at the body of this task, and of no other (I22). Called
    /// under a lock of the task.
    fn signal(&self, task: u64, rung: KillOutcome);
}

impl Task {
    /// Its body will run elsewhere. To be said before it begins.
    pub fn run_remotely(&self, remote: Arc<dyn RemoteBody>) {
        self.inner.lock().remote = Some(remote);
    }

    pub(crate) fn is_remote(&self) -> bool {
        self.inner.lock().remote.is_some()
    }

    /// Strike it over there. Returns until when that is held off; the past if it is not.
    pub(crate) fn signal_process(&self, rung: KillOutcome) -> Time {
        let inner = self.inner.lock();
        let deferred_until = inner.masked_until();
        // What is softer is held off over there.
        let now = rung != KillOutcome::Sigkill || deferred_until <= Time::now();
        if now && inner.phase == Phase::Running {
            if let Some(remote) = &inner.remote {
                remote.signal(self.id, rung);
            }
        }
        deferred_until
    }

    /// A kill that comes on the body's own thread, in the middle of it: out of a signal handler.
    /// The cause, if that is to raise it there; else a wait does, or what holds it off.
    pub fn kill_here(&self, cause: &Cause, lock_grace_until: Time) -> Option<Cause> {
        if !self.request_kill(cause, lock_grace_until) {
            return None;
        }
        self.node().cancel(cause.clone());
        self.deliver_at_wait();
        let waits = self.inner.lock().waiter.is_some();
        (!waits).then(|| self.kill_due()).flatten()
    }
}

impl TaskInner {
    fn masked_until(&self) -> Time {
        let ends = self.masks.iter().map(|mask| match mask {
            Mask::Until(end, _) => *end,
            Mask::Zone(_) => Time::from_nanos(0), // of the thread, which is not what is struck
        });
        ends.fold(Time::from_nanos(0), Time::max)
    }
}
