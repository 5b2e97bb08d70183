//! A worker over a lease queue: the item of a killed handler is leased again, and nothing is lost.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use desist::boundary::{BodyEnd, Boundary};
use desist::stop::{StopPolicy, kill};
use desist::task::Task;
use desist::work::{Lease, LeaseQueue, Nack, RetryPolicy};
use desist::{CancelSource, Cause, Stop, Time, sleep};

/// The failures of an item are kept as causes.
type Queue = LeaseQueue<&'static str, Cause>;
type Delivery = Lease<&'static str, Cause>;

/// The handler. The first attempt at the parcel takes far too long.
fn deliver(lease: &Delivery) -> Result<(), Stop> {
    if lease.item == "parcel" && lease.attempt == 1 {
        sleep(Duration::from_secs(3600))?; // returns `Err` as soon as the task is killed
    }
    println!("{}: delivered at attempt {}", lease.item, lease.attempt);
    Ok(())
}

/// Work until the queue is closed. Each lease is a task of its own, so that a kill ends one
/// handler and the worker goes on with the next item.
fn work(queue: &Queue, begun: &Sender<(Delivery, Arc<Task>)>) {
    while let Ok(Some(lease)) = queue.lease(Time::NEVER) {
        let source = CancelSource::with_deadline(lease.ends());
        let task = Task::new(lease.item, Some(&source.token()));
        let boundary = Boundary::enter(&task, None);
        begun
            .send((lease.clone(), task.clone()))
            .expect("main listens");
        let result = deliver(&lease);
        let end = match result {
            Err(Stop::Killed(_)) => BodyEnd::Killed(None),
            _ => BodyEnd::Unwound,
        };
        if !boundary.leave(end) {
            return; // abandoned: the killing thread has requeued the item
        }
        // `Err(Fenced)` would mean that the lease has timed out, and another worker has the item.
        let settled = if result.is_ok() {
            queue.ack(lease.id, lease.epoch)
        } else {
            let cause = task.source().token().cause();
            queue
                .nack(lease.id, lease.epoch, Nack::AtOnce, cause)
                .map(drop)
        };
        settled.expect("this lease has no time limit");
        task.over().set(); // after the settlement: `kill` returns when this is set
    }
}

pub(crate) fn main() {
    let queue = Queue::new(RetryPolicy::default());
    let (begun, begins) = channel();
    let worker = thread::spawn({
        let queue = queue.clone();
        move || work(&queue, &begun)
    });
    queue.put("parcel").expect("this thread is not cancelled");
    queue.put("letter").expect("this thread is not cancelled");

    let (lease, task) = begins.recv().expect("the worker runs");
    let mut requeue_for_abandoned = || {
        let _ = queue.nack(lease.id, lease.epoch, Nack::AtOnce, None);
    };
    let report = kill(
        &task,
        Some("too slow".into()),
        &StopPolicy::default(),
        &mut requeue_for_abandoned,
    );
    let report = report.expect("the worker is another thread");
    println!("killed: {:?} after {:?}", report.outcome, report.elapsed);

    // The parcel is leased again, before the letter.
    let order: Vec<_> = begins.iter().take(2).map(|(lease, _)| lease.item).collect();
    assert_eq!(order, ["parcel", "letter"]);
    assert_eq!(queue.drain(Time::NEVER), Ok(true));
    assert_eq!(queue.counts().done, 2);
    queue.close();
    worker.join().expect("the worker does not panic");
}
