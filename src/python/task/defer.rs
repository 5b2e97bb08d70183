//! Blocks that hold a kill off: `defer_kill()` and `Lease.commit()`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::error::ScopeMisuse;
use crate::python::binding::lazy_arg::{GivenClass, GivenException, GivenTraceback};
use crate::python::binding::seconds::{self, Seconds};
use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::mask::Mask;
use crate::python::{error, wait};
use crate::scope;

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
