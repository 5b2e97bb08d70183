//! Numbers of seconds: conversion in both directions, with errors that name the argument.
//!
//! A span is rounded up to nanoseconds, never down. Infinity is `Duration::MAX` or `Time::NEVER`.

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::clock::Time;
use crate::python::binding::lazy_arg::{Float, LazyArg};

/// A number of seconds, as given.
pub(in crate::python) type Seconds<'a, 'py> = LazyArg<'a, 'py, Float>;

/// A real number, with an error that names the parameter.
fn number(value: Seconds<'_, '_>, what: &str) -> PyResult<f64> {
    let Ok(seconds) = value.extract::<f64>() else {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "{what} must be a number of seconds, not {kind}"
        )));
    };
    not_nan(seconds, what)
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
            "{what} must not be negative, but is {seconds}"
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
    let seconds = timeout
        .map(|timeout| number(timeout, "timeout"))
        .transpose()?;
    let span = seconds.map(|seconds| checked_span(seconds.max(0.0), "timeout"));
    Ok(until(span.transpose()?))
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
