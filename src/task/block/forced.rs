//! The life of a forced block: opened by its thread, pressed by the enforcer, closed by its thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Block, Target, retract_all};
use crate::cause::Cause;
use crate::clock::Time;
use crate::fork;
use crate::ledger::Ledger;
use crate::stack::Stack;
use crate::task::policy::{FIRST_PAUSE, LONGEST_PAUSE, StopPolicy};
use crate::task::{Interrupter, KillInfo, KillRequest, Phase, RESEND_AFTER, Task, TaskInner};
use crate::token::tree::NodeRef;

/// So long a block may swallow `Killed` before its every step is struck: as the ladder's default.
const PATIENCE: Duration = Duration::from_secs(1);

impl Block {
    /// When force begins; it may never.
    fn due(&self) -> Time {
        // What was cancelled from outside is still bound by its own deadline.
        let cancelled_at = match self.node.cause() {
            Some(cause) if self.node.is_cancelled_itself() => cause.at,
            _ => self.node.own_deadline(),
        };
        cancelled_at + self.kill_after
    }

    /// It has swallowed that for so long that its every step is to be struck, if the host can.
    fn is_swallowing(&self) -> bool {
        self.first_delivery
            .is_some_and(|first| Time::now() - first >= PATIENCE)
    }
}

impl TaskInner {
    fn find(&self, id: u64) -> Option<usize> {
        self.blocks.iter().position(|block| block.id == id)
    }
}

/// What became of the kill of a block that was left.
#[derive(Default)]
pub(crate) struct BlockExit {
    /// A `Killed` that leaves the block ends there: no wider target is being killed.
    pub(crate) absorbs: bool,
    /// Why, if it was raised inside.
    pub(crate) killed: Option<Cause>,
}

impl Task {
    /// For the blocks of a thread outside of any task. It is never over, and nobody can kill it
    /// as a whole.
    pub(crate) fn of_thread(name: &str, ledger: Arc<Ledger>) -> Arc<Task> {
        let mut task = Task::bare(name, None);
        task.ledger = ledger;
        task.of_thread = true;
        task.inner.lock().phase = Phase::Running;
        Arc::new(task)
    }

    /// It stands for a thread outside of any task.
    pub(crate) fn is_of_thread(&self) -> bool {
        self.of_thread
    }

    /// The calling thread, which this task is of, enters a block. Returns the block's number.
    pub(crate) fn open_block(
        &self,
        node: &NodeRef,
        kill_after: Duration,
        recorded: u64,
        interrupter: Arc<dyn Interrupter>,
    ) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner.lock();
        let masks = inner.masks.len();
        inner.blocks.push(Block {
            id,
            node: node.clone(),
            kill_after,
            recorded,
            masks,
            interrupter,
            request: None,
            posted: false,
            first_delivery: None,
            last_delivery: None,
            pause: FIRST_PAUSE,
        });
        id
    }

    /// The block is over, and with it those that were entered later: from here nothing strikes in
    /// it, and what was posted and not yet raised is taken back.
    pub(crate) fn close_block(&self, id: u64) -> BlockExit {
        let (left, closed, posted) = {
            let mut inner = self.inner.lock();
            let Some(index) = inner.find(id) else {
                return BlockExit::default();
            };
            let wider = match inner.due(&self.ledger) {
                Some(Target::Body | Target::Injected) => true,
                Some(Target::Block(outer)) => outer < index,
                None => false,
            };
            let posted = inner.withdraw_posted_blocks(index);
            let closed = inner.blocks.split_off(index);
            self.note_requests(&inner);
            let left = BlockExit {
                absorbs: closed[0].request.is_some() && !wider,
                killed: closed[0]
                    .cause()
                    .filter(|_| closed[0].first_delivery.is_some()),
            };
            (left, closed, posted)
        };
        drop(closed); // unlocked: a node may be the last of it
        retract_all(posted);
        left
    }

    /// Number of the open block with this index.
    #[cfg(any(feature = "python", all(test, loom)))]
    pub(crate) fn open_block_at(&self, index: usize) -> Option<u64> {
        self.inner.lock().blocks.get(index).map(|block| block.id)
    }

    /// Let the block's deadline be now.
    #[cfg(any(feature = "python", all(test, loom)))]
    pub(crate) fn expire_block(&self, id: u64, now: Time) {
        let node = {
            let inner = self.inner.lock();
            let block = inner.find(id).map(|index| &inner.blocks[index]);
            block.map(|block| block.node.clone())
        };
        if let Some(node) = node {
            node.expire(now);
        }
    }

    /// When force in the block begins, if it is open and has not been left by then.
    pub(crate) fn block_due(&self, id: u64) -> Option<Time> {
        let inner = self.inner.lock();
        let at = inner.blocks[inner.find(id)?].due();
        (!at.is_never()).then_some(at)
    }

    /// Force the thread out of the block, if it is time to. Returns when to do it again.
    pub(crate) fn interrupt_block(&self, id: u64) -> Option<Time> {
        let node = {
            let inner = self.inner.lock();
            inner.blocks[inner.find(id)?].node.clone()
        };
        // A deadline that nobody has noticed; unlocked, for it wakes whom it concerns.
        let now = Time::now();
        node.poll(now);
        let due = self.block_due(id)?;
        if due > now {
            return Some(due);
        }
        let cause = node.cause().filter(|_| node.is_cancelled_itself());
        let cause = cause.unwrap_or_else(|| Cause::deadline(node.own_deadline()));
        self.request_block_kill(id, &cause, now + StopPolicy::default().defer);
        self.deliver_at_wait();
        self.deliver_async_to_block(id);
        let mut inner = self.inner.lock();
        let index = inner.find(id)?;
        let block = &mut inner.blocks[index];
        let pause = block.pause;
        block.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(Time::now() + pause)
    }

    /// Order the kill of a block, as [`Task::request_kill`] does for the body. The first cause stays.
    pub(crate) fn request_block_kill(&self, id: u64, cause: &Cause, lock_grace_until: Time) {
        let mut inner = self.inner.lock();
        if let Some(index) = inner.find(id) {
            inner.blocks[index]
                .request
                .get_or_insert_with(|| KillRequest {
                    cause: cause.clone(),
                    lock_grace_until,
                });
            self.requested.store(true, Ordering::Release);
        }
    }

    /// Strike the block by force, if it may be struck now, and not again too soon.
    pub(crate) fn deliver_async_to_block(&self, id: u64) {
        let (interrupter, is_swallowing) = {
            let inner = self.inner.lock();
            let Some(index) = inner.find(id) else {
                return;
            };
            let block = &inner.blocks[index];
            (block.interrupter.clone(), block.is_swallowing())
        };
        if is_swallowing {
            interrupter.escalate();
        }
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let mut inner = self.inner.lock();
                let Some(Target::Block(index)) = inner.due(&self.ledger) else {
                    return;
                };
                let now = Time::now();
                let block = &mut inner.blocks[index];
                let again = block
                    .last_delivery
                    .is_none_or(|last| now - last >= RESEND_AFTER);
                if block.id == id && again {
                    interrupter.post();
                    block.posted = true;
                    block.last_delivery = Some(now);
                }
            });
        });
        // What the host prepares outside of the lock may have come too late.
        let gone = self.inner.lock().find(id).is_none();
        if gone {
            fork::outside(|| interrupter.retract());
        }
    }

    /// On the thread itself, where the host can still choose not to raise: the cause, if a kill of a
    /// block is to be raised at this place.
    #[cfg(any(feature = "python", all(test, not(loom))))]
    pub(crate) fn deliver_here(&self, place: Option<u32>) -> Option<Cause> {
        if !self.is_kill_requested() {
            return None;
        }
        let (index, interrupter) = {
            let inner = self.inner.lock();
            let Some(Target::Block(index)) = inner.due(&self.ledger) else {
                return None;
            };
            let block = &inner.blocks[index];
            (index, block.posted.then(|| block.interrupter.clone())?)
        };
        if !interrupter.may_deliver_at(place) {
            return None;
        }
        // Since then only this thread could have left the block, or opened a mask.
        let mut inner = self.inner.lock();
        let cause = inner.deliver_to_block(index);
        let block = &mut inner.blocks[index];
        block.posted = block.is_swallowing();
        if !block.posted {
            drop(inner);
            interrupter.retract();
        }
        cause
    }

    /// Who dies in the middle of a block, for what was taken there as this entry of the ledger.
    /// `None`: no kill has reached a block around it.
    #[cfg(any(feature = "python", all(test, not(loom))))]
    pub(in crate::task) fn kill_info_in_block(
        &self,
        inner: &TaskInner,
        number: Option<u64>,
        stack: Option<Stack>,
    ) -> Option<KillInfo> {
        let number = number?;
        let around = |block: &&Block| block.first_delivery.is_some() && block.recorded <= number;
        let cause = inner.blocks.iter().find(around)?.cause()?;
        Some(self.kill_info_of(cause, stack))
    }

    /// A death of this task's, or of a block of its.
    pub(crate) fn kill_info_of(&self, cause: Cause, stack: Option<Stack>) -> KillInfo {
        KillInfo {
            task: self.name.clone(),
            cause,
            stack,
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "../../../tests/rust/block.rs"]
mod tests;
