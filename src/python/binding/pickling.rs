//! How values of the extension are copied and pickled: `copy`, `deepcopy` and all protocols of `pickle`
//! go by `__reduce__` (I45).
//!
//! A class that its users can construct is made again by its own constructor, which checks the
//! arguments ([`by_constructor`]). A class that only the core makes has a function `restore_...` of the
//! extension ([`by_function`]); pickles name it, so its name and its parameters stay as they are.
//!
//! Exact values travel: times as whole nanoseconds, not as the float that Python code reads. A time is one
//! of the machine's monotonic clock, so it is comparable between processes of one machine, and of one
//! start of it.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// What `__reduce__` returns: a callable, its arguments, and the state for `__setstate__`, if any.
pub(in crate::python) type Reduced<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The object is made again by its class with these keyword arguments.
pub(in crate::python) fn by_constructor<'py, T: pyo3::PyTypeInfo>(
    py: Python<'py>,
    fields: Bound<'py, PyDict>,
) -> PyResult<Reduced<'py>> {
    // The function that CPython's own objects with keyword arguments name; all protocols know it.
    let make = py.import("copyreg")?.getattr("__newobj_ex__")?;
    let arguments = (py.get_type::<T>(), PyTuple::empty(py), fields).into_pyobject(py)?;
    Ok((make, arguments.into_any(), py.None().into_bound(py)))
}

/// The object is made again by that function of the extension, with these arguments. `state`: the
/// `__dict__` of an exception, which has its notes.
pub(in crate::python) fn by_function<'py>(
    py: Python<'py>,
    name: &str,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
    state: Option<Bound<'py, PyAny>>,
) -> PyResult<Reduced<'py>> {
    let make = py.import("desist._core")?.getattr(name)?;
    let state = state.unwrap_or_else(|| py.None().into_bound(py));
    Ok((make, arguments.into_pyobject(py)?.into_any(), state))
}

/// A span as its nanoseconds.
pub(in crate::python) fn nanos(span: Duration) -> u128 {
    span.as_nanos()
}

/// The span of [`nanos`]; a longer one than there is becomes the longest.
pub(in crate::python) fn span(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND);
    seconds.map_or(Duration::MAX, |seconds| {
        let rest = u32::try_from(nanos % SECOND).unwrap_or_default(); // less than a second
        Duration::new(seconds, rest)
    })
}
