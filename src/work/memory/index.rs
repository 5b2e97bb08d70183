//! Which item of a queue in memory is in which state.
//!
//! An item is in one state, which its [`Place`] says. [`Books`] keeps what follows from that for all
//! of them: the counts, who is next, what is due when (I28).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::Time;
use crate::work::Counts;

/// Where an item is.
pub(super) struct Place {
    pub(super) phase: Phase,
    /// When it leaves its phase by itself.
    pub(super) due: Time,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// With its entry in the line, which is no other's.
    Ready {
        entry: u64,
    },
    Leased {
        epoch: u64,
    },
    Delayed,
    /// With its number among the dead.
    Dead {
        tomb: u64,
    },
}

impl Place {
    pub(super) const NOWHERE: Place = Place {
        phase: Phase::Delayed,
        due: Time::NEVER,
    };
}

/// What was said of an item when it was put.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    pub(super) priority: i64,
    /// Nobody wants the work any more after that.
    pub(super) deadline: Time,
}

impl Wish {
    /// Of most items.
    pub(super) const NONE: Wish = Wish {
        priority: 0,
        deadline: Time::NEVER,
    };
}

#[derive(Default)]
pub(super) struct Books {
    pub(super) counts: Counts,
    /// What is ready. An item that left otherwise than by being leased leaves its entry behind,
    /// which nobody else has.
    pub(super) lines: Lines,
    /// How many entries were left behind.
    pub(super) left_behind: usize,
    pub(super) dead: BTreeMap<u64, u64>,
    pub(super) due: BTreeSet<(Time, u64)>,
    /// The last entry, or tomb.
    last: u64,
}

/// An entry, and its item.
type Entry = (u64, u64);

/// What is to be leased, by priority, and in order.
#[derive(Default)]
pub(super) struct Lines {
    /// Those of priority 0: most.
    usual: Line,
    others: BTreeMap<i64, Line>,
}

/// Entries in order. Most follow upon each other with their items, and one run says it of all.
#[derive(Default)]
struct Line(VecDeque<Run>);

struct Run {
    first: Entry,
    length: u64,
}

/// Which end of its line a ready item goes to.
#[derive(Clone, Copy)]
pub(super) enum End {
    Back,
    /// The worker was stopped, through no fault of the work.
    Front,
}

impl Books {
    /// The item leaves the place that it is in; the caller sees to the next.
    #[inline]
    pub(super) fn leave(&mut self, id: u64, place: &Place) {
        match place.phase {
            Phase::Ready { .. } => {
                self.counts.ready -= 1;
                self.left_behind += 1;
            }
            Phase::Leased { .. } => self.counts.leased -= 1,
            Phase::Delayed => self.counts.delayed -= 1,
            Phase::Dead { tomb } => {
                self.counts.dead -= 1;
                self.dead.remove(&tomb);
            }
        }
        if !place.due.is_never() || place.phase == Phase::Delayed {
            self.unwatch(place.due, id);
        }
    }

    #[inline]
    fn fall_due(&mut self, id: u64, place: &mut Place, at: Time) {
        place.due = at;
        if !at.is_never() {
            self.watch(at, id);
        }
    }

    #[cold]
    fn watch(&mut self, at: Time, id: u64) {
        self.due.insert((at, id));
    }

    #[cold]
    fn unwatch(&mut self, at: Time, id: u64) {
        self.due.remove(&(at, id));
    }

    #[inline]
    pub(super) fn line_up(&mut self, id: u64, place: &mut Place, wish: Wish, end: End) {
        self.last += 1;
        let entry = self.last;
        let line = self.lines.of(wish.priority);
        match end {
            End::Back => line.push_back((entry, id)),
            End::Front => line.push_front((entry, id)),
        }
        self.counts.ready += 1;
        place.phase = Phase::Ready { entry };
        self.fall_due(id, place, wish.deadline);
    }

    /// Take the next entry, of an item or left behind, if any item is ready.
    #[inline]
    pub(super) fn next_in_line(&mut self) -> Option<(u64, u64)> {
        if self.counts.ready == 0 {
            return None;
        }
        self.lines.next()
    }

    /// It is leased; its entry has been taken.
    #[inline]
    pub(super) fn lease(&mut self, id: u64, place: &mut Place, epoch: u64, until: Time) {
        self.counts.ready -= 1;
        self.counts.leased += 1;
        if !place.due.is_never() {
            self.unwatch(place.due, id);
        }
        place.phase = Phase::Leased { epoch };
        self.fall_due(id, place, until);
    }

    /// The work is done, in its lease. [`Books::leave`] would ask again which phase it leaves: a
    /// good part of an `ack`.
    #[inline]
    pub(super) fn done(&mut self, id: u64, place: &Place) {
        self.counts.leased -= 1;
        self.counts.done += 1;
        if !place.due.is_never() {
            self.unwatch(place.due, id);
        }
    }

    /// Its lease lasts until then.
    pub(super) fn extend(&mut self, id: u64, place: &mut Place, until: Time) {
        self.unwatch(place.due, id);
        self.fall_due(id, place, until);
    }

    pub(super) fn delay(&mut self, id: u64, place: &mut Place, wish: Wish, pause: Duration) {
        self.counts.delayed += 1;
        place.phase = Phase::Delayed;
        place.due = Time::after(pause).min(wish.deadline);
        self.due.insert((place.due, id)); // even if that is never: so it can be found
    }

    pub(super) fn bury(&mut self, id: u64, place: &mut Place) {
        self.last += 1;
        let tomb = self.last;
        self.counts.dead += 1;
        self.dead.insert(tomb, id);
        place.phase = Phase::Dead { tomb };
        place.due = Time::NEVER;
    }
}

impl Lines {
    #[inline]
    fn of(&mut self, priority: i64) -> &mut Line {
        if priority == 0 {
            &mut self.usual
        } else {
            self.other(priority)
        }
    }

    #[cold]
    fn other(&mut self, priority: i64) -> &mut Line {
        self.others.entry(priority).or_default()
    }

    #[inline]
    fn next(&mut self) -> Option<Entry> {
        if self.others.is_empty() {
            return self.usual.pop_front();
        }
        self.next_of_all()
    }

    #[cold]
    fn next_of_all(&mut self) -> Option<Entry> {
        // A line that has run dry is kept as long as it is the only one.
        let several = self.others.len() > 1;
        while let Some(mut line) = self.others.first_entry() {
            if *line.key() > 0 && !self.usual.0.is_empty() {
                break;
            }
            let next = line.get_mut().pop_front();
            if next.is_none() || several && line.get().0.is_empty() {
                line.remove();
            }
            if next.is_some() {
                return next;
            }
        }
        self.usual.pop_front()
    }

    /// Take all, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Entry> + use<> {
        let mut before = std::mem::take(&mut self.others);
        let after = before.split_off(&0);
        let usual = std::mem::take(&mut self.usual);
        let lines = before.into_values().chain([usual]);
        lines
            .chain(after.into_values())
            .flat_map(Line::into_entries)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.usual.retain(&keep);
        self.others.retain(|_, line| {
            line.retain(&keep);
            !line.0.is_empty()
        });
    }
}

impl Line {
    #[inline]
    fn push_back(&mut self, entry: Entry) {
        match self.0.back_mut() {
            Some(last) if last.at(last.length) == entry => last.length += 1,
            _ => self.0.push_back(Run::of(entry)),
        }
    }

    fn push_front(&mut self, entry: Entry) {
        self.0.push_front(Run::of(entry));
    }

    #[inline]
    fn pop_front(&mut self) -> Option<Entry> {
        let run = self.0.front_mut()?;
        let entry = run.first;
        if run.length == 1 {
            self.0.pop_front();
        } else {
            run.first = run.at(1);
            run.length -= 1;
        }
        Some(entry)
    }

    fn into_entries(self) -> impl Iterator<Item = Entry> {
        let entries = |run: Run| (0..run.length).map(move |place| run.at(place));
        self.0.into_iter().flat_map(entries)
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let before = std::mem::take(self);
        before
            .into_entries()
            .filter(keep)
            .for_each(|entry| self.push_back(entry));
    }
}

impl Run {
    #[inline]
    fn of(first: Entry) -> Self {
        Self { first, length: 1 }
    }

    #[inline]
    fn at(&self, place: u64) -> Entry {
        (self.first.0 + place, self.first.1 + place)
    }
}
