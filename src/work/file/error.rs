//! The errors of a queue's file. The messages say what to do about them.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use crate::error::{AsStop, Stop};
use crate::work::Fenced;

/// Why an operation on a [`FileQueue`](super::FileQueue) was not done. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileError {
    /// The calling thread is to stop.
    Stop(Stop),
    /// The lease is over.
    Fenced,
    /// The file is no queue.
    Foreign,
    /// The file is of a newer version of this library.
    Newer {
        /// The version of the file.
        version: i64,
    },
    /// The file is damaged: cut off, or overwritten.
    Damaged(String),
    /// This file of the queue is a link, a FIFO, a folder or a device, and was not followed nor
    /// opened. With what to do about it.
    Irregular(PathBuf, &'static str),
    /// Other users can write this file of the queue. With what to do about it.
    Untrusted(PathBuf, &'static str),
    /// This file of the queue was deleted, moved or replaced while the queue was open, which cannot
    /// be used any more.
    Gone(PathBuf),
    /// The file, or its folder, is read-only.
    ReadOnly,
    /// Another program has had the file locked for ten seconds.
    Locked,
    /// The disk is full, or the file has the greatest size that is allowed.
    NoSpace,
    /// The file was opened by the process from which this one was forked.
    Forked,
    /// Another error of the system or of SQLite, with its message.
    Failed(String),
}

impl FileError {
    /// The same operation may succeed later, on the same file.
    pub(super) fn may_pass(&self) -> bool {
        use FileError::{Failed, Locked, NoSpace, ReadOnly};
        matches!(self, NoSpace | Locked | ReadOnly | Failed(_))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileError::Stop(stop) => stop.fmt(f),
            FileError::Fenced => Fenced.fmt(f),
            FileError::Foreign => f.write_str(
                "this file is not a queue of desist, and was left as it is: choose another path",
            ),
            FileError::Newer { version } => write!(
                f,
                "this queue has format {version}, from a newer version of desist, and was left as \
                 it is: update desist, or choose another path"
            ),
            FileError::Damaged(what) => write!(
                f,
                "the queue's file is damaged ({what}): put back a copy, or move it away with its \
                 -wal file, and see what `sqlite3 FILE .recover` finds in it"
            ),
            FileError::Irregular(path, what) => write!(f, "{} is {what}", path.display()),
            FileError::Untrusted(path, why) => {
                write!(f, "{} is not to be trusted, as {why}", path.display())
            }
            FileError::Gone(path) => write!(
                f,
                "{} was deleted, moved or replaced while the queue was open: put it back if its \
                 items are missed, and open the queue again",
                path.display()
            ),
            FileError::ReadOnly => f.write_str(
                "the queue's file cannot be written: check the permissions of the file and of its \
                 folder, and that it is not on a read-only disk",
            ),
            FileError::Locked => f.write_str(
                "another program has the queue's file locked: end its transaction (a sqlite3 \
                 shell after BEGIN, a backup), then try again",
            ),
            FileError::NoSpace => f.write_str(
                "there is no space for the queue's file: nothing was changed; free some, then try \
                 again",
            ),
            FileError::Forked => f.write_str(
                "this process was forked from one that has the queue's file open, and must not \
                 use it: start it anew (the start methods spawn or forkserver), or open the \
                 queue only after the fork",
            ),
            FileError::Failed(what) => write!(f, "the queue's file cannot be used: {what}"),
        }
    }
}

impl std::error::Error for FileError {}

impl AsStop for FileError {
    fn stop(&self) -> Option<&Stop> {
        match self {
            FileError::Stop(stop) => Some(stop),
            _ => None,
        }
    }
}

impl From<Stop> for FileError {
    fn from(stop: Stop) -> Self {
        FileError::Stop(stop)
    }
}

impl From<Fenced> for FileError {
    fn from(_: Fenced) -> Self {
        FileError::Fenced
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                FileError::ReadOnly
            }
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => FileError::NoSpace,
            _ => FileError::Failed(error.to_string()),
        }
    }
}

impl From<rusqlite::Error> for FileError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => FileError::Foreign,
            Some(ErrorCode::DatabaseCorrupt) => FileError::Damaged(error.to_string()),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => FileError::ReadOnly,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => FileError::Locked,
            Some(ErrorCode::DiskFull) => FileError::NoSpace,
            _ => FileError::Failed(error.to_string()),
        }
    }
}
