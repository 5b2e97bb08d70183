//! The calling thread's frames, and the exception tables of their code, as `hard_stop::block` and `home` read
//! them.
//!
//! A table (3.11 and later) lists ranges of instructions with their handlers. CPython takes the first entry
//! that covers an instruction, and a handler lies behind the code it handles.
#![allow(unsafe_code)] // PyO3 has no form of PyEval_GetFrame

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

/// The frame that calls into this module.
pub(in crate::python) fn frame(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    // SAFETY: attached, as `py` shows; a borrowed reference, or NULL if no code of Python's runs.
    unsafe { Bound::from_borrowed_ptr_or_opt(py, ffi::PyEval_GetFrame().cast()) }
}

pub(in crate::python) fn back<'py>(
    frame: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let back = frame.getattr(intern!(frame.py(), "f_back"))?;
    Ok((!back.is_none()).then_some(back))
}

pub(in crate::python) fn last_instruction(frame: &Bound<'_, PyAny>) -> PyResult<u32> {
    let at: i64 = frame.getattr(intern!(frame.py(), "f_lasti"))?.extract()?;
    Ok(u32::try_from(at).unwrap_or(0))
}

pub(in crate::python) fn is_jump(code: &Bound<'_, PyAny>, at: u32) -> PyResult<bool> {
    static JUMPS: PyOnceLock<Vec<u8>> = PyOnceLock::new();
    let py = code.py();
    let jumps = JUMPS.get_or_try_init(py, || {
        let opcodes = py.import("opcode")?.getattr("opmap")?;
        let all = opcodes.call_method0("items")?.try_iter()?;
        let mut jumps = Vec::new();
        for item in all {
            let (name, number): (String, u32) = item?.extract()?;
            if name.starts_with("JUMP_BACKWARD") {
                jumps.extend(u8::try_from(number));
            }
        }
        Ok::<_, PyErr>(jumps)
    })?;
    let bytes = code.getattr(intern!(py, "co_code"))?;
    let bytes = bytes.cast::<PyBytes>()?.as_bytes();
    Ok(bytes
        .get(at as usize)
        .is_some_and(|code| jumps.contains(code)))
}

/// One entry of an exception table, in bytes of code.
pub(in crate::python) struct Covered {
    start: u32,
    pub(in crate::python) end: u32,
    pub(in crate::python) handler: u32,
}

/// The entries of a table: numbers of 6 bits a byte, the highest first.
pub(in crate::python) fn entries(table: &[u8]) -> impl Iterator<Item = Covered> {
    let mut bytes = table.iter();
    let mut number = move || {
        let mut value = 0;
        loop {
            let byte = bytes.next()?;
            value = value << 6 | u32::from(byte & 0x3f);
            if byte & 0x40 == 0 {
                return Some(value * 2);
            }
        }
    };
    std::iter::from_fn(move || {
        let (start, length, handler) = (number()?, number()?, number()?);
        number()?; // the depth of the stack
        Some(Covered {
            start,
            end: start + length,
            handler,
        })
    })
}

/// The handler of the first entry behind `at`.
pub(in crate::python) fn first_handler_behind(table: &[u8], at: u32) -> Option<u32> {
    entries(table)
        .find(|entry| entry.start > at)
        .map(|entry| entry.handler)
}

/// Would an exception at this place reach the handler, be it through others?
pub(in crate::python) fn leads_to(table: &[u8], at: u32, handler: u32) -> bool {
    let covered = |at| entries(table).find(|entry| (entry.start..entry.end).contains(&at));
    let mut at = at;
    while let Some(entry) = covered(at) {
        if entry.handler == handler {
            return true;
        }
        if entry.handler <= at {
            return false; // handlers lie behind the code they handle
        }
        at = entry.handler;
    }
    false
}
