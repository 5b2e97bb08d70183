//! `CancelCause`: an immutable view of the core's cause.

use pyo3::prelude::*;

use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::python::binding::pickling::{self, Reduced};
use crate::python::binding::seconds::{self, Seconds};

/// Why code was cancelled. Immutable; the first cause recorded is final.
///
/// It can be pickled. `at` is a time of this machine since its start: it means nothing on another one.
#[pyclass(frozen, module = "desist")]
pub(super) struct CancelCause {
    cause: Cause,
}

#[pymethods]
impl CancelCause {
    /// The cause that cancel(reason) records when the calling thread calls it now.
    #[staticmethod]
    #[pyo3(signature = (reason = None))]
    fn explicit(reason: Option<&str>) -> Self {
        Cause::now(CauseKind::Explicit, reason.map(Into::into), None).into()
    }

    /// The cause of work that ends with its owner, or with the interpreter. `grace`: seconds that its
    /// clean-up zones may take.
    #[staticmethod]
    #[pyo3(signature = (reason = None, *, grace = None))]
    fn shutdown(reason: Option<&str>, grace: Option<Seconds<'_, '_>>) -> PyResult<Self> {
        let grace = seconds::optional_span(grace, "grace")?;
        Ok(Cause::now(CauseKind::Shutdown, reason.map(Into::into), grace).into())
    }

    /// The cause of the end, in a forked child, of work whose thread is in the parent process.
    #[staticmethod]
    fn forked() -> Self {
        Cause::forked().into()
    }

    /// The kind of event.
    #[getter]
    fn kind(&self) -> CauseKind {
        self.cause.kind
    }

    /// The reason that the canceller gave.
    #[getter]
    fn reason(&self) -> Option<&str> {
        self.cause.reason.as_deref()
    }

    /// When, on the clock of `current_time()`: for a deadline the deadline itself, not the moment at
    /// which a thread noticed it.
    #[getter]
    fn at(&self) -> f64 {
        seconds::from_time(self.cause.at)
    }

    /// The name of the cancelling thread; None for a deadline.
    #[getter]
    fn by_thread(&self) -> Option<&str> {
        self.cause.by_thread.as_deref()
    }

    pub(super) fn __str__(&self) -> String {
        self.cause.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<CancelCause: {}>", self.cause)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.cause == other.cause
    }

    fn __hash__(&self) -> u64 {
        self.cause.at.as_nanos()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let cause = &self.cause;
        let fields = (
            cause.kind,
            cause.reason.as_deref(),
            cause.at.as_nanos(),
            cause.grace.map(pickling::nanos),
            cause.by_thread.as_deref(),
        );
        pickling::by_function(py, "restore_cause", fields, None)
    }
}

/// For pickles: the cause with these fields; the times in nanoseconds.
#[pyfunction]
#[pyo3(signature = (kind, reason, at, grace, by_thread, /))]
pub(super) fn restore_cause(
    kind: CauseKind,
    reason: Option<&str>,
    at: u64,
    grace: Option<u128>,
    by_thread: Option<&str>,
) -> CancelCause {
    let cause = Cause {
        kind,
        reason: reason.map(Into::into),
        at: Time::from_nanos(at),
        grace: grace.map(pickling::span),
        by_thread: by_thread.map(Into::into),
    };
    cause.into()
}

impl CancelCause {
    pub(super) fn core(&self) -> &Cause {
        &self.cause
    }
}

impl From<Cause> for CancelCause {
    fn from(cause: Cause) -> Self {
        Self { cause }
    }
}
