//! `LeaseQueue`: items that are kept in memory, as they are.

use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyType};

use super::engine::{Delivery, Engine, Hold, Told};
use super::{LONGEST_COMMIT, Lease, RetryPolicy, failure};
use crate::clock::Time;
use crate::python::mask::Mask;
use crate::python::seconds::Seconds;
use crate::python::wait::blocking;
use crate::python::{error, seconds};
use crate::work::{self, Back, Returned};
use crate::{CauseKind, fork};

/// What the queue holds for an item; cloned without the interpreter.
struct Payload {
    item: Py<PyAny>,
    /// Who is to be told of the end.
    future: Option<Py<PyAny>>,
}

type Queue = work::LeaseQueue<Arc<Payload>, Arc<Py<PyAny>>>;

/// Items that are leased to workers, in memory. Each is in one state at any time: ready, leased,
/// delayed, done or dead. What a worker does not acknowledge is leased again.
#[pyclass(frozen, weakref, module = "desist")]
pub(in crate::python) struct LeaseQueue {
    engine: Arc<Memory>,
    generation: u32,
}

impl LeaseQueue {
    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    /// In a forked child the items are the parent's to work on.
    fn check_process(&self) -> PyResult<&Queue> {
        if self.generation == fork::generation() {
            Ok(&self.engine.queue)
        } else {
            let message = "this queue and its items belong to the parent process; make a new queue after a fork";
            Err(PyRuntimeError::new_err(message))
        }
    }
}

#[pymethods]
impl LeaseQueue {
    #[new]
    #[pyo3(signature = (*, retry = None) -> "LeaseQueue[_T]")]
    fn new(retry: Option<&RetryPolicy>) -> Self {
        let retry = retry.map_or_else(work::RetryPolicy::default, |policy| policy.retry);
        Self {
            engine: Arc::new(Memory {
                queue: Queue::new(retry),
            }),
            generation: fork::generation(),
        }
    }

    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// Add an item; returns its id. Never blocks.
    #[pyo3(signature = (item: "_T", /))]
    fn put(&self, item: Py<PyAny>) -> PyResult<u64> {
        Ok(self
            .check_process()?
            .put(Arc::new(Payload { item, future: None })))
    }

    /// As put(); `future` is told how the work ended. For WorkerPool.
    #[pyo3(signature = (item: "_T", future: "object"))]
    fn _submit(&self, item: Py<PyAny>, future: Py<PyAny>) -> PyResult<u64> {
        Ok(self.check_process()?.put(Arc::new(Payload {
            item,
            future: Some(future),
        })))
    }

    /// Lease the next item; waits for one, at most for `timeout` seconds (then None).
    ///
    /// A checkpoint: Cancelled and Killed mean that nothing was leased. A lease must be
    /// acknowledged or given back by whoever took it; a WorkerPool does that for its handlers.
    #[pyo3(signature = (timeout = None) -> "Lease[_T] | None")]
    fn lease(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<Option<Lease>> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        self.check_process()?;
        let delivery = self.engine.lease(py, until)?;
        Ok(delivery.map(Lease::new))
    }

    /// How many items are in each state, at one instant.
    #[pyo3(signature = () -> "dict[Literal['ready', 'leased', 'delayed', 'done', 'dead'], int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.engine.queue.counts();
        let dict = PyDict::new(py);
        dict.set_item("ready", counts.ready)?;
        dict.set_item("leased", counts.leased)?;
        dict.set_item("delayed", counts.delayed)?;
        dict.set_item("done", counts.done)?;
        dict.set_item("dead", counts.dead)?;
        Ok(dict)
    }

    /// The dead items: id, item, and all that went wrong (exceptions and CancelCauses).
    #[pyo3(signature = () -> "list[tuple[int, _T, list[BaseException | CancelCause]]]")]
    fn dead(&self, py: Python<'_>) -> Vec<(u64, Py<PyAny>, Vec<Py<PyAny>>)> {
        let dead = self.engine.queue.dead().into_iter();
        dead.map(|(id, payload, failures)| {
            (
                id,
                payload.item.clone_ref(py),
                failures
                    .iter()
                    .map(|failure| failure.clone_ref(py))
                    .collect(),
            )
        })
        .collect()
    }

    /// Give a dead item all its attempts again. ValueError if it is not dead.
    #[pyo3(signature = (item_id: "int", /))]
    fn revive(&self, item_id: u64) -> PyResult<()> {
        if self.check_process()?.revive(item_id) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "item {item_id} is not dead; dead() lists those that are"
        )))
    }

    /// The work is unwanted: it will not be leased again. True: it is dead now; False: it will
    /// be when its worker gives it back; None: it had ended. For WorkerPool.
    #[pyo3(signature = (item_id: "int", reason = None))]
    fn _cancel(
        &self,
        py: Python<'_>,
        item_id: u64,
        reason: Option<&str>,
    ) -> PyResult<Option<bool>> {
        let queue = self.check_process()?;
        let failure = Arc::new(failure(py, CauseKind::Explicit, reason)?);
        let payload = queue.item(item_id);
        let dead = queue.cancel(item_id, failure.clone());
        if let (Some(true), Some(payload)) = (dead, payload) {
            tell_off(py, &payload, &failure);
        }
        Ok(dead)
    }

    /// Nobody will work on what is ready or delayed: it is dead now. For WorkerPool.
    #[pyo3(signature = (reason = None))]
    fn _give_up(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        let failure = Arc::new(failure(py, CauseKind::Shutdown, reason)?);
        self.check_process()?
            .give_up(&failure)
            .iter()
            .for_each(|payload| tell_off(py, payload, &failure));
        Ok(())
    }

    /// Wait until nothing is ready, leased or delayed (True), or the seconds have passed.
    #[pyo3(signature = (timeout = None))]
    fn _drain(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        let queue = self.check_process()?;
        blocking(py, || queue.drain(until))
    }

    fn __repr__(&self) -> String {
        let counts = self.engine.queue.counts();
        format!(
            "<LeaseQueue ready={} leased={} delayed={} done={} dead={}>",
            counts.ready, counts.leased, counts.delayed, counts.done, counts.dead
        )
    }
}

/// What a LeaseQueue is for those who work.
struct Memory {
    queue: Queue,
}

impl Engine for Memory {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        let lease = blocking(py, || self.queue.lease(until))?;
        Ok(lease.map(|lease| Delivery {
            id: lease.id.into(),
            epoch: lease.epoch,
            attempt: lease.attempt,
            item: lease.item.item.clone_ref(py),
            hold: Arc::new(Held {
                queue: self.queue.clone(),
                lease,
            }),
        }))
    }
}

/// A leased item of a LeaseQueue.
struct Held {
    queue: Queue,
    lease: work::Lease<Arc<Payload>>,
}

impl Hold for Held {
    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        let acked = self.queue.ack(self.lease.id, self.lease.epoch);
        acked.map_err(|fenced| error::fenced(py, &fenced))
    }

    fn give_back(&self, py: Python<'_>, back: Back, failure: Py<PyAny>) -> PyResult<Returned> {
        let failure = Some(Arc::new(failure));
        self.queue
            .give_back(self.lease.id, self.lease.epoch, back, failure)
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    fn tell(&self, py: Python<'_>, told: Told) {
        if let Some(future) = &self.lease.item.future {
            told.to(py, future);
        }
    }
}

/// Tell an item's future that nobody will do the work.
fn tell_off(py: Python<'_>, payload: &Payload, failure: &Py<PyAny>) {
    // On the caller's thread, which may be killed: not inside the future's own locks.
    let mask = Mask::open(LONGEST_COMMIT);
    if let Some(future) = &payload.future {
        Told::Failed(failure.clone_ref(py)).to(py, future);
    }
    drop(mask);
}
