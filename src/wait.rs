//! One blocking wait, as every primitive does it.
//!
//! Guarantees:
//! 1. A thread that is cancelled or to be killed does not begin to wait (I15).
//! 2. A wait ends in exactly one `WaitOutcome`, decided by one compare-and-set at its waiter (I11).
//!    `Err` means that the operation had no effect. A grant that won is returned, even if a stop comes
//!    a moment later; the next checkpoint raises that.
//! 3. Of several operations that one wait is for, one is performed, and all others have left their
//!    queues when the call returns (I14).
//! 4. A kill that was posted while the operation was performed is not raised inside a lock that it
//!    acquired (I24).
//!
//! The steps of `block_by`, in this order; each step takes the lock of the resource it touches and
//! releases it before the next, so no two are held at a time:
//!
//! | step | whose lock    | what                                                                       |
//! |------|---------------|----------------------------------------------------------------------------|
//! | 1    | task          | a checkpoint                                                               |
//! | 2    | scope's node  | hook the waiter, or settle it if the node is cancelled; in a generator's block also that around it |
//! | 3    | task          | register the waiter, or settle it if a kill is due                         |
//! | 4    | each resource | `Waitable::enqueue`, until the waiter is settled                         |
//! | 5    | park          | sleep until the waiter is settled, or the clock shows a deadline           |
//! | 6    | each resource | `Waitable::dequeue`, but for the one that was granted                    |
//! | 7    | task, node    | take the waiter out again                                                  |
//!
//! Steps 2 and 3 come before step 4: a stop that comes after the checkpoint settles the waiter, which is
//! then not queued, or finds it in the middle of its wait. Nothing falls between.
//!
//! How a wait ends. The settler has recorded the cause before it settles, so the waiting thread finds it:
//!
//! | outcome       | settled by                                           | under the lock of | the call returns          |
//! |---------------|------------------------------------------------------|-------------------|---------------------------|
//! | `Granted`     | the thread that releases, puts, sets or cancels the resource, through the ticket | the resource | the operation's value |
//! | `Granted`     | the waiting thread: one of its descriptors is ready  | none              | the operation's value     |
//! | `Cancelled`   | the canceller, through the hook                      | the scope's node  | `Err(Stop::Cancelled)`    |
//! | `Cancelled`   | the waiting thread: step 2, or a visible deadline has passed | none      | `Err(Stop::Cancelled)`    |
//! | `Killed`      | the killing thread, or the enforcer                  | the task's state  | `Err(Stop::Killed)`       |
//! | `Killed`      | the waiting thread: step 3                           | the task's state  | `Err(Stop::Killed)`       |
//! | `TimedOut`    | the waiting thread: `until`, or the bound of a resource, has come | none | `Ok(None)`, or another try |
//! | `Interrupted` | the waiting thread: a signal handler of the host raised | none           | `Err(Stop::Interrupted)`  |
//!
//! Relies on `park` for the settling and the sleep, on `scope` for the node and the task of the calling
//! thread, and on each resource for 3.

#[cfg(all(unix, not(loom)))]
use std::io;
use std::iter;
#[cfg(all(unix, not(loom)))]
use std::os::fd::RawFd;
use std::time::Duration;

use crate::atomics::Arc;
use crate::clock::Time;
use crate::error::Stop;
#[cfg(all(unix, not(loom)))]
use crate::park::Readiness;
use crate::park::{Latch, Ticket, WaitOutcome, Waiter};
use crate::scope::{self, Nodes};
use crate::token::callback::{self, Callback};
use crate::token::tree::{Hook, HookId, NodeRef};
use crate::token::{CancelToken, Registration};

/// `Err` if the calling thread is to stop: it has been cancelled, or is being killed. For loops that
/// compute and never wait.
///
/// # Blocking
/// Never waits for another thread. Code that swallows the error again and again is slowed down: from the
/// tenth time in one scope on, by up to a tenth of a second.
///
/// # Errors
/// [`Stop`], to be handed upwards: the scope that is cancelled absorbs it. It is returned again by every
/// later checkpoint in that scope.
#[inline]
pub fn checkpoint() -> Result<(), Stop> {
    scope::checkpoint()
}

/// The operation of waiting for an instant. Its only part in a wait is its bound: no thread grants it.
#[cfg(feature = "python")]
pub(crate) struct Until(pub(crate) Time);

#[cfg(feature = "python")]
impl Waitable for Until {
    fn enqueue(&mut self, _: Ticket) {}

    fn dequeue(&mut self, _: &Ticket) -> bool {
        false
    }

    fn bound(&self) -> Time {
        self.0
    }
}

#[cfg(feature = "python")]
impl Op for Until {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok((Time::now() >= self.0).then_some(()))
    }
}

/// Sleep.
///
/// # Blocking
/// Blocks for `duration`, never less unless it fails.
///
/// # Cancellation
/// A checkpoint on entry. A cancellation or a kill ends the sleep at once.
///
/// # Errors
/// [`Stop`]; the time has not passed.
pub fn sleep(duration: Duration) -> Result<(), Stop> {
    sleep_until(Time::after(duration))
}

/// Sleep until the clock shows `until`; for [`Time::NEVER`], until the calling thread is to stop.
///
/// # Blocking
/// Blocks until that instant; not at all if it has passed.
///
/// # Cancellation
/// As [`sleep`].
///
/// # Errors
/// As [`sleep`].
pub fn sleep_until(until: Time) -> Result<(), Stop> {
    let nothing: &mut [&mut dyn Waitable] = &mut [];
    block(&Waiter::new(), until, nothing).map(|_| ())
}

/// The operation of waiting for a node to be cancelled.
pub(crate) struct Cancellation<'a> {
    /// The node that is waited for; the calling thread's own is another matter.
    node: &'a NodeRef,
    /// The hook that grants the ticket, from `enqueue` until `dequeue` or `collect`. `None` if the node
    /// was cancelled already.
    hook: Option<HookId>,
}

impl<'a> Cancellation<'a> {
    /// Waits for this node.
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

    // The waiting thread notices the token's deadline by itself, so the timer need not be told.
    fn bound(&self) -> Time {
        self.node.effective_deadline()
    }
}

impl Op for Cancellation<'_> {
    type Output = ();
    type Error = Stop;

    // A deadline that has passed and that no thread has noticed yet counts.
    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok(self.node.is_cancelled_by_now().then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, Stop> {
        // The canceller may have granted the ticket and not yet taken the hook out of its list.
        self.hook.take().map(|id| self.node.unhook(id));
        self.attempt()
    }
}

impl CancelToken {
    /// Wait until the token is cancelled; false if `until` came first.
    ///
    /// # Blocking
    /// Blocks until one of the two; not at all if the token is cancelled.
    ///
    /// # Cancellation
    /// A checkpoint on entry. If the token is also that of the calling thread's scope, its cancellation
    /// stops the wait: it is an error, no result.
    ///
    /// # Errors
    /// [`Stop`] if the calling thread's own scope or task is to stop.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        perform(&mut Cancellation::of(self.node()), until).map(|cancelled| cancelled.is_some())
    }
}

/// Waits for the end of a callback's run.
impl Waitable for &Callback {
    fn enqueue(&mut self, ticket: Ticket) {
        Callback::enqueue(self, ticket);
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        Callback::dequeue(self, ticket);
        false
    }
}

impl Op for &Callback {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        Ok((!self.is_running()).then_some(()))
    }
}

impl Registration {
    /// Unregister; if the callback is running on another thread, wait for its end.
    ///
    /// # Blocking
    /// Blocks while the callback runs on another thread; never from inside a cancel callback.
    ///
    /// # Cancellation
    /// The wait is clean-up: if the calling code is cancelled, or was before, it goes on until the
    /// canceller's grace is spent; a kill is deferred as long. No checkpoint if there is nothing to wait
    /// for.
    ///
    /// # Errors
    /// [`Stop`]: the callback is still running.
    pub fn close(&self) -> Result<(), Stop> {
        self.close_until(Time::NEVER).map(|_| ())
    }

    /// As [`Registration::close`], but waits no longer than until `until`. False: the callback is still
    /// running.
    ///
    /// # Blocking
    /// As [`Registration::close`].
    ///
    /// # Cancellation
    /// As [`Registration::close`].
    ///
    /// # Errors
    /// As [`Registration::close`].
    pub fn close_until(&self, until: Time) -> Result<bool, Stop> {
        if self.unregister() || callback::is_inside() || !self.callback().is_running() {
            return Ok(true);
        }
        let over = scope::cleanup(|| perform(&mut self.callback(), until))?;
        if over.is_none() {
            checkpoint()?; // the grace is spent: the code around is cancelled
        }
        Ok(over.flatten().is_some())
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
    /// Wait until it is set; false if `until` came first.
    ///
    /// # Blocking
    /// Blocks until one of the two; not at all if it is set.
    ///
    /// # Cancellation
    /// A checkpoint on entry. A cancellation or a kill ends the wait.
    ///
    /// # Errors
    /// [`Stop`] if the calling thread is to stop.
    pub fn wait_until(&self, until: Time) -> Result<bool, Stop> {
        perform(&mut &*self, until).map(|set| set.is_some())
    }
}

/// An operation that a thread can wait for, by a place in the queue of some resource. All methods are
/// called on the waiting thread, with no lock held.
pub(crate) trait Waitable {
    /// Queue the ticket, under the resource's own lock. If the resource is available by now, grant the
    /// ticket at once; its thread has not parked, so it need not be woken.
    fn enqueue(&mut self, ticket: Ticket);

    /// Take the ticket out of the queue: the wait ended otherwise. Not called for the resource whose
    /// grant decided the wait. True: the resource is this thread's nevertheless, and that cannot be
    /// undone; the wait then counts as granted.
    fn dequeue(&mut self, ticket: &Ticket) -> bool;

    /// When to try again although no thread grants the ticket: an instant that is waited for, or one at
    /// which the resource changes by itself.
    fn bound(&self) -> Time {
        Time::NEVER
    }

    /// A descriptor that the waiting thread polls; that it is ready is a grant.
    #[cfg(all(unix, not(loom)))]
    fn descriptor(&self) -> Option<(RawFd, Readiness)> {
        None
    }
}

/// An operation that may have to wait, as every primitive offers it: alone, see [`perform`], or as
/// one of several, of which one is performed, see [`perform_any`].
///
/// There are two kinds. A grant either hands the result over (a lock to an overdue waiter, a permit), and
/// `collect` returns it; or it notifies (a lock is free), and `collect` tries again.
pub(crate) trait Op: Waitable {
    /// The result.
    type Output;
    /// How it can fail. The operation has had no effect then.
    type Error: From<Stop>;

    /// Perform it now, if that is possible without waiting; else `None`.
    fn attempt(&mut self) -> Result<Option<Self::Output>, Self::Error>;

    /// After a grant: take the value that was handed over. `None`: the grant was a notification, and
    /// another thread was faster; the caller waits again.
    fn collect(&mut self) -> Result<Option<Self::Output>, Self::Error> {
        self.attempt()
    }
}

/// Perform the operation, waiting until `until` at most; then `None`. A checkpoint; `Err` means that it
/// had no effect.
#[inline]
pub(crate) fn perform<O: Op>(op: &mut O, until: Time) -> Result<Option<O::Output>, O::Error> {
    perform_by(op, until, |park| park())
}

/// [`perform`], where `sleep` runs the sleep, see [`block_by`].
#[inline]
pub(crate) fn perform_by<O: Op>(
    op: &mut O,
    until: Time,
    sleep: impl Fn(&mut Park<'_>) -> WaitOutcome,
) -> Result<Option<O::Output>, O::Error> {
    // The case without a wait is the frequent one, and alone compiled into each caller.
    checkpoint()?;
    let done = match op.attempt()? {
        Some(done) => Some(done),
        None => {
            wait_and_do_first(&mut [op], until, |_| Ok(Waiter::new()), sleep)?.map(|(_, done)| done)
        }
    };
    if done.is_some() {
        // A kill that was posted before the lock was held would be raised inside.
        scope::defer_pending_kill();
    }
    Ok(done)
}

/// Perform one of the operations, the first that is possible, waiting until `until` at most; then `None`.
/// Returns its index as well. The others leave no trace (I14). A checkpoint; `Err` means that none had an
/// effect.
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
        scope::defer_pending_kill();
    }
    Ok(done)
}

/// The rest of [`perform`] and [`perform_any`] where none of the operations was possible: wait, and
/// perform the first that is. A new waiter for each turn, since a waiter is settled once.
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

/// Perform the first operation that is possible without waiting; before the others the one that was
/// granted, if one was, since its result may be in the ticket's hands already.
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
        // The granted one was tried just now.
        if granted != Some(which) {
            if let Some(done) = op.attempt()? {
                return Ok(Some((which, done)));
            }
        }
    }
    Ok(None)
}

/// A waiter for these operations: one that polls, if any of them has a descriptor.
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

/// Perform the operation, however long that takes: neither a cancellation nor a kill ends the wait, only a
/// signal handler of the host that raises. No checkpoint. For steps that must be completed once begun,
/// such as the reacquiring of a condition's lock.
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
    scope::defer_pending_kill();
    Ok(done)
}

/// Wait until one of `what` is granted, and return its index; `None` at `until`, or at one's bound. A
/// checkpoint. All others have left their queues when this returns.
pub(crate) fn block<W: Waitable + ?Sized>(
    waiter: &Arc<Waiter>,
    until: Time,
    what: &mut [&mut W],
) -> Result<Option<usize>, Stop> {
    block_by(waiter, until, what, |park| park())
}

/// The part of a wait in which the thread sleeps, to be called once.
pub(crate) type Park<'a> = dyn FnMut() -> WaitOutcome + Send + 'a;

/// [`block`], where `sleep` calls its argument, which sleeps. So a host can release its own lock for the
/// sleep alone, and hold it for all other steps.
pub(crate) fn block_by<W: Waitable + ?Sized>(
    waiter: &Arc<Waiter>,
    until: Time,
    what: &mut [&mut W],
    sleep: impl FnOnce(&mut Park<'_>) -> WaitOutcome,
) -> Result<Option<usize>, Stop> {
    checkpoint()?;
    let task = scope::current_task();
    let nodes = scope::current_nodes();
    let hook_at = |node| hook_or_settle(node, waiter);
    let hook = nodes.inner().and_then(hook_at);
    let outer_hooks: Vec<_> = nodes.outer().iter().map(hook_at).collect();
    if let Some(task) = &task {
        task.begin_wait(waiter);
    }
    let mut queued = 0;
    let mut until = until;
    for (which, waitable) in what.iter_mut().enumerate() {
        if waiter.outcome().is_some() {
            break;
        }
        waitable.enqueue(Ticket::new(waiter, which));
        until = until.min(waitable.bound());
        queued += 1;
    }
    let mut outcome = sleep(&mut || park_under(&nodes, waiter, until));
    let mut granted = (outcome == WaitOutcome::Granted).then(|| waiter.which());
    for (which, waitable) in what[..queued].iter_mut().enumerate() {
        if granted != Some(which) && waitable.dequeue(&Ticket::new(waiter, which)) {
            granted = Some(which);
        }
    }
    // The exception of a signal handler is always raised, even if the wait was granted meanwhile and the
    // grant cannot be undone: the caller gets the error, and the grant stands.
    if granted.is_some() && outcome != WaitOutcome::Interrupted {
        outcome = WaitOutcome::Granted;
    }
    if let Some(task) = &task {
        task.end_wait();
    }
    for (node, hook) in nodes.iter().zip(iter::once(hook).chain(outer_hooks)) {
        hook.and_then(|id| node.unhook(id));
    }
    match outcome {
        WaitOutcome::Granted => Ok(granted),
        WaitOutcome::TimedOut => Ok(None),
        WaitOutcome::Interrupted => Err(Stop::Interrupted),
        WaitOutcome::Cancelled => Err(stopped(
            nodes.iter().find_map(NodeRef::cause).map(Stop::Cancelled),
        )),
        WaitOutcome::Killed => Err(stopped(
            task.and_then(|task| task.kill_cause()).map(Stop::Killed),
        )),
    }
}

/// Park until the wait is decided. The thread notices the deadlines of its scopes itself, so none of them
/// has to be told to the timer; they are read again after each wake-up, since they may have moved.
fn park_under(nodes: &Nodes, waiter: &Waiter, until: Time) -> WaitOutcome {
    let is_timed = nodes.iter().any(NodeRef::may_expire);
    let deadlines = || nodes.iter().map(NodeRef::effective_deadline);
    loop {
        let scopes = if is_timed { deadlines().min() } else { None }.unwrap_or(Time::NEVER);
        if let Some(outcome) = waiter.park(until.min(scopes)) {
            return outcome;
        }
        let now = Time::now();
        // The scope's deadline first: it came first, or at the same time. If it was moved meanwhile, the
        // node is not cancelled, and the loop begins again. If it is, the hook has settled the waiter
        // already, and settling it once more has no effect.
        if scopes <= until && is_timed && nodes.iter().any(|node| node.poll(now)) {
            waiter.settle(WaitOutcome::Cancelled);
        } else if now >= until {
            waiter.settle(WaitOutcome::TimedOut);
        }
    }
}

/// Have a cancellation of the node settle the waiter; if it is cancelled already, settle it here.
fn hook_or_settle(node: &NodeRef, waiter: &Arc<Waiter>) -> Option<HookId> {
    let hooked = node.hook(Hook::Wake(waiter.clone())).ok();
    if hooked.is_none() {
        waiter.settle(WaitOutcome::Cancelled);
    }
    hooked
}

/// The stop that ends a wait, about to be raised. `None` cannot happen: the settler has recorded its cause
/// before it settled.
fn stopped(stop: Option<Stop>) -> Stop {
    scope::before_raise(stop.unwrap_or(Stop::Interrupted))
}

#[cfg(all(test, unix, not(loom)))]
#[path = "../tests/rust/deferral.rs"]
mod tests;
