//! The vocabulary of a kill: its rungs, how long each may take, and how it ended.
//!
//! The procedure that goes from rung to rung is [`stop`](crate::stop), which re-exports all of it; a
//! forced block takes its pauses, and its default for held locks, from here, too.

use std::time::Duration;

#[cfg(feature = "python")]
use crate::cause::DEFAULT_GRACE;

/// A rung of the ladder; of a report, the one that ended the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KillOutcome {
    /// It was over before the kill.
    AlreadyDone,
    /// It came to an end by itself, or because it was asked to.
    Cooperative,
    /// `Killed` was raised at a desist wait, or where a kill had been deferred.
    AtWait,
    /// `Killed` was raised by the host's asynchronous exception, anywhere in the body.
    AsyncExc,
    /// `Killed` was raised in front of every step of the body, so that it could not go on.
    Trace,
    /// Its process was told to terminate, and the body raised `Killed` there.
    Sigterm,
    /// Its process was killed.
    Sigkill,
    /// No rung ended it: it was abandoned, and may still run.
    Abandoned,
}

/// How long a kill of a body on a thread of this process stays on each rung. `None`: the rung is
/// left out. A kill takes at most their sum, and as long as clean-up zones and commits that are open
/// defer it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopPolicy {
    /// Time to end after a cancellation; zero: the kill goes to the next rung at once.
    pub cooperative: Duration,
    /// Time in which `Killed` is raised at desist waits, through shields.
    pub at_wait: Option<Duration>,
    /// Time in which `Killed` is raised anywhere in the body, again and again.
    pub async_exc: Option<Duration>,
    /// Time in which the body is traced, and `Killed` is raised in front of its every step.
    pub trace: Option<Duration>,
    /// For how long desist locks that the body holds defer the kill, and modules with locks of their own
    /// that it is inside of.
    pub defer: Duration,
    /// Is the body abandoned when no rung has ended it?
    pub abandon: bool,
}

impl Default for StopPolicy {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self {
            cooperative: 5 * second,
            at_wait: Some(second),
            async_exc: Some(second),
            trace: Some(second),
            defer: second,
            abandon: true,
        }
    }
}

/// How long a kill of a body in a process of its own stays on each rung. `None`: the rung is left
/// out. A kill takes at most their sum, and as long as an open commit defers the last rung.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessStopPolicy {
    /// Time to end after a cancellation; zero: the kill goes to the next rung at once.
    pub cooperative: Duration,
    /// Time in which SIGTERM is sent, again and again; the process raises `Killed` for it.
    pub sigterm: Option<Duration>,
    /// Time in which SIGKILL is sent, again and again: the process is gone, unless the kernel keeps it.
    pub sigkill: Option<Duration>,
    /// For how long desist locks that the body holds in its process defer SIGTERM.
    pub defer: Duration,
    /// Is the process abandoned when no rung has ended it?
    pub abandon: bool,
}

impl Default for ProcessStopPolicy {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self {
            cooperative: 5 * second,
            sigterm: Some(2 * second),
            sigkill: Some(5 * second),
            defer: second,
            abandon: true,
        }
    }
}

/// The policy of one kill; which of the two it must be depends on where the body runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AnyStopPolicy {
    /// For a body on a thread of this process.
    Thread(StopPolicy),
    /// For a body in a process of its own.
    Process(ProcessStopPolicy),
}

impl AnyStopPolicy {
    /// True if it is for a body in another process.
    pub(crate) fn is_for_process(&self) -> bool {
        matches!(self, Self::Process(_))
    }

    pub(crate) fn cooperative(&self) -> Duration {
        match self {
            Self::Thread(policy) => policy.cooperative,
            Self::Process(policy) => policy.cooperative,
        }
    }

    pub(crate) fn defer(&self) -> Duration {
        match self {
            Self::Thread(policy) => policy.defer,
            Self::Process(policy) => policy.defer,
        }
    }

    /// The longest that a kill by this policy takes, with a clean-up zone that defers it.
    #[cfg(feature = "python")]
    pub(crate) fn longest(&self) -> Duration {
        let rungs = self.rungs().map(|(_, time)| time);
        rungs
            .chain([self.cooperative(), self.defer(), DEFAULT_GRACE])
            .fold(Duration::ZERO, Duration::saturating_add)
    }

    pub(crate) fn abandon(&self) -> bool {
        match self {
            Self::Thread(policy) => policy.abandon,
            Self::Process(policy) => policy.abandon,
        }
    }

    /// The rungs that use force, softest first, with the time for each.
    pub(crate) fn rungs(&self) -> impl Iterator<Item = (KillOutcome, Duration)> + use<> {
        let rungs = match self {
            Self::Thread(policy) => [
                Some((KillOutcome::AtWait, policy.at_wait)),
                Some((KillOutcome::AsyncExc, policy.async_exc)),
                Some((KillOutcome::Trace, policy.trace)),
            ],
            Self::Process(policy) => [
                Some((KillOutcome::Sigterm, policy.sigterm)),
                Some((KillOutcome::Sigkill, policy.sigkill)),
                None,
            ],
        };
        let allowed = |(rung, time): (KillOutcome, Option<Duration>)| Some((rung, time?));
        rungs.into_iter().flatten().filter_map(allowed)
    }
}

impl From<&StopPolicy> for AnyStopPolicy {
    fn from(policy: &StopPolicy) -> Self {
        Self::Thread(*policy)
    }
}

impl From<&ProcessStopPolicy> for AnyStopPolicy {
    fn from(policy: &ProcessStopPolicy) -> Self {
        Self::Process(*policy)
    }
}

/// One rung that a kill has tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RungReport {
    /// Which rung it was.
    pub rung: KillOutcome,
    /// How long the kill stayed on it.
    pub elapsed: Duration,
    /// How long the policy lets it stay there, not counting the time in which the kill was deferred.
    pub limit: Duration,
    /// How often it was tried: a cancellation, an interrupted wait, a posted exception, a signal.
    pub attempts: u32,
}

/// The pause after the first delivery on a rung. Each following pause is twice as long: a body that swallows
/// `Killed` gets another, and one that cleans up is left time for it.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two deliveries.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(20);
