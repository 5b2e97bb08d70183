//! `Semaphore` and `BoundedSemaphore`: the core's semaphore with the signatures of `threading`.

use std::sync::OnceLock;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::clock::Time;
use crate::python::binding::lazy_arg;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::python::op::{Op, Operation, Started, Visited, Yield, adapted, always_true};
use crate::python::wait::perform;
use crate::sync;

/// A counter like threading.Semaphore, whose waits can be cancelled.
///
/// A permit that a `with` block acquired is released however the block ends, also if the thread is
/// killed there. One that acquire() took has no owner: any thread may release it.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct Semaphore {
    /// Written once, by `__init__`.
    semaphore: OnceLock<sync::Semaphore>,
}

/// A semaphore like threading.BoundedSemaphore: releasing more often than acquiring is an error.
#[pyclass(frozen, weakref, subclass, extends = Semaphore, module = "desist")]
pub(in crate::python) struct BoundedSemaphore;

impl Semaphore {
    pub(in crate::python) fn core(&self) -> &sync::Semaphore {
        self.semaphore.get_or_init(|| sync::Semaphore::new(1))
    }

    const fn blank() -> Self {
        Self {
            semaphore: OnceLock::new(),
        }
    }
}

fn permits(value: isize) -> PyResult<usize> {
    usize::try_from(value)
        .map_err(|_| PyValueError::new_err("semaphore initial value must be >= 0"))
}

/// Acquires a permit.
struct AcquirePermit(Py<Semaphore>);

impl Operation for AcquirePermit {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(self.0.get().core().acquire_op(), |()| Yield::Plain)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)
    }

    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(always_true(py))
    }
}

#[pymethods]
impl Semaphore {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(value=1)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::blank()
    }

    #[pyo3(signature = (value = 1))]
    fn __init__(&self, value: isize) -> PyResult<()> {
        let semaphore = sync::Semaphore::new(permits(value)?);
        self.semaphore.get_or_init(|| semaphore);
        Ok(())
    }

    /// Acquire a permit; True if one was taken.
    ///
    /// Blocks: until a permit is free, for `timeout` seconds at most; not at all with
    /// `blocking=False`.
    /// On cancel: a blocking call raises Cancelled, also if a permit is free; none was taken.
    /// On timeout: returns False.
    /// On kill: Killed is raised, and no permit was taken.
    ///
    /// Raises:
    ///     ValueError: a timeout for a call that does not block.
    #[pyo3(signature = (blocking: "bool" = true, timeout = None))]
    fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = lazy_arg::truth)] blocking: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        if !blocking {
            if timeout.is_some() {
                return Err(PyValueError::new_err(
                    "can't specify timeout for non-blocking acquire",
                ));
            }
            return Ok(self.core().try_acquire());
        }
        let until = seconds::patience(timeout)?;
        let acquired = perform(py, &mut self.core().acquire_op(), until);
        acquired
            .map(|acquired| acquired.is_some())
            .map_err(|stop| error::from_stop(py, stop))
    }

    /// The operation acquire(), for wait_any(); yields True.
    #[pyo3(signature = () -> "Op[bool]")]
    fn acquire_op(slf: Py<Self>) -> Op {
        Op::new(AcquirePermit(slf))
    }

    /// Release `n` permits; waiters get them first. Never blocks.
    ///
    /// Raises:
    ///     ValueError: less than one, or more than a BoundedSemaphore may have; none is released.
    #[pyo3(signature = (n = 1))]
    fn release(&self, n: isize) -> PyResult<()> {
        let permits = usize::try_from(n).ok().filter(|permits| *permits > 0);
        let permits = permits.ok_or_else(|| PyValueError::new_err("n must be one or more"))?;
        self.core()
            .release(permits)
            .map_err(|_| PyValueError::new_err("Semaphore released too many times"))
    }

    /// The number of free permits; by the name that threading has for it.
    #[getter]
    fn _value(&self) -> usize {
        self.core().free()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        let acquired = perform(py, &mut self.core().acquire_op_for_block(), Time::NEVER);
        acquired
            .map(|_| true)
            .map_err(|stop| error::from_stop(py, stop))
    }

    #[pyo3(signature = (_type, value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        if self.core().end_block() {
            // A kill that the permit deferred is raised here.
            return if value.is_none() {
                error::check_kill(py)
            } else {
                Ok(())
            };
        }
        // A suspended generator may be dropped long after its task has ended.
        if value.is_none() {
            return Err(PyRuntimeError::new_err(
                "the permit of this block was released when the scope or task around it ended",
            ));
        }
        Ok(())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let (class, free) = (slf.get_type().qualname()?, slf.get().core().free());
        Ok(format!(
            "<desist.{class} at {:p}: value={free}>",
            slf.as_ptr()
        ))
    }
}

#[pymethods]
impl BoundedSemaphore {
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(value=1)")]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Semaphore::blank()).add_subclass(Self)
    }

    #[pyo3(signature = (value = 1))]
    fn __init__(slf: &Bound<'_, Self>, value: isize) -> PyResult<()> {
        let semaphore = sync::Semaphore::bounded(permits(value)?);
        slf.as_super().get().semaphore.get_or_init(|| semaphore);
        Ok(())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let class = slf.get_type().qualname()?;
        let semaphore = slf.as_super().get().core();
        let (free, bound) = (semaphore.free(), semaphore.bound());
        Ok(format!(
            "<desist.{class} at {:p}: value={free}/{bound}>",
            slf.as_ptr()
        ))
    }
}
