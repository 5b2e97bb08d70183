use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use desist::sync::{Acquire, Latch, Lock};
use desist::work::{LeaseQueue, PutOptions, QueueOptions, RetryPolicy};
use desist::{
    CancelSource, Cause, CauseKind, DeadlineExceeded, Stop, Time, cancel_scope, checkpoint,
    cleanup, move_on_after, shield, sleep, sleep_until,
};

use crate::support::{PAST, Parker, allocated_by, far, parked_task};

/// An error type of a program.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Error {
    Stop(Stop),
    TooLate,
}

impl desist::error::AsStop for Error {
    fn stop(&self) -> Option<&Stop> {
        match self {
            Error::Stop(stop) => Some(stop),
            Error::TooLate => None,
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Error::Stop(stop)
    }
}

impl From<DeadlineExceeded> for Error {
    fn from(_: DeadlineExceeded) -> Self {
        Error::TooLate
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_sleep_is_ended_by_a_cancel_from_another_thread() {
    let (task, sleeper) = parked_task(|| sleep(HOUR));
    task.source().cancel_because("enough");
    let Err(Stop::Cancelled(cause)) = sleeper.join() else {
        panic!("slept for an hour")
    };
    assert_eq!(cause.reason.as_deref(), Some("enough"));
}

#[test]
fn a_sleep_that_nothing_ends_lasts_until_its_time() {
    let until = Time::after(Duration::from_millis(2));
    assert_eq!(sleep_until(until), Ok(()));
    assert!(Time::now() >= until);
}

/// Check that nothing is acquired, even if it is available at once.
fn begin_every_wait() {
    let latch = Latch::new();
    latch.set();
    assert!(latch.wait_until(far()).is_err(), "though it is set");
    let lock = Lock::default();
    assert!(
        lock.acquire(Acquire::Block, far()).is_err(),
        "though it is free"
    );
    assert!(!lock.is_locked());
    let queue = LeaseQueue::<_, Cause>::new(RetryPolicy::default());
    assert!(queue.put("item").is_err(), "though there is room");
    queue.try_put("item", &PutOptions::default()).unwrap();
    assert!(queue.lease(far()).is_err(), "though there is one");
    assert_eq!((queue.counts().ready, queue.counts().leased), (1, 0));
    let empty = LeaseQueue::<(), Cause>::new(RetryPolicy::default());
    assert!(empty.drain(far()).is_err(), "though it is empty");
    let cancelled = CancelSource::new();
    cancelled.cancel();
    let token = cancelled.token();
    assert!(token.wait_until(far()).is_err(), "though it is cancelled");
    assert!(sleep(Duration::ZERO).is_err());
    assert!(sleep(HOUR).is_err());
}

#[test]
fn i15_in_a_cancelled_scope_no_wait_begins_and_nothing_is_acquired() {
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        begin_every_wait();
        checkpoint()
    });
    assert_eq!(left, Ok(None));
}

#[test]
fn i15_no_wait_begins_if_the_deadline_has_passed_unnoticed() {
    let set = Latch::new();
    set.set();
    let of_a_set_latch = move_on_after(Duration::ZERO, |_| set.wait_until(far()));
    assert_eq!(of_a_set_latch, Ok(None));
    let empty = LeaseQueue::<(), Cause>::new(RetryPolicy::default());
    let of_an_empty_queue = move_on_after(Duration::ZERO, |_| empty.drain(far()));
    assert_eq!(of_an_empty_queue, Ok(None));
    let every = move_on_after(Duration::ZERO, |_| {
        begin_every_wait();
        checkpoint()
    });
    assert_eq!(every, Ok(None));
}

#[test]
fn a_wait_that_was_not_granted_leaves_nothing_behind() {
    let (latch, lock) = (Latch::new(), Lock::default());
    let queue = LeaseQueue::<_, Cause>::new(QueueOptions {
        maxsize: 1,
        ..QueueOptions::default()
    });
    assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
    let time_out = || {
        let soon = || Time::after(Duration::from_micros(20));
        assert_eq!(latch.wait_until(soon()), Ok(false));
        assert_eq!(latch.wait_shielded(soon()), Ok(false));
        assert!(!lock.acquire(Acquire::Block, soon()).unwrap());
        assert_eq!(queue.lease(soon()), Ok(None));
        queue.put(()).unwrap();
        assert_eq!(queue.drain(soon()), Ok(false));
        let (nothing, again) = (PutOptions::default(), soon());
        assert_eq!(queue.put_with((), &nothing, again), Ok(None));
        let cancelled = move_on_after(Duration::from_micros(20), |_| queue.put(()));
        assert_eq!(cancelled, Ok(None));
        let lease = queue.lease(far()).unwrap().unwrap();
        queue.ack(lease.id, lease.epoch).unwrap();
    };
    // A queue keeps its memory after its first use, and the watcher may hold a node for a moment.
    let mut rounds = (0..1000).map(|_| allocated_by(|| (0..20).for_each(|_| time_out())).0);
    assert!(rounds.any(|left| left.blocks == 0));
    lock.release().unwrap();
}

#[test]
fn forms_that_do_not_block_are_no_checkpoints() {
    let done = move_on_after(HOUR, |scope| {
        scope.cancel();
        let lock = Lock::default();
        assert!(lock.try_acquire(Acquire::Block).unwrap());
        lock.release().unwrap();
        Ok::<_, Stop>(())
    });
    assert_eq!(done, Ok(Some(())));
}

#[test]
fn the_deadline_of_an_outer_scope_ends_a_wait_inside() {
    let (mut inner_passed_it_on, soon) = (false, Duration::from_millis(2));
    let result: Result<Option<()>, Error> = cancel_scope(soon, |_| {
        let inner: Result<Option<()>, Error> = cancel_scope(HOUR, |_| Ok(sleep(HOUR)?));
        inner_passed_it_on = matches!(&inner, Err(Error::Stop(Stop::Cancelled(cause))) if cause.kind == CauseKind::Deadline);
        inner.map(|_| ())
    });
    assert_eq!(result, Err(Error::TooLate));
    assert!(inner_passed_it_on);
}

#[test]
fn of_several_deadlines_the_earliest_ends_the_wait_and_belongs_to_its_scope() {
    for tightest in 0..3 {
        let bound = |level: usize| {
            if level == tightest {
                Duration::from_millis(1)
            } else {
                HOUR
            }
        };
        let mut ended = None;
        let mut level = |at: usize, quiet: bool| {
            if quiet && ended.is_none() {
                ended = Some(at);
            }
        };
        let outer = move_on_after(bound(0), |_| {
            let middle = move_on_after(bound(1), |_| {
                let inner = move_on_after(bound(2), |_| sleep(HOUR))?;
                level(2, inner.is_none());
                Ok::<_, Stop>(())
            })?;
            level(1, middle.is_none());
            Ok::<_, Stop>(())
        });
        level(0, outer == Ok(None));
        assert_eq!(ended, Some(tightest));
    }
}

#[test]
fn a_wait_with_its_own_bound_times_out_without_a_stop() {
    let soon = Time::after(Duration::from_millis(1));
    let latch = Latch::new();
    assert_eq!(
        move_on_after(HOUR, |_| latch.wait_until(soon)),
        Ok(Some(false))
    );
    assert_eq!(latch.wait_until(PAST), Ok(false));
    assert_eq!(CancelSource::new().token().wait_until(soon), Ok(false));
}

#[test]
fn a_deadline_moved_from_another_thread_ends_a_wait_in_progress() {
    let (go, gone) = channel();
    let waiter = Parker::spawn_parked(move || {
        move_on_after(HOUR, |scope| {
            thread::scope(|threads| {
                threads.spawn(move || {
                    gone.recv().unwrap();
                    scope.set_deadline(PAST);
                });
                sleep(HOUR)
            })
        })
    });
    go.send(()).unwrap();
    assert_eq!(waiter.join(), Ok(None));
}

#[test]
fn a_zone_ends_early_when_a_deadline_outside_is_moved_to_long_ago() {
    // The grace after a deadline in the past is over as well; only the timer notices it.
    let in_time = move_on_after(HOUR, |scope| {
        let zone = cleanup(|| {
            scope.set_deadline(PAST);
            sleep(HOUR)
        })?;
        assert_eq!(zone, None, "the zone absorbs its own end");
        Ok::<_, Stop>(())
    });
    assert_eq!(in_time, Ok(Some(())));
}

#[test]
fn a_wait_in_a_zone_goes_on_after_a_cancel_outside_and_in_a_zone_in_a_zone_too() {
    let latch = Arc::new(Latch::new());
    let set = latch.clone();
    let (task, cleaner) = parked_task(move || {
        let outcome = cleanup(|| cleanup(|| latch.wait_until(Time::NEVER)));
        (outcome, checkpoint().is_err())
    });
    task.source().cancel_with(None, Some(HOUR));
    set.set();
    assert_eq!(cleaner.join(), (Ok(Some(Some(true))), true));
}

#[test]
fn a_cancel_without_grace_ends_a_wait_in_a_zone_in_a_zone() {
    let (task, cleaner) = parked_task(|| cleanup(|| cleanup(|| sleep(HOUR))));
    task.source().cancel_with(None, Some(Duration::ZERO));
    assert_eq!(
        cleaner.join(),
        Ok(Some(None)),
        "each zone absorbs its own end"
    );
}

#[test]
fn a_grant_that_won_is_returned_and_the_next_checkpoint_raises() {
    let latch = Arc::new(Latch::new());
    let theirs = latch.clone();
    let (task, waiter) =
        parked_task(move || (theirs.wait_until(Time::NEVER), checkpoint().is_err()));
    latch.set();
    task.source().cancel();
    let (granted, _) = waiter.join();
    assert_eq!(granted, Ok(true));
}

#[test]
fn an_uninterruptible_wait_ends_only_with_its_grant() {
    let latch = Arc::new(Latch::new());
    let theirs = latch.clone();
    let (task, waiter) = parked_task(move || theirs.wait_shielded(Time::NEVER));
    task.source().cancel();
    latch.set();
    assert_eq!(waiter.join(), Ok(true));
    assert_eq!(latch.wait_shielded(PAST), Ok(true));
    assert_eq!(Latch::new().wait_shielded(PAST), Ok(false));
}

#[test]
fn a_shielded_wait_is_not_ended_by_a_cancel_outside() {
    let latch = Arc::new(Latch::new());
    let theirs = latch.clone();
    let after = Arc::new(AtomicBool::new(false));
    let ran = after.clone();
    let (task, waiter) = parked_task(move || {
        let result = shield(HOUR, || theirs.wait_until(Time::NEVER));
        ran.store(true, Ordering::Relaxed);
        (result, checkpoint().is_err())
    });
    task.source().cancel();
    latch.set();
    assert_eq!(waiter.join(), (Ok(Some(true)), true));
    assert!(after.load(Ordering::Relaxed));
}
