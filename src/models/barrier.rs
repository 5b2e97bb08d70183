//! The barrier: completed, left early, broken.

use std::sync::Arc;

use super::{Exclusive, ONCE, THRICE, TWICE, canceller, end, explore, spawn, spawn_as};
use crate::clock::Time;
use crate::error::Stop;
use crate::sync::{Arrival, Barrier, BarrierError};
use crate::task::Task;

type Passed = Result<usize, BarrierError>;

fn party(barrier: &Arc<Barrier>) -> loom::thread::JoinHandle<Passed> {
    let barrier = barrier.clone();
    spawn(move || barrier.wait_until(Time::NEVER))
}

fn party_as(barrier: &Arc<Barrier>, task: &Arc<Task>) -> loom::thread::JoinHandle<Passed> {
    let barrier = barrier.clone();
    spawn_as(task, move || barrier.wait_until(Time::NEVER))
}

/// Each party has a number of its own.
fn assert_all_passed<const N: usize>(passed: [Passed; N]) {
    let mut numbers = passed.map(Result::unwrap);
    numbers.sort_unstable();
    assert_eq!(numbers, std::array::from_fn(|at| at));
}

fn assert_new(barrier: &Barrier) {
    assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
}

#[test]
fn loom_i12_all_parties_pass_and_see_earlier_writes() {
    explore(THRICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let data = [(); 2].map(|()| Exclusive::new());
        let actors = [(0, 1), (1, 0)].map(|(mine, others)| {
            let (mine, others) = (data[mine].clone(), data[others].clone());
            let barrier = barrier.clone();
            spawn(move || {
                mine.touch();
                let number = barrier.wait_until(Time::NEVER);
                others.touch();
                number
            })
        });
        assert_all_passed(actors.map(end));
        assert_new(&barrier);
    });
}

#[test]
fn loom_i12_three_parties_pass_together() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(3));
        assert_all_passed([(); 3].map(|()| party(&barrier)).map(end));
        assert_new(&barrier);
    });
}

#[test]
fn loom_i12_the_next_round_begins_when_all_parties_have_left() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let data = Exclusive::new();
        let actors = [false, true].map(|second| {
            let (barrier, data) = (barrier.clone(), data.clone());
            spawn(move || {
                for turn in [true, false] {
                    barrier.wait_until(Time::NEVER).unwrap();
                    if turn == second {
                        data.touch(); // one in each round, so never both at once
                    }
                }
                barrier.wait_until(Time::NEVER)
            })
        });
        assert_all_passed(actors.map(end));
        assert_new(&barrier);
    });
}

#[test]
fn loom_i11_a_party_that_comes_while_the_last_one_opens_belongs_to_the_next_round() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let parties = [(); 3].map(|()| party(&barrier));
        let mut numbers = vec![barrier.wait_until(Time::NEVER).unwrap()];
        numbers.extend(parties.map(|party| end(party).unwrap()));
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 0, 1, 1], "two rounds of two");
        assert_new(&barrier);
    });
}

#[test]
fn loom_i11_a_party_that_is_cancelled_when_the_last_comes_passes_or_does_not_count() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let task = Task::new("cancelled", None);
        let cancelled = party_as(&barrier, &task);
        let other = party(&barrier);
        end(canceller(&task));
        match end(cancelled) {
            Ok(number) => assert_all_passed([Ok(number), end(other)]),
            Err(BarrierError::Stop(Stop::Cancelled(_))) => {
                // The other party waits on, for another one.
                assert_all_passed([barrier.wait_until(Time::NEVER), end(other)]);
            }
            Err(failure) => panic!("{failure:?}"),
        }
        assert_new(&barrier);
    });
}

#[test]
fn loom_i11_after_one_of_three_parties_has_stopped_waiting_each_number_is_given_once() {
    explore(ONCE, || {
        let barrier = Arc::new(Barrier::new(3));
        let task = Task::new("cancelled", None);
        let cancelled = party_as(&barrier, &task);
        let before = party(&barrier); // or at the same time
        end(canceller(&task));
        assert!(matches!(end(cancelled), Err(BarrierError::Stop(_))));
        let after = party(&barrier);
        assert_all_passed([barrier.wait_until(Time::NEVER), end(before), end(after)]);
        assert_new(&barrier);
    });
}

#[test]
fn loom_i11_all_pass_or_none_when_the_barrier_is_broken() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let parties = [party(&barrier), party(&barrier)];
        let breaker = {
            let barrier = barrier.clone();
            spawn(move || barrier.abort())
        };
        end(breaker);
        match parties.map(end) {
            [Err(BarrierError::Broken), Err(BarrierError::Broken)] => {}
            passed => assert_all_passed(passed),
        }
        assert!(barrier.is_broken());
        assert_eq!(
            barrier.wait_until(Time::NEVER),
            Err(BarrierError::Broken),
            "and so it stays"
        );
    });
}

#[test]
fn loom_i12_a_waiter_at_a_reset_gets_an_error() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let task = Task::new("is left over", None);
        let party = party_as(&barrier, &task);
        let resetter = {
            let barrier = barrier.clone();
            spawn(move || barrier.reset())
        };
        end(resetter);
        end(canceller(&task)); // it may have come after the reset
        assert!(matches!(
            end(party),
            Err(BarrierError::Broken | BarrierError::Stop(_))
        ));
        assert_new(&barrier);
    });
}

/// One party runs the action before all pass, if it comes last.
fn opener(
    barrier: &Arc<Barrier>,
    data: &Arc<Exclusive>,
    task: &Arc<Task>,
    opens: bool,
) -> loom::thread::JoinHandle<Passed> {
    let (barrier, data) = (barrier.clone(), data.clone());
    spawn_as(task, move || {
        let number = match barrier.arrive(Time::NEVER)? {
            Arrival::Passed(number) => number,
            Arrival::Last(opening) => {
                data.touch();
                if opens {
                    opening.open()?
                } else {
                    drop(opening);
                    return Err(BarrierError::Broken);
                }
            }
        };
        if number == 0 {
            data.touch();
        }
        Ok(number)
    })
}

#[test]
fn loom_i11_i12_a_party_that_is_cancelled_while_the_last_one_opens_passes_with_it() {
    explore(ONCE, || {
        let barrier = Arc::new(Barrier::new(2));
        let data = Exclusive::new();
        let tasks = ["one", "other"].map(|name| Task::new(name, None));
        let parties = [0, 1].map(|at| opener(&barrier, &data, &tasks[at], true));
        let canceller = canceller(&tasks[0]);
        let [one, other] = parties;
        let one = end(one);
        end(canceller);
        tasks[1].source().cancel(); // if it is the only party left
        match (one, end(other)) {
            (Err(BarrierError::Stop(_)), Err(BarrierError::Stop(_))) => {}
            (one, other) => assert_all_passed([one, other]),
        }
        assert_new(&barrier);
    });
}

#[test]
fn loom_i12_if_the_last_party_fails_to_open_all_get_an_error() {
    explore(TWICE, || {
        let barrier = Arc::new(Barrier::new(2));
        let data = Exclusive::new();
        let parties = ["one", "other"].map(|name| {
            let task = Task::new(name, None);
            opener(&barrier, &data, &task, false)
        });
        for party in parties {
            assert_eq!(end(party), Err(BarrierError::Broken));
        }
        assert!(barrier.is_broken());
        barrier.reset();
        assert_new(&barrier);
    });
}
