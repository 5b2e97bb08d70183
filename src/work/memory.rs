//! Leases of items that are kept in memory.
//!
//! The counts add up at every instant, for every change is one critical section (I28).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Line, Ticket};
use crate::wait::{self, Op, Waitable};
use crate::work::{Back, Counts, Dead, Fenced, Lease, Lot, RetryPolicy, Returned};

/// A queue of leases, in memory. `T` is an item, `F` what is kept of a failure; both are
/// cloned under the queue's lock and should be cheap handles. Cloning gives another handle.
pub struct LeaseQueue<T, F> {
    shared: Arc<Shared<T, F>>,
}

struct Shared<T, F> {
    retry: RetryPolicy,
    lot: Lot,
    state: Mutex<State<T, F>>,
}

struct State<T, F> {
    items: HashMap<u64, Item<T, F>>,
    ready: VecDeque<u64>,
    delayed: BTreeSet<(Time, u64)>,
    leased: usize,
    dead: Vec<u64>,
    done: u64,
    last_id: u64,
    last_epoch: u64,
    closed: bool,
    /// Who waits for an item, in order.
    waiting: VecDeque<Request<T>>,
    /// Who waits until there is nothing left to do.
    draining: Line,
}

struct Item<T, F> {
    value: T,
    attempt: u32,
    phase: Phase,
    failures: Vec<F>,
    /// Nobody wants the work any more: it is not to be leased again.
    unwanted: Option<F>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ready,
    Leased { epoch: u64 },
    Delayed { until: Time },
    Dead,
}

struct Request<T> {
    ticket: Ticket,
    /// Filled before the ticket's thread can look; empty: look again.
    slot: Arc<Mutex<Option<Lease<T>>>>,
}

impl<T: Clone, F: Clone> LeaseQueue<T, F> {
    /// An empty queue.
    pub fn new(retry: RetryPolicy) -> Self {
        let state = State {
            items: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeSet::new(),
            leased: 0,
            dead: Vec::new(),
            done: 0,
            last_id: 0,
            last_epoch: 0,
            closed: false,
            waiting: VecDeque::new(),
            draining: Line::default(),
        };
        Self {
            shared: Arc::new(Shared {
                retry,
                lot: Lot::default(),
                state: Mutex::new(state),
            }),
        }
    }

    /// Add an item; returns its number. Never blocks.
    pub fn put(&self, value: T) -> u64 {
        self.change(|state| {
            state.last_id += 1;
            let id = state.last_id;
            state.items.insert(
                id,
                Item {
                    value,
                    attempt: 0,
                    phase: Phase::Ready,
                    failures: Vec::new(),
                    unwanted: None,
                },
            );
            state.ready.push_back(id);
            id
        })
    }

    /// Lease the next item, waiting until `until` at most. `None`: none came, or the queue is
    /// closed. A checkpoint; `Err` means that nothing was leased.
    pub fn lease(&self, until: Time) -> Result<Option<Lease<T>>, Stop> {
        let mut leasing = Leasing {
            queue: self,
            slot: Arc::default(),
            next: Time::NEVER,
        };
        wait::perform(&mut leasing, until).map(Option::flatten)
    }

    /// The work is done. At most one call succeeds for an item (I29).
    pub fn ack(&self, id: u64, epoch: u64) -> Result<(), Fenced> {
        let item = self.change(|state| {
            state.check(id, epoch)?;
            state.leased -= 1;
            state.done += 1;
            Ok(state.items.remove(&id))
        })?;
        drop(item); // unlocked: it is the user's
        Ok(())
    }

    /// Give a lease back, with what went wrong, if anything did.
    pub fn give_back(
        &self,
        id: u64,
        epoch: u64,
        back: Back,
        failure: Option<F>,
    ) -> Result<Returned, Fenced> {
        let retry = self.shared.retry;
        self.change(|state| {
            let item = state.check(id, epoch)?;
            item.failures.extend(failure);
            item.failures.extend(item.unwanted.clone());
            let last = item.attempt >= retry.max_attempts || item.unwanted.is_some();
            let pause = match back {
                Back::Failed => retry.pause(item.attempt, self.shared.lot.draw(epoch)),
                Back::After(pause) => pause,
                Back::AtOnce => Duration::ZERO,
            };
            let until = Time::after(pause);
            item.phase = match (last, pause.is_zero()) {
                (true, _) => Phase::Dead,
                (false, true) => Phase::Ready,
                (false, false) => Phase::Delayed { until },
            };
            let phase = item.phase;
            state.leased -= 1;
            match phase {
                Phase::Dead => state.dead.push(id),
                Phase::Delayed { until } => _ = state.delayed.insert((until, id)),
                _ => state.ready.push_front(id),
            }
            Ok(if last {
                Returned::Dead
            } else {
                Returned::Requeued
            })
        })
    }

    /// The work is unwanted: it will not be leased again (I31). `Some(true)`: it is dead now.
    /// `Some(false)`: it is with a worker, and will be when that gives it back. `None`: it is
    /// done or dead already, or never was.
    pub fn cancel(&self, id: u64, failure: F) -> Option<bool> {
        self.change(|state| {
            let item = state.items.get_mut(&id)?;
            let phase = item.phase;
            match phase {
                Phase::Dead => return None,
                Phase::Leased { .. } => {
                    item.unwanted.get_or_insert(failure);
                    return Some(false);
                }
                Phase::Ready => state.ready.retain(|other| *other != id),
                Phase::Delayed { until } => _ = state.delayed.remove(&(until, id)),
            }
            item.failures.push(failure);
            item.phase = Phase::Dead;
            state.dead.push(id);
            Some(true)
        })
    }

    /// Nobody will work on what is here: all that is ready or delayed is dead now. Returns it.
    pub fn give_up(&self, failure: &F) -> Vec<T> {
        self.change(|state| {
            let delayed = std::mem::take(&mut state.delayed)
                .into_iter()
                .map(|(_, id)| id);
            let unleased: Vec<u64> = std::mem::take(&mut state.ready)
                .into_iter()
                .chain(delayed)
                .collect();
            let mut values = Vec::new();
            for id in unleased {
                if let Some(item) = state.items.get_mut(&id) {
                    item.phase = Phase::Dead;
                    item.failures.push(failure.clone());
                    values.push(item.value.clone());
                    state.dead.push(id);
                }
            }
            values
        })
    }

    /// An item that has not been acknowledged.
    pub fn item(&self, id: u64) -> Option<T> {
        self.shared
            .state
            .lock()
            .items
            .get(&id)
            .map(|item| item.value.clone())
    }

    /// Give a dead item all its attempts again. False: it is not dead.
    pub fn revive(&self, id: u64) -> bool {
        self.change(|state| {
            let Some(item) = state
                .items
                .get_mut(&id)
                .filter(|item| item.phase == Phase::Dead)
            else {
                return false;
            };
            item.phase = Phase::Ready;
            item.attempt = 0;
            item.unwanted = None;
            state.dead.retain(|other| *other != id);
            state.ready.push_back(id);
            true
        })
    }

    /// How many items are in each state, at one instant.
    pub fn counts(&self) -> Counts {
        let state = self.shared.state.lock();
        Counts {
            ready: state.ready.len(),
            leased: state.leased,
            delayed: state.delayed.len(),
            done: state.done,
            dead: state.dead.len(),
        }
    }

    /// The dead items, in the order in which they died.
    pub fn dead(&self) -> Vec<Dead<T, F>> {
        let state = self.shared.state.lock();
        let dead = |id: &u64| {
            state
                .items
                .get(id)
                .map(|item| (*id, item.value.clone(), item.failures.clone()))
        };
        state.dead.iter().filter_map(dead).collect()
    }

    /// Wait until nothing is ready, leased or delayed, or until `until` (then false). A
    /// checkpoint.
    pub fn drain(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut Draining(self), until).map(|drained| drained.is_some())
    }

    /// From now on `lease` returns `None` at once. Items stay where they are.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Change the state, then hand out what can be handed out and wake who has to know.
    fn change<R>(&self, change: impl FnOnce(&mut State<T, F>) -> R) -> R {
        let mut wake = Vec::new();
        let result = {
            let mut state = self.shared.state.lock();
            let earliest = state.delayed.first().copied();
            let result = change(&mut state);
            state.hand_out(&mut wake);
            if state.closed
                || state.delayed.first().copied() < earliest
                || earliest.is_none() && !state.delayed.is_empty()
            {
                state.stir(&mut wake);
            }
            if state.is_drained() {
                wake.extend(state.draining.grant_all());
            }
            result
        };
        wake.iter().for_each(Ticket::wake);
        result
    }
}

impl<T: Clone, F> State<T, F> {
    /// The item, if this lease of it is the current one.
    fn check(&mut self, id: u64, epoch: u64) -> Result<&mut Item<T, F>, Fenced> {
        self.items
            .get_mut(&id)
            .filter(|item| item.phase == Phase::Leased { epoch })
            .ok_or(Fenced)
    }

    fn has_work(&self, now: Time) -> bool {
        !self.ready.is_empty() || self.delayed.first().is_some_and(|(at, _)| *at <= now)
    }

    /// When the next delayed item is due.
    fn next_due(&self) -> Time {
        self.delayed.first().map_or(Time::NEVER, |(at, _)| *at)
    }

    fn is_drained(&self) -> bool {
        self.leased == 0 && self.ready.is_empty() && self.delayed.is_empty()
    }

    /// Lease the next item, if there is one.
    fn take(&mut self, now: Time) -> Option<Lease<T>> {
        if self.closed {
            return None;
        }
        while let Some(&(at, id)) = self.delayed.first() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            self.items
                .entry(id)
                .and_modify(|item| item.phase = Phase::Ready);
            self.ready.push_back(id);
        }
        let id = self.ready.pop_front()?;
        let item = self.items.get_mut(&id)?;
        self.last_epoch += 1;
        self.leased += 1;
        item.attempt += 1;
        item.phase = Phase::Leased {
            epoch: self.last_epoch,
        };
        Some(Lease {
            id,
            epoch: self.last_epoch,
            attempt: item.attempt,
            item: item.value.clone(),
        })
    }

    /// Hand ready items to those who wait, skipping those who gave up.
    fn hand_out(&mut self, wake: &mut Vec<Ticket>) {
        while !self.closed && !self.ready.is_empty() {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            // The slot is locked before the grant, so that the waiter finds it filled.
            let mut slot = request.slot.lock();
            if request.ticket.grant() {
                *slot = self.take(Time::from_nanos(0));
                wake.push(request.ticket);
            }
        }
    }

    /// Have all who wait look again: the next item comes earlier, or none will.
    fn stir(&mut self, wake: &mut Vec<Ticket>) {
        let waiting = std::mem::take(&mut self.waiting);
        let tickets = waiting.into_iter().map(|request| request.ticket);
        wake.extend(tickets.filter(Ticket::grant));
    }
}

/// One call of [`LeaseQueue::lease`].
struct Leasing<'a, T, F> {
    queue: &'a LeaseQueue<T, F>,
    slot: Arc<Mutex<Option<Lease<T>>>>,
    /// When, at the last look, the next delayed item was due.
    next: Time,
}

impl<T: Clone, F> Waitable for Leasing<'_, T, F> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.queue.shared.state.lock();
        let next = state.next_due();
        // Something may have come, or gone, since the look.
        if state.closed || state.has_work(Time::now()) || next < self.next {
            ticket.grant();
        } else {
            state.waiting.push_back(Request {
                ticket,
                slot: self.slot.clone(),
            });
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut state = self.queue.shared.state.lock();
        state.waiting.retain(|other| other.ticket != *ticket);
        false
    }

    fn bound(&self) -> Time {
        self.next
    }
}

impl<T: Clone, F> Op for Leasing<'_, T, F> {
    /// `None`: the queue is closed.
    type Output = Option<Lease<T>>;
    type Refusal = Stop;

    fn attempt(&mut self) -> Result<Option<Option<Lease<T>>>, Stop> {
        let mut state = self.queue.shared.state.lock();
        let found = state.take(Time::now());
        self.next = state.next_due();
        Ok((found.is_some() || state.closed).then_some(found))
    }

    fn collect(&mut self) -> Result<Option<Option<Lease<T>>>, Stop> {
        let handed_over = self.slot.lock().take();
        match handed_over {
            Some(lease) => Ok(Some(Some(lease))),
            None => self.attempt(),
        }
    }
}

/// One call of [`LeaseQueue::drain`].
struct Draining<'a, T, F>(&'a LeaseQueue<T, F>);

impl<T: Clone, F> Waitable for Draining<'_, T, F> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.0.shared.state.lock();
        if state.is_drained() {
            ticket.grant();
        } else {
            state.draining.push(ticket);
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.0.shared.state.lock().draining.remove(ticket);
        false
    }
}

impl<T: Clone, F> Op for Draining<'_, T, F> {
    type Output = ();
    type Refusal = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok(self.0.shared.state.lock().is_drained().then_some(()))
    }

    // Granted in the instant in which it was drained, whatever came after.
    fn collect(&mut self) -> Result<Option<()>, Stop> {
        Ok(Some(()))
    }
}

impl<T, F> Clone for LeaseQueue<T, F> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<T: Clone, F: Clone> fmt::Debug for LeaseQueue<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseQueue")
            .field("counts", &self.counts())
            .finish()
    }
}
