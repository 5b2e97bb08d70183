//! How a lock learns at its block's end that its holder was killed inside.

use std::sync::Arc;

use pyo3::exceptions::PyGeneratorExit;
use pyo3::intern;
use pyo3::prelude::*;

use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::stack;
use crate::scope;
use crate::task::{KillInfo, Task};

/// The calling task unwinds because it was stopped hard.
pub(in crate::python) struct Killing {
    task: Arc<Task>,
}

impl Killing {
    /// `entry`: of what is held, in the ledger. `unwinding`: the exception that is on its way.
    pub(in crate::python) fn of(
        py: Python<'_>,
        entry: Option<u64>,
        unwinding: &Bound<'_, PyAny>,
    ) -> Option<(Killing, KillInfo)> {
        // A suspended generator that the unwinding throws away gets GeneratorExit instead.
        if !unwinding.is_instance_of::<Killed>() && !unwinding.is_instance_of::<PyGeneratorExit>() {
            return None;
        }
        let task = scope::current_task()?;
        let place = stack::stack_of(py, &PyErr::from_value(unwinding.clone()));
        let kill = task.kill_info(entry, place)?;
        Some((Killing { task }, kill))
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

/// What is on its way through the code that calls to release something: in a `finally` it is the
/// exception that is being handled. `entry`: of what is to be released, in the ledger.
pub(in crate::python) fn unwinding(
    py: Python<'_>,
    entry: Option<u64>,
) -> PyResult<Option<Bound<'_, PyAny>>> {
    // Nobody else can be the victim of a kill than a task that has been told of one.
    if scope::current_task().is_none_or(|task| task.kill_info(entry, None).is_none()) {
        return Ok(None);
    }
    let handled = py
        .import(intern!(py, "sys"))?
        .call_method0(intern!(py, "exc_info"))?
        .get_item(1)?;
    Ok(Some(handled).filter(|handled| !handled.is_none()))
}
