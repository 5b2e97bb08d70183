//! A flag that is set and cleared, and waited for.

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{self, Op, Waitable};

/// A flag. A wait for it ends when it is set, and also if it is cleared again right after.
#[derive(Debug, Default)]
pub struct Event {
    state: Mutex<EventState>,
}

#[derive(Debug, Default)]
struct EventState {
    set: bool,
    waiting: WaitQueue,
}

impl Event {
    /// An event that is not set.
    pub fn new() -> Event {
        Event::default()
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

    /// From now on a wait for it blocks.
    pub fn clear(&self) {
        self.state.lock().set = false;
    }

    /// Set?
    pub fn is_set(&self) -> bool {
        self.state.lock().set
    }

    /// Block until it is set, or until `until` (then false). A checkpoint, even if it is set.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut &*self, until).map(|set| set.is_some())
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl Waitable for &Event {
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

    // It was set, whatever has become of it since.
    fn collect(&mut self) -> Result<Option<()>, Stop> {
        Ok(Some(()))
    }
}
