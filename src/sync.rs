//! The primitives that threads share: locks, semaphores, events, conditions, barriers, queues.
//!
//! All of them are built alike. The state of a primitive belongs to one mutex, which is held for a few
//! instructions and never while a thread sleeps or is woken. A blocking call is an operation
//! (`Op`) that [`wait`](crate::wait) performs: it tries without waiting; if that
//! fails it queues a ticket under the mutex, unless the state has changed since; and it parks. The
//! thread that changes the state grants tickets under the mutex and wakes their waiters after it is
//! unlocked. A ticket whose waiter was cancelled, killed or timed out refuses the grant, so the next
//! waiter is asked: nothing is lost with a waiter that has gone (I11, I12).
//!
//! Lock order of the whole folder: a primitive's mutex, then a ledger, then a waiter's word, which is
//! an atomic. No primitive locks another one's mutex while its own is locked.

mod barrier;
mod condition;
mod event;
mod lock;
mod mutex;
mod queue;
mod semaphore;

pub use crate::park::{Interrupted, Latch};
pub use barrier::{Arrival, Barrier, BarrierError, Opening};
pub use condition::{Condition, WaitError};
pub use event::Event;
#[cfg(feature = "python")]
pub(crate) use lock::Holds;
pub use lock::{Acquire, Fenced, Lock, LockError, LockGuard, OnKill, ReleaseError};
#[cfg(any(feature = "python", all(test, loom)))]
pub(crate) use lock::{Holding, Undo};
pub use mutex::{Mutex, MutexGuard};
pub use queue::{NothingUnfinished, Order, Queue, QueueError};
pub use semaphore::{Semaphore, TooManyReleases};
