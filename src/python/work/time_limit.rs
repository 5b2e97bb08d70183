//! `TimeLimit`: how long an attempt may take, and its end when it takes longer.
//!
//! Guarantees: at the limit the attempt is cancelled, with a deadline as the cause, and then killed
//! rung by rung of the pool's policy; no other attempt is. An attempt without a limit costs nothing.
//!
//! How: the limit is the deadline of a source between the pool's and that of the attempt's task. So a wait
//! of the handler notices it by itself, the timer notices it for all other code, and simulated time
//! counts as well. The kill begins in a callback of that source, on the thread that runs the callbacks
//! of deadlines, and is handed over to the pool, which finishes it on a thread of its own. It is a kill
//! of the attempt's task, which refuses it once the boundary has closed (I22). The callback is
//! registered before the handler is called, and unregistered behind the boundary; one that has begun
//! by then finds the task over.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::clock::Time;
use crate::python::binding::attach::attach;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::task::Task;
use crate::token::{CancelSource, CancelToken, Registration};
use crate::{Cause, CauseKind};

/// The limit of one attempt.
pub(super) struct TimeLimit {
    /// Cancelled at the limit, and with the pool; above the source of the attempt's task.
    source: CancelSource,
    /// From the lease on.
    limit: Duration,
    /// When the limit is over.
    ends: Time,
}

/// The argument `time_limit`, checked.
pub(super) fn checked(time_limit: Option<Seconds<'_, '_>>) -> PyResult<Option<Duration>> {
    let limit = seconds::optional_span(time_limit, "time_limit")?;
    if limit.is_some_and(|limit| limit.is_zero()) {
        let message = "time_limit must be more than 0; math.inf means that there is none";
        return Err(PyValueError::new_err(message));
    }
    Ok(limit)
}

/// The seconds of an argument `time_limit`, checked. For code in Python.
#[pyfunction]
#[pyo3(signature = (time_limit = None))]
pub(in crate::python) fn checked_time_limit(
    time_limit: Option<Seconds<'_, '_>>,
) -> PyResult<Option<f64>> {
    let limit = checked(time_limit)?;
    Ok(limit.map(|limit| match limit {
        Duration::MAX => f64::INFINITY,
        limit => limit.as_secs_f64(),
    }))
}

impl TimeLimit {
    /// An attempt begins that may take this long.
    pub(super) fn begin(limit: Duration, pool: &CancelToken) -> Self {
        let ends = Time::after(limit);
        Self {
            source: pool.child_with_deadline(ends),
            limit,
            ends,
        }
    }

    /// The parent of the attempt's task.
    pub(super) fn token(&self) -> CancelToken {
        self.source.token()
    }

    /// Has `overdue` called when the limit is over, attached. To be unregistered when the attempt has
    /// ended, where it may still run.
    pub(super) fn watch(
        &self,
        overdue: impl FnOnce(Python<'_>) -> PyResult<()> + Send + 'static,
    ) -> Registration {
        self.source.token().on_cancel(move |cause| {
            if cause.kind != CauseKind::Deadline {
                return attach(move |_| drop(overdue)).unwrap_or_default(); // the pool's stop
            }
            attach(move |py| {
                if let Err(raised) = overdue(py) {
                    raised.write_unraisable(py, None);
                }
            });
        })
    }

    /// Is it this limit that has stopped the task?
    pub(super) fn has_stopped(&self, task: &Task) -> bool {
        let is_it = |cause: Cause| cause.kind == CauseKind::Deadline && cause.at == self.ends;
        task.source().token().cause().is_some_and(is_it)
    }

    /// How long the attempt may take.
    pub(super) fn span(&self) -> Duration {
        self.limit
    }
}

/// What the kill's cause and the attempt's failure say about a limit of this length.
pub(super) fn words(limit: Duration) -> String {
    format!("the time limit of {:?} s was over", limit.as_secs_f64())
}

/// The failure of an attempt that has taken longer than this; `raised` has left the handler.
pub(super) fn failure(py: Python<'_>, limit: Duration, raised: Option<PyErr>) -> Py<PyAny> {
    let failure = error::ordinary(py, "AnyTimeoutError", &words(limit));
    failure.set_cause(py, raised);
    failure.into_value(py).into_any()
}
