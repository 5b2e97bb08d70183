//! The condition: notified, cancelled, poisoned.

use std::sync::Arc;

use super::{
    Number, ONCE, THRICE, TWICE, because, canceller, end, explore, run_as, spawn, spawn_as,
};
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{KillInfo, Termination};
use crate::scope;
use crate::sync::{Acquire, Condition, Lock, LockError, OnKill, WaitError};
use crate::task::Task;

/// A counter of permits, built with a condition.
#[derive(Clone)]
struct Permits {
    changed: Arc<Condition>,
    number: Number,
}

impl Permits {
    fn new() -> Permits {
        Permits {
            changed: Arc::new(Condition::new(Lock::reentrant("model", OnKill::Poison))),
            number: Number::new(0),
        }
    }

    fn lock(&self) -> &Lock {
        self.changed.lock()
    }

    /// Wait for a permit and take it, with the lock held `times` times.
    fn take(&self, depth: usize) -> Result<(), WaitError> {
        for _ in 0..depth {
            assert!(self.lock().acquire(Acquire::Block, Time::NEVER)?);
        }
        let mut waited = Ok(true);
        while waited.is_ok() && self.number.get() == 0 {
            waited = self.changed.wait_until(Time::NEVER);
            let held = match &waited {
                Ok(_) | Err(WaitError::Lock(LockError::Stop(_))) => depth,
                Err(_) => 0,
            };
            assert_eq!(self.lock().depth(), held, "as often as before, or lost");
            assert_eq!(scope::current_ledger().len(), held, "recorded iff held");
            if held == 0 {
                return waited.map(|_| ());
            }
        }
        if waited.is_ok() {
            self.number.set(self.number.get() - 1);
        }
        for _ in 0..depth {
            self.lock().release().unwrap();
        }
        waited.map(|_| ())
    }

    /// Add a permit, and wake a waiter.
    fn put(&self) {
        assert!(self.lock().acquire(Acquire::Block, Time::NEVER).unwrap());
        self.number.set(self.number.get() + 1);
        self.changed.notify(1);
        self.lock().release().unwrap();
    }

    fn putter(&self) -> loom::thread::JoinHandle<()> {
        let permits = self.clone();
        spawn(move || permits.put())
    }

    /// Check that no thread waits or holds the lock, and that this many permits are left.
    fn assert_left(&self, number: usize) {
        assert_eq!(self.changed.waiting(), 0);
        assert_eq!(self.lock().waiting(), 0);
        assert!(!self.lock().is_locked());
        assert_eq!(self.number.get(), number);
    }
}

fn is_cancelled(result: &Result<(), WaitError>) -> bool {
    match result {
        Ok(()) => false,
        Err(WaitError::Lock(LockError::Stop(Stop::Cancelled(_)))) => true,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn loom_i12_no_notify_is_lost_between_the_release_of_the_lock_and_the_queueing() {
    explore(THRICE, || {
        let permits = Permits::new();
        let taker = {
            let permits = permits.clone();
            spawn(move || permits.take(1).unwrap())
        };
        let putter = permits.putter();
        end(putter);
        end(taker); // or loom reports a deadlock
        permits.assert_left(0);
    });
}

#[test]
fn loom_i12_two_waiters_and_two_notifies() {
    explore(ONCE, || {
        let permits = Permits::new();
        let takers = [1, 2].map(|depth| {
            let permits = permits.clone();
            spawn(move || permits.take(depth).unwrap())
        });
        let putters = [permits.putter(), permits.putter()];
        putters.into_iter().for_each(end);
        takers.into_iter().for_each(end);
        permits.assert_left(0);
    });
}

#[test]
fn loom_i11_a_cancelled_wait_reacquires_its_lock_as_often_as_before() {
    explore(TWICE, || {
        let permits = Permits::new();
        let task = Task::new("waits", None);
        let taker = {
            let permits = permits.clone();
            spawn_as(&task, move || permits.take(2))
        };
        let canceller = canceller(&task);
        let putter = permits.putter();
        end(canceller);
        end(putter);
        let cancelled = is_cancelled(&end(taker));
        permits.assert_left(usize::from(cancelled));
        assert_eq!(task.ledger().len(), 0);
    });
}

#[test]
fn loom_i11_i12_a_notify_skips_a_cancelled_waiter_and_goes_to_the_next() {
    explore(ONCE, || {
        let permits = Permits::new();
        let task = Task::new("waits", None);
        let cancelled = {
            let (permits, task) = (permits.clone(), task.clone());
            spawn(move || {
                let taken = run_as(&task, || permits.take(1));
                if taken.is_ok() {
                    permits.put(); // for the next
                }
                taken
            })
        };
        let next = {
            let permits = permits.clone();
            spawn(move || permits.take(1).unwrap())
        };
        let canceller = canceller(&task);
        let putter = permits.putter();
        end(canceller);
        end(putter);
        end(next); // or loom reports a deadlock
        is_cancelled(&end(cancelled));
        permits.assert_left(0);
    });
}

#[test]
fn loom_i11_a_notify_that_races_with_the_cancel_of_the_only_waiter_is_lost() {
    explore(TWICE, || {
        let permits = Permits::new();
        let task = Task::new("waits", None);
        let waiter = {
            let permits = permits.clone();
            spawn_as(&task, move || {
                assert!(permits.lock().acquire(Acquire::Block, Time::NEVER)?);
                let notified = permits.changed.wait_until(Time::NEVER);
                assert!(permits.lock().is_mine());
                permits.number.get();
                permits.lock().release().unwrap();
                notified.map(|notified| assert!(notified))
            })
        };
        let canceller = canceller(&task);
        // A notifier need not hold the lock.
        let notifier = {
            let changed = permits.changed.clone();
            spawn(move || changed.notify(1))
        };
        end(canceller);
        end(notifier);
        is_cancelled(&end(waiter));
        permits.assert_left(0);
    });
}

#[test]
fn loom_i21_a_waiter_does_not_reacquire_a_lock_that_was_poisoned_meanwhile() {
    explore(THRICE, || {
        let permits = Permits::new();
        let taker = {
            let permits = permits.clone();
            spawn(move || permits.take(2))
        };
        let killed = {
            let permits = permits.clone();
            spawn(move || {
                let acquired = permits.lock().acquire(Acquire::Block, Time::NEVER);
                assert!(acquired.unwrap());
                permits.number.set(1); // it would have gone on
                permits.changed.notify(1);
                let kill = KillInfo {
                    task: "holder".into(),
                    cause: because("kill"),
                    stack: None,
                };
                scope::current_ledger().sweep(&Termination::Killed(Arc::new(kill)))
            })
        };
        assert_eq!(end(killed).poisoned.len(), 1);
        let taken = end(taker);
        assert!(
            matches!(taken, Err(WaitError::Lock(LockError::Poisoned(_)))),
            "{taken:?}"
        );
        permits.assert_left(1);
        assert!(permits.lock().is_poisoned());
    });
}
