//! A hold of a lock that knows which one it is.
//!
//! A block of a host, and a suspended one above all, may end long after the lock was taken from it:
//! by the scope or task around it, or because its task was given up. Its end then finds that this
//! very hold is gone, whoever has the lock now.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Acquire, Lock, LockCore, LockError, Termination};
use crate::clock::Time;
use crate::ledger::{Hold, KillInfo, Ledger};
use crate::scope;

/// One hold of a lock, as far as it has not ended.
pub(crate) struct Holding {
    core: Arc<LockCore>,
    ledger: Arc<Ledger>,
    /// `None`: it had ended before anybody looked.
    hold: Option<Hold>,
    /// The last one that it was known to have.
    epoch: AtomicU64,
}

/// This hold of the lock has ended: others may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

/// A held lock; released when it is dropped, or by the scope or task around it.
///
/// It may outlive its hold: when the task that acquired it was given up, or has ended. What it then
/// does harms nobody.
pub struct LockGuard {
    holding: Holding,
}

impl Lock {
    /// Acquire it, waiting until `until` at most; then `None`. A checkpoint on entry.
    pub fn guard(&self, until: Time) -> Result<Option<LockGuard>, LockError> {
        let acquired = self.acquire(Acquire::Known, until)?;
        Ok(acquired.then(|| LockGuard {
            holding: self.holding(),
        }))
    }

    /// What the calling thread has just acquired, as [`Acquire::Known`] or [`Acquire::Repair`].
    pub(crate) fn holding(&self) -> Holding {
        let ledger = scope::current_ledger();
        let state = self.core.state.lock();
        // Under the lock, or the epoch might be that of somebody who came later.
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
    fn is_current(&self) -> bool {
        self.hold.is_some_and(|hold| self.ledger.has(hold))
    }

    pub(crate) fn check(&self) -> Result<(), Fenced> {
        if self.is_current() {
            Ok(())
        } else {
            Err(Fenced)
        }
    }

    /// Which of the lock's holders this is, or was. It rises when the lock was given up for a while
    /// and taken back.
    pub(crate) fn epoch(&self) -> u64 {
        let state = self.core.state.lock();
        if self.is_current() {
            self.epoch.store(state.epoch, Ordering::Relaxed);
        }
        self.epoch.load(Ordering::Relaxed)
    }

    /// Do something while nobody can take the lock from this holder. It must be short, and not run
    /// code of the host.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn while_held<R>(&self, act: impl FnOnce() -> R) -> Result<R, Fenced> {
        let state = self.core.state.lock();
        self.check()?;
        let result = act();
        drop(state);
        Ok(result)
    }

    /// What the lock protects is consistent again.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn mark_consistent(&self) -> Result<(), Fenced> {
        let mut state = self.core.state.lock();
        self.check()?;
        state.poison = None;
        Ok(())
    }

    /// Termination it. `death`: in the middle of a kill, see [`Lock::release_killed`]. Returns whether the
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
    /// Which of the lock's holders this is; each later one has a greater number. Others who get it
    /// along with what is done under the lock can refuse what comes with a smaller one than they
    /// have seen.
    pub fn epoch(&self) -> u64 {
        self.holding.epoch()
    }

    /// `Err`: the lock was taken from this guard, and others may hold it.
    pub fn check(&self) -> Result<(), Fenced> {
        self.holding.check()
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let _ = self.holding.release(None); // unless it was taken away
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
            "this hold of the lock has ended: its holder was given up, or the scope or task around \
             it has ended, and others may hold the lock now; leave alone what it protects",
        )
    }
}

impl std::error::Error for Fenced {}
