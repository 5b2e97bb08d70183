//! Leases of items that are kept in memory.
//!
//! The counts add up at every instant, for every change is one critical section (I28).
//!
//! Time changes items, too: a pause ends, a lease is lost, nobody wants an item any more. That is
//! done at the beginning of each call, and no thread of the queue's own watches the clock: of those
//! who wait for anything here one at least sleeps no longer than until the next change.

mod index;
mod state;
mod table;
mod waits;

use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use crate::atomics::Mutex;
use crate::cause::Cause;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::Ticket;
use crate::work::{Counts, Dead, Fenced, Lease, Nack, NackOutcome, PutOptions, QueueOptions};
use crate::{scope, wait};
use state::State;
pub(crate) use waits::{Draining, Leasing, Putting};

/// A queue of leases, in memory. `T` is an item; `N` is a note: what is kept of a failure, or of
/// progress. Both are cloned under the queue's lock and should be cheap handles. Cloning gives
/// another handle.
///
/// The queue itself notes by a [`Cause`] that an item's time has passed, or a lease's.
pub struct LeaseQueue<T, N> {
    shared: Arc<Mutex<Shared<T, N>>>,
}

struct Shared<T, N> {
    state: State<T, N>,
    closed: bool,
    /// Who waits for an item, in order.
    leasing: Line<Slot<Option<Lease<T, N>>>>,
    /// Who waits for room, in order. While somebody does, there is none.
    putting: Line<Slot<Entrance<T>>>,
    /// Who waits until there is nothing left to do.
    draining: Line<Slot<bool>>,
}

type Line<S> = VecDeque<Request<S>>;

/// What a waiter is given, or gives; locked before its ticket is granted, so that the waiter finds
/// it settled. Left as it was: look again.
type Slot<V> = Arc<Mutex<V>>;

/// One who waits.
struct Request<S> {
    ticket: Ticket,
    /// When it looks again by itself.
    bound: Time,
    slot: S,
}

/// An item on its way into the queue.
#[derive(Default)]
enum Entrance<T> {
    /// It is in the other place.
    #[default]
    Elsewhere,
    Outside(T, PutOptions),
    /// In, under this number; or another stands for it, and here it is back.
    Inside(u64, Option<T>),
}

impl<T: Clone, N: Clone + From<Cause>> LeaseQueue<T, N> {
    /// An empty queue.
    pub fn new(options: impl Into<QueueOptions>) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                state: State::new(options.into().kept()),
                closed: false,
                leasing: Line::new(),
                putting: Line::new(),
                draining: Line::new(),
            })),
        }
    }

    /// Add an item, waiting for room if the queue is bounded; returns its number. A checkpoint;
    /// `Err` means that it was not added.
    #[inline]
    pub fn put(&self, value: T) -> Result<u64, Stop> {
        match self.put_with(value, &PutOptions::default(), Time::NEVER)? {
            Some(id) => Ok(id),
            None => unreachable!("never has come"),
        }
    }

    /// Add an item, waiting for room until `until` at most; then `None`. Returns its number, or
    /// that of the item that has its key, which then stands for it. A checkpoint; `Err` means that
    /// it was not added.
    #[inline]
    pub fn put_with(
        &self,
        value: T,
        options: &PutOptions,
        until: Time,
    ) -> Result<Option<u64>, Stop> {
        wait::checkpoint()?;
        match self.try_put(value, options) {
            Ok(id) => Ok(Some(id)),
            Err(value) => self.wait_and_put(value, options, until),
        }
    }

    #[cold]
    fn wait_and_put(
        &self,
        value: T,
        options: &PutOptions,
        until: Time,
    ) -> Result<Option<u64>, Stop> {
        wait::perform(&mut self.putting(value, options), until)
    }

    /// Putting, for a host that sleeps in its own way.
    pub(crate) fn putting(&self, value: T, options: &PutOptions) -> Putting<'_, T, N> {
        Putting {
            queue: self,
            item: Entrance::Outside(value, options.clone()),
            slot: None,
            bound: Time::NEVER,
        }
    }

    /// [`LeaseQueue::put_with`] if there is room, else the item is given back; not a checkpoint,
    /// never blocks.
    #[inline]
    pub fn try_put(&self, value: T, options: &PutOptions) -> Result<u64, T> {
        let (id, unneeded) = self.change(|shared| shared.state.put(value, options))?;
        drop(unneeded); // unlocked: it is the user's
        Ok(id)
    }

    /// Lease the next item, waiting until `until` at most. `None`: none came, or the queue is
    /// closed. A checkpoint; `Err` means that nothing was leased.
    ///
    /// The next is one of the least priority; among those, what a stopped worker gave back comes
    /// first, then what has been ready for the longest time.
    #[inline]
    pub fn lease(&self, until: Time) -> Result<Option<Lease<T, N>>, Stop> {
        // What `perform` does first, without its request, which takes a tenth of a lease's time.
        wait::checkpoint()?;
        match self.try_lease() {
            Some(lease) => {
                scope::defer_pending_kill();
                Ok(Some(lease))
            }
            None => self.wait_and_lease(until),
        }
    }

    #[cold]
    fn wait_and_lease(&self, until: Time) -> Result<Option<Lease<T, N>>, Stop> {
        wait::perform(&mut self.leasing(), until).map(Option::flatten)
    }

    /// Lease the next item, if one is there to be had; not a checkpoint, never blocks.
    #[inline]
    pub(crate) fn try_lease(&self) -> Option<Lease<T, N>> {
        self.change(Shared::lease)
    }

    /// Leasing, for a host that sleeps in its own way.
    pub(crate) fn leasing(&self) -> Leasing<'_, T, N> {
        Leasing {
            queue: self,
            slot: None,
            bound: Time::NEVER,
        }
    }

    /// The work is done. At most one call succeeds for an item (I29).
    #[inline]
    pub fn ack(&self, id: u64, epoch: u64) -> Result<(), Fenced> {
        let ended = self.change(|shared| shared.state.ack(id, epoch))?;
        drop(ended); // unlocked: it is the user's
        Ok(())
    }

    /// Keep the lease for another `lease_timeout`, and the progress, if it is said, for the next
    /// attempt. Returns until when.
    pub fn extend(
        &self,
        id: u64,
        epoch: u64,
        mut progress: Option<N>,
    ) -> Result<Option<Time>, Fenced> {
        self.change(|shared| shared.state.extend(id, epoch, &mut progress))
    }

    /// Give a lease back, with what went wrong, if anything did.
    pub fn nack(
        &self,
        id: u64,
        epoch: u64,
        nack: Nack,
        mut failure: Option<N>,
    ) -> Result<NackOutcome, Fenced> {
        self.change(|shared| shared.state.nack(id, epoch, nack, &mut failure))
    }

    /// The work is unwanted: it will not be leased again (I31). `Some(true)`: it is dead now.
    /// `Some(false)`: it is with a worker, and will be when that gives it back. `None`: it is
    /// done or dead already, or never was.
    pub fn cancel(&self, id: u64, failure: N) -> Option<bool> {
        let mut failure = Some(failure);
        self.change(|shared| shared.state.cancel(id, &mut failure))
    }

    /// Nobody will work on what is here: all that is ready or delayed is dead now. Returns it.
    pub fn dead_letter_all(&self, failure: &N) -> Vec<T> {
        self.change(|shared| shared.state.dead_letter_all(failure))
    }

    /// An item that has not been acknowledged.
    pub fn item(&self, id: u64) -> Option<T> {
        self.shared.lock().state.item(id)
    }

    /// Give a dead item all its attempts again, and as much time as it needs, whether there is
    /// room or not. False: it is not dead.
    pub fn retry(&self, id: u64) -> bool {
        let mut unneeded = None; // by now
        self.change(|shared| shared.state.retry(id, &mut unneeded))
    }

    /// How many items are in each state, at one instant.
    pub fn counts(&self) -> Counts {
        self.change(|shared| shared.state.counts())
    }

    /// The dead items, in the order in which they died.
    pub fn dead(&self) -> Vec<Dead<T, N>> {
        self.change(|shared| shared.state.dead())
    }

    /// Wait until nothing is ready, leased or delayed, or until `until` (then false). A
    /// checkpoint.
    pub fn drain(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut self.draining(), until).map(|drained| drained.is_some())
    }

    /// Draining, for a host that sleeps in its own way.
    pub(crate) fn draining(&self) -> Draining<'_, T, N> {
        Draining {
            queue: self,
            slot: None,
            bound: Time::NEVER,
        }
    }

    /// From now on `lease` returns `None` at once. Items stay where they are, and more can be put.
    pub fn close(&self) {
        self.change(|shared| shared.closed = true);
    }

    /// Change the state, then hand out what can be handed out and wake who has to know.
    #[inline]
    fn change<C>(&self, change: impl FnOnce(&mut Shared<T, N>) -> C) -> C {
        let mut shared = self.shared.lock();
        shared.state.catch_up();
        // What could be dropped in a panic would lie in memory, and be moved from there.
        let result = ManuallyDrop::new(change(&mut shared));
        if shared.is_alone() {
            drop(shared);
        } else {
            let wake = shared.settle();
            drop(shared);
            wake.iter().for_each(Ticket::wake);
        }
        ManuallyDrop::into_inner(result)
    }
}

impl<T: Clone, N: Clone + From<Cause>> Shared<T, N> {
    /// Lease the next item, if there is one and it is to be had.
    #[inline]
    fn lease(&mut self) -> Option<Lease<T, N>> {
        if self.closed {
            None
        } else {
            self.state.lease()
        }
    }

    /// Nobody waits.
    fn is_alone(&self) -> bool {
        self.leasing.is_empty() && self.putting.is_empty() && self.draining.is_empty()
    }

    /// Give those who wait what they wait for, as far as it is there. Returns whom to wake.
    #[cold]
    fn settle(&mut self) -> Vec<Ticket> {
        let mut wake = Vec::new();
        while let Some(granted) = self.admit() {
            wake.push(granted);
        }
        while let Some(granted) = self.hand_out() {
            wake.push(granted);
        }
        if self.state.is_drained() {
            for request in self.draining.drain(..) {
                let mut drained = request.slot.lock();
                if request.ticket.grant() {
                    *drained = true;
                    drop(drained);
                    wake.push(request.ticket);
                }
            }
        }
        self.keep_watch(&mut wake);
        wake
    }

    /// Put the item of the first who waits for room, if there is room. Returns whom to wake.
    fn admit(&mut self) -> Option<Ticket> {
        while let Some(request) = self.putting.pop_front() {
            let mut slot = request.slot.lock();
            let Entrance::Outside(_, options) = &*slot else {
                continue; // it has left with what it came for
            };
            if !self.state.has_room(options) {
                drop(slot);
                self.putting.push_front(request);
                return None;
            }
            if request.ticket.grant() {
                slot.enter(&mut self.state);
                drop(slot);
                return Some(request.ticket);
            }
        }
        None
    }

    /// Lease an item to the first who waits for one, if there is one; send them home one by one if
    /// none will be leased any more. Returns whom to wake.
    fn hand_out(&mut self) -> Option<Ticket> {
        while self.closed || self.state.has_ready() {
            let request = self.leasing.pop_front()?;
            let mut slot = request.slot.lock();
            if request.ticket.grant() {
                *slot = self.lease();
                drop(slot);
                return Some(request.ticket);
            }
        }
        None
    }

    /// See to it that one of those who wait looks again when the next item is due.
    fn keep_watch(&mut self, wake: &mut Vec<Ticket>) {
        let due = self.state.next_due();
        if due.is_never() || self.has_watch(due) {
            return;
        }
        let nudged = nudge_last(&mut self.leasing)
            .or_else(|| nudge_last(&mut self.putting))
            .or_else(|| nudge_last(&mut self.draining));
        wake.extend(nudged);
    }

    fn has_watch(&self, due: Time) -> bool {
        self.leasing.iter().any(|request| request.bound <= due)
            || self.putting.iter().any(|request| request.bound <= due)
            || self.draining.iter().any(|request| request.bound <= due)
    }

    /// Time has changed something, and nobody has looked.
    fn is_behind(&self) -> bool {
        let due = self.state.next_due();
        !due.is_never() && due <= Time::now()
    }
}

/// Have one look again: the last, who has the least to lose by leaving its place. Returns whom to
/// wake.
fn nudge_last<S>(line: &mut Line<S>) -> Option<Ticket> {
    std::iter::from_fn(|| line.pop_back())
        .map(|request| request.ticket)
        .find(Ticket::grant)
}

impl<T: Clone> Entrance<T> {
    /// Go in, if there is room.
    fn enter<N: Clone + From<Cause>>(&mut self, state: &mut State<T, N>) {
        *self = match std::mem::take(self) {
            Entrance::Outside(value, options) => match state.put(value, &options) {
                Ok((id, unneeded)) => Entrance::Inside(id, unneeded),
                Err(value) => Entrance::Outside(value, options),
            },
            settled => settled,
        };
    }
}

impl<T, N> Clone for LeaseQueue<T, N> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<T: Clone, N: Clone + From<Cause>> fmt::Debug for LeaseQueue<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseQueue")
            .field("counts", &self.counts())
            .finish()
    }
}
