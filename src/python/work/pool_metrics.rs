//! `PoolMetrics`: the counters of a pool's events, and the pool's observer, a `PoolObserver` of
//! `desist._ports`.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Lease;
use crate::python::op::Visited;
use crate::python::ports::pool_observer;

/// An event of an item in a pool.
#[derive(Clone, Copy)]
pub(super) enum Event {
    /// A worker has leased it.
    Leased,
    /// A worker is about to call its handler.
    Started,
    /// It is acknowledged.
    Done,
    /// An exception came out of the handler.
    Failed,
    /// The code at work on it was cancelled.
    Cancelled,
    /// The code at work on it was killed, or abandoned.
    Killed,
    /// It will be leased again.
    Requeued,
    /// It is dead.
    Dead,
}

impl Event {
    const ALL: [(Event, &'static str); 8] = [
        (Event::Leased, "leased"),
        (Event::Started, "started"),
        (Event::Done, "done"),
        (Event::Failed, "failed"),
        (Event::Cancelled, "cancelled"),
        (Event::Killed, "killed"),
        (Event::Requeued, "requeued"),
        (Event::Dead, "dead"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Counts a pool's events, and tells its observer, if there is one, on the worker's thread, where no kill
/// is delivered.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct PoolMetrics {
    counts: [AtomicU64; 8],
    observer: Option<Py<PyAny>>,
}

#[pymethods]
impl PoolMetrics {
    #[new]
    #[pyo3(signature = (observer: "PoolObserver | None" = None))]
    fn new(observer: Option<Py<PyAny>>) -> Self {
        Self {
            counts: Default::default(),
            observer,
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.observer)
    }

    /// Tell `sys.unraisablehook` of an exception of the pool's listener.
    fn report(&self, py: Python<'_>, raised: Bound<'_, PyAny>) {
        let observer = self.observer.as_ref().map(|observer| observer.bind(py));
        PyErr::from_value(raised).write_unraisable(py, observer);
    }

    /// How often each event has happened.
    #[pyo3(signature = () -> "dict[str, int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        // Each lease that is counted as started was leased.
        for (event, name) in Event::ALL.into_iter().skip(1) {
            dict.set_item(name, self.counts[event as usize].load(Ordering::Relaxed))?;
        }
        Ok(dict)
    }
}

impl PoolMetrics {
    pub(super) fn note(
        &self,
        py: Python<'_>,
        event: Event,
        lease: &Lease,
        worker: &str,
        failure: Option<&Py<PyAny>>,
    ) {
        self.counts[event as usize].fetch_add(1, Ordering::Relaxed);
        let Some(observer) = &self.observer else {
            return;
        };
        let (id, attempt) = lease.which();
        let (epoch, key) = (lease.key().epoch, lease.item_key());
        let told = (event.name(), id, attempt, worker, failure, epoch, key);
        if let Err(raised) = observer.call_method1(py, pool_observer::note(py), told) {
            raised.write_unraisable(py, Some(observer.bind(py)));
        }
    }

    /// The lease is settled: it has no more events.
    pub(super) fn close(&self, py: Python<'_>, lease: &Lease) {
        let Some(observer) = &self.observer else {
            return;
        };
        let which = (lease.which().0, lease.key().epoch);
        if let Err(raised) = observer.call_method1(py, pool_observer::close(py), which) {
            raised.write_unraisable(py, Some(observer.bind(py)));
        }
    }
}
