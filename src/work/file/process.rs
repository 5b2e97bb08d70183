//! Whose a lease is: an open queue of a process, known by more than its number.
//!
//! A pid comes round again, so the process's start and the machine's stand beside it. A process
//! that replaced itself (exec) has the same pid and start, and forgot its queues: of the own
//! process's owners only those in [`OPEN`] live.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use super::error::FileError;
use crate::atomics::ForkMutex;
use crate::sys;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// In ticks since the machine's start; 0 where the system does not tell.
    pub(super) started: i64,
    /// The machine's start.
    pub(super) machine: Arc<str>,
    /// In which its pid means something: a container has its own.
    pub(super) space: i64,
}

impl Process {
    /// The calling one.
    pub(super) fn own(machine: &Arc<str>) -> Process {
        let pid = std::process::id();
        Process {
            pid,
            started: stat(pid).map_or(0, |stat| stat.started),
            machine: machine.clone(),
            space: space(),
        }
    }

    /// Whether it may still be working; `own` is the calling process.
    pub(super) fn is_alive(&self, own: &Process) -> bool {
        if self.machine != own.machine {
            return false;
        }
        if self.space != own.space {
            return true; // nobody here can tell
        }
        is_running(self)
    }

    /// Something that becomes readable when it ends. `None`: the system has no such thing, or it
    /// has ended.
    pub(super) fn watch(&self) -> Option<OwnedFd> {
        let fd = sys::open_process(i32::try_from(self.pid).ok()?)?;
        is_running(self).then_some(fd) // and not another one with its pid
    }
}

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
        // Nobody has asked how it ended yet. A first thread can end alone, too.
        ended: matches!(fields.first(), Some(&("Z" | "X"))) && number(17)? <= 1,
    })
}

#[cfg(target_os = "linux")]
fn is_running(process: &Process) -> bool {
    stat(process.pid).is_some_and(|stat| !stat.ended && stat.started == process.started)
}

#[cfg(target_os = "linux")]
fn space() -> i64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |space| i64::try_from(space.ino()).unwrap_or(0))
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
fn space() -> i64 {
    0
}

/// The files that this process has open: by device and number, the process that opened them, how
/// often, and the owners that its queues are.
static OPEN: LazyLock<ForkMutex<HashMap<File, Opened>>> =
    LazyLock::new(|| ForkMutex::new(HashMap::new()));

type File = (u64, u64);

struct Opened {
    pid: u32,
    times: usize,
    owners: Vec<i64>,
}

/// One opening of a file by this process.
///
/// SQLite, too, keeps a list of the files that a process has open, and it goes along in a fork,
/// where the locks do not: a child that opened its parent's file would damage it.
pub(super) struct Opening {
    file: File,
}

impl Opening {
    /// Called before SQLite opens it.
    pub(super) fn of(path: &Path) -> Result<Opening, FileError> {
        let about = fs::metadata(path)?;
        let file = (about.dev(), about.ino());
        let pid = std::process::id();
        let mut open = OPEN.lock();
        let opened = open.entry(file).or_insert_with(|| Opened {
            pid,
            times: 0,
            owners: Vec::new(),
        });
        if opened.pid != pid {
            return Err(FileError::Forked);
        }
        opened.times += 1;
        Ok(Opening { file })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Opened) -> R) -> Option<R> {
        OPEN.lock().get_mut(&self.file).map(act)
    }

    /// A queue of this process is this owner.
    pub(super) fn add(&self, owner: i64) {
        self.with(|opened| opened.owners.push(owner));
    }

    pub(super) fn remove(&self, owner: i64) {
        self.with(|opened| opened.owners.retain(|other| *other != owner));
    }

    /// Whether this owner is a queue of this process.
    pub(super) fn has(&self, owner: i64) -> bool {
        self.with(|opened| opened.owners.contains(&owner)) == Some(true)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let last = self.with(|opened| {
            opened.times -= 1;
            opened.times == 0 && opened.pid == std::process::id()
        });
        if last == Some(true) {
            OPEN.lock().remove(&self.file);
        }
    }
}
