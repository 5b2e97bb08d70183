//! The enums of `desist._enums`, which are written in Python: a Rust value becomes the member of the
//! same name, and the member the value.
//!
//! `test_all.py` compares the members with the variants; a member that is missing raises
//! AttributeError at its first use.

use pyo3::exceptions::PyValueError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::type_hint_identifier;

use crate::cause::CauseKind;
use crate::stop::KillOutcome;

/// Where a task is in its life. The core's `Progress` has no word for how a body ended; this has.
pub(in crate::python) enum TaskState {
    Pending,
    Running,
    Cancelling,
    Done,
    Failed,
    Cancelled,
    Killed,
    Abandoned,
}

fn member<'py>(py: Python<'py>, class: &str, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static ENUMS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let enums = ENUMS.get_or_try_init(py, || py.import("desist._enums").map(Bound::unbind))?;
    enums.bind(py).getattr(class)?.getattr(name)
}

/// `members!(Rust as "Python", Variant is "MEMBER", ...)`: the conversion of a Rust enum, both ways.
macro_rules! members {
    ($rust:ty as $class:literal, $($variant:ident is $name:literal),+ $(,)?) => {
        impl<'py> IntoPyObject<'py> for $rust {
            type Target = PyAny;
            type Output = Bound<'py, PyAny>;
            type Error = PyErr;
            const OUTPUT_TYPE: PyStaticExpr = type_hint_identifier!("desist._enums", $class);

            fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
                let name = match self {
                    $(Self::$variant => $name,)+
                };
                member(py, $class, name)
            }
        }

        impl FromPyObject<'_, '_> for $rust {
            type Error = PyErr;
            const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("desist._enums", $class);

            fn extract(given: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
                let name: String = given.getattr("name")?.extract()?;
                match name.as_str() {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(PyValueError::new_err(format!("{name} is no member of {}", $class))),
                }
            }
        }
    };
}

members!(
    CauseKind as "CauseKind",
    Explicit is "EXPLICIT",
    Deadline is "DEADLINE",
    SiblingFailed is "SIBLING_FAILED",
    ScopeExited is "SCOPE_EXITED",
    Shutdown is "SHUTDOWN",
    Forked is "FORKED",
    Remote is "REMOTE",
);

members!(
    KillOutcome as "KillOutcome",
    AlreadyDone is "ALREADY_DONE",
    Cooperative is "COOPERATIVE",
    AtWait is "AT_WAIT",
    AsyncExc is "ASYNC_EXC",
    Trace is "TRACE",
    Sigterm is "SIGTERM",
    Sigkill is "SIGKILL",
    Abandoned is "ABANDONED",
);

members!(
    TaskState as "TaskState",
    Pending is "PENDING",
    Running is "RUNNING",
    Cancelling is "CANCELLING",
    Done is "DONE",
    Failed is "FAILED",
    Cancelled is "CANCELLED",
    Killed is "KILLED",
    Abandoned is "ABANDONED",
);
