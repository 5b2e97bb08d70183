//! A flag that is set and cleared, and waited for.
//!
//! Guarantees:
//! 1. A wait that begins before `set`, or while the flag is set, ends; it ends even if the flag is
//!    cleared before the waiter runs, since the grant itself is the answer.
//! 2. A wait that was cancelled or timed out has left the queue when it returns (I14).
//!
//! Protocol. [`EventState`] belongs to its mutex. `set` raises the flag and empties the queue in one
//! critical section, and a waiter looks at the flag and queues in one; so it either sees the flag or
//! is in the queue that is emptied (I12). Tickets are woken after the mutex is unlocked.

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{self, Op, Waitable};

/// A flag. A wait for it ends when it is set, and also if it is cleared again right after.
///
/// ```
/// use desist::Time;
/// use desist::sync::Event;
///
/// let ready = Event::new();
/// std::thread::scope(|threads| {
///     let waiter = threads.spawn(|| ready.wait_until(Time::NEVER));
///     ready.set();
///     assert_eq!(waiter.join().unwrap(), Ok(true));
/// });
/// ready.clear();
/// assert_eq!(ready.wait_until(Time::now()), Ok(false), "timed out");
/// ```
#[derive(Debug, Default)]
pub struct Event {
    /// Locked for a few instructions, never while a thread is woken.
    state: Mutex<EventState>,
}

/// The fields that the event's mutex protects.
#[derive(Debug, Default)]
struct EventState {
    /// Written by `set` and `clear`, in any thread.
    set: bool,
    /// Empty while `set` is true.
    waiting: WaitQueue,
}

impl Event {
    /// An event that is not set.
    pub fn new() -> Event {
        Event::default()
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

    /// Clear it: from now on a wait for it blocks. Waits that `set` has granted end all the same.
    pub fn clear(&self) {
        self.state.lock().set = false;
    }

    /// True if it is set.
    pub fn is_set(&self) -> bool {
        self.state.lock().set
    }

    /// Wait until it is set, or until `until`; then false.
    ///
    /// # Blocking
    /// Blocks while the event is not set.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if it is set.
    ///
    /// # Errors
    /// The calling thread is to stop.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut &*self, until).map(|set| set.is_some())
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl Waitable for &Event {
    // The event may have been set since `attempt`: look again under the mutex.
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

impl Op for &Event {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok(self.is_set().then_some(()))
    }

    // Granted by `set`: the wait has succeeded, even if the flag was cleared since.
    fn collect(&mut self) -> Result<Option<()>, Stop> {
        Ok(Some(()))
    }
}
