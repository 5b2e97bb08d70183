//! The files of a queue: how they are made, which are refused, and how it is noticed that one is gone.
//!
//! A queue is up to five files of one folder: the database, and beside it the `-wal`, `-shm` and
//! `-journal` of SQLite, and `-wake` (`watcher.rs`). Each of them, whether SQLite or this library
//! opens it, is looked at here first.
//!
//! # Which files are refused
//!
//! - One that is not a regular file, or has a second name: a symbolic or hard link leads to a file
//!   that the queue did not make, and a FIFO may never be opened. A file is looked at before it is
//!   opened, opened with `NOFOLLOW` and `NONBLOCK`, and looked at once more by its descriptor.
//! - A file beside the database that more users can write than the database itself: SQLite copies
//!   what it finds in `-wal` and `-journal` into the database. They are looked at before SQLite opens
//!   the database and again when it has opened them, so that another user of a sticky folder cannot
//!   put one there in between.
//! - With [`FileOptions::only_trusted_writers`], a database that other users can write than the
//!   caller, root and those that [`FileOptions::mode`] names.
//!
//! The links of the folder's own path are followed once, when the queue is opened.
//!
//! # Which permissions they have
//!
//! A new database has those of [`FileOptions::mode`], whatever the umask is. The files beside it
//! have the permissions of the database; made by root, they have its owner, too.
//!
//! # When a file is gone
//!
//! [`Files::check`] compares device and inode behind each path with those that SQLite opened. The
//! open descriptors keep an inode from being used again. `commit.rs` checks all of them before a
//! transaction that is to be on the disk, and the database before any other: what is lost of those
//! with the WAL is lost with the power, too. The watcher checks when the system tells it of a
//! change. Once a file was found gone,
//! the queue stays unusable even if the file comes back: other processes may have opened the path
//! meanwhile, with other files beside it, and so with other locks.
//!
//! Only paths are looked at, and no descriptor of a database is ever closed while this process has
//! it open: that would release the locks of SQLite.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};

use super::FileOptions;
use super::error::FileError;

/// The endings of the files beside the database. SQLite makes all but the last.
const BESIDE: [&str; 4] = ["-wal", "-shm", "-journal", WAKE];
/// The ending of the file by which processes wake each other.
const WAKE: &str = "-wake";
/// The permission to write, of the group and of all users.
const WRITE_GROUP: u32 = 0o020;
const WRITE_ALL: u32 = 0o002;
/// The permissions that a file of a queue can have.
const PERMISSIONS: u32 = 0o666;
/// The permissions of the owner, without which there is no queue.
const OWNER: u32 = 0o600;

/// What one file is, among all that exist at a time: device and inode.
pub(super) type FileKey = (u64, u64);

/// The key of a file.
pub(super) fn key(about: &Metadata) -> FileKey {
    (about.dev(), about.ino())
}

/// The files of one open queue.
pub(super) struct Files {
    /// The path of the database, without links.
    database: PathBuf,
    /// The path of `-wake`.
    wake: PathBuf,
    /// From [`FileOptions::mode`].
    mode: u32,
    /// From [`FileOptions::only_trusted_writers`].
    only_trusted_writers: bool,
    /// The files that SQLite keeps open: the database, `-wal` and `-shm`. Set when the queue is open.
    opened: OnceLock<[(PathBuf, FileKey); 3]>,
    /// Set once: one of them is not at its path any more.
    gone: AtomicBool,
}

impl Files {
    /// The files of the queue at this path. None is looked at yet but the folder, which must exist.
    pub(super) fn new(path: &Path, options: &FileOptions) -> Result<Files, FileError> {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")))?;
        let name = path.file_name().ok_or_else(|| not_a_file(path))?;
        let database = folder.join(name);
        Ok(Files {
            wake: beside(&database, WAKE),
            database,
            mode: options.mode & PERMISSIONS | OWNER,
            only_trusted_writers: options.only_trusted_writers,
            opened: OnceLock::new(),
            gone: AtomicBool::new(false),
        })
    }

    /// The path of the database, without links.
    pub(super) fn database(&self) -> &Path {
        &self.database
    }

    /// The path of `-wake`.
    pub(super) fn wake(&self) -> &Path {
        &self.wake
    }

    /// True if there is a `-wake` file, of this queue or made since.
    pub(super) fn has_wake(&self) -> bool {
        fs::symlink_metadata(&self.wake).is_ok()
    }

    /// The paths of the files that SQLite keeps open.
    pub(super) fn opened(&self) -> impl Iterator<Item = &Path> {
        let opened = self.opened.get().into_iter().flatten();
        opened.map(|(path, _)| path.as_path())
    }

    /// True if a process died while it made the tables: SQLite first rolls that back.
    pub(super) fn has_journal(&self) -> bool {
        fs::symlink_metadata(beside(&self.database, "-journal")).is_ok()
    }

    /// Look at the database and the files beside it. `None`: there is no database.
    ///
    /// # Errors
    /// One of them is refused.
    pub(super) fn look(&self) -> Result<Option<FileKey>, FileError> {
        let found = look_at(&self.database)?;
        if let Some(database) = &found {
            self.check_writers(database)?;
        }
        let rights = found
            .as_ref()
            .map_or_else(|| self.rights_of_new(), Rights::of);
        for ending in BESIDE {
            let path = beside(&self.database, ending);
            if let Some(about) = look_at(&path)? {
                rights.check_beside(&path, &about)?;
            }
        }
        Ok(found.as_ref().map(key))
    }

    /// Open the database to read, or make it. The descriptor must not be closed while this process
    /// has the file open otherwise.
    pub(super) fn open_database(&self) -> Result<File, FileError> {
        loop {
            let file = match self.look()? {
                Some(_) => open(&self.database, OFlags::RDONLY),
                None => create(&self.database, OFlags::RDWR, self.mode),
            };
            match file {
                Ok(file) => {
                    let about = file.metadata()?;
                    check_kind(&self.database, &about)?;
                    self.check_writers(&about)?;
                    return Ok(file);
                }
                // It was made or deleted since the look.
                Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => return Err(refusal(&self.database, error)),
            }
        }
    }

    /// Open `-wake` to write, or make it.
    pub(super) fn open_wake(&self) -> Result<File, FileError> {
        let path = &self.wake;
        let database = look_at(&self.database)?.ok_or_else(|| self.is_gone(&self.database))?;
        let rights = Rights::of(&database);
        loop {
            let file = match look_at(path)? {
                Some(_) => open(path, OFlags::WRONLY),
                None => {
                    create(path, OFlags::WRONLY, rights.mode).inspect(|file| rights.hand_over(file))
                }
            };
            match file {
                Ok(file) => {
                    let about = file.metadata()?;
                    check_kind(path, &about)?;
                    rights.check_beside(path, &about)?;
                    return Ok(file);
                }
                Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => return Err(refusal(path, error)),
            }
        }
    }

    /// From now on the files that SQLite has opened must stay where they are. `database` is the one
    /// that was looked at.
    ///
    /// # Errors
    /// Another file is there, or one of them is refused.
    pub(super) fn settle(&self, database: FileKey) -> Result<(), FileError> {
        if self.look()? != Some(database) {
            return Err(self.is_gone(&self.database));
        }
        let opened = |ending| {
            let path = beside(&self.database, ending);
            // After a failed call of the system SQLite may go on without it.
            let about = look_at(&path)?.ok_or_else(|| {
                FileError::Failed(format!("{} could not be made", path.display()))
            })?;
            Ok::<_, FileError>((path, key(&about)))
        };
        let opened = [
            (self.database.clone(), database),
            opened("-wal")?,
            opened("-shm")?,
        ];
        let _ = self.opened.set(opened);
        Ok(())
    }

    /// Check that the files are still those that were opened.
    ///
    /// # Errors
    /// [`FileError::Gone`], from the first time on for ever.
    pub(super) fn check(&self) -> Result<(), FileError> {
        self.check_first(usize::MAX)
    }

    /// The same for the database alone, in a third of the time.
    ///
    /// # Errors
    /// [`FileError::Gone`], also if another check has found another file gone.
    pub(super) fn check_database(&self) -> Result<(), FileError> {
        self.check_first(1)
    }

    fn check_first(&self, count: usize) -> Result<(), FileError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(self.is_gone(&self.database));
        }
        for (path, opened) in self.opened.get().into_iter().flatten().take(count) {
            if !is_at(path, *opened)? {
                return Err(self.is_gone(path));
            }
        }
        Ok(())
    }

    /// The rights at a database that the caller makes.
    fn rights_of_new(&self) -> Rights {
        Rights {
            user: geteuid().as_raw(),
            group: getegid().as_raw(),
            mode: self.mode,
        }
    }

    /// Note that this file is gone.
    fn is_gone(&self, path: &Path) -> FileError {
        self.gone.store(true, Ordering::Release);
        FileError::Gone(path.to_owned())
    }

    /// Refuse a database that users can write whose items are not to be trusted.
    fn check_writers(&self, about: &Metadata) -> Result<(), FileError> {
        if !self.only_trusted_writers {
            return Ok(());
        }
        let refused = |why| Err(FileError::Untrusted(self.database.clone(), why));
        if about.mode() & (WRITE_GROUP | WRITE_ALL) & !self.mode != 0 {
            return refused(
                "other users can write it: take their permission away (chmod go-w), or allow it \
                 with `mode`",
            );
        }
        let own_groups = || {
            let mut groups = getgroups().unwrap_or_default();
            groups.push(getegid());
            groups
        };
        let may_be_owner = is_own(about.uid())
            || self.mode & WRITE_ALL != 0
            || self.mode & WRITE_GROUP != 0 && own_groups().contains(&Gid::from_raw(about.gid()));
        if !may_be_owner {
            return refused(
                "it belongs to another user: make it your own (chown), or share it with a group \
                 (chgrp) and allow that with `mode`",
            );
        }
        Ok(())
    }
}

/// True if this file is at the path.
pub(super) fn is_at(path: &Path, file: FileKey) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(about) => Ok(key(&about) == file),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The path of a file beside the database, with this ending.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Look at a file without opening it, and refuse one of another kind. `None`: there is none.
fn look_at(path: &Path) -> Result<Option<Metadata>, FileError> {
    match fs::symlink_metadata(path) {
        Ok(about) => check_kind(path, &about).map(|()| Some(about)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A folder on the way is missing as well, or is something else now.
fn is_missing(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// Refuse what is not a regular file with one name.
fn check_kind(path: &Path, about: &Metadata) -> Result<(), FileError> {
    let kind = about.file_type();
    let why = if kind.is_symlink() {
        "a symbolic link, which is not followed: give the path of the file itself, or remove the link"
    } else if kind.is_fifo() {
        "a FIFO: remove it, or choose another path"
    } else if !kind.is_file() {
        return Err(not_a_file(path));
    } else if about.nlink() > 1 {
        "a file with a second name (a hard link), under which another program may use it: remove \
         one of the names, or make a copy"
    } else {
        return Ok(());
    };
    Err(FileError::Irregular(path.to_owned(), why))
}

/// Which users can write a database.
struct Rights {
    /// Its owner.
    user: u32,
    /// The group that has the permissions of the group.
    group: u32,
    /// The permissions.
    mode: u32,
}

impl Rights {
    fn of(database: &Metadata) -> Rights {
        Rights {
            user: database.uid(),
            group: database.gid(),
            mode: database.mode() & PERMISSIONS,
        }
    }

    /// Give a file that root has made to the owner of the database.
    fn hand_over(&self, file: &File) {
        if geteuid().is_root() {
            let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
            let _ = rustix::fs::fchown(file, Some(user), Some(group));
        }
    }

    /// Refuse a file beside the database that more users can write than the database.
    fn check_beside(&self, path: &Path, about: &Metadata) -> Result<(), FileError> {
        let shared = self.mode & (WRITE_GROUP | WRITE_ALL);
        let may_be_owner = is_own(about.uid()) || about.uid() == self.user || shared != 0;
        let is_group = about.gid() == self.group || shared & WRITE_ALL != 0;
        let written_by_others = about.mode() & (WRITE_GROUP | WRITE_ALL);
        if may_be_owner
            && written_by_others & !shared == 0
            && (is_group || written_by_others & WRITE_GROUP == 0)
        {
            return Ok(());
        }
        Err(FileError::Untrusted(
            path.to_owned(),
            "more users can write it than the queue's file: remove it, if it is not of this queue, \
             or else give it the owner, group and permissions of the queue's file",
        ))
    }
}

/// The caller, or root, which can do everything anyway.
fn is_own(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

fn not_a_file(path: &Path) -> FileError {
    FileError::Irregular(path.to_owned(), "not a file: choose another path")
}

/// Open a file that was there, and is no link; without waiting, should it be a FIFO now.
fn open(path: &Path, access: OFlags) -> Result<File, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Make a file that was not there, with these permissions.
fn create(path: &Path, access: OFlags, mode: u32) -> Result<File, Errno> {
    let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    // The umask may have taken some away, and for a moment there were not more than these.
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(file)
}

/// The error of an open that failed.
fn refusal(path: &Path, error: Errno) -> FileError {
    match error {
        // It has become a link or a FIFO since the look.
        Errno::LOOP | Errno::NXIO => not_a_file(path),
        error => io::Error::from(error).into(),
    }
}
