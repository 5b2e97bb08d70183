//! The life of a forced block: opened by its thread, interrupted by the enforcer, closed by its thread.
//!
//! The enforcer calls [`Task::interrupt_block`] when the block is due, and again after growing pauses
//! for as long as it is open. Each time it requests the kill, settles the wait that the thread is in,
//! and posts the host's exception, if the block is the target of the kill that is due. A block that goes on
//! swallowing `Killed` for [`SWALLOW_LIMIT`] is escalated: its thread then calls [`Task::deliver_here`]
//! before each step.
//!
//! The block's end and the enforcer meet at the task's lock only. The enforcer may prepare something in
//! the host with no lock held (a trace, say), so it looks once more afterwards and retracts that if the
//! block is gone; the block's end retracts the posted one. One of them comes last.

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
use crate::token::CancelSource;
use crate::token::tree::NodeRef;

/// How long a block may swallow `Killed` before it is raised before each of its steps: as long as the
/// default policy stays on the rung before tracing.
const SWALLOW_LIMIT: Duration = Duration::from_secs(1);

impl Block {
    /// When its first kill is due; [`Time::NEVER`] if it has no deadline and is not cancelled.
    fn due(&self) -> Time {
        // A cancellation from outside does not start the time; the block's own deadline still does.
        let cancelled_at = match self.node.cause() {
            Some(cause) if self.node.is_cancelled_itself() => cause.at,
            _ => self.node.own_deadline(),
        };
        cancelled_at + self.kill_after
    }

    /// True if it has swallowed `Killed` for long enough that `Killed` is raised before each of its steps.
    fn is_swallowing(&self) -> bool {
        self.first_delivery
            .is_some_and(|first| Time::now() - first >= SWALLOW_LIMIT)
    }
}

impl TaskInner {
    /// The index of an open block.
    fn find(&self, id: u64) -> Option<usize> {
        self.blocks.iter().position(|block| block.id == id)
    }

    /// As [`TaskInner::may_interrupt_body`], for the kill of the block with this index.
    fn may_interrupt_block(&mut self, index: usize, inside: Option<Arc<str>>) -> bool {
        let request = self.blocks[index].request.as_ref();
        let until = request.map(|request| request.lock_grace_until);
        self.may_interrupt(inside, until)
    }
}

/// The state of a block's kill, as the block's end found it.
#[derive(Default)]
pub(crate) struct BlockExit {
    /// A `Killed` that unwinds out of the block ends there: the block was to be killed, and a kill is due
    /// for no wider target.
    pub(crate) absorbs: bool,
    /// The cause of the block's kill, if it was raised inside.
    pub(crate) killed: Option<Cause>,
}

impl Task {
    /// A task that stands for a thread outside of any task, so that its blocks can be killed. It shares the
    /// thread's ledger, is never over, and cannot be killed as a whole.
    pub(crate) fn of_thread(name: &str, ledger: Arc<Ledger>) -> Arc<Task> {
        let mut task = Task::bare(name, CancelSource::without_deadline(None));
        task.ledger = ledger;
        task.of_thread = true;
        task.inner.lock().phase = Phase::Running;
        Arc::new(task)
    }

    /// True if it stands for a thread outside of any task.
    pub(crate) fn is_of_thread(&self) -> bool {
        self.of_thread
    }

    /// On the body's thread: enters a block. Returns its number, by which the enforcer and the block's end
    /// name it. `recorded`: the ledger's next number.
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
            suspended: false,
            pause: FIRST_PAUSE,
        });
        id
    }

    /// On the body's thread: the block ends, and with it those that were entered later. From here on no
    /// kill is raised for it, and an exception that was posted and not yet raised is retracted.
    pub(crate) fn close_block(&self, id: u64) -> BlockExit {
        let (left, closed, posted) = {
            let mut inner = self.inner.lock();
            let Some(index) = inner.find(id) else {
                return BlockExit::default();
            };
            // Decided before the block is taken out: a wider target that is due keeps its `Killed`
            // unwinding.
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
        drop(closed); // unlocked: each may have the last count of its node
        retract_all(posted);
        left
    }

    /// On the body's thread: the block's code is not on the stack now. No kill is raised for it until
    /// [`Task::resume_block`], and an exception that was posted is retracted.
    pub(crate) fn suspend_block(&self, id: u64) {
        let posted = {
            let mut inner = self.inner.lock();
            let Some(index) = inner.find(id) else {
                return;
            };
            let block = &mut inner.blocks[index];
            block.suspended = true;
            std::mem::take(&mut block.posted).then(|| block.interrupter.clone())
        };
        retract_all(posted.into_iter().collect());
    }

    /// On the body's thread: the code of a suspended block is on the stack again.
    pub(crate) fn resume_block(&self, id: u64) {
        let mut inner = self.inner.lock();
        if let Some(index) = inner.find(id) {
            inner.blocks[index].suspended = false;
        }
    }

    /// On the body's thread: the block's end was skipped. As [`Task::close_block`], for this block alone:
    /// those that were entered later may be open.
    pub(crate) fn remove_block(&self, id: u64) {
        self.suspend_block(id); // retracts
        let removed = {
            let mut inner = self.inner.lock();
            let Some(index) = inner.find(id) else {
                return;
            };
            let removed = inner.blocks.remove(index);
            self.note_requests(&inner);
            removed
        };
        drop(removed); // unlocked: it may have the last count of its node
    }

    /// Number of the open block with this index.
    #[cfg(any(feature = "python", all(test, loom)))]
    pub(crate) fn open_block_at(&self, index: usize) -> Option<u64> {
        self.inner.lock().blocks.get(index).map(|block| block.id)
    }

    /// Cancels the block, as its deadline would at `now`: for tests.
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

    /// When the block's first kill is due; `None` if it is closed, or never due.
    pub(crate) fn block_due(&self, id: u64) -> Option<Time> {
        let inner = self.inner.lock();
        let at = inner.blocks[inner.find(id)?].due();
        (!at.is_never()).then_some(at)
    }

    /// On the enforcer's thread: tries once to get the thread out of the block, if that is due. Returns
    /// when to try again; `None`: the block is closed. May block, for the host's lock.
    pub(crate) fn interrupt_block(self: &Arc<Self>, id: u64) -> Option<Time> {
        let node = {
            let inner = self.inner.lock();
            inner.blocks[inner.find(id)?].node.clone()
        };
        // The deadline may not have been noticed yet. Unlocked, for a cancellation wakes waiters.
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
        self.end_calls_in(&node);
        self.deliver_async_to_block(id);
        // Closed meanwhile: there is no next time.
        let mut inner = self.inner.lock();
        let index = inner.find(id)?;
        let block = &mut inner.blocks[index];
        let pause = block.pause;
        block.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(Time::now() + pause)
    }

    /// Requests the kill of a block, as [`Task::request_kill`] does for the body. The first cause stays.
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

    /// Posts the host's exception for the block, if a kill is due for it and for no wider target, and not
    /// sooner than [`RESEND_AFTER`] after the last one.
    pub(crate) fn deliver_async_to_block(&self, id: u64) {
        let (interrupter, is_swallowing) = {
            let inner = self.inner.lock();
            let Some(index) = inner.find(id) else {
                return;
            };
            let block = &inner.blocks[index];
            (block.interrupter.clone(), block.is_swallowing())
        };
        // Each time, since code in the block may have undone the effect of the last call.
        if is_swallowing {
            interrupter.escalate();
        }
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let sees_body = interrupter.sees_body();
                let inside = if sees_body {
                    interrupter.inside()
                } else {
                    None
                };
                let mut inner = self.inner.lock();
                let Some(Target::Block(index)) = inner.due(&self.ledger) else {
                    return;
                };
                let now = Time::now();
                let block = &inner.blocks[index];
                let again = block
                    .last_delivery
                    .is_none_or(|last| now - last >= RESEND_AFTER);
                if block.id != id || !again {
                    return;
                }
                if !sees_body || !inner.may_interrupt_block(index, inside) {
                    interrupter.escalate();
                }
                interrupter.post();
                let block = &mut inner.blocks[index];
                block.posted = true;
                block.last_delivery = Some(now);
            });
        });
        // The block may have been closed while the host prepared something with no lock held.
        let gone = self.inner.lock().find(id).is_none();
        if gone {
            fork::outside(|| interrupter.retract());
        }
    }

    /// True if a kill of one of its blocks is posted.
    #[cfg(feature = "python")]
    pub(crate) fn is_observed(&self) -> bool {
        self.is_kill_requested() && self.inner.lock().blocks.iter().any(|block| block.posted)
    }

    /// On the body's thread, where the host can still choose not to raise: the cause, if the posted kill of
    /// a block is to be raised at this place.
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
        let inside = interrupter.inside();
        if !interrupter.may_deliver_at(place) {
            return None;
        }
        // The index is still right: only this thread opens and closes blocks and masks.
        let mut inner = self.inner.lock();
        if !inner.may_interrupt_block(index, inside) {
            return None;
        }
        let cause = inner.deliver_to_block(index);
        // A block that swallows `Killed` gets it before its next step as well; any other once.
        let block = &mut inner.blocks[index];
        block.posted = block.is_swallowing();
        if !block.posted {
            drop(inner);
            interrupter.retract();
        }
        cause
    }

    /// The kill that ends a hold taken inside a block: `number` is the hold's entry in the ledger.
    /// `None`: no kill was raised in a block around it.
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

    /// The record of a kill of this task, or of a block of it, for the poison of a lock.
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
