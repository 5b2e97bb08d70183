//! Calls that do without PyO3's entry, where that is a good part of what they take.
//!
//! A method with a shortcut is what PyO3 made, with its name, docstring and signature; only the
//! function in it is another one. That one does the common case, and leaves all else, and whatever
//! raises, to the function that was there before.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | a method calls what is in its `PyMethodDef` when it is called | 3.10-3.15 | none: `make bench` shows it |
//! | a method sees to it that `self` is of its class | 3.10-3.15 | `test_a_method_is_for_its_own_class` |
//! | PyO3 makes the table of methods on the heap, and leaves it there | 0.30 | all: it crashes |
#![allow(unsafe_code)] // a table of the C API, and a function that is called by C

use std::ffi::CStr;
use std::sync::OnceLock;

use pyo3::PyClass;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;

/// The function that was in a method before, which takes arguments by position and by name.
pub(in crate::python) type Usual = OnceLock<ffi::PyCFunctionFastWithKeywords>;

/// The common case of a method.
pub(in crate::python) trait Shortcut {
    /// The class that has the method.
    type Class: PyClass<Frozen = True> + Sync;
    /// The method's name.
    const NAME: &'static CStr;
    /// How many arguments it takes then, all by position.
    const TAKES: usize;

    /// Where the method's own function is kept.
    fn usual() -> &'static Usual;

    /// Do it at once. `None`: nothing was done, and the usual function is called.
    ///
    /// It is not known to PyO3 to be called from Python: whatever owns an object is to be bound
    /// when it is dropped, and a panic ends the process.
    fn attempt<'py>(
        py: Python<'py>,
        this: &Bound<'py, Self::Class>,
        given: &[Borrowed<'_, 'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>>;
}

/// Put it in front of the method, once.
pub(in crate::python) fn install<S: Shortcut>(py: Python<'_>) -> PyResult<()> {
    if S::usual().get().is_some() {
        return Ok(()); // the module is made again, of the same classes
    }
    let class = py.get_type::<S::Class>();
    // SAFETY: attached, and the class is live and made on the heap. The slot holds the table that
    // PyO3 gave, which ends with an entry without a name.
    unsafe {
        let slot = ffi::PyType_GetSlot(class.as_type_ptr(), ffi::Py_tp_methods);
        let mut method = slot.cast::<ffi::PyMethodDef>();
        while !(*method).ml_name.is_null() {
            if CStr::from_ptr((*method).ml_name) == S::NAME
                && (*method).ml_flags == ffi::METH_FASTCALL | ffi::METH_KEYWORDS
            {
                // The flags say which function it is. Nobody calls it yet.
                let usual = (*method).ml_meth.PyCFunctionFastWithKeywords;
                S::usual().get_or_init(|| usual);
                (*method).ml_meth.PyCFunctionFastWithKeywords = enter::<S>;
                return Ok(());
            }
            method = method.add(1);
        }
    }
    let message = format!("{class} has no method {:?} to shorten", S::NAME);
    Err(PyRuntimeError::new_err(message))
}

/// What the method calls.
unsafe extern "C" fn enter<S: Shortcut>(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    if names.is_null() && count.unsigned_abs() == S::TAKES {
        // SAFETY: a method is called attached, with live objects, of which `this` is of its class.
        // `Borrowed` is a pointer to one. There may be no array of no arguments.
        let done = unsafe {
            let py = Python::assume_attached();
            let this = *(&raw const this).cast::<Borrowed<'_, '_, PyAny>>();
            let given = if S::TAKES == 0 {
                &[]
            } else {
                std::slice::from_raw_parts(arguments.cast(), S::TAKES)
            };
            S::attempt(py, &this.cast_unchecked::<S::Class>(), given)
        };
        if let Some(done) = done {
            return done.into_ptr();
        }
    }
    match S::usual().get() {
        // SAFETY: it was in the place of this function, so it takes the same.
        Some(usual) => unsafe { usual(this, arguments, count, names) },
        None => std::ptr::null_mut(), // never: this function is in the method after it was kept
    }
}
