//! The ladder from asking to the hard stop: how a kill goes from rung to rung.
//!
//! Guarantees:
//! 1. Each rung has its own time, and the next begins only when the one before has not ended the body
//!    (I23). *Ended* means that [`Task::over`] is set, which the boundary does after its sweep; it does not
//!    mean that an exception or a signal was sent.
//! 2. A kill takes at most the sum of its policy's times, plus the time for which masks and held locks
//!    defer it.
//! 3. It is not interrupted by the killer's own cancellation: a kill that stopped half way would leave
//!    the task cancelled but alive. Only a signal handler of the host that raises ends it.
//! 4. Several threads may kill one task. Each goes up the ladder by itself; the first cause stays, and the
//!    task is abandoned by one of them.
//!
//! | rung | body on a thread | body in a process |
//! |---|---|---|
//! | `Cooperative` | cancel its source, wait | the same |
//! | `AtWait` | raise `Killed` at its waits and checkpoints | |
//! | `AsyncExc` | raise it anywhere in the body | |
//! | `Trace` | raise it before each step of the body | |
//! | `Sigterm` | | SIGTERM: the process raises `Killed` in the body |
//! | `Sigkill` | | SIGKILL |
//! | `Abandoned` | stop waiting: fence its leases, and lose its locks to all others | the same |
//!
//! Within a rung the delivery is repeated with growing pauses, for a body can swallow `Killed`, and
//! because a delivery does nothing while the kill is deferred. The state of a kill is in the task,
//! under the task's lock; a `Kill` belongs to one thread at a time, and has no lock.

#[cfg(feature = "python")]
pub(crate) mod all;

use std::sync::Arc;
use std::time::Duration;

use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::item::ItemId;
use crate::ledger::KillInfo;
use crate::scope;
use crate::stack::Stack;
pub use crate::task::policy::{
    AnyStopPolicy, KillOutcome, ProcessStopPolicy, RungReport, StopPolicy,
};
use crate::task::policy::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::task::{Progress, Task};

/// How a kill ended, and the fate of the body's holds.
#[derive(Debug, Clone)]
pub struct KillReport {
    /// How the task ended; `None`: it has not, and the policy does not allow to abandon it.
    pub outcome: Option<KillOutcome>,
    /// From the call until the boundary was swept.
    pub elapsed: Duration,
    /// The rungs that were tried, in order. The body ended during the last one, unless the outcome
    /// says that nothing ended it. The outcome may be a softer rung: the last one whose `Killed`
    /// reached the body, which then took longer to end than that rung's time.
    pub rungs: Vec<RungReport>,
    /// Names of locks that were released on the body's behalf.
    pub released: Vec<Arc<str>>,
    /// Names of locks that are poisoned, or lost with an abandoned owner.
    pub poisoned: Vec<Arc<str>>,
    /// Names of modules with locks of their own in whose code the body had to be interrupted, because the
    /// policy's `defer` had passed. Such a lock may be held for ever.
    pub interrupted: Vec<Arc<str>>,
    /// Ids of items that are ready again.
    pub requeued: Vec<ItemId>,
    /// Ids of items whose old lease is fenced, because the task was abandoned.
    pub fenced: Vec<ItemId>,
    /// Where `Killed` was raised, or where the body is now.
    pub stack: Option<Stack>,
    /// The last call of `stack`, if it has not returned since the first exception was posted: foreign
    /// code, which no rung can end.
    pub blocked: Option<Arc<str>>,
    /// The system call that the body's thread was in when the kill began, in words; `None`: it ran, or the
    /// system does not tell.
    pub waited_in: Option<Arc<str>>,
    /// The blocking calls of the body that were ended in its cancellation, in words.
    pub ended_calls: Vec<Arc<str>>,
}

/// A kill that is not possible; the message says what to do instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillError {
    /// The calling thread is the task's own.
    Itself,
    /// The task has not begun.
    NotStarted,
    /// The body runs in a process of its own and the policy is for threads, or the other way round.
    WrongPolicy,
    /// A signal handler of the host raised while this thread waited; the kill goes no further.
    Interrupted,
}

/// A process gets its signal again after this time: its body may have swallowed the `Killed` of the
/// last one.
const RESIGNAL_AFTER: Duration = Duration::from_millis(50);

impl KillReport {
    /// The report for a kill that found no task.
    #[cfg(feature = "python")]
    pub(crate) fn already_done() -> Self {
        Self {
            outcome: Some(KillOutcome::AlreadyDone),
            elapsed: Duration::ZERO,
            rungs: Vec::new(),
            released: Vec::new(),
            poisoned: Vec::new(),
            interrupted: Vec::new(),
            requeued: Vec::new(),
            fenced: Vec::new(),
            stack: None,
            blocked: None,
            waited_in: None,
            ended_calls: Vec::new(),
        }
    }
}

/// Kills a task, and waits for its end. `on_abandon` runs when the task is abandoned, before its
/// waiters are woken.
///
/// # Blocking
///
/// For the sum of the policy's times at most, plus the time in which open masks defer the kill.
///
/// # Cancellation
///
/// Not interrupted by a cancellation or a kill of the calling thread.
///
/// # Errors
///
/// [`KillError`] says what to do instead.
pub fn kill(
    task: &Arc<Task>,
    reason: Option<Arc<str>>,
    policy: impl Into<AnyStopPolicy>,
    on_abandon: &mut dyn FnMut(),
) -> Result<KillReport, KillError> {
    let mut kill = Kill::new(task, CauseKind::Explicit, reason, policy)?;
    kill.begin();
    kill.run(on_abandon)
}

/// Acts in real time: a simulated clock would stand still while the task runs.
fn in_real_time<R>(act: impl FnOnce() -> R) -> R {
    #[cfg(not(loom))]
    return crate::testing::in_real_time(act);
    #[cfg(loom)]
    act()
}

/// One kill, on its way up the ladder. Between [`Kill::begin`] and [`Kill::run`] it may pass from
/// one thread to another.
pub(crate) struct Kill {
    /// The task to be killed; never the calling thread's own.
    task: Arc<Task>,
    /// The rungs, and the time for each.
    policy: AnyStopPolicy,
    /// Recorded in the task, unless another kill was first.
    cause: Cause,
    /// By the system's clock, for the report.
    began: Time,
    /// The task had ended before the kill.
    is_over: bool,
    /// See [`KillReport::waited_in`].
    waited_in: Option<Arc<str>>,
    /// The rung that [`Kill::begin`] has tried.
    delivered: Option<KillOutcome>,
    /// One record for every rung tried so far.
    rungs: Vec<RungReport>,
}

impl Kill {
    /// A kill that has not done anything yet.
    ///
    /// # Errors
    ///
    /// The task cannot be killed, or not by this thread, or not by this policy.
    pub(crate) fn new(
        task: &Arc<Task>,
        kind: CauseKind,
        reason: Option<Arc<str>>,
        policy: impl Into<AnyStopPolicy>,
    ) -> Result<Kill, KillError> {
        let policy = policy.into();
        if scope::current_task().is_some_and(|current| Arc::ptr_eq(&current, task)) {
            return Err(KillError::Itself);
        }
        let is_over = match task.progress() {
            Progress::Pending => return Err(KillError::NotStarted),
            Progress::Over | Progress::Abandoned => task.over().is_set() || task.is_lost_in_fork(),
            _ => false,
        };
        if !is_over && policy.is_for_process() != task.is_remote() {
            return Err(KillError::WrongPolicy);
        }
        let (cause, began) = in_real_time(|| (Cause::now(kind, reason, None), Time::now()));
        Ok(Kill {
            task: task.clone(),
            policy,
            cause,
            began,
            is_over,
            waited_in: None,
            delivered: None,
            rungs: Vec::new(),
        })
    }

    /// The same kill, by this cause.
    #[cfg(feature = "python")]
    pub(crate) fn because(self, cause: Cause) -> Kill {
        Kill { cause, ..self }
    }

    /// True if the policy uses force at once.
    pub(crate) fn is_urgent(&self) -> bool {
        self.policy.cooperative().is_zero()
    }

    /// The longest that it takes, with a clean-up zone that defers it.
    #[cfg(feature = "python")]
    pub(crate) fn longest(&self) -> Duration {
        self.policy.longest()
    }

    /// The steps before the first wait: cancel, and if the kill is urgent, deliver once. Where one
    /// thread of the host runs at a time, an urgent kill has to do this before it lets others run:
    /// afterwards the task may keep it from running.
    pub(crate) fn begin(&mut self) {
        if self.is_over {
            return;
        }
        #[cfg(not(loom))]
        {
            self.waited_in = self.task.sits_in();
        }
        in_real_time(|| {
            self.task.node().cancel_to_kill(self.cause.clone());
            let first = self.policy.rungs().find(|(_, time)| !time.is_zero());
            let urgent = self.is_urgent() && !self.policy.is_for_process();
            let Some((rung, _)) = first.filter(|_| urgent) else {
                return;
            };
            self.task
                .request_kill(&self.cause, self.began + self.policy.defer());
            self.delivered = deliver(&self.task, rung).then_some(rung);
        });
    }

    /// Goes from rung to rung until the task is over or abandoned, behind [`Kill::begin`].
    pub(crate) fn run(self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        in_real_time(|| self.run_now(on_abandon))
    }

    /// [`Kill::run`], in real time.
    fn run_now(mut self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        if self.is_over || self.ask(Time::now())? {
            return Ok(self.report());
        }
        self.force(on_abandon)
    }

    /// The rungs behind the first.
    fn force(mut self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        if self.use_force()? {
            return Ok(self.report());
        }
        self.abandon(on_abandon)
    }

    /// The first rung: the task has been cancelled, and gets its time from `since` on. True: it has ended.
    fn ask(&mut self, since: Time) -> Result<bool, KillError> {
        if self.is_urgent() {
            return Ok(false);
        }
        let limit = self.policy.cooperative();
        let ended = over(&self.task, since + limit);
        self.record(KillOutcome::Cooperative, since, limit, 1);
        ended
    }

    /// The other rungs. True: the task has ended.
    fn use_force(&mut self) -> Result<bool, KillError> {
        let lock_grace_until = Time::now() + self.policy.defer();
        for (rung, limit) in self.policy.rungs() {
            let (since, mut attempts) = (Time::now(), 0);
            let ended = if self.policy.is_for_process() {
                signal(&self.task, rung, limit, &mut attempts)?
            } else {
                self.task.request_kill(&self.cause, lock_grace_until);
                let delivered = self.delivered == Some(rung);
                retry_rung(&self.task, rung, limit, delivered, &mut attempts)?
            };
            if attempts > 0 {
                self.record(rung, since, limit, attempts);
            }
            if ended {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Notes a rung for the report.
    fn record(&mut self, rung: KillOutcome, since: Time, limit: Duration, attempts: u32) {
        self.rungs.push(RungReport {
            rung,
            elapsed: Time::now() - since,
            limit,
            attempts,
        });
    }

    /// No rung has ended the task: abandons it, if the policy says so and its boundary has not closed.
    fn abandon(self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        let task = &self.task;
        let place = if self.policy.is_for_process() {
            None
        } else {
            task.place()
        };
        let stack = place.as_ref().map(|place| place.stack.clone());
        let blocked = place.and_then(|place| place.blocked);
        if self.policy.abandon() {
            if task.abandon(KillInfo {
                task: task.name().clone(),
                cause: self.cause.clone(),
                stack: stack.clone(),
            }) {
                on_abandon();
                task.amend(|record| {
                    record.killed_at = Some(KillOutcome::Abandoned);
                    record.stack = stack;
                    record.blocked = blocked;
                });
                task.over().set();
            } else {
                over(task, Time::NEVER)?; // its boundary is closing, which takes no waits
            }
            return Ok(self.report());
        }
        if task.progress() == Progress::Over {
            over(task, Time::NEVER)?; // its boundary is closing, which takes no waits
            return Ok(self.report());
        }
        let mut unfinished = self.report();
        unfinished.outcome = None;
        unfinished.stack = stack;
        unfinished.blocked = blocked;
        Ok(unfinished)
    }

    /// The report of a kill whose task has ended, from the task's record.
    fn report(self) -> KillReport {
        let record = self.task.record();
        let outcome = if self.is_over {
            KillOutcome::AlreadyDone
        } else {
            record.killed_at.unwrap_or(KillOutcome::Cooperative)
        };
        KillReport {
            outcome: Some(outcome),
            elapsed: Time::now() - self.began,
            rungs: self.rungs,
            released: record.swept.released,
            poisoned: record.swept.poisoned,
            interrupted: self.task.interrupted(),
            requeued: record.requeued,
            fenced: record.fenced,
            stack: record.stack,
            blocked: record.blocked,
            waited_in: self.waited_in,
            ended_calls: record.ended_calls,
        }
    }
}

/// One rung for a body in a process of its own: the signal is sent again and again until the task is
/// over (true), or the rung's time is up.
fn signal(
    task: &Task,
    rung: KillOutcome,
    limit: Duration,
    attempts: &mut u32,
) -> Result<bool, KillError> {
    let mut end = Time::after(limit);
    while Time::now() < end {
        *attempts += 1;
        end = end.max(task.signal_process(rung) + limit);
        if over(task, end.min(Time::after(RESIGNAL_AFTER)))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Delivers once, as this rung does. False: the host has no such force.
fn deliver(task: &Arc<Task>, rung: KillOutcome) -> bool {
    task.deliver_at_wait();
    match rung {
        KillOutcome::AsyncExc => task.deliver_async(),
        KillOutcome::Trace => task.deliver_by_trace(),
        _ => true,
    }
}

/// One rung for a body on a thread: the kill is delivered again and again, with growing pauses, until
/// the task is over (true), or the rung's time is up. That time begins when the kill is no longer
/// deferred. `delivered`: it has been, once, before.
fn retry_rung(
    task: &Arc<Task>,
    rung: KillOutcome,
    limit: Duration,
    mut delivered: bool,
    attempts: &mut u32,
) -> Result<bool, KillError> {
    let mut end = Time::after(limit);
    let mut pause = FIRST_PAUSE;
    while Time::now() < end {
        if !std::mem::take(&mut delivered) && !deliver(task, rung) {
            break;
        }
        *attempts += 1;
        if over(task, Time::after(pause))? {
            return Ok(true);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        end = end.max(task.deferred_until() + limit);
    }
    Ok(false)
}

/// Waits for the task's end, until `until` at most. Not interrupted by the caller's own cancellation.
fn over(task: &Task, until: Time) -> Result<bool, KillError> {
    task.over()
        .wait_shielded(until)
        .map_err(|_| KillError::Interrupted)
}

#[cfg(all(test, not(loom)))]
#[path = "../tests/rust/urgent.rs"]
mod tests;
