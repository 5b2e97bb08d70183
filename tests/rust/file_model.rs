//! What a lease queue in a file promises, as a model.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use desist::work::{Back, Counts, Fenced, Returned};
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Put,
    Lease,
    /// Of any lease that was ever handed out, also a stale one.
    Ack(usize),
    GiveBack(usize, Back, bool),
    /// Of any item, also one that never was.
    Cancel(u64),
    Revive(u64),
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Ready,
    Leased(u64),
    Delayed,
    Done,
    Dead,
}

pub(crate) struct Item {
    pub(crate) place: Where,
    pub(crate) attempt: u32,
    pub(crate) failures: Vec<u32>,
    pub(crate) unwanted: Option<u32>,
}

/// What the queue promises, for one thread and delays that do not pass.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) max_attempts: u32,
    pub(crate) items: BTreeMap<u64, Item>,
    pub(crate) ready: VecDeque<u64>,
    pub(crate) dead: Vec<u64>,
    pub(crate) last_epoch: u64,
    pub(crate) closed: bool,
}

impl Model {
    pub(crate) fn put(&mut self) -> u64 {
        let id = self.items.len() as u64 + 1;
        self.items.insert(
            id,
            Item {
                place: Where::Ready,
                attempt: 0,
                failures: Vec::new(),
                unwanted: None,
            },
        );
        self.ready.push_back(id);
        id
    }

    pub(crate) fn lease(&mut self) -> Option<(u64, u64, u32)> {
        let id = if self.closed {
            None
        } else {
            self.ready.pop_front()
        }?;
        self.last_epoch += 1;
        let item = self.items.get_mut(&id).unwrap();
        item.attempt += 1;
        item.place = Where::Leased(self.last_epoch);
        Some((id, self.last_epoch, item.attempt))
    }

    pub(crate) fn leased(&mut self, id: u64, epoch: u64) -> Result<&mut Item, Fenced> {
        self.items
            .get_mut(&id)
            .filter(|item| item.place == Where::Leased(epoch))
            .ok_or(Fenced)
    }

    pub(crate) fn ack(&mut self, id: u64, epoch: u64) -> Result<(), Fenced> {
        self.leased(id, epoch).map(|item| item.place = Where::Done)
    }

    pub(crate) fn give_back(
        &mut self,
        id: u64,
        epoch: u64,
        back: Back,
        failure: Option<u32>,
    ) -> Result<Returned, Fenced> {
        let max_attempts = self.max_attempts;
        let item = self.leased(id, epoch)?;
        item.failures.extend(failure);
        if let Some(unwanted) = item.unwanted {
            item.failures.push(unwanted);
        }
        if item.unwanted.is_some() || item.attempt >= max_attempts {
            item.place = Where::Dead;
            self.dead.push(id);
            return Ok(Returned::Dead);
        }
        if back == Back::AtOnce || back == Back::After(Duration::ZERO) {
            item.place = Where::Ready;
            self.ready.push_front(id);
        } else {
            item.place = Where::Delayed;
        }
        Ok(Returned::Requeued)
    }

    pub(crate) fn cancel(&mut self, id: u64, failure: u32) -> Option<bool> {
        let item = self.items.get_mut(&id)?;
        match item.place {
            Where::Done | Where::Dead => None,
            Where::Leased(_) => {
                item.unwanted.get_or_insert(failure);
                Some(false)
            }
            Where::Ready | Where::Delayed => {
                item.place = Where::Dead;
                item.failures.push(failure);
                self.ready.retain(|other| *other != id);
                self.dead.push(id);
                Some(true)
            }
        }
    }

    pub(crate) fn revive(&mut self, id: u64) -> bool {
        let Some(item) = self
            .items
            .get_mut(&id)
            .filter(|item| item.place == Where::Dead)
        else {
            return false;
        };
        (item.place, item.attempt, item.unwanted) = (Where::Ready, 0, None);
        self.dead.retain(|other| *other != id);
        self.ready.push_back(id);
        true
    }

    pub(crate) fn counts(&self) -> Counts {
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
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lease = 0..6usize;
    let id = 1..8u64;
    let back = prop_oneof![
        Just(Back::AtOnce),
        Just(Back::Failed),
        Just(Back::After(HOUR)),
        Just(Back::After(Duration::ZERO))
    ];
    let step = prop_oneof![
        60 => Just(Step::Put),
        80 => Just(Step::Lease),
        40 => lease.clone().prop_map(Step::Ack),
        80 => (lease, back, any::<bool>()).prop_map(|(lease, back, why)| Step::GiveBack(lease, back, why)),
        30 => id.clone().prop_map(Step::Cancel),
        30 => id.prop_map(Step::Revive),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..60)
}
