//! `wait_any`: the first of several operations.
//!
//! Guarantees: one of the operations is done, or none (I14). The operations are tried in the order
//! given, and a cancelled caller does none of them (I15).
//!
//! How: each argument becomes an [`Op`]. An event and a token make theirs here; a thread and a task
//! have a method `_done_op()`; a future of another library gets one from `desist._ops`. The wait
//! itself is the core's `perform_any`, and only the sleeping is done without the interpreter.

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::cause::DEFAULT_GRACE;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::hard_stop::mask::Mask;
use crate::python::op::{Op, Yield};
use crate::python::ports::waitable;
use crate::python::sync::event::Event;
use crate::python::token::CancelToken;
use crate::python::wait::asleep;
use crate::wait;

/// Wait for several things at once, and do the first that is possible, and none of the others.
///
/// Returns a pair: the position of the argument, and its result. Or None, if `timeout` seconds have
/// passed first. If several are possible at once, the first of them in the order given is done.
///
/// ==========================  =================================  =============================
/// Argument                    Done when                          Result
/// ==========================  =================================  =============================
/// `queue.get_op()`            an item could be taken             the item
/// `queue.put_op(item)`        the item was put                   None
/// `lock.acquire_op()`         the lock is held by the caller     True
/// `semaphore.acquire_op()`    a permit was taken                 True
/// `Op.readable(file)`         the file can be read               None
/// `Op.writable(file)`         the file can be written            None
/// `Op.after(seconds)`         the time is over                   None
/// an Event                    it is set                          True
/// a CancelToken               it is cancelled                    its CancelCause
/// a Thread                    it has ended, or was abandoned     that thread
/// a Task of a TaskGroup       it has ended, or was abandoned     that task
/// a Future                    it is done                         that future
/// ==========================  =================================  =============================
///
/// A future is one of desist's or of concurrent.futures; its result() then returns, or raises, at
/// once. A queue or a lock has more than one operation, so its method says which is meant.
///
/// Blocks: until one of them is possible, or the timeout is over.
///
/// On cancel: Cancelled is raised, also on entry, and nothing was done.
///
/// On timeout: None is returned, and nothing was done.
///
/// On kill: Killed is raised, and nothing was done. A kill that comes when one of them was just
/// done is raised at the next checkpoint.
///
/// Raises:
///     TypeError: no argument, or one that is none of the above; a list has to be unpacked.
///     LockPoisoned, OwnerLost: as acquire() raises them.
///     ShutDown: as get() and put() raise it.
///     OSError: a bad descriptor.
#[pyfunction]
#[pyo3(signature = (*what: "Op[_T]", timeout = None) -> "tuple[int, _T] | None")]
pub(super) fn wait_any<'py>(
    py: Python<'py>,
    what: &Bound<'py, PyTuple>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<Option<(usize, Bound<'py, PyAny>)>> {
    let until = seconds::patience(timeout)?;
    if what.is_empty() {
        let message = format!("wait_any() needs something to wait for: {ACCEPTED}");
        return Err(PyTypeError::new_err(message));
    }
    let ops: Vec<Py<Op>> = what
        .iter()
        .map(|one| op_for(one).map(Bound::unbind))
        .collect::<PyResult<_>>()?;
    let mut started: Vec<_> = ops.iter().map(|op| op.get().start(py)).collect();
    let mut started: Vec<_> = started.iter_mut().map(|op| &mut **op).collect();
    match wait::perform_any(&mut started, until, asleep(py)) {
        Ok(None) => Ok(None),
        Ok(Some((which, Yield::Object(object)))) => Ok(Some((which, object.into_bound(py)))),
        Ok(Some((which, Yield::Plain))) => Ok(Some((which, ops[which].get().result(py)?))),
        Err(failure) => Err(failure.into_exception(py)),
    }
}

const ACCEPTED: &str = "operations (queue.get_op(), lock.acquire_op(), Op.readable(file), ...), \
    desist events and tokens, desist threads, tasks and futures";

/// The operation that an argument is, or stands for.
fn op_for(what: Bound<'_, PyAny>) -> PyResult<Bound<'_, Op>> {
    let py = what.py();
    let what = match what.cast_into::<Op>() {
        Ok(op) => return Ok(op),
        Err(other) => other.into_inner(),
    };
    if let Ok(event) = what.cast::<Event>() {
        return Bound::new(py, Event::wait_op(event.clone().unbind()));
    }
    if let Ok(token) = what.cast::<CancelToken>() {
        return Bound::new(py, CancelToken::cancelled_op(token.clone().unbind()));
    }
    let done = match what.getattr_opt(waitable::_done_op(py))? {
        Some(make) => make.call0()?,
        None => of_future(&what)?,
    };
    Ok(done.cast_into::<Op>()?)
}

/// The operation for a future that is not desist's; `TypeError` for any other object.
fn of_future<'py>(what: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static DONE_OP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = what.py();
    let done_op = DONE_OP.get_or_try_init(py, || {
        // A kill in the middle of an import would leave the module's import lock held.
        let _mask = Mask::open(DEFAULT_GRACE);
        let module = py.import(interned!(py, "desist._ops"))?;
        module.getattr(interned!(py, "done_op")).map(Bound::unbind)
    })?;
    let done = done_op.bind(py).call1((what,))?;
    if done.is_none() {
        let kind = what.get_type().qualname()?;
        let message = format!("wait_any() takes {ACCEPTED}, not {kind}{}", advice(what));
        return Err(PyTypeError::new_err(message));
    }
    Ok(done)
}

/// The end of the message, for arguments whose sense can be guessed.
fn advice(what: &Bound<'_, PyAny>) -> &'static str {
    let offers = |name: &str| what.hasattr(name).unwrap_or(false);
    if offers("get_op") {
        ": give its get_op() or put_op(item)"
    } else if offers("acquire_op") {
        ": give its acquire_op()"
    } else if offers("fileno") {
        ": give Op.readable(file) or Op.writable(file)"
    } else if offers("__iter__") {
        ": unpack it, as in wait_any(*several)"
    } else {
        ""
    }
}
