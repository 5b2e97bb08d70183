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
use crate::work::memory::books::{Books, End, Phase, Standing};
use crate::work::memory::table::Table;
use crate::work::{
    Back, Counts, Dead, Fenced, Lease, Lot, PutOptions, QueueOptions, Returned, lease_lost,
    unwanted_since,
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
    value: T,
    standing: Standing,
    /// What most items do not have, so that they stay small.
    rest: Option<Box<Rest<N>>>,
}

struct Rest<N> {
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
        self.keys.get(options.key.as_ref()?).copied()
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
        match item.standing.phase {
            Phase::Leased { .. } => {
                self.end_lease(id, &mut Some(lease_lost(at).into()), Duration::ZERO);
            }
            _ if item.standing.deadline <= now => {
                let note = N::from(unwanted_since(item.standing.deadline));
                item.rest_mut().failures.push(note);
                self.books.leave(id, &item.standing);
                self.books.bury(id, &mut item.standing);
            }
            _ => {
                self.books.leave(id, &item.standing);
                self.books.line_up(id, &mut item.standing, End::Back);
            }
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
        let mut item = Item {
            value,
            standing: Standing {
                phase: Phase::Delayed,
                priority: options.priority,
                attempt: 0,
                deadline: options.timeout.map_or(Time::NEVER, Time::after),
                due: Time::NEVER,
            },
            rest: None,
        };
        if let Some(key) = &options.key {
            self.keys.insert(key.clone(), id);
            item.rest_mut().key = Some(key.clone());
        }
        if options.delay.is_zero() {
            self.books.line_up(id, &mut item.standing, End::Back);
        } else {
            self.books.delay(id, &mut item.standing, options.delay);
        }
        self.items.push(item);
        Ok((id, None))
    }

    /// Lease the next item, if there is one.
    #[inline]
    pub(super) fn lease(&mut self) -> Option<Lease<T, N>> {
        let (id, item) = loop {
            let (entry, id) = self.books.next_in_line()?;
            match self.items.get_mut(id) {
                Some(item) if item.standing.phase == (Phase::Ready { entry }) => break (id, item),
                _ => self.books.left_behind -= 1,
            }
        };
        self.last_epoch += 1;
        let until = self.options.lease_timeout.map(Time::after);
        item.standing.attempt += 1;
        self.books
            .lease(id, &mut item.standing, self.last_epoch, until);
        let rest = item.rest.as_ref();
        Some(Lease {
            id,
            epoch: self.last_epoch,
            attempt: item.standing.attempt,
            item: item.value.clone(),
            progress: rest.and_then(|rest| rest.progress.clone()),
            deadline: Some(item.standing.deadline).filter(|deadline| !deadline.is_never()),
            until,
        })
    }

    /// The work is done. Returns what is left of the item, to be dropped where no lock is held.
    #[inline]
    pub(super) fn ack(&mut self, id: u64, epoch: u64) -> Result<impl Sized + use<T, N>, Fenced> {
        self.check(id, epoch)?;
        let item = self.items.remove(id).ok_or(Fenced)?;
        self.books.leave(id, &item.standing);
        self.books.counts.done += 1;
        if let Some(key) = item.rest.as_ref().and_then(|rest| rest.key.as_ref()) {
            self.keys.remove(key);
        }
        Ok((item.value, item.rest))
    }

    /// The item, if this lease of it is the current one.
    #[inline]
    fn check(&mut self, id: u64, epoch: u64) -> Result<&mut Item<T, N>, Fenced> {
        self.items
            .get_mut(id)
            .filter(|item| item.standing.phase == Phase::Leased { epoch })
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
        let item = self.check(id, epoch)?;
        if progress.is_some() {
            std::mem::swap(&mut item.rest_mut().progress, progress);
        }
        if let Some(until) = until {
            let before = std::mem::replace(&mut item.standing.due, until);
            self.books.due.remove(&(before, id));
            self.books.due.insert((until, id));
        }
        Ok(until)
    }

    pub(super) fn give_back(
        &mut self,
        id: u64,
        epoch: u64,
        back: Back,
        failure: &mut Option<N>,
    ) -> Result<Returned, Fenced> {
        let attempt = self.check(id, epoch)?.standing.attempt;
        let pause = match back {
            Back::Failed => self.options.retry.pause(attempt, self.lot.draw(epoch)),
            Back::After(pause) => pause,
            Back::AtOnce => Duration::ZERO,
        };
        Ok(self.end_lease(id, failure, pause))
    }

    /// The lease of this item is over, and the work is not done.
    fn end_lease(&mut self, id: u64, failure: &mut Option<N>, pause: Duration) -> Returned {
        let Some(item) = self.items.get_mut(id) else {
            return Returned::Dead;
        };
        let mut last = item.standing.attempt >= self.options.retry.max_attempts;
        if failure.is_some() {
            item.rest_mut().failures.extend(failure.take());
        }
        let unwanted = item.rest.as_ref().and_then(|rest| rest.unwanted.clone());
        if let Some(unwanted) = unwanted {
            item.rest_mut().failures.push(unwanted);
            last = true;
        }
        let deadline = item.standing.deadline;
        if !last && !deadline.is_never() && deadline <= Time::now() {
            item.rest_mut()
                .failures
                .push(unwanted_since(deadline).into());
            last = true;
        }
        self.books.leave(id, &item.standing);
        if last {
            self.books.bury(id, &mut item.standing);
            return Returned::Dead;
        }
        if pause.is_zero() {
            self.books.line_up(id, &mut item.standing, End::Front);
        } else {
            self.books.delay(id, &mut item.standing, pause);
        }
        Returned::Requeued
    }

    // ------------------------------------------------------------------ the unwanted and the dead

    pub(super) fn cancel(&mut self, id: u64, failure: &mut Option<N>) -> Option<bool> {
        let item = self.items.get_mut(id)?;
        match item.standing.phase {
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
                self.books.leave(id, &item.standing);
                self.books.bury(id, &mut item.standing);
                self.tidy();
                Some(true)
            }
        }
    }

    pub(super) fn give_up(&mut self, failure: &N) -> Vec<T> {
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
            if let Some(item) = item.filter(|item| item.standing.phase == phase) {
                item.rest_mut().failures.push(failure.clone());
                self.books.leave(id, &item.standing);
                self.books.bury(id, &mut item.standing);
                values.push(item.value.clone());
            }
        }
        self.books.left_behind = 0;
        values
    }

    /// What is not kept of it any more is left in `unneeded`.
    pub(super) fn revive(&mut self, id: u64, unneeded: &mut Option<N>) -> bool {
        let Some(item) = self.items.get_mut(id) else {
            return false;
        };
        if !matches!(item.standing.phase, Phase::Dead { .. }) {
            return false;
        }
        if let Some(rest) = &mut item.rest {
            *unneeded = rest.unwanted.take();
        }
        item.standing.attempt = 0;
        item.standing.deadline = Time::NEVER;
        self.books.leave(id, &item.standing);
        self.books.line_up(id, &mut item.standing, End::Back);
        true
    }

    pub(super) fn item(&self, id: u64) -> Option<T> {
        self.items.get(id).map(|item| item.value.clone())
    }

    pub(super) fn dead(&self) -> Vec<Dead<T, N>> {
        let dead = |id: &u64| {
            let item = self.items.get(*id)?;
            let failures = item.rest.as_ref().map(|rest| rest.failures.clone());
            Some((*id, item.value.clone(), failures.unwrap_or_default()))
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
            item.is_some_and(|item| item.standing.phase == (Phase::Ready { entry: *entry }))
        });
        books.left_behind = 0;
    }
}

impl<T, N> Item<T, N> {
    fn rest_mut(&mut self) -> &mut Rest<N> {
        self.rest.get_or_insert_with(|| {
            Box::new(Rest {
                key: None,
                progress: None,
                failures: Vec::new(),
                unwanted: None,
            })
        })
    }
}
