//! `Mirror`: in a worker process, what happens to its work in the parent.
//!
//! A thread of its own that never needs the interpreter reads a pipe from the parent: a cancel over
//! there cancels the token here within a thread switch, though the handler be busy in Python or in
//! C code that keeps the interpreter. So a check here is what it is everywhere, one load.
//!
//! When the parent lets the process go, or has died, the same thread asks the handler to stop,
//! raises SIGTERM, and after a grace kills the process with all that it has started.
#![allow(unsafe_code)] // a descriptor that the caller hands over

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
use crate::python::work::child::{CANCEL, HEAD, KINDS};
use crate::sys::{self, PollFlags};
use crate::{Cause, CauseKind, task};

/// The next record; `None`: the parent lets this process go.
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

/// In a worker process: cancels what it works on when the parent's side is cancelled, and ends it
/// when the parent lets it go.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct Mirror {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    round: u64,
    task: Option<Arc<task::Task>>,
    /// For work that has not begun here.
    early: Option<(u64, Cause)>,
    /// Let go, and why.
    dismissed: Option<Cause>,
}

#[pymethods]
impl Mirror {
    /// Listen to a pipe, which from now on is its own; the process may go on for `grace` seconds
    /// when it was let go.
    #[new]
    fn new(pipe: RawFd, parent: i32, grace: f64) -> PyResult<Self> {
        let grace = seconds::checked_span(grace, "grace")?;
        let shared: Arc<Mutex<Shared>> = Arc::default();
        // SAFETY: the caller has said that it is nobody else's.
        let pipe = unsafe { File::from_raw_fd(pipe) };
        let parent = sys::open_process(parent);
        let told = shared.clone();
        thread::Builder::new()
            .name("desist-mirror".into())
            .spawn(move || {
                listen(pipe, parent.as_ref(), &told);
                go(&told, grace);
            })
            .map_err(|failure| PyOSError::new_err(failure.to_string()))?;
        Ok(Self { shared })
    }

    /// It works on this from now on.
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

    /// And not any more.
    fn end(&self) {
        let before = self.shared.lock().task.take();
        drop(before);
    }

    /// Has the parent let this process go?
    #[getter]
    fn dismissed(&self) -> bool {
        self.shared.lock().dismissed.is_some()
    }

    /// For a signal handler: raise Killed in what it works on, at once, or as soon as nothing
    /// holds it off; locks do for `defer` seconds. False: it works on nothing.
    fn strike(&self, py: Python<'_>, defer: f64) -> PyResult<bool> {
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

/// Until the parent lets this process go, or is no more.
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
                    // Of work that is over, or has not begun.
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

/// Wait for what the parent has to say. False: it is no more.
fn wait(pipe: &File, parent: Option<&OwnedFd>) -> bool {
    let fds = [Some(pipe.as_raw_fd()), parent.map(AsRawFd::as_raw_fd)];
    loop {
        let interests = fds.into_iter().flatten().map(|fd| (fd, PollFlags::IN));
        if let Ok(events) = sys::poll(interests, Time::NEVER) {
            return !events[0].is_empty();
        }
    }
}

/// On a thread of its own, for callbacks may take their time.
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
        act(); // there is no thread to be had
    }
}

/// Ask, terminate, and after the grace kill this process and what it has started.
fn go(shared: &Mutex<Shared>, grace: Duration) {
    let reason = "the pool has let its worker process go";
    // Not `now()`, which asks the interpreter for the thread's name.
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

/// End this process at once, with those of its group, if it leads one.
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
