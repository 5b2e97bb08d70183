//! `Lock`.

use std::sync::{Arc, OnceLock};

use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::clock::Time;
use crate::python::error::Killed;
use crate::python::hint::{GivenClass, GivenException, GivenTraceback};
use crate::python::host::detached;
use crate::python::seconds::Seconds;
use crate::python::wait::{checkpoint, perform};
use crate::python::{error, hard_stop, hint, seconds};
use crate::scope;
use crate::sync::{self, Acquire, LockError, OnKill, ReleaseError};
use crate::task::Task;

/// A lock like threading.Lock, whose waits can be cancelled, and which its holder gives back
/// however it ends.
///
/// Not reentrant: use RLock for that. Any thread may release it. `name` is for reports. After its
/// holder was killed inside, the lock is poisoned, and LockPoisoned is raised in whoever acquires
/// it next, until somebody repairs it; `on_kill="release"` frees it instead.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(super) struct Lock {
    /// Made by `__init__`.
    lock: OnceLock<sync::Lock>,
    reentrant: bool,
}

/// A reentrant lock like threading.RLock, whose waits can be cancelled, and which its holder
/// gives back however it ends.
///
/// Its holder is a task, or a thread outside any; it may acquire it again, and releases it as
/// often. `name` and `on_kill` are as with Lock.
#[pyclass(frozen, weakref, subclass, extends = Lock, module = "desist")]
pub(super) struct RLock;

impl Lock {
    pub(super) fn core(&self) -> &sync::Lock {
        self.lock.get_or_init(|| self.made(None, OnKill::default()))
    }

    const fn blank(reentrant: bool) -> Self {
        Self {
            lock: OnceLock::new(),
            reentrant,
        }
    }

    fn made(&self, name: Option<&str>, on_kill: OnKill) -> sync::Lock {
        if self.reentrant {
            sync::Lock::reentrant(name.unwrap_or("rlock"), on_kill)
        } else {
            sync::Lock::new(name.unwrap_or("lock"), on_kill)
        }
    }

    pub(super) fn take(&self, py: Python<'_>, acquire: Acquire, until: Time) -> PyResult<bool> {
        checkpoint(py)?;
        let taken = match self.core().try_acquire(acquire) {
            Ok(false) => self.wait_and_take(py, acquire, until),
            done => done,
        };
        taken.map_err(|failure| error::from_lock(py, failure))
    }

    /// Whoever is told that the lock is free takes the interpreter first, and then the lock: held
    /// by one who waits for the interpreter, it would be of use to nobody.
    #[cold]
    fn wait_and_take(
        &self,
        py: Python<'_>,
        acquire: Acquire,
        until: Time,
    ) -> Result<bool, LockError> {
        let mut acquiring = self.core().acquiring(acquire);
        let taken = perform(py, &mut acquiring, until);
        taken.map(|taken| taken.is_some())
    }

    /// Release it: at the end of a `block`, or by a call. `unwinding` is the exception that is on
    /// its way, or None.
    ///
    /// Unwinding runs the blocks' ends before the task's boundary is reached, so it is here that a
    /// lock learns that its holder was stopped inside.
    fn give_up(&self, py: Python<'_>, block: bool, unwinding: &Bound<'_, PyAny>) -> PyResult<()> {
        if unwinding.is_none() {
            let released = if block {
                self.core().end_block()
            } else {
                self.core().release()
            };
            released.map_err(not_held)?;
            return error::check_kill(py);
        }
        let killed = scope::current_task().filter(|_| unwinding.is_instance_of::<Killed>());
        let stack = || hard_stop::stack_of(py, &PyErr::from_value(unwinding.clone()));
        let death = killed
            .as_ref()
            .and_then(|task| Some((task, task.death(self.core().entry(), stack())?)));
        let released = match (death, block) {
            (Some((task, death)), _) => {
                let released = if block {
                    self.core().end_block_killed(death)
                } else {
                    self.core().release_killed(death)
                };
                released.map(|poisoned| {
                    task.amend(|record| {
                        let names = if poisoned {
                            &mut record.swept.poisoned
                        } else {
                            &mut record.swept.released
                        };
                        names.push(self.core().name().clone());
                    });
                })
            }
            (None, true) => self.core().end_block(),
            (None, false) => self.core().release(),
        };
        match released {
            // A suspended generator may be thrown away long after its task has ended.
            Err(ReleaseError::Swept) => Ok(()),
            released => released.map_err(not_held),
        }
    }
}

fn what_on_kill(given: &str) -> PyResult<OnKill> {
    match given {
        "poison" => Ok(OnKill::Poison),
        "release" => Ok(OnKill::Release),
        other => {
            let message = format!("on_kill must be \"poison\" or \"release\", not {other:?}");
            Err(PyValueError::new_err(message))
        }
    }
}

fn not_held(failure: ReleaseError) -> PyErr {
    PyRuntimeError::new_err(failure.to_string())
}

#[pymethods]
impl Lock {
    // Lenient, for subclasses may take what arguments they like.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(*, name=None, on_kill='poison')")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::blank(false)
    }

    #[pyo3(signature = (*, name = None, on_kill: "Literal['poison', 'release']" = "poison"))]
    fn __init__(&self, name: Option<&str>, on_kill: &str) -> PyResult<()> {
        let on_kill = what_on_kill(on_kill)?;
        self.lock.get_or_init(|| self.made(name, on_kill));
        Ok(())
    }

    /// Acquire it: wait as long as it takes, or for `timeout` seconds, or not at all. True if it
    /// is held now.
    ///
    /// A blocking call is a checkpoint even if the lock is free: Cancelled and Killed mean that
    /// it is not held. LockPoisoned: the last holder was killed inside. OwnerLost: the holder was
    /// given up and may still be inside. Held until it is released, or the task ends.
    #[pyo3(signature = (blocking: "bool" = true, timeout = None))]
    pub(super) fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = hint::truth)] blocking: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        // As in threading, -1 is how to say "no timeout" by value.
        let timeout = timeout.filter(|timeout| !timeout.eq(-1).unwrap_or(false));
        if !blocking {
            if timeout.is_some() {
                return Err(PyValueError::new_err(
                    "can't specify a timeout for a non-blocking call",
                ));
            }
            return self
                .core()
                .try_acquire(Acquire::Task)
                .map_err(|failure| error::from_lock(py, failure));
        }
        let timeout = seconds::optional_span(timeout, "timeout")?;
        if timeout.is_some_and(|timeout| timeout.as_secs() > seconds::LONGEST_TIMEOUT) {
            return Err(PyOverflowError::new_err(
                "timeout value is too large; leave it out to wait without bound",
            ));
        }
        self.take(py, Acquire::Task, seconds::until(timeout))
    }

    /// Release it, from any thread. RuntimeError if nobody holds it.
    ///
    /// A kill that the lock held off is raised here.
    pub(super) fn release(&self, py: Python<'_>) -> PyResult<()> {
        // In a `finally` it is the handled exception that is on its way through. Nobody else can
        // be the victim of a kill than a task that has been told of one.
        let told = |task: Arc<Task>| task.death(self.core().entry(), None).is_some();
        if scope::current_task().is_some_and(told) {
            let handled = py
                .import(intern!(py, "sys"))?
                .call_method0(intern!(py, "exc_info"))?
                .get_item(1)?;
            return self.give_up(py, false, &handled);
        }
        self.give_up(py, false, py.None().bind(py))
    }

    /// Held by anyone?
    fn locked(&self) -> bool {
        self.core().is_locked()
    }

    /// Its last holder was killed, or given up, inside.
    #[getter]
    fn poisoned(&self) -> bool {
        self.core().is_poisoned()
    }

    /// For reports.
    #[getter]
    fn name(&self) -> &str {
        self.core().name()
    }

    /// A block that acquires the lock although it is poisoned, to set right what it protects.
    ///
    /// At the end of the block the lock is good again; if the block raises, it stays poisoned.
    fn repair(slf: Py<Self>) -> Repair {
        Repair { lock: slf }
    }

    pub(super) fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.take(py, Acquire::Block, Time::NEVER)
    }

    #[pyo3(signature = (_type, value, _traceback, /))]
    pub(super) fn __exit__(
        &self,
        py: Python<'_>,
        _type: GivenClass<'_, '_>,
        value: GivenException<'_, '_>,
        _traceback: GivenTraceback<'_, '_>,
    ) -> PyResult<()> {
        self.give_up(py, true, &value)
    }

    /// In a forked child, as threading.Lock has it: nobody holds it any more.
    fn _at_fork_reinit(&self) {
        self.core().reinitialize();
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let lock = slf.get().core();
        let state = match (lock.is_poisoned(), lock.is_locked()) {
            (true, _) => "poisoned",
            (false, true) => "locked",
            (false, false) => "unlocked",
        };
        let (class, name) = (slf.get_type().qualname()?, lock.name().as_ref());
        let count = if lock.is_reentrant() {
            format!(" count={}", lock.count())
        } else {
            String::new()
        };
        Ok(format!(
            "<{state} desist.{class} object {name:?}{count} at {:p}>",
            slf.as_ptr()
        ))
    }
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(*, name=None, on_kill='poison')")]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Lock::blank(true)).add_subclass(Self)
    }

    #[pyo3(signature = (*, name = None, on_kill: "Literal['poison', 'release']" = "poison"))]
    fn __init__(slf: &Bound<'_, Self>, name: Option<&str>, on_kill: &str) -> PyResult<()> {
        slf.as_super().get().__init__(name, on_kill)
    }

    // What threading.Condition, and whatever else of the standard library takes a lock, asks of
    // one that is reentrant.

    /// Does the calling code hold it?
    fn _is_owned(slf: &Bound<'_, Self>) -> bool {
        slf.as_super().get().core().is_mine()
    }

    /// How often does the calling code hold it?
    fn _recursion_count(slf: &Bound<'_, Self>) -> usize {
        slf.as_super().get().core().depth()
    }

    /// Release it however often it is held; for _acquire_restore().
    fn _release_save(slf: &Bound<'_, Self>) -> PyResult<Released> {
        Released::take(slf.as_super().get().core())
    }

    /// Hold it as before _release_save().
    fn _acquire_restore(slf: &Bound<'_, Self>, released: &Released) -> PyResult<()> {
        released.give_back(slf.py(), slf.as_super().get().core())
    }
}

/// What RLock._release_save() returns.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Released {
    holds: sync::Holds,
}

impl Released {
    pub(super) fn take(lock: &sync::Lock) -> PyResult<Self> {
        let holds = lock.let_go().map_err(not_held)?;
        Ok(Self { holds })
    }

    pub(super) fn give_back(&self, py: Python<'_>, lock: &sync::Lock) -> PyResult<()> {
        let holds = self.holds.clone();
        detached(py, || lock.take_back(holds)).map_err(|failure| error::from_lock(py, failure))
    }
}

/// The block that Lock.repair() makes.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Repair {
    lock: Py<Lock>,
}

#[pymethods]
impl Repair {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        self.lock
            .get()
            .take(py, Acquire::Repair, Time::NEVER)
            .map(|_| ())
    }

    #[pyo3(signature = (r#type, value, traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        r#type: GivenClass<'_, '_>,
        value: GivenException<'_, '_>,
        traceback: GivenTraceback<'_, '_>,
    ) -> PyResult<()> {
        if r#type.is_none() {
            self.lock.get().core().mark_consistent();
        }
        self.lock.get().__exit__(py, r#type, value, traceback)
    }
}
