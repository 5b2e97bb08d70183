//! `wait_any` and the operations it takes.

use std::io as std_io;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::clock::Time;
use crate::error::Stop;
use crate::io::{Readiness, ReadyError, Watching};
use crate::park::Ticket;
use crate::python::binding::lazy_arg::GivenFile;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::cause::CancelCause;
use crate::python::sync::condition::Condition;
use crate::python::sync::event::Event;
use crate::python::sync::lock::Lock;
use crate::python::sync::queue::{self, Queue, SimpleQueue};
use crate::python::sync::semaphore::Semaphore;
use crate::python::task::Task;
use crate::python::token::CancelToken;
use crate::python::wait::{Latch, asleep};
use crate::python::{error, io};
use crate::sync::{self, Acquire, LockError, QueueError};
use crate::wait::{self, Cancellation, Op as CoreOp, Until, Waitable};

/// One operation for wait_any().
#[pyclass(frozen, module = "desist")]
pub(super) struct Op {
    kind: Kind,
}

enum Kind {
    Acquire(Py<Lock>),
    Permit(Py<Semaphore>),
    Get(Py<Queue>),
    GetSimple(Py<SimpleQueue>),
    GetHooked(Py<PyAny>, Py<Condition>),
    Put(Py<Queue>, Py<PyAny>),
    Set(Py<Event>),
    Latched(Py<Latch>, Py<PyAny>),
    Over(Py<Task>, Py<PyAny>),
    Cancelled(Py<CancelToken>),
    Ready(i32, Readiness),
    After(Time),
}

/// Acquire a lock or a semaphore's permit; yields True.
///
/// The lock is then held as after acquire(). TypeError: neither of both.
#[pyfunction]
#[pyo3(signature = (lock: "Lock | Semaphore", /) -> "Op[bool]")]
pub(super) fn acquire_op(lock: &Bound<'_, PyAny>) -> PyResult<Op> {
    let kind = if let Ok(lock) = lock.cast::<Lock>() {
        Kind::Acquire(lock.clone().unbind())
    } else if let Ok(semaphore) = lock.cast::<Semaphore>() {
        Kind::Permit(semaphore.clone().unbind())
    } else {
        return Err(not_a("a desist Lock, RLock or Semaphore", lock));
    };
    Ok(Op { kind })
}

/// Get an item from a queue; yields it. TypeError: not a desist queue.
#[pyfunction]
#[pyo3(signature = (queue: "Queue[_T] | SimpleQueue[_T]", /) -> "Op[_T]")]
pub(super) fn get_op(queue: &Bound<'_, PyAny>) -> PyResult<Op> {
    let kind = if let Ok(simple) = queue.cast::<SimpleQueue>() {
        Kind::GetSimple(simple.clone().unbind())
    } else if let Ok(native) = queue.cast::<Queue>() {
        match queue.getattr_opt("not_empty")? {
            Some(condition) => {
                let condition = condition.cast_into::<Condition>()?;
                condition.get().core()?;
                Kind::GetHooked(queue.clone().unbind(), condition.unbind())
            }
            None => Kind::Get(native.clone().unbind()),
        }
    } else {
        return Err(not_a("a desist queue", queue));
    };
    Ok(Op { kind })
}

/// Put an item into a Queue or LifoQueue; yields None. TypeError: not one of these.
#[pyfunction]
#[pyo3(signature = (queue: "Queue[_T]", item: "_T", /) -> "Op[None]")]
pub(super) fn put_op(queue: &Bound<'_, PyAny>, item: Py<PyAny>) -> PyResult<Op> {
    let native = queue.cast::<Queue>().ok();
    match native.filter(|queue| !queue.hasattr("not_full").unwrap_or(true)) {
        Some(native) => Ok(Op {
            kind: Kind::Put(native.clone().unbind(), item),
        }),
        None => Err(not_a("a desist Queue or LifoQueue", queue)),
    }
}

/// Wait until an event is set; yields True.
#[pyfunction]
#[pyo3(signature = (event, /) -> "Op[bool]")]
pub(super) fn set_op(event: Py<Event>) -> Op {
    let kind = Kind::Set(event);
    Op { kind }
}

/// Wait until a token is cancelled; yields its cause.
#[pyfunction]
#[pyo3(signature = (token, /) -> "Op[CancelCause]")]
pub(super) fn cancelled_op(token: Py<CancelToken>) -> Op {
    let kind = Kind::Cancelled(token);
    Op { kind }
}

/// Wait until a latch is set; yields `value`.
#[pyfunction]
#[pyo3(signature = (latch, value: "_T", /) -> "Op[_T]")]
pub(super) fn latch_op(latch: Py<Latch>, value: Py<PyAny>) -> Op {
    let kind = Kind::Latched(latch, value);
    Op { kind }
}

/// Wait until a task is over or was given up; yields `value`.
#[pyfunction]
#[pyo3(signature = (task, value: "_T", /) -> "Op[_T]")]
pub(super) fn over_op(task: Py<Task>, value: Py<PyAny>) -> Op {
    let kind = Kind::Over(task, value);
    Op { kind }
}

/// Wait until a file can be read without blocking; yields None. See wait_readable().
#[pyfunction]
#[pyo3(signature = (file, /) -> "Op[None]")]
pub(super) fn readable_op(file: GivenFile<'_, '_>) -> PyResult<Op> {
    let kind = Kind::Ready(io::descriptor(file)?, Readiness::Readable);
    Ok(Op { kind })
}

/// Wait until a file can be written without blocking; yields None. See wait_writable().
#[pyfunction]
#[pyo3(signature = (file, /) -> "Op[None]")]
pub(super) fn writable_op(file: GivenFile<'_, '_>) -> PyResult<Op> {
    let kind = Kind::Ready(io::descriptor(file)?, Readiness::Writable);
    Ok(Op { kind })
}

/// Wait until so many seconds have passed since now; yields None.
#[pyfunction]
#[pyo3(signature = (seconds, /) -> "Op[None]")]
pub(super) fn after_op(seconds: Seconds<'_, '_>) -> PyResult<Op> {
    let until = Time::after(seconds::span(seconds, "the time to wait")?);
    let kind = Kind::After(until);
    Ok(Op { kind })
}

/// Do the first of several operations that is possible, and none of the others.
///
/// Returns its place among them and what it yields; None if the seconds have passed first. If
/// several are possible at once, the first of them in the order given is done. A checkpoint.
/// Raises what the operation raises: LockPoisoned, ShutDown, OSError for a bad descriptor.
/// TypeError: something that is no operation.
#[pyfunction]
#[pyo3(signature = (*ops: "Op[_T]", timeout = None) -> "tuple[int, _T] | None")]
pub(super) fn wait_any<'py>(
    py: Python<'py>,
    ops: &Bound<'py, PyTuple>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<Option<(usize, Bound<'py, PyAny>)>> {
    let until = seconds::patience(timeout)?;
    let ops = ops
        .iter()
        .map(|op| {
            op.cast_into::<Op>()
                .map_err(|given| not_an_op(&given.into_inner()))
        })
        .collect::<PyResult<Vec<_>>>()?;
    let ops: Vec<Py<Op>> = ops.into_iter().map(Bound::unbind).collect();
    let tokens: Vec<Option<crate::token::CancelToken>> =
        ops.iter().map(|op| op.get().token()).collect();
    let mut waiting: Vec<Box<dyn CoreOp<Output = Yield, Error = Failure> + '_>> = ops
        .iter()
        .zip(&tokens)
        .map(|(op, token)| op.get().start(py, token.as_ref()))
        .collect();
    let mut waiting: Vec<_> = waiting.iter_mut().map(|op| &mut **op).collect();
    let done = wait::perform_any(&mut waiting, until, asleep(py));
    match done {
        Ok(None) => Ok(None),
        Ok(Some((which, Yield::Object(object)))) => Ok(Some((which, object.into_bound(py)))),
        Ok(Some((which, Yield::Plain))) => Ok(Some((which, ops[which].get().value(py)?))),
        Err(failure) => Err(failure.raise(py)),
    }
}

fn not_a(what: &str, given: &Bound<'_, PyAny>) -> PyErr {
    match given.get_type().qualname() {
        Ok(kind) => PyTypeError::new_err(format!("expected {what}, not {kind}")),
        Err(failure) => failure,
    }
}

fn not_an_op(given: &Bound<'_, PyAny>) -> PyErr {
    not_a(
        "an operation, as acquire_op(), get_op(), set_op() and the like make it",
        given,
    )
}

/// What an operation has yielded.
enum Yield {
    /// What it always yields.
    Plain,
    Object(Py<PyAny>),
}

enum Failure {
    Stop(Stop),
    Lock(LockError),
    Queue(QueueError),
    Ready(ReadyError),
    Raised(PyErr),
}

impl Failure {
    fn raise(self, py: Python<'_>) -> PyErr {
        match self {
            Failure::Stop(stop) => error::from_stop(py, stop),
            Failure::Lock(failure) => error::from_lock(py, failure),
            Failure::Queue(failure) => queue::failed(py, failure),
            Failure::Ready(failure) => io::failed(py, failure),
            Failure::Raised(raised) => raised,
        }
    }
}

macro_rules! failure_from {
    ($($kind:ident: $type:ty),*) => { $(
        impl From<$type> for Failure {
            fn from(failure: $type) -> Failure {
                Failure::$kind(failure)
            }
        }
    )* };
}
failure_from!(Stop: Stop, Lock: LockError, Queue: QueueError, Ready: ReadyError, Raised: PyErr);

impl From<std_io::Error> for Failure {
    fn from(failure: std_io::Error) -> Failure {
        Failure::Ready(failure.into())
    }
}

impl Op {
    fn token(&self) -> Option<crate::token::CancelToken> {
        match &self.kind {
            Kind::Cancelled(token) => Some(token.get().inner().clone()),
            _ => None,
        }
    }

    /// What it yields, where that is always the same.
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.kind {
            Kind::Acquire(_) | Kind::Permit(_) | Kind::Set(_) => {
                Ok(pyo3::types::PyBool::new(py, true).to_owned().into_any())
            }
            Kind::Latched(_, value) | Kind::Over(_, value) => Ok(value.bind(py).clone()),
            Kind::Cancelled(token) => match token.get().inner().cause() {
                Some(cause) => Ok(Bound::new(py, CancelCause::from(cause))?.into_any()),
                None => Ok(py.None().into_bound(py)),
            },
            _ => Ok(py.None().into_bound(py)),
        }
    }

    fn start<'a>(
        &'a self,
        py: Python<'_>,
        token: Option<&'a crate::token::CancelToken>,
    ) -> Box<dyn CoreOp<Output = Yield, Error = Failure> + 'a> {
        let plain = |()| Yield::Plain;
        match &self.kind {
            Kind::Acquire(lock) => adapted(lock.get().core().acquire_op(Acquire::Task), plain),
            Kind::Permit(semaphore) => adapted(semaphore.get().core().acquire_op(), plain),
            Kind::Get(queue) => adapted(queue.get().core().get_op(), Yield::Object),
            Kind::GetSimple(queue) => adapted(queue.get().core().get_op(), Yield::Object),
            Kind::GetHooked(queue, condition) => match condition.get().core() {
                Ok(condition) => Box::new(GettingHooked { queue, condition }),
                Err(_) => adapted(Until(Time::NEVER), plain), // get_op() has looked
            },
            Kind::Put(queue, item) => {
                let item = item.clone_ref(py);
                adapted(queue.get().core().put_op(item), plain)
            }
            Kind::Set(event) => adapted(event.get().core(), plain),
            Kind::Latched(latch, _) => adapted(latch.get().core(), plain),
            Kind::Over(task, _) => adapted(task.get().core().over(), plain),
            Kind::Cancelled(_) => match token {
                Some(token) => adapted(Cancellation::of(token.node()), plain),
                None => adapted(Until(Time::NEVER), plain),
            },
            Kind::Ready(fd, what) => adapted(Watching::new(*fd, *what), plain),
            Kind::After(until) => adapted(Until(*until), plain),
        }
    }
}

/// An operation of the core that yields what all yield here.
struct Adapted<O, F> {
    op: O,
    output: F,
}

fn adapted<'a, O, F>(op: O, output: F) -> Box<dyn CoreOp<Output = Yield, Error = Failure> + 'a>
where
    O: CoreOp + 'a,
    F: Fn(O::Output) -> Yield + 'a,
    Failure: From<O::Error>,
{
    Box::new(Adapted { op, output })
}

impl<O: Waitable, F> Waitable for Adapted<O, F> {
    fn enqueue(&mut self, ticket: Ticket) {
        self.op.enqueue(ticket);
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.op.dequeue(ticket)
    }

    fn bound(&self) -> Time {
        self.op.bound()
    }

    fn descriptor(&self) -> Option<(i32, Readiness)> {
        self.op.descriptor()
    }
}

impl<O: CoreOp, F: Fn(O::Output) -> Yield> CoreOp for Adapted<O, F>
where
    Failure: From<O::Error>,
{
    type Output = Yield;
    type Error = Failure;

    fn attempt(&mut self) -> Result<Option<Yield>, Failure> {
        Ok(self.op.attempt()?.map(&self.output))
    }

    fn collect(&mut self) -> Result<Option<Yield>, Failure> {
        Ok(self.op.collect()?.map(&self.output))
    }
}

/// Getting from a queue that keeps its items by methods of its own.
struct GettingHooked<'a> {
    queue: &'a Py<PyAny>,
    condition: &'a sync::Condition,
}

impl Waitable for GettingHooked<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        self.condition.join(ticket.clone());
        // What came before that was notified to others.
        let news = Python::attach(|py| self.queue.call_method0(py, "_has_news")?.is_truthy(py));
        if news.unwrap_or(true) {
            self.condition.leave(&ticket);
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.condition.leave(ticket);
        false
    }
}

impl CoreOp for GettingHooked<'_> {
    type Output = Yield;
    type Error = Failure;

    fn attempt(&mut self) -> Result<Option<Yield>, Failure> {
        Python::attach(|py| match self.queue.call_method0(py, "get_nowait") {
            Ok(item) => Ok(Some(Yield::Object(item))),
            Err(raised) if error::is(py, &raised, "Empty") => Ok(None),
            Err(raised) => Err(raised.into()),
        })
    }
}
