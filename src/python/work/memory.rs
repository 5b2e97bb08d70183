//! `LeaseQueue`: items that are kept in memory, as objects.
//!
//! All operations are made attached; only sleeping is done detached. The fast paths of `put()`,
//! `lease()` and `ack()` are a checkpoint and one critical section of the core's queue.

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyType};

use super::content::Content;
use super::items::{Wanted, listed};
use super::lease::LeaseSlot;
use super::options::{self, PutArguments};
use super::port::PoolQueue;
use super::promises::{ItemResult, Promises};
use super::source::{Delivery, Hold, LeaseHandle, LeaseKey, LeaseSource};
use super::{Dead, Lease, RetryPolicy, counts, earliest, not_dead};
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::binding::host::thread_ident;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::cause::CancelCause;
use crate::python::error;
use crate::python::op::Visited;
use crate::python::ports::promise as promise_port;
use crate::python::wait::{checkpoint, perform};
use crate::work::{self, Nack, NackOutcome, Stored};
use crate::{Cause, fork, scope};

/// Used attached, so that its notes and items can be cloned under its lock.
type Queue = work::LeaseQueue<Kept, Note>;

/// An item, and the context (contextvars) of its submit(), if it was submitted.
#[derive(Clone)]
struct Kept {
    item: Object,
    context: Option<Object>,
}

/// An object; the queue keeps one reference, and each lease gets another.
struct Object(Py<PyAny>);

impl Clone for Object {
    /// Under the queue's lock: counting a reference runs no code.
    #[inline]
    fn clone(&self) -> Self {
        #[allow(clippy::disallowed_methods)] // the thread is attached: see `Queue`
        Python::attach(|py| Self(self.0.clone_ref(py)))
    }
}

/// A failure, or progress, as the queue stores it.
#[derive(Clone)]
enum Note {
    /// An exception, a `CancelCause`, or an object that is progress.
    Said(Object),
    /// The queue's own note, which is made without the interpreter.
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

    /// The object; progress always is one.
    fn into_said(self) -> Option<Py<PyAny>> {
        match self {
            Note::Said(object) => Some(object.0),
            Note::Noted(_) => None,
        }
    }
}

/// Items that are leased to workers, in memory. Each is in one state at any time: ready, leased,
/// delayed, done or dead. An item that its worker does not acknowledge is leased again.
///
/// `retry` says how failed work is tried again. While `maxsize` items are ready, leased or delayed,
/// put() waits; 0 means any number. With a `lease_timeout`, in seconds, a lease that is not
/// extended with its heartbeat() for that time is lost, and the item leased again; without, a lease
/// lasts until it is settled, or its Lease object is dropped, which requeues the item.
#[pyclass(frozen, weakref, module = "desist")]
pub(in crate::python) struct LeaseQueue {
    memory: Arc<Memory>,
}

impl LeaseQueue {
    /// The operations of a pool, for an object that also has this one.
    pub(super) fn pool_queue(&self) -> Arc<dyn PoolQueue> {
        self.memory.clone()
    }
}

#[pymethods]
impl LeaseQueue {
    #[new]
    #[pyo3(signature = (*, retry = None, maxsize = 0, lease_timeout = None) -> "LeaseQueue[_T]")]
    fn new(
        retry: Option<Py<RetryPolicy>>,
        maxsize: isize,
        lease_timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Self> {
        let options = options::of_queue(retry.as_ref(), maxsize, lease_timeout)?;
        Ok(Self {
            memory: Arc::new(Memory {
                queue: Queue::new(options),
                retry,
                promises: Promises::default(),
                generation: fork::generation(),
            }),
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
    /// the oldest. `delay`: seconds before it is leased. `expires`: seconds after which the item
    /// expires; then it is dead, and a handler at work on it is cancelled. `time_limit`: seconds that
    /// each attempt may take, instead of the time_limit of the pool that leases it (see WorkerPool).
    ///
    /// Blocks: where there is a maxsize, until there is room, for `timeout` seconds at most.
    /// On cancel: a checkpoint; Cancelled means that nothing was added.
    /// On kill: Killed means that nothing was added.
    ///
    /// Raises:
    ///     Full: no room in time.
    #[pyo3(signature = (item: "_T", /, *, key = None, priority = 0, delay = None, expires = None, time_limit = None, timeout = None))]
    #[allow(clippy::too_many_arguments)] // the options of an item
    fn put(
        &self,
        py: Python<'_>,
        item: Py<PyAny>,
        key: Option<&str>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        time_limit: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let arguments = options::of_put(key, priority, delay, expires, time_limit, timeout)?;
        let item = Kept {
            item: Object(item),
            context: None,
        };
        self.memory.put(py, item, &arguments)
    }

    /// Lease the next item. The caller must acknowledge or requeue it; a WorkerPool does that for its
    /// handlers.
    ///
    /// Blocks: until there is an item, for `timeout` seconds at most.
    /// On cancel: a checkpoint; Cancelled means that nothing was leased.
    /// On timeout: returns None.
    /// On kill: Killed means that nothing was leased.
    #[pyo3(signature = (timeout = None) -> "Lease[_T] | None")]
    fn lease<'py>(
        slf: &Bound<'py, Self>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Option<Bound<'py, Lease>>> {
        let (py, memory) = (slf.py(), &slf.get().memory);
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        memory.check_process()?;
        let slot = LeaseSlot::new(py)?;
        let delivery = memory.lease(py, until)?;
        let owner = Some(slf.clone().into_any().unbind());
        Ok(delivery.map(|delivery| slot.fill(delivery, owner)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.memory.retry)?;
        let mut visited = self.memory.promises.traverse(&visit);
        self.memory.queue.try_for_each(|stored| {
            let (object, context) = match stored {
                Stored::Item(kept) => (&kept.item.0, kept.context.as_ref()),
                Stored::Note(Note::Said(object)) => (&object.0, None),
                Stored::Note(Note::Noted(_)) => return,
            };
            for object in [Some(object), context.map(|context| &context.0)] {
                if visited.is_ok() {
                    visited = visit.call(object);
                }
            }
        });
        visited
    }

    fn __clear__(&self) {
        drop(self.memory.queue.clear());
        self.memory.promises.clear();
    }

    /// How many items are in each state, at one instant.
    #[pyo3(signature = () -> "dict[Literal['ready', 'leased', 'delayed', 'done', 'dead'], int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts(py, self.memory.queue.counts())
    }

    /// The dead items: id, item, and all failures (exceptions and CancelCauses).
    #[pyo3(signature = () -> "list[tuple[int, _T, list[BaseException | CancelCause]]]")]
    fn dead(&self, py: Python<'_>) -> PyResult<Vec<Dead<Py<PyAny>>>> {
        let show = |(id, item, failures): work::Dead<Kept, Note>| {
            let failures = failures.iter().map(|failure| failure.to_object(py));
            Ok((
                id,
                item.item.0.clone_ref(py),
                failures.collect::<PyResult<_>>()?,
            ))
        };
        self.memory.queue.dead().into_iter().map(show).collect()
    }

    /// The items that are not done: their states, attempts, ages and holders, but not the items
    /// themselves. Leased ones come first, then ready, delayed and dead ones; within a state in the
    /// order in which they were put. `state` lists those of one state only, `limit` so many at most.
    /// Looks at all items while no other thread uses the queue.
    ///
    /// Raises:
    ///     ValueError: there is no such state, or a negative limit.
    #[pyo3(signature = (
        *,
        state: "Literal['leased', 'ready', 'delayed', 'dead'] | None" = None,
        limit = None,
    ) -> "list[ItemInfo]")]
    fn items<'py>(
        &self,
        py: Python<'py>,
        state: Option<&str>,
        limit: Option<isize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let wanted = Wanted::of(py, state, limit)?;
        let pid = std::process::id();
        let items = self.memory.queue.items(wanted.state, wanted.limit);
        listed(py, items, |thread| (pid, thread))
    }

    /// Give a dead item all its attempts again.
    ///
    /// Raises:
    ///     ValueError: it is not dead.
    #[pyo3(signature = (item_id: "int", /))]
    fn retry(&self, item_id: u64) -> PyResult<()> {
        self.memory.check_process()?;
        if self.memory.queue.retry(item_id) {
            return Ok(());
        }
        Err(not_dead(item_id))
    }

    fn __repr__(&self) -> String {
        let counts = self.memory.queue.counts();
        format!(
            "<LeaseQueue ready={} leased={} delayed={} done={} dead={}>",
            counts.ready, counts.leased, counts.delayed, counts.done, counts.dead
        )
    }
}

/// The queue, shared by the `LeaseQueue` object, its leases and the workers' loops. These have the object
/// as well, see `source`. Only attached threads lock it.
struct Memory {
    queue: Queue,
    /// Shown to the collector by the queue's object. `None`: the default.
    retry: Option<Py<RetryPolicy>>,
    promises: Promises,
    /// The fork generation of the process that has made it.
    generation: u32,
}

impl Memory {
    /// In a forked child the items are the parent's to work on.
    fn check_process(&self) -> PyResult<()> {
        if self.generation == fork::generation() {
            return Ok(());
        }
        let message =
            "this queue and its items belong to the parent process; make a new queue after a fork";
        Err(PyRuntimeError::new_err(message))
    }

    #[inline]
    fn put(&self, py: Python<'_>, item: Kept, arguments: &PutArguments) -> PyResult<u64> {
        self.check_process()?;
        checkpoint(py)?;
        match self.queue.try_put(item, &arguments.options) {
            Ok(id) => Ok(id),
            Err(item) => self.wait_and_put(py, item, arguments),
        }
    }

    #[cold]
    fn wait_and_put(&self, py: Python<'_>, item: Kept, arguments: &PutArguments) -> PyResult<u64> {
        let mut putting = self.queue.put_op(item, &arguments.options);
        let put = perform(py, &mut putting, arguments.until);
        put.map_err(|stop| error::from_stop(py, stop))?
            .ok_or_else(|| error::ordinary(py, "Full", &""))
    }

    #[inline]
    fn deliver(self: &Arc<Self>, lease: work::Lease<Kept, Note>) -> Delivery {
        let (progress, deadline, ends, item_key, time_limit) = match lease.details {
            None => (None, Time::NEVER, Time::NEVER, None, None),
            Some(details) => {
                let progress = details.progress.and_then(Note::into_said);
                let progress = progress.map(Content::Object);
                let deadline = details.deadline.unwrap_or(Time::NEVER);
                let ends = earliest(deadline, details.until);
                (progress, deadline, ends, details.key, details.time_limit)
            }
        };
        let key = LeaseKey {
            number: lease.id,
            epoch: lease.epoch,
            deadline,
        };
        Delivery {
            hold: Hold::new(key, self.clone()),
            attempt: lease.attempt,
            item: Content::Object(lease.item.item.0),
            context: lease.item.context.map(|context| context.0),
            progress,
            item_key,
            ends,
            time_limit,
        }
    }

    #[cold]
    fn wait_and_lease(self: &Arc<Self>, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        let lease = perform(py, &mut self.queue.lease_op(thread_ident()), until);
        let lease = lease.map_err(|stop| error::from_stop(py, stop))?.flatten();
        Ok(lease.map(|lease| self.deliver(lease)))
    }
}

impl LeaseSource for Arc<Memory> {
    #[inline]
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        checkpoint(py)?;
        match self.queue.try_lease(thread_ident()) {
            Some(lease) => {
                scope::defer_pending_kill(); // a kill raised behind the call would lose the lease
                Ok(Some(self.deliver(lease)))
            }
            None => self.wait_and_lease(py, until),
        }
    }
}

impl PoolQueue for Memory {
    fn source(self: Arc<Self>) -> Arc<dyn LeaseSource> {
        Arc::new(self)
    }

    fn retry(&self) -> Option<&Py<RetryPolicy>> {
        self.retry.as_ref()
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn submit(
        &self,
        item: &Bound<'_, PyAny>,
        promise: &Bound<'_, PyAny>,
        arguments: PutArguments,
    ) -> PyResult<u64> {
        let context = promise.getattr(promise_port::context(item.py()))?;
        let kept = Kept {
            item: Object(item.clone().unbind()),
            context: Some(Object(context.unbind())),
        };
        let put = || self.put(item.py(), kept, &arguments);
        self.promises.register(promise, put)
    }

    fn cancel(&self, py: Python<'_>, item_id: u64, failure: Py<PyAny>) -> PyResult<Option<bool>> {
        self.check_process()?;
        let note = Note::said(failure.clone_ref(py));
        let dead = self.queue.cancel(item_id, note);
        // An item that had ended and is still there is dead: it may have expired just now.
        if dead == Some(true) || dead.is_none() && self.queue.item(item_id).is_some() {
            self.promises.fail(py, item_id, failure);
        }
        Ok(dead)
    }

    fn failures_of(&self, py: Python<'_>, item_id: u64) -> PyResult<Option<Vec<Py<PyAny>>>> {
        let mut dead = self.queue.dead().into_iter();
        let found = dead.find(|(id, ..)| *id == item_id);
        let failures = found.map(|(_, _, failures)| failures);
        failures
            .map(|failures| failures.iter().map(|note| note.to_object(py)).collect())
            .transpose()
    }

    fn drain(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Result<bool, PyErr>> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        self.check_process()?;
        let drained = perform(py, &mut self.queue.drain_op(), until);
        let drained = drained.map_err(|stop| error::from_stop(py, stop))?;
        Ok(Ok(drained.is_some()))
    }

    /// No worker is left that could lease the items: all of them are dead now.
    fn abandon(&self, py: Python<'_>, failure: &Py<PyAny>) -> PyResult<()> {
        self.check_process()?;
        let items = self
            .queue
            .dead_letter_all(&Note::said(failure.clone_ref(py)));
        drop(items);
        self.promises.fail_all(py, failure);
        Ok(())
    }
}

impl LeaseHandle for Memory {
    fn id(&self, lease: LeaseKey) -> ItemId {
        lease.number.into()
    }

    #[inline]
    fn is_cancelled(&self, _py: Python<'_>, lease: LeaseKey) -> PyResult<bool> {
        Ok(self.queue.is_cancelled(lease.number))
    }

    #[inline]
    fn ack(&self, py: Python<'_>, lease: LeaseKey) -> PyResult<()> {
        self.check_process()?;
        let acked = self.queue.ack(lease.number, lease.epoch);
        acked.map_err(|fenced| error::fenced(py, &fenced))
    }

    fn nack(
        &self,
        py: Python<'_>,
        lease: LeaseKey,
        nack: Nack,
        failure: Py<PyAny>,
    ) -> PyResult<NackOutcome> {
        self.check_process()?;
        let failure = Some(Note::said(failure));
        self.queue
            .nack(lease.number, lease.epoch, nack, failure)
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    fn release(&self, lease: LeaseKey) {
        if self.check_process().is_ok() {
            self.queue.release(lease.number, lease.epoch);
        }
    }

    fn extend(
        &self,
        py: Python<'_>,
        lease: LeaseKey,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Time> {
        self.check_process()?;
        let progress = progress.map(Note::said);
        let until = self.queue.extend(lease.number, lease.epoch, progress);
        let until = until.map_err(|fenced| error::fenced(py, &fenced))?;
        Ok(earliest(lease.deadline, until))
    }

    fn report(&self, py: Python<'_>, lease: LeaseKey, result: ItemResult) {
        self.promises.settle(py, lease.number, &result);
    }
}
