//! `CancelCause`: an immutable view of the core's cause.

use pyo3::prelude::*;

use crate::cause::{Cause, CauseKind};
use crate::python::binding::seconds;

/// Why code was cancelled. Immutable; the first cause recorded is final.
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
