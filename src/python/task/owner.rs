//! `OwnerBlock`: the `with` block of an executor or a pool, which ends the work when it is left early.
//!
//! Guarantees: whatever leaves the block, and whatever is raised in the wait at its end, the work is ended
//! (I35). A kill or a signal may be raised before any bytecode, those of an `__exit__` in Python included;
//! so this one is native, and calls the two methods of the owner.
//!
//! How: `_join_work` is interrupted by anything. `_end_work` is called with kills deferred, and once more if
//! a signal handler has raised in it. It is idempotent: the second call ends what is left.
//!
//! An exception that arrives from outside can skip the call of `__exit__` (docs/kill.md, Versions). So the
//! block is recorded in the thread's ledger while it is open, if it is one of a `with` statement that has
//! surely ended when the code around it has: then the scope around it, or the task, ends the work.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::fork;
use crate::ledger::{AbandonHook, Ledger};
use crate::python::binding::attach::attach;
use crate::python::binding::home::is_block_of_function;

use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::hard_stop::killed;
use crate::python::hard_stop::mask::Mask;
use crate::python::ports::work_owner;
use crate::scope;

/// The bound of the mask around the end, for its steps in Python; a kill of the work opens its own.
const BRIEFLY: Duration = Duration::from_secs(5);

/// A block that waits for work of its object, and ends it when it is left early.
#[pyclass(frozen, subclass, module = "desist._core")]
pub(in crate::python) struct OwnerBlock {
    /// The records of the blocks that are open: the ledger, and the number there. Locked by attached
    /// threads, for a few instructions.
    open: Mutex<Vec<(Arc<Ledger>, u64)>>,
}

/// The hook of a block whose `__exit__` was skipped.
struct SkippedExit(Py<OwnerBlock>);

impl AbandonHook for SkippedExit {
    fn on_abandoned(&self) {
        fork::outside(|| {
            attach(|py| {
                if let Err(raised) = end_work(self.0.bind(py)) {
                    raised.write_unraisable(py, None);
                }
            })
        });
    }
}

/// End the work, whatever is raised meanwhile.
fn end_work(owner: &Bound<'_, OwnerBlock>) -> PyResult<()> {
    let _mask = Mask::open(BRIEFLY);
    let end = || {
        owner
            .call_method0(work_owner::_end_work(owner.py()))
            .map(drop)
    };
    match end() {
        Err(signal) if !signal.is_instance_of::<PyException>(owner.py()) => end().and(Err(signal)),
        ended => ended,
    }
}

impl OwnerBlock {
    /// The end of the block that the calling thread has entered last; else, of the last one.
    fn remove_record(&self) {
        let mut open = self.open.lock();
        let ledger = scope::current_ledger();
        let own = open
            .iter()
            .rposition(|(other, _)| Arc::ptr_eq(other, &ledger));
        let at = own.or(open.len().checked_sub(1));
        let record = at.map(|at| open.remove(at));
        drop(open);
        if let Some((ledger, number)) = record {
            drop(ledger.remove_block(number)); // unlocked: it has a count of the owner
        }
    }
}

#[pymethods]
impl OwnerBlock {
    #[new]
    #[pyo3(signature = (*_arguments: "object", **_named: "object"))]
    fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> Self {
        let open = Mutex::default();
        Self { open }
    }

    /// Return the object itself.
    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        if is_block_of_function(slf.py()) {
            let ledger = scope::current_ledger();
            let number = ledger.record_block(Arc::new(SkippedExit(slf.clone().unbind())));
            slf.get().open.lock().push((ledger, number));
        }
        slf
    }

    /// Wait for the work, unless an exception leaves the block, and end it.
    #[pyo3(signature = (r#type, _value, _traceback, /))]
    fn __exit__(
        slf: &Bound<'_, Self>,
        r#type: LazyClass<'_, '_>,
        _value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        let py = slf.py();
        let joined = if r#type.is_none() {
            slf.call_method0(work_owner::_join_work(py)).map(drop)
        } else {
            Ok(())
        };
        let ended = end_work(slf);
        slf.get().remove_record();
        match (joined, ended) {
            (Err(first), Err(last)) => {
                last.value(py).setattr("__context__", first.value(py))?;
                Err(last)
            }
            (joined, ended) => joined.and(ended),
        }?;
        if r#type.is_none() {
            killed::check_kill(py)?;
        }
        Ok(())
    }
}
