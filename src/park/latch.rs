//! A flag that is set once, and waited for.

use super::{Ticket, WaitOutcome, WaitQueue, Waiter};
use crate::atomics::Mutex;
use crate::clock::Time;

/// Set once; a wait for it ends then. Cancelled waiters leave nothing behind.
#[derive(Debug, Default)]
pub struct Latch {
    state: Mutex<LatchState>,
}

#[derive(Debug, Default)]
struct LatchState {
    set: bool,
    waiting: WaitQueue,
}

/// A signal handler of the host raised during a wait that nothing else may interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl Latch {
    /// A latch that is not set.
    pub fn new() -> Latch {
        Latch::default()
    }

    /// Set it and wake all waiters. Idempotent.
    pub fn set(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.set = true;
            state.waiting.grant_all()
        };
        waiting.iter().for_each(Ticket::wake);
    }

    /// Set?
    pub fn is_set(&self) -> bool {
        self.state.lock().set
    }

    /// Block until it is set, or until `until` (then false). Only the host's signals end it early.
    pub fn wait_shielded(&self, until: Time) -> Result<bool, Interrupted> {
        let waiter = Waiter::new();
        let ticket = Ticket::new(&waiter, 0);
        self.enqueue(ticket.clone());
        let outcome = waiter.finish(until);
        if outcome != WaitOutcome::Granted {
            self.dequeue(&ticket);
        }
        match outcome {
            WaitOutcome::Interrupted => Err(Interrupted),
            outcome => Ok(outcome == WaitOutcome::Granted),
        }
    }

    /// Wait in line; the ticket is granted at once if the latch is set.
    pub(crate) fn enqueue(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        if state.set {
            ticket.grant();
        } else {
            state.waiting.push(ticket);
        }
    }

    /// Leave the line.
    pub(crate) fn dequeue(&self, ticket: &Ticket) {
        self.state.lock().waiting.remove(ticket);
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}
