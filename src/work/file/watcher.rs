//! The watcher: the thread of an open queue that notices changes by other processes and by the passing
//! of time.
//!
//! It sleeps until one of these happens, then checks the owners, makes the state changes that are
//! due, and tells the waiters of this process:
//! - the `-wake` file beside the database was written to: another process has committed a change
//!   for which threads of others wait (inotify);
//! - a process that owns leases has ended (pidfd): its leases are over (I33);
//! - the next state change by time is due;
//! - a thread of this process wrote to the socket pair: a state change is due earlier than the
//!   watcher knew, or the queue is closed.
//!
//! Where the system cannot tell one of the first two, the watcher looks every [`INTERVAL`].
//!
//! # No wake-up is lost
//!
//! Before a look the watcher empties the sockets and the inotify queue; what comes later wakes it
//! again. [`Notifier::next`] says until when it will sleep, and is [`i64::MAX`] while it looks: a
//! commit that is made meanwhile compares its time with that, and writes to the socket, whether the
//! look has seen it or not.
//!
//! The watcher takes part in the group commit of `commit.rs` like any other thread, and holds no
//! lock while it sleeps. It is outside for forks then.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Shared;
use super::error::FileError;
use super::process::Process;
use super::schema::beside;
use crate::clock::Time;
use crate::fork;
use crate::sys::{self, PollFlags};

/// The longest sleep where the system cannot tell of a change.
const INTERVAL: Duration = Duration::from_millis(250);

/// Wakes the watchers: the one of this queue, and those of other processes.
pub(super) struct Notifier {
    /// The `-wake` file; written to for the watchers of other processes.
    file: File,
    /// Tells the watcher of writes to `file`.
    file_watch: FileWatch,
    /// The end of the socket pair that all threads of the process write to.
    own: UnixStream,
    /// The end that the watcher reads.
    watcher: UnixStream,
    /// Until when the watcher will sleep at most, on the machine's clock; [`i64::MAX`] while it
    /// looks. Written by the watcher alone. Sequentially consistent with the commits that compare
    /// it, see the header.
    next: AtomicI64,
    /// Set once: the watcher ends.
    over: AtomicBool,
}

impl Notifier {
    /// Open the `-wake` file beside this database, which is made if there is none.
    pub(super) fn open(path: &Path) -> Result<Notifier, FileError> {
        let path = beside(path, "-wake");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let (own, watcher) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        watcher.set_nonblocking(true)?;
        Ok(Notifier {
            file_watch: FileWatch::open(&path),
            file,
            own,
            watcher,
            next: AtomicI64::new(i64::MAX),
            over: AtomicBool::new(false),
        })
    }

    /// Wake the watchers of all processes that have the queue open.
    pub(super) fn notify_processes(&self) {
        // A full disk does not matter: the byte has its place since the first write.
        let _ = self.file.write_all_at(b"!", 0);
    }

    /// A state change is due then: wake the watcher if it would sleep longer.
    pub(super) fn wake_by(&self, end: i64) {
        if end < self.next.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Let the watcher end.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let _ = (&self.own).write(b"!"); // full: it is woken already
    }

    /// Empty the descriptors that have woken the watcher. True: another process may have changed the file.
    fn drain(&self) -> bool {
        let mut read = [0; 4096];
        while matches!((&self.watcher).read(&mut read), Ok(1..)) {}
        self.file_watch.drain(&mut read)
    }
}

/// Start the watcher of a queue.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let watch = move || {
        let _inside = fork::inside();
        watch(&shared);
    };
    thread::Builder::new()
        .name("desist-file".into())
        .spawn(watch)
}

fn watch(shared: &Shared) {
    let notifier = &shared.notifier;
    // The owners of other processes, with the descriptors of their ends.
    let mut watched: Vec<(i64, Option<OwnedFd>)> = Vec::new();
    loop {
        notifier.next.store(i64::MAX, Ordering::SeqCst);
        let others_changed = notifier.drain();
        if notifier.over.load(Ordering::Acquire) {
            return;
        }
        // If the look fails, as the file is locked or the disk full, it is repeated soon.
        let mut patience = Some(INTERVAL);
        if let Ok((others, next)) = check_owners(shared) {
            watched.retain(|(id, _)| others.iter().any(|(other, _)| other == id));
            for (id, process) in &others {
                // Queues of this process remove themselves when they are closed.
                if process.pid != shared.own.pid && !watched.iter().any(|(other, _)| other == id) {
                    watched.push((*id, process.watch()));
                }
            }
            notifier.next.store(next, Ordering::SeqCst);
            patience = shared.until(next);
        }
        // The waiters for changes of the look itself were notified by its commit.
        if others_changed {
            shared.wake_all();
        }
        if !notifier.file_watch.is_complete() || watched.iter().any(|(_, fd)| fd.is_none()) {
            patience = Some(patience.map_or(INTERVAL, |patience| patience.min(INTERVAL)));
        }
        let mut fds = vec![notifier.watcher.as_raw_fd()];
        fds.extend(notifier.file_watch.fd());
        fds.extend(
            watched
                .iter()
                .filter_map(|(_, fd)| Some(fd.as_ref()?.as_raw_fd())),
        );
        fork::outside(|| sleep(&fds, patience));
    }
}

type Owners = Vec<(i64, Process)>;

/// End the leases of owners that have died, and make the state changes that are due. Returns the
/// owners that are left, without this queue, and when the next change is due.
pub(super) fn check_owners(shared: &Shared) -> Result<(Owners, i64), FileError> {
    let (own, open_file) = (shared.own.clone(), shared.open_file.clone());
    shared.commit(false, shared.context(), move |tables| {
        let mut others = tables.other_owners()?;
        let is_alive = |id: i64, process: &Process| {
            if (process.pid, process.namespace) == (own.pid, own.namespace) {
                open_file.has(id) && process.is_alive(&own)
            } else {
                process.is_alive(&own)
            }
        };
        for (id, process) in &others {
            if !is_alive(*id, process) {
                tables.remove_owner(*id, Some(process.pid))?;
            }
        }
        others.retain(|(id, process)| is_alive(*id, process));
        tables.catch_up()?;
        Ok((others, tables.next_change()?))
    })
}

/// Sleep until a descriptor is readable, or for this long. A signal only makes the watcher look once
/// more.
fn sleep(fds: &[RawFd], patience: Option<Duration>) {
    let until = patience.map_or(Time::NEVER, Time::after);
    let _ = sys::poll(fds.iter().map(|fd| (*fd, PollFlags::IN)), until);
}

/// Tells when the `-wake` file was written to. `None`: no inotify instance was available, of which
/// a user has 128.
#[cfg(target_os = "linux")]
struct FileWatch(Option<File>);

#[cfg(target_os = "linux")]
impl FileWatch {
    fn open(path: &Path) -> FileWatch {
        FileWatch(FileWatch::watch(path).ok())
    }

    /// False: the watcher has to look at intervals.
    fn is_complete(&self) -> bool {
        self.0.is_some()
    }

    fn watch(path: &Path) -> io::Result<File> {
        use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, path, WatchFlags::MODIFY)?;
        Ok(File::from(watch))
    }

    fn fd(&self) -> Option<RawFd> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Empty the queue of events, all of which mean the same. True: there were some, or there may
    /// have been.
    fn drain(&self, into: &mut [u8]) -> bool {
        let Some(mut file) = self.0.as_ref() else {
            return true;
        };
        let any = matches!(file.read(into), Ok(1..));
        while any && matches!(file.read(into), Ok(1..)) {}
        any
    }
}

#[cfg(not(target_os = "linux"))]
struct FileWatch; // nothing tells: the watcher looks at intervals

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unused_self)]
impl FileWatch {
    fn open(_path: &Path) -> FileWatch {
        FileWatch
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn drain(&self, _into: &mut [u8]) -> bool {
        true
    }
}
