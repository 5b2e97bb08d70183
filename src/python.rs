//! The extension module `desist._core`: conversion between Python and the core.
//!
//! Each module uses only modules in the rows above its own, and any of the core. `tests/rust/layers.rs`
//! compares the sources with this table, so that no circle can come to be between the folders; the
//! files of one folder may use each other.
//!
//! | module | subject |
//! |---|---|
//! | `binding` | what the binding itself needs: attaching and detaching, arguments, exceptions and enums of the Python part |
//! | `ports` | the names by which it calls Python objects |
//! | `cause` | `CancelCause` |
//! | `hard_stop` | everything that relies on CPython's internals: how `Killed` is raised in a running thread |
//! | `error` | `Cancelled`, and how errors of the core become exceptions |
//! | `foreign` | calls of foreign code that end in cancelled scopes: status and switches |
//! | `io` | waiting for file descriptors |
//! | `op` | `Op`: an operation of an object, to be waited for along with others |
//! | `wait` | sleeping, checkpoints, and how any operation waits detached |
//! | `token` | `CancelSource`, `CancelToken`, `Registration` |
//! | `scope`, `sync` | cancel scopes; locks, counters, flags and queues |
//! | `wait_any` | waiting for several things at once |
//! | `task` | `Task`, stop policies and kill reports, deferred kills, task groups, blocks that own work |
//! | `work` | lease queues, and the workers' loop |
//! | `testing` | virtual time, and the injector of the sweeps |
//!
//! Rules kept here:
//! - The interpreter is released (`detach`) before anything that may block or run callbacks.
//! - No Python object is touched while a lock of the core is held, for that may run any code at all;
//!   the core's own critical sections are short and never wait for the interpreter.
//! - Policy belongs to the core. Here is only the part of Python: the parts of a `TaskGroup` that a
//!   kill must not tear apart (`task::group`), and the loop of a worker (`work::worker_slot`), which handles
//!   leases as Python objects.
//! - Calls of CPython that PyO3 has no safe form of, and all that reads its structures, are in `binding`,
//!   `hard_stop` and `token`, each with the facts relied on.
// For the functions that Python calls: their docstrings, and methods that look at the calling thread,
// not at the object.
#![allow(clippy::doc_markdown, clippy::unused_self)]

mod binding;
mod cause;
mod error;
mod foreign;
mod hard_stop;
#[cfg(unix)]
mod io;
#[cfg(unix)]
mod op;
mod ports;
mod scope;
mod sync;
mod task;
mod testing;
mod token;
mod wait;
mod wait_any;
mod work;

use pyo3::prelude::*;

/// Native core of desist.
#[pymodule(gil_used = false)]
mod _core {
    use super::binding::host::{self, ForeignCalls};
    use super::hard_stop::in_place;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::binding::home::knows_homes;
    #[pymodule_export]
    use super::binding::runnable::{call_for_effect, check_runnable};
    #[pymodule_export]
    use super::cause::{CancelCause, restore_cause};
    #[pymodule_export]
    use super::error::{Cancelled, restore_cancelled};
    #[pymodule_export]
    use super::foreign::{call_left_alone, foreign_state, leave_calls_alone, set_foreign};
    #[pymodule_export]
    use super::hard_stop::killed::{Killed, restore_killed};
    #[pymodule_export]
    use super::hard_stop::mask::call_masked;
    #[pymodule_export]
    use super::hard_stop::protected::protect_modules;
    #[cfg(unix)]
    #[pymodule_export]
    use super::io::{notify_closing, wait_readable, wait_writable};
    #[cfg(unix)]
    #[pymodule_export]
    use super::op::Op;
    #[pymodule_export]
    use super::ports::ports;
    #[pymodule_export]
    use super::scope::{
        CancelScope, FailScope, call_under, call_within, cancel_scope, cleanup, fail_after,
        move_on_after, shield,
    };
    #[pymodule_export]
    use super::sync::barrier::Barrier;
    #[pymodule_export]
    use super::sync::condition::Condition;
    #[pymodule_export]
    use super::sync::event::Event;
    #[pymodule_export]
    use super::sync::guarded::{Guarded, GuardedValue};
    #[pymodule_export]
    use super::sync::lock::guard::LockGuard;
    #[pymodule_export]
    use super::sync::lock::{Lock, RLock, Released};
    #[pymodule_export]
    use super::sync::queue::{Queue, SimpleQueue};
    #[pymodule_export]
    use super::sync::semaphore::{BoundedSemaphore, Semaphore};
    #[pymodule_export]
    use super::task::defer::{Masked, defer_kill};
    #[pymodule_export]
    use super::task::group::{GroupCore, WorkerThread};
    #[pymodule_export]
    use super::task::owner::OwnerBlock;
    #[pymodule_export]
    use super::task::stop::{
        BegunKill, KillReport, ProcessStopPolicy, RungReport, StopPolicy, restore_report,
        restore_rung,
    };
    #[pymodule_export]
    use super::task::{KillSignal, Task};
    #[pymodule_export]
    use super::testing::injector::Injector;
    #[pymodule_export]
    use super::testing::{Simulation, fork_timeouts, leak_counts};
    #[pymodule_export]
    use super::token::{CancelSource, CancelToken, Registration, cancel_because, current_token};
    #[pymodule_export]
    use super::wait::{
        Latch, checkpoint, current_effective_deadline, current_time, sleep, sleep_forever,
        sleep_until,
    };
    #[pymodule_export]
    use super::wait_any::wait_any;
    #[cfg(unix)]
    #[pymodule_export]
    use super::work::FileQueue;
    #[pymodule_export]
    use super::work::child::ChildProcess;
    #[cfg(unix)]
    #[pymodule_export]
    use super::work::parent_watch::ParentWatch;
    #[pymodule_export]
    use super::work::{
        Lease, LeaseQueue, PoolMetrics, QueuePort, RetryPolicy, RunningHandler, WorkerSlot,
        checked_time_limit, contents_of, lease_from, queue_port, retry_pause,
    };

    #[pymodule_init]
    fn init(py: Python<'_>) -> PyResult<()> {
        in_place::install(py, checkpoint)?;
        let calls = ForeignCalls {
            thread: in_place::thread,
            are_ended: in_place::is_on,
            end: in_place::end_call,
            left_alone: in_place::left_alone,
            left_scope: in_place::left_scope,
        };
        host::install(py, calls)
    }
}
