//! `LeaseQueue`: items that are kept in memory, as they are.

use std::ffi::CStr;
use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyInt, PyType};

use super::engine::{Delivery, Engine, Grip, Hold, Told};
use super::object::Object;
use super::options::{self, Terms};
use super::promises::Promises;
use super::{Dead, Lease, RetryPolicy, counts, earliest, failure, not_dead};
use crate::clock::Time;
use crate::python::attached::Attached;
use crate::python::cause::CancelCause;
use crate::python::seconds::Seconds;
use crate::python::shortcut::{self, Shortcut, Usual};
use crate::python::wait::{checkpoint, perform};
use crate::python::{error, seconds};
use crate::work::{self, Back, PutOptions, Returned};
use crate::{Cause, CauseKind, fork, scope};

/// Whoever is here is attached to the interpreter; only the sleeping is done without.
type Queue = work::LeaseQueue<Object, Note, Attached>;

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
        Note::Said(Object::new(object))
    }

    fn to_object(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Note::Said(object) => Ok(object.to_object(py)),
            Note::Noted(cause) => Ok(Py::new(py, CancelCause::from(cause.clone()))?.into_any()),
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
    engine: Arc<Memory>,
    generation: u32,
}

impl LeaseQueue {
    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(self.engine.clone())
    }

    /// In a forked child the items are the parent's to work on.
    fn check_process(&self) -> PyResult<&Memory> {
        if self.generation == fork::generation() {
            Ok(&self.engine)
        } else {
            let message = "this queue and its items belong to the parent process; make a new queue after a fork";
            Err(PyRuntimeError::new_err(message))
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
            engine: Arc::new(Memory {
                queue: Queue::by(options),
                promises: Promises::default(),
            }),
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
        self.check_process()?.put(py, item, &terms)
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
        let memory = self.check_process()?;
        let promises = &memory.promises;
        promises.keep(future, || memory.put(py, item, &terms))
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
        counts(py, self.engine.queue.counts())
    }

    /// The dead items: id, item, and all that went wrong (exceptions and CancelCauses).
    #[pyo3(signature = () -> "list[tuple[int, _T, list[BaseException | CancelCause]]]")]
    fn dead(&self, py: Python<'_>) -> PyResult<Vec<Dead<Py<PyAny>>>> {
        let show = |(id, item, failures): work::Dead<Object, Note>| {
            let failures = failures.iter().map(|failure| failure.to_object(py));
            Ok((id, item.to_object(py), failures.collect::<PyResult<_>>()?))
        };
        self.engine.queue.dead().into_iter().map(show).collect()
    }

    /// Give a dead item all its attempts again. ValueError if it is not dead.
    #[pyo3(signature = (item_id: "int", /))]
    fn revive(&self, item_id: u64) -> PyResult<()> {
        if self.check_process()?.queue.revive(item_id) {
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
        let memory = self.check_process()?;
        let failure = failure(py, CauseKind::Explicit, reason)?;
        let note = Note::said(failure.clone_ref(py));
        let dead = memory.queue.cancel(item_id, note);
        // What is there though it had ended is dead: its time may have passed just now.
        if dead == Some(true) || dead.is_none() && memory.queue.item(item_id).is_some() {
            memory.promises.tell_off(py, item_id, failure);
        }
        Ok(dead)
    }

    /// Nobody will work on what is here: it is dead now. For a WorkerPool whose workers have ended.
    #[pyo3(signature = (reason = None))]
    fn _give_up(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        let memory = self.check_process()?;
        let failure = failure(py, CauseKind::Shutdown, reason)?;
        let items = memory.queue.give_up(&Note::said(failure.clone_ref(py)));
        drop(items);
        memory.promises.tell_off_all(py, &failure);
        Ok(())
    }

    /// Wait until nothing is ready, leased or delayed (True), or the seconds have passed.
    #[pyo3(signature = (timeout = None))]
    fn _drain(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        let queue = &self.check_process()?.queue;
        let drained = perform(py, &mut queue.draining(), until);
        Ok(drained
            .map_err(|stop| error::from_stop(py, stop))?
            .is_some())
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
    promises: Promises,
}

impl Memory {
    fn put(&self, py: Python<'_>, item: Py<PyAny>, terms: &Terms) -> PyResult<u64> {
        checkpoint(py)?;
        match self.queue.try_put(Object::new(item), &terms.options) {
            Ok(id) => Ok(id),
            Err(item) => {
                let mut putting = self.queue.putting(item, &terms.options);
                let put = perform(py, &mut putting, terms.until);
                put.map_err(|stop| error::from_stop(py, stop))?
                    .ok_or_else(|| error::ordinary(py, "Full", &""))
            }
        }
    }

    fn deliver(
        self: &Arc<Self>,
        py: Python<'_>,
        lease: &work::Lease<Object, Note>,
    ) -> PyResult<Delivery> {
        let progress = lease.progress.as_ref().map(|note| note.to_object(py));
        Ok(Delivery {
            id: lease.id.into(),
            epoch: lease.epoch,
            attempt: lease.attempt,
            item: lease.item.to_object(py),
            progress: progress.transpose()?,
            ends: lease.ends(),
            hold: Grip::InMemory(Held {
                memory: self.clone(),
                id: lease.id,
                epoch: lease.epoch,
                deadline: lease.deadline,
            }),
        })
    }
}

impl Engine for Arc<Memory> {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        let lease = perform(py, &mut self.queue.leasing(), until);
        let lease = lease.map_err(|stop| error::from_stop(py, stop))?.flatten();
        lease.map(|lease| self.deliver(py, &lease)).transpose()
    }
}

/// A leased item of a LeaseQueue.
pub(super) struct Held {
    memory: Arc<Memory>,
    id: u64,
    epoch: u64,
    deadline: Option<Time>,
}

impl Held {
    /// The work is done. False: the lease is over.
    pub(super) fn try_ack(&self) -> bool {
        self.memory.queue.ack(self.id, self.epoch).is_ok()
    }
}

impl Hold for Held {
    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        let acked = self.memory.queue.ack(self.id, self.epoch);
        acked.map_err(|fenced| error::fenced(py, &fenced))
    }

    fn give_back(&self, py: Python<'_>, back: Back, failure: Py<PyAny>) -> PyResult<Returned> {
        let failure = Some(Note::said(failure));
        let queue = &self.memory.queue;
        queue
            .give_back(self.id, self.epoch, back, failure)
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    fn extend(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Time> {
        let progress = progress.map(Note::said);
        let until = self.memory.queue.extend(self.id, self.epoch, progress);
        let until = until.map_err(|fenced| error::fenced(py, &fenced))?;
        Ok(earliest(self.deadline, until))
    }

    fn tell(&self, py: Python<'_>, told: Told) {
        self.memory.promises.tell(py, self.id, &told);
    }
}

// ---------------------------------------------------------------------- shortcuts

/// Most items are put without a word, most leases find an item, and nobody wants the caller to
/// stop.
pub(super) fn shorten(py: Python<'_>) -> PyResult<()> {
    shortcut::install::<Put>(py)?;
    shortcut::install::<Take>(py)
}

/// `put(item)`.
struct Put;

impl Shortcut for Put {
    type Class = LeaseQueue;
    const NAME: &'static CStr = c"put";
    const TAKES: usize = 1;

    fn usual() -> &'static Usual {
        static USUAL: Usual = Usual::new();
        &USUAL
    }

    fn attempt<'py>(
        py: Python<'py>,
        this: &LeaseQueue,
        given: &[Borrowed<'_, 'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>> {
        if !scope::at_ease() || this.generation != fork::generation() {
            return None;
        }
        let item = Object::new(Bound::clone(given.first()?).unbind());
        let id = this.engine.queue.try_put(item, &PutOptions::default());
        Some(PyInt::new(py, id.ok()?).into_any())
    }
}

/// `lease()`.
struct Take;

impl Shortcut for Take {
    type Class = LeaseQueue;
    const NAME: &'static CStr = c"lease";
    const TAKES: usize = 0;

    fn usual() -> &'static Usual {
        static USUAL: Usual = Usual::new();
        &USUAL
    }

    fn attempt<'py>(
        py: Python<'py>,
        this: &LeaseQueue,
        _: &[Borrowed<'_, 'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>> {
        if !scope::at_ease() || this.generation != fork::generation() {
            return None;
        }
        let lease = this.engine.queue.try_lease()?;
        let delivery = this.engine.deliver(py, &lease);
        if let Ok(lease) = delivery.and_then(|delivery| Bound::new(py, Lease::new(delivery))) {
            return Some(lease.into_any());
        }
        // There is no memory for it. What the usual function makes of that is raised.
        let queue = &this.engine.queue;
        let _ = queue.give_back(lease.id, lease.epoch, Back::AtOnce, None);
        None
    }
}
