//! Exceptions of `raise_exc` that the interpreter drops.
//!
//! An injected exception may be raised inside a finalizer, or a callback of a weak reference, which the
//! body's code runs at any place. The interpreter cannot raise it further: it reports it to
//! `sys.unraisablehook`, and goes on. Before that it tells the audit hooks. The hook here has the
//! exception injected again, if it is the one that was raised last in the calling task.
//!
//! The hook is added with the first injection of the process, as no audit hook can be removed.
#![allow(unsafe_code)] // calls of the C API

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyBaseException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::python::binding::attach::attach;
use crate::scope;
use crate::task::{Injected, Task};

type AuditHook = unsafe extern "C" fn(*const c_char, *mut ffi::PyObject, *mut c_void) -> c_int;

unsafe extern "C" {
    fn PySys_AddAuditHook(hook: AuditHook, data: *mut c_void) -> c_int;
}

/// From now on lost exceptions are injected again. Another audit hook may prevent that.
pub(in crate::python) fn watch(py: Python<'_>) {
    static WATCHING: PyOnceLock<()> = PyOnceLock::new();
    WATCHING.get_or_init(py, || {
        // SAFETY: attached; the hook is of this type, needs no data, and is there as long as the process.
        if unsafe { PySys_AddAuditHook(on_event, ptr::null_mut()) } != 0 {
            drop(PyErr::take(py));
        }
    });
}

unsafe extern "C" fn on_event(
    event: *const c_char,
    arguments: *mut ffi::PyObject,
    _: *mut c_void,
) -> c_int {
    // SAFETY: the interpreter passes a C string.
    if unsafe { CStr::from_ptr(event) } != c"sys.unraisablehook" {
        return 0;
    }
    let Some(task) = scope::current_task() else {
        return 0; // also on a thread that no body runs on, while the interpreter ends
    };
    // The event is raised attached.
    attach(|py| {
        // SAFETY: `arguments` is a borrowed reference to a tuple, or null.
        let arguments = unsafe { Bound::from_borrowed_ptr_or_opt(py, arguments) };
        if let Some(arguments) = arguments {
            // An object of another kind is not the interpreter's own: any code may raise the event.
            let _ = inject_again(&task, &arguments);
        }
    });
    0
}

/// `arguments`: the hook and its argument.
fn inject_again(task: &Arc<Task>, arguments: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = arguments.py();
    let lost = arguments.get_item(1)?.getattr(interned!(py, "exc_value"))?;
    let address = lost.as_ptr();
    task.inject_again(|raised: &Injected| {
        let raised = raised.downcast_ref::<Py<PyBaseException>>();
        raised.is_some_and(|raised| raised.as_ptr() == address)
    });
    Ok(())
}
