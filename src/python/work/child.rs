//! `ChildProcess`: a worker process, as its parent cancels and kills it; and the records of the pipe to
//! `ParentWatch` in that process.
//!
//! A process is signalled only between `begin` and `end` of one body, under the lock that both take: so
//! no signal that was meant for one item reaches the next (I22). Its exit status has not been taken
//! before `end`, so its pid cannot be another process's.
#![allow(unsafe_code)] // a descriptor that the caller hands over

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::cause::{Cause, CauseKind};
use crate::python::cause::CancelCause;
use crate::scope;
use crate::stop::KillOutcome;
use crate::task::RemoteBody;

// ---------------------------------------------------------------------- records

/// An end of the pipe, whose descriptor Python code has handed over to the object that asks.
#[cfg(unix)]
pub(in crate::python) fn owned(pipe: std::os::fd::RawFd) -> File {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller of the object's method passes the ownership of the descriptor.
    unsafe { File::from_raw_fd(pipe) }
}

/// The length of a record's head: its first byte, the number of the work, the kind of the cause, the
/// time, the grace in nanoseconds (or the greatest number), the lengths of the two texts that follow.
pub(in crate::python) const HEAD: usize = 1 + 8 + 1 + 8 + 8 + 2 + 2;
/// The first byte of a cancellation.
pub(in crate::python) const CANCEL: u8 = b'c';
/// A record is at most this long with its texts: the system writes it in one piece.
pub(in crate::python) const LONGEST_TEXT: usize = 1000;
pub(in crate::python) const KINDS: [CauseKind; 7] = [
    CauseKind::Explicit,
    CauseKind::Deadline,
    CauseKind::SiblingFailed,
    CauseKind::ScopeExited,
    CauseKind::Shutdown,
    CauseKind::Forked,
    CauseKind::Remote,
];

/// The first byte of a dismissal, which has no more.
const DISMISSED: u8 = b'd';

/// The record of a cancellation; see [`HEAD`].
pub(in crate::python) fn encoded(round: u64, cause: &Cause) -> Vec<u8> {
    let kind = KINDS.iter().position(|kind| *kind == cause.kind);
    let grace = cause.grace.map_or(u64::MAX, |grace| {
        u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX - 1)
    });
    let texts = [&cause.reason, &cause.by_thread].map(|text| text.as_deref().map_or("", cut));
    let mut record = vec![CANCEL];
    record.extend(round.to_le_bytes());
    record.push(kind.and_then(|kind| u8::try_from(kind).ok()).unwrap_or(0));
    record.extend(cause.at.as_nanos().to_le_bytes());
    record.extend(grace.to_le_bytes());
    for text in texts {
        let length = u16::try_from(text.len()).unwrap_or(0); // of `cut`
        record.extend(length.to_le_bytes());
    }
    record.extend(texts.concat().as_bytes());
    record
}

pub(in crate::python) fn cut(text: &str) -> &str {
    let ends = (0..=text.len().min(LONGEST_TEXT)).rev();
    ends.into_iter()
        .find_map(|end| text.get(..end))
        .unwrap_or_default()
}

// ---------------------------------------------------------------------- the process

/// The process in which a worker's handler is called; another one after each that has died.
///
/// It is signalled only between begin() and end().
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct ChildProcess {
    shared: Arc<Shared>,
    line: Mutex<CommandPipe>,
}

/// The pipe to the process's `ParentWatch`.
#[derive(Default)]
struct CommandPipe {
    pipe: Option<File>,
    dismissed: bool,
}

impl CommandPipe {
    fn tell(&mut self, record: &[u8]) {
        if let Some(pipe) = &mut self.pipe {
            let _ = pipe.write_all(record); // the process may have died
        }
    }
}

#[derive(Default)]
struct Shared {
    at_work: Mutex<Option<AtWork>>,
}

struct AtWork {
    /// The process that has the body. Its exit status is not taken before `end`.
    pid: i32,
    task: u64,
    killed_at: Option<KillOutcome>,
}

impl ChildProcess {
    pub(in crate::python) fn elsewhere(&self) -> Arc<dyn RemoteBody> {
        self.shared.clone()
    }
}

impl RemoteBody for Shared {
    fn signal(&self, task: u64, rung: KillOutcome) {
        let mut at_work = self.at_work.lock();
        if let Some(at_work) = at_work.as_mut().filter(|at_work| at_work.task == task) {
            at_work.killed_at = Some(rung);
            signal(at_work.pid, rung);
        }
    }
}

/// The process is a child whose status has not been taken, so the number means no other.
#[cfg(unix)]
fn signal(pid: i32, rung: KillOutcome) {
    use rustix::process::{Pid, Signal, kill_process};
    let signal = if rung == KillOutcome::Sigterm {
        Signal::TERM
    } else {
        Signal::KILL
    };
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(not(unix))]
fn signal(_pid: i32, _rung: KillOutcome) {}

#[pymethods]
impl ChildProcess {
    #[new]
    fn new() -> Self {
        Self {
            shared: Arc::default(),
            line: Mutex::default(),
        }
    }

    /// A process was started; this object owns the pipe to it from now on.
    #[cfg(unix)]
    fn connect(&self, pipe: std::os::fd::RawFd) {
        let mut line = self.line.lock();
        line.pipe = Some(owned(pipe));
        if line.dismissed {
            line.tell(&[DISMISSED]);
        }
    }

    /// The process has ended.
    fn disconnect(&self) {
        self.line.lock().pipe = None;
    }

    /// Tell the process that the work with this number was cancelled.
    fn cancel(&self, round: u64, cause: &CancelCause) {
        let record = encoded(round, cause.core());
        self.line.lock().tell(&record);
    }

    /// Dismiss the process, and any that is started later: it stops its work, soon by force, and ends.
    /// Never blocks.
    fn dismiss(&self) {
        let mut line = self.line.lock();
        line.dismissed = true;
        line.tell(&[DISMISSED]);
    }

    /// Was it dismissed?
    #[getter]
    fn dismissed(&self) -> bool {
        self.line.lock().dismissed
    }

    /// The calling task's body is about to run in this process.
    fn begin(&self, pid: i32) {
        *self.shared.at_work.lock() = scope::current_task().map(|task| AtWork {
            pid,
            task: task.id(),
            killed_at: None,
        });
    }

    /// The body has ended, and the process is not signalled any more. Returns the rung of the last
    /// signal, if there was one. If the process has `died`, that rung has ended the body, at `stack`.
    #[pyo3(signature = (*, died, stack = None))]
    fn end(&self, died: bool, stack: Option<&str>) -> Option<KillOutcome> {
        let killed_at = self.shared.at_work.lock().take()?.killed_at?;
        if let Some(task) = scope::current_task().filter(|_| died) {
            task.amend(|record| {
                record.killed_at = Some(killed_at);
                record.stack = stack.map(Into::into);
            });
        }
        Some(killed_at)
    }
}
