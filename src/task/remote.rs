//! Bodies that run in another process.
//!
//! The task's own thread only waits for such a body, and no exception is ever raised in it: the rungs that
//! would are left out, and the other process gets signals in their place. The sender decides under
//! the same lock under which a mask is opened, so that SIGKILL, which the process cannot defer, either
//! comes before a commit begins or waits for its end (I32). SIGTERM is always sent: the process
//! raises `Killed` in the body there, and defers it by its own masks and locks.

use std::sync::Arc;

use super::policy::KillOutcome;
use super::{Mask, Phase, Task, TaskInner};
use crate::cause::Cause;
use crate::clock::Time;

/// How the host signals the process of a remote body.
pub trait RemoteBody: Send + Sync {
    /// Sends this rung's signal, if the process is at the body of this task and of no other (I22). Called
    /// under a lock of the task, so it must not block.
    fn signal(&self, task: u64, rung: KillOutcome);
}

impl Task {
    /// Its body will run in another process. To be called before the body begins.
    pub fn run_remotely(&self, remote: Arc<dyn RemoteBody>) {
        self.inner.lock().remote = Some(remote);
    }

    /// True if its body runs in another process.
    pub(crate) fn is_remote(&self) -> bool {
        self.inner.lock().remote.is_some()
    }

    /// Sends the rung's signal, unless that is deferred. Returns until when it is; the past if it is not.
    pub(crate) fn signal_process(&self, rung: KillOutcome) -> Time {
        let inner = self.inner.lock();
        let deferred_until = inner.masked_until();
        // A softer signal is deferred by the process that gets it.
        let now = rung != KillOutcome::Sigkill || deferred_until <= Time::now();
        if now && inner.phase == Phase::Running {
            if let Some(remote) = &inner.remote {
                remote.signal(self.id, rung);
            }
        }
        deferred_until
    }

    /// A kill that comes on the body's own thread, out of a signal handler. Returns the cause, if the handler is
    /// to raise it; otherwise the wait that the handler has interrupted raises it, or it is deferred.
    pub fn kill_here(self: &Arc<Self>, cause: &Cause, lock_grace_until: Time) -> Option<Cause> {
        if !self.request_kill(cause, lock_grace_until) {
            return None;
        }
        self.node().cancel_to_kill(cause.clone());
        self.deliver_at_wait();
        let waits = self.inner.lock().waiter.is_some();
        (!waits).then(|| self.kill_due()).flatten()
    }
}

impl TaskInner {
    /// Until when an open commit defers SIGKILL.
    fn masked_until(&self) -> Time {
        let ends = self.masks.iter().map(|mask| match mask {
            Mask::Until(end, _) => *end,
            Mask::Zone(_) => Time::from_nanos(0), // the waiting thread's own clean-up, which no signal reaches
        });
        ends.fold(Time::from_nanos(0), Time::max)
    }
}
