//! `interned!`: a string object that is made at its first use, and stays.
//!
//! Guarantees: no thread waits for another one that makes the string. PyO3's macro has a lock, which its
//! thread holds while it comes back to the interpreter; a fork in that moment leaves the child without the
//! string, and with threads that wait for ever. Here each thread that finds none makes one, and interning gives all
//! of them the same object.
#![allow(unsafe_code)] // a pointer to an object that stays

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// A name, interned: `interned!(py, "name")`.
macro_rules! interned {
    ($py:expr, $text:expr) => {{
        static NAME: $crate::python::binding::interned::Interned =
            $crate::python::binding::interned::Interned::new();
        NAME.get($py, $text)
    }};
}
pub(in crate::python) use interned;

/// The place of one string.
pub(in crate::python) struct Interned(AtomicPtr<ffi::PyObject>);

impl Interned {
    pub(in crate::python) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// The string; `text` is the same in each call.
    #[inline]
    pub(in crate::python) fn get<'py>(
        &'static self,
        py: Python<'py>,
        text: &str,
    ) -> &'py Bound<'py, PyString> {
        if self.0.load(Ordering::Acquire).is_null() {
            self.make(py, text);
        }
        // SAFETY: the pointer is that of a string, of which a count is kept for ever, and does not change any more.
        unsafe { Bound::ref_from_ptr(py, &*self.0.as_ptr()).cast_unchecked() }
    }

    #[cold]
    fn make(&self, py: Python<'_>, text: &str) {
        let made = PyString::intern(py, text).into_ptr();
        let first =
            self.0
                .compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        if first.is_err() {
            // SAFETY: attached; the count that was just taken, of a string that another thread has put there.
            unsafe { ffi::Py_DECREF(made) };
        }
    }
}
