//! Which cancellations a scope sees, and which it absorbs: rules 1, 3 and 5 of [`scope`](super).

use std::time::Duration;

use super::{Exit, Frame, Kind};
use crate::cause::DEFAULT_GRACE;
use crate::clock::Time;
use crate::fork;
use crate::token::tree::NodeRef;
use crate::token::{CancelToken, Registration, timer};

/// Rule 3, for the innermost frame.
pub(super) fn absorb(frames: &[Frame]) -> Exit {
    let Some(exiting) = frames.last() else {
        return Exit::Pass;
    };
    meet_outer_zones(frames);
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
        Some(cause) => Exit::Absorbed(cause),
        None => Exit::Pass,
    }
}

/// The frames visible from inside the one before `end`, innermost first (rule 1).
pub(super) fn visible(frames: &[Frame], end: usize) -> impl Iterator<Item = &Frame> {
    let mut open = true;
    frames[..end]
        .iter()
        .rev()
        .take_while(move |frame| std::mem::replace(&mut open, frame.kind == Kind::Plain))
}

/// The frames whose cancellation ends a zone opened now: a zone in a zone is ended by what ends
/// the outer one, at the same instant, and with the outer one.
pub(super) fn beyond_zones(frames: &[Frame]) -> impl Iterator<Item = &Frame> {
    let mut open = true;
    let until_hidden = move |frame: &&Frame| {
        let through = matches!(frame.kind, Kind::Plain | Kind::Cleanup);
        std::mem::replace(&mut open, through)
    };
    frames.iter().rev().take_while(until_hidden)
}

/// A zone whose end was moved to the past takes those in it along. Somebody is told of that by the
/// timer, but not before the next checkpoint.
pub(super) fn meet_outer_zones(frames: &[Frame]) {
    let is_zone = |frame: &&Frame| frame.kind == Kind::Cleanup;
    if frames.iter().filter(is_zone).count() < 2 {
        return;
    }
    let now = Time::now();
    for (at, zone) in frames.iter().enumerate() {
        if zone.kind != Kind::Cleanup {
            continue;
        }
        let ended = beyond_zones(&frames[..at])
            .filter(|outer| outer.kind == Kind::Cleanup && outer.node.poll(now));
        if let Some(end) = ended.map(cutoff).min() {
            if end < zone.node.own_deadline() {
                timer::set(&zone.node, end);
            }
        }
    }
}

/// When a clean-up zone inside `frame` ends because of it: now known, or once it is cancelled.
pub(super) fn cutoff(frame: &Frame) -> Time {
    let cause = frame.node.cause();
    let at = cause
        .as_ref()
        .map_or_else(|| frame.node.own_deadline(), |cause| cause.at);
    let given = cause.and_then(|cause| cause.grace).or(frame.grace);
    at + given.unwrap_or_else(|| default_grace(frame.kind))
}

fn default_grace(kind: Kind) -> Duration {
    match kind {
        // A zone in a zone shares the outer one's budget.
        Kind::Cleanup => Duration::ZERO,
        _ => DEFAULT_GRACE,
    }
}

/// Move the zone's end earlier when `frame` is cancelled.
pub(super) fn shorten_with(zone: &NodeRef, frame: &Frame) -> Registration {
    let zone = zone.clone();
    let own = frame.grace.unwrap_or_else(|| default_grace(frame.kind));
    CancelToken::from_unarmed(frame.node.clone()).on_cancel(move |cause| {
        let _inside = fork::inside(); // it is not the host's code
        let end = cause.at + cause.grace.unwrap_or(own);
        if end < zone.own_deadline() {
            timer::set(&zone, end);
        }
    })
}
