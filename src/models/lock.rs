//! The lock: handed on, given up, poisoned.

use std::sync::Arc;

use super::{Exclusive, ONCE, THRICE, TWICE, because, end, explore, run_as, spawn};
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{Death, End, Ledger};
use crate::scope;
use crate::sync::{Acquire, Lock, LockError, OnKill};
use crate::task::Task;

/// A lock and what it protects.
#[derive(Clone)]
struct Protected {
    lock: Lock,
    data: Arc<Exclusive>,
}

impl Protected {
    fn new() -> Protected {
        Protected {
            lock: Lock::new("model", OnKill::Poison),
            data: Exclusive::new(),
        }
    }

    /// A lock that the main thread holds, with its ledger.
    fn held() -> (Protected, Arc<Ledger>) {
        let protected = Protected::new();
        assert!(protected.lock.try_acquire(Acquire::Block).unwrap());
        (protected, scope::current_ledger())
    }

    /// Wait for it, use it, give it back.
    fn cycle(&self) -> Result<(), LockError> {
        let acquired = self.lock.acquire(Acquire::Block, Time::NEVER);
        let held = usize::from(acquired.is_ok());
        assert_eq!(scope::current_ledger().len(), held, "recorded iff held");
        assert!(acquired?);
        self.data.touch();
        self.lock.release().unwrap();
        assert_eq!(
            scope::current_ledger().len(),
            0,
            "neither held nor recorded"
        );
        Ok(())
    }

    /// Release what the main thread holds.
    fn release(&self) {
        self.data.touch();
        self.lock.release().unwrap();
    }

    /// Nobody holds it, and it can be had.
    fn assert_free(&self) {
        assert!(!self.lock.is_locked());
        self.cycle().unwrap();
    }
}

fn end_of_holder() -> Arc<Death> {
    Arc::new(Death {
        task: "holder".into(),
        cause: because("for a test"),
        stack: None,
    })
}

#[test]
fn loom_i12_three_threads_have_the_lock_in_turn() {
    explore(TWICE, || {
        let protected = Protected::new();
        let actors = [(); 3].map(|()| {
            let protected = protected.clone();
            spawn(move || protected.cycle().unwrap())
        });
        actors.into_iter().for_each(end);
        protected.assert_free();
    });
}

#[test]
fn loom_i11_a_waiter_that_is_cancelled_during_a_hand_off_holds_the_lock_or_has_not_taken_it() {
    explore(TWICE, || {
        let (protected, _) = Protected::held();
        let task = Task::new("waits", None);
        let waiter = {
            let (protected, task) = (protected.clone(), task.clone());
            spawn(move || run_as(&task, || protected.cycle()))
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        let holder = {
            let protected = protected.clone();
            spawn(move || protected.release())
        };
        end(canceller);
        end(holder);
        assert!(matches!(
            end(waiter),
            Ok(()) | Err(LockError::Stop(Stop::Cancelled(_)))
        ));
        assert_eq!(task.ledger().len(), 0);
        protected.assert_free();
    });
}

#[test]
fn loom_i11_i12_a_cancelled_waiter_is_skipped_and_the_next_gets_the_lock() {
    explore(ONCE, || {
        let (protected, _) = Protected::held();
        let task = Task::new("waits", None);
        let cancelled = {
            let (protected, task) = (protected.clone(), task.clone());
            spawn(move || run_as(&task, || protected.cycle()))
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        let next = {
            let protected = protected.clone();
            spawn(move || protected.cycle().unwrap())
        };
        let holder = {
            let protected = protected.clone();
            spawn(move || protected.release())
        };
        end(canceller);
        end(holder);
        end(next); // or loom reports a deadlock
        assert!(matches!(
            end(cancelled),
            Ok(()) | Err(LockError::Stop(Stop::Cancelled(_)))
        ));
        protected.assert_free();
    });
}

#[test]
fn loom_i21_a_killed_holders_lock_is_poisoned_before_anyone_else_has_it() {
    explore(TWICE, || {
        let (protected, ledger) = Protected::held();
        let killer = spawn({
            let data = protected.data.clone();
            move || {
                data.touch(); // the holder's last use
                ledger.sweep(&End::Killed(end_of_holder()))
            }
        });
        let waiters = [(); 2].map(|()| {
            let protected = protected.clone();
            spawn(move || protected.cycle())
        });
        assert_eq!(end(killer).poisoned.len(), 1);
        for waiter in waiters {
            assert!(matches!(end(waiter), Err(LockError::Poisoned(_))));
        }
        assert!(!protected.lock.is_locked() && protected.lock.is_poisoned());
    });
}

#[test]
fn loom_i21_a_waiter_that_was_refused_does_not_hold_the_lock_after_its_repair() {
    explore(TWICE, || {
        let (protected, ledger) = Protected::held();
        let killer = spawn(move || ledger.sweep(&End::Killed(end_of_holder())));
        let waiter = {
            let protected = protected.clone();
            spawn(move || protected.cycle())
        };
        let repairer = {
            let protected = protected.clone();
            spawn(move || {
                assert!(
                    protected
                        .lock
                        .acquire(Acquire::Repair, Time::NEVER)
                        .unwrap()
                );
                protected.data.touch();
                protected.lock.mark_consistent();
                protected.data.touch();
                protected.lock.release().unwrap();
            })
        };
        end(killer);
        end(repairer);
        assert!(matches!(end(waiter), Ok(()) | Err(LockError::Poisoned(_))));
        protected.assert_free();
    });
}

#[test]
fn loom_i21_a_lock_is_released_or_lost_with_its_abandoned_holder() {
    explore(THRICE, || {
        let (protected, ledger) = Protected::held();
        let holder = {
            let protected = protected.clone();
            spawn(move || {
                protected.data.touch();
                protected.lock.release().is_ok()
            })
        };
        let abandoner = {
            let ledger = ledger.clone();
            spawn(move || ledger.sweep(&End::Abandoned(end_of_holder())))
        };
        let waiter = {
            let protected = protected.clone();
            spawn(move || protected.cycle())
        };
        let (released, swept) = (end(holder), end(abandoner));
        assert_ne!(released, swept.poisoned.len() == 1);
        match end(waiter) {
            Ok(()) => assert!(released),
            Err(LockError::OwnerLost(_)) => assert!(!released),
            other => panic!("{other:?}"),
        }
        assert_eq!(ledger.len(), 0);
    });
}
