//! `StopPolicy`, `ProcessStopPolicy`, `KillReport`, `RungReport`, and `BegunKill`, a kill on its way.
//!
//! A kill is begun on the calling thread, with the interpreter attached if it is urgent, and goes up
//! the ladder detached, on that thread or on another. This file only converts; the ladder
//! is [`crate::stop`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cause::CauseKind;
use crate::error::Stop;
use crate::item::ItemId;
use crate::python::binding::host::detached;
use crate::python::binding::pickling::{self, Reduced};
use crate::python::binding::seconds;
use crate::python::error;
use crate::python::hard_stop::mask::{Mask, unmasked};
use crate::python::op::Visited;
use crate::stop::{self, AnyStopPolicy, KillError, KillOutcome};
use crate::task;
use crate::testing;

fn rung(seconds: Option<f64>, name: &str) -> PyResult<Option<Duration>> {
    seconds
        .map(|span| seconds::checked_span(span, name))
        .transpose()
}

fn shown(seconds: Option<f64>) -> String {
    seconds.map_or("None".into(), |seconds| format!("{seconds:?}"))
}

fn truth(flag: bool) -> &'static str {
    if flag { "True" } else { "False" }
}

/// How long a kill of code on a thread stays on each rung of the ladder, in seconds.
///
/// A kill takes at most the sum, and as long as open clean-up and commit blocks defer it. A rung
/// that is None, or 0, is left out.
///
/// Args:
///     cooperative: Seconds to end after a cancellation; 0: the next rung comes at once.
///     at_wait: Seconds in which Killed is raised at desist waits, through shields.
///     async_exc: Seconds in which Killed is raised anywhere in the code, again and again.
///     trace: Seconds in which Killed is raised at every instruction (before CPython 3.12: every line), so
///         that code that swallows it cannot go on. Other threads that run the traced code are slower.
///     defer: Seconds that held desist locks delay the kill; afterwards it is delivered, and they
///         are poisoned. Seconds, too, that code of threading, queue, logging, concurrent.futures and
///         the import system delays it, and of modules named to protect_modules().
///     abandon: Whether the thread is abandoned, while it still runs, when no rung has ended it.
#[pyclass(frozen, eq, module = "desist")]
#[derive(Clone, PartialEq)]
pub(in crate::python) struct StopPolicy {
    policy: stop::StopPolicy,
}

impl StopPolicy {
    pub(in crate::python) fn core(&self) -> stop::StopPolicy {
        self.policy
    }
}

#[pymethods]
impl StopPolicy {
    #[new]
    #[pyo3(signature = (
        *,
        cooperative: "float" = 5.0,
        at_wait: "float | None" = 1.0,
        async_exc: "float | None" = 1.0,
        trace: "float | None" = 1.0,
        defer: "float" = 1.0,
        abandon = true,
    ))]
    fn new(
        #[pyo3(from_py_with = seconds::argument::cooperative)] cooperative: f64,
        #[pyo3(from_py_with = seconds::argument::at_wait)] at_wait: Option<f64>,
        #[pyo3(from_py_with = seconds::argument::async_exc)] async_exc: Option<f64>,
        #[pyo3(from_py_with = seconds::argument::trace)] trace: Option<f64>,
        #[pyo3(from_py_with = seconds::argument::defer)] defer: f64,
        abandon: bool,
    ) -> PyResult<Self> {
        Ok(Self {
            policy: stop::StopPolicy {
                cooperative: seconds::checked_span(cooperative, "cooperative")?,
                at_wait: rung(at_wait, "at_wait")?,
                async_exc: rung(async_exc, "async_exc")?,
                trace: rung(trace, "trace")?,
                defer: seconds::checked_span(defer, "defer")?,
                abandon,
            },
        })
    }

    /// Seconds to end after a cancellation; 0: the next rung comes at once.
    #[getter]
    fn cooperative(&self) -> f64 {
        self.policy.cooperative.as_secs_f64()
    }

    /// Seconds in which Killed is raised at desist waits; None: it is not.
    #[getter]
    fn at_wait(&self) -> Option<f64> {
        self.policy.at_wait.map(|span| span.as_secs_f64())
    }

    /// Seconds in which Killed is raised anywhere in the code; None: it is not.
    #[getter]
    fn async_exc(&self) -> Option<f64> {
        self.policy.async_exc.map(|span| span.as_secs_f64())
    }

    /// Seconds in which Killed is raised at every line; None: it is not.
    #[getter]
    fn trace(&self) -> Option<f64> {
        self.policy.trace.map(|span| span.as_secs_f64())
    }

    /// Seconds that held desist locks, and modules with locks of their own, delay the kill.
    #[getter]
    fn defer(&self) -> f64 {
        self.policy.defer.as_secs_f64()
    }

    /// Is the thread abandoned when no rung has ended it?
    #[getter]
    fn abandon(&self) -> bool {
        self.policy.abandon
    }

    fn __repr__(&self) -> String {
        format!(
            "StopPolicy(cooperative={:?}, at_wait={}, async_exc={}, trace={}, defer={:?}, abandon={})",
            self.cooperative(),
            shown(self.at_wait()),
            shown(self.async_exc()),
            shown(self.trace()),
            self.defer(),
            truth(self.abandon()),
        )
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let fields = PyDict::new(py);
        fields.set_item("cooperative", self.cooperative())?;
        fields.set_item("at_wait", self.at_wait())?;
        fields.set_item("async_exc", self.async_exc())?;
        fields.set_item("trace", self.trace())?;
        fields.set_item("defer", self.defer())?;
        fields.set_item("abandon", self.abandon())?;
        pickling::by_constructor::<Self>(py, fields)
    }
}

/// How long a kill of code in a worker process stays on each rung of the ladder, in seconds.
///
/// A kill takes at most the sum, and as long as an open commit block defers SIGKILL. A rung that is
/// None, or 0, is left out.
///
/// Args:
///     cooperative: Seconds to end after a cancellation; 0: the next rung comes at once.
///     sigterm: Seconds in which SIGTERM is sent, again and again; it raises Killed in the process,
///         which then ends.
///     sigkill: Seconds in which SIGKILL is sent, to the process and to all that it has started.
///     defer: Seconds that desist locks, held in the process, delay the Killed of SIGTERM;
///         afterwards it is raised, and they are poisoned.
///     abandon: Whether the process is abandoned, while it still runs, when no rung has ended it.
#[pyclass(frozen, eq, module = "desist")]
#[derive(Clone, PartialEq)]
pub(in crate::python) struct ProcessStopPolicy {
    policy: stop::ProcessStopPolicy,
}

#[pymethods]
impl ProcessStopPolicy {
    #[new]
    #[pyo3(signature = (
        *,
        cooperative: "float" = 5.0,
        sigterm: "float | None" = 2.0,
        sigkill: "float | None" = 5.0,
        defer: "float" = 1.0,
        abandon = true,
    ))]
    fn new(
        #[pyo3(from_py_with = seconds::argument::cooperative)] cooperative: f64,
        #[pyo3(from_py_with = seconds::argument::sigterm)] sigterm: Option<f64>,
        #[pyo3(from_py_with = seconds::argument::sigkill)] sigkill: Option<f64>,
        #[pyo3(from_py_with = seconds::argument::defer)] defer: f64,
        abandon: bool,
    ) -> PyResult<Self> {
        Ok(Self {
            policy: stop::ProcessStopPolicy {
                cooperative: seconds::checked_span(cooperative, "cooperative")?,
                sigterm: rung(sigterm, "sigterm")?,
                sigkill: rung(sigkill, "sigkill")?,
                defer: seconds::checked_span(defer, "defer")?,
                abandon,
            },
        })
    }

    /// Seconds to end after a cancellation; 0: the next rung comes at once.
    #[getter]
    fn cooperative(&self) -> f64 {
        self.policy.cooperative.as_secs_f64()
    }

    /// Seconds in which SIGTERM is sent, again and again; None: it is not.
    #[getter]
    fn sigterm(&self) -> Option<f64> {
        self.policy.sigterm.map(|span| span.as_secs_f64())
    }

    /// Seconds in which SIGKILL is sent, again and again; None: it is not.
    #[getter]
    fn sigkill(&self) -> Option<f64> {
        self.policy.sigkill.map(|span| span.as_secs_f64())
    }

    /// Seconds that desist locks, held in the process, delay the Killed of SIGTERM.
    #[getter]
    fn defer(&self) -> f64 {
        self.policy.defer.as_secs_f64()
    }

    /// Is the process abandoned when no rung has ended it?
    #[getter]
    fn abandon(&self) -> bool {
        self.policy.abandon
    }

    fn __repr__(&self) -> String {
        format!(
            "ProcessStopPolicy(cooperative={:?}, sigterm={}, sigkill={}, defer={:?}, abandon={})",
            self.cooperative(),
            shown(self.sigterm()),
            shown(self.sigkill()),
            self.defer(),
            truth(self.abandon()),
        )
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let fields = PyDict::new(py);
        fields.set_item("cooperative", self.cooperative())?;
        fields.set_item("sigterm", self.sigterm())?;
        fields.set_item("sigkill", self.sigkill())?;
        fields.set_item("defer", self.defer())?;
        fields.set_item("abandon", self.abandon())?;
        pickling::by_constructor::<Self>(py, fields)
    }
}

/// The policy of a kill whose body may be on a thread or in a process.
pub(in crate::python) fn any_policy(policy: &Bound<'_, PyAny>) -> PyResult<AnyStopPolicy> {
    if let Ok(of_thread) = policy.cast::<StopPolicy>() {
        return Ok((&of_thread.get().policy).into());
    }
    if let Ok(of_process) = policy.cast::<ProcessStopPolicy>() {
        return Ok((&of_process.get().policy).into());
    }
    let given = policy.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "policy must be a StopPolicy or a ProcessStopPolicy, not {given}"
    )))
}

fn refusal(py: Python<'_>, error: KillError) -> PyErr {
    match error {
        KillError::Itself => PyRuntimeError::new_err(
            "a thread cannot kill itself; to end it, return from its function or raise an exception",
        ),
        KillError::NotStarted => {
            PyRuntimeError::new_err("cannot kill a thread before it is started; start it first")
        }
        KillError::WrongPolicy => PyTypeError::new_err(
            "code in a worker process is killed with a ProcessStopPolicy, code on a thread with a StopPolicy",
        ),
        KillError::Interrupted => error::from_stop(py, Stop::Interrupted),
    }
}

/// The hook for an abandoned task.
pub(in crate::python) trait OnAbandon: Send {
    /// Called detached, and before the task's waiters are woken.
    fn abandoned(&mut self);

    /// Shows the collector the objects that it has.
    fn traverse(&self, visit: &PyVisit<'_>) -> Visited;
}

/// A kill that has begun: its task is cancelled, and an urgent one has been delivered once.
///
/// finish() continues with the further rungs, on this thread or another. Without finish() the kill
/// stops here.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct BegunKill {
    /// Taken by the one call of finish(). None from the beginning: no task was there to be killed.
    /// Locked by attached threads only.
    kill: Mutex<Option<(stop::Kill, Box<dyn OnAbandon>)>>,
}

impl BegunKill {
    /// Cancels the task. An urgent kill is delivered before the interpreter is released: a thread that
    /// never releases it would have this one wait for the switch interval. Callbacks of the
    /// cancellation may release it, as all Python code may. In a simulation this thread waits for its
    /// turn afterwards, and the thread that has the turn needs the interpreter.
    pub(in crate::python) fn new(
        py: Python<'_>,
        task: &Arc<task::Task>,
        (kind, reason): (CauseKind, Option<&str>),
        policy: AnyStopPolicy,
        on_abandon: impl OnAbandon + 'static,
    ) -> PyResult<Self> {
        let is_simulated = testing::current().is_some();
        let new = || stop::Kill::new(task, kind, reason.map(Into::into), policy);
        let kill = if is_simulated {
            detached(py, new)
        } else {
            new()
        };
        let mut kill = kill.map_err(|error| refusal(py, error))?;
        if kill.is_urgent() && !is_simulated {
            kill.begin();
        } else {
            detached(py, || kill.begin());
        }
        Ok(Self {
            kill: Mutex::new(Some((kill, Box::new(on_abandon)))),
        })
    }

    /// The kill of a worker that has no work.
    pub(in crate::python) fn of_nothing() -> Self {
        Self {
            kill: Mutex::new(None),
        }
    }
}

#[pymethods]
impl BegunKill {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        match self.kill.try_lock().as_deref() {
            Some(Some((_, on_abandon))) => on_abandon.traverse(&visit),
            _ => Ok(()),
        }
    }

    /// Go from rung to rung until the task is over or abandoned. A second call finds it over.
    pub(in crate::python) fn finish(&self, py: Python<'_>) -> PyResult<KillReport> {
        let Some((kill, mut on_abandon)) = self.kill.lock().take() else {
            return Ok(stop::KillReport::already_done().into());
        };
        // The code that finishes the kill may run with kills masked; the wait must not.
        unmasked(|| detached(py, || kill.run(&mut || on_abandon.abandoned())))
            .map(KillReport::from)
            .map_err(|error| refusal(py, error))
    }

    /// finish() of several, side by side, with kills of the calling thread deferred for as long as that
    /// takes. What a signal handler raises meanwhile makes them use force at once, and is raised
    /// when all of them are finished.
    #[staticmethod]
    #[allow(clippy::needless_pass_by_value)] // as arguments come
    fn finish_all(py: Python<'_>, kills: Vec<Py<BegunKill>>) -> PyResult<Vec<KillReport>> {
        let taken = kills
            .iter()
            .filter_map(|begun| begun.get().kill.lock().take());
        let (kills, hooks): (Vec<_>, Vec<_>) =
            taken.map(|(kill, hook)| (kill, Mutex::new(hook))).unzip();
        let (ended, raised) = finish_all(py, kills, &|index| hooks[index].lock().abandoned());
        if let Some(raised) = raised {
            return Err(raised);
        }
        let reports = ended.into_iter().map(|ended| ended.map(KillReport::from));
        reports
            .collect::<Result<_, _>>()
            .map_err(|error| refusal(py, error))
    }
}

/// Finishes kills that have begun, side by side; a kill of the calling thread is deferred for as long as
/// that takes. The second part of the result is what a signal handler has raised meanwhile.
pub(in crate::python) fn finish_all(
    py: Python<'_>,
    kills: Vec<stop::Kill>,
    on_abandon: &(dyn Fn(usize) + Sync),
) -> (Vec<Result<stop::KillReport, KillError>>, Option<PyErr>) {
    let longest = kills.iter().map(stop::Kill::longest).max();
    let _mask = Mask::open(longest.unwrap_or_default());
    let finished = detached(py, || stop::all::finish_all(kills, on_abandon));
    let raised = finished
        .interrupted
        .then(|| error::from_stop(py, Stop::Interrupted));
    (finished.reports, raised)
}

/// One rung that a kill has tried.
#[pyclass(frozen, eq, module = "desist")]
#[derive(PartialEq)]
pub(in crate::python) struct RungReport {
    report: stop::RungReport,
}

#[pymethods]
impl RungReport {
    /// Which rung it was, by the outcome that it leads to.
    #[getter]
    fn rung(&self) -> KillOutcome {
        self.report.rung
    }

    /// Seconds that the kill stayed on the rung.
    #[getter]
    fn seconds(&self) -> f64 {
        self.report.elapsed.as_secs_f64()
    }

    /// Seconds that the policy lets it stay there, not counting those in which it was deferred.
    #[getter]
    fn limit(&self) -> f64 {
        self.report.limit.as_secs_f64()
    }

    /// How often the rung was tried: a cancellation, an exception to be raised, a signal.
    #[getter]
    fn attempts(&self) -> u32 {
        self.report.attempts
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let rung = self.rung().into_pyobject(py)?;
        Ok(format!(
            "<RungReport {rung}: {} in {:.3} of {:?} s>",
            match self.attempts() {
                1 => "1 attempt".into(),
                attempts => format!("{attempts} attempts"),
            },
            self.seconds(),
            self.limit(),
        ))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let stop::RungReport {
            rung,
            elapsed,
            limit,
            attempts,
        } = self.report;
        let fields = (
            rung,
            pickling::nanos(elapsed),
            pickling::nanos(limit),
            attempts,
        );
        pickling::by_function(py, "restore_rung", fields, None)
    }
}

/// For pickles: the record of a rung with these fields; the times in nanoseconds.
#[pyfunction]
#[pyo3(signature = (rung, elapsed, limit, attempts, /) -> "RungReport")]
pub(in crate::python) fn restore_rung(
    rung: KillOutcome,
    elapsed: u128,
    limit: u128,
    attempts: u32,
) -> RungReport {
    let report = stop::RungReport {
        rung,
        elapsed: pickling::span(elapsed),
        limit: pickling::span(limit),
        attempts,
    };
    RungReport { report }
}

/// How a kill ended, and its effects.
#[pyclass(frozen, module = "desist")]
pub(in crate::python) struct KillReport {
    report: stop::KillReport,
}

impl From<stop::KillReport> for KillReport {
    fn from(report: stop::KillReport) -> Self {
        Self { report }
    }
}

fn strings(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[pymethods]
impl KillReport {
    /// The report where there was nothing to kill.
    #[staticmethod]
    fn already_done() -> Self {
        stop::KillReport::already_done().into()
    }

    /// The last rung that reached the code; None: it still runs, and the policy does not abandon it.
    #[getter]
    fn outcome(&self) -> Option<KillOutcome> {
        self.report.outcome
    }

    /// Seconds from the call until the code had ended and all its holds were released.
    #[getter]
    fn elapsed(&self) -> f64 {
        self.report.elapsed.as_secs_f64()
    }

    /// The rungs that were tried, in order; none if there was nothing to kill. The code ended
    /// during the last one, unless `outcome` is ABANDONED or None. `outcome` may be a softer rung:
    /// that one's Killed reached the code, which then took longer to end than the rung's time.
    #[getter]
    fn rungs(&self) -> Vec<RungReport> {
        let rungs = self.report.rungs.iter();
        rungs.map(|report| RungReport { report: *report }).collect()
    }

    /// Names of the locks that were released for it.
    #[getter]
    fn released(&self) -> Vec<String> {
        strings(&self.report.released)
    }

    /// Names of the locks that are poisoned now, or lost with an abandoned thread.
    #[getter]
    fn poisoned(&self) -> Vec<String> {
        strings(&self.report.poisoned)
    }

    /// Names of the modules with locks of their own, as of threading or logging, inside whose code
    /// Killed had to be raised, because the policy's `defer` had passed: they may have left one held.
    #[getter]
    fn interrupted(&self) -> Vec<String> {
        strings(&self.report.interrupted)
    }

    /// Ids of the items that will be leased again.
    #[getter]
    fn requeued(&self) -> Vec<ItemId> {
        self.report.requeued.clone()
    }

    /// Ids of the items whose old lease is fenced, because its worker was abandoned.
    #[getter]
    fn fenced(&self) -> Vec<ItemId> {
        self.report.fenced.clone()
    }

    /// Where the code was stopped, or where it is now; None if that is not known.
    #[getter]
    fn stack(&self) -> Option<&str> {
        self.report.stack.as_deref()
    }

    /// The last call of `stack`, if it is a call into C that has not returned while force was used:
    /// no rung on a thread can end it. Else None.
    #[getter]
    fn blocked(&self) -> Option<&str> {
        self.report.blocked.as_deref()
    }

    /// The system call that the thread was in when the kill began, with the descriptor and the peer if it has
    /// any, such as "recvfrom of descriptor 5 (127.0.0.1:6379)"; "futex" is a wait for a lock. None: it ran, or
    /// the system does not tell.
    #[getter]
    fn waited_in(&self) -> Option<&str> {
        self.report.waited_in.as_deref()
    }

    /// The blocking calls of foreign code that were ended, in the same words, in order.
    #[getter]
    fn ended_calls(&self) -> Vec<String> {
        strings(&self.report.ended_calls)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let outcome = self.outcome().into_pyobject(py)?;
        Ok(format!(
            "<KillReport {outcome} after {:.3} s>",
            self.elapsed()
        ))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let names = (
            self.released(),
            self.poisoned(),
            self.interrupted(),
            self.requeued(),
            self.fenced(),
        );
        let fields = (
            self.outcome(),
            pickling::nanos(self.report.elapsed),
            self.rungs(),
            names,
            (self.stack(), self.blocked(), self.waited_in()),
            self.ended_calls(),
        );
        pickling::by_function(py, "restore_report", fields, None)
    }
}

/// The names of released and of poisoned locks, and of interrupted modules, the ids of requeued and of
/// fenced items.
type Effects = (
    Vec<String>,
    Vec<String>,
    Vec<String>,
    Vec<ItemId>,
    Vec<ItemId>,
);

/// For pickles: the report with these fields; `elapsed` in nanoseconds.
#[pyfunction]
#[pyo3(signature = (outcome, elapsed, rungs, effects, places, ended_calls, /) -> "KillReport")]
pub(in crate::python) fn restore_report(
    outcome: Option<KillOutcome>,
    elapsed: u128,
    rungs: Vec<Bound<'_, RungReport>>,
    effects: Effects,
    places: (Option<String>, Option<String>, Option<String>),
    ended_calls: Vec<String>,
) -> KillReport {
    let (released, poisoned, interrupted, requeued, fenced) = effects;
    let (stack, blocked, waited_in) = places;
    let shared = |names: Vec<String>| names.into_iter().map(Into::into).collect();
    let report = stop::KillReport {
        outcome,
        elapsed: pickling::span(elapsed),
        rungs: rungs.into_iter().map(|rung| rung.get().report).collect(),
        released: shared(released),
        poisoned: shared(poisoned),
        interrupted: shared(interrupted),
        requeued,
        fenced,
        stack: stack.as_deref().map(Into::into),
        blocked: blocked.map(Into::into),
        waited_in: waited_in.map(Into::into),
        ended_calls: shared(ended_calls),
    };
    report.into()
}
