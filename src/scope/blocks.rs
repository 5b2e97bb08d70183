//! Scopes for Rust programs: a block is a closure, which a stop leaves as an `Err`.
//!
//! The closure runs on the calling thread between [`enter`] and [`exit`]. Since both are in one function,
//! a scope is always innermost and on its own thread when it is left, and is left also when the closure
//! panics ([`Leave`]). `Killed` passes through, as every stop that belongs to a scope further out.
//!
//! | function              | kind    | its own deadline passed       | [`Scope::cancel`] |
//! |-----------------------|---------|-------------------------------|-------------------|
//! | [`cancel_scope`]      | plain   | `Err(DeadlineExceeded)`       | `Ok(None)`        |
//! | [`move_on_after`]     | plain   | `Ok(None)`                    | `Ok(None)`        |
//! | [`fail_after`]        | plain   | `Err(DeadlineExceeded)`       | not offered       |
//! | [`shield`]            | shield  | `Ok(None)`                    | not offered       |
//! | [`cleanup`]           | cleanup | `Ok(None)`, at the cut-off    | not offered       |
//!
//! A deadline alone changes nothing: only if the stop that it causes comes out of the closure is the
//! block left early. A closure that returns `Ok` has its value returned, however late.

use std::time::Duration;

use super::{Exit, Kind, close_unless_private, enter, exit};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::{AsStop, DeadlineExceeded, Stop};
use crate::host::Home;
use crate::token::CancelToken;
use crate::token::timer;
use crate::token::tree::NodeRef;

/// An open scope, handed to its block.
#[derive(Debug)]
pub struct Scope {
    /// Of the scope's node. Not known to the timer until [`Scope::token`] hands out a copy: the thread
    /// in the block notices the deadline itself.
    token: CancelToken,
}

impl Scope {
    /// Cancel the block: it is left quietly at its next checkpoint. True: this call was the first.
    ///
    /// # Blocking
    /// Never waits for the block. Callbacks registered at its token run on the calling thread.
    pub fn cancel(&self) -> bool {
        let node = self.token.node();
        !node.is_cancelled() && node.cancel(Cause::now(CauseKind::Explicit, None, None))
    }

    /// The block's token, to hand out to other threads. It stays valid after the block, and is cancelled
    /// then.
    pub fn token(&self) -> CancelToken {
        CancelToken::from_node(self.token.node().clone())
    }

    /// Move the block's deadline, earlier or later. A block that is cancelled stays so.
    pub fn set_deadline(&self, deadline: Time) {
        timer::set(self.token.node(), deadline);
    }
}

/// Leaves the scope when the block ends, or when its panic drops this.
struct Leave {
    /// The scope to leave.
    node: NodeRef,
    /// Set by [`Leave::leave`], so that the drop does nothing more.
    left: bool,
}

impl Leave {
    /// Leaves it, and cancels the nodes still below its own. Called once.
    fn leave(&mut self, unwinding: bool) -> Exit {
        self.left = true;
        // By construction innermost and on this thread.
        let exit = exit(&self.node, unwinding).unwrap_or(Exit::Pass);
        close_unless_private(&self.node);
        exit
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.left {
            self.leave(false);
        }
    }
}

/// Enters a scope, runs the block and leaves the scope. The block's result is returned beside the verdict,
/// which the callers translate as the table says.
fn run<T, E: AsStop>(
    kind: Kind,
    deadline: Time,
    block: impl FnOnce(&Scope) -> Result<T, E>,
) -> (Result<T, E>, Exit) {
    let node = enter(kind, deadline, None, Home::NATIVE);
    let mut leave = Leave {
        node: node.clone(),
        left: false,
    };
    let result = block(&Scope {
        token: CancelToken::from_unarmed(node),
    });
    let unwinding =
        matches!(&result, Err(error) if matches!(error.stop(), Some(Stop::Cancelled(_))));
    let exit = leave.leave(unwinding);
    (result, exit)
}

/// Run a block that can be cancelled, with a deadline of its own.
///
/// `Ok(Some(value))`: the block ran to its end. `Ok(None)`: it was left because
/// [`Scope::cancel`] was called.
///
/// # Cancellation
/// No checkpoint by itself. A stop of a scope further out, or a kill, passes through as the block's `Err`.
///
/// # Errors
/// [`DeadlineExceeded`] if the block was left because its own deadline passed; else the block's own.
///
/// # Panics
/// With the block's panic, after the scope has been left.
pub fn cancel_scope<T, E>(
    timeout: Duration,
    block: impl FnOnce(&Scope) -> Result<T, E>,
) -> Result<Option<T>, E>
where
    E: AsStop + From<DeadlineExceeded>,
{
    match run(Kind::Plain, Time::after(timeout), block) {
        (_, Exit::Absorbed(cause)) if cause.kind == CauseKind::Deadline => {
            Err(DeadlineExceeded.into())
        }
        (_, Exit::Absorbed(_)) => Ok(None),
        (result, Exit::Pass) => result.map(Some),
    }
}

/// Run a block for at most `timeout`; `Ok(None)` if it was left early.
///
/// # Cancellation
/// As [`cancel_scope`].
///
/// # Errors
/// The block's own.
///
/// # Panics
/// With the block's panic, after the scope has been left.
pub fn move_on_after<T, E: AsStop>(
    timeout: Duration,
    block: impl FnOnce(&Scope) -> Result<T, E>,
) -> Result<Option<T>, E> {
    match run(Kind::Plain, Time::after(timeout), block) {
        (_, Exit::Absorbed(_)) => Ok(None),
        (result, Exit::Pass) => result.map(Some),
    }
}

/// Run a block for at most `timeout`.
///
/// # Cancellation
/// As [`cancel_scope`].
///
/// # Errors
/// [`DeadlineExceeded`] if the block was left early because of its deadline; else the block's own.
///
/// # Panics
/// With the block's panic, after the scope has been left.
pub fn fail_after<T, E>(timeout: Duration, block: impl FnOnce() -> Result<T, E>) -> Result<T, E>
where
    E: AsStop + From<DeadlineExceeded>,
{
    match run(Kind::Plain, Time::after(timeout), |_| block()) {
        (_, Exit::Absorbed(_)) => Err(DeadlineExceeded.into()),
        (result, Exit::Pass) => result,
    }
}

/// Run a block that sees no cancellation from outside, for at most `bound`; `Ok(None)` if the
/// bound cut it short.
///
/// # Cancellation
/// One from outside is raised at the first checkpoint after the block. A kill is not hidden.
///
/// # Errors
/// The block's own.
///
/// # Panics
/// With the block's panic, after the scope has been left.
pub fn shield<T, E: AsStop>(
    bound: Duration,
    block: impl FnOnce() -> Result<T, E>,
) -> Result<Option<T>, E> {
    match run(Kind::Shield, Time::after(bound), |_| block()) {
        (_, Exit::Absorbed(_)) => Ok(None),
        (result, Exit::Pass) => result.map(Some),
    }
}

/// Run clean-up code: a cancellation outside is hidden until the canceller's grace is spent.
/// `Ok(None)` if that cut it short.
///
/// # Cancellation
/// All such blocks under one cancellation share its grace. One from outside, and a kill, which is deferred
/// as well, are raised at the first checkpoint after the block.
///
/// # Errors
/// The block's own.
///
/// # Panics
/// With the block's panic, after the scope has been left.
pub fn cleanup<T, E: AsStop>(block: impl FnOnce() -> Result<T, E>) -> Result<Option<T>, E> {
    match run(Kind::Cleanup, Time::NEVER, |_| block()) {
        (_, Exit::Absorbed(_)) => Ok(None),
        (result, Exit::Pass) => result.map(Some),
    }
}
