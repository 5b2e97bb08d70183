//! Scopes for Rust programs: a block is a closure.

use std::time::Duration;

use super::{Exit, Kind, close_unless_private, enter, exit};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::{DeadlineExceeded, MayStop, Stop};
use crate::token::CancelToken;
use crate::token::timer;
use crate::token::tree::NodeRef;

/// An open scope, handed to its block.
#[derive(Debug)]
pub struct Scope {
    token: CancelToken,
}

impl Scope {
    /// Cancel the block: it is left quietly at its next checkpoint.
    pub fn cancel(&self) -> bool {
        let node = self.token.node();
        !node.is_cancelled() && node.cancel(Cause::now(CauseKind::Explicit, None, None))
    }

    /// The block's token, to hand out.
    pub fn token(&self) -> CancelToken {
        CancelToken::from_node(self.token.node().clone())
    }

    /// Move the block's deadline.
    pub fn set_deadline(&self, deadline: Time) {
        timer::set(self.token.node(), deadline);
    }
}

/// Leaves the scope also when the block panics.
struct Leave {
    node: NodeRef,
    left: bool,
}

impl Leave {
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

fn run<T, E: MayStop>(
    kind: Kind,
    deadline: Time,
    block: impl FnOnce(&Scope) -> Result<T, E>,
) -> (Result<T, E>, Exit) {
    let node = enter(kind, deadline, None);
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
/// [`Scope::cancel`] was called. `Err(DeadlineExceeded)`: because its own deadline passed. Other
/// errors, and stops that belong to a scope further out, pass through.
pub fn cancel_scope<T, E>(
    timeout: Duration,
    block: impl FnOnce(&Scope) -> Result<T, E>,
) -> Result<Option<T>, E>
where
    E: MayStop + From<DeadlineExceeded>,
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
pub fn move_on_after<T, E: MayStop>(
    timeout: Duration,
    block: impl FnOnce(&Scope) -> Result<T, E>,
) -> Result<Option<T>, E> {
    match run(Kind::Plain, Time::after(timeout), block) {
        (_, Exit::Absorbed(_)) => Ok(None),
        (result, Exit::Pass) => result.map(Some),
    }
}

/// Run a block for at most `timeout`; `Err(DeadlineExceeded)` if it was left early.
pub fn fail_after<T, E>(timeout: Duration, block: impl FnOnce() -> Result<T, E>) -> Result<T, E>
where
    E: MayStop + From<DeadlineExceeded>,
{
    match run(Kind::Plain, Time::after(timeout), |_| block()) {
        (_, Exit::Absorbed(_)) => Err(DeadlineExceeded.into()),
        (result, Exit::Pass) => result,
    }
}

/// Run a block that sees no cancellation from outside, for at most `bound`; `Ok(None)` if the
/// bound cut it short.
pub fn shield<T, E: MayStop>(
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
pub fn cleanup<T, E: MayStop>(block: impl FnOnce() -> Result<T, E>) -> Result<Option<T>, E> {
    match run(Kind::Cleanup, Time::NEVER, |_| block()) {
        (_, Exit::Absorbed(_)) => Ok(None),
        (result, Exit::Pass) => result.map(Some),
    }
}
