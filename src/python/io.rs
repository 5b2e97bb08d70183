//! Waiting for file descriptors, for `desist.wait_readable()`, sockets and processes.

use std::os::fd::RawFd;

use crate::python::binding::interned::interned;
use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::io::{self, Readiness, ReadyError};
use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg::LazyFile;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::python::hard_stop::mask::in_wait;

pub(super) fn failed(py: Python<'_>, failure: ReadyError) -> PyErr {
    match failure {
        ReadyError::Stop(stop) => error::from_stop(py, stop),
        ReadyError::Io(failure) => match failure.raw_os_error() {
            // Made from the number: Python then chooses the subclass and the text.
            Some(number) => match text_of(py, number) {
                Ok(text) => PyOSError::new_err((number, text)),
                Err(failure) => failure,
            },
            None => failure.into(),
        },
    }
}

fn text_of(py: Python<'_>, number: i32) -> PyResult<String> {
    py.import(interned!(py, "os"))?
        .call_method1(interned!(py, "strerror"), (number,))?
        .extract()
}

pub(super) fn descriptor(file: LazyFile<'_, '_>) -> PyResult<RawFd> {
    let py = file.py();
    let fd = match file.extract::<RawFd>() {
        Ok(fd) => fd,
        Err(_) if file.hasattr(interned!(py, "fileno"))? => file
            .call_method0(interned!(py, "fileno"))?
            .extract::<RawFd>()?,
        Err(_) => {
            let kind = file.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a file is given as a descriptor or an object with fileno(), not as {kind}"
            )));
        }
    };
    if fd < 0 {
        return Err(PyValueError::new_err(format!(
            "{fd} is no file descriptor: the file is closed, or never was open"
        )));
    }
    Ok(fd)
}

fn wait_ready(
    py: Python<'_>,
    file: LazyFile<'_, '_>,
    what: Readiness,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<bool> {
    let (fd, until) = (descriptor(file)?, seconds::patience(timeout)?);
    in_wait(|| detached(py, || io::wait_ready(fd, what, until)))
        .map_err(|failure| failed(py, failure))
}

/// Wait until the file can be read without blocking (True), or the seconds have passed (False).
///
/// `file`: a descriptor, or an object with fileno(). A new connection, the end of the stream and an
/// error count as readable.
///
/// Blocks: until then.
/// On cancel: Cancelled is raised, also if the file is ready.
/// On timeout: returns False.
/// On kill: Killed is raised.
///
/// Raises:
///     OSError: the descriptor is bad, or notify_closing() was called for it.
#[pyfunction]
#[pyo3(signature = (file, /, timeout = None))]
pub(super) fn wait_readable(
    py: Python<'_>,
    file: LazyFile<'_, '_>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<bool> {
    wait_ready(py, file, Readiness::Readable, timeout)
}

/// Wait until the file can be written without blocking (True), or the seconds have passed (False).
///
/// `file`: as with wait_readable(). An error counts as writable.
///
/// Blocks: until then.
/// On cancel: Cancelled is raised, also if the file is ready.
/// On timeout: returns False.
/// On kill: Killed is raised.
///
/// Raises:
///     OSError: the descriptor is bad, or notify_closing() was called for it.
#[pyfunction]
#[pyo3(signature = (file, /, timeout = None))]
pub(super) fn wait_writable(
    py: Python<'_>,
    file: LazyFile<'_, '_>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<bool> {
    wait_ready(py, file, Readiness::Writable, timeout)
}

/// Wake the threads that wait for the file, which is about to be closed: they get OSError (EBADF).
///
/// The system does not wake the waiting threads, and reuses the number for the next file. desist's own
/// sockets and processes call this themselves.
#[pyfunction]
#[pyo3(signature = (file, /))]
pub(super) fn notify_closing(file: LazyFile<'_, '_>) -> PyResult<()> {
    io::closing(descriptor(file)?);
    Ok(())
}
