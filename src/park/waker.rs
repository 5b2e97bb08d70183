//! Sleeping until a file descriptor is ready, or somebody wakes: the thread polls the descriptors
//! and, beside them, one of its own that wakers write to.
#![allow(unsafe_code)] // system calls on descriptors that are owned here, or named by the caller

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;

use crate::clock::Time;
use crate::fork;

/// What a descriptor is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Data, a connection, the end of the stream or an error can be read.
    Readable,
    /// Something can be written, or an error be read.
    Writable,
}

/// A pipe that a sleeping thread polls; kept by the thread from one wait to the next.
#[derive(Debug)]
pub(super) struct Waker {
    /// Both ends do not block. The writing one is the same on systems with event descriptors.
    reader: File,
    writer: Option<File>,
    /// A child process shares the descriptors, and would take its parent's wake-ups.
    generation: u32,
}

thread_local! {
    static CACHED: Cell<Option<Arc<Waker>>> = const { Cell::new(None) };
}

impl Waker {
    /// The calling thread's.
    pub(super) fn get() -> io::Result<Arc<Waker>> {
        let kept = CACHED.try_with(Cell::take).ok().flatten();
        match kept.filter(|kept| kept.generation == fork::generation()) {
            Some(kept) => Ok(kept),
            None => Waker::new().map(Arc::new),
        }
    }

    /// Keep it for the next wait.
    pub(super) fn keep(waker: Arc<Waker>) {
        let _ = CACHED.try_with(|kept| kept.set(Some(waker)));
    }

    #[cfg(target_os = "linux")]
    fn new() -> io::Result<Waker> {
        // SAFETY: no preconditions.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(Waker {
            // SAFETY: it was just opened, and nobody else knows it.
            reader: unsafe { File::from_raw_fd(fd) },
            writer: None,
            generation: fork::generation(),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> io::Result<Waker> {
        let (reader, writer) = io::pipe()?;
        for end in [reader.as_raw_fd(), writer.as_raw_fd()] {
            // SAFETY: an open descriptor; the flag takes an integer.
            if unsafe { libc::fcntl(end, libc::F_SETFL, libc::O_NONBLOCK) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Waker {
            reader: File::from(std::os::fd::OwnedFd::from(reader)),
            writer: Some(File::from(std::os::fd::OwnedFd::from(writer))),
            generation: fork::generation(),
        })
    }

    /// Make the poll return, now or when it comes.
    pub(super) fn wake(&self) {
        // Full means that it rings already.
        let _ = self
            .writer
            .as_ref()
            .unwrap_or(&self.reader)
            .write(&1u64.to_ne_bytes());
    }

    /// Sleep until it rings, a descriptor is ready, or `until`.
    pub(super) fn sleep(&self, interests: &[(RawFd, Readiness)], until: Time) -> Slept {
        let mut polled = vec![entry(self.reader.as_raw_fd(), Readiness::Readable)];
        polled.extend(interests.iter().map(|(fd, what)| entry(*fd, *what)));
        let result = poll(&mut polled, until);
        if result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            return Slept::Signalled;
        }
        if polled[0].revents != 0 {
            let _ = (&self.reader).read(&mut [0; 8]);
        }
        // An error counts as ready: whoever then uses the descriptor is told what it is.
        match polled[1..].iter().position(|entry| entry.revents != 0) {
            Some(index) => Slept::Ready(index),
            None => Slept::Woken,
        }
    }
}

/// How a sleep ended.
pub(super) enum Slept {
    /// By a ring, the clock, or nothing at all.
    Woken,
    Signalled,
    /// The interest of this index is ready, or its descriptor is bad.
    Ready(usize),
}

/// Is it ready now? A bad descriptor is an error.
pub(crate) fn is_ready(fd: RawFd, what: Readiness) -> io::Result<bool> {
    let mut polled = [entry(fd, what)];
    loop {
        if poll(&mut polled, Time::from_nanos(0)) >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
    if polled[0].revents & libc::POLLNVAL != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(polled[0].revents != 0)
}

/// Is one of them ready now, or its descriptor bad?
pub(crate) fn any_ready(interests: &[(RawFd, Readiness)]) -> bool {
    interests
        .iter()
        .any(|(fd, what)| is_ready(*fd, *what).unwrap_or(true))
}

/// Wait for one of them, in real time.
pub(crate) fn wait_for_any(interests: &[(RawFd, Readiness)]) {
    let entries = interests.iter().map(|(fd, what)| entry(*fd, *what));
    poll(&mut entries.collect::<Vec<_>>(), Time::NEVER);
}

/// What [`poll`] is given of it.
fn entry(fd: RawFd, what: Readiness) -> libc::pollfd {
    let events = match what {
        Readiness::Readable => libc::POLLIN,
        Readiness::Writable => libc::POLLOUT,
    };
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

#[cfg(target_os = "linux")]
fn poll(polled: &mut [libc::pollfd], until: Time) -> i32 {
    let left = until - Time::now();
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(left.subsec_nanos()),
    };
    let timeout = if until.is_never() {
        std::ptr::null()
    } else {
        &raw const timeout
    };
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: `polled` is valid for its length, and `timeout` is null or valid, during the call.
    unsafe { libc::ppoll(polled.as_mut_ptr(), count, timeout, std::ptr::null()) }
}

#[cfg(not(target_os = "linux"))]
fn poll(polled: &mut [libc::pollfd], until: Time) -> i32 {
    let timeout = if until.is_never() {
        -1
    } else {
        // Rounded up: never early.
        let left = (until - Time::now()).as_nanos().div_ceil(1_000_000);
        i32::try_from(left).unwrap_or(i32::MAX)
    };
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: `polled` is valid for its length during the call.
    unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) }
}
