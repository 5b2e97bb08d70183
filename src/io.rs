//! Waiting until a file descriptor is ready.
//!
//! Guarantees:
//! 1. The waiting thread polls the descriptor itself; no other thread stands between it and the kernel.
//! 2. Every wait for the descriptor that was queued when [`closing`] is called ends with `EBADF`, unless
//!    it has ended otherwise.
//!
//! The kernel does not end a poll when the descriptor is closed by another thread, and gives its number to
//! the next file that is opened. So the closing thread calls [`closing`] first. A wait that is
//! queued after that is the caller's mistake: it fails with `EBADF`, or polls the next file of that number.
//!
//! Protocol. `WATCHED` lists, for each descriptor, the waits that have been queued. A waiting thread adds
//! its entry before it polls, and removes it when the wait ends; the closing thread takes out all
//! entries of a descriptor, sets `closed` in each, and grants the tickets. The waiting thread reads
//! `closed` before it polls again, with Acquire, to pair with the Release of the closing thread. Where the
//! grant comes too late, because the waiter is settled, the flag alone tells.
//!
//! Lock order: `WATCHED` is a leaf; tickets are granted and woken after it is unlocked. Relies on `park`
//! for the poll and on `wait` for the steps of a wait.

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
    /// The descriptor is bad or was closed meanwhile (`EBADF`); or the process has no descriptor left, of
    /// which the wait needs one.
    Io(io::Error),
}

/// Wait until the descriptor is ready; false if `until` came first. An error of the descriptor's file, such
/// as a broken connection, counts as ready: the next use of it tells which.
///
/// Readiness is no grant of something: it is still there when the call returns, for other threads as
/// well. With several threads at one descriptor, use it without blocking, and wait again if another one
/// was faster.
///
/// # Blocking
/// Blocks until one of the two; not at all if the descriptor is ready.
///
/// # Cancellation
/// A checkpoint on entry. A cancellation or a kill ends the wait.
///
/// # Errors
/// [`ReadyError::Stop`] if the calling thread is to stop, [`ReadyError::Io`] if the descriptor is not open
/// or another thread called [`closing`].
pub fn wait_ready(fd: RawFd, what: Readiness, until: Time) -> Result<bool, ReadyError> {
    let ready = wait::perform_any(&mut [&mut Watching::new(fd, what)], until, |park| park())?;
    Ok(ready.is_some())
}

/// Announce that the descriptor is about to be closed: every wait for it ends with `EBADF`. Call it before
/// the close, or its number may already stand for another file.
///
/// # Blocking
/// Never blocks: it does not wait until the other threads have left their waits.
pub fn closing(fd: RawFd) {
    let watchers = WATCHED.lock().get_or_insert_default().remove(&fd);
    for watcher in watchers.into_iter().flatten() {
        watcher.closed.store(true, Ordering::Release);
        if watcher.ticket.grant() {
            watcher.ticket.wake();
        }
    }
}

/// The waits for each descriptor, for [`closing`]. A descriptor without any has no entry. `None` until the
/// first wait, since a map cannot be made in a constant.
static WATCHED: Mutex<Option<HashMap<RawFd, Vec<Watcher>>>> = Mutex::new(None);

/// One wait, as the closing thread sees it.
struct Watcher {
    /// Granted when the descriptor is about to be closed.
    ticket: Ticket,
    /// That of the [`Watching`]; its address tells the waits for one descriptor apart.
    closed: Arc<AtomicBool>,
}

/// The operation of waiting for a descriptor.
pub(crate) struct Watching {
    /// A number, not an owned descriptor: the caller keeps it open.
    fd: RawFd,
    /// The readiness that it is polled for.
    what: Readiness,
    /// [`closing`] was called. Set by the closing thread, once; read by the waiting one.
    closed: Arc<AtomicBool>,
}

impl Watching {
    /// Waits until `fd` is ready for `what`.
    pub(crate) fn new(fd: RawFd, what: Readiness) -> Watching {
        Watching {
            fd,
            what,
            closed: Arc::default(),
        }
    }
}

impl Watching {
    /// Remove this wait's entry, unless the closing thread has.
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
