//! What holds a kill off for a while: `defer_kill()`, `Lease.commit()`, and `hold_off()`.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::clock::Time;
use crate::error::ScopeMisuse;
use crate::python::binding::lazy_arg::{GivenClass, GivenException, GivenTraceback};
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error::Killed;
use crate::python::{error, hard_stop, wait};
use crate::scope;
use crate::task::{MaskNumber, Task};

/// A mask of one task, for as long as this lives. Whoever drops it closes this one and no other.
pub(in crate::python) struct Mask {
    task: Arc<Task>,
    number: MaskNumber,
}

impl Mask {
    /// For the task of the calling code; outside any there is nothing to hold off.
    pub(in crate::python) fn open(at_most: Duration) -> Option<Mask> {
        let task = scope::current_task()?;
        let number = task.mask(Time::after(at_most));
        Some(Mask { task, number })
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        self.task.unmask(self.number);
    }
}

/// For what [`hold_off`] calls, which is short.
const LONGEST: Duration = Duration::from_secs(5);

thread_local! {
    /// The mask of the innermost [`hold_off`].
    static HELD_OFF: Cell<Option<Mask>> = const { Cell::new(None) };
}

/// Call something that a kill must not tear apart; it is to be short. What it returns is returned,
/// even if a kill came meanwhile: that one is raised at the next checkpoint, or sent again.
#[pyfunction]
#[pyo3(signature = (r#fn: "Callable[..., _T]", *arguments: "object") -> "_T")]
pub(in crate::python) fn hold_off<'py>(
    r#fn: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let outer = HELD_OFF.replace(Mask::open(LONGEST));
    let result = hard_stop::call(r#fn, arguments);
    drop(HELD_OFF.replace(outer));
    result
}

/// Do something that blocks, in what [`hold_off`] calls: meanwhile kills are not held off.
pub(in crate::python) fn let_in<R>(wait: impl FnOnce() -> R) -> R {
    let masked = HELD_OFF.take().is_some();
    let result = wait();
    if masked {
        HELD_OFF.set(Mask::open(LONGEST));
    }
    result
}

/// How a masked block begins.
#[derive(Clone, Copy)]
pub(in crate::python) enum Beginning {
    /// With a look for kills.
    UnlessKilled,
    /// With a checkpoint.
    Checkpoint,
}

/// A block in which a kill is held off; made by defer_kill() and Lease.commit(), and used in a
/// `with` statement, once.
///
/// It knows the mask that it has opened: it may be left by another thread, or late, as a suspended
/// generator is that is thrown away, and closes nobody else's. If it is never left, its mask goes
/// with it.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct Masked {
    at_most: Duration,
    beginning: Beginning,
    entered: AtomicBool,
    mask: Mutex<Option<Mask>>,
}

impl Masked {
    pub(in crate::python) const fn new(at_most: Duration, beginning: Beginning) -> Self {
        Self {
            at_most,
            beginning,
            entered: AtomicBool::new(false),
            mask: Mutex::new(None),
        }
    }
}

#[pymethods]
impl Masked {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        if self.entered.swap(true, Ordering::Relaxed) {
            return Err(error::misuse(py, ScopeMisuse::EnteredTwice));
        }
        match self.beginning {
            Beginning::UnlessKilled => error::check_kill(py)?,
            Beginning::Checkpoint => wait::checkpoint(py)?,
        }
        // Not under the lock: what was posted is taken back, by code of the host.
        let mask = Mask::open(self.at_most);
        *self.mask.lock() = mask;
        Ok(())
    }

    #[pyo3(signature = (_type, value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: GivenClass<'_, '_>,
        value: GivenException<'_, '_>,
        _traceback: GivenTraceback<'_, '_>,
    ) -> PyResult<()> {
        if !self.entered.load(Ordering::Relaxed) {
            return Err(error::misuse(py, ScopeMisuse::NotEntered));
        }
        let Some(mask) = self.mask.lock().take() else {
            return Ok(());
        };
        let mine = scope::current_task().is_some_and(|task| Arc::ptr_eq(&task, &mask.task));
        drop(mask);
        // What has arrived already goes on by itself.
        if mine && !value.is_instance_of::<Killed>() {
            error::check_kill(py).or_else(|kill| {
                kill.value(py).setattr("__context__", &*value)?;
                Err(kill)
            })?;
        }
        Ok(())
    }
}

/// A block in which a kill is held off, for at most the given seconds from its beginning: for a
/// few steps that must all be done, or none.
///
/// A kill that has come before, and that nothing holds off, is raised at the beginning; one that
/// comes inside, at the end. Cancelled is neither raised there nor kept off: a wait inside raises
/// it. The bound is required, for until then even the strongest rung of a kill() waits; write out
/// math.inf only where the block surely comes to an end. Threads that are started inside can be
/// killed. Outside any task it does nothing. Never blocks.
///
/// To undo things while a kill is on its way through, use cleanup().
#[pyfunction]
#[pyo3(signature = (seconds, /))]
pub(in crate::python) fn defer_kill(seconds: Seconds<'_, '_>) -> PyResult<Masked> {
    let at_most = seconds::span(seconds, "the time to hold a kill off")?;
    Ok(Masked::new(at_most, Beginning::UnlessKilled))
}
