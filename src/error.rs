//! The ways in which a wait can end without its result.
//!
//! A [`Stop`] is a value that each function hands to its caller. It carries no addressee: each scope that
//! it leaves decides, from the current state of the scopes, whether it ends there (I3). So dropping one is
//! no loss of state: the next checkpoint in the cancelled scope returns another.
//!
//! | stop          | where it ends                                             | hidden by                  |
//! |---------------|-----------------------------------------------------------|----------------------------|
//! | `Cancelled`   | the outermost cancelled scope that is visible             | a shield, a clean-up zone  |
//! | `Killed`      | the task's boundary, or the forced block it is meant for  | deferred by masks and locks |
//! | `Interrupted` | where the host raises the exception that it has kept      | nothing                    |

use std::fmt;

use crate::cause::Cause;

/// Why a checkpoint or a wait did not go on. The operation had no effect.
///
/// Hand it upwards with `?`: the scope that it belongs to absorbs it. Code that drops it and goes on gets
/// it again at the next checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// A scope around the code, or its task, was cancelled, or a deadline passed.
    Cancelled(Cause),
    /// The task is being killed: shields do not hold, only the task's boundary absorbs it.
    Killed(Cause),
    /// A signal handler of the surrounding runtime raised something, which the runtime keeps.
    Interrupted,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Cancelled(cause) => cause.fmt(f),
            Stop::Killed(cause) => write!(f, "killed ({cause})"),
            Stop::Interrupted => f.write_str("interrupted by a signal"),
        }
    }
}

impl std::error::Error for Stop {}

/// An error type in which a [`Stop`] can travel up to the scope that absorbs it.
///
/// Implement it for your own error enum to use `?` on desist's waits inside scopes. An error type
/// that hides a stop here carries it through its scope like any other error, and nothing is absorbed.
pub trait AsStop {
    /// The stop inside, if this error is one.
    fn stop(&self) -> Option<&Stop>;
}

impl AsStop for Stop {
    fn stop(&self) -> Option<&Stop> {
        Some(self)
    }
}

/// The scope's own deadline passed, and that is why its block was left. An ordinary error, not a stop: no
/// scope further out absorbs it, and execution continues behind the block (I5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlineExceeded;

impl fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the scope's deadline passed before its block was done")
    }
}

impl std::error::Error for DeadlineExceeded {}

/// A scope was used in a way that cannot work; the message says what to do instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeMisuse {
    /// Left by another thread than the one that entered it.
    WrongThread,
    /// Left while a scope entered later was still open.
    NotInnermost,
    /// Entered a second time.
    EnteredTwice,
    /// Left without being entered.
    NotEntered,
    /// Entered by a coroutine or an asynchronous generator, whose thread runs other tasks meanwhile.
    InCoroutine,
}

impl fmt::Display for ScopeMisuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ScopeMisuse::WrongThread => {
                "this scope was entered by another thread, or in another task of this one; a scope \
                 belongs to the thread that enters it: hand the other thread `scope.token` instead, and \
                 resume a generator on one thread only"
            }
            ScopeMisuse::NotInnermost => {
                "a scope entered later is still open; leave scopes in the reverse of the order in \
                 which they were entered (a `with` statement does)"
            }
            ScopeMisuse::EnteredTwice => {
                "this scope was entered before; make a new one for each block"
            }
            ScopeMisuse::NotEntered => {
                "this scope is not open: enter it with a `with` statement first"
            }
            ScopeMisuse::InCoroutine => {
                "a coroutine or asynchronous generator cannot enter this scope, which would stop the other \
                 tasks of its thread as well: use asyncio.timeout() there (anyio.fail_after(), \
                 trio.fail_after()), and this scope in the threads that it starts"
            }
        })
    }
}

impl std::error::Error for ScopeMisuse {}
