//! A flag that is set once, and waited for.

use crate::atomics::{Arc, Mutex};
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Outcome, Waiter};
use crate::wait;

/// Set once; a wait for it ends then. Cancelled waiters leave nothing behind.
#[derive(Debug, Default)]
pub struct Latch {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    set: bool,
    waiting: Vec<Arc<Waiter>>,
}

/// A signal handler of the host raised during a wait that nothing else may interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl Latch {
    /// A latch that is not set.
    pub fn new() -> Latch {
        Latch::default()
    }

    /// Set it and wake all who wait. Idempotent.
    pub fn set(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.set = true;
            std::mem::take(&mut state.waiting)
        };
        for waiter in waiting {
            if waiter.settle(Outcome::Granted) {
                waiter.wake();
            }
        }
    }

    /// Set?
    pub fn is_set(&self) -> bool {
        self.state.lock().set
    }

    /// Block until it is set, or until `until` (then false). A checkpoint.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        wait::block(
            until,
            |waiter| self.enqueue(waiter),
            |waiter| self.dequeue(waiter),
        )
    }

    /// As [`Latch::wait_until`], but only the host's signals end it early.
    pub fn wait_uncancelled(&self, until: Time) -> Result<bool, Interrupted> {
        let waiter = Waiter::new();
        self.enqueue(&waiter);
        match waiter.finish(until) {
            Outcome::Granted => Ok(true),
            Outcome::Interrupted => {
                self.dequeue(&waiter);
                Err(Interrupted)
            }
            _ => {
                self.dequeue(&waiter);
                Ok(false)
            }
        }
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    fn enqueue(&self, waiter: &Arc<Waiter>) {
        let mut state = self.state.lock();
        if state.set {
            waiter.settle(Outcome::Granted);
        } else {
            state.waiting.push(waiter.clone());
        }
    }

    fn dequeue(&self, waiter: &Arc<Waiter>) {
        self.state
            .lock()
            .waiting
            .retain(|other| !Arc::ptr_eq(other, waiter));
    }
}
