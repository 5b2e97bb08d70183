//! The rung TRACE: `Killed` is raised at every step of a body, so that code which swallows it cannot
//! go on.
//!
//! No code is watched before a kill reaches this rung, or finds at the rung ASYNC_EXC that the body is
//! inside of a module with locks of its own (without the GIL: in any case); none after the body has ended.
//!
//! From 3.12 on this uses sys.monitoring, with events that are local to the code that the body is
//! running and the functions made in it: other threads are slowed only if they run the same code.
//! Without the GIL another thread's frames cannot be read, so there the events are global. The
//! callback raises only if the task of its own thread is being traced.
//!
//! Before 3.12, and where other tools have taken all ids of sys.monitoring, it uses a trace function, which
//! is called at each call and line. Before 3.12 the killing thread sets it for the victim, by the function with
//! which CPython does so, too; it sees to forced blocks (`block`) as well. From 3.12 on a thread can only
//! set its own: an asynchronous `Killed` is posted, and its delivery (see `killed`) sets the function. The
//! thread's former trace function is kept as the object that ours is called with, and comes back when there is
//! nothing left to raise.
//!
//! Nothing is raised while the body is inside of a module with locks of its own (see `protected`), nor
//! where that would skip the end of a `with` block, or leave a traceback entry without a line. That is
//! why the event is INSTRUCTION: an exception that is raised at one for lines or jumps counts as raised
//! at another instruction. Raising at EXCEPTION_HANDLED would find the same handler again, in C, forever.
//!
//! `WATCHED` is the state of sys.monitoring that all kills share: the first kill takes a tool id, the
//! last to end frees it. The interpreter may run finalizers of other threads while the lock is held,
//! so it is an `AttachedLock`, and objects are dropped after it is released.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

use crate::python::binding::interned::interned;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyCode, PyTuple};

use super::killed::killed;
use super::{AsyncException, in_place, protected};
use crate::python::binding::attached_lock::AttachedLock;
use crate::python::binding::frames;
use crate::scope;
use crate::task::Task;

/// Tools that have no name in sys.monitoring come first; a debugger or a profiler keeps its own.
const TOOLS: [u8; 4] = [4, 3, 5, 2];

/// The watched code, and for which tasks.
struct Watched {
    /// Our tool id, while any code is watched.
    tool: Option<u8>,
    /// The number of a task, and a code object that is watched for it; `None`: all code.
    code: Vec<(u64, Option<Py<PyCode>>)>,
}

static WATCHED: AttachedLock<Watched> = AttachedLock::new(Watched {
    tool: None,
    code: Vec::new(),
});

/// Is there sys.monitoring?
pub(super) fn is_monitored(py: Python<'_>) -> bool {
    py.version_info() >= (3, 12)
}

/// Starts tracing the body, or extends it to the code that the body runs now.
/// Unless `everywhere`, code that is inside of a module with locks of its own can be left out.
pub(super) fn begin(py: Python<'_>, task: &Arc<Task>, thread: &AsyncException, everywhere: bool) {
    let watched = if is_monitored(py) {
        watch(py, task.id(), thread, everywhere)
    } else {
        Ok(false)
    };
    match watched {
        Ok(true) => {}
        Ok(false) if sets_for_others(py) => set(py, thread),
        Ok(false) => task.post_to_trace(thread, everywhere),
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
pub(super) fn arrived(py: Python<'_>, task: &Task) {
    let is_watched = || is_monitored(py) && is_watched(py, task.id());
    if task.is_traced() && !IS_SET.get() && !sets_for_others(py) && !is_watched() {
        set_for_this_thread(py);
    }
}

// ---------------------------------------------------------------------- sys.monitoring

/// The event in front of every instruction: what is raised there counts as raised at it.
pub(super) fn instruction_event(monitoring: &Bound<'_, PyAny>) -> PyResult<u32> {
    event(monitoring, "INSTRUCTION")
}

/// The event with this name.
pub(super) fn event(monitoring: &Bound<'_, PyAny>, name: &str) -> PyResult<u32> {
    let events = monitoring.getattr(interned!(monitoring.py(), "events"))?;
    events.getattr(name)?.extract()
}

/// False: no tool id is free.
fn watch(py: Python<'_>, task: u64, thread: &AsyncException, everywhere: bool) -> PyResult<bool> {
    let monitoring = monitoring(py)?;
    let event = instruction_event(&monitoring)?;
    let codes = if frames::has_gil(py)? {
        let running = running(py, thread, everywhere)?;
        running.into_iter().map(Some).collect()
    } else {
        vec![None]
    };
    // Not released before the events are set: without the GIL `forget` may free the tool meanwhile.
    let mut watched = WATCHED.lock(py);
    if watched.tool.is_none() {
        let callback = wrap_pyfunction!(step, py)?;
        watched.tool = take_tool_for(&monitoring, &[(event, callback)])?;
    }
    let Some(tool) = watched.tool else {
        return Ok(false);
    };
    for code in codes {
        let known = |(id, known): &(u64, Option<Py<PyCode>>)| {
            *id == task && is_same(known.as_ref(), code.as_ref())
        };
        if watched.code.iter().any(known) {
            continue;
        }
        set_events(&monitoring, tool, code.as_ref(), event)?;
        let kept = code.map(Bound::unbind);
        watched.code.push((task, kept));
    }
    Ok(true)
}

/// Do both stand for this code, or for all code?
fn is_same(one: Option<&Py<PyCode>>, other: Option<&Bound<'_, PyCode>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// True if code is watched for this task.
fn is_watched(py: Python<'_>, task: u64) -> bool {
    WATCHED.lock(py).code.iter().any(|(id, _)| *id == task)
}

fn forget(py: Python<'_>, task: u64) -> PyResult<()> {
    let monitoring = monitoring(py)?;
    let mut watched = WATCHED.lock(py);
    let Some(tool) = watched.tool else {
        return Ok(());
    };
    let (its, others): (Vec<_>, Vec<_>) = std::mem::take(&mut watched.code)
        .into_iter()
        .partition(|(id, _)| *id == task);
    for (_, code) in &its {
        let code = code.as_ref().map(|code| code.bind(py));
        let still = |(_, other): &(u64, Option<Py<PyCode>>)| is_same(other.as_ref(), code);
        if !others.iter().any(still) {
            set_events(&monitoring, tool, code, 0)?;
        }
    }
    watched.code = others;
    if watched.code.is_empty() {
        watched.tool = None;
        free_tool(&monitoring, tool, &[instruction_event(&monitoring)?])?;
    }
    drop(watched);
    drop(its); // unlocked: dropping code objects runs finalizers
    Ok(())
}

pub(super) fn monitoring(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(interned!(py, "sys"))?
        .getattr(interned!(py, "monitoring"))
}

/// A tool with these callbacks for the events. `None`: other tools have all ids.
pub(super) fn take_tool_for(
    monitoring: &Bound<'_, PyAny>,
    callbacks: &[(u32, Bound<'_, PyCFunction>)],
) -> PyResult<Option<u8>> {
    for tool in TOOLS {
        if monitoring.call_method1("get_tool", (tool,))?.is_none() {
            monitoring.call_method1("use_tool_id", (tool, "desist"))?;
            for (event, callback) in callbacks {
                monitoring.call_method1("register_callback", (tool, event, callback))?;
            }
            return Ok(Some(tool));
        }
    }
    Ok(None)
}

/// Gives back a tool that has no events any more.
pub(super) fn free_tool(monitoring: &Bound<'_, PyAny>, tool: u8, events: &[u32]) -> PyResult<()> {
    for event in events {
        let none = monitoring.py().None();
        monitoring.call_method1("register_callback", (tool, event, none))?;
    }
    monitoring.call_method1("free_tool_id", (tool,))?;
    Ok(())
}

/// `None`: in all code.
pub(super) fn set_events(
    monitoring: &Bound<'_, PyAny>,
    tool: u8,
    code: Option<&Bound<'_, PyCode>>,
    events: u32,
) -> PyResult<()> {
    let py = monitoring.py();
    match code {
        Some(code) => {
            let name = interned!(py, "set_local_events");
            monitoring.call_method1(name, (tool, code, events))?
        }
        None => monitoring.call_method1(interned!(py, "set_events"), (tool, events))?,
    };
    Ok(())
}

/// The code that a body is running, and the functions made in it: a call into C may be about to
/// call one that is not on the stack now.
fn running<'py>(
    py: Python<'py>,
    thread: &AsyncException,
    everywhere: bool,
) -> PyResult<Vec<Bound<'py, PyCode>>> {
    let mut calls = thread.body(py).collect::<PyResult<Vec<_>>>()?;
    if !everywhere {
        protected::outside(&mut calls)?;
    }
    let mut found = Vec::new();
    for frame in calls {
        found.push(frames::code(&frame)?.cast_into::<PyCode>()?);
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

/// Called before every instruction of watched code: raises Killed if the calling thread's task is traced.
#[pyfunction]
fn step(py: Python<'_>, _code: &Bound<'_, PyAny>, offset: u32) -> PyResult<()> {
    let due = scope::current_task().and_then(|task| task.stepped(Some(offset)));
    due.map_or(Ok(()), |cause| Err(killed(py, cause)))
}

// ---------------------------------------------------------------------- a trace function

thread_local! {
    /// Our trace function is set on this thread; noted there, at its first call at the latest.
    static IS_SET: Cell<bool> = const { Cell::new(false) };
}

/// True if [`set`] has an effect: up to 3.11, but on Windows.
pub(super) fn sets_for_others(py: Python<'_>) -> bool {
    !is_monitored(py) && set_trace().is_some()
}

/// Before 3.12: has the thread call our trace function from its next line or call on. With the GIL, while
/// the thread is in its task or block.
pub(super) fn set(py: Python<'_>, thread: &AsyncException) {
    if let Err(failure) = set_for(py, thread.state) {
        failure.write_unraisable(py, None);
    }
}

/// [`set`], for the thread with this state.
pub(super) fn set_for(py: Python<'_>, state: usize) -> PyResult<()> {
    let Some(set_trace) = set_trace() else {
        return Ok(());
    };
    let ask = py.import("sys")?.getattr("gettrace")?;
    let state = state as *mut ffi::PyThreadState;
    // SAFETY: attached, and there is a GIL, which swapping the states does not release before 3.12; the
    // caller says that the thread is there. In its name nothing is called but a function in C that reads
    // one of its fields. Setting takes a count of the object; our function is there as long as the process.
    let (former, failed) = unsafe {
        let own = ffi::PyThreadState_Swap(state);
        let former = ask.call0();
        ffi::PyThreadState_Swap(own);
        let former = former?;
        let failed = set_trace(state, Some(on_step), kept(&former)) != 0;
        (former, failed)
    };
    drop(former);
    // The failure is one of an audit hook.
    if failed {
        Err(PyErr::fetch(py))
    } else {
        Ok(())
    }
}

/// Sets our trace function for the calling thread.
fn set_for_this_thread(py: Python<'_>) {
    match py
        .import("sys")
        .and_then(|sys| sys.call_method0("gettrace"))
    {
        // SAFETY: attached; it takes a count of the object, and our function is there as long as the process.
        Ok(former) => unsafe { ffi::PyEval_SetTrace(Some(on_step), kept(&former)) },
        Err(failure) => return failure.write_unraisable(py, None),
    }
    IS_SET.set(true);
}

/// The object with which our trace function is called: the thread's former one.
fn kept(former: &Bound<'_, PyAny>) -> *mut ffi::PyObject {
    if former.is_none() {
        ptr::null_mut()
    } else {
        former.as_ptr()
    }
}

type SetTrace = unsafe extern "C" fn(
    *mut ffi::PyThreadState,
    Option<ffi::Py_tracefunc>,
    *mut ffi::PyObject,
) -> c_int;

/// CPython's own function, which is no part of its documented interface. For versions before 3.12.
#[cfg(unix)]
fn set_trace() -> Option<SetTrace> {
    static FOUND: OnceLock<Option<SetTrace>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends with a NUL; before 3.12 the function is of this type, and NULL is `None`.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"_PyEval_SetTrace".as_ptr());
            std::mem::transmute::<*mut c_void, Option<SetTrace>>(found)
        }
    })
}

#[cfg(not(unix))]
fn set_trace() -> Option<SetTrace> {
    None
}

/// Removes our trace function from the calling thread, if it is known to be set.
pub(super) fn unset(py: Python<'_>) {
    if !IS_SET.replace(false) {
        return;
    }
    let restore = || {
        let sys = py.import("sys")?;
        sys.call_method1("settrace", (sys.call_method0("gettrace")?,))
    };
    if let Err(failure) = restore() {
        failure.write_unraisable(py, None);
    }
}

extern "C" fn on_step(
    _: *mut ffi::PyObject,
    _: *mut ffi::PyFrameObject,
    what: c_int,
    argument: *mut ffi::PyObject,
) -> c_int {
    // SAFETY: the interpreter calls this, so it is attached.
    let py = unsafe { Python::assume_attached() };
    let steps = [ffi::PyTrace_CALL, ffi::PyTrace_LINE, ffi::PyTrace_OPCODE];
    let raised = if what == ffi::PyTrace_EXCEPTION {
        // SAFETY: with this event the argument is the tuple of `sys.exc_info()`, which lives as long as the call.
        let raised = unsafe { Bound::from_borrowed_ptr_or_opt(py, argument) };
        raised.and_then(|raised| replaced(&raised))
    } else if steps.contains(&what) {
        stepped(py)
    } else {
        None
    };
    match raised {
        Some(raised) => {
            raised.restore(py);
            -1
        }
        None => 0,
    }
}

/// The body comes to a step: `Killed`, if it is due.
fn stepped(py: Python<'_>) -> Option<PyErr> {
    IS_SET.set(true);
    if let Some(stop) = in_place::instead_of_return(py) {
        return Some(stop);
    }
    let Some(task) = traced_task() else {
        // The task was abandoned, or has ended; or a call of the thread was ended that has raised no error yet.
        if !scope::has_ended_call() {
            unset(py);
        }
        return None;
    };
    let here = frames::frame(py).and_then(|frame| frames::last_instruction(&frame).ok());
    let cause = task.stepped(here).or_else(|| task.deliver_here(here));
    cause.map(|cause| killed(py, cause))
}

/// An exception is raised: what is raised in its place, if it is the error of a call that was ended.
fn replaced(raised: &Bound<'_, PyAny>) -> Option<PyErr> {
    let py = raised.py();
    let value = raised.cast::<PyTuple>().ok()?.get_item(1).ok()?;
    in_place::instead_of(py, &value)
}

/// [`set_for`] has set our trace function for the calling thread, which needs it no longer for that.
/// CPython 3.11 runs no Python function of a traced thread as long as an exception is posted to any thread that
/// has not been raised: so the function is removed before the next call, and not by it.
pub(super) fn unset_for_this_thread(py: Python<'_>) {
    IS_SET.set(true);
    if traced_task().is_none() {
        unset(py);
    }
}

fn traced_task() -> Option<Arc<Task>> {
    scope::current_task().filter(|task| task.is_traced() || task.is_observed())
}
