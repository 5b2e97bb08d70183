//! The queue in a file: its waits, and the properties of the file. See also `file_queue_crash.rs`,
//! `file_queue_files.rs` and `file_queue_power.rs`; its unit tests compare it with the model of all queues.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use desist::work::{
    Bytes, Failure, FileError, FileQueue, Lease, Nack, NackOutcome, PutOptions, QueueOptions,
    RetryPolicy,
};
use desist::{Scope, Time, move_on_after};

use crate::support::{PAST, Parker, far};

const HOUR: Duration = Duration::from_secs(3600);

/// A folder of its own, deleted at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("file-queue-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("jobs.db")
    }

    fn open(&self) -> FileQueue {
        FileQueue::open(self.file(), QueueOptions::default()).unwrap()
    }

    fn open_with(&self, options: QueueOptions) -> FileQueue {
        FileQueue::open(self.file(), options).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bytes(text: &str) -> Bytes {
    text.as_bytes().into()
}

fn note(number: u32) -> Bytes {
    number.to_string().into_bytes().into()
}

fn put(queue: &FileQueue, item: &str) -> u64 {
    queue
        .put(bytes(item), PutOptions::default(), PAST)
        .unwrap()
        .unwrap()
}

fn lease(queue: &FileQueue) -> Option<Lease<Bytes, Bytes>> {
    queue.lease(PAST).unwrap()
}

fn policy(max_attempts: u32) -> QueueOptions {
    QueueOptions {
        retry: RetryPolicy {
            max_attempts,
            backoff: HOUR,
            max_backoff: HOUR,
            jitter: 0.5,
        },
        ..QueueOptions::default()
    }
}

// ---------------------------------------------------------------------- waiting

#[test]
fn a_waiting_worker_gets_the_next_item_and_the_longest_waiting_is_first() {
    let folder = Folder::new();
    let queue = folder.open();
    let wait = || {
        let queue = queue.clone();
        Parker::spawn_parked(move || queue.lease(Time::NEVER).unwrap().unwrap().item)
    };
    let first = wait();
    put(&queue, "one");
    assert_eq!(first.join(), bytes("one"));
    let second = wait();
    put(&queue, "two");
    assert_eq!(second.join(), bytes("two"));
}

#[test]
fn drain_waits_for_the_last_item_and_its_waiter_can_be_cancelled() {
    let folder = Folder::new();
    let queue = folder.open();
    assert_eq!(queue.drain(PAST), Ok(true), "nothing to do");
    put(&queue, "item");
    assert_eq!(queue.drain(PAST), Ok(false));
    assert_eq!(
        move_on_after(Duration::from_millis(1), |_| queue.drain(Time::NEVER)),
        Ok(None)
    );
    let lease = lease(&queue).unwrap();
    let theirs = queue.clone();
    let drainer = Parker::spawn_parked(move || theirs.drain(Time::NEVER));
    queue.ack(lease.id, lease.epoch).unwrap();
    assert_eq!(drainer.join(), Ok(true));
}

#[test]
fn a_closed_queue_ends_the_waits_of_its_workers_and_keeps_its_items() {
    let folder = Folder::new();
    let queue = folder.open();
    let theirs = queue.clone();
    let worker = Parker::spawn_parked(move || theirs.lease(Time::NEVER));
    queue.close();
    assert_eq!(worker.join(), Ok(None));
    put(&queue, "item");
    assert_eq!(queue.lease(far()), Ok(None));
    assert_eq!(queue.counts().unwrap().ready, 1);
}

#[test]
fn an_earlier_pause_wakes_a_worker_that_waits_for_a_later_one() {
    let folder = Folder::new();
    let queue = folder.open();
    let [late, soon] = ["late", "soon"].map(|item| {
        put(&queue, item);
        lease(&queue).unwrap()
    });
    queue
        .nack(late.id, late.epoch, Nack::After(HOUR), None)
        .unwrap();
    let theirs = queue.clone();
    let worker = Parker::spawn_parked(move || theirs.lease(Time::NEVER).unwrap().unwrap().item);
    let pause = Nack::After(Duration::from_millis(1));
    queue.nack(soon.id, soon.epoch, pause, None).unwrap();
    assert_eq!(worker.join(), bytes("soon"));
}

#[test]
fn a_put_waits_for_room_and_can_be_cancelled() {
    let folder = Folder::new();
    let queue = folder.open_with(QueueOptions {
        maxsize: 1,
        ..QueueOptions::default()
    });
    put(&queue, "one");
    let try_put = |until| queue.put(bytes("two"), PutOptions::default(), until);
    assert_eq!(try_put(PAST), Ok(None), "full");
    assert_eq!(
        move_on_after(Duration::from_millis(1), |_| try_put(Time::NEVER)),
        Ok(None)
    );
    let theirs = queue.clone();
    let putter =
        Parker::spawn_parked(move || theirs.put(bytes("two"), PutOptions::default(), Time::NEVER));
    let lease = lease(&queue).unwrap();
    assert_eq!(try_put(PAST), Ok(None), "a leased item takes room, too");
    queue.ack(lease.id, lease.epoch).unwrap();
    assert_eq!(putter.join(), Ok(Some(2)));
    assert_eq!(queue.counts().unwrap().ready, 1);
}

#[test]
fn i12_an_expired_item_makes_room_and_ends_a_drain() {
    let folder = Folder::new();
    let queue = folder.open_with(QueueOptions {
        maxsize: 1,
        ..QueueOptions::default()
    });
    let put = |delay, timeout, until| {
        let options = PutOptions {
            delay,
            expires: Some(timeout),
            ..PutOptions::default()
        };
        queue.put(bytes("item"), options, until)
    };
    let soon = Duration::from_millis(1);
    // Ready, or delayed for longer than its time to live.
    for delay in [Duration::ZERO, HOUR] {
        assert!(put(delay, soon, far()).unwrap().is_some());
        assert!(put(delay, soon, far()).unwrap().is_some());
        assert_eq!(queue.drain(far()), Ok(true));
    }
    assert_eq!(queue.counts().unwrap().dead, 4);
}

#[test]
fn i15_a_put_in_a_cancelled_scope_puts_nothing() {
    let folder = Folder::new();
    let queue = folder.open();
    let put = |_: &Scope| queue.put(bytes("item"), PutOptions::default(), far());
    assert_eq!(move_on_after(Duration::ZERO, put), Ok(None));
    assert_eq!(queue.counts().unwrap().ready, 0);
}

/// A different number for each pair, and the same in each run.
fn dice(worker: usize, turn: usize) -> usize {
    (worker * 31 + turn * 17 + worker * turn) % 11
}

#[test]
fn i12_i28_i29_with_many_workers_every_item_is_done_once_or_dead() {
    const ITEMS: usize = 200;
    let folder = Folder::new();
    let options = QueueOptions {
        retry: RetryPolicy {
            max_attempts: 3,
            backoff: Duration::from_micros(50),
            max_backoff: Duration::from_micros(200),
            jitter: 0.5,
        },
        maxsize: 20,
        ..QueueOptions::default()
    };
    // Two queues, as in two processes: they wake each other through the file alone.
    let queues = [folder.open_with(options), folder.open_with(options)];
    let acked: [AtomicU32; ITEMS] = std::array::from_fn(|_| AtomicU32::new(0));
    let work = |worker: usize| {
        let queue = &queues[worker % 2];
        for turn in 0.. {
            let patience = if dice(worker, turn) < 3 {
                Duration::from_micros(20)
            } else {
                HOUR
            };
            let lease = match move_on_after(patience, |_| queue.lease(Time::NEVER)) {
                Ok(Some(Some(lease))) => lease,
                Ok(Some(None)) => return,
                Ok(None) => continue,
                Err(stop) => panic!("{stop:?}"),
            };
            let (id, epoch) = (lease.id, lease.epoch);
            let item: usize = std::str::from_utf8(&lease.item).unwrap().parse().unwrap();
            match dice(worker + 1, turn) {
                0 => assert!(queue.nack(id, epoch, Nack::AtOnce, None).is_ok()),
                1 | 2 => assert!(queue.nack(id, epoch, Nack::Failed, Some(note(1))).is_ok()),
                3 => {
                    assert_eq!(queue.cancel(id, note(2)), Ok(Some(false)));
                    let given = queue.nack(id, epoch, Nack::AtOnce, None);
                    assert_eq!(given, Ok(NackOutcome::Dead));
                }
                _ => {
                    assert_eq!(queue.ack(id, epoch), Ok(()));
                    assert_eq!(acked[item].fetch_add(1, Ordering::Relaxed), 0, "done twice");
                    assert_eq!(queue.ack(id, epoch), Err(FileError::Fenced));
                }
            }
        }
    };
    thread::scope(|threads| {
        for worker in 0..4 {
            threads.spawn(move || work(worker));
        }
        for item in 0..ITEMS {
            let item: Bytes = item.to_string().into_bytes().into();
            queues[0]
                .put(item, PutOptions::default(), Time::NEVER)
                .unwrap();
        }
        assert_eq!(queues[1].drain(Time::NEVER), Ok(true));
        queues.iter().for_each(FileQueue::close);
    });
    let done: u32 = acked
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .sum();
    let counts = queues[0].counts().unwrap();
    assert_eq!((counts.ready, counts.leased, counts.delayed), (0, 0, 0));
    assert_eq!(
        (counts.done, counts.dead as u64),
        (u64::from(done), ITEMS as u64 - u64::from(done))
    );
}

// ---------------------------------------------------------------------- one thing at a time

#[test]
fn an_item_with_a_known_key_is_the_one_that_is_there() {
    let folder = Folder::new();
    let queue = folder.open_with(policy(1));
    let put = || {
        let options = PutOptions {
            key: Some("key".into()),
            ..PutOptions::default()
        };
        queue.put(bytes("item"), options, PAST).unwrap().unwrap()
    };
    let id = put();
    assert_eq!(put(), id);
    let first = lease(&queue).unwrap();
    assert_eq!(put(), id, "leased");
    queue.nack(id, first.epoch, Nack::Failed, None).unwrap();
    assert_eq!(queue.counts().unwrap().dead, 1);
    assert_eq!(put(), id, "dead");
    queue.retry(id).unwrap();
    let again = lease(&queue).unwrap();
    queue.ack(id, again.epoch).unwrap();
    assert_ne!(put(), id, "done");
}

#[test]
fn the_least_priority_comes_first_then_the_oldest_item() {
    let folder = Folder::new();
    let queue = folder.open();
    for (priority, item) in [(1, "d"), (0, "b"), (-1, "a"), (0, "c")] {
        let options = PutOptions {
            priority,
            ..PutOptions::default()
        };
        queue.put(bytes(item), options, PAST).unwrap();
    }
    let a = lease(&queue).unwrap();
    let b = lease(&queue).unwrap();
    assert_eq!((a.item, b.item), (bytes("a"), bytes("b")));
    queue.nack(b.id, b.epoch, Nack::AtOnce, None).unwrap();
    let rest = [(); 3].map(|()| lease(&queue).unwrap().item);
    assert_eq!(rest, ["b", "c", "d"].map(bytes));
}

#[test]
fn the_next_attempt_has_the_progress_in_any_process() {
    let folder = Folder::new();
    let queue = folder.open();
    let id = put(&queue, "item");
    let first = lease(&queue).unwrap();
    assert_eq!(first.progress(), None);
    queue.extend(id, first.epoch, Some(bytes("half"))).unwrap();
    queue.extend(id, first.epoch, None).unwrap();
    drop(queue);
    let queue = folder.open();
    let again = lease(&queue).unwrap();
    assert_eq!(again.progress(), Some(&bytes("half")));
    assert_eq!(queue.extend(id, first.epoch, None), Err(FileError::Fenced));
}

#[test]
fn many_items_are_put_together_or_not_at_all() {
    let folder = Folder::new();
    let queue = folder.open_with(QueueOptions {
        maxsize: 3,
        ..QueueOptions::default()
    });
    let many = |count| (0..count).map(|number| (note(number), PutOptions::default()));
    assert_eq!(queue.put_many(many(2), PAST), Ok(Some(vec![1, 2])));
    assert_eq!(queue.put_many(many(2), PAST), Ok(None), "not one of them");
    assert_eq!(queue.counts().unwrap().ready, 2);
    let first = lease(&queue).unwrap();
    assert_eq!(queue.put_many(many(2), PAST), Ok(None), "it has not ended");
    queue
        .nack(first.id, first.epoch, Nack::AtOnce, None)
        .unwrap();
    let dead = queue.dead_letter_all(bytes("shutdown")).unwrap();
    assert_eq!(dead, [note(0), note(1)]);
    assert_eq!(
        queue.dead().unwrap()[0].2,
        [Failure::Noted(bytes("shutdown"))]
    );
    assert_eq!(
        queue.put_many(many(5), PAST).unwrap().unwrap().len(),
        5,
        "nothing else is there"
    );
}

#[test]
fn the_tables_are_readable_by_people() {
    let folder = Folder::new();
    let queue = folder.open();
    put(&queue, "item");
    let _lease = lease(&queue).unwrap();
    let reader = rusqlite::Connection::open(folder.file()).unwrap();
    let row = reader.query_row("SELECT state, attempt, pid, bytes FROM queue", [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    assert_eq!(row, Ok(("leased".to_owned(), 1, std::process::id(), 4)));
}

// ---------------------------------------------------------------------- files that are none

/// All files of the folder, with their contents.
fn content(folder: &Folder) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(&folder.0).unwrap();
    let mut content: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    content.sort();
    content
}

/// Check that the file is refused, and left as it is.
fn refused(folder: &Folder) -> FileError {
    let before = content(folder);
    let error = FileQueue::open(folder.file(), QueueOptions::default()).unwrap_err();
    assert!(content(folder) == before, "{error}: and was changed");
    error
}

#[test]
fn a_foreign_file_is_refused_and_left_as_it_is() {
    for text in ["short", &"long".repeat(1000)] {
        let folder = Folder::new();
        fs::write(folder.file(), text).unwrap();
        assert_eq!(refused(&folder), FileError::Foreign);
    }
    for mode in ["DELETE", "WAL"] {
        let folder = Folder::new();
        let other = rusqlite::Connection::open(folder.file()).unwrap();
        other
            .pragma_update_and_check(None, "journal_mode", mode, |_| Ok(()))
            .unwrap();
        other
            .execute_batch("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1)")
            .unwrap();
        drop(other);
        assert_eq!(refused(&folder), FileError::Foreign);
    }
    let folder = Folder::new();
    fs::create_dir(folder.file()).unwrap();
    let error = FileQueue::open(folder.file(), QueueOptions::default()).unwrap_err();
    assert!(matches!(error, FileError::Irregular(..)), "{error:?}");
}

#[test]
fn a_queue_of_a_newer_version_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    drop(folder.open());
    let newer = rusqlite::Connection::open(folder.file()).unwrap();
    newer.pragma_update(None, "user_version", 3).unwrap();
    drop(newer);
    assert_eq!(refused(&folder), FileError::Newer { version: 3 });
}

#[test]
fn i28_a_queue_of_an_older_version_is_brought_up_to_date() {
    let folder = Folder::new();
    let queue = folder.open();
    let id = put(&queue, "old");
    drop(queue);
    let older = rusqlite::Connection::open(folder.file()).unwrap();
    let undo = "DROP VIEW queue; ALTER TABLE items DROP COLUMN holder; \
                ALTER TABLE items DROP COLUMN time_limit; CREATE VIEW queue AS SELECT 1; \
                PRAGMA user_version = 1";
    older.execute_batch(undo).unwrap();
    drop(older);
    let limited = PutOptions {
        time_limit: Some(Duration::from_secs(1)),
        ..PutOptions::default()
    };
    let queue = folder.open();
    queue.put(*b"new", limited, PAST).unwrap();
    let leases = [(); 2].map(|()| queue.lease(PAST).unwrap().unwrap());
    assert_eq!(leases[0].id, id);
    let limits = leases.map(|lease| lease.time_limit());
    assert_eq!(limits, [None, Some(Duration::from_secs(1))]);
}

#[test]
fn a_file_that_was_cut_off_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let queue = folder.open();
    (0..100).for_each(|_| _ = put(&queue, &"item".repeat(100)));
    drop(queue);
    let whole = fs::read(folder.file()).unwrap();
    for length in [200, 4096, 5000, whole.len() / 2, whole.len() - 4096] {
        fs::write(folder.file(), &whole[..length]).unwrap();
        let error = refused(&folder);
        assert!(
            matches!(error, FileError::Damaged(_)),
            "{length}: {error:?}"
        );
    }
    fs::write(folder.file(), &whole[..50]).unwrap();
    assert_eq!(refused(&folder), FileError::Foreign);
    fs::write(folder.file(), whole).unwrap();
    assert_eq!(folder.open().counts().unwrap().ready, 100);
}

#[test]
fn an_overwritten_file_is_an_error_and_left_as_it_is() {
    let folder = Folder::new();
    put(&folder.open(), "item");
    let mut content = fs::read(folder.file()).unwrap();
    content[4096..].fill(0xff);
    fs::write(folder.file(), &content).unwrap();
    let error = refused(&folder);
    assert!(matches!(error, FileError::Damaged(_)), "{error:?}");
}

#[test]
fn an_empty_file_becomes_a_queue() {
    let folder = Folder::new();
    fs::write(folder.file(), "").unwrap();
    put(&folder.open(), "item");
}

#[cfg(target_os = "linux")]
#[test]
#[allow(unsafe_code)] // to become a user without the right to write
fn a_read_only_file_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    put(&folder.open(), "item");
    fs::set_permissions(folder.file(), PermissionsExt::from_mode(0o444)).unwrap();
    let opened = thread::spawn({
        let file = folder.file();
        move || {
            // SAFETY: the system call changes the user of this thread only.
            unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
            FileQueue::open(file, QueueOptions::default()).map(|_| ())
        }
    });
    assert_eq!(opened.join().unwrap(), Err(FileError::ReadOnly));
    fs::set_permissions(folder.file(), PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(folder.open().counts().unwrap().ready, 1);
}

#[test]
fn a_missing_folder_is_an_error() {
    let error = FileQueue::open("/nowhere/jobs.db", QueueOptions::default()).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn many_processes_may_make_the_file_at_the_same_time() {
    let folder = Folder::new();
    thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| put(&folder.open(), "item"));
        }
    });
    assert_eq!(folder.open().counts().unwrap().ready, 8);
}
