//! Which code has swallowed `Cancelled`.
//!
//! Guarantees: code is named only for a `Cancelled` that it caught and did not raise again. One that is
//! still on its way (in a `finally` clause, an `__exit__`, an `except` clause that has not ended) does not
//! count, so a wait of clean-up code is not taken for a swallow. The function named is the one that caught.
//!
//! How. The last `Cancelled` of each thread is watched. When the next one is about to be raised:
//!
//! | the last one | then it |
//! |---|---|
//! | is gone | was swallowed, in the last frame that it reached, if that was noted |
//! | is being handled, or is the context of an exception that is | is on its way |
//! | is kept, and the last frame that it reached is on the stack | was swallowed there |
//! | is kept, and that frame is not on the stack | may be on its way |
//! | is kept, and has no traceback | may be on its way |
//!
//! The last frame that an exception reached is the first of its traceback. So when an exception is freed,
//! its [`Watch`], which is a part of it, notes that frame's function. It asks for no other frame: an
//! exception may be freed while the interpreter clears one. Of that frame it reads the code alone. Nothing
//! here keeps the exception alive, or the frames of its traceback.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | PyO3 drops the fields of an exception's class before those of `BaseException`, such as the traceback | PyO3 0.30 | `test_the_function_that_swallowed_is_named` |
#![allow(unsafe_code)] // an exception that is being freed has no safe reference

use std::cell::RefCell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::python::binding::interned::interned;
use parking_lot::Mutex;
use pyo3::PyClass;
use pyo3::exceptions::PyBaseException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use super::attach::attach;
use super::frames;

/// The code that has swallowed: what a warning about it needs.
pub(in crate::python) struct Place {
    pub(in crate::python) function: String,
    pub(in crate::python) file: String,
    pub(in crate::python) line: i32,
}

/// Where a `Cancelled` was caught: written when the exception is freed, and by [`was_swallowed`]; taken by
/// the warning.
type Found = Arc<Mutex<Option<Place>>>;

/// The last `Cancelled` of a thread.
struct Last {
    exception: Py<PyWeakrefReference>,
    found: Found,
}

/// A part of each `Cancelled`, dropped with it.
pub(in crate::python) struct Watch {
    /// The exception that this is a part of, without a count. Null until [`watch`] writes it, once.
    exception: AtomicPtr<ffi::PyObject>,
    found: Found,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

impl Watch {
    pub(in crate::python) fn new() -> Watch {
        Watch {
            exception: AtomicPtr::new(ptr::null_mut()),
            found: Found::default(),
        }
    }
}

/// Notes the last frame that the exception reached.
impl Drop for Watch {
    fn drop(&mut self) {
        let exception = *self.exception.get_mut();
        if exception.is_null() {
            return;
        }
        attach(|py| {
            // SAFETY: attached. The exception is being freed: its class drops this, its part, and frees
            // the traceback and its memory afterwards. The result is a reference of our own, or null.
            let traceback = unsafe {
                Bound::from_owned_ptr_or_opt(py, ffi::PyException_GetTraceback(exception))
            };
            note(&self.found, traceback.as_ref());
        });
    }
}

fn note(found: &Found, traceback: Option<&Bound<'_, PyAny>>) {
    let place = traceback.and_then(|traceback| Place::of(traceback).ok());
    let before = std::mem::replace(&mut *found.lock(), place);
    drop(before); // unlocked: a reference may be the last one
}

/// Watches an exception that the calling thread is about to raise.
pub(in crate::python) fn watch<T>(exception: &Bound<'_, T>) -> PyResult<()>
where
    T: PyClass<Frozen = True> + AsRef<Watch> + Sync,
{
    let part = exception.get().as_ref();
    part.exception.store(exception.as_ptr(), Ordering::Relaxed);
    let last = Last {
        exception: PyWeakrefReference::new(exception.as_any())?.unbind(),
        found: part.found.clone(),
    };
    let before = LAST.with(|cell| cell.borrow_mut().replace(last));
    drop(before); // not borrowed: a reference may be the last one
    Ok(())
}

/// Was the last `Cancelled` of the calling thread caught, and not raised again?
pub(in crate::python) fn was_swallowed(py: Python<'_>) -> PyResult<bool> {
    let last = LAST.with(|cell| {
        let last = cell.borrow();
        let last = last.as_ref()?;
        Some((last.exception.clone_ref(py), last.found.clone()))
    });
    let Some((exception, found)) = last else {
        return Ok(true);
    };
    let Some(exception) = exception.bind(py).upgrade() else {
        return Ok(true);
    };
    let handled = py.import("sys")?.call_method0(interned!(py, "exc_info"))?;
    let mut next = handled.get_item(1)?;
    // An exception cannot be its own context, however long the chain is.
    while let Ok(here) = next.cast::<PyBaseException>() {
        if here.is(&exception) {
            return Ok(false);
        }
        next = here.getattr(interned!(py, "__context__"))?;
    }
    let traceback = exception.getattr(interned!(py, "__traceback__"))?;
    if traceback.is_none() {
        return Ok(false);
    }
    let caught = traceback.getattr(interned!(py, "tb_frame"))?;
    let mut next = frames::frame(py);
    while let Some(here) = next {
        if here.is(&caught) {
            note(&found, Some(&traceback));
            return Ok(true);
        }
        next = frames::back(&here)?;
    }
    Ok(false)
}

/// The code that has swallowed the last one, if it is known.
pub(in crate::python) fn place() -> Option<Place> {
    LAST.with(|cell| cell.borrow().as_ref()?.found.lock().take())
}

impl Place {
    /// The function and line of a traceback's first frame. Not its globals: the collector may have cleared
    /// the frame, which then has none, and a pointer that is left of them.
    fn of(traceback: &Bound<'_, PyAny>) -> PyResult<Place> {
        let py = traceback.py();
        let frame = traceback.getattr(interned!(py, "tb_frame"))?;
        let code = frames::code(&frame)?;
        let line: Option<i32> = traceback.getattr(interned!(py, "tb_lineno"))?.extract()?;
        Ok(Place {
            function: code.getattr(interned!(py, "co_name"))?.extract()?,
            file: code.getattr(interned!(py, "co_filename"))?.extract()?,
            line: line.unwrap_or(0),
        })
    }
}
