//! Why a lock was not acquired, or not released.
//!
//! Each error means that nothing has changed: a refused acquisition holds nothing, a refused release
//! has released nothing. The messages say what the caller can do; a host shows them to its users as they
//! are.

use std::fmt;
use std::sync::Arc;

use super::Fenced;
use crate::error::Stop;
use crate::ledger::KillInfo;

/// Why a lock was not acquired. The caller does not hold it.
#[derive(Debug, Clone)]
pub enum LockError {
    /// The calling thread is cancelled or is being killed, or a signal handler raised.
    Stop(Stop),
    /// The last holder was killed inside, and the data that the lock protects may be half changed.
    /// Repair it with [`Acquire::Repair`](super::Acquire::Repair).
    Poisoned(Arc<KillInfo>),
    /// The holder was abandoned and may still be inside, so the lock is unavailable for good.
    OwnerLost(Arc<KillInfo>),
}

/// Why a lock was not released. Its holder, if it has one, still holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseError {
    /// No task or thread holds it.
    NotHeld,
    /// Only its holder may release it (it is reentrant or fenced), and that is another one.
    NotHolder,
    /// A sweep has released it already: the scope or task around the block ended before the block.
    Swept,
    /// The lock is fenced, and the calling task was abandoned while it held it.
    Fenced,
}

/// The error of a wait that has not acquired the lock.
impl From<Stop> for LockError {
    fn from(stop: Stop) -> Self {
        LockError::Stop(stop)
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Stop(stop) => stop.fmt(f),
            LockError::Poisoned(kill) => write!(
                f,
                "{} was killed while it held this lock ({}), so what the lock protects may be half \
                 changed: repair it inside repair()",
                kill.task, kill.cause
            ),
            LockError::OwnerLost(kill) => write!(
                f,
                "{} was abandoned while it held this lock ({}) and may still be using what it \
                 protects; the lock cannot be acquired any more: use a new one",
                kill.task, kill.cause
            ),
        }
    }
}

impl std::error::Error for LockError {}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReleaseError::NotHeld => "this lock is not held; acquire it first, and release it once",
            ReleaseError::Swept => {
                "the lock of this block was released when the scope or task around it ended"
            }
            ReleaseError::NotHolder => {
                "this lock is held by another task or thread; only its holder may release it"
            }
            ReleaseError::Fenced => return Fenced.fmt(f),
        })
    }
}

impl std::error::Error for ReleaseError {}
