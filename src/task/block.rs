//! Kills of one block of a task: its forced blocks, and which target a kill is due for.
//!
//! Guarantees:
//! 1. Such a kill is addressed to one open block of a thread, and is raised only while that block is
//!    open: `Task::close_block` withdraws it under the same lock under which it would be posted, so none
//!    is seen after the block (I22).
//! 2. Locks that the thread acquired, and masks that it opened, before the block neither defer the kill
//!    nor are touched by it. A block remembers how many entries the ledger and how many masks there were.
//! 3. Of several kills that are due, the one with the widest target is raised: the whole body, then an
//!    injected exception, then blocks from the outermost to the innermost.
//!
//! States of a block, each step in one critical section of the task's lock:
//!
//! | state | by | next |
//! |---|---|---|
//! | open | `open_block`, on the body's thread | |
//! | requested | `request_block_kill`, on the enforcer's thread | after `kill_after`; the first cause stays |
//! | posted | `deliver_async_to_block`, on the enforcer's thread | arrives, or is retracted at a wait or the end |
//! | killed (`first_delivery` is set) | the body's thread raises `Killed` | is posted again while the block is open |
//! | suspended (may be so in any state) | `suspend_block`, on the body's thread | nothing is raised until `resume_block` |
//! | closed | `close_block` or `forget_blocks`, on the body's thread | gone; a posted exception is retracted |
//!
//! The life of a block is in `forced`; this file has the part that the rest of a task relies on.

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
    /// Differs from that of every other block of the process. Never zero.
    id: u64,
    /// The node of its scope, for its deadline and its cause.
    node: NodeRef,
    /// The time from its own cancellation to the first kill.
    kill_after: Duration,
    /// The ledger's next number when it was opened: holds with this number or a greater one are its own.
    recorded: u64,
    /// Number of open masks that were there before it; lowered when one of them closes.
    masks: usize,
    /// Raises its kill. Blocks of one thread may have different ones.
    interrupter: Arc<dyn Interrupter>,
    /// Its kill. Stored by the enforcer's thread, and never taken out.
    request: Option<KillRequest>,
    /// Its kill is, or may be, in the host's slot for the thread. Set by the enforcer's thread, cleared
    /// by the body's.
    posted: bool,
    /// When `Killed` was first raised inside. Written by the body's thread.
    first_delivery: Option<Time>,
    /// When its kill was last posted or raised; the next one is posted `RESEND_AFTER` later.
    last_delivery: Option<Time>,
    /// Its code is not on the thread's stack now, so no kill is due for it. Written by the body's thread.
    suspended: bool,
    /// The enforcer's next pause before it tries again; it doubles up to `LONGEST_PAUSE`.
    pause: Duration,
}

impl Block {
    /// The mask with this index has closed.
    pub(super) fn mask_closed(&mut self, at: usize) {
        if at < self.masks {
            self.masks -= 1;
        }
    }

    /// `Killed` was raised inside.
    fn note_delivery(&mut self) {
        self.first_delivery.get_or_insert_with(Time::now);
    }

    /// The cause of its kill, once requested.
    fn cause(&self) -> Option<Cause> {
        self.request.as_ref().map(|request| request.cause.clone())
    }
}

/// The addressee of a kill: the task, or one of its blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The whole body.
    Body,
    /// The body, for an injected exception.
    Injected,
    /// The block with this index.
    Block(usize),
}

impl TaskInner {
    /// The widest target that a kill is due for: requested, not deferred, and the body running.
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
            .position(|block| !block.suspended && due(&block.request, block.masks, block.recorded))
            .map(Target::Block)
    }

    /// The target of the exception that has reached the thread. It may be deferred by now, as a mask
    /// can be opened between the post and the raise: then the posted exception counts first, and then
    /// any request.
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

    /// The cause of the target's kill.
    pub(super) fn cause(&self, target: Target) -> Option<Cause> {
        let request = match target {
            Target::Body => &self.request,
            Target::Injected => &self.injection.as_ref()?.request,
            Target::Block(index) => &self.blocks.get(index)?.request,
        };
        request.as_ref().map(|request| request.cause.clone())
    }

    /// True if anything is pending, for any target.
    pub(super) fn is_kill_requested(&self) -> bool {
        self.request.is_some()
            || self.injection.is_some()
            || self.raised.is_some()
            || self.blocks.iter().any(|block| block.request.is_some())
    }

    /// On the body's thread: the posted kill is raised in the block. Returns its cause.
    pub(super) fn deliver_to_block(&mut self, index: usize) -> Option<Cause> {
        let block = self.blocks.get_mut(index)?;
        block.posted = false;
        block.note_delivery();
        block.last_delivery = Some(Time::now());
        block.cause()
    }

    /// On the body's thread: a kill is raised in the block at a wait. The caller retracts a posted
    /// exception, so `posted` stays for that.
    pub(super) fn raised_in_block(&mut self, index: usize) -> Option<Cause> {
        let block = self.blocks.get_mut(index)?;
        block.note_delivery();
        block.cause()
    }

    /// As [`TaskInner::note_delivery_at_wait`]: the first time, clean-up code gets `RESEND_AFTER`
    /// before the host's exception follows.
    pub(super) fn note_block_delivery_at_wait(&mut self, index: usize) {
        if let Some(block) = self
            .blocks
            .get_mut(index)
            .filter(|block| block.first_delivery.is_none())
        {
            block.last_delivery = Some(Time::now());
        }
    }

    /// Clears the posted kills of blocks from `first` on. Returns the interrupters that must retract
    /// them after the lock is released.
    pub(super) fn withdraw_posted_blocks(&mut self, first: usize) -> Vec<Arc<dyn Interrupter>> {
        let posted = |block: &mut Block| {
            let posted = std::mem::take(&mut block.posted);
            posted.then(|| block.interrupter.clone())
        };
        self.blocks[first..].iter_mut().filter_map(posted).collect()
    }
}

impl Task {
    /// In a forked child, on the body's thread: closes all blocks, for the enforcer's thread is gone. A
    /// request for the whole body stays.
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

/// Retracts the exceptions that these have posted. Called with no lock held, for the host runs code.
pub(super) fn retract_all(posted: Vec<Arc<dyn Interrupter>>) {
    for interrupter in posted {
        fork::outside(|| interrupter.retract());
    }
}
