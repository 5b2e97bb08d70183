//! `LeaseQueue`: items that are kept in memory, as they are.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyType};

use super::engine::{Delivery, Engine, Hold, Told};
use super::lease::Blank;
use super::options::{self, Terms};
use super::promises::Promises;
use super::{Dead, Lease, RetryPolicy, counts, earliest, failure, not_dead};
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::cause::CancelCause;
use crate::python::error;
use crate::python::wait::{checkpoint, perform};
use crate::work::{self, Nack, NackOutcome};
use crate::{Cause, CauseKind, fork, scope};

/// All calls are made attached; only the sleeping is done detached.
type Queue = work::LeaseQueue<Object, Note>;

/// An object that the queue keeps, and gives another reference of to the code that leases it.
struct Object(Py<PyAny>);

impl Clone for Object {
    /// Counting a reference runs no code, so it may be done under the queue's lock.
    #[inline]
    fn clone(&self) -> Self {
        #[allow(clippy::disallowed_methods)] // the thread is attached: see `Queue`
        Python::attach(|py| Self(self.0.clone_ref(py)))
    }
}

/// What the queue keeps of a failure, or of progress.
#[derive(Clone)]
enum Note {
    /// An exception, a CancelCause, or whatever progress is.
    Said(Object),
    /// By the queue itself, which makes no objects.
    Noted(Cause),
}

impl From<Cause> for Note {
    fn from(cause: Cause) -> Self {
        Note::Noted(cause)
    }
}

impl Note {
    fn said(object: Py<PyAny>) -> Self {
        Note::Said(Object(object))
    }

    fn to_object(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Note::Said(object) => Ok(object.0.clone_ref(py)),
            Note::Noted(cause) => Ok(Py::new(py, CancelCause::from(cause.clone()))?.into_any()),
        }
    }

    /// What somebody has said: all that progress can be.
    fn into_said(self) -> Option<Py<PyAny>> {
        match self {
            Note::Said(object) => Some(object.0),
            Note::Noted(_) => None,
        }
    }
}

/// Items that are leased to workers, in memory. Each is in one state at any time: ready, leased,
/// delayed, done or dead. What a worker does not acknowledge is leased again.
///
/// `retry` says how failed work is tried again. While `maxsize` items are ready, leased or delayed,
/// put() waits; 0 means any number. With a `lease_timeout`, in seconds, a lease that is not
/// extended with its heartbeat() for so long is lost, and the item leased anew; without, a lease
/// lasts until it is settled.
#[pyclass(frozen, weakref, module = "desist")]
pub(in crate::python) struct LeaseQueue {
    queue: Queue,
    promises: Promises,
    generation: u32,
}

impl LeaseQueue {
    fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    /// In a forked child the items are the parent's to work on.
    fn check_process(&self) -> PyResult<()> {
        if self.is_of_this_process() {
            Ok(())
        } else {
            let message = "this queue and its items belong to the parent process; make a new queue after a fork";
            Err(PyRuntimeError::new_err(message))
        }
    }

    fn put_by(&self, py: Python<'_>, item: Py<PyAny>, terms: &Terms) -> PyResult<u64> {
        checkpoint(py)?;
        match self.queue.try_put(Object(item), &terms.options) {
            Ok(id) => Ok(id),
            Err(item) => {
                let mut putting = self.queue.putting(item, &terms.options);
                let put = perform(py, &mut putting, terms.until);
                put.map_err(|stop| error::from_stop(py, stop))?
                    .ok_or_else(|| error::ordinary(py, "Full", &""))
            }
        }
    }
}

#[pymethods]
impl LeaseQueue {
    #[new]
    #[pyo3(signature = (*, retry = None, maxsize = 0, lease_timeout = None) -> "LeaseQueue[_T]")]
    fn new(
        retry: Option<&RetryPolicy>,
        maxsize: isize,
        lease_timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Self> {
        let options = options::of_queue(retry, maxsize, lease_timeout)?;
        Ok(Self {
            queue: Queue::new(options),
            promises: Promises::default(),
            generation: fork::generation(),
        })
    }

    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// Add an item; returns its id.
    ///
    /// `key`: as long as an item with that key is there, dead or alive, its id is returned and
    /// nothing is added. `priority`: of the ready items one with the least is leased first, then
    /// the oldest. `delay`: seconds before it is leased. `expires`: seconds after which nobody wants
    /// the work any more; then it is dead, and code at work on it is asked to stop.
    ///
    /// Where there is a maxsize it waits for room, at most for `timeout` seconds (then Full). A
    /// checkpoint: Cancelled and Killed mean that nothing was added.
    #[pyo3(signature = (item: "_T", /, *, key = None, priority = 0, delay = None, expires = None, timeout = None))]
    #[allow(clippy::too_many_arguments)] // what can be said of an item
    fn put(
        &self,
        py: Python<'_>,
        item: Py<PyAny>,
        key: Option<&str>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let terms = options::of_put(key, priority, delay, expires, timeout)?;
        self.check_process()?;
        self.put_by(py, item, &terms)
    }

    /// As put(); `future` is told how the work ended. For WorkerPool.
    #[pyo3(signature = (item: "_T", future: "object", /, *, key = None, priority = 0, delay = None, expires = None, timeout = None))]
    #[allow(clippy::too_many_arguments)] // what can be said of an item
    fn _submit(
        &self,
        py: Python<'_>,
        item: Py<PyAny>,
        future: &Bound<'_, PyAny>,
        key: Option<&str>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let terms = options::of_put(key, priority, delay, expires, timeout)?;
        self.check_process()?;
        self.promises.keep(future, || self.put_by(py, item, &terms))
    }

    /// Lease the next item; waits for one, at most for `timeout` seconds (then None).
    ///
    /// A checkpoint: Cancelled and Killed mean that nothing was leased. A lease must be
    /// acknowledged or given back by whoever took it; a WorkerPool does that for its handlers.
    #[pyo3(signature = (timeout = None) -> "Lease[_T] | None")]
    fn lease<'py>(
        slf: &Bound<'py, Self>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Option<Bound<'py, Lease>>> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        slf.get().check_process()?;
        let blank = Blank::new(slf.py())?;
        let delivery = slf.as_unbound().lease(slf.py(), until)?;
        Ok(delivery.map(|delivery| blank.of(delivery)))
    }

    /// How many items are in each state, at one instant.
    #[pyo3(signature = () -> "dict[Literal['ready', 'leased', 'delayed', 'done', 'dead'], int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts(py, self.queue.counts())
    }

    /// The dead items: id, item, and all that went wrong (exceptions and CancelCauses).
    #[pyo3(signature = () -> "list[tuple[int, _T, list[BaseException | CancelCause]]]")]
    fn dead(&self, py: Python<'_>) -> PyResult<Vec<Dead<Py<PyAny>>>> {
        let show = |(id, item, failures): work::Dead<Object, Note>| {
            let failures = failures.iter().map(|failure| failure.to_object(py));
            Ok((id, item.0.clone_ref(py), failures.collect::<PyResult<_>>()?))
        };
        self.queue.dead().into_iter().map(show).collect()
    }

    /// Give a dead item all its attempts again. ValueError if it is not dead.
    #[pyo3(signature = (item_id: "int", /))]
    fn retry(&self, item_id: u64) -> PyResult<()> {
        self.check_process()?;
        if self.queue.retry(item_id) {
            return Ok(());
        }
        Err(not_dead(item_id))
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
        self.check_process()?;
        let failure = failure(py, CauseKind::Explicit, reason)?;
        let note = Note::said(failure.clone_ref(py));
        let dead = self.queue.cancel(item_id, note);
        // What is there though it had ended is dead: its time may have passed just now.
        if dead == Some(true) || dead.is_none() && self.queue.item(item_id).is_some() {
            self.promises.tell_off(py, item_id, failure);
        }
        Ok(dead)
    }

    /// Nobody will work on what is here: it is dead now. For a WorkerPool whose workers have ended.
    #[pyo3(signature = (reason = None))]
    fn _give_up(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        self.check_process()?;
        let failure = failure(py, CauseKind::Shutdown, reason)?;
        let items = self
            .queue
            .dead_letter_all(&Note::said(failure.clone_ref(py)));
        drop(items);
        self.promises.tell_off_all(py, &failure);
        Ok(())
    }

    /// Wait until nothing is ready, leased or delayed (True), or the seconds have passed.
    #[pyo3(signature = (timeout = None))]
    fn _drain(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        self.check_process()?;
        let drained = perform(py, &mut self.queue.draining(), until);
        Ok(drained
            .map_err(|stop| error::from_stop(py, stop))?
            .is_some())
    }

    fn __repr__(&self) -> String {
        let counts = self.queue.counts();
        format!(
            "<LeaseQueue ready={} leased={} delayed={} done={} dead={}>",
            counts.ready, counts.leased, counts.delayed, counts.done, counts.dead
        )
    }
}

#[inline]
fn deliver(queue: &Bound<'_, LeaseQueue>, lease: work::Lease<Object, Note>) -> Delivery {
    let (progress, deadline, ends) = match lease.details {
        None => (None, Time::NEVER, Time::NEVER),
        Some(details) => {
            let progress = details.progress.and_then(Note::into_said);
            let deadline = details.deadline.unwrap_or(Time::NEVER);
            (progress, deadline, earliest(deadline, details.until))
        }
    };
    Delivery {
        epoch: lease.epoch,
        attempt: lease.attempt,
        item: lease.item.0,
        progress,
        ends,
        hold: Box::new(Held {
            queue: queue.clone().unbind(),
            id: lease.id,
            epoch: lease.epoch,
            deadline,
        }),
    }
}

impl Engine for Py<LeaseQueue> {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        checkpoint(py)?;
        let queue = &self.get().queue;
        if let Some(lease) = queue.try_lease() {
            scope::hold_off_kill(); // raised behind the call, it would take the lease along
            return Ok(Some(deliver(self.bind(py), lease)));
        }
        let lease = perform(py, &mut queue.leasing(), until);
        let lease = lease.map_err(|stop| error::from_stop(py, stop))?.flatten();
        Ok(lease.map(|lease| deliver(self.bind(py), lease)))
    }
}

/// A leased item of a LeaseQueue.
pub(super) struct Held {
    queue: Py<LeaseQueue>,
    id: u64,
    epoch: u64,
    deadline: Time,
}

impl Held {
    fn core(&self) -> &Queue {
        &self.queue.get().queue
    }
}

impl Hold for Held {
    fn id(&self) -> ItemId {
        self.id.into()
    }

    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        let acked = self.core().ack(self.id, self.epoch);
        acked.map_err(|fenced| error::fenced(py, &fenced))
    }

    fn nack(&self, py: Python<'_>, nack: Nack, failure: Py<PyAny>) -> PyResult<NackOutcome> {
        let failure = Some(Note::said(failure));
        self.core()
            .nack(self.id, self.epoch, nack, failure)
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    fn extend(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Time> {
        let progress = progress.map(Note::said);
        let until = self.core().extend(self.id, self.epoch, progress);
        let until = until.map_err(|fenced| error::fenced(py, &fenced))?;
        Ok(earliest(self.deadline, until))
    }

    fn tell(&self, py: Python<'_>, told: Told) {
        self.queue.get().promises.tell(py, self.id, &told);
    }
}
