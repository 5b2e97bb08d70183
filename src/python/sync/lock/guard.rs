//! `LockGuard`: one hold of a lock, with its number (the epoch).
//!
//! A guard is entered once and released once, by its block's end or by `release()`. It remembers its
//! hold, so that it never releases a later hold of the same lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::clock::Time;
use crate::error::ScopeMisuse;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::error;
use crate::python::op::Visited;
use crate::python::sync::lock::Lock;
use crate::python::sync::unwinding::{KilledHolder, unwinding};
use crate::sync::{Acquire, Holding};

/// A block that holds a lock; made by Lock.guard() and Lock.repair(), and used in a `with`
/// statement, once.
///
/// It waits for the lock as acquire() does. Its end releases its own hold of the lock and no other, also
/// when it was abandoned while another thread has the lock, or when it ends late, as a suspended
/// generator that is dropped.
#[pyclass(frozen, weakref, module = "desist._core")]
pub(in crate::python) struct LockGuard {
    lock: Py<Lock>,
    acquire: Acquire,
    entered: AtomicBool,
    holding: OnceLock<Holding>,
    /// By release(), or by the end of the block.
    released: AtomicBool,
}

impl LockGuard {
    pub(in crate::python) const fn new(lock: Py<Lock>, acquire: Acquire) -> Self {
        Self {
            lock,
            acquire,
            entered: AtomicBool::new(false),
            holding: OnceLock::new(),
            released: AtomicBool::new(false),
        }
    }

    pub(in crate::python) fn enter(&self, py: Python<'_>) -> PyResult<()> {
        if self.entered.swap(true, Ordering::Relaxed) {
            return Err(error::misuse(py, ScopeMisuse::EnteredTwice));
        }
        let lock = self.lock.get();
        lock.take(py, self.acquire, Time::NEVER)?;
        self.holding.get_or_init(|| lock.core().holding());
        Ok(())
    }

    fn holding(&self, py: Python<'_>) -> PyResult<&Holding> {
        let holding = self.holding.get();
        holding.ok_or_else(|| error::misuse(py, ScopeMisuse::NotEntered))
    }

    /// End it, while `unwinding`, if anything, is on its way.
    pub(in crate::python) fn exit(
        &self,
        py: Python<'_>,
        unwinding: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let holding = self.holding(py)?;
        if self.released.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        if unwinding.is_none() && self.acquire == Acquire::Repair {
            let consistent = holding.mark_consistent();
            consistent.map_err(|fenced| error::fenced(py, &fenced))?;
        }
        self.release_hold(py, holding, unwinding)
    }

    fn release_hold(
        &self,
        py: Python<'_>,
        holding: &Holding,
        unwinding: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let Some(unwinding) = unwinding else {
            let released = holding.release(None);
            released.map_err(|fenced| error::fenced(py, &fenced))?;
            return error::check_kill(py);
        };
        // Whether it still had the lock or not: the exception goes on.
        match KilledHolder::of(py, self.lock.get().core().hold_seq(), unwinding) {
            Some((killing, kill)) => {
                if let Ok(poisoned) = holding.release(Some(kill)) {
                    killing.record(self.lock.get().core().name(), poisoned);
                }
            }
            None => _ = holding.release(None),
        }
        Ok(())
    }
}

#[pymethods]
impl LockGuard {
    /// The number of this hold. Later holds of the lock have greater numbers, so a service that gets
    /// the number with each request made under the lock, say a database, can refuse a number smaller
    /// than one it has seen.
    ///
    /// It also rises when Condition.wait() releases and reacquires the lock. An RLock that its holder
    /// acquires again keeps it.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.holding(py)?.epoch())
    }

    /// Fenced, if the lock was taken from this block and others may hold it. Never blocks.
    ///
    /// That may happen right after the check: work that must not be done twice needs the epoch.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.holding(py)?
            .check()
            .map_err(|fenced| error::fenced(py, &fenced))
    }

    /// Release the lock before the block ends; from any thread, never blocks. In the block of
    /// repair() the lock stays poisoned then.
    ///
    /// RuntimeError: it was released before. Fenced: the lock was taken from this block. A kill
    /// that the lock deferred is raised here.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let holding = self.holding(py)?;
        let unwinding = unwinding(py, self.lock.get().core().hold_seq())?;
        if self.released.swap(true, Ordering::Relaxed) {
            let message = "this guard was released before";
            return Err(PyRuntimeError::new_err(message));
        }
        self.release_hold(py, holding, unwinding.as_ref())
    }

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
        visit.call(&self.lock)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let state = match self.holding.get() {
            None => "not entered".to_owned(),
            Some(_) if self.released.load(Ordering::Relaxed) => "released".to_owned(),
            Some(holding) if holding.check().is_err() => "stale".to_owned(),
            Some(holding) => format!("epoch={}", holding.epoch()),
        };
        Ok(format!(
            "<LockGuard {state} of {}>",
            self.lock.bind(py).repr()?
        ))
    }
}
