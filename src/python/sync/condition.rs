//! `Condition`: the core's condition on a desist lock, with the signatures of `threading.Condition`.

use std::sync::OnceLock;

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::runnable::check_function;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::python::hard_stop::mask::{in_wait, unmasked};
use crate::python::op::Visited;
use crate::python::sync::lock::{Lock, RLock, Released};
use crate::sync::{self, WaitError};

/// A condition variable like threading.Condition, whose waits can be cancelled.
///
/// `lock` is a desist Lock or RLock; an RLock of its own if none is given.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct Condition {
    /// Written once, by `__init__`.
    made: OnceLock<Made>,
}

struct Made {
    lock: Py<Lock>,
    condition: sync::Condition,
}

impl Condition {
    fn made(&self) -> PyResult<&Made> {
        self.made
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("Condition.__init__() was not called"))
    }

    pub(in crate::python) fn core(&self) -> PyResult<&sync::Condition> {
        Ok(&self.made()?.condition)
    }

    fn lock(&self) -> PyResult<&Lock> {
        Ok(self.made()?.lock.get())
    }

    /// A reentrant lock is held by its holder only; any other lock counts as held if any thread holds
    /// it.
    fn is_owned(&self) -> PyResult<bool> {
        let lock = self.lock()?.core();
        Ok(if lock.is_reentrant() {
            lock.is_mine()
        } else {
            lock.is_locked()
        })
    }

    /// Raises RuntimeError unless the lock is held.
    fn check_held(&self, what: &str) -> PyResult<()> {
        if self.is_owned()? {
            Ok(())
        } else {
            Err(PyRuntimeError::new_err(format!(
                "cannot {what} on un-acquired lock"
            )))
        }
    }

    fn wait_until(&self, py: Python<'_>, until: crate::Time) -> PyResult<bool> {
        let condition = self.core()?;
        let waited = in_wait(|| detached(py, || condition.wait_until(until)));
        waited.map_err(|failure| match failure {
            WaitError::NotHeld(_) => PyRuntimeError::new_err("cannot wait on un-acquired lock"),
            WaitError::Lock(failure) => error::from_lock(py, failure),
        })
    }
}

#[pymethods]
impl Condition {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(lock=None)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            made: OnceLock::new(),
        }
    }

    #[pyo3(signature = (lock: "Lock | None" = None))]
    fn __init__(&self, py: Python<'_>, lock: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let lock = match lock {
            Some(lock) => lock.clone(),
            None => py.get_type::<RLock>().call0()?,
        };
        let Ok(lock) = lock.cast_into::<Lock>() else {
            return Err(PyTypeError::new_err(
                "the lock of a desist.Condition must be a desist.Lock or desist.RLock",
            ));
        };
        let condition = sync::Condition::new(lock.get().core().clone());
        let lock = lock.unbind();
        self.made.get_or_init(|| Made { lock, condition });
        Ok(())
    }

    /// Acquire the lock, as Lock.acquire() does.
    ///
    /// Blocks: until the lock is free, for `timeout` seconds at most; not at all with
    /// `blocking=False`.
    /// On cancel: Cancelled is raised, and the lock is not held.
    /// On timeout: returns False.
    /// On kill: Killed is raised, and the lock is not held.
    #[pyo3(signature = (blocking: "bool" = true, timeout = None))]
    fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = lazy_arg::truth)] blocking: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        self.lock()?.acquire(py, blocking, timeout)
    }

    /// Release the lock, as Lock.release() does. Never blocks.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.lock()?.release(py)
    }

    /// Does any thread hold the lock?
    fn locked(&self) -> PyResult<bool> {
        Ok(self.lock()?.core().is_locked())
    }

    /// Release the lock, wait for a notify (True) or until the seconds have passed (False), and
    /// reacquire the lock.
    ///
    /// Blocks: until a notify, for `timeout` seconds at most, and then until the lock is free.
    /// On cancel: Cancelled is raised when the lock has been reacquired. A notify that comes too late
    /// for this waiter goes to the next one.
    /// On timeout: returns False, when the lock has been reacquired.
    /// On kill: as on cancel, with Killed.
    ///
    /// Raises:
    ///     RuntimeError: the lock is not held.
    ///     LockPoisoned: the lock was poisoned meanwhile, and is not held.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        self.check_held("wait")?;
        self.wait_until(py, seconds::patience(timeout)?)
    }

    /// wait(), inside a function that call_masked() calls: a kill is delivered in the wait, not around it.
    #[pyo3(signature = (timeout = None))]
    fn _wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        unmasked(|| self.wait(py, timeout))
    }

    /// wait() until `predicate()` is true, or the seconds have passed. Returns its last value.
    ///
    /// Blocks: until then, and until the lock is free; `timeout` is for all waits together.
    /// On cancel: Cancelled is raised when the lock has been reacquired.
    /// On timeout: returns the predicate's last value, which is false.
    /// On kill: as on cancel, with Killed.
    ///
    /// Raises:
    ///     RuntimeError: the lock is not held.
    ///     LockPoisoned: the lock was poisoned meanwhile, and is not held.
    #[pyo3(signature = (predicate: "Callable[[], _T]", timeout = None) -> "_T")]
    fn wait_for<'py>(
        &self,
        py: Python<'py>,
        predicate: &Bound<'py, PyAny>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        check_function(predicate, "predicate", None)?;
        let until = seconds::patience(timeout)?;
        loop {
            let result = predicate.call0()?;
            if result.is_truthy()? {
                return Ok(result);
            }
            self.check_held("wait")?;
            if !self.wait_until(py, until)? {
                return predicate.call0();
            }
        }
    }

    /// Wake one waiter, or `n`, the longest waiting first. Never blocks.
    ///
    /// Raises:
    ///     RuntimeError: the lock is not held.
    #[pyo3(signature = (n = 1))]
    fn notify(&self, n: isize) -> PyResult<()> {
        self.check_held("notify")?;
        self.core()?.notify(usize::try_from(n).unwrap_or(0));
        Ok(())
    }

    /// Wake all waiters. Never blocks.
    ///
    /// Raises:
    ///     RuntimeError: the lock is not held.
    fn notify_all(&self) -> PyResult<()> {
        self.check_held("notify")?;
        self.core()?.notify(usize::MAX);
        Ok(())
    }

    /// notify_all(), by its old name, which is deprecated in threading, too.
    #[pyo3(name = "notifyAll")]
    fn notify_all_by_its_old_name(&self, py: Python<'_>) -> PyResult<()> {
        error::warn_deprecated(py, c"notifyAll() is deprecated, use notify_all() instead")?;
        self.notify_all()
    }

    // As threading.Condition, it can be used in place of its lock.

    /// Does the calling code hold the lock? For a lock that is not reentrant: does any thread?
    fn _is_owned(&self) -> PyResult<bool> {
        self.is_owned()
    }

    /// Release the lock however often it is held; for _acquire_restore().
    fn _release_save(&self) -> PyResult<Released> {
        Released::take(self.lock()?.core())
    }

    /// Hold the lock as before _release_save().
    fn _acquire_restore(&self, py: Python<'_>, released: &Released) -> PyResult<()> {
        released.give_back(py, self.lock()?.core())
    }

    /// In a forked child, as in threading.Condition: the lock is free, and has no waiters.
    fn _at_fork_reinit(&self) -> PyResult<()> {
        self.lock()?.core().reinitialize();
        Ok(())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.lock()?.__enter__(py)
    }

    #[pyo3(signature = (r#type, value, traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        r#type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        self.lock()?.__exit__(py, r#type, value, traceback)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        self.made
            .get()
            .map_or(Ok(()), |made| visit.call(&made.lock))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let made = self.made()?;
        let (lock, waiting) = (made.lock.bind(py).repr()?, made.condition.waiting());
        Ok(format!("<Condition({lock}, {waiting})>"))
    }
}
