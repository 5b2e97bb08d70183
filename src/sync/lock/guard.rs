//! The handle of one hold of a lock.
//!
//! Guarantees:
//! 1. A handle releases its own hold or nothing: after the hold was reclaimed, its end does not
//!    release the lock of a later holder.
//! 2. The function that `Holding::while_held` calls has returned before the lock can change hands.
//! 3. The epoch that a handle reports is that of its own hold, never that of a later holder.
//!
//! A block of a host, and a suspended generator above all, may end long after its hold was reclaimed:
//! by the scope or task around it, or because its task was abandoned. Handles make such an end
//! harmless.
//!
//! Protocol: a hold is current while the ledger has its entry. Entries are added and removed under
//! the lock's `state` only, so a check under `state` stays true until it is unlocked; a check without
//! it may be stale at once. Lock order: `state`, then the ledger, as in the parent module.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Acquire, Lock, LockCore, LockError, Termination};
use crate::clock::Time;
use crate::ledger::{Hold, KillInfo, Ledger};
use crate::scope;

/// Names one hold of a lock, which may have ended.
pub(crate) struct Holding {
    core: Arc<LockCore>,
    /// The ledger of the task or thread that acquired the lock.
    ledger: Arc<Ledger>,
    /// Its entry there. `None`: a sweep reclaimed it between the acquisition and the making of this.
    hold: Option<Hold>,
    /// The epoch of the hold, as last read while it was current; the lock's own rises when the hold
    /// is released for a condition wait and reacquired. Relaxed: written and read under the lock's
    /// `state` while current, and frozen afterwards.
    epoch: AtomicU64,
}

/// This hold of the lock has ended, and another task may hold the lock now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

/// A held lock; released when it is dropped, or by the scope or task around it.
///
/// A guard may outlive its hold: if the task that acquired it was abandoned, or has ended. Its drop
/// then changes nothing.
pub struct LockGuard {
    /// Released by the drop.
    holding: Holding,
}

impl Lock {
    /// Acquire it, waiting until `until` at most; then `None`.
    ///
    /// # Blocking
    /// As [`Lock::acquire`].
    ///
    /// # Cancellation
    /// As [`Lock::acquire`]: a checkpoint on entry; a cancelled wait has not acquired it.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn guard(&self, until: Time) -> Result<Option<LockGuard>, LockError> {
        let acquired = self.acquire(Acquire::Known, until)?;
        Ok(acquired.then(|| LockGuard {
            holding: self.holding(),
        }))
    }

    /// The handle of the hold that the calling thread has just acquired, as [`Acquire::Known`] or
    /// [`Acquire::Repair`].
    pub(crate) fn holding(&self) -> Holding {
        let ledger = scope::current_ledger();
        let state = self.core.state.lock();
        // With `state` locked, or the epoch might be that of a later holder.
        let hold = ledger.latest(Arc::as_ptr(&self.core).cast());
        let epoch = hold.map_or(0, |_| state.epoch);
        drop(state);
        Holding {
            core: self.core.clone(),
            ledger,
            hold,
            epoch: AtomicU64::new(epoch),
        }
    }
}

impl Holding {
    /// True while the hold is recorded. Lasting only while the lock's `state` is locked.
    fn is_current(&self) -> bool {
        self.hold.is_some_and(|hold| self.ledger.has(hold))
    }

    /// `Err` if the hold has ended. A caller that must rely on it uses `Holding::while_held`.
    pub(crate) fn check(&self) -> Result<(), Fenced> {
        if self.is_current() {
            Ok(())
        } else {
            Err(Fenced)
        }
    }

    /// The epoch of this hold, or its last one if it has ended. It rises when the lock is released for
    /// a condition wait and reacquired.
    pub(crate) fn epoch(&self) -> u64 {
        let state = self.core.state.lock();
        if self.is_current() {
            self.epoch.store(state.epoch, Ordering::Relaxed);
        }
        self.epoch.load(Ordering::Relaxed)
    }

    /// Run `act` while the lock cannot change hands, if the hold is current. `act` runs with `state`
    /// locked: it must be short, and not run code of the host.
    #[cfg(any(feature = "python", all(test, loom)))]
    pub(crate) fn while_held<R>(&self, act: impl FnOnce() -> R) -> Result<R, Fenced> {
        let state = self.core.state.lock();
        self.check()?;
        let result = act();
        drop(state);
        Ok(result)
    }

    /// The data that the lock protects is consistent again: clear the poison, if the hold is current.
    #[cfg(feature = "python")]
    pub(crate) fn mark_consistent(&self) -> Result<(), Fenced> {
        let mut state = self.core.state.lock();
        self.check()?;
        state.poison = None;
        Ok(())
    }

    /// Termination it. `death`: in the middle of a kill, see `Lock::release_killed`. Returns whether the
    /// lock is poisoned now.
    pub(crate) fn release(&self, kill: Option<KillInfo>) -> Result<bool, Fenced> {
        let termination = kill.map(|kill| Termination::Killed(Arc::new(kill)));
        let hold = self.hold.ok_or(Fenced)?;
        self.core
            .release_hold(&self.ledger, hold, termination.as_ref())
            .ok_or(Fenced)
    }
}

impl LockGuard {
    /// The number of this holder, a fencing token: each later holder has a greater one. A store that
    /// receives it with every write can refuse writes with a smaller epoch than it has seen.
    pub fn epoch(&self) -> u64 {
        self.holding.epoch()
    }

    /// `Err`: the hold was reclaimed, and another task may hold the lock.
    ///
    /// # Errors
    /// [`Fenced`]. `Ok` may be stale at once, see [`LockGuard::epoch`] for a check that is not.
    pub fn check(&self) -> Result<(), Fenced> {
        self.holding.check()
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let _ = self.holding.release(None); // `Err`: the hold was reclaimed before
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("lock", &self.holding.core.name)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this hold of the lock has ended: its holder was abandoned, or the scope or task around \
             it has ended, and another task may hold the lock now; leave its data alone",
        )
    }
}

impl std::error::Error for Fenced {}
