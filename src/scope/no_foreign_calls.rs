//! In models no call of other code is ended, so nothing is published.

use super::{Context, Frame, Kind};
use crate::clock::Time;
use crate::foreign::Slot;
use crate::host::Home;

#[derive(Default)]
pub(super) struct Place;

impl Place {
    #[allow(clippy::unused_self)]
    pub(super) fn slot(&self) -> Option<&'static Slot> {
        None
    }

    #[allow(clippy::unused_self)]
    pub(super) fn set_task(&self, _task: u64) {}
}

pub(super) struct Published;

impl Published {
    pub(super) fn inside(
        _outer: Option<&Published>,
        _kind: Kind,
        _deadline: Time,
        _home: Home,
    ) -> Published {
        Published
    }
}

pub(super) fn entered(_slot: &Slot, _frames: &mut [Frame]) {}
pub(super) fn left(_context: &Context, _frame: &Frame, _frames: &[Frame]) {}
pub(super) fn changed(_context: &Context, _frames: &[Frame]) {}
