//! Blocks that are ended by force: `cancel_scope(..., kill_after=...)`.
//!
//! Such a block is a plain scope which the thread's task knows by a number as well. If it still runs
//! `kill_after` after its own cancellation, the enforcer has `Killed` raised in it, again and again,
//! until it is left. From the first step of [`exit_forced`] on nothing is raised for it (I22): the task
//! withdraws the kill under the lock under which it would be posted. A thread outside of any task gets a
//! task that stands for it, for as long as it is in such a block.
//!
//! How the exit of a forced block ends, by the stop that unwinds out of it:
//!
//! | unwinding     | the block's kill             | a scope further out | result                     |
//! |---------------|------------------------------|---------------------|----------------------------|
//! | nothing       | any                          | any                 | [`ForcedExit::Pass`]       |
//! | `Cancelled`   | any                          | by rule 3           | `Absorbed`, or `Pass`      |
//! | `Killed`      | meant for this block         | not cancelled       | `Absorbed`                 |
//! | `Killed`      | meant for this block         | cancelled, visible  | [`ForcedExit::Outward`]    |
//! | `Killed`      | meant for a block further out, or the task | any   | `Pass`                     |
//!
//! The host may skip a block's end (its exception tables have gaps). A kill that arrives at an
//! outer block therefore first closes the frames inside it, see [`close_above`].
//!
//! Lock order and borrows are those of [`scope`](super). `Task::open_block` is called under a borrow of
//! the context: it locks the task's state, and calls nothing of the host.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::{
    CONTEXT, Exit, Extras, Frame, Kind, current_ledger, current_task, exit, note_open, open, settle,
};
use crate::cause::Cause;
use crate::clock::Time;
use crate::enforcer::BlockWatch;
use crate::error::ScopeMisuse;
use crate::host::{self, Home};
use crate::ledger::Termination;
use crate::stack::Stack;
use crate::task::{BlockExit, Interrupter, Task};
use crate::token::CancelToken;
use crate::token::tree::NodeRef;

/// The stop that unwinds out of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwinding {
    /// None: the block ended by itself, or with an error.
    Nothing,
    /// A cancellation; of which scope is decided by rule 3.
    Cancelled,
    /// A kill; of the block, of one further out, or of the whole task.
    Killed,
}

/// The effect of a forced block's exit on the stop that unwinds out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForcedExit {
    /// Nothing: an exception that is unwinding goes on.
    Pass,
    /// The stop was this block's, and ends here.
    Absorbed(Box<Cause>),
    /// The kill was this block's and ends here, but a scope further out is cancelled, too, so nothing
    /// is absorbed: the caller performs a checkpoint, which raises that cancellation.
    Outward,
}

/// Open a scope on the calling thread that is ended by `interrupter` if it still runs `kill_after`
/// after its own cancellation. `cancelled`: the cause, if it was cancelled before it was entered; it is
/// set before the enforcer looks, which then counts from it. The watch is to be dropped when the block
/// has ended, and told when the deadline was moved.
pub(crate) fn enter_forced(
    deadline: Time,
    grace: Option<Duration>,
    cancelled: Option<Cause>,
    kill_after: Duration,
    home: Home,
    token: Option<&CancelToken>,
    interrupter: Arc<dyn Interrupter>,
) -> (NodeRef, BlockWatch) {
    // Before anything is borrowed: the host names the thread.
    let task = current_task().unwrap_or_else(|| {
        let name = host::thread_name().unwrap_or_else(|| "a thread".into());
        Task::of_thread(&name, current_ledger())
    });
    let extras = Extras {
        token,
        abandon_hook: None,
    };
    let node = open(Kind::Plain, deadline, grace, home, extras);
    if let Some(cause) = cancelled {
        node.cancel(cause);
    }
    let id = CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let frame = frames.last_mut()?;
        let id = task.open_block(&node, kill_after, frame.first_seq, interrupter);
        frame.forced = NonZeroU64::new(id);
        context.set_task(Some(task.clone()));
        Some(id)
    });
    (
        node,
        BlockWatch::begin(&task, id.unwrap_or_default(), token),
    )
}

/// Leave a scope that [`enter_forced`] opened. `stack`: where `Killed` was raised; called only if a kill
/// was raised in the block, for the poison of the locks that it held.
///
/// Order of the steps: close the block in the task, so that no kill is raised from here on; reclaim the
/// holds acquired inside, if a kill was raised there; pop the frame; drop the task of the thread, if
/// this was the last forced block.
///
/// # Errors
/// As [`exit`]. If the scope is not open on this thread nothing has changed.
pub(crate) fn exit_forced(
    node: &NodeRef,
    unwinding: Unwinding,
    stack: impl FnOnce() -> Option<Stack>,
) -> Result<ForcedExit, ScopeMisuse> {
    let find = || {
        CONTEXT.with(|context| {
            let frames = context.frames.borrow();
            let frame = frames.iter().rfind(|frame| frame.node.same(node))?;
            Some((frame.forced, frame.first_seq, context.task.borrow().clone()))
        })
    };
    let found = find().or_else(|| {
        settle(); // a generator's, which was suspended
        find()
    });
    let (forced, first_seq, task) = found.ok_or(ScopeMisuse::WrongThread)?;
    let left = match (&task, forced) {
        (Some(task), Some(id)) => task.close_block(id.get()),
        _ => BlockExit::default(),
    };
    if let (Some(task), Some(cause)) = (&task, left.killed) {
        // All kinds of holds: the code that was to call `release` was in the killed block as well.
        let kill = Arc::new(task.kill_info_of(cause, stack()));
        task.ledger()
            .sweep_since(first_seq, &Termination::Killed(kill));
    }
    let absorbs = unwinding == Unwinding::Killed && left.absorbs;
    let exit = exit(node, absorbs || unwinding == Unwinding::Cancelled);
    // Also if the exit failed: the frame is gone, and with it the need of the task.
    if task.is_some_and(|task| task.is_of_thread()) {
        leave_task_of_thread();
    }
    Ok(match exit? {
        Exit::Absorbed(cause) => ForcedExit::Absorbed(cause),
        Exit::Pass if absorbs => ForcedExit::Outward,
        Exit::Pass => ForcedExit::Pass,
    })
}

/// Close the scopes inside the one with this node, at which a kill has arrived: the host has skipped
/// their ends. Without effect if the node is not open on this thread, or innermost. May block, in the
/// hooks of the blocks that are abandoned.
#[cfg(any(feature = "python", all(test, not(loom))))]
pub(crate) fn close_above(node: &NodeRef) {
    let left = CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let at = frames.iter().rposition(|frame| frame.node.same(node));
        let first = at.map_or(frames.len(), |at| at + 1);
        let above = frames.split_off(first);
        super::foreign_calls::changed(context, &frames);
        above
            .iter()
            .rev()
            .for_each(|frame| super::unmask(frame, context));
        above
    });
    // The outermost forced block among them; closing it closes those inside it.
    if let (Some(block), Some(task)) = (left.iter().find_map(|frame| frame.forced), current_task())
    {
        task.close_block(block.get());
        if task.is_of_thread() {
            leave_task_of_thread();
        }
    }
    super::run_abandon_hooks(&left); // outside the borrow, as is their drop
}

/// Drop the task that stands for the calling thread, unless a forced block is still open on it.
pub(super) fn leave_task_of_thread() {
    let task = CONTEXT.with(|context| {
        let frames = context.frames.borrow();
        let is_forced = |frame: &Frame| frame.forced.is_some();
        if frames.iter().any(is_forced) || context.away.borrow().iter().any(is_forced) {
            return None;
        }
        let task = context.set_task(None);
        note_open(context, &frames, &context.away.borrow());
        task
    });
    drop(task); // outside the borrow
}
