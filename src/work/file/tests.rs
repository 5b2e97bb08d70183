//! Tests that need a clock that stands still, or a short timeout.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use desist::sleep_until;
use proptest::prelude::*;

use super::clock::testing::Set;
use super::*;
use crate::testing;
use crate::work::{Details, Fenced};
use model::{Note, Queue, check, queue_options, steps, without_holder};

#[path = "../../../tests/rust/work_model.rs"]
mod model;

const PAST: Time = Time::from_nanos(1);
const SECOND: u64 = 1000;

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("desist-file-{}-{number}", std::process::id());
        // In a memory file system if there is one, because these tests do not depend on the disk.
        let memory = PathBuf::from("/dev/shm");
        let place = Some(memory).filter(|memory| memory.is_dir());
        let path = place.unwrap_or_else(std::env::temp_dir).join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn open(&self, clock: &Arc<Set>) -> FileQueue {
        self.open_with(clock, QueueOptions::default())
    }

    fn open_with(&self, clock: &Arc<Set>, options: QueueOptions) -> FileQueue {
        FileQueue::open_by(&self.0.join("jobs.db"), options.into(), clock.clone()).unwrap()
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
        expires: timeout.map(Duration::from_millis),
        ..PutOptions::default()
    };
    queue.put(*b"item", options, PAST).unwrap().unwrap()
}

fn is_there(queue: &FileQueue) -> bool {
    queue.lease(PAST).unwrap().is_some()
}

#[test]
fn i38_a_change_of_the_wall_clock_changes_no_pause() {
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
fn i38_after_a_reboot_the_wall_clock_gives_the_remaining_time() {
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
fn i38_the_expiry_of_an_item_uses_the_same_clock() {
    let (folder, clock) = (Folder::new(), Set::to(77 * SECOND, 1_000_000, "a"));
    let queue = folder.open(&clock);
    let [one, two] = [(), ()].map(|()| put(&queue, 0, Some(10 * SECOND)));
    clock.set(86 * SECOND, 0);
    let lease = queue.lease(PAST).unwrap().unwrap();
    assert_eq!(lease.deadline(), Some(Time::from_nanos(87_000_000_000)));
    queue.ack(one, lease.epoch).unwrap();
    drop(queue);
    let clock = Set::to(0, 1_004_000, "b");
    let queue = folder.open(&clock);
    clock.set(6 * SECOND, 0);
    assert!(!is_there(&queue));
    let dead = queue.dead().unwrap();
    assert_eq!(
        dead,
        [(two, Bytes::from(*b"item"), vec![Failure::ItemExpired])]
    );
    // The handler has as much time as it needs.
    assert_eq!(queue.retry(two), Ok(true));
    clock.set(999 * SECOND, 0);
    let again = queue.lease(PAST).unwrap().unwrap();
    assert_eq!((again.attempt, again.deadline()), (1, None));
}

#[test]
fn i29_a_lease_that_is_not_extended_in_time_is_over() {
    let (folder, clock) = (Folder::new(), Set::to(77 * SECOND, 0, "a"));
    let options = QueueOptions {
        lease_timeout: Some(Duration::from_secs(10)),
        ..QueueOptions::default()
    };
    let queue = folder.open_with(&clock, options);
    let id = put(&queue, 0, None);
    let lease = queue.lease(PAST).unwrap().unwrap();
    clock.set(86 * SECOND, 0);
    let progress = Some(Bytes::from(*b"half"));
    let until = |at| Ok(Some(Time::from_nanos(at * 1_000_000)));
    assert_eq!(
        queue.extend(id, lease.epoch, progress.clone()),
        until(96 * SECOND)
    );
    let look = || {
        watcher::check_owners(queue.shared())
            .unwrap()
            .1
            .unsigned_abs()
    };
    clock.set(96 * SECOND - 1, 0);
    assert_eq!(look(), 96 * SECOND);
    assert_eq!(queue.extend(id, lease.epoch, None), until(106 * SECOND - 1));
    clock.set(106 * SECOND, 0);
    assert_eq!(look(), i64::MAX.unsigned_abs());
    assert_eq!(queue.extend(id, lease.epoch, None), Err(FileError::Fenced));
    assert_eq!(queue.ack(id, lease.epoch), Err(FileError::Fenced));
    let again = queue.lease(PAST).unwrap().unwrap();
    assert_eq!((again.attempt, again.progress()), (2, progress.as_ref()));
}

#[test]
fn i31_an_expired_item_is_dead_when_its_worker_requeues_it() {
    let (folder, clock) = (Folder::new(), Set::to(77 * SECOND, 0, "a"));
    let queue = folder.open(&clock);
    let id = put(&queue, 0, Some(10 * SECOND));
    let lease = queue.lease(PAST).unwrap().unwrap();
    clock.set(87 * SECOND, 0);
    let given = queue.nack(id, lease.epoch, Nack::AtOnce, None);
    assert_eq!(given, Ok(NackOutcome::Dead));
    assert_eq!(queue.dead().unwrap()[0].2, [Failure::ItemExpired]);
}

#[test]
fn leases_from_before_a_reboot_are_over() {
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
    schema::LOCK_PATIENCE.set(Duration::from_millis(1));
    let put_one = || queue.put(*b"item", PutOptions::default(), PAST);
    assert_eq!(put_one(), Err(FileError::Locked));
    assert_eq!(queue.lease(PAST), Err(FileError::Locked));
    other.execute_batch("ROLLBACK").unwrap();
    schema::LOCK_PATIENCE.set(Duration::from_secs(10));
    assert_eq!(put_one(), Ok(Some(1)));
    assert!(is_there(&queue));
}

// ---------------------------------------------------------------------- against the model

/// A queue in a file, with the clock of the calling thread's simulation.
struct Simulated {
    folder: Folder,
    options: QueueOptions,
    /// The clock of the file watch as well, whose thread is outside of the simulation.
    clock: Arc<Set>,
    queue: Option<FileQueue>,
}

impl Simulated {
    fn new(options: QueueOptions) -> Simulated {
        // The file counts in milliseconds: start at a whole one, because the model's steps are whole.
        let rest = Time::now().as_nanos() % 1_000_000;
        sleep_until(Time::after(Duration::from_nanos(1_000_000 - rest))).unwrap();
        let mut simulated = Simulated {
            folder: Folder::new(),
            options,
            clock: Set::to(0, 0, "a"),
            queue: None,
        };
        simulated.reopen();
        simulated
    }

    fn queue(&self) -> &FileQueue {
        let now = Time::now().as_nanos() / 1_000_000;
        self.clock.set(now, i64::try_from(now).unwrap());
        self.queue.as_ref().unwrap()
    }
}

fn written(note: &Note) -> Bytes {
    match note {
        Note::Said(number) => number.to_string().into_bytes().into(),
        Note::Noted(reason) => panic!("{reason}: by the queue alone"),
    }
}

fn read(bytes: &Bytes) -> u32 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

fn fenced<T>(result: Result<T, FileError>) -> Result<T, Fenced> {
    result.map_err(|error| match error {
        FileError::Fenced => Fenced,
        other => panic!("{other}"),
    })
}

impl Queue for Simulated {
    fn put(&self, item: u32, options: &PutOptions) -> Option<u64> {
        let item = written(&Note::Said(item));
        self.queue().put(item, options.clone(), PAST).unwrap()
    }

    fn lease(&self) -> Option<Lease<u32, Note>> {
        let lease = self.queue().lease(PAST).unwrap()?;
        Some(Lease {
            id: lease.id,
            epoch: lease.epoch,
            attempt: lease.attempt,
            item: read(&lease.item),
            details: Details {
                progress: lease.progress().map(read).map(Note::Said),
                deadline: lease.deadline(),
                until: lease.until(),
                key: lease
                    .details
                    .as_ref()
                    .and_then(|details| details.key.clone()),
                time_limit: lease.time_limit(),
            }
            .if_any(),
        })
    }

    fn ack(&self, id: u64, epoch: u64) -> Result<(), Fenced> {
        fenced(self.queue().ack(id, epoch))
    }

    fn extend(&self, id: u64, epoch: u64, progress: Option<Note>) -> Result<Option<Time>, Fenced> {
        let progress = progress.as_ref().map(written);
        fenced(self.queue().extend(id, epoch, progress))
    }

    fn nack(
        &self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: Option<Note>,
    ) -> Result<NackOutcome, Fenced> {
        let failure = failure.as_ref().map(written);
        fenced(self.queue().nack(id, epoch, nack, failure))
    }

    fn cancel(&self, id: u64, failure: Note) -> Option<bool> {
        self.queue().cancel(id, written(&failure)).unwrap()
    }

    fn dead_letter_all(&self, failure: &Note) -> Vec<u32> {
        let items = self.queue().dead_letter_all(written(failure)).unwrap();
        items.iter().map(read).collect()
    }

    fn retry(&self, id: u64) -> bool {
        self.queue().retry(id).unwrap()
    }

    fn item(&self, id: u64) -> Option<u32> {
        self.queue().item(id).unwrap().as_ref().map(read)
    }

    fn close(&self) {
        self.queue().close();
    }

    fn counts(&self) -> Counts {
        self.queue().counts().unwrap()
    }

    fn dead(&self) -> Vec<(u64, u32, Vec<Note>)> {
        let noted = |failure: &Failure| match failure {
            Failure::Noted(note) => Note::Said(read(note)),
            other => Note::Noted(other.to_string()),
        };
        let dead = self.queue().dead().unwrap().into_iter();
        dead.map(|(id, item, failures)| (id, read(&item), failures.iter().map(noted).collect()))
            .collect()
    }

    fn items(&self, state: Option<ItemState>, limit: usize) -> Vec<ItemInfo<()>> {
        let items = self.queue().items(state, limit).unwrap().into_iter();
        items.map(without_holder).collect()
    }

    fn reopen(&mut self) -> bool {
        drop(self.queue.take());
        self.queue = Some(self.folder.open_with(&self.clock, self.options));
        true
    }
}

#[test]
fn a_file_of_the_version_before_gets_the_columns_that_it_lacks() {
    let folder = Folder::new();
    let clock = Set::to(10 * SECOND, 1_000_000_000_000, "a");
    let id = put(&folder.open(&clock), 0, None);
    let db = rusqlite::Connection::open(folder.0.join("jobs.db")).unwrap();
    db.execute_batch(
        "DROP VIEW queue; ALTER TABLE items DROP COLUMN holder;
         ALTER TABLE items DROP COLUMN time_limit; CREATE VIEW queue AS SELECT id FROM items;
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(db);
    for _ in 0..2 {
        let queue = folder.open(&clock);
        let lease = queue.lease_for("thread", PAST).unwrap().unwrap();
        assert_eq!(lease.id, id);
        let holder = queue.items(None, 1).unwrap().remove(0).holder.unwrap();
        assert_eq!(
            (holder.pid, &*holder.thread),
            (std::process::id(), "thread")
        );
        queue
            .nack(id, lease.epoch, Nack::Snooze(Duration::ZERO), None)
            .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn i28_i29_i30_i31_i34_the_queue_in_a_file_behaves_as_the_model(
        options in queue_options(),
        steps in steps(),
    ) {
        testing::run(None, || check(&mut Simulated::new(options), options, &steps)).unwrap()?;
    }
}
