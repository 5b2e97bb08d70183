//! A flag that is set once, and waited for.

use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Outcome, Ticket, Waiter};
use crate::sync::event::Event;
use crate::wait::Waitable;

/// Set once; a wait for it ends then. Cancelled waiters leave nothing behind.
#[derive(Debug, Default)]
pub struct Latch {
    /// That nobody can clear.
    event: Event,
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
        self.event.set();
    }

    /// Set?
    pub fn is_set(&self) -> bool {
        self.event.is_set()
    }

    /// Block until it is set, or until `until` (then false). A checkpoint.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        self.event.wait_until(until)
    }

    /// As [`Latch::wait_until`], but only the host's signals end it early.
    pub fn wait_uncancelled(&self, until: Time) -> Result<bool, Interrupted> {
        let (waiter, mut event) = (Waiter::new(), &self.event);
        let ticket = Ticket::new(&waiter, 0);
        event.enqueue(ticket.clone());
        let outcome = waiter.finish(until);
        if outcome != Outcome::Granted {
            event.dequeue(&ticket);
        }
        match outcome {
            Outcome::Interrupted => Err(Interrupted),
            outcome => Ok(outcome == Outcome::Granted),
        }
    }

    /// As one of several things to wait for.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn as_event(&self) -> &Event {
        &self.event
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.event.waiting()
    }
}
