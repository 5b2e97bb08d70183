//! What a piece of work is known by, to all who have to say which one they mean.

use std::fmt;
use std::sync::Arc;

/// Which item: its number, or what an engine calls it that does not number its items.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ItemId {
    /// In a queue of ours.
    Number(u64),
    /// In somebody else's.
    Name(Arc<str>),
}

impl From<u64> for ItemId {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

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
