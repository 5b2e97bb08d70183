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
use crate::foreign::{self, CallsMasked};
use crate::scope;
use crate::task::{MaskNumber, Task};

/// One mask of one task, closed when this is dropped.
pub(in crate::python) struct Mask {
    pub(in crate::python) task: Arc<Task>,
    number: MaskNumber,
    /// A step that is not to be killed half-way is not to be cut short in a blocking call, either.
    _calls: Option<CallsMasked>,
}

impl Mask {
    /// A mask for the task of the calling code, for `at_most` this long. `None`: outside any task,
    /// where no kill can come.
    pub(in crate::python) fn open(at_most: Duration) -> Option<Mask> {
        let task = scope::current_task()?;
        let end = Time::after(at_most);
        let number = task.mask(end);
        Some(Mask {
            task,
            number,
            _calls: CallsMasked::until(end),
        })
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        self.task.unmask(self.number);
    }
}

/// The bound for a function that [`call_masked`] calls, which is short.
const LONGEST: Duration = Duration::from_secs(5);

/// The mask of a call that is masked by [`masked`].
struct HeldOff {
    mask: Mask,
    waits: InWaits,
}

/// What becomes of a kill while a masked call waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::python) enum InWaits {
    /// It is deferred, unless the wait is one of [`unmasked`].
    Deferred,
    /// It is delivered, in any wait of desist that the call makes itself.
    Delivered,
}

thread_local! {
    /// Of the innermost [`masked`] call of the thread; `None` while [`unmasked`] has lifted it, and
    /// outside any task.
    static HELD_OFF: Cell<Option<HeldOff>> = const { Cell::new(None) };
}

/// Calls a function that a kill must not interrupt half-way, nor the end of a blocking call in it.
pub(in crate::python) fn masked<R>(waits: InWaits, call: impl FnOnce() -> R) -> R {
    let outer = HELD_OFF.replace(HeldOff::open(waits));
    let result = foreign::with_calls_left_alone(call);
    drop(HELD_OFF.replace(outer));
    result
}

impl HeldOff {
    fn open(waits: InWaits) -> Option<Self> {
        Mask::open(LONGEST).map(|mask| Self { mask, waits })
    }
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
    masked(InWaits::Deferred, || r#fn.call1(arguments))
}

/// Runs a blocking wait inside a [`masked`] call: kills are delivered during the wait.
pub(in crate::python) fn unmasked<R>(wait: impl FnOnce() -> R) -> R {
    let lifted = HELD_OFF.take().map(|HeldOff { mask, waits }| {
        drop(mask);
        waits
    });
    let result = wait();
    if let Some(waits) = lifted {
        HELD_OFF.set(HeldOff::open(waits));
    }
    result
}

/// Runs a wait of any primitive: kills are delivered in it, if the innermost [`masked`] call says so.
pub(in crate::python) fn in_wait<R>(wait: impl FnOnce() -> R) -> R {
    let held_off = HELD_OFF.take();
    let lifts = held_off
        .as_ref()
        .is_some_and(|held_off| held_off.waits == InWaits::Delivered);
    HELD_OFF.set(held_off);
    if lifts { unmasked(wait) } else { wait() }
}
