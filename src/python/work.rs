//! `LeaseQueue`, `Lease`, and the loop of a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyTuple, PyType};

use crate::clock::Time;
use crate::fork;
use crate::python::cause::CancelCause;
use crate::python::hint::Item;
use crate::python::host::detached;
use crate::python::mask::{Beginning, Mask, Masked};
use crate::python::seconds::Seconds;
use crate::python::stop::{self, KillReport, StopPolicy};
use crate::python::task::{self, Ended};
use crate::python::token::CancelToken;
use crate::python::wait::blocking;
use crate::python::{error, hard_stop, seconds};
use crate::scope;
use crate::task::{BodyEnd, Boundary, Task};
use crate::testing::{self, Enrolment};
use crate::work::{self, Back, Returned};
use crate::{Cause, CauseKind};

/// A commit block is meant for one write and its acknowledgement.
const LONGEST_COMMIT: Duration = Duration::from_secs(5);

/// What the queue holds for an item; cloned without the interpreter.
struct Payload {
    item: Py<PyAny>,
    /// Who is to be told of the end.
    future: Option<Py<PyAny>>,
}

type Queue = work::LeaseQueue<Arc<Payload>, Arc<Py<PyAny>>>;

/// How often, and how soon, failed work is tried again.
///
/// After `max_attempts` leases an item is dead. The pause after a failure is `backoff` seconds at
/// first and doubles each time up to `max_backoff`, longer or shorter by up to the part `jitter` of
/// it. Work whose worker was killed is ready again at once.
#[pyclass(frozen, module = "desist")]
pub(super) struct RetryPolicy {
    retry: work::RetryPolicy,
}

#[pymethods]
impl RetryPolicy {
    #[new]
    #[pyo3(signature = (
        *,
        max_attempts: "int" = 5,
        backoff: "float" = 0.5,
        max_backoff: "float" = 60.0,
        jitter: "float" = 0.2,
    ))]
    fn new(max_attempts: u32, backoff: f64, max_backoff: f64, jitter: f64) -> PyResult<Self> {
        if max_attempts == 0 {
            return Err(PyValueError::new_err("max_attempts must be at least 1"));
        }
        if !(0.0..=1.0).contains(&jitter) {
            return Err(PyValueError::new_err(format!(
                "jitter must be between 0 and 1, but is {jitter}"
            )));
        }
        let backoff = seconds::checked_span(backoff, "backoff")?;
        let max_backoff = seconds::checked_span(max_backoff, "max_backoff")?;
        Ok(Self {
            retry: work::RetryPolicy {
                max_attempts,
                backoff,
                max_backoff,
                jitter,
            },
        })
    }

    /// After so many leases an item is dead.
    #[getter]
    fn max_attempts(&self) -> u32 {
        self.retry.max_attempts
    }

    /// Seconds of the pause after the first failure.
    #[getter]
    fn backoff(&self) -> f64 {
        self.retry.backoff.as_secs_f64()
    }

    /// Seconds of the longest pause.
    #[getter]
    fn max_backoff(&self) -> f64 {
        self.retry.max_backoff.as_secs_f64()
    }

    /// The part of a pause by which it may be longer or shorter.
    #[getter]
    fn jitter(&self) -> f64 {
        self.retry.jitter
    }
}

/// Items that are leased to workers, in memory. Each is in one state at any time: ready, leased,
/// delayed, done or dead. What a worker does not acknowledge is leased again.
#[pyclass(frozen, weakref, module = "desist")]
pub(super) struct LeaseQueue {
    queue: Queue,
    generation: u32,
}

impl LeaseQueue {
    /// In a forked child the items are the parent's to work on.
    fn check_process(&self) -> PyResult<&Queue> {
        if self.generation == fork::generation() {
            Ok(&self.queue)
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
            queue: Queue::new(retry),
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
        let queue = self.check_process()?;
        let lease = blocking(py, || queue.lease(until))?;
        Ok(lease.map(|lease| Lease::new(queue, lease)))
    }

    /// How many items are in each state, at one instant.
    #[pyo3(signature = () -> "dict[Literal['ready', 'leased', 'delayed', 'done', 'dead'], int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.queue.counts();
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
        let dead = self.queue.dead().into_iter();
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
        let failure = failure(py, CauseKind::Explicit, reason)?;
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
        let failure = failure(py, CauseKind::Shutdown, reason)?;
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
        let counts = self.queue.counts();
        format!(
            "<LeaseQueue ready={} leased={} delayed={} done={} dead={}>",
            counts.ready, counts.leased, counts.delayed, counts.done, counts.dead
        )
    }
}

/// One delivery of one item to one worker.
#[pyclass(frozen, module = "desist")]
#[allow(clippy::struct_field_names)] // it is the core's lease, and more
pub(super) struct Lease {
    queue: Queue,
    lease: work::Lease<Arc<Payload>>,
    settled: Mutex<Settled>,
}

/// What became of a lease, if its handler said so itself.
enum Settled {
    NotYet,
    Acked(Option<Py<PyAny>>),
    Nacked(Returned, Py<PyAny>),
}

impl Lease {
    fn new(queue: &Queue, lease: work::Lease<Arc<Payload>>) -> Self {
        Self {
            queue: queue.clone(),
            lease,
            settled: Mutex::new(Settled::NotYet),
        }
    }

    fn give_back(
        &self,
        py: Python<'_>,
        back: Back,
        failure: &Py<PyAny>,
    ) -> Result<Returned, work::Fenced> {
        let failure = Arc::new(failure.clone_ref(py));
        self.queue
            .give_back(self.lease.id, self.lease.epoch, back, Some(failure))
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
    fn item(&self, py: Python<'_>) -> Item {
        Item(self.lease.item.item.clone_ref(py))
    }

    /// The item's id.
    #[getter]
    fn id(&self) -> u64 {
        self.lease.id
    }

    /// How often the item has been leased, this time included.
    #[getter]
    fn attempt(&self) -> u32 {
        self.lease.attempt
    }

    /// The lease's number; a later lease of any item has a greater one.
    #[getter]
    fn epoch(&self) -> u64 {
        self.lease.epoch
    }

    /// The token of the code that works on it: cancelled when that is to stop.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        let task = scope::current_task().filter(|task| !task.is_of_thread());
        let task = task.map(|task| task.source().token());
        CancelToken::wrap(py, task.unwrap_or_else(scope::current_token))
    }

    /// The work is done. Fenced if the lease is over: acknowledged, given back, or fenced off.
    #[pyo3(signature = (result: "object" = None))]
    fn ack(&self, py: Python<'_>, result: Option<Py<PyAny>>) -> PyResult<()> {
        self.queue
            .ack(self.lease.id, self.lease.epoch)
            .map_err(|fenced| error::fenced(py, &fenced))?;
        *self.settled.lock() = Settled::Acked(result);
        Ok(())
    }

    /// Give it back: to be leased again after `delay` seconds. Fenced if the lease is over.
    #[pyo3(signature = (*, delay = None, reason = None))]
    fn nack(
        &self,
        py: Python<'_>,
        delay: Option<Seconds<'_, '_>>,
        reason: Option<&str>,
    ) -> PyResult<()> {
        let delay = seconds::optional_span(delay, "delay")?.unwrap_or_default();
        let failure = failure(py, CauseKind::Explicit, reason)?;
        let returned = self
            .give_back(py, Back::After(delay), &failure)
            .map_err(|fenced| error::fenced(py, &fenced))?;
        *self.settled.lock() = Settled::Nacked(returned, failure.clone_ref(py));
        Ok(())
    }

    /// A block in which a kill is held off, for at most 5 seconds: write what the work came to,
    /// then ack() the lease. Killed before the block, the item is leased again; after it, it is
    /// done; there is no third outcome.
    fn commit(&self) -> Masked {
        // A commit begins whole or not at all.
        Masked::new(LONGEST_COMMIT, Beginning::Checkpoint)
    }

    fn __repr__(&self) -> String {
        format!(
            "<Lease of item {} attempt {}>",
            self.lease.id, self.lease.attempt
        )
    }
}

// ---------------------------------------------------------------------- workers

/// What a worker is working on.
struct Current {
    task: Arc<Task>,
    id: u64,
    epoch: u64,
}

/// A worker's place in its pool: what it is doing now can be cancelled and killed there.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Seat {
    queue: Py<LeaseQueue>,
    /// Cancelled when the pool stops.
    pool: Py<CancelToken>,
    current: Mutex<Option<Current>>,
    /// Its work was given up while it runs, and somebody else has its place.
    abandoned: AtomicBool,
    /// Set when its thread has left the loop, or was given up.
    over: crate::sync::Latch,
    /// Its thread's place in a simulation, on the way to it.
    enrolment: Mutex<Option<Enrolment>>,
}

#[pymethods]
impl Seat {
    #[new]
    #[pyo3(signature = (queue: "LeaseQueue[_T]", pool))]
    fn new(queue: Py<LeaseQueue>, pool: Py<CancelToken>) -> Self {
        let over = crate::sync::Latch::new();
        Self {
            queue,
            pool,
            current: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            over,
            enrolment: Mutex::new(None),
        }
    }

    /// Its thread is being started.
    fn launch(&self, name: &str) {
        *self.enrolment.lock() = testing::enrol(name, self.pool.get().inner().node());
    }

    /// Work, until the pool's token is cancelled. `handler(lease)` is the only code in which a
    /// kill strikes.
    #[pyo3(signature = (name, handler: "Callable[[Lease[_T]], object]"))]
    fn work(&self, py: Python<'_>, name: &str, handler: &Bound<'_, PyAny>) -> PyResult<()> {
        let enrolment = self.enrolment.lock().take();
        let enrolled = detached(py, || enrolment.map(Enrolment::begin));
        let queue = &self.queue.get().queue;
        let pool = self.pool.get().inner();
        let worker = Task::new(name, Some(pool));
        let boundary = Boundary::enter(&worker, None);
        let mut result = Ok(());
        while let Ok(Some(lease)) = detached(py, || queue.lease(Time::NEVER)) {
            result = self.work_on(py, name, queue, lease, handler);
            if result.is_err() || self.abandoned.load(Ordering::Acquire) {
                break;
            }
        }
        detached(py, || boundary.leave(BodyEnd::Unwound));
        self.over.set();
        detached(py, || drop(enrolled));
        result
    }

    /// Kill what is being worked on; its item is leased again, by the same worker or another. An
    /// idle worker has nothing to kill.
    #[pyo3(signature = (reason = None, policy = None))]
    fn kill(
        &self,
        py: Python<'_>,
        reason: Option<&str>,
        policy: Option<&StopPolicy>,
    ) -> PyResult<KillReport> {
        let Some((task, id, epoch)) = self
            .current
            .lock()
            .as_ref()
            .map(|current| (current.task.clone(), current.id, current.epoch))
        else {
            return Ok(KillReport::nothing());
        };
        let failure = failure(py, CauseKind::Explicit, reason)?;
        let queue = self.queue.get().queue.clone();
        stop::kill(py, &task, reason, policy, &mut || {
            self.abandoned.store(true, Ordering::Release);
            let returned = queue.give_back(id, epoch, Back::AtOnce, Some(failure.clone()));
            task.amend(|record| {
                record.fenced.push(id);
                if returned == Ok(Returned::Requeued) {
                    record.requeued.push(id);
                }
            });
            self.over.set();
        })
    }

    /// Ask what is being worked on to stop, if it is this item.
    #[pyo3(signature = (item_id: "int", reason = None))]
    fn cancel(&self, py: Python<'_>, item_id: u64, reason: Option<&str>) -> bool {
        let task = {
            let current = self.current.lock();
            current
                .as_ref()
                .filter(|current| current.id == item_id)
                .map(|current| current.task.clone())
        };
        task.is_some_and(|task| super::token::cancel_node(py, task.source().node(), reason, None))
    }

    /// Given up?
    #[getter]
    fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Block until the worker has left its loop or was given up. A checkpoint.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        blocking(py, || self.over.wait_until(until))
    }
}

impl Seat {
    /// One lease, from delivery to settlement.
    fn work_on(
        &self,
        py: Python<'_>,
        name: &str,
        queue: &Queue,
        lease: work::Lease<Arc<Payload>>,
        handler: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (id, epoch) = (lease.id, lease.epoch);
        let task = Task::new(&format!("{name} item {id}"), Some(self.pool.get().inner()));
        let lease = Bound::new(py, Lease::new(queue, lease))?;
        let arguments = PyTuple::new(py, [&lease])?;
        let body = || {
            *self.current.lock() = Some(Current {
                task: task.clone(),
                id,
                epoch,
            });
            hard_stop::call(handler, &arguments).map(Bound::unbind)
        };
        let settled = task::run(py, &task, body, |result, ended| {
            let before = self.current.lock().take();
            drop(before);
            settle(py, &task, lease.get(), result, ended);
        })?;
        if settled.is_none() {
            self.current.lock().take(); // given up: its lease was settled by whoever did that
        }
        Ok(())
    }
}

/// The body is over and holds nothing: say what became of its item.
fn settle(py: Python<'_>, task: &Task, lease: &Lease, result: PyResult<Py<PyAny>>, ended: Ended) {
    let future = lease
        .lease
        .item
        .future
        .as_ref()
        .map(|future| future.bind(py));
    let by_handler = std::mem::replace(&mut *lease.settled.lock(), Settled::NotYet);
    if !matches!(by_handler, Settled::NotYet) {
        // What a handler raises after it has settled its lease is nobody's result.
        if let (Err(raised), Ended::Failed) = (&result, ended) {
            raised.clone_ref(py).write_unraisable(py, None);
        }
    }
    match (by_handler, result) {
        (Settled::Acked(given), result) => tell(py, future, "_finish", (given.or(result.ok()),)),
        (Settled::Nacked(Returned::Dead, failure), _) => tell(py, future, "_fail", (failure,)),
        (Settled::Nacked(Returned::Requeued, _), _) => {}
        (Settled::NotYet, Ok(value)) => {
            if lease.queue.ack(lease.lease.id, lease.lease.epoch).is_ok() {
                tell(py, future, "_finish", (value,));
            }
        }
        (Settled::NotYet, Err(raised)) => {
            let value = raised.into_value(py).into_any();
            let (back, failure) = match ended {
                Ended::Failed => (Back::Failed, value),
                _ => (Back::AtOnce, cause_of(py, &value)),
            };
            match lease.give_back(py, back, &failure) {
                Ok(Returned::Requeued) => task.amend(|record| record.requeued.push(lease.lease.id)),
                Ok(Returned::Dead) => tell(py, future, "_fail", (failure,)),
                Err(work::Fenced) => {}
            }
        }
    }
}

/// What is kept of work that was not done because of this.
fn failure(py: Python<'_>, kind: CauseKind, reason: Option<&str>) -> PyResult<Arc<Py<PyAny>>> {
    let cause = Cause::now(kind, reason.map(Into::into), None);
    Ok(Arc::new(Py::new(py, CancelCause::from(cause))?.into_any()))
}

/// Tell an item's future that nobody will do the work.
fn tell_off(py: Python<'_>, payload: &Payload, failure: &Py<PyAny>) {
    // On the caller's thread, which may be killed: not inside the future's own locks.
    let mask = Mask::open(LONGEST_COMMIT);
    tell(
        py,
        payload.future.as_ref().map(|future| future.bind(py)),
        "_fail",
        (failure.clone_ref(py),),
    );
    drop(mask);
}

/// Why a task was stopped, out of its Cancelled or Killed.
fn cause_of(py: Python<'_>, raised: &Py<PyAny>) -> Py<PyAny> {
    raised
        .getattr(py, "cause")
        .unwrap_or_else(|_| raised.clone_ref(py))
}

/// Tell a future. Nobody is there to take what it raises.
fn tell<'py>(
    py: Python<'py>,
    future: Option<&Bound<'py, PyAny>>,
    method: &str,
    arguments: impl pyo3::call::PyCallArgs<'py>,
) {
    if let Some(Err(raised)) = future.map(|future| future.call_method1(method, arguments)) {
        raised.write_unraisable(py, future);
    }
}
