//! Calls of foreign code that end in cancelled scopes: what this system can do, and the switches.

use pyo3::prelude::*;

use crate::foreign::{self, Unavailable};
use crate::python::hard_stop::in_place;
use crate::scope;

/// Whether blocking calls of foreign code are ended in cancelled scopes, and if not, why.
#[pyclass(frozen, get_all, module = "desist")]
pub(super) struct ForeignStatus {
    /// Are they ended?
    available: bool,
    /// Why not; None if they are.
    reason: Option<String>,
    /// How many were ended in this process so far.
    ended: u64,
    /// The modules that called into code which took the error for another try, again and again: their calls
    /// were left alone.
    left_alone: Vec<String>,
}

#[pymethods]
impl ForeignStatus {
    fn __repr__(&self) -> String {
        let what = match &self.reason {
            None => "available".to_owned(),
            Some(reason) => format!("not available: {reason}"),
        };
        format!("<ForeignStatus: {what}; {} calls ended>", self.ended)
    }
}

/// Tell whether blocking calls of foreign code are ended in cancelled scopes.
///
/// They are on Linux (x86-64 and aarch64), in an interpreter with the GIL. Never blocks.
#[pyfunction]
pub(super) fn foreign_status() -> ForeignStatus {
    let reason = if !in_place::is_possible() {
        Some("it needs CPython with the GIL".to_owned())
    } else if !in_place::is_on() {
        Some("set_foreign(False) was called".to_owned())
    } else {
        foreign::status()
            .err()
            .map(|reason: Unavailable| reason.to_string())
    };
    ForeignStatus {
        available: reason.is_none(),
        reason,
        ended: foreign::ended_calls(),
        left_alone: in_place::modules_left_alone(),
    }
}

/// Switch the ending of foreign calls on or off, for all scopes of the process; what it was before.
///
/// It is on at the start. Off: a blocking call of foreign code in a cancelled scope goes on, as
/// without desist. Never blocks.
#[pyfunction]
pub(super) fn set_foreign(on: bool) -> bool {
    in_place::set_on(on)
}

/// The calls of foreign code in the innermost scope, and in those that are opened inside it, go on when it is cancelled.
#[pyfunction]
pub(super) fn leave_calls_alone() {
    scope::leave_calls_alone();
}
