//! `Killed`: the class whose call is the delivery of a kill.
//!
//! An asynchronous exception is posted as a class. CPython makes the instance by calling the class in
//! the thread in which it raises it, so `Killed.__new__` runs there, between two bytecodes of the
//! body. It tells the task that the kill has been delivered, sets the trace function if the kill was
//! posted for that (see `trace`), and takes the cause; or, if `raise_exc` has injected an exception,
//! raises that instead.

use std::sync::Arc;

use crate::python::binding::interned::interned;
use pyo3::exceptions::{PyBaseException, PyTypeError};
use pyo3::prelude::*;

use super::{protected, trace};
use crate::cause::Cause;
use crate::python::binding::pickling::{self, Reduced};
use crate::python::cause::CancelCause;
use crate::scope;
use crate::task::{Arrival, Injected};

/// Raised in code that is being killed. Do not catch it: it is absorbed by the end of the task, or of
/// the block with `kill_after` that is being killed.
#[pyclass(extends = PyBaseException, frozen, module = "desist")]
pub(in crate::python) struct Killed {
    /// Why and when the code was killed, and by which thread.
    #[pyo3(get)]
    cause: Py<CancelCause>,
}

#[pymethods]
impl Killed {
    // See the module's header. Any other call is an error.
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let task = scope::current_task();
        let arrived = task.as_ref().and_then(|task| task.arrived());
        if arrived.is_some() && py.version_info() >= (3, 12) {
            protected::finish_release(py);
        }
        if let Some(task) = &task {
            trace::arrived(py, task);
        }
        let cause = match arrived {
            Some(Arrival::Injected(injected)) => return Err(self::injected(py, &injected)),
            Some(Arrival::Kill(cause)) => Some(cause),
            None => None,
        };
        let cause = cause.ok_or_else(|| {
            PyTypeError::new_err(
                "Killed cannot be made by hand; use Thread.kill(), or Worker.kill() for a worker of a pool",
            )
        })?;
        Ok(Self {
            cause: Py::new(py, CancelCause::from(cause))?,
        })
    }

    fn __str__(&self) -> String {
        format!("killed ({})", self.cause.get().__str__())
    }

    // Not by the class, whose call is a delivery.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py>> {
        let (py, cause) = (slf.py(), &slf.get().cause);
        let state = slf.getattr(interned!(py, "__dict__"))?;
        pickling::by_function(py, "restore_killed", (cause,), Some(state))
    }
}

/// For pickles: a Killed with this cause.
#[pyfunction]
#[pyo3(signature = (cause, /) -> "Killed")]
pub(in crate::python) fn restore_killed(
    py: Python<'_>,
    cause: Py<CancelCause>,
) -> PyResult<Py<Killed>> {
    Py::new(py, Killed { cause })
}

pub(in crate::python) fn killed(py: Python<'_>, cause: Cause) -> PyErr {
    Py::new(py, CancelCause::from(cause))
        .and_then(|cause| Bound::new(py, Killed { cause }))
        .map_or_else(
            |failure| failure,
            |value| PyErr::from_value(value.into_any()),
        )
}

/// The exception of a wait or a checkpoint in a task that is killed: `Killed`, or the injected one.
pub(in crate::python) fn killed_or_injected(py: Python<'_>, cause: Cause) -> PyErr {
    match scope::current_task().and_then(|task| task.take_injected()) {
        Some(injected) => self::injected(py, &injected),
        None => killed(py, cause),
    }
}

/// An exception, ready to be injected.
pub(in crate::python) fn injectable(exception: Bound<'_, PyBaseException>) -> Injected {
    Arc::new(exception.unbind())
}

fn injected(py: Python<'_>, injected: &Injected) -> PyErr {
    match injected.downcast_ref::<Py<PyBaseException>>() {
        Some(exception) => PyErr::from_value(exception.bind(py).clone().into_any()),
        None => PyTypeError::new_err("the object to be injected is no exception"), // never: see injectable()
    }
}

/// Raises the kill that was deferred and may be delivered now, if there is one.
pub(in crate::python) fn check_kill(py: Python<'_>) -> PyResult<()> {
    scope::kill_due().map_or(Ok(()), |cause| Err(killed_or_injected(py, cause)))
}
