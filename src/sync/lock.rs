//! A lock that knows its holder.
//!
//! Guarantees:
//! 1. Changing hands and changing ledgers is one critical section, so the lock is never held without
//!    being recorded. A wait that ends with an error has not acquired it (I11).
//! 2. After its holder was killed it is poisoned before any other thread can acquire it (I21).
//! 3. If it is free and has waiters, one of them is awake and will look at it (I12): a release
//!    notifies the first waiter, and the next notification is due only when that one has looked.
//! 4. A waiter that has waited for [`HANDOVER_AFTER`] gets the lock at the next release: it is handed
//!    over, so that overtaking is bounded.
//! 5. The epoch rises with every new holder. A fenced lock survives the abandonment of its holder; the
//!    epoch distinguishes that holder from later ones.
//!
//! Notification, not hand-over, in the normal case: a lock that is handed over is held by a thread
//! that has yet to wake up. Where a lock is taken often, every thread would then queue, and each
//! turn would cost a wake-up.
//!
//! State. All of [`LockState`] belongs to the mutex `state`; any thread that acquires, releases or
//! sweeps writes it. `poison` is independent of `holder`: a repairing holder has both.
//!
//! | from                    | event                                        | to                       |
//! |-------------------------|----------------------------------------------|--------------------------|
//! | free                    | acquire                                      | held, epoch + 1          |
//! | held                    | acquire by the holder, reentrant             | held, depth + 1          |
//! | held, depth > 1         | release                                      | held, depth - 1          |
//! | held                    | release, no waiter, or one notified          | free                     |
//! | held                    | release, first waiter waits a short time     | free, notified           |
//! | held                    | release, first waiter is overdue             | held by it, epoch + 1    |
//! | free, notified          | the notified waiter looks                    | held by it               |
//! | held by another         | the notified waiter looks (it was overtaken) | it queues again, in front |
//! | held                    | holder unwound without releasing: sweep      | as release               |
//! | held                    | holder killed; undone, or `OnKill::Release`  | as release               |
//! | held                    | holder killed, `OnKill::Poison`              | poisoned                 |
//! | held                    | holder abandoned                             | unrecoverable            |
//! | held, fenced            | holder abandoned                             | as if it had been killed |
//! | held by a parent's thread | first look in a forked child               | as if it was abandoned   |
//! | poisoned                | acquire with [`Acquire::Repair`]             | held, still poisoned     |
//! | held, still poisoned    | `mark_consistent`                            | held                     |
//! | held, still poisoned    | release                                      | poisoned                 |
//!
//! "Poisoned" is no holder and [`Poison::Killed`]; "unrecoverable" is [`Poison::OwnerLost`], which
//! no transition leaves but `Lock::reinitialize`. Entering either wakes every waiter, so that each
//! returns the error.
//!
//! A contended acquisition goes like this: [`AcquireOp::attempt`] finds the lock held; `enqueue` looks
//! again and queues a [`LockRequest`]; the thread parks. A release pops the request and grants its
//! ticket, either with the lock or as a notification. The thread wakes and `collect` finds itself the
//! holder, or tries once more; if it was overtaken, `enqueue` puts its request in front, with its first
//! arrival time, so it becomes overdue in the end.
//!
//! Relies on `wait`: after a ticket was granted, `collect` is called in any case, also if the thread was
//! cancelled meanwhile. Else `notified` would stay set, and no later release would wake a waiter.
//!
//! Lock order: `state`, then a ledger's entries, then the waiter's word (an atomic). Tickets are
//! granted under `state` and woken after it is unlocked; `undo` runs under it, its `discard` and the
//! drop of a ledger's count do not, since they may be the last reference to data of the host. Nothing
//! that runs under `state` blocks or takes the state of another lock, so no cycle can form.
//!
//! This file decides; `guard` is the handle of one hold, `error` the reasons of a refusal.
//!
//! Checked by the models in `models/lock.rs`, which run with waiters that are overdue and with waiters
//! that are not, and by `tests/rust/lock.rs`. `tests/seeded_bugs.py lock` plants bugs in the
//! transitions and sees the models fail.

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

/// How long a waiter may be overtaken before a release hands the lock over to it. Long enough that a
/// lock under normal load is never handed over, and short enough that no user notices it.
#[cfg_attr(all(loom, test), allow(dead_code))]
const HANDOVER_AFTER: Duration = Duration::from_millis(1);

/// A mutual exclusion lock whose waits can be cancelled, and which is released when the task that
/// holds it ends, however it ends.
///
/// May be released by another thread than the one that acquired it, unless it is
/// [reentrant](Lock::reentrant). Cloning gives another handle of the same lock.
///
/// ```
/// use desist::Time;
/// use desist::sync::{Acquire, Lock, OnKill};
/// use std::time::Duration;
///
/// let lock = Lock::new("accounts", OnKill::Poison);
/// let guard = lock.guard(Time::NEVER)?.expect("no time limit");
/// assert!(lock.is_mine());
///
/// // Another thread waits for it, but not for long.
/// let theirs = lock.clone();
/// let soon = Time::after(Duration::from_millis(5));
/// let waiter = std::thread::spawn(move || theirs.acquire(Acquire::Task, soon));
/// assert!(!waiter.join().unwrap()?, "timed out, and not acquired");
///
/// drop(guard);
/// assert!(!lock.is_locked());
/// # Ok::<(), desist::sync::LockError>(())
/// ```
#[derive(Clone)]
pub struct Lock {
    /// Shared with all clones, and with each ledger in which a hold of it is recorded.
    core: Arc<LockCore>,
}

/// The lock itself. All fields but `state` are fixed when it is made.
struct LockCore {
    /// For reports and messages; need not be unique.
    name: Arc<str>,
    /// The lock's state after its holder was killed, if no rollback has restored its data.
    on_kill: OnKill,
    /// The holder may acquire it again, and only the holder may release it.
    reentrant: bool,
    /// It stays usable when its holder is abandoned; only the holder may release it.
    fenced: bool,
    /// Rolls back a killed holder's half-done changes, if that is possible.
    undo: Option<Arc<dyn Undo>>,
    /// See the table above.
    state: Mutex<LockState>,
}

/// Rolls back a partial update after the holder was killed.
pub(crate) trait Undo: Send + Sync {
    /// Called with the lock's state locked, so no thread can acquire it before this returns. True:
    /// the protected data is as it was before the holder acquired the lock, so there is nothing to
    /// poison. Must not run code of the host, which may take any lock.
    fn undo(&self) -> bool;

    /// Drop the values that [`Undo::undo`] has replaced. Called with no lock held, for it may run a
    /// destructor of the host.
    fn discard(&self);
}

/// The fields that the lock's mutex protects.
#[derive(Default)]
struct LockState {
    /// The ledger of the task or thread that holds the lock, with which it has `depth` entries.
    /// `None` exactly when `depth` is 0.
    holder: Option<Arc<Ledger>>,
    /// How many holders there have been; raised when `holder` is set, and never lowered.
    epoch: u64,
    /// How often the holder has acquired it: at most 1, unless it is reentrant.
    depth: usize,
    /// Holds of [`HoldKind::Block`] that a sweep has reclaimed and whose block has not ended yet; it
    /// may never end. The block's end finds the count and leaves the lock alone.
    orphans: usize,
    /// The waiters, in the order of their arrival; one that was overtaken goes to the front.
    queue: VecDeque<LockRequest>,
    /// Set by a release that notified a waiter, cleared when the notified waiter tries again. The value
    /// is the fork generation: a thread of the parent process never tries, so another value than
    /// this process's counts as `None`.
    notified: Option<u32>,
    /// Why the lock is unavailable. Written before the holder is cleared, in one critical section.
    poison: Option<Poison>,
}

/// A place in the lock's queue. Written by its waiter, which also removes it when the wait ends
/// otherwise; a release pops it.
struct LockRequest {
    /// Granted as a notification to try again, or with the lock itself.
    ticket: Ticket,
    /// Becomes the holder if the lock is handed over.
    ledger: Arc<Ledger>,
    /// The acquisition that is recorded if the lock is handed over.
    acquisition: Acquisition,
    /// When the waiter queued for the first time, however often it was overtaken since.
    since: Time,
}

/// The new holder's acquisition, as it is entered in the holder's ledger.
#[derive(Debug, Clone)]
enum Acquisition {
    /// One new hold.
    New(Acquire),
    /// The holds that [`Lock::release_all`] removed, in their old places.
    Again(Holds),
}

/// A holder's holds, the latest first.
pub(crate) type Holds = Vec<Hold>;

/// Why a lock that has no holder cannot be acquired.
#[derive(Clone)]
enum Poison {
    /// The holder was killed inside; the data may be half changed. [`Acquire::Repair`] is admitted.
    Killed(Arc<KillInfo>),
    /// The holder was abandoned and may still be using the data. No thread is ever admitted.
    OwnerLost(Arc<KillInfo>),
}

/// The state of a lock after its holder was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnKill {
    /// Acquiring it is an error until it is repaired, see [`Acquire::Repair`].
    #[default]
    Poison,
    /// It is free again.
    Release,
}

/// The purpose of an acquisition: it decides which code releases the lock if the holder does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquire {
    /// A block: reclaimed with the scope or task around it, if the block's end did not run.
    Block,
    /// The task: held until a call of [`Lock::release`], or the end of the task.
    Task,
    /// A Rust guard that gives access for as long as it lives; reclaimed by no sweep.
    Guard,
    /// A block that names its own hold: its end releases this hold and no other.
    Known,
    /// As [`Acquire::Known`], and also admitted while the lock is poisoned, to repair the data.
    Repair,
}

impl Lock {
    /// A free lock. `name` appears in reports and error messages.
    pub fn new(name: &str, on_kill: OnKill) -> Lock {
        Lock::with(name, on_kill, false)
    }

    /// A free lock that its holder may acquire again, and must release as often. Only the holder,
    /// which is a task or a thread outside any, may release it.
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

    /// A fenced lock with the same properties; free, and unrelated to this one.
    ///
    /// When its holder is abandoned while it still runs, other tasks can acquire the lock: what it
    /// protects compares epochs to refuse the stale holder, see [`LockGuard::epoch`]. Only its
    /// holder, or a guard, releases it.
    #[must_use]
    pub fn fenced(self) -> Lock {
        self.changed(|core| core.fenced = true)
    }

    /// A lock with the same properties that rolls back the partial update of a killed holder.
    #[cfg(any(feature = "python", all(test, loom)))]
    pub(crate) fn with_undo(self, undo: Arc<dyn Undo>) -> Lock {
        self.changed(|core| core.undo = Some(undo))
    }

    /// A new, free lock with this one's properties, after `change`.
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

    /// The name it was made with.
    pub fn name(&self) -> &Arc<str> {
        &self.core.name
    }

    /// Acquire it, waiting until `until` at most; then false.
    ///
    /// # Blocking
    /// Blocks while another task or thread holds it, and the holder itself unless it is reentrant.
    /// Waiters get it in the order of their arrival, but a running thread may overtake each for up to
    /// a millisecond.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if the lock is free. A cancelled or killed wait has not acquired
    /// it; if the lock was granted first, the call succeeds and the next checkpoint raises.
    ///
    /// # Errors
    /// [`LockError`], and then the lock is not held: the thread is to stop, or the last holder was
    /// killed or abandoned inside.
    pub fn acquire(&self, acquire: Acquire, until: Time) -> Result<bool, LockError> {
        wait::perform(&mut self.acquire_op(acquire), until).map(|acquired| acquired.is_some())
    }

    /// Acquiring it, as an operation for [`wait::perform`] or as one of several to wait for. It is
    /// recorded for the task or thread that calls this.
    pub(crate) fn acquire_op(&self, acquire: Acquire) -> AcquireOp<'_> {
        AcquireOp::new(&self.core, Acquisition::New(acquire))
    }

    /// Acquire it if it is free; false if another task or thread holds it.
    ///
    /// # Blocking
    /// Never blocks, and is no checkpoint. May overtake waiters.
    ///
    /// # Errors
    /// [`LockError::Poisoned`] or [`LockError::OwnerLost`], as [`Lock::acquire`].
    pub fn try_acquire(&self, acquire: Acquire) -> Result<bool, LockError> {
        let taken = scope::with_ledger(|ledger| {
            let mut state = self.core.state.lock();
            self.core
                .take_if_free(&mut state, ledger, &Acquisition::New(acquire))
        })?;
        if taken {
            // A kill posted just before would be raised inside: from now on the held lock defers it.
            scope::defer_pending_kill();
        }
        Ok(taken)
    }

    /// Release one hold of it: the latest, if it is reentrant. The next waiter is notified, or gets it
    /// at once if it has waited for long.
    ///
    /// # Blocking
    /// Never blocks, and is no checkpoint: clean-up code may call it.
    ///
    /// # Errors
    /// [`ReleaseError`], and then nothing has changed: it is not held, or the calling thread is not
    /// the holder of a lock that only its holder may release.
    pub fn release(&self) -> Result<(), ReleaseError> {
        self.core.release(false, None).map(|_| ())
    }

    /// Release it in the middle of a kill: the calling task, which holds it, unwinds because it was
    /// killed, and what the lock protects may be half changed. True: it is poisoned now.
    #[cfg(feature = "python")]
    pub(crate) fn release_killed(&self, kill: KillInfo) -> Result<bool, ReleaseError> {
        self.core
            .release(false, Some(&Termination::Killed(Arc::new(kill))))
    }

    /// The sequence number of the calling task's, or thread's, latest hold of it; `None` if it has
    /// none. It tells whether the hold was taken inside a block that is being killed.
    #[cfg(any(feature = "python", all(test, not(loom))))]
    pub(crate) fn hold_seq(&self) -> Option<u64> {
        let hold = scope::with_ledger(|mine| mine.latest(Arc::as_ptr(&self.core).cast()));
        hold.map(Hold::seq)
    }

    /// True if its holder may acquire it again.
    pub fn is_reentrant(&self) -> bool {
        self.core.reentrant
    }

    /// True if the calling task, or thread outside any, holds it.
    pub fn is_mine(&self) -> bool {
        let ledger = scope::current_ledger();
        self.core.state.lock().is_held_by(&ledger)
    }

    /// How often the calling task, or thread outside any, has acquired it and not released it.
    pub fn depth(&self) -> usize {
        let ledger = scope::current_ledger();
        let state = self.core.state.lock();
        if state.is_held_by(&ledger) {
            state.depth
        } else {
            0
        }
    }

    /// Release all holds at once, for the time of a condition wait; [`Lock::reacquire`] takes the
    /// result.
    pub(crate) fn release_all(&self) -> Result<Holds, ReleaseError> {
        let ledger = scope::current_ledger();
        let (wake, removed) = {
            let mut state = self.core.state.lock();
            // Whatever thread holds a plain lock: it may be used by one thread on behalf of another.
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

    /// Acquire it again as it was before [`Lock::release_all`], however long that takes.
    ///
    /// # Cancellation
    /// Neither a cancellation nor a kill ends the wait: a condition wait returns with the lock held.
    /// Only a signal handler of the host that raises does.
    ///
    /// # Errors
    /// Then it is not held; the ends of the blocks that had acquired it find that (`orphans`) and
    /// leave the lock alone.
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

    /// The end of a block that acquired it: release it, unless a sweep has reclaimed it already.
    #[cfg(feature = "python")]
    pub(crate) fn end_block(&self) -> Result<(), ReleaseError> {
        self.core.release(true, None).map(|_| ())
    }

    /// As [`Lock::end_block`], in the middle of a kill; see `Lock::release_killed`.
    #[cfg(feature = "python")]
    pub(crate) fn end_block_killed(&self, kill: KillInfo) -> Result<bool, ReleaseError> {
        self.core
            .release(true, Some(&Termination::Killed(Arc::new(kill))))
    }

    /// Make it free and unpoisoned, for the only thread of a forked child. The epoch stays, so that
    /// the data's own store still recognises stale holders.
    #[cfg(feature = "python")]
    pub(crate) fn reinitialize(&self) {
        // The state is replaced whole: the waiters in it are threads of the parent process.
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

    /// How often its holder has acquired it, in whichever thread that is; 0 if it is free.
    #[cfg(feature = "python")]
    pub(crate) fn count(&self) -> usize {
        self.core.state.lock().depth
    }

    /// True if any task or thread holds it. Stale as soon as it is returned.
    pub fn is_locked(&self) -> bool {
        self.core.state.lock().holder.is_some()
    }

    /// The name of the task, or of the thread outside any, that holds it. `None`: it is free;
    /// `Some(None)`: the holding thread has no name.
    pub fn owner(&self) -> Option<Option<Arc<str>>> {
        let state = self.core.state.lock();
        let holder = state.holder.as_ref()?;
        Some(holder.owner().cloned())
    }

    /// True if acquiring it is an error: its holder was killed inside, or abandoned.
    pub fn is_poisoned(&self) -> bool {
        self.core.state.lock().poison.is_some()
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.core.state.lock().queue.len()
    }

    /// The data that it protects is consistent again. Called by a holder that acquired it with
    /// [`Acquire::Repair`], before it releases.
    pub fn mark_consistent(&self) {
        self.core.state.lock().poison = None;
    }
}

impl LockCore {
    /// Make `ledger` the holder, if the lock is free for it.
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

    /// True if `ledger` may become the holder, or is and may acquire it again. Also where a holder
    /// that a fork left in the parent process is discovered, which changes the state.
    fn is_free_for(
        &self,
        state: &mut LockState,
        ledger: &Arc<Ledger>,
        acquisition: &Acquisition,
    ) -> Result<bool, LockError> {
        if let Some(holder) = &state.holder {
            // Before the poison: a killed holder that unwinds may still enter and leave inner blocks.
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

    /// The holder is a thread of the parent process, which goes on there with its own copy of the
    /// lock. In this process the data may be half changed and no thread will ever release it: treat
    /// the holder as abandoned.
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

    /// Make `ledger` the holder, or the holder again: the one place where the lock and a ledger change
    /// together. Called with `state` locked, by the acquiring thread or by the one that hands over.
    fn assign(
        self: &Arc<Self>,
        state: &mut LockState,
        ledger: &Arc<Ledger>,
        acquisition: &Acquisition,
    ) {
        // A reentrant acquisition keeps its epoch: it is the same holder.
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

    /// Release the latest hold of the holder. `block`: this is the end of a block, whose hold a sweep
    /// may have reclaimed. `termination`: how the holder ended, if this is no normal release. Returns
    /// whether the lock is poisoned now.
    fn release(
        self: &Arc<Self>,
        block: bool,
        termination: Option<&Termination>,
    ) -> Result<bool, ReleaseError> {
        let released = scope::with_ledger(|mine| {
            let mut state = self.state.lock();
            let is_mine = state.is_held_by(mine);
            // A sweep has reclaimed some block's hold. If the lock is this thread's now, it acquired
            // it again inside that block, and this end belongs to the later hold.
            if block && state.orphans > 0 && !is_mine {
                state.orphans -= 1;
                return Err(ReleaseError::Swept);
            }
            // A plain lock may be released by one thread on behalf of another.
            // Not so where the identity of the holder matters, which is checked here and nowhere else.
            if !is_mine && state.holder.is_some() && (self.reentrant || self.fenced) {
                return Err(ReleaseError::NotHolder);
            }
            // The last hold takes the holder's count out of the state, which spares an atomic write.
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

    /// `failure`, or [`ReleaseError::Fenced`] if its reason is that the calling task was abandoned
    /// while it held the lock, which another task has acquired since.
    #[cold]
    fn or_fenced(&self, failure: ReleaseError) -> ReleaseError {
        let abandoned = |task: Arc<Task>| task.progress() == Progress::Abandoned;
        if self.fenced && scope::current_task().is_some_and(abandoned) {
            ReleaseError::Fenced
        } else {
            failure
        }
    }

    /// Release exactly this hold of `holder`; `None` if it was released or reclaimed before. With a
    /// `termination` this is a sweep, and a block that took the hold is told so by `orphans`.
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

    /// Lower the depth by one, poison the lock first if the holder's `termination` asks for it (I21),
    /// and mark it free if this was the last hold. Returns the waiters to wake.
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
        // Poisoned while it is still held, so that `mark_free` wakes all waiters and hands over to none.
        state.depth -= 1;
        if state.depth == 0 {
            self.mark_free(state)
        } else {
            Vec::new()
        }
    }

    /// Remove all holds of it from `holder`'s ledger, the latest first. The caller drops the counts
    /// when no lock is held.
    fn remove_all_holds(self: &Arc<Self>, holder: &Ledger) -> Vec<(Arc<dyn Resource>, Hold)> {
        let next = || holder.remove_latest(Arc::as_ptr(self).cast());
        std::iter::from_fn(next).collect()
    }

    /// The part of a release that follows [`LockCore::drop_hold`] and must run unlocked: waking is a
    /// system call, and `discard` may run destructors of the host.
    fn wake_and_discard(&self, wake: &[Ticket], termination: Option<&Termination>) {
        wake.iter().for_each(Ticket::wake);
        if let (Some(_), Some(undo)) = (termination, &self.undo) {
            undo.discard();
        }
    }

    /// If the holder is abandoned while it still runs, must the lock stay unavailable forever? Yes,
    /// unless the lock is fenced and the stale holder is kept from the data by its epoch.
    fn is_unrecoverable(&self, hold: Option<Hold>) -> bool {
        // A Rust guard reaches the data without looking at the epoch, for as long as it lives.
        !self.fenced || hold.is_none_or(|hold| hold.kind == HoldKind::Guard)
    }

    /// The holder was killed, or abandoned (`lost`: and may still use the data). Roll the data back if
    /// possible, else poison the lock. Called with `state` locked, before the holder is cleared.
    #[cold]
    fn poison_after_death(&self, state: &mut LockState, kill: &Arc<KillInfo>, lost: bool) {
        // Also if the holder was abandoned: data with an undo is reached through a hold that is checked
        // (`Holding::while_held`), which refuses the stale holder.
        if self.undo.as_ref().is_some_and(|undo| undo.undo()) {
            return;
        }
        if lost {
            state.poison = Some(Poison::OwnerLost(kill.clone()));
        } else if self.on_kill == OnKill::Poison {
            state.poison = Some(Poison::Killed(kill.clone()));
        }
    }

    /// Mark the lock free, or hand it over, and return the waiters to wake: all of them if it is
    /// poisoned, none if one is notified already, else the first whose ticket accepts the grant.
    fn mark_free(self: &Arc<Self>, state: &mut LockState) -> Vec<Ticket> {
        state.holder = None;
        state.depth = 0;
        let mut wake = Vec::new();
        if state.poison.is_some() {
            // Poisoned: wake every waiter, so that each returns the error.
            let queue = std::mem::take(&mut state.queue);
            wake.extend(queue.into_iter().map(|request| request.ticket));
            wake.retain(Ticket::grant);
        } else if !state.queue.is_empty() && !state.is_notified() {
            let first = std::iter::from_fn(|| state.queue.pop_front());
            // A ticket refuses the grant if its waiter was cancelled or timed out: ask the next.
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

/// True if a waiter that queued at `since` is to be handed the lock.
#[cfg(not(all(loom, test)))]
fn is_overdue(since: Time) -> bool {
    since + HANDOVER_AFTER <= Time::now()
}

/// A model has no clock: it says for all its waiters whether they are overdue.
#[cfg(all(loom, test))]
fn is_overdue(_since: Time) -> bool {
    crate::models::overdue()
}

impl LockState {
    /// Ledgers are compared by address: a task or thread has one for its whole life.
    fn is_held_by(&self, ledger: &Arc<Ledger>) -> bool {
        let same = |holder| Arc::ptr_eq(holder, ledger);
        self.holder.as_ref().is_some_and(same)
    }

    /// True if a waiter of this process was notified and has not tried again yet.
    fn is_notified(&self) -> bool {
        self.notified == Some(fork::generation())
    }

    /// The error that `acquisition` gets from a poisoned lock. A repairing holder is admitted unless
    /// the lock is unrecoverable.
    fn check_poison(&self, acquisition: &Acquisition) -> Result<(), LockError> {
        // Repair is for new holds only: a condition wait must not hide the poison from its caller.
        match (&self.poison, acquisition) {
            (None, _) | (Some(Poison::Killed(_)), Acquisition::New(Acquire::Repair)) => Ok(()),
            (Some(Poison::OwnerLost(kill)), _) => Err(LockError::OwnerLost(kill.clone())),
            (Some(Poison::Killed(kill)), _) => Err(LockError::Poisoned(kill.clone())),
        }
    }
}

/// A sweep calls these, from the thread that ends, kills or abandons the holder.
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

/// One call of [`Lock::acquire`]: the operation that the wait performs, in the waiter's thread.
pub(crate) struct AcquireOp<'a> {
    core: &'a Arc<LockCore>,
    /// Where the hold is recorded: the ledger of the thread that made the operation.
    ledger: Arc<Ledger>,
    acquisition: Acquisition,
    /// When it queued for the first time. `Some` means that it was notified and overtaken, so it
    /// queues in front.
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
        // The lock may have been released since `attempt`: look again under the mutex under which a
        // release looks for waiters, or the wake-up is lost.
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
            Err(_) => _ = ticket.grant(), // `collect` returns the error
        }
    }

    // Not after a grant, so the lock has not been handed over and there is nothing to undo. A request
    // that was popped and refused by the ticket has passed its turn on already.
    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let queue = &mut self.core.state.lock().queue;
        queue.retain(|request| request.ticket != *ticket);
        false
    }
}

impl Op for AcquireOp<'_> {
    type Output = ();
    type Error = LockError;

    // Never granted here, so a thread that is running overtakes the waiters.
    fn attempt(&mut self) -> Result<Option<()>, LockError> {
        let mut state = self.core.state.lock();
        let taken = self
            .core
            .take_if_free(&mut state, &self.ledger, &self.acquisition)?;
        Ok(taken.then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, LockError> {
        let mut state = self.core.state.lock();
        // Handed over: since the grant only the granter can have made this ledger the holder.
        if state.is_held_by(&self.ledger) {
            return Ok(Some(()));
        }
        // Notified: this thread looks now, and the next release may notify again (3). If the lock was
        // taken meanwhile, the wait goes on and queues in front.
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
    fn an_overdue_waiter_is_handed_the_lock_even_if_the_releasing_thread_acquires_it_again() {
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
