//! Workers that can be killed: the item that one was at is leased again, and nothing is lost.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use desist::stop::StopPolicy;
use desist::work::{Job, LeaseQueue, Note, PoolOptions, QueueOptions, WorkerPool};
use desist::{Stop, Time, sleep};

type Queue = LeaseQueue<&'static str, Note<Stop>>;

/// Deliver an item; the first attempt at the parcel takes far too long.
fn deliver(job: &Job<'_, &'static str, Stop>, begun: &Sender<u64>) -> Result<(), Stop> {
    begun.send(job.id).expect("main waits for it");
    if job.item == "parcel" && job.attempt == 1 {
        sleep(Duration::from_secs(3600))?; // ends as soon as the worker is to stop
    }
    println!("{}: delivered at attempt {}", job.item, job.attempt);
    Ok(())
}

pub(crate) fn main() {
    // Whoever puts a third item waits until there is room.
    let queue = Queue::new(QueueOptions {
        maxsize: 2,
        ..QueueOptions::default()
    });
    let (begun, begins) = channel();
    let options = PoolOptions {
        workers: NonZeroUsize::MIN,
        ..PoolOptions::default()
    };
    let pool = WorkerPool::new(queue.clone(), options, move |job| deliver(job, &begun))
        .expect("the system has a thread");

    let parcel = queue.put("parcel").expect("nothing stops this thread");
    assert_eq!(begins.recv(), Ok(parcel)); // it is being worked on
    queue.put("letter").expect("nothing stops this thread");

    let policy = StopPolicy::default();
    let report = pool
        .kill_worker(0, Some("too slow"), &policy)
        .expect("there is a worker");
    println!("killed: {:?} after {:?}", report.outcome, report.elapsed);
    assert_eq!(report.requeued, [parcel]);

    // The worker goes on, with the parcel first.
    assert_eq!(pool.drain(Time::NEVER), Ok(true));
    assert_eq!(begins.recv(), Ok(parcel));
    assert_eq!(queue.counts().done, 2);
    pool.stop(&policy).expect("this is no handler");
}
