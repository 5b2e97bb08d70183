//! Sleeping until a file descriptor is ready, or somebody wakes: the thread polls the descriptors
//! and, beside them, one of its own that wakers write to.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::clock::Time;
use crate::fork;
use crate::sys::{self, PollFlags};

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
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker {
            reader: File::from(fd),
            writer: None,
            generation: fork::generation(),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> io::Result<Waker> {
        use rustix::fs::{OFlags, fcntl_setfl};
        use std::os::fd::OwnedFd;
        let (reader, writer) = io::pipe()?;
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        fcntl_setfl(&writer, OFlags::NONBLOCK)?;
        Ok(Waker {
            reader: File::from(OwnedFd::from(reader)),
            writer: Some(File::from(OwnedFd::from(writer))),
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
        let own = (self.reader.as_raw_fd(), PollFlags::IN);
        let theirs = interests.iter().copied().map(interest);
        let polled = match sys::poll([own].into_iter().chain(theirs), until) {
            Ok(polled) => polled,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Slept::Signalled,
            Err(_) => return Slept::Woken,
        };
        if !polled[0].is_empty() {
            let _ = (&self.reader).read(&mut [0; 8]);
        }
        // An error counts as ready: whoever then uses the descriptor is told what it is.
        match polled[1..].iter().position(|events| !events.is_empty()) {
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
    let events = loop {
        match sys::poll([interest((fd, what))], Time::from_nanos(0)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            polled => break polled?[0],
        }
    };
    if events.contains(PollFlags::NVAL) {
        return Err(sys::bad_descriptor());
    }
    Ok(!events.is_empty())
}

/// Is one of them ready now, or its descriptor bad?
pub(crate) fn any_ready(interests: &[(RawFd, Readiness)]) -> bool {
    interests
        .iter()
        .any(|(fd, what)| is_ready(*fd, *what).unwrap_or(true))
}

/// Wait for one of them, in real time.
pub(crate) fn wait_for_any(interests: &[(RawFd, Readiness)]) {
    let _ = sys::poll(interests.iter().copied().map(interest), Time::NEVER);
}

/// What [`sys::poll`] is given of it.
fn interest((fd, what): (RawFd, Readiness)) -> (RawFd, PollFlags) {
    let events = match what {
        Readiness::Readable => PollFlags::IN,
        Readiness::Writable => PollFlags::OUT,
    };
    (fd, events)
}
