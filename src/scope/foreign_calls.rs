//! What a thread publishes of its scopes, so that a blocking call of code that is not of this crate is
//! ended when its scope is cancelled; and how the code in the scope recognises the error of such a call.
//!
//! Guarantees:
//! 1. What is published is what a checkpoint would look at: the innermost visible node (a cancellation
//!    further out has flagged it, too), and the earliest visible deadline.
//! 2. A call is ended once in a cancellation, then again when the grace is over: the canceller's, else that of the
//!    innermost scope which names one, else [`DEFAULT_GRACE`] (I47). Clean-up code that blocks, for a `QUIT` or
//!    to release a lock on a server, has this time.
//! 3. [`Stop::of_io_error`] recognises the error of an ended call, and no other.
//!
//! | kind    | flag and deadline published              | grace                        | a call was ended outside |
//! |---------|------------------------------------------|------------------------------|--------------------------|
//! | Plain   | of its node; with the deadline outside   | its own, else that outside   | counts                   |
//! | Shield  | of its node                              | its own, else the default    | is remembered for its end |
//! | Cleanup | of its node                              | none: the zone was the grace | is remembered for its end |
//! | Task    | of the task's node                       | the default                  | is remembered for its end |
//!
//! A block that can be suspended (a generator's) publishes what is outside: its thread may be outside it at
//! any call. A scope that is to leave calls alone ([`leave_calls_alone`]), and those inside it, publish nothing.
//! The home of the block is published as well: the host ends a call only while the block is on the thread's
//! stack (I41).
//!
//! A thread takes its slot when it first enters a scope, and keeps it until it ends. In virtual time nothing is
//! published. A frame's node is dropped after what is further out was published again, see `foreign`.

use std::cell::OnceCell;
use std::io;
use std::time::Duration;

use super::{CONTEXT, Context, Frame, Kind, checkpoint};
use crate::cause::DEFAULT_GRACE;
use crate::clock::{Time, source};
use crate::error::Stop;
use crate::foreign::{Seat, Slot, View};
use crate::host::Home;
use crate::token::watcher;

/// The calling thread's slot, once it was asked for; nothing in it: there is none for it.
#[derive(Default)]
pub(super) struct Place(OnceCell<Option<Seat>>);

impl Place {
    /// The slot, for a thread that enters a scope.
    #[inline]
    pub(super) fn slot(&self) -> Option<&'static Slot> {
        let seat = self.0.get_or_init(|| Seat::take(grace(&[])));
        seat.as_ref().map(Seat::slot)
    }

    /// The calling thread is in the body of the task with this number; 0: in none.
    pub(super) fn set_task(&self, task: u64) {
        if let Some(slot) = self.taken() {
            slot.set_task(task);
        }
    }

    /// The slot, if the thread has one.
    #[inline]
    fn taken(&self) -> Option<&'static Slot> {
        self.0.get()?.as_ref().map(Seat::slot)
    }
}

/// What is published while a frame is innermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Its own node's flag, with the two values beside this.
    Own,
    /// As if the frame were not there.
    Outer,
    /// No call is ended.
    Nothing,
}

/// What a frame keeps of this, for the return to it and for its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    ends: Ends,
    /// The earliest visible deadline.
    deadline: Time,
    /// Of a frame that hides what is outside: until when no call is ended outside.
    quiet: u64,
}

impl Published {
    /// For a frame inside the one with `outer`. Publishes nothing yet.
    #[inline]
    pub(super) fn inside(
        outer: Option<&Published>,
        kind: Kind,
        mut deadline: Time,
        home: Home,
    ) -> Published {
        let ends = match outer {
            _ if source::is_set() => Ends::Nothing,
            // Of a task, the frames of its thread are not outside.
            Some(outer) if outer.ends == Ends::Nothing => Ends::Nothing,
            _ if !home.suspendable => Ends::Own,
            _ if kind == Kind::Plain => Ends::Outer,
            _ => Ends::Nothing,
        };
        if let (Kind::Plain, Some(outer)) = (kind, outer) {
            deadline = deadline.min(outer.deadline);
        }
        Published {
            ends,
            deadline,
            quiet: 0,
        }
    }
}

/// True if what is outside such a frame is hidden from inside it.
fn hides(kind: Kind) -> bool {
    kind != Kind::Plain
}

/// The last of the frames was entered: it is the innermost now.
#[inline]
pub(super) fn entered(slot: &Slot, frames: &mut [Frame]) {
    if let Some(frame) = frames.last_mut().filter(|frame| hides(frame.kind)) {
        frame.published.quiet = slot.quiet_until();
        slot.set_quiet_until(0);
    }
    if frames.last().is_some_and(changes_grace) {
        slot.set_grace(grace(frames));
    }
    publish(slot, frames);
}

/// True if the grace inside of such a frame is not the one outside.
fn changes_grace(frame: &Frame) -> bool {
    frame.grace.is_some() || hides(frame.kind)
}

/// How long no further call is ended after the first one, if the canceller names no time. In nanoseconds.
#[cold]
fn grace(frames: &[Frame]) -> u64 {
    let named = frames.iter().rev().find(|frame| changes_grace(frame));
    let grace = match named {
        Some(frame) if frame.kind == Kind::Cleanup => Duration::ZERO,
        Some(frame) => frame.grace.unwrap_or(DEFAULT_GRACE),
        None => DEFAULT_GRACE,
    };
    u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX)
}

/// The frame was left, or is no more; `frames` are those that are left. To be called before it is dropped.
#[inline]
pub(super) fn left(context: &Context, frame: &Frame, frames: &[Frame]) {
    let Some(slot) = context.place.taken() else {
        return;
    };
    publish(slot, frames);
    if changes_grace(frame) {
        slot.set_grace(grace(frames));
    }
    if hides(frame.kind) {
        slot.set_quiet_until(frame.published.quiet);
    } else if slot.quiet_until() != 0
        && !frames.last().is_some_and(|outer| outer.node.is_cancelled())
    {
        slot.set_quiet_until(0); // the cancellation was this frame's
    }
}

/// Several frames have changed. To be called before those that are gone are dropped.
pub(super) fn changed(context: &Context, frames: &[Frame]) {
    if let Some(slot) = context.place.taken() {
        publish(slot, frames);
        slot.set_grace(grace(frames));
        if slot.quiet_until() != 0 && !frames.last().is_some_and(|frame| frame.node.is_cancelled())
        {
            slot.set_quiet_until(0);
        }
    }
}

/// Publishes the innermost of the frames.
#[inline]
fn publish(slot: &Slot, frames: &[Frame]) {
    let mut inwards = frames.iter().rev();
    let Some(frame) = inwards
        .find(|frame| frame.published.ends != Ends::Outer)
        .filter(|frame| frame.published.ends == Ends::Own)
    else {
        return slot.publish(&View::NONE);
    };
    let view = View {
        flag: frame.node.published_flag(),
        deadline: frame.published.deadline,
        home: frame.home,
    };
    watcher::publish(slot, &view, || frame.node.is_cancelled());
}

#[cfg(any(feature = "python", test))]
/// The calls in the innermost scope, which has just been entered, and in those inside it are never ended.
pub(crate) fn leave_calls_alone() {
    CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        if let Some(frame) = frames.last_mut() {
            frame.published.ends = Ends::Nothing;
        }
        changed(context, &frames);
    });
}

/// True if a blocking call of the calling thread was ended in the cancellation that is visible now.
pub(crate) fn has_ended_call() -> bool {
    CONTEXT.with(|context| context.place.taken().is_some_and(Slot::has_ended_call))
}

#[cfg(feature = "python")]
/// The code of the calling thread has met the error of the call that was ended last.
pub(crate) fn note_raised() {
    let slot = CONTEXT.with(|context| context.place.taken());
    if let Some(slot) = slot.filter(|slot| slot.note_raised()) {
        slot.mark();
        watcher::wake();
    }
}

impl Stop {
    /// The stop, if `error` is that of a blocking call which was ended because the calling thread is to stop.
    ///
    /// In a cancelled scope, a blocking call of `std` (a `read` of a pipe or a socket, `accept`, the wait for a
    /// child process) fails with the error `ECANCELED`, on Linux; the call has had no effect. Ask for the
    /// stop where the error is converted, and hand it upwards like any other:
    ///
    /// ```
    /// use desist::{DeadlineExceeded, Stop};
    ///
    /// enum Error {
    ///     Stop(Stop),
    ///     Late(DeadlineExceeded),
    ///     Io(std::io::Error),
    /// }
    ///
    /// impl From<std::io::Error> for Error {
    ///     fn from(error: std::io::Error) -> Error {
    ///         match Stop::of_io_error(&error) {
    ///             Some(stop) => Error::Stop(stop),
    ///             None => Error::Io(error),
    ///         }
    ///     }
    /// }
    /// # impl From<DeadlineExceeded> for Error { fn from(late: DeadlineExceeded) -> Error { Error::Late(late) } }
    /// # let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    /// # assert!(matches!(Error::from(broken), Error::Io(_)));
    /// ```
    ///
    /// `None` for every other error, also for an `ECANCELED` of other origin. A call is ended once in a
    /// cancellation; then clean-up code may block for as long as the canceller's grace, before calls are
    /// ended again.
    ///
    /// # Blocking
    /// Never blocks.
    ///
    /// # Cancellation
    /// A checkpoint, if the error is that of an ended call.
    pub fn of_io_error(error: &io::Error) -> Option<Stop> {
        let is_canceled = error.raw_os_error() == Some(CANCELED);
        (is_canceled && has_ended_call()).then(checkpoint)?.err()
    }
}

/// The system's number of the error.
#[cfg(unix)]
const CANCELED: i32 = rustix::io::Errno::CANCELED.raw_os_error();
#[cfg(not(unix))]
const CANCELED: i32 = 0;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::scope::{enter, exit};

    /// What the calling thread publishes now.
    fn published() -> (bool, Time) {
        let slot = CONTEXT.with(|context| context.place.slot());
        let slot = slot.expect("there is no host");
        (!slot.pin().flag().is_null(), slot.deadline())
    }

    #[test]
    fn i47_the_innermost_scope_and_the_earliest_deadline_are_published() {
        let plain = |deadline| enter(Kind::Plain, deadline, None, Home::NATIVE);
        let (early, late) = (
            Time::after(Duration::from_secs(1000)),
            Time::after(Duration::from_secs(2000)),
        );
        let outer = plain(early);
        let inner = plain(late);
        assert_eq!(published(), (true, early));
        let shield = enter(Kind::Shield, late, None, Home::NATIVE);
        assert_eq!(published(), (true, late));
        for node in [shield, inner] {
            exit(&node, false).expect("it is innermost");
        }
        assert_eq!(published(), (true, early));
        exit(&outer, false).expect("it is innermost");
        assert_eq!(published(), (false, Time::NEVER));
    }

    #[test]
    fn i47_a_scope_that_leaves_calls_alone_publishes_nothing_and_so_do_those_inside() {
        let outer = enter(Kind::Plain, Time::NEVER, None, Home::NATIVE);
        let alone = enter(Kind::Plain, Time::NEVER, None, Home::NATIVE);
        leave_calls_alone();
        assert_eq!(published(), (false, Time::NEVER));
        let inside = enter(Kind::Shield, Time::NEVER, None, Home::NATIVE);
        assert_eq!(published(), (false, Time::NEVER));
        for node in [inside, alone] {
            exit(&node, false).expect("it is innermost");
        }
        assert_eq!(published(), (true, Time::NEVER));
        exit(&outer, false).expect("it is innermost");
    }

    #[test]
    fn i41_a_block_that_can_be_suspended_publishes_nothing() {
        let suspendable = Home {
            suspendable: true,
            ..Home::NATIVE
        };
        let node = enter(Kind::Plain, Time::NEVER, None, suspendable);
        assert_eq!(published(), (false, Time::NEVER));
        exit(&node, false).expect("it is innermost");
    }
}
