//! Everything that relies on CPython's internals.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | `PyThreadState_SetAsyncExc` has one slot a thread, and takes a class | 3.10-3.15 | `test_a_posted_kill_is_taken_back` |
//! | the class is called in the thread it strikes: at delivery from 3.12 on, before that at the first look at the exception | 3.10-3.15 | `test_the_constructor_runs_in_the_struck_thread` |
//! | calling a Python function delivers what is in the slot | 3.10-3.15 | `test_a_posted_kill_is_taken_back` |
//! | between the return of a native call and the next native call no exception is delivered | all | the kill sweeps |
//!
//! What was posted is never taken back by posting NULL: up to 3.12 the evaluation loop keeps the
//! request pending then, which slows all threads down (3.12) or hangs traced ones (3.11). It is
//! taken back by having it delivered to a function that does nothing.
#![allow(unsafe_code)] // one call of the C API

use std::ffi::{CString, c_ulong};
use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use crate::python::error::Killed;
use crate::task::Force;

/// Raises in one thread, asynchronously.
struct AsyncException {
    thread: c_ulong,
}

/// The force for the calling thread.
pub(super) fn for_this_thread(py: Python<'_>) -> PyResult<Arc<dyn Force>> {
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let get_ident = GET_IDENT.get_or_try_init(py, || Ok::<_, PyErr>(py.import("_thread")?.getattr("get_ident")?.unbind()))?;
    nothing(py)?; // made now, for later is too late
    Ok(Arc::new(AsyncException { thread: get_ident.bind(py).call0()?.extract()? }))
}

/// A function of one instruction.
fn nothing(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static NOTHING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    NOTHING
        .get_or_try_init(py, || {
            let scope = PyDict::new(py);
            py.run(&CString::new("def nothing(): pass")?, Some(&scope), None)?;
            let function = scope.get_item("nothing")?;
            function.map(Bound::unbind).ok_or_else(|| PyRuntimeError::new_err("no function was made"))
        })
        .map(|function| function.bind(py))
}

impl Force for AsyncException {
    fn at_a_safe_moment(&self, then: &mut dyn FnMut()) {
        // Not while the interpreter shuts down: its threads are stopping anyway.
        Python::try_attach(|_| then());
    }

    fn post(&self) {
        // `at_a_safe_moment` has attached.
        Python::try_attach(|py| {
            let class = PyType::new::<Killed>(py);
            // PyO3 declares the argument signed, C has it unsigned; the bits are what counts.
            let thread = self.thread.cast_signed();
            // SAFETY: attached; the class is a live exception class, of which the slot takes a
            // count of its own. A thread that is gone is not found, which is fine.
            unsafe { ffi::PyThreadState_SetAsyncExc(thread, class.as_ptr()) };
        });
    }

    fn take_back(&self) {
        Python::try_attach(|py| {
            // What is raised here is what is taken back; if it was raised before, nothing is.
            let _ = nothing(py).and_then(|nothing| nothing.call0());
        });
    }

    fn stack(&self) -> Option<Arc<str>> {
        Python::try_attach(|py| {
            let frames = py.import("sys")?.call_method0("_current_frames")?;
            let frame = frames.get_item(self.thread)?;
            let lines: Vec<String> = py.import("traceback")?.call_method1("format_stack", (frame,))?.extract()?;
            Ok::<_, PyErr>(Arc::from(lines.concat()))
        })?
        .ok()
    }
}

/// Where an exception was raised, as text.
pub(super) fn stack_of(py: Python<'_>, raised: &PyErr) -> Option<Arc<str>> {
    let lines = py.import("traceback").and_then(|module| module.call_method1("format_tb", (raised.traceback(py),)));
    lines.and_then(|lines| lines.extract::<Vec<String>>()).ok().map(|lines| lines.concat().into())
}
