//! The queue in a file: as the one in memory, and what a file adds. See also `file_queue_crash.rs`
//! and `file_queue_power.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use desist::work::{
    Back, Bytes, Failure, FileError, FileOptions, FileQueue, Lease, PutOptions, RetryPolicy,
    Returned,
};
use desist::{Time, move_on_after};
use proptest::prelude::*;

use crate::file_model::{Model, Step, Where, steps};
use crate::support::{PAST, Parker, far};

const HOUR: Duration = Duration::from_secs(3600);

/// A folder of its own, gone at the end.
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

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("jobs.db")
    }

    fn open(&self) -> FileQueue {
        FileQueue::open(self.file(), FileOptions::default()).unwrap()
    }

    fn open_with(&self, options: FileOptions) -> FileQueue {
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

fn policy(max_attempts: u32) -> FileOptions {
    FileOptions {
        retry: RetryPolicy {
            max_attempts,
            backoff: HOUR,
            max_backoff: HOUR,
            jitter: 0.5,
        },
        ..FileOptions::default()
    }
}

// ---------------------------------------------------------------------- against the model

/// What becomes of the leases when their process ends in order.
fn reopen(model: &mut Model) {
    let mut leased: Vec<_> = model
        .items
        .iter()
        .filter_map(|(id, item)| match item.place {
            Where::Leased(epoch) => Some((epoch, *id)),
            _ => None,
        })
        .collect();
    leased.sort_unstable_by(|one, other| other.cmp(one));
    for (epoch, id) in leased {
        model.give_back(id, epoch, Back::AtOnce, None).unwrap();
    }
    model.closed = false;
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn i28_i29_i30_i31_i34_the_file_does_what_the_model_does(
        max_attempts in 1..4u32,
        steps in steps(),
        reopened in prop::collection::vec(0..12u32, 60),
    ) {
        let folder = Folder::new();
        let mut queue = folder.open_with(policy(max_attempts));
        let mut model = Model { max_attempts, ..Model::default() };
        let mut leases: Vec<Lease<Bytes, Bytes>> = Vec::new();
        for ((number, step), reopened) in (0u32..).zip(&steps).zip(reopened) {
            if reopened == 0 {
                drop(queue);
                queue = folder.open_with(policy(max_attempts));
                reopen(&mut model);
            }
            let recent = |back: usize| leases.iter().rev().nth(back).map(|lease| (lease.id, lease.epoch));
            let fenced = |error| match error { FileError::Fenced => desist::work::Fenced, other => panic!("{other}") };
            match step {
                Step::Put => prop_assert_eq!(put(&queue, "item"), model.put()),
                Step::Lease => {
                    let lease = lease(&queue);
                    prop_assert_eq!(lease.as_ref().map(|lease| (lease.id, lease.epoch, lease.attempt)), model.lease());
                    leases.extend(lease);
                }
                Step::Ack(back) => {
                    let Some((id, epoch)) = recent(*back) else { continue };
                    prop_assert_eq!(queue.ack(id, epoch).map_err(fenced), model.ack(id, epoch));
                }
                Step::GiveBack(back, how, failed) => {
                    let Some((id, epoch)) = recent(*back) else { continue };
                    let failure = failed.then_some(number);
                    let given = queue.give_back(id, epoch, *how, failure.map(note)).map_err(fenced);
                    prop_assert_eq!(given, model.give_back(id, epoch, *how, failure));
                }
                Step::Cancel(id) => prop_assert_eq!(queue.cancel(*id, note(number)).unwrap(), model.cancel(*id, number)),
                Step::Revive(id) => prop_assert_eq!(queue.revive(*id).unwrap(), model.revive(*id)),
                Step::Close => (queue.close(), model.closed = true).1,
            }
            prop_assert_eq!(queue.counts().unwrap(), model.counts());
            let dead: Vec<_> = queue.dead().unwrap().into_iter().map(|(id, _, failures)| (id, failures)).collect();
            let noted = |failures: &Vec<u32>| failures.iter().map(|failure| Failure::Noted(note(*failure))).collect::<Vec<_>>();
            let expected: Vec<_> = model.dead.iter().map(|id| (*id, noted(&model.items[id].failures))).collect();
            prop_assert_eq!(dead, expected);
        }
    }
}

// ---------------------------------------------------------------------- waiting

#[test]
fn a_waiting_worker_gets_the_next_item_and_those_who_wait_longer_come_first() {
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
fn a_closed_queue_sends_waiting_workers_home_and_keeps_its_items() {
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
fn an_earlier_pause_wakes_who_waits_for_a_later_one() {
    let folder = Folder::new();
    let queue = folder.open();
    let [late, soon] = ["late", "soon"].map(|item| {
        put(&queue, item);
        lease(&queue).unwrap()
    });
    queue
        .give_back(late.id, late.epoch, Back::After(HOUR), None)
        .unwrap();
    let theirs = queue.clone();
    let worker = Parker::spawn_parked(move || theirs.lease(Time::NEVER).unwrap().unwrap().item);
    let pause = Back::After(Duration::from_millis(1));
    queue.give_back(soon.id, soon.epoch, pause, None).unwrap();
    assert_eq!(worker.join(), bytes("soon"));
}

#[test]
fn a_put_waits_for_room_and_can_be_cancelled() {
    let folder = Folder::new();
    let queue = folder.open_with(FileOptions {
        maxsize: Some(1),
        ..FileOptions::default()
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
    lease(&queue).unwrap();
    assert_eq!(putter.join(), Ok(Some(2)));
    assert_eq!(queue.counts().unwrap().ready, 1);
}

/// A different number for each pair, and the same in each run.
fn dice(worker: usize, turn: usize) -> usize {
    (worker * 31 + turn * 17 + worker * turn) % 11
}

#[test]
fn i12_i28_i29_with_many_workers_every_item_is_done_once_or_dead() {
    const ITEMS: usize = 200;
    let folder = Folder::new();
    let options = FileOptions {
        retry: RetryPolicy {
            max_attempts: 3,
            backoff: Duration::from_micros(50),
            max_backoff: Duration::from_micros(200),
            jitter: 0.5,
        },
        maxsize: Some(20),
        ..FileOptions::default()
    };
    // Two queues, as in two processes: they hear of each other by the file alone.
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
            let item =
                usize::from_str_radix(std::str::from_utf8(&lease.item).unwrap(), 10).unwrap();
            match dice(worker + 1, turn) {
                0 => _ = queue.give_back(id, epoch, Back::AtOnce, None).unwrap(),
                1 | 2 => {
                    _ = queue
                        .give_back(id, epoch, Back::Failed, Some(note(1)))
                        .unwrap()
                }
                3 => {
                    assert_eq!(queue.cancel(id, note(2)), Ok(Some(false)));
                    let given = queue.give_back(id, epoch, Back::AtOnce, None);
                    assert_eq!(given, Ok(Returned::Dead));
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
