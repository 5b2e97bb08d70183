//! What a worker's loop, and a lease in a handler's hands, need of the queue they come from.

use std::sync::Arc;

use pyo3::prelude::*;

#[cfg(unix)]
use super::FileQueue;
use super::LeaseQueue;
use super::foreign::Foreign;
use crate::clock::Time;
use crate::item::ItemId;
use crate::task::Task;
use crate::work::{Nack, NackOutcome};

/// Where leases come from.
pub(super) trait Engine: Send + Sync {
    /// Lease the next item, waiting until `until` at most. `None`: none came, or none will.
    /// `Cancelled` and `Killed` mean that nothing was leased.
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>>;
}

/// Where a queue's leases come from.
pub(super) fn of(queue: &Bound<'_, PyAny>) -> Arc<dyn Engine> {
    if let Ok(memory) = queue.cast::<LeaseQueue>() {
        return Arc::new(memory.clone().unbind());
    }
    #[cfg(unix)]
    if let Ok(file) = queue.cast::<FileQueue>() {
        return file.get().engine();
    }
    Arc::new(Foreign::new(queue.clone().unbind()))
}

/// One delivery of one item, as Python sees it.
pub(super) struct Delivery {
    pub(super) epoch: u64,
    pub(super) attempt: u32,
    pub(super) item: Py<PyAny>,
    /// What an earlier attempt has said with `heartbeat()`.
    pub(super) progress: Option<Py<PyAny>>,
    /// When whoever works on it is to stop: nobody wants the work any more, or the lease is lost.
    pub(super) ends: Time,
    pub(super) hold: Box<dyn Hold>,
}

/// What can be done with an item that is leased, and who waits for it.
pub(super) trait Hold: Send + Sync {
    /// Which item it is.
    fn id(&self) -> ItemId;

    /// A worker is about to begin with it: who finds out that the lease is lost can tell the task.
    fn begun(&self, _py: Python<'_>, _task: &Arc<Task>) -> PyResult<()> {
        Ok(())
    }

    /// The work is done. `Fenced`: the lease is over.
    fn ack(&self, py: Python<'_>) -> PyResult<()>;

    /// It was not done, because of this. `Fenced`: the lease is over.
    fn nack(&self, py: Python<'_>, nack: Nack, failure: Py<PyAny>) -> PyResult<NackOutcome>;

    /// The work goes on, and has come so far. Returns when it is to stop now. `Fenced`: the lease
    /// is over.
    fn extend(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Time>;

    /// Tell who has submitted the item what became of it.
    fn tell(&self, py: Python<'_>, told: Told);
}

/// What became of an item.
pub(super) enum Told {
    Finished(Py<PyAny>),
    /// It is dead, of this exception or `CancelCause`.
    Failed(Py<PyAny>),
}

impl Told {
    pub(super) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Told::Finished(value) => Told::Finished(value.clone_ref(py)),
            Told::Failed(failure) => Told::Failed(failure.clone_ref(py)),
        }
    }

    /// Tell a future. Nobody is there to take what it raises.
    pub(super) fn to(self, py: Python<'_>, future: &Py<PyAny>) {
        let told = match self {
            Told::Finished(value) => future.call_method1(py, "_finish", (value,)),
            Told::Failed(failure) => future.call_method1(py, "_fail", (failure,)),
        };
        if let Err(raised) = told {
            raised.write_unraisable(py, Some(future.bind(py)));
        }
    }
}
