//! `Cancelled` in place of the error of a blocking call that was ended.
//!
//! A blocking call of foreign code that the core has ended (`foreign`) fails with `ECANCELED`, of which
//! CPython makes an `OSError`, and a library in C an error of its own. Guarantees:
//! 1. That error is replaced where it is raised, before any handler of the code sees it, by what a checkpoint
//!    would raise there.
//! 2. No other exception is replaced: the thread asks the core whether a call of its own was ended, and the
//!    error is the `OSError`, or is raised by the very call into C in which the thread was found.
//! 3. A call is ended only if its error can be replaced, and only while the block of the cancelled scope is on
//!    the thread's stack (I41).
//!
//! How. The core's watcher ends a call inside of [`end_call`], attached: the thread needs the interpreter's
//! lock to raise the error, and so comes to it after the replacement was armed. Armed is, from 3.12 on, the
//! event RAISE of sys.monitoring, in all code; before, the trace function of `trace`, for that thread
//! alone. The thread disarms it when it has replaced the error. If C code keeps the error for itself, the
//! watcher disarms it after the scope was left ([`left_scope`]).
//!
//! `condition` ends waits of `threading.Condition`, in which no system call may be ended.
//!
//! `ARMED` is taken attached, with `lock_py_attached`, before the thread's frames are looked at: that may detach.
#![allow(unsafe_code)] // calls of the C API

mod condition;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pyo3::exceptions::{PyException, PyOSError, PyStopAsyncIteration, PyStopIteration};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use super::protected::NoCollection;
use super::trace;
use crate::host::{BlockedCall, HostThread};
use crate::python::binding::attach::attach;
use crate::python::binding::{frames, home, raw_frames};
use crate::scope;

/// A thread whose call was ended, and which has not raised the error yet.
struct Ended {
    /// See [`HostThread::ident`].
    thread: usize,
    /// The address of the frame that has made the call, and the place in its code.
    place: (usize, u32),
    /// It is a wait of a `Condition`, which raises no error by itself.
    is_wait: bool,
}

/// What is armed, and for which threads.
struct Armed {
    /// Our tool id of sys.monitoring, while a thread is listed.
    tool: Option<u8>,
    threads: Vec<Ended>,
}

static ARMED: Mutex<Armed> = Mutex::new(Armed {
    tool: None,
    threads: Vec::new(),
});

/// Raises what a checkpoint would. Written once, by [`install`].
static CHECKPOINT: OnceLock<fn(Python<'_>) -> PyResult<()>> = OnceLock::new();

/// Whether errors can be replaced: see [`install`].
static CAN: AtomicBool = AtomicBool::new(false);

/// Whether calls are to be ended: see [`set_on`].
static IS_ON: AtomicBool = AtomicBool::new(true);

/// The modules in which calls were left alone.
static LEFT_ALONE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Once, when the module is imported: from now on calls of foreign code are ended. Without the GIL a thread
/// could raise the error before the replacement is armed, so there they are left alone.
pub(in crate::python) fn install(
    py: Python<'_>,
    checkpoint: fn(Python<'_>) -> PyResult<()>,
) -> PyResult<()> {
    let _ = CHECKPOINT.set(checkpoint);
    let can = frames::has_gil(py)? && (trace::is_monitored(py) || trace::sets_for_others(py));
    CAN.store(can, Ordering::Relaxed);
    Ok(())
}

/// Can errors be replaced in this interpreter?
pub(in crate::python) fn is_possible() -> bool {
    CAN.load(Ordering::Relaxed)
}

/// Are calls ended at all?
pub(in crate::python) fn is_on() -> bool {
    is_possible() && IS_ON.load(Ordering::Relaxed)
}

/// The switch for all scopes; what it was before.
pub(in crate::python) fn set_on(on: bool) -> bool {
    IS_ON.swap(on, Ordering::Relaxed)
}

/// The modules in which calls were left alone.
pub(in crate::python) fn modules_left_alone() -> Vec<String> {
    modules().clone()
}

fn modules() -> MutexGuard<'static, Vec<String>> {
    LEFT_ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread, if its calls can be ended. Runs no code.
pub(in crate::python) fn thread() -> Option<HostThread> {
    is_possible().then(|| HostThread {
        ident: ident(),
        // SAFETY: it may be called at any time.
        state: unsafe { ffi::PyGILState_GetThisThreadState() } as usize,
    })
}

/// The calling thread, as `threading.get_ident()` has it.
#[cfg(unix)]
fn ident() -> usize {
    // SAFETY: it may be called at any time.
    let ident = unsafe { libc::pthread_self() };
    ident as usize
}

#[cfg(not(unix))]
fn ident() -> usize {
    0 // no call is ended there
}

/// The watcher: see to the replacement of the error, and end the call.
pub(in crate::python) fn end_call(call: &mut dyn BlockedCall) {
    watch(|py| end_attached(py, call));
}

/// The watcher: the thread has left the scope in which its call was ended.
pub(in crate::python) fn left_scope(thread: HostThread) {
    watch(|py| disarm(py, thread.ident));
}

/// The watcher: the thread's calls are left alone. Notes the module whose code made the call.
pub(in crate::python) fn left_alone(thread: HostThread) {
    watch(|py| {
        let Some(frame) = frames::of_thread(py, thread.ident as u64)? else {
            return Ok(());
        };
        let name = frame
            .getattr(intern!(py, "f_globals"))?
            .get_item(intern!(py, "__name__"))?
            .extract()?;
        let mut modules = modules();
        if !modules.contains(&name) {
            modules.push(name);
        }
        Ok(())
    });
}

/// Runs `act` attached. Not while the interpreter shuts down: its threads are stopping anyway.
fn watch(act: impl FnOnce(Python<'_>) -> PyResult<()>) {
    attach(|py| {
        let _still = NoCollection::begin(py);
        if let Err(failure) = act(py) {
            failure.write_unraisable(py, None);
        }
    });
}

fn end_attached(py: Python<'_>, call: &mut dyn BlockedCall) -> PyResult<()> {
    let mut armed = lock(py);
    let thread = call.thread();
    let Some(frame) = frames::of_thread(py, thread.ident as u64)? else {
        return Ok(());
    };
    if !home::is_on_stack(py, &frame, call.home())? {
        return Ok(());
    }
    if call.is_futex() {
        return condition::end(&frame, &mut || {
            arm_and_end(py, &mut armed, &frame, call, true)
        });
    }
    arm_and_end(py, &mut armed, &frame, call, false)?;
    Ok(())
}

/// True: it was ended.
fn arm_and_end(
    py: Python<'_>,
    armed: &mut Armed,
    frame: &Bound<'_, PyAny>,
    call: &mut dyn BlockedCall,
    is_wait: bool,
) -> PyResult<bool> {
    let thread = call.thread();
    let Some(layout) = raw_frames::layout(py)? else {
        return Ok(false); // an unknown interpreter
    };
    let place = (
        layout.of_object(frame).address(),
        frames::last_instruction(frame)?,
    );
    armed.threads.retain(|other| other.thread != thread.ident);
    armed.threads.push(Ended {
        thread: thread.ident,
        place,
        is_wait,
    });
    let is_armed = apply(py, armed)?;
    let ended = is_armed && call.end().is_some();
    if !ended {
        armed.threads.pop();
        apply(py, armed)?;
    } else if !trace::is_monitored(py) {
        // The thread comes to its next instruction after this, for it needs the interpreter.
        if is_wait {
            frame.setattr(intern!(py, "f_trace_opcodes"), true)?;
        }
        trace::set_for(py, thread.state)?;
    }
    Ok(ended)
}

/// Sets the events of sys.monitoring that the listed threads need; gives the tool back if there are none.
/// False: there is no tool.
fn apply(py: Python<'_>, armed: &mut Armed) -> PyResult<bool> {
    if !trace::is_monitored(py) {
        return Ok(true);
    }
    let monitoring = trace::monitoring(py)?;
    let event = |name| trace::event(&monitoring, name);
    let (raise, step) = (event("RAISE")?, event("INSTRUCTION")?);
    let callbacks = [
        (raise, wrap_pyfunction!(on_raise, py)?),
        (step, wrap_pyfunction!(on_step, py)?),
    ];
    if armed.tool.is_none() && !armed.threads.is_empty() {
        armed.tool = trace::take_tool_for(&monitoring, &callbacks)?;
    }
    let Some(tool) = armed.tool else {
        return Ok(false);
    };
    let if_any = |is_wait, event| {
        let any = armed.threads.iter().any(|ended| ended.is_wait == is_wait);
        if any { event } else { 0 }
    };
    let code = condition::code(py)?;
    trace::set_events(&monitoring, tool, None, if_any(false, raise))?;
    trace::set_events(&monitoring, tool, Some(code), if_any(true, step))?;
    if armed.threads.is_empty() {
        armed.tool = None;
        trace::free_tool(&monitoring, tool, &[raise, step])?;
    }
    Ok(true)
}

/// Detaches while it waits, for the holder may need the interpreter.
fn lock(py: Python<'_>) -> MutexGuard<'_, Armed> {
    ARMED
        .lock_py_attached(py)
        .unwrap_or_else(PoisonError::into_inner)
}

fn disarm(py: Python<'_>, thread: usize) -> PyResult<()> {
    let mut armed = lock(py);
    let before = armed.threads.len();
    armed.threads.retain(|ended| ended.thread != thread);
    if armed.threads.len() != before {
        apply(py, &mut armed)?;
    }
    Ok(())
}

/// From 3.12 on, where an exception is raised, in all threads.
#[pyfunction]
fn on_raise(
    py: Python<'_>,
    _code: &Bound<'_, PyAny>,
    offset: u32,
    raised: &Bound<'_, PyAny>,
) -> PyResult<()> {
    instead_of(py, raised, Some(offset)).map_or(Ok(()), Err)
}

/// From 3.12 on, in front of each instruction of `Condition.wait`, in all threads.
#[pyfunction]
fn on_step(py: Python<'_>, _code: &Bound<'_, PyAny>, _offset: u32) -> PyResult<()> {
    instead_of_return(py).map_or(Ok(()), Err)
}

/// The calling thread raises an exception, at this place in the code of its innermost frame: what is raised in
/// place of it, if it is the error of a call that was ended.
pub(super) fn instead_of(
    py: Python<'_>,
    raised: &Bound<'_, PyAny>,
    place: Option<u32>,
) -> Option<PyErr> {
    if !scope::has_ended_call() {
        return None;
    }
    let is_error_of_c = || {
        let is_error = raised.is_instance_of::<PyException>()
            && !raised.is_instance_of::<PyStopIteration>()
            && !raised.is_instance_of::<PyStopAsyncIteration>();
        is_error && is_at(py, place, false)
    };
    if is_canceled(raised) {
        return raise(py);
    }
    if !is_error_of_c() {
        return None;
    }
    let stop = raise(py)?;
    stop.set_cause(py, Some(PyErr::from_value(raised.clone())));
    Some(stop)
}

/// The calling thread comes to an instruction: what is raised there, if it is the first one behind a wait
/// that was ended.
pub(super) fn instead_of_return(py: Python<'_>) -> Option<PyErr> {
    let is_due = scope::has_ended_call() && is_at(py, None, true);
    if !is_due {
        return None;
    }
    if !trace::is_monitored(py) {
        let frame = frames::frame(py)?;
        let _ = frame.setattr(intern!(py, "f_trace_opcodes"), false);
    }
    raise(py)
}

/// Is the calling thread in the frame whose call was ended, and at the place of that call, if one is given?
fn is_at(py: Python<'_>, place: Option<u32>, is_wait: bool) -> bool {
    let thread = ident();
    let of_thread = lock(py)
        .threads
        .iter()
        .find(|ended| ended.thread == thread && ended.is_wait == is_wait)
        .map(|ended| ended.place);
    let Some((frame, at)) = of_thread else {
        return false;
    };
    let innermost = || {
        let layout = raw_frames::layout(py).ok()??;
        Some(layout.of_object(&frames::frame(py)?).address())
    };
    place.is_none_or(|place| place == at) && innermost() == Some(frame)
}

/// Is it the `OSError` of a call that was ended?
fn is_canceled(raised: &Bound<'_, PyAny>) -> bool {
    raised.is_instance_of::<PyOSError>()
        && raised
            .getattr(intern!(raised.py(), "errno"))
            .and_then(|number| number.extract::<i32>())
            .is_ok_and(|number| number == libc::ECANCELED)
}

/// The calling thread meets the end of its call: what a checkpoint raises now.
fn raise(py: Python<'_>) -> Option<PyErr> {
    scope::note_raised();
    disarm(py, ident())
        .and_then(|()| CHECKPOINT.get().map_or(Ok(()), |checkpoint| checkpoint(py)))
        .err()
}
