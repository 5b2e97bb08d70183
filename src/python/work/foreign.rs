//! Queues that are written in Python: what stands between an engine of somebody else's and the
//! workers' loop.

use std::sync::Arc;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;

use super::engine::{Delivery, Engine, Hold, Told};
use super::lease::Blank;
use super::{LONGEST_COMMIT, Lease};
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::hard_stop::mask::Mask;
use crate::python::token;
use crate::task::Task;
use crate::work::{Nack, NackOutcome};

/// A queue that leases by `_deliver(timeout)`, which returns a delivery, or None.
///
/// A delivery has the attributes `id`, `epoch`, `attempt` and `item`, and the methods that
/// [`Delivered`] calls.
pub(super) struct Foreign {
    queue: Py<PyAny>,
}

impl Foreign {
    pub(super) fn new(queue: Py<PyAny>) -> Self {
        Self { queue }
    }
}

impl Engine for Foreign {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        let now = Time::now().as_nanos();
        let timeout = (!until.is_never())
            .then(|| Duration::from_nanos(until.as_nanos().saturating_sub(now)).as_secs_f64());
        let delivered = self
            .queue
            .call_method1(py, intern!(py, "_deliver"), (timeout,))?;
        if delivered.is_none(py) {
            return Ok(None);
        }
        delivery(delivered.into_bound(py)).map(Some)
    }
}

/// A lease of what `_deliver()` has returned.
#[pyfunction]
#[pyo3(signature = (delivered) -> "Lease[Any]")]
pub(in crate::python) fn lease_of(delivered: Bound<'_, PyAny>) -> PyResult<Bound<'_, Lease>> {
    let py = delivered.py();
    Ok(Blank::new(py)?.of(delivery(delivered)?))
}

fn delivery(delivered: Bound<'_, PyAny>) -> PyResult<Delivery> {
    let py = delivered.py();
    let id: String = delivered.getattr(intern!(py, "id"))?.extract()?;
    Ok(Delivery {
        epoch: delivered.getattr(intern!(py, "epoch"))?.extract()?,
        attempt: delivered.getattr(intern!(py, "attempt"))?.extract()?,
        item: delivered.getattr(intern!(py, "item"))?.unbind(),
        progress: delivered.getattr(intern!(py, "progress"))?.extract()?,
        ends: Time::NEVER, // who extends it in its stead says when it is lost
        hold: Box::new(Delivered {
            delivered: delivered.unbind(),
            id: id.into(),
        }),
    })
}

/// What was delivered. What is done with it goes to a server, and may take its time; no kill tears
/// it apart.
struct Delivered {
    delivered: Py<PyAny>,
    id: Arc<str>,
}

impl Hold for Delivered {
    fn id(&self) -> ItemId {
        ItemId::Name(self.id.clone())
    }

    fn begun(&self, py: Python<'_>, task: &Arc<Task>) -> PyResult<()> {
        let working = Working { task: task.clone() };
        self.delivered
            .call_method1(py, intern!(py, "_begun"), (working,))
            .map(drop)
    }

    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        let _mask = Mask::open(LONGEST_COMMIT);
        self.delivered
            .call_method0(py, intern!(py, "_ack"))
            .map(drop)
    }

    fn nack(&self, py: Python<'_>, nack: Nack, failure: Py<PyAny>) -> PyResult<NackOutcome> {
        let pause = match nack {
            Nack::Failed => None,
            Nack::After(pause) => Some(pause.as_secs_f64()),
            Nack::AtOnce => Some(0.0),
        };
        let _mask = Mask::open(LONGEST_COMMIT);
        let requeued =
            self.delivered
                .call_method1(py, intern!(py, "_give_back"), (pause, failure))?;
        Ok(if requeued.is_truthy(py)? {
            NackOutcome::Requeued
        } else {
            NackOutcome::Dead
        })
    }

    fn extend(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Time> {
        let _mask = Mask::open(LONGEST_COMMIT);
        self.delivered
            .call_method1(py, intern!(py, "_heartbeat"), (progress,))?;
        Ok(Time::NEVER)
    }

    fn tell(&self, py: Python<'_>, told: Told) {
        match self.delivered.call_method0(py, intern!(py, "_future")) {
            Ok(future) if future.is_none(py) => {}
            Ok(future) => told.to(py, &future),
            Err(raised) => raised.write_unraisable(py, Some(self.delivered.bind(py))),
        }
    }
}

/// The code that works on a lease.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct Working {
    task: Arc<Task>,
}

#[pymethods]
impl Working {
    /// Ask it to stop. True: nobody has before.
    #[pyo3(signature = (reason = None))]
    fn cancel(&self, py: Python<'_>, reason: Option<&str>) -> bool {
        token::cancel_node(py, self.task.source().node(), reason, None)
    }
}
