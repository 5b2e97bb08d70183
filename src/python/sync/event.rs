//! `Event`: the core's event with the signatures of `threading.Event`.

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::python::op::{Op, Operation, Started, Visited, Yield, adapted, always_true};
use crate::python::wait::perform;
use crate::sync;

/// A flag like threading.Event, whose waits can be cancelled.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct Event {
    event: sync::Event,
}

/// Waits until the event is set.
struct WaitUntilSet(Py<Event>);

impl Operation for WaitUntilSet {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(&self.0.get().event, |()| Yield::Plain)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)
    }

    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(always_true(py))
    }
}

#[pymethods]
impl Event {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "()")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            event: sync::Event::new(),
        }
    }

    #[pyo3(signature = ())]
    fn __init__(&self) {}

    /// Set the flag and wake all waiters. Never blocks.
    fn set(&self) {
        self.event.set();
    }

    /// Clear the flag: from now on wait() blocks.
    fn clear(&self) {
        self.event.clear();
    }

    /// Is the flag set?
    fn is_set(&self) -> bool {
        self.event.is_set()
    }

    /// is_set(), by its old name, which is deprecated in threading, too.
    #[pyo3(name = "isSet")]
    fn is_set_by_its_old_name(&self, py: Python<'_>) -> PyResult<bool> {
        error::warn_deprecated(py, c"isSet() is deprecated, use is_set() instead")?;
        Ok(self.is_set())
    }

    /// Wait until the flag is set (True), or the seconds have passed (False).
    ///
    /// Blocks: until then.
    /// On cancel: Cancelled is raised, also if the flag is set.
    /// On timeout: returns False.
    /// On kill: Killed is raised.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::patience(timeout)?;
        let set = perform(py, &mut &self.event, until);
        set.map(|set| set.is_some())
            .map_err(|stop| error::from_stop(py, stop))
    }

    /// The operation wait(), for wait_any(); yields True. The event itself means the same there.
    #[pyo3(signature = () -> "Op[bool]")]
    pub(in crate::python) fn wait_op(slf: Py<Self>) -> Op {
        Op::new(WaitUntilSet(slf))
    }

    /// In a forked child, as in threading.Event: there are no waiters any more.
    fn _at_fork_reinit(&self) {}

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let state = if slf.get().event.is_set() {
            "set"
        } else {
            "unset"
        };
        let class = slf.get_type().qualname()?;
        Ok(format!("<desist.{class} at {:p}: {state}>", slf.as_ptr()))
    }
}
