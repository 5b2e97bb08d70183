//! The ladder from asking to hard stop.
//!
//! Each rung has its own time, and the next begins only when the one before did not end the
//! body (I23): ask (cancel), raise at desist waits, raise anywhere in the body, raise in front of
//! its every step, give up; for a body in a process of its own: ask, terminate the process, kill it,
//! give up. "Ended" means that the task's boundary has said so, never that
//! something was sent.

use std::sync::Arc;
use std::time::Duration;

use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::item::ItemId;
use crate::ledger::KillInfo;
use crate::scope;
use crate::stack::Stack;
use crate::task::policy::{FIRST_PAUSE, LONGEST_PAUSE};
pub use crate::task::policy::{KillOutcome, StopPolicy};
use crate::task::{Progress, Task};

/// What a kill came to.
#[derive(Debug, Clone)]
pub struct KillReport {
    /// How the task ended; `None`: it has not, and the policy does not allow to give it up.
    pub outcome: Option<KillOutcome>,
    /// Seconds from the call to the swept boundary.
    pub elapsed: Duration,
    /// Names of locks that were given back.
    pub released: Vec<Arc<str>>,
    /// Names of locks that are poisoned, or lost with an abandoned owner.
    pub poisoned: Vec<Arc<str>>,
    /// Ids of items that are ready again.
    pub requeued: Vec<ItemId>,
    /// Ids of items whose lease the task still believes to hold.
    pub fenced: Vec<ItemId>,
    /// Where it was stopped, or where it is now.
    pub stack: Option<Stack>,
    /// The call, the last of `stack`, that has not come back in all the time in which force was
    /// used: foreign code, which no rung can end.
    pub blocked: Option<Arc<str>>,
}

/// A kill that makes no sense; the message says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillError {
    /// The calling thread is the task's own.
    Itself,
    /// The task has not begun.
    NotStarted,
    /// A signal handler of the host raised while this thread waited; the kill goes no further.
    Interrupted,
}

/// A process is told again this soon: what it has told its body may have been swallowed.
const TELL_AGAIN: Duration = Duration::from_millis(50);
/// A process that was killed is gone so soon, unless the system keeps it.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Kill a task, and wait for its end. Blocks for the time of the policy's rungs at most, plus what
/// open masks hold it off; not interrupted by the caller's own cancellation. `on_abandon` runs
/// when the task is given up, before anyone is told.
pub fn kill(
    task: &Arc<Task>,
    reason: Option<Arc<str>>,
    policy: &StopPolicy,
    on_abandon: &mut dyn FnMut(),
) -> Result<KillReport, KillError> {
    let mut kill = Kill::new(task, reason, policy)?;
    kill.begin();
    kill.climb(on_abandon)
}

/// Act in real time: simulated time would stand still while the task runs.
fn in_real_time<R>(act: impl FnOnce() -> R) -> R {
    #[cfg(not(loom))]
    return crate::testing::outside(act);
    #[cfg(loom)]
    act()
}

/// One kill, on its way up the ladder.
pub(crate) struct Kill<'a> {
    task: &'a Arc<Task>,
    policy: &'a StopPolicy,
    cause: Cause,
    began: Time,
    /// It was over before.
    is_over: bool,
    /// The rung on which [`Kill::begin`] has struck.
    struck: Option<KillOutcome>,
}

impl<'a> Kill<'a> {
    pub(crate) fn new(
        task: &'a Arc<Task>,
        reason: Option<Arc<str>>,
        policy: &'a StopPolicy,
    ) -> Result<Kill<'a>, KillError> {
        if scope::current_task().is_some_and(|current| Arc::ptr_eq(&current, task)) {
            return Err(KillError::Itself);
        }
        let is_over = match task.progress() {
            Progress::Fresh => return Err(KillError::NotStarted),
            Progress::Over | Progress::Abandoned => task.over().is_set() || task.is_left_behind(),
            _ => false,
        };
        let (cause, began) =
            in_real_time(|| (Cause::now(CauseKind::Explicit, reason, None), Time::now()));
        Ok(Kill {
            task,
            policy,
            cause,
            began,
            is_over,
            struck: None,
        })
    }

    /// The policy wants force at once.
    pub(crate) fn is_urgent(&self) -> bool {
        self.policy.cooperative.is_zero()
    }

    /// What comes before the first wait. A host in which one thread runs at a time has an urgent
    /// kill do this before it lets others run, or it would wait until the task lets it run again.
    pub(crate) fn begin(&mut self) {
        if self.is_over {
            return;
        }
        in_real_time(|| {
            self.task.node().cancel(self.cause.clone());
            let first = self.rungs().find(|(_, time)| !time.is_zero());
            let urgent = self.is_urgent() && !self.task.is_elsewhere();
            let Some((rung, _)) = first.filter(|_| urgent) else {
                return;
            };
            self.task.order(&self.cause, self.began + self.policy.defer);
            self.struck = strike(self.task, rung).then_some(rung);
        });
    }

    /// Rung by rung, behind [`Kill::begin`].
    pub(crate) fn climb(self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        in_real_time(|| self.climb_now(on_abandon))
    }

    /// The rungs with force that are allowed.
    fn rungs(&self) -> impl Iterator<Item = (KillOutcome, Duration)> + use<> {
        let rungs = [
            (KillOutcome::AtWait, self.policy.at_wait),
            (KillOutcome::AsyncExc, self.policy.async_exc),
            (KillOutcome::Trace, self.policy.trace),
        ];
        let allowed = |(rung, time): (KillOutcome, Option<Duration>)| Some((rung, time?));
        rungs.into_iter().filter_map(allowed)
    }

    fn climb_now(self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        let (task, policy, began) = (self.task, self.policy, self.began);
        if self.is_over {
            return Ok(report(task, Some(KillOutcome::AlreadyDone), began));
        }
        if !self.is_urgent() && over(task, policy.cooperative)? {
            return Ok(report(task, None, began));
        }
        let ended = if task.is_elsewhere() {
            climb_elsewhere(task, policy)?
        } else {
            self.climb_here()?
        };
        if ended {
            return Ok(report(task, None, began));
        }
        self.give_up(on_abandon)
    }

    /// The rungs that raise something in the body. True: one of them has ended it.
    fn climb_here(&self) -> Result<bool, KillError> {
        let respects_locks_until = Time::now() + self.policy.defer;
        for (rung, time) in self.rungs() {
            self.task.order(&self.cause, respects_locks_until);
            if press(self.task, rung, time, self.struck == Some(rung))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// No rung has ended it.
    fn give_up(self, on_abandon: &mut dyn FnMut()) -> Result<KillReport, KillError> {
        let (task, policy, began) = (self.task, self.policy, self.began);
        let place = if task.is_elsewhere() {
            None
        } else {
            task.place()
        };
        let stack = place.as_ref().map(|place| place.stack.clone());
        let blocked = place.and_then(|place| place.blocked);
        if policy.abandon {
            if task.abandon(KillInfo {
                task: task.name().clone(),
                cause: self.cause,
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
                over(task, Duration::MAX)?; // its boundary has begun to close
            }
            return Ok(report(task, None, began));
        }
        if task.progress() == Progress::Over {
            over(task, Duration::MAX)?; // its boundary has begun to close
            return Ok(report(task, None, began));
        }
        let mut unfinished = report(task, None, began);
        unfinished.outcome = None;
        unfinished.stack = stack;
        unfinished.blocked = blocked;
        Ok(unfinished)
    }
}

/// The rungs for a body in a process of its own.
fn climb_elsewhere(task: &Task, policy: &StopPolicy) -> Result<bool, KillError> {
    let rungs = [
        (KillOutcome::Sigterm, policy.sigterm),
        (KillOutcome::Sigkill, policy.sigkill.then_some(LAST_WAIT)),
    ];
    let allowed = |(rung, time): (KillOutcome, Option<Duration>)| Some((rung, time?));
    for (rung, time) in rungs.into_iter().filter_map(allowed) {
        let mut end = Time::after(time);
        while Time::now() < end {
            end = end.max(task.strike_elsewhere(rung) + time);
            if over(task, TELL_AGAIN.min(end - Time::now()))? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Strike once, as this rung does. False: there is no such force.
fn strike(task: &Arc<Task>, rung: KillOutcome) -> bool {
    task.strike_wait();
    match rung {
        KillOutcome::AsyncExc => task.strike_async(),
        KillOutcome::Trace => task.strike_by_trace(),
        _ => true,
    }
}

/// Stay on one rung: it is struck again and again until the task is over (true), or the rung's time is
/// up. The time counts from when a strike is not held off any more. `struck`: once already.
fn press(
    task: &Arc<Task>,
    rung: KillOutcome,
    time: Duration,
    mut struck: bool,
) -> Result<bool, KillError> {
    let mut end = Time::after(time);
    let mut pause = FIRST_PAUSE;
    while Time::now() < end {
        if !std::mem::take(&mut struck) && !strike(task, rung) {
            break;
        }
        if over(task, pause)? {
            return Ok(true);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        end = end.max(task.held_off_until() + time);
    }
    Ok(false)
}

/// Wait for the task's end. Not interrupted by the caller's own cancellation.
fn over(task: &Task, at_most: Duration) -> Result<bool, KillError> {
    task.over()
        .wait_shielded(Time::after(at_most))
        .map_err(|_| KillError::Interrupted)
}

fn report(task: &Task, known: Option<KillOutcome>, began: Time) -> KillReport {
    let record = task.record();
    KillReport {
        outcome: known
            .or(record.killed_at)
            .or(Some(KillOutcome::Cooperative)),
        elapsed: Time::now() - began,
        released: record.swept.released,
        poisoned: record.swept.poisoned,
        requeued: record.requeued,
        fenced: record.fenced,
        stack: record.stack,
        blocked: record.blocked,
    }
}

#[cfg(all(test, not(loom)))]
#[path = "../tests/rust/urgent.rs"]
mod tests;
