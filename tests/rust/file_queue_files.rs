//! The files of a queue: their permissions, those that are refused, and those that are gone. Two
//! queues at one path tell each other of changes as two processes do.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use desist::Time;
use desist::work::{FileError, FileOptions, FileQueue, PutOptions, QueueOptions};

use crate::file_queue::Folder;
use crate::support::{PAST, Parker};

const BESIDE: [&str; 4] = ["-wal", "-shm", "-journal", "-wake"];

fn beside(path: &Path, ending: &str) -> PathBuf {
    format!("{}{ending}", path.display()).into()
}

fn open(path: &Path) -> FileQueue {
    FileQueue::open(path, QueueOptions::default()).unwrap()
}

fn refusal(path: &Path, options: FileOptions) -> Option<FileError> {
    FileQueue::open(path, options).err()
}

fn put(queue: &FileQueue) -> Result<Option<u64>, FileError> {
    queue.put(*b"item", PutOptions::default(), PAST)
}

/// When a wait has failed that should have ended.
fn late() -> Time {
    Time::after(Duration::from_secs(60))
}

fn about(path: &Path) -> Metadata {
    fs::symlink_metadata(path).unwrap()
}

/// Only root can make a file of another user.
fn is_root() -> bool {
    about(Folder::new().path()).uid() == 0
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn with_mode(mode: u32) -> FileOptions {
    FileOptions {
        mode,
        ..FileOptions::default()
    }
}

/// For items that run code when they are decoded.
fn trusting(mode: u32) -> FileOptions {
    FileOptions {
        only_trusted_writers: true,
        ..with_mode(mode)
    }
}

// ---------------------------------------------------------------------- permissions

#[test]
fn the_files_have_exactly_the_permissions_of_the_mode() {
    // The umask of the test would take some of the last two away.
    for (options, mode) in [
        (FileOptions::default(), 0o600),
        (with_mode(0o660), 0o660),
        (with_mode(0o666), 0o666),
        (with_mode(0o7177), 0o666 & 0o177 | 0o600),
    ] {
        let folder = Folder::new();
        let queue = FileQueue::open(folder.file(), options).unwrap();
        put(&queue).unwrap();
        for ending in ["", "-wal", "-shm", "-wake"] {
            let about = about(&beside(&folder.file(), ending));
            assert_eq!(about.mode() & 0o7777, mode, "{ending}");
        }
    }
}

#[test]
fn the_files_beside_an_older_one_have_its_permissions() {
    let folder = Folder::new();
    drop(open(&folder.file()));
    fs::remove_file(beside(&folder.file(), "-wake")).unwrap();
    set_mode(&folder.file(), 0o640);
    let queue = open(&folder.file());
    put(&queue).unwrap();
    for ending in ["", "-wal", "-shm", "-wake"] {
        let about = about(&beside(&folder.file(), ending));
        assert_eq!(about.mode() & 0o7777, 0o640, "{ending}");
    }
}

// ---------------------------------------------------------------------- files that are refused

/// Makes something at a path that leads elsewhere; it is also given a file of the user's.
type Making = fn(&Path, &Path);

/// The ways in which a path can lead elsewhere.
const IRREGULAR: [(&str, Making); 5] = [
    ("a link", |path, victim| symlink(victim, path).unwrap()),
    ("a dangling link", |path, _| {
        symlink("nowhere", path).unwrap();
    }),
    ("a hard link", |path, victim| {
        fs::hard_link(victim, path).unwrap();
    }),
    ("a FIFO", |path, _| {
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    }),
    ("a folder", |path, _| fs::create_dir(path).unwrap()),
];

#[test]
fn no_file_of_a_queue_may_be_a_link_a_fifo_or_a_folder() {
    for ending in ["", "-wal", "-shm", "-journal", "-wake"] {
        for (what, make) in IRREGULAR {
            for is_new in [true, false] {
                let folder = Folder::new();
                let (file, victim) = (folder.file(), folder.file().with_file_name("victim"));
                if !is_new {
                    put(&open(&file)).unwrap();
                }
                fs::write(&victim, "").unwrap();
                let path = beside(&file, ending);
                let _ = fs::remove_file(&path);
                make(&path, &victim);
                let error = refusal(&file, FileOptions::default());
                let canonical = folder.path().canonicalize().unwrap();
                let path = canonical.join(path.file_name().unwrap());
                assert!(
                    matches!(&error, Some(FileError::Irregular(refused, _)) if *refused == path),
                    "{ending}: {what}: {error:?}"
                );
                assert_eq!(
                    about(&victim).len(),
                    0,
                    "{ending}: {what}: was written through"
                );
                assert!(!folder.path().join("nowhere").exists(), "{ending}: {what}");
            }
        }
    }
}

#[test]
fn the_folder_of_a_queue_may_be_a_link() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("real")).unwrap();
    symlink("real", folder.path().join("link")).unwrap();
    let queue = open(&folder.path().join("link/jobs.db"));
    put(&queue).unwrap();
    let other = open(&folder.path().join("real/jobs.db"));
    assert_eq!(other.path(), queue.path());
    assert_eq!(other.counts().unwrap().ready, 1);
}

#[test]
fn a_file_beside_the_database_that_more_users_can_write_is_refused() {
    for ending in BESIDE {
        let folder = Folder::new();
        put(&open(&folder.file())).unwrap();
        let path = beside(&folder.file(), ending);
        File::create(&path).unwrap();
        for mode in [0o620, 0o602] {
            set_mode(&path, mode);
            let error = refusal(&folder.file(), FileOptions::default());
            assert!(
                matches!(error, Some(FileError::Untrusted(..))),
                "{ending}: {error:?}"
            );
        }
        // As many as the database.
        set_mode(&folder.file(), 0o622);
        assert_eq!(
            refusal(&folder.file(), FileOptions::default()),
            None,
            "{ending}"
        );
    }
}

#[test]
fn a_file_beside_the_database_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    for ending in BESIDE {
        let folder = Folder::new();
        put(&open(&folder.file())).unwrap();
        let path = beside(&folder.file(), ending);
        File::create(&path).unwrap();
        set_mode(&path, 0o600);
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = refusal(&folder.file(), FileOptions::default());
        assert!(
            matches!(error, Some(FileError::Untrusted(..))),
            "{ending}: {error:?}"
        );
        // The owner of the database can write it anyway.
        std::os::unix::fs::chown(folder.file(), Some(12345), None).unwrap();
        assert_eq!(
            refusal(&folder.file(), FileOptions::default()),
            None,
            "{ending}"
        );
    }
}

#[test]
fn items_that_run_code_are_read_only_from_files_that_no_other_user_can_write() {
    let folder = Folder::new();
    put(&open(&folder.file())).unwrap();
    let before = fs::read(folder.file()).unwrap();
    for (mode, allowed, is_trusted) in [
        (0o600, 0o600, true),
        (0o644, 0o600, true),
        (0o620, 0o600, false),
        (0o602, 0o600, false),
        (0o660, 0o660, true),
        (0o662, 0o660, false),
        (0o666, 0o666, true),
    ] {
        set_mode(&folder.file(), mode);
        let error = refusal(&folder.file(), trusting(allowed));
        assert_eq!(
            matches!(error, Some(FileError::Untrusted(..))),
            !is_trusted,
            "{mode:o} with {allowed:o}: {error:?}"
        );
        assert_eq!(error.is_none(), is_trusted);
        if !is_trusted {
            assert!(fs::read(folder.file()).unwrap() == before, "it was changed");
        }
        assert_eq!(
            refusal(&folder.file(), with_mode(allowed)),
            None,
            "other items"
        );
        // The next round compares with what is in the file now.
        fs::write(folder.file(), &before).unwrap();
    }
}

#[test]
fn items_that_run_code_are_read_only_from_files_of_the_user_or_a_group_that_was_named() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    drop(open(&folder.file()));
    let own_group = about(folder.path()).gid();
    for (group, mode, allowed, is_trusted) in [
        (own_group, 0o600, 0o600, false),
        (own_group, 0o660, 0o660, true),
        (12345, 0o660, 0o660, false),
        (12345, 0o666, 0o666, true),
    ] {
        std::os::unix::fs::chown(folder.file(), Some(12345), Some(group)).unwrap();
        for ending in ["", "-wake"] {
            set_mode(&beside(&folder.file(), ending), mode & 0o640);
        }
        set_mode(&folder.file(), mode);
        let error = refusal(&folder.file(), trusting(allowed));
        assert_eq!(
            error.is_none(),
            is_trusted,
            "{mode:o} with {allowed:o}: {error:?}"
        );
        assert_eq!(
            refusal(&folder.file(), with_mode(allowed)),
            None,
            "other items"
        );
    }
}

// ---------------------------------------------------------------------- the locks of SQLite

#[cfg(target_os = "linux")]
#[test]
fn a_second_queue_at_the_path_leaves_the_locks_of_the_first() {
    let folder = Folder::new();
    let first = open(&folder.file());
    put(&first).unwrap();
    let inode = format!(":{} ", about(&folder.file()).ino());
    let own = format!(" {} ", std::process::id());
    let locks = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let is_own = |line: &&str| line.contains(&inode) && line.contains(&own);
        locks.lines().filter(is_own).count()
    };
    assert!(locks() > 0);
    let second = open(&folder.file());
    assert!(locks() > 0, "released by the second");
    set_mode(&folder.file(), 0o666);
    assert!(refusal(&folder.file(), trusting(0o600)).is_some());
    assert!(locks() > 0, "released by a queue that was refused");
    drop(second);
    assert!(locks() > 0, "released by the end of the second");
    drop(first);
    assert_eq!(locks(), 0);
}

// ---------------------------------------------------------------------- files that are gone

/// Lets a file or folder go.
type Going = fn(&Path);

/// The ways in which a file can go, at any time.
const GOING: [(&str, Going); 3] = [
    ("deleted", |path| fs::remove_file(path).unwrap()),
    ("moved", |path| {
        fs::rename(path, beside(path, ".old")).unwrap();
    }),
    ("replaced", |path| {
        let new = beside(path, ".new");
        fs::copy(path, &new).unwrap();
        fs::rename(new, path).unwrap();
    }),
];

fn is_gone<T: std::fmt::Debug>(result: &Result<T, FileError>) -> bool {
    matches!(result, Err(FileError::Gone(_)))
}

/// Check that all waits of two queues at the path end when `go` has been called, and that nothing
/// succeeds any more.
fn all_notice(file: &Path, what: &str, go: impl FnOnce()) {
    let options = QueueOptions {
        maxsize: 1,
        ..QueueOptions::default()
    };
    let queues = [(), ()].map(|()| FileQueue::open(file, options).unwrap());
    put(&queues[0]).unwrap();
    let lease = queues[0].lease(PAST).unwrap().unwrap();
    let waits = queues.each_ref().map(|queue| {
        let [leasing, draining, putting] = [queue.clone(), queue.clone(), queue.clone()];
        (
            Parker::spawn_parked(move || is_gone(&leasing.lease(late()))),
            Parker::spawn_parked(move || is_gone(&draining.drain(late()))),
            Parker::spawn_parked(move || {
                is_gone(&putting.put(*b"more", PutOptions::default(), late()))
            }),
        )
    });
    go();
    for (leasing, draining, putting) in waits {
        assert!(leasing.join(), "{what}: lease()");
        assert!(draining.join(), "{what}: drain()");
        assert!(putting.join(), "{what}: put()");
    }
    for queue in &queues {
        assert!(is_gone(&queue.counts()), "{what}");
        assert!(is_gone(&queue.ack(lease.id, lease.epoch)), "{what}");
        assert!(is_gone(&put(queue)), "{what}");
    }
}

#[test]
fn i48_a_deleted_moved_or_replaced_file_is_noticed_by_all_that_have_it_open() {
    for ending in ["", "-wal", "-shm"] {
        for (how, go) in GOING {
            let folder = Folder::new();
            let path = beside(&folder.file(), ending);
            all_notice(&folder.file(), &format!("{ending} {how}"), || go(&path));
        }
    }
}

#[test]
fn i48_a_deleted_or_moved_folder_is_noticed_by_all_that_have_a_file_in_it_open() {
    let goings: [(&str, Going); 3] = [
        ("deleted", |folder| fs::remove_dir_all(folder).unwrap()),
        ("moved", |folder| {
            fs::rename(folder, beside(folder, ".old")).unwrap();
        }),
        ("the folder above moved", |folder| {
            let above = folder.parent().unwrap();
            fs::rename(above, beside(above, ".old")).unwrap();
        }),
    ];
    for (how, go) in goings {
        let outer = Folder::new();
        let folder = outer.path().join("above/folder");
        fs::create_dir_all(&folder).unwrap();
        all_notice(&folder.join("jobs.db"), how, || go(&folder));
    }
}

#[test]
fn a_queue_whose_file_was_replaced_leaves_the_new_one_alone() {
    for (how, go) in GOING {
        let folder = Folder::new();
        let old = open(&folder.file());
        put(&old).unwrap();
        go(&folder.file());
        for ending in ["-wal", "-shm"] {
            fs::remove_file(beside(&folder.file(), ending)).unwrap();
        }
        let new = open(&folder.file());
        let before = new.counts().unwrap().ready;
        put(&new).unwrap();
        drop(old);
        let inode = about(&beside(&folder.file(), "-wal")).ino();
        put(&new).unwrap();
        assert_eq!(about(&beside(&folder.file(), "-wal")).ino(), inode, "{how}");
        drop(new);
        assert_eq!(
            open(&folder.file()).counts().unwrap().ready,
            before + 2,
            "{how}"
        );
    }
}

#[test]
fn a_file_that_has_come_back_stays_gone_for_those_that_had_it_open() {
    let folder = Folder::new();
    let queue = open(&folder.file());
    put(&queue).unwrap();
    let away = beside(&folder.file(), ".away");
    fs::rename(folder.file(), &away).unwrap();
    assert!(is_gone(&queue.counts()));
    fs::rename(&away, folder.file()).unwrap();
    assert!(is_gone(&queue.counts()));
    drop(queue);
    assert_eq!(open(&folder.file()).counts().unwrap().ready, 1);
}

// ---------------------------------------------------------------------- the `-wake` file

#[test]
fn i12_i48_no_waiter_misses_an_item_when_the_wake_file_goes() {
    for (how, go) in GOING {
        for round in 0..20 {
            let folder = Folder::new();
            let wake = beside(&folder.file(), "-wake");
            let [one, two] = [(), ()].map(|()| open(&folder.file()));
            if round % 2 == 0 {
                go(&wake); // before the wait, or in it
            }
            let theirs = one.clone();
            let worker = Parker::spawn_parked(move || theirs.lease(late()).unwrap().is_some());
            if round % 2 == 1 {
                go(&wake);
            }
            // A process that opens the queue now makes the file.
            let late = open(&folder.file());
            put(if round % 4 < 2 { &two } else { &late }).unwrap();
            assert!(worker.join(), "{how}, round {round}");
        }
    }
}

#[test]
fn i12_i48_a_wake_file_that_goes_again_and_again_is_made_again() {
    let folder = Folder::new();
    let wake = beside(&folder.file(), "-wake");
    let queues = [(), ()].map(|()| open(&folder.file()));
    for round in 0..3 {
        fs::remove_file(&wake).unwrap();
        for (putting, leasing) in [(0, 1), (1, 0)] {
            let theirs = queues[leasing].clone();
            let worker = Parker::spawn_parked(move || theirs.lease(late()).unwrap().is_some());
            put(&queues[putting]).unwrap();
            assert!(worker.join(), "round {round}");
        }
        let end = late();
        while !wake.exists() && Time::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(about(&wake).mode() & 0o777, 0o600);
    }
}

#[test]
fn i12_i48_a_link_or_a_fifo_in_the_place_of_the_wake_file_is_left_alone() {
    // But a folder, which cannot take the place of a file.
    for (what, make) in &IRREGULAR[..4] {
        let folder = Folder::new();
        let wake = beside(&folder.file(), "-wake");
        let queues = [(), ()].map(|()| open(&folder.file()));
        let victim = folder.path().join("victim");
        fs::write(&victim, "").unwrap();
        let other = beside(&wake, ".new");
        make(&other, &victim);
        fs::rename(other, &wake).unwrap();
        let theirs = queues[0].clone();
        let worker = Parker::spawn_parked(move || theirs.lease(late()).unwrap().is_some());
        put(&queues[1]).unwrap();
        assert!(worker.join(), "{what}");
        assert_eq!(about(&victim).len(), 0, "{what}");
    }
}
