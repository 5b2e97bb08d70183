//! Waiting until a file descriptor is ready.
//!
//! The thread polls the descriptor itself, so nobody stands between it and the kernel. A
//! descriptor that is closed under a waiting thread does not end the wait, and its number may mean
//! something else soon after: whoever closes one that others wait for says so first, see
//! [`closing`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
pub use crate::park::Readiness;
use crate::park::{self, Ticket};
use crate::sys;
use crate::wait::{self, Op, Waitable};

/// Why a descriptor could not be waited for.
#[derive(Debug)]
pub enum ReadyError {
    /// The calling thread is to stop.
    Stop(Stop),
    /// The descriptor is bad, or was closed meanwhile; or there is none left to wait with.
    Io(io::Error),
}

/// Block until the descriptor is ready, or until `until` (then false). A checkpoint.
///
/// Being ready is not used up: with several threads at one descriptor, use it without blocking,
/// and wait again if another one was quicker.
pub fn wait_ready(fd: RawFd, what: Readiness, until: Time) -> Result<bool, ReadyError> {
    let ready = wait::perform_any(&mut [&mut Watching::new(fd, what)], until, |park| park())?;
    Ok(ready.is_some())
}

/// The descriptor is about to be closed: whoever waits for it gets an error.
pub fn closing(fd: RawFd) {
    let watchers = WATCHED.lock().get_or_insert_default().remove(&fd);
    for watcher in watchers.into_iter().flatten() {
        watcher.closed.store(true, Ordering::Release);
        if watcher.ticket.grant() {
            watcher.ticket.wake();
        }
    }
}

/// Who waits for which descriptor, for [`closing`].
static WATCHED: Mutex<Option<HashMap<RawFd, Vec<Watcher>>>> = Mutex::new(None);

struct Watcher {
    ticket: Ticket,
    closed: Arc<AtomicBool>,
}

/// Waiting for a descriptor.
pub(crate) struct Watching {
    fd: RawFd,
    what: Readiness,
    closed: Arc<AtomicBool>,
}

impl Watching {
    pub(crate) fn new(fd: RawFd, what: Readiness) -> Watching {
        Watching {
            fd,
            what,
            closed: Arc::default(),
        }
    }
}

impl Watching {
    fn forget(&self) {
        let mut watched = WATCHED.lock();
        if let Entry::Occupied(mut watchers) = watched.get_or_insert_default().entry(self.fd) {
            let other = |watcher: &Watcher| !Arc::ptr_eq(&watcher.closed, &self.closed);
            watchers.get_mut().retain(other);
            if watchers.get().is_empty() {
                watchers.remove();
            }
        }
    }
}

impl Waitable for Watching {
    fn enqueue(&mut self, ticket: Ticket) {
        let closed = self.closed.clone();
        let mut watched = WATCHED.lock();
        let watchers = watched.get_or_insert_default().entry(self.fd).or_default();
        watchers.push(Watcher { ticket, closed });
    }

    fn dequeue(&mut self, _: &Ticket) -> bool {
        self.forget();
        false
    }

    fn descriptor(&self) -> Option<(RawFd, Readiness)> {
        Some((self.fd, self.what))
    }
}

impl Op for Watching {
    type Output = ();
    type Error = ReadyError;

    fn attempt(&mut self) -> Result<Option<()>, ReadyError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(sys::bad_descriptor().into());
        }
        Ok(park::is_ready(self.fd, self.what)?.then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, ReadyError> {
        self.forget();
        self.attempt()
    }
}

impl From<Stop> for ReadyError {
    fn from(stop: Stop) -> ReadyError {
        ReadyError::Stop(stop)
    }
}

impl From<io::Error> for ReadyError {
    fn from(error: io::Error) -> ReadyError {
        ReadyError::Io(error)
    }
}

impl fmt::Display for ReadyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadyError::Stop(stop) => stop.fmt(f),
            ReadyError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadyError {}
