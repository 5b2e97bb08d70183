//! Blocks that their thread is forced out of: the other kind of kill.
//!
//! A kill of this kind is addressed to one open block of a thread. It strikes while the block is
//! open and is the thread's innermost concern: [`Task::close_block`] withdraws it under the same
//! lock under which it would be posted, so none is seen after the block (I22). What the thread took,
//! and what masks it opened, before the block, neither hold the kill off nor are touched by it.
//!
//! When several kills are on their way, the one with the widest target goes first: the whole body,
//! then blocks from the outermost to the innermost.

#[cfg(any(feature = "python", test))]
mod forced;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(any(feature = "python", test))]
pub(crate) use forced::BlockExit;

use super::{Interrupter, KillRequest, Phase, Task, TaskInner};
use crate::cause::Cause;
use crate::clock::Time;
use crate::fork;
use crate::ledger::Ledger;
use crate::token::tree::NodeRef;

/// One open block that can be ended by force.
#[cfg_attr(not(any(feature = "python", test)), allow(dead_code))] // only a host opens any
pub(super) struct Block {
    id: u64,
    node: NodeRef,
    /// How long after it was cancelled.
    kill_after: Duration,
    /// Entries made in the ledger before: those that come later are the block's.
    recorded: u64,
    /// Masks that were open before.
    masks: usize,
    interrupter: Arc<dyn Interrupter>,
    request: Option<KillRequest>,
    /// Something is, or may be, on its way by force.
    posted: bool,
    /// When `Killed` was first raised inside.
    first_delivery: Option<Time>,
    last_delivery: Option<Time>,
    /// Until it is struck again.
    pause: Duration,
}

impl Block {
    /// The mask with this index is no more.
    pub(super) fn mask_closed(&mut self, at: usize) {
        if at < self.masks {
            self.masks -= 1;
        }
    }

    /// `Killed` was raised inside.
    fn note_delivery(&mut self) {
        self.first_delivery.get_or_insert_with(Time::now);
    }

    fn cause(&self) -> Option<Cause> {
        self.request.as_ref().map(|request| request.cause.clone())
    }
}

/// Whom a kill is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Body,
    /// The body, for what somebody throws into it.
    Injected,
    /// The block with this index.
    Block(usize),
}

impl TaskInner {
    /// For whom a kill may strike now.
    pub(super) fn due(&self, ledger: &Ledger) -> Option<Target> {
        if self.phase != Phase::Running {
            return None;
        }
        let due = |request: &Option<KillRequest>, masks: usize, recorded: u64| {
            let Some(request) = request else { return false };
            let now = Time::now();
            let masks = self.masks.get(masks..).unwrap_or_default();
            masks.iter().all(|mask| mask.end(request) <= now)
                && (request.lock_grace_until <= now || !ledger.holds_since(recorded))
        };
        if due(&self.request, 0, 0) {
            return Some(Target::Body);
        }
        if self
            .injection
            .as_ref()
            .is_some_and(|injection| due(&injection.request, 0, 0))
        {
            return Some(Target::Injected);
        }
        self.blocks
            .iter()
            .position(|block| due(&block.request, block.masks, block.recorded))
            .map(Target::Block)
    }

    /// For whom a kill is that has reached the thread, be it by now held off.
    pub(super) fn addressee(&self, ledger: &Ledger) -> Option<Target> {
        let posted = || self.blocks.iter().position(|block| block.posted);
        let requested = || self.blocks.iter().position(|block| block.request.is_some());
        let injected = || {
            self.injection
                .as_ref()
                .is_some_and(|injection| injection.posted)
        };
        self.due(ledger)
            .or_else(|| posted().map(Target::Block))
            .or_else(|| injected().then_some(Target::Injected))
            .or_else(|| self.request.is_some().then_some(Target::Body))
            .or_else(|| requested().map(Target::Block))
    }

    pub(super) fn cause(&self, target: Target) -> Option<Cause> {
        let request = match target {
            Target::Body => &self.request,
            Target::Injected => &self.injection.as_ref()?.request,
            Target::Block(index) => &self.blocks.get(index)?.request,
        };
        request.as_ref().map(|request| request.cause.clone())
    }

    pub(super) fn is_kill_requested(&self) -> bool {
        self.request.is_some()
            || self.injection.is_some()
            || self.blocks.iter().any(|block| block.request.is_some())
    }

    /// A kill is raised in the block.
    pub(super) fn deliver_to_block(&mut self, index: usize) -> Option<Cause> {
        let block = self.blocks.get_mut(index)?;
        block.posted = false;
        block.note_delivery();
        block.last_delivery = Some(Time::now());
        block.cause()
    }

    /// A kill is raised in the block, at a wait: what was posted is about to be taken back.
    pub(super) fn raised_in_block(&mut self, index: usize) -> Option<Cause> {
        let block = self.blocks.get_mut(index)?;
        block.note_delivery();
        block.cause()
    }

    /// At a wait, as [`TaskInner::note_delivery_at_wait`]: the first time, clean-up code gets its time.
    pub(super) fn note_block_delivery_at_wait(&mut self, index: usize) {
        if let Some(block) = self
            .blocks
            .get_mut(index)
            .filter(|block| block.first_delivery.is_none())
        {
            block.last_delivery = Some(Time::now());
        }
    }

    /// What is on its way by force to blocks from `first` on, taken out: to be taken back.
    pub(super) fn withdraw_posted_blocks(&mut self, first: usize) -> Vec<Arc<dyn Interrupter>> {
        let posted = |block: &mut Block| {
            let posted = std::mem::take(&mut block.posted);
            posted.then(|| block.interrupter.clone())
        };
        self.blocks[first..].iter_mut().filter_map(posted).collect()
    }
}

impl Task {
    /// The process was forked in the middle of the blocks: nothing strikes them any more.
    pub(crate) fn forget_blocks(&self) {
        let (closed, posted) = {
            let mut inner = self.inner.lock();
            let posted = inner.withdraw_posted_blocks(0);
            let requested = inner.request.is_some();
            self.requested.store(requested, Ordering::Release);
            (std::mem::take(&mut inner.blocks), posted)
        };
        drop(closed);
        retract_all(posted);
    }
}

/// Unlocked, for the host runs code to take it back.
pub(super) fn retract_all(posted: Vec<Arc<dyn Interrupter>>) {
    for interrupter in posted {
        fork::outside(|| interrupter.retract());
    }
}
