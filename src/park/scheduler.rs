//! Schedulers: they decide, in the kernel's place, when a parked thread runs again.
//!
//! A thread that goes by a virtual clock must not sleep in real time. It has a scheduler, its
//! waiters keep it, and where such a waiter would enter the kernel to sleep or to wake, it calls
//! the scheduler. A thread has a scheduler exactly while it has a [clock source](crate::clock): both
//! are set and cleared together.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use super::{Interests, Waiter};
use crate::clock::{Time, source};

/// Decides when the threads that have it run.
pub(crate) trait Scheduler: fmt::Debug + Send + Sync {
    /// Lets other threads run until the waiter is settled, the clock shows `until`, or one of its
    /// descriptors may be ready. Called on the waiter's thread. The implementation looks at the
    /// waiter's outcome under the lock that [`Scheduler::wake`] takes, so that no wake-up is lost.
    /// False: no thread can go on, and the calling thread has to report it.
    fn park(&self, waiter: &Waiter, until: Time, interests: Interests) -> bool;

    /// The waiter was settled: its thread may run. Called by any thread, with no lock held.
    fn wake(&self, waiter: &Waiter);
}

thread_local! {
    /// The scheduler of the calling thread, which alone writes it.
    static SCHEDULER: RefCell<Option<Arc<dyn Scheduler>>> = const { RefCell::new(None) };
}

/// From now on this scheduler, or the kernel, decides when the calling thread runs.
pub(crate) fn set(scheduler: Option<Arc<dyn Scheduler>>) {
    SCHEDULER.with(|cell| cell.replace(scheduler));
}

/// The calling thread's scheduler.
#[inline]
pub(crate) fn current() -> Option<Arc<dyn Scheduler>> {
    if !source::exists() {
        return None;
    }
    let current = SCHEDULER.try_with(|cell| cell.borrow().clone());
    current.ok().flatten()
}
