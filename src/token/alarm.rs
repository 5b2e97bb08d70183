//! The instant at which the watcher looks at deadlines next, for the threads that publish deadlines.
//!
//! A thread stores its deadline, executes the light fence, and then loads `next`. The watcher stores `next`,
//! executes the heavy fence, and then loads all deadlines once more, before it sleeps. So the thread sees
//! that the watcher would sleep past its deadline, and wakes it, or the watcher sees the deadline. Checked by a
//! model in `models/foreign.rs`.

use crate::atomics::{AtomicU64, Ordering};
use crate::clock::Time;
use crate::foreign;

/// See the header.
pub(crate) struct Alarm {
    /// In nanoseconds. Lowered by a thread that has woken the watcher, else written by the watcher alone.
    next: AtomicU64,
}

impl Alarm {
    /// No look is planned.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Alarm {
        Alarm {
            next: AtomicU64::new(u64::MAX),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Alarm {
        Alarm {
            next: AtomicU64::new(u64::MAX),
        }
    }

    /// A thread, after it has published `deadline` and executed the light fence: true if the watcher would look
    /// too late, and has to be woken.
    #[inline]
    pub(crate) fn is_late_for(&self, deadline: Time) -> bool {
        deadline.as_nanos() < self.next.load(Ordering::Relaxed)
    }

    /// The watcher is about to be told to look at `deadline`, by the calling thread: others need not.
    pub(crate) fn bring_forward(&self, deadline: Time) {
        self.next.fetch_min(deadline.as_nanos(), Ordering::Relaxed);
    }

    /// The watcher: it is about to sleep until `next`, or until an earlier one of the `deadlines`, which are
    /// read after the store. Returns that instant.
    pub(crate) fn set(&self, next: Time, deadlines: impl FnOnce() -> Time) -> Time {
        self.next.store(next.as_nanos(), Ordering::Relaxed);
        foreign::heavy_fence();
        let first = deadlines();
        if first < next {
            self.next.store(first.as_nanos(), Ordering::Relaxed);
        }
        first.min(next)
    }
}
