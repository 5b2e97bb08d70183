//! What needs clocks that stand still, or a patience that is short.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::clock::testing::Set;
use super::*;

const PAST: Time = Time::from_nanos(1);
const SECOND: u64 = 1000;

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("desist-file-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn open(&self, clock: &Arc<Set>) -> FileQueue {
        self.open_with(clock, FileOptions::default())
    }

    fn open_with(&self, clock: &Arc<Set>, options: FileOptions) -> FileQueue {
        FileQueue::open_by(&self.0.join("jobs.db"), options, clock.clone()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn put(queue: &FileQueue, delay: u64, timeout: Option<u64>) -> u64 {
    let options = PutOptions {
        delay: Duration::from_millis(delay),
        timeout: timeout.map(Duration::from_millis),
        ..PutOptions::default()
    };
    queue.put(*b"item", options, PAST).unwrap().unwrap()
}

fn is_there(queue: &FileQueue) -> bool {
    queue.lease(PAST).unwrap().is_some()
}

#[test]
fn i38_a_wall_clock_that_is_set_changes_no_pause() {
    for wall in [0, 5_000_000_000_000] {
        let (folder, clock) = (Folder::new(), Set::to(10 * SECOND, 1_000_000_000_000, "a"));
        let queue = folder.open(&clock);
        put(&queue, 10 * SECOND, None);
        clock.set(20 * SECOND - 1, wall);
        assert!(!is_there(&queue));
        clock.set(20 * SECOND, wall);
        assert!(is_there(&queue));
    }
}

#[test]
fn i38_after_another_start_of_the_machine_what_the_wall_says_is_left_is_left() {
    // The pause is ten seconds, put when the wall showed 1000 s.
    for (wall, left) in [(1004, 6), (1010, 0), (9999, 0), (1000, 10), (3, 10)] {
        let (folder, clock) = (Folder::new(), Set::to(77 * SECOND, 1_000_000, "a"));
        put(&folder.open(&clock), 10 * SECOND, None);
        let clock = Set::to(SECOND, wall * 1000, "b");
        let queue = folder.open(&clock);
        if left > 0 {
            clock.set(SECOND + left * SECOND - 1, wall);
            assert!(!is_there(&queue), "{wall}");
        }
        clock.set(SECOND + left * SECOND, wall);
        assert!(is_there(&queue), "{wall}");
    }
}

#[test]
fn i38_an_items_own_time_goes_by_the_same_clock() {
    let (folder, clock) = (Folder::new(), Set::to(77 * SECOND, 1_000_000, "a"));
    let queue = folder.open(&clock);
    let [one, two] = [(), ()].map(|()| put(&queue, 0, Some(10 * SECOND)));
    clock.set(86 * SECOND, 0);
    let lease = queue.lease(PAST).unwrap().unwrap();
    assert_eq!(lease.deadline, Some(Time::from_nanos(87_000_000_000)));
    queue.ack(one, lease.epoch).unwrap();
    drop(queue);
    let clock = Set::to(0, 1_004_000, "b");
    let queue = folder.open(&clock);
    clock.set(6 * SECOND, 0);
    assert!(!is_there(&queue));
    let dead = queue.dead().unwrap();
    assert_eq!(
        dead,
        [(two, Bytes::from(*b"item"), vec![Failure::ItemTimedOut])]
    );
    // It has all its time again.
    assert_eq!(queue.revive(two), Ok(true));
    clock.set(16 * SECOND - 1, 0);
    assert_eq!(queue.lease(PAST).unwrap().unwrap().attempt, 1);
}

#[test]
fn i29_a_lease_that_is_not_extended_in_time_is_over() {
    let (folder, clock) = (Folder::new(), Set::to(77 * SECOND, 0, "a"));
    let options = FileOptions {
        lease_timeout: Some(Duration::from_secs(10)),
        ..FileOptions::default()
    };
    let queue = folder.open_with(&clock, options);
    let id = put(&queue, 0, None);
    let lease = queue.lease(PAST).unwrap().unwrap();
    clock.set(86 * SECOND, 0);
    let progress = Some(Bytes::from(*b"half"));
    let extended = queue.extend(id, lease.epoch, progress.clone());
    assert!(extended.is_ok_and(|until| until > lease.until));
    let look = || keeper::look(queue.shared()).unwrap().1.unsigned_abs();
    clock.set(96 * SECOND - 1, 0);
    assert_eq!(look(), 96 * SECOND);
    assert!(queue.extend(id, lease.epoch, None).is_ok());
    clock.set(106 * SECOND, 0);
    assert_eq!(look(), i64::MAX.unsigned_abs());
    assert_eq!(queue.extend(id, lease.epoch, None), Err(FileError::Fenced));
    assert_eq!(queue.ack(id, lease.epoch), Err(FileError::Fenced));
    let again = queue.lease(PAST).unwrap().unwrap();
    assert_eq!((again.attempt, again.progress), (2, progress));
}

#[test]
fn leases_of_another_start_of_the_machine_are_over() {
    let (folder, clock) = (Folder::new(), Set::to(0, 0, "a"));
    let queue = folder.open(&clock);
    put(&queue, 0, None);
    assert!(is_there(&queue));
    let after = Set::to(0, 0, "b");
    let later = folder.open(&after);
    assert_eq!(later.lease(PAST).unwrap().unwrap().attempt, 2);
}

#[test]
fn a_file_that_another_program_has_locked_is_an_error_and_then_goes_on() {
    let (folder, clock) = (Folder::new(), Set::to(0, 0, "a"));
    let queue = folder.open(&clock);
    let other = rusqlite::Connection::open(queue.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    schema::BEARS.set(Duration::from_millis(1));
    let put_one = || queue.put(*b"item", PutOptions::default(), PAST);
    assert_eq!(put_one(), Err(FileError::Locked));
    assert_eq!(queue.lease(PAST), Err(FileError::Locked));
    other.execute_batch("ROLLBACK").unwrap();
    schema::BEARS.set(Duration::from_secs(10));
    assert_eq!(put_one(), Ok(Some(1)));
    assert!(is_there(&queue));
}
