//! What threads share: locks, counters, flags, queues. All of it waits in the one way of
//! [`wait`](crate::wait).

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
