//! `Guarded`.
//!
//! The value, and the saved copy of it, are kept where a sweep reaches them without running Python
//! code: whoever takes the lock from a holder that was stopped in the middle puts the copy back, in
//! the same critical section, so that nobody ever sees a half changed value. It does not take
//! `__exit__` for that, which CPython does not always run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyGenericAlias, PyTuple, PyType};

use crate::clock::Time;
use crate::error::ScopeMisuse;
use crate::python::binding::lazy_arg::{GivenClass, GivenException, GivenTraceback, Item};
use crate::python::sync::lock;
use crate::python::sync::unwinding::Killing;
use crate::python::{error, hard_stop};
use crate::sync::{self, Acquire, Holding, OnKill, Undo};

/// What is guarded. Its own lock is held for moments only, and last.
struct Cell {
    slot: Mutex<Slot>,
}

/// Nothing in here is dropped under the lock, for that may run any code.
struct Slot {
    value: Py<PyAny>,
    /// A block has it, and may have changed it.
    open: bool,
    /// What takes its place if the block does not come to its end.
    saved: Option<Py<PyAny>>,
    /// What it took the place of.
    spoiled: Option<Py<PyAny>>,
}

impl Slot {
    fn close(&mut self) -> Option<Py<PyAny>> {
        self.open = false;
        self.saved.take()
    }
}

impl Undo for Cell {
    fn undo(&self) -> bool {
        let slot = &mut *self.slot.lock();
        if !slot.open {
            return true; // nobody has changed it yet, or any more
        }
        let Some(saved) = slot.close() else {
            return false;
        };
        slot.spoiled = Some(std::mem::replace(&mut slot.value, saved));
        true
    }

    fn discard(&self) {
        let spoiled = self.slot.lock().spoiled.take();
        drop(spoiled);
    }
}

/// A value that is reached only while its lock is held: `with guarded.lock() as held:` and then
/// `held.value`.
///
/// If a block is killed in the middle, the value may be half changed, and LockPoisoned is raised in
/// all who want it, until somebody sets it right in `with guarded.repair() as held:`.
///
/// `rollback` is a function that takes the value and returns a copy, copy.deepcopy for instance. It
/// is called at the beginning of each block, and must change nothing. If the block is left by any
/// exception, is killed, or its thread is given up, the copy takes the value's place, and the lock
/// is as good as before. Without it an exception leaves the value as it is at that moment.
///
/// `name` is for reports.
#[pyclass(frozen, weakref, module = "desist")]
pub(in crate::python) struct Guarded {
    lock: sync::Lock,
    cell: Arc<Cell>,
    rollback: Option<Py<PyAny>>,
}

#[pymethods]
impl Guarded {
    #[new]
    #[pyo3(signature = (
        value: "_T",
        *,
        rollback: "Callable[[_T], _T] | None" = None,
        name: "str | None" = None,
    ) -> "Guarded[_T]")]
    fn new(
        value: Py<PyAny>,
        rollback: Option<Bound<'_, PyAny>>,
        name: Option<&str>,
    ) -> PyResult<Self> {
        if let Some(given) = rollback.as_ref().filter(|given| !given.is_callable()) {
            let kind = given.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "rollback must be a function that copies the value, not {kind}"
            )));
        }
        let cell = Arc::new(Cell {
            slot: Mutex::new(Slot {
                value,
                open: false,
                saved: None,
                spoiled: None,
            }),
        });
        let lock = sync::Lock::new(name.unwrap_or("guarded"), OnKill::Poison);
        Ok(Self {
            lock: lock.with_undo(cell.clone()),
            cell,
            rollback: rollback.map(Bound::unbind),
        })
    }

    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// A block that has the value: `with guarded.lock() as held:`.
    ///
    /// At its beginning it waits for the lock, as Lock.acquire() does. Cancelled, Killed,
    /// LockPoisoned or OwnerLost, or what `rollback` raises: the block has not begun, and nothing
    /// is held.
    #[pyo3(signature = () -> "GuardedValue[_T]")]
    fn lock(slf: Py<Self>) -> GuardedValue {
        GuardedValue::new(slf, Acquire::Known)
    }

    /// A block that has the value although it is poisoned, to set it right.
    ///
    /// At the end of the block it is good again; if the block raises, it stays poisoned.
    #[pyo3(signature = () -> "GuardedValue[_T]")]
    fn repair(slf: Py<Self>) -> GuardedValue {
        GuardedValue::new(slf, Acquire::Repair)
    }

    /// Has anyone got the value?
    fn locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// The last block that had the value was killed, or given up, in the middle.
    #[getter]
    fn poisoned(&self) -> bool {
        self.lock.is_poisoned()
    }

    /// The name of the task, or the thread, that has the value, for reports; None if nobody does.
    fn owner(&self) -> Option<String> {
        lock::owner(&self.lock)
    }

    /// For reports.
    #[getter]
    fn name(&self) -> &str {
        self.lock.name()
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let lock = &slf.get().lock;
        let state = lock::state(lock);
        format!(
            "<{state} desist.Guarded object {:?} at {:p}>",
            lock.name(),
            slf.as_ptr()
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // What a block of another thread is changing is not garbage.
        if let Some(slot) = self.cell.slot.try_lock() {
            visit.call(&slot.value)?;
            visit.call(&slot.saved)?;
            visit.call(&slot.spoiled)?;
        }
        visit.call(&self.rollback)
    }
}

/// A block that has a guarded value; made by Guarded.lock() and Guarded.repair(), and used in a
/// `with` statement, once.
#[pyclass(frozen, weakref, module = "desist._core")]
pub(in crate::python) struct GuardedValue {
    guarded: Py<Guarded>,
    acquire: Acquire,
    entered: AtomicBool,
    holding: OnceLock<Holding>,
    left: AtomicBool,
}

impl GuardedValue {
    const fn new(guarded: Py<Guarded>, acquire: Acquire) -> Self {
        Self {
            guarded,
            acquire,
            entered: AtomicBool::new(false),
            holding: OnceLock::new(),
            left: AtomicBool::new(false),
        }
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        if self.entered.swap(true, Ordering::Relaxed) {
            return Err(error::misuse(py, ScopeMisuse::EnteredTwice));
        }
        let guarded = self.guarded.get();
        lock::take(py, &guarded.lock, self.acquire, Time::NEVER)?;
        let holding = self.holding.get_or_init(|| guarded.lock.holding());
        let begun = self.save(py).and_then(|saved| {
            self.change(py, |slot| {
                slot.open = true;
                slot.saved = saved;
            })
        });
        if begun.is_err() {
            // Nothing has been changed, not even if it was a kill that came in between.
            self.left.store(true, Ordering::Relaxed);
            let _ = holding.release(None);
        }
        begun
    }

    /// The copy that is put back if the block does not come to its end.
    fn save(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let guarded = self.guarded.get();
        let Some(rollback) = &guarded.rollback else {
            return Ok(None);
        };
        let value = guarded.cell.slot.lock().value.clone_ref(py);
        let arguments = PyTuple::new(py, [value])?;
        let copy = hard_stop::call(rollback.bind(py), &arguments)?;
        Ok(Some(copy.unbind()))
    }

    /// Look at, or change, the slot while nobody can take it from this block. `change` must drop no
    /// object.
    fn change<R>(&self, py: Python<'_>, change: impl FnOnce(&mut Slot) -> R) -> PyResult<R> {
        let holding = self.holding.get();
        let holding = holding.ok_or_else(|| error::misuse(py, ScopeMisuse::NotEntered))?;
        if self.left.load(Ordering::Relaxed) {
            let message = "the block is over; what it guards is reached only inside it";
            return Err(PyRuntimeError::new_err(message));
        }
        let slot = &self.guarded.get().cell.slot;
        holding
            .while_held(|| change(&mut slot.lock()))
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    /// End the block while `unwinding`, if anything, is on its way.
    fn exit(&self, py: Python<'_>, unwinding: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let holding = self.holding.get();
        let holding = holding.ok_or_else(|| error::misuse(py, ScopeMisuse::NotEntered))?;
        if self.left.load(Ordering::Relaxed) {
            return Ok(());
        }
        let guarded = self.guarded.get();
        let killing = unwinding.and_then(|raised| Killing::of(py, guarded.lock.hold_seq(), raised));
        if let Some((killing, kill)) = killing {
            self.left.store(true, Ordering::Relaxed);
            if let Ok(poisoned) = holding.release(Some(kill)) {
                killing.record(guarded.lock.name(), poisoned);
            }
            return Ok(());
        }
        let closed = self.change(py, |slot| {
            let saved = slot.close();
            match (unwinding, saved) {
                (Some(_), Some(saved)) => Some(std::mem::replace(&mut slot.value, saved)),
                (_, saved) => saved,
            }
        });
        self.left.store(true, Ordering::Relaxed);
        let ended = closed.and_then(|dropped| {
            if unwinding.is_none() && self.acquire == Acquire::Repair {
                let consistent = holding.mark_consistent();
                consistent.map_err(|fenced| error::fenced(py, &fenced))?;
            }
            let released = holding.release(None);
            drop(dropped); // may run any code
            released.map_err(|fenced| error::fenced(py, &fenced))
        });
        match unwinding {
            Some(_) => Ok(()), // the exception goes on, whether it still had the lock or not
            None => ended.and_then(|_| error::check_kill(py)),
        }
    }
}

#[pymethods]
impl GuardedValue {
    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// The value; assign to put another one in its place.
    ///
    /// Do not keep what it refers to beyond the block. RuntimeError: the block is over. Fenced: the
    /// lock was taken from it.
    #[getter]
    fn value(&self, py: Python<'_>) -> PyResult<Item> {
        self.change(py, |slot| slot.value.clone_ref(py)).map(Item)
    }

    #[setter]
    fn set_value(&self, py: Python<'_>, value: Item) -> PyResult<()> {
        let before = self.change(py, |slot| std::mem::replace(&mut slot.value, value.0))?;
        drop(before);
        Ok(())
    }

    #[pyo3(signature = () -> "GuardedValue[_T]")]
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().enter(slf.py())?;
        Ok(slf)
    }

    #[pyo3(signature = (_type, value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: GivenClass<'_, '_>,
        value: GivenException<'_, '_>,
        _traceback: GivenTraceback<'_, '_>,
    ) -> PyResult<()> {
        self.exit(py, Some(&*value).filter(|value| !value.is_none()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.guarded)
    }
}
