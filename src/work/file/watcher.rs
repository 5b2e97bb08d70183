//! The thread that hears of other processes: what they changed, and that they died.
//!
//! It sleeps until the file beside the queue's is written to, an owner's process ends, or time
//! changes an item. Nobody looks at intervals, except where the system cannot tell.

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

/// How often it looks where nothing tells it.
const INTERVAL: Duration = Duration::from_millis(250);

/// What wakes the keepers: this process's, and those of all others.
pub(super) struct Bell {
    file: File,
    ears: Ears,
    own: UnixStream,
    keeper: UnixStream,
    /// When the keeper looks again by itself; while it looks: never.
    next: AtomicI64,
    over: AtomicBool,
}

impl Bell {
    /// The bell beside this file.
    pub(super) fn hang(path: &Path) -> Result<Bell, FileError> {
        let path = beside(path, "-wake");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let (own, keeper) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        keeper.set_nonblocking(true)?;
        Ok(Bell {
            ears: Ears::listen(&path),
            file,
            own,
            keeper,
            next: AtomicI64::new(i64::MAX),
            over: AtomicBool::new(false),
        })
    }

    /// Have all processes look.
    pub(super) fn ring(&self) {
        // A full disk: the byte is there already, except at the very first.
        let _ = self.file.write_all_at(b"!", 0);
    }

    /// Time changes an item of this process's then.
    pub(super) fn by(&self, end: i64) {
        if end < self.next.load(Ordering::SeqCst) {
            self.nudge();
        }
    }

    /// The keeper is to end.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.nudge();
    }

    fn nudge(&self) {
        let _ = (&self.own).write(b"!"); // full: it is on its way
    }

    /// Whether others may have changed something.
    fn hear(&self) -> bool {
        let mut heard = [0; 4096];
        while matches!((&self.keeper).read(&mut heard), Ok(1..)) {}
        self.ears.hear(&mut heard)
    }
}

/// Start the keeper of a queue.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let keep = move || {
        let _inside = fork::inside();
        keep(&shared);
    };
    thread::Builder::new()
        .name("desist-file".into())
        .spawn(keep)
}

fn keep(shared: &Shared) {
    let bell = &shared.bell;
    let mut watched: Vec<(i64, Option<OwnedFd>)> = Vec::new();
    loop {
        bell.next.store(i64::MAX, Ordering::SeqCst);
        let heard = bell.hear();
        if bell.over.load(Ordering::Acquire) {
            return;
        }
        // The file is locked, or the disk full: try again.
        let mut patience = Some(INTERVAL);
        if let Ok((others, next)) = look(shared) {
            watched.retain(|(id, _)| others.iter().any(|(other, _)| other == id));
            for (id, process) in &others {
                // This one's own queues end when they say so.
                if process.pid != shared.own.pid && !watched.iter().any(|(other, _)| other == id) {
                    watched.push((*id, process.watch()));
                }
            }
            bell.next.store(next, Ordering::SeqCst);
            patience = shared.until(next);
        }
        // What the look itself has changed, its commit has told.
        if heard {
            shared.stir();
        }
        if !bell.ears.hear_all() || watched.iter().any(|(_, fd)| fd.is_none()) {
            patience = Some(patience.map_or(INTERVAL, |patience| patience.min(INTERVAL)));
        }
        let mut fds = vec![bell.keeper.as_raw_fd()];
        fds.extend(bell.ears.fd());
        fds.extend(
            watched
                .iter()
                .filter_map(|(_, fd)| Some(fd.as_ref()?.as_raw_fd())),
        );
        fork::outside(|| sleep(&fds, patience));
    }
}

type Owners = Vec<(i64, Process)>;

/// End the leases of those who died, and do what is due. Returns who else is there, and when the
/// next is.
pub(super) fn look(shared: &Shared) -> Result<(Owners, i64), FileError> {
    let (own, opening) = (shared.own.clone(), shared.opening.clone());
    shared.commit(false, shared.terms(), move |tables| {
        let mut others = tables.others()?;
        let is_alive = |id: i64, process: &Process| {
            if (process.pid, process.space) == (own.pid, own.space) {
                opening.has(id) && process.is_alive(&own)
            } else {
                process.is_alive(&own)
            }
        };
        for (id, process) in &others {
            if !is_alive(*id, process) {
                tables.part(*id, Some(process.pid))?;
            }
        }
        others.retain(|(id, process)| is_alive(*id, process));
        tables.catch_up()?;
        Ok((others, tables.next_change()?))
    })
}

/// Sleep until one of them is readable, or so long. A signal only makes the thread look once more.
fn sleep(fds: &[RawFd], patience: Option<Duration>) {
    let until = patience.map_or(Time::NEVER, Time::after);
    let _ = sys::poll(fds.iter().map(|fd| (*fd, PollFlags::IN)), until);
}

/// Hears when the file is written to.
#[cfg(target_os = "linux")]
struct Ears(Option<File>);

#[cfg(target_os = "linux")]
impl Ears {
    /// Deaf where there is no inotify left to have: a user has 128.
    fn listen(path: &Path) -> Ears {
        Ears(Ears::watch(path).ok())
    }

    fn hear_all(&self) -> bool {
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

    /// Forget what was heard: all of it is one reason to look. Deaf ears may have missed anything.
    fn hear(&self, heard: &mut [u8]) -> bool {
        let Some(mut file) = self.0.as_ref() else {
            return true;
        };
        let any = matches!(file.read(heard), Ok(1..));
        while any && matches!(file.read(heard), Ok(1..)) {}
        any
    }
}

#[cfg(not(target_os = "linux"))]
struct Ears;

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unused_self)]
impl Ears {
    fn listen(_path: &Path) -> Ears {
        Ears
    }

    fn hear_all(&self) -> bool {
        false
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn hear(&self, _heard: &mut [u8]) -> bool {
        true
    }
}
