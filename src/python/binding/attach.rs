//! How a thread attaches to the interpreter, if it may not be one that Python has started.
//!
//! Such a thread needs a thread state. CPython makes one under a lock for which a fork does not wait
//! up to 3.12, and which a fork holds from 3.13 on, so where PyO3 would make the state in the middle
//! of attaching, this module makes it first, in the way that each version allows: up to 3.12 while
//! the thread counts as inside the core, for which our own fork gate waits. The service threads of
//! the core attach again and again, and keep their state ([`stay`]); any other thread of the system
//! gets a state for one call.
//!
//! The core calls the host wherever an object is freed, also while an exception unwinds the frame that has
//! freed it. Python code must not run with an exception pending, so it is kept aside meanwhile.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | a thread state may be made without being attached, and is then the one with which its thread attaches | 3.10-3.15 | `test_a_system_thread_leaves_no_thread_state_behind` |
//! | a lock is held meanwhile, for which a fork does not wait: the child hangs, or finds the list of states broken (python/cpython#112275) | 3.10-3.12 | `test_i37_a_fork_never_interrupts_the_attach_of_a_thread` |
//! | a fork holds that lock, and may wait for this thread while it holds it (python/cpython#116607) | 3.13-3.15 | the same |
//! | a thread may end in an endless loop in the allocator if threads make and drop states all the time (microsoft/mimalloc#759) | 3.13t | `test_i37_a_fork_never_interrupts_the_hand_over_of_callbacks` |
//! | a new state has no context, and gets an empty one | 3.10-3.15 | `test_a_context_variable_set_in_a_callback_stays_in_it` |
#![allow(unsafe_code)] // calls of the C API

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;

use super::context::Entered;
use crate::fork;

thread_local! {
    static STAYS: Cell<Stays> = const { Cell::new(Stays::Not) };
}

/// The kind of the thread's state. Written by the thread itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    /// Python's own, or none, or one for a single call.
    Not,
    /// Made by [`stay`]; the thread is detached.
    Idle,
    /// Made by [`stay`]; the thread is in [`attach`], in a context of its own.
    Calls,
}

/// Python itself makes forks wait while it makes a thread state: from 3.13 on. Written at import.
static FORKS_WAIT: AtomicBool = AtomicBool::new(false);

pub(in crate::python) fn install(py: Python<'_>) {
    FORKS_WAIT.store(py.version_info() >= (3, 13), Ordering::Relaxed);
}

/// Runs `act` attached. `None`: the interpreter is finalized or being finalized, or there was no
/// memory for a state.
///
/// On a thread with [`stay`], `act` runs in a fresh, empty context of `contextvars`. An exception that is
/// pending is pending again afterwards, and not while `act` runs.
pub(in crate::python) fn attach<R>(act: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let _passing = match state() {
        Some(_) => None,
        None => Some(Passing::new()?),
    };
    #[allow(clippy::disallowed_methods)] // the thread has a state by now
    Python::try_attach(|py| {
        let _pending = Pending::keep(py);
        let _context = (STAYS.get() == Stays::Idle).then(|| Context::enter(py));
        act(py)
    })
}

/// The state of the calling thread, attached or not. `None`: the interpreter does not know the thread.
#[inline]
pub(in crate::python) fn state() -> Option<NonNull<ffi::PyThreadState>> {
    // SAFETY: it may be called at any time.
    NonNull::new(unsafe { ffi::PyGILState_GetThisThreadState() })
}

/// Gives the calling thread, which will attach again and again, a state that it keeps.
pub(in crate::python) fn stay() {
    if new_state().is_some() {
        STAYS.set(Stays::Idle);
    }
}

/// A state for this thread, which has none. Meanwhile no fork begins: Python's lock or the core's
/// gate makes it wait.
fn new_state() -> Option<NonNull<ffi::PyThreadState>> {
    let _inside = (!FORKS_WAIT.load(Ordering::Relaxed)).then(fork::inside);
    // SAFETY: the main interpreter is there as long as any; neither function is for attached
    // threads only.
    unsafe {
        if ffi::Py_IsInitialized() == 0 {
            return None;
        }
        NonNull::new(ffi::PyThreadState_New(ffi::PyInterpreterState_Main()))
    }
}

/// The calling thread is attached, with a state that is deleted when this is dropped.
struct Passing(NonNull<ffi::PyThreadState>);

impl Passing {
    fn new() -> Option<Self> {
        let state = new_state()?;
        // SAFETY: it is this thread's, which is not attached.
        unsafe { ffi::PyEval_RestoreThread(state.as_ptr()) };
        Some(Self(state))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // SAFETY: this thread is attached with the state, to which it has the only reference.
        unsafe {
            ffi::PyThreadState_Clear(self.0.as_ptr());
            ffi::PyThreadState_DeleteCurrent();
        }
    }
}

/// The pending exception of the calling thread, which is kept aside until this is dropped.
struct Pending<'py> {
    _py: Python<'py>,
    /// Its type, value and traceback, as the thread has them.
    parts: [*mut ffi::PyObject; 3],
}

impl<'py> Pending<'py> {
    /// `None`: there is none. The common case costs one load.
    fn keep(py: Python<'py>) -> Option<Self> {
        PyErr::occurred(py).then(|| {
            let mut parts = [ptr::null_mut(); 3];
            let [kind, value, traceback] = &mut parts;
            // SAFETY: attached; the places are valid, and get references of our own, or null.
            unsafe { ffi::PyErr_Fetch(kind, value, traceback) };
            Self { _py: py, parts }
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let [kind, value, traceback] = self.parts;
        // SAFETY: attached, as `_py` shows; the references are ours, and are given back.
        unsafe { ffi::PyErr_Restore(kind, value, traceback) };
    }
}

/// An empty context of `contextvars` on a thread that stays, until this is dropped.
struct Context<'py> {
    /// Without memory for a context, the calls of the thread share one.
    _entered: Option<Entered<'py>>,
}

impl<'py> Context<'py> {
    fn enter(py: Python<'py>) -> Self {
        STAYS.set(Stays::Calls);
        Self {
            _entered: Entered::empty(py).ok(),
        }
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        STAYS.set(Stays::Idle);
    }
}
