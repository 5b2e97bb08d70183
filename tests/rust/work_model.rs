//! A model of a lease queue, which every implementation is compared with.
//!
//! The model is for one thread. Time passes only between its steps, by a simulated clock. `work.rs`
//! compares the queue in memory with it, and the unit tests the one in a file.

use std::collections::BTreeMap;
use std::time::Duration;

use desist::work::{
    Counts, Details, Fenced, ItemInfo, ItemState, Lease, LeaseQueue, Nack, NackOutcome, PutOptions,
    QueueOptions, RetryPolicy,
};
use desist::{Cause, Time, sleep};
use proptest::prelude::*;

const PAST: Time = Time::from_nanos(1);
const SECOND: Duration = Duration::from_secs(1);

/// The stored form of a failure, or of progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    Said(u32),
    /// The queue itself, for this reason.
    Noted(String),
}

impl From<Cause> for Note {
    fn from(cause: Cause) -> Self {
        Note::Noted(cause.reason.as_deref().unwrap_or_default().to_owned())
    }
}

/// A queue as the model sees it.
pub(crate) trait Queue {
    /// `None`: the queue is full.
    fn put(&self, item: u32, options: &PutOptions) -> Option<u64>;
    /// `None`: no item is ready, or the queue is closed.
    fn lease(&self) -> Option<Lease<u32, Note>>;
    fn ack(&self, id: u64, epoch: u64) -> Result<(), Fenced>;
    fn extend(&self, id: u64, epoch: u64, progress: Option<Note>) -> Result<Option<Time>, Fenced>;
    fn nack(
        &self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: Option<Note>,
    ) -> Result<NackOutcome, Fenced>;
    fn cancel(&self, id: u64, failure: Note) -> Option<bool>;
    fn dead_letter_all(&self, failure: &Note) -> Vec<u32>;
    fn retry(&self, id: u64) -> bool;
    fn item(&self, id: u64) -> Option<u32>;
    fn close(&self);
    fn counts(&self) -> Counts;
    fn dead(&self) -> Vec<(u64, u32, Vec<Note>)>;
    /// All items that are not done, without their holders.
    fn items(&self, state: Option<ItemState>, limit: usize) -> Vec<ItemInfo<()>>;
    /// Drop the queue, and open it again. False: it is in memory only.
    fn reopen(&mut self) -> bool;
}

impl Queue for LeaseQueue<u32, Note> {
    fn put(&self, item: u32, options: &PutOptions) -> Option<u64> {
        let put = self.try_put(item, options).ok();
        // The waiting form returns the same, and an item that it refuses is not put.
        if put.is_none() {
            assert_eq!(self.put_with(item, options, PAST), Ok(None));
        }
        put
    }

    fn lease(&self) -> Option<Lease<u32, Note>> {
        self.lease(PAST).unwrap()
    }

    fn ack(&self, id: u64, epoch: u64) -> Result<(), Fenced> {
        self.ack(id, epoch)
    }

    fn extend(&self, id: u64, epoch: u64, progress: Option<Note>) -> Result<Option<Time>, Fenced> {
        self.extend(id, epoch, progress)
    }

    fn nack(
        &self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: Option<Note>,
    ) -> Result<NackOutcome, Fenced> {
        self.nack(id, epoch, nack, failure)
    }

    fn cancel(&self, id: u64, failure: Note) -> Option<bool> {
        self.cancel(id, failure)
    }

    fn dead_letter_all(&self, failure: &Note) -> Vec<u32> {
        self.dead_letter_all(failure)
    }

    fn retry(&self, id: u64) -> bool {
        self.retry(id)
    }

    fn item(&self, id: u64) -> Option<u32> {
        self.item(id)
    }

    fn close(&self) {
        self.close();
    }

    fn counts(&self) -> Counts {
        self.counts()
    }

    fn dead(&self) -> Vec<(u64, u32, Vec<Note>)> {
        self.dead()
    }

    fn items(&self, state: Option<ItemState>, limit: usize) -> Vec<ItemInfo<()>> {
        let items = self.items(state, limit).into_iter();
        items.map(without_holder).collect()
    }

    fn reopen(&mut self) -> bool {
        false
    }
}

// ---------------------------------------------------------------------- the model

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Ready,
    Leased(u64),
    Delayed,
    Done,
    Dead,
}

struct Item {
    value: u32,
    put: Time,
    place: Where,
    options: PutOptions,
    deadline: Time,
    /// The time at which its state changes.
    due: Time,
    attempt: u32,
    progress: Option<Note>,
    failures: Vec<Note>,
    unwanted: Option<Note>,
}

#[derive(Default)]
struct Model {
    options: QueueOptions,
    items: BTreeMap<u64, Item>,
    /// In the order of leasing among items of the same priority.
    ready: Vec<u64>,
    dead: Vec<u64>,
    last_epoch: u64,
    closed: bool,
}

impl Model {
    fn catch_up(&mut self) {
        let now = Time::now();
        loop {
            let due = |(id, item): (&u64, &Item)| (item.due, *id);
            let Some((at, id)) = self
                .items
                .iter()
                .map(due)
                .min()
                .filter(|(at, _)| *at <= now)
            else {
                return;
            };
            let item = self.items.get_mut(&id).unwrap();
            match item.place {
                Where::Leased(_) => {
                    let lost = Note::Noted("its lease was not extended in time".into());
                    self.end_lease(id, Some(lost), Some(Duration::ZERO));
                }
                _ if item.deadline <= now => self.die(id, Some(overdue())),
                _ => self.line_up(id, false),
            }
            assert!(self.items[&id].due > at, "it would be due forever");
        }
    }

    fn line_up(&mut self, id: u64, first: bool) {
        let item = self.items.get_mut(&id).unwrap();
        (item.place, item.due) = (Where::Ready, item.deadline);
        let at = if first { 0 } else { self.ready.len() };
        self.ready.insert(at, id);
    }

    fn delay(&mut self, id: u64, pause: Duration) {
        let item = self.items.get_mut(&id).unwrap();
        item.place = Where::Delayed;
        item.due = Time::after(pause).min(item.deadline);
    }

    fn die(&mut self, id: u64, failure: Option<Note>) {
        let item = self.items.get_mut(&id).unwrap();
        item.failures.extend(failure);
        (item.place, item.due) = (Where::Dead, Time::NEVER);
        self.ready.retain(|other| *other != id);
        self.dead.push(id);
    }

    fn put(&mut self, value: u32, options: &PutOptions) -> Option<u64> {
        let same_key = |item: &Item| item.place != Where::Done && item.options.key == options.key;
        if options.key.is_some() {
            if let Some((id, _)) = self.items.iter().find(|(_, item)| same_key(item)) {
                return Some(*id);
            }
        }
        let counts = self.counts();
        let unfinished = counts.ready + counts.leased + counts.delayed;
        if self.options.maxsize != 0 && unfinished >= self.options.maxsize {
            return None;
        }
        let id = self.items.len() as u64 + 1;
        self.items.insert(
            id,
            Item {
                value,
                put: Time::now(),
                place: Where::Ready,
                options: options.clone(),
                deadline: options.expires.map_or(Time::NEVER, Time::after),
                due: Time::NEVER,
                attempt: 0,
                progress: None,
                failures: Vec::new(),
                unwanted: None,
            },
        );
        if options.delay.is_zero() {
            self.line_up(id, false);
        } else {
            self.delay(id, options.delay);
        }
        Some(id)
    }

    fn lease(&mut self) -> Option<Lease<u32, Note>> {
        if self.closed {
            return None;
        }
        let priority = |id: &u64| self.items[id].options.priority;
        let least = self.ready.iter().map(priority).min()?;
        let first = self.ready.iter().position(|id| priority(id) == least);
        let id = self.ready.remove(first.unwrap());
        self.last_epoch += 1;
        let until = self.lease_until();
        let item = self.items.get_mut(&id).unwrap();
        item.attempt += 1;
        item.place = Where::Leased(self.last_epoch);
        item.due = until.unwrap_or(Time::NEVER);
        Some(Lease {
            id,
            epoch: self.last_epoch,
            attempt: item.attempt,
            item: item.value,
            details: Details {
                progress: item.progress.clone(),
                deadline: Some(item.deadline).filter(|deadline| !deadline.is_never()),
                until,
                key: item.options.key.clone(),
                time_limit: item.options.time_limit,
            }
            .if_any(),
        })
    }

    /// A lease without a time limit does not end.
    fn lease_until(&self) -> Option<Time> {
        let until = self.options.lease_timeout.map(Time::after);
        until.filter(|until| !until.is_never())
    }

    fn leased(&mut self, id: u64, epoch: u64) -> Result<&mut Item, Fenced> {
        self.items
            .get_mut(&id)
            .filter(|item| item.place == Where::Leased(epoch))
            .ok_or(Fenced)
    }

    fn ack(&mut self, id: u64, epoch: u64) -> Result<(), Fenced> {
        let item = self.leased(id, epoch)?;
        (item.place, item.due) = (Where::Done, Time::NEVER);
        Ok(())
    }

    fn extend(
        &mut self,
        id: u64,
        epoch: u64,
        progress: Option<Note>,
    ) -> Result<Option<Time>, Fenced> {
        let until = self.lease_until();
        let item = self.leased(id, epoch)?;
        item.progress = progress.or(item.progress.take());
        item.due = until.unwrap_or(Time::NEVER);
        Ok(until)
    }

    fn nack(
        &mut self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: Option<Note>,
    ) -> Result<NackOutcome, Fenced> {
        let retry = self.options.retry;
        let item = self.leased(id, epoch)?;
        let pause = match nack {
            Nack::AtOnce => Some(Duration::ZERO),
            Nack::After(pause) => Some(pause),
            Nack::Failed => {
                Some((retry.backoff * 2u32.pow(item.attempt - 1)).min(retry.max_backoff))
            }
            Nack::Discard => None,
            Nack::Snooze(pause) => {
                item.attempt -= 1;
                return Ok(self.end_lease(id, None, Some(pause)));
            }
        };
        Ok(self.end_lease(id, failure, pause))
    }

    fn end_lease(
        &mut self,
        id: u64,
        failure: Option<Note>,
        pause: Option<Duration>,
    ) -> NackOutcome {
        let max_attempts = self.options.retry.max_attempts;
        let item = self.items.get_mut(&id).unwrap();
        item.failures.extend(failure);
        if item.unwanted.is_some() || item.attempt >= max_attempts {
            let unwanted = item.unwanted.clone();
            self.die(id, unwanted);
            NackOutcome::Dead
        } else if item.deadline <= Time::now() {
            self.die(id, Some(overdue()));
            NackOutcome::Dead
        } else if let Some(pause) = pause {
            if pause.is_zero() {
                self.line_up(id, true);
            } else {
                self.delay(id, pause);
            }
            NackOutcome::Requeued
        } else {
            self.die(id, None);
            NackOutcome::Dead
        }
    }

    /// All workers are stopped: the item that was leased first is the next one again.
    fn reopen(&mut self) {
        let leased = |(id, item): (&u64, &Item)| match item.place {
            Where::Leased(epoch) => Some((epoch, *id)),
            _ => None,
        };
        let mut leased: Vec<_> = self.items.iter().filter_map(leased).collect();
        leased.sort_unstable();
        for (_, id) in leased.into_iter().rev() {
            self.end_lease(id, None, Some(Duration::ZERO));
        }
        self.closed = false;
    }

    fn cancel(&mut self, id: u64, failure: Note) -> Option<bool> {
        let item = self.items.get_mut(&id)?;
        match item.place {
            Where::Done | Where::Dead => None,
            Where::Leased(_) => {
                item.unwanted.get_or_insert(failure);
                Some(false)
            }
            Where::Ready | Where::Delayed => {
                self.die(id, Some(failure));
                Some(true)
            }
        }
    }

    fn dead_letter_all(&mut self, failure: &Note) -> Vec<u32> {
        let mut ready = self.ready.clone();
        ready.sort_by_key(|id| self.items[id].options.priority);
        let delayed = |(_, item): &(&u64, &Item)| item.place == Where::Delayed;
        let mut delayed: Vec<u64> = self
            .items
            .iter()
            .filter(delayed)
            .map(|(id, _)| *id)
            .collect();
        delayed.sort_by_key(|id| self.items[id].due);
        ready.extend(delayed);
        for id in &ready {
            self.die(*id, Some(failure.clone()));
        }
        ready.iter().map(|id| self.items[id].value).collect()
    }

    fn retry(&mut self, id: u64) -> bool {
        let dead = self.dead.iter().position(|other| *other == id);
        let Some(at) = dead else {
            return false;
        };
        self.dead.remove(at);
        let item = self.items.get_mut(&id).unwrap();
        (item.attempt, item.unwanted, item.deadline) = (0, None, Time::NEVER);
        self.line_up(id, false);
        true
    }

    fn item(&self, id: u64) -> Option<u32> {
        let item = self.items.get(&id)?;
        (item.place != Where::Done).then_some(item.value)
    }

    fn counts(&self) -> Counts {
        let count =
            |which: fn(Where) -> bool| self.items.values().filter(|item| which(item.place)).count();
        Counts {
            ready: count(|place| place == Where::Ready),
            leased: count(|place| matches!(place, Where::Leased(_))),
            delayed: count(|place| place == Where::Delayed),
            done: count(|place| place == Where::Done) as u64,
            dead: count(|place| place == Where::Dead),
        }
    }

    fn items(&self, state: Option<ItemState>, limit: usize) -> Vec<ItemInfo<()>> {
        let info = |(id, item): (&u64, &Item)| {
            let is = match item.place {
                Where::Ready => ItemState::Ready,
                Where::Leased(_) => ItemState::Leased,
                Where::Delayed => ItemState::Delayed,
                Where::Dead => ItemState::Dead,
                Where::Done => return None,
            };
            state.is_none_or(|state| state == is).then(|| ItemInfo {
                id: *id,
                state: is,
                attempt: item.attempt,
                age: Time::now() - item.put,
                holder: None,
                key: item.options.key.clone(),
            })
        };
        let mut items: Vec<_> = self.items.iter().filter_map(info).collect();
        items.sort_by_key(|item| item.state);
        items.truncate(limit);
        items
    }

    fn dead(&self) -> Vec<(u64, u32, Vec<Note>)> {
        let dead = |id: &u64| {
            let item = &self.items[id];
            (*id, item.value, item.failures.clone())
        };
        self.dead.iter().map(dead).collect()
    }
}

/// The item, and nothing of its holder: which thread that is differs between queues.
pub(crate) fn without_holder<H>(info: ItemInfo<H>) -> ItemInfo<()> {
    ItemInfo {
        id: info.id,
        state: info.state,
        attempt: info.attempt,
        age: info.age,
        holder: None,
        key: info.key,
    }
}

fn overdue() -> Note {
    Note::Noted("the item expired".into())
}

// ---------------------------------------------------------------------- side by side

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Put(PutOptions),
    Lease,
    /// On any lease that was ever given, also a stale one.
    Ack(usize),
    Extend(usize, bool),
    Nack(usize, Nack, bool),
    /// On any item, also one that never existed.
    Cancel(u64),
    Retry(u64),
    GiveUp,
    Pass(Duration),
    Close,
    Reopen,
}

fn seconds(within: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    within.prop_map(Duration::from_secs)
}

fn put_options() -> impl Strategy<Value = PutOptions> {
    let key = prop::option::weighted(0.2, (0..3u32).prop_map(|key| format!("{key}").into()));
    let delay = prop_oneof![3 => Just(Duration::ZERO), 1 => seconds(1..6)];
    let expires = prop::option::weighted(0.3, seconds(0..9));
    let time_limit = prop::option::weighted(0.3, seconds(1..9));
    let options = (key, -1..2i64, delay, expires, time_limit);
    options.prop_map(|(key, priority, delay, expires, time_limit)| PutOptions {
        key,
        priority,
        delay,
        expires,
        time_limit,
    })
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lease = 0..6usize;
    let id = 1..12u64;
    let back = prop_oneof![
        Just(Nack::AtOnce),
        Just(Nack::Failed),
        seconds(0..8).prop_map(Nack::After),
        Just(Nack::After(Duration::MAX)),
        seconds(0..8).prop_map(Nack::Snooze),
        Just(Nack::Discard),
    ];
    let step = prop_oneof![
        80 => put_options().prop_map(Step::Put),
        80 => Just(Step::Lease),
        40 => lease.clone().prop_map(Step::Ack),
        40 => (lease.clone(), any::<bool>()).prop_map(|(lease, says)| Step::Extend(lease, says)),
        60 => (lease, back, any::<bool>()).prop_map(|(lease, back, why)| Step::Nack(lease, back, why)),
        30 => id.clone().prop_map(Step::Cancel),
        30 => id.prop_map(Step::Retry),
        4 => Just(Step::GiveUp),
        40 => seconds(1..8).prop_map(Step::Pass),
        1 => Just(Step::Close),
        8 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..80)
}

pub(crate) fn queue_options() -> impl Strategy<Value = QueueOptions> {
    let forever = Just(Duration::MAX);
    let lease_timeout = prop::option::of(prop_oneof![4 => seconds(1..8), 1 => forever]);
    (1..4u32, 0..5usize, lease_timeout).prop_map(|(max_attempts, maxsize, lease_timeout)| {
        QueueOptions {
            // Without jitter, so that the model knows the end of a pause.
            retry: RetryPolicy {
                max_attempts,
                backoff: SECOND,
                max_backoff: 3 * SECOND,
                jitter: 0.0,
            },
            maxsize,
            lease_timeout,
        }
    })
}

/// Run these steps on the queue and on a model with the same options.
pub(crate) fn check<Q: Queue>(
    queue: &mut Q,
    options: QueueOptions,
    steps: &[Step],
) -> Result<(), TestCaseError> {
    let mut model = Model {
        options,
        ..Model::default()
    };
    let mut leases: Vec<(u64, u64)> = Vec::new();
    for (number, step) in (0u32..).zip(steps) {
        let recent = |back: &usize| leases.iter().rev().nth(*back).copied();
        let note = |said: &bool| said.then_some(Note::Said(number));
        model.catch_up();
        match step {
            Step::Put(options) => {
                prop_assert_eq!(queue.put(number, options), model.put(number, options));
            }
            Step::Lease => {
                let lease = queue.lease();
                leases.extend(lease.as_ref().map(|lease| (lease.id, lease.epoch)));
                prop_assert_eq!(lease, model.lease());
            }
            Step::Ack(back) => {
                let Some((id, epoch)) = recent(back) else {
                    continue;
                };
                prop_assert_eq!(queue.ack(id, epoch), model.ack(id, epoch));
            }
            Step::Extend(back, says) => {
                let Some((id, epoch)) = recent(back) else {
                    continue;
                };
                let until = queue.extend(id, epoch, note(says));
                prop_assert_eq!(until, model.extend(id, epoch, note(says)));
            }
            Step::Nack(back, how, failed) => {
                let Some((id, epoch)) = recent(back) else {
                    continue;
                };
                let given = queue.nack(id, epoch, *how, note(failed));
                prop_assert_eq!(given, model.nack(id, epoch, *how, note(failed)));
            }
            Step::Cancel(id) => {
                let cancelled = queue.cancel(*id, Note::Said(number));
                prop_assert_eq!(cancelled, model.cancel(*id, Note::Said(number)));
            }
            Step::Retry(id) => prop_assert_eq!(queue.retry(*id), model.retry(*id)),
            Step::GiveUp => {
                let failure = Note::Said(number);
                prop_assert_eq!(
                    queue.dead_letter_all(&failure),
                    model.dead_letter_all(&failure)
                );
            }
            Step::Pass(time) => {
                prop_assert_eq!(sleep(*time), Ok(()));
            }
            Step::Close => {
                queue.close();
                model.closed = true;
            }
            Step::Reopen => {
                if queue.reopen() {
                    model.reopen();
                }
            }
        }
        model.catch_up();
        prop_assert_eq!(queue.counts(), model.counts());
        prop_assert_eq!(queue.dead(), model.dead());
        for state in [None, Some(ItemState::Leased), Some(ItemState::Delayed)] {
            let limit = if number % 3 == 0 { 2 } else { usize::MAX };
            prop_assert_eq!(queue.items(state, limit), model.items(state, limit));
        }
        for id in 1..12 {
            prop_assert_eq!(queue.item(id), model.item(id));
        }
    }
    Ok(())
}
