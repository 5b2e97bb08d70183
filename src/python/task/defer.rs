//! Blocks that defer kills: `defer_kill()` and `Lease.commit()`.
//!
//! Each is one mask of the core's task (`hard_stop::mask`) for the time of a `with` block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::error::ScopeMisuse;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::seconds::{self, Seconds};
use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::mask::Mask;
use crate::python::{error, wait};
use crate::scope;

/// The check that a masked block makes at its beginning.
#[derive(Clone, Copy)]
pub(in crate::python) enum Beginning {
    /// For a kill.
    UnlessKilled,
    /// For a kill or a cancellation.
    Checkpoint,
}

/// A block in which kills are deferred; made by defer_kill() and Lease.commit(), and used in a `with`
/// statement, once.
///
/// It may be left by another thread, or late, as a suspended generator that is dropped: it then closes
/// its own mask and no other. If it is never left, the mask is closed when this object is dropped.
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
        // Not under the lock: a posted exception is retracted, which runs code of the host.
        let mask = Mask::open(self.at_most);
        *self.mask.lock() = mask;
        Ok(())
    }

    #[pyo3(signature = (_type, value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        if !self.entered.load(Ordering::Relaxed) {
            return Err(error::misuse(py, ScopeMisuse::NotEntered));
        }
        let Some(mask) = self.mask.lock().take() else {
            return Ok(());
        };
        let mine = scope::current_task().is_some_and(|task| Arc::ptr_eq(&task, &mask.task));
        drop(mask);
        // A kill that was delivered already is unwinding, and is not raised again.
        if mine && !value.is_instance_of::<Killed>() {
            error::check_kill(py).or_else(|kill| {
                kill.value(py).setattr("__context__", &*value)?;
                Err(kill)
            })?;
        }
        Ok(())
    }
}

/// A block in which kills are deferred, for at most the given seconds from its beginning: for a few
/// steps that must all be done, or none.
///
/// On kill: one that was requested before is raised at the beginning; one that comes inside is raised
/// at the end. Threads that are started inside can be killed.
/// On cancel: nothing changes: the block's own ends do not raise Cancelled, a wait inside does.
///
/// The bound is required, for until then even the strongest rung of a kill() waits; write out math.inf
/// only where the block surely comes to an end. Outside any task it does nothing. Never blocks.
///
/// To undo things while a kill unwinds the code, use cleanup().
#[pyfunction]
#[pyo3(signature = (seconds, /))]
pub(in crate::python) fn defer_kill(seconds: Seconds<'_, '_>) -> PyResult<Masked> {
    let at_most = seconds::span(seconds, "the time to hold a kill off")?;
    Ok(Masked::new(at_most, Beginning::UnlessKilled))
}
