//! A flag that is set once, and waited for.
//!
//! Guarantees: `set` ends every wait, those that have begun and those to come (I12). A wait that ended
//! otherwise has left the queue when it returns.
//!
//! Protocol: as [`Event`](crate::sync::Event), without clearing. [`LatchState`] belongs to its mutex.
//! A waiter queues only if the flag is not set, and `set` raises the flag and empties the queue, each in
//! one critical section. It lies below scopes and tasks, which need it to wait for each other's end;
//! the waits that can be cancelled are in `wait`.

use super::{Ticket, WaitOutcome, WaitQueue, Waiter};
use crate::atomics::Mutex;
use crate::clock::Time;

/// Set once; a wait for it ends then. Cancelled waiters leave nothing behind.
///
/// ```
/// use desist::Time;
/// use desist::sync::Latch;
///
/// let over = Latch::new();
/// assert_eq!(over.wait_shielded(Time::now()), Ok(false), "timed out");
/// over.set();
/// assert_eq!(over.wait_until(Time::NEVER), Ok(true));
/// ```
#[derive(Debug, Default)]
pub struct Latch {
    /// Locked for a few instructions, never while a thread is woken.
    state: Mutex<LatchState>,
}

/// The fields that the latch's mutex protects.
#[derive(Debug, Default)]
struct LatchState {
    /// Written once, by the first `set`.
    set: bool,
    /// Empty once `set` is true.
    waiting: WaitQueue,
}

/// A signal handler of the host raised during a wait that neither a cancellation nor a kill ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl Latch {
    /// A latch that is not set.
    pub fn new() -> Latch {
        Latch::default()
    }

    /// Set it and wake all waiters. Idempotent; never blocks, and is no checkpoint.
    pub fn set(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.set = true;
            state.waiting.grant_all()
        };
        waiting.iter().for_each(Ticket::wake);
    }

    /// True if it is set; it stays so.
    pub fn is_set(&self) -> bool {
        self.state.lock().set
    }

    /// Wait until it is set, or until `until`; then false.
    ///
    /// # Blocking
    /// Blocks while it is not set.
    ///
    /// # Cancellation
    /// No checkpoint: neither a cancellation nor a kill ends the wait.
    ///
    /// # Errors
    /// A signal handler of the host raised.
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

    /// Queue a ticket, or grant it at once if the latch is set.
    pub(crate) fn enqueue(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        if state.set {
            ticket.grant();
        } else {
            state.waiting.push(ticket);
        }
    }

    /// Remove a ticket, if it is still queued.
    pub(crate) fn dequeue(&self, ticket: &Ticket) {
        self.state.lock().waiting.remove(ticket);
    }

    /// The part of the clock in a model, see `WaitQueue::time_out_first`.
    #[cfg(all(test, loom))]
    pub(crate) fn time_out_first(&self) -> bool {
        self.state.lock().waiting.time_out_first()
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}
