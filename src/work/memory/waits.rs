//! Waiting at a queue in memory: for an item, for room, for the end of the work.
//!
//! Each operation here is tried under the lock of the queue. If it is not possible, its waiter joins
//! the wait list, also under the lock, and only if it is not possible then either: a change that
//! came between the two looks is seen by the second, a later one sees the waiter (I12). The second
//! look includes changes that are due and not made yet, so that a waiter never takes a bound that
//! lies in the past.
//!
//! An operation leaves its list under the lock, too, and so either before it is granted or after.
//! Leaving may make another waiter the one to serve, or the timekeeper: so it is a change like any
//! other, and settles.

use crate::cause::Cause;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::Ticket;
use crate::wait::{Op, Waitable};
use crate::work::Lease;
use crate::work::memory::{LeaseQueue, PutState, Request, Shared, Slot, WaitList};

/// One call of [`LeaseQueue::lease`].
pub(crate) struct LeaseOp<'a, T, N> {
    pub(super) queue: &'a LeaseQueue<T, N>,
    /// The number by which the host knows the worker.
    pub(super) holder: u64,
    /// Filled with the lease by the thread that grants. Made for the first wait.
    pub(super) slot: Option<Slot<Option<Lease<T, N>>>>,
    /// When to look again; set while the waiter joins the list.
    pub(super) bound: Time,
}

impl<T: Clone, N: Clone + From<Cause>> Waitable for LeaseOp<'_, T, N> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut shared = self.queue.shared.lock();
        // The second look.
        if shared.closed || shared.state.has_ready() || shared.is_behind() {
            ticket.grant();
            return;
        }
        self.bound = shared.state.next_due();
        shared.leasing.push_back(Request {
            ticket,
            bound: self.bound,
            slot: (self.holder, self.slot.get_or_insert_default().clone()),
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

impl<T: Clone, N: Clone + From<Cause>> Op for LeaseOp<'_, T, N> {
    /// `None`: the queue is closed.
    type Output = Option<Lease<T, N>>;
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<Self::Output>, Stop> {
        let holder = self.holder;
        let lease = |shared: &mut Shared<T, N>| (shared.closed, shared.lease(holder));
        let (closed, lease) = self.queue.change(lease);
        Ok((closed || lease.is_some()).then_some(lease))
    }

    fn collect(&mut self) -> Result<Option<Self::Output>, Stop> {
        let leased = self.slot.as_ref().and_then(|slot| slot.lock().take());
        match leased {
            Some(lease) => Ok(Some(Some(lease))),
            None => self.attempt(),
        }
    }
}

/// One call of [`LeaseQueue::put_with`].
pub(crate) struct PutOp<'a, T, N> {
    pub(super) queue: &'a LeaseQueue<T, N>,
    /// The item, while it is not in the slot.
    pub(super) item: PutState<T>,
    /// Has the item while the waiter is in the list.
    pub(super) slot: Option<Slot<PutState<T>>>,
    /// See [`LeaseOp::bound`].
    pub(super) bound: Time,
}

impl<T, N> PutOp<'_, T, N> {
    /// Take the item back from the slot, where it was put, or left as it was.
    fn fetch(&mut self) {
        if let (PutState::Moved, Some(slot)) = (&self.item, &self.slot) {
            self.item = std::mem::take(&mut *slot.lock());
        }
    }
}

impl<T: Clone, N: Clone + From<Cause>> Waitable for PutOp<'_, T, N> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut shared = self.queue.shared.lock();
        let PutState::Unput(_, options) = &self.item else {
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

impl<T: Clone, N: Clone + From<Cause>> Op for PutOp<'_, T, N> {
    type Output = u64;
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<u64>, Stop> {
        let item = &mut self.item;
        self.queue.change(|shared| item.put_into(&mut shared.state));
        Ok(match self.item {
            PutState::Put(id, _) => Some(id),
            _ => None,
        })
    }

    fn collect(&mut self) -> Result<Option<u64>, Stop> {
        self.fetch();
        self.attempt() // which does nothing if the item was put
    }
}

/// One call of [`LeaseQueue::drain`].
pub(crate) struct DrainOp<'a, T, N> {
    pub(super) queue: &'a LeaseQueue<T, N>,
    /// Set by the thread that grants, if it found the queue drained.
    pub(super) slot: Option<Slot<bool>>,
    /// See [`LeaseOp::bound`].
    pub(super) bound: Time,
}

impl<T: Clone, N: Clone + From<Cause>> Waitable for DrainOp<'_, T, N> {
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

impl<T: Clone, N: Clone + From<Cause>> Op for DrainOp<'_, T, N> {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        let drained = self.queue.change(|shared| shared.state.is_drained());
        Ok(drained.then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, Stop> {
        // It was drained at the instant of the grant, even if more items came since.
        match &self.slot {
            Some(drained) if *drained.lock() => Ok(Some(())),
            _ => self.attempt(),
        }
    }
}

fn leave<S>(list: &mut WaitList<S>, ticket: &Ticket) {
    list.retain(|request| request.ticket != *ticket);
}
