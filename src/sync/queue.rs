//! Items on their way from thread to thread.
//!
//! Guarantees: items put are items got plus items queued, at every instant (I13); a wait that ends
//! with an error has put, or got, nothing (I11); an item that comes while somebody waits for one
//! is handed to the first in line who still wants it, so no wake-up is lost or taken along (I12).

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
/// It has the manners of Python's: items may be counted as done, and a queue shut down.
pub struct Queue<T> {
    state: Mutex<QueueState<T>>,
}

/// Which item is got next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The one that was put first.
    #[default]
    Fifo,
    /// The one that was put last.
    Lifo,
}

struct QueueState<T> {
    items: VecDeque<T>,
    order: Order,
    capacity: usize,
    getters: VecDeque<Getter<T>>,
    putters: VecDeque<Putter<T>>,
    /// Put, and not yet counted as done.
    unfinished: usize,
    /// Those who wait until all is done.
    joining: WaitQueue,
    shut: bool,
}

/// What a waiter is given, or gives; locked before its ticket is granted, so that the waiter finds
/// it settled.
type ItemSlot<T> = Arc<Mutex<Option<T>>>;

struct Getter<T> {
    ticket: Ticket,
    /// Filled with the item. Empty: look again.
    slot: ItemSlot<T>,
}

struct Putter<T> {
    ticket: Ticket,
    /// Its item is taken from here. Still there: look again.
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

    /// Make it another one, before it is used.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn configure(&self, order: Order, capacity: usize) {
        let mut state = self.state.lock();
        state.order = order;
        state.capacity = bound(capacity);
    }

    /// Let it have so many items, zero for any number: those who wait for a place get what is new.
    /// Items that are in it stay.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn resize(&self, capacity: usize) {
        let wake = {
            let mut state = self.state.lock();
            state.capacity = bound(capacity);
            let mut wake = Vec::new();
            while !state.is_full() {
                let Some(putter) = state.admit() else { break };
                wake.push(putter);
            }
            wake
        };
        wake.iter().for_each(Ticket::wake);
    }

    /// Put an item, waiting for a place until `until` at most; then it is given back. A
    /// checkpoint; `Err` means that it was not put.
    pub fn put(&self, item: T, until: Time) -> Result<Option<T>, QueueError> {
        let mut putting = self.put_op(item);
        let put = wait::perform(&mut putting, until)?;
        Ok(if put.is_some() { None } else { putting.item })
    }

    /// Put an item if there is a place, else it is given back; not a checkpoint, never blocks.
    pub fn try_put(&self, item: T) -> Result<Option<T>, QueueError> {
        match self.offer(item) {
            Ok(()) => Ok(None),
            Err(_) if self.is_shut_down() => Err(QueueError::ShutDown),
            Err(item) => Ok(Some(item)),
        }
    }

    /// Put an item, unless there is no place, or it was shut down.
    #[inline]
    pub(crate) fn offer(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.shut || state.is_full() {
            return Err(item);
        }
        let wake = state.put(item);
        drop(state);
        wake.iter().for_each(Ticket::wake);
        Ok(())
    }

    /// Get an item, waiting until `until` at most; then `None`. A checkpoint; `Err` means that
    /// nothing was got.
    pub fn get(&self, until: Time) -> Result<Option<T>, QueueError> {
        wait::perform(&mut self.get_op(), until)
    }

    /// Get an item if there is one; not a checkpoint, never blocks.
    pub fn try_get(&self) -> Result<Option<T>, QueueError> {
        let item = self.take();
        if item.is_none() {
            let state = self.state.lock();
            // There may be an item by now; then there was none just before, and no shutdown.
            if state.shut && state.items.is_empty() {
                return Err(QueueError::ShutDown);
            }
        }
        Ok(item)
    }

    /// Get an item if there is one.
    #[inline]
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.state.lock();
        let (item, wake) = state.get()?;
        drop(state);
        wake.iter().for_each(Ticket::wake);
        Some(item)
    }

    /// Putting `item`, as one of several things to wait for.
    pub(crate) fn put_op(&self, item: T) -> PutOp<'_, T> {
        PutOp {
            queue: self,
            item: Some(item),
            slot: None,
        }
    }

    /// Getting, as one of several things to wait for.
    pub(crate) fn get_op(&self) -> GetOp<'_, T> {
        GetOp {
            queue: self,
            slot: None,
        }
    }

    /// One item that was got has been worked on.
    pub fn task_done(&self) -> Result<(), NothingUnfinished> {
        let joined = {
            let mut state = self.state.lock();
            state.unfinished = state.unfinished.checked_sub(1).ok_or(NothingUnfinished)?;
            state.joined()
        };
        joined.iter().for_each(Ticket::wake);
        Ok(())
    }

    /// Wait until as many items have been counted as done as were put, or until `until` (then
    /// false). A checkpoint.
    pub fn join(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut self.join_op(), until).map(|joined| joined.is_some())
    }

    /// Joining, for a host that sleeps in its own way.
    pub(crate) fn join_op(&self) -> JoinOp<'_, T> {
        JoinOp(self)
    }

    /// From now on nothing is put, and nothing is got once it is empty: who waits is told. With
    /// `immediate` it is emptied at once; returns what was in it, which counts as done.
    pub fn shut_down(&self, immediate: bool) -> Vec<T> {
        let (dropped, wake) = {
            let mut state = self.state.lock();
            state.shut = true;
            let dropped: Vec<T> = if immediate {
                state.items.drain(..).collect()
            } else {
                Vec::new()
            };
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

    /// Shut down?
    pub fn is_shut_down(&self) -> bool {
        self.state.lock().shut
    }

    /// How many items are queued.
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// No item is queued?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No place is left?
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

    /// Take all out that is queued, and count it neither as got nor as done.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn clear(&self) -> VecDeque<T> {
        std::mem::take(&mut self.state.lock().items)
    }

    /// Visit all that is queued, unless somebody is just using the queue.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn try_for_each(&self, visit: impl FnMut(&T)) {
        #[cfg(not(loom))]
        if let Some(state) = self.state.try_lock() {
            state.items.iter().for_each(visit);
        }
        #[cfg(loom)]
        self.state.lock().items.iter().for_each(visit);
    }
}

fn bound(capacity: usize) -> usize {
    if capacity == 0 { usize::MAX } else { capacity }
}

impl<T> QueueState<T> {
    /// Returns those to wake who wait until all is done, if it is.
    fn joined(&mut self) -> Vec<Ticket> {
        if self.unfinished == 0 {
            self.joining.grant_all()
        } else {
            Vec::new()
        }
    }

    /// Put an item, which has a place. Returns whom to wake.
    #[inline]
    fn put(&mut self, item: T) -> Option<Ticket> {
        self.unfinished += 1;
        if !self.getters.is_empty() {
            return self.hand_over(item);
        }
        self.items.push_back(item);
        None
    }

    /// Give an item to the first getter who still wants it. There are getters only while there are
    /// no items. Returns whom to wake.
    #[cold]
    fn hand_over(&mut self, item: T) -> Option<Ticket> {
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

    /// Get the next item. Returns whom to wake, because its item has found a place.
    #[inline]
    fn get(&mut self) -> Option<(T, Option<Ticket>)> {
        let item = match self.order {
            Order::Fifo => self.items.pop_front(),
            Order::Lifo => self.items.pop_back(),
        }?;
        // The place may be gone, if there have become less of them.
        let admitted = if self.putters.is_empty() || self.is_full() {
            None
        } else {
            self.admit()
        };
        Some((item, admitted))
    }

    /// Take the item of the first who waits for a place, which there is. Returns whom to wake.
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

/// One call of [`Queue::put`].
pub(crate) struct PutOp<'a, T> {
    queue: &'a Queue<T>,
    /// The item, while it is not in line.
    item: Option<T>,
    slot: Option<ItemSlot<T>>,
}

impl<T> Waitable for PutOp<'_, T> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.queue.state.lock();
        if state.shut || !state.is_full() {
            ticket.grant();
            return;
        }
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
    /// The item, if it was not put.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn into_item(self) -> Option<T> {
        self.item
    }

    /// The item comes back from the line.
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

    fn collect(&mut self) -> Result<Option<()>, QueueError> {
        self.fetch();
        if self.item.is_none() {
            return Ok(Some(()));
        }
        self.attempt()
    }
}

/// One call of [`Queue::get`].
pub(crate) struct GetOp<'a, T> {
    queue: &'a Queue<T>,
    slot: Option<ItemSlot<T>>,
}

impl<T> Waitable for GetOp<'_, T> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.queue.state.lock();
        if state.shut || !state.items.is_empty() {
            ticket.grant();
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

    fn collect(&mut self) -> Result<Option<T>, QueueError> {
        let handed_over = self.slot.as_ref().and_then(|slot| slot.lock().take());
        match handed_over {
            Some(item) => Ok(Some(item)),
            None => self.attempt(),
        }
    }
}

/// One call of [`Queue::join`].
pub(crate) struct JoinOp<'a, T>(&'a Queue<T>);

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

    // It was so in the instant of the grant, whatever has been put since.
    fn collect(&mut self) -> Result<Option<()>, Stop> {
        Ok(Some(()))
    }
}

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
