//! The identity of a work item, as every queue, lease, task and report names it.
//!
//! It lies at the bottom of the core, below the queues that give the numbers, so that a task can carry
//! the id of the item it works on without knowing any queue.

use std::fmt;
use std::sync::Arc;

/// Identifies one item within its queue. Two queues may use the same ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ItemId {
    /// In a queue of this crate: a number that the queue never uses again.
    Number(u64),
    /// In an engine's queue that names its items by strings, as Redis streams and Celery do.
    Name(Arc<str>),
}

impl From<u64> for ItemId {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// Never equal for an item that is known by a name.
impl PartialEq<u64> for ItemId {
    fn eq(&self, number: &u64) -> bool {
        matches!(self, Self::Number(mine) if mine == number)
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}
