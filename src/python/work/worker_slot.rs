//! `WorkerSlot`: a worker's place in its pool, and the loop in which it works.
//!
//! One turn of the loop: lease an item, decode it and run the handler as a task of its own behind the
//! boundary, and settle the lease by how the task ended. A kill is delivered in the decoder and in the
//! handler only: the loop itself runs as another task, which is never killed. "The handler's call" is
//! both of them; a process decodes the item itself.
//!
//! Before each lease the worker passes its gate (`work::gate`), where it can be paused and retired.
//!
//! `current` is written by the loop and read by the threads that cancel or kill; a kill holds a
//! reference of its task, so that it never hits the next item. The lock of `current` is held for the
//! time of a read or a write, by attached threads only. When a kill abandons the handler, the
//! killing thread settles the lease in place of the loop and sets `abandoned`; the loop, if its handler
//! ever returns, finds that its task was abandoned, settles nothing, and ends.
//!
//! | the handler's call | settles the lease | then the loop |
//! |---|---|---|
//! | returns, raises, or is cancelled or killed | the loop, behind the boundary | goes on |
//! | settles the lease itself | the handler; the loop only reports it | goes on |
//! | is abandoned | the killing thread | ends, when the call returns |
//!
//! If the queue fails at that, the lease is released (`Hold::release`) before the loop ends, or the killing
//! thread goes on: other code may still have the `Lease`, but no worker does (I48).
//!
//! So each lease is settled by one thread, and a late call of another finds it over (`Fenced`).
//!
//! A lost answer leaves open whether the lease was settled, and with it whether the item has ended. The loop
//! asks until it is answered, or the pool stops; and if its own settlement finds the lease over, it repeats
//! the handler's, if that had no answer. So the item's future is settled whenever its lease has ended the
//! item.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::lease::{Asked, LeaseSlot, Settled};
use super::pool_metrics::Event;
use super::port::QueuePort;
use super::promises::ItemResult;
use super::py_queue::PyQueue;
use super::source::{Delivery, LeaseSource, is_away, unless_fenced};
use super::time_limit::{self, TimeLimit};
use super::{LONGEST_COMMIT, Lease, PoolMetrics, RetryPolicy, cause_of, failure};
use crate::CauseKind;
use crate::boundary::{BodyEnd, Boundary};
use crate::clock::Time;
use crate::fork;
use crate::item::ItemId;
use crate::python::binding::attach::attach;
use crate::python::binding::context::Entered;
use crate::python::binding::host::detached;
use crate::python::binding::runnable::check_result;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error::Cancelled;
use crate::python::hard_stop::in_place;
use crate::python::hard_stop::mask::Mask;
use crate::python::op::Visited;
use crate::python::ports::engine_source;
use crate::python::task::stop::{self, BegunKill, OnAbandon};
use crate::python::task::{self, Ended};
use crate::python::token::CancelToken;
use crate::python::wait::blocking;
use crate::python::work::child::ChildProcess;
use crate::python::{error, token};
use crate::stop::AnyStopPolicy;
use crate::sync::Latch;
use crate::task::Task;
use crate::testing::{self, Enrolment};
use crate::token::Registration;
use crate::work::gate::{LeaseGate, Passed};
use crate::work::{Nack, NackOutcome};

/// Room for " item " and most numbers.
const NUMBERED: usize = 26;

/// The handler's current call.
struct Current {
    /// The task of this one call, which a kill stops.
    task: Arc<Task>,
    /// The lease that is settled in the loop's place if the call is abandoned.
    lease: Py<Lease>,
}

/// One attempt of a worker at an item.
struct Attempt {
    /// The task of the handler's call.
    task: Arc<Task>,
    /// Ends the attempt when it takes too long, if it has a limit.
    limit: Option<TimeLimit>,
    /// The context of the item's submit(), if it was submitted in this process.
    context: Option<Py<PyAny>>,
}

/// How the lease of a handler is settled that has ended.
struct Ending {
    /// As the handler's end demands.
    own: Asked,
    /// As the handler has asked for, without an answer.
    earlier: Option<Asked>,
}

/// A worker's place in its pool, where its current work can be cancelled and killed.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct WorkerSlot {
    /// Of the worker, its thread and its tasks; fixed.
    name: String,
    /// The queue's port, or a queue that is written in Python. Shown to the collector, and handed to each
    /// lease as its owner.
    queue: Py<PyAny>,
    /// The same queue, as the loop uses it.
    source: Arc<dyn LeaseSource>,
    /// The queue's policy, by which the handler's exceptions are judged.
    retry: Py<RetryPolicy>,
    /// The pool's token: cancelled when the pool stops.
    pool: Py<CancelToken>,
    /// The pool's counts and its observer, which are told of every event.
    tally: Py<PoolMetrics>,
    /// `Some` while the handler is called. Set by the loop before the call, and taken by it when the
    /// call has ended, before the lease is settled.
    current: Mutex<Option<Current>>,
    /// Its handler was abandoned while it runs, and another worker has its place. Set by the killing
    /// thread.
    abandoned: AtomicBool,
    /// The pool's limit for items that have none of their own.
    time_limit: Option<Duration>,
    /// The pool's, for the kill of an attempt that takes longer than its limit.
    policy: AnyStopPolicy,
    /// Called with this slot and such a kill, which has begun; it sees to its end, and does not block.
    overdue: Py<PyAny>,
    /// Set when its thread has left the loop, or was abandoned.
    over: Latch,
    /// Whether it may lease its next item.
    gate: LeaseGate,
    /// Its thread's place in a simulation; taken by the thread when it begins.
    enrolment: Mutex<Option<Enrolment>>,
}

#[pymethods]
impl WorkerSlot {
    #[new]
    #[pyo3(signature = (
        name,
        queue: "object",
        pool,
        tally,
        time_limit,
        policy: "StopPolicy | ProcessStopPolicy",
        overdue: "Callable[[WorkerSlot, BegunKill], object]",
    ))]
    #[allow(clippy::too_many_arguments)] // all of them the pool's
    fn new(
        name: String,
        queue: &Bound<'_, PyAny>,
        pool: Py<CancelToken>,
        tally: Py<PoolMetrics>,
        time_limit: Option<Seconds<'_, '_>>,
        policy: &Bound<'_, PyAny>,
        overdue: Py<PyAny>,
    ) -> PyResult<Self> {
        let retry = queue.getattr(engine_source::retry(queue.py()))?;
        Ok(Self {
            name,
            queue: queue.clone().unbind(),
            source: source_of(queue),
            retry: retry.extract()?,
            pool,
            tally,
            current: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            time_limit: time_limit::checked(time_limit)?,
            policy: stop::any_policy(policy)?,
            overdue,
            over: Latch::new(),
            gate: LeaseGate::new(),
            enrolment: Mutex::new(None),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.queue)?;
        self.source.traverse(&visit)?;
        visit.call(&self.retry)?;
        visit.call(&self.pool)?;
        visit.call(&self.tally)?;
        visit.call(&self.overdue)?;
        // Locked by attached threads only.
        match self.current.try_lock().as_deref() {
            Some(Some(current)) => visit.call(&current.lease),
            _ => Ok(()),
        }
    }

    /// Its thread is being started.
    fn launch(&self) {
        *self.enrolment.lock() = testing::enrol(&self.name, self.pool.get().inner().node());
    }

    /// No thread could be started for it: it is over.
    fn unlaunch(&self) {
        drop(self.enrolment.lock().take());
        self.over.set();
    }

    /// Let it lease nothing more, until it is resumed; it ends the item that it works on. Never blocks.
    fn pause(&self, py: Python<'_>) {
        detached(py, || self.gate.pause());
    }

    /// Let it lease items again.
    fn resume(&self, py: Python<'_>) {
        detached(py, || self.gate.resume());
    }

    /// Let it leave its loop, when it has ended the item that it works on. Never blocks.
    fn retire(&self, py: Python<'_>) {
        detached(py, || self.gate.retire());
    }

    /// Was it retired?
    #[getter]
    fn retired(&self) -> bool {
        self.gate.retired()
    }

    /// Wait until it is not leasing: after pause() or retire() it leases nothing more then.
    ///
    /// Blocks: at most until the queue's file or server has answered. A checkpoint.
    fn until_not_leasing(&self, py: Python<'_>) -> PyResult<()> {
        blocking(py, || self.gate.until_outside())
    }

    /// Work, until it is retired, or the pool's token is cancelled. A kill is delivered in `handler(lease)` only, or in
    /// the process that this waits for. An exception of the queue, other than Cancelled, ends the
    /// loop, and is passed to `failed(exception)`.
    #[pyo3(signature = (
        handler: "Callable[[Lease[Any]], object]",
        failed: "Callable[[BaseException], object]",
        process = None,
    ))]
    fn work(
        slf: &Bound<'_, Self>,
        handler: &Bound<'_, PyAny>,
        failed: &Bound<'_, PyAny>,
        process: Option<&ChildProcess>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let enrolment = this.enrolment.lock().take();
        let enrolled = detached(py, || enrolment.map(Enrolment::begin));
        let worker = Task::new(&this.name, Some(this.pool.get().inner()));
        let boundary = Boundary::enter(&worker, None);
        let result = Self::work_on_all(slf, handler, process)
            .or_else(|failure| failed.call1((failure.into_value(py),)).map(drop));
        detached(py, || boundary.leave(BodyEnd::Unwound));
        this.over.set();
        detached(py, || drop(enrolled));
        result
    }

    /// Begin to kill the handler's current call, if there is one, and if it is for `item_id`, if that is
    /// given; its item is leased again, by the same worker or another. finish() of the returned
    /// object goes on with it. `kind` is of the kill's cause; EXPLICIT if it is not given.
    #[pyo3(signature = (
        reason,
        policy: "StopPolicy | ProcessStopPolicy",
        item_id = None,
        *,
        kind = None,
    ))]
    #[allow(clippy::needless_pass_by_value)] // as arguments come
    fn begin_kill(
        slf: &Bound<'_, Self>,
        reason: Option<&str>,
        policy: &Bound<'_, PyAny>,
        item_id: Option<ItemId>,
        kind: Option<CauseKind>,
    ) -> PyResult<BegunKill> {
        let (py, policy) = (slf.py(), stop::any_policy(policy)?);
        let current = slf.get().current.lock().as_ref().and_then(|current| {
            let wanted = item_id.is_none_or(|id| current.lease.get().which().0 == id);
            wanted.then(|| (current.task.clone(), current.lease.clone_ref(py)))
        });
        let Some((task, lease)) = current else {
            return Ok(BegunKill::of_nothing());
        };
        let kind = kind.unwrap_or(CauseKind::Explicit);
        let cause = failure(py, kind, reason)?;
        let on_abandon = SlotAbandoned {
            slot: slf.clone().unbind(),
            task: task.clone(),
            lease,
            nack: Nack::AtOnce,
            failure: cause,
        };
        BegunKill::new(py, &task, (kind, reason), policy, on_abandon)
    }

    /// Ask the handler's current call to stop, if it is for `item_id`, if that is given.
    #[pyo3(signature = (reason = None, item_id = None))]
    #[allow(clippy::needless_pass_by_value)] // as arguments come
    fn cancel(&self, py: Python<'_>, reason: Option<&str>, item_id: Option<ItemId>) -> bool {
        let task = {
            let current = self.current.lock();
            current
                .as_ref()
                .filter(|current| {
                    let id = current.lease.get().which().0;
                    item_id.is_none_or(|wanted| wanted == id)
                })
                .map(|current| current.task.clone())
        };
        task.is_some_and(|task| token::cancel_node(py, task.source().node(), reason, None))
    }

    /// The worker's name.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// The id of the item that the handler is called for now. None for an abandoned worker.
    #[getter]
    fn item_id(&self) -> Option<ItemId> {
        let current = self.current.lock();
        let current = current.as_ref().filter(|_| !self.abandoned());
        current.map(|current| current.lease.get().which().0)
    }

    /// Has its thread left the loop, or was it abandoned?
    fn is_over(&self) -> bool {
        self.over.is_set()
    }

    /// Is the handler being called? Not for an abandoned worker.
    #[getter]
    fn busy(&self) -> bool {
        self.current.lock().is_some() && !self.abandoned()
    }

    /// Was it abandoned?
    #[getter]
    fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Wait until the worker has left its loop or was abandoned.
    ///
    /// Blocks: until then. A checkpoint.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        blocking(py, || self.over.wait_until(until))
    }
}

impl WorkerSlot {
    fn work_on_all(
        slf: &Bound<'_, Self>,
        handler: &Bound<'_, PyAny>,
        process: Option<&ChildProcess>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        while !this.abandoned.load(Ordering::Acquire) {
            let slot = LeaseSlot::new(py)?;
            match this.lease(py) {
                Ok(Some(delivery)) => Self::work_on(slf, delivery, slot, handler, process)?,
                Ok(None) => break,
                Err(stopped) if stopped.is_instance_of::<Cancelled>(py) => break,
                Err(broken) => return Err(broken),
            }
        }
        Ok(())
    }

    /// Lease the next item. `None`: the worker is to leave its loop.
    ///
    /// # Errors
    /// Cancelled: the pool has stopped. Or an exception of the queue.
    fn lease(&self, py: Python<'_>) -> PyResult<Option<Delivery>> {
        let is_stopped = |leased: &PyResult<_>| {
            let raised = leased.as_ref().err();
            raised.is_some_and(|raised| raised.is_instance_of::<Cancelled>(py))
        };
        loop {
            let lease = || self.source.lease(py, Time::NEVER);
            match self.gate.pass(lease, is_stopped) {
                Passed::Leased(leased) => return leased,
                Passed::Again => {}
                Passed::Wait => blocking(py, || self.gate.until_open())?,
                Passed::Leave => return Ok(None),
            }
        }
    }

    /// One lease, from delivery to settlement.
    fn work_on(
        slf: &Bound<'_, Self>,
        mut delivery: Delivery,
        slot: LeaseSlot<'_>,
        handler: &Bound<'_, PyAny>,
        process: Option<&ChildProcess>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let mut name = String::with_capacity(this.name.len() + NUMBERED);
        let _ = write!(
            name,
            "{} item {}",
            this.name,
            delivery.hold.handle().id(delivery.hold.key())
        );
        let context = delivery.context.take();
        let pool = this.pool.get().inner();
        let limit = delivery.time_limit.or(this.time_limit);
        let limit = limit.map(|limit| TimeLimit::begin(limit, pool));
        let bound = limit.as_ref().map(TimeLimit::token);
        let parent = bound.as_ref().unwrap_or(pool);
        let task = if delivery.ends.is_never() {
            Task::new(&name, Some(parent))
        } else {
            Task::with_deadline(&name, parent, delivery.ends)
        };
        if let Some(process) = process {
            task.run_remotely(process.elsewhere());
        }
        let lease = slot.fill_for(delivery, this.queue.clone_ref(py), task.clone());
        this.note(py, Event::Leased, lease.get(), None);
        let attempt = Attempt {
            task,
            limit,
            context,
        };
        let worked = Self::call(slf, &attempt, &lease, handler, process);
        this.tally.get().close(py, lease.get());
        worked
    }

    /// One lease, from the handler's begin to settlement.
    fn call(
        slf: &Bound<'_, Self>,
        attempt: &Attempt,
        lease: &Bound<'_, Lease>,
        handler: &Bound<'_, PyAny>,
        process: Option<&ChildProcess>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let Attempt {
            task,
            limit,
            context,
        } = attempt;
        let begun = lease.get().handle().begun(py, task);
        let arguments = begun.and_then(|()| PyTuple::new(py, [lease]));
        let arguments = arguments.inspect_err(|broken| {
            let failure = broken.value(py).clone().into_any().unbind();
            let _released = lease.get().hold().nack(py, Nack::AtOnce, failure);
        })?;
        this.note(py, Event::Started, lease.get(), None);
        let watch = limit
            .as_ref()
            .map(|limit| Self::watch(slf, limit, task, lease));
        let body = || {
            *this.current.lock() = Some(Current {
                task: task.clone(),
                lease: lease.clone().unbind(),
            });
            // The pool's stop and a cancel of the item first cancel, then look for a seat that is busy:
            // one of the two is seen.
            let (handle, key) = (lease.get().handle(), lease.get().key());
            if handle.is_cancelled(py, key)? {
                token::cancel_node(
                    py,
                    task.source().node(),
                    Some("the item was cancelled"),
                    None,
                );
            }
            let token = task.source().token();
            token.check().map_err(|stop| error::from_stop(py, stop))?;
            let _context = match context {
                Some(context) => Entered::copy(context.bind(py))?,
                None => Entered::empty(py)?,
            };
            if process.is_none() {
                lease.get().decode(py)?;
            }
            let result = in_place::checked(py, handler.call1(&arguments))?;
            check_result(result, false).map(Bound::unbind)
        };
        let mut unanswered = None;
        let settled = task::run(py, task, body, |result, ended| {
            let before = this.current.lock().take();
            drop(before);
            let lease = lease.get();
            let Some(ending) = this.ending(py, task, lease, limit.as_ref(), result, ended) else {
                return Ok(());
            };
            let settled = this.settle(py, task, lease, &ending);
            if settled.as_ref().is_err_and(|raised| is_away(py, raised)) {
                unanswered = Some(ending);
                return Ok(());
            }
            settled.inspect_err(|_| lease.hold().release())
        });
        if let Some(watch) = watch {
            watch.unregister();
            watch.detach();
        }
        // A thread that kills the handler need not wait for the server as well.
        if let Some(ending) = unanswered {
            return this.settle_until_answered(py, task, lease.get(), &ending);
        }
        settled?.unwrap_or_else(|| {
            this.current.lock().take();
            // Abandoned: the killing thread has settled the lease, unless the handler was earlier.
            this.tell(py, lease.get(), lease.get().settled(), None);
            Ok(())
        })
    }

    /// Has the attempt killed when its limit is over.
    fn watch(
        slf: &Bound<'_, Self>,
        limit: &TimeLimit,
        task: &Arc<Task>,
        lease: &Bound<'_, Lease>,
    ) -> Registration {
        let (slot, task, lease) = (slf.clone().unbind(), task.clone(), lease.clone().unbind());
        let span = limit.span();
        // A kill that begins before the body does is recorded, and delivered when that begins.
        task.launch();
        limit.watch(move |py| {
            // A simulation uses no force: the handler was cancelled at its limit.
            if testing::current().is_some() {
                return Ok(());
            }
            let this = slot.get();
            let failure = time_limit::failure(py, span, None);
            let on_abandon = SlotAbandoned {
                slot: slot.clone_ref(py),
                task: task.clone(),
                lease,
                nack: this.after(failure.bind(py)),
                failure,
            };
            let reason = time_limit::words(span);
            let cause = (CauseKind::Deadline, Some(&*reason));
            let kill = BegunKill::new(py, &task, cause, this.policy, on_abandon)?;
            this.overdue.call1(py, (&slot, kill)).map(drop)
        })
    }

    /// How the lease is to be settled, now that the body has ended. `None`: its handler has settled it.
    fn ending(
        &self,
        py: Python<'_>,
        task: &Task,
        lease: &Lease,
        limit: Option<&TimeLimit>,
        result: PyResult<Py<PyAny>>,
        ended: Ended,
    ) -> Option<Ending> {
        let earlier = match lease.settled() {
            Settled::NotYet => None,
            Settled::Unanswered(asked) => Some(asked),
            by_handler => {
                // An exception after the handler has settled its lease has no caller to go to.
                if let (Err(raised), Ended::Failed) = (&result, ended) {
                    raised.clone_ref(py).write_unraisable(py, None);
                }
                self.tell(py, lease, by_handler, result.ok());
                return None;
            }
        };
        let own = match (result, &earlier) {
            (Ok(_), Some(Asked::Ack(Some(given)))) => Asked::Ack(Some(given.clone_ref(py))),
            (Ok(value), _) => Asked::Ack(Some(value)),
            (Err(raised), _) => {
                // A kill of a body in a process arrives here as a cancellation.
                let killed = ended == Ended::Killed || task.record().killed_at.is_some();
                let limit = limit.filter(|limit| limit.has_stopped(task));
                let (event, nack, failure) = match (ended, limit) {
                    (Ended::Failed, _) => {
                        let failure = raised.into_value(py).into_any();
                        (Event::Failed, self.after(failure.bind(py)), failure)
                    }
                    (_, Some(limit)) => {
                        let event = if killed { Event::Killed } else { Event::Failed };
                        let failure = time_limit::failure(py, limit.span(), Some(raised));
                        (event, self.after(failure.bind(py)), failure)
                    }
                    (_, None) => {
                        let event = if killed {
                            Event::Killed
                        } else {
                            Event::Cancelled
                        };
                        let failure = cause_of(py, &raised.into_value(py).into_any());
                        (event, Nack::AtOnce, failure)
                    }
                };
                self.note(py, event, lease, Some(&failure));
                Asked::Nack(nack, failure)
            }
        };
        Some(Ending { own, earlier })
    }

    /// Settles the lease. If it is over, perhaps the handler has ended it, and only got no answer.
    ///
    /// # Errors
    /// Those of the queue; `ConnectionError`: this is to be called again.
    fn settle(&self, py: Python<'_>, task: &Task, lease: &Lease, ending: &Ending) -> PyResult<()> {
        let hold = lease.hold();
        let mut settled = unless_fenced(py, ending.own.perform(py, hold))?;
        if let (None, Some(earlier)) = (&settled, &ending.earlier) {
            settled = unless_fenced(py, earlier.perform(py, hold))?;
        }
        if let Some(Settled::Nacked(NackOutcome::Requeued, _)) = settled {
            task.amend(|record| record.requeued.push(lease.which().0));
        }
        self.tell(py, lease, settled.unwrap_or(Settled::NotYet), None);
        Ok(())
    }

    /// Settles the lease, again while the queue's server is away and the pool goes on.
    fn settle_until_answered(
        &self,
        py: Python<'_>,
        task: &Task,
        lease: &Lease,
        ending: &Ending,
    ) -> PyResult<()> {
        loop {
            match self.settle(py, task, lease, ending) {
                Err(away) if is_away(py, &away) => {
                    if self.pool.get().inner().is_cancelled() {
                        return Ok(()); // the lease runs out
                    }
                }
                settled => return settled.inspect_err(|_| lease.hold().release()),
            }
        }
    }

    /// Tell how the lease was settled. `value`: the result of an item that was acknowledged without one.
    fn tell(&self, py: Python<'_>, lease: &Lease, settled: Settled, value: Option<Py<PyAny>>) {
        match settled {
            Settled::Acked(given) => {
                self.done(py, lease, given.or(value).unwrap_or_else(|| py.None()));
            }
            Settled::Nacked(returned, failure) => self.not_done(py, lease, returned, failure),
            Settled::NotYet | Settled::Unanswered(_) => {}
        }
    }

    /// How the lease ends whose handler has raised this.
    fn after(&self, raised: &Bound<'_, PyAny>) -> Nack {
        let judged = self.retry.get().after(raised);
        judged.unwrap_or_else(|broken| {
            broken.write_unraisable(raised.py(), Some(raised));
            Nack::Failed
        })
    }

    /// Settles the lease of a handler that was abandoned.
    fn take_from(&self, py: Python<'_>, abandoned: &SlotAbandoned) {
        let SlotAbandoned {
            task,
            lease,
            nack,
            failure,
            ..
        } = abandoned;
        let lease = lease.get();
        let id = lease.which().0;
        self.note(py, Event::Killed, lease, Some(failure));
        task.amend(|record| record.fenced.push(id.clone()));
        let hold = lease.hold();
        match unless_fenced(py, hold.nack(py, *nack, failure.clone_ref(py))) {
            Ok(Some(returned)) => {
                if returned == NackOutcome::Requeued {
                    task.amend(|record| record.requeued.push(id.clone()));
                }
                self.not_done(py, lease, returned, failure.clone_ref(py));
            }
            Ok(None) => self.tell(py, lease, lease.settled(), None),
            Err(away) if is_away(py, &away) => {}
            Err(broken) => {
                hold.release();
                broken.write_unraisable(py, None);
            }
        }
        self.tally.get().close(py, lease);
    }

    fn done(&self, py: Python<'_>, lease: &Lease, value: Py<PyAny>) {
        self.note(py, Event::Done, lease, None);
        lease
            .handle()
            .report(py, lease.key(), ItemResult::Finished(value));
    }

    fn not_done(&self, py: Python<'_>, lease: &Lease, returned: NackOutcome, failure: Py<PyAny>) {
        match returned {
            NackOutcome::Requeued => self.note(py, Event::Requeued, lease, None),
            NackOutcome::Dead => {
                self.note(py, Event::Dead, lease, Some(&failure));
                lease
                    .handle()
                    .report(py, lease.key(), ItemResult::Failed(failure));
            }
        }
    }

    fn note(&self, py: Python<'_>, event: Event, lease: &Lease, failure: Option<&Py<PyAny>>) {
        let tally = self.tally.get();
        tally.note(py, event, lease, &self.name, failure);
    }
}

/// Settles the lease of a handler that is abandoned, and frees the worker's place.
struct SlotAbandoned {
    slot: Py<WorkerSlot>,
    task: Arc<Task>,
    lease: Py<Lease>,
    /// When the item is leased again.
    nack: Nack,
    /// Why the attempt has ended.
    failure: Py<PyAny>,
}

impl OnAbandon for SlotAbandoned {
    fn abandoned(&mut self) {
        let slot = self.slot.get();
        slot.abandoned.store(true, Ordering::Release);
        let _mask = Mask::open(LONGEST_COMMIT); // the killing thread may be killed
        fork::outside(|| {
            attach(|py| slot.take_from(py, self));
        });
        slot.over.set();
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.slot)?;
        visit.call(&self.lease)?;
        visit.call(&self.failure)
    }
}

/// The queue behind a `QueuePort`; or a queue that is written in Python.
fn source_of(queue: &Bound<'_, PyAny>) -> Arc<dyn LeaseSource> {
    match queue.cast::<QueuePort>() {
        Ok(port) => port.get().source(),
        Err(_) => Arc::new(PyQueue::new(queue.clone().unbind())),
    }
}
