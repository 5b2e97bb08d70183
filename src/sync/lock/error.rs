//! Why a lock was not acquired, or not released.

use std::fmt;
use std::sync::Arc;

use super::Fenced;
use crate::error::Stop;
use crate::ledger::KillInfo;

/// Why a lock was not acquired. It is not held.
#[derive(Debug, Clone)]
pub enum LockError {
    /// The calling thread is to stop.
    Stop(Stop),
    /// The last holder was killed inside.
    Poisoned(Arc<KillInfo>),
    /// The holder was abandoned, and may still be inside.
    OwnerLost(Arc<KillInfo>),
}

/// Why a lock was not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseError {
    /// Nobody holds it.
    NotHeld,
    /// It is reentrant, and not the calling thread holds it.
    NotHolder,
    /// The block that took it has lost it: the scope or task around it has ended before.
    Swept,
    /// The lock is fenced, and the calling task was given up while it held it.
    Fenced,
}

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
                 changed: set it right inside repair()",
                kill.task, kill.cause
            ),
            LockError::OwnerLost(kill) => write!(
                f,
                "{} was given up while it held this lock ({}) and may still be using what it \
                 protects; the lock cannot be had any more: use a new one",
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
                "the lock of this block was given back when the scope or task around it ended"
            }
            ReleaseError::NotHolder => {
                "this lock is held by another thread or by nobody; who acquired it releases it"
            }
            ReleaseError::Fenced => return Fenced.fmt(f),
        })
    }
}

impl std::error::Error for ReleaseError {}
