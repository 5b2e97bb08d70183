//! The semaphore: permits handed on, cancelled, swept.

use std::sync::Arc;

use super::{
    Exclusive, ONCE, THRICE, TWICE, because, canceller, end, explore, run_as, spawn, spawn_as,
};
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{KillInfo, Termination};
use crate::scope;
use crate::sync::Semaphore;
use crate::task::Task;

type Acquired = Result<bool, Stop>;

/// A thread that waits for a permit inside this task, and keeps it.
fn taker(semaphore: &Semaphore, task: &Arc<Task>) -> loom::thread::JoinHandle<Acquired> {
    let semaphore = semaphore.clone();
    spawn_as(task, move || semaphore.acquire(Time::NEVER))
}

fn releaser(semaphore: &Semaphore, permits: usize) -> loom::thread::JoinHandle<()> {
    let semaphore = semaphore.clone();
    spawn(move || semaphore.release(permits).unwrap())
}

/// Whether the wait was granted a permit, or else cancelled.
fn has_one(acquired: &Acquired) -> bool {
    match acquired {
        Ok(true) => true,
        Err(Stop::Cancelled(_)) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn loom_i12_three_threads_share_one_permit() {
    explore(THRICE, || {
        let semaphore = Semaphore::bounded(1);
        let data = Exclusive::new();
        let actors = [(); 3].map(|()| {
            let (semaphore, data) = (semaphore.clone(), data.clone());
            spawn(move || {
                assert_eq!(semaphore.acquire(Time::NEVER), Ok(true));
                data.touch();
                semaphore.release(1).unwrap();
            })
        });
        actors.into_iter().for_each(end);
        assert_eq!((semaphore.free(), semaphore.waiting()), (1, 0));
    });
}

#[test]
fn loom_i11_the_waiter_has_the_permit_or_it_is_free_when_a_cancel_races_with_the_release() {
    explore(TWICE, || {
        let semaphore = Semaphore::new(0);
        let task = Task::new("waits", None);
        let waiter = taker(&semaphore, &task);
        let canceller = canceller(&task);
        let releaser = releaser(&semaphore, 1);
        end(canceller);
        end(releaser);
        let taken = usize::from(has_one(&end(waiter)));
        assert_eq!((semaphore.free(), semaphore.waiting()), (1 - taken, 0));
    });
}

#[test]
fn loom_i11_i12_a_cancelled_waiter_is_skipped_and_the_next_gets_the_permit() {
    explore(ONCE, || {
        let semaphore = Semaphore::new(0);
        let task = Task::new("waits", None);
        let cancelled = {
            let semaphore = semaphore.clone();
            spawn_as(&task, move || {
                let acquired = semaphore.acquire(Time::NEVER);
                if acquired.is_ok() {
                    semaphore.release(1).unwrap();
                }
                acquired
            })
        };
        let next = taker(&semaphore, &Task::new("next", None));
        let canceller = canceller(&task);
        let releaser = releaser(&semaphore, 1);
        end(canceller);
        end(releaser);
        assert_eq!(end(next), Ok(true)); // or loom reports a deadlock
        has_one(&end(cancelled));
        assert_eq!((semaphore.free(), semaphore.waiting()), (0, 0));
    });
}

#[test]
fn loom_i11_a_cancelled_wait_for_a_permit_leaves_nothing() {
    explore(TWICE, || {
        let semaphore = Semaphore::new(0);
        let task = Task::new("waits", None);
        let waiter = taker(&semaphore, &task);
        // None is released, so no other thread takes the dead waiters out of the queue.
        end(canceller(&task));
        assert!(!has_one(&end(waiter)));
        assert_eq!((semaphore.free(), semaphore.waiting()), (0, 0));
    });
}

#[test]
fn loom_i11_of_several_permits_at_once_each_waiter_gets_one_and_the_rest_is_free() {
    explore(ONCE, || {
        let semaphore = Semaphore::new(0);
        let task = Task::new("waits", None);
        let cancelled = taker(&semaphore, &task);
        let next = taker(&semaphore, &Task::new("next", None));
        let canceller = canceller(&task);
        let releaser = releaser(&semaphore, 3);
        end(canceller);
        end(releaser);
        assert_eq!(end(next), Ok(true));
        let taken = 1 + usize::from(has_one(&end(cancelled)));
        assert_eq!((semaphore.free(), semaphore.waiting()), (3 - taken, 0));
    });
}

#[test]
fn loom_i11_i20_a_permit_of_a_block_is_recorded_if_acquired_and_swept_at_the_boundary() {
    explore(TWICE, || {
        let semaphore = Semaphore::new(0);
        let task = Task::new("waits", None);
        let waiter = {
            let (semaphore, task) = (semaphore.clone(), task.clone());
            spawn(move || {
                run_as(&task, || {
                    let acquired = semaphore.acquire_for_block();
                    let held = usize::from(acquired.is_ok());
                    assert_eq!(scope::current_ledger().len(), held, "recorded iff held");
                    has_one(&acquired.map(|()| true))
                })
            })
        };
        let canceller = canceller(&task);
        let releaser = releaser(&semaphore, 1);
        end(canceller);
        end(releaser);
        end(waiter);
        assert_eq!(task.ledger().len(), 0);
        assert_eq!((semaphore.free(), semaphore.waiting()), (1, 0));
    });
}

#[test]
fn loom_i20_a_permit_that_a_block_and_a_sweep_release_at_once_is_released_once() {
    explore(THRICE, || {
        let semaphore = Semaphore::bounded(1);
        let task = Task::new("holds", None);
        let block = {
            let semaphore = semaphore.clone();
            spawn_as(&task, move || {
                // None is free if the waiter was faster.
                semaphore.acquire_for_block().unwrap();
                semaphore.end_block()
            })
        };
        let abandoner = {
            let task = task.clone();
            spawn(move || {
                let kill = KillInfo {
                    task: task.name().clone(),
                    cause: because("kill"),
                    stack: None,
                };
                task.ledger().sweep(&Termination::Abandoned(Arc::new(kill)))
            })
        };
        let waiter = {
            let semaphore = semaphore.clone();
            spawn(move || {
                assert_eq!(semaphore.acquire(Time::NEVER), Ok(true));
                semaphore.release(1).unwrap();
            })
        };
        let (ended, swept) = (end(block), end(abandoner));
        assert_ne!(ended, !swept.released.is_empty(), "one of them");
        end(waiter);
        assert_eq!((semaphore.free(), semaphore.waiting()), (1, 0));
    });
}
