//! Which code has swallowed `Cancelled`.
//!
//! Guarantees: code is accused only of a `Cancelled` that it caught and did not raise again. One that is
//! still on its way (in a `finally` clause, an `__exit__`, an `except` clause that has not ended) counts
//! for nothing, so neither do the waits of clean-up code. The accused is the function that caught it.
//!
//! How. The last `Cancelled` of each thread is watched by a weak reference. When the next one is about to be
//! raised:
//!
//! | the last one | then it |
//! |---|---|
//! | is gone | was swallowed, in the frame that ran when it went: an exception dies when its handler ends (not known on 3.13) |
//! | is being handled, or is the context of an exception that is | is on its way |
//! | is kept, and the last frame that it reached is on the stack | was swallowed there |
//! | is kept, and that frame is not on the stack | may be on its way |
//!
//! The reference keeps neither the exception alive, nor the frames of its traceback.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::PyBaseException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyWeakrefMethods, PyWeakrefReference};

/// The code that has swallowed: what a warning about it needs.
pub(in crate::python) struct Place {
    pub(in crate::python) function: String,
    pub(in crate::python) file: String,
    pub(in crate::python) line: i32,
    /// The globals of the function, which have the registry of warnings.
    pub(in crate::python) globals: Py<PyDict>,
}

/// The last `Cancelled` of a thread.
struct Last {
    exception: Py<PyWeakrefReference>,
    /// Written when the exception dies, and by [`was_swallowed`]; taken by the warning.
    place: Arc<Mutex<Option<Place>>>,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Watches an exception that the calling thread is about to raise.
pub(in crate::python) fn watch(exception: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = exception.py();
    let place = Arc::new(Mutex::new(None));
    let found = place.clone();
    let died = PyCFunction::new_closure(py, None, None, move |arguments, _| {
        let py = arguments.py();
        let shown = frame_of_callback(py);
        let here = shown.and_then(|frame| Place::of(&frame, None).ok());
        *found.lock() = here;
    })?;
    let last = Last {
        exception: PyWeakrefReference::new_with(exception, died)?.unbind(),
        place,
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
        Some((last.exception.clone_ref(py), last.place.clone()))
    });
    let Some((exception, place)) = last else {
        return Ok(true);
    };
    let Some(exception) = exception.bind(py).upgrade() else {
        return Ok(true);
    };
    let handled = py.import("sys")?.call_method0(intern!(py, "exc_info"))?;
    let mut next = handled.get_item(1)?;
    // An exception cannot be its own context, however long the chain is.
    while let Ok(here) = next.cast::<PyBaseException>() {
        if here.is(&exception) {
            return Ok(false);
        }
        next = here.getattr(intern!(py, "__context__"))?;
    }
    let traceback = exception.getattr(intern!(py, "__traceback__"))?;
    if traceback.is_none() {
        return Ok(false);
    }
    let caught = traceback.getattr(intern!(py, "tb_frame"))?;
    let mut next = frame(py);
    while let Some(here) = next {
        if here.is(&caught) {
            let line = traceback.getattr(intern!(py, "tb_lineno"))?.extract()?;
            *place.lock() = Place::of(&caught, line).ok();
            return Ok(true);
        }
        let back = here.getattr(intern!(py, "f_back"))?;
        next = (!back.is_none()).then_some(back);
    }
    Ok(false)
}

/// The code that has swallowed the last one, if it is known.
pub(in crate::python) fn place() -> Option<Place> {
    LAST.with(|cell| cell.borrow().as_ref()?.place.lock().take())
}

impl Place {
    /// The function of this frame, at this line or where it is now.
    fn of(frame: &Bound<'_, PyAny>, line: Option<i32>) -> PyResult<Place> {
        let py = frame.py();
        let code = frame.getattr(intern!(py, "f_code"))?;
        let now: Option<i32> = frame.getattr(intern!(py, "f_lineno"))?.extract()?;
        Ok(Place {
            function: code.getattr(intern!(py, "co_name"))?.extract()?,
            file: code.getattr(intern!(py, "co_filename"))?.extract()?,
            line: line.or(now).unwrap_or(0),
            globals: frame
                .getattr(intern!(py, "f_globals"))?
                .cast_into::<PyDict>()?
                .unbind(),
        })
    }
}

/// The innermost frame, in the callback of a weak reference. Not on 3.13: there the callback may run while the
/// interpreter clears a frame, and looking at the innermost one has crashed the process
/// (`test_i35_a_group_killed_at_any_bytecode_leaves_no_task`). The warning then names the next wait.
fn frame_of_callback(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    let version = py.version_info();
    if (version.major, version.minor) == (3, 13) {
        return None;
    }
    frame(py)
}

/// The innermost frame of the calling thread.
fn frame(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    let frame = py.import("sys").ok()?.call_method1("_getframe", (0,));
    frame.ok()
}
