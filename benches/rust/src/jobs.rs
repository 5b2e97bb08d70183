//! A queue of leases against a channel, which keeps no item after it is received. The floor is the send
//! and the receive of an item.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use desist::Time;
use desist::work::{FileQueue, LeaseQueue, QueueOptions};

use crate::measure::{medians, nanos, once};
use crate::table::{Bench, Row, Target, Unit};

pub(crate) const BENCHES: &[Bench] = &[
    ("jobs in memory", in_memory),
    ("jobs in memory, four threads", on_four_threads),
    ("jobs in a file", in_file),
];

type Item = Arc<[u8; 200]>;
type Queue = LeaseQueue<Item, desist::Cause>;

const ROUNDS: usize = 101;
const THREADS: usize = 4;
/// Items that are put before the first is leased.
const BATCH: usize = 1_000;
const FILE_ROUNDS: usize = 5;
const FILE_THREADS: usize = 8;
const FILE_ITEMS: usize = 8_000;

fn row(subject: &'static str, floor: Option<f64>, desist: f64, target: Target) -> Row {
    Row {
        subject,
        unit: Unit::Nanos,
        floor,
        tokio: None,
        desist,
        target,
    }
}

fn lease_and_ack(queue: &Queue) {
    let lease = queue.lease(Time::NEVER).expect("not cancelled");
    let lease = lease.expect("there is an item");
    queue
        .ack(lease.id, lease.epoch)
        .expect("the lease has no time limit");
}

fn one_by_one(queue: &Queue, item: &Item) {
    queue.put(item.clone()).expect("not cancelled");
    lease_and_ack(queue);
}

fn pass(channel: &(Sender<Item>, Receiver<Item>), item: &Item) {
    channel.0.send(item.clone()).expect("the channel is open");
    drop(channel.1.recv().expect("there is an item"));
}

fn in_memory() -> Vec<Row> {
    let item: Item = Arc::new([7; 200]);
    let channel = unbounded();
    let queue = Queue::new(QueueOptions::default());
    let fill = || {
        for _ in 0..BATCH {
            queue.put(item.clone()).expect("not cancelled");
        }
    };
    let work_off = || (0..BATCH).for_each(|_| lease_and_ack(&queue));
    let [floor, leased, all, floor_of_many, all_of_many] = medians(
        ROUNDS,
        [
            &mut || once(BATCH, || (0..BATCH).for_each(|_| pass(&channel, &item))),
            &mut || {
                fill();
                once(BATCH, work_off)
            },
            &mut || once(BATCH, || (0..BATCH).for_each(|_| one_by_one(&queue, &item))),
            &mut || {
                once(BATCH, || {
                    (0..BATCH)
                        .for_each(|_| channel.0.send(item.clone()).expect("the channel is open"));
                    (0..BATCH).for_each(|_| drop(channel.1.recv().expect("there is an item")));
                })
            },
            &mut || {
                once(BATCH, || {
                    fill();
                    work_off();
                })
            },
        ],
    );
    let target = Target::OfFloor(1.5);
    vec![
        row(
            "lease + ack (floor: crossbeam)",
            Some(floor),
            leased,
            target,
        ),
        row("put + lease + ack", Some(floor), all, Target::None),
        row(
            "... of 1,000 at a time",
            Some(floor_of_many),
            all_of_many,
            Target::None,
        ),
    ]
}

/// Nanoseconds of wall time for each of `items`, divided among the threads.
fn together(threads: usize, items: usize, work: impl Fn() + Sync) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..items / threads).for_each(|_| work()));
        }
    });
    nanos(start) / items as f64
}

fn on_four_threads() -> Vec<Row> {
    const ITEMS: usize = 40_000;
    let item: Item = Arc::new([7; 200]);
    let channel = unbounded();
    let queue = Queue::new(QueueOptions::default());
    let [floor, ours] = medians(
        15,
        [
            &mut || together(THREADS, ITEMS, || pass(&channel, &item)),
            &mut || together(THREADS, ITEMS, || one_by_one(&queue, &item)),
        ],
    );
    let subject = "put + lease + ack by 4 threads";
    vec![row(subject, Some(floor), ours, Target::None)]
}

fn in_file() -> Vec<Row> {
    // On the disk of the build, because a folder for temporary files may be in memory.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/jobs");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the build folder is writable");
    let queue = FileQueue::open(folder.join("jobs.db"), QueueOptions::default());
    let queue = queue.expect("the file is new");
    let item: Arc<[u8]> = Arc::from([7; 200]);
    let [mut puts, mut leases] = [const { Vec::new() }; 2];
    for _ in 0..FILE_ROUNDS {
        puts.push(together(FILE_THREADS, FILE_ITEMS, || {
            let put = queue.put(
                item.clone(),
                desist::work::PutOptions::default(),
                Time::NEVER,
            );
            put.expect("the disk has room");
        }));
        leases.push(together(FILE_THREADS, FILE_ITEMS, || {
            let lease = queue.lease(Time::NEVER).expect("the disk has room");
            let lease = lease.expect("there is an item");
            queue
                .ack(lease.id, lease.epoch)
                .expect("the lease has no time limit");
        }));
    }
    drop(queue);
    let _ = std::fs::remove_dir_all(&folder);
    let middle = |mut figures: Vec<f64>| crate::measure::quantile(&mut figures, 0.5);
    vec![
        row(
            "file: put by 8 threads, each on disk",
            None,
            middle(puts),
            Target::None,
        ),
        row(
            "file: lease + ack by 8 threads",
            None,
            middle(leases),
            Target::None,
        ),
    ]
}
