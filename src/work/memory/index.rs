//! The index of a queue in memory: which items are in which state, in which order.
//!
//! An item is in one state, which its [`StateEntry`] says. [`StateIndex`] keeps what follows from
//! the entries of all items, so that no operation has to look at all of them: the counts, the order
//! of the ready items, the order of the dead ones, and the times at which states change by
//! themselves (I28). Each method here moves one item: it changes the item's entry and the index
//! together, under the lock of the queue, which is the only lock involved.
//!
//! Protocol: the caller is `state.rs`, which decides; this file only records. A transition is
//! [`StateIndex::leave`] and then one of `enqueue`, `delay` and `dead_letter`; between the two the
//! item counts nowhere, so nothing may return between them. `lease`, `extend` and `done` are whole
//! transitions, and begin in the state that their name implies.
//!
//! | state | in `ready` | in `dead` | in `due` |
//! |---|---|---|---|
//! | ready | under its turn | | at its deadline, if it has one |
//! | leased | | | at the end of the lease, if it has one |
//! | delayed | | | at the end of the delay, or at its deadline if that is earlier; always |
//! | dead | | under its number | |
//!
//! A ready item that leaves its state otherwise than by a lease stays in `ready`, as removing it
//! from the middle would take long. Such an entry is stale: it is recognised by its turn, which the
//! item does not have any more and no other item ever gets. Stale entries are skipped when they
//! come to the front, and removed by `ItemStates::tidy` when they are the most.
//!
//! A turn is the identity of an entry, not its place: an item that goes to the front gets a new,
//! greater turn as well. The place in the deque alone is the order.
//!
//! Costs: constant for an item of priority 0 without times; the maps make it logarithmic for the
//! others. The functions for times and other priorities are out of line, as most queues have neither.
//!
//! The run queues are plain deques, with 16 bytes for each ready item. Coding runs of successive
//! numbers saved these, and together with a hand-made ring in place of `slab`'s deque 10 of the 78 ns
//! of a put, lease and ack (13 %); it was not worth its 250 lines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::Time;
use crate::work::{self, Counts};

/// The state of one item. Written by [`StateIndex`] alone.
pub(super) struct StateEntry {
    /// The only record of the item's state; the index is derived from it.
    pub(super) state: ItemState,
    /// When the state changes by itself; then the item is in [`StateIndex::due`] at this time.
    /// [`Time::NEVER`]: it does not, and only a delayed item is in `due` nevertheless.
    pub(super) due: Time,
}

/// See the table in `work.rs` for the transitions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ItemState {
    /// Waits to be leased.
    Ready {
        /// The number of its entry in the run queue. An entry with another one is stale.
        turn: u64,
    },
    /// With a worker.
    Leased {
        /// The number of the lease. A call that names another one is fenced.
        epoch: u64,
    },
    /// Waits for the time of its next attempt.
    Delayed,
    /// Not leased again unless it is retried.
    Dead {
        /// Its key in [`StateIndex::dead`].
        dead_seq: u64,
    },
}

impl ItemState {
    /// The state without the numbers.
    pub(super) fn public(self) -> work::ItemState {
        match self {
            ItemState::Ready { .. } => work::ItemState::Ready,
            ItemState::Leased { .. } => work::ItemState::Leased,
            ItemState::Delayed => work::ItemState::Delayed,
            ItemState::Dead { .. } => work::ItemState::Dead,
        }
    }
}

impl StateEntry {
    /// Of an item that is in no state yet. The next step puts it into one.
    pub(super) const NONE: StateEntry = StateEntry {
        state: ItemState::Delayed,
        due: Time::NEVER,
    };
}

/// When an item is to be worked on, as its `put` said.
#[derive(Clone, Copy)]
pub(super) struct Schedule {
    /// The least is leased first.
    pub(super) priority: i64,
    /// The item expires then.
    pub(super) deadline: Time,
}

impl Schedule {
    /// Of most items.
    pub(super) const USUAL: Schedule = Schedule {
        priority: 0,
        deadline: Time::NEVER,
    };
}

/// What follows from the entries of all items. `state.rs` reads the fields, and writes `stale` where
/// it skips or removes stale entries, `ready` and `due` where it takes entries out.
#[derive(Default)]
pub(super) struct StateIndex {
    /// How many items are in each state; `done` only grows.
    pub(super) counts: Counts,
    /// The order in which ready items are leased; with stale entries. Has `counts.ready + stale`
    /// entries between any two calls.
    pub(super) ready: ReadyQueues,
    /// How many entries of `ready` are stale.
    pub(super) stale: usize,
    /// The ids of the dead items, in the order in which they died.
    pub(super) dead: BTreeMap<u64, u64>,
    /// The times at which states change by themselves, with the items' ids.
    pub(super) due: BTreeSet<(Time, u64)>,
    /// The last `turn` or `dead_seq` that was given out. It only grows, so neither is given out twice.
    last_seq: u64,
}

/// An entry of a run queue: its turn, and the id of its item.
type Entry = (u64, u64);

/// The greatest capacity that the empty run queue of priority 0 keeps.
const KEPT: usize = 1024;

/// The ready items by priority, and in the order in which they are leased.
#[derive(Default)]
pub(super) struct ReadyQueues {
    /// Those of priority 0, which most items have.
    usual: VecDeque<Entry>,
    /// Those of other priorities; an empty queue is kept only while it is the only one.
    others: BTreeMap<i64, VecDeque<Entry>>,
}

/// Which end of its run queue a ready item goes to.
#[derive(Clone, Copy)]
pub(super) enum QueueEnd {
    Back,
    /// Its worker was stopped, through no fault of the work: before the others.
    Front,
}

impl StateIndex {
    /// Take the item out of the state that it is in; the caller puts it into the next.
    #[inline]
    pub(super) fn leave(&mut self, id: u64, entry: &StateEntry) {
        match entry.state {
            ItemState::Ready { .. } => {
                self.counts.ready -= 1;
                self.stale += 1;
            }
            ItemState::Leased { .. } => self.counts.leased -= 1,
            ItemState::Delayed => self.counts.delayed -= 1,
            ItemState::Dead { dead_seq } => {
                self.counts.dead -= 1;
                self.dead.remove(&dead_seq);
            }
        }
        if !entry.due.is_never() || entry.state == ItemState::Delayed {
            self.clear_due(entry.due, id);
        }
    }

    /// Record when the state that the item has entered ends by itself.
    #[inline]
    fn set_due(&mut self, id: u64, entry: &mut StateEntry, at: Time) {
        entry.due = at;
        if !at.is_never() {
            self.insert_due(at, id);
        }
    }

    #[cold]
    fn insert_due(&mut self, at: Time, id: u64) {
        self.due.insert((at, id));
    }

    #[cold]
    fn clear_due(&mut self, at: Time, id: u64) {
        self.due.remove(&(at, id));
    }

    /// The item is ready.
    #[inline]
    pub(super) fn enqueue(
        &mut self,
        id: u64,
        entry: &mut StateEntry,
        schedule: Schedule,
        end: QueueEnd,
    ) {
        self.last_seq += 1;
        let turn = self.last_seq;
        let queue = self.ready.of(schedule.priority);
        match end {
            QueueEnd::Back => queue.push_back((turn, id)),
            QueueEnd::Front => queue.push_front((turn, id)),
        }
        self.counts.ready += 1;
        entry.state = ItemState::Ready { turn };
        self.set_due(id, entry, schedule.deadline);
    }

    /// Take the next entry, which may be stale, if any item is ready.
    #[inline]
    pub(super) fn next_entry(&mut self) -> Option<(u64, u64)> {
        if self.counts.ready == 0 {
            return None;
        }
        self.ready.next()
    }

    /// The item, whose entry was taken, is leased until then.
    #[inline]
    pub(super) fn lease(&mut self, id: u64, entry: &mut StateEntry, epoch: u64, until: Time) {
        self.counts.ready -= 1;
        self.counts.leased += 1;
        if !entry.due.is_never() {
            self.clear_due(entry.due, id);
        }
        entry.state = ItemState::Leased { epoch };
        self.set_due(id, entry, until);
    }

    /// The leased item is done. [`StateIndex::leave`] would ask once more which state it leaves,
    /// which is a good part of an `ack`.
    #[inline]
    pub(super) fn done(&mut self, id: u64, entry: &StateEntry) {
        self.counts.leased -= 1;
        self.counts.done += 1;
        if !entry.due.is_never() {
            self.clear_due(entry.due, id);
        }
    }

    /// The lease of the item now ends then.
    pub(super) fn extend(&mut self, id: u64, entry: &mut StateEntry, until: Time) {
        self.clear_due(entry.due, id);
        self.set_due(id, entry, until);
    }

    /// The item is delayed.
    pub(super) fn delay(
        &mut self,
        id: u64,
        entry: &mut StateEntry,
        schedule: Schedule,
        pause: Duration,
    ) {
        self.counts.delayed += 1;
        entry.state = ItemState::Delayed;
        entry.due = Time::after(pause).min(schedule.deadline);
        self.due.insert((entry.due, id)); // never, too: so `dead_letter_all` finds it
    }

    /// The item is dead.
    pub(super) fn dead_letter(&mut self, id: u64, entry: &mut StateEntry) {
        self.last_seq += 1;
        let dead_seq = self.last_seq;
        self.counts.dead += 1;
        self.dead.insert(dead_seq, id);
        entry.state = ItemState::Dead { dead_seq };
        entry.due = Time::NEVER;
    }
}

impl ReadyQueues {
    /// The run queue of this priority.
    #[inline]
    fn of(&mut self, priority: i64) -> &mut VecDeque<Entry> {
        if priority == 0 {
            &mut self.usual
        } else {
            self.other(priority)
        }
    }

    /// The run queue of another priority than 0, which is made if there is none.
    #[cold]
    fn other(&mut self, priority: i64) -> &mut VecDeque<Entry> {
        self.others.entry(priority).or_default()
    }

    /// Take the first entry of the least priority that has one.
    #[inline]
    fn next(&mut self) -> Option<Entry> {
        if !self.others.is_empty() {
            return self.next_of_all();
        }
        let next = self.usual.pop_front();
        if self.usual.is_empty() && self.usual.capacity() > KEPT {
            self.usual = VecDeque::new();
        }
        next
    }

    /// [`ReadyQueues::next`], with run queues of other priorities: those below 0 come before `usual`,
    /// those above 0 after it.
    #[cold]
    fn next_of_all(&mut self) -> Option<Entry> {
        // The only other queue is kept though it is empty: its next item spares the allocation.
        let several = self.others.len() > 1;
        while let Some(mut queue) = self.others.first_entry() {
            if *queue.key() > 0 && !self.usual.is_empty() {
                break;
            }
            let next = queue.get_mut().pop_front();
            if next.is_none() || several && queue.get().is_empty() {
                queue.remove();
            }
            if next.is_some() {
                return next;
            }
        }
        self.usual.pop_front()
    }

    /// Take all entries, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Entry> + use<> {
        let mut before = std::mem::take(&mut self.others);
        let after = before.split_off(&0);
        let usual = std::mem::take(&mut self.usual);
        let queues = before.into_values().chain([usual]);
        queues.chain(after.into_values()).flatten()
    }

    /// Keep these entries, in their order.
    pub(super) fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.usual.retain(&keep);
        self.others.retain(|_, queue| {
            queue.retain(&keep);
            !queue.is_empty()
        });
    }
}
