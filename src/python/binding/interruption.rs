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
//! | a frame's arguments are its first variables | 3.10-3.12 | `test_interruption.py` |
//! | `f_locals` is a view, and keeps nothing alive | 3.13-3.15 | the same |

use crate::python::binding::interned::interned;
use pyo3::exceptions::PyGeneratorExit;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyWeakrefMethods, PyWeakrefReference};

use super::{frames, raw_frames};

/// So many arguments are looked at: `self`, and two of its own.
const ARGUMENTS: usize = 3;
/// The bit of `co_flags` for `*arguments`.
const VARARGS: u32 = 4;

/// True if one of the calls of the thread is of the kinds above.
pub(in crate::python) fn is_interrupting(py: Python<'_>) -> PyResult<bool> {
    let sys = py.import(interned!(py, "sys"))?;
    let handled = sys.call_method0(interned!(py, "exc_info"))?.get_item(0)?;
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
    if code.getattr(interned!(py, "co_name"))?.eq("__del__")? {
        return Ok(true);
    }
    let named: usize = code.getattr(interned!(py, "co_argcount"))?.extract()?;
    let keywords: usize = code
        .getattr(interned!(py, "co_kwonlyargcount"))?
        .extract()?;
    let flags: u32 = code.getattr(interned!(py, "co_flags"))?.extract()?;
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
        let name = code
            .getattr(interned!(py, "co_varnames"))?
            .get_item(place)?;
        let variables = frame.getattr(interned!(py, "f_locals"))?; // no copy, but a view
        return Ok(variables.get_item(name).ok());
    }
    let Some(value) = raw_frames::variable(frame, place)? else {
        return Ok(None);
    };
    let cell = py.import("types")?.getattr("CellType")?;
    if value.is_exact_instance(&cell) {
        return Ok(value.getattr(interned!(py, "cell_contents")).ok()); // an error, if it is empty
    }
    Ok(Some(value))
}
