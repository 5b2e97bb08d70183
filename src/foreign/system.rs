//! The sender's side: look at the thread, order the end of its call, wait for the answer.
//!
//! All of it happens under the slot's send lock, so that the thread cannot give its number back meanwhile, and
//! one order at a time is under way. The answer is waited for as long as the sender has patience: the thread may
//! be descheduled, or block the signal. Then, under a host, the order is withdrawn, and ends nothing any more,
//! since the host has prepared for that moment only; the signal that arrives later frees the slot for the
//! next order. Without a host the order stands: the handler decides whenever it runs, and the next attempt finds
//! its answer.

mod calls;
mod handler;
mod look;

use std::sync::atomic::Ordering;
use std::time::Duration;

use calls::Call;
use handler::{Info, payload};
use look::Sight;

use super::order::{Answer, Seen};
use super::{Attempt, FUTEX, Slot, Unavailable};
use crate::clock::Time;
use crate::host::{self, EndedCall};
use crate::sys;

/// What the host is told of a call that was ended.
fn report(call: &Call, seen: &Seen) -> EndedCall {
    EndedCall {
        call: call.name,
        descriptor: calls::descriptor(seen),
    }
}

impl Slot {
    /// The call that the thread sits in, in words; `None` if it runs, or the system does not tell.
    pub(crate) fn sits_in(&self) -> Option<String> {
        match look::look(self.tid.load(Ordering::Acquire)) {
            Sight::In(seen) => Some(words(&calls::name(&seen), calls::descriptor(&seen))),
            _ => None,
        }
    }

    /// The name of the call that the thread sits in, if it is one that may be ended, or under a host a futex. May be
    /// stale at once: a look before the host is asked for a safe moment.
    pub(crate) fn blocked_in(&self) -> Option<&'static str> {
        match look::look(self.tid.load(Ordering::Acquire)) {
            Sight::In(seen) if calls::is_futex(&seen) => host::is_installed().then_some(FUTEX),
            Sight::In(seen) => entry(&seen).map(|call| call.name),
            _ => None,
        }
    }

    /// Runs `attempt`, for a kill that is due if there is one; see [`Slot::for_kill`].
    pub(crate) fn attempt<R>(&self, by_kill: bool, attempt: impl FnOnce() -> R) -> R {
        if by_kill {
            self.for_kill(attempt)
        } else {
            attempt()
        }
    }

    /// For a thread that cannot run now, since the host keeps it from that, and waits for a lock of the host's:
    /// whether the host is to end that wait. If so, it counts as an ended call.
    pub(crate) fn end_futex(&'static self, grace: Option<Duration>) -> Attempt {
        self.while_nothing_is_sent(|| {
            if self.tid.load(Ordering::Acquire) == 0 {
                return Attempt::Gone;
            }
            let _pin = self.pin(); // the fence: `decide` is made for the thread itself
            let nanos = |grace: Duration| u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
            if !handler::decide(self, grace.map(nanos), false) {
                return Attempt::Refused;
            }
            self.note_ended();
            Attempt::Ended(EndedCall {
                call: FUTEX,
                descriptor: None,
            })
        })
    }

    /// Ends the call that the thread is in, if it is one of the table and the thread is in a cancelled scope.
    /// `grace`: how long no further call is ended after the first one; `None`: as the thread has published.
    /// Waits for `patience` at most, and for the handler, if that has begun.
    ///
    /// [`Attempt::Ended`] may be that of an order which an earlier attempt has left standing.
    pub(crate) fn end_call(&'static self, grace: Option<Duration>, patience: Duration) -> Attempt {
        self.while_nothing_is_sent(|| {
            let made = self.end_call_locked(grace, patience);
            if matches!(made, Attempt::Ended(_)) {
                self.note_ended();
            }
            made
        })
    }

    fn end_call_locked(&'static self, grace: Option<Duration>, patience: Duration) -> Attempt {
        let tid = self.tid.load(Ordering::Acquire);
        if tid == 0 {
            return Attempt::Gone;
        }
        let blocked = match self.order.answer() {
            Some(Answer::Ended) => {
                let seen = self.order.seen();
                return entry(&seen).map_or(Attempt::NotBlocked, |call| {
                    Attempt::Ended(report(call, &seen))
                });
            }
            _ => look::look(tid),
        };
        let is_to_stop = self.is_for_kill() || self.pin().is_cancelled();
        if self.own_code.load(Ordering::Relaxed) != 0 || !is_to_stop {
            return Attempt::Refused; // a look that spares most signals; the handler decides
        }
        let Ok(signal) = handler::signal() else {
            return Attempt::Unavailable;
        };
        let seen = match blocked {
            Sight::In(seen) => seen,
            Sight::Running => return Attempt::NotBlocked,
            Sight::Nothing => return Attempt::Unavailable,
        };
        let Some(call) = entry(&seen) else {
            return Attempt::NotBlocked;
        };
        let Some(number) = self.order.arm(&seen, grace) else {
            return Attempt::Unanswered; // the last signal is still on its way
        };
        if !queue(tid, signal, payload(number, self.index())) {
            self.order.reset();
            return Attempt::Unavailable;
        }
        match self.await_answer(patience) {
            Some(Answer::Ended) => Attempt::Ended(report(call, &seen)),
            Some(Answer::Refused) => Attempt::Refused,
            Some(Answer::Moved) => Attempt::NotBlocked,
            None => Attempt::Unanswered,
        }
    }

    /// The answer, or `None` after the order was withdrawn, or left standing.
    fn await_answer(&self, patience: Duration) -> Option<Answer> {
        /// Most threads answer within a few microseconds.
        const SPINS: u32 = 100;
        let until = Time::after(patience);
        let mut rounds = 0_u32;
        loop {
            if let Some(answer) = self.order.answer() {
                return Some(answer);
            }
            rounds += 1;
            if rounds < SPINS {
                std::hint::spin_loop();
            } else if Time::now() < until {
                let _ = sys::poll([], Time::after(Duration::from_micros(20)));
            } else if !host::is_installed() || self.order.withdraw() {
                return None;
            } else {
                std::thread::yield_now(); // the handler runs
            }
        }
    }
}

/// The entry of the table, by whether there is a host.
fn entry(seen: &Seen) -> Option<&'static Call> {
    calls::entry(seen, host::is_installed())
}

/// Queues the signal for the thread. False: the kernel refuses.
#[allow(unsafe_code)] // one system call
fn queue(tid: u32, signal: i32, value: u64) -> bool {
    let info = Info {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        unused: 0,
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        uid: rustix::process::getuid().as_raw(),
        value,
        rest: [0; 12],
    };
    // SAFETY: the call reads the structure, which is as long as the kernel's, and nothing else.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            info.pid,
            tid,
            signal,
            &raw const info,
        )
    };
    result == 0
}

/// A call in words: its name, its descriptor, and where that leads to at this moment.
pub(crate) fn words(name: &str, descriptor: Option<i32>) -> String {
    match descriptor {
        None => name.into(),
        Some(number) => match target(number) {
            None => format!("{name} of descriptor {number}"),
            Some(target) => format!("{name} of descriptor {number} ({target})"),
        },
    }
}

/// The peer of a connected socket; of another file its name.
fn target(descriptor: i32) -> Option<String> {
    if let Ok(Some(peer)) = sys::peer(descriptor) {
        return Some(peer);
    }
    let link = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Ok if the system has all that is needed.
pub(crate) fn check() -> Result<(), Unavailable> {
    if !look::works() {
        return Err(Unavailable::NoProc);
    }
    handler::signal().map(drop)
}

/// See [`crate::foreign::ended_calls`].
pub(crate) fn ended() -> u64 {
    handler::ended()
}
