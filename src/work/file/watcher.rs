//! The watcher: the thread of an open queue that notices changes by other processes and by the passing
//! of time.
//!
//! It sleeps until one of these happens, then checks the owners, makes the state changes that are
//! due, and tells the waiters of this process:
//! - the `-wake` file beside the database was written to: another process has committed a change
//!   for which threads of others wait (inotify);
//! - a file of the queue, or a folder of its path, was deleted or moved (inotify);
//! - a process that owns leases has ended (pidfd): its leases are over (I33);
//! - the next state change by time is due;
//! - a thread of this process wrote to the socket pair: a state change is due earlier than the
//!   watcher knew, a lease was released, or the queue is closed.
//!
//! Where the system cannot tell one of the first three, the watcher looks every [`INTERVAL`].
//!
//! # No wake-up is lost
//!
//! Before a look the watcher empties the sockets and the inotify queue; what comes later wakes it
//! again. [`Notifier::next`] says until when it will sleep, and is [`i64::MAX`] while it looks: a
//! commit that is made meanwhile compares its time with that, and writes to the socket, whether the
//! look has seen it or not.
//!
//! # When a file is gone
//!
//! If the database is gone, the look fails with [`FileError::Gone`]: the waiters are woken and fail as
//! well, and the watcher has nothing more to do.
//!
//! If only `-wake` is gone, each watcher moves to the file that is at its path, and makes it if there
//! is none for [`INTERVAL`]: not sooner, because the folder may be about to be deleted with all that
//! is in it. In the meantime the watcher looks at intervals. Having moved it writes to the new
//! file, since its process may have written to the old one when other watchers had moved already. A
//! writer holds the lock of `file`, so its commit comes before the move and the look of the others
//! sees it, or it writes to the new file itself.
//!
//! The watcher takes part in the group commit of `commit.rs` like any other thread, and holds no
//! lock while it sleeps. It is outside for forks then.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use rustix::fs::inotify::{self, WatchFlags};

use super::Shared;
use super::error::FileError;
use super::files::{self, Files};
use super::process::Process;
use crate::atomics::Mutex;
use crate::clock::Time;
use crate::fork;
use crate::sys::{self, PollFlags};

/// The longest sleep where the system cannot tell of a change.
const INTERVAL: Duration = Duration::from_millis(250);

/// Wakes the watchers: the one of this queue, and those of other processes.
pub(super) struct Notifier {
    /// The `-wake` file; written to for the watchers of other processes. Replaced by the watcher alone.
    /// A leaf lock, held for a write of one byte.
    file: Mutex<File>,
    /// Tells the watcher of writes to `file`, and of files that are gone.
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
    pub(super) fn open(files: &Files) -> Result<Notifier, FileError> {
        let (own, watcher) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        watcher.set_nonblocking(true)?;
        let file_watch = FileWatch::open(files);
        Ok(Notifier {
            file: Mutex::new(open_watched(files, &file_watch)?),
            file_watch,
            own,
            watcher,
            next: AtomicI64::new(i64::MAX),
            over: AtomicBool::new(false),
        })
    }

    /// True if the `-wake` file is at its path.
    fn is_in_place(&self, files: &Files) -> Result<bool, FileError> {
        let file = files::key(&self.file.lock().metadata()?);
        files::is_at(files.wake(), file)
    }

    /// Move to the `-wake` file that is at the path now, which is made if there is none.
    fn renew(&self, files: &Files) -> Result<(), FileError> {
        files.check()?; // a new one beside a database that is gone would be in the way
        let file = open_watched(files, &self.file_watch)?;
        *self.file.lock() = file;
        self.notify_processes();
        Ok(())
    }

    /// Wake the watchers of all processes that have the queue open.
    pub(super) fn notify_processes(&self) {
        // A full disk does not matter: the byte has its place since the first write.
        let _ = self.file.lock().write_all_at(b"!", 0);
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

    /// Let the watcher look.
    pub(super) fn wake(&self) {
        let _ = (&self.own).write(b"!"); // full: it is woken already
    }

    /// Empty the descriptors that have woken the watcher. True: another process may have changed the file.
    fn drain(&self) -> bool {
        let mut read = [0; 4096];
        while matches!((&self.watcher).read(&mut read), Ok(1..)) {}
        self.file_watch.drain(&mut read)
    }
}

/// Open the `-wake` file, and let the watch tell of writes to it and of its end.
fn open_watched(files: &Files, watch: &FileWatch) -> Result<File, FileError> {
    loop {
        let file = files.open_wake()?;
        watch.follow(files.wake());
        // Deleted in between, the watch would not tell of it.
        if files::is_at(files.wake(), files::key(&file.metadata()?))? {
            return Ok(file);
        }
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

/// Close a queue whose owner could not be removed, as the file could not be written. While the process
/// lives, no other process removes it: so a thread tries until the file can be written. Without
/// threads the leases end with the process.
pub(super) fn close_later(shared: Arc<Shared>) {
    let close = move || {
        let _inside = fork::inside();
        loop {
            fork::outside(|| sleep(&[], Some(INTERVAL)));
            if !matches!(shared.remove_owner(), Err(error) if error.may_pass()) {
                return shared.committer.close();
            }
        }
    };
    let _ = thread::Builder::new()
        .name("desist-file".into())
        .spawn(close);
}

fn watch(shared: &Shared) {
    let notifier = &shared.notifier;
    // The owners of other processes, with the descriptors of their ends.
    let mut watched: Vec<(i64, Option<OwnedFd>)> = Vec::new();
    // Since when `-wake` is not in its place.
    let mut displaced: Option<Instant> = None;
    loop {
        notifier.next.store(i64::MAX, Ordering::SeqCst);
        let mut others_changed = notifier.drain();
        if notifier.over.load(Ordering::Acquire) {
            return;
        }
        if notifier.is_in_place(&shared.files) == Ok(true) {
            displaced = None;
        } else {
            // The old file has told of no change since, and the new one tells only from now on.
            others_changed = true;
            let since = *displaced.get_or_insert_with(Instant::now);
            let is_due = since.elapsed() >= INTERVAL || shared.files.has_wake();
            if is_due && notifier.renew(&shared.files).is_ok() {
                displaced = None;
            }
        }
        let mut fds = vec![notifier.watcher.as_raw_fd()];
        // If the look fails, as the file is locked or the disk full, it is repeated soon.
        let mut patience = Some(INTERVAL);
        match shared.files.check().and_then(|()| check_owners(shared)) {
            Ok((others, next)) => {
                watched.retain(|(id, _)| others.iter().any(|(other, _)| other == id));
                for (id, process) in &others {
                    let is_new = !watched.iter().any(|(other, _)| other == id);
                    // Queues of this process remove themselves when they are closed.
                    if process.pid != shared.own.pid && is_new {
                        watched.push((*id, process.watch()));
                    }
                }
                notifier.next.store(next, Ordering::SeqCst);
                patience = shared.until(next);
                let ends = watched.iter().filter_map(|(_, fd)| fd.as_ref());
                fds.extend(ends.map(AsRawFd::as_raw_fd));
            }
            Err(FileError::Gone(_)) => {
                shared.wake_all();
                fork::outside(|| sleep(&fds, None)); // only the end of the queue comes
                continue;
            }
            // The descriptors of processes that have ended stay readable until it has succeeded.
            Err(_) => {}
        }
        // The waiters for changes of the look itself were notified by its commit.
        if others_changed {
            shared.wake_all();
        }
        let is_told_all = notifier.file_watch.is_complete()
            && displaced.is_none()
            && watched.iter().all(|(_, fd)| fd.is_some());
        if !is_told_all {
            patience = Some(patience.map_or(INTERVAL, |patience| patience.min(INTERVAL)));
        }
        fds.extend(notifier.file_watch.fd());
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

/// Tells when the `-wake` file was written to, and when a file or folder of the queue was deleted or
/// moved.
#[cfg(target_os = "linux")]
struct FileWatch {
    /// The inotify instance. `None`: none was available, of which a user has 128.
    events: Option<File>,
    /// All files of the queue are watched. Written by the watcher, and when the queue is opened.
    is_complete: AtomicBool,
}

#[cfg(target_os = "linux")]
impl FileWatch {
    /// Watch the files that SQLite has open, and the folders of their path.
    fn open(files: &Files) -> FileWatch {
        use rustix::fs::inotify::CreateFlags;
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let watch = FileWatch {
            events: events.ok().map(File::from),
            is_complete: AtomicBool::new(true),
        };
        files.opened().for_each(|path| watch.add(path, LEAVES));
        for folder in files.database().ancestors().skip(1) {
            // A folder that may not be read cannot be watched; it is the system's, as a rule.
            let _ = watch.try_add(folder, LEAVES.difference(WatchFlags::ATTRIB));
        }
        watch
    }

    /// Watch the `-wake` file that is at this path now.
    fn follow(&self, wake: &Path) {
        self.add(wake, LEAVES | WatchFlags::MODIFY);
    }

    /// False: the watcher has to look at intervals.
    fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Relaxed)
    }

    fn add(&self, path: &Path, events: WatchFlags) {
        if self.try_add(path, events).is_err() {
            self.is_complete.store(false, Ordering::Relaxed);
        }
    }

    fn try_add(&self, path: &Path, events: WatchFlags) -> io::Result<()> {
        let instance = self.events.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        inotify::add_watch(instance, path, events | WatchFlags::DONT_FOLLOW)?;
        Ok(())
    }

    fn fd(&self) -> Option<RawFd> {
        self.events.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Empty the queue of events, all of which mean the same. True: there were some, or there may
    /// have been.
    fn drain(&self, into: &mut [u8]) -> bool {
        let Some(mut file) = self.events.as_ref() else {
            return true;
        };
        let any = matches!(file.read(into), Ok(1..));
        while any && matches!(file.read(into), Ok(1..)) {}
        any || !self.is_complete()
    }
}

/// A file is deleted while it is open (its links are an attribute), deleted, or moved. Of a folder,
/// ATTRIB would tell of all files in it.
#[cfg(target_os = "linux")]
const LEAVES: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

#[cfg(not(target_os = "linux"))]
struct FileWatch; // nothing tells: the watcher looks at intervals

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unused_self)]
impl FileWatch {
    fn open(_files: &Files) -> FileWatch {
        FileWatch
    }

    fn follow(&self, _wake: &Path) {}

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
