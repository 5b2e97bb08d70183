//! The task's boundary: kills race with the body's waits, masks, locks and end.

use std::sync::Arc;

use super::{THRICE, TWICE, because, end, explore, run_as, spawn};
use crate::boundary::{BodyEnd, Boundary};
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::KillInfo;
use crate::sync::{Acquire, Latch, Lock, LockError};
use crate::task::Task;
use crate::wait;

/// A kill with this policy is not deferred by locks.
const AT_ONCE: Time = Time::from_nanos(0);

/// Request a kill and deliver it; if there is nothing to kill, set the latch that the body waits for.
fn killer(
    task: &Arc<Task>,
    latch: &Arc<Latch>,
    lock_grace_until: Time,
) -> loom::thread::JoinHandle<bool> {
    let (task, latch) = (task.clone(), latch.clone());
    spawn(move || {
        let ordered = task.request_kill(&because("kill"), lock_grace_until);
        if ordered {
            task.deliver_at_wait();
        } else {
            latch.set();
        }
        ordered
    })
}

fn assert_killed_iff(ordered: bool, result: &Result<bool, Stop>) {
    match result {
        Ok(true) => assert!(!ordered, "the kill was lost"),
        Err(Stop::Killed(_)) => assert!(ordered),
        other => panic!("{other:?}"),
    }
}

#[test]
fn loom_i12_i24_a_kill_ends_the_wait_of_the_body() {
    explore(THRICE, || {
        let task = Task::new("body", None);
        let latch = Arc::new(Latch::new());
        let body = {
            let (task, latch) = (task.clone(), latch.clone());
            spawn(move || run_as(&task, || latch.wait_until(Time::NEVER)))
        };
        let killer = killer(&task, &latch, AT_ONCE);
        assert_killed_iff(end(killer), &end(body));
        assert_eq!(latch.waiting(), 0);
    });
}

#[test]
fn loom_i22_a_late_kill_is_not_seen_by_the_thread_after_the_body() {
    explore(THRICE, || {
        let task = Task::new("body", None);
        let latch = Arc::new(Latch::new());
        let worker = {
            let (task, latch) = (task.clone(), latch.clone());
            spawn(move || {
                let _ = run_as(&task, wait::checkpoint);
                latch.wait_until(Time::NEVER) // the worker's own wait
            })
        };
        let killer = {
            let (task, latch) = (task.clone(), latch.clone());
            spawn(move || {
                if task.request_kill(&because("kill"), AT_ONCE) {
                    task.deliver_at_wait();
                }
                latch.set();
            })
        };
        end(killer);
        assert_eq!(end(worker), Ok(true));
    });
}

#[test]
fn loom_i24_a_mask_defers_a_kill_and_then_it_is_delivered() {
    explore(TWICE, || {
        let task = Task::new("body", None);
        let latch = Arc::new(Latch::new());
        let body = {
            let (task, latch) = (task.clone(), latch.clone());
            spawn(move || {
                run_as(&task, || {
                    let mask = task.mask(Time::NEVER);
                    assert_eq!(wait::checkpoint(), Ok(()), "masked");
                    task.unmask(mask);
                    latch.wait_until(Time::NEVER)
                })
            })
        };
        let killer = killer(&task, &latch, AT_ONCE);
        assert_killed_iff(end(killer), &end(body));
    });
}

#[test]
fn loom_i24_a_held_lock_defers_a_kill_and_then_it_is_delivered() {
    explore(TWICE, || {
        let task = Task::new("body", None);
        let latch = Arc::new(Latch::new());
        let lock = Lock::default();
        let body = {
            let (task, latch, lock) = (task.clone(), latch.clone(), lock.clone());
            spawn(move || {
                run_as(&task, || {
                    match lock.acquire(Acquire::Block, Time::NEVER) {
                        Err(LockError::Stop(stop)) => return Err(stop),
                        other => assert!(other.unwrap()),
                    }
                    assert_eq!(wait::checkpoint(), Ok(()), "it holds a lock");
                    lock.release().unwrap();
                    latch.wait_until(Time::NEVER)
                })
            })
        };
        let killer = killer(&task, &latch, Time::NEVER);
        assert_killed_iff(end(killer), &end(body));
        assert!(!lock.is_locked());
    });
}

#[test]
fn loom_i27_a_body_ends_or_is_abandoned_and_its_lock_is_released_or_unavailable() {
    explore(THRICE, || {
        let task = Task::new("body", None);
        let lock = Lock::default();
        let body = {
            let (task, lock) = (task.clone(), lock.clone());
            spawn(move || {
                let boundary = Boundary::enter(&task, None);
                assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
                boundary.leave(BodyEnd::Unwound)
            })
        };
        let abandoner = {
            let task = task.clone();
            spawn(move || {
                task.abandon(KillInfo {
                    task: task.name().clone(),
                    cause: because("kill"),
                    stack: None,
                })
            })
        };
        let (ended, abandoned) = (end(body), end(abandoner));
        assert_ne!(ended, abandoned, "one of them settles the body's work");
        assert!(!lock.is_locked());
        assert!(abandoned || !lock.is_poisoned());
        assert_eq!(task.ledger().len(), 0);
    });
}
