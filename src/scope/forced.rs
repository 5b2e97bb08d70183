//! Blocks that are ended by force, see [`enter_forced`].

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::{CONTEXT, Exit, Kind, OPEN, current_ledger, current_task, exit, forsake, open, unmask};
use crate::cause::Cause;
use crate::clock::Time;
use crate::enforcer::Watch;
use crate::error::ScopeMisuse;
use crate::host;
use crate::ledger::Termination;
use crate::stack::Stack;
use crate::task::{Force, Left, Task};
use crate::token::tree::NodeRef;

/// What leaves a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwinding {
    /// No stop: it ended by itself, or with an error.
    Nothing,
    Cancelled,
    Killed,
}

/// How a block was left that can be ended by force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForcedExit {
    Pass,
    /// The stop was this block's, and ends here.
    Absorbed(Cause),
    /// The kill was this block's and ends here, but a scope further out is cancelled, too: the
    /// next checkpoint raises that.
    Outward,
}

/// Open a scope on the calling thread that is ended by `force` if it still runs `kill_after` after
/// it was cancelled. `cancelled`: by this, before it was entered.
pub(crate) fn enter_forced(
    deadline: Time,
    grace: Option<Duration>,
    cancelled: Option<Cause>,
    kill_after: Duration,
    force: Arc<dyn Force>,
) -> (NodeRef, Watch) {
    let task = current_task().unwrap_or_else(|| {
        let name = host::thread_name().unwrap_or_else(|| "a thread".into());
        Task::of_thread(&name, current_ledger())
    });
    let node = open(Kind::Plain, deadline, grace, None);
    if let Some(cause) = cancelled {
        node.cancel(cause);
    }
    let id = CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let frame = frames.last_mut()?;
        let id = task.open_block(&node, kill_after, frame.recorded, force);
        frame.forced = NonZeroU64::new(id);
        context.task.replace(Some(task.clone()));
        Some(id)
    });
    (node, Watch::begin(&task, id.unwrap_or_default()))
}

/// Leave a scope that [`enter_forced`] opened. From its first step on nothing strikes the block.
/// `stack`: where `Killed` was raised, if anybody needs to know.
pub(crate) fn exit_forced(
    node: &NodeRef,
    unwinding: Unwinding,
    stack: impl FnOnce() -> Option<Stack>,
) -> Result<ForcedExit, ScopeMisuse> {
    let found = CONTEXT.with(|context| {
        let frames = context.frames.borrow();
        let frame = frames.iter().rfind(|frame| frame.node.same(node))?;
        Some((frame.forced, frame.recorded, context.task.borrow().clone()))
    });
    let (forced, recorded, task) = found.ok_or(ScopeMisuse::WrongThread)?;
    let left = match (&task, forced) {
        (Some(task), Some(id)) => task.close_block(id.get()),
        _ => Left::default(),
    };
    if let (Some(task), Some(cause)) = (&task, left.struck) {
        // Also what was not taken by a block: whoever was to release it may have been struck.
        let kill = Arc::new(task.kill_info_of(cause, stack()));
        task.ledger()
            .sweep_since(recorded, &Termination::Killed(kill));
    }
    let absorbs = unwinding == Unwinding::Killed && left.absorbs;
    let exit = exit(node, absorbs || unwinding == Unwinding::Cancelled);
    if task.is_some_and(|task| task.is_of_thread()) {
        leave_task_of_thread();
    }
    Ok(match exit? {
        Exit::Absorbed(cause) => ForcedExit::Absorbed(cause),
        Exit::Pass if absorbs => ForcedExit::Outward,
        Exit::Pass => ForcedExit::Pass,
    })
}

/// Close the scopes inside the one with this node, at which a kill has arrived: it has skipped their
/// ends, by a hole in its host's unwinding.
pub(crate) fn close_above(node: &NodeRef) {
    let left = CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let at = frames.iter().rposition(|frame| frame.node.same(node));
        let first = at.map_or(frames.len(), |at| at + 1);
        let above = frames.split_off(first);
        above.iter().rev().for_each(|frame| unmask(frame, context));
        above
    });
    if let (Some(block), Some(task)) = (left.iter().find_map(|frame| frame.forced), current_task())
    {
        task.close_block(block.get());
        if task.is_of_thread() {
            leave_task_of_thread();
        }
    }
    forsake(&left); // outside the borrow, as what drops them
}

/// A thread outside of any task has one for as long as it is in a block that needs it.
fn leave_task_of_thread() {
    let task = CONTEXT.with(|context| {
        let frames = context.frames.borrow();
        if frames.iter().any(|frame| frame.forced.is_some()) {
            return None;
        }
        OPEN.with(|open| open.set(!frames.is_empty()));
        context.task.take()
    });
    drop(task); // outside the borrow
}

/// The process was forked: what is open on the calling thread is not ended by force any more.
pub(crate) fn forget_force() {
    if let Some(task) = current_task() {
        task.forget_blocks();
    }
}
