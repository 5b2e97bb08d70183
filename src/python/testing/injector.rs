//! The injector of the sweeps: kills or cancels a task before a bytecode of choice.
//!
//! It is called by the interpreter before every bytecode of a thread, counts those of its victims, and
//! requests the kill in the same thread, where CPython then delivers it at its next check.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::clock::Time;
use crate::python::hard_stop;
use crate::python::op::Visited;
use crate::python::task::Task;
use crate::python::token::cancel_node;
use crate::{Cause, CauseKind, scope, task};

/// Kills or cancels a task before a bytecode of choice.
///
/// A trace function for sys.settrace, and a callback for sys.monitoring's INSTRUCTION events. It is
/// native because the kill would be delivered in one written in Python. Before bytecode `at` of its
/// victims (the first is 1; 0 is none) it does what a kill does that reaches the rung ASYNC_EXC at this
/// moment: CPython delivers at its next check.
///
/// Its victims are the bodies of all tasks; or of `task` alone; or, with `started`, of all tasks
/// that are made after `task`. `cancels`: it only cancels. `defer`: a held lock defers
/// the kill, as at the beginning of the rung; otherwise it is delivered inside. `block`: kill not the task
/// but this one of its thread's open blocks that have `kill_after`, the outermost is 0; bytecodes
/// count only while it is open. `signal`: no kill at all, but this signal arrives, and CPython calls its
/// handler at its next check; on the main thread only. `trace`: the kill has reached the rung TRACE.
#[pyclass(frozen, name = "_Injector", module = "desist._core")]
pub(in crate::python) struct Injector {
    at: u64,
    victims: Victims,
    cancels: bool,
    defer: bool,
    block: Option<usize>,
    signal: Option<i32>,
    trace: bool,
    passed: AtomicU64,
    action: Mutex<Option<Action>>,
}

/// By the numbers of tasks, which rise.
enum Victims {
    All,
    Only(u64),
    After(u64),
}

struct Action {
    task: Arc<task::Task>,
    code: Py<PyAny>,
    offset: Py<PyAny>,
}

#[pymethods]
impl Injector {
    #[new]
    #[pyo3(signature = (
        at: "int",
        task = None,
        *,
        started = false,
        cancels = false,
        defer = false,
        block: "int | None" = None,
        signal: "int | None" = None,
        trace = false,
    ))]
    #[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)] // named, in Python
    fn new(
        at: u64,
        task: Option<&Task>,
        started: bool,
        cancels: bool,
        defer: bool,
        block: Option<usize>,
        signal: Option<i32>,
        trace: bool,
    ) -> Self {
        Self {
            at,
            victims: match task.map(|task| task.core().id()) {
                None => Victims::All,
                Some(id) if started => Victims::After(id),
                Some(id) => Victims::Only(id),
            },
            cancels,
            defer,
            block,
            signal,
            trace,
            passed: AtomicU64::new(0),
            action: Mutex::new(None),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        let Some(action) = self.action.try_lock() else {
            return Ok(());
        };
        let Some(Action { code, offset, .. }) = &*action else {
            return Ok(());
        };
        visit.call(code)?;
        visit.call(offset)
    }

    /// How many bytecodes of its victims it has seen; it acts before at most one of them.
    #[getter]
    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Where it acted: code object and offset.
    #[getter]
    fn place(&self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        let action = self.action.lock();
        let Action { code, offset, .. } = action.as_ref()?;
        Some((code.clone_ref(py), offset.clone_ref(py)))
    }

    /// Where the exception was raised, as text, if a kill ended the victim.
    #[getter]
    fn stack(&self) -> Option<String> {
        Some(self.victim()?.record().stack?.to_string())
    }

    /// "stopped": the exception came out of the victim. "swallowed": it was raised, and did not come
    /// out. "finished": it was not raised before the victim's end; a cancellation, or the kill of a
    /// block, may have been raised and swallowed all the same.
    #[getter]
    fn outcome(&self) -> Option<&'static str> {
        let victim = self.victim()?;
        let record = victim.record();
        Some(if record.killed_at.is_some() || record.cancelled {
            "stopped"
        } else if victim.delivered().is_some() {
            "swallowed"
        } else {
            "finished"
        })
    }

    /// `(frame, event, arg)` from tracing, `(code, offset)` from monitoring.
    #[pyo3(signature = (*arguments: "object") -> "object")]
    fn __call__<'py>(
        slf: Bound<'py, Self>,
        arguments: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        if arguments.len() != 3 {
            if let Some(victim) = this.pass() {
                this.act(
                    slf.py(),
                    &victim,
                    arguments.get_item(0)?,
                    arguments.get_item(1)?,
                );
            }
            // Monitoring goes on with a callback that does not return its DISABLE.
            return Ok(slf.into_any());
        }
        let frame = arguments.get_item(0)?;
        frame.setattr("f_trace_opcodes", true)?;
        if arguments.get_item(1)?.eq("opcode")? {
            if let Some(victim) = this.pass() {
                let (code, offset) = (frame.getattr("f_code")?, frame.getattr("f_lasti")?);
                this.act(slf.py(), &victim, code, offset);
            }
        }
        // A trace function stays in place if it returns itself.
        Ok(slf.into_any())
    }
}

impl Injector {
    fn victim(&self) -> Option<Arc<task::Task>> {
        Some(self.action.lock().as_ref()?.task.clone())
    }

    /// Counts a bytecode. Returns the task to act on now, if it is the one.
    fn pass(&self) -> Option<Arc<task::Task>> {
        let task = scope::current_task().filter(|task| match self.victims {
            Victims::All => true,
            Victims::Only(id) => task.id() == id,
            Victims::After(id) => task.id() > id,
        })?;
        // A worker between two items is a task, too, but has no body.
        if !self.block.map_or_else(
            || task.has_interrupter(),
            |at| task.open_block_at(at).is_some(),
        ) {
            return None;
        }
        let passed = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        (passed == self.at).then_some(task)
    }

    fn act(
        &self,
        py: Python<'_>,
        task: &Arc<task::Task>,
        code: Bound<'_, PyAny>,
        offset: Bound<'_, PyAny>,
    ) {
        *self.action.lock() = Some(Action {
            task: task.clone(),
            code: code.unbind(),
            offset: offset.unbind(),
        });
        if let Some(number) = self.signal {
            hard_stop::signal_arrives(number);
            return;
        }
        let lock_grace_until = |now| if self.defer { Time::NEVER } else { now };
        if let Some(block) = self.block {
            if let Some(id) = task.open_block_at(block) {
                let now = Time::now();
                task.expire_block(id, now);
                task.request_block_kill(id, &Cause::deadline(now), lock_grace_until(now));
                task.deliver_async_to_block(id);
            }
            return;
        }
        // A kill begins with a cancellation.
        cancel_node(py, task.node(), Some("a sweep"), None);
        if !self.cancels {
            let cause = Cause::now(CauseKind::Explicit, Some("a sweep".into()), None);
            task.request_kill(&cause, lock_grace_until(cause.at));
            task.deliver_at_wait();
            if self.trace {
                task.deliver_by_trace();
            } else {
                task.deliver_async();
            }
        }
    }
}
