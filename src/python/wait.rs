//! Sleeping, checkpoints, and how any operation of the core waits.
//!
//! An operation is tried attached; only its sleeping is done detached ([`perform`]), so that its
//! result goes to an attached thread at once. [`blocking`] runs a whole wait detached, for
//! waits that yield no object.

use std::time::Duration;

use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::clock::Time;
use crate::error::Stop;
use crate::park::WaitOutcome;
use crate::python::binding::host::detached;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error;
use crate::python::hard_stop::mask::in_wait;
use crate::python::op::{Op, Operation, Started, Visited, Yield, adapted};
use crate::wait::{Op as CoreOp, Park};
use crate::{scope, sync, wait};

/// Runs a wait detached, and converts the stop that ended it.
pub(super) fn blocking<R: Send>(
    py: Python<'_>,
    wait: impl FnOnce() -> Result<R, Stop> + Send,
) -> PyResult<R> {
    in_wait(|| detached(py, wait)).map_err(|stop| error::from_stop(py, stop))
}

/// Performs an operation, waiting until `until` at most; only the sleeping is done detached.
#[inline]
pub(super) fn perform<O: CoreOp>(
    py: Python<'_>,
    op: &mut O,
    until: Time,
) -> Result<Option<O::Output>, O::Error> {
    wait::perform_by(op, until, asleep(py))
}

/// How an operation sleeps detached.
pub(super) fn asleep(py: Python<'_>) -> impl Fn(&mut Park<'_>) -> WaitOutcome {
    move |park| in_wait(|| detached(py, park))
}

/// Raise Cancelled or Killed if the calling code is to stop.
///
/// Never blocks. Outside any scope and task it does nothing.
#[inline]
#[pyfunction]
pub(super) fn checkpoint(py: Python<'_>) -> PyResult<()> {
    wait::checkpoint().map_err(|stop| error::from_stop(py, stop))
}

/// Sleep for the given number of seconds; like time.sleep, but it can be cancelled.
///
/// Blocks: for that long. Signal handlers run at once, as in time.sleep.
/// On cancel: Cancelled is raised, also on entry.
/// On kill: Killed is raised.
///
/// Raises:
///     TypeError: not a number.
///     ValueError: negative, or NaN.
#[pyfunction]
#[pyo3(signature = (seconds, /))]
pub(super) fn sleep(py: Python<'_>, seconds: Seconds<'_, '_>) -> PyResult<()> {
    let duration = seconds::span(seconds, "the time to sleep")?;
    if duration == Duration::ZERO {
        checkpoint(py)?;
        py.detach(std::thread::yield_now);
        return Ok(());
    }
    blocking(py, || wait::sleep(duration))
}

/// Sleep until `current_time()` has reached the given value, in seconds.
///
/// Blocks: until then.
/// On cancel: Cancelled is raised, also on entry.
/// On kill: Killed is raised.
///
/// Raises:
///     TypeError: not a number.
///     ValueError: NaN.
#[pyfunction]
#[pyo3(signature = (deadline, /))]
pub(super) fn sleep_until(py: Python<'_>, deadline: Seconds<'_, '_>) -> PyResult<()> {
    let until = seconds::instant(deadline, "the time to sleep until")?;
    blocking(py, || wait::sleep_until(until))
}

/// Sleep until the calling code is to stop.
///
/// Blocks: until then, and never returns.
/// On cancel: Cancelled is raised, also on entry.
/// On kill: Killed is raised.
#[pyfunction]
pub(super) fn sleep_forever(py: Python<'_>) -> PyResult<()> {
    blocking(py, || wait::sleep_until(Time::NEVER))
}

/// The clock of all deadlines, in seconds: on Linux the same as time.monotonic().
#[pyfunction]
pub(super) fn current_time() -> f64 {
    seconds::from_time(Time::now())
}

/// The tightest deadline that the calling code is under; infinity if there is none.
#[pyfunction]
pub(super) fn current_effective_deadline() -> f64 {
    seconds::from_time(scope::current_effective_deadline())
}

/// A flag that is set once.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Latch {
    latch: sync::Latch,
}

/// Waits until the latch is set; the result is the second field.
struct WaitUntilLatched(Py<Latch>, Py<PyAny>);

impl Operation for WaitUntilLatched {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(&self.0.get().latch, |()| Yield::Plain)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)?;
        visit.call(&self.1)
    }

    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.1.bind(py).clone())
    }
}

#[pymethods]
impl Latch {
    #[new]
    fn new() -> Self {
        Self {
            latch: sync::Latch::new(),
        }
    }

    /// Set it and wake all waiters.
    fn set(&self) {
        self.latch.set();
    }

    /// Is it set?
    fn is_set(&self) -> bool {
        self.latch.is_set()
    }

    /// It is set: an operation for wait_any() that yields `value`.
    #[pyo3(signature = (value: "_T", /) -> "Op[_T]")]
    fn wait_op(slf: Py<Self>, value: Py<PyAny>) -> Op {
        Op::new(WaitUntilLatched(slf, value))
    }

    /// Wait until it is set (True) or the seconds have passed (False).
    ///
    /// Blocks: until then. A checkpoint.
    /// On cancel: Cancelled is raised.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::patience(timeout)?;
        blocking(py, || self.latch.wait_until(until))
    }
}
