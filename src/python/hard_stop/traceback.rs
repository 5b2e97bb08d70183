//! The stack at which an exception was raised, for reports.
//!
//! The record taken at the raise keeps no frame and so no variable alive. The text is made when a report
//! is read, because making it reads source files.

use std::time::Duration;

use crate::python::binding::interned::interned;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTraceback};

use crate::python::binding::attach::attach;
use crate::python::hard_stop::mask::Mask;
use crate::stack::Stack;

/// One call of the stack: code object, line, and instruction.
struct Call {
    code: Py<PyAny>,
    line: Option<u32>,
    /// The offset of the instruction, in bytes of code.
    at: usize,
}

/// The stack of `raised`, to be formatted when it is read first.
pub(in crate::python) fn stack_of(py: Python<'_>, raised: &PyErr) -> Option<Stack> {
    let calls = calls(py, raised.traceback(py)).ok()?;
    Some(Stack::new(move || {
        // The reading thread may be killed meanwhile, and the text is cached.
        let _mask = Mask::open(Duration::from_secs(5));
        attach(|py| words(py, &calls).unwrap_or_default()).unwrap_or_default()
    }))
}

fn calls(py: Python<'_>, traceback: Option<Bound<'_, PyTraceback>>) -> PyResult<Vec<Call>> {
    let mut calls = Vec::new();
    let mut next = traceback.map(Bound::into_any);
    while let Some(here) = next {
        let frame = here.getattr(interned!(py, "tb_frame"))?;
        let at: i64 = here.getattr(interned!(py, "tb_lasti"))?.extract()?;
        calls.push(Call {
            code: frame.getattr(interned!(py, "f_code"))?.unbind(),
            line: here.getattr(interned!(py, "tb_lineno"))?.extract()?,
            at: usize::try_from(at).unwrap_or(0),
        });
        let behind = here.getattr(interned!(py, "tb_next"))?;
        next = (!behind.is_none()).then_some(behind);
    }
    Ok(calls)
}

/// The text that traceback.format_tb() gives.
fn words(py: Python<'_>, calls: &[Call]) -> PyResult<String> {
    let traceback = py.import("traceback")?;
    let (summary, lines) = (traceback.getattr("FrameSummary")?, py.import("linecache")?);
    let summaries = PyList::empty(py);
    for call in calls {
        let code = call.code.bind(py);
        let file = code.getattr("co_filename")?;
        lines.call_method1("checkcache", (&file,))?;
        let more = PyDict::new(py);
        more.set_item("lookup_line", false)?;
        if let Some(all) = code.getattr_opt("co_positions")? {
            // Two bytes each; not before 3.11.
            if let Some(place) = all.call0()?.try_iter()?.nth(call.at / 2) {
                let (_, end_line, column, end_column): Place = place?.extract()?;
                more.set_item("end_lineno", end_line)?;
                more.set_item("colno", column)?;
                more.set_item("end_colno", end_column)?;
            }
        }
        let name = code.getattr("co_name")?;
        summaries.append(summary.call((file, call.line, name), Some(&more))?)?;
    }
    let lines = traceback.call_method1("format_list", (summaries,))?;
    Ok(lines.extract::<Vec<String>>()?.concat())
}

/// First and last line, first and last column; None where unknown.
type Place = (Option<u32>, Option<u32>, Option<u32>, Option<u32>);
