//! A lock that knows its holder.
//!
//! Guarantees:
//! 1. Changing hands and changing ledgers is one critical section, so that nothing is ever held
//!    and not recorded. A wait that ends with an error has not taken it (I11).
//! 2. After its holder was stopped hard it is poisoned before anyone else gets it (I21).
//! 3. If it is free and somebody waits for it, somebody is awake who will take it (I12): whoever
//!    releases it nudges the first in line, and another nudge is due only when that one has looked.
//! 4. Whoever has waited for [`HANDOVER_AFTER`] gets it at the next release: it is handed over.
//! 5. Its epoch rises whenever it comes to a new holder. A fenced lock outlives a holder that was
//!    given up, which by the epoch is told from those that come after it.
//!
//! A nudge and not a hand-over in the normal case, for a lock that is handed over waits, held by
//! a thread that has yet to wake up: where a lock is taken often, all who want it would then
//! queue up, and each turn cost a wake-up.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::atomics::Mutex;
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::ledger::{Hold, HoldKind, KillInfo, Ledger, Resource, Termination};
use crate::park::Ticket;
use crate::task::{Progress, Task};
use crate::wait::{self, Op, Waitable};
use crate::{fork, scope};

mod error;
mod guard;

pub use error::{LockError, ReleaseError};
#[cfg(any(feature = "python", all(test, loom)))]
pub(crate) use guard::Holding;
pub use guard::{Fenced, LockGuard};

/// How long a waiter may be overtaken.
#[cfg_attr(all(loom, test), allow(dead_code))]
const HANDOVER_AFTER: Duration = Duration::from_millis(1);

/// A mutual exclusion lock whose waits can be cancelled, and which a stopped task gives back.
///
/// May be released by another thread than the one that acquired it, unless it is
/// [reentrant](Lock::reentrant). Cloning gives another handle of the same lock.
#[derive(Clone)]
pub struct Lock {
    core: Arc<LockCore>,
}

struct LockCore {
    name: Arc<str>,
    on_kill: OnKill,
    /// Its holder may take it again.
    reentrant: bool,
    /// Others get it when its holder is given up.
    fenced: bool,
    undo: Option<Arc<dyn Undo>>,
    state: Mutex<LockState>,
}

/// Takes back what a holder has half done that was stopped in the middle.
pub(crate) trait Undo: Send + Sync {
    /// Nobody holds the lock now, and nobody gets it before this has returned. True: what it
    /// protects is as it was before the holder had it. Must not run code of the host.
    fn undo(&self) -> bool;

    /// Drop what [`Undo::undo`] has taken out; no lock is held.
    fn discard(&self);
}

#[derive(Default)]
struct LockState {
    holder: Option<Arc<Ledger>>,
    /// How often it has come to a new holder.
    epoch: u64,
    /// How often the holder has taken it.
    depth: usize,
    /// Holds of blocks that a sweep has taken back, and whose block's end has not come, and may
    /// never.
    orphans: usize,
    queue: VecDeque<LockRequest>,
    /// Somebody, in the process of this generation, was told that it is free, and has not looked.
    notified: Option<u32>,
    /// Set: nobody gets it until it is repaired.
    poison: Option<Poison>,
}

struct LockRequest {
    ticket: Ticket,
    ledger: Arc<Ledger>,
    acquisition: Acquisition,
    since: Time,
}

/// What is entered in the ledger of who gets it.
#[derive(Debug, Clone)]
enum Acquisition {
    New(Acquire),
    /// It was given up for a while.
    Again(Holds),
}

/// A holder's holds, the latest first.
pub(crate) type Holds = Vec<Hold>;

#[derive(Clone)]
enum Poison {
    /// The holder is dead; the data may be half changed.
    Killed(Arc<KillInfo>),
    /// The holder was given up and may still be using it.
    OwnerLost(Arc<KillInfo>),
}

/// What happens to a lock whose holder is stopped hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnKill {
    /// The next to acquire it gets an error until somebody repairs it.
    #[default]
    Poison,
    /// It is free again.
    Release,
}

/// For whom a lock is acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquire {
    /// A block: the scope or task around it takes it back if the block did not.
    Block,
    /// The task: held until somebody releases it, or the task ends.
    Task,
    /// A guard that gives access for as long as it lives.
    Guard,
    /// A block that knows its own hold of it: its end takes no other.
    Known,
    /// As [`Acquire::Known`], to set right what it protects: also if it is poisoned.
    Repair,
}

impl Lock {
    /// A free lock; the name is for reports.
    pub fn new(name: &str, on_kill: OnKill) -> Lock {
        Lock::with(name, on_kill, false)
    }

    /// A free lock that its holder may take again, and releases as often. Only the holder, which
    /// is a task or a thread outside any, may release it.
    pub fn reentrant(name: &str, on_kill: OnKill) -> Lock {
        Lock::with(name, on_kill, true)
    }

    fn with(name: &str, on_kill: OnKill, reentrant: bool) -> Lock {
        Lock {
            core: Arc::new(LockCore {
                name: name.into(),
                on_kill,
                reentrant,
                fenced: false,
                undo: None,
                state: Mutex::default(),
            }),
        }
    }

    /// A fenced lock like this one, which is free. When its holder is given up while it still runs,
    /// others can have the lock: those who use what it protects compare epochs, see
    /// [`LockGuard::epoch`]. Only its holder, or a guard, releases it.
    #[must_use]
    pub fn fenced(self) -> Lock {
        self.changed(|core| core.fenced = true)
    }

    /// One like this whose holders, if they are stopped in the middle, leave what it protects as it
    /// was.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn with_undo(self, undo: Arc<dyn Undo>) -> Lock {
        self.changed(|core| core.undo = Some(undo))
    }

    fn changed(&self, change: impl FnOnce(&mut LockCore)) -> Lock {
        let mut core = LockCore {
            name: self.core.name.clone(),
            state: Mutex::default(),
            undo: self.core.undo.clone(),
            ..*self.core
        };
        change(&mut core);
        Lock {
            core: Arc::new(core),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.core.name
    }

    /// Acquire it, waiting until `until` at most (then false). A checkpoint on entry, even if it
    /// is free.
    pub fn acquire(&self, acquire: Acquire, until: Time) -> Result<bool, LockError> {
        wait::perform(&mut self.acquire_op(acquire), until).map(|acquired| acquired.is_some())
    }

    /// Acquiring it, as one of several things to wait for.
    pub(crate) fn acquire_op(&self, acquire: Acquire) -> AcquireOp<'_> {
        AcquireOp::new(&self.core, Acquisition::New(acquire))
    }

    /// Acquire it if it is free; not a checkpoint, never blocks.
    pub fn try_acquire(&self, acquire: Acquire) -> Result<bool, LockError> {
        let taken = scope::with_ledger(|ledger| {
            let mut state = self.core.state.lock();
            self.core
                .take_if_free(&mut state, ledger, &Acquisition::New(acquire))
        })?;
        if taken {
            scope::hold_off_kill();
        }
        Ok(taken)
    }

    /// Give it to the next in line.
    pub fn release(&self) -> Result<(), ReleaseError> {
        self.core.release(false, None).map(|_| ())
    }

    /// Give it up in the middle of a kill: its holder, the calling task, unwinds because it was
    /// stopped hard, and what the lock protects may be half changed. True: it is poisoned now.
    pub(crate) fn release_killed(&self, kill: KillInfo) -> Result<bool, ReleaseError> {
        self.core
            .release(false, Some(&Termination::Killed(Arc::new(kill))))
    }

    /// Which entry of the ledger of the calling task, or thread, its latest hold is.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn hold_seq(&self) -> Option<u64> {
        let hold = scope::with_ledger(|mine| mine.latest(Arc::as_ptr(&self.core).cast()));
        hold.map(Hold::seq)
    }

    /// May its holder take it again?
    pub fn is_reentrant(&self) -> bool {
        self.core.reentrant
    }

    /// Does the calling task, or thread, hold it?
    pub fn is_mine(&self) -> bool {
        let ledger = scope::current_ledger();
        self.core.state.lock().is_held_by(&ledger)
    }

    /// How often the calling task, or thread, holds it.
    pub fn depth(&self) -> usize {
        let ledger = scope::current_ledger();
        let state = self.core.state.lock();
        if state.is_held_by(&ledger) {
            state.depth
        } else {
            0
        }
    }

    /// Give it up for a while, however often it is held; for [`Lock::reacquire`].
    pub(crate) fn release_all(&self) -> Result<Holds, ReleaseError> {
        let ledger = scope::current_ledger();
        let (wake, removed) = {
            let mut state = self.core.state.lock();
            // A plain lock may be used by one thread on behalf of another.
            let holder = state.holder.clone().ok_or(ReleaseError::NotHeld)?;
            if self.core.reentrant && !Arc::ptr_eq(&holder, &ledger) {
                return Err(ReleaseError::NotHolder);
            }
            let removed = self.core.remove_all_holds(&holder);
            (self.core.mark_free(&mut state), removed)
        };
        wake.iter().for_each(Ticket::wake);
        Ok(removed.iter().map(|(_, hold)| *hold).collect())
    }

    /// Take it back as it was before [`Lock::release_all`], however long that takes: only a signal
    /// handler of the host that raises ends the wait. `Err`: it is not held, and the block that
    /// took it need not release it.
    pub(crate) fn reacquire(&self, holds: Holds) -> Result<(), LockError> {
        let blocks = holds
            .iter()
            .filter(|hold| hold.kind == HoldKind::Block)
            .count();
        let taken =
            wait::perform_shielded(&mut AcquireOp::new(&self.core, Acquisition::Again(holds)));
        if taken.is_err() {
            self.core.state.lock().orphans += blocks;
        }
        taken
    }

    /// A block that took it ends: release it, unless that was done by a sweep.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn end_block(&self) -> Result<(), ReleaseError> {
        self.core.release(true, None).map(|_| ())
    }

    /// As [`Lock::end_block`], in the middle of a kill; see [`Lock::release_killed`].
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn end_block_killed(&self, kill: KillInfo) -> Result<bool, ReleaseError> {
        self.core
            .release(true, Some(&Termination::Killed(Arc::new(kill))))
    }

    /// Make it as new, for the only thread of a forked child.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn reinitialize(&self) {
        let (holder, removed) = {
            let mut state = self.core.state.lock();
            let holder = state.holder.take();
            let removed = holder
                .as_ref()
                .map(|holder| self.core.remove_all_holds(holder));
            *state = LockState {
                epoch: state.epoch,
                ..LockState::default()
            };
            (holder, removed)
        };
        drop((holder, removed));
    }

    /// How often its holder, whoever that is, holds it.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn count(&self) -> usize {
        self.core.state.lock().depth
    }

    /// Resource by anyone?
    pub fn is_locked(&self) -> bool {
        self.core.state.lock().holder.is_some()
    }

    /// Who holds it: the name of a task, or of a thread outside any, which may have none.
    pub fn owner(&self) -> Option<Option<Arc<str>>> {
        let state = self.core.state.lock();
        let holder = state.holder.as_ref()?;
        Some(holder.owner().cloned())
    }

    /// Poisoned, or lost with its holder?
    pub fn is_poisoned(&self) -> bool {
        self.core.state.lock().poison.is_some()
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.core.state.lock().queue.len()
    }

    /// What it protects is consistent again: called by a holder that acquired it to repair.
    pub fn mark_consistent(&self) {
        self.core.state.lock().poison = None;
    }
}

impl LockCore {
    fn take_if_free(
        self: &Arc<Self>,
        state: &mut LockState,
        ledger: &Arc<Ledger>,
        acquisition: &Acquisition,
    ) -> Result<bool, LockError> {
        let free = self.is_free_for(state, ledger, acquisition)?;
        if free {
            self.assign(state, ledger, acquisition);
        }
        Ok(free)
    }

    /// Free for this one?
    fn is_free_for(
        &self,
        state: &mut LockState,
        ledger: &Arc<Ledger>,
        acquisition: &Acquisition,
    ) -> Result<bool, LockError> {
        if let Some(holder) = &state.holder {
            if self.reentrant && Arc::ptr_eq(holder, ledger) {
                return Ok(true);
            }
            if holder.is_lost_in_fork() {
                self.recover_after_fork(state);
            }
        }
        state.check_poison(acquisition)?;
        Ok(state.holder.is_none())
    }

    /// Its holder was left behind in the parent process, and goes on there with a lock of its own.
    #[cold]
    fn recover_after_fork(&self, state: &mut LockState) {
        let Some(holder) = state.holder.take() else {
            return;
        };
        state.depth = 0;
        let kill = Arc::new(KillInfo {
            task: "a thread of the parent process".into(),
            cause: Cause {
                kind: CauseKind::Forked,
                reason: None,
                at: Time::now(),
                grace: None,
                by_thread: None,
            },
            stack: None,
        });
        let hold = holder.latest(std::ptr::from_ref(self).cast());
        self.poison_after_death(state, &kill, self.is_unrecoverable(hold));
    }

    /// Make `ledger` the holder: the one place where the lock and a ledger change together.
    fn assign(
        self: &Arc<Self>,
        state: &mut LockState,
        ledger: &Arc<Ledger>,
        acquisition: &Acquisition,
    ) {
        if state.holder.is_none() {
            state.holder = Some(ledger.clone());
            state.epoch += 1;
        }
        state.depth += match acquisition {
            Acquisition::New(acquire) => {
                let kind = match acquire {
                    Acquire::Block => HoldKind::Block,
                    Acquire::Known | Acquire::Repair => HoldKind::Known,
                    Acquire::Task => HoldKind::Task,
                    Acquire::Guard => HoldKind::Guard,
                };
                ledger.record(self.clone(), kind);
                1
            }
            Acquisition::Again(holds) => {
                for hold in holds {
                    ledger.restore(self.clone(), *hold);
                }
                holds.len()
            }
        };
    }

    /// Release it, or one hold of it, whoever the holder is; `block`: unless the block at whose end
    /// this is has been swept. Returns whether it is poisoned now.
    fn release(
        self: &Arc<Self>,
        block: bool,
        termination: Option<&Termination>,
    ) -> Result<bool, ReleaseError> {
        let released = scope::with_ledger(|mine| {
            let mut state = self.state.lock();
            let is_mine = state.is_held_by(mine);
            if block && state.orphans > 0 && !is_mine {
                state.orphans -= 1;
                return Err(ReleaseError::Swept);
            }
            // A plain lock may be released by one thread on behalf of another.
            if !is_mine && state.holder.is_some() && (self.reentrant || self.fenced) {
                return Err(ReleaseError::NotHolder);
            }
            // With the last hold its count goes, too.
            let holder = match state.depth {
                1 => state.holder.take(),
                _ => state.holder.clone(),
            };
            let holder = holder.ok_or(ReleaseError::NotHeld)?;
            let entry = holder.remove_latest(Arc::as_ptr(self).cast());
            let hold = entry.as_ref().map(|(_, hold)| *hold);
            let wake = self.drop_hold(&mut state, termination, hold);
            let poisoned = state.poison.is_some();
            drop(state);
            self.wake_and_discard(&wake, termination);
            drop(entry); // may be the last count of this lock
            Ok(poisoned)
        });
        released.map_err(|failure| self.or_fenced(failure))
    }

    /// The calling task may have been given up while it held the lock, which is another's now.
    #[cold]
    fn or_fenced(&self, failure: ReleaseError) -> ReleaseError {
        let abandoned = |task: Arc<Task>| task.progress() == Progress::Abandoned;
        if self.fenced && scope::current_task().is_some_and(abandoned) {
            ReleaseError::Fenced
        } else {
            failure
        }
    }

    /// Take this very hold from `holder`. `None` if it does not have it any more.
    fn release_hold(
        self: &Arc<Self>,
        holder: &Arc<Ledger>,
        hold: Hold,
        termination: Option<&Termination>,
    ) -> Option<bool> {
        let mut state = self.state.lock();
        if !state.is_held_by(holder) {
            return None;
        }
        let entry = holder.remove(Arc::as_ptr(self).cast(), hold)?;
        if termination.is_some() && hold.kind == HoldKind::Block {
            state.orphans += 1;
        }
        let wake = self.drop_hold(&mut state, termination, Some(hold));
        let poisoned = state.poison.is_some();
        drop(state);
        self.wake_and_discard(&wake, termination);
        drop(entry); // may be the last count of this lock but ours
        Some(poisoned)
    }

    /// The holder has one hold less, and ended so. Returns whom to wake.
    fn drop_hold(
        self: &Arc<Self>,
        state: &mut LockState,
        termination: Option<&Termination>,
        hold: Option<Hold>,
    ) -> Vec<Ticket> {
        match termination {
            Some(Termination::Killed(kill)) => self.poison_after_death(state, kill, false),
            Some(Termination::Abandoned(kill)) => {
                self.poison_after_death(state, kill, self.is_unrecoverable(hold));
            }
            Some(Termination::Unwound) | None => {}
        }
        state.depth -= 1;
        if state.depth == 0 {
            self.mark_free(state)
        } else {
            Vec::new()
        }
    }

    /// Strike out all its holds of it, the latest first; to be dropped unlocked.
    fn remove_all_holds(self: &Arc<Self>, holder: &Ledger) -> Vec<(Arc<dyn Resource>, Hold)> {
        let next = || holder.remove_latest(Arc::as_ptr(self).cast());
        std::iter::from_fn(next).collect()
    }

    /// After [`LockCore::drop_hold`], with nothing locked.
    fn wake_and_discard(&self, wake: &[Ticket], termination: Option<&Termination>) {
        wake.iter().for_each(Ticket::wake);
        if let (Some(_), Some(undo)) = (termination, &self.undo) {
            undo.discard();
        }
    }

    /// Does who has this hold, and runs on when it is given up, bar all others for good?
    fn is_unrecoverable(&self, hold: Option<Hold>) -> bool {
        // A guard of the language reaches the data for as long as it lives.
        !self.fenced || hold.is_none_or(|hold| hold.kind == HoldKind::Guard)
    }

    /// Its holder was stopped in the middle; `lost`: nobody gets it any more.
    #[cold]
    fn poison_after_death(&self, state: &mut LockState, kill: &Arc<KillInfo>, lost: bool) {
        if self.undo.as_ref().is_some_and(|undo| undo.undo()) {
            return;
        }
        if lost {
            state.poison = Some(Poison::OwnerLost(kill.clone()));
        } else if self.on_kill == OnKill::Poison {
            state.poison = Some(Poison::Killed(kill.clone()));
        }
    }

    /// Nobody holds it any more: tell whom it concerns. Returns whom to wake.
    fn mark_free(self: &Arc<Self>, state: &mut LockState) -> Vec<Ticket> {
        state.holder = None;
        state.depth = 0;
        let mut wake = Vec::new();
        if state.poison.is_some() {
            // Bad news is for all, and each looks for himself.
            let queue = std::mem::take(&mut state.queue);
            wake.extend(queue.into_iter().map(|request| request.ticket));
            wake.retain(Ticket::grant);
        } else if !state.queue.is_empty() && !state.is_notified() {
            let first = std::iter::from_fn(|| state.queue.pop_front());
            if let Some(request) = first.into_iter().find(|request| request.ticket.grant()) {
                if is_overdue(request.since) {
                    self.assign(state, &request.ledger, &request.acquisition);
                } else {
                    state.notified = Some(fork::generation());
                }
                wake.push(request.ticket);
            }
        }
        wake
    }
}

#[cfg(not(all(loom, test)))]
fn is_overdue(since: Time) -> bool {
    since + HANDOVER_AFTER <= Time::now()
}

/// A model has no clock: it says whether its threads are patient.
#[cfg(all(loom, test))]
fn is_overdue(_since: Time) -> bool {
    crate::models::overdue()
}

impl LockState {
    fn is_held_by(&self, ledger: &Arc<Ledger>) -> bool {
        let same = |holder| Arc::ptr_eq(holder, ledger);
        self.holder.as_ref().is_some_and(same)
    }

    fn is_notified(&self) -> bool {
        self.notified == Some(fork::generation())
    }

    fn check_poison(&self, acquisition: &Acquisition) -> Result<(), LockError> {
        match (&self.poison, acquisition) {
            (None, _) | (Some(Poison::Killed(_)), Acquisition::New(Acquire::Repair)) => Ok(()),
            (Some(Poison::OwnerLost(kill)), _) => Err(LockError::OwnerLost(kill.clone())),
            (Some(Poison::Killed(kill)), _) => Err(LockError::Poisoned(kill.clone())),
        }
    }
}

impl Resource for LockCore {
    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn reclaim(
        self: Arc<Self>,
        holder: &Arc<Ledger>,
        hold: Hold,
        termination: &Termination,
    ) -> Option<bool> {
        self.release_hold(holder, hold, Some(termination))
    }
}

/// One call of [`Lock::acquire`].
pub(crate) struct AcquireOp<'a> {
    core: &'a Arc<LockCore>,
    ledger: Arc<Ledger>,
    acquisition: Acquisition,
    /// When it got in line first.
    since: Option<Time>,
}

impl<'a> AcquireOp<'a> {
    fn new(core: &'a Arc<LockCore>, acquisition: Acquisition) -> AcquireOp<'a> {
        AcquireOp {
            core,
            ledger: scope::current_ledger(),
            acquisition,
            since: None,
        }
    }
}

impl Waitable for AcquireOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.core.state.lock();
        match self
            .core
            .is_free_for(&mut state, &self.ledger, &self.acquisition)
        {
            Ok(false) => {
                let again = self.since.is_some();
                let request = LockRequest {
                    ticket,
                    ledger: self.ledger.clone(),
                    acquisition: self.acquisition.clone(),
                    since: *self.since.get_or_insert_with(Time::now),
                };
                if again {
                    state.queue.push_front(request);
                } else {
                    state.queue.push_back(request);
                }
            }
            Ok(true) => {
                if ticket.grant() {
                    self.core
                        .assign(&mut state, &self.ledger, &self.acquisition);
                }
            }
            Err(_) => _ = ticket.grant(), // to be told
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let queue = &mut self.core.state.lock().queue;
        queue.retain(|request| request.ticket != *ticket);
        false
    }
}

impl Op for AcquireOp<'_> {
    type Output = ();
    type Error = LockError;

    fn attempt(&mut self) -> Result<Option<()>, LockError> {
        let mut state = self.core.state.lock();
        let taken = self
            .core
            .take_if_free(&mut state, &self.ledger, &self.acquisition)?;
        Ok(taken.then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, LockError> {
        let mut state = self.core.state.lock();
        // Since the grant nobody but the granter can have made this thread the holder.
        if state.is_held_by(&self.ledger) {
            return Ok(Some(()));
        }
        state.notified = None;
        let taken = self
            .core
            .take_if_free(&mut state, &self.ledger, &self.acquisition)?;
        Ok(taken.then_some(()))
    }
}

impl Default for Lock {
    fn default() -> Self {
        Lock::new("lock", OnKill::default())
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("name", &self.core.name)
            .field("locked", &self.is_locked())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::testing;

    #[test]
    fn who_has_waited_for_longer_than_its_patience_is_handed_it_though_the_holder_wants_it_again() {
        let lock = Lock::default();
        assert!(lock.try_acquire(Acquire::Task).unwrap());
        std::thread::scope(|threads| {
            let waiter = threads.spawn(|| {
                lock.acquire(Acquire::Task, Time::NEVER).unwrap();
                scope::current_ledger().len()
            });
            while lock.core.state.lock().queue.is_empty() {
                std::thread::yield_now();
            }
            let _days_later = testing::freeze();
            lock.release().unwrap();
            assert!(
                !lock.try_acquire(Acquire::Task).unwrap(),
                "it was never free"
            );
            assert_eq!(waiter.join().unwrap(), 1);
        });
        lock.release().unwrap();
    }
}
