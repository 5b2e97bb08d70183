use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use desist::sync::{Arrival, Barrier, BarrierError};
use desist::task::Task;
use desist::{Stop, Time, move_on_after};

use crate::support::{PAST, Parker, far, parked_task};

type Passed = Result<usize, BarrierError>;

fn barrier(parties: usize) -> Arc<Barrier> {
    Arc::new(Barrier::new(parties))
}

/// A party that waits for the others, and may be cancelled.
fn waiting(barrier: &Arc<Barrier>) -> (Arc<Task>, Parker<Passed>) {
    let barrier = barrier.clone();
    parked_task(move || barrier.wait_until(Time::NEVER))
}

fn broken<T: std::fmt::Debug>(result: &Result<T, BarrierError>) -> bool {
    matches!(result, Err(BarrierError::Broken))
}

#[test]
fn a_barrier_for_one_does_not_block_and_one_for_none_is_refused() {
    for parties in [0, 1] {
        let barrier = barrier(parties);
        assert_eq!(barrier.parties(), 1);
        for _ in 0..2 {
            assert_eq!(barrier.wait_until(PAST), Ok(0));
        }
    }
}

#[test]
fn all_pass_when_the_last_party_has_come_and_each_gets_its_number() {
    let barrier = barrier(3);
    for _round in 0..3 {
        let first = waiting(&barrier).1;
        assert_eq!(barrier.waiting(), 1);
        let second = waiting(&barrier).1;
        assert_eq!(barrier.waiting(), 2);
        assert_eq!(barrier.wait_until(Time::NEVER), Ok(2));
        assert_eq!((first.join(), second.join()), (Ok(0), Ok(1)));
        assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
    }
}

#[test]
fn i11_a_cancelled_party_does_not_count_and_the_others_wait_on() {
    let barrier = barrier(3);
    let (task, cancelled) = waiting(&barrier);
    let patient = waiting(&barrier).1;
    task.source().cancel();
    assert!(matches!(
        cancelled.join(),
        Err(BarrierError::Stop(Stop::Cancelled(_)))
    ));
    assert_eq!((barrier.waiting(), barrier.is_broken()), (1, false));
    let third = waiting(&barrier).1;
    // Each party that passed has a number of its own, and one of the numbers is 0.
    assert_eq!(barrier.wait_until(Time::NEVER), Ok(2));
    assert_eq!((patient.join(), third.join()), (Ok(0), Ok(1)));
}

#[test]
fn i11_a_party_that_is_cancelled_when_all_are_there_passes_with_them() {
    let barrier = barrier(2);
    let (task, first) = waiting(&barrier);
    let Arrival::Last(opening) = barrier.arrive(Time::NEVER).unwrap() else {
        panic!("not the last")
    };
    assert_eq!((opening.index(), barrier.waiting()), (1, 0));
    task.source().cancel();
    assert_eq!(opening.open(), Ok(1));
    assert_eq!(first.join(), Ok(0));
}

#[test]
fn a_party_that_comes_while_the_last_one_opens_belongs_to_the_next_round() {
    let barrier = barrier(2);
    let first = waiting(&barrier).1;
    let Arrival::Last(opening) = barrier.arrive(Time::NEVER).unwrap() else {
        panic!("not the last")
    };
    let early = waiting(&barrier).1;
    opening.open().unwrap();
    assert_eq!(first.join(), Ok(0));
    early.until_parked();
    assert_eq!(barrier.waiting(), 1);
    assert_eq!(barrier.wait_until(Time::NEVER), Ok(1));
    assert_eq!(early.join(), Ok(0));
}

#[test]
fn i11_a_cancelled_party_of_the_next_round_does_not_break_this_one() {
    let barrier = barrier(2);
    let first = waiting(&barrier).1;
    let Arrival::Last(opening) = barrier.arrive(Time::NEVER).unwrap() else {
        panic!("not the last")
    };
    assert!(broken(&barrier.wait_until(PAST)));
    assert_eq!(opening.open(), Ok(1));
    assert_eq!(first.join(), Ok(0));
    assert!(barrier.is_broken(), "for the next parties");
    assert!(broken(&barrier.wait_until(far())));
}

#[test]
fn i11_a_party_that_times_out_breaks_it_for_all_until_a_reset() {
    let barrier = barrier(3);
    let first = waiting(&barrier).1;
    let soon = Time::after(Duration::from_millis(1));
    assert!(broken(&barrier.wait_until(soon)));
    assert!(broken(&first.join()));
    assert!(barrier.is_broken());
    assert!(broken(&barrier.wait_until(far())), "and for later parties");
    barrier.reset();
    assert!(!barrier.is_broken());
    let others = [waiting(&barrier).1, waiting(&barrier).1];
    assert_eq!(barrier.wait_until(far()), Ok(2));
    assert_eq!(others.map(Parker::join), [Ok(0), Ok(1)]);
}

#[test]
fn a_wait_without_time_breaks_it_at_once() {
    let barrier = barrier(2);
    assert!(broken(&barrier.wait_until(PAST)));
    assert!(barrier.is_broken());
}

#[test]
fn a_deadline_of_a_scope_cancels_and_does_not_break() {
    let barrier = barrier(2);
    let left = move_on_after(Duration::from_millis(1), |_| {
        match barrier.wait_until(Time::NEVER) {
            Err(BarrierError::Stop(stop)) => Err(stop),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(left, Ok(None::<()>));
    assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
}

#[test]
fn i15_a_party_in_a_cancelled_scope_does_not_count() {
    let barrier = barrier(1);
    let left = move_on_after(Duration::from_secs(3600), |scope| {
        scope.cancel();
        match barrier.wait_until(far()) {
            Err(BarrierError::Stop(stop)) => Err(stop),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(left, Ok(None::<()>));
}

#[test]
fn every_waiter_gets_an_error_when_it_is_broken_or_reset() {
    let barrier = barrier(2);
    let party = waiting(&barrier).1;
    barrier.abort();
    assert!(broken(&party.join()) && barrier.is_broken());
    barrier.reset();
    let party = waiting(&barrier).1;
    barrier.reset();
    assert!(broken(&party.join()));
    assert!(!barrier.is_broken(), "made as new");
    let party = waiting(&barrier).1;
    assert_eq!(barrier.wait_until(far()), Ok(1));
    assert_eq!(party.join(), Ok(0));
}

#[test]
fn no_party_passes_if_the_last_one_fails_to_open() {
    let barrier = barrier(2);
    let first = waiting(&barrier).1;
    let panicked = thread::scope(|threads| {
        let last = threads.spawn(|| {
            let arrival = barrier.arrive(Time::NEVER).unwrap();
            assert!(matches!(arrival, Arrival::Passed(_)), "on purpose");
        });
        last.join().is_err()
    });
    assert!(panicked && broken(&first.join()) && barrier.is_broken());
}

#[test]
fn an_opening_that_was_broken_meanwhile_lets_no_party_pass() {
    let barrier = barrier(2);
    let first = waiting(&barrier).1;
    let Arrival::Last(opening) = barrier.arrive(Time::NEVER).unwrap() else {
        panic!("not the last")
    };
    barrier.abort();
    assert!(broken(&opening.open()));
    assert!(broken(&first.join()) && barrier.is_broken());
}

#[test]
fn many_rounds_keep_the_parties_together() {
    const PARTIES: usize = 4;
    const ROUNDS: usize = 200;
    let (barrier, firsts) = (Barrier::new(PARTIES), AtomicUsize::new(0));
    let arrived = [(); ROUNDS].map(|()| AtomicUsize::new(0));
    thread::scope(|threads| {
        for _ in 0..PARTIES {
            threads.spawn(|| {
                for here in &arrived {
                    here.fetch_add(1, Relaxed);
                    let number = barrier.wait_until(far()).unwrap();
                    assert_eq!(here.load(Relaxed), PARTIES, "all are there");
                    firsts.fetch_add(usize::from(number == 0), Relaxed);
                }
            });
        }
    });
    assert_eq!(firsts.load(Relaxed), ROUNDS, "one is the first in each");
}
