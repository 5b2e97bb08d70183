//! A queue of items between threads.
//!
//! Guarantees:
//! 1. Items put are items got plus items queued, at every instant (I13).
//! 2. A wait that ends with an error has put, or got, nothing; its item comes back (I11).
//! 3. An item that is put while threads wait for one is handed to the first getter that still wants
//!    it. So no wake-up is lost, or spent on a getter that has gone (I12).
//! 4. An item of a waiting putter is queued in the same step in which a place becomes free, so a
//!    later putter cannot overtake it.
//!
//! Protocol. [`QueueState`] belongs to the queue's mutex. Getters wait only while there are no items,
//! putters only while there is no place.
//!
//! | step                 | what it does, in one critical section                                   |
//! |----------------------|--------------------------------------------------------------------------|
//! | put, getters wait    | fill the slot of the first getter that accepts the grant                  |
//! | put, none waits      | queue the item, or refuse if there is no place                            |
//! | get                  | take an item; then admit the first putter: empty its slot, queue its item |
//! | getter queues        | only if there are still no items and the queue is not shut down           |
//! | putter queues        | move its item into its slot, only if there is still no place              |
//! | wait ends otherwise  | remove the request; a putter takes its item out of the slot               |
//! | shut down            | grant all waiters: their slots say that they were not served              |
//!
//! A slot has a mutex of its own, shared by the waiter and its request. The serving thread locks the
//! slot, grants the ticket, and only then moves the item; a waiter that sees the grant locks the slot
//! and so finds the hand-over complete. A granted waiter whose slot was not served tries again.
//!
//! Why a slot of its own: an item must not be lost between the grant and the moment in which the waiter
//! takes it. It lies in memory that both share, so it is delivered even if the waiter is cancelled at
//! the same time, and is dropped with the slot if the whole thread is gone.
//!
//! Relies on `wait`: a granted waiter calls `collect`, also if it was cancelled at the same time; one
//! that was not granted calls `dequeue`.
//!
//! Lock order: the queue's mutex, then a slot, then the waiter's word. Tickets are woken, and items
//! dropped, with nothing locked, for the drop of an item may run code of the host. A slot is never
//! contended for long: its other user is the one waiter, which locks it for one move.
//!
//! Checked by the models in `models/queue.rs`: every hand-over against a cancellation and a shutdown, with
//! one place and with many. `tests/rust/queue.rs` counts items under contention.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{self, Op, Waitable};

/// A queue of any number of items, or of a bounded one. Waits on it can be cancelled.
///
/// It has the semantics of Python's: items may be counted as done, and a queue shut down.
///
/// ```
/// use desist::Time;
/// use desist::sync::{Order, Queue, QueueError};
///
/// let queue = Queue::new(Order::Fifo, 1);
/// assert_eq!(queue.put("first", Time::NEVER), Ok(None));
/// assert_eq!(queue.try_put("second"), Ok(Some("second")), "there is no place");
/// assert_eq!(queue.get(Time::NEVER), Ok(Some("first")));
/// assert_eq!(queue.get(Time::now()), Ok(None), "timed out");
/// queue.shut_down(false);
/// assert_eq!(queue.get(Time::NEVER), Err(QueueError::ShutDown));
/// ```
pub struct Queue<T> {
    /// See the protocol above.
    state: Mutex<QueueState<T>>,
}

/// Which item is got next. It decides at `get`, so items that wait for a place are put in the order of
/// their arrival in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The one that was put first.
    #[default]
    Fifo,
    /// The one that was put last.
    Lifo,
}

/// The fields that the queue's mutex protects.
struct QueueState<T> {
    /// The queued items, the one that was put first at the front.
    items: VecDeque<T>,
    /// Which end `get` takes from. Set before the queue is used.
    order: Order,
    /// The most items; `usize::MAX` for no bound. `resize` may lower it below `items.len()`.
    capacity: usize,
    /// The waiting getters, in the order of their arrival. Empty while there are items.
    getters: VecDeque<Getter<T>>,
    /// The waiting putters, in the order of their arrival. Empty while there is a place.
    putters: VecDeque<Putter<T>>,
    /// Items that were put and not yet counted as done by `task_done`; queued ones included.
    unfinished: usize,
    /// Threads in `join`. Empty while `unfinished` is 0.
    joining: WaitQueue,
    /// Set by `shut_down`, never cleared: no item is put any more.
    shut: bool,
}

/// The item that a waiter receives, or offers. Locked by the serving thread before it grants the
/// ticket and until the item is moved.
type ItemSlot<T> = Arc<Mutex<Option<T>>>;

/// A waiting getter's place in the queue.
struct Getter<T> {
    ticket: Ticket,
    /// Filled with the item after the grant. Still empty: the getter tries again.
    slot: ItemSlot<T>,
}

/// A waiting putter's place in the queue.
struct Putter<T> {
    ticket: Ticket,
    /// Holds the item while the putter waits, emptied after the grant. Still full: it tries again.
    slot: ItemSlot<T>,
}

/// Why an item was not put or got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueError {
    /// The calling thread is to stop.
    Stop(Stop),
    /// The queue was shut down.
    ShutDown,
}

/// `task_done` was called more often than there were items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NothingUnfinished;

impl<T> Queue<T> {
    /// An empty queue for `capacity` items at most; zero means any number.
    pub fn new(order: Order, capacity: usize) -> Queue<T> {
        Queue {
            state: Mutex::new(QueueState {
                items: VecDeque::new(),
                order,
                capacity: bound(capacity),
                getters: VecDeque::new(),
                putters: VecDeque::new(),
                unfinished: 0,
                joining: WaitQueue::default(),
                shut: false,
            }),
        }
    }

    /// Change the settings from `new`, before the queue is used.
    #[cfg(feature = "python")]
    pub(crate) fn configure(&self, order: Order, capacity: usize) {
        let mut state = self.state.lock();
        state.order = order;
        state.capacity = bound(capacity);
    }

    /// Change the capacity; zero means any number. Waiting putters get the places that are new; queued
    /// items stay, even if there are more than the new capacity.
    #[cfg(feature = "python")]
    pub(crate) fn resize(&self, capacity: usize) {
        let wake = {
            let mut state = self.state.lock();
            state.capacity = bound(capacity);
            // As many putters as there are new places, or all there are.
            let mut wake = Vec::new();
            while !state.is_full() {
                let Some(putter) = state.admit() else { break };
                wake.push(putter);
            }
            wake
        };
        wake.iter().for_each(Ticket::wake);
    }

    /// Put an item, waiting for a place until `until` at most; then the item is returned.
    ///
    /// # Blocking
    /// Blocks while the queue is full. Putters are served in the order of their arrival.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if there is a place. A cancelled call has not put the item.
    ///
    /// # Errors
    /// The thread is to stop, or the queue was shut down. The item was not put and is dropped.
    pub fn put(&self, item: T, until: Time) -> Result<Option<T>, QueueError> {
        let mut putting = self.put_op(item);
        let put = wait::perform(&mut putting, until)?;
        Ok(if put.is_some() { None } else { putting.item })
    }

    /// Put an item if there is a place, else return it. Never blocks, and is no checkpoint.
    ///
    /// # Errors
    /// The queue was shut down.
    pub fn try_put(&self, item: T) -> Result<Option<T>, QueueError> {
        match self.offer(item) {
            Ok(()) => Ok(None),
            Err(_) if self.is_shut_down() => Err(QueueError::ShutDown),
            Err(item) => Ok(Some(item)),
        }
    }

    /// Put an item; `Err` returns it if there is no place or the queue is shut down. One critical
    /// section, compiled into its callers.
    #[inline]
    pub(crate) fn offer(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.shut || state.is_full() {
            return Err(item);
        }
        let wake = state.put(item);
        drop(state); // waking is a system call
        wake.iter().for_each(Ticket::wake);
        Ok(())
    }

    /// Get an item, waiting until `until` at most; then `None`.
    ///
    /// # Blocking
    /// Blocks while the queue is empty. Getters are served in the order of their arrival.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if there is an item. A cancelled call has got none. If an item was
    /// handed over first, it is returned, and the next checkpoint raises.
    ///
    /// # Errors
    /// The thread is to stop, or the queue was shut down and is empty.
    pub fn get(&self, until: Time) -> Result<Option<T>, QueueError> {
        wait::perform(&mut self.get_op(), until)
    }

    /// Get an item if there is one. Never blocks, and is no checkpoint.
    ///
    /// # Errors
    /// The queue was shut down and is empty.
    pub fn try_get(&self) -> Result<Option<T>, QueueError> {
        let item = self.take();
        if item.is_none() {
            let state = self.state.lock();
            // An item may have been put since `take`. Then "empty" was true a moment ago, and the
            // queue is not exhausted: no error.
            if state.shut && state.items.is_empty() {
                return Err(QueueError::ShutDown);
            }
        }
        Ok(item)
    }

    /// Get an item if there is one; `None` also if the queue is shut down. One critical section,
    /// compiled into its callers.
    #[inline]
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.state.lock();
        let (item, wake) = state.get()?;
        drop(state);
        wake.iter().for_each(Ticket::wake);
        Some(item)
    }

    /// Putting `item`, as an operation to be performed alone or as one of several.
    pub(crate) fn put_op(&self, item: T) -> PutOp<'_, T> {
        PutOp {
            queue: self,
            item: Some(item),
            slot: None,
        }
    }

    /// Getting an item, as an operation to be performed alone or as one of several.
    pub(crate) fn get_op(&self) -> GetOp<'_, T> {
        GetOp {
            queue: self,
            slot: None,
        }
    }

    /// Count one item as done. The last one wakes the threads in `join`. Never blocks.
    ///
    /// # Errors
    /// It was called more often than items were put.
    pub fn task_done(&self) -> Result<(), NothingUnfinished> {
        let joined = {
            let mut state = self.state.lock();
            state.unfinished = state.unfinished.checked_sub(1).ok_or(NothingUnfinished)?;
            state.joined()
        };
        joined.iter().for_each(Ticket::wake);
        Ok(())
    }

    /// Wait until every item that was put is counted as done, or until `until`; then false.
    ///
    /// # Blocking
    /// Blocks while items are unfinished. Returns if their number was 0 for an instant, even if more
    /// were put since.
    ///
    /// # Cancellation
    /// A checkpoint on entry.
    ///
    /// # Errors
    /// The thread is to stop.
    pub fn join(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut self.join_op(), until).map(|joined| joined.is_some())
    }

    /// Joining, as an operation for a host that parks in its own way.
    pub(crate) fn join_op(&self) -> JoinOp<'_, T> {
        JoinOp(self)
    }

    /// Shut the queue down: from now on `put` fails, and `get` once the queue is empty; waiting putters
    /// and getters get that error. With `immediate` the queue is emptied and its items, which are
    /// returned, count as done. Never blocks.
    pub fn shut_down(&self, immediate: bool) -> Vec<T> {
        let (dropped, wake) = {
            let mut state = self.state.lock();
            state.shut = true;
            let dropped: Vec<T> = if immediate {
                state.items.drain(..).collect()
            } else {
                Vec::new()
            };
            // Saturating: `task_done` may have been called for items that were still queued.
            state.unfinished = state.unfinished.saturating_sub(dropped.len());
            let mut wake = state.joined();
            let getters = std::mem::take(&mut state.getters);
            let putters = std::mem::take(&mut state.putters);
            wake.extend(
                getters
                    .into_iter()
                    .map(|getter| getter.ticket)
                    .filter(Ticket::grant),
            );
            wake.extend(
                putters
                    .into_iter()
                    .map(|putter| putter.ticket)
                    .filter(Ticket::grant),
            );
            (dropped, wake)
        };
        wake.iter().for_each(Ticket::wake);
        dropped
    }

    /// True if it was shut down.
    pub fn is_shut_down(&self) -> bool {
        self.state.lock().shut
    }

    /// How many items are queued.
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// True if no item is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if there is no place for another item.
    pub fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.items.len() >= state.capacity
    }

    /// How many items were put and not yet counted as done.
    pub fn unfinished(&self) -> usize {
        self.state.lock().unfinished
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.getters.len() + state.putters.len() + state.joining.len()
    }

    /// Remove all queued items, which count neither as got nor as done: for the garbage collector.
    #[cfg(feature = "python")]
    pub(crate) fn clear(&self) -> VecDeque<T> {
        std::mem::take(&mut self.state.lock().items)
    }

    /// Visit all queued items, unless another thread has the queue locked: for the garbage collector,
    /// which must not block and may skip data in use.
    #[cfg(feature = "python")]
    pub(crate) fn try_for_each(&self, visit: impl FnMut(&T)) {
        #[cfg(not(loom))]
        if let Some(state) = self.state.try_lock() {
            state.items.iter().for_each(visit);
        }
        #[cfg(loom)]
        self.state.lock().items.iter().for_each(visit);
    }
}

/// The internal form of a capacity.
fn bound(capacity: usize) -> usize {
    if capacity == 0 { usize::MAX } else { capacity }
}

/// All with the queue's mutex locked; the tickets they return are woken after it is unlocked.
impl<T> QueueState<T> {
    /// Grant all joiners if nothing is unfinished. Returns the tickets to wake.
    fn joined(&mut self) -> Vec<Ticket> {
        if self.unfinished == 0 {
            self.joining.grant_all()
        } else {
            Vec::new()
        }
    }

    /// Put an item, for which there is a place. Returns the getter to wake.
    #[inline]
    fn put(&mut self, item: T) -> Option<Ticket> {
        self.unfinished += 1;
        if !self.getters.is_empty() {
            return self.hand_over(item);
        }
        self.items.push_back(item);
        None
    }

    /// Hand an item to the first getter that still wants it, else queue it. There are getters only
    /// while there are no items, so the item overtakes none. Returns the getter to wake.
    #[cold]
    fn hand_over(&mut self, item: T) -> Option<Ticket> {
        // A getter that refuses was cancelled or timed out; its `dequeue` will find nothing to remove.
        while let Some(getter) = self.getters.pop_front() {
            let mut slot = getter.slot.lock();
            if getter.ticket.grant() {
                *slot = Some(item);
                return Some(getter.ticket);
            }
        }
        self.items.push_back(item);
        None
    }

    /// Get the next item. Also returns the putter to wake whose item has taken the free place.
    #[inline]
    fn get(&mut self) -> Option<(T, Option<Ticket>)> {
        let item = match self.order {
            Order::Fifo => self.items.pop_front(),
            Order::Lifo => self.items.pop_back(),
        }?;
        // Still full if `resize` has lowered the capacity below the number of items.
        let admitted = if self.putters.is_empty() || self.is_full() {
            None
        } else {
            self.admit()
        };
        Some((item, admitted))
    }

    /// Queue the item of the first putter that still waits; the caller knows that there is a place.
    /// Returns the putter to wake.
    #[cold]
    fn admit(&mut self) -> Option<Ticket> {
        while let Some(putter) = self.putters.pop_front() {
            let mut slot = putter.slot.lock();
            if putter.ticket.grant() {
                self.items.extend(slot.take());
                self.unfinished += 1;
                drop(slot);
                return Some(putter.ticket);
            }
        }
        None
    }

    fn is_full(&self) -> bool {
        self.items.len() >= self.capacity
    }
}

/// One call of [`Queue::put`]: the operation that the wait performs.
pub(crate) struct PutOp<'a, T> {
    queue: &'a Queue<T>,
    /// The item, while it is not in the slot: `None` while queued, and after it was put.
    item: Option<T>,
    /// Made when it queues for the first time, and shared with its request.
    slot: Option<ItemSlot<T>>,
}

/// A putter that queues moves its item into the slot, and out again if it was not put.
impl<T> Waitable for PutOp<'_, T> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.queue.state.lock();
        if state.shut || !state.is_full() {
            ticket.grant(); // changed since `attempt`: try again
            return;
        }
        // Still locked: from here the item is in the queue's hands, until the wait ends.
        let slot = self.slot.get_or_insert_default().clone();
        *slot.lock() = self.item.take();
        state.putters.push_back(Putter { ticket, slot });
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut state = self.queue.state.lock();
        state.putters.retain(|putter| putter.ticket != *ticket);
        self.fetch();
        false
    }
}

impl<T> PutOp<'_, T> {
    /// The item, if it was not put: for a host that returns it to its caller.
    #[cfg(feature = "python")]
    pub(crate) fn into_item(self) -> Option<T> {
        self.item
    }

    /// Take the item back out of the slot, if it has not been put.
    fn fetch(&mut self) {
        if self.item.is_none() {
            self.item = self.slot.as_ref().and_then(|slot| slot.lock().take());
        }
    }
}

impl<T> Op for PutOp<'_, T> {
    type Output = ();
    type Error = QueueError;

    fn attempt(&mut self) -> Result<Option<()>, QueueError> {
        if let Some(item) = self.item.take() {
            self.item = self.queue.try_put(item)?;
        }
        Ok(self.item.is_none().then_some(()))
    }

    // The slot is empty if the item was queued. Else the queue was shut down, or there is a place.
    fn collect(&mut self) -> Result<Option<()>, QueueError> {
        self.fetch();
        if self.item.is_none() {
            return Ok(Some(()));
        }
        self.attempt()
    }
}

/// One call of [`Queue::get`]: the operation that the wait performs.
pub(crate) struct GetOp<'a, T> {
    queue: &'a Queue<T>,
    /// Made when it queues for the first time, and shared with its request.
    slot: Option<ItemSlot<T>>,
}

/// A getter that queues is an offer to take the next item that is put.
impl<T> Waitable for GetOp<'_, T> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.queue.state.lock();
        if state.shut || !state.items.is_empty() {
            ticket.grant(); // changed since `attempt`: try again
            return;
        }
        let slot = self.slot.get_or_insert_default().clone();
        state.getters.push_back(Getter { ticket, slot });
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut state = self.queue.state.lock();
        state.getters.retain(|getter| getter.ticket != *ticket);
        false
    }
}

impl<T> Op for GetOp<'_, T> {
    type Output = T;
    type Error = QueueError;

    fn attempt(&mut self) -> Result<Option<T>, QueueError> {
        self.queue.try_get()
    }

    // The slot has the item if one was handed over. Else the queue was shut down, or an item was put
    // before this getter had queued.
    fn collect(&mut self) -> Result<Option<T>, QueueError> {
        let handed_over = self.slot.as_ref().and_then(|slot| slot.lock().take());
        match handed_over {
            Some(item) => Ok(Some(item)),
            None => self.attempt(),
        }
    }
}

/// One call of [`Queue::join`]: the operation that the wait performs.
pub(crate) struct JoinOp<'a, T>(&'a Queue<T>);

/// A joiner waits for the last `task_done`, or for an immediate shutdown.
impl<T> Waitable for JoinOp<'_, T> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.0.state.lock();
        if state.unfinished == 0 {
            ticket.grant();
        } else {
            state.joining.push(ticket);
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.0.state.lock().joining.remove(ticket);
        false
    }
}

impl<T> Op for JoinOp<'_, T> {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok((self.0.unfinished() == 0).then_some(()))
    }

    // Nothing was unfinished at the instant of the grant; items put since do not count.
    fn collect(&mut self) -> Result<Option<()>, Stop> {
        Ok(Some(()))
    }
}

/// The error of a wait that has put, or got, nothing.
impl From<Stop> for QueueError {
    fn from(stop: Stop) -> QueueError {
        QueueError::Stop(stop)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueueError::Stop(stop) => stop.fmt(f),
            QueueError::ShutDown => f.write_str("the queue was shut down"),
        }
    }
}

impl std::error::Error for QueueError {}

impl fmt::Display for NothingUnfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("task_done() called too many times")
    }
}

impl std::error::Error for NothingUnfinished {}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
