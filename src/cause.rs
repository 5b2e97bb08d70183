//! The cause of a cancellation: the kind of event, the reason, the time, and the cancelling thread.
//!
//! A [`Cause`] never changes after it is made. The token's tree keeps the first one of each node (I2) and
//! copies it to linked nodes; a stop, a kill's report and a message all have copies of the same. The
//! user sees its text, which therefore stands by itself: `cancelled by MainThread: shutting down`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::host;

/// How long clean-up zones may go on where neither the canceller nor the scope says otherwise. Also how
/// long a zone without a limit defers a kill.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// The kind of event that cancelled a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CauseKind {
    /// A call of `cancel()` or `kill()`.
    Explicit,
    /// A deadline passed. The scope that had it turns the stop into
    /// [`DeadlineExceeded`](crate::DeadlineExceeded), or into a quiet end.
    Deadline,
    /// Another task of the same group failed.
    SiblingFailed,
    /// The scope or source above was left or closed while code below it still runs.
    ScopeExited,
    /// A pool, a simulation or the process is shutting down.
    Shutdown,
    /// The process was forked, and this is the child.
    Forked,
    /// Another process has cancelled it, and has said so in a message.
    Remote,
}

/// Why something was cancelled. The first cause recorded is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The kind of event.
    pub kind: CauseKind,
    /// The reason that the canceller gave.
    pub reason: Option<Arc<str>>,
    /// When: for a deadline its own time, not the time at which a thread noticed that it had passed. Graces
    /// count from it.
    pub at: Time,
    /// How long clean-up zones may go on, if the canceller said so; else the scope's own grace counts, and
    /// then [`DEFAULT_GRACE`].
    pub grace: Option<Duration>,
    /// Name of the thread that cancelled; `None` for a deadline or a nameless thread.
    pub by_thread: Option<Arc<str>>,
}

impl Cause {
    /// A cause that happens now, by the calling thread. Asks the host for that thread's name the first
    /// time, so no lock may be held.
    pub fn now(kind: CauseKind, reason: Option<Arc<str>>, grace: Option<Duration>) -> Cause {
        Cause {
            kind,
            reason,
            at: Time::now(),
            grace,
            by_thread: host::thread_name(),
        }
    }

    /// The cause that a deadline at `at` is, by no thread. Two threads that notice it make equal causes.
    pub fn deadline(at: Time) -> Cause {
        Cause {
            kind: CauseKind::Deadline,
            reason: None,
            at,
            grace: None,
            by_thread: None,
        }
    }

    /// The cause that a message of another process is.
    #[cfg(feature = "python")]
    pub(crate) fn remote(reason: Option<Arc<str>>) -> Cause {
        Cause {
            kind: CauseKind::Remote,
            reason,
            at: Time::now(),
            grace: None,
            by_thread: None,
        }
    }

    /// The cause of the end, in a forked child, of work whose thread is in the parent process.
    #[cfg(feature = "python")]
    pub(crate) fn forked() -> Cause {
        Cause {
            kind: CauseKind::Forked,
            reason: Some("its thread is in the parent process".into()),
            at: Time::now(),
            grace: None,
            by_thread: None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            CauseKind::Explicit => "cancelled",
            CauseKind::Deadline => "deadline exceeded",
            CauseKind::SiblingFailed => "a sibling failed",
            CauseKind::ScopeExited => "the scope was left",
            CauseKind::Shutdown => "shut down",
            CauseKind::Forked => "lost in a fork",
            CauseKind::Remote => "cancelled from another process",
        })?;
        if let Some(thread) = &self.by_thread {
            write!(f, " by {thread}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}
