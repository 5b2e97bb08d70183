//! Numbers of seconds: conversion in both directions, with errors that name the argument.
//!
//! A number of seconds is what `float()` makes a number of without parsing text: an int, a float, and
//! any object with `__float__` or `__index__`. Exceptions of these methods are raised as they are. A
//! span is rounded up to nanoseconds, never down. Infinity is `Duration::MAX` or `Time::NEVER`, and so
//! is any number beyond the clock, an int that no float can hold included.

use std::time::Duration;

use crate::python::binding::interned::interned;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::clock::Time;
use crate::python::binding::lazy_arg::{Float, LazyArg};

/// A number of seconds, as given.
pub(in crate::python) type Seconds<'a, 'py> = LazyArg<'a, 'py, Float>;

/// A real number, with an error that names the parameter.
pub(in crate::python) fn number(value: Seconds<'_, '_>, what: &str) -> PyResult<f64> {
    not_nan(real(&value, what)?, what)
}

/// `from_py_with` for arguments that have a number as their default: a function for each, by its name.
macro_rules! of_arguments {
    ($($name:ident),+; or_none: $($optional:ident),+) => {
        $(
            pub(in crate::python) fn $name(value: &Bound<'_, PyAny>) -> PyResult<f64> {
                real(value, stringify!($name))
            }
        )+
        $(
            pub(in crate::python) fn $optional(value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
                (!value.is_none()).then(|| real(value, stringify!($optional))).transpose()
            }
        )+
    };
}
pub(in crate::python) mod argument {
    use super::{Bound, PyAny, PyAnyMethods, PyResult, real};

    of_arguments!(
        cooperative, defer, backoff, max_backoff;
        or_none: at_wait, async_exc, trace, sigterm, sigkill
    );
}

/// The value as a float.
fn real(value: &Bound<'_, PyAny>, what: &str) -> PyResult<f64> {
    let failure = match value.extract::<f64>() {
        Ok(seconds) => return Ok(seconds),
        Err(failure) => failure,
    };
    let py = value.py();
    // Looked up on the class, as the conversion does.
    let kind = value.get_type();
    let has_index = kind.hasattr(interned!(py, "__index__"))?;
    if has_index && failure.is_instance_of::<PyOverflowError>(py) {
        let whole = value.call_method0(interned!(py, "__index__"))?;
        let infinity = if whole.lt(0)? {
            f64::NEG_INFINITY
        } else {
            f64::INFINITY
        };
        return Ok(infinity);
    }
    if has_index || kind.hasattr(interned!(py, "__float__"))? {
        return Err(failure); // of its own method
    }
    let advice = if kind.hasattr(interned!(py, "total_seconds"))? {
        ": give its total_seconds()"
    } else {
        ""
    };
    let kind = kind.name()?;
    Err(PyTypeError::new_err(format!(
        "{what} must be a number of seconds, not {kind}{advice}"
    )))
}

fn not_nan(seconds: f64, what: &str) -> PyResult<f64> {
    if seconds.is_nan() {
        return Err(PyValueError::new_err(format!(
            "{what} must not be NaN; give a number of seconds"
        )));
    }
    Ok(seconds)
}

/// How long: not negative; infinity is `Duration::MAX`.
pub(in crate::python) fn span(value: Seconds<'_, '_>, what: &str) -> PyResult<Duration> {
    checked_span(number(value, what)?, what)
}

pub(in crate::python) fn checked_span(seconds: f64, what: &str) -> PyResult<Duration> {
    let seconds = not_nan(seconds, what)?;
    if seconds < 0.0 {
        return Err(PyValueError::new_err(format!(
            "{what} must not be negative, but is {seconds:?}"
        )));
    }
    Ok(rounded_up(seconds))
}

/// Never shorter than the argument, as in `time.sleep`: code that sleeps for the rest of a span, and
/// then compares the clock, must not find that a part of a nanosecond is missing.
fn rounded_up(seconds: f64) -> Duration {
    let nearest = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let short = nearest.as_secs_f64() < seconds;
    nearest.saturating_add(Duration::from_nanos(short.into()))
}

/// As [`span`]; `None` means that there is no bound.
pub(in crate::python) fn optional_span(
    value: Option<Seconds<'_, '_>>,
    what: &str,
) -> PyResult<Option<Duration>> {
    value.map(|value| span(value, what)).transpose()
}

/// When a wait ends, as the classes of `threading` take it: a negative timeout has passed.
pub(in crate::python) fn patience(timeout: Option<Seconds<'_, '_>>) -> PyResult<Time> {
    timeout.map_or(Ok(Time::NEVER), |timeout| {
        Ok(after(number(timeout, "timeout")?))
    })
}

/// The instant this many seconds from now; now, if that is negative.
pub(in crate::python) fn after(seconds: f64) -> Time {
    Time::after(rounded_up(seconds.max(0.0)))
}

/// An instant of `current_time()`; infinity is never, the past is allowed.
pub(in crate::python) fn instant(value: Seconds<'_, '_>, what: &str) -> PyResult<Time> {
    let seconds = number(value, what)?.max(0.0);
    Ok(Time::from_nanos(0) + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// The instant at which a wait of this length times out.
pub(in crate::python) fn until(timeout: Option<Duration>) -> Time {
    timeout.map_or(Time::NEVER, Time::after)
}

/// A time in seconds of `current_time()`.
#[allow(clippy::cast_precision_loss)] // as exact as time.monotonic() is
pub(in crate::python) fn from_time(time: Time) -> f64 {
    if time.is_never() {
        f64::INFINITY
    } else {
        time.as_nanos() as f64 / 1e9
    }
}

/// The longest timeout of a lock, in seconds: the value of `threading.TIMEOUT_MAX` on Linux.
pub(in crate::python) const LONGEST_TIMEOUT: u64 = 9_223_372_036;
