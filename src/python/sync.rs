//! Locks, counters, flags and queues.

pub(super) mod barrier;
pub(super) mod condition;
pub(super) mod event;
pub(super) mod guarded;
pub(super) mod lock;
pub(super) mod queue;
pub(super) mod semaphore;
pub(super) mod unwinding;
