//! Leases of items that are kept in memory.
//!
//! # Protocol
//!
//! One mutex, `shared`, protects everything: the items and their states, and the wait lists. Every
//! operation is one critical section (`LeaseQueue::change`), so that the counts add up at every
//! instant (I28):
//! 1. make the state changes that time has brought (`catch_up`);
//! 2. make the operation's own change;
//! 3. if threads wait, `settle`: put the items of waiting putters while there is room, lease items
//!    to waiting workers while there are any, tell the drainers if nothing is left, and choose a
//!    timekeeper;
//! 4. unlock; then wake the granted threads, and drop the user's objects.
//!
//! Lock order: `shared`, then the slot of one waiter, then the lock that a ticket's grant takes in
//! `park`. A waiter's thread takes its slot alone.
//!
//! # Waiting
//!
//! A waiter looks, finds nothing, and joins its wait list under the lock, where it looks once more
//! (see `waits.rs`); from then on every change of the state finds it. It is served in place: the
//! thread that settles puts the lease into the waiter's slot and grants the ticket, so that no third
//! thread can take the item in between. A ticket that cannot be granted belongs to a waiter that
//! was cancelled or timed out: the item goes to the next.
//!
//! # Time
//!
//! No thread of the queue's own watches the clock. While any thread waits, one of them is the
//! timekeeper: its wait is bounded by the time of the next change (`Request::bound`), and then it
//! looks again, which makes the change. If a change becomes due earlier than every bound, the last
//! waiter is granted without a lease, so that it looks again and takes the new bound: it loses the
//! least by leaving its place. While no thread waits, the next operation catches up.

mod index;
mod slab;
mod state;
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
use crate::work::{
    self, Counts, Dead, Fenced, ItemInfo, ItemState, Lease, Nack, NackOutcome, PutOptions,
    QueueOptions,
};
use crate::{scope, wait};
use state::ItemStates;
#[cfg(feature = "python")]
pub(crate) use state::Stored;
pub(crate) use waits::{DrainOp, LeaseOp, PutOp};

/// A queue of leases, in memory. Cloning gives another handle of the same queue.
///
/// `T` is an item. `N` is a note: the stored form of a failure, or of progress. Both are cloned under
/// the lock of the queue and should be cheap handles. Where an item expires or a lease times out,
/// the note is made of a [`Cause`] of kind [`Deadline`](crate::CauseKind::Deadline).
pub struct LeaseQueue<T, N> {
    shared: Arc<Mutex<Shared<T, N>>>,
}

/// The fields that the queue's lock protects.
struct Shared<T, N> {
    state: ItemStates<T, N>,
    /// Set once, by [`LeaseQueue::close`]: no more leases.
    closed: bool,
    /// Waiting workers, in order of arrival. Not empty only while no item is ready.
    leasing: WaitList<LeaseSlot<T, N>>,
    /// Waiting putters, in order of arrival. Not empty only while the queue is full.
    putting: WaitList<Slot<PutState<T>>>,
    /// Threads in [`LeaseQueue::drain`]. Not empty only while items are unfinished.
    draining: WaitList<Slot<bool>>,
}

type WaitList<S> = VecDeque<Request<S>>;

/// The hand-over between a waiter and the thread that grants its ticket. The granting thread holds
/// its lock from before the grant until it has filled it, so the waiter finds it filled. Left as it
/// was, it tells the waiter to look again.
type Slot<V> = Arc<Mutex<V>>;

/// The slot of a waiting worker, and the number that it is known by.
type LeaseSlot<T, N> = (u64, Slot<Option<Lease<T, N>>>);

/// A waiter in a wait list.
struct Request<S> {
    ticket: Ticket,
    /// When the waiter looks again by itself: the time of the next change when it joined.
    bound: Time,
    slot: S,
}

/// The item of a `put`, on its way. It is in one place at a time: with the putter, or in its slot
/// while it waits.
#[derive(Default)]
enum PutState<T> {
    /// The item is in the other place.
    #[default]
    Moved,
    /// Not put yet.
    Unput(T, PutOptions),
    /// Put, with this id; with the item itself if that of another item, which has its key.
    Put(u64, Option<T>),
}

impl<T: Clone, N: Clone + From<Cause>> LeaseQueue<T, N> {
    /// An empty queue.
    pub fn new(options: impl Into<QueueOptions>) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                state: ItemStates::new(options.into().kept()),
                closed: false,
                leasing: WaitList::new(),
                putting: WaitList::new(),
                draining: WaitList::new(),
            })),
        }
    }

    /// Put an item with the usual options; returns its id.
    ///
    /// # Blocking
    /// As [`LeaseQueue::put_with`], without a time limit.
    ///
    /// # Cancellation
    /// As [`LeaseQueue::put_with`].
    ///
    /// # Errors
    /// The thread is to stop. The item was not put and is dropped.
    #[inline]
    pub fn put(&self, value: T) -> Result<u64, Stop> {
        match self.put_with(value, &PutOptions::default(), Time::NEVER)? {
            Some(id) => Ok(id),
            None => unreachable!("never has come"),
        }
    }

    /// Put an item. Returns its id, or that of the item which has its key already and stands for
    /// it. `None`: there was no room until `until`, and the item was dropped.
    ///
    /// # Blocking
    /// Blocks while the queue is full ([`QueueOptions::maxsize`]). Putters are served in the order
    /// of their arrival.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if there is room. A cancelled call has put nothing.
    ///
    /// # Errors
    /// The thread is to stop. The item was not put and is dropped.
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
        wait::perform(&mut self.put_op(value, options), until)
    }

    /// Putting, as an operation for a host that parks in its own way.
    pub(crate) fn put_op(&self, value: T, options: &PutOptions) -> PutOp<'_, T, N> {
        PutOp {
            queue: self,
            item: PutState::Unput(value, options.clone()),
            slot: None,
            bound: Time::NEVER,
        }
    }

    /// [`LeaseQueue::put_with`] if there is room. Never blocks, and is no checkpoint.
    ///
    /// # Errors
    /// There is no room: the item.
    #[inline]
    pub fn try_put(&self, value: T, options: &PutOptions) -> Result<u64, T> {
        let (id, replaced) = self.change(|shared| shared.state.put(value, options))?;
        drop(replaced); // without the lock: it is the user's
        Ok(id)
    }

    /// Lease the next item. `None`: no item came until `until`, or the queue is closed.
    ///
    /// The next is one of the least priority; among those, items of stopped workers come first, then
    /// those that have been ready for the longest time.
    ///
    /// # Blocking
    /// Blocks while no item is ready. Workers are served in the order of their arrival.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if an item is ready. A cancelled call has leased nothing. If an
    /// item was leased first it is returned, and the next checkpoint raises.
    ///
    /// # Errors
    /// The thread is to stop.
    #[inline]
    pub fn lease(&self, until: Time) -> Result<Option<Lease<T, N>>, Stop> {
        // The first step of `perform`, without making its request, which takes a tenth of a lease's time.
        wait::checkpoint()?;
        match self.try_lease(0) {
            Some(lease) => {
                scope::defer_pending_kill();
                Ok(Some(lease))
            }
            None => self.wait_and_lease(until),
        }
    }

    #[cold]
    fn wait_and_lease(&self, until: Time) -> Result<Option<Lease<T, N>>, Stop> {
        wait::perform(&mut self.lease_op(0), until).map(Option::flatten)
    }

    /// Lease the next item to this holder if one is ready. Never blocks, and is no checkpoint.
    #[inline]
    pub(crate) fn try_lease(&self, holder: u64) -> Option<Lease<T, N>> {
        self.change(|shared| shared.lease(holder))
    }

    /// Leasing to this holder, as an operation for a host that parks in its own way.
    pub(crate) fn lease_op(&self, holder: u64) -> LeaseOp<'_, T, N> {
        LeaseOp {
            queue: self,
            holder,
            slot: None,
            bound: Time::NEVER,
        }
    }

    /// Acknowledge: the work of this lease is done, and the item leaves the queue. At most one call
    /// succeeds for an item (I29). Never blocks.
    ///
    /// # Errors
    /// The lease is over. Nothing was changed.
    #[inline]
    pub fn ack(&self, id: u64, epoch: u64) -> Result<(), Fenced> {
        // The item and the rest of it are the user's: dropped without the lock.
        self.change(|shared| shared.state.ack(id, epoch)).map(drop)
    }

    /// Extend the lease for another [`QueueOptions::lease_timeout`], and keep the progress, if any
    /// is given, for the next attempt. Returns when the lease ends now. Never blocks.
    ///
    /// # Errors
    /// The lease is over. Nothing was changed.
    pub fn extend(
        &self,
        id: u64,
        epoch: u64,
        mut progress: Option<N>,
    ) -> Result<Option<Time>, Fenced> {
        self.change(|shared| shared.state.extend(id, epoch, &mut progress))
    }

    /// End the lease without success, and store the failure, if there was one. Never blocks.
    ///
    /// # Errors
    /// The lease is over. Nothing was changed.
    pub fn nack(
        &self,
        id: u64,
        epoch: u64,
        nack: Nack,
        mut failure: Option<N>,
    ) -> Result<NackOutcome, Fenced> {
        self.change(|shared| shared.state.nack(id, epoch, nack, &mut failure))
    }

    /// The holder of the lease is gone: requeue the item, unless the lease is over. Never blocks.
    pub fn release(&self, id: u64, epoch: u64) {
        let note = Some(work::lease_released().into());
        let _over = self.nack(id, epoch, Nack::AtOnce, note);
    }

    /// Let the item be leased no more (I31). `Some(true)`: it is dead now. `Some(false)`: it is
    /// leased, and will be dead when its lease ends without success. `None`: it is done or dead
    /// already, or there never was one with this id. Never blocks.
    pub fn cancel(&self, id: u64, failure: N) -> Option<bool> {
        let mut failure = Some(failure);
        self.change(|shared| shared.state.cancel(id, &mut failure))
    }

    /// True if the item is leased, and was cancelled meanwhile. Never blocks.
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.shared.lock().state.is_cancelled(id)
    }

    /// Let all ready and delayed items be dead, and return them: no worker will lease them. Never
    /// blocks.
    pub fn dead_letter_all(&self, failure: &N) -> Vec<T> {
        self.change(|shared| shared.state.dead_letter_all(failure))
    }

    /// The item with this id, if it is not done.
    pub fn item(&self, id: u64) -> Option<T> {
        self.shared.lock().state.item(id)
    }

    /// Make a dead item ready, whether there is room or not, with all its attempts and without a
    /// time to live. False: it is not dead. Never blocks.
    pub fn retry(&self, id: u64) -> bool {
        let mut dropped = None; // without the lock
        self.change(|shared| shared.state.retry(id, &mut dropped))
    }

    /// How many items are in each state, at one instant.
    pub fn counts(&self) -> Counts {
        self.change(|shared| shared.state.counts())
    }

    /// The items that are not done: at most `limit`, of this state only if one is given. In the order
    /// of [`ItemState`], and within a state in the order in which they were put. The holder is a
    /// number that the host knows the worker by. Looks at all items, while the queue is locked.
    pub fn items(&self, state: Option<ItemState>, limit: usize) -> Vec<ItemInfo<u64>> {
        self.change(|shared| shared.state.infos(state, limit))
    }

    /// The dead items, in the order in which they died.
    pub fn dead(&self) -> Vec<Dead<T, N>> {
        self.change(|shared| shared.state.dead())
    }

    /// Wait until no item is ready, leased or delayed. False: there was one at every instant until
    /// `until`.
    ///
    /// # Blocking
    /// Blocks while items are unfinished. Returns if there was none for an instant, even if more
    /// were put since.
    ///
    /// # Cancellation
    /// A checkpoint on entry.
    ///
    /// # Errors
    /// The thread is to stop.
    pub fn drain(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut self.drain_op(), until).map(|drained| drained.is_some())
    }

    /// Draining, as an operation for a host that parks in its own way.
    pub(crate) fn drain_op(&self) -> DrainOp<'_, T, N> {
        DrainOp {
            queue: self,
            slot: None,
            bound: Time::NEVER,
        }
    }

    /// From now on `lease` returns `None` at once, also to the threads that wait in it. The items
    /// keep their states, and more can be put. Idempotent; never blocks.
    pub fn close(&self) {
        self.change(|shared| shared.closed = true);
    }

    /// Visit all items and notes: for the garbage collector. A waiter's item is not among them. Skips
    /// them if the queue is locked, see `try_for_each` of [`crate::sync::Queue`].
    #[cfg(feature = "python")]
    pub(crate) fn try_for_each(&self, visit: impl FnMut(Stored<'_, T, N>)) {
        if let Some(shared) = self.shared.try_lock() {
            shared.state.stored().for_each(visit);
        }
    }

    /// Removes all items, whatever their states: for the garbage collector. Returns them, to be dropped.
    #[cfg(feature = "python")]
    pub(crate) fn clear(&self) -> impl Sized + use<T, N> {
        self.shared.lock().state.take_all()
    }

    /// Run `change` in a critical section as the module's header says.
    #[inline]
    fn change<C>(&self, change: impl FnOnce(&mut Shared<T, N>) -> C) -> C {
        let mut shared = self.shared.lock();
        shared.state.catch_up();
        // A result that needs no drop in a panic stays in registers, and is not moved through memory.
        let result = ManuallyDrop::new(change(&mut shared));
        if shared.has_no_waiters() {
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
    /// Lease the next item to this holder, if one is ready and the queue is open.
    #[inline]
    fn lease(&mut self, holder: u64) -> Option<Lease<T, N>> {
        if self.closed {
            None
        } else {
            self.state.lease(holder)
        }
    }

    fn has_no_waiters(&self) -> bool {
        self.leasing.is_empty() && self.putting.is_empty() && self.draining.is_empty()
    }

    /// Serve the waiters as far as the state allows. Returns the tickets to wake, without the lock.
    #[cold]
    fn settle(&mut self) -> Vec<Ticket> {
        let mut wake = Vec::new();
        while let Some(granted) = self.put_for_waiter() {
            wake.push(granted);
        }
        while let Some(granted) = self.lease_to_waiter() {
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
        self.choose_timekeeper(&mut wake);
        wake
    }

    /// Put the item of the first waiting putter, if there is room. Returns its ticket.
    fn put_for_waiter(&mut self) -> Option<Ticket> {
        while let Some(request) = self.putting.pop_front() {
            let mut slot = request.slot.lock();
            let PutState::Unput(_, options) = &*slot else {
                continue; // its putter has left, and taken the item along
            };
            if !self.state.has_room(options) {
                drop(slot);
                self.putting.push_front(request);
                return None;
            }
            if request.ticket.grant() {
                slot.put_into(&mut self.state);
                drop(slot);
                return Some(request.ticket);
            }
        }
        None
    }

    /// Lease an item to the first waiting worker, if one is ready; if the queue is closed, grant the
    /// worker without a lease. Returns its ticket.
    fn lease_to_waiter(&mut self) -> Option<Ticket> {
        while self.closed || self.state.has_ready() {
            let request = self.leasing.pop_front()?;
            let (holder, slot) = &request.slot;
            let mut slot = slot.lock();
            if request.ticket.grant() {
                *slot = self.lease(*holder);
                drop(slot);
                return Some(request.ticket);
            }
        }
        None
    }

    /// Make sure that a waiter looks again when the next state change is due.
    fn choose_timekeeper(&mut self, wake: &mut Vec<Ticket>) {
        let due = self.state.next_due();
        if due.is_never() || self.has_timekeeper(due) {
            return;
        }
        let granted = grant_last(&mut self.leasing)
            .or_else(|| grant_last(&mut self.putting))
            .or_else(|| grant_last(&mut self.draining));
        wake.extend(granted);
    }

    fn has_timekeeper(&self, due: Time) -> bool {
        self.leasing.iter().any(|request| request.bound <= due)
            || self.putting.iter().any(|request| request.bound <= due)
            || self.draining.iter().any(|request| request.bound <= due)
    }

    /// True if a state change is due that no operation has made yet.
    fn is_behind(&self) -> bool {
        let due = self.state.next_due();
        !due.is_never() && due <= Time::now()
    }
}

/// Grant the last waiter without filling its slot, so that it looks again. Returns its ticket.
fn grant_last<S>(list: &mut WaitList<S>) -> Option<Ticket> {
    std::iter::from_fn(|| list.pop_back())
        .map(|request| request.ticket)
        .find(Ticket::grant)
}

impl<T: Clone> PutState<T> {
    /// Put the item, if it is here, was not put, and there is room.
    fn put_into<N: Clone + From<Cause>>(&mut self, state: &mut ItemStates<T, N>) {
        *self = match std::mem::take(self) {
            PutState::Unput(value, options) => match state.put(value, &options) {
                Ok((id, replaced)) => PutState::Put(id, replaced),
                Err(value) => PutState::Unput(value, options),
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
