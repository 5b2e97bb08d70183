//! The words of a kill: its steps, how long each may take, and how it ended.
//!
//! The procedure that climbs them is [`stop`](crate::stop); a block that is ended by force takes
//! its pauses and its default for held locks from here, too.

use std::time::Duration;

/// A step of the ladder, and how a killed task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KillOutcome {
    /// It was over before the kill.
    AlreadyDone,
    /// It came to an end by itself, or because it was asked to.
    Cooperative,
    /// `Killed` was raised at a desist wait, or where a kill had been held off.
    AtWait,
    /// `Killed` was raised by force, anywhere in the body.
    AsyncExc,
    /// `Killed` was raised in front of every step of the body, so that it could not go on.
    Trace,
    /// Its process was told to terminate, and the body raised `Killed` there.
    Sigterm,
    /// Its process was killed.
    Sigkill,
    /// Nothing ended it: it was given up and may still run.
    Abandoned,
}

/// Seconds per rung; `None`: the rung is not allowed. A kill takes at most their sum, and as
/// long as clean-up zones and commits that are open hold it off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopPolicy {
    /// How long the body may take to stop when asked.
    pub cooperative: Duration,
    /// How long it may take to reach a desist wait.
    pub at_wait: Option<Duration>,
    /// How long to keep raising in it.
    pub async_exc: Option<Duration>,
    /// How long to trace it, and raise in front of its every step.
    pub trace: Option<Duration>,
    /// For a body in a process of its own, in the place of the three before: how long to keep
    /// telling that to terminate.
    pub sigterm: Option<Duration>,
    /// And kill that process in the end?
    pub sigkill: bool,
    /// How long locks that it holds may hold a kill off.
    pub defer: Duration,
    /// Give it up in the end?
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
            sigterm: Some(2 * second),
            sigkill: true,
            defer: second,
            abandon: true,
        }
    }
}

/// Struck again this soon at first, then ever more slowly: whoever swallows a kill gets another.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(1);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(20);
