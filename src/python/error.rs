//! `Cancelled`, and how the core's errors become Python exceptions.
//!
//! The modules above use the exceptions of `desist._exceptions` and `Killed` through this module.

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;

use crate::cause::Cause;
use crate::error::Stop;
use crate::python::binding::exceptions::class;
pub(super) use crate::python::binding::exceptions::{
    fenced, is, misuse, ordinary, warn_deprecated,
};
use crate::python::binding::pickling::{self, Reduced};
use crate::python::binding::raised;
use crate::python::binding::swallow::{self, Watch};
use crate::python::cause::CancelCause;
use crate::python::hard_stop::killed::killed_or_injected;
pub(super) use crate::python::hard_stop::killed::{check_kill, injectable, killed};
use crate::sync::{LockError, QueueError};

/// Raised at a checkpoint once the code around it is cancelled. Do not catch it, or raise it
/// again: the cancelled scope absorbs it.
#[pyclass(extends = PyBaseException, frozen, weakref, module = "desist")]
pub(super) struct Cancelled {
    /// Why and when the code was cancelled, and by which thread.
    #[pyo3(get)]
    cause: Py<CancelCause>,
    watch: Watch,
}

impl Cancelled {
    fn new(cause: Py<CancelCause>) -> Cancelled {
        let watch = Watch::new();
        Cancelled { cause, watch }
    }
}

impl AsRef<Watch> for Cancelled {
    fn as_ref(&self) -> &Watch {
        &self.watch
    }
}

#[pymethods]
impl Cancelled {
    fn __str__(&self) -> String {
        self.cause.get().__str__()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py>> {
        let (py, cause) = (slf.py(), &slf.get().cause);
        let state = slf.getattr(interned!(py, "__dict__"))?;
        pickling::by_function(py, "restore_cancelled", (cause,), Some(state))
    }
}

/// For pickles: a Cancelled with this cause.
#[pyfunction]
#[pyo3(signature = (cause, /) -> "Cancelled")]
pub(super) fn restore_cancelled(py: Python<'_>, cause: Py<CancelCause>) -> PyResult<Py<Cancelled>> {
    Py::new(py, Cancelled::new(cause))
}

/// The Python exception for a stop. For a task that `raise_exc` has an exception for, that one.
pub(super) fn from_stop(py: Python<'_>, stop: Stop) -> PyErr {
    match stop {
        Stop::Cancelled(cause) => cancelled(py, cause),
        Stop::Killed(cause) => killed_or_injected(py, cause),
        // The host has kept the exception before it ended the wait.
        Stop::Interrupted => raised::take()
            .unwrap_or_else(|| ordinary(py, "Interrupted", &"the wait was interrupted")),
    }
}

fn cancelled(py: Python<'_>, cause: Cause) -> PyErr {
    Py::new(py, CancelCause::from(cause))
        .and_then(|cause| Bound::new(py, Cancelled::new(cause)))
        .inspect(|value| {
            // Without memory for it, the raise is merely not watched.
            let _ = swallow::watch(value);
        })
        .map_or_else(
            |failure| failure,
            |value| PyErr::from_value(value.into_any()),
        )
}

/// The exception of another task's result, which was cancelled by this cause.
pub(super) fn other_cancelled(py: Python<'_>, cause: Cause, cancelled: &Bound<'_, PyAny>) -> PyErr {
    let made = Py::new(py, CancelCause::from(cause))
        .and_then(|cause| class(py, "TaskCancelled")?.call1((cause,)));
    match made {
        Ok(value) => {
            let error = PyErr::from_value(value);
            error.set_cause(py, Some(PyErr::from_value(cancelled.clone())));
            error
        }
        Err(failure) => failure,
    }
}

/// The cause of a [`other_cancelled`] exception; `None` for any other.
pub(super) fn cause_of_other(raised: &Bound<'_, PyAny>) -> Option<Cause> {
    let py = raised.py();
    let class = class(py, "TaskCancelled").ok()?;
    if !raised.is_instance(&class).ok()? {
        return None;
    }
    let cause = raised.getattr(interned!(py, "cause")).ok()?;
    Some(cause.cast::<CancelCause>().ok()?.get().core().clone())
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

pub(super) fn from_queue(py: Python<'_>, failure: QueueError) -> PyErr {
    match failure {
        QueueError::Stop(stop) => from_stop(py, stop),
        QueueError::ShutDown => ordinary(py, "ShutDown", &failure),
    }
}
