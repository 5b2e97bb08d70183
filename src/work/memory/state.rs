//! The items of a queue in memory, and the rules by which they change state.
//!
//! Guarantees:
//! 1. Each rule is one step for every observer: it runs under the lock of the queue, `shared` in
//!    `memory.rs`, which the caller holds during each call. There is no other lock here.
//! 2. An item changes its state only by [`StateIndex`], so that counts, orders and times agree with
//!    the items at the end of each call (I28).
//! 3. Only a call with the epoch of the current lease changes a leased item's state, besides time
//!    (I29): `ack` and `check` compare it, and an epoch is given out once (I34).
//! 4. Values of the user's (items, notes) are never dropped here, for that could run code of the
//!    user's under the lock: they are returned to the caller, or left in the `Option` by which they
//!    came. They are cloned here, which is why [`LeaseQueue`](crate::work::LeaseQueue) asks for
//!    cheap handles.
//!
//! The transitions, by the functions that make them. The last column is the change of the item
//! beside its state; each row is one call.
//!
//! | from | function | to | the item |
//! |---|---|---|---|
//! | | `put` | ready, at the back; delayed, if it has a delay | enters `items`, and `keys` if it has a key |
//! | ready | `lease` | leased, in a new epoch | `attempt` + 1 |
//! | ready | `come_due`, at its deadline | dead | a note that it expired |
//! | leased | `extend` | leased, until later | `progress`, if one is given |
//! | leased | `cancel` | leased | `cancelled`, if it was not cancelled before |
//! | leased | `ack` | done | leaves `items` and `keys` |
//! | leased | `end_lease`: it was the last attempt, or is discarded, cancelled, or expired | dead | a note for each reason |
//! | leased | `end_lease` without a pause | ready, at the front | the failure's note, if there is one |
//! | leased | `end_lease` with a pause | delayed | the failure's note, if there is one |
//! | leased | `nack`: snoozed, before `end_lease` | leased | `attempt` - 1 |
//! | delayed | `come_due`, before its deadline | ready, at the back | |
//! | delayed | `come_due`, at or after its deadline | dead | a note that it expired |
//! | ready, delayed | `cancel`, `dead_letter_all` | dead | the caller's note |
//! | dead | `retry` | ready, at the back | `attempt` 0, no deadline, not cancelled; `failures` and `progress` stay |
//!
//! `end_lease` has two callers: `nack`, and `come_due` when the lease times out. A leased item is not
//! ended at its own deadline: its worker is stopped then ([`Lease::ends`]), and the end of the lease
//! finds the deadline passed.
//!
//! A dead item keeps its key: until it is retried and done, it stands for all items that are put
//! with the key.
//!
//! A change by time is made by `catch_up`, which the caller calls before any other rule in the same
//! critical section: so no rule finds an item in a state that has ended. The clock is not read
//! while no item has a time.
//!
//! Costs: `put`, `lease`, `ack` and `nack` take constant time while no item has a time or a priority
//! of its own, and logarithmic time otherwise; `dead_letter_all` and `dead` visit the items that they
//! return, and `infos` all items. The memory is that of the unfinished and dead items; done ones are only counted.
//!
//! Checked by `tests/rust/work.rs`, which runs random operations on the queue and on the model in
//! `tests/rust/work_model.rs` and compares every answer, and by `models/lease.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cause::Cause;
use crate::clock::Time;
use crate::work::memory::index::{ItemState, QueueEnd, Schedule, StateEntry, StateIndex};
use crate::work::memory::slab::SeqSlab;
use crate::work::{
    self, Counts, Dead, Details, Fenced, ItemInfo, Jitter, Lease, Nack, NackOutcome, PutOptions,
    QueueOptions, expired, lease_lost,
};

/// All items of a queue.
pub(super) struct ItemStates<T, N> {
    /// Fixed when the queue is made.
    options: QueueOptions,
    /// Spreads the pauses of failed items; a function of its seed and the lease's epoch, and never
    /// changed.
    jitter: Jitter,
    /// The items that are not done, by their ids. `put` adds, `ack` alone removes.
    items: SeqSlab<Item<T, N>>,
    /// The ids of the items with a key that are not done, dead ones included. A key is in here exactly
    /// while its item is in `items`.
    keys: HashMap<Arc<str>, u64>,
    /// What follows from the states of all items; agrees with `items` between any two calls.
    index: StateIndex,
    /// The epoch of the last lease; it only grows (I34).
    last_epoch: u64,
}

/// A value of the user's in a queue.
#[cfg(feature = "python")]
pub(crate) enum Stored<'a, T, N> {
    Item(&'a T),
    /// A failure or progress.
    Note(&'a N),
}

/// One item that is not done.
struct Item<T, N> {
    /// The user's item. Never changed: every lease gets a clone.
    value: T,
    /// Its state. Changed by [`StateIndex`] alone.
    entry: StateEntry,
    /// How often it was leased, since it was put or last retried. Raised by `lease`, so an attempt
    /// counts however its lease ends (I30); a snooze alone takes it back.
    attempt: u32,
    /// When it was put. Never changed.
    put: Time,
    /// The number by which the caller of the last `lease` is known; 0 if it has given none. Written by
    /// `lease`; it says who has the item only while that is leased.
    holder: u64,
    /// The fields that most items leave empty, boxed so that an item stays small.
    extras: Option<Box<Extras<N>>>,
}

/// The fields of an item that most items leave empty. Made by the first write of one of them, and
/// kept until the item is done.
struct Extras<N> {
    /// Priority and deadline. Set by `put`; `retry` alone changes it, and takes the deadline away.
    schedule: Schedule,
    /// How long an attempt may take, for the leases. Set by `put`, and never changed.
    time_limit: Option<Duration>,
    /// Its key in [`ItemStates::keys`]. Set by `put`, and never changed.
    key: Option<Arc<str>>,
    /// The progress of the last heartbeat, for the next attempt. Written by `extend`, and kept over
    /// the end of the lease, a death and a retry.
    progress: Option<N>,
    /// The failures of the item, in order. Only appended to, also over a retry.
    failures: Vec<N>,
    /// Why it was cancelled while it was leased: it is dead once its lease has ended without success
    /// (I31). The first cancellation is kept; `retry` takes it out.
    cancelled: Option<N>,
}

impl<T: Clone, N: Clone + From<Cause>> ItemStates<T, N> {
    pub(super) fn new(options: QueueOptions) -> Self {
        Self {
            options,
            jitter: Jitter::default(),
            items: SeqSlab::new(),
            keys: HashMap::new(),
            index: StateIndex::default(),
            last_epoch: 0,
        }
    }

    /// How many items are in each state; up to date only after [`ItemStates::catch_up`].
    pub(super) fn counts(&self) -> Counts {
        self.index.counts
    }

    /// True if an item can be leased.
    pub(super) fn has_ready(&self) -> bool {
        self.index.counts.ready > 0
    }

    /// How many items are neither done nor dead: those that `maxsize` bounds. Leased ones count, so a
    /// requeued item always has room.
    fn unfinished(&self) -> usize {
        let counts = &self.index.counts;
        counts.ready + counts.leased + counts.delayed
    }

    /// True if no item is ready, leased or delayed.
    pub(super) fn is_drained(&self) -> bool {
        self.unfinished() == 0
    }

    /// True if an item with these options can be put now. If another item has its key there is always
    /// room, as nothing is added.
    #[inline]
    pub(super) fn has_room(&self, options: &PutOptions) -> bool {
        let maxsize = self.options.maxsize;
        maxsize == 0 || self.unfinished() < maxsize || self.find(options).is_some()
    }

    /// The item that stands for one with these options.
    #[inline]
    fn find(&self, options: &PutOptions) -> Option<u64> {
        self.with_key(options.key.as_ref()?)
    }

    /// Out of line: most items have no key.
    #[cold]
    fn with_key(&self, key: &Arc<str>) -> Option<u64> {
        self.keys.get(key).copied()
    }

    /// When the next state change by itself is due; [`Time::NEVER`] if none is.
    pub(super) fn next_due(&self) -> Time {
        self.index.due.first().map_or(Time::NEVER, |(at, _)| *at)
    }

    /// All values of the user's: the items, and the notes that are kept with them.
    #[cfg(feature = "python")]
    pub(super) fn stored(&self) -> impl Iterator<Item = Stored<'_, T, N>> {
        self.items.iter().flat_map(|item| {
            let extras = item.extras.iter();
            let notes = extras.flat_map(|extras| {
                let others = extras.progress.iter().chain(&extras.cancelled);
                extras.failures.iter().chain(others)
            });
            std::iter::once(Stored::Item(&item.value)).chain(notes.map(Stored::Note))
        })
    }

    /// Removes all items, whatever their states. Returns the former states, to be dropped without the
    /// lock. Epochs go on, so that leases of removed items are fenced.
    #[cfg(feature = "python")]
    pub(super) fn take_all(&mut self) -> Self {
        let empty = Self {
            last_epoch: self.last_epoch,
            ..Self::new(self.options)
        };
        std::mem::replace(self, empty)
    }

    // ------------------------------------------------------------------ transitions by time

    /// Make all state changes that are due, in the order of their times.
    #[inline]
    pub(super) fn catch_up(&mut self) {
        if !self.index.due.is_empty() {
            self.catch_up_by(Time::now());
        }
    }

    /// [`ItemStates::catch_up`], at this time. The clock is read only if anything can be due.
    fn catch_up_by(&mut self, now: Time) {
        while let Some(&(at, id)) = self.index.due.first() {
            if at > now {
                break;
            }
            // Removed first: the change may set a new time for the item.
            self.index.due.pop_first();
            self.come_due(id, at, now);
        }
        self.tidy();
    }

    /// The item's state changes by itself: a lease times out, a delay ends, or the item expires. `at`
    /// is the time in the index, at which the change was due; `now` may be later.
    fn come_due(&mut self, id: u64, at: Time, now: Time) {
        let Some(item) = self.items.get_mut(id) else {
            return;
        };
        let deadline = item.schedule().deadline;
        if let ItemState::Leased { .. } = item.entry.state {
            let lost = &mut Some(lease_lost(at).into());
            self.end_lease(id, lost, Some(Duration::ZERO));
        } else if deadline <= now {
            // Also if a delay ended at the same time: an expired item is never leased.
            item.extras_mut().failures.push(expired(deadline).into());
            self.index.leave(id, &item.entry);
            self.index.dead_letter(id, &mut item.entry);
        } else {
            self.index.leave(id, &item.entry);
            let schedule = item.schedule();
            self.index
                .enqueue(id, &mut item.entry, schedule, QueueEnd::Back);
        }
    }

    // ------------------------------------------------------------------ in and out

    /// Put an item. Returns its id; if another item has its key, that item's id, and the value.
    ///
    /// # Errors
    /// There is no room: the value.
    #[inline]
    pub(super) fn put(&mut self, value: T, options: &PutOptions) -> Result<(u64, Option<T>), T> {
        if !self.has_room(options) {
            return Err(value);
        }
        if let Some(id) = self.find(options) {
            return Ok((id, Some(value)));
        }
        let id = self.items.next();
        if let Some(key) = &options.key {
            self.keys.insert(key.clone(), id);
        }
        let mut item = Item {
            value,
            entry: StateEntry::NONE,
            attempt: 0,
            put: Time::now(),
            holder: 0,
            extras: Extras::of(options),
        };
        let schedule = item.schedule();
        if options.delay.is_zero() {
            self.index
                .enqueue(id, &mut item.entry, schedule, QueueEnd::Back);
        } else {
            self.index
                .delay(id, &mut item.entry, schedule, options.delay);
        }
        self.items.push(item);
        Ok((id, None))
    }

    /// Lease the next item, if one is ready, to this holder. Stale entries of the run queues are dropped
    /// on the way.
    #[inline(always)]
    #[allow(clippy::inline_always)] // a lease that is moved takes as long as all this
    pub(super) fn lease(&mut self, holder: u64) -> Option<Lease<T, N>> {
        let (id, item) = loop {
            let (turn, id) = self.index.next_entry()?;
            match self.items.get_mut(id) {
                Some(item) if item.entry.state == (ItemState::Ready { turn }) => break (id, item),
                _ => self.index.stale -= 1,
            }
        };
        let value = item.value.clone();
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let until = self.options.lease_timeout.map(Time::after);
        item.attempt += 1;
        item.holder = holder;
        let ends = until.unwrap_or(Time::NEVER);
        self.index.lease(id, &mut item.entry, epoch, ends);
        Some(Lease {
            id,
            epoch,
            attempt: item.attempt,
            item: value,
            details: item.details(until),
        })
    }

    /// The work is done: remove the item. Returns it and the rest of it, to be dropped without the
    /// lock.
    ///
    /// # Errors
    /// The lease is over.
    #[inline]
    pub(super) fn ack(
        &mut self,
        id: u64,
        epoch: u64,
    ) -> Result<(T, impl Sized + use<T, N>), Fenced> {
        let left = self.items.remove_if(id, |item| {
            if item.entry.state != (ItemState::Leased { epoch }) {
                return false;
            }
            self.index.done(id, &item.entry);
            true
        });
        let Item { value, extras, .. } = left.ok_or(Fenced)?;
        if let Some(key) = extras.as_ref().and_then(|extras| extras.key.as_ref()) {
            self.keys.remove(key);
        }
        Ok((value, extras))
    }

    /// The item, if this lease of it is the current one. The only place besides `ack` that compares
    /// epochs (I29). Takes the slab alone, so that the caller can change the index meanwhile.
    #[inline]
    fn check(
        items: &mut SeqSlab<Item<T, N>>,
        id: u64,
        epoch: u64,
    ) -> Result<&mut Item<T, N>, Fenced> {
        items
            .get_mut(id)
            .filter(|item| item.entry.state == ItemState::Leased { epoch })
            .ok_or(Fenced)
    }

    /// Extend the lease, and replace the stored progress by `progress`, if there is any.
    pub(super) fn extend(
        &mut self,
        id: u64,
        epoch: u64,
        progress: &mut Option<N>,
    ) -> Result<Option<Time>, Fenced> {
        let until = self.options.lease_timeout.map(Time::after);
        let item = Self::check(&mut self.items, id, epoch)?;
        if progress.is_some() {
            std::mem::swap(&mut item.extras_mut().progress, progress);
        }
        if let Some(until) = until {
            self.index.extend(id, &mut item.entry, until);
        }
        Ok(until)
    }

    /// The lease ends, and the work is not done. `failure` is taken, if the lease was valid and not
    /// snoozed.
    pub(super) fn nack(
        &mut self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: &mut Option<N>,
    ) -> Result<NackOutcome, Fenced> {
        let item = Self::check(&mut self.items, id, epoch)?;
        let retry = &self.options.retry;
        let pause = match nack {
            Nack::Failed => Some(retry.pause(item.attempt, self.jitter.sample(epoch))),
            Nack::After(pause) => Some(pause),
            Nack::AtOnce => Some(Duration::ZERO),
            Nack::Discard => None,
            Nack::Snooze(pause) => {
                item.attempt -= 1;
                return Ok(self.end_lease(id, &mut None, Some(pause)));
            }
        };
        Ok(self.end_lease(id, failure, pause))
    }

    /// End the lease of this item without success: it is dead if it may not be tried again, and
    /// else ready, before others, or delayed. No `pause`: it is not tried again.
    fn end_lease(
        &mut self,
        id: u64,
        failure: &mut Option<N>,
        pause: Option<Duration>,
    ) -> NackOutcome {
        let Some(item) = self.items.get_mut(id) else {
            return NackOutcome::Dead;
        };
        // The notes are kept in the order: the failure, the cancellation, the expiry.
        let mut last = item.attempt >= self.options.retry.max_attempts;
        if failure.is_some() {
            item.extras_mut().failures.extend(failure.take());
        }
        let extras = item.extras.as_ref();
        if let Some(why) = extras.and_then(|extras| extras.cancelled.clone()) {
            item.extras_mut().failures.push(why);
            last = true;
        }
        let deadline = item.schedule().deadline;
        if !last && !deadline.is_never() && deadline <= Time::now() {
            item.extras_mut().failures.push(expired(deadline).into());
            last = true;
        }
        self.index.leave(id, &item.entry);
        let Some(pause) = pause.filter(|_| !last) else {
            self.index.dead_letter(id, &mut item.entry);
            return NackOutcome::Dead;
        };
        let schedule = item.schedule();
        if pause.is_zero() {
            self.index
                .enqueue(id, &mut item.entry, schedule, QueueEnd::Front);
        } else {
            self.index.delay(id, &mut item.entry, schedule, pause);
        }
        NackOutcome::Requeued
    }

    // ------------------------------------------------------------------ cancelled and dead items

    /// Let the item be leased no more. `failure` is taken unless the item was dead or cancelled
    /// before. The result is that of [`LeaseQueue::cancel`](crate::work::LeaseQueue::cancel).
    pub(super) fn cancel(&mut self, id: u64, failure: &mut Option<N>) -> Option<bool> {
        let item = self.items.get_mut(id)?;
        match item.entry.state {
            ItemState::Dead { .. } => None,
            ItemState::Leased { .. } => {
                let cancelled = &mut item.extras_mut().cancelled;
                if cancelled.is_none() {
                    *cancelled = failure.take();
                }
                Some(false)
            }
            ItemState::Ready { .. } | ItemState::Delayed => {
                item.extras_mut().failures.extend(failure.take());
                self.index.leave(id, &item.entry);
                self.index.dead_letter(id, &mut item.entry);
                self.tidy();
                Some(true)
            }
        }
    }

    /// See [`LeaseQueue::is_cancelled`](crate::work::LeaseQueue::is_cancelled).
    pub(super) fn is_cancelled(&self, id: u64) -> bool {
        let extras = self.items.get(id).and_then(|item| item.extras.as_ref());
        extras.is_some_and(|extras| extras.cancelled.is_some())
    }

    /// Let all ready and delayed items be dead; returns them, in the order of the run queues and of
    /// the ends of their delays.
    pub(super) fn dead_letter_all(&mut self, failure: &N) -> Vec<T> {
        let ready = self.index.ready.take();
        let ready = ready.map(|(turn, id)| (ItemState::Ready { turn }, id));
        let delayed = self.index.due.iter();
        let delayed = delayed.map(|(_, id)| (ItemState::Delayed, *id));
        // Stale entries among them, and deadlines of leased and ready items, are told by the state.
        let candidates: Vec<_> = ready.chain(delayed).collect();
        let mut values = Vec::new();
        for (state, id) in candidates {
            let item = self.items.get_mut(id);
            if let Some(item) = item.filter(|item| item.entry.state == state) {
                item.extras_mut().failures.push(failure.clone());
                self.index.leave(id, &item.entry);
                self.index.dead_letter(id, &mut item.entry);
                values.push(item.value.clone());
            }
        }
        self.index.stale = 0;
        values
    }

    /// Make a dead item ready, with all its attempts and without a deadline. The note of its
    /// cancellation, if any, is moved to `dropped`. False: it is not dead.
    pub(super) fn retry(&mut self, id: u64, dropped: &mut Option<N>) -> bool {
        let Some(item) = self.items.get_mut(id) else {
            return false;
        };
        if !matches!(item.entry.state, ItemState::Dead { .. }) {
            return false;
        }
        if let Some(extras) = &mut item.extras {
            *dropped = extras.cancelled.take();
            extras.schedule.deadline = Time::NEVER;
        }
        item.attempt = 0;
        self.index.leave(id, &item.entry);
        let schedule = item.schedule();
        self.index
            .enqueue(id, &mut item.entry, schedule, QueueEnd::Back);
        true
    }

    /// The value of an item that is not done.
    pub(super) fn item(&self, id: u64) -> Option<T> {
        Some(self.items.get(id)?.value.clone())
    }

    /// The dead items with their failures, in the order in which they died.
    pub(super) fn dead(&self) -> Vec<Dead<T, N>> {
        let dead = |id: &u64| {
            let item = self.items.get(*id)?;
            let failures = item.extras.as_ref().map(|extras| extras.failures.clone());
            Some((*id, item.value.clone(), failures.unwrap_or_default()))
        };
        self.index.dead.values().filter_map(dead).collect()
    }

    /// See [`LeaseQueue::items`](crate::work::LeaseQueue::items).
    pub(super) fn infos(&self, state: Option<work::ItemState>, limit: usize) -> Vec<ItemInfo<u64>> {
        let now = Time::now();
        let found = self
            .items
            .numbered()
            .map(|(id, item)| (item.entry.state.public(), id));
        let mut found: Vec<_> = found
            .filter(|(is, _)| state.is_none_or(|wanted| wanted == *is))
            .collect();
        found.sort_unstable();
        found.truncate(limit);
        let info = |(state, id): (work::ItemState, u64)| {
            let item = self.items.get(id)?;
            let is_leased = state == work::ItemState::Leased && item.holder != 0;
            Some(ItemInfo {
                id,
                state,
                attempt: item.attempt,
                age: now - item.put,
                holder: is_leased.then_some(item.holder),
                key: item.extras.as_ref().and_then(|extras| extras.key.clone()),
            })
        };
        found.into_iter().filter_map(info).collect()
    }

    /// Remove the stale entries from the run queues, when they are the most: so a run queue is
    /// never longer than twice the ready items, and a few.
    fn tidy(&mut self) {
        let index = &mut self.index;
        if index.stale <= 64 + index.counts.ready {
            return;
        }
        index.ready.retain(|(turn, id)| {
            let item = self.items.get(*id);
            item.is_some_and(|item| item.entry.state == (ItemState::Ready { turn: *turn }))
        });
        index.stale = 0;
    }
}

impl<T, N: Clone> Item<T, N> {
    /// Priority and deadline: those of the extras, or of an item without any.
    #[inline]
    fn schedule(&self) -> Schedule {
        let extras = self.extras.as_ref();
        extras.map_or(Schedule::USUAL, |extras| extras.schedule)
    }

    /// The extras, which are made if the item has none.
    fn extras_mut(&mut self) -> &mut Extras<N> {
        self.extras.get_or_insert_with(|| Box::new(Extras::empty()))
    }

    /// The details of a lease that ends then.
    #[inline]
    fn details(&self, until: Option<Time>) -> Option<Box<Details<N>>> {
        if self.extras.is_none() && until.is_none() {
            return None;
        }
        self.all_details(until)
    }

    /// Out of line: most leases have no details.
    #[cold]
    fn all_details(&self, until: Option<Time>) -> Option<Box<Details<N>>> {
        let extras = self.extras.as_ref();
        let deadline = self.schedule().deadline;
        let details = Details {
            progress: extras.and_then(|extras| extras.progress.clone()),
            deadline: Some(deadline).filter(|deadline| !deadline.is_never()),
            until,
            key: extras.and_then(|extras| extras.key.clone()),
            time_limit: extras.and_then(|extras| extras.time_limit),
        };
        details.if_any()
    }
}

impl<N> Extras<N> {
    fn empty() -> Self {
        Self {
            schedule: Schedule::USUAL,
            time_limit: None,
            key: None,
            progress: None,
            failures: Vec::new(),
            cancelled: None,
        }
    }

    /// Of an item that is put with these options.
    #[inline]
    fn of(options: &PutOptions) -> Option<Box<Self>> {
        let is_usual = options.key.is_none()
            && options.priority == 0
            && options.expires.is_none()
            && options.time_limit.is_none();
        (!is_usual).then(|| Box::new(Self::of_unusual(options)))
    }

    /// Out of line: most items are put with the usual options.
    #[cold]
    fn of_unusual(options: &PutOptions) -> Self {
        Self {
            schedule: Schedule {
                priority: options.priority,
                deadline: options.expires.map_or(Time::NEVER, Time::after),
            },
            time_limit: options.time_limit,
            key: options.key.clone(),
            ..Self::empty()
        }
    }
}
