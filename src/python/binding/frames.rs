//! Frames: the calls that a thread is in, the place in its code that each has reached, and what the code
//! says of a place: the instruction, and the handler of an exception that is raised there. This is the one
//! place that asks the interpreter for a thread's frames, and walks from a frame to its caller.
//!
//! Call it from native code that Python has called, not from a destructor or another callback of the
//! interpreter, which may be clearing a frame.
//!
//! The handlers are in a table (3.11 and later), which lists ranges of instructions. CPython takes the first
//! entry that covers an instruction, and a handler lies behind the code it handles.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | a frame, its code and its globals are read without running any Python code | 3.10-3.15 | `test_i42_a_kill_at_any_bytecode_leaves_no_lock_of_the_standard_library_held` |
//! | a `with` block ends with three loads of None and a call, or, for an exception, with WITH_EXCEPT_START, and an exception in front of that call skips it | 3.11-3.15 | `test_i42_tracing_never_skips_the_end_of_a_with_block` |
//! | a jump may lack the entry that the code before it has, and an exception that is raised there skips the handler | 3.12-3.14 | `test_i42_tracing_never_skips_the_end_of_a_with_block` |
//! | an instruction has a line, or none if the compiler has added it; a traceback through the latter has an entry with the line None | 3.11-3.15 | `test_a_kill_leaves_no_traceback_entry_without_a_line` |
#![allow(unsafe_code)] // PyO3 has no form of PyEval_GetFrame

use crate::python::binding::interned::interned;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict};

/// The frame that calls into this module.
pub(in crate::python) fn frame(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    // SAFETY: attached, as `py` shows; a borrowed reference, or NULL if no code of Python's runs.
    unsafe { Bound::from_borrowed_ptr_or_opt(py, ffi::PyEval_GetFrame().cast()) }
}

/// The innermost frame of a thread; `None` if it runs no code of Python's, or is gone.
///
/// Without the GIL the thread runs meanwhile. Then only the code, the globals and the place of this frame may be
/// asked for, and none of its callers: CPython makes an object for a caller's frame at the first look at it,
/// which may outlive the frame itself (python/cpython#118680, #152355).
pub(in crate::python) fn of_thread(
    py: Python<'_>,
    thread: u64,
) -> PyResult<Option<Bound<'_, PyAny>>> {
    static FRAMES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    // Found once: an import may run code of the user's.
    let frames = FRAMES.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("sys")?.getattr("_current_frames")?.unbind())
    })?;
    frames.bind(py).call0()?.cast::<PyDict>()?.get_item(thread)
}

/// The frame that has called this one.
pub(in crate::python) fn back<'py>(
    frame: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let back = frame.getattr(interned!(frame.py(), "f_back"))?;
    Ok((!back.is_none()).then_some(back))
}

pub(in crate::python) fn code<'py>(frame: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    frame.getattr(interned!(frame.py(), "f_code"))
}

/// The instruction that the frame is in, in bytes of code.
pub(in crate::python) fn last_instruction(frame: &Bound<'_, PyAny>) -> PyResult<u32> {
    let at: i64 = frame.getattr(interned!(frame.py(), "f_lasti"))?.extract()?;
    Ok(u32::try_from(at).unwrap_or(0))
}

/// Does the calling thread keep all others from running Python code?
pub(in crate::python) fn has_gil(py: Python<'_>) -> PyResult<bool> {
    static ASK: PyOnceLock<Option<Py<PyAny>>> = PyOnceLock::new();
    let ask = ASK.get_or_try_init(py, || {
        let ask = py.import("sys")?.getattr_opt("_is_gil_enabled")?;
        Ok::<_, PyErr>(ask.map(Bound::unbind))
    })?;
    // Older versions always have it.
    ask.as_ref()
        .map_or(Ok(true), |ask| ask.bind(py).call0()?.extract())
}

/// May a tracer raise `Killed` in front of the instruction at `at`, which the frame has reached? Not where
/// the end of a `with` block, or another handler, would be skipped, and not at an instruction without a line.
pub(in crate::python) fn may_raise_at(frame: &Bound<'_, PyAny>, at: u32) -> PyResult<bool> {
    let py = frame.py();
    let line = frame.getattr(interned!(py, "f_lineno"))?;
    let code = code(frame)?;
    let steps = steps(&code)?;
    let is_here = |step: &Step| (step.start..=step.at).contains(&at);
    let here = steps.iter().position(is_here);
    let skips = here.map(|here| {
        let table = code.getattr_opt(interned!(py, "co_exceptiontable"))?;
        let table = table
            .as_ref()
            .map(|table| table.cast::<PyBytes>())
            .transpose()?;
        let table = table.map_or(&[][..], |table| table.as_bytes());
        PyResult::Ok(ends_a_with(&steps, here) || is_in_a_gap(&steps, here, table))
    });
    Ok(!line.is_none() && !skips.transpose()?.unwrap_or(false))
}

/// Is the instruction at `at` a jump back?
pub(in crate::python) fn is_jump_back(code: &Bound<'_, PyAny>, at: u32) -> PyResult<bool> {
    let kinds = kinds(code.py())?;
    let bytes = code.getattr(interned!(code.py(), "co_code"))?;
    let operation = bytes.cast::<PyBytes>()?.as_bytes().get(at as usize);
    Ok(operation.is_some_and(|number| kinds[usize::from(*number)] == Kind::JumpBack))
}

/// Is the frame at the first `RESUME` of its code, or before it?
pub(in crate::python) fn is_at_its_start(frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    let at = last_instruction(frame)?;
    let steps = steps(&code(frame)?)?;
    let start = steps.iter().find(|step| step.kind == Kind::Start);
    Ok(start.is_some_and(|start| at <= start.at))
}

/// The instructions that are told from each other here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    /// Not an instruction, but data of the one before.
    Cache,
    /// Not an instruction, but a part of the next one's argument.
    Extended,
    /// The beginning of a function.
    Start,
    JumpBack,
    /// Another jump, or a mark at one.
    Jump,
    LoadConstant,
    /// Loads once more what was loaded last.
    Again,
    /// Has no effect but on the order of the stack.
    Reorder,
    Precall,
    Call,
    /// The beginning of a handler.
    Handler,
    /// Ends a `with` block because of an exception.
    WithExcept,
}

impl Kind {
    fn of(name: &str) -> Kind {
        match name {
            "CACHE" => Kind::Cache,
            "EXTENDED_ARG" => Kind::Extended,
            "RESUME" => Kind::Start,
            "LOAD_CONST" | "LOAD_COMMON_CONSTANT" => Kind::LoadConstant,
            "DUP_TOP" => Kind::Again,
            "SWAP" | "ROT_TWO" | "ROT_THREE" | "ROT_FOUR" | "ROT_N" | "NOP" => Kind::Reorder,
            "PRECALL" => Kind::Precall,
            "CALL" | "CALL_FUNCTION" => Kind::Call,
            "PUSH_EXC_INFO" => Kind::Handler,
            "WITH_EXCEPT_START" => Kind::WithExcept,
            _ if name.starts_with("JUMP_BACKWARD") => Kind::JumpBack,
            _ if name.contains("JUMP") || name == "NOT_TAKEN" => Kind::Jump,
            _ => Kind::Other,
        }
    }
}

/// One instruction.
struct Step {
    /// Where it begins: at its first `EXTENDED_ARG`, if it has one, else at its operation.
    start: u32,
    /// Where its operation is.
    at: u32,
    kind: Kind,
    argument: u32,
}

fn kinds(py: Python<'_>) -> PyResult<&Vec<Kind>> {
    static KINDS: PyOnceLock<Vec<Kind>> = PyOnceLock::new();
    KINDS.get_or_try_init(py, || {
        let operations = py.import("opcode")?.getattr("opmap")?;
        let mut kinds = vec![Kind::Other; 256];
        for item in operations.call_method0("items")?.try_iter()? {
            let (name, number): (String, usize) = item?.extract()?;
            if let Some(kind) = kinds.get_mut(number) {
                *kind = Kind::of(&name);
            }
        }
        Ok(kinds)
    })
}

fn steps(code: &Bound<'_, PyAny>) -> PyResult<Vec<Step>> {
    let kinds = kinds(code.py())?;
    let bytes = code.getattr(interned!(code.py(), "co_code"))?;
    let mut steps = Vec::new();
    let (mut start, mut argument) = (None, 0);
    for (at, pair) in (0_u32..)
        .step_by(2)
        .zip(bytes.cast::<PyBytes>()?.as_bytes().chunks_exact(2))
    {
        argument = argument << 8 | u32::from(pair[1]);
        match kinds[usize::from(pair[0])] {
            Kind::Extended => start = start.or(Some(at)),
            Kind::Cache => argument = 0,
            kind => {
                steps.push(Step {
                    start: start.take().unwrap_or(at),
                    at,
                    kind,
                    argument: std::mem::take(&mut argument),
                });
            }
        }
    }
    Ok(steps)
}

/// Does this instruction belong to the code between a `with` block and the end of the call of its
/// `__exit__`?
fn ends_a_with(steps: &[Step], here: usize) -> bool {
    match steps[here].kind {
        Kind::WithExcept => return true,
        Kind::Handler => {
            let next = steps.get(here + 1);
            return next.is_some_and(|next| next.kind == Kind::WithExcept);
        }
        _ => {}
    }
    let reorders = |step: &&Step| step.kind == Kind::Reorder;
    let behind = here + steps[here..].iter().take_while(reorders).count();
    // Three loads, and at most two instructions for the call.
    (behind.saturating_sub(4)..=behind)
        .any(|first| exit_call(&steps[first..]).is_some_and(|length| first + length > here))
}

/// Is this a jump for which the table has no entry, or another handler than for the code before it? Nothing
/// is lost by not raising there, for a loop has other instructions; false for a jump that is all of a loop.
fn is_in_a_gap(steps: &[Step], here: usize, table: &[u8]) -> bool {
    let is_jump = |step: &Step| matches!(step.kind, Kind::Jump | Kind::JumpBack);
    let step = &steps[here];
    let behind = steps.get(here + 1).map(|next| next.start);
    let to_itself = || behind.is_some_and(|behind| behind - step.start == step.argument * 2);
    if !is_jump(step) || step.kind == Kind::JumpBack && to_itself() {
        return false;
    }
    let before = steps[..here].iter().rfind(|step| !is_jump(step));
    before.is_some_and(|before| handler_at(table, before.at) != handler_at(table, step.at))
}

/// How many instructions the call of `__exit__` for no exception has, if they begin here.
fn exit_call(steps: &[Step]) -> Option<usize> {
    let [first, second, third, ..] = steps else {
        return None;
    };
    let loads_the_same = |step: &Step| {
        step.kind == Kind::Again
            || step.kind == Kind::LoadConstant && step.argument == first.argument
    };
    let loads = first.kind == Kind::LoadConstant && loads_the_same(second) && loads_the_same(third);
    let at = 3 + usize::from(steps.get(3)?.kind == Kind::Precall);
    (loads && steps.get(at)?.kind == Kind::Call).then_some(at + 1)
}

// ---------------------------------------------------------------------- exception tables

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
    let mut at = at;
    while let Some(next) = handler_at(table, at) {
        if next == handler {
            return true;
        }
        if next <= at {
            return false; // handlers lie behind the code they handle
        }
        at = next;
    }
    false
}

/// The handler to which an exception at this place goes first.
fn handler_at(table: &[u8], at: u32) -> Option<u32> {
    entries(table)
        .find(|entry| (entry.start..entry.end).contains(&at))
        .map(|entry| entry.handler)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions of these kinds, of one argument, two bytes each.
    fn code(kinds: &[Kind]) -> Vec<Step> {
        let step = |(at, kind): (u32, &Kind)| Step {
            start: at,
            at,
            kind: *kind,
            argument: 0,
        };
        (0..).step_by(2).zip(kinds).map(step).collect()
    }

    fn ends(kinds: &[Kind]) -> Vec<usize> {
        let steps = code(kinds);
        let ends = |index: &usize| ends_a_with(&steps, *index);
        (0..kinds.len()).filter(ends).collect()
    }

    #[test]
    fn the_end_of_a_with_block_is_found() {
        use Kind::{Again, Call, Handler, LoadConstant, Other, Precall, Reorder, WithExcept};
        let load = LoadConstant;
        assert_eq!(ends(&[Other, load, load, load, Call, Other]), [1, 2, 3, 4]);
        let with_value = [
            Other, Reorder, Reorder, load, load, load, Precall, Call, Other,
        ];
        assert_eq!(ends(&with_value), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(
            ends(&[Other, load, Again, Again, Call, Other]),
            [1, 2, 3, 4]
        );
        assert_eq!(ends(&[Other, Handler, WithExcept, Other, Call]), [1, 2]);
        assert_eq!(ends(&[Reorder, load, load, Other, Call]), [0; 0]);
        assert_eq!(ends(&[Handler, Other, load, load, load, Other]), [0; 0]);
    }
    #[test]
    fn a_jump_that_the_table_leaves_out_is_found() {
        use Kind::{Jump, JumpBack, Other};
        let mut steps = code(&[Other, Other, Jump, JumpBack, Other]);
        let table = [0, 2, 4, 0]; // the first two instructions have the handler 8
        let gaps = |steps: &[Step]| -> Vec<usize> {
            (0..steps.len())
                .filter(|here| is_in_a_gap(steps, *here, &table))
                .collect()
        };
        assert_eq!(gaps(&steps), [2, 3]);
        steps[3].argument = 1;
        assert_eq!(gaps(&steps), [2], "the jump is all of the loop");
    }
}
