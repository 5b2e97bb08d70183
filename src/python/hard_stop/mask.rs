//! Masks: they hold a kill of the calling task off for a while.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::call;
use crate::clock::Time;
use crate::scope;
use crate::task::{MaskNumber, Task};

/// A mask of one task, for as long as this lives. Whoever drops it closes this one and no other.
pub(in crate::python) struct Mask {
    pub(in crate::python) task: Arc<Task>,
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
    let result = call(r#fn, arguments);
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
