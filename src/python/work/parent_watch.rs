//! `ParentWatch`: in a worker process, the thread that receives cancellations from the parent.
//!
//! The thread never needs the interpreter. It reads a pipe from the parent: a cancellation there
//! cancels the token here within a thread switch, also while the handler runs Python code, or C code
//! that does not release the interpreter. So a checkpoint in the process is the same as everywhere,
//! one load.
//!
//! When the parent dismisses the process, or has died, the same thread cancels the handler, raises
//! SIGTERM, and after a grace kills the process with all that it has started.
//!
//! A cancellation may arrive before the work that it is for has begun here: it is kept as `early`, and
//! applied by `begin` if the numbers agree.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use rustix::process::{Signal, getpgrp, getpid, kill_process, kill_process_group};

use crate::clock::Time;
use crate::fork;
use crate::python::binding::seconds;
use crate::python::error;
use crate::python::task::Task;
use crate::python::work::child::{self, CANCEL, HEAD, KINDS};
use crate::sys::{self, PollFlags};
use crate::{Cause, CauseKind, task};

/// The next record; `None`: the parent dismisses this process.
fn decoded(pipe: &mut impl Read) -> io::Result<Option<(u64, Cause)>> {
    let mut head = [0; HEAD];
    pipe.read_exact(&mut head[..1])?;
    if head[0] != CANCEL {
        return Ok(None);
    }
    pipe.read_exact(&mut head[1..])?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let length = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let mut text = |length| {
        let mut bytes = vec![0; length];
        pipe.read_exact(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok::<_, io::Error>((length > 0).then(|| text.as_ref().into()))
    };
    let cause = Cause {
        kind: KINDS
            .get(usize::from(head[9]))
            .copied()
            .unwrap_or(CauseKind::Explicit),
        at: Time::from_nanos(number(10)),
        grace: Some(number(18))
            .filter(|nanos| *nanos < u64::MAX)
            .map(Duration::from_nanos),
        reason: text(length(26))?,
        by_thread: text(length(28))?,
    };
    Ok(Some((number(1), cause)))
}

/// In a worker process: cancels its work when the parent's side is cancelled, and ends the process
/// when the parent dismisses it.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct ParentWatch {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    round: u64,
    task: Option<Arc<task::Task>>,
    /// A cancellation of work that has not begun here, by its number.
    early: Option<(u64, Cause)>,
    /// Set once, when the parent has dismissed the process or has died.
    dismissed: Option<Cause>,
}

#[pymethods]
impl ParentWatch {
    /// Listen to a pipe, which this object owns from now on. A dismissed process may go on for `grace`
    /// seconds.
    #[new]
    fn new(pipe: RawFd, parent: i32, grace: f64) -> PyResult<Self> {
        let grace = seconds::checked_span(grace, "grace")?;
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let pipe = child::owned(pipe);
        let parent = sys::open_process(parent);
        let shared_too = shared.clone();
        thread::Builder::new()
            .name("desist-mirror".into())
            .spawn(move || {
                listen(pipe, parent.as_ref(), &shared_too);
                terminate_self(&shared_too, grace);
            })
            .map_err(|failure| PyOSError::new_err(failure.to_string()))?;
        Ok(Self { shared })
    }

    /// The process works on this from now on.
    fn begin(&self, round: u64, task: &Bound<'_, Task>) {
        let task = task.get().core();
        let cause = {
            let mut shared = self.shared.lock();
            shared.round = round;
            shared.task = Some(task.clone());
            let early = shared.early.take().filter(|(number, _)| *number == round);
            shared.dismissed.clone().or(early.map(|(_, cause)| cause))
        };
        if let Some(cause) = cause {
            task.source().node().cancel(cause);
        }
    }

    /// The process does not work on it any more.
    fn end(&self) {
        let before = self.shared.lock().task.take();
        drop(before);
    }

    /// Has the parent dismissed this process?
    #[getter]
    fn dismissed(&self) -> bool {
        self.shared.lock().dismissed.is_some()
    }

    /// For a signal handler: raise Killed in the work, now, or when it is not deferred any more; held
    /// locks defer it for `defer` seconds. False: there is no work.
    fn deliver(&self, py: Python<'_>, defer: f64) -> PyResult<bool> {
        let Some(task) = self.shared.lock().task.clone() else {
            return Ok(false);
        };
        let defer = seconds::checked_span(defer, "defer")?;
        let cause = task.source().node().cause();
        let cause =
            cause.unwrap_or_else(|| Cause::now(CauseKind::Shutdown, Some("SIGTERM".into()), None));
        match task.kill_here(&cause, Time::after(defer)) {
            Some(cause) => Err(error::killed(py, cause)),
            None => Ok(true),
        }
    }
}

/// Returns when the parent has dismissed this process, or has died.
fn listen(mut pipe: File, parent: Option<&OwnedFd>, shared: &Mutex<Shared>) {
    while wait(&pipe, parent) {
        let Ok(Some((round, cause))) = decoded(&mut pipe) else {
            return;
        };
        let _inside = fork::inside();
        let task = {
            let mut shared = shared.lock();
            match &shared.task {
                Some(task) if shared.round == round => Some(task.clone()),
                _ => {
                    // For work that is over, or has not begun.
                    shared.early = Some((round, cause.clone()));
                    None
                }
            }
        };
        if let Some(task) = task {
            cancel(&task, &cause);
        }
    }
}

/// Waits for the next record. False: the parent has died.
fn wait(pipe: &File, parent: Option<&OwnedFd>) -> bool {
    let fds = [Some(pipe.as_raw_fd()), parent.map(AsRawFd::as_raw_fd)];
    loop {
        let interests = fds.into_iter().flatten().map(|fd| (fd, PollFlags::IN));
        if let Ok(events) = sys::poll(interests, Time::NEVER) {
            return !events[0].is_empty();
        }
    }
}

/// Cancels on a thread of its own, because callbacks may take long.
fn cancel(task: &Arc<task::Task>, cause: &Cause) {
    let act = {
        let (task, cause) = (task.clone(), cause.clone());
        move || {
            let _inside = fork::inside();
            let task = task; // dropped inside, too
            task.source().node().cancel(cause);
        }
    };
    if thread::Builder::new().spawn(act.clone()).is_err() {
        act(); // no thread could be started
    }
}

/// Cancels the work, raises SIGTERM, and after the grace kills this process and its children.
fn terminate_self(shared: &Mutex<Shared>, grace: Duration) {
    let reason = "the pool has let its worker process go";
    // Not `Cause::now()`, which asks the interpreter for the thread's name.
    let cause = Cause {
        kind: CauseKind::Shutdown,
        reason: Some(reason.into()),
        at: Time::now(),
        grace: None,
        by_thread: None,
    };
    {
        let _inside = fork::inside();
        let task = {
            let mut shared = shared.lock();
            shared.dismissed = Some(cause.clone());
            shared.task.clone()
        };
        if let Some(task) = task {
            cancel(&task, &cause);
        }
    }
    let _ = kill_process(getpid(), Signal::TERM);
    let until = Time::after(grace);
    while Time::now() < until {
        thread::park_timeout(until - Time::now());
    }
    kill_group();
}

/// Kills this process, with its process group if it leads one.
fn kill_group() {
    let own = getpid();
    if getpgrp() == own {
        let _ = kill_process_group(own, Signal::KILL);
    }
    let _ = kill_process(own, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::work::child::{LONGEST_TEXT, cut, encoded};

    #[test]
    fn a_cause_is_the_same_at_the_other_end() {
        let deadline = Cause::deadline(Time::from_nanos(77));
        let explicit = Cause {
            kind: CauseKind::Shutdown,
            reason: Some("why".into()),
            at: Time::from_nanos(5),
            grace: Some(Duration::from_millis(3)),
            by_thread: Some("who".into()),
        };
        let mut pipe = encoded(1, &deadline);
        pipe.extend(encoded(u64::MAX, &explicit));
        pipe.push(b'd');
        let mut pipe = pipe.as_slice();
        assert_eq!(decoded(&mut pipe).unwrap(), Some((1, deadline)));
        assert_eq!(decoded(&mut pipe).unwrap(), Some((u64::MAX, explicit)));
        assert_eq!(decoded(&mut pipe).unwrap(), None);
        assert!(decoded(&mut pipe).is_err());
    }

    #[test]
    fn a_long_reason_is_cut_between_two_letters() {
        assert_eq!(cut(&"ä".repeat(LONGEST_TEXT)).len(), LONGEST_TEXT);
        assert_eq!(
            cut(&format!("a{}", "ä".repeat(LONGEST_TEXT))).len(),
            LONGEST_TEXT - 1
        );
        assert_eq!(cut("why"), "why");
    }
}
