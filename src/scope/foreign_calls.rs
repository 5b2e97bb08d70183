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
//! | kind    | flag and deadline published             | grace                        | a call was ended outside |
//! |---------|------------------------------------------|------------------------------|--------------------------|
//! | Plain   | of its node; with the deadline outside   | its own, else that outside   | counts                   |
//! | Shield  | of its node                              | its own, else the default    | is remembered for its end |
//! | Cleanup | of its node                              | none: the zone was the grace | is remembered for its end |
//! | Task    | of the task's node                       | the default                  | is remembered for its end |
//!
//! Nothing is published in a block that can be suspended (a generator's): its thread may be outside it at
//! any call. Nor in a scope that is to leave calls alone ([`leave_calls_alone`]), nor in one inside it.
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
use crate::foreign::{self, Seat, Slot, View};
use crate::host::Home;
use crate::token::tree::NodeRef;
use crate::token::watcher;

/// The calling thread's slot, once it was asked for; nothing in it: there is none for it.
#[derive(Default)]
pub(super) struct Place(OnceCell<Option<Seat>>);

impl Place {
    /// The slot, for a thread that enters a scope.
    #[inline]
    pub(super) fn slot(&self) -> Option<&'static Slot> {
        let seat = self
            .0
            .get_or_init(|| foreign::is_wanted().then(Seat::take).flatten());
        seat.as_ref().map(Seat::slot)
    }

    /// The slot, if the thread has one.
    #[inline]
    fn taken(&self) -> Option<&'static Slot> {
        self.0.get()?.as_ref().map(Seat::slot)
    }
}

/// What a frame keeps of this, for the return to it and for its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    /// Whether anything is published while the frame is innermost: the flag of its node, and the next two.
    ends_calls: bool,
    /// The earliest visible deadline.
    deadline: Time,
    /// See [`View::grace`].
    grace: u64,
    /// Calls are left alone here and further in.
    leaves_alone: bool,
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
        grace: Option<Duration>,
        home: Home,
    ) -> Published {
        let nanos = |grace: Duration| u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let leaves_alone = outer.is_some_and(|outer| outer.leaves_alone);
        let mut own_grace = grace.map_or(nanos(DEFAULT_GRACE), nanos);
        match (kind, outer.filter(|outer| outer.ends_calls)) {
            (Kind::Plain, Some(outer)) => {
                deadline = deadline.min(outer.deadline);
                if grace.is_none() {
                    own_grace = outer.grace;
                }
            }
            (Kind::Cleanup, _) => own_grace = 0,
            _ => {}
        }
        Published {
            ends_calls: !leaves_alone && !home.suspendable && !source::is_set(),
            deadline,
            grace: own_grace,
            leaves_alone,
            quiet: 0,
        }
    }

    /// To be published for a frame with this node.
    #[inline]
    fn view(&self, node: &NodeRef) -> View {
        if !self.ends_calls {
            return View::NONE;
        }
        View {
            flag: node.published_flag(),
            deadline: self.deadline,
            grace: self.grace,
        }
    }
}

/// True if what is outside such a frame is hidden from inside it.
fn hides(kind: Kind) -> bool {
    kind != Kind::Plain
}

/// The frame was entered: it is the innermost now.
#[inline]
pub(super) fn entered(slot: &Slot, frame: &mut Frame) {
    if hides(frame.kind) {
        frame.published.quiet = slot.quiet_until();
        slot.set_quiet_until(0);
    }
    publish(slot, frame);
}

/// The frame was left, or is no more; `frames` are those that are left. To be called before it is dropped.
#[inline]
pub(super) fn left(context: &Context, frame: &Frame, frames: &[Frame]) {
    let Some(slot) = context.place.taken() else {
        return;
    };
    publish_innermost(slot, frames);
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
        publish_innermost(slot, frames);
        if slot.quiet_until() != 0 && !frames.last().is_some_and(|frame| frame.node.is_cancelled())
        {
            slot.set_quiet_until(0);
        }
    }
}

#[inline]
fn publish_innermost(slot: &Slot, frames: &[Frame]) {
    match frames.last() {
        None => slot.publish(&View::NONE),
        Some(frame) => publish(slot, frame),
    }
}

/// Publishes the frame, which is the innermost.
#[inline]
fn publish(slot: &Slot, frame: &Frame) {
    let is_cancelled = || frame.published.ends_calls && frame.node.is_cancelled();
    watcher::publish(slot, &frame.published.view(&frame.node), is_cancelled);
}

/// The calls in the innermost scope, which has just been entered, and in those inside it are never ended.
#[allow(dead_code)] // for the binding: a scope of Python with `foreign=False`
pub(crate) fn leave_calls_alone() {
    CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        if let Some(frame) = frames.last_mut() {
            frame.published.leaves_alone = true;
            frame.published.ends_calls = false;
        }
        changed(context, &frames);
    });
}

/// True if a blocking call of the calling thread was ended in the cancellation that is visible now.
pub(crate) fn has_ended_call() -> bool {
    CONTEXT.with(|context| context.place.taken().is_some_and(Slot::has_ended_call))
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
