//! The ledger: what a task holds, so that it can be given back.
//!
//! A lock enters itself in the same critical section in which it changes hands, so that there is
//! no instant at which something is held and not recorded. Every thread has a ledger; a task has
//! its own, swept at the task's boundary.
//!
//! Lock order: a lock's own state, then the ledger. The ledger never calls out while it is locked.

#![allow(clippy::similar_names)] // what is held, and the hold of it

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::atomics::Mutex;
use crate::cause::Cause;
use crate::fork;
use crate::stack::Stack;

/// Something that can be held.
pub(crate) trait Resource: Send + Sync {
    /// Its name, for reports.
    fn name(&self) -> Arc<str>;

    /// Take one hold of it from `holder`, which is done with it in the given way. `None` if
    /// `holder` does not hold it any more. True: it is poisoned now.
    fn reclaim(
        self: Arc<Self>,
        holder: &Arc<Ledger>,
        hold: Hold,
        termination: &Termination,
    ) -> Option<bool>;
}

/// How a holder came to its end, as far as what it holds is concerned.
#[derive(Debug, Clone)]
pub(crate) enum Termination {
    /// It ran to an end: returned, failed, or was cancelled and unwound.
    Unwound,
    /// It was stopped hard, in the middle of whatever it did.
    Killed(Arc<KillInfo>),
    /// It was given up while it still runs, and may go on to use what it holds.
    Abandoned(Arc<KillInfo>),
}

/// Who died how; kept with what it held.
#[derive(Debug)]
pub struct KillInfo {
    /// The task's name.
    pub task: Arc<str>,
    /// Why it was killed.
    pub cause: Cause,
    /// Where it was, in the host's words.
    pub stack: Option<Stack>,
}

/// Who gives it back in the normal course of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldKind {
    /// A `with` block: the scope around takes it back if the block did not.
    Block,
    /// As a block, but its end knows this very hold, and takes no other.
    Known,
    /// Somebody's call, or the end of the task.
    Task,
    /// A guard of the language, which gives access for as long as it lives: no sweep takes it,
    /// unless the whole task is given up, and then nobody else gets it.
    Guard,
}

/// One entry of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) kind: HoldKind,
    /// Which of all entries that were ever made.
    seq: u64,
}

impl Hold {
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn seq(self) -> u64 {
        self.seq
    }
}

struct Entry {
    held: Arc<dyn Resource>,
    hold: Hold,
}

#[derive(Default)]
struct Entries {
    /// In the order of their numbers.
    list: Vec<Entry>,
    next_seq: u64,
}

/// What one task, or one thread outside any task, holds.
pub(crate) struct Ledger {
    /// The name of the task, or of the thread, for reports.
    owner: Option<Arc<str>>,
    entries: Mutex<Entries>,
    /// The process in which its thread lives, see [`fork::generation`].
    generation: AtomicU32,
}

/// What a sweep found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) released: Vec<Arc<str>>,
    pub(crate) poisoned: Vec<Arc<str>>,
}

impl Ledger {
    pub(crate) fn of(owner: Option<Arc<str>>) -> Ledger {
        Ledger {
            owner,
            entries: Mutex::default(),
            generation: AtomicU32::new(fork::generation()),
        }
    }

    pub(crate) fn owner(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()
    }

    /// Its thread was left behind in the parent process.
    pub(crate) fn is_lost_in_fork(&self) -> bool {
        self.generation.load(Ordering::Relaxed) != fork::generation()
    }

    pub(crate) fn survive_fork(&self) {
        self.generation.store(fork::generation(), Ordering::Relaxed);
    }

    pub(crate) fn record(&self, held: Arc<dyn Resource>, kind: HoldKind) {
        let mut entries = self.entries.lock();
        let seq = entries.next_seq;
        entries.next_seq += 1;
        let hold = Hold { kind, seq };
        entries.list.push(Entry { held, hold });
    }

    /// Put an entry back that was removed for a while, in its old place.
    pub(crate) fn restore(&self, held: Arc<dyn Resource>, hold: Hold) {
        let entries = &mut self.entries.lock().list;
        let at = entries.partition_point(|entry| entry.hold.seq < hold.seq);
        entries.insert(at, Entry { held, hold });
    }

    /// Forget one entry, the latest of this thing. What was held is given out so that its last
    /// count is dropped unlocked.
    pub(crate) fn remove_latest(&self, held: *const ()) -> Option<(Arc<dyn Resource>, Hold)> {
        let entries = &mut self.entries.lock().list;
        let at = entries
            .iter()
            .rposition(|entry| Arc::as_ptr(&entry.held).cast::<()>() == held)?;
        let entry = entries.remove(at);
        Some((entry.held, entry.hold))
    }

    /// Forget this very hold.
    pub(crate) fn remove(&self, held: *const (), hold: Hold) -> Option<Arc<dyn Resource>> {
        let entries = &mut self.entries.lock().list;
        let at = entries
            .binary_search_by_key(&hold.seq, |entry| entry.hold.seq)
            .ok()?;
        let same = Arc::as_ptr(&entries[at].held).cast::<()>() == held;
        same.then(|| entries.remove(at).held)
    }

    /// Is this very hold in it?
    pub(crate) fn has(&self, hold: Hold) -> bool {
        let entries = &self.entries.lock().list;
        let seq = |entry: &Entry| entry.hold.seq;
        entries.binary_search_by_key(&hold.seq, seq).is_ok()
    }

    /// The latest hold of this thing.
    pub(crate) fn latest(&self, held: *const ()) -> Option<Hold> {
        let entries = &self.entries.lock().list;
        let mut latest_first = entries.iter().rev();
        latest_first
            .find(|entry| Arc::as_ptr(&entry.held).cast::<()>() == held)
            .map(|entry| entry.hold)
    }

    /// Is anything held of the entries from this one on?
    pub(crate) fn holds_since(&self, first: u64) -> bool {
        let entries = &self.entries.lock().list;
        entries.last().is_some_and(|entry| entry.hold.seq >= first)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.lock().list.len()
    }

    /// How many entries have been made: those that come later have this number or a greater one.
    pub(crate) fn next_seq(&self) -> u64 {
        self.entries.lock().next_seq
    }

    /// Take back everything, the latest first (I20).
    pub(crate) fn sweep(self: &Arc<Self>, termination: &Termination) -> Swept {
        let abandoned = matches!(termination, Termination::Abandoned(_));
        self.reclaim_since(0, termination, |kind| abandoned || kind != HoldKind::Guard)
    }

    /// Take back everything from entry `first` on, as [`Ledger::sweep`] does.
    pub(crate) fn sweep_since(self: &Arc<Self>, first: u64, termination: &Termination) -> Swept {
        self.reclaim_since(first, termination, |kind| kind != HoldKind::Guard)
    }

    /// Take back what blocks took from entry `first` on and did not give back.
    pub(crate) fn sweep_blocks(self: &Arc<Self>, first: u64, termination: &Termination) -> Swept {
        self.reclaim_since(first, termination, |kind| {
            matches!(kind, HoldKind::Block | HoldKind::Known)
        })
    }

    fn reclaim_since(
        self: &Arc<Self>,
        first: u64,
        termination: &Termination,
        which: impl Fn(HoldKind) -> bool,
    ) -> Swept {
        let late: Vec<(Arc<dyn Resource>, Hold)> = {
            let entries = self.entries.lock();
            let late = entries
                .list
                .iter()
                .rev()
                .take_while(|entry| entry.hold.seq >= first);
            late.filter(|entry| which(entry.hold.kind))
                .map(|entry| (entry.held.clone(), entry.hold))
                .collect()
        };
        // Each strikes itself out, under its own lock, if it is still this ledger's.
        let mut swept = Swept::default();
        for (held, hold) in late {
            let name = held.name();
            match held.reclaim(self, hold, termination) {
                Some(true) => swept.poisoned.push(name),
                Some(false) => swept.released.push(name),
                None => {}
            }
        }
        swept
    }
}
