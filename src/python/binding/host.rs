//! CPython as the core's [`Host`]: signals, thread names, warnings, forks.
//!
//! The core calls the host detached, on the thread that waits, is named or has swallowed a
//! cancellation; each method attaches for itself, and does nothing while the interpreter is being
//! finalized. An exception that ends a wait is kept in [`raised`] until the wait's caller takes it.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::python::binding::interned::interned;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::at_fork;
use crate::fork;
use crate::host::{self, BlockedCall, Home, Host, HostThread, Presence};
use crate::python::binding::attach::{self, attach};
use crate::python::binding::{
    exceptions, forced_unwind, home, interruption, raised, surroundings, swallow,
};
use crate::testing;

/// The interpreter, to the core.
struct Interpreter;

/// The part of the host that ends calls of foreign code, which needs more of the interpreter than this module:
/// see [`Host::ends_calls`] and [`Host::end_call`].
pub(in crate::python) struct ForeignCalls {
    pub(in crate::python) thread: fn() -> Option<HostThread>,
    pub(in crate::python) are_ended: fn() -> bool,
    pub(in crate::python) end: fn(&mut dyn BlockedCall),
    pub(in crate::python) left_alone: fn(HostThread),
    pub(in crate::python) left_scope: fn(usize),
}

/// Written once, by [`install`].
static FOREIGN_CALLS: OnceLock<ForeignCalls> = OnceLock::new();

/// The longest that the main thread sleeps at once. A signal may arrive between the check for
/// signals and the system call, which then does not return for it. `time.sleep` has the same race;
/// here it costs half a second at most.
const MAIN_THREAD_SLICE: Duration = Duration::from_millis(500);

impl Host for Interpreter {
    fn interrupted(&self) -> ControlFlow<()> {
        if !is_main_thread() {
            return ControlFlow::Continue(()); // Python runs its handlers on the main thread only
        }
        #[allow(clippy::redundant_closure_for_method_calls)] // the path is not general enough
        match attach(|py| py.check_signals()) {
            Some(Err(raised)) => {
                raised::keep(raised);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn max_sleep(&self) -> Option<Duration> {
        is_main_thread().then_some(MAIN_THREAD_SLICE)
    }

    fn thread_name(&self) -> Option<Arc<str>> {
        attach(|py| {
            // As threading.current_thread() does, but without running Python code, in which what a
            // signal handler raises would be lost. A thread that threading does not know has no
            // name, and does not get one here.
            static THREADING: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
            let import = || py.import("threading").map(Bound::unbind);
            let threading = THREADING.get_or_try_init(py, import)?.bind(py);
            let ident = threading.call_method0(interned!(py, "get_ident"))?;
            let active = threading.getattr(interned!(py, "_active"))?;
            let thread = active.get_item(ident)?;
            let name: String = thread.getattr(interned!(py, "_name"))?.extract()?;
            Ok::<_, PyErr>(Arc::from(name))
        })?
        .ok()
    }

    fn presence(&self, home: Home) -> Presence {
        home::presence(home)
    }

    fn thread_started(&self) {
        attach::stay();
    }

    fn ends_calls(&self) -> bool {
        FOREIGN_CALLS.get().is_some_and(|calls| (calls.are_ended)())
    }

    fn thread(&self) -> Option<HostThread> {
        (FOREIGN_CALLS.get()?.thread)()
    }

    fn end_call(&self, call: &mut dyn BlockedCall) {
        if let Some(calls) = FOREIGN_CALLS.get() {
            (calls.end)(call);
        }
    }

    fn left_alone(&self, thread: HostThread) {
        if let Some(calls) = FOREIGN_CALLS.get() {
            (calls.left_alone)(thread);
        }
    }

    fn left_scope(&self, number: usize) {
        if let Some(calls) = FOREIGN_CALLS.get() {
            (calls.left_scope)(number);
        }
    }

    fn deadlocked(&self) {
        attach(|py| {
            raised::keep(match testing::current() {
                Some(simulation) => exceptions::ordinary(py, "Deadlock", &simulation.deadlock()),
                None => exceptions::ordinary(py, "Deadlock", &"every thread waits"),
            });
        });
    }

    fn was_swallowed(&self) -> bool {
        attach(|py| swallow::was_swallowed(py).unwrap_or(false)).unwrap_or(false)
    }

    fn is_interrupting(&self) -> bool {
        // A failure, such as no memory, is no reason not to cancel.
        attach(|py| interruption::is_interrupting(py).unwrap_or(false)).unwrap_or(false)
    }

    fn cancel_swallowed(&self, raised: u32) {
        if raised == 2 {
            attach(|py| exceptions::warn_swallowed(py, swallow::place()));
        }
    }
}

/// Uses the core detached, for a call that may block.
pub(in crate::python) fn detached<T: Send>(py: Python<'_>, act: impl FnOnce() -> T + Send) -> T {
    surroundings::look(py);
    py.detach(|| {
        let _inside = fork::inside();
        act()
    })
}

/// The calling thread, as `threading.get_ident()` has it.
#[inline]
#[allow(unsafe_code)] // one call of the C API
#[allow(clippy::useless_conversion)] // Windows has fewer bits
pub(in crate::python) fn thread_ident() -> u64 {
    // SAFETY: asks the system's thread library, and needs nothing of the interpreter.
    unsafe { ffi::PyThread_get_thread_ident() }.into()
}

#[cfg(target_os = "linux")]
pub(in crate::python) fn is_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

#[cfg(not(target_os = "linux"))]
pub(in crate::python) fn is_main_thread() -> bool {
    true // a needless slice costs little; a main thread that misses signals costs more
}

pub(in crate::python) fn install(py: Python<'_>, calls: ForeignCalls) -> PyResult<()> {
    let _ = FOREIGN_CALLS.set(calls);
    surroundings::refuse_subinterpreters()?;
    attach::install(py);
    forced_unwind::install(py);
    host::install(&Interpreter);
    let os = py.import("os")?;
    if os.hasattr("register_at_fork")? {
        hold_the_timer_during_forks();
        let hooks = pyo3::types::PyDict::new(py);
        hooks.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, py)?)?;
        os.call_method("register_at_fork", (), Some(&hooks))?;
    }
    Ok(())
}

/// Takes the core's locks during forks. With hooks of the system, not of `os.register_at_fork`:
/// between those other threads may run Python code, and one that comes to the timer would wait for
/// its lock attached, so that the fork would never end.
#[cfg(unix)]
#[allow(unsafe_code)] // one system call
fn hold_the_timer_during_forks() {
    unsafe extern "C" {
        fn pthread_atfork(
            before: extern "C" fn(),
            parent: extern "C" fn(),
            child: extern "C" fn(),
        ) -> i32;
    }
    extern "C" fn before() {
        at_fork::before();
    }
    extern "C" fn in_parent() {
        at_fork::after_in_parent();
    }
    extern "C" fn in_child() {
        at_fork::after_in_child();
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    // The module may be initialized again. A second `before` would wait for the first.
    // SAFETY: the functions live as long as this module, which is never unloaded; none calls
    // Python or panics.
    ONCE.call_once(|| unsafe {
        pthread_atfork(before, in_parent, in_child);
    });
}

#[cfg(not(unix))]
fn hold_the_timer_during_forks() {}

#[pyfunction]
fn after_fork_in_child() {
    at_fork::restart_in_child();
}
