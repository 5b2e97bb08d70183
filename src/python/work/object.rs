//! An object that a queue in memory keeps, and gives a count of to whoever leases it.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | the interpreter tells whether the calling thread is attached, also one that PyO3 did not let in | 3.10-3.15 | `test_what_was_in_a_lease_goes_with_it` |
#![allow(unsafe_code)] // two looks at the interpreter, which PyO3 would do at greater length

use std::mem::ManuallyDrop;

use pyo3::ffi;
use pyo3::prelude::*;

/// Behind a [shortcut](crate::python::binding::shortcut) PyO3 does not know that the thread is attached, and
/// would put off what is dropped. This does not.
pub(super) struct Object(ManuallyDrop<Py<PyAny>>);

fn attached() -> bool {
    // SAFETY: it may be called at any time.
    unsafe { ffi::PyGILState_Check() == 1 }
}

impl Object {
    #[inline]
    pub(super) fn new(object: Py<PyAny>) -> Self {
        Self(ManuallyDrop::new(object))
    }

    #[inline]
    pub(super) fn into_bound(self, py: Python<'_>) -> Bound<'_, PyAny> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: it is not used again.
        unsafe { ManuallyDrop::take(&mut this.0) }.into_bound(py)
    }

    #[inline]
    pub(super) fn to_object(&self, py: Python<'_>) -> Py<PyAny> {
        self.0.clone_ref(py)
    }
}

impl Clone for Object {
    /// The calling thread is attached: it is in a queue that only such ones reach.
    #[inline]
    fn clone(&self) -> Self {
        debug_assert!(attached(), "not attached");
        // SAFETY: as above. Counting a reference runs no code.
        let py = unsafe { Python::assume_attached() };
        Self::new(self.0.clone_ref(py))
    }
}

impl Drop for Object {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        let object = unsafe { ManuallyDrop::take(&mut self.0) };
        if attached() {
            // SAFETY: as just seen.
            drop(object.into_bound(unsafe { Python::assume_attached() }));
        }
    }
}
