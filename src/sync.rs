//! Locks and latches built on the one wait.

mod latch;
mod lock;
mod mutex;

pub use latch::{Interrupted, Latch};
pub use lock::{Acquire, Lock, LockError, OnKill, ReleaseError};
pub use mutex::{Mutex, MutexGuard};
