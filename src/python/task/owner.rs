//! `OwnerBlock`: the `with` block of an executor or a pool, which ends the work when it is left early.
//!
//! Guarantees: whatever leaves the block, and whatever is raised in the wait at its end, the work is ended
//! (I35). A kill or a signal may be raised before any bytecode, those of an `__exit__` in Python included;
//! so this one is native, and calls the two methods of the owner.
//!
//! How: `_join_work` is interrupted by anything. `_end_work` is called with kills deferred, and once more if
//! a signal handler has raised in it. It is idempotent: the second call ends what is left.

use std::time::Duration;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::hard_stop::killed;
use crate::python::hard_stop::mask::Mask;
use crate::python::ports::work_owner;

/// The bound of the mask around the end, for its steps in Python; a kill of the work opens its own.
const BRIEFLY: Duration = Duration::from_secs(5);

/// A block that waits for work of its object, and ends it when it is left early.
#[pyclass(frozen, subclass, module = "desist._core")]
pub(in crate::python) struct OwnerBlock;

#[pymethods]
impl OwnerBlock {
    #[new]
    #[pyo3(signature = (*_arguments: "object", **_named: "object"))]
    fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> Self {
        Self
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
        let ended = {
            let _mask = Mask::open(BRIEFLY);
            let end = || slf.call_method0(work_owner::_end_work(py)).map(drop);
            match end() {
                Err(signal) if !signal.is_instance_of::<PyException>(py) => end().and(Err(signal)),
                ended => ended,
            }
        };
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
