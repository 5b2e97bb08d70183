//! `Op`: one operation that `wait_any` can wait for.
//!
//! Guarantees: an `Op` is only a description. Nothing is done, and no queue is joined, before
//! `wait_any` starts it; a started operation that was not done leaves no trace (I14).
//!
//! How: the object that an operation waits for makes it (`Queue.get_op()`, `Lock.acquire_op()`), by
//! implementing [`Operation`]; so this module knows none of them, and `wait_any` needs no list of
//! kinds. An `Op` may be waited for any number of times, one after the other or at once, since each
//! wait starts it again.

use std::io as std_io;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::clock::Time;
use crate::error::Stop;
use crate::io::{Readiness, ReadyError, Watching};
use crate::park::Ticket;
use crate::python::binding::lazy_arg::LazyFile;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::{error, io};
use crate::sync::{LockError, QueueError};
use crate::wait::{Op as CoreOp, Until, Waitable};

/// One operation for wait_any(): made by the object that it waits for, as `queue.get_op()`, or by
/// readable(), writable() and after().
///
/// It is a description: nothing is done before wait_any() does it, and it may be used again.
#[pyclass(frozen, module = "desist")]
pub(super) struct Op {
    operation: Box<dyn Operation>,
}

/// An object's operation for `wait_any`.
pub(super) trait Operation: Send + Sync + 'static {
    /// The operation of the core, for one wait.
    fn start<'a>(&'a self, py: Python<'_>) -> Started<'a>;

    /// Shows the collector the objects that it has. They never change: a cycle through an operation
    /// also goes through an object that came later, which breaks it.
    fn traverse(&self, visit: &PyVisit<'_>) -> Visited;

    /// The result of an operation that yielded [`Yield::Plain`].
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(py.None().into_bound(py))
    }
}

/// The result of a traverse.
pub(super) type Visited = Result<(), PyTraverseError>;

/// An operation during one wait.
pub(super) type Started<'a> = Box<dyn CoreOp<Output = Yield, Error = Failure> + 'a>;

/// The result of a started operation.
pub(super) enum Yield {
    /// The operation was done; its result is [`Operation::result`].
    Plain,
    /// This object: an item that was got.
    Object(Py<PyAny>),
}

/// The result of operations that only can succeed.
pub(super) fn always_true(py: Python<'_>) -> Bound<'_, PyAny> {
    PyBool::new(py, true).to_owned().into_any()
}

impl Op {
    pub(super) fn new(operation: impl Operation) -> Self {
        Self {
            operation: Box::new(operation),
        }
    }

    pub(super) fn start<'a>(&'a self, py: Python<'_>) -> Started<'a> {
        self.operation.start(py)
    }

    pub(super) fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.operation.result(py)
    }
}

#[pymethods]
impl Op {
    /// The file can be read without blocking: an operation that yields None. See wait_readable().
    ///
    /// `file`: a descriptor, or an object with fileno().
    ///
    /// Raises:
    ///     TypeError: neither of these.
    ///     ValueError: the file is closed.
    #[staticmethod]
    #[pyo3(signature = (file, /) -> "Op[None]")]
    fn readable(file: LazyFile<'_, '_>) -> PyResult<Op> {
        Ok(Op::new(Ready(io::descriptor(file)?, Readiness::Readable)))
    }

    /// The file can be written without blocking: an operation that yields None. See
    /// wait_writable().
    ///
    /// `file`, and the exceptions, are as with readable().
    #[staticmethod]
    #[pyo3(signature = (file, /) -> "Op[None]")]
    fn writable(file: LazyFile<'_, '_>) -> PyResult<Op> {
        Ok(Op::new(Ready(io::descriptor(file)?, Readiness::Writable)))
    }

    /// This many seconds have passed since this call: an operation that yields None.
    ///
    /// Raises:
    ///     TypeError: not a number.
    ///     ValueError: negative, or NaN.
    #[staticmethod]
    #[pyo3(signature = (seconds, /) -> "Op[None]")]
    fn after(seconds: Seconds<'_, '_>) -> PyResult<Op> {
        let span = seconds::span(seconds, "the time to wait")?;
        Ok(Op::new(After(Time::after(span))))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        self.operation.traverse(&visit)
    }
}

/// A descriptor is ready.
struct Ready(i32, Readiness);

impl Operation for Ready {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(Watching::new(self.0, self.1), |()| Yield::Plain)
    }

    fn traverse(&self, _: &PyVisit<'_>) -> Visited {
        Ok(())
    }
}

/// A time has come.
struct After(Time);

impl Operation for After {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(Until(self.0), |()| Yield::Plain)
    }

    fn traverse(&self, _: &PyVisit<'_>) -> Visited {
        Ok(())
    }
}

/// An operation failed: in the words of the core, until an exception is made of it.
pub(super) enum Failure {
    Stop(Stop),
    Lock(LockError),
    Queue(QueueError),
    Ready(ReadyError),
    Raised(PyErr),
}

impl Failure {
    pub(super) fn into_exception(self, py: Python<'_>) -> PyErr {
        match self {
            Failure::Stop(stop) => error::from_stop(py, stop),
            Failure::Lock(failure) => error::from_lock(py, failure),
            Failure::Queue(failure) => error::from_queue(py, failure),
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

/// An operation of the core, with its result and its error converted.
struct Adapted<O, F> {
    op: O,
    output: F,
}

/// An operation of the core, ready for wait_any(). `output` converts its result.
pub(super) fn adapted<'a, O, F>(op: O, output: F) -> Started<'a>
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
