//! The few calls of the operating system that several modules need: waiting for descriptors, and
//! for the end of another process.
//!
//! Descriptors that users name come as plain numbers, for a caller's descriptor may be closed by
//! another thread at any time. [`poll`] and [`peer`] are the only places that turn such a number into a
//! borrowed descriptor, and neither does anything with a bad one but to report that.
#![allow(unsafe_code)] // borrows of descriptors that are known by their numbers

use std::io;
#[cfg(target_os = "linux")]
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

pub(crate) use rustix::event::PollFlags;
use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::net::SocketAddrUnix;

use crate::clock::Time;

/// The longest timeout of one system call: where there is no `ppoll`, milliseconds are counted in
/// an `int`. Every caller looks at the clock again when the call returns.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// Sleep until an event of `interests` has come, a signal handler has run, or `until` at the
/// latest. Returns the events of each interest, in order.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] if a signal ended the sleep. A descriptor that is not open is no
/// error but an event, [`PollFlags::NVAL`]; a negative number is an error.
pub(crate) fn poll(
    interests: impl IntoIterator<Item = (RawFd, PollFlags)>,
    until: Time,
) -> io::Result<Vec<PollFlags>> {
    let entry = |(fd, events): (RawFd, PollFlags)| {
        if fd < 0 {
            return Err(bad_descriptor());
        }
        // SAFETY: the number is not -1. It is given to poll() alone, which reports a descriptor
        // that is not open, and neither reads from, writes to nor closes any.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(PollFd::from_borrowed_fd(fd, events))
    };
    let mut entries: Vec<PollFd<'_>> =
        interests.into_iter().map(entry).collect::<Result<_, _>>()?;
    let timeout = (!until.is_never()).then(|| timespec((until - Time::now()).min(LONGEST)));
    rustix::event::poll(&mut entries, timeout.as_ref())?;
    Ok(entries.iter().map(PollFd::revents).collect())
}

/// The other end of a connected socket, in words; `None` if the other end has no name.
///
/// # Errors
/// It is no connected socket.
#[cfg(target_os = "linux")]
pub(crate) fn peer(descriptor: RawFd) -> io::Result<Option<String>> {
    if descriptor < 0 {
        return Err(bad_descriptor());
    }
    // SAFETY: the number is not -1. It is given to getpeername() alone, which reports a descriptor that is
    // not open.
    let fd = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let peer = rustix::net::getpeername(fd)?;
    let Some(peer) = peer else { return Ok(None) };
    if let Ok(address) = SocketAddr::try_from(peer.clone()) {
        return Ok(Some(address.to_string()));
    }
    let unix = SocketAddrUnix::try_from(peer)?;
    let path = unix.path().map(|path| path.to_string_lossy().into_owned());
    Ok(path)
}

/// A length of time as the kernel takes it.
pub(crate) fn timespec(length: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: length.subsec_nanos().into(),
    }
}

/// The error of a descriptor that is not open.
pub(crate) fn bad_descriptor() -> io::Error {
    Errno::BADF.into()
}

/// A descriptor that becomes readable when the process ends. `None`: there is no such process, or
/// the system has no such descriptors.
#[cfg(all(target_os = "linux", any(feature = "python", feature = "file")))]
pub(crate) fn open_process(pid: i32) -> Option<std::os::fd::OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = Pid::from_raw(pid.max(0))?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

#[cfg(all(not(target_os = "linux"), any(feature = "python", feature = "file")))]
pub(crate) fn open_process(_pid: i32) -> Option<std::os::fd::OwnedFd> {
    None
}
