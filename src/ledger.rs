//! The ledger: what a task holds, so that it can be given back.
//!
//! A lock enters itself in the same critical section in which it changes hands, so that there is
//! no instant at which something is held and not recorded. Every thread has a ledger; a task has
//! its own, swept at the task's boundary.
//!
//! Lock order: a lock's own state, then the ledger. The ledger never calls out while it is locked.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::cause::Cause;

/// Something that can be held.
pub(crate) trait Held: Send + Sync {
    /// Its name, for reports.
    fn name(&self) -> Arc<str>;

    /// Take it from `holder`, which is done with it in the given way. `None` if `holder` does not
    /// hold it any more. True: it is poisoned now.
    fn take_back(self: Arc<Self>, holder: &Arc<Ledger>, end: &End) -> Option<bool>;
}

/// How a holder came to its end, as far as what it holds is concerned.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// It ran to an end: returned, failed, or was cancelled and unwound.
    Unwound,
    /// It was stopped hard, in the middle of whatever it did.
    Killed(Arc<Death>),
    /// It was given up while it still runs, and may go on to use what it holds.
    Abandoned(Arc<Death>),
}

/// Who died how; kept with what it held.
#[derive(Debug)]
pub struct Death {
    /// The task's name.
    pub task: Arc<str>,
    /// Why it was killed.
    pub cause: Cause,
    /// Where it was, in the host's words.
    pub stack: Option<Arc<str>>,
}

/// Who gives it back in the normal course of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// A `with` block: the scope around takes it back if the block did not.
    Block,
    /// Somebody's call, or the end of the task.
    Task,
    /// A guard of the language, which gives access for as long as it lives: no sweep takes it,
    /// unless the whole task is given up, and then nobody else gets it.
    Guard,
}

struct Entry {
    held: Arc<dyn Held>,
    keeper: Keeper,
}

/// What one task, or one thread outside any task, holds.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: Mutex<Vec<Entry>>,
}

/// What a sweep found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) released: Vec<Arc<str>>,
    pub(crate) poisoned: Vec<Arc<str>>,
}

impl Ledger {
    pub(crate) fn record(&self, held: Arc<dyn Held>, keeper: Keeper) {
        self.entries.lock().push(Entry { held, keeper });
    }

    /// Forget one entry, the latest of this thing. The entry is given out so that its last
    /// count is dropped unlocked.
    pub(crate) fn strike_out(&self, held: *const ()) -> Option<Arc<dyn Held>> {
        let mut entries = self.entries.lock();
        let at = entries.iter().rposition(|entry| Arc::as_ptr(&entry.held).cast::<()>() == held)?;
        Some(entries.remove(at).held)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Take back everything, the latest first (I20).
    pub(crate) fn sweep(self: &Arc<Self>, end: &End) -> Swept {
        let abandoned = matches!(end, End::Abandoned(_));
        self.take_back(0, end, |keeper| abandoned || keeper != Keeper::Guard)
    }

    /// Take back what blocks took after the first `keep` entries and did not give back.
    pub(crate) fn sweep_blocks(self: &Arc<Self>, keep: usize, end: &End) -> Swept {
        self.take_back(keep, end, |keeper| keeper == Keeper::Block)
    }

    fn take_back(self: &Arc<Self>, keep: usize, end: &End, which: impl Fn(Keeper) -> bool) -> Swept {
        let late: Vec<Arc<dyn Held>> = {
            let entries = self.entries.lock();
            let late = entries.iter().skip(keep).rev();
            late.filter(|entry| which(entry.keeper)).map(|entry| entry.held.clone()).collect()
        };
        // Each strikes itself out, under its own lock, if it is still this ledger's.
        let mut swept = Swept::default();
        for held in late {
            let name = held.name();
            match held.take_back(self, end) {
                Some(true) => swept.poisoned.push(name),
                Some(false) => swept.released.push(name),
                None => {}
            }
        }
        swept
    }
}
