//! Kills of single blocks, with an interrupter that counts.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicI32};

use super::*;
use crate::boundary::{BodyEnd, Boundary};
use crate::cause::CauseKind;
use crate::clock::testing;
use crate::error::{ScopeMisuse, Stop};
use crate::host::Home;
use crate::scope::{self, ForcedExit, Unwinding};
use crate::sync::{Acquire, Lock};
use crate::wait::checkpoint;

const HOUR: Duration = Duration::from_secs(3600);
const AT_ONCE: Time = Time::from_nanos(0);

/// The content of the slot of the block's thread.
#[derive(Default)]
struct Slot {
    posted: AtomicI32,
    refuses: AtomicBool,
    escalated: AtomicBool,
}

impl Slot {
    fn posted(&self) -> i32 {
        self.posted.load(Ordering::Relaxed)
    }
}

impl Interrupter for Slot {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        then();
    }

    fn post(&self) {
        self.posted.store(1, Ordering::Relaxed);
    }

    fn retract(&self) {
        self.posted.store(0, Ordering::Relaxed);
    }

    fn may_deliver_at(&self, place: Option<u32>) -> bool {
        !self.refuses.load(Ordering::Relaxed) && place.is_some()
    }

    fn escalate(&self) {
        self.escalated.store(true, Ordering::Relaxed);
    }

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

/// An open block of the calling thread.
struct Open {
    node: NodeRef,
    task: Arc<Task>,
    id: u64,
    slot: Arc<Slot>,
    _watch: crate::enforcer::BlockWatch,
}

fn open() -> Open {
    open_until(Time::NEVER, HOUR)
}

fn open_until(deadline: Time, kill_after: Duration) -> Open {
    let slot = Arc::new(Slot::default());
    let (node, watch) = scope::enter_forced(
        deadline,
        None,
        None,
        kill_after,
        Home::NATIVE,
        None,
        slot.clone(),
    );
    let task = scope::current_task().unwrap();
    let id = task.inner.lock().blocks.last().unwrap().id;
    Open {
        node,
        task,
        id,
        slot,
        _watch: watch,
    }
}

impl Open {
    /// Cancel the block, and request its kill.
    fn kill(&self, lock_grace_until: Time) {
        let cause = Cause::now(CauseKind::Explicit, Some("a test".into()), None);
        self.node.cancel(cause.clone());
        self.task
            .request_block_kill(self.id, &cause, lock_grace_until);
    }

    fn deliver(&self) -> i32 {
        self.task.deliver_async_to_block(self.id);
        self.slot.posted()
    }

    fn leave(self, unwinding: Unwinding) -> Result<ForcedExit, ScopeMisuse> {
        scope::exit_forced(&self.node, unwinding, || None)
    }
}

fn absorbed(exit: Result<ForcedExit, ScopeMisuse>) -> bool {
    matches!(exit, Ok(ForcedExit::Absorbed(cause)) if cause.reason.as_deref() == Some("a test"))
}

fn killed() -> bool {
    matches!(checkpoint(), Err(Stop::Killed(_)))
}

#[test]
fn i22_a_kill_posted_at_a_block_is_retracted_at_its_end_and_none_is_posted_afterwards() {
    let block = open();
    block.kill(AT_ONCE);
    assert_eq!(block.deliver(), 1);
    let (task, id, slot) = (block.task.clone(), block.id, block.slot.clone());
    assert_eq!(block.leave(Unwinding::Nothing), Ok(ForcedExit::Pass));
    assert_eq!(slot.posted(), 0);
    task.request_block_kill(id, &Cause::deadline(Time::now()), AT_ONCE);
    task.deliver_async_to_block(id);
    assert_eq!((slot.posted(), task.interrupt_block(id)), (0, None));
    assert_eq!(checkpoint(), Ok(()));
}

#[test]
fn a_thread_has_a_task_only_while_it_is_in_such_a_block() {
    assert!(scope::current_task().is_none());
    let (outer, inner) = (open(), open());
    assert!(Arc::ptr_eq(&outer.task, &inner.task) && inner.task.is_of_thread());
    inner.leave(Unwinding::Nothing).unwrap();
    assert!(scope::current_task().is_some());
    outer.leave(Unwinding::Nothing).unwrap();
    assert!(scope::current_task().is_none());
}

#[test]
fn a_killed_that_leaves_its_block_ends_there() {
    let block = open();
    block.kill(AT_ONCE);
    assert!(killed());
    assert!(absorbed(block.leave(Unwinding::Killed)));
    // A kill that belongs to no open block passes.
    let block = open();
    assert_eq!(block.leave(Unwinding::Killed), Ok(ForcedExit::Pass));
}

#[test]
fn the_outer_block_is_killed_first_and_absorbs() {
    let (outer, inner) = (open(), open());
    inner.kill(AT_ONCE);
    outer.kill(AT_ONCE);
    assert_eq!(inner.deliver(), 0, "it waits for the outer one's");
    assert_eq!(outer.deliver(), 1);
    assert_eq!(inner.leave(Unwinding::Killed), Ok(ForcedExit::Pass));
    assert!(absorbed(outer.leave(Unwinding::Killed)));
}

#[test]
fn the_end_of_the_outer_block_is_that_of_an_inner_one_whose_end_was_skipped() {
    let (outer, inner) = (open(), open());
    inner.kill(AT_ONCE);
    assert_eq!(inner.deliver(), 1);
    scope::close_above(&outer.node);
    assert_eq!(inner.slot.posted(), 0);
    assert_eq!(outer.leave(Unwinding::Killed), Ok(ForcedExit::Pass));
    assert!(scope::current_task().is_none());
}

#[test]
fn a_kill_of_the_whole_task_passes_a_block_unless_it_is_deferred() {
    for masked in [false, true] {
        let task = Task::new("body", None);
        let boundary = Boundary::enter(&task, None);
        if masked {
            task.mask(Time::NEVER);
        }
        let block = open();
        block.kill(AT_ONCE);
        task.request_kill(&Cause::now(CauseKind::Explicit, None, None), AT_ONCE);
        assert!(killed());
        assert_eq!(absorbed(block.leave(Unwinding::Killed)), masked);
        boundary.leave(BodyEnd::Unwound);
    }
}

#[test]
fn i24_only_a_lock_acquired_inside_defers_a_kill() {
    let [before, inside] = [(); 2].map(|()| Lock::default());
    assert!(before.try_acquire(Acquire::Task).unwrap());
    let block = open();
    assert!(inside.try_acquire(Acquire::Task).unwrap());
    block.kill(Time::NEVER);
    assert_eq!((block.deliver(), killed()), (0, false));
    inside.release().unwrap();
    assert_eq!((block.deliver(), killed()), (1, true));
    block.leave(Unwinding::Killed).unwrap();
    before.release().unwrap();
}

#[test]
fn i25_only_a_mask_opened_inside_defers_a_kill() {
    let outermost = open();
    let outer = outermost.task.mask(Time::NEVER);
    let block = open();
    block.kill(AT_ONCE);
    assert_eq!(block.deliver(), 1);
    let inner = block.task.mask(Time::NEVER);
    assert_eq!(block.slot.posted(), 0, "retracted");
    outermost.task.unmask(outer);
    assert_eq!((block.deliver(), killed()), (0, false));
    block.task.unmask(inner);
    assert!(killed());
    block.leave(Unwinding::Killed).unwrap();
    outermost.leave(Unwinding::Nothing).unwrap();
}

#[test]
fn i21_a_lock_that_a_killed_block_still_holds_is_poisoned_and_one_held_before_is_not() {
    let [before, inside] = [(); 2].map(|()| Lock::default());
    assert!(before.try_acquire(Acquire::Block).unwrap());
    let block = open();
    assert!(inside.try_acquire(Acquire::Task).unwrap());
    block.kill(AT_ONCE);
    assert!(killed());
    let (theirs, ours) = (before.hold_seq(), inside.hold_seq());
    assert!(block.task.kill_info(theirs, None).is_none());
    assert!(block.task.kill_info(ours, None).is_some());
    block.leave(Unwinding::Nothing).unwrap();
    assert!(inside.is_poisoned() && !inside.is_locked());
    assert!(before.is_locked() && !before.is_poisoned());
    before.release().unwrap();
}

#[test]
fn the_locks_of_a_block_that_was_not_killed_are_left_alone() {
    let inside = Lock::default();
    let block = open();
    assert!(inside.try_acquire(Acquire::Task).unwrap());
    block.kill(Time::NEVER);
    block.leave(Unwinding::Nothing).unwrap();
    assert!(inside.is_locked() && !inside.is_poisoned());
    inside.release().unwrap();
}

#[test]
fn a_host_that_can_choose_raises_where_it_may_and_once() {
    let block = open();
    assert_eq!(block.task.deliver_here(Some(1)), None);
    block.kill(AT_ONCE);
    assert_eq!(block.task.deliver_here(Some(1)), None, "not sent for");
    assert_eq!(block.deliver(), 1);
    block.slot.refuses.store(true, Ordering::Relaxed);
    assert_eq!(block.task.deliver_here(Some(1)), None);
    block.slot.refuses.store(false, Ordering::Relaxed);
    assert!(block.task.deliver_here(Some(1)).is_some());
    assert_eq!(block.task.deliver_here(Some(1)), None);
    assert_eq!((block.slot.posted(), block.deliver()), (0, 0), "too soon");
    assert!(absorbed(block.leave(Unwinding::Killed)));
}

#[test]
fn i23_i24_a_block_that_swallows_for_long_is_killed_at_every_step_unless_deferred() {
    let clock = testing::freeze();
    let block = open();
    block.kill(AT_ONCE);
    assert_eq!(block.deliver(), 1);
    assert!(block.task.deliver_here(Some(1)).is_some());
    clock.advance(SWALLOW_LIMIT.saturating_sub(RESEND_AFTER / 2));
    assert_eq!(block.deliver(), 1);
    assert!(block.task.deliver_here(Some(1)).is_some());
    assert_eq!(block.task.deliver_here(Some(1)), None);
    assert!(!block.slot.escalated.load(Ordering::Relaxed));

    clock.advance(RESEND_AFTER);
    assert_eq!(block.deliver(), 1);
    assert!(block.slot.escalated.load(Ordering::Relaxed));
    for _ in 0..3 {
        assert!(block.task.deliver_here(Some(1)).is_some());
    }
    assert_eq!(block.slot.posted(), 1, "it stays");
    let mask = block.task.mask(Time::NEVER);
    assert_eq!(block.slot.posted(), 0);
    clock.advance(RESEND_AFTER);
    assert_eq!(block.deliver(), 0);
    assert_eq!(block.task.deliver_here(Some(1)), None, "masked");
    block.task.unmask(mask);
    assert_eq!(block.deliver(), 1);
    assert!(block.task.deliver_here(Some(1)).is_some());

    let (task, slot) = (block.task.clone(), block.slot.clone());
    assert!(absorbed(block.leave(Unwinding::Killed)));
    assert_eq!((task.deliver_here(Some(1)), slot.posted()), (None, 0));
}

#[test]
fn i23_a_kill_of_a_block_is_delivered_again_and_not_before_it_is_due() {
    let soon = Time::after(HOUR);
    let block = open_until(soon, HOUR);
    assert_eq!(block.task.interrupt_block(block.id), Some(soon + HOUR));
    assert!(!block.node.is_cancelled());
    block.leave(Unwinding::Nothing).unwrap();

    let block = open_until(Time::now(), Duration::ZERO);
    let next = block.task.interrupt_block(block.id).unwrap();
    assert!(next <= Time::after(LONGEST_PAUSE));
    assert_eq!(block.slot.posted(), 1);
    let delivered = Time::now();
    assert!(block.task.arrived().is_some());
    block.slot.retract();
    while block.slot.posted() == 0 {
        block.task.interrupt_block(block.id).unwrap();
        std::thread::yield_now();
    }
    assert!(Time::now() - delivered >= RESEND_AFTER);
    let deadline = matches!(
        block.leave(Unwinding::Killed),
        Ok(ForcedExit::Absorbed(cause)) if cause.kind == CauseKind::Deadline
    );
    assert!(deadline);
}

#[test]
fn a_kill_of_a_block_in_a_cancelled_scope_becomes_the_scopes_cancellation() {
    let outer: Result<Option<()>, Stop> = crate::move_on_after(HOUR, |scope| {
        scope.cancel();
        let block = open();
        block
            .task
            .request_block_kill(block.id, &Cause::deadline(Time::now()), AT_ONCE);
        assert!(killed());
        assert_eq!(block.leave(Unwinding::Killed), Ok(ForcedExit::Outward));
        checkpoint()
    });
    assert_eq!(outer, Ok(None));
}

#[test]
fn i37_no_kill_is_pending_after_a_fork() {
    let block = open();
    block.kill(AT_ONCE);
    assert_eq!(block.deliver(), 1);
    scope::forget_forced_blocks();
    assert_eq!(
        (block.slot.posted(), killed(), block.deliver()),
        (0, false, 0)
    );
    assert_eq!(block.leave(Unwinding::Nothing), Ok(ForcedExit::Pass));
}
