//! Everything that relies on CPython's internals.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | `PyThreadState_SetAsyncExc` has one slot a thread, and takes a class | 3.10-3.15 | `test_a_posted_kill_is_taken_back` |
//! | the class is called in the thread it strikes: at delivery from 3.12 on, before that at the first look at the exception | 3.10-3.15 | `test_the_constructor_runs_in_the_struck_thread` |
//! | calling a Python function delivers what is in the slot | 3.10-3.15 | `test_a_posted_kill_is_taken_back` |
//! | a thread that wants the interpreter while it shuts down is ended by `pthread_exit` | 3.10-3.13 | `test_a_daemon_does_not_abort_the_process_at_its_end` |
//! | `f_lasti` of a frame that calls `__enter__` lies before the first entry of the exception table for its block; an exception that is raised at an INSTRUCTION event counts as raised at that instruction | 3.12-3.15 | `test_i22_a_kill_at_any_bytecode_of_a_block_ends_there` |
//! | up to 3.11, what is posted at a thread is delivered where it stands, and in a `with` block that leads to `__exit__` | 3.10, 3.11 | `test_i22_a_kill_at_any_bytecode_of_a_block_ends_there` |
//! | a Python-level handler is run where a signal has broken a system call, and what it raises is raised there | 3.10-3.15 | `test_what_blocks_the_main_thread_in_the_system_is_broken` |
//! | what a callback of sys.monitoring raises, for events local to code that is running, is raised in that code | 3.12-3.15 | `test_tracing_alone_is_enough` |
//! | what a C trace function raises is raised in the traced code, and the function stays | 3.10, 3.11 | `test_i23_what_swallows_a_kill_cannot_go_on` |
//! | between the return of a native call and the next native call no exception is delivered | all | the kill sweeps |
//!
//! What was posted is never taken back by posting NULL: up to 3.12 the evaluation loop keeps the
//! request pending then, which slows all threads down (3.12) or hangs traced ones (3.11). It is
//! taken back by having it delivered to a function that does nothing.
#![allow(unsafe_code)] // calls of the C API

mod block;
pub(super) mod trace;

use std::ffi::{CString, c_long, c_ulong};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::clock::Time;
use crate::python::error::Killed;
use crate::task::{Force, Task};
use crate::{Cause, CauseKind, scope};

/// Raises in one thread, asynchronously.
struct AsyncException {
    thread: c_ulong,
}

/// The force for the calling thread.
pub(super) fn for_this_thread(py: Python<'_>) -> PyResult<Arc<dyn Force>> {
    Ok(Arc::new(this_thread(py)?))
}

fn this_thread(py: Python<'_>) -> PyResult<AsyncException> {
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let get_ident = GET_IDENT.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("_thread")?.getattr("get_ident")?.unbind())
    })?;
    nothing(py)?; // made now, for later is too late
    Ok(AsyncException {
        thread: get_ident.bind(py).call0()?.extract()?,
    })
}

pub(super) use block::{for_this_block, for_this_call};

/// Call Python code that may take its time, as a daemon's may until the process ends.
///
/// Up to 3.13, a thread that comes back to the interpreter when it shuts down is ended by
/// `pthread_exit`, which unwinds the stack, and a process whose stack is unwound through frames of
/// Rust is aborted. Here the thread stays forever instead, which is what CPython does from 3.14 on,
/// and pyo3 where it takes the interpreter back.
pub(super) fn call<'py>(
    callable: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    call_with(callable, arguments, None)
}

/// [`call`], with named arguments.
pub(super) fn call_with<'py>(
    callable: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    named: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    type Call = unsafe extern "C-unwind" fn(
        callable: *mut ffi::PyObject,
        arguments: *mut ffi::PyObject,
        named: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
    // SAFETY: it is of this type, but pyo3-ffi says that it does not unwind. The compiler is not
    // to see which function it is, or it would take that for granted and leave out `stay`.
    let call = std::hint::black_box(unsafe {
        std::mem::transmute::<*const (), Call>(ffi::PyObject_Call as *const ())
    });
    let py = callable.py();
    let stay = Stay;
    let named = named.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: the interpreter is ours, as `py` shows, the pointers are of live objects, the second
    // one of a tuple, the third one of a dict; NULL is no named arguments.
    let result = unsafe { call(callable.as_ptr(), arguments.as_ptr(), named) };
    std::mem::forget(stay);
    // SAFETY: a new reference, or NULL and an exception is set.
    unsafe { Bound::from_owned_ptr_or_err(py, result) }
}

/// Dropped only if the stack is unwound past it, which no panic of ours does: nothing of Rust is
/// above it that does not catch its own.
struct Stay;

impl Drop for Stay {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// A function of one instruction.
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

impl Force for AsyncException {
    fn at_a_safe_moment(&self, then: &mut dyn FnMut()) {
        // Not while the interpreter shuts down: its threads are stopping anyway.
        Python::try_attach(|_| then());
    }

    fn post(&self) {
        // `at_a_safe_moment` has attached.
        Python::try_attach(|py| {
            let class = PyType::new::<Killed>(py);
            // PyO3 declares the argument signed, C has it unsigned; the bits are what counts.
            #[allow(clippy::cast_possible_wrap)]
            let thread = self.thread as c_long;
            // SAFETY: attached; the class is a live exception class, of which the slot takes a
            // count of its own. A thread that is gone is not found, which is fine.
            unsafe { ffi::PyThreadState_SetAsyncExc(thread, class.as_ptr()) };
        });
    }

    fn take_back(&self) {
        Python::try_attach(|py| {
            // What is raised here is what is taken back; if it was raised before, nothing is.
            let _ = nothing(py).and_then(PyAnyMethods::call0);
        });
    }

    fn trace(&self, task: &Arc<Task>) {
        // `at_a_safe_moment` has attached.
        Python::try_attach(|py| trace::begin(py, task, self.thread, self));
    }

    fn end_trace(&self, task: &Task) {
        Python::try_attach(|py| trace::end(py, task));
    }

    fn stack(&self) -> Option<Vec<String>> {
        Python::try_attach(|py| {
            let frames = py.import("sys")?.call_method0("_current_frames")?;
            let frame = frames.get_item(self.thread)?;
            py.import("traceback")?
                .call_method1("format_stack", (frame,))?
                .extract()
        })?
        .ok()
    }
}

/// Where an exception was raised, as text.
pub(super) fn stack_of(py: Python<'_>, raised: &PyErr) -> Option<Arc<str>> {
    let lines = py
        .import("traceback")
        .and_then(|module| module.call_method1("format_tb", (raised.traceback(py),)));
    lines
        .and_then(|lines| lines.extract::<Vec<String>>())
        .ok()
        .map(|lines| lines.concat().into())
}

/// Kills the task that it is called in, at a bytecode of choice: the door for kill sweeps.
///
/// A trace function for sys.settrace, and a callback for sys.monitoring's INSTRUCTION events. It
/// is native because one written in Python would be struck itself. In front of bytecode `at` of
/// the tasks that run it (the first is 1) it does what a killer does that comes to the rung
/// ASYNC_EXC at this moment: CPython delivers at its next check. `defer`: a held lock holds the
/// kill off, as at the beginning of that rung; otherwise it is struck inside. `block`: kill not the
/// task but this one of the open blocks of the thread that have `kill_after`, the outermost is 0;
/// bytecodes count only while it is open.
// No state but the count, for it is called in front of every bytecode.
#[pyclass(frozen, name = "_Injector", module = "desist._core")]
pub(super) struct Injector {
    at: u64,
    defer: bool,
    block: Option<usize>,
    passed: AtomicU64,
}

#[pymethods]
impl Injector {
    #[new]
    #[pyo3(signature = (at: "int", *, defer = false, block: "int | None" = None))]
    fn new(at: u64, defer: bool, block: Option<usize>) -> Self {
        Self {
            at,
            defer,
            block,
            passed: AtomicU64::new(0),
        }
    }

    /// How many bytecodes of tasks it has seen; it strikes at most one of them.
    #[getter]
    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// `(frame, event, arg)` from tracing, `(code, offset)` from monitoring.
    #[pyo3(signature = (*arguments: "object") -> "object")]
    fn __call__<'py>(
        slf: Bound<'py, Self>,
        arguments: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let traced = arguments.len() == 3;
        if traced {
            arguments.get_item(0)?.setattr("f_trace_opcodes", true)?;
        }
        if !traced || arguments.get_item(1)?.eq("opcode")? {
            slf.get().pass();
        }
        // As a trace function it stays in place; monitoring drops what is not its DISABLE.
        Ok(slf.into_any())
    }
}

impl Injector {
    fn pass(&self) {
        match self.block {
            None => self.pass_task(),
            Some(block) => self.pass_block(block),
        }
    }

    fn is_here(&self) -> bool {
        self.passed.fetch_add(1, Ordering::Relaxed) + 1 == self.at
    }

    fn respects_locks_until(&self, now: Time) -> Time {
        if self.defer { Time::NEVER } else { now }
    }

    fn pass_task(&self) {
        // A worker between two items is a task, too, but there is nothing to strike.
        let task = scope::current_task().filter(|task| task.has_force());
        if let Some(task) = task.filter(|_| self.is_here()) {
            let cause = Cause::now(CauseKind::Explicit, Some("a sweep".into()), None);
            task.order(&cause, self.respects_locks_until(cause.at));
            task.strike_async();
        }
    }

    fn pass_block(&self, block: usize) {
        let Some(task) = scope::current_task() else {
            return;
        };
        if let Some(id) = task.open_block_at(block).filter(|_| self.is_here()) {
            let now = Time::now();
            task.expire_block(id, now);
            task.order_block(id, &Cause::deadline(now), self.respects_locks_until(now));
            task.strike_async_block(id);
        }
    }
}
