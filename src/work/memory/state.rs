//! The items of a queue in memory, and the rules by which they change state.
//!
//! Each rule is one step as far as anybody can tell, for it runs under the queue's lock. What
//! belongs to the user is not dropped in it, for that could run code of the user's: it is returned
//! to the caller.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cause::Cause;
use crate::clock::Time;
use crate::work::memory::index::{Books, End, Phase, Place, Wish};
use crate::work::memory::table::{Member, Table};
use crate::work::{
    Counts, Dead, Details, Fenced, Lease, Lot, Nack, NackOutcome, PutOptions, QueueOptions,
    expired, lease_lost,
};

pub(super) struct State<T, N> {
    options: QueueOptions,
    lot: Lot,
    items: Table<Item<T, N>>,
    /// Of all items that are not done.
    keys: HashMap<Arc<str>, u64>,
    books: Books,
    last_epoch: u64,
}

struct Item<T, N> {
    /// `None` when it has left.
    value: Option<T>,
    place: Place,
    attempt: u32,
    /// What most items do not have, so that they stay small.
    rest: Option<Box<Rest<N>>>,
}

struct Rest<N> {
    wish: Wish,
    key: Option<Arc<str>>,
    progress: Option<N>,
    failures: Vec<N>,
    /// Nobody wants the work any more: it is not to be leased again.
    unwanted: Option<N>,
}

impl<T: Clone, N: Clone + From<Cause>> State<T, N> {
    pub(super) fn new(options: QueueOptions) -> Self {
        Self {
            options,
            lot: Lot::default(),
            items: Table::new(),
            keys: HashMap::new(),
            books: Books::default(),
            last_epoch: 0,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.books.counts
    }

    pub(super) fn has_ready(&self) -> bool {
        self.books.counts.ready > 0
    }

    /// How many items are to be worked on, now or later.
    fn unfinished(&self) -> usize {
        let counts = &self.books.counts;
        counts.ready + counts.leased + counts.delayed
    }

    pub(super) fn is_drained(&self) -> bool {
        self.unfinished() == 0
    }

    /// Can an item with these options be put now?
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

    #[cold]
    fn with_key(&self, key: &Arc<str>) -> Option<u64> {
        self.keys.get(key).copied()
    }

    /// When the next item changes its state by itself.
    pub(super) fn next_due(&self) -> Time {
        self.books.due.first().map_or(Time::NEVER, |(at, _)| *at)
    }

    // ------------------------------------------------------------------ what time does

    /// Do what is due.
    #[inline]
    pub(super) fn catch_up(&mut self) {
        if !self.books.due.is_empty() {
            self.catch_up_by(Time::now());
        }
    }

    fn catch_up_by(&mut self, now: Time) {
        while let Some(&(at, id)) = self.books.due.first() {
            if at > now {
                break;
            }
            self.books.due.pop_first();
            self.come_due(id, at, now);
        }
        self.tidy();
    }

    fn come_due(&mut self, id: u64, at: Time, now: Time) {
        let Some(item) = self.items.get_mut(id) else {
            return;
        };
        let deadline = item.wish().deadline;
        if let Phase::Leased { .. } = item.place.phase {
            self.end_lease(id, &mut Some(lease_lost(at).into()), Duration::ZERO);
        } else if deadline <= now {
            item.rest_mut().failures.push(expired(deadline).into());
            self.books.leave(id, &item.place);
            self.books.bury(id, &mut item.place);
        } else {
            self.books.leave(id, &item.place);
            let wish = item.wish();
            self.books.line_up(id, &mut item.place, wish, End::Back);
        }
    }

    // ------------------------------------------------------------------ in and out

    /// Put an item: its number, and the value if another stands for it. `Err`: there is no room.
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
        let item = self.items.push();
        item.value = Some(value);
        item.attempt = 0;
        item.rest = Rest::of(options);
        let wish = item.wish();
        if options.delay.is_zero() {
            self.books.line_up(id, &mut item.place, wish, End::Back);
        } else {
            self.books.delay(id, &mut item.place, wish, options.delay);
        }
        Ok((id, None))
    }

    /// Lease the next item, if there is one.
    #[inline(always)]
    #[allow(clippy::inline_always)] // a lease that is moved takes as long as all this
    pub(super) fn lease(&mut self) -> Option<Lease<T, N>> {
        let (id, item) = loop {
            let (entry, id) = self.books.next_in_line()?;
            match self.items.get_mut(id) {
                Some(item) if item.place.phase == (Phase::Ready { entry }) => break (id, item),
                _ => self.books.left_behind -= 1,
            }
        };
        let value = item.value.clone()?;
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let until = self.options.lease_timeout.map(Time::after);
        item.attempt += 1;
        let ends = until.unwrap_or(Time::NEVER);
        self.books.lease(id, &mut item.place, epoch, ends);
        Some(Lease {
            id,
            epoch,
            attempt: item.attempt,
            item: value,
            details: item.details(until),
        })
    }

    /// The work is done. Returns what is left of the item, to be dropped where no lock is held.
    #[inline]
    pub(super) fn ack(
        &mut self,
        id: u64,
        epoch: u64,
    ) -> Result<(Option<T>, impl Sized + use<T, N>), Fenced> {
        let left = self.items.take(id, |item| {
            if item.place.phase != (Phase::Leased { epoch }) {
                return None;
            }
            self.books.done(id, &item.place);
            Some((item.value.take(), item.rest.take()))
        });
        let left = left.ok_or(Fenced)?;
        if let Some(key) = left.1.as_ref().and_then(|rest| rest.key.as_ref()) {
            self.keys.remove(key);
        }
        Ok(left)
    }

    /// The item, if this lease of it is the current one.
    #[inline]
    fn check(
        items: &mut Table<Item<T, N>>,
        id: u64,
        epoch: u64,
    ) -> Result<&mut Item<T, N>, Fenced> {
        items
            .get_mut(id)
            .filter(|item| item.place.phase == Phase::Leased { epoch })
            .ok_or(Fenced)
    }

    /// The progress that was kept so far is left in `progress`.
    pub(super) fn extend(
        &mut self,
        id: u64,
        epoch: u64,
        progress: &mut Option<N>,
    ) -> Result<Option<Time>, Fenced> {
        let until = self.options.lease_timeout.map(Time::after);
        let item = Self::check(&mut self.items, id, epoch)?;
        if progress.is_some() {
            std::mem::swap(&mut item.rest_mut().progress, progress);
        }
        if let Some(until) = until {
            self.books.extend(id, &mut item.place, until);
        }
        Ok(until)
    }

    pub(super) fn nack(
        &mut self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: &mut Option<N>,
    ) -> Result<NackOutcome, Fenced> {
        let attempt = Self::check(&mut self.items, id, epoch)?.attempt;
        let pause = match nack {
            Nack::Failed => self.options.retry.pause(attempt, self.lot.draw(epoch)),
            Nack::After(pause) => pause,
            Nack::AtOnce => Duration::ZERO,
        };
        Ok(self.end_lease(id, failure, pause))
    }

    /// The lease of this item is over, and the work is not done.
    fn end_lease(&mut self, id: u64, failure: &mut Option<N>, pause: Duration) -> NackOutcome {
        let Some(item) = self.items.get_mut(id) else {
            return NackOutcome::Dead;
        };
        let mut last = item.attempt >= self.options.retry.max_attempts;
        if failure.is_some() {
            item.rest_mut().failures.extend(failure.take());
        }
        let unwanted = item.rest.as_ref().and_then(|rest| rest.unwanted.clone());
        if let Some(unwanted) = unwanted {
            item.rest_mut().failures.push(unwanted);
            last = true;
        }
        let deadline = item.wish().deadline;
        if !last && !deadline.is_never() && deadline <= Time::now() {
            item.rest_mut().failures.push(expired(deadline).into());
            last = true;
        }
        self.books.leave(id, &item.place);
        if last {
            self.books.bury(id, &mut item.place);
            return NackOutcome::Dead;
        }
        let wish = item.wish();
        if pause.is_zero() {
            self.books.line_up(id, &mut item.place, wish, End::Front);
        } else {
            self.books.delay(id, &mut item.place, wish, pause);
        }
        NackOutcome::Requeued
    }

    // ------------------------------------------------------------------ the unwanted and the dead

    pub(super) fn cancel(&mut self, id: u64, failure: &mut Option<N>) -> Option<bool> {
        let item = self.items.get_mut(id)?;
        match item.place.phase {
            Phase::Dead { .. } => None,
            Phase::Leased { .. } => {
                let unwanted = &mut item.rest_mut().unwanted;
                if unwanted.is_none() {
                    *unwanted = failure.take();
                }
                Some(false)
            }
            Phase::Ready { .. } | Phase::Delayed => {
                item.rest_mut().failures.extend(failure.take());
                self.books.leave(id, &item.place);
                self.books.bury(id, &mut item.place);
                self.tidy();
                Some(true)
            }
        }
    }

    pub(super) fn dead_letter_all(&mut self, failure: &N) -> Vec<T> {
        let ready = self
            .books
            .lines
            .take()
            .map(|(entry, id)| (Phase::Ready { entry }, id));
        let delayed = self.books.due.iter().map(|(_, id)| (Phase::Delayed, *id));
        let unleased: Vec<_> = ready.chain(delayed).collect();
        let mut values = Vec::new();
        for (phase, id) in unleased {
            let item = self.items.get_mut(id);
            if let Some(item) = item.filter(|item| item.place.phase == phase) {
                item.rest_mut().failures.push(failure.clone());
                self.books.leave(id, &item.place);
                self.books.bury(id, &mut item.place);
                values.extend(item.value.clone());
            }
        }
        self.books.left_behind = 0;
        values
    }

    /// What is not kept of it any more is left in `unneeded`.
    pub(super) fn retry(&mut self, id: u64, unneeded: &mut Option<N>) -> bool {
        let Some(item) = self.items.get_mut(id) else {
            return false;
        };
        if !matches!(item.place.phase, Phase::Dead { .. }) {
            return false;
        }
        if let Some(rest) = &mut item.rest {
            *unneeded = rest.unwanted.take();
            rest.wish.deadline = Time::NEVER;
        }
        item.attempt = 0;
        self.books.leave(id, &item.place);
        let wish = item.wish();
        self.books.line_up(id, &mut item.place, wish, End::Back);
        true
    }

    pub(super) fn item(&self, id: u64) -> Option<T> {
        self.items.get(id)?.value.clone()
    }

    pub(super) fn dead(&self) -> Vec<Dead<T, N>> {
        let dead = |id: &u64| {
            let item = self.items.get(*id)?;
            let failures = item.rest.as_ref().map(|rest| rest.failures.clone());
            Some((*id, item.value.clone()?, failures.unwrap_or_default()))
        };
        self.books.dead.values().filter_map(dead).collect()
    }

    /// Let go of the entries that were left behind in the lines, when they are the most.
    fn tidy(&mut self) {
        let books = &mut self.books;
        if books.left_behind <= 64 + books.counts.ready {
            return;
        }
        books.lines.retain(|(entry, id)| {
            let item = self.items.get(*id);
            item.is_some_and(|item| item.place.phase == (Phase::Ready { entry: *entry }))
        });
        books.left_behind = 0;
    }
}

impl<T, N> Default for Item<T, N> {
    #[inline]
    fn default() -> Self {
        Self {
            value: None,
            place: Place::NOWHERE,
            attempt: 0,
            rest: None,
        }
    }
}

impl<T, N> Member for Item<T, N> {
    #[inline]
    fn has_left(&self) -> bool {
        self.value.is_none()
    }
}

impl<T, N: Clone> Item<T, N> {
    #[inline]
    fn wish(&self) -> Wish {
        self.rest.as_ref().map_or(Wish::NONE, |rest| rest.wish)
    }

    fn rest_mut(&mut self) -> &mut Rest<N> {
        self.rest.get_or_insert_with(|| Box::new(Rest::empty()))
    }

    /// What there is to say of a lease that lasts until then.
    #[inline]
    fn details(&self, until: Option<Time>) -> Option<Box<Details<N>>> {
        if self.rest.is_none() && until.is_none() {
            return None;
        }
        self.all_details(until)
    }

    #[cold]
    fn all_details(&self, until: Option<Time>) -> Option<Box<Details<N>>> {
        let rest = self.rest.as_ref();
        let deadline = self.wish().deadline;
        let details = Details {
            progress: rest.and_then(|rest| rest.progress.clone()),
            deadline: Some(deadline).filter(|deadline| !deadline.is_never()),
            until,
        };
        details.if_any()
    }
}

impl<N> Rest<N> {
    fn empty() -> Self {
        Self {
            wish: Wish::NONE,
            key: None,
            progress: None,
            failures: Vec::new(),
            unwanted: None,
        }
    }

    /// Of an item that is put like this.
    #[inline]
    fn of(options: &PutOptions) -> Option<Box<Self>> {
        let is_usual = options.key.is_none() && options.priority == 0 && options.expires.is_none();
        (!is_usual).then(|| Box::new(Self::of_unusual(options)))
    }

    #[cold]
    fn of_unusual(options: &PutOptions) -> Self {
        Self {
            wish: Wish {
                priority: options.priority,
                deadline: options.expires.map_or(Time::NEVER, Time::after),
            },
            key: options.key.clone(),
            ..Self::empty()
        }
    }
}
