//! Semaphores, as Rust programs use them. Blocks, which only a host has, are in the models.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use desist::sync::{Semaphore, TooManyReleases};
use desist::{Stop, Time, move_on_after};

use crate::support::{PAST, Parker, far, parked_task};

const HOUR: Duration = Duration::from_secs(3600);

fn waiting_for(semaphore: &Semaphore) -> (Arc<desist::task::Task>, Parker<Result<bool, Stop>>) {
    let semaphore = semaphore.clone();
    parked_task(move || semaphore.acquire(Time::NEVER))
}

#[test]
fn permits_are_acquired_until_there_are_none_and_released() {
    let semaphore = Semaphore::new(2);
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.acquire(far()), Ok(true));
    assert_eq!(semaphore.free(), 0);
    assert!(!semaphore.try_acquire());
    semaphore.release(2).unwrap();
    assert_eq!(semaphore.free(), 2);
    semaphore.release(3).unwrap();
    assert_eq!(semaphore.free(), 5, "without a bound there may be more");
}

#[test]
fn a_bounded_semaphore_refuses_an_excess_release_and_adds_no_permit() {
    let semaphore = Semaphore::bounded(2);
    assert_eq!(semaphore.bound(), 2);
    assert_eq!(semaphore.release(1), Err(TooManyReleases));
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.release(2), Err(TooManyReleases));
    assert_eq!(semaphore.free(), 1);
    semaphore.release(1).unwrap();
    semaphore.release(0).unwrap();
    assert_eq!(semaphore.free(), 2);
}

#[test]
fn more_permits_than_can_be_counted_are_refused() {
    let semaphore = Semaphore::new(usize::MAX);
    assert_eq!(semaphore.release(1), Err(TooManyReleases));
    assert_eq!(Semaphore::new(1).release(usize::MAX), Err(TooManyReleases));
}

#[test]
fn a_semaphore_without_permits_gives_none() {
    let semaphore = Semaphore::bounded(0);
    assert!(!semaphore.try_acquire());
    assert_eq!(semaphore.acquire(PAST), Ok(false));
    assert_eq!(semaphore.release(1), Err(TooManyReleases));
}

#[test]
fn another_thread_may_release_a_permit_and_the_end_of_a_task_does_not() {
    let semaphore = Semaphore::new(1);
    let (theirs, released) = (semaphore.clone(), semaphore.clone());
    let (taken, _) = parked_task(move || {
        assert!(theirs.try_acquire());
        theirs.acquire(Time::NEVER)
    });
    taken.source().cancel();
    taken.over().wait_until(far()).unwrap();
    assert_eq!(semaphore.free(), 0, "a permit has no owner");
    thread::spawn(move || released.release(1))
        .join()
        .unwrap()
        .unwrap();
    assert_eq!(semaphore.free(), 1);
}

#[test]
fn i11_a_cancelled_waiter_has_no_permit_and_the_next_gets_it() {
    let semaphore = Semaphore::new(0);
    let (task, cancelled) = waiting_for(&semaphore);
    let (_, next) = waiting_for(&semaphore);
    task.source().cancel();
    assert!(matches!(cancelled.join(), Err(Stop::Cancelled(_))));
    semaphore.release(1).unwrap();
    assert_eq!(next.join(), Ok(true));
    assert_eq!(semaphore.free(), 0);
}

#[test]
fn i11_a_permit_released_to_a_waiter_that_was_just_cancelled_is_free() {
    for _ in 0..50 {
        let semaphore = Semaphore::new(0);
        let (task, waiter) = waiting_for(&semaphore);
        // Its wait has been settled, but the waiter is still in the queue.
        let (token, released) = (task.source().token(), semaphore.clone());
        let _release = token.on_cancel(move |_| released.release(2).unwrap());
        task.source().cancel();
        assert!(matches!(waiter.join(), Err(Stop::Cancelled(_))));
        assert_eq!(semaphore.free(), 2);
    }
}

#[test]
fn i11_a_waiter_that_timed_out_has_no_permit() {
    let semaphore = Semaphore::new(0);
    assert_eq!(semaphore.acquire(PAST), Ok(false));
    let soon = Time::after(Duration::from_millis(1));
    assert_eq!(semaphore.acquire(soon), Ok(false));
    semaphore.release(1).unwrap();
    assert_eq!(semaphore.free(), 1);
    assert_eq!(semaphore.acquire(PAST), Ok(true), "it need not wait");
}

#[test]
fn i15_in_a_cancelled_scope_no_permit_is_acquired_even_if_one_is_free() {
    let semaphore = Semaphore::new(1);
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        semaphore.acquire(far())
    });
    assert_eq!((left, semaphore.free()), (Ok(None), 1));
}

#[test]
fn waiters_get_their_permits_in_their_order() {
    let semaphore = Semaphore::new(0);
    let (sender, order) = channel();
    let waiters = [0, 1, 2].map(|number| {
        let (semaphore, sender) = (semaphore.clone(), sender.clone());
        Parker::spawn_parked(move || {
            assert_eq!(semaphore.acquire(Time::NEVER), Ok(true));
            sender.send(number).unwrap();
        })
    });
    for number in 0..3 {
        semaphore.release(1).unwrap();
        assert!(!semaphore.try_acquire(), "it was handed over");
        assert_eq!(order.recv(), Ok(number));
    }
    waiters.into_iter().for_each(Parker::join);
}

#[test]
fn several_permits_at_once_go_to_as_many_waiters_and_the_rest_is_free() {
    let semaphore = Semaphore::new(0);
    let waiters = [waiting_for(&semaphore).1, waiting_for(&semaphore).1];
    semaphore.release(5).unwrap();
    assert_eq!(semaphore.free(), 3);
    for waiter in waiters {
        assert_eq!(waiter.join(), Ok(true));
    }
    assert_eq!(semaphore.free(), 3);
}

#[test]
fn i13_under_contention_with_cancels_no_permit_is_lost_or_given_twice() {
    const PERMITS: usize = 2;
    let semaphore = Semaphore::bounded(PERMITS);
    let inside = Arc::new(AtomicUsize::new(0));
    let contend = |seed: u64| {
        let (semaphore, inside) = (semaphore.clone(), inside.clone());
        thread::spawn(move || {
            for round in 0..300 {
                let hurry = Duration::from_nanos((seed * 7919 + round * 104_729) % 60_000);
                let took = move_on_after(hurry, |_| semaphore.acquire(Time::NEVER));
                if took.unwrap() == Some(true) {
                    assert!(inside.fetch_add(1, Relaxed) < PERMITS);
                    thread::yield_now();
                    inside.fetch_sub(1, Relaxed);
                    semaphore.release(1).unwrap();
                }
            }
        })
    };
    for thread in [1, 2, 3, 4].map(contend) {
        thread.join().unwrap();
    }
    assert_eq!(semaphore.free(), PERMITS);
}
