//! Ending a blocked system call of another thread: code that was not written for this crate has
//! cancellation points, too.
//!
//! Guarantees:
//! 1. Only the call that was seen is ended: the same thread, place in the code, stack and arguments, and
//!    only if it is interrupted with no effect (I46). So "ended" means "it did not happen".
//! 2. A call is ended only if its thread is in a cancelled scope at that very instant, and not within the
//!    grace that follows the call that was ended before (I47). The thread decides that itself, in the
//!    signal handler; it cannot leave the scope in between.
//! 3. A thread that is in no cancelled scope gets no signal, but for one that was sent in the
//!    microseconds before it left such a scope. That one has the effect of any handled signal: nothing
//!    for a call that the kernel restarts, `EINTR` for the few that it never does (`poll`, sleeps).
//! 4. Before a cancellation nothing is done but a few stores by the thread that enters or leaves a scope.
//!
//! How. The sender reads from `/proc/self/task/TID/syscall` which call the thread is in (`look`). If it is
//! one of the table in `calls`, it writes what was seen into the order of the thread's slot (`order`), and
//! sends a signal with the slot's index as payload (`system`). The handler (`handler`) compares the
//! interrupted registers with the order. If they are those of the seen call, and the slot says that the
//! thread is cancelled, it replaces the call's result by `ECANCELED`. The signal is only a hint: a wrong,
//! forged or late one changes nothing.
//!
//! The handler is installed with `SA_RESTART`. The kernel then has most calls begin anew, by itself, if
//! the handler leaves the registers alone: a signal that turns out to be wrong is not noticed by the
//! interrupted code. Which calls the kernel restarts it has decided before the handler runs; see `handler` for
//! the two forms in which a call without effect is found.
//!
//! | file       | subject                                                                       |
//! |------------|-------------------------------------------------------------------------------|
//! | `slots`    | the static table of threads: what a thread publishes, and which thread may read it |
//! | `order`    | the order of a slot: sent, taken, withdrawn, answered                         |
//! | `fence`    | fences that cost nothing on the side that runs often                          |
//! | `system`   | the sender's side; in its folder `calls` (the table, each with the reason why), `look` (the call that a thread is in), `handler` (the signal) |
//!
//! Lock order: a slot's send lock comes last; under it only `/proc` is read and a signal sent. Relies on
//! `host` for whether the runtime wants its threads' calls ended.
//!
//! Where there is no such file, no right to it, or no free signal, [`status`] says so, and nothing is
//! ended; the waits of this crate are not concerned.

mod fence;
#[cfg_attr(loom, allow(dead_code))] // models of their own use it
mod order;
mod slots;
#[cfg_attr(
    not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )),
    path = "foreign/absent.rs"
)]
#[cfg(not(loom))]
mod system;

use std::fmt;

#[cfg(not(loom))]
use crate::host::{self, EndedCall};
pub(crate) use fence::heavy as heavy_fence;
pub(crate) use slots::*;
#[cfg(all(test, loom))]
pub(crate) use {
    fence::light as light_fence,
    order::{Answer, Order},
};

/// The result of an attempt to end a thread's call.
#[derive(Debug, Clone, Copy)]
#[cfg(not(loom))]
pub(crate) enum Attempt {
    /// The call was ended.
    Ended(EndedCall),
    /// The thread is in no cancelled scope, or in a wait of this crate, or within the grace after the last
    /// call that was ended; its slot says until when.
    Refused,
    /// The thread is in no call that may be ended, or has left it. To be tried again later.
    NotBlocked,
    /// The thread did not answer in time: it is descheduled, or blocks the signal. To be tried again later.
    Unanswered,
    /// The code takes the error for another try, again and again.
    LeftAlone,
    /// The thread has ended.
    Gone,
    /// The system refuses: see [`status`].
    Unavailable,
}

/// A kill of the task in whose body a thread is, or of a block in it. It ends calls in which no cancellation is
/// visible, too: in a shield, or for an exception that is injected.
#[cfg(not(loom))]
pub(crate) trait DueKill: Send + Sync {
    /// The task's number.
    fn task(&self) -> u64;

    /// True if it is due, and not deferred. While the thread is blocked in a call of other code, and the host
    /// keeps it from going on, the answer stays true.
    fn is_due(&self) -> bool;
}

/// The name of the call in which a thread waits for a change of memory.
#[cfg(not(loom))]
pub(crate) const FUTEX: &str = "futex";

/// Why blocked calls of other threads are not ended, see [`status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// It is not implemented for this operating system, or this processor.
    System,
    /// The runtime around the core has not asked for it.
    Host,
    /// `/proc` does not tell in which call a thread is: it is not mounted, or the kernel or a sandbox
    /// does not have it.
    NoProc,
    /// Every real-time signal has a handler of other code.
    NoSignal,
    /// Other code has installed a handler for the signal with this number, which was in use for it.
    SignalTaken(i32),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::System => {
                f.write_str("only Linux on x86-64 and aarch64 can end a blocked call of another thread")
            }
            Unavailable::Host => {
                f.write_str("the runtime of this process has not asked for its threads' calls to be ended")
            }
            Unavailable::NoProc => f.write_str(
                "/proc/thread-self/syscall does not tell in which call a thread is; mount /proc, or allow it \
                 in the sandbox",
            ),
            Unavailable::NoSignal => {
                f.write_str("every real-time signal has a handler already; one is needed")
            }
            Unavailable::SignalTaken(number) => write!(
                f,
                "other code has replaced the handler of signal {number}, which was in use; calls are ended \
                 again when that handler is restored"
            ),
        }
    }
}

impl std::error::Error for Unavailable {}

#[cfg(not(loom))]
impl fmt::Display for EndedCall {
    /// Its name, with the descriptor and where that leads to at this moment, such as
    /// `recvfrom of descriptor 5 (127.0.0.1:6379)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&system::words(self.call, self.descriptor))
    }
}

/// Whether blocked calls of this process's threads are ended in cancelled scopes. Installs the handler of
/// the signal, if there is none yet.
///
/// # Errors
/// [`Unavailable`]: they are not, and why. Waits of this crate are cancelled all the same.
#[cfg(not(loom))]
pub fn status() -> Result<(), Unavailable> {
    if host::ends_calls() {
        system::check()
    } else {
        Err(Unavailable::Host)
    }
}

/// Number of blocked calls that were ended in this process so far.
#[cfg(not(loom))]
pub fn ended_calls() -> u64 {
    system::ended()
}
