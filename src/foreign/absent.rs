//! Where no call of another thread can be ended.

use std::time::Duration;

use super::{Attempt, Slot, Unavailable};

#[allow(clippy::unused_self)] // the signatures are those of the other systems
impl Slot {
    /// Not known.
    pub(crate) fn blocked_in(&self) -> Option<&'static str> {
        None
    }

    /// Not known.
    pub(crate) fn sits_in(&self) -> Option<String> {
        None
    }

    /// Runs `attempt`.
    pub(crate) fn attempt<R>(&self, _by_kill: bool, attempt: impl FnOnce() -> R) -> R {
        attempt()
    }

    /// Never ends one.
    pub(crate) fn end_futex(&self, _grace: Option<Duration>) -> Attempt {
        Attempt::Unavailable
    }

    /// Never ends one.
    pub(crate) fn end_call(&self, _grace: Option<Duration>, _patience: Duration) -> Attempt {
        Attempt::Unavailable
    }
}

/// Nothing more than the name.
pub(crate) fn words(name: &str, _descriptor: Option<i32>) -> String {
    name.into()
}

/// Never.
pub(crate) fn check() -> Result<(), Unavailable> {
    Err(Unavailable::System)
}

/// None.
pub(crate) fn ended() -> u64 {
    0
}
