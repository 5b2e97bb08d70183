//! The watcher: the service thread that has blocked calls ended in cancelled scopes.
//!
//! Guarantees:
//! 1. A scope's deadline cancels it even if its thread waits in code that is not of this crate, where nothing
//!    looks at deadlines: the watcher does.
//! 2. While a thread is in a cancelled scope, or a kill of it is due, the watcher looks at it, at pauses that grow from 1 to 50 ms, and
//!    ends the call that it is blocked in, once; then again when the canceller's grace is over (I47).
//! 3. Nothing is sent by a cancelling thread: `cancel()` stays short, and callable from signal handlers and
//!    destructors. One thread asks the host for a safe moment.
//! 4. Code that takes the error of an ended call for another try is left alone after a few.
//! 5. Scopes with a long time limit that are left early wake the watcher at most once in that time.
//!
//! Protocol. Each thread publishes its view in its slot (`foreign`): the flag of the innermost visible node, and
//! the earliest visible deadline. Three events bring work:
//!
//! | event                                 | done by                          | found by the watcher through     |
//! |---------------------------------------|----------------------------------|----------------------------------|
//! | a node is cancelled, whose slot is in its state | the canceller, in [`tree`](super::tree): marks the slot, then wakes | the slot's bit |
//! | a thread publishes a cancelled flag   | that thread: sets the bit, wakes | the slot's bit                   |
//! | a thread publishes an earlier deadline than the alarm's | that thread: wakes | the published deadline     |
//!
//! So most scopes cost a load of the alarm, and no wake-up.
//!
//! Deadlines. A published one may have been moved, by any thread, to later. So the watcher takes a count of
//! the node that the thread has published, with the slot pinned, and has the node say whether it has expired;
//! that cancels it like any thread that notices a deadline.
//!
//! Lock order: the service's lock, alone; a slot's send lock, alone. The host is called with nothing locked.

use std::sync::Arc;
use std::time::Duration;

use super::alarm::Alarm;
use super::tree::NodeRef;
use crate::clock::Time;
use crate::foreign::{self, Attempt, DueKill, Slot, View};
use crate::host::{self, BlockedCall, EndedCall, Home, HostThread};
use crate::park::service::{Service, Work};

/// The first pause between two looks at a thread; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How long a thread may take to answer before its order is withdrawn.
const PATIENCE: Duration = Duration::from_millis(1);

/// The watcher of the process.
static WATCHER: Service<Watch> = Service::new();

/// When the watcher looks at deadlines next.
static ALARM: Alarm = Alarm::new();

/// The state of the service.
struct Watch {
    /// When to look; [`Time::NEVER`] while nothing is to be done.
    at: Time,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { at: Time::NEVER }
    }
}

/// Publishes the calling thread's view in its slot, and wakes the watcher if it is to know. `cancelled`: reads
/// the view's flag, and is called after it was published.
#[inline]
pub(crate) fn publish(slot: &Slot, view: &View, cancelled: impl FnOnce() -> bool) {
    slot.publish(view);
    if ALARM.is_late_for(view.deadline) {
        wake_by(view.deadline);
    }
    if cancelled() && !slot.is_watched() {
        slot.mark();
        wake();
    }
}

/// Has the watcher look now: a slot was marked. Called with no lock held.
#[cold]
pub(crate) fn wake() {
    WATCHER.update(|watch| watch.at = Time::from_nanos(0));
}

/// Has the watcher look at this instant at the latest.
#[cold]
fn wake_by(deadline: Time) {
    // In this order: the watcher may look, and set the alarm anew, before the next step here. An alarm that
    // was brought forward after that would name a look that nothing has planned.
    ALARM.bring_forward(deadline);
    WATCHER.update(|watch| watch.at = watch.at.min(deadline));
}

impl Work for Watch {
    type Job = ();
    const NAME: &'static str = "desist-watcher";
    const CALLS_HOST: bool = true;

    fn next(&self) -> Time {
        self.at
    }

    fn take_due(&mut self, now: Time) -> Option<()> {
        // A wake-up from here on is not lost: the round that begins now plans the next one with `min`.
        (self.at <= now).then(|| self.at = Time::NEVER)
    }

    fn perform((): ()) {
        let next = look_at_all();
        WATCHER.update(|watch| watch.at = watch.at.min(next));
    }

    /// The forking thread's slot alone is left.
    fn survive_fork(&mut self) {
        self.at = if foreign::has_work() {
            Time::from_nanos(0)
        } else {
            Time::NEVER
        };
        ALARM.set(self.at, || Time::NEVER);
    }

    /// Calls are not ended then; the deadline of a scope is noticed by its thread, as far as that waits here.
    fn without_thread(_service: &'static Service<Watch>) {}
}

/// One round. Returns when the next one is due.
fn look_at_all() -> Time {
    let now = Time::now();
    let mut next = Time::NEVER;
    for slot in foreign::in_use() {
        notice_deadline(slot, now);
        if slot.is_watched() {
            next = next.min(look_at(slot, now));
        }
    }
    foreign::left_behind().for_each(tell_host);
    let first = || foreign::in_use().map(Slot::deadline).min();
    let deadline = first().unwrap_or(Time::NEVER);
    ALARM
        .set(deadline, || first().unwrap_or(Time::NEVER))
        .min(next)
}

/// Expires the nodes around the thread whose deadlines have passed, if the published one has.
fn notice_deadline(slot: &'static Slot, now: Time) {
    let published = slot.deadline();
    if published > now {
        return;
    }
    let node = NodeRef::published(slot);
    let next = match &node {
        Some(node) if !node.poll(now) => node.effective_deadline(),
        _ => Time::NEVER, // cancelled: the slot was marked by that
    };
    slot.move_deadline(published, next);
}

/// Ends the call of a watched thread, if it is time. Returns when to look again.
fn look_at(slot: &'static Slot, now: Time) -> Time {
    let (at, pause) = slot.schedule(nanos(FIRST_PAUSE));
    if at > now {
        return at;
    }
    let (at, pause) = match attempt(slot) {
        // The next look finds the grace, or that the code keeps the error for itself.
        Attempt::Ended(_) => (Time::NEVER, nanos(FIRST_PAUSE)),
        Attempt::Refused => {
            if !slot.unwatch() {
                tell_host(slot);
                return Time::NEVER;
            }
            (Time::from_nanos(slot.quiet_until()), pause)
        }
        Attempt::LeftAlone => {
            slot.stop_watching();
            return Time::NEVER;
        }
        Attempt::Gone | Attempt::Unavailable => {
            slot.unwatch();
            tell_host(slot);
            return Time::NEVER;
        }
        Attempt::NotBlocked | Attempt::Unanswered => (Time::NEVER, pause),
    };
    let soon = now + Duration::from_nanos(pause);
    // Within the grace, when that is over; else, or if it is over by now, after the pause.
    let at = if at.is_never() { soon } else { at.max(soon) };
    slot.set_schedule(at, (pause * 2).min(nanos(LONGEST_PAUSE)));
    at
}

/// The thread is looked at no more, or has ended: if a call of it was ended, the host is told.
fn tell_host(slot: &'static Slot) {
    if slot.forget_ended() {
        host::left_scope(slot.index());
    }
}

/// Looks at the thread, and ends its call with the host's help.
fn attempt(slot: &'static Slot) -> Attempt {
    if !host::ends_calls() {
        return Attempt::NotBlocked; // the host may want it again
    }
    let quiet = Time::from_nanos(slot.quiet_until());
    let Some(node) = NodeRef::published(slot) else {
        return Attempt::Refused;
    };
    let kill = slot.due_kill();
    if kill.is_none() && !node.is_cancelled() {
        return Attempt::Refused;
    }
    if slot.masked_until() > Time::now() {
        return Attempt::NotBlocked;
    }
    if kill.is_none() && quiet > Time::now() && !slot.is_unraised() {
        return Attempt::Refused;
    }
    let Some(name) = slot.blocked_in() else {
        return Attempt::NotBlocked;
    };
    if slot.is_left_alone() {
        host::left_alone(slot.host_thread());
        return Attempt::LeftAlone;
    }
    let grace = node.cause().and_then(|cause| cause.grace);
    drop(node);
    let mut call = Call {
        slot,
        kill,
        grace,
        name,
        made: Attempt::NotBlocked,
    };
    host::end_call(&mut call);
    call.made
}

/// The call that a thread sits in.
struct Call {
    slot: &'static Slot,
    /// The kill for which it is ended, if there is one.
    kill: Option<Arc<dyn DueKill>>,
    /// The canceller's.
    grace: Option<Duration>,
    /// See [`BlockedCall::name`].
    name: &'static str,
    /// What has become of it.
    made: Attempt,
}

impl BlockedCall for Call {
    fn thread(&self) -> HostThread {
        self.slot.host_thread()
    }

    fn number(&self) -> usize {
        self.slot.index()
    }

    fn home(&self) -> Home {
        match self.kill {
            Some(_) => Home::NATIVE, // the body of a task
            None => self.slot.home(),
        }
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn end(&mut self) -> Option<EndedCall> {
        // Looked at again: before, the thread could go on.
        if self.kill.is_some() && self.slot.due_kill().is_none() {
            self.made = Attempt::NotBlocked;
            return None;
        }
        self.made = self.slot.attempt(self.kill.is_some(), || {
            if self.name == foreign::FUTEX {
                self.slot.end_futex(self.grace)
            } else {
                self.slot.end_call(self.grace, PATIENCE)
            }
        });
        match self.made {
            Attempt::Ended(call) => Some(call),
            _ => None,
        }
    }
}

/// A length of time that fits.
#[allow(clippy::cast_possible_truncation)] // of the constants above
const fn nanos(length: Duration) -> u64 {
    length.as_nanos() as u64
}
