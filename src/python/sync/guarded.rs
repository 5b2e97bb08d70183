//! `Guarded`: a value that is reached only while its lock is held.
//!
//! Guarantees: no block ever sees a value that another block has half changed, except in `repair()`.
//!
//! How: the value, and the saved copy of it, are kept in a slot that is reached without running Python
//! code. The thread that takes the lock from a holder that was killed inside puts the copy back in the
//! same critical section (the core's `Undo`). That does not depend on `__exit__`, which CPython does
//! not always run.
//!
//! The slot's mutex is innermost: it is taken under the core's lock, for moments only, and no Python
//! object is dropped under it, for that may run any code. Detached threads take it too, to put the copy
//! back; so the collector waits for it, as a collection must not find the slot once open and once
//! locked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyGenericAlias, PyType};

use crate::clock::Time;
use crate::error::ScopeMisuse;
use crate::python::binding::lazy_arg::{Item, LazyClass, LazyException, LazyTraceback};
use crate::python::binding::runnable::{check_function, check_result};
use crate::python::error;
use crate::python::op::Visited;
use crate::python::sync::lock;
use crate::python::sync::unwinding::KilledHolder;
use crate::sync::{self, Acquire, Holding, OnKill, Undo};

/// The value and its copy.
struct Cell {
    slot: Mutex<Slot>,
}

/// Nothing in here is dropped under the lock, for that may run any code.
struct Slot {
    value: Py<PyAny>,
    /// A block holds the lock and may have changed the value. Set by the block that begins, cleared
    /// by its end or by the reclaim of its lock.
    open: bool,
    /// The copy that replaces the value if the block does not reach its end.
    saved: Option<Py<PyAny>>,
    /// The value that `saved` has replaced, to be dropped by the next block.
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
            return true; // no block is changing it
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
/// If a block is killed in the middle, the value may be half changed: then lock() raises LockPoisoned
/// until `with guarded.repair() as held:` has restored it.
///
/// `rollback` is a function that takes the value and returns a copy, copy.deepcopy for instance. It
/// is called at the beginning of each block, and must change nothing. If the block is left by any
/// exception, is killed, or its thread is abandoned, the copy takes the value's place, and the lock
/// stays usable. Without `rollback` an exception leaves the value as it is at that moment.
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
        if let Some(rollback) = &rollback {
            check_function(rollback, "rollback, which copies the value,", None)?;
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
    /// Blocks: at its beginning, until the lock is free, as Lock.acquire() does.
    /// On cancel: Cancelled is raised there; the block has not begun, and nothing is held.
    ///
    /// Raises:
    ///     LockPoisoned, OwnerLost: as Lock.acquire(). An exception of `rollback` is raised as well.
    #[pyo3(signature = () -> "GuardedValue[_T]")]
    fn lock(slf: Py<Self>) -> GuardedValue {
        GuardedValue::new(slf, Acquire::Known)
    }

    /// A block that has the value although it is poisoned, to restore it.
    ///
    /// The end of the block clears the poison; if the block raises, the value stays poisoned.
    ///
    /// Blocks: at its beginning, until the lock is free, as Lock.acquire() does.
    /// On cancel: Cancelled is raised there; the block has not begun, and nothing is held.
    ///
    /// Raises:
    ///     OwnerLost: as Lock.acquire().
    #[pyo3(signature = () -> "GuardedValue[_T]")]
    fn repair(slf: Py<Self>) -> GuardedValue {
        GuardedValue::new(slf, Acquire::Repair)
    }

    /// Does a block have the value?
    fn locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// Was the last block that had the value killed or abandoned in the middle?
    #[getter]
    fn poisoned(&self) -> bool {
        self.lock.is_poisoned()
    }

    /// The name of the task, or the thread, that has the value, for reports; None if none does.
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

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        let slot = self.cell.slot.lock();
        visit.call(&slot.value)?;
        visit.call(&slot.saved)?;
        visit.call(&slot.spoiled)?;
        visit.call(&self.rollback)
    }

    fn __clear__(&self, py: Python<'_>) {
        let mut slot = self.cell.slot.lock();
        let value = std::mem::replace(&mut slot.value, py.None());
        let dropped = (value, slot.saved.take(), slot.spoiled.take());
        drop(slot);
        drop(dropped); // unlocked: may run any code
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
            // Nothing has been changed, also if a kill has ended the copy.
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
        let copy = check_result(rollback.bind(py).call1((value,))?, true)?;
        Ok(Some(copy.unbind()))
    }

    /// Reads or changes the slot while the lock cannot be taken from this block. `change` must not
    /// drop an object.
    fn change<R>(&self, py: Python<'_>, change: impl FnOnce(&mut Slot) -> R) -> PyResult<R> {
        let holding = self.holding.get();
        let holding = holding.ok_or_else(|| error::misuse(py, ScopeMisuse::NotEntered))?;
        if self.left.load(Ordering::Relaxed) {
            let message = "the block has ended; use the guarded value only inside it";
            return Err(PyRuntimeError::new_err(message));
        }
        let slot = &self.guarded.get().cell.slot;
        holding
            .while_held(|| change(&mut slot.lock()))
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    /// Ends the block, with the exception that leaves it, if one does.
    fn exit(&self, py: Python<'_>, unwinding: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let holding = self.holding.get();
        let holding = holding.ok_or_else(|| error::misuse(py, ScopeMisuse::NotEntered))?;
        if self.left.load(Ordering::Relaxed) {
            return Ok(());
        }
        let guarded = self.guarded.get();
        let killing =
            unwinding.and_then(|raised| KilledHolder::of(py, guarded.lock.hold_seq(), raised));
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
    /// Do not keep references to parts of it beyond the block.
    ///
    /// Raises:
    ///     RuntimeError: the block is over.
    ///     Fenced: the lock was taken from this block.
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
        _type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        self.exit(py, Some(&*value).filter(|value| !value.is_none()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.guarded)
    }
}
