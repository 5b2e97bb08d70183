//! Which cancellations a scope sees, and which it absorbs: rules 1, 3 and 5 of [`scope`](super).
//!
//! All functions take the frames of the calling thread, innermost last, and change none of them. The
//! fields that they read of a node (its cause, its deadline) may be written by any thread meanwhile; a
//! cause is final, and a deadline of a zone only moves earlier, so a late answer is still correct.
//!
//! A stop that leaves a block, by rule 3:
//!
//! | the exiting scope | is cancelled | a visible scope further out is | the stop                      |
//! |-------------------|--------------|--------------------------------|-------------------------------|
//! | plain             | yes          | not cancelled                  | is absorbed                   |
//! | plain             | with it      | cancelled                      | goes on; that one absorbs it  |
//! | shield, zone      | yes          | none is visible                | is absorbed                   |
//! | any               | no           | not cancelled                  | goes on, up to the task's end |
//!
//! The end of a clean-up zone, by rule 5, is the earliest of its own limit and the cut-offs of all
//! frames that limit it ([`limiting`]). A frame's cut-off is known when the zone is entered if the frame
//! has a deadline or is cancelled ([`cutoff`]); a later cancellation moves the zone's deadline
//! ([`shorten_on_cancel`]). That callback may run on another thread, so before a decision the zones in an
//! expired one are ended first ([`end_nested_zones`]).

use std::time::Duration;

use super::{Exit, Frame, Kind};
use crate::cause::DEFAULT_GRACE;
use crate::clock::Time;
use crate::fork;
use crate::token::tree::NodeRef;
use crate::token::{CancelToken, Registration, timer};

/// Rule 3, for the innermost frame, which is about to be popped. Deadlines that have passed unnoticed are
/// looked at first, so that the decision does not depend on the timer's speed.
pub(super) fn absorb(frames: &[Frame]) -> Exit {
    let Some(exiting) = frames.last() else {
        return Exit::Pass;
    };
    end_nested_zones(frames);
    exiting.node.poll(Time::now());
    let outermost = visible(frames, frames.len())
        .filter(|frame| frame.node.is_cancelled())
        .last();
    match outermost.and_then(|frame| {
        frame
            .node
            .cause()
            .filter(|_| frame.node.same(&exiting.node))
    }) {
        Some(cause) => Exit::Absorbed(Box::new(cause)),
        None => Exit::Pass,
    }
}

/// The frames visible from inside the one before `end`, innermost first (rule 1): plain ones, and the
/// first of another kind, which hides the rest.
pub(super) fn visible(frames: &[Frame], end: usize) -> impl Iterator<Item = &Frame> {
    let mut open = true;
    frames[..end]
        .iter()
        .rev()
        .take_while(move |frame| std::mem::replace(&mut open, frame.kind == Kind::Plain))
}

/// The nodes that the cancellations visible from inside `frames` reach, innermost first: the innermost
/// frame's, and that of each visible frame which is not an ancestor of the one before. In the tree, a
/// frame is below the one around it, unless it is a generator's or hides what is outside.
pub(super) fn reaching(frames: &[Frame]) -> impl Iterator<Item = &NodeRef> {
    let mut within: Option<&NodeRef> = None;
    visible(frames, frames.len()).filter_map(move |frame| {
        let is_above = within
            .and_then(NodeRef::parent)
            .is_some_and(|parent| parent.same(&frame.node));
        within = Some(&frame.node);
        (!is_above).then_some(&frame.node)
    })
}

/// The frames that limit a zone opened inside `frames`, innermost first. Unlike [`visible`] it looks
/// through other zones: a cancellation that ends the outer zone ends one inside it at the same instant.
/// A shield, or the task's frame, is the last.
pub(super) fn limiting(frames: &[Frame]) -> impl Iterator<Item = &Frame> {
    let mut open = true;
    let until_hidden = move |frame: &&Frame| {
        let through = matches!(frame.kind, Kind::Plain | Kind::Cleanup);
        std::mem::replace(&mut open, through)
    };
    frames.iter().rev().take_while(until_hidden)
}

/// Ends the zones inside a zone that has expired, at the outer one's cut-off. The callbacks of
/// [`shorten_on_cancel`] do the same, but on the callback thread, so perhaps not before the calling
/// thread's next checkpoint. Costs a pass over the frames where fewer than two zones are open.
pub(super) fn end_nested_zones(frames: &[Frame]) {
    let is_zone = |frame: &&Frame| frame.kind == Kind::Cleanup;
    if frames.iter().filter(is_zone).count() < 2 {
        return;
    }
    let now = Time::now();
    for (at, zone) in frames.iter().enumerate() {
        if zone.kind != Kind::Cleanup {
            continue;
        }
        let ended = limiting(&frames[..at])
            .filter(|outer| outer.kind == Kind::Cleanup && outer.node.poll(now));
        if let Some(end) = ended.map(cutoff).min() {
            timer::bring_forward(&zone.node, end);
        }
    }
}

/// The instant at which a clean-up zone inside `frame` ends because of it: its cancellation plus the
/// grace. Before it is cancelled its deadline stands for the cancellation, so that the result is
/// [`Time::NEVER`] for a frame without one.
///
/// The grace is the canceller's; else the frame's own; else [`DEFAULT_GRACE`], or nothing if the frame is
/// itself a zone.
pub(super) fn cutoff(frame: &Frame) -> Time {
    let cause = frame.node.cause();
    let at = cause
        .as_ref()
        .map_or_else(|| frame.node.own_deadline(), |cause| cause.at);
    let given = cause.and_then(|cause| cause.grace).or(frame.grace);
    at + given.unwrap_or_else(|| default_grace(frame.kind))
}

/// The grace of a cancellation that names none, at a frame that names none.
fn default_grace(kind: Kind) -> Duration {
    match kind {
        // A zone in a zone has no grace beyond the outer one's (I8).
        Kind::Cleanup => Duration::ZERO,
        _ => DEFAULT_GRACE,
    }
}

/// Registers a callback that moves the zone's deadline earlier when `frame` is cancelled; never later, so
/// the order in which several of them run does not matter. From then on each cancel with a shorter grace
/// does the same.
///
/// The timer is not told of the frame's deadline: the zone's own deadline has it in already, and one that
/// moves is told to the timer by the move.
pub(super) fn shorten_on_cancel(zone: &NodeRef, frame: &Frame) -> Registration {
    let (zone, node) = (zone.clone(), frame.node.clone());
    let own = frame.grace.unwrap_or_else(|| default_grace(frame.kind));
    CancelToken::from_unarmed(frame.node.clone()).on_cancel(move |cause| {
        let _inside = fork::inside(); // callbacks run outside the core, and this one locks the timer
        let end = cause.at + cause.grace.unwrap_or(own);
        let end = end.min(node.watch_grace(&zone, own));
        timer::bring_forward(&zone, end);
    })
}
