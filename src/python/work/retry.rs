//! `RetryPolicy`: how failed work is tried again, and which failures are.
//!
//! The times and the count are the core's; the types of exceptions are judged here, by the worker's
//! loop, which alone sees the exceptions of handlers. So a queue in memory, in a file, or of an engine
//! treats them alike.

use std::fmt::Write as _;

use crate::python::binding::interned::interned;
use pyo3::exceptions::{PyBaseException, PyTypeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::python::binding::attach::attach;
use crate::python::binding::pickling::{self, Reduced};
use crate::python::binding::seconds;
use crate::python::error;
use crate::python::op::Visited;
use crate::python::ports::lost_exception;
use crate::work::{self, Nack};

/// How often, and how soon, failed work is tried again.
///
/// After `max_attempts` leases an item is dead. The pause after a failure is `backoff` seconds at
/// first and doubles each time up to `max_backoff`, randomised by ±`jitter` (a part of it). Work
/// whose worker was killed is ready again at once.
///
/// `retry_for` names the types of exceptions, one or a tuple, after which work is tried again: after
/// another exception of the handler the item is dead at once, with the exception kept. After one of
/// `discard_for` it is dead in any case. An exception of the item's decoding counts as one of the handler.
/// Exceptions that do not come from the handler are not judged: work whose worker process died is tried
/// again, unless `discard_for` names WorkerDied.
#[pyclass(frozen, eq, module = "desist")]
#[derive(Default)]
pub(in crate::python) struct RetryPolicy {
    retry: work::RetryPolicy,
    /// `None`: exceptions of all types.
    retry_for: Option<Py<PyTuple>>,
    discard_for: Option<Py<PyTuple>>,
}

impl RetryPolicy {
    pub(super) fn inner(&self) -> work::RetryPolicy {
        self.retry
    }

    /// How a lease ends whose handler has raised this exception.
    pub(super) fn after(&self, raised: &Bound<'_, PyAny>) -> PyResult<Nack> {
        if is_any_of(raised, self.discard_for.as_ref())? {
            return Ok(Nack::Discard);
        }
        let retried = self.retry_for.is_none()
            || is_any_of(raised, self.retry_for.as_ref())?
            || error::is(
                raised.py(),
                &PyErr::from_value(raised.clone()),
                "WorkerDied",
            );
        Ok(if retried { Nack::Failed } else { Nack::Discard })
    }
}

/// Is the exception of one of these types, as `except` sees it? An exception that came from a worker
/// process without its object has the names of its types instead.
fn is_any_of(raised: &Bound<'_, PyAny>, types: Option<&Py<PyTuple>>) -> PyResult<bool> {
    let py = raised.py();
    let Some(types) = types else {
        return Ok(false);
    };
    if PyErr::from_value(raised.clone()).matches(py, types)? {
        return Ok(true);
    }
    let Some(names) = raised.getattr_opt(lost_exception::type_names(py))? else {
        return Ok(false);
    };
    for kind in types.bind(py) {
        if names.contains(qualified_name(&kind)?)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The name by which `desist._channel` knows a class.
fn qualified_name(class: &Bound<'_, PyAny>) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
    let py = class.py();
    let module = class.getattr(interned!(py, "__module__"))?.unbind();
    let name = class.getattr(interned!(py, "__qualname__"))?.unbind();
    Ok((module, name))
}

/// The types that an argument names, checked. `None`: it was not given.
fn exception_types(given: Option<&Bound<'_, PyAny>>, name: &str) -> PyResult<Option<Py<PyTuple>>> {
    let Some(given) = given else {
        return Ok(None);
    };
    let types = match given.cast::<PyTuple>() {
        Ok(types) => types.clone(),
        Err(_) => PyTuple::new(given.py(), [given])?,
    };
    for kind in &types {
        let class = kind.cast::<PyType>();
        if !class.is_ok_and(|class| class.is_subclass_of::<PyBaseException>().unwrap_or(false)) {
            let message = format!(
                "{name} must be a type of exceptions, or a tuple of them, such as \
                 (ConnectionError, TimeoutError), but has {}",
                kind.repr()?
            );
            return Err(PyTypeError::new_err(message));
        }
    }
    Ok(Some(types.unbind()))
}

impl PartialEq for RetryPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.retry == other.retry
            && are_same(self.retry_for.as_ref(), other.retry_for.as_ref())
            && are_same(self.discard_for.as_ref(), other.discard_for.as_ref())
    }
}

/// Compares the types by identity, which runs no code.
fn are_same(one: Option<&Py<PyTuple>>, other: Option<&Py<PyTuple>>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return one.is_none() && other.is_none();
    };
    let are_same = attach(|py| {
        let (one, other) = (one.bind(py), other.bind(py));
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.is(&other))
    });
    are_same.unwrap_or(false)
}

#[pymethods]
impl RetryPolicy {
    #[new]
    #[pyo3(signature = (
        *,
        max_attempts: "int" = 5,
        backoff: "float" = 0.5,
        max_backoff: "float" = 60.0,
        jitter: "float" = 0.2,
        retry_for: "type[BaseException] | tuple[type[BaseException], ...] | None" = None,
        discard_for: "type[BaseException] | tuple[type[BaseException], ...] | None" = None,
    ))]
    fn new(
        max_attempts: u32,
        #[pyo3(from_py_with = seconds::argument::backoff)] backoff: f64,
        #[pyo3(from_py_with = seconds::argument::max_backoff)] max_backoff: f64,
        jitter: f64,
        retry_for: Option<&Bound<'_, PyAny>>,
        discard_for: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        if max_attempts == 0 {
            return Err(PyValueError::new_err("max_attempts must be at least 1"));
        }
        if !(0.0..=1.0).contains(&jitter) {
            return Err(PyValueError::new_err(format!(
                "jitter must be between 0 and 1, but is {jitter:?}"
            )));
        }
        let backoff = seconds::checked_span(backoff, "backoff")?;
        let max_backoff = seconds::checked_span(max_backoff, "max_backoff")?;
        Ok(Self {
            retry: work::RetryPolicy {
                max_attempts,
                backoff,
                max_backoff,
                jitter,
            },
            retry_for: exception_types(retry_for, "retry_for")?,
            discard_for: exception_types(discard_for, "discard_for")?,
        })
    }

    /// After this many leases an item is dead.
    #[getter]
    fn max_attempts(&self) -> u32 {
        self.retry.max_attempts
    }

    /// Seconds of the pause after the first failure.
    #[getter]
    fn backoff(&self) -> f64 {
        self.retry.backoff.as_secs_f64()
    }

    /// Seconds of the longest pause.
    #[getter]
    fn max_backoff(&self) -> f64 {
        self.retry.max_backoff.as_secs_f64()
    }

    /// The part of a pause by which it is randomised, up or down.
    #[getter]
    fn jitter(&self) -> f64 {
        self.retry.jitter
    }

    /// After exceptions of these types, work is tried again; None means all types.
    #[getter]
    fn retry_for(&self, py: Python<'_>) -> Option<Py<PyTuple>> {
        self.retry_for.as_ref().map(|types| types.clone_ref(py))
    }

    /// After exceptions of these types the item is dead at once; None means no types.
    #[getter]
    fn discard_for(&self, py: Python<'_>) -> Option<Py<PyTuple>> {
        self.discard_for.as_ref().map(|types| types.clone_ref(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.retry_for)?;
        visit.call(&self.discard_for)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut types = String::new();
        for (name, given) in [
            ("retry_for", &self.retry_for),
            ("discard_for", &self.discard_for),
        ] {
            if let Some(given) = given {
                let _ = write!(types, ", {name}={}", given.bind(py).repr()?);
            }
        }
        Ok(format!(
            "RetryPolicy(max_attempts={}, backoff={:?}, max_backoff={:?}, jitter={:?}{types})",
            self.max_attempts(),
            self.backoff(),
            self.max_backoff(),
            self.jitter(),
        ))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let fields = PyDict::new(py);
        fields.set_item("max_attempts", self.max_attempts())?;
        fields.set_item("backoff", self.backoff())?;
        fields.set_item("max_backoff", self.max_backoff())?;
        fields.set_item("jitter", self.jitter())?;
        for (name, types) in [
            ("retry_for", &self.retry_for),
            ("discard_for", &self.discard_for),
        ] {
            if let Some(types) = types {
                fields.set_item(name, types)?;
            }
        }
        pickling::by_constructor::<Self>(py, fields)
    }
}

/// Seconds of a policy's pause after that attempt; `random` is between 0 and 1. For the queues of
/// engines, which schedule retries in Python.
#[pyfunction]
#[pyo3(signature = (policy, attempt: "int", random: "float"))]
pub(in crate::python) fn retry_pause(policy: &RetryPolicy, attempt: u32, random: f64) -> f64 {
    policy.retry.pause(attempt, random).as_secs_f64()
}
