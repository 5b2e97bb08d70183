//! Masks: they defer a kill while the body runs code that must be done as a whole.
//!
//! A mask is opened by the body's thread. Each thread that decides whether a kill is due looks at the
//! masks under the task's lock, so a kill comes before the mask, or finds it. An exception posted before
//! the mask and not yet raised is retracted right after the mask was opened: the request stands, and is
//! delivered when no mask defers it any more. A mask defers nothing beyond its time, closed or not (I24).
//!
//! A kill of a block is deferred by the masks that were opened inside that block, and by no others.
//! A block therefore counts the masks around it, and the count is kept right when one of them closes.

use super::{KillRequest, Task, TaskInner, block};
use crate::cause::DEFAULT_GRACE;
use crate::clock::Time;
use crate::token::tree::NodeRef;

/// One open mask.
pub(super) enum Mask {
    /// A short one, which defers kills until that time at the latest.
    Until(Time, MaskNumber),
    /// A clean-up zone, by its scope's node: it defers kills until its deadline, which may still move.
    Zone(NodeRef),
}

/// Which of all masks that [`Task::mask`] has made for its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskNumber(u64);

impl Mask {
    /// Until when it defers the kill.
    pub(super) fn end(&self, request: &KillRequest) -> Time {
        let end = match self {
            Mask::Until(end, _) => return *end,
            Mask::Zone(node) => node.own_deadline(),
        };
        // A zone inside a shield is not shortened by the kill's own cancellation.
        if end.is_never() {
            request.cause.at + DEFAULT_GRACE
        } else {
            end
        }
    }
}

impl Task {
    /// Defers kills until `until` at the latest; one that was posted and not yet raised is retracted.
    /// Close it with [`Task::unmask`].
    pub fn mask(&self, until: Time) -> MaskNumber {
        let number = {
            let mut inner = self.inner.lock();
            inner.masks_made += 1;
            let number = MaskNumber(inner.masks_made);
            inner.masks.push(Mask::Until(until, number));
            number
        };
        self.retract_behind_mask();
        number
    }

    /// Defers kills until the zone's end. Close it with [`Task::unmask_zone`].
    pub(crate) fn mask_zone(&self, zone: &NodeRef) {
        self.inner.lock().masks.push(Mask::Zone(zone.clone()));
        self.retract_behind_mask();
    }

    /// Nothing is posted while the new mask is open, so one retraction is enough.
    fn retract_behind_mask(&self) {
        // A request that is not seen here comes after the mask, and finds it.
        if self.is_kill_requested() {
            self.retract();
        }
    }

    /// Retracts an exception that was posted and not raised. Called on the body's thread, when a mask or
    /// a lock defers the kill from now on, or when `Killed` is about to be raised by other means: one kill
    /// must not be raised twice.
    pub(crate) fn retract(&self) {
        let posted = self.inner.lock().withdraw_posted();
        block::retract_all(posted);
    }

    /// Closes this mask and no other; from any thread. A kill that it deferred is due now, see
    /// [`Task::kill_due`].
    pub fn unmask(&self, number: MaskNumber) {
        self.close_mask(|mask| matches!(mask, Mask::Until(_, made) if *made == number));
    }

    /// Closes the zone's mask. Without effect if it is closed.
    pub(crate) fn unmask_zone(&self, zone: &NodeRef) {
        self.close_mask(|mask| matches!(mask, Mask::Zone(node) if node.same(zone)));
    }

    fn close_mask(&self, is_it: impl Fn(&Mask) -> bool) {
        let closed = {
            let mut inner = self.inner.lock();
            let at = inner.masks.iter().rposition(is_it);
            at.map(|at| inner.close_mask(at))
        };
        drop(closed); // unlocked: it may have the last count of the zone's node
    }
}

impl TaskInner {
    fn close_mask(&mut self, at: usize) -> Mask {
        self.blocks
            .iter_mut()
            .for_each(|block| block.mask_closed(at));
        self.masks.remove(at)
    }
}
