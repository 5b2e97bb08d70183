//! The rung TRACE: `Killed` is raised at every step of a body, so that code which swallows it cannot
//! go on.
//!
//! No code is watched before a kill reaches this rung, and none after the body has ended.
//!
//! From 3.12 on this uses sys.monitoring, with events that are local to the code that the body is
//! running and the functions made in it: other threads are slowed only if they run the same code.
//! Without the GIL another thread's frames cannot be read, so there the events are global. The
//! callback raises only if the task of its own thread is being traced.
//!
//! Before 3.12, and where other tools have taken all ids of sys.monitoring, it uses a trace function,
//! which a thread can only set for itself: an asynchronous `Killed` is posted, and its delivery (see
//! `killed`) sets the function.
//!
//! `WATCHED` is the state of sys.monitoring that all kills share: the first kill takes a tool id, the
//! last to end frees it. The interpreter may run finalizers of other threads while the lock is held,
//! so it is taken with `lock_py_attached`, and objects are dropped after it is released.

use std::cell::RefCell;
use std::ffi::c_int;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyCode, PyTuple};

use super::killed::killed;
use crate::scope;
use crate::task::{Interrupter, Task};

/// Events that every loop must pass. Raising at EXCEPTION_HANDLED would find the same handler again,
/// in C, forever.
const EVENTS: [&str; 4] = ["LINE", "JUMP", "PY_START", "PY_RESUME"];

/// Tools that have no name in sys.monitoring come first; a debugger or a profiler keeps its own.
const TOOLS: [u8; 4] = [4, 3, 5, 2];

/// The watched code, and for which tasks.
struct Watched {
    /// Our tool id, while any code is watched.
    tool: Option<u8>,
    /// The number of a task, and a code object that is watched for it; `None`: all code.
    code: Vec<(u64, Option<Py<PyCode>>)>,
}

static WATCHED: Mutex<Watched> = Mutex::new(Watched {
    tool: None,
    code: Vec::new(),
});

fn is_monitored(py: Python<'_>) -> bool {
    py.version_info() >= (3, 12)
}

/// Starts tracing the body, or extends it to the code that the body runs now.
pub(super) fn begin(py: Python<'_>, task: &Arc<Task>, thread: u64, interrupter: &dyn Interrupter) {
    let watched = if is_monitored(py) {
        watch(py, task.id(), thread)
    } else {
        Ok(false)
    };
    match watched {
        Ok(true) => {}
        Ok(false) => task.post_to_trace(interrupter),
        Err(failure) => failure.write_unraisable(py, None),
    }
}

/// Ends tracing. Of another thread only sys.monitoring can do that; a trace function removes itself
/// at its next call.
pub(super) fn end(py: Python<'_>, task: &Task) {
    unset(py);
    if is_monitored(py) {
        if let Err(failure) = forget(py, task.id()) {
            failure.write_unraisable(py, None);
        }
    }
}

/// A kill has been delivered in the calling thread: sets the trace function if it was posted for
/// that.
pub(in crate::python) fn arrived(py: Python<'_>, task: &Task) {
    if task.is_traced() && !(is_monitored(py) && is_watched(py, task.id())) {
        set(py);
    }
}

// ---------------------------------------------------------------------- sys.monitoring

/// False: no tool id is free.
fn watch(py: Python<'_>, task: u64, thread: u64) -> PyResult<bool> {
    let monitoring = monitoring(py)?;
    let (tool, events) = {
        let mut watched = lock(py);
        if watched.tool.is_none() {
            watched.tool = take_a_tool(&monitoring)?;
        }
        let Some(tool) = watched.tool else {
            return Ok(false);
        };
        (tool, all_events(&monitoring)?)
    };
    if !has_gil(py)? {
        let mut watched = lock(py);
        if !watched.code.iter().any(|(id, _)| *id == task) {
            watched.code.push((task, None));
            monitoring.call_method1(intern!(py, "set_events"), (tool, events))?;
        }
        return Ok(true);
    }
    for code in running(py, thread)? {
        let mut watched = lock(py);
        let known = |(id, known): &(u64, Option<Py<PyCode>>)| {
            *id == task && known.as_ref().is_some_and(|known| known.is(&code))
        };
        if !watched.code.iter().any(known) {
            watched.code.push((task, Some(code.clone().unbind())));
            set_local_events(&monitoring, tool, &code, events)?;
        }
    }
    Ok(true)
}

/// True if code is watched for this task.
fn is_watched(py: Python<'_>, task: u64) -> bool {
    lock(py).code.iter().any(|(id, _)| *id == task)
}

fn forget(py: Python<'_>, task: u64) -> PyResult<()> {
    let monitoring = monitoring(py)?;
    let mut watched = lock(py);
    let Some(tool) = watched.tool else {
        return Ok(());
    };
    let (its, others): (Vec<_>, Vec<_>) = std::mem::take(&mut watched.code)
        .into_iter()
        .partition(|(id, _)| *id == task);
    for (_, code) in &its {
        let still = |(_, other): &(u64, Option<Py<PyCode>>)| match (code, other) {
            (Some(code), Some(other)) => code.is(other),
            (None, None) => true,
            _ => false,
        };
        if others.iter().any(still) {
            continue;
        }
        match code {
            Some(code) => set_local_events(&monitoring, tool, code.bind(py), 0)?,
            None => _ = monitoring.call_method1(intern!(py, "set_events"), (tool, 0))?,
        }
    }
    watched.code = others;
    if watched.code.is_empty() {
        watched.tool = None;
        for event in EVENTS {
            let event = monitoring.getattr("events")?.getattr(event)?;
            monitoring.call_method1("register_callback", (tool, event, py.None()))?;
        }
        monitoring.call_method1("free_tool_id", (tool,))?;
    }
    drop(watched);
    drop(its); // unlocked: dropping code objects runs finalizers
    Ok(())
}

/// Detaches while it waits, for the holder may need the interpreter.
fn lock(py: Python<'_>) -> std::sync::MutexGuard<'_, Watched> {
    WATCHED
        .lock_py_attached(py)
        .unwrap_or_else(PoisonError::into_inner)
}

fn monitoring(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(intern!(py, "sys"))?
        .getattr(intern!(py, "monitoring"))
}

/// `None`: other tools have all ids.
fn take_a_tool(monitoring: &Bound<'_, PyAny>) -> PyResult<Option<u8>> {
    let py = monitoring.py();
    for tool in TOOLS {
        if monitoring.call_method1("get_tool", (tool,))?.is_none() {
            monitoring.call_method1("use_tool_id", (tool, "desist"))?;
            let callback = wrap_pyfunction!(step, py)?;
            for event in EVENTS {
                let event = monitoring.getattr("events")?.getattr(event)?;
                monitoring.call_method1("register_callback", (tool, event, &callback))?;
            }
            return Ok(Some(tool));
        }
    }
    Ok(None)
}

fn all_events(monitoring: &Bound<'_, PyAny>) -> PyResult<u32> {
    let events = monitoring.getattr("events")?;
    EVENTS.iter().try_fold(0, |all, event| {
        Ok(all | events.getattr(*event)?.extract::<u32>()?)
    })
}

fn set_local_events(
    monitoring: &Bound<'_, PyAny>,
    tool: u8,
    code: &Bound<'_, PyCode>,
    events: u32,
) -> PyResult<()> {
    let name = intern!(monitoring.py(), "set_local_events");
    monitoring.call_method1(name, (tool, code, events))?;
    Ok(())
}

fn has_gil(py: Python<'_>) -> PyResult<bool> {
    match py
        .import(intern!(py, "sys"))?
        .getattr_opt("_is_gil_enabled")?
    {
        Some(enabled) => enabled.call0()?.extract(),
        None => Ok(true),
    }
}

/// The code that a thread is running, and the functions made in it: a call into C may be about to
/// call one that is not on the stack now.
fn running(py: Python<'_>, thread: u64) -> PyResult<Vec<Bound<'_, PyCode>>> {
    let frames = py.import("sys")?.call_method0("_current_frames")?;
    let mut frame = frames.call_method1("get", (thread,))?;
    let mut found = Vec::new();
    while !frame.is_none() {
        found.push(frame.getattr("f_code")?.cast_into::<PyCode>()?);
        frame = frame.getattr("f_back")?;
    }
    let mut seen = 0;
    while seen < found.len() {
        for constant in found[seen].getattr("co_consts")?.try_iter()? {
            if let Ok(code) = constant?.cast_into::<PyCode>() {
                found.push(code);
            }
        }
        seen += 1;
    }
    Ok(found)
}

/// The callback for every event: raises Killed if the calling thread's task is traced.
#[pyfunction]
#[pyo3(signature = (*_event))]
fn step(py: Python<'_>, _event: &Bound<'_, PyTuple>) -> PyResult<()> {
    let due = scope::current_task().and_then(|task| task.stepped());
    due.map_or(Ok(()), |cause| Err(killed(py, cause)))
}

// ---------------------------------------------------------------------- a trace function

thread_local! {
    /// The trace function that the thread had before, while ours is set.
    static BEFORE: RefCell<Option<Py<PyAny>>> = const { RefCell::new(None) };
}

fn set(py: Python<'_>) {
    let before = py
        .import("sys")
        .and_then(|sys| sys.call_method0("gettrace"));
    BEFORE.with(|slot| {
        let mut slot = slot.borrow_mut();
        if slot.is_none() {
            *slot = before.ok().map(Bound::unbind);
            // SAFETY: attached; the function is of the type that is asked for, needs no object,
            // and is there as long as the process.
            unsafe { ffi::PyEval_SetTrace(Some(on_step), ptr::null_mut()) };
        }
    });
}

fn unset(py: Python<'_>) {
    if let Some(before) = BEFORE.with(RefCell::take) {
        let restored = py
            .import("sys")
            .and_then(|sys| sys.call_method1("settrace", (before,)));
        if let Err(failure) = restored {
            failure.write_unraisable(py, None);
        }
    }
}

extern "C" fn on_step(
    _: *mut ffi::PyObject,
    _: *mut ffi::PyFrameObject,
    what: c_int,
    _: *mut ffi::PyObject,
) -> c_int {
    if what != ffi::PyTrace_CALL && what != ffi::PyTrace_LINE {
        return 0;
    }
    // SAFETY: the interpreter calls this, so it is attached.
    let py = unsafe { Python::assume_attached() };
    let task = scope::current_task();
    if let Some(cause) = task.as_ref().and_then(|task| task.stepped()) {
        killed(py, cause).restore(py);
        return -1;
    }
    if !task.is_some_and(|task| task.is_traced()) {
        unset(py); // the task was abandoned, or has ended
    }
    0
}
