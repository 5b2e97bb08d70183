//! The pool for Rust programs: whatever ends a handler, its item is done, ready again or dead.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use desist::stop::{Rung, StopPolicy};
use desist::work::{
    Counts, Job, LeaseQueue, Note, PoolError, PoolOptions, PutOptions, QueueOptions, RetryPolicy,
    WorkerPool,
};
use desist::{CauseKind, Stop, Time, checkpoint, sleep, testing};

use crate::support::{PAST, far};
use crate::wait::Error;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Queue = LeaseQueue<&'static str, Note<Error, u32>>;
type Pool = WorkerPool<&'static str, Error, u32>;
type TestJob<'a> = Job<'a, &'static str, Error, u32>;

/// Asks, and then raises at waits until the body ends.
fn patient() -> StopPolicy {
    StopPolicy {
        cooperative: HOUR,
        abandon: false,
        ..StopPolicy::default()
    }
}

/// Gives up at once what does not end when it is asked.
fn impatient() -> StopPolicy {
    StopPolicy {
        cooperative: Duration::ZERO,
        at_wait: None,
        async_exc: None,
        trace: None,
        sigterm: None,
        sigkill: false,
        defer: Duration::ZERO,
        abandon: true,
    }
}

fn queue() -> Queue {
    Queue::new(RetryPolicy {
        max_attempts: 3,
        backoff: Duration::ZERO,
        ..RetryPolicy::default()
    })
}

fn pool(
    queue: &Queue,
    workers: usize,
    max_abandoned: usize,
    handler: impl Fn(&TestJob<'_>) -> Result<(), Error> + Send + Sync + 'static,
) -> Pool {
    let options = PoolOptions {
        workers: NonZeroUsize::new(workers).unwrap(),
        max_abandoned,
    };
    WorkerPool::new(queue.clone(), options, handler).unwrap()
}

/// A thread is held here until the gate is opened, whatever it is asked.
#[derive(Clone)]
struct Gate {
    opened: Arc<Mutex<Receiver<()>>>,
}

fn gate() -> (Sender<()>, Gate) {
    let (open, opened) = channel();
    let opened = Arc::new(Mutex::new(opened));
    (open, Gate { opened })
}

impl Gate {
    fn pass(&self) {
        self.opened.lock().unwrap().recv().unwrap();
    }
}

#[test]
fn items_are_done_and_failures_tried_again_until_the_item_is_dead() {
    let queue = queue();
    for item in ["good", "bad", "late"] {
        queue.put(item).unwrap();
    }
    let pool = pool(&queue, 2, 0, |job| match job.item {
        "good" => Ok(()),
        "late" if job.attempt == 2 => Ok(()),
        _ => Err(Error::TooLate),
    });
    assert_eq!(pool.drain(far()), Ok(true));
    assert_eq!((queue.counts().done, queue.counts().dead), (2, 1));
    let failures = vec![Note::Failed(Error::TooLate); 3];
    assert_eq!(queue.dead(), [(2, "bad", failures)]);
    pool.stop(&patient()).unwrap();
    assert_eq!(pool.workers_alive(), 0);
}

#[test]
fn a_panic_is_a_failure_and_the_worker_goes_on() {
    let queue = queue();
    let pool = pool(&queue, 1, 0, |job| match job.attempt {
        1 => panic!("told so"),
        2 => std::panic::panic_any(7),
        _ => Err(Error::TooLate),
    });
    queue.put("item").unwrap();
    assert_eq!(pool.drain(far()), Ok(true));
    let notes = vec![
        Note::Panicked("told so".into()),
        Note::Panicked("it said nothing".into()),
        Note::Failed(Error::TooLate),
    ];
    assert_eq!(queue.dead(), [(1, "item", notes)]);
    assert_eq!(pool.workers_alive(), 1);
}

#[test]
fn i31_a_worker_that_is_killed_in_its_wait_goes_on_with_the_same_item() {
    let queue = queue();
    let (begun, begins) = channel();
    let pool = pool(&queue, 1, 0, move |job| {
        begun.send(job.attempt).unwrap();
        if job.attempt == 1 {
            sleep(HOUR)?;
        }
        Ok(())
    });
    let id = queue.put("item").unwrap();
    assert_eq!(begins.recv(), Ok(1));
    let report = pool.kill_worker(0, Some("too slow"), &patient()).unwrap();
    assert_eq!(report.outcome, Some(Rung::Cooperative));
    assert_eq!((report.requeued, report.fenced), (vec![id.into()], vec![]));
    assert_eq!(begins.recv(), Ok(2));
    assert_eq!(pool.drain(far()), Ok(true));
    assert_eq!(queue.counts().done, 1);
    let idle = pool.kill_worker(0, None, &patient()).unwrap();
    assert!(idle.requeued.is_empty());
    let error = pool.kill_worker(1, None, &patient());
    assert!(matches!(error, Err(PoolError::NoSuchWorker)), "{error:?}");
}

#[test]
fn i31_a_worker_that_swallows_its_cancellation_is_killed_at_its_next_wait() {
    let queue = queue();
    let (begun, begins) = channel();
    let pool = pool(&queue, 1, 0, move |job| {
        begun.send(()).unwrap();
        if job.attempt == 1 {
            loop {
                if let Err(stop @ Stop::Killed(_)) = sleep(HOUR) {
                    return Err(stop.into());
                }
            }
        }
        Ok(())
    });
    let id = queue.put("item").unwrap();
    begins.recv().unwrap();
    let policy = StopPolicy {
        cooperative: Duration::ZERO,
        at_wait: Some(HOUR),
        ..patient()
    };
    let report = pool.kill_worker(0, None, &policy).unwrap();
    assert_eq!(report.outcome, Some(Rung::AtWait));
    assert_eq!(report.requeued, [id]);
    assert_eq!(pool.drain(far()), Ok(true));
    assert_eq!(queue.counts().done, 1);
}

#[test]
fn i29_i31_a_worker_that_swallows_everything_is_given_up_and_replaced_as_often_as_allowed() {
    let queue = queue();
    let (begun, begins) = channel();
    let (open, gate) = gate();
    let (acks, late) = channel();
    let theirs = queue.clone();
    let pool = pool(&queue, 1, 1, move |job| {
        begun.send(job.attempt).unwrap();
        if job.attempt <= 2 {
            gate.pass();
            acks.send(theirs.ack(job.id, job.epoch)).unwrap();
        }
        Ok(())
    });
    let id = queue.put("item").unwrap();
    assert_eq!(begins.recv(), Ok(1));
    let report = pool.kill_worker(0, None, &impatient()).unwrap();
    assert_eq!(report.outcome, Some(Rung::Abandoned));
    assert_eq!(
        (report.requeued, report.fenced),
        (vec![id.into()], vec![id.into()])
    );
    assert_eq!(begins.recv(), Ok(2), "by another worker");
    assert_eq!(pool.workers_alive(), 1);
    match pool.kill_worker(0, None, &impatient()) {
        Err(PoolError::Exhausted(report)) => assert_eq!(report.requeued, [id]),
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.workers_alive(), 0);
    assert_eq!(queue.counts().ready, 1, "for another pool");
    for _ in 0..2 {
        open.send(()).unwrap();
        assert!(late.recv().unwrap().is_err(), "its lease was over");
    }
    pool.stop(&patient()).unwrap();
    assert_eq!(queue.lease(PAST).unwrap().unwrap().attempt, 3);
}

#[test]
fn i31_stopping_gives_back_what_is_being_worked_on() {
    let queue = queue();
    let (begun, begins) = channel();
    let pool = pool(&queue, 2, 0, move |_| {
        begun.send(()).unwrap();
        Ok(sleep(HOUR)?)
    });
    for item in ["one", "two", "three"] {
        queue.put(item).unwrap();
    }
    begins.recv().unwrap();
    begins.recv().unwrap();
    pool.stop(&patient()).unwrap();
    pool.stop(&patient()).unwrap();
    let left = Counts {
        ready: 3,
        ..Counts::default()
    };
    assert_eq!((queue.counts(), pool.workers_alive()), (left, 0));
    let again = queue.lease(PAST).unwrap().unwrap();
    assert_eq!(again.attempt, 2);
}

#[test]
fn i31_work_that_is_cancelled_is_dead_and_who_works_on_it_stops() {
    let queue = queue();
    let (begun, begins) = channel();
    let pool = pool(&queue, 1, 0, move |_| {
        begun.send(()).unwrap();
        Ok(sleep(HOUR)?)
    });
    let [one, two] = ["one", "two"].map(|item| queue.put(item).unwrap());
    begins.recv().unwrap();
    assert!(pool.cancel_item(two, None), "nobody has begun with it");
    assert!(pool.cancel_item(one, Some("changed my mind")));
    assert_eq!(pool.drain(far()), Ok(true));
    assert!(!pool.cancel_item(one, None), "it is dead");
    assert_eq!(queue.counts().dead, 2);
    for (_, _, notes) in queue.dead() {
        let by_somebody = |note: &Note<_, _>| matches!(note, Note::Stopped(cause) if cause.kind == CauseKind::Explicit);
        assert!(notes.iter().all(by_somebody), "{notes:?}");
    }
}

#[test]
fn a_handlers_own_timeout_is_a_failure_of_the_work() {
    let queue = queue();
    let pool = pool(&queue, 1, 0, |_| {
        let stop = desist::move_on_after(HOUR, |scope| {
            scope.cancel();
            Ok::<_, Stop>(checkpoint().unwrap_err())
        });
        Err(Error::Stop(stop.unwrap().unwrap()))
    });
    queue.put("item").unwrap();
    assert_eq!(pool.drain(far()), Ok(true));
    let notes = &queue.dead()[0].2;
    assert!(matches!(
        notes[..],
        [Note::Failed(_), Note::Failed(_), Note::Failed(_)]
    ));
}

#[test]
fn a_dropped_pools_workers_leave() {
    let queue = queue();
    let (begun, begins) = channel();
    let pool = pool(&queue, 1, 0, move |_| {
        begun.send(()).unwrap();
        Ok(sleep(HOUR)?)
    });
    queue.put("item").unwrap();
    begins.recv().unwrap();
    drop(pool);
    assert!(begins.recv().is_err(), "the worker has dropped its handler");
    assert_eq!(queue.counts().ready, 1);
}

#[test]
fn i31_a_handler_has_until_its_lease_ends_which_a_heartbeat_puts_off() {
    let ran = testing::run(None, || {
        let queue = Queue::new(QueueOptions {
            lease_timeout: Some(10 * SECOND),
            ..QueueOptions::default()
        });
        let began = Time::now();
        let (ended, ends) = channel();
        let pool = pool(&queue, 1, 0, move |job| {
            if let Some(progress) = job.progress() {
                assert_eq!(*progress, Note::Progress(4));
                return Ok(());
            }
            sleep(4 * SECOND)?;
            job.heartbeat(4)?;
            let slept = sleep(HOUR);
            ended.send((Time::now() - began, slept.is_err())).unwrap();
            Ok(slept?)
        });
        queue.put("item").unwrap();
        assert_eq!(pool.drain(Time::NEVER), Ok(true));
        assert_eq!(ends.recv(), Ok((14 * SECOND, true)));
        assert_eq!(Time::now() - began, 14 * SECOND);
        assert_eq!(queue.counts().done, 1);

        // An item's own deadline reaches the handler, too.
        let wanted = PutOptions {
            timeout: Some(5 * SECOND),
            ..PutOptions::default()
        };
        queue.try_put("item", &wanted).unwrap();
        assert_eq!(pool.drain(Time::NEVER), Ok(true));
        assert_eq!(ends.recv(), Ok((19 * SECOND, true)));
        assert_eq!(queue.counts().dead, 1);
        pool.stop(&patient()).unwrap();
    });
    assert_eq!(ran, Ok(()));
}
