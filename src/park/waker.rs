//! Sleeping until a file descriptor is ready, or the waiter is settled.
//!
//! A thread that waits for descriptors cannot sleep on its waiter's word. It polls the descriptors and,
//! beside them, a [`Waker`]: an event descriptor (elsewhere a pipe) to which the settler writes.
//!
//! Guarantees: a wake-up that comes before the poll makes the poll return at once, so none is lost (I12).
//! A wake-up that comes after the wait has ended is seen by the thread's next poll as a spurious one,
//! and [`Waiter::park`](super::Waiter::park) then looks at its own word and sleeps again.
//!
//! Protocol: the waker belongs to one thread, which makes it, polls it, empties it and caches it for its
//! next wait. Other threads only write to it; the descriptors do not block, so no lock is needed.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::clock::Time;
use crate::foreign;
use crate::fork;
use crate::sys::{self, PollFlags};

/// The readiness that a descriptor is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Data, a connection, the end of the stream or an error can be read.
    Readable,
    /// Something can be written, or an error is pending.
    Writable,
}

/// A descriptor that a sleeping thread polls, and settlers write to.
#[derive(Debug)]
pub(super) struct Waker {
    /// Polled and emptied by the owning thread. Does not block.
    reader: File,
    /// Written by settlers; does not block. `None`: an event descriptor, where `reader` is both ends.
    writer: Option<File>,
    /// The process that made it. A forked child shares the open descriptors with its parent and would
    /// take the parent's wake-ups, so it makes a new one.
    generation: u32,
}

thread_local! {
    /// The calling thread's waker between two waits; taken out for the time of a wait.
    static CACHED: Cell<Option<Arc<Waker>>> = const { Cell::new(None) };
}

impl Waker {
    /// The calling thread's cached waker, or a new one. An error: no descriptor is left.
    pub(super) fn get() -> io::Result<Arc<Waker>> {
        let kept = CACHED.try_with(Cell::take).ok().flatten();
        match kept.filter(|kept| kept.generation == fork::generation()) {
            Some(kept) => Ok(kept),
            // None is cached: the first wait, a wait inside a wait, or a forked child.
            None => Waker::new().map(Arc::new),
        }
    }

    /// Cache it for the calling thread's next wait, instead of one that is cached already.
    pub(super) fn keep(waker: Arc<Waker>) {
        let _ = CACHED.try_with(|kept| kept.set(Some(waker)));
    }

    /// An event descriptor: a counter in the kernel that is readable while it is not 0.
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

    /// A pipe that is readable while a byte is in it.
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

    /// Make the poll return: the current one, or the next if there is none. Called by any thread.
    pub(super) fn wake(&self) {
        // An error means that it is full, and so readable already.
        let _ = self
            .writer
            .as_ref()
            .unwrap_or(&self.reader)
            .write(&1u64.to_ne_bytes());
    }

    /// Sleep until it is woken, a descriptor is ready, or `until`. Called by the owning thread.
    pub(super) fn sleep(&self, interests: &[(RawFd, Readiness)], until: Time) -> Slept {
        let own = (self.reader.as_raw_fd(), PollFlags::IN);
        let theirs = interests.iter().copied().map(interest);
        let poll = || sys::poll([own].into_iter().chain(theirs), until);
        let polled = match foreign::with_calls_left_alone(poll) {
            Ok(polled) => polled,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Slept::Signalled,
            // Not a reason to end the wait: it goes on, and the operation reports a bad descriptor.
            Err(_) => return Slept::Woken,
        };
        // Emptied at once, so that it is not ready at the next poll. The settler has settled before it
        // wrote, so the caller sees the outcome.
        if !polled[0].is_empty() {
            let _ = (&self.reader).read(&mut [0; 8]);
        }
        // An error counts as ready: the operation on the descriptor then reports it.
        match polled[1..].iter().position(|events| !events.is_empty()) {
            Some(index) => Slept::Ready(index),
            None => Slept::Woken,
        }
    }
}

/// How a sleep ended. The caller looks at its waiter's word in any case.
pub(super) enum Slept {
    /// By a settler, the clock, or for no reason.
    Woken,
    /// By a signal, for which the host may have a handler.
    Signalled,
    /// The interest of this index is ready, or its descriptor is bad.
    Ready(usize),
}

/// True if the descriptor is ready now. Does not block. A bad descriptor is an error.
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

/// True if one of them is ready now, or its descriptor is bad.
pub(crate) fn any_ready(interests: &[(RawFd, Readiness)]) -> bool {
    interests
        .iter()
        .any(|(fd, what)| is_ready(*fd, *what).unwrap_or(true))
}

/// Block until one of them is ready, in real time, for a simulation that has nothing else to run.
/// Signals end it early.
pub(crate) fn wait_for_any(interests: &[(RawFd, Readiness)]) {
    let _ = foreign::with_calls_left_alone(|| {
        sys::poll(interests.iter().copied().map(interest), Time::NEVER)
    });
}

/// An interest as [`sys::poll`] takes it.
fn interest((fd, what): (RawFd, Readiness)) -> (RawFd, PollFlags) {
    let events = match what {
        Readiness::Readable => PollFlags::IN,
        Readiness::Writable => PollFlags::OUT,
    };
    (fd, events)
}
