//! How `Killed` is raised in a running thread: everything that relies on CPython's internals.
//!
//! | module | subject |
//! |---|---|
//! | `killed` | `Killed`: CPython calls the class in the thread in which it raises it |
//! | `trace` | the rung TRACE: `Killed` at every step of the body |
//! | `block` | raising inside one block, and nowhere else |
//! | `in_place` | `Cancelled` in place of the error of a call that was ended |
//! | `lost` | exceptions of `raise_exc` that the interpreter has dropped |
//! | `mask` | deferring kills of the calling task |
//! | `traceback` | where an exception was raised, for reports |
//! | `protected` | modules that hold locks of their own, in whose code nothing is raised |
//!
//! A posted exception lies in one slot of its thread until the interpreter looks at it. The core posts
//! and retracts only with the interpreter's lock (`with_host_lock`), so that a thread is never
//! between looking at its slot and raising while another thread changes the slot.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | `PyThreadState_SetAsyncExc` has one slot a thread, and takes a class | 3.10-3.15 | `test_a_posted_kill_is_retracted` |
//! | the class is called in the thread in which it is raised: at delivery from 3.12 on, before that at the first look at the exception | 3.10-3.15 | `test_the_constructor_runs_in_the_killed_thread` |
//! | calling a Python function raises the exception in the slot | 3.10-3.15 | `test_a_posted_kill_is_retracted` |
//! | `f_lasti` of a frame that calls `__enter__` lies before the first entry of the exception table for its block; an exception that is raised at an INSTRUCTION event counts as raised at that instruction | 3.12-3.15 | `test_i22_a_kill_at_any_bytecode_of_a_block_ends_there` |
//! | up to 3.11, an exception posted to a thread is raised where the thread stands, and in a `with` block that leads to `__exit__` | 3.10, 3.11 | `test_i22_a_kill_at_any_bytecode_of_a_block_ends_there` |
//! | a Python-level handler is run where a signal has broken a system call, and its exception is raised there | 3.10-3.15 | `test_a_system_call_that_blocks_the_main_thread_is_interrupted` |
//! | an exception of a callback of sys.monitoring, for events local to code that is running, is raised in that code | 3.12-3.15 | `test_tracing_alone_is_enough` |
//! | `_PyEval_SetTrace` sets the C trace function of any thread, which is called for frames that run already; an exception of it is raised in the traced code, and the function stays | 3.10, 3.11 | `test_i23_code_that_swallows_a_kill_cannot_go_on` |
//! | a thread can set a C trace function for itself while an exception is made that is raised in it, and the function is called for its frames | 3.10-3.15 | `test_i23_a_kill_traces_without_a_free_tool_of_monitoring` |
//! | an exception that a finalizer, or another callback without a caller, raises is shown to audit hooks, as `sys.unraisablehook`, before it is dropped | 3.10-3.15 | `test_an_exception_that_a_finalizer_has_swallowed_is_raised_again` |
//! | between the return of a native call and the next native call no exception is delivered | all | the kill sweeps |
//!
//! A posted exception is never retracted by posting NULL: up to 3.12 the evaluation loop would keep the
//! request pending, which slows all threads down (3.12) or hangs traced ones (3.11). Instead the
//! exception is delivered in a function that does nothing.
#![allow(unsafe_code)] // calls of the C API

mod block;
pub(super) mod in_place;
pub(super) mod killed;
pub(super) mod lost;
pub(super) mod mask;
pub(super) mod protected;
pub(super) mod trace;
pub(super) mod traceback;

use std::ffi::{CString, c_long, c_ulong};
use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use self::killed::Killed;
use self::protected::NoCollection;
use crate::python::binding::attach::attach;
use crate::python::binding::frames;
use crate::task::{Interrupter, Task};

/// Posts `Killed` to one thread.
struct AsyncException {
    /// As `threading.get_ident()` has it. The thread lives at least as long as its task is known to
    /// the core.
    thread: c_ulong,
    /// The address of the same thread's state; there is one as long as the task, or block, runs.
    state: usize,
    /// The frame that has called the body, or the block's function; `None`: no code of Python's has.
    around: Option<Py<PyAny>>,
}

/// How the calling thread is interrupted.
pub(super) fn for_this_thread(py: Python<'_>) -> PyResult<Arc<dyn Interrupter>> {
    Ok(Arc::new(this_thread(py)?))
}

fn this_thread(py: Python<'_>) -> PyResult<AsyncException> {
    nothing(py)?; // made now: a kill may find no memory for it
    Ok(AsyncException {
        thread: ident(py)?,
        // SAFETY: attached.
        state: unsafe { ffi::PyThreadState_Get() } as usize,
        around: frames::frame(py).map(Bound::unbind),
    })
}

/// The calling thread, as `threading.get_ident()` has it.
fn ident(py: Python<'_>) -> PyResult<c_ulong> {
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let get_ident = GET_IDENT.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("_thread")?.getattr("get_ident")?.unbind())
    })?;
    get_ident.bind(py).call0()?.extract()
}

impl AsyncException {
    /// Is this the frame that has called the body, or the block's function?
    fn has_called_body(&self, frame: &Bound<'_, PyAny>) -> bool {
        self.around.as_ref().is_some_and(|around| frame.is(around))
    }

    /// The frames of the body, the innermost first. On another thread than the body's own: with the GIL.
    fn body<'py>(&self, py: Python<'py>) -> impl Iterator<Item = PyResult<Bound<'py, PyAny>>> {
        let innermost = || {
            if ident(py)? == self.thread {
                Ok(frames::frame(py))
            } else {
                frames::of_thread(py, self.thread)
            }
        };
        let mut next = innermost();
        std::iter::from_fn(move || {
            let frame = match std::mem::replace(&mut next, Ok(None)) {
                Ok(frame) => frame.filter(|frame| !self.has_called_body(frame))?,
                Err(failure) => return Some(Err(failure)),
            };
            next = frames::back(&frame);
            Some(Ok(frame))
        })
    }
}

pub(super) use block::{for_this_block, for_this_call};

/// As if a signal had just arrived: its handler is called at the main thread's next check. For sweeps.
pub(super) fn signal_arrives(number: i32) {
    // SAFETY: it may be called at any time.
    unsafe { ffi::PyErr_SetInterruptEx(number) };
}

/// A Python function that does nothing: calling it has a posted exception delivered.
fn nothing(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static NOTHING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    NOTHING
        .get_or_try_init(py, || {
            let scope = PyDict::new(py);
            py.run(&CString::new("def nothing(): pass")?, Some(&scope), None)?;
            let function = scope.get_item("nothing")?;
            function
                .map(Bound::unbind)
                .ok_or_else(|| PyRuntimeError::new_err("no function was made"))
        })
        .map(|function| function.bind(py))
}

impl Interrupter for AsyncException {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        // Not while the interpreter shuts down: its threads are stopping anyway.
        attach(|py| {
            let _still = NoCollection::begin(py);
            then();
        });
    }

    fn inside(&self) -> Option<Arc<str>> {
        attach(|py| protected::module_around(self.body(py)).ok().flatten())?
    }

    fn sees_body(&self) -> bool {
        attach(|py| frames::has_gil(py).unwrap_or(true)).unwrap_or(true)
    }

    fn may_deliver_at(&self, place: Option<u32>) -> bool {
        let may = |py: Python<'_>| match (frames::frame(py), place) {
            (Some(frame), Some(place)) => frames::may_raise_at(&frame, place),
            _ => Ok(true),
        };
        attach(|py| may(py).unwrap_or(true)).unwrap_or(false)
    }

    fn post(&self) {
        // `with_host_lock` has attached.
        attach(|py| {
            let class = PyType::new::<Killed>(py);
            // PyO3 declares the argument signed, C has it unsigned; only the bits count.
            #[allow(clippy::cast_possible_wrap)]
            let thread = self.thread as c_long;
            // SAFETY: attached; the class is a live exception class, of which the slot takes a
            // count of its own. A thread that is gone is not found, which is fine.
            unsafe { ffi::PyThreadState_SetAsyncExc(thread, class.as_ptr()) };
        });
    }

    fn retract(&self) {
        attach(|py| {
            // An exception that is raised here is the retracted one; if that was raised before, none is.
            let _ = nothing(py).and_then(PyAnyMethods::call0);
        });
    }

    fn trace(&self, task: &Arc<Task>, everywhere: bool) {
        // `with_host_lock` has attached.
        attach(|py| trace::begin(py, task, self, everywhere));
    }

    fn end_trace(&self, task: &Task) {
        attach(|py| trace::end(py, task));
    }

    fn stack(&self) -> Option<Vec<String>> {
        attach(|py| -> PyResult<_> {
            let Some(frame) = frames::of_thread(py, self.thread)? else {
                return Ok(None);
            };
            // Without the GIL the innermost call alone: see `frames::of_thread`.
            let limit = (!frames::has_gil(py)?).then_some(1);
            py.import("traceback")?
                .call_method1("format_stack", (frame, limit))?
                .extract()
        })?
        .unwrap_or(None)
    }
}
