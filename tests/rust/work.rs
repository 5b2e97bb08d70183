use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use desist::boundary::{BodyEnd, Boundary};
use desist::task::Task;
use desist::work::{Fenced, LeaseQueue, Nack, NackOutcome, PutOptions, QueueOptions, RetryPolicy};
use desist::{CancelSource, Cause, Time, move_on_after, sleep, testing};
use proptest::prelude::*;

use crate::support::{PAST, Parker, allocated_by, far};
use crate::work_model::{Note, check, queue_options, steps};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Queue = LeaseQueue<&'static str, Note>;

// ---------------------------------------------------------------------- against the model

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn i28_i29_i30_i31_i34_the_queue_in_memory_behaves_as_the_model(
        options in queue_options(),
        steps in steps(),
    ) {
        testing::run(None, || check(&mut LeaseQueue::new(options), options, &steps)).unwrap()?;
    }
}

// ---------------------------------------------------------------------- many threads

/// A different number for each pair, and the same in each run.
fn dice(worker: usize, turn: usize) -> usize {
    (worker * 31 + turn * 17 + worker * turn) % 11
}

#[test]
fn i28_i29_with_many_workers_every_item_is_done_once_or_dead() {
    const ITEMS: usize = 400;
    let queue = LeaseQueue::<usize, Note>::new(QueueOptions {
        retry: RetryPolicy {
            max_attempts: 3,
            backoff: Duration::from_micros(50),
            max_backoff: Duration::from_micros(200),
            jitter: 0.5,
        },
        maxsize: 8,
        lease_timeout: Some(HOUR),
    });
    let acked: [AtomicU32; ITEMS] = std::array::from_fn(|_| AtomicU32::new(0));
    let work = |worker: usize| {
        for turn in 0.. {
            // Some waits are cancelled: that must not lose an item under way.
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
            match dice(worker + 1, turn) {
                0 => _ = queue.nack(id, epoch, Nack::AtOnce, None),
                1 | 2 => _ = queue.nack(id, epoch, Nack::Failed, Some(Note::Said(0))),
                3 => {
                    assert_eq!(queue.cancel(id, Note::Said(0)), Some(false));
                    assert_eq!(
                        queue.nack(id, epoch, Nack::AtOnce, None),
                        Ok(NackOutcome::Dead)
                    );
                }
                _ => {
                    assert_eq!(queue.ack(id, epoch), Ok(()));
                    assert_eq!(
                        acked[lease.item].fetch_add(1, Ordering::Relaxed),
                        0,
                        "done twice"
                    );
                    assert_eq!(queue.ack(id, epoch), Err(Fenced));
                }
            }
        }
    };
    thread::scope(|threads| {
        for worker in 0..3 {
            threads.spawn(move || work(worker));
        }
        for item in 0..ITEMS {
            queue.put(item).unwrap();
            let counts = queue.counts();
            let unfinished = counts.ready + counts.leased + counts.delayed;
            assert!(unfinished <= 8, "{counts:?}");
            let sum = (unfinished + counts.dead) as u64 + counts.done;
            assert_eq!(sum, item as u64 + 1, "{counts:?}");
        }
        assert_eq!(queue.drain(Time::NEVER), Ok(true));
        queue.close();
    });
    let done: u32 = acked
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .sum();
    let counts = queue.counts();
    assert_eq!((counts.ready, counts.leased, counts.delayed), (0, 0, 0));
    assert_eq!(
        (counts.done, counts.dead as u64),
        (u64::from(done), ITEMS as u64 - u64::from(done))
    );
    let dead = queue.dead();
    assert!(
        dead.iter()
            .all(|(_, item, _)| acked[*item].load(Ordering::Relaxed) == 0)
    );
}

#[test]
fn i13_a_worker_that_is_cancelled_while_it_waits_takes_no_item() {
    for _ in 0..50 {
        let queue = Queue::new(RetryPolicy::default());
        let (task, theirs) = (Task::new("worker", None), queue.clone());
        let body = task.clone();
        let worker = Parker::spawn_parked(move || {
            let boundary = Boundary::enter(&body, None);
            let lease = theirs.lease(Time::NEVER);
            boundary.leave(BodyEnd::Unwound);
            lease
        });
        // Its wait has been settled, but the waiter is still in the queue.
        let (token, late) = (task.source().token(), queue.clone());
        let _put = token.on_cancel(move |_| _ = late.try_put("item", &PutOptions::default()));
        task.source().cancel();
        assert!(worker.join().is_err());
        assert_eq!((queue.counts().leased, queue.counts().ready), (0, 1));
    }
}

// ---------------------------------------------------------------------- one thing at a time

#[test]
fn a_waiting_worker_gets_the_next_item_and_the_longest_waiting_is_first() {
    let queue = Queue::new(RetryPolicy::default());
    let wait = || {
        let queue = queue.clone();
        Parker::spawn_parked(move || queue.lease(Time::NEVER).unwrap().unwrap().item)
    };
    let [first, second] = [wait(), wait()];
    queue.put("one").unwrap();
    queue.put("two").unwrap();
    assert_eq!((first.join(), second.join()), ("one", "two"));
}

#[test]
fn the_item_of_a_stopped_worker_comes_before_others() {
    let queue = Queue::new(RetryPolicy::default());
    queue.put("first").unwrap();
    queue.put("second").unwrap();
    let lease = queue.lease(PAST).unwrap().unwrap();
    assert_eq!(
        queue.nack(lease.id, lease.epoch, Nack::AtOnce, None),
        Ok(NackOutcome::Requeued)
    );
    let again = queue.lease(PAST).unwrap().unwrap();
    assert_eq!((again.item, again.attempt), ("first", 2));
    assert!(again.epoch > lease.epoch);
    assert_eq!(
        queue.ack(lease.id, lease.epoch),
        Err(Fenced),
        "the old lease is over"
    );
    assert_eq!(queue.ack(again.id, again.epoch), Ok(()));
}

#[test]
fn a_failed_item_is_ready_after_a_pause_that_doubles_up_to_a_bound() {
    let (backoff, max_backoff) = (Duration::from_millis(2), Duration::from_millis(5));
    let queue = Queue::new(RetryPolicy {
        max_attempts: 9,
        backoff,
        max_backoff,
        jitter: 0.25,
    });
    queue.put("item").unwrap();
    for least in [
        Duration::from_micros(1500),
        Duration::from_millis(3),
        Duration::from_micros(3750),
    ] {
        let lease = queue.lease(Time::NEVER).unwrap().unwrap();
        let nacked = Time::now();
        queue
            .nack(lease.id, lease.epoch, Nack::Failed, Some(Note::Said(1)))
            .unwrap();
        assert_eq!(queue.counts().delayed, 1);
        let again = queue.lease(Time::after(HOUR)).unwrap().unwrap();
        assert!(
            Time::now() - nacked >= least,
            "too early by the jitter that is allowed"
        );
        queue
            .nack(again.id, again.epoch, Nack::AtOnce, None)
            .unwrap();
        // The attempt in between counts, but without a pause, as if the worker had been at fault.
        queue.retry(again.id);
        if least > Duration::from_millis(3) {
            break;
        }
    }
}

#[test]
fn an_extreme_policy_is_a_long_pause_and_no_panic() {
    for jitter in [1.0, f64::INFINITY, f64::NAN] {
        let queue = Queue::new(RetryPolicy {
            max_attempts: 3,
            backoff: Duration::MAX,
            max_backoff: Duration::MAX,
            jitter,
        });
        queue.put("item").unwrap();
        let lease = queue.lease(PAST).unwrap().unwrap();
        assert_eq!(
            queue.nack(lease.id, lease.epoch, Nack::Failed, None),
            Ok(NackOutcome::Requeued)
        );
        assert_eq!(queue.counts().ready + queue.counts().delayed, 1);
    }
}

#[test]
fn an_earlier_pause_wakes_a_worker_that_waits_for_a_later_one() {
    let queue = Queue::new(RetryPolicy::default());
    let [late, soon] = ["late", "soon"].map(|item| {
        queue.put(item).unwrap();
        queue.lease(PAST).unwrap().unwrap()
    });
    queue
        .nack(late.id, late.epoch, Nack::After(HOUR), None)
        .unwrap();
    let theirs = queue.clone();
    let worker = Parker::spawn_parked(move || theirs.lease(Time::NEVER).unwrap().unwrap().item);
    queue
        .nack(
            soon.id,
            soon.epoch,
            Nack::After(Duration::from_millis(1)),
            None,
        )
        .unwrap();
    assert_eq!(worker.join(), "soon");
}

#[test]
fn i30_after_its_last_attempt_an_item_is_dead_with_all_failures_and_can_be_retried() {
    let queue = Queue::new(RetryPolicy {
        max_attempts: 2,
        backoff: Duration::ZERO,
        ..RetryPolicy::default()
    });
    let id = queue.put("poison").unwrap();
    for (attempt, becomes) in [(1, NackOutcome::Requeued), (2, NackOutcome::Dead)] {
        let lease = queue.lease(PAST).unwrap().unwrap();
        assert_eq!(lease.attempt, attempt);
        assert_eq!(
            queue.nack(id, lease.epoch, Nack::Failed, Some(Note::Said(attempt))),
            Ok(becomes)
        );
    }
    assert_eq!(
        queue.dead(),
        [(id, "poison", vec![Note::Said(1), Note::Said(2)])]
    );
    assert_eq!(queue.lease(PAST), Ok(None));
    assert!(queue.retry(id));
    assert!(!queue.retry(id));
    assert_eq!(queue.lease(PAST).unwrap().unwrap().attempt, 1);
}

#[test]
fn drain_waits_for_the_last_item_and_its_waiter_can_be_cancelled() {
    let queue = Queue::new(RetryPolicy::default());
    assert_eq!(queue.drain(PAST), Ok(true), "nothing to do");
    queue.put("item").unwrap();
    assert_eq!(queue.drain(PAST), Ok(false));
    assert_eq!(
        move_on_after(Duration::from_millis(1), |_| queue.drain(Time::NEVER)),
        Ok(None)
    );
    let lease = queue.lease(PAST).unwrap().unwrap();
    let theirs = queue.clone();
    let drainer = Parker::spawn_parked(move || theirs.drain(Time::NEVER));
    queue.ack(lease.id, lease.epoch).unwrap();
    assert_eq!(drainer.join(), Ok(true));
}

#[test]
fn a_closed_queue_ends_the_waits_of_its_workers_and_keeps_its_items() {
    let queue = Queue::new(RetryPolicy::default());
    let theirs = queue.clone();
    let worker = Parker::spawn_parked(move || theirs.lease(Time::NEVER));
    queue.close();
    assert_eq!(worker.join(), Ok(None));
    queue.put("item").unwrap();
    assert_eq!(queue.lease(far()), Ok(None));
    assert_eq!(queue.counts().ready, 1);
}

#[test]
fn a_lease_under_way_can_still_be_settled_after_the_queue_is_closed() {
    let queue = Queue::new(RetryPolicy::default());
    queue.put("item").unwrap();
    let lease = queue.lease(PAST).unwrap().unwrap();
    queue.close();
    assert_eq!(queue.ack(lease.id, lease.epoch), Ok(()));
    assert_eq!(queue.counts().done, 1);
}

#[test]
fn a_wait_for_work_is_a_checkpoint() {
    let source = CancelSource::new();
    let queue = Queue::new(RetryPolicy::default());
    let done = move_on_after(HOUR, |scope| {
        source.cancel();
        assert_eq!(queue.lease(PAST), Ok(None), "not this thread's source");
        scope.cancel();
        queue.lease(PAST).map(|_| ())
    });
    assert_eq!(done, Ok(None));
}

// ---------------------------------------------------------------------- room

fn for_one() -> Queue {
    Queue::new(QueueOptions {
        maxsize: 1,
        ..QueueOptions::default()
    })
}

fn work(queue: &Queue) -> &'static str {
    let lease = queue.lease(PAST).unwrap().unwrap();
    queue.ack(lease.id, lease.epoch).unwrap();
    lease.item
}

#[test]
fn a_waiting_put_gets_room_in_turn_when_an_item_is_done() {
    let queue = for_one();
    queue.put("first").unwrap();
    let [second, third] = ["second", "third"].map(|item| {
        let queue = queue.clone();
        Parker::spawn_parked(move || queue.put(item))
    });
    assert_eq!(
        queue.put_with("late", &PutOptions::default(), PAST),
        Ok(None)
    );
    assert_eq!(work(&queue), "first");
    assert_eq!(second.join(), Ok(2));
    assert_eq!(
        queue.try_put("late", &PutOptions::default()),
        Err("late"),
        "it is the third's"
    );
    assert_eq!((work(&queue), work(&queue)), ("second", "third"));
    assert_eq!(third.join(), Ok(3));
}

#[test]
fn i11_i13_a_cancelled_put_has_put_nothing_and_the_next_has_its_room() {
    for _ in 0..50 {
        let queue = for_one();
        queue.put("first").unwrap();
        let (task, theirs) = (Task::new("puts", None), queue.clone());
        let body = task.clone();
        let cancelled = Parker::spawn_parked(move || {
            let boundary = Boundary::enter(&body, None);
            let put = theirs.put("cancelled");
            boundary.leave(BodyEnd::Unwound);
            put
        });
        let theirs = queue.clone();
        let next = Parker::spawn_parked(move || theirs.put("next"));
        // Its wait has been settled, but the waiter is still in the queue.
        let (token, late) = (task.source().token(), queue.clone());
        let _work = token.on_cancel(move |_| _ = work(&late));
        task.source().cancel();
        assert!(cancelled.join().is_err());
        assert_eq!(next.join(), Ok(2));
        assert_eq!(work(&queue), "next");
        assert_eq!(queue.drain(PAST), Ok(true));
    }
}

#[test]
fn a_waiting_put_whose_key_is_put_meanwhile_gets_that_items_number() {
    let queue = for_one();
    queue.put("first").unwrap();
    let keyed = PutOptions {
        key: Some("key".into()),
        ..PutOptions::default()
    };
    let [one, other] = ["one", "other"].map(|item| {
        let (queue, keyed) = (queue.clone(), keyed.clone());
        Parker::spawn_parked(move || queue.put_with(item, &keyed, Time::NEVER))
    });
    work(&queue);
    assert_eq!((one.join(), other.join()), (Ok(Some(2)), Ok(Some(2))));
    assert_eq!(work(&queue), "one");
    assert_eq!(
        queue.try_put("again", &keyed),
        Ok(3),
        "a key is free again when its item is done"
    );
}

// ---------------------------------------------------------------------- time, simulated

/// The simulated time that `run` takes.
fn taken_by<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let began = Time::now();
    let result = run();
    (Time::now() - began, result)
}

fn losing_leases(after: Duration) -> Queue {
    Queue::new(QueueOptions {
        lease_timeout: Some(after),
        ..QueueOptions::default()
    })
}

fn wanted_for(timeout: Duration) -> PutOptions {
    PutOptions {
        expires: Some(timeout),
        ..PutOptions::default()
    }
}

#[test]
fn i16_a_lease_that_is_not_extended_is_available_at_the_instant_of_its_end() {
    let passed = testing::run(None, || {
        let queue = losing_leases(10 * SECOND);
        queue.put("item").unwrap();
        let old = queue.lease(PAST).unwrap().unwrap();
        let theirs = queue.clone();
        let other = testing::spawn("other", move || taken_by(|| theirs.lease(Time::NEVER)));
        sleep(4 * SECOND).unwrap();
        let until = queue.extend(old.id, old.epoch, Some(Note::Said(4)));
        assert_eq!(until, Ok(Some(Time::after(10 * SECOND))));
        sleep(11 * SECOND).unwrap();
        let (took, new) = other.join().unwrap();
        let new = new.unwrap().unwrap();
        assert_eq!(took, 14 * SECOND);
        assert_eq!((new.attempt, new.progress()), (2, Some(&Note::Said(4))));
        for late in [
            queue.ack(old.id, old.epoch),
            queue.extend(old.id, old.epoch, None).map(|_| ()),
        ] {
            assert_eq!(late, Err(Fenced));
        }
        assert_eq!(queue.ack(new.id, new.epoch), Ok(()));
    });
    assert_eq!(passed, Ok(()));
}

#[test]
fn i16_an_expired_item_makes_room_and_ends_a_drain_at_that_instant() {
    let passed = testing::run(None, || {
        let queue = for_one();
        queue.try_put("first", &wanted_for(5 * SECOND)).unwrap();
        let put = taken_by(|| queue.put_with("second", &wanted_for(SECOND), Time::NEVER));
        assert_eq!(put, (5 * SECOND, Ok(Some(2))));
        assert_eq!(taken_by(|| queue.drain(Time::NEVER)), (SECOND, Ok(true)));
        assert_eq!(queue.counts().dead, 2);
    });
    assert_eq!(passed, Ok(()));
}

#[test]
fn i12_when_the_waiter_that_would_wake_next_is_cancelled_another_takes_over() {
    let passed = testing::run(None, || {
        let queue = losing_leases(10 * SECOND);
        let wait = |patience: Duration| {
            let theirs = queue.clone();
            let lease = move || move_on_after(patience, |_| theirs.lease(Time::NEVER));
            let waiting = testing::spawn("waits", move || taken_by(lease));
            sleep(SECOND).unwrap(); // and the worker waits
            waiting
        };
        queue.put("first").unwrap();
        let lease = queue.lease(PAST).unwrap().unwrap();
        let looks_after_ten = wait(5 * SECOND);
        queue.ack(lease.id, lease.epoch).unwrap();
        let never_looks = wait(HOUR);
        let later = PutOptions {
            delay: 20 * SECOND,
            ..PutOptions::default()
        };
        queue.try_put("second", &later).unwrap();
        sleep(21 * SECOND).unwrap();
        assert_eq!(looks_after_ten.join().unwrap(), (5 * SECOND, Ok(None)));
        let (took, lease) = never_looks.join().unwrap();
        let item = lease.unwrap().flatten().map(|lease| lease.item);
        assert_eq!((took, item), (21 * SECOND, Some("second")));
    });
    assert_eq!(passed, Ok(()));
}

#[test]
fn i31_an_expired_item_is_dead_when_its_worker_requeues_it() {
    let passed = testing::run(None, || {
        let queue = losing_leases(HOUR);
        queue.try_put("item", &wanted_for(SECOND)).unwrap();
        let lease = queue.lease(PAST).unwrap().unwrap();
        let deadline = Time::after(SECOND);
        assert_eq!((lease.deadline(), lease.ends()), (Some(deadline), deadline));
        sleep(SECOND).unwrap();
        assert_eq!(queue.counts().leased, 1, "it is with its worker");
        let given = queue.nack(lease.id, lease.epoch, Nack::AtOnce, None);
        assert_eq!(given, Ok(NackOutcome::Dead));
        let note = Note::Noted("the item expired".into());
        assert_eq!(queue.dead(), [(lease.id, "item", vec![note])]);
        assert!(queue.retry(lease.id), "the item is dead");
        assert_eq!(queue.lease(PAST).unwrap().unwrap().deadline(), None);
    });
    assert_eq!(passed, Ok(()));
}

// ---------------------------------------------------------------------- memory

/// Keeps nothing of a failure.
#[derive(Clone)]
struct Nothing;

impl From<Cause> for Nothing {
    fn from(_: Cause) -> Self {
        Nothing
    }
}

#[test]
fn an_item_that_is_cancelled_and_retried_again_and_again_takes_no_more_memory() {
    let queue = LeaseQueue::<(), Nothing>::new(RetryPolicy::default());
    let [first, id] = [queue.put(()), queue.put(())].map(Result::unwrap);
    let (left, ()) = allocated_by(|| {
        for _ in 0..10_000 {
            assert_eq!(queue.cancel(id, Nothing), Some(true));
            assert!(queue.retry(id));
        }
    });
    assert!(left.bytes < 10_000, "{left:?}");
    for next in [first, id] {
        assert_eq!(queue.lease(PAST).unwrap().unwrap().id, next);
    }
}

/// The memory that a queue keeps after 10,000 items that were worked off like this.
fn kept_of(options: QueueOptions, come_and_go: impl Fn(&LeaseQueue<(), Nothing>, i64)) -> isize {
    let queue = LeaseQueue::<(), Nothing>::new(options);
    come_and_go(&queue, 0);
    let (left, ()) = allocated_by(|| (1..=10_000).for_each(|turn| come_and_go(&queue, turn)));
    left.bytes
}

fn work_off(queue: &LeaseQueue<(), Nothing>) {
    let lease = queue.lease(PAST).unwrap().unwrap();
    queue.ack(lease.id, lease.epoch).unwrap();
}

#[test]
fn no_run_queue_is_kept_for_a_priority_without_items() {
    for sign in [-1, 1] {
        let kept = kept_of(QueueOptions::default(), |queue, turn| {
            let options = PutOptions {
                priority: sign * turn,
                ..PutOptions::default()
            };
            queue.try_put((), &options).unwrap();
            work_off(queue);
        });
        assert!(kept < 2_000, "{kept}");
    }
}

#[test]
fn nothing_is_kept_of_extended_leases() {
    for timeout in [Duration::MAX, HOUR] {
        let options = QueueOptions {
            lease_timeout: Some(timeout),
            ..QueueOptions::default()
        };
        let kept = kept_of(options, |queue, _| {
            queue.put(()).unwrap();
            let lease = queue.lease(PAST).unwrap().unwrap();
            queue.extend(lease.id, lease.epoch, None).unwrap();
            queue.ack(lease.id, lease.epoch).unwrap();
        });
        assert!(kept < 2_000, "{timeout:?} {kept}");
    }
}

#[test]
fn a_queue_that_was_long_once_frees_its_memory() {
    let queue = LeaseQueue::<(), Nothing>::new(QueueOptions::default());
    let (left, ()) = allocated_by(|| {
        for _ in 0..100_000 {
            queue.put(()).unwrap();
        }
        (0..100_000).for_each(|_| work_off(&queue));
        // The memory is freed little by little.
        for _ in 0..50_000 {
            queue.put(()).unwrap();
            work_off(&queue);
        }
    });
    assert!(left.bytes < 20_000, "{left:?}");
}
