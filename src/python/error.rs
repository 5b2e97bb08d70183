//! The two stop exceptions, and how the core's errors become Python's.

use std::ffi::CStr;
use std::sync::Arc;

use pyo3::exceptions::{PyBaseException, PyDeprecationWarning, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::cause::Cause;
use crate::error::{ScopeMisuse, Stop};
use crate::python::binding::host;
use crate::python::cause::CancelCause;
use crate::python::hard_stop;
use crate::scope;
use crate::sync::LockError;
use crate::task::{Arrival, Thrown};

/// Raised at a checkpoint once the code around it is cancelled. Do not catch it, or raise it
/// again: the scope that was cancelled absorbs it.
#[pyclass(extends = PyBaseException, frozen, module = "desist")]
pub(super) struct Cancelled {
    /// Who cancelled, why and when.
    #[pyo3(get)]
    cause: Py<CancelCause>,
}

/// Raised in code that is being killed. Do not catch it: only the task's end absorbs it, or that of
/// the block with `kill_after` that is being killed.
#[pyclass(extends = PyBaseException, frozen, module = "desist")]
pub(super) struct Killed {
    /// Who killed, why and when.
    #[pyo3(get)]
    cause: Py<CancelCause>,
}

#[pymethods]
impl Cancelled {
    fn __str__(&self) -> String {
        self.cause.get().__str__()
    }
}

#[pymethods]
impl Killed {
    /// CPython makes the instance of an asynchronous exception by calling its class in the thread
    /// that it strikes, so this is where a kill learns that it has arrived.
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let task = scope::current_task();
        let arrived = task.as_ref().and_then(|task| task.arrived());
        if let Some(task) = &task {
            hard_stop::trace::arrived(py, task);
        }
        let cause = match arrived {
            Some(Arrival::Thrown(thrown)) => return Err(self::thrown(py, &thrown)),
            Some(Arrival::Kill(cause)) => Some(cause),
            None => None,
        };
        let cause = cause.ok_or_else(|| {
            PyTypeError::new_err(
                "Killed cannot be made by hand; use Thread.kill() or WorkerPool.kill_worker()",
            )
        })?;
        Ok(Self {
            cause: Py::new(py, CancelCause::from(cause))?,
        })
    }

    fn __str__(&self) -> String {
        format!("killed ({})", self.cause.get().__str__())
    }
}

/// The Python exception for a stop.
pub(super) fn from_stop(py: Python<'_>, stop: Stop) -> PyErr {
    match stop {
        Stop::Cancelled(cause) => cancelled(py, cause),
        Stop::Killed(cause) => killed_or_thrown(py, cause),
        // A wait is interrupted only by what the host keeps for this moment.
        Stop::Interrupted => host::take_raised()
            .unwrap_or_else(|| ordinary(py, "Interrupted", &"the wait was interrupted")),
    }
}

fn cancelled(py: Python<'_>, cause: Cause) -> PyErr {
    Py::new(py, CancelCause::from(cause))
        .and_then(|cause| Bound::new(py, Cancelled { cause }))
        .map_or_else(
            |failure| failure,
            |value| PyErr::from_value(value.into_any()),
        )
}

pub(super) fn killed(py: Python<'_>, cause: Cause) -> PyErr {
    Py::new(py, CancelCause::from(cause))
        .and_then(|cause| Bound::new(py, Killed { cause }))
        .map_or_else(
            |failure| failure,
            |value| PyErr::from_value(value.into_any()),
        )
}

/// What a wait or a checkpoint raises that says that its task is killed.
fn killed_or_thrown(py: Python<'_>, cause: Cause) -> PyErr {
    match scope::current_task().and_then(|task| task.take_thrown()) {
        Some(thrown) => self::thrown(py, &thrown),
        None => killed(py, cause),
    }
}

/// An exception, ready to be thrown.
pub(super) fn throwable(exception: Bound<'_, PyBaseException>) -> Thrown {
    Arc::new(exception.unbind())
}

fn thrown(py: Python<'_>, thrown: &Thrown) -> PyErr {
    match thrown.downcast_ref::<Py<PyBaseException>>() {
        Some(exception) => PyErr::from_value(exception.bind(py).clone().into_any()),
        None => PyTypeError::new_err("what was thrown is no exception"), // never: see throwable()
    }
}

/// Raise a kill that was held off and may arrive now.
pub(super) fn check_kill(py: Python<'_>) -> PyResult<()> {
    scope::kill_due().map_or(Ok(()), |cause| Err(killed_or_thrown(py, cause)))
}

/// A class of `desist._exceptions`, where the ordinary exceptions are.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    static EXCEPTIONS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let exceptions =
        EXCEPTIONS.get_or_try_init(py, || py.import("desist._exceptions").map(Bound::unbind))?;
    Ok(exceptions.bind(py).getattr(name)?.cast_into()?)
}

pub(super) fn ordinary(py: Python<'_>, name: &str, message: &impl ToString) -> PyErr {
    match class(py, name) {
        Ok(class) => PyErr::from_type(class, message.to_string()),
        Err(failure) => failure,
    }
}

/// Is it one of those, or a subclass?
pub(super) fn is(py: Python<'_>, error: &PyErr, name: &str) -> bool {
    class(py, name).is_ok_and(|class| error.is_instance(py, &class))
}

pub(super) fn misuse(py: Python<'_>, misuse: ScopeMisuse) -> PyErr {
    ordinary(py, "ScopeMisuse", &misuse)
}

pub(super) fn fenced(py: Python<'_>, what: &impl ToString) -> PyErr {
    ordinary(py, "Fenced", what)
}

pub(super) fn from_lock(py: Python<'_>, error: LockError) -> PyErr {
    let message = error.to_string();
    let (name, kill) = match error {
        LockError::Stop(stop) => return from_stop(py, stop),
        LockError::Poisoned(kill) => ("LockPoisoned", kill),
        LockError::OwnerLost(kill) => ("OwnerLost", kill),
    };
    let make = || -> PyResult<PyErr> {
        let cause = Py::new(py, CancelCause::from(kill.cause.clone()))?;
        let arguments = (message, kill.task.as_ref(), cause, kill.stack.as_deref());
        Ok(PyErr::from_value(class(py, name)?.call1(arguments)?))
    };
    make().unwrap_or_else(|failure| failure)
}

pub(super) fn warn_deprecated(py: Python<'_>, message: &CStr) -> PyResult<()> {
    let category = py.get_type::<PyDeprecationWarning>();
    PyErr::warn(py, &category, message, 1)
}

pub(super) fn warn_swallowed(py: Python<'_>) {
    let warn = || -> PyResult<()> {
        let category = class(py, "CancelledSwallowedWarning")?;
        let message =
            c"this code was told before that it is cancelled, and went on: do not catch Cancelled \
            (a bare `except:` or `except BaseException:` does) without raising it again; code that \
            has to wait while it cleans up belongs into `with desist.cleanup():`";
        PyErr::warn(py, &category, message, 1)
    };
    if let Err(error) = warn() {
        // Warnings are errors here, but the thread is about to raise Cancelled.
        error.write_unraisable(py, None);
    }
}
