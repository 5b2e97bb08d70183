//! Waiting at a queue in memory: for an item, for room, for the end of the work.

use crate::cause::Cause;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::Ticket;
use crate::wait::{Op, Waitable};
use crate::work::Lease;
use crate::work::memory::{Entrance, LeaseQueue, Line, Request, Shared, Slot};

/// One call of [`LeaseQueue::lease`].
pub(crate) struct Leasing<'a, T, N> {
    pub(super) queue: &'a LeaseQueue<T, N>,
    pub(super) slot: Option<Slot<Option<Lease<T, N>>>>,
    pub(super) bound: Time,
}

impl<T: Clone, N: Clone + From<Cause>> Waitable for Leasing<'_, T, N> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut shared = self.queue.shared.lock();
        // Something may have come, or gone, since the look.
        if shared.closed || shared.state.has_ready() || shared.is_behind() {
            ticket.grant();
            return;
        }
        self.bound = shared.state.next_due();
        shared.leasing.push_back(Request {
            ticket,
            bound: self.bound,
            slot: self.slot.get_or_insert_default().clone(),
        });
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let leave = |shared: &mut Shared<T, N>| leave(&mut shared.leasing, ticket);
        self.queue.change(leave);
        false
    }

    fn bound(&self) -> Time {
        self.bound
    }
}

impl<T: Clone, N: Clone + From<Cause>> Op for Leasing<'_, T, N> {
    /// `None`: the queue is closed.
    type Output = Option<Lease<T, N>>;
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<Self::Output>, Stop> {
        let lease = |shared: &mut Shared<T, N>| (shared.closed, shared.lease());
        let (closed, lease) = self.queue.change(lease);
        Ok((closed || lease.is_some()).then_some(lease))
    }

    fn collect(&mut self) -> Result<Option<Self::Output>, Stop> {
        let handed_over = self.slot.as_ref().and_then(|slot| slot.lock().take());
        match handed_over {
            Some(lease) => Ok(Some(Some(lease))),
            None => self.attempt(),
        }
    }
}

/// One call of [`LeaseQueue::put_with`].
pub(crate) struct Putting<'a, T, N> {
    pub(super) queue: &'a LeaseQueue<T, N>,
    /// The item, while it is not in line.
    pub(super) item: Entrance<T>,
    pub(super) slot: Option<Slot<Entrance<T>>>,
    pub(super) bound: Time,
}

impl<T, N> Putting<'_, T, N> {
    /// The item comes back from the line.
    fn fetch(&mut self) {
        if let (Entrance::Elsewhere, Some(slot)) = (&self.item, &self.slot) {
            self.item = std::mem::take(&mut *slot.lock());
        }
    }
}

impl<T: Clone, N: Clone + From<Cause>> Waitable for Putting<'_, T, N> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut shared = self.queue.shared.lock();
        let Entrance::Outside(_, options) = &self.item else {
            return;
        };
        if shared.state.has_room(options) || shared.is_behind() {
            ticket.grant();
            return;
        }
        let slot = self.slot.get_or_insert_default().clone();
        *slot.lock() = std::mem::take(&mut self.item);
        self.bound = shared.state.next_due();
        shared.putting.push_back(Request {
            ticket,
            bound: self.bound,
            slot,
        });
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let leave = |shared: &mut Shared<T, N>| leave(&mut shared.putting, ticket);
        self.queue.change(leave);
        self.fetch();
        false
    }

    fn bound(&self) -> Time {
        self.bound
    }
}

impl<T: Clone, N: Clone + From<Cause>> Op for Putting<'_, T, N> {
    type Output = u64;
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<u64>, Stop> {
        let item = &mut self.item;
        self.queue.change(|shared| item.enter(&mut shared.state));
        Ok(match self.item {
            Entrance::Inside(id, _) => Some(id),
            _ => None,
        })
    }

    fn collect(&mut self) -> Result<Option<u64>, Stop> {
        self.fetch();
        self.attempt() // which does nothing if it is inside
    }
}

/// One call of [`LeaseQueue::drain`].
pub(crate) struct Draining<'a, T, N> {
    pub(super) queue: &'a LeaseQueue<T, N>,
    pub(super) slot: Option<Slot<bool>>,
    pub(super) bound: Time,
}

impl<T: Clone, N: Clone + From<Cause>> Waitable for Draining<'_, T, N> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut shared = self.queue.shared.lock();
        if shared.state.is_drained() || shared.is_behind() {
            ticket.grant();
            return;
        }
        self.bound = shared.state.next_due();
        shared.draining.push_back(Request {
            ticket,
            bound: self.bound,
            slot: self.slot.get_or_insert_default().clone(),
        });
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let leave = |shared: &mut Shared<T, N>| leave(&mut shared.draining, ticket);
        self.queue.change(leave);
        false
    }

    fn bound(&self) -> Time {
        self.bound
    }
}

impl<T: Clone, N: Clone + From<Cause>> Op for Draining<'_, T, N> {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        let drained = self.queue.change(|shared| shared.state.is_drained());
        Ok(drained.then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, Stop> {
        // It was in that instant, whatever came after.
        match &self.slot {
            Some(drained) if *drained.lock() => Ok(Some(())),
            _ => self.attempt(),
        }
    }
}

fn leave<S>(line: &mut Line<S>, ticket: &Ticket) {
    line.retain(|request| request.ticket != *ticket);
}
