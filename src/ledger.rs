//! The ledger: the record of a task's holds, which are reclaimed when the task ends.
//!
//! Guarantees:
//! 1. A resource enters itself in the same critical section in which it changes hands, so there is
//!    no instant at which it is held and not recorded (I20).
//! 2. An entry is removed exactly once: by the release, or by the sweep that reclaims it. The later of
//!    the two finds that the entry is gone and leaves the resource alone.
//! 3. A sweep reclaims the latest entry first, as nested blocks would have released them.
//! 4. Every thread has a ledger; a task has one of its own, swept at the task's boundary.
//! 5. A block that owns work is recorded as well, with the hook that ends the work. It is no hold: it defers
//!    no kill, and nothing waits for it. Its end removes the record; the scope around it, or the task, runs
//!    the hook if the end was skipped.
//!
//! Protocol. `entries` belongs to its mutex. Any thread may write it: the holder when it acquires
//! and releases, a releasing thread when it hands the resource to a waiter (and so records it in the
//! waiter's ledger), the killing or ending thread when it sweeps. Each of these first takes the lock
//! of the resource itself, and decides under that lock; the ledger is only the record.
//!
//! | step                         | under the resource's lock   | entry in the ledger              |
//! |------------------------------|-----------------------------|----------------------------------|
//! | acquire, hand over           | holder set, depth raised    | [`Ledger::record`]               |
//! | release, end of a block      | depth lowered, next granted | [`Ledger::remove_latest`]        |
//! | end of a known hold, sweep   | as release; may be poisoned | [`Ledger::remove`]               |
//! | release for a condition wait | as release                  | `remove_latest`, until empty     |
//! | reacquire after the wait     | as acquire                  | [`Ledger::restore`], in its place |
//!
//! Lock order: the resource's lock, or a task's when it decides whether held locks defer a kill; then
//! the ledger's. The ledger never calls out while it is locked: a sweep copies the entries to reclaim,
//! unlocks, and calls [`Resource::reclaim`] on each. So no deadlock is possible through it, and an
//! entry may disappear between the copy and the call: see 2.
//!
//! Relies on `fork` for the generation of the process, and on nothing else that may block.

#![allow(clippy::similar_names)] // a `held` resource, and its `hold`

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::atomics::Mutex;
use crate::cause::Cause;
use crate::fork;
use crate::stack::Stack;

/// Something that can be held: a lock, a permit.
pub(crate) trait Resource: Send + Sync {
    /// Its name, for the report of a kill.
    fn name(&self) -> Arc<str>;

    /// Release one hold of it on behalf of `holder`, which has ended as `termination` says.
    ///
    /// Takes the resource's own lock, removes the entry under it, and wakes the next waiter. `None`:
    /// the entry was gone, so nothing was done. `Some(true)`: the resource is poisoned now.
    fn reclaim(
        self: Arc<Self>,
        holder: &Arc<Ledger>,
        hold: Hold,
        termination: &Termination,
    ) -> Option<bool>;
}

/// Clean-up for a block whose end never ran: it ends the work that the block has started, say.
pub(crate) trait AbandonHook: Send + Sync {
    /// Called when an enclosing scope or the task has ended before the block's end ran, so that it never
    /// will. If the block has a scope, the nodes below that have been cancelled. On the block's thread, with
    /// nothing borrowed or locked; may block.
    fn on_abandoned(&self);
}

/// How a holder came to its end, as far as its resources are concerned.
#[derive(Debug, Clone)]
pub(crate) enum Termination {
    /// It returned, failed, or was cancelled, and its blocks unwound. The resource is consistent.
    Unwound,
    /// It was killed between two arbitrary instructions. The protected data may be half changed, but
    /// the holder has stopped running.
    Killed(Arc<KillInfo>),
    /// It was abandoned while it still runs, and may go on to use the data that the resource protects.
    Abandoned(Arc<KillInfo>),
}

/// Which task was killed, why and where; kept in the poison of the locks that it held.
#[derive(Debug)]
pub struct KillInfo {
    /// The task's name.
    pub task: Arc<str>,
    /// The cause of the kill.
    pub cause: Cause,
    /// Where it was when `Killed` was raised, as the host prints it; `None` if the host cannot tell.
    pub stack: Option<Stack>,
}

/// The code that normally releases a hold. A sweep chooses by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldKind {
    /// The end of a `with` block, which releases the latest hold. Reclaimed with the scope around the
    /// block, if the block's end did not run.
    Block,
    /// As [`HoldKind::Block`], but the block's end names this very hold and releases no other.
    Known,
    /// A call of `release`, perhaps in another function; reclaimed at the end of the task only.
    Task,
    /// The drop of a Rust guard, which reaches the data for as long as it lives. Exempt from sweeps;
    /// reclaimed only if the whole task is abandoned, and then the lock is never granted again.
    Guard,
}

/// Names one entry of a ledger: a copy of its key, which stays valid after the entry is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    /// Fixed when the hold is recorded.
    pub(crate) kind: HoldKind,
    /// Sequence number within one ledger; never used twice, kept when a hold is restored.
    seq: u64,
}

impl Hold {
    /// Its sequence number, to be compared with [`Ledger::next_seq`] taken at some earlier time.
    #[cfg(any(feature = "python", all(test, not(loom))))]
    pub(crate) fn seq(self) -> u64 {
        self.seq
    }
}

/// A hold and its resource. The entry's count keeps the resource alive while it is held.
struct Entry {
    held: Arc<dyn Resource>,
    hold: Hold,
}

/// The fields that the ledger's mutex protects.
#[derive(Default)]
struct Entries {
    /// Ascending by `hold.seq`, so that a hold is found by binary search.
    list: Vec<Entry>,
    /// The blocks that own work, ascending by their sequence numbers.
    blocks: Vec<(u64, Arc<dyn AbandonHook>)>,
    /// The sequence number of the next entry or block. Only ever raised, by `record` and `record_block`.
    next_seq: u64,
}

/// The holds of one task, or of one thread outside any task. Ledgers are compared by address, so
/// a lock compares the `Arc` of its holder.
pub(crate) struct Ledger {
    /// The name of the task, or of the thread if it has one, for reports. Never changes.
    owner: Option<Arc<str>>,
    /// See the protocol above; locked after the lock of a resource, never before.
    entries: Mutex<Entries>,
    /// The process in which its thread lives, see [`fork::generation`]. Written at creation, and in a
    /// forked child for the ledger of the one thread that survives. Relaxed: the child has no other
    /// thread at that time, and nothing is published through it.
    generation: AtomicU32,
}

/// The names of the resources that a sweep reclaimed, the latest acquired first.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Free again, or held by a waiter that it was handed to.
    pub(crate) released: Vec<Arc<str>>,
    /// Unavailable until repaired, or for good if the holder was abandoned.
    pub(crate) poisoned: Vec<Arc<str>>,
}

impl Ledger {
    /// An empty ledger of a task or thread of this process.
    pub(crate) fn of(owner: Option<Arc<str>>) -> Ledger {
        Ledger {
            owner,
            entries: Mutex::default(),
            generation: AtomicU32::new(fork::generation()),
        }
    }

    /// The name of its task or thread; `None` for a thread without one.
    pub(crate) fn owner(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()
    }

    /// True if its thread exists in a parent process only: a lock that it holds here is never
    /// released.
    pub(crate) fn is_lost_in_fork(&self) -> bool {
        self.generation.load(Ordering::Relaxed) != fork::generation()
    }

    /// In a forked child: its thread is the one that forked and lives on here.
    pub(crate) fn survive_fork(&self) {
        self.generation.store(fork::generation(), Ordering::Relaxed);
    }

    /// Add an entry. The caller holds the lock of `held`, under which it makes this ledger the holder.
    pub(crate) fn record(&self, held: Arc<dyn Resource>, kind: HoldKind) {
        let mut entries = self.entries.lock();
        let seq = entries.next_seq;
        entries.next_seq += 1;
        let hold = Hold { kind, seq };
        entries.list.push(Entry { held, hold });
    }

    /// Record a block that owns work. Returns its number, for [`Ledger::remove_block`].
    #[cfg(feature = "python")]
    pub(crate) fn record_block(&self, hook: Arc<dyn AbandonHook>) -> u64 {
        let mut entries = self.entries.lock();
        let seq = entries.next_seq;
        entries.next_seq += 1;
        entries.blocks.push((seq, hook));
        seq
    }

    /// The block's end runs. The returned count is dropped when no lock is held. `None`: its hook has run.
    #[cfg(feature = "python")]
    pub(crate) fn remove_block(&self, number: u64) -> Option<Arc<dyn AbandonHook>> {
        let blocks = &mut self.entries.lock().blocks;
        let at = blocks.binary_search_by_key(&number, |(seq, _)| *seq).ok()?;
        Some(blocks.remove(at).1)
    }

    /// Run the hooks of the blocks from sequence number `first` on, the latest first: the code around them
    /// has ended, and their ends have not run. On the thread of the ledger; may block.
    pub(crate) fn abandon_blocks(&self, first: u64) {
        let skipped = {
            let blocks = &mut self.entries.lock().blocks;
            let at = blocks.partition_point(|(seq, _)| *seq < first);
            blocks.split_off(at)
        };
        for (_, hook) in skipped.iter().rev() {
            hook.on_abandoned();
        }
    }

    /// Put back an entry that was removed for the time of a condition wait, in its old place, so that
    /// a sweep of the scope in which it was recorded still finds it. The caller holds the lock of
    /// `held`.
    pub(crate) fn restore(&self, held: Arc<dyn Resource>, hold: Hold) {
        let entries = &mut self.entries.lock().list;
        let at = entries.partition_point(|entry| entry.hold.seq < hold.seq);
        entries.insert(at, Entry { held, hold });
    }

    /// Remove the latest entry of the resource at this address. The entry's count of it is returned,
    /// since it may be the last one and must be dropped when no lock is held.
    pub(crate) fn remove_latest(&self, held: *const ()) -> Option<(Arc<dyn Resource>, Hold)> {
        let entries = &mut self.entries.lock().list;
        let at = entries
            .iter()
            .rposition(|entry| Arc::as_ptr(&entry.held).cast::<()>() == held)?;
        let entry = entries.remove(at);
        Some((entry.held, entry.hold))
    }

    /// Remove exactly this hold of the resource at this address; `None` if it is gone. The caller drops
    /// the returned count when no lock is held.
    pub(crate) fn remove(&self, held: *const (), hold: Hold) -> Option<Arc<dyn Resource>> {
        let entries = &mut self.entries.lock().list;
        let at = entries
            .binary_search_by_key(&hold.seq, |entry| entry.hold.seq)
            .ok()?;
        let same = Arc::as_ptr(&entries[at].held).cast::<()>() == held;
        same.then(|| entries.remove(at).held)
    }

    /// True while this very hold is recorded: neither released nor reclaimed.
    pub(crate) fn has(&self, hold: Hold) -> bool {
        let entries = &self.entries.lock().list;
        let seq = |entry: &Entry| entry.hold.seq;
        entries.binary_search_by_key(&hold.seq, seq).is_ok()
    }

    /// The latest hold of the resource at this address.
    pub(crate) fn latest(&self, held: *const ()) -> Option<Hold> {
        let entries = &self.entries.lock().list;
        let mut latest_first = entries.iter().rev();
        latest_first
            .find(|entry| Arc::as_ptr(&entry.held).cast::<()>() == held)
            .map(|entry| entry.hold)
    }

    /// True if an entry with sequence number `first` or a later one is recorded. Looks at the last
    /// entry alone, for the list is ascending.
    pub(crate) fn holds_since(&self, first: u64) -> bool {
        let entries = &self.entries.lock().list;
        entries.last().is_some_and(|entry| entry.hold.seq >= first)
    }

    /// How many entries there are: a lock that was taken twice counts twice.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().list.len()
    }

    /// The sequence number that the next entry will have. A scope stores it when it is entered: the
    /// entries from this number on are those made inside.
    pub(crate) fn next_seq(&self) -> u64 {
        self.entries.lock().next_seq
    }

    /// Reclaim every entry, the latest first (I20), at the end of a task. Guards are exempt, unless
    /// the task is abandoned: its thread may never drop them.
    pub(crate) fn sweep(self: &Arc<Self>, termination: &Termination) -> Swept {
        let abandoned = matches!(termination, Termination::Abandoned(_));
        self.reclaim_since(0, termination, |kind| abandoned || kind != HoldKind::Guard)
    }

    /// Reclaim the entries from sequence number `first` on, guards excepted: a block was killed, and
    /// with it the code that would have called `release`.
    #[cfg(any(feature = "python", test))]
    pub(crate) fn sweep_since(self: &Arc<Self>, first: u64, termination: &Termination) -> Swept {
        self.reclaim_since(first, termination, |kind| kind != HoldKind::Guard)
    }

    /// Reclaim the entries of blocks from sequence number `first` on: the scope around them has ended
    /// and their ends have not run. A hold of [`HoldKind::Task`] may outlive the scope.
    pub(crate) fn sweep_blocks(self: &Arc<Self>, first: u64, termination: &Termination) -> Swept {
        self.reclaim_since(first, termination, |kind| {
            matches!(kind, HoldKind::Block | HoldKind::Known)
        })
    }

    /// Reclaim the entries from `first` on whose kind is in `which`, the latest first, unlocked.
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
        // Each removes its own entry, under its own lock, if this ledger still has it.
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
