//! `StopPolicy` and `KillReport`.

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::error::Stop;
use crate::item::ItemId;
use crate::python::binding::host::detached;
use crate::python::binding::seconds;
use crate::python::error;
use crate::stop::{self, KillError, KillOutcome};
use crate::task;

/// How far a kill goes, and how long each rung of the ladder takes, in seconds.
///
/// `cooperative`: asked to stop. `at_wait`: Killed is raised at desist waits, through shields.
/// `async_exc`: Killed is raised anywhere in the body, again and again. `trace`: it is raised in
/// front of every step of the body, so that code which swallows everything cannot go on; only now
/// is it traced, and other threads that run the same code are slower meanwhile. None: that rung is
/// not allowed. In a worker process, instead of these: `sigterm`, SIGTERM raises Killed there, again and
/// again; `sigkill`, may SIGKILL end it after that? `defer`: so long a held desist lock holds a kill off; later it is struck inside, and the
/// lock poisoned. `abandon`: in the end, may it be given up while it still runs? A kill takes at
/// most the sum, and as long as clean-up and commit blocks that are open hold it off.
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
        sigterm: "float | None" = 2.0,
        sigkill = true,
    ))]
    #[allow(clippy::too_many_arguments)] // named ones, each a line of the ladder
    fn new(
        cooperative: f64,
        at_wait: Option<f64>,
        async_exc: Option<f64>,
        trace: Option<f64>,
        defer: f64,
        abandon: bool,
        sigterm: Option<f64>,
        sigkill: bool,
    ) -> PyResult<Self> {
        let rung = |seconds: Option<f64>, name| {
            seconds
                .map(|span| seconds::checked_span(span, name))
                .transpose()
        };
        Ok(Self {
            policy: stop::StopPolicy {
                cooperative: seconds::checked_span(cooperative, "cooperative")?,
                at_wait: rung(at_wait, "at_wait")?,
                async_exc: rung(async_exc, "async_exc")?,
                trace: rung(trace, "trace")?,
                sigterm: rung(sigterm, "sigterm")?,
                sigkill,
                defer: seconds::checked_span(defer, "defer")?,
                abandon,
            },
        })
    }

    /// Seconds to stop when asked.
    #[getter]
    fn cooperative(&self) -> f64 {
        self.policy.cooperative.as_secs_f64()
    }

    /// Seconds in which Killed is raised at desist waits; None: it is not.
    #[getter]
    fn at_wait(&self) -> Option<f64> {
        self.policy.at_wait.map(|span| span.as_secs_f64())
    }

    /// Seconds in which Killed is raised anywhere; None: it is not.
    #[getter]
    fn async_exc(&self) -> Option<f64> {
        self.policy.async_exc.map(|span| span.as_secs_f64())
    }

    /// Seconds in which Killed is raised in front of every step; None: it is not.
    #[getter]
    fn trace(&self) -> Option<f64> {
        self.policy.trace.map(|span| span.as_secs_f64())
    }

    /// Seconds in which a worker process is told to terminate; None: it is not.
    #[getter]
    fn sigterm(&self) -> Option<f64> {
        self.policy.sigterm.map(|span| span.as_secs_f64())
    }

    /// May a worker process be killed after that?
    #[getter]
    fn sigkill(&self) -> bool {
        self.policy.sigkill
    }

    /// Seconds for which a held desist lock holds a kill off.
    #[getter]
    fn defer(&self) -> f64 {
        self.policy.defer.as_secs_f64()
    }

    /// May it be given up in the end?
    #[getter]
    fn abandon(&self) -> bool {
        self.policy.abandon
    }

    fn __repr__(&self) -> String {
        let truth = |flag| if flag { "True" } else { "False" };
        let rung =
            |seconds: Option<f64>| seconds.map_or("None".into(), |seconds| format!("{seconds:?}"));
        format!(
            "StopPolicy(cooperative={:?}, at_wait={}, async_exc={}, trace={}, defer={:?}, abandon={}, sigterm={}, sigkill={})",
            self.cooperative(),
            rung(self.at_wait()),
            rung(self.async_exc()),
            rung(self.trace()),
            self.defer(),
            truth(self.abandon()),
            rung(self.sigterm()),
            truth(self.sigkill()),
        )
    }
}

/// Kill, with the interpreter let go; if it is urgent, when the first strike has been made: a thread
/// that never lets go by itself would have this one wait for its switch interval. Callbacks that hear
/// of the cancellation may let it go, as other code of Python's may.
pub(in crate::python) fn kill(
    py: Python<'_>,
    task: &Arc<task::Task>,
    reason: Option<&str>,
    policy: Option<&StopPolicy>,
    on_abandon: &mut (dyn FnMut() + Send),
) -> PyResult<KillReport> {
    let policy = policy.map_or_else(stop::StopPolicy::default, |policy| policy.policy);
    let mut climb = || {
        let mut kill = stop::Kill::new(task, reason.map(Into::into), &policy)?;
        let urgent = kill.is_urgent();
        if urgent {
            kill.begin();
        }
        detached(py, || {
            if !urgent {
                kill.begin();
            }
            kill.climb(&mut *on_abandon)
        })
    };
    climb().map(KillReport::from).map_err(|refusal| match refusal {
        KillError::Itself => PyRuntimeError::new_err(
            "a thread cannot kill itself; to end it, return from its function or raise an exception",
        ),
        KillError::NotStarted => PyRuntimeError::new_err("cannot kill a thread before it is started; start it first"),
        KillError::Interrupted => error::from_stop(py, Stop::Interrupted),
    })
}

/// What a kill came to.
#[pyclass(frozen, module = "desist")]
pub(in crate::python) struct KillReport {
    report: stop::KillReport,
}

impl From<stop::KillReport> for KillReport {
    fn from(report: stop::KillReport) -> Self {
        Self { report }
    }
}

impl KillReport {
    /// Nothing was running.
    pub(in crate::python) fn nothing() -> Self {
        let report = stop::KillReport {
            outcome: Some(KillOutcome::AlreadyDone),
            elapsed: std::time::Duration::ZERO,
            released: Vec::new(),
            poisoned: Vec::new(),
            requeued: Vec::new(),
            fenced: Vec::new(),
            stack: None,
            blocked: None,
        };
        Self { report }
    }
}

fn strings(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[pymethods]
impl KillReport {
    /// The rung of the ladder at which it ended; None: it has not, and was not to be given up.
    #[getter]
    fn outcome(&self) -> Option<KillOutcome> {
        self.report.outcome
    }

    /// Seconds from the call to the end, when everything had been given back.
    #[getter]
    fn elapsed(&self) -> f64 {
        self.report.elapsed.as_secs_f64()
    }

    /// Names of the locks that were given back.
    #[getter]
    fn released(&self) -> Vec<String> {
        strings(&self.report.released)
    }

    /// Names of the locks that are poisoned now, or lost with who was given up.
    #[getter]
    fn poisoned(&self) -> Vec<String> {
        strings(&self.report.poisoned)
    }

    /// Ids of the items that will be leased again.
    #[getter]
    fn requeued(&self) -> Vec<ItemId> {
        self.report.requeued.clone()
    }

    /// Ids of the items whose old lease is fenced off, for its worker was given up.
    #[getter]
    fn fenced(&self) -> Vec<ItemId> {
        self.report.fenced.clone()
    }

    /// Where it was stopped, or where it is now; None if that is not known.
    #[getter]
    fn stack(&self) -> Option<&str> {
        self.report.stack.as_deref()
    }

    /// The last call of `stack`, if it is one into code that is not Python's and that has not come
    /// back in all the time in which force was used: no rung can end that. Else None.
    #[getter]
    fn blocked(&self) -> Option<&str> {
        self.report.blocked.as_deref()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let outcome = self.outcome().into_pyobject(py)?;
        Ok(format!(
            "<KillReport {outcome} after {:.3} s>",
            self.elapsed()
        ))
    }
}
