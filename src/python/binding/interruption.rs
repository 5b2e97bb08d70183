//! Whether the calling code interrupts other code of its thread: it runs in a signal handler, a finalizer, or
//! a trace function.
//!
//! CPython runs such code between any two instructions of the interrupted code, which may hold a lock. It
//! does not tell that it does, so the calls of the thread are looked at. A function that interrupts is known by
//! its name or its arguments:
//!
//! | function | known by |
//! |---|---|
//! | `__del__` | its name |
//! | a signal handler, a trace or profile function | an argument is the frame that it was called from |
//! | the callback of a weak reference, `weakref.finalize` | an argument is a weak reference to a dead object |
//! | the `finally` of a generator that is collected, or closed | `GeneratorExit` is being handled |
//!
//! A call that is taken for one of these and is none costs nothing but the thread on which callbacks run. One
//! that is not recognised (written in C, or without the argument) is treated as ordinary code.
//!
//! Arguments are read from the frame without `f_locals`: up to 3.12 that makes a copy of all variables, which
//! would keep their objects alive.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | a frame's arguments are its first variables, at the place that [`variables`] computes | 3.10-3.12 | `test_interruption.py` |
//! | `f_locals` is a view, and keeps nothing alive | 3.13-3.15 | the same |
#![allow(unsafe_code)] // calls of the C API, and frames before 3.13
#![allow(clippy::cast_ptr_alignment)] // members of structures, which are aligned

use pyo3::exceptions::PyGeneratorExit;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyWeakrefMethods, PyWeakrefReference};

use super::frames;

/// So many arguments are looked at: `self`, and two of its own.
const ARGUMENTS: usize = 3;
/// The bit of `co_flags` for `*arguments`.
const VARARGS: u32 = 4;

/// True if one of the calls of the thread is of the kinds above.
pub(in crate::python) fn is_interrupting(py: Python<'_>) -> PyResult<bool> {
    let sys = py.import(intern!(py, "sys"))?;
    let handled = sys.call_method0(intern!(py, "exc_info"))?.get_item(0)?;
    if handled.is(py.get_type::<PyGeneratorExit>()) {
        return Ok(true);
    }
    let mut next = frames::frame(py);
    while let Some(frame) = next {
        let caller = frames::back(&frame)?;
        if interrupts(&frame, caller.as_ref())? {
            return Ok(true);
        }
        next = caller;
    }
    Ok(false)
}

/// True if the function of this frame is one of the kinds above.
fn interrupts(frame: &Bound<'_, PyAny>, caller: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
    let py = frame.py();
    let code = frames::code(frame)?;
    if code.getattr(intern!(py, "co_name"))?.eq("__del__")? {
        return Ok(true);
    }
    let named: usize = code.getattr(intern!(py, "co_argcount"))?.extract()?;
    let keywords: usize = code.getattr(intern!(py, "co_kwonlyargcount"))?.extract()?;
    let flags: u32 = code.getattr(intern!(py, "co_flags"))?.extract()?;
    let tells = |argument: &Bound<'_, PyAny>| {
        let dead = argument.cast::<PyWeakrefReference>();
        caller.is_some_and(|caller| argument.is(caller))
            || dead.is_ok_and(|dead| dead.upgrade().is_none())
    };
    for place in 0..named.min(ARGUMENTS) {
        if variable(frame, &code, place)?.is_some_and(|argument| tells(&argument)) {
            return Ok(true);
        }
    }
    if flags & VARARGS != 0 {
        if let Some(more) = variable(frame, &code, named + keywords)? {
            let more = more.cast_into::<PyTuple>();
            return Ok(more.is_ok_and(|more| more.iter().take(ARGUMENTS).any(|one| tells(&one))));
        }
    }
    Ok(false)
}

/// The value of the variable at this place of the code's list; `None`: it has none.
fn variable<'py>(
    frame: &Bound<'py, PyAny>,
    code: &Bound<'py, PyAny>,
    place: usize,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = frame.py();
    if py.version_info() >= (3, 13) {
        let name = code.getattr(intern!(py, "co_varnames"))?.get_item(place)?;
        let variables = frame.getattr(intern!(py, "f_locals"))?; // no copy, but a view
        return Ok(variables.get_item(name).ok());
    }
    // SAFETY: the frame is on the stack of this thread, which is attached, and its code has a variable at
    // that place. The value is borrowed from it, or null.
    let value = unsafe {
        let value = *variables(py, frame.as_ptr()).add(place);
        Bound::from_borrowed_ptr_or_opt(py, value)
    };
    let Some(value) = value else { return Ok(None) };
    // SAFETY: a cell, for a variable that an inner function uses; its content is a new reference, or null.
    unsafe {
        if ffi::Py_TYPE(value.as_ptr()) != &raw mut ffi::PyCell_Type {
            return Ok(Some(value));
        }
        Ok(Bound::from_owned_ptr_or_opt(
            py,
            ffi::PyCell_Get(value.as_ptr()),
        ))
    }
}

/// The place of a running frame's variables, before 3.13.
///
/// # Safety
/// `frame` is a frame that is on the stack of the calling thread.
unsafe fn variables(py: Python<'_>, frame: *mut ffi::PyObject) -> *const *mut ffi::PyObject {
    /// In the frame object: its head, and the frame from which it was called.
    const INNER: usize = size_of::<ffi::PyObject>() + size_of::<usize>();
    /// In the inner frame: eight pointers, a number and some flags.
    const VARIABLES: usize = 9 * size_of::<usize>();
    // SAFETY: the caller's promise. The layouts are those of every 3.10, 3.11 and 3.12; in 3.10 the
    // variables are the last member of the frame object, declared with room for one.
    unsafe {
        if py.version_info() < (3, 11) {
            let size = usize::try_from((*ffi::Py_TYPE(frame)).tp_basicsize).unwrap_or_default();
            return frame.cast::<u8>().add(size - size_of::<usize>()).cast();
        }
        let inner = *frame.cast::<u8>().add(INNER).cast::<*const u8>();
        inner.add(VARIABLES).cast()
    }
}
