//! One blocking wait, as every primitive does it.
//!
//! A wait looks first (a cancelled thread does not begin to wait, I15), then makes its waiter
//! known to the scope's node, to the task's control and to what it waits for, and parks until
//! one of them, or the clock, decides. `Err` means that nothing happened (I11); a grant that won
//! is returned, and the next checkpoint raises.

use std::time::Duration;

use crate::atomics::Arc;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Outcome, Waiter};
use crate::scope;
use crate::token::tree::{Hook, HookId, NodeRef};

/// `Err` if the calling thread has been cancelled or is being killed; never blocks.
pub fn checkpoint() -> Result<(), Stop> {
    scope::checkpoint()
}

/// Sleep. `Err` as soon as the calling thread is to stop.
pub fn sleep(duration: Duration) -> Result<(), Stop> {
    sleep_until(Time::after(duration))
}

/// Sleep until the clock shows `until`. `Err` as soon as the calling thread is to stop.
pub fn sleep_until(until: Time) -> Result<(), Stop> {
    block(until, |_| (), |_| ()).map(|_| ())
}

/// Wait for another node to be cancelled, or for `until` (then false).
pub(crate) fn until_cancelled(node: &NodeRef, until: Time) -> Result<bool, Stop> {
    checkpoint()?;
    loop {
        if node.is_cancelled() || (node.may_expire() && node.poll(Time::now())) {
            return Ok(true);
        }
        if Time::now() >= until {
            return Ok(false);
        }
        // A deadline of the token is noticed by whoever waits for it, so the timer need not be told.
        let bound = until.min(node.effective_deadline());
        let mut hook = None;
        let waited = block(
            bound,
            |waiter| hook = hook_or_settle(node, waiter, Outcome::Granted),
            |_| (),
        );
        if let Some(id) = hook {
            node.unhook(id);
        }
        waited?;
    }
}

/// Wait until `enqueue`'s resource settles the waiter as granted (true), or `until` (false).
///
/// `enqueue` makes the waiter known to the resource, or settles it at once. `dequeue` takes it
/// back when the wait ended otherwise; it is not called after a grant.
pub(crate) fn block(
    until: Time,
    enqueue: impl FnOnce(&Arc<Waiter>),
    dequeue: impl FnOnce(&Arc<Waiter>),
) -> Result<bool, Stop> {
    checkpoint()?;
    let waiter = Waiter::new();
    let task = scope::current_task();
    let node = scope::current_node();
    let hook = node
        .as_ref()
        .and_then(|node| hook_or_settle(node, &waiter, Outcome::Cancelled));
    if let Some(task) = &task {
        task.begin_wait(&waiter);
    }
    enqueue(&waiter);
    let outcome = park_under(node.as_ref(), &waiter, until);
    if outcome != Outcome::Granted {
        dequeue(&waiter);
    }
    if let Some(task) = &task {
        task.end_wait();
    }
    if let (Some(node), Some(id)) = (&node, hook) {
        node.unhook(id);
    }
    match outcome {
        Outcome::Granted => Ok(true),
        Outcome::TimedOut => Ok(false),
        Outcome::Interrupted => Err(Stop::Interrupted),
        Outcome::Cancelled => Err(stopped(
            node.and_then(|node| node.cause()).map(Stop::Cancelled),
        )),
        Outcome::Killed => Err(stopped(
            task.and_then(|task| task.kill_cause()).map(Stop::Killed),
        )),
    }
}

/// Park until the wait is decided, noticing the deadlines that the thread is under.
fn park_under(node: Option<&NodeRef>, waiter: &Waiter, until: Time) -> Outcome {
    let timed = node.filter(|node| node.may_expire());
    loop {
        let scopes = timed.map_or(Time::NEVER, NodeRef::effective_deadline);
        if let Some(outcome) = waiter.park(until.min(scopes)) {
            return outcome;
        }
        let now = Time::now();
        // The scope's deadline first: it came first, or at the same time. Its cancellation
        // settles this waiter through the hook, unless the deadline has been moved meanwhile.
        if scopes <= until && timed.is_some_and(|node| node.poll(now)) {
            waiter.settle(Outcome::Cancelled);
        } else if now >= until {
            waiter.settle(Outcome::TimedOut);
        }
    }
}

/// Let a node's cancellation settle the waiter; if it is cancelled already, do so at once.
fn hook_or_settle(node: &NodeRef, waiter: &Arc<Waiter>, outcome: Outcome) -> Option<HookId> {
    let hooked = node.hook(Hook::Wake(waiter.clone(), outcome)).ok();
    if hooked.is_none() {
        waiter.settle(outcome);
    }
    hooked
}

fn stopped(stop: Option<Stop>) -> Stop {
    // The settler recorded its cause before it settled.
    scope::raising(stop.unwrap_or(Stop::Interrupted))
}
