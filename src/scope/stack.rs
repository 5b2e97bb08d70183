//! Which scopes are in force: rule 6 of [`scope`](super).
//!
//! A scope is in force while its block is on the stack of the thread that has opened it. The core cannot
//! see a suspended generator, or an end that the host has skipped, so it asks the host ([`Presence`]) when
//! something depends on it:
//!
//! | the frame is | the host says | then it is |
//! |---|---|---|
//! | in force | `Here` | in force |
//! | in force | `Away` | away: no checkpoint sees it, no kill is due for it, and as a zone it defers none |
//! | in force, or away | `Gone`, or its node was closed by another thread | gone: as if its end had run, without an exception |
//! | away | `Here` | in force again, and innermost, for its block is above all that the thread has entered since |
//!
//! The calling thread alone changes its frames, and its stack does not change during a call of the core, so
//! an answer holds until the call returns. The host may run code of its own while it looks, so it is asked
//! with nothing borrowed, and the answers are applied to frames that are still there.

use std::cell::Cell;
use std::mem;
use std::num::NonZeroU64;

use super::forced::leave_task_of_thread;
use super::{
    CONTEXT, Context, Frame, Kind, OPEN, current_task, note_open, run_abandon_hooks, unmask,
};
use crate::cause::CauseKind;
use crate::host::{self, Home, Presence};
use crate::token::tree::NodeRef;

/// Brings the frames of the calling thread into agreement with its stack. May block only if the end of a
/// block with an abandon hook was skipped, for its hook.
pub(crate) fn settle() {
    settle_before(Home::NATIVE);
}

/// [`settle`], before the thread enters a block of this home. A scope of the same home whose function is
/// on top of the stack is gone: no thread is at the beginning of a statement and inside it.
pub(crate) fn settle_before(entered: Home) {
    if OPEN.with(Cell::get) && !are_all_here(entered) {
        sort_out(entered);
    }
}

/// The answer of the host, but for a scope whose statement is entered anew.
fn presence(home: Home, entered: Home) -> Presence {
    match host::presence(home) {
        Presence::Here(0) if home == entered && home.place != 0 => Presence::Gone,
        presence => presence,
    }
}

/// True if no frame has to move. Costs a look at the stack for each frame that is not native.
fn are_all_here(entered: Home) -> bool {
    let mut at = 0;
    loop {
        let home = CONTEXT.with(|context| {
            let frames = context.frames.borrow();
            let is_home = |frame: &&Frame| !frame.home.is_native();
            let next = frames[at.min(frames.len())..]
                .iter()
                .position(|frame| is_home(&frame))?;
            at += next + 1;
            let frame = &frames[at - 1];
            Some((frame.home, is_closed(frame)))
        });
        let Some((home, closed)) = home else {
            return CONTEXT.with(|context| context.away.borrow().is_empty());
        };
        if closed || !matches!(presence(home, entered), Presence::Here(_)) {
            return false;
        }
    }
}

/// True if the block was closed by another thread than its own, or its object is no more.
fn is_closed(frame: &Frame) -> bool {
    frame.node.is_cancelled()
        && frame.kind != Kind::Task
        && frame.node.is_cancelled_itself()
        && (frame.node.cause()).is_some_and(|cause| cause.kind == CauseKind::ScopeExited)
}

/// The rest of [`settle`].
#[cold]
fn sort_out(entered: Home) {
    let asked: Vec<_> = CONTEXT.with(|context| {
        let (frames, away) = (context.frames.borrow(), context.away.borrow());
        let all = frames.iter().chain(away.iter());
        all.map(|frame| (frame.node.clone(), frame.home, is_closed(frame)))
            .collect()
    });
    let answers: Vec<_> = asked
        .into_iter()
        .map(|(node, home, closed)| {
            let presence = if closed {
                Presence::Gone
            } else {
                presence(home, entered)
            };
            (node, presence)
        })
        .collect();
    let moved = CONTEXT.with(|context| Moved::apply(context, &answers));
    moved.finish();
}

/// The frames that change their state, for the steps that need the context to be free.
#[derive(Default)]
struct Moved {
    /// Their ends were skipped. In the order in which they were entered.
    gone: Vec<Frame>,
    /// Nodes and blocks of the frames that are away from now on.
    away: Vec<Parked>,
    /// Nodes and blocks of those that are in force again.
    back: Vec<Parked>,
}

/// What a task has to know of a frame that goes away, or comes back.
struct Parked {
    /// The zone that defers kills only while it is in force.
    zone: Option<NodeRef>,
    /// The block that is killed only while it is in force.
    forced: Option<NonZeroU64>,
}

impl Parked {
    fn of(frame: &Frame) -> Parked {
        Parked {
            zone: (frame.kind == Kind::Cleanup).then(|| frame.node.clone()),
            forced: frame.forced,
        }
    }
}

impl Moved {
    fn apply(context: &Context, answers: &[(NodeRef, Presence)]) -> Moved {
        let presence = |frame: &Frame| {
            let known = answers.iter().find(|(node, _)| node.same(&frame.node));
            known.map(|(_, presence)| *presence)
        };
        let mut moved = Moved::default();
        let (mut frames, mut away) = (context.frames.borrow_mut(), context.away.borrow_mut());
        let mut back = Vec::new();
        let mut still_away = Vec::new();
        for frame in away.drain(..) {
            match presence(&frame) {
                Some(Presence::Here(depth)) => back.push((depth, frame)),
                Some(Presence::Gone) => moved.gone.push(frame),
                Some(Presence::Away) | None => still_away.push(frame),
            }
        }
        for frame in mem::take(&mut *frames) {
            match presence(&frame) {
                Some(Presence::Away) => {
                    moved.away.push(Parked::of(&frame));
                    still_away.push(frame);
                }
                Some(Presence::Gone) => moved.gone.push(frame),
                Some(Presence::Here(_)) | None => frames.push(frame),
            }
        }
        // The deepest in the stack is the outermost; frames of one function keep their order.
        back.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        for (_, frame) in back {
            moved.back.push(Parked::of(&frame));
            frames.push(frame);
        }
        *away = still_away;
        super::foreign_calls::changed(context, &frames);
        moved.gone.iter().for_each(|frame| unmask(frame, context));
        note_open(context, &frames, &away);
        moved
    }

    /// Tells the task, and runs the hooks of blocks whose ends were skipped. Nothing is borrowed.
    fn finish(self) {
        if let Some(task) = current_task() {
            for frame in self.away {
                frame.zone.iter().for_each(|zone| task.unmask_zone(zone));
                frame
                    .forced
                    .iter()
                    .for_each(|id| task.suspend_block(id.get()));
            }
            for frame in self.back {
                frame.zone.iter().for_each(|zone| task.mask_zone(zone));
                frame
                    .forced
                    .iter()
                    .for_each(|id| task.resume_block(id.get()));
            }
        }
        end(&self.gone);
    }
}

/// The end of frames that were taken out of the context: in their task, and by their hooks.
fn end(gone: &[Frame]) {
    if let Some(task) = current_task() {
        for block in gone.iter().filter_map(|frame| frame.forced) {
            task.remove_block(block.get());
        }
        if task.is_of_thread() {
            leave_task_of_thread();
        }
    }
    run_abandon_hooks(gone);
}

/// The object that stands for a block is no more, so its end can never run: takes the scope off the
/// calling thread, or has its own thread take it off when it next looks. Never blocks. A block with an
/// abandon hook is left to the scope around it, since hooks may block.
#[cfg(feature = "python")]
pub(crate) fn discard(node: &NodeRef) {
    let found = CONTEXT.try_with(|context| {
        let mut frames = context.frames.try_borrow_mut().ok()?;
        let mut away = context.away.try_borrow_mut().ok()?;
        let is_it = |frame: &Frame| frame.node.same(node) && frame.abandon_hook().is_none();
        let frame = if let Some(at) = frames.iter().rposition(is_it) {
            frames.remove(at)
        } else {
            let at = away.iter().position(is_it)?;
            away.remove(at)
        };
        super::foreign_calls::changed(context, &frames);
        unmask(&frame, context);
        note_open(context, &frames, &away);
        Some(frame)
    });
    match found {
        Ok(Some(frame)) => {
            end(std::slice::from_ref(&frame));
            drop(frame);
            super::close_unless_private(node);
        }
        _ => node.close(CauseKind::ScopeExited),
    }
}
