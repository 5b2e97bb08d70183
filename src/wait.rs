//! One blocking wait, as every primitive does it.
//!
//! A wait looks first (a cancelled thread does not begin to wait, I15), then makes its waiter
//! known to the scope's node, to the task's control and to what it waits for, and parks until
//! one of them, or the clock, decides. `Err` means that nothing happened (I11); a grant that won
//! is returned, and the next checkpoint raises.

#[cfg(all(unix, not(loom)))]
use std::io;
#[cfg(all(unix, not(loom)))]
use std::os::fd::RawFd;
use std::time::Duration;

use crate::atomics::Arc;
use crate::clock::Time;
use crate::error::Stop;
#[cfg(all(unix, not(loom)))]
use crate::park::Readiness;
use crate::park::{Latch, Ticket, WaitOutcome, Waiter};
use crate::scope;
use crate::token::CancelToken;
use crate::token::tree::{Hook, HookId, NodeRef};

/// `Err` if the calling thread has been cancelled or is being killed; never blocks.
#[inline]
pub fn checkpoint() -> Result<(), Stop> {
    scope::checkpoint()
}

/// A time that is waited for.
pub(crate) struct Until(pub(crate) Time);

impl Waitable for Until {
    fn enqueue(&mut self, _: Ticket) {}

    fn dequeue(&mut self, _: &Ticket) -> bool {
        false
    }

    fn bound(&self) -> Time {
        self.0
    }
}

impl Op for Until {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok((Time::now() >= self.0).then_some(()))
    }
}

/// Sleep. `Err` as soon as the calling thread is to stop.
pub fn sleep(duration: Duration) -> Result<(), Stop> {
    sleep_until(Time::after(duration))
}

/// Sleep until the clock shows `until`. `Err` as soon as the calling thread is to stop.
pub fn sleep_until(until: Time) -> Result<(), Stop> {
    let nothing: &mut [&mut dyn Waitable] = &mut [];
    block(&Waiter::new(), until, nothing).map(|_| ())
}

/// Waiting for a node to be cancelled.
pub(crate) struct Cancellation<'a> {
    node: &'a NodeRef,
    hook: Option<HookId>,
}

impl<'a> Cancellation<'a> {
    pub(crate) fn of(node: &'a NodeRef) -> Cancellation<'a> {
        Cancellation { node, hook: None }
    }
}

impl Waitable for Cancellation<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        self.hook = match self.node.hook(Hook::Grant(ticket)) {
            Ok(id) => Some(id),
            Err(Hook::Grant(ticket)) => {
                ticket.grant();
                None
            }
            Err(_) => None,
        };
    }

    fn dequeue(&mut self, _: &Ticket) -> bool {
        self.hook.take().map(|id| self.node.unhook(id));
        false
    }

    // A deadline of the token is noticed by whoever waits for it, so the timer need not be told.
    fn bound(&self) -> Time {
        self.node.effective_deadline()
    }
}

impl Op for Cancellation<'_> {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok(self.node.is_cancelled_by_now().then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, Stop> {
        // The canceller may be about to take the hook out: not behind this wait's back.
        self.hook.take().map(|id| self.node.unhook(id));
        self.attempt()
    }
}

impl CancelToken {
    /// Block until the token is cancelled, or until `until` (then false).
    ///
    /// A checkpoint: `Err` if the calling thread's own scope or task is to stop.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        perform(&mut Cancellation::of(self.node()), until).map(|cancelled| cancelled.is_some())
    }
}

impl Waitable for &Latch {
    fn enqueue(&mut self, ticket: Ticket) {
        Latch::enqueue(self, ticket);
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        Latch::dequeue(self, ticket);
        false
    }
}

impl Op for &Latch {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok(self.is_set().then_some(()))
    }
}

impl Latch {
    /// Block until it is set, or until `until` (then false). A checkpoint.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        perform(&mut &*self, until).map(|set| set.is_some())
    }
}

/// What a thread can wait for: a place in the line of some resource.
pub(crate) trait Waitable {
    /// Stand in line. If what is waited for is there by now, grant the ticket at once; its thread
    /// has not parked, so it need not be woken.
    fn enqueue(&mut self, ticket: Ticket);

    /// Leave the line: the wait ended otherwise. Not called after a grant. True: it has been
    /// granted nevertheless, and cannot be undone.
    fn dequeue(&mut self, ticket: &Ticket) -> bool;

    /// When to look again although nobody grants anything: a time that is waited for.
    fn bound(&self) -> Time {
        Time::NEVER
    }

    /// A descriptor whose being ready is a grant.
    #[cfg(all(unix, not(loom)))]
    fn descriptor(&self) -> Option<(RawFd, Readiness)> {
        None
    }
}

/// An operation that may have to wait, as every primitive offers it: alone, see [`perform`], or as
/// one of several, of which one is done, see [`perform_any`].
pub(crate) trait Op: Waitable {
    /// What it yields.
    type Output;
    /// How it can fail. It has not happened then.
    type Error: From<Stop>;

    /// Do it now, if that is possible without waiting.
    fn attempt(&mut self) -> Result<Option<Self::Output>, Self::Error>;

    /// It was granted: fetch what was handed over. `None`: the grant only said that it is worth
    /// another try, and somebody else was quicker.
    fn collect(&mut self) -> Result<Option<Self::Output>, Self::Error> {
        self.attempt()
    }
}

/// Do it, waiting until `until` at most; then `None`. A checkpoint; `Err` means that nothing was
/// done.
#[inline]
pub(crate) fn perform<O: Op>(op: &mut O, until: Time) -> Result<Option<O::Output>, O::Error> {
    perform_by(op, until, |park| park())
}

/// [`perform`], where `sleep` runs the sleeping, see [`block_by`].
#[inline]
pub(crate) fn perform_by<O: Op>(
    op: &mut O,
    until: Time,
    sleep: impl Fn(&mut Park<'_>) -> WaitOutcome,
) -> Result<Option<O::Output>, O::Error> {
    // Mostly there is nothing to wait for: that alone is compiled into each caller.
    checkpoint()?;
    let done = match op.attempt()? {
        Some(done) => Some(done),
        None => {
            wait_and_do_first(&mut [op], until, |_| Ok(Waiter::new()), sleep)?.map(|(_, done)| done)
        }
    };
    if done.is_some() {
        scope::hold_off_kill();
    }
    Ok(done)
}

/// Do one of them, the first that is possible, waiting until `until` at most; then `None`. Tells
/// which it was. The others leave no trace (I14). A checkpoint; `Err` means that nothing was done.
#[cfg(all(unix, not(loom)))]
pub(crate) fn perform_any<O: Op + ?Sized>(
    ops: &mut [&mut O],
    until: Time,
    sleep: impl Fn(&mut Park<'_>) -> WaitOutcome,
) -> Result<Option<(usize, O::Output)>, O::Error>
where
    O::Error: From<io::Error>,
{
    checkpoint()?;
    let done = match do_first(ops, None)? {
        Some(done) => Some(done),
        None => wait_and_do_first(ops, until, |ops| Ok(waiter_for(ops)?), sleep)?,
    };
    if done.is_some() {
        scope::hold_off_kill();
    }
    Ok(done)
}

/// None is possible yet: wait, and do the first that is.
#[cold]
fn wait_and_do_first<O: Op + ?Sized>(
    ops: &mut [&mut O],
    until: Time,
    new_waiter: impl Fn(&[&mut O]) -> Result<Arc<Waiter>, O::Error>,
    sleep: impl Fn(&mut Park<'_>) -> WaitOutcome,
) -> Result<Option<(usize, O::Output)>, O::Error> {
    loop {
        if !until.is_never() && Time::now() >= until {
            return Ok(None);
        }
        let granted = block_by(&new_waiter(ops)?, until, ops, &sleep)?;
        if let Some(done) = do_first(ops, granted)? {
            return Ok(Some(done));
        }
    }
}

/// Do the first that is possible without waiting, after one of them may have been granted.
fn do_first<O: Op + ?Sized>(
    ops: &mut [&mut O],
    granted: Option<usize>,
) -> Result<Option<(usize, O::Output)>, O::Error> {
    if let Some(which) = granted {
        if let Some(done) = ops[which].collect()? {
            return Ok(Some((which, done)));
        }
    }
    for (which, op) in ops.iter_mut().enumerate() {
        // What was granted and is not there any more was looked for just now.
        if granted != Some(which) {
            if let Some(done) = op.attempt()? {
                return Ok(Some((which, done)));
            }
        }
    }
    Ok(None)
}

#[cfg(all(unix, not(loom)))]
fn waiter_for<W: Waitable + ?Sized>(what: &[&mut W]) -> io::Result<Arc<Waiter>> {
    let descriptor = |(which, op): (usize, &&mut W)| {
        let (fd, what) = op.descriptor()?;
        Some((which, fd, what))
    };
    let descriptors: Vec<_> = what.iter().enumerate().filter_map(descriptor).collect();
    if descriptors.is_empty() {
        return Ok(Waiter::new());
    }
    Waiter::polling(&descriptors)
}

/// Do it, however long it takes. Only a signal handler of the host that raises ends the wait.
pub(crate) fn perform_shielded<O: Op>(op: &mut O) -> Result<O::Output, O::Error> {
    let done = loop {
        if let Some(done) = op.attempt()? {
            break done;
        }
        let waiter = Waiter::new();
        let ticket = Ticket::new(&waiter, 0);
        op.enqueue(ticket.clone());
        if waiter.finish(Time::NEVER) != WaitOutcome::Granted {
            op.dequeue(&ticket);
            return Err(Stop::Interrupted.into());
        }
        if let Some(done) = op.collect()? {
            break done;
        }
    };
    scope::hold_off_kill();
    Ok(done)
}

/// Wait until one of `what` is granted, and tell which; `None` at `until`, or at one's bound.
///
/// Whatever was not granted has left its line when this returns.
pub(crate) fn block<W: Waitable + ?Sized>(
    waiter: &Arc<Waiter>,
    until: Time,
    what: &mut [&mut W],
) -> Result<Option<usize>, Stop> {
    block_by(waiter, until, what, |park| park())
}

/// The part of a wait in which the thread sleeps.
pub(crate) type Park<'a> = dyn FnMut() -> WaitOutcome + Send + 'a;

/// [`block`], where `sleep` runs the sleeping itself: so a host can let go of what a sleeper must
/// not hold, and have it for everything else.
pub(crate) fn block_by<W: Waitable + ?Sized>(
    waiter: &Arc<Waiter>,
    until: Time,
    what: &mut [&mut W],
    sleep: impl FnOnce(&mut Park<'_>) -> WaitOutcome,
) -> Result<Option<usize>, Stop> {
    checkpoint()?;
    let task = scope::current_task();
    let node = scope::current_node();
    let hook = node.as_ref().and_then(|node| hook_or_settle(node, waiter));
    if let Some(task) = &task {
        task.begin_wait(waiter);
    }
    let mut in_line = 0;
    let mut until = until;
    for (which, waitable) in what.iter_mut().enumerate() {
        if waiter.outcome().is_some() {
            break;
        }
        waitable.enqueue(Ticket::new(waiter, which));
        until = until.min(waitable.bound());
        in_line += 1;
    }
    let mut outcome = sleep(&mut || park_under(node.as_ref(), waiter, until));
    let mut granted = (outcome == WaitOutcome::Granted).then(|| waiter.which());
    for (which, waitable) in what[..in_line].iter_mut().enumerate() {
        if granted != Some(which) && waitable.dequeue(&Ticket::new(waiter, which)) {
            granted = Some(which);
        }
    }
    // What a signal handler raised must not be lost, whatever was granted.
    if granted.is_some() && outcome != WaitOutcome::Interrupted {
        outcome = WaitOutcome::Granted;
    }
    if let Some(task) = &task {
        task.end_wait();
    }
    if let (Some(node), Some(id)) = (&node, hook) {
        node.unhook(id);
    }
    match outcome {
        WaitOutcome::Granted => Ok(granted),
        WaitOutcome::TimedOut => Ok(None),
        WaitOutcome::Interrupted => Err(Stop::Interrupted),
        WaitOutcome::Cancelled => Err(stopped(
            node.and_then(|node| node.cause()).map(Stop::Cancelled),
        )),
        WaitOutcome::Killed => Err(stopped(
            task.and_then(|task| task.kill_cause()).map(Stop::Killed),
        )),
    }
}

/// Park until the wait is decided, noticing the deadlines that the thread is under.
fn park_under(node: Option<&NodeRef>, waiter: &Waiter, until: Time) -> WaitOutcome {
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
            waiter.settle(WaitOutcome::Cancelled);
        } else if now >= until {
            waiter.settle(WaitOutcome::TimedOut);
        }
    }
}

/// Let a node's cancellation settle the waiter; if it is cancelled already, do so at once.
fn hook_or_settle(node: &NodeRef, waiter: &Arc<Waiter>) -> Option<HookId> {
    let hooked = node.hook(Hook::Wake(waiter.clone())).ok();
    if hooked.is_none() {
        waiter.settle(WaitOutcome::Cancelled);
    }
    hooked
}

fn stopped(stop: Option<Stop>) -> Stop {
    // The settler recorded its cause before it settled.
    scope::before_raise(stop.unwrap_or(Stop::Interrupted))
}

#[cfg(all(test, unix, not(loom)))]
#[path = "../tests/rust/deferral.rs"]
mod tests;
