//! Where no call of another thread can be ended.

use std::time::Duration;

use super::{Attempt, Slot, Unavailable};

#[allow(clippy::unused_self)] // the signatures are those of the other systems
impl Slot {
    /// Never.
    pub(crate) fn is_blocked(&self) -> bool {
        false
    }

    /// Never ends one.
    pub(crate) fn end_call(&self, _grace: Option<Duration>, _patience: Duration) -> Attempt {
        Attempt::Unavailable
    }
}

/// Never.
pub(crate) fn check() -> Result<(), Unavailable> {
    Err(Unavailable::System)
}

/// None.
pub(crate) fn ended() -> u64 {
    0
}
