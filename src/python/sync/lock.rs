//! `Lock` and `RLock`: the core's lock with the signatures of `threading`.
//!
//! A lock is acquired in two steps: the waiter is notified that the lock is free, attaches to the
//! interpreter, and then takes the lock. A lock handed over to a thread that still waits for the
//! interpreter would stay locked for that time.
//!
//! A lock is released by `__exit__` or `release()`, which tell the core whether a kill of the holder
//! is unwinding (`unwinding`): the core then poisons the lock. A holder whose `__exit__` never runs is
//! found in the core's ledger at its task's end.

pub(in crate::python) mod guard;

use std::sync::OnceLock;

use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::clock::Time;
use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::runnable::{check_function, check_result};
use crate::python::binding::seconds::Seconds;
use crate::python::binding::{lazy_arg, seconds};
use crate::python::error;
use crate::python::op::{Op, Operation, Started, Visited, Yield, adapted, always_true};
use crate::python::sync::lock::guard::LockGuard;
use crate::python::sync::unwinding::{KilledHolder, unwinding};
use crate::python::wait::{checkpoint, perform};
use crate::sync::{self, Acquire, LockError, OnKill, ReleaseError};

/// A lock like threading.Lock, whose waits can be cancelled, and which is released however its holder
/// ends.
///
/// Not reentrant: use RLock for that. Any thread may release it. `name` is for reports. When its
/// holder is killed inside, the lock is poisoned: acquire() raises LockPoisoned until repair() has
/// restored the data that it protects; with `on_kill="release"` the lock is freed instead.
///
/// When its holder is abandoned, and may still be inside, acquire() raises OwnerLost. A `fenced` lock
/// goes to the next waiter instead, as after a kill; guard() has numbers that distinguish the stale
/// holder from later ones. Only its holder, or the guard, releases a fenced lock.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct Lock {
    /// Written once: by `__init__`, or at the first use if a subclass has not called it.
    lock: OnceLock<sync::Lock>,
    reentrant: bool,
}

/// A reentrant lock like threading.RLock, whose waits can be cancelled, and which is released however
/// its holder ends.
///
/// Its holder is a task, or a thread outside any; it may acquire it again, and releases it as
/// often. `name`, `on_kill` and `fenced` are as with Lock.
#[pyclass(frozen, weakref, subclass, extends = Lock, module = "desist")]
pub(in crate::python) struct RLock;

impl Lock {
    pub(in crate::python) fn core(&self) -> &sync::Lock {
        self.lock
            .get_or_init(|| self.made(None, OnKill::default(), false))
    }

    const fn blank(reentrant: bool) -> Self {
        Self {
            lock: OnceLock::new(),
            reentrant,
        }
    }

    fn made(&self, name: Option<&str>, on_kill: OnKill, fenced: bool) -> sync::Lock {
        let lock = if self.reentrant {
            sync::Lock::reentrant(name.unwrap_or("rlock"), on_kill)
        } else {
            sync::Lock::new(name.unwrap_or("lock"), on_kill)
        };
        if fenced { lock.fenced() } else { lock }
    }

    pub(in crate::python) fn take(
        &self,
        py: Python<'_>,
        acquire: Acquire,
        until: Time,
    ) -> PyResult<bool> {
        take(py, self.core(), acquire, until)
    }

    /// Releases the lock: at the end of a `block`, or by a call. Raises a kill that it deferred.
    fn release_normally(&self, py: Python<'_>, block: bool) -> PyResult<()> {
        let released = if block {
            self.core().end_block()
        } else {
            self.core().release()
        };
        released.map_err(|failure| not_released(py, failure))?;
        error::check_kill(py)
    }

    /// Releases the lock while an exception is unwinding. If that is a kill of the holder, the lock is
    /// poisoned, or freed, as its `on_kill` says.
    fn release_unwinding(
        &self,
        py: Python<'_>,
        block: bool,
        unwinding: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let released = match KilledHolder::of(py, self.core().hold_seq(), unwinding) {
            Some((killing, kill)) => {
                let released = if block {
                    self.core().end_block_killed(kill)
                } else {
                    self.core().release_killed(kill)
                };
                released.map(|poisoned| killing.record(self.core().name(), poisoned))
            }
            None if block => self.core().end_block(),
            None => self.core().release(),
        };
        match released {
            // A suspended generator may be dropped long after its task has ended.
            Err(ReleaseError::Swept | ReleaseError::Fenced) => Ok(()),
            released => released.map_err(|failure| not_released(py, failure)),
        }
    }
}

/// Acquire a lock, waiting until `until` at most (then false). A checkpoint.
pub(in crate::python) fn take(
    py: Python<'_>,
    lock: &sync::Lock,
    acquire: Acquire,
    until: Time,
) -> PyResult<bool> {
    checkpoint(py)?;
    let taken = match lock.try_acquire(acquire) {
        Ok(false) => wait_and_take(py, lock, acquire, until),
        done => done,
    };
    taken.map_err(|failure| error::from_lock(py, failure))
}

/// The waiter attaches before it takes the lock: see the module's header.
#[cold]
fn wait_and_take(
    py: Python<'_>,
    lock: &sync::Lock,
    acquire: Acquire,
    until: Time,
) -> Result<bool, LockError> {
    let mut acquiring = lock.acquire_op(acquire);
    let taken = perform(py, &mut acquiring, until);
    taken.map(|taken| taken.is_some())
}

/// The holder's name, for reports.
pub(in crate::python) fn owner(lock: &sync::Lock) -> Option<String> {
    let name = lock.owner()?;
    Some(name.map_or_else(|| "a thread".into(), |name| name.to_string()))
}

/// For its representation.
pub(in crate::python) fn state(lock: &sync::Lock) -> &'static str {
    match (lock.is_poisoned(), lock.is_locked()) {
        (true, _) => "poisoned",
        (false, true) => "locked",
        (false, false) => "unlocked",
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

fn not_released(py: Python<'_>, failure: ReleaseError) -> PyErr {
    match failure {
        ReleaseError::Fenced => error::fenced(py, &failure),
        _ => PyRuntimeError::new_err(failure.to_string()),
    }
}

/// Acquires the lock for the calling task.
struct AcquireLock(Py<Lock>);

impl Operation for AcquireLock {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(self.0.get().core().acquire_op(Acquire::Task), |()| {
            Yield::Plain
        })
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)
    }

    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(always_true(py))
    }
}

#[pymethods]
impl Lock {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(*, name=None, on_kill='poison', fenced=False)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::blank(false)
    }

    #[pyo3(signature = (*, name = None, on_kill: "Literal['poison', 'release']" = "poison", fenced = false))]
    fn __init__(&self, name: Option<&str>, on_kill: &str, fenced: bool) -> PyResult<()> {
        let on_kill = what_on_kill(on_kill)?;
        self.lock.get_or_init(|| self.made(name, on_kill, fenced));
        Ok(())
    }

    /// Acquire the lock; True if it is held now. It is held until it is released, or the task ends.
    ///
    /// Blocks: until the lock is free, for `timeout` seconds at most; not at all with
    /// `blocking=False`.
    /// On cancel: Cancelled is raised, also if the lock is free, and it is not held.
    /// On timeout: returns False.
    /// On kill: Killed is raised, and the lock is not held.
    ///
    /// Raises:
    ///     LockPoisoned: the last holder was killed inside.
    ///     OwnerLost: the holder was abandoned and may still be inside.
    #[pyo3(signature = (blocking: "bool" = true, timeout = None))]
    pub(in crate::python) fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = lazy_arg::truth)] blocking: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        let timeout = timeout.map(|timeout| seconds::number(timeout, "timeout"));
        // As in threading, -1 is how to say "no timeout" by value.
        let no_timeout = |timeout: &f64| timeout.to_bits() == (-1.0_f64).to_bits();
        let timeout = timeout.transpose()?.filter(|timeout| !no_timeout(timeout));
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
        let timeout = timeout.map(|timeout| seconds::checked_span(timeout, "timeout"));
        let timeout = timeout.transpose()?;
        if timeout.is_some_and(|timeout| timeout.as_secs() > seconds::LONGEST_TIMEOUT) {
            return Err(PyOverflowError::new_err(
                "timeout value is too large; leave it out to wait without bound",
            ));
        }
        self.take(py, Acquire::Task, seconds::until(timeout))
    }

    /// The operation acquire(), for wait_any(); yields True.
    ///
    /// The lock is then held as after acquire().
    #[pyo3(signature = () -> "Op[bool]")]
    fn acquire_op(slf: Py<Self>) -> Op {
        Op::new(AcquireLock(slf))
    }

    /// Release the lock: from any thread, unless it is fenced. Never blocks.
    ///
    /// On kill: a kill that the lock deferred is raised here.
    ///
    /// Raises:
    ///     RuntimeError: the lock is not held.
    ///     Fenced: the calling code has lost this fenced lock, for it was abandoned.
    pub(in crate::python) fn release(&self, py: Python<'_>) -> PyResult<()> {
        match unwinding(py, self.core().hold_seq())? {
            None => self.release_normally(py, false),
            Some(unwinding) => self.release_unwinding(py, false, &unwinding),
        }
    }

    /// Does any thread hold the lock?
    fn locked(&self) -> bool {
        self.core().is_locked()
    }

    /// Was its last holder killed or abandoned inside?
    #[getter]
    fn poisoned(&self) -> bool {
        self.core().is_poisoned()
    }

    /// For reports.
    #[getter]
    fn name(&self) -> &str {
        self.core().name()
    }

    /// A block that holds the lock, with the number of this hold: `with lock.guard() as guard:`.
    ///
    /// Blocks: at its beginning, until the lock is free.
    /// On cancel: Cancelled is raised there; the block has not begun, and the lock is not held.
    /// On kill: as on cancel, with Killed.
    ///
    /// Raises:
    ///     LockPoisoned, OwnerLost: as acquire().
    fn guard(slf: Py<Self>) -> LockGuard {
        LockGuard::new(slf, Acquire::Known)
    }

    /// A block that acquires the lock although it is poisoned, to repair the data that it protects:
    /// `with lock.repair():`. Or give a function to do that, and it is called here, with the lock
    /// held.
    ///
    /// The end of the block clears the poison; if the block raises, the lock stays poisoned. Otherwise
    /// the block is like that of guard().
    ///
    /// Blocks: at its beginning, until the lock is free.
    /// On cancel: Cancelled is raised there; the block has not begun, and the lock is not held.
    /// On kill: as on cancel, with Killed.
    ///
    /// Raises:
    ///     OwnerLost: the last holder was abandoned and may still be inside.
    #[pyo3(signature = (r#fn: "Callable[[], object] | None" = None, /) -> "LockGuard | None")]
    fn repair<'py>(
        slf: &Bound<'py, Self>,
        r#fn: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, LockGuard>>> {
        let py = slf.py();
        let guard = Bound::new(py, LockGuard::new(slf.clone().unbind(), Acquire::Repair))?;
        let Some(repair) = r#fn else {
            return Ok(Some(guard));
        };
        check_function(repair, "the repair", None)?;
        guard.get().enter(py)?;
        match repair
            .call0()
            .and_then(|result| check_result(result, false))
        {
            Ok(_) => guard.get().exit(py, None).map(|()| None),
            Err(raised) => {
                guard.get().exit(py, Some(raised.value(py)))?;
                Err(raised)
            }
        }
    }

    /// The name of the task, or the thread, that holds it, for reports; None if none does.
    fn owner(&self) -> Option<String> {
        owner(self.core())
    }

    pub(in crate::python) fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.take(py, Acquire::Block, Time::NEVER)
    }

    #[pyo3(signature = (_type, value, _traceback, /))]
    pub(in crate::python) fn __exit__(
        &self,
        py: Python<'_>,
        _type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        if value.is_none() {
            self.release_normally(py, true)
        } else {
            self.release_unwinding(py, true, &value)
        }
    }

    /// In a forked child, as in threading.Lock: the lock is free.
    fn _at_fork_reinit(&self) {
        self.core().reinitialize();
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let lock = slf.get().core();
        let state = state(lock);
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
    #[pyo3(signature = (*_args: "object", **_kwargs: "object"), text_signature = "(*, name=None, on_kill='poison', fenced=False)")]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Lock::blank(true)).add_subclass(Self)
    }

    #[pyo3(signature = (*, name = None, on_kill: "Literal['poison', 'release']" = "poison", fenced = false))]
    fn __init__(
        slf: &Bound<'_, Self>,
        name: Option<&str>,
        on_kill: &str,
        fenced: bool,
    ) -> PyResult<()> {
        slf.as_super().get().__init__(name, on_kill, fenced)
    }

    // Called by threading.Condition, and other code of the standard library that takes a reentrant
    // lock.

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

/// The depth of a hold, between RLock._release_save() and _acquire_restore().
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct Released {
    holds: sync::Holds,
}

impl Released {
    pub(in crate::python) fn take(lock: &sync::Lock) -> PyResult<Self> {
        let holds = lock.release_all();
        holds
            .map(|holds| Self { holds })
            .map_err(|failure| PyRuntimeError::new_err(failure.to_string()))
    }

    pub(in crate::python) fn give_back(&self, py: Python<'_>, lock: &sync::Lock) -> PyResult<()> {
        let holds = self.holds.clone();
        detached(py, || lock.reacquire(holds)).map_err(|failure| error::from_lock(py, failure))
    }
}
