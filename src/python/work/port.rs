//! `QueuePort`: the operations of a `WorkerPool` on a queue, apart from the public ones.
//!
//! The protocol of the same name in `desist._ports` declares them for Python; the queues of engines
//! implement it in Python.

use std::sync::Arc;

use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::options::{self, PutArguments};
use super::source::LeaseSource;
use super::{RetryPolicy, failure};
use crate::CauseKind;
use crate::python::binding::seconds::Seconds;
use crate::python::op::Visited;

/// A queue of the core's, as a pool sees it.
pub(super) trait PoolQueue: Send + Sync {
    /// The queue's policy; `None` for the default.
    fn retry(&self) -> Option<&Py<RetryPolicy>>;

    /// The queue's name in events.
    fn name(&self) -> String;

    /// Put an item; `promise` is settled when the item has ended.
    fn submit(
        &self,
        item: &Bound<'_, PyAny>,
        promise: &Bound<'_, PyAny>,
        arguments: PutArguments,
    ) -> PyResult<u64>;

    /// Never lease the item again. `Some(true)`: it is dead now. `Some(false)`: it will be, when its
    /// worker gives it back. `None`: it had ended.
    fn cancel(&self, py: Python<'_>, item_id: u64, failure: Py<PyAny>) -> PyResult<Option<bool>>;

    /// The failures of a dead item. `None`: it is not dead.
    fn failures_of(&self, py: Python<'_>, item_id: u64) -> PyResult<Option<Vec<Py<PyAny>>>>;

    /// Wait until nothing is ready, leased or delayed. False: not in time. An exception of the queue is
    /// the inner error; the outer one stops the calling code only.
    fn drain(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Result<bool, PyErr>>;

    /// Fail the futures of this process: no worker of it will work on the items any more.
    fn abandon(&self, py: Python<'_>, failure: &Py<PyAny>) -> PyResult<()>;

    /// The same queue, as a worker's loop sees it.
    fn source(self: Arc<Self>) -> Arc<dyn LeaseSource>;
}

/// The operations of a pool on a queue.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct QueuePort {
    /// The queue's Python object.
    owner: Py<PyAny>,
    queue: Arc<dyn PoolQueue>,
}

impl QueuePort {
    pub(super) fn new(owner: &Bound<'_, PyAny>, queue: Arc<dyn PoolQueue>) -> Self {
        let owner = owner.clone().unbind();
        Self { owner, queue }
    }

    pub(super) fn source(&self) -> Arc<dyn LeaseSource> {
        self.queue.clone().source()
    }
}

#[pymethods]
impl QueuePort {
    /// The queue's policy.
    #[getter]
    fn retry(&self, py: Python<'_>) -> PyResult<Py<RetryPolicy>> {
        match self.queue.retry() {
            Some(retry) => Ok(retry.clone_ref(py)),
            None => Py::new(py, RetryPolicy::default()),
        }
    }

    /// The queue's name in events: the path of its file, or "memory".
    #[getter]
    fn name(&self) -> String {
        self.queue.name()
    }

    /// Add an item, as put() does; `promise` is settled when the item has ended.
    #[pyo3(signature = (item: "object", promise: "object", /, *, key = None, priority = 0, delay = None, expires = None, time_limit = None, timeout = None))]
    #[allow(clippy::too_many_arguments)] // those of put()
    fn submit(
        &self,
        item: &Bound<'_, PyAny>,
        promise: &Bound<'_, PyAny>,
        key: Option<&str>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        time_limit: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let arguments = options::of_put(key, priority, delay, expires, time_limit, timeout)?;
        self.queue.submit(item, promise, arguments)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.owner)
    }

    /// Never lease the item again. True: it is dead now. False: it will be, when its worker
    /// requeues it. None: it had ended.
    #[pyo3(signature = (item_id: "int", reason = None))]
    fn cancel(&self, py: Python<'_>, item_id: u64, reason: Option<&str>) -> PyResult<Option<bool>> {
        let failure = failure(py, CauseKind::Explicit, reason)?;
        self.queue.cancel(py, item_id, failure)
    }

    /// The failures of a dead item, without decoding any item. None: it is not dead.
    #[pyo3(signature = (item_id: "int") -> "list[Any] | None")]
    fn failures_of(&self, py: Python<'_>, item_id: u64) -> PyResult<Option<Vec<Py<PyAny>>>> {
        self.queue.failures_of(py, item_id)
    }

    /// Wait until nothing is ready, leased or delayed (True), or the seconds have passed. An exception of
    /// the queue is passed to `failed(exception)`, and False returned.
    ///
    /// Blocks: a checkpoint.
    #[pyo3(signature = (timeout, failed: "Callable[[BaseException], object]", /))]
    fn drain(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds<'_, '_>>,
        failed: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        match self.queue.drain(py, timeout)? {
            Ok(drained) => Ok(drained),
            Err(broken) => failed.call1((broken.into_value(py),)).map(|_| false),
        }
    }

    /// Fail the futures: the pool that owns the queue has stopped.
    #[pyo3(signature = (reason = None))]
    fn abandon(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        let failure = failure(py, CauseKind::Shutdown, reason)?;
        self.queue.abandon(py, &failure)
    }
}
