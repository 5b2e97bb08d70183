//! How a lock learns at its block's end that its holder was killed inside.
//!
//! A kill unwinds the body as an exception, and so runs the ends of its blocks before the task's
//! boundary is reached. `__exit__` gets the exception as an argument; `release()`, called in a
//! `finally`, finds it as the exception that is being handled. Only a task with a requested kill can
//! be unwound by one, which keeps the look at `sys.exc_info()` out of the usual path.

use std::sync::Arc;

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyGeneratorExit;
use pyo3::prelude::*;

use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::traceback;
use crate::scope;
use crate::task::{KillInfo, Task};

/// The calling task is unwound by a kill.
pub(in crate::python) struct KilledHolder {
    task: Arc<Task>,
}

impl KilledHolder {
    /// `entry`: the ledger's entry of the hold. `unwinding`: the exception that unwinds.
    pub(in crate::python) fn of(
        py: Python<'_>,
        entry: Option<u64>,
        unwinding: &Bound<'_, PyAny>,
    ) -> Option<(KilledHolder, KillInfo)> {
        // A suspended generator that is dropped by the unwinding gets GeneratorExit instead.
        if !unwinding.is_instance_of::<Killed>() && !unwinding.is_instance_of::<PyGeneratorExit>() {
            return None;
        }
        let task = scope::current_task()?;
        let place = traceback::stack_of(py, &PyErr::from_value(unwinding.clone()));
        let kill = task.kill_info(entry, place)?;
        Some((KilledHolder { task }, kill))
    }

    /// For the report: a lock was released.
    pub(in crate::python) fn record(&self, name: &Arc<str>, poisoned: bool) {
        self.task.amend(|record| {
            let names = if poisoned {
                &mut record.swept.poisoned
            } else {
                &mut record.swept.released
            };
            names.push(name.clone());
        });
    }
}

/// The exception that unwinds the code which calls `release()`, if that may be a kill. `entry`: the
/// hold's number in the ledger.
pub(in crate::python) fn unwinding(
    py: Python<'_>,
    entry: Option<u64>,
) -> PyResult<Option<Bound<'_, PyAny>>> {
    // Without a requested kill, no exception that unwinds is one.
    if scope::current_task().is_none_or(|task| task.kill_info(entry, None).is_none()) {
        return Ok(None);
    }
    let handled = py
        .import(interned!(py, "sys"))?
        .call_method0(interned!(py, "exc_info"))?
        .get_item(1)?;
    Ok(Some(handled).filter(|handled| !handled.is_none()))
}
