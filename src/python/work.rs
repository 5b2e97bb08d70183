//! Queues of leases, and the workers' loop.
//!
//! `source` is the port: the loop (`worker_slot`) and a handler's lease know a queue
//! through it only, and `memory`, `file` and `py_queue` implement it.
//!
//! | module | subject |
//! |---|---|
//! | `source` | the port: the operations of a worker's loop and of a lease on a queue |
//! | `memory` | `LeaseQueue`: in memory |
//! | `file`, `codec` | `FileQueue`: in a file, as bytes |
//! | `py_queue` | queues written in Python, of engines on servers |
//! | `retry` | `RetryPolicy` |
//! | `items` | the arguments and the list of `items()` |
//! | `options` | the arguments of a queue, and of `put()` |
//! | `promises` | the futures of submitted items |
//! | `port` | `QueuePort`: the operations of a pool on a queue |
//! | `lease` | `Lease`: one delivery, as its handler sees it |
//! | `content` | an item as its queue delivers it, and who decodes it |
//! | `worker_slot` | `WorkerSlot`: a worker's place in its pool, and its loop |
//! | `time_limit` | `TimeLimit`: how long an attempt may take |
//! | `pool_metrics` | `PoolMetrics`: a pool's counters, and its observer |
//! | `child`, `parent_watch` | a worker's process, and its parent as that process sees it |

pub(super) mod child;
mod codec;
mod content;
#[cfg(unix)]
mod file;
mod items;
mod lease;
mod memory;
mod options;
#[cfg(unix)]
pub(super) mod parent_watch;
mod pool_metrics;
mod port;
mod promises;
mod py_queue;
mod retry;
mod source;
mod time_limit;
mod worker_slot;

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

#[cfg(unix)]
pub(super) use file::FileQueue;
pub(super) use lease::{Lease, contents_of};
pub(super) use memory::LeaseQueue;
pub(super) use pool_metrics::PoolMetrics;
pub(super) use port::QueuePort;
pub(super) use py_queue::{RunningHandler, lease_from};
pub(super) use retry::{RetryPolicy, retry_pause};
pub(super) use time_limit::checked_time_limit;
pub(super) use worker_slot::WorkerSlot;

use crate::clock::Time;
use crate::python::cause::CancelCause;
use crate::{Cause, CauseKind, work};

/// The bound of a commit block, which is meant for one write and its acknowledgement.
const LONGEST_COMMIT: Duration = Duration::from_secs(5);

/// The operations of a pool on one of the core's queues.
#[pyfunction]
#[pyo3(signature = (queue: "LeaseQueue[Any] | FileQueue[Any]"))]
pub(super) fn queue_port(queue: &Bound<'_, PyAny>) -> PyResult<QueuePort> {
    if let Ok(memory) = queue.cast::<LeaseQueue>() {
        return Ok(QueuePort::new(queue, memory.get().pool_queue()));
    }
    #[cfg(unix)]
    if let Ok(file) = queue.cast::<FileQueue>() {
        return Ok(QueuePort::new(queue, file.get().pool_queue()));
    }
    let kind = queue.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "{kind} is no queue of leases; pass a LeaseQueue, a FileQueue, or the path of one"
    )))
}

/// The failure that a queue stores for work that was stopped for this reason.
fn failure(py: Python<'_>, kind: CauseKind, reason: Option<&str>) -> PyResult<Py<PyAny>> {
    let cause = Cause::now(kind, reason.map(Into::into), None);
    Ok(Py::new(py, CancelCause::from(cause))?.into_any())
}

/// The cause of a Cancelled or Killed; another exception itself.
fn cause_of(py: Python<'_>, raised: &Py<PyAny>) -> Py<PyAny> {
    raised
        .getattr(py, "cause")
        .unwrap_or_else(|_| raised.clone_ref(py))
}

/// A dead item: its id, the item, and all failures.
type Dead<F> = (u64, Py<PyAny>, Vec<F>);

/// The counts as a dict.
fn counts(py: Python<'_>, counts: work::Counts) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("ready", counts.ready)?;
    dict.set_item("leased", counts.leased)?;
    dict.set_item("delayed", counts.delayed)?;
    dict.set_item("done", counts.done)?;
    dict.set_item("dead", counts.dead)?;
    Ok(dict)
}

fn not_dead(item_id: u64) -> PyErr {
    let message = format!("item {item_id} is not dead; dead() lists those that are");
    PyValueError::new_err(message)
}

/// When a handler is to stop: at the item's deadline, or when its lease runs out.
fn earliest(deadline: Time, until: Option<Time>) -> Time {
    until.map_or(deadline, |until| until.min(deadline))
}
