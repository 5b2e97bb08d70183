//! `Lease`: one delivery of one item, as its handler sees it.
//!
//! A lease settles itself through the [`Hold`] that it has, by the [`LeaseHandle`] of its queue, which
//! refuses a second settlement (`Fenced`). A `Lease` that is dropped releases its item. The handler's
//! settlement is kept in `settled` for the worker's loop, which settles only leases that the handler has
//! not settled, and asks again for a settlement whose answer the handler did not get.
#![allow(unsafe_code)] // a cell that is written once, and hidden from the collector until then

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyGenericAlias, PyType};

use super::content::Sendable;
use super::source::{Delivery, Hold, LeaseHandle, LeaseKey};
use super::{LONGEST_COMMIT, failure};
use crate::CauseKind;
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::binding::lazy_arg::Item;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error;
use crate::python::op::Visited;
use crate::python::task::defer::{Beginning, Masked};
use crate::python::token::CancelToken;
use crate::python::wait;
use crate::scope;
use crate::task::Task;
use crate::token::timer;
use crate::work::{Nack, NackOutcome};

/// One delivery of one item to one worker.
#[pyclass(frozen, module = "desist")]
pub(in crate::python) struct Lease(WrittenOnce<Leased>);

/// A cell that is written before any other code can have the object. With a `OnceLock` in its place,
/// `lease()` and `ack()` take a fifth longer: 131 ns, and 108 with this.
struct WrittenOnce<T>(Cell<Option<T>>);

// SAFETY: it is written while only one thread has the object, and only read from then on.
unsafe impl<T: Send + Sync> Sync for WrittenOnce<T> {}

impl<T> WrittenOnce<T> {
    const fn new() -> Self {
        Self(Cell::new(None))
    }

    /// # Safety
    /// No other code has a reference to the object yet.
    unsafe fn write(&self, contents: T) {
        self.0.set(Some(contents));
    }

    #[inline]
    fn get(&self) -> Option<&T> {
        // SAFETY: nothing writes it any more once the object can be reached.
        unsafe { &*self.0.as_ptr() }.as_ref()
    }
}

/// The contents of a [`Lease`].
pub(in crate::python) struct Leased {
    /// The item, and the handle by which the lease is settled. Never changed.
    delivery: Delivery,
    /// The Python object of the queue, or of the port to it. `None`: the lease's handle has it.
    owner: Option<Py<PyAny>>,
    /// The handler's task, for a lease of a worker.
    task: Option<Arc<Task>>,
    /// Written by the handler, read by the worker's loop when the handler has returned; unused
    /// without a task.
    settled: Mutex<Settled>,
}

/// How a handler has settled its lease itself.
pub(super) enum Settled {
    /// It has not: the loop settles the lease by how the handler's call ends.
    NotYet,
    /// By ack(), with the result that it was given.
    Acked(Option<Py<PyAny>>),
    /// By nack(), discard() or snooze(), with the item's next state and the failure that was stored.
    Nacked(NackOutcome, Py<PyAny>),
    /// It has tried to, and the queue may or may not have done it: the call failed, or was stopped.
    Unanswered(Asked),
}

/// A settlement that a handler has asked for.
pub(super) enum Asked {
    /// ack(), with the result that it was given.
    Ack(Option<Py<PyAny>>),
    /// nack(), discard() or snooze(), with the failure to be stored.
    Nack(Nack, Py<PyAny>),
}

impl Asked {
    /// Ask the queue for it. If the lease is over this changes nothing, and succeeds only if an earlier
    /// call of the same has ended the lease.
    pub(super) fn perform(&self, py: Python<'_>, hold: &Hold) -> PyResult<Settled> {
        Ok(match self {
            Asked::Ack(result) => {
                hold.ack(py)?;
                Settled::Acked(result.as_ref().map(|result| result.clone_ref(py)))
            }
            Asked::Nack(nack, failure) => {
                let returned = hold.nack(py, *nack, failure.clone_ref(py))?;
                Settled::Nacked(returned, failure.clone_ref(py))
            }
        })
    }
}

impl Deref for Lease {
    type Target = Leased;

    #[inline]
    fn deref(&self) -> &Leased {
        match self.0.get() {
            Some(leased) => leased,
            None => unreachable!("a lease is filled before any code has it"),
        }
    }
}

/// A `Lease` object to be filled. It is allocated before the queue is asked, so that a failed
/// allocation cannot lose a leased item. Until then the collector does not track it: `gc.get_objects()`
/// would hand it out.
pub(super) struct LeaseSlot<'py>(Bound<'py, Lease>);

impl<'py> LeaseSlot<'py> {
    #[inline]
    pub(super) fn new(py: Python<'py>) -> PyResult<Self> {
        let lease = Bound::new(py, Lease(WrittenOnce::new()))?;
        // SAFETY: attached; the object was just made, and is tracked.
        unsafe { ffi::PyObject_GC_UnTrack(lease.as_ptr().cast()) };
        Ok(Self(lease))
    }

    /// A lease that its caller settles.
    #[inline]
    pub(super) fn fill(self, delivery: Delivery, owner: Option<Py<PyAny>>) -> Bound<'py, Lease> {
        self.fill_with(delivery, owner, None)
    }

    /// A lease that a worker's handler in `task` works on: the task was made with the lease's end as its
    /// deadline.
    pub(super) fn fill_for(
        self,
        delivery: Delivery,
        owner: Py<PyAny>,
        task: Arc<Task>,
    ) -> Bound<'py, Lease> {
        self.fill_with(delivery, Some(owner), Some(task))
    }

    #[inline]
    fn fill_with(
        self,
        delivery: Delivery,
        owner: Option<Py<PyAny>>,
        task: Option<Arc<Task>>,
    ) -> Bound<'py, Lease> {
        let leased = Leased {
            delivery,
            owner,
            task,
            settled: Mutex::new(Settled::NotYet),
        };
        // SAFETY: only this slot has the object.
        unsafe { self.0.get().0.write(leased) };
        // SAFETY: attached; its fields are valid, and `new` has untracked it.
        unsafe { ffi::PyObject_GC_Track(self.0.as_ptr().cast()) };
        self.0
    }
}

impl Lease {
    fn stop_at(&self, ends: Time) {
        if let Some(task) = self.task.as_ref().filter(|_| !ends.is_never()) {
            timer::set(task.node(), ends);
        }
    }

    /// The lease itself, to be settled or released.
    pub(super) fn hold(&self) -> &Hold {
        &self.delivery.hold
    }

    pub(super) fn handle(&self) -> &dyn LeaseHandle {
        self.hold().handle()
    }

    /// Which of the handle's leases this is.
    pub(super) fn key(&self) -> LeaseKey {
        self.hold().key()
    }

    /// The key with which the item was put.
    pub(super) fn item_key(&self) -> Option<&str> {
        self.delivery.item_key.as_deref()
    }

    fn item_id(&self) -> ItemId {
        self.handle().id(self.key())
    }

    /// Decode the item, before its handler begins. See [`Delivery::decode`].
    #[inline]
    pub(super) fn decode(&self, py: Python<'_>) -> PyResult<()> {
        self.delivery.decode(py)
    }

    /// Which item it is, and which attempt.
    pub(super) fn which(&self) -> (ItemId, u32) {
        (self.item_id(), self.delivery.attempt)
    }

    /// Takes the handler's own settlement, if there is one.
    pub(super) fn settled(&self) -> Settled {
        self.settle(Settled::NotYet)
    }

    /// The handler ends the lease without success.
    fn end(&self, py: Python<'_>, nack: Nack, reason: Option<&str>) -> PyResult<()> {
        let failure = failure(py, CauseKind::Explicit, reason)?;
        self.settle_as(py, Asked::Nack(nack, failure))
    }

    /// Settles the lease as its handler asks for it, and keeps that for the worker's loop.
    fn settle_as(&self, py: Python<'_>, asked: Asked) -> PyResult<()> {
        let (settled, answer) = match asked.perform(py, self.hold()) {
            Ok(settled) => (settled, Ok(())),
            Err(fenced) if error::is(py, &fenced, "Fenced") => return Err(fenced),
            Err(raised) => (Settled::Unanswered(asked), Err(raised)),
        };
        if self.task.is_some() {
            drop(self.settle(settled)); // unlocked: may run any code
        }
        answer
    }

    /// Returns the value before, to be dropped where no lock is held.
    fn settle(&self, settled: Settled) -> Settled {
        std::mem::replace(&mut *self.settled.lock(), settled)
    }
}

#[pymethods]
impl Lease {
    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// The item.
    #[getter]
    fn item(&self, py: Python<'_>) -> PyResult<Item> {
        Ok(Item(self.delivery.item.get(py)?.clone_ref(py)))
    }

    /// The item's id.
    #[getter]
    fn id(&self) -> ItemId {
        self.item_id()
    }

    /// How often the item has been leased, this time included; attempts that were snoozed are left out.
    #[getter]
    fn attempt(&self) -> u32 {
        self.delivery.attempt
    }

    /// The lease's number; a later lease of any item has a greater one.
    #[getter]
    fn epoch(&self) -> u64 {
        self.key().epoch
    }

    /// The handler's token: cancelled when it is to stop.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        match &self.task {
            Some(task) => CancelToken::of_task(py, task),
            None => CancelToken::wrap(py, scope::current_token()),
        }
    }

    /// The progress that an earlier attempt has stored with heartbeat(); None if none has.
    #[getter]
    fn progress(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let progress = self.delivery.progress.as_ref();
        progress
            .map(|progress| Ok(progress.get(py)?.clone_ref(py)))
            .transpose()
    }

    /// Extend the lease: in a queue with a lease_timeout, that time begins again. `progress` is stored for
    /// the next attempt, in case this one does not finish.
    ///
    /// On cancel: a checkpoint.
    ///
    /// Raises:
    ///     Fenced: the lease is over, and another worker may have the item.
    #[pyo3(signature = (progress: "object" = None))]
    fn heartbeat(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<()> {
        wait::checkpoint(py)?;
        let ends = self.handle().extend(py, self.key(), progress)?;
        self.stop_at(ends);
        Ok(())
    }

    /// Acknowledge the item: the work is done.
    ///
    /// Blocks: until the queue's file or server has answered; while the server is away, until the lease has
    /// run out.
    /// On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.
    ///
    /// Raises:
    ///     Fenced: the lease is over: the item was acknowledged or requeued, or the lease was lost.
    ///     ConnectionError: the queue's server is away; the lease may or may not be settled.
    #[pyo3(signature = (result: "object" = None))]
    fn ack(&self, py: Python<'_>, result: Option<Py<PyAny>>) -> PyResult<()> {
        self.settle_as(py, Asked::Ack(result))
    }

    /// Requeue the item, to be leased again after `delay` seconds.
    ///
    /// Blocks: until the queue's file or server has answered; while the server is away, until the lease has
    /// run out.
    /// On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.
    ///
    /// Raises:
    ///     Fenced: the lease is over.
    ///     ConnectionError: the queue's server is away; the lease may or may not be settled.
    #[pyo3(signature = (*, delay = None, reason = None))]
    fn nack(
        &self,
        py: Python<'_>,
        delay: Option<Seconds<'_, '_>>,
        reason: Option<&str>,
    ) -> PyResult<()> {
        let delay = seconds::optional_span(delay, "delay")?.unwrap_or_default();
        self.end(py, Nack::After(delay), reason)
    }

    /// Dead-letter the item: it is kept, with the reason among its failures, and is not leased again,
    /// whatever attempts it has left, unless `retry()` of the queue gives it new ones. An item that
    /// is to leave no trace is acknowledged instead. The item's future raises TaskCancelled.
    ///
    /// Blocks: until the queue's file or server has answered; while the server is away, until the lease has
    /// run out.
    /// On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.
    ///
    /// Raises:
    ///     Fenced: the lease is over.
    ///     ConnectionError: the queue's server is away; the lease may or may not be settled.
    #[pyo3(signature = (reason = None))]
    fn discard(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        self.end(py, Nack::Discard, reason)
    }

    /// Requeue the item, to be leased again after that many seconds. The attempt does not count, and
    /// no failure is stored: the work is to be done later.
    ///
    /// Blocks: until the queue's file or server has answered; while the server is away, until the lease has
    /// run out.
    /// On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.
    ///
    /// Raises:
    ///     Fenced: the lease is over.
    ///     ConnectionError: the queue's server is away; the lease may or may not be settled.
    ///     ValueError: `seconds` is negative.
    #[pyo3(signature = (seconds, /))]
    fn snooze(&self, py: Python<'_>, seconds: Seconds<'_, '_>) -> PyResult<()> {
        let pause = seconds::span(seconds, "seconds")?;
        self.end(py, Nack::Snooze(pause), Some("its handler has snoozed it"))
    }

    /// A block in which kills are deferred, for at most 5 seconds: write the result of the work, then
    /// ack() the lease.
    ///
    /// On kill: before the block, the item is leased again; after it, the item is done; there is no
    /// third outcome.
    fn commit(&self) -> Masked {
        // A checkpoint first: a cancelled handler does not begin to commit.
        Masked::new(LONGEST_COMMIT, Beginning::Checkpoint)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        let Some(leased) = self.0.get() else {
            return Ok(()); // not filled
        };
        visit.call(&leased.owner)?;
        leased.delivery.item.traverse(&visit)?;
        visit.call(&leased.delivery.context)?;
        if let Some(progress) = &leased.delivery.progress {
            progress.traverse(&visit)?;
        }
        leased.delivery.hold.handle().traverse(&visit)?;
        // Locked by attached threads only.
        match leased.settled.try_lock().as_deref() {
            Some(Settled::Acked(result) | Settled::Unanswered(Asked::Ack(result))) => {
                visit.call(result)
            }
            Some(Settled::Nacked(_, failure) | Settled::Unanswered(Asked::Nack(_, failure))) => {
                visit.call(failure)
            }
            Some(Settled::NotYet) | None => Ok(()),
        }
    }

    fn __clear__(&self) {
        if let Some(leased) = self.0.get() {
            let settled = std::mem::replace(&mut *leased.settled.lock(), Settled::NotYet);
            drop(settled); // unlocked: may run any code
        }
    }

    fn __repr__(&self) -> String {
        format!(
            "<Lease of item {} attempt {}>",
            self.item_id(),
            self.delivery.attempt
        )
    }
}

/// The item and the progress of a lease, for a worker process, which decodes them: each as its decoder and
/// its bytes, or as None and the object.
#[pyfunction]
#[pyo3(signature = (lease: "Lease[Any]") -> "tuple[tuple[Any, Any], tuple[Any, Any] | None]")]
pub(in crate::python) fn contents_of(
    py: Python<'_>,
    lease: &Lease,
) -> (Sendable, Option<Sendable>) {
    let progress = lease.delivery.progress.as_ref();
    (
        lease.delivery.item.sendable(py),
        progress.map(|progress| progress.sendable(py)),
    )
}
