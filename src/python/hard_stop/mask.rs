//! Masks: while a task has an open mask whose time has not passed, kills of it are deferred.
//!
//! A task may have several; the core counts them by their numbers. Each has a time at which it ends by
//! itself, so that a step that hangs cannot make a thread immortal.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::clock::Time;
use crate::scope;
use crate::task::{MaskNumber, Task};

/// One mask of one task, closed when this is dropped.
pub(in crate::python) struct Mask {
    pub(in crate::python) task: Arc<Task>,
    number: MaskNumber,
}

impl Mask {
    /// A mask for the task of the calling code, for `at_most` this long. `None`: outside any task,
    /// where no kill can come.
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

/// The bound for a function that [`call_masked`] calls, which is short.
const LONGEST: Duration = Duration::from_secs(5);

thread_local! {
    /// The mask of the innermost [`call_masked`] of the thread; `None` while [`unmasked`] has opened it.
    static HELD_OFF: Cell<Option<Mask>> = const { Cell::new(None) };
}

/// Call a short function that a kill must not interrupt half-way, and return its result.
///
/// On kill: deferred. The result is returned all the same; the kill is raised at the next checkpoint,
/// or delivered again.
#[pyfunction]
#[pyo3(signature = (r#fn: "Callable[..., _T]", *arguments: "object") -> "_T")]
pub(in crate::python) fn call_masked<'py>(
    r#fn: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let outer = HELD_OFF.replace(Mask::open(LONGEST));
    let result = r#fn.call1(arguments);
    drop(HELD_OFF.replace(outer));
    result
}

/// Runs a blocking wait inside a function that [`call_masked`] calls: kills are delivered during the wait.
pub(in crate::python) fn unmasked<R>(wait: impl FnOnce() -> R) -> R {
    let masked = HELD_OFF.take().is_some();
    let result = wait();
    if masked {
        HELD_OFF.set(Mask::open(LONGEST));
    }
    result
}
