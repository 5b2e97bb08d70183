//! The arguments of a queue's constructor and of `put()`, checked.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{RetryPolicy, time_limit};
use crate::clock::Time;
use crate::python::binding::seconds::{self, Seconds};
use crate::work::{PutOptions, QueueOptions};

/// The options of a queue, checked.
pub(super) fn of_queue(
    retry: Option<&Py<RetryPolicy>>,
    maxsize: isize,
    lease_timeout: Option<Seconds<'_, '_>>,
) -> PyResult<QueueOptions> {
    let lease_timeout = seconds::optional_span(lease_timeout, "lease_timeout")?;
    if lease_timeout.is_some_and(|timeout| timeout.is_zero()) {
        let message =
            "lease_timeout must be more than 0; None means that a lease lasts until it is settled";
        return Err(PyValueError::new_err(message));
    }
    Ok(QueueOptions {
        retry: retry.map_or_else(Default::default, |retry| retry.get().inner()),
        maxsize: usize::try_from(maxsize).unwrap_or(0), // as queue.Queue takes it
        lease_timeout,
    })
}

/// An item's options, and until when its `put()` may wait for room.
pub(super) struct PutArguments {
    pub(super) options: PutOptions,
    pub(super) until: Time,
}

/// The arguments of `put()` and `submit()`, checked.
pub(super) fn of_put(
    key: Option<&str>,
    priority: i64,
    delay: Option<Seconds<'_, '_>>,
    expires: Option<Seconds<'_, '_>>,
    limit: Option<Seconds<'_, '_>>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<PutArguments> {
    Ok(PutArguments {
        options: PutOptions {
            key: key.map(Into::into),
            priority,
            delay: seconds::optional_span(delay, "delay")?.unwrap_or(Duration::ZERO),
            expires: seconds::optional_span(expires, "expires")?,
            time_limit: time_limit::checked(limit)?,
        },
        until: seconds::until(seconds::optional_span(timeout, "timeout")?),
    })
}
