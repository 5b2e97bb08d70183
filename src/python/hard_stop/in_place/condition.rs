//! Ending a wait of the standard library's `Condition`, and so those of its `Event`, `Semaphore`, `Barrier`,
//! `queue.Queue` and `Future`.
//!
//! `Condition.wait` blocks in the acquisition of a lock that is the waiting call's own, its *waiter*.
//! `notify()` takes the waiter out of the condition's list and releases it, with the condition's lock held.
//! To end the wait, this does the same: it takes the condition's lock, unless that is held; if the waiter
//! is in the list, the wait has not been notified, and will not be. So `Cancelled` means that no
//! notification was consumed. The thread wakes, and raises at the next instruction, inside the `try` whose
//! `finally` acquires the condition's lock again.
//!
//! All of it happens while the waiting thread cannot run, for it needs the interpreter. While another thread
//! holds the condition's lock the wait is left for later: its end would have to wait for that lock in any case.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | `Condition.wait` blocks in `waiter.acquire(...)`, with the waiter in `self._waiters`, a deque, and removes it in a `finally` if the next instruction is not reached | 3.10-3.15 | `test_i46_a_wait_of_the_standard_library_is_ended` |

use crate::python::binding::interned::interned;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCode, PyDict, PyType};

use crate::python::binding::frames;

/// The code of `Condition.wait`.
pub(super) fn code(py: Python<'_>) -> PyResult<&Bound<'_, PyCode>> {
    static CODE: PyOnceLock<Py<PyCode>> = PyOnceLock::new();
    let code = CODE.get_or_try_init(py, || {
        let wait = py
            .import("threading")?
            .getattr("Condition")?
            .getattr("wait")?;
        let code = wait.getattr("__code__")?.cast_into::<PyCode>()?;
        Ok::<_, PyErr>(code.unbind())
    })?;
    Ok(code.bind(py))
}

/// Is it a place in that code at which a lock is acquired?
fn is_acquiring(py: Python<'_>, place: u32) -> PyResult<bool> {
    static PLACES: PyOnceLock<Vec<u32>> = PyOnceLock::new();
    let places = PLACES.get_or_try_init(py, || {
        let mut found = Vec::new();
        let mut acquires = false;
        let instructions = py
            .import("dis")?
            .call_method1("get_instructions", (code(py)?,))?;
        for instruction in instructions.try_iter()? {
            let instruction = instruction?;
            let name: String = instruction.getattr("opname")?.extract()?;
            let is_call = name.starts_with("CALL") || name == "PRECALL"; // on 3.11 one call has both
            if is_call && acquires {
                found.push(instruction.getattr("offset")?.extract()?);
            }
            acquires = if name.starts_with("LOAD_ATTR") || name.starts_with("LOAD_METHOD") {
                instruction.getattr("argval")?.eq("acquire")?
            } else {
                acquires && !name.starts_with("CALL")
            };
        }
        Ok::<_, PyErr>(found)
    })?;
    Ok(places.contains(&place))
}

/// Finds out what [`end`] needs of the interpreter: the first time that imports modules, which lets other threads run.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    is_acquiring(py, 0)?;
    Types::of(py).map(drop)
}

/// Ends the wait that the thread with this innermost frame is in, if it is one of a `Condition`, has not been
/// notified, and `decide` says so.
pub(super) fn end(
    frame: &Bound<'_, PyAny>,
    decide: &mut dyn FnMut() -> PyResult<bool>,
) -> PyResult<()> {
    let py = frame.py();
    if !frames::code(frame)?.is(code(py)?) || !is_acquiring(py, frames::last_instruction(frame)?)? {
        return Ok(());
    }
    let variables = frame.getattr(interned!(py, "f_locals"))?;
    let waiter = variables.get_item(interned!(py, "waiter"))?;
    let condition = variables.get_item(interned!(py, "self"))?;
    let members = condition.getattr(interned!(py, "__dict__"))?;
    let members = members.cast::<PyDict>()?;
    let lock = members.get_item(interned!(py, "_lock"))?;
    let waiters = members.get_item(interned!(py, "_waiters"))?;
    let (Some(lock), Some(waiters)) = (lock, waiters) else {
        return Ok(());
    };
    let types = Types::of(py)?;
    if !(types.is_lock(&waiter) && types.is_lock_of_condition(&lock) && types.is_deque(&waiters)) {
        return Ok(());
    }
    let acquire = interned!(py, "acquire");
    if !lock.call_method1(acquire, (false,))?.is_truthy()? {
        return Ok(());
    }
    let ended = waiters.contains(&waiter).and_then(|is_waiting| {
        if is_waiting && decide()? {
            waiters.call_method1(interned!(py, "remove"), (&waiter,))?;
            waiter.call_method0(interned!(py, "release"))?;
        }
        Ok(())
    });
    lock.call_method0(interned!(py, "release"))?;
    ended
}

/// The types whose methods run no code of Python's, in which other threads could run.
struct Types {
    lock: Py<PyType>,
    reentrant: Py<PyType>,
    deque: Py<PyType>,
}

impl Types {
    fn of(py: Python<'_>) -> PyResult<&Types> {
        static TYPES: PyOnceLock<Types> = PyOnceLock::new();
        TYPES.get_or_try_init(py, || {
            let threads = py.import("_thread")?;
            let type_of = |made: Bound<'_, PyAny>| made.get_type().unbind();
            Ok(Types {
                lock: type_of(threads.call_method0("allocate_lock")?),
                reentrant: type_of(threads.call_method0("RLock")?),
                deque: type_of(py.import("collections")?.call_method0("deque")?),
            })
        })
    }

    fn is_lock(&self, object: &Bound<'_, PyAny>) -> bool {
        object.get_type().is(&self.lock)
    }

    fn is_lock_of_condition(&self, object: &Bound<'_, PyAny>) -> bool {
        self.is_lock(object) || object.get_type().is(&self.reentrant)
    }

    fn is_deque(&self, object: &Bound<'_, PyAny>) -> bool {
        object.get_type().is(&self.deque)
    }
}
