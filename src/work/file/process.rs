//! The processes that have leases, and the files that this process has open.
//!
//! An owner of leases is an open queue in a process. Its process is known by more than its pid,
//! for pids are reused: by the time at which it started, the boot of the machine, and the pid
//! namespace. A process that replaced its program (exec) has the same pid and start, but has lost
//! its queues: of the owners of the own process only those in [`OPEN`] are alive.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
#[cfg(target_os = "linux")]
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, LazyLock};

use super::error::FileError;
use super::files::{self, FileKey, Files};
use crate::atomics::ForkMutex;
use crate::sys;

/// The identity of a process among all processes, present and past; a row of the table `owners`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// When it started, in ticks since the boot; 0 where the system does not tell.
    pub(super) started: i64,
    /// The id of the machine's boot.
    pub(super) boot: Arc<str>,
    /// The pid namespace (a container has its own), without which a pid means nothing.
    pub(super) namespace: i64,
}

impl Process {
    /// The calling process.
    pub(super) fn own(boot: &Arc<str>) -> Process {
        let pid = std::process::id();
        Process {
            pid,
            started: stat(pid).map_or(0, |stat| stat.started),
            boot: boot.clone(),
            namespace: namespace(),
        }
    }

    /// False if the process has certainly ended; `own` is the calling process. A process of
    /// another namespace cannot be looked up here, and counts as alive.
    pub(super) fn is_alive(&self, own: &Process) -> bool {
        if self.boot != own.boot {
            return false;
        }
        if self.namespace != own.namespace {
            return true;
        }
        is_running(self)
    }

    /// A descriptor that becomes readable when it ends. `None`: the system has no such descriptors,
    /// or the process has ended.
    pub(super) fn watch(&self) -> Option<OwnedFd> {
        let fd = sys::open_process(i32::try_from(self.pid).ok()?)?;
        // Looked up after it was opened: the descriptor is not that of a later process with the pid.
        is_running(self).then_some(fd)
    }
}

/// The fields of a process that are read from `/proc`.
struct Stat {
    started: i64,
    ended: bool,
}

/// `/proc/PID/stat`; `None`: there is no such process.
#[cfg(target_os = "linux")]
fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may contain anything.
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<i64>().ok());
    Some(Stat {
        started: number(19)?,
        // A zombie, whose status was not collected yet. A first thread that ended while others run
        // looks the same but for the number of threads.
        ended: matches!(fields.first(), Some(&("Z" | "X"))) && number(17)? <= 1,
    })
}

#[cfg(target_os = "linux")]
fn is_running(process: &Process) -> bool {
    stat(process.pid).is_some_and(|stat| !stat.ended && stat.started == process.started)
}

#[cfg(target_os = "linux")]
fn namespace() -> i64 {
    let about = fs::metadata("/proc/self/ns/pid");
    about.map_or(0, |about| i64::try_from(about.ino()).unwrap_or(0))
}

#[cfg(not(target_os = "linux"))]
fn stat(_pid: u32) -> Option<Stat> {
    None
}

#[cfg(not(target_os = "linux"))]
fn is_running(process: &Process) -> bool {
    use rustix::io::Errno;
    use rustix::process::{Pid, test_kill_process};
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    // A process of another user exists, though it may not be signalled.
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

#[cfg(not(target_os = "linux"))]
fn namespace() -> i64 {
    0
}

/// The files that this process has open, by device and inode. Its lock may be held across a fork.
static OPEN: LazyLock<ForkMutex<HashMap<FileKey, OpenEntry>>> =
    LazyLock::new(|| ForkMutex::new(HashMap::new()));

/// The entry of a file in [`OPEN`].
struct OpenEntry {
    /// The process that opened it; in a forked child another than the calling one.
    pid: u32,
    /// How many [`OpenFile`]s there are.
    times: usize,
    /// The owners that are queues of this process.
    owners: Vec<i64>,
    /// Closed with the last [`OpenFile`]: closing one earlier would release SQLite's locks. They also
    /// keep the inode from being used again.
    descriptors: Vec<File>,
}

/// One opening of a file by this process; dropped when the queue is closed.
///
/// SQLite also keeps a list of the files that a process has open. A fork copies the list, but not
/// the locks of the files: a child that opened its parent's file would damage it. So it is refused.
pub(super) struct OpenFile {
    file: FileKey,
}

impl OpenFile {
    /// Open the database, or make it, before SQLite opens it. `check` refuses one that is no queue;
    /// it is not called if this process has the file open already.
    ///
    /// # Errors
    /// The file was opened by the process that this one was forked from, or is refused.
    pub(super) fn of(
        files: &Files,
        check: impl FnOnce(&File) -> Result<(), FileError>,
    ) -> Result<OpenFile, FileError> {
        let pid = std::process::id();
        // Locked until the file is registered, so that no other thread has SQLite open it meanwhile.
        let mut open = OPEN.lock();
        let mut found = files.look()?;
        let mut opened = None;
        if found.is_none_or(|file| !open.contains_key(&file)) {
            let file = files.open_database()?;
            found = Some(files::key(&file.metadata()?));
            opened = Some(file);
        }
        let key = found.ok_or_else(|| FileError::Gone(files.database().to_owned()))?;
        let entry = match open.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                opened.as_ref().map_or(Ok(()), check)?;
                entry.insert(OpenEntry {
                    pid,
                    times: 0,
                    owners: Vec::new(),
                    descriptors: Vec::new(),
                })
            }
        };
        entry.descriptors.extend(opened);
        if entry.pid != pid {
            return Err(FileError::Forked);
        }
        entry.times += 1;
        Ok(OpenFile { file: key })
    }

    /// The database's key.
    pub(super) fn key(&self) -> FileKey {
        self.file
    }

    fn with<R>(&self, act: impl FnOnce(&mut OpenEntry) -> R) -> Option<R> {
        OPEN.lock().get_mut(&self.file).map(act)
    }

    /// A queue of this process is this owner from now on.
    pub(super) fn add(&self, owner: i64) {
        self.with(|entry| entry.owners.push(owner));
    }

    /// The queue that was this owner is closed.
    pub(super) fn remove(&self, owner: i64) {
        self.with(|entry| entry.owners.retain(|other| *other != owner));
    }

    /// True if this owner is an open queue of this process.
    pub(super) fn has(&self, owner: i64) -> bool {
        self.with(|entry| entry.owners.contains(&owner)) == Some(true)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut open = OPEN.lock();
        let Some(entry) = open.get_mut(&self.file) else {
            return;
        };
        entry.times -= 1;
        if entry.times == 0 && entry.pid == std::process::id() {
            open.remove(&self.file);
        }
    }
}
