//! `Barrier`: the core's barrier with the signatures of `threading.Barrier`.
//!
//! `__init__` makes the core's barrier, because a subclass may call it late; an object without it
//! raises RuntimeError. Action and timeout are dropped by a collection, for the action may be a method
//! of the barrier itself; the mutex is locked by attached threads only.

use std::sync::OnceLock;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::python::binding::host::detached;
use crate::python::binding::runnable::{check_function, check_result};
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::python::op::Visited;
use crate::sync::{self, Arrival, BarrierError};

/// A barrier like threading.Barrier, whose waits can be cancelled.
///
/// The last of `parties` threads to arrive calls `action`, if there is one, before all pass.
/// `timeout`, in seconds, is the default of wait(). Making a barrier never blocks.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct Barrier {
    /// Written once, by `__init__`.
    made: OnceLock<Made>,
}

struct Made {
    barrier: sync::Barrier,
    given: Mutex<Given>,
}

#[derive(Default)]
struct Given {
    action: Option<Py<PyAny>>,
    /// The default of `wait()`.
    timeout: Option<Py<PyAny>>,
}

impl Barrier {
    fn made(&self) -> PyResult<&Made> {
        self.made
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("Barrier.__init__() was not called"))
    }
}

#[pymethods]
impl Barrier {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(parties, action=None, timeout=None)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            made: OnceLock::new(),
        }
    }

    #[pyo3(signature = (parties, action: "Callable[[], object] | None" = None, timeout: "float | None" = None))]
    fn __init__(
        &self,
        py: Python<'_>,
        parties: isize,
        action: Option<Py<PyAny>>,
        timeout: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        if let Some(action) = &action {
            check_function(action.bind(py), "action", None)?;
        }
        let parties = usize::try_from(parties).ok().filter(|parties| *parties > 0);
        let parties = parties.ok_or_else(|| PyValueError::new_err("parties must be >= 1"))?;
        let barrier = sync::Barrier::new(parties);
        let given = Mutex::new(Given { action, timeout });
        self.made.get_or_init(|| Made { barrier, given });
        Ok(())
    }

    /// Wait until all parties have arrived; returns the number of threads that arrived before.
    ///
    /// Blocks: until the last party has arrived, for `timeout` seconds at most.
    /// On cancel: Cancelled is raised; the thread does not count as arrived, and the others keep waiting.
    /// On timeout: the barrier breaks, for all of its waiters.
    /// On kill: as on cancel, with Killed.
    ///
    /// Raises:
    ///     BrokenBarrierError: the barrier is broken, or was while this waited.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<usize> {
        let made = self.made()?;
        let default = made
            .given
            .lock()
            .timeout
            .as_ref()
            .map(|default| default.clone_ref(py));
        let default = default.map(|default| default.into_bound(py));
        let timeout = match (timeout, &default) {
            (None, Some(default)) => Some(default.extract()?),
            (timeout, _) => timeout,
        };
        let until = seconds::patience(timeout)?;
        let failed = |failure| match failure {
            BarrierError::Stop(stop) => error::from_stop(py, stop),
            BarrierError::Broken => error::ordinary(py, "BrokenBarrierError", &failure),
        };
        match detached(py, || made.barrier.arrive(until)).map_err(failed)? {
            Arrival::Passed(index) => Ok(index),
            Arrival::Last(opening) => {
                let action = made
                    .given
                    .lock()
                    .action
                    .as_ref()
                    .map(|action| action.clone_ref(py));
                if let Some(action) = action {
                    check_result(action.bind(py).call0()?, false)?;
                }
                opening.open().map_err(failed)
            }
        }
    }

    /// Make the barrier usable again. Threads that wait get BrokenBarrierError.
    fn reset(&self) -> PyResult<()> {
        self.made()?.barrier.reset();
        Ok(())
    }

    /// Break the barrier: threads that wait, and all later ones, get BrokenBarrierError.
    fn abort(&self) -> PyResult<()> {
        self.made()?.barrier.abort();
        Ok(())
    }

    /// How many threads have to arrive.
    #[getter]
    fn parties(&self) -> PyResult<usize> {
        Ok(self.made()?.barrier.parties())
    }

    /// How many threads wait in the barrier.
    #[getter]
    fn n_waiting(&self) -> PyResult<usize> {
        Ok(self.made()?.barrier.waiting())
    }

    /// Is it broken?
    #[getter]
    fn broken(&self) -> PyResult<bool> {
        Ok(self.made()?.barrier.is_broken())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        let given = self.made.get().and_then(|made| made.given.try_lock());
        let Some(given) = given else { return Ok(()) };
        visit.call(&given.action)?;
        visit.call(&given.timeout)
    }

    fn __clear__(&self) {
        let given = self
            .made
            .get()
            .map(|made| std::mem::take(&mut *made.given.lock()));
        drop(given); // unlocked: may run any code
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let (class, barrier) = (slf.get_type().qualname()?, &slf.get().made()?.barrier);
        let place = format!("<desist.{class} at {:p}", slf.as_ptr());
        if barrier.is_broken() {
            return Ok(format!("{place}: broken>"));
        }
        let (waiting, parties) = (barrier.waiting(), barrier.parties());
        Ok(format!("{place}: waiters={waiting}/{parties}>"))
    }
}
