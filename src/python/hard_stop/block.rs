//! Raising inside one block, and nowhere else.
//!
//! An asynchronous exception is raised at the instruction at which CPython next checks its slot. That
//! instruction may lie outside of the exception table's entry that leads to the block's `__exit__`,
//! although it belongs to the block: the jump at the end of a `while` loop (3.13), the call of
//! `__enter__` (3.14). So where there is sys.monitoring, no exception is posted for a `with` block.
//! Instead the code that its thread is in the middle of is observed, instruction by instruction; the
//! thread itself checks at each instruction whether an exception raised there would reach the block's
//! end, and raises if so. (An exception that is raised at an event for lines or jumps counts as
//! raised elsewhere, and may miss `__exit__` as well.)
//!
//! On the main thread a signal interrupts a blocking system call. Its handler checks in the same way.
//!
//! A block that is one native call needs none of this: there is no Python code between the function
//! and the block's end, so wherever the exception is raised, the block ends there. It is observed
//! only when it swallows posted exceptions. A block that is observed and swallows gets the exception at
//! every one of its instructions.
#![allow(unsafe_code)] // calls of the C API, and two of the system's

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::python::binding::interned::interned;
use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use super::killed::killed;
use super::protected::NoCollection;
use super::{AsyncException, this_thread, trace};
use crate::python::binding::attach::attach;
use crate::python::binding::attached_lock::AttachedLock;
use crate::python::binding::frames::{
    self, back, first_handler_behind, frame, is_jump_back, last_instruction, leads_to,
};
use crate::python::binding::host;
use crate::scope;
use crate::task::Interrupter;

/// Raises in one block of one thread.
struct InBlock {
    /// The thread in which the block is, with the slot for exceptions that are posted to it, and the frame of
    /// the `with` statement, or the one that made the call.
    thread: AsyncException,
    /// The `with` statement; `None` for a block that is one native call, or was entered by one.
    with: Option<With>,
    /// On the main thread, where a signal can end a system call; fixed.
    signal: Option<Signal>,
    /// Is there sys.monitoring, to observe its code? Before 3.12 there is a trace function.
    monitors: OnceLock<bool>,
    /// The block has swallowed an exception, or none may be raised where its thread was found: from then on
    /// it is observed in any case. Only ever set.
    escalated: AtomicBool,
    /// A post was asked for under a lock of the core's; it is made when that lock is released, with
    /// `observed` locked. Set by the posting thread, cleared by it or, to retract, by the block's own, which
    /// without the GIL may run meanwhile: a post is either not made, or undone.
    deferred_post: AtomicBool,
    /// Locked by the posting thread until all of the code is observed.
    observed: AttachedLock<Observed>,
}

/// A code object that is observed, and by which tool.
#[derive(Default)]
struct Observed {
    /// The id of our tool in sys.monitoring, while any code is observed.
    tool: Option<u8>,
    /// The code objects for which events are on.
    code: Vec<Py<PyAny>>,
    /// Events are on for all of the code that the thread was in the middle of, and not for its innermost call
    /// alone, which is all that another thread sees without the GIL.
    is_complete: bool,
}

impl Observed {
    /// Switches the events on for the code objects, which may be there already.
    fn add(
        &mut self,
        monitoring: &Bound<'_, PyAny>,
        mut codes: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut seen = HashSet::new();
        codes.retain(|code| seen.insert(code.as_ptr()));
        let event = trace::instruction_event(monitoring)?;
        for code in codes {
            monitoring.call_method1("set_local_events", (self.tool, &code, event))?;
            self.code.push(code.unbind());
        }
        Ok(())
    }
}

/// A `with` statement that is being executed.
struct With {
    /// The instruction that calls `__enter__`.
    entered_at: u32,
    /// The handler to which an exception raised in its body goes first.
    handler: OnceLock<Option<u32>>,
}

/// The interrupter for a `with` statement that calls `__enter__` now.
pub(in crate::python) fn for_this_block(py: Python<'_>) -> PyResult<Arc<dyn Interrupter>> {
    let with = match frame(py) {
        Some(frame) => Some(With {
            entered_at: last_instruction(&frame)?,
            handler: OnceLock::new(),
        }),
        None => None, // entered by a program that embeds Python
    };
    make(py, with)
}

/// The interrupter for a block that is one native call.
pub(in crate::python) fn for_this_call(py: Python<'_>) -> PyResult<Arc<dyn Interrupter>> {
    make(py, None)
}

fn make(py: Python<'_>, with: Option<With>) -> PyResult<Arc<dyn Interrupter>> {
    Ok(Arc::new(InBlock {
        thread: this_thread(py)?,
        with,
        signal: Signal::to_this_thread(py)?,
        monitors: OnceLock::new(),
        escalated: AtomicBool::new(false),
        deferred_post: AtomicBool::new(false),
        observed: AttachedLock::default(),
    }))
}

impl InBlock {
    fn observes(&self, py: Python<'_>) -> bool {
        let monitors = || matches!(monitoring(py), Ok(Some(_)));
        let escalated = || self.escalated.load(Ordering::Relaxed);
        if *self.monitors.get_or_init(monitors) {
            self.with.is_some() || escalated()
        } else {
            escalated() && trace::sets_for_others(py)
        }
    }

    /// Is an exception posted, or is code observed?
    fn posts(&self, py: Python<'_>) -> bool {
        !self.observes(py) && self.signal.is_none()
    }

    /// Has the thread check where it is, at its next instruction of the code that it is in now.
    fn observe(&self, py: Python<'_>, observed: &mut Observed) -> PyResult<()> {
        let Some(monitoring) = monitoring(py)? else {
            trace::set(py, &self.thread);
            return Ok(());
        };
        let mut next = frames::of_thread(py, self.thread.thread)?;
        let mut codes = Vec::new();
        if let Some(frame) = self.frame_of_with() {
            codes.push(frames::code(frame.bind(py))?);
        }
        observed.is_complete = frames::has_gil(py)?;
        while let Some(frame) = next.filter(|frame| !self.thread.has_called_body(frame)) {
            codes.push(frames::code(&frame)?);
            // See `frames::of_thread`.
            next = if observed.is_complete {
                back(&frame)?
            } else {
                None
            };
        }
        let known = observed.tool;
        let tool = known.map_or_else(|| take_tool(&monitoring), Ok)?;
        observed.tool = Some(tool);
        observed.add(&monitoring, codes)
    }

    /// On the thread itself, at an instruction of its innermost call: has it check in its other calls as well.
    fn complete(&self, py: Python<'_>) -> PyResult<()> {
        let mut observed = self.observed.lock(py);
        if observed.is_complete || observed.tool.is_none() {
            return Ok(());
        }
        observed.is_complete = true;
        let Some(monitoring) = monitoring(py)? else {
            return Ok(());
        };
        let codes = self.thread.body(py).map(|frame| frames::code(&frame?));
        let codes = codes.collect::<PyResult<Vec<_>>>()?;
        observed.add(&monitoring, codes)
    }

    fn stop_observing(&self, py: Python<'_>) -> PyResult<()> {
        let mut former = self.observed.lock(py);
        self.deferred_post.store(false, Ordering::Relaxed);
        let observed = std::mem::take(&mut *former);
        drop(former); // also because dropping code objects runs finalizers
        let Some(monitoring) = monitoring(py)? else {
            trace::unset(py);
            return Ok(());
        };
        let Some(tool) = observed.tool else {
            return Ok(());
        };
        for code in &observed.code {
            monitoring.call_method1("set_local_events", (tool, code, 0))?;
        }
        leave_tool(&monitoring)
    }

    /// The frame of the `with` statement.
    fn frame_of_with(&self) -> Option<&Py<PyAny>> {
        self.thread.around.as_ref().filter(|_| self.with.is_some())
    }

    /// On the thread itself: would an exception that is raised here reach the block's end?
    fn is_inside(&self, py: Python<'_>, at: Option<u32>) -> PyResult<bool> {
        let Some(with) = &self.with else {
            return Ok(true);
        };
        let mut next = frame(py);
        let mut top = true;
        while let Some(frame) = next {
            if self.thread.has_called_body(&frame) {
                let observes = self.observes(py);
                return Ok(!observes || with.is_inside(&frame, at.filter(|_| top), top)?);
            }
            next = back(&frame)?;
            top = false;
        }
        Ok(false) // suspended in a generator, or a kill has skipped its end
    }
}

impl With {
    fn is_inside(&self, frame: &Bound<'_, PyAny>, at: Option<u32>, top: bool) -> PyResult<bool> {
        let py = frame.py();
        let code = frames::code(frame)?;
        let Some(table) = code.getattr_opt(interned!(py, "co_exceptiontable"))? else {
            return Ok(true); // 3.10: the end is found by other means, wherever it is raised
        };
        let table = table.cast::<PyBytes>()?.as_bytes();
        let here = at.map_or_else(|| last_instruction(frame), Ok)?;
        // An exception out of a signal's handler counts as raised where a jump leads.
        if at.is_none() && top && is_jump_back(&code, here)? {
            return Ok(false);
        }
        let first = || first_handler_behind(table, self.entered_at);
        let handler = *self.handler.get_or_init(first);
        Ok(handler.is_some_and(|handler| leads_to(table, here, handler)))
    }
}

impl Interrupter for InBlock {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        attach(|py| {
            if self.posts(py) && !self.is_running(py).unwrap_or(false) {
                return;
            }
            let still = NoCollection::begin(py);
            then();
            drop(still);
            let mut observed = self.observed.lock(py);
            if self.deferred_post.swap(false, Ordering::Relaxed) {
                if self.observes(py) {
                    // No tool id is free, or no memory: the next try may do better.
                    let _ = self.observe(py, &mut observed);
                }
                if let Some(signal) = &self.signal {
                    signal.send();
                }
            }
        });
    }

    fn inside(&self) -> Option<Arc<str>> {
        self.thread.inside()
    }

    fn sees_body(&self) -> bool {
        self.thread.sees_body()
    }

    fn post(&self) {
        // `with_host_lock` has attached.
        attach(|py| {
            if self.posts(py) {
                self.thread.post();
            } else {
                self.deferred_post.store(true, Ordering::Relaxed);
            }
        });
    }

    fn retract(&self) {
        attach(|py| {
            // This does not fail; if it did, the observed code would merely be slow.
            let _ = self.stop_observing(py);
            // An exception that was posted on an earlier rung may still be in the slot. Where none is
            // ever posted, the call is left out: an exception of a signal handler would be lost in it.
            let has_posted = self.with.is_none() || self.monitors.get() == Some(&false);
            if has_posted && self.signal.is_none() || self.posts(py) {
                self.thread.retract();
            }
        });
    }

    fn may_deliver_at(&self, place: Option<u32>) -> bool {
        // Without memory for it, the next try may do better.
        attach(|py| self.complete(py).ok());
        self.thread.may_deliver_at(place)
            && attach(|py| self.is_inside(py, place).unwrap_or(false)).unwrap_or(false)
    }

    fn escalate(&self) {
        self.escalated.store(true, Ordering::Relaxed);
    }

    fn stack(&self) -> Option<Vec<String>> {
        self.thread.stack()
    }
}

impl InBlock {
    /// From another thread: does the thread run the block's function now? False for a function that
    /// may be suspended before the exception is delivered, for then its resumer would get it.
    fn is_running(&self, py: Python<'_>) -> PyResult<bool> {
        const SUSPENDABLE: u32 = 0x20 | 0x80 | 0x200; // a generator, a coroutine, or both
        let Some(with) = self.frame_of_with() else {
            return Ok(true);
        };
        let code = frames::code(with.bind(py))?;
        let flags: u32 = code.getattr(interned!(py, "co_flags"))?.extract()?;
        if flags & SUSPENDABLE != 0 {
            return Ok(false);
        }
        let mut next = frames::of_thread(py, self.thread.thread)?;
        while let Some(frame) = next {
            if frame.is(with) {
                return Ok(true);
            }
            next = back(&frame)?;
        }
        Ok(false)
    }
}

/// Raises if the calling thread is in a block that is being killed, and an exception at `at` reaches
/// the block's end.
fn deliver_here(py: Python<'_>, at: Option<u32>) -> PyResult<()> {
    match scope::current_task().and_then(|task| task.deliver_here(at)) {
        Some(cause) => Err(killed(py, cause)),
        None => Ok(()),
    }
}

// ---------------------------------------------------------------------- sys.monitoring

/// Our tool id, while any code is observed, and for how many blocks. Changed attached, under its lock.
static TOOL: AttachedLock<(Option<u8>, usize)> = AttachedLock::new((None, 0));

fn monitoring(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    py.import(interned!(py, "sys"))?
        .getattr_opt(interned!(py, "monitoring"))
}

/// One block more observes code, with this tool.
fn take_tool(monitoring: &Bound<'_, PyAny>) -> PyResult<u8> {
    let py = monitoring.py();
    let mut tool = TOOL.lock(py);
    let number = if let Some(number) = tool.0 {
        number
    } else {
        // The others have names: debuggers, coverage, profilers, optimizers.
        let free = |tool: &u8| {
            let name = monitoring.call_method1("get_tool", (*tool,));
            name.is_ok_and(|name| name.is_none())
        };
        let number = [3, 4]
            .into_iter()
            .find(free)
            .ok_or_else(|| PyRuntimeError::new_err("all tool ids of sys.monitoring are taken"))?;
        monitoring.call_method1("use_tool_id", (number, "desist"))?;
        let callback = wrap_pyfunction!(at_instruction, py)?;
        let event = trace::instruction_event(monitoring)?;
        monitoring.call_method1("register_callback", (number, event, callback))?;
        *tool.0.insert(number)
    };
    tool.1 += 1;
    Ok(number)
}

/// One block less.
fn leave_tool(monitoring: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = monitoring.py();
    let mut tool = TOOL.lock(py);
    tool.1 -= 1;
    if tool.1 > 0 {
        return Ok(());
    }
    if let Some(number) = tool.0.take() {
        let event = trace::instruction_event(monitoring)?;
        monitoring.call_method1("register_callback", (number, event, py.None()))?;
        monitoring.call_method1("free_tool_id", (number,))?;
    }
    Ok(())
}

/// Called before every instruction of observed code, by any thread that runs it.
#[pyfunction]
fn at_instruction(py: Python<'_>, _code: &Bound<'_, PyAny>, offset: u32) -> PyResult<()> {
    deliver_here(py, Some(offset))
}

// ---------------------------------------------------------------------- the signal

/// A signal of our own to the main thread.
struct Signal {
    #[cfg(target_os = "linux")]
    number: i32,
    #[cfg(target_os = "linux")]
    thread: libc::pthread_t,
}

#[cfg(target_os = "linux")]
impl Signal {
    /// If the calling thread is one on which Python runs handlers.
    fn to_this_thread(py: Python<'_>) -> PyResult<Option<Signal>> {
        if !host::is_main_thread() {
            return Ok(None);
        }
        let Some(number) = install_handler(py)? else {
            return Ok(None);
        };
        // SAFETY: it has no precondition.
        let thread = unsafe { libc::pthread_self() };
        Ok(Some(Signal { number, thread }))
    }

    fn send(&self) {
        // SAFETY: the main thread is there as long as the process. There is a handler.
        unsafe { libc::pthread_kill(self.thread, self.number) };
    }
}

#[cfg(not(target_os = "linux"))]
impl Signal {
    fn to_this_thread(_py: Python<'_>) -> PyResult<Option<Signal>> {
        Ok(None)
    }

    fn send(&self) {}
}

/// Installs our handler for a real-time signal that has none. `None`: all signals have handlers of
/// other code, or this interpreter has no signal handlers.
#[cfg(target_os = "linux")]
fn install_handler(py: Python<'_>) -> PyResult<Option<i32>> {
    static HANDLER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static NUMBER: Mutex<Option<i32>> = Mutex::new(None);
    let handler = HANDLER.get_or_try_init(py, || {
        wrap_pyfunction!(on_signal, py).map(|handler| handler.into_any().unbind())
    })?;
    let signals = py.import(interned!(py, "_signal"))?;
    let handler_of = |number| signals.call_method1(interned!(py, "getsignal"), (number,));
    let known = *NUMBER.lock();
    if let Some(number) = known {
        if handler_of(number)?.is(handler) {
            return Ok(known);
        }
    }
    let default = signals.getattr(interned!(py, "SIG_DFL"))?;
    for number in (libc::SIGRTMIN()..=libc::SIGRTMAX() - 2).rev() {
        // None: a handler that was not installed from Python.
        if !handler_of(number)?.eq(&default)? {
            continue;
        }
        match signals.call_method1(interned!(py, "signal"), (number, handler)) {
            Ok(_) => {
                *NUMBER.lock() = Some(number);
                return Ok(Some(number));
            }
            Err(refused) if refused.is_instance_of::<PyValueError>(py) => return Ok(None),
            Err(refused) if refused.is_instance_of::<PyOSError>(py) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

/// The handler of the signal, called by Python: raises only if a kill may be delivered here.
#[cfg(target_os = "linux")]
#[pyfunction]
fn on_signal(
    py: Python<'_>,
    _number: &Bound<'_, PyAny>,
    _frame: &Bound<'_, PyAny>,
) -> PyResult<()> {
    deliver_here(py, None)
}
