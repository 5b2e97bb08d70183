//! `Cancelled` in place of the error of a blocking call that was ended.
//!
//! A blocking call of foreign code that the core has ended (`foreign`) fails with `ECANCELED`, of which
//! CPython makes an `OSError`. Guarantees:
//! 1. That error is replaced where it is raised, before any handler of the code sees it, by what a checkpoint
//!    would raise there.
//! 2. No other exception is replaced: the thread asks the core whether a call of its own was ended.
//! 3. A call is ended only if its error can be replaced.
//!
//! How. The core's watcher ends a call inside of [`end_call`], attached: the thread needs the interpreter's
//! lock to raise the error, and so comes to it after the replacement was armed. Armed is, from 3.12 on, the
//! event RAISE of sys.monitoring, in all code; before, the trace function of `trace`, for that thread
//! alone. The thread disarms it when it has replaced the error. C code that keeps the error for
//! itself leaves it armed, until a call is ended after [`FORGOTTEN`], or for good if none is; then each
//! raise of an exception takes a little longer.
//!
//! `ARMED` is taken attached, with `lock_py_attached`.
#![allow(unsafe_code)] // calls of the C API

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use super::protected::NoCollection;
use super::trace;
use crate::clock::Time;
use crate::host::EndedCall;
use crate::python::binding::attach::attach;
use crate::python::binding::frames;
use crate::scope;

/// After this time C code has kept an error for itself.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// The threads whose calls were ended, and which have not raised the error yet.
struct Armed {
    /// Our tool id of sys.monitoring, while a thread is listed.
    tool: Option<u8>,
    /// The kernel's number of the thread, and when its call was ended.
    threads: Vec<(u32, Time)>,
}

static ARMED: Mutex<Armed> = Mutex::new(Armed {
    tool: None,
    threads: Vec::new(),
});

/// Raises what a checkpoint would. Written once, by [`install`].
static CHECKPOINT: OnceLock<fn(Python<'_>) -> PyResult<()>> = OnceLock::new();

/// Whether calls of foreign code are ended: see [`install`].
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Once, when the module is imported: from now on calls of foreign code are ended. Without the GIL a thread
/// could raise the error before the replacement is armed, so there they are left alone.
pub(in crate::python) fn install(
    py: Python<'_>,
    checkpoint: fn(Python<'_>) -> PyResult<()>,
) -> PyResult<()> {
    let _ = CHECKPOINT.set(checkpoint);
    let can = frames::has_gil(py)? && (trace::is_monitored(py) || trace::sets_for_others(py));
    IS_ON.store(can, Ordering::Relaxed);
    Ok(())
}

/// Are calls of the calling thread to be ended? Asked when it first enters a scope; runs no code.
pub(in crate::python) fn is_on() -> bool {
    let on = IS_ON.load(Ordering::Relaxed);
    if on {
        trace::note_state();
    }
    on
}

/// The watcher: `end` the call of the thread with this number, and see to the replacement of its error.
pub(in crate::python) fn end_call(thread: u32, end: &mut dyn FnMut() -> Option<EndedCall>) {
    // Not while the interpreter shuts down: its threads are stopping anyway.
    attach(|py| {
        let _still = NoCollection::begin(py);
        if let Err(failure) = end_attached(py, thread, end) {
            failure.write_unraisable(py, None);
        }
    });
}

fn end_attached(
    py: Python<'_>,
    thread: u32,
    end: &mut dyn FnMut() -> Option<EndedCall>,
) -> PyResult<()> {
    if !trace::is_monitored(py) {
        let Some(state) = trace::state_of(py, thread) else {
            return Ok(());
        };
        if end().is_some() {
            trace::set_for(py, state)?;
        }
        return Ok(());
    }
    let monitoring = trace::monitoring(py)?;
    let mut armed = lock(py);
    let now = Time::now();
    armed
        .threads
        .retain(|(other, since)| *other != thread && now < *since + FORGOTTEN);
    if armed.tool.is_none() {
        let callback = wrap_pyfunction!(on_raise, py)?;
        armed.tool = trace::take_tool_for(&monitoring, raise_event(&monitoring)?, callback)?;
    }
    if armed.tool.is_none() {
        return Ok(());
    }
    armed.threads.push((thread, now));
    apply(&monitoring, &mut armed)?;
    if end().is_none() {
        armed.threads.pop();
        apply(&monitoring, &mut armed)?;
    }
    Ok(())
}

/// Sets the event, or gives the tool back, by whether a thread is listed.
fn apply(monitoring: &Bound<'_, PyAny>, armed: &mut Armed) -> PyResult<()> {
    let Some(tool) = armed.tool else {
        return Ok(());
    };
    let event = raise_event(monitoring)?;
    if armed.threads.is_empty() {
        armed.tool = None;
        trace::set_events(monitoring, tool, None, 0)?;
        trace::free_tool(monitoring, tool, event)
    } else {
        trace::set_events(monitoring, tool, None, event)
    }
}

/// The event at which an exception is raised, in front of all handlers.
fn raise_event(monitoring: &Bound<'_, PyAny>) -> PyResult<u32> {
    let events = monitoring.getattr(intern!(monitoring.py(), "events"))?;
    events.getattr(intern!(monitoring.py(), "RAISE"))?.extract()
}

/// Detaches while it waits, for the holder may need the interpreter.
fn lock(py: Python<'_>) -> MutexGuard<'_, Armed> {
    ARMED
        .lock_py_attached(py)
        .unwrap_or_else(PoisonError::into_inner)
}

/// Called where an exception is raised, in all threads.
#[pyfunction]
fn on_raise(
    py: Python<'_>,
    _code: &Bound<'_, PyAny>,
    _offset: u32,
    raised: &Bound<'_, PyAny>,
) -> PyResult<()> {
    if !is_of_ended_call(raised) {
        return Ok(());
    }
    disarm(py)?;
    checkpoint(py)
}

/// Is it the error of a call of the calling thread that was ended?
pub(super) fn is_of_ended_call(raised: &Bound<'_, PyAny>) -> bool {
    scope::has_ended_call()
        && raised.is_instance_of::<PyOSError>()
        && raised
            .getattr(intern!(raised.py(), "errno"))
            .and_then(|number| number.extract::<i32>())
            .is_ok_and(|number| number == libc::ECANCELED)
}

/// What a checkpoint of the calling thread raises now.
pub(super) fn checkpoint(py: Python<'_>) -> PyResult<()> {
    CHECKPOINT.get().map_or(Ok(()), |checkpoint| checkpoint(py))
}

/// The calling thread raises its error now.
fn disarm(py: Python<'_>) -> PyResult<()> {
    let monitoring = trace::monitoring(py)?;
    let mut armed = lock(py);
    let own = thread_number();
    armed.threads.retain(|(thread, _)| *thread != own);
    apply(&monitoring, &mut armed)
}

/// The kernel's number of the calling thread.
#[cfg(target_os = "linux")]
pub(super) fn thread_number() -> u32 {
    rustix::thread::gettid().as_raw_pid().cast_unsigned()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn thread_number() -> u32 {
    0 // no call is ended there
}
