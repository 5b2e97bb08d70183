//! `Task`: one run of a Python callable, behind the boundary.
//!
//! [`run`] is the only place where a body is called with a boundary around it: for threads, for tasks
//! of a group, and for the handlers of workers. The body's result is settled after the boundary
//! has closed, when no kill can be delivered any more and the body holds nothing, and before the task
//! counts as over, so that a thread that waits for the task finds its result.

pub(super) mod defer;
pub(super) mod group;
pub(super) mod owner;
pub(super) mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::atomics::Mutex;
use crate::boundary::{BodyEnd, Boundary};
use crate::cause::CauseKind;
use crate::fork;
use crate::python::binding::attach::attach;
use crate::python::binding::enums::TaskState;
use crate::python::binding::host::detached;
use crate::python::binding::runnable::check_result;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error::Cancelled;
use crate::python::hard_stop::in_place;
use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::lost;
use crate::python::hard_stop::mask::Mask;
use crate::python::hard_stop::traceback;
use crate::python::op::{Op, Operation, Started, Visited, Yield, adapted};
use crate::python::task::stop::{BegunKill, KillReport, OnAbandon, StopPolicy};
use crate::python::token::{CancelToken, cancel_node};
use crate::python::wait::blocking;
use crate::python::{error, hard_stop};
use crate::scope;
use crate::stop::KillOutcome;
use crate::sync::Latch;
use crate::task::{self, Progress};
use crate::testing::{self, Enrolment};
use crate::token;

/// How a body ended.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ended {
    /// It has not begun, or runs.
    NotYet,
    /// It returned.
    Done,
    /// It raised an exception of its own.
    Failed,
    /// Cancelled left it.
    Cancelled,
    /// Killed left it.
    Killed,
}

/// Runs a body with a boundary around it. `settle` gets the body's result or exception, after the boundary
/// has closed and before the task is over; it is not called if the task was abandoned.
pub(super) fn run<R>(
    py: Python<'_>,
    task: &Arc<task::Task>,
    body: impl FnOnce() -> PyResult<Py<PyAny>>,
    settle: impl FnOnce(PyResult<Py<PyAny>>, Ended) -> R,
) -> PyResult<Option<R>> {
    let mut boundary = Boundary::enter(task, Some(hard_stop::for_this_thread(py)?));
    let result = body();
    boundary.shut();
    // From here on no kill is delivered, so Python code may run again.
    let ended = match &result {
        Ok(_) => Ended::Done,
        Err(raised) if raised.is_instance_of::<Killed>(py) => Ended::Killed,
        Err(raised) if raised.is_instance_of::<Cancelled>(py) => Ended::Cancelled,
        Err(_) => Ended::Failed,
    };
    let end = match &result {
        Err(raised) if ended == Ended::Killed => BodyEnd::Killed(traceback::stack_of(py, raised)),
        _ => BodyEnd::Unwound,
    };
    task.amend(|record| record.cancelled = ended == Ended::Cancelled);
    let ours = detached(py, || boundary.leave(end));
    let settled = ours.then(|| settle(result, ended));
    if ended == Ended::Killed {
        // The killing thread, which is woken now, needs the interpreter next.
        detached(py, || task.over().set());
    } else {
        task.over().set();
    }
    Ok(settled)
}

/// One run of a callable that can be cancelled and killed.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Task {
    /// The core's task, which the threads that cancel, kill or wait for it share.
    core: Arc<task::Task>,
    /// An [`Ended`]. Written once, by the task's thread, before the task is over.
    ended: AtomicU8,
    /// The place in a simulation of the thread that is being started for it; taken by that thread.
    enrolment: Mutex<Option<Enrolment>>,
}

impl Task {
    pub(super) fn core(&self) -> &Arc<task::Task> {
        &self.core
    }

    /// Set when the task has ended, or was abandoned. In a forked child also when its thread is in the
    /// parent process: it never ends here.
    fn over(&self) -> &Latch {
        self.core.lose_if_forked();
        self.core.over()
    }

    pub(super) fn of(core: Arc<task::Task>) -> Self {
        Self {
            core,
            ended: AtomicU8::new(Ended::NotYet as u8),
            enrolment: Mutex::new(None),
        }
    }
}

/// Calls a function, if there is one, when the task is abandoned.
struct CallAbandoned(Option<Py<PyAny>>);

impl OnAbandon for CallAbandoned {
    fn abandoned(&mut self) {
        let Some(abandoned) = &self.0 else { return };
        let _mask = Mask::open(Duration::from_secs(5)); // the killing thread may be killed
        fork::outside(|| {
            attach(|py| {
                if let Err(raised) = abandoned.call0(py) {
                    raised.write_unraisable(py, None);
                }
            })
        });
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)
    }
}

/// Waits until the task is over or was abandoned; the result is the second field.
struct WaitUntilOver(Arc<task::Task>, Py<PyAny>);

impl Operation for WaitUntilOver {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(self.0.over(), |()| Yield::Plain)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.1)
    }

    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.1.bind(py).clone())
    }
}

#[pymethods]
impl Task {
    /// A task, cancelled with `parent` if there is one.
    #[new]
    #[pyo3(signature = (name, parent = None))]
    fn new(name: &str, parent: Option<&Bound<'_, CancelToken>>) -> Self {
        let parent = parent.map(|parent| parent.get().inner());
        Self::of(task::Task::new(name, parent))
    }

    /// Its number; never used again.
    #[getter]
    fn id(&self) -> u64 {
        self.core.id()
    }

    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        self.core.name()
    }

    /// It waits for a thread that exists already: it can be killed from now on.
    fn expect(&self) {
        self.core.launch();
    }

    /// Its thread is being started: it can be killed from now on. False: it was started before.
    fn launch(&self) -> bool {
        let first = self.core.launch();
        if first {
            *self.enrolment.lock() = testing::enrol(self.core.name(), self.core.node());
        }
        first
    }

    /// Its thread could not be started.
    fn recall(&self, py: Python<'_>) {
        self.core.unlaunch();
        let enrolment = self.enrolment.lock().take();
        detached(py, || drop(enrolment));
    }

    /// Run it on the calling thread. Cancelled and Killed end here; other exceptions pass.
    ///
    /// `settle(result, exception)`, if given, gets any end instead, before the task is over and where
    /// no kill is delivered; it is not called if the task was abandoned.
    #[pyo3(signature = (
        body: "Callable[[], object]",
        settle: "Callable[[Any, BaseException | None], object] | None" = None,
    ))]
    fn run(
        &self,
        py: Python<'_>,
        body: &Bound<'_, PyAny>,
        settle: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        if !matches!(self.core.progress(), Progress::Pending | Progress::Launched) {
            return Err(PyRuntimeError::new_err(
                "this task has run; make a new one for each run",
            ));
        }
        let enrolment = self.enrolment.lock().take();
        let enrolled = enrolment.map(|enrolment| detached(py, || enrolment.begin()));
        // With a `settle` the result is handed on.
        let body = || {
            let result = in_place::checked(py, body.call0())?;
            check_result(result, settle.is_some()).map(Bound::unbind)
        };
        let settled = run(py, &self.core, body, |result, ended| {
            self.ended.store(ended as u8, Ordering::Release);
            match (settle, ended) {
                (Some(settle), _) => {
                    let (value, raised) = match result {
                        Ok(value) => (Some(value), None),
                        Err(raised) => (None, Some(raised.into_value(py))),
                    };
                    settle.call1((value, raised)).map(|_| ())
                }
                (None, Ended::Failed) => result.map(|_| ()),
                (None, _) => Ok(()),
            }
        });
        // The waiter for the result should not run before this thread is ready for its next task.
        if enrolled.is_some() {
            detached(py, || drop(enrolled));
        }
        settled?.unwrap_or(Ok(()))
    }

    /// The task's token.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        CancelToken::of_task(py, &self.core)
    }

    /// Where it is in its life.
    #[getter]
    fn state(&self) -> TaskState {
        let ended = self.ended.load(Ordering::Acquire);
        match self.core.progress() {
            Progress::Pending | Progress::Launched => TaskState::Pending,
            Progress::Abandoned => TaskState::Abandoned,
            Progress::Running => TaskState::Running,
            Progress::Over if ended == Ended::Done as u8 => TaskState::Done,
            Progress::Over if ended == Ended::Failed as u8 => TaskState::Failed,
            Progress::Over if ended == Ended::Cancelled as u8 => TaskState::Cancelled,
            Progress::Over if ended == Ended::Killed as u8 => TaskState::Killed,
            // Its body is over, and its boundary is closing.
            Progress::Cancelling | Progress::Over => TaskState::Cancelling,
        }
    }

    /// Ask it to stop. True: this call was the first.
    #[pyo3(signature = (reason = None, *, grace = None))]
    fn cancel(
        &self,
        py: Python<'_>,
        reason: Option<&str>,
        grace: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        let grace = seconds::optional_span(grace, "grace")?;
        Ok(cancel_node(py, self.core.source().node(), reason, grace))
    }

    /// Begin to stop it, rung by rung; finish() of the returned object goes on with it.
    ///
    /// `abandoned()` is called if it is abandoned, before its waiters are woken. `kind` is of the kill's
    /// cause; EXPLICIT if it is not given.
    #[pyo3(signature = (
        reason = None,
        *,
        policy = None,
        abandoned: "Callable[[], object] | None" = None,
        kind = None,
    ))]
    fn begin_kill(
        &self,
        py: Python<'_>,
        reason: Option<&str>,
        policy: Option<&StopPolicy>,
        abandoned: Option<Py<PyAny>>,
        kind: Option<CauseKind>,
    ) -> PyResult<BegunKill> {
        let policy = policy.map_or_else(Default::default, StopPolicy::core);
        BegunKill::new(
            py,
            &self.core,
            (kind.unwrap_or(CauseKind::Explicit), reason),
            (&policy).into(),
            CallAbandoned(abandoned),
        )
    }

    /// Stop it, rung by rung; blocks until it has ended or was abandoned. See begin_kill().
    #[pyo3(signature = (reason = None, *, policy = None, abandoned: "Callable[[], object] | None" = None))]
    fn kill(
        &self,
        py: Python<'_>,
        reason: Option<&str>,
        policy: Option<&StopPolicy>,
        abandoned: Option<Py<PyAny>>,
    ) -> PyResult<KillReport> {
        self.begin_kill(py, reason, policy, abandoned, None)?
            .finish(py)
    }

    /// The rung of the ladder at which it was killed; None: it was not, or not yet.
    #[getter]
    fn killed_at(&self) -> Option<KillOutcome> {
        self.core.record().killed_at
    }

    /// Where its body is now, as the lines of a traceback; None unless it runs.
    fn stack(&self, py: Python<'_>) -> Option<String> {
        let place = detached(py, || self.core.place());
        place.map(|place| place.stack.to_string())
    }

    /// Raise an exception in it, once, and go on. False: it is not there, yet or any more.
    #[pyo3(signature = (exception: "BaseException"))]
    fn inject(&self, py: Python<'_>, exception: Bound<'_, PyBaseException>) -> bool {
        lost::watch(py);
        let injected = error::injectable(exception);
        detached(py, || self.core.inject(injected))
    }

    /// Has it ended, or was it abandoned, and has everything about it been settled?
    fn is_over(&self) -> bool {
        self.over().is_set()
    }

    /// Is this a forked child, and the task's thread in the parent process?
    fn is_lost(&self) -> bool {
        self.core.is_lost_in_fork() && self.core.progress() == Progress::Abandoned
    }

    /// Is it the calling code's own?
    fn is_current(&self) -> bool {
        scope::current_task().is_some_and(|current| Arc::ptr_eq(&current, &self.core))
    }

    /// It is over or was abandoned: an operation for wait_any() that yields `value`.
    #[pyo3(signature = (value: "_T", /) -> "Op[_T]")]
    fn over_op(&self, value: Py<PyAny>) -> Op {
        let _ = self.over(); // of a lost task it is set now
        Op::new(WaitUntilOver(self.core.clone(), value))
    }

    /// Wait until it is over or was abandoned (True), or the seconds have passed (False).
    ///
    /// Blocks: until then. A checkpoint.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::patience(timeout)?;
        if scope::current_task().is_some_and(|task| Arc::ptr_eq(&task, &self.core)) {
            return Err(PyRuntimeError::new_err(
                "a task cannot wait for its own end",
            ));
        }
        blocking(py, || self.over().wait_until(until))
    }
}

/// Has a token that is cancelled when a kill of the calling task may be delivered: not while it is
/// deferred, and never outside any task.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct KillSignal {
    source: Arc<token::CancelSource>,
}

#[pymethods]
impl KillSignal {
    #[new]
    fn new() -> Self {
        let source = scope::current_task().map(|task| task.on_delivery());
        Self {
            source: source.unwrap_or_default(),
        }
    }

    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        CancelToken::wrap(py, self.source.token())
    }
}
