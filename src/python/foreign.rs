//! Calls of foreign code that end in cancelled scopes: what this system can do, and the switches.

use pyo3::prelude::*;

use crate::foreign;
use crate::python::hard_stop::in_place;
use crate::scope;

/// Why blocking calls of foreign code are not ended, or None; how many were ended; and the modules whose calls were
/// left alone.
#[pyfunction]
pub(super) fn foreign_state() -> (Option<String>, u64, Vec<String>) {
    let reason = if !in_place::is_possible() {
        Some("it needs CPython with the GIL".to_owned())
    } else if !in_place::is_on() {
        Some("set_foreign(False) was called".to_owned())
    } else {
        foreign::status().err().map(|reason| reason.to_string())
    };
    (
        reason,
        foreign::ended_calls(),
        in_place::modules_left_alone(),
    )
}

/// Switch the ending of foreign calls on or off, for all scopes of the process; what it was before.
///
/// It is on at the start. Off: a blocking call of foreign code in a cancelled scope goes on, as
/// without desist. Never blocks.
#[pyfunction]
pub(super) fn set_foreign(on: bool) -> bool {
    in_place::set_on(on)
}

/// The calls of foreign code in the innermost scope, and in those that are opened inside it, go on when it is
/// cancelled.
#[pyfunction]
pub(super) fn leave_calls_alone() {
    scope::leave_calls_alone();
}

/// Call a function whose blocking calls go on, also in a cancelled scope: they are ended in another way.
#[pyfunction]
#[pyo3(signature = (r#fn: "Callable[[], _T]", /) -> "_T")]
pub(super) fn call_left_alone<'py>(r#fn: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    foreign::with_calls_left_alone(|| r#fn.call0())
}
