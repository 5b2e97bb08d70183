//! Queues that are written in Python: an `EngineQueue` as a [`LeaseSource`].
//!
//! The methods called here are those of the protocols `EngineSource` and `HeldDelivery` in
//! `desist._ports`.

use std::sync::Arc;
use std::time::Duration;

use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::content::Content;
use super::lease::LeaseSlot;
use super::promises::ItemResult;
use super::source::{Delivery, Hold, LeaseHandle, LeaseKey, LeaseSource};
use super::{LONGEST_COMMIT, Lease, time_limit};
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::hard_stop::mask::{InWaits, Mask, masked};
use crate::python::op::Visited;
use crate::python::ports::{engine_source, held_delivery};
use crate::python::token;
use crate::task::Task;
use crate::work::{Nack, NackOutcome};

/// An `EngineSource`.
pub(super) struct PyQueue {
    source: Py<PyAny>,
}

impl PyQueue {
    pub(super) fn new(source: Py<PyAny>) -> Self {
        Self { source }
    }
}

impl LeaseSource for PyQueue {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        let now = Time::now().as_nanos();
        let timeout = (!until.is_never())
            .then(|| Duration::from_nanos(until.as_nanos().saturating_sub(now)).as_secs_f64());
        // Between the server's answer and the delivery, the lease has no object that would release it.
        masked(InWaits::Delivered, || {
            let source = self.source.bind(py);
            let held = source.call_method1(engine_source::deliver(py), (timeout,))?;
            if held.is_none() {
                return Ok(None);
            }
            delivery(held).map(Some)
        })
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.source)
    }
}

/// Lease the next item of an `EngineSource`, for a caller that settles the lease itself; see
/// `EngineQueue.lease()`.
#[pyfunction]
#[pyo3(signature = (source: "object", timeout = None) -> "Lease[Any] | None")]
pub(in crate::python) fn lease_from<'py>(
    source: &Bound<'py, PyAny>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<Option<Bound<'py, Lease>>> {
    let py = source.py();
    let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
    let slot = LeaseSlot::new(py)?;
    let source = PyQueue::new(source.clone().unbind());
    while let Some(delivery) = source.lease(py, until)? {
        if let Some(decoded) = delivery.decoded(py)? {
            return Ok(Some(slot.fill(decoded, None)));
        }
    }
    Ok(None)
}

fn delivery(held: Bound<'_, PyAny>) -> PyResult<Delivery> {
    let py = held.py();
    let id: String = held.getattr(held_delivery::id(py))?.extract()?;
    let decode = held.getattr(held_delivery::decode(py))?;
    let content =
        |bytes: Bound<'_, PyBytes>| Content::encoded(decode.clone().unbind(), bytes.unbind());
    let body = held.getattr(held_delivery::body(py))?.cast_into()?;
    let progress: Option<Bound<'_, PyBytes>> =
        held.getattr(held_delivery::progress(py))?.extract()?;
    let key = LeaseKey {
        number: 0, // its handle is of this lease only
        epoch: held.getattr(held_delivery::epoch(py))?.extract()?,
        deadline: Time::NEVER,
    };
    Ok(Delivery {
        attempt: held.getattr(held_delivery::attempt(py))?.extract()?,
        item: content(body),
        context: held.getattr(held_delivery::context(py))?.extract()?,
        progress: progress.map(content),
        item_key: held
            .getattr(held_delivery::key(py))?
            .extract::<Option<String>>()?
            .map(Into::into),
        ends: Time::NEVER, // the heartbeat thread extends the lease, and cancels the task if it is lost
        time_limit: time_limit::checked(held.getattr(held_delivery::time_limit(py))?.extract()?)?,
        hold: Hold::new(
            key,
            Arc::new(HeldDelivery {
                held: held.unbind(),
                id: id.into(),
            }),
        ),
    })
}

/// One lease of an engine. Settling it is a request to a server, which may take its time; a mask
/// keeps a kill from tearing the request apart. It needs no release: the queue extends the lease as
/// long as `held` lives and has not failed to settle it.
struct HeldDelivery {
    held: Py<PyAny>,
    id: Arc<str>,
}

impl LeaseHandle for HeldDelivery {
    fn id(&self, _: LeaseKey) -> ItemId {
        ItemId::Name(self.id.clone())
    }

    fn begun(&self, py: Python<'_>, task: &Arc<Task>) -> PyResult<()> {
        let running = RunningHandler { task: task.clone() };
        self.held
            .call_method1(py, held_delivery::begun(py), (running,))
            .map(drop)
    }

    fn ack(&self, py: Python<'_>, _: LeaseKey) -> PyResult<()> {
        let _mask = Mask::open(LONGEST_COMMIT);
        self.held.call_method0(py, held_delivery::ack(py)).map(drop)
    }

    fn nack(
        &self,
        py: Python<'_>,
        _: LeaseKey,
        nack: Nack,
        failure: Py<PyAny>,
    ) -> PyResult<NackOutcome> {
        let (pause, failure) = match nack {
            Nack::Failed => (None, Some(failure)),
            Nack::After(pause) => (Some(pause), Some(failure)),
            Nack::AtOnce => (Some(Duration::ZERO), Some(failure)),
            Nack::Snooze(pause) => (Some(pause), None),
            Nack::Discard => {
                let _mask = Mask::open(LONGEST_COMMIT);
                self.held
                    .call_method1(py, held_delivery::discard(py), (failure,))?;
                return Ok(NackOutcome::Dead);
            }
        };
        let pause = pause.map(|pause| pause.as_secs_f64());
        let _mask = Mask::open(LONGEST_COMMIT);
        let requeued = self
            .held
            .call_method1(py, held_delivery::nack(py), (pause, failure))?;
        Ok(if requeued.is_truthy(py)? {
            NackOutcome::Requeued
        } else {
            NackOutcome::Dead
        })
    }

    fn extend(&self, py: Python<'_>, _: LeaseKey, progress: Option<Py<PyAny>>) -> PyResult<Time> {
        let _mask = Mask::open(LONGEST_COMMIT);
        self.held
            .call_method1(py, held_delivery::heartbeat(py), (progress,))?;
        Ok(Time::NEVER)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.held)
    }

    fn report(&self, py: Python<'_>, _: LeaseKey, result: ItemResult) {
        match self.held.call_method0(py, held_delivery::take_promise(py)) {
            Ok(promise) if promise.is_none(py) => {}
            Ok(promise) => result.settle(py, &promise),
            Err(raised) => raised.write_unraisable(py, Some(self.held.bind(py))),
        }
    }
}

/// The handler's task, as the engine's side sees it: it can cancel it when the lease is lost.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct RunningHandler {
    task: Arc<Task>,
}

#[pymethods]
impl RunningHandler {
    /// Cancel the handler's token. False: it was cancelled before.
    #[pyo3(signature = (reason = None))]
    fn cancel(&self, py: Python<'_>, reason: Option<&str>) -> bool {
        token::cancel_node(py, self.task.source().node(), reason, None)
    }
}
