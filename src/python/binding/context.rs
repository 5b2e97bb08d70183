//! Contexts of `contextvars`: a block of native code in which calls of Python run in one of them.
#![allow(unsafe_code)] // calls of the C API

use pyo3::ffi;
use pyo3::prelude::*;

/// The calling thread is in this context until this is dropped. To be dropped on the same thread, and in
/// the reverse order of entering.
pub(in crate::python) struct Entered<'py>(Bound<'py, PyAny>);

impl<'py> Entered<'py> {
    /// Enters an empty context.
    pub(in crate::python) fn empty(py: Python<'py>) -> PyResult<Self> {
        // SAFETY: attached; the returned reference is ours, or null with an exception.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_New()) };
        Self::enter(made?)
    }

    /// Enters a copy of a context, which another thread may be in. `TypeError`: it is none.
    pub(in crate::python) fn copy(of: &Bound<'py, PyAny>) -> PyResult<Self> {
        // SAFETY: attached; the returned reference is ours, or null with an exception.
        let made =
            unsafe { Bound::from_owned_ptr_or_err(of.py(), ffi::PyContext_Copy(of.as_ptr())) };
        Self::enter(made?)
    }

    fn enter(context: Bound<'py, PyAny>) -> PyResult<Self> {
        // SAFETY: attached; it is a context, which was just made and has not been entered.
        let refused = unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0;
        if refused {
            return Err(PyErr::fetch(context.py()));
        }
        Ok(Self(context))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // SAFETY: attached, as `Bound` shows; it is the innermost one of this thread, for code that
        // enters another context leaves it again.
        unsafe { ffi::PyContext_Exit(self.0.as_ptr()) };
    }
}
