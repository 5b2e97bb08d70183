//! A token in the headers of a message: `CancelToken.to_headers()`, `CancelSource.from_headers()`.
//!
//! | header             | has                                                            |
//! |--------------------|----------------------------------------------------------------|
//! | `Desist-Timeout`   | the seconds that are left until the deadline, as a decimal number |
//! | `Desist-Cancelled` | the reason of a cancellation, percent-encoded; it may be empty |
//!
//! Guarantees:
//! 1. Time is sent as what is left, never as an instant: the clocks of two hosts are not compared (I38). The
//!    deadline of the receiver is later than that of the sender by the time that the message took.
//! 2. A token without a deadline, and not cancelled, has no header.
//! 3. A deadline that has passed is sent as such, with nothing left; the receiver's source is then cancelled
//!    by a deadline, too. Any other cancellation arrives with the kind `Remote`.

use std::fmt::Write as _;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::token::CancelToken;

const TIMEOUT: &str = "Desist-Timeout";
const CANCELLED: &str = "Desist-Cancelled";

/// What the headers of a message say.
#[derive(Default)]
pub(super) struct Received {
    /// The time that is left.
    pub(super) timeout: Option<Duration>,
    /// The cancellation of the sender's token.
    pub(super) cause: Option<Cause>,
}

/// The headers of a token.
pub(super) fn of<'py>(py: Python<'py>, token: &CancelToken) -> PyResult<Bound<'py, PyDict>> {
    let headers = PyDict::new(py);
    let deadline = token.deadline();
    if !deadline.is_never() {
        let left = deadline - Time::now();
        let text = format!("{}.{:06}", left.as_secs(), left.subsec_micros());
        headers.set_item(TIMEOUT, text)?;
    }
    if let Some(cause) = token.cause() {
        if cause.kind == CauseKind::Deadline {
            headers.set_item(TIMEOUT, "0.000000")?;
        } else {
            headers.set_item(CANCELLED, quoted(cause.reason.as_deref().unwrap_or("")))?;
        }
    }
    Ok(headers)
}

/// Reads the headers of a message, whose names may be in any case. Those of the standard library's messages
/// are no mapping, but have `items()`.
pub(super) fn received(headers: &Bound<'_, PyAny>) -> PyResult<Received> {
    let mut received = Received::default();
    let Some(items) = headers.getattr_opt("items")? else {
        let kind = headers.get_type().qualname()?;
        return Err(PyTypeError::new_err(format!(
            "headers must be a mapping of names to values, not {kind}"
        )));
    };
    for item in items.call0()?.try_iter()? {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item?.extract()?;
        let name: String = text(&name, "name")?;
        if name.eq_ignore_ascii_case(TIMEOUT) {
            received.timeout = Some(seconds(&text(&value, TIMEOUT)?)?);
        } else if name.eq_ignore_ascii_case(CANCELLED) {
            let reason = unquoted(&text(&value, CANCELLED)?);
            let reason = (!reason.is_empty()).then(|| reason.into());
            received.cause = Some(Cause::remote(reason));
        }
    }
    Ok(received)
}

fn text(value: &Bound<'_, PyAny>, what: &str) -> PyResult<String> {
    value.extract().map_err(|_| {
        PyTypeError::new_err(format!(
            "the names and values of headers must be strings; decode the bytes of {what}"
        ))
    })
}

/// A number of seconds in digits, with at most one point.
fn seconds(value: &str) -> PyResult<Duration> {
    let value = value.trim();
    let is_number = !value.is_empty() && value.bytes().all(|byte| b"0123456789.".contains(&byte));
    let seconds = is_number.then(|| value.parse().ok()).flatten();
    let seconds = seconds.ok_or_else(|| {
        PyValueError::new_err(format!(
            "the header {TIMEOUT} must be a number of seconds such as 2.5, not {value:?}"
        ))
    })?;
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Percent-encoded: a header has few characters, and no line breaks.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => {
                quoted.push(byte.into());
            }
            _ => _ = write!(quoted, "%{byte:02X}"),
        }
    }
    quoted
}

/// The text that was quoted. What is not percent-encoded stands for itself.
fn unquoted(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.trim().as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        if let Some((high, low)) = code {
            bytes.push(high << 4 | low);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The value of a hexadecimal digit.
fn digit(byte: u8) -> Option<u8> {
    let value = char::from(byte).to_digit(16)?;
    u8::try_from(value).ok()
}
