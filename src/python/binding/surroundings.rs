//! The native part of `desist._surroundings`: the interpreter that imports the extension, and libraries
//! that patch threads after the import.
//!
//! A library that patches a process imports modules of its own for that. So [`look`], which every call
//! that may block begins with, only compares the number of imported modules with that of the last look.
#![allow(unsafe_code)] // calls of the C API

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

/// The number of imported modules at the last look. Several threads may look at once; the warning is
/// given once all the same.
static SEEN: AtomicUsize = AtomicUsize::new(0);

/// Refuse any interpreter but the main one. `desist._surroundings` does so before the extension is
/// loaded, except in a build of CPython 3.10 or 3.11 without the module that tells.
pub(in crate::python) fn refuse_subinterpreters() -> PyResult<()> {
    // SAFETY: attached, as every import is; both functions only return a pointer.
    let is_main = unsafe { ffi::PyInterpreterState_Get() == ffi::PyInterpreterState_Main() };
    if is_main {
        Ok(())
    } else {
        Err(PyImportError::new_err(
            "desist can only be imported in the main interpreter, not in a subinterpreter",
        ))
    }
}

/// Warn, once, if gevent or eventlet has patched this process.
pub(in crate::python) fn look(py: Python<'_>) {
    static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let modules = MODULES.get_or_try_init(py, || {
        let modules = py.import("sys")?.getattr("modules")?;
        Ok::<_, PyErr>(modules.cast_into::<PyDict>()?.unbind())
    });
    let Ok(modules) = modules.map(|modules| modules.bind(py)) else {
        return; // no memory
    };
    let count = modules.len();
    if SEEN.load(Ordering::Relaxed) != count {
        SEEN.store(count, Ordering::Relaxed);
        look_closely(py, modules);
    }
}

#[cold]
fn look_closely(py: Python<'_>, modules: &Bound<'_, PyDict>) {
    let names = [
        interned!(py, "gevent.monkey"),
        interned!(py, "eventlet.patcher"),
    ];
    if !names
        .iter()
        .any(|name| modules.contains(name).unwrap_or(false))
    {
        return;
    }
    let told = py
        .import("desist._surroundings")
        .and_then(|module| module.call_method0("tell_if_patched"));
    if let Err(raised) = told {
        // A filter turns warnings into errors, but the call that blocks goes on.
        raised.write_unraisable(py, None);
    }
}
