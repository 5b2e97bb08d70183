//! A flag that is set once, and waited for.

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Line, Outcome, Ticket, Waiter};
use crate::wait::{self, Op, Waitable};

/// Set once; a wait for it ends then. Cancelled waiters leave nothing behind.
#[derive(Debug, Default)]
pub struct Latch {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    set: bool,
    waiting: Line,
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
            state.waiting.grant_all()
        };
        waiting.iter().for_each(Ticket::wake);
    }

    /// Set?
    pub fn is_set(&self) -> bool {
        self.state.lock().set
    }

    /// Block until it is set, or until `until` (then false). A checkpoint.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut &*self, until).map(|set| set.is_some())
    }

    /// As [`Latch::wait_until`], but only the host's signals end it early.
    pub fn wait_uncancelled(&self, until: Time) -> Result<bool, Interrupted> {
        let (waiter, mut this) = (Waiter::new(), self);
        let ticket = Ticket::new(&waiter, 0);
        this.enqueue(ticket.clone());
        let outcome = waiter.finish(until);
        if outcome != Outcome::Granted {
            this.dequeue(&ticket);
        }
        match outcome {
            Outcome::Interrupted => Err(Interrupted),
            outcome => Ok(outcome == Outcome::Granted),
        }
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl Waitable for &Latch {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.state.lock();
        if state.set {
            ticket.grant();
        } else {
            state.waiting.push(ticket);
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.state.lock().waiting.remove(ticket);
        false
    }
}

impl Op for &Latch {
    type Output = ();
    type Refusal = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok(self.is_set().then_some(()))
    }
}
