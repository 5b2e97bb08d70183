//! `PoolMetrics`: the counters of a pool's events, and the pool's observer.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::item::ItemId;
use crate::python::op::Visited;

/// An event of an item in a pool.
#[derive(Clone, Copy)]
pub(super) enum Event {
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
    const ALL: [(Event, &'static str); 7] = [
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

/// Counts a pool's events, and calls `observer(kind, item_id, attempt, worker, failure)`, if there is
/// one, on the worker's thread, where no kill is delivered.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct PoolMetrics {
    counts: [AtomicU64; 7],
    observer: Option<Py<PyAny>>,
}

#[pymethods]
impl PoolMetrics {
    #[new]
    #[pyo3(signature = (observer: "Callable[..., object] | None" = None))]
    fn new(observer: Option<Py<PyAny>>) -> Self {
        Self {
            counts: Default::default(),
            observer,
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.observer)
    }

    /// How often each event has happened.
    #[pyo3(signature = () -> "dict[str, int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (event, name) in Event::ALL {
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
        (id, attempt): (ItemId, u32),
        worker: &str,
        failure: Option<&Py<PyAny>>,
    ) {
        self.counts[event as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(observer) = &self.observer {
            let told = observer.call1(py, (event.name(), id, attempt, worker, failure));
            if let Err(raised) = told {
                raised.write_unraisable(py, Some(observer.bind(py)));
            }
        }
    }
}
