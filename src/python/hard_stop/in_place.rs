//! `Cancelled` in place of the error of a blocking call that was ended.
//!
//! A blocking call of foreign code that the core has ended (`foreign`) fails with `ECANCELED`, of which
//! CPython makes an `OSError`, and a library in C an error of its own. Guarantees:
//! 1. That error is replaced where it is raised, before any handler of the code sees it, by what a checkpoint
//!    would raise there.
//! 2. No other exception is replaced: the thread asks the core whether a call of its own was ended, and the
//!    error is raised by the very call into C in which the thread was found: in the same frame, at the same place.
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
//! `ARMED` is taken before the thread's frames are looked at: a wait for it detaches.
#![allow(unsafe_code)] // calls of the C API

mod condition;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::python::binding::interned::interned;
use pyo3::exceptions::{PyException, PyOSError, PyStopAsyncIteration, PyStopIteration};
use pyo3::ffi;
use pyo3::prelude::*;

use super::protected::NoCollection;
use super::trace;
use crate::foreign::FUTEX;
use crate::host::{BlockedCall, HostThread};
use crate::python::binding::attach::attach;
use crate::python::binding::attached_lock::AttachedLock;
use crate::python::binding::{frames, home};
use crate::scope;

/// A thread whose call was ended, and which has not raised the error yet.
struct Ended {
    /// See [`HostThread::ident`].
    thread: u64,
    /// See [`BlockedCall::number`].
    number: usize,
    /// The frame that has made the call. Dropped with nothing locked: that may run finalizers.
    frame: Py<PyAny>,
    /// The place in its code.
    place: u32,
    /// It is a wait of a `Condition`, which raises no error by itself.
    is_wait: bool,
    /// The call, in words.
    call: String,
}

/// What is armed, and for which threads.
struct Armed {
    /// Our tool id of sys.monitoring, while a thread is listed.
    tool: Option<u8>,
    threads: Vec<Ended>,
}

static ARMED: AttachedLock<Armed> = AttachedLock::new(Armed {
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
    // The first time is now: a child that is forked while the watcher asks first would wait for that thread.
    frames::of_thread(py, ident())?;
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
#[cfg(target_os = "linux")]
fn ident() -> u64 {
    // SAFETY: it may be called at any time.
    unsafe { libc::pthread_self() }
}

#[cfg(not(target_os = "linux"))]
fn ident() -> u64 {
    0 // no call is ended there
}

/// The watcher: see to the replacement of the error, and end the call.
pub(in crate::python) fn end_call(call: &mut dyn BlockedCall) {
    watch(|py| end_attached(py, call));
}

/// The watcher: the thread has left the scope in which its call was ended.
pub(in crate::python) fn left_scope(number: usize) {
    watch(|py| disarm(py, |ended| ended.number == number).map(drop));
}

/// The watcher: the thread's calls are left alone. Notes the module whose code made the call.
pub(in crate::python) fn left_alone(thread: HostThread) {
    watch(|py| {
        let Some(frame) = frames::of_thread(py, thread.ident)? else {
            return Ok(());
        };
        let name = module_of(&frame)?;
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
    if call.name() == FUTEX {
        condition::prepare(py)?;
    }
    let mut gone = None; // dropped after the lock is released
    let mut armed = ARMED.lock(py);
    let thread = call.thread();
    let Some(frame) = frames::of_thread(py, thread.ident)? else {
        return Ok(());
    };
    if !home::is_on_stack(py, &frame, call.home())? {
        return Ok(());
    }
    if call.name().starts_with("epoll") && !calls_poll(&frame)? {
        return Ok(());
    }
    if call.name() == FUTEX {
        return condition::end(&frame, &mut || {
            arm_and_end(&mut armed, &mut gone, &frame, call, true)
        });
    }
    arm_and_end(&mut armed, &mut gone, &frame, call, false)?;
    Ok(())
}

/// Does the code of the frame call a `poll()` that may raise? That of `select.epoll` takes any error. Event loops in
/// C, as that of uvloop, abort the process at an error of `epoll_wait` which they do not know; the code that
/// runs them calls none. That of trio cannot go on after an exception in its `poll()`.
fn calls_poll(frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = frame.py();
    let names = frames::code(frame)?.getattr(interned!(py, "co_names"))?;
    Ok(names.contains(interned!(py, "poll"))? && !module_of(frame)?.starts_with("trio."))
}

/// The name of the module whose code the frame runs.
fn module_of(frame: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = frame.py();
    let globals = frame.getattr(interned!(py, "f_globals"))?;
    globals.get_item(interned!(py, "__name__"))?.extract()
}

/// True: it was ended. `gone` gets an entry that is not needed any more.
fn arm_and_end(
    armed: &mut Armed,
    gone: &mut Option<Ended>,
    frame: &Bound<'_, PyAny>,
    call: &mut dyn BlockedCall,
    is_wait: bool,
) -> PyResult<bool> {
    let (py, thread) = (frame.py(), call.thread());
    let is_of_thread = |ended: &Ended| ended.thread == thread.ident;
    // Of a call that was ended before, and whose error was not raised yet.
    let former = armed.threads.iter().position(is_of_thread);
    let former = former.map(|index| armed.threads.swap_remove(index));
    armed.threads.push(Ended {
        thread: thread.ident,
        number: call.number(),
        frame: frame.clone().unbind(),
        place: frames::last_instruction(frame)?,
        is_wait,
        call: String::new(),
    });
    let is_armed = apply(py, armed)?;
    let ended = if is_armed { call.end() } else { None };
    let Some(ended) = ended else {
        *gone = armed.threads.pop();
        armed.threads.extend(former);
        apply(py, armed)?;
        return Ok(false);
    };
    if let Some(entry) = armed.threads.last_mut() {
        entry.call = if is_wait {
            WAIT.into()
        } else {
            ended.to_string()
        };
    }
    *gone = former;
    if !trace::is_monitored(py) {
        // The thread comes to its next instruction after this, for it needs the interpreter.
        if is_wait {
            frame.setattr(interned!(py, "f_trace_opcodes"), true)?;
        }
        trace::set_for(py, thread.state)?;
    }
    Ok(true)
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
    if armed.tool.is_none() && !armed.threads.is_empty() {
        let callbacks = [
            (raise, wrap_pyfunction!(on_raise, py)?),
            (step, wrap_pyfunction!(on_step, py)?),
        ];
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

/// Returns the call that was ended, in words.
fn disarm(py: Python<'_>, is_it: impl Fn(&Ended) -> bool) -> PyResult<Option<String>> {
    let mut armed = ARMED.lock(py);
    let Some(index) = armed.threads.iter().position(is_it) else {
        return Ok(None);
    };
    let gone = armed.threads.swap_remove(index);
    let applied = apply(py, &mut armed);
    drop(armed);
    applied.map(|_| Some(gone.call)) // the rest is dropped with nothing locked
}

/// What a report calls an ended wait of a stock `Condition`.
const WAIT: &str = "a wait of threading.Condition";

/// From 3.12 on, where an exception is raised, in all threads.
#[pyfunction]
fn on_raise(
    py: Python<'_>,
    _code: &Bound<'_, PyAny>,
    _offset: u32,
    raised: &Bound<'_, PyAny>,
) -> PyResult<()> {
    instead_of(py, raised).map_or(Ok(()), Err)
}

/// From 3.12 on, in front of each instruction of `Condition.wait`, in all threads.
#[pyfunction]
fn on_step(py: Python<'_>, _code: &Bound<'_, PyAny>, _offset: u32) -> PyResult<()> {
    instead_of_return(py).map_or(Ok(()), Err)
}

/// The calling thread raises an exception: what is raised in place of it, if it is the error of a call that was
/// ended.
pub(super) fn instead_of(py: Python<'_>, raised: &Bound<'_, PyAny>) -> Option<PyErr> {
    let is_at_call = || places(py, false).is_some_and(|(here, call)| here == call);
    if !(scope::has_ended_call() && is_error(raised) && is_at_call()) {
        return None;
    }
    let stop = raise(py)?;
    if !is_canceled(raised) {
        stop.set_cause(py, Some(PyErr::from_value(raised.clone())));
    }
    Some(stop)
}

/// The calling thread comes to an instruction: what is raised there, if it is the first one behind a wait
/// that was ended.
pub(super) fn instead_of_return(py: Python<'_>) -> Option<PyErr> {
    let is_due =
        scope::has_ended_call() && places(py, true).is_some_and(|(here, wait)| here > wait);
    if !is_due {
        return None;
    }
    if !trace::is_monitored(py) {
        let frame = frames::frame(py)?;
        let _ = frame.setattr(interned!(py, "f_trace_opcodes"), false);
    }
    raise(py)
}

/// The place at which the calling thread is in the frame whose call was ended, and that of the call. `None`: it is in
/// no such frame.
fn places(py: Python<'_>, is_wait: bool) -> Option<(u32, u32)> {
    let frame = frames::frame(py)?;
    let thread = ident();
    let place = ARMED
        .lock(py)
        .threads
        .iter()
        .find(|ended| ended.thread == thread && ended.is_wait == is_wait)
        .filter(|ended| frame.is(&ended.frame))
        .map(|ended| ended.place)?;
    Some((frames::last_instruction(&frame).ok()?, place))
}

/// The result of a function that native code has called. If the function is one of C, that code takes the exception
/// before it is raised in a frame of the interpreter.
pub(in crate::python) fn checked<T>(py: Python<'_>, result: PyResult<T>) -> PyResult<T> {
    result.map_err(|raised| instead_of(py, raised.value(py)).unwrap_or(raised))
}

/// An exception that is an error: not one of the loop that the call was made for.
fn is_error(raised: &Bound<'_, PyAny>) -> bool {
    raised.is_instance_of::<PyException>()
        && !raised.is_instance_of::<PyStopIteration>()
        && !raised.is_instance_of::<PyStopAsyncIteration>()
}

/// Is it the `OSError` that CPython makes of the error?
fn is_canceled(raised: &Bound<'_, PyAny>) -> bool {
    raised.is_instance_of::<PyOSError>()
        && raised
            .getattr(interned!(raised.py(), "errno"))
            .and_then(|number| number.extract::<i32>())
            .is_ok_and(|number| number == libc::ECANCELED)
}

/// The calling thread meets the end of its call: what a checkpoint raises now.
fn raise(py: Python<'_>) -> Option<PyErr> {
    // First: the rest may run a finalizer, in which an exception that is posted as well would be raised instead.
    let stop = CHECKPOINT.get()?(py).err();
    scope::note_raised();
    if !trace::is_monitored(py) {
        trace::unset_for_this_thread(py);
    }
    let own = ident();
    match disarm(py, |ended| ended.thread == own) {
        Ok(call) => {
            if let (Some(call), Some(task)) = (call, scope::current_task()) {
                task.note_ended_call(&call);
            }
            stop
        }
        Err(failure) => Some(failure),
    }
}
