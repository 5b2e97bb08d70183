//! The lock: woken for, handed over, acquired again, abandoned, poisoned, fenced.
//!
//! A waiter is woken when the lock is free, or, past its hand-over limit, is handed the lock. Where
//! that makes a difference, a model runs both ways.

use std::sync::Arc;

use super::{
    Exclusive, ONCE, THRICE, TWICE, because, canceller, end, explore, explore_overdue, spawn,
    spawn_as,
};
use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{KillInfo, Ledger, Termination};
use crate::scope;
use crate::sync::{Acquire, Holding, Lock, LockError, OnKill, Undo};
use crate::task::Task;

/// A lock and the data under it.
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

    /// Acquire the lock, use the data, release.
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

    /// Release the hold of the main thread.
    fn release(&self) {
        self.data.touch();
        self.lock.release().unwrap();
    }

    /// [`Protected::cycle`] in an actor.
    fn cycler(&self) -> loom::thread::JoinHandle<Result<(), LockError>> {
        let protected = self.clone();
        spawn(move || protected.cycle())
    }

    /// Release the hold of the main thread in an actor, then `again` times acquire and release the
    /// lock, if that needs no wait.
    fn releaser(&self, again: usize) -> loom::thread::JoinHandle<()> {
        let protected = self.clone();
        spawn(move || {
            protected.release();
            for _ in 0..again {
                if protected.lock.try_acquire(Acquire::Block).unwrap() {
                    protected.release();
                }
            }
        })
    }

    /// Check that the lock is free, without a waiter, and can be acquired.
    fn assert_free(&self) {
        assert!(!self.lock.is_locked());
        assert_eq!(self.lock.waiting(), 0);
        self.cycle().unwrap();
    }
}

fn kill_of_holder() -> Arc<KillInfo> {
    Arc::new(KillInfo {
        task: "holder".into(),
        cause: because("for a test"),
        stack: None,
    })
}

/// Check that the lock was acquired, or its waiter was cancelled.
fn assert_had_or_cancelled(result: &Result<(), LockError>) {
    match result {
        Ok(()) | Err(LockError::Stop(Stop::Cancelled(_))) => {}
        Err(other) => panic!("{other:?}"),
    }
}

fn three_threads() {
    let protected = Protected::new();
    let actors = [(); 3].map(|()| protected.cycler());
    for actor in actors {
        end(actor).unwrap();
    }
    protected.assert_free();
}

#[test]
fn loom_i12_three_threads_hold_the_lock_in_turn() {
    explore(TWICE, three_threads);
}

#[test]
fn loom_i12_three_overdue_threads_are_handed_the_lock_in_turn() {
    explore_overdue(TWICE, three_threads);
}

#[test]
fn loom_i12_an_overtaken_waiter_is_woken_again() {
    explore(THRICE, || {
        let (protected, _) = Protected::held();
        let waiter = protected.cycler();
        let releaser = protected.releaser(2);
        end(releaser);
        end(waiter).unwrap(); // or loom reports a deadlock
        protected.assert_free();
    });
}

#[test]
fn loom_i12_two_overtaken_waiters_are_woken_again() {
    explore(TWICE, || {
        let (protected, _) = Protected::held();
        let waiters = [(); 2].map(|()| protected.cycler());
        let releaser = protected.releaser(1);
        end(releaser);
        for waiter in waiters {
            end(waiter).unwrap();
        }
        protected.assert_free();
    });
}

#[test]
fn loom_i12_an_overdue_waiter_is_not_overtaken() {
    explore_overdue(THRICE, || {
        let (protected, _) = Protected::held();
        let waiter = {
            let protected = protected.clone();
            spawn(move || {
                assert!(protected.lock.acquire(Acquire::Block, Time::NEVER).unwrap());
                protected.data.touch(); // and keeps the lock
                scope::current_ledger()
            })
        };
        let releaser = {
            let protected = protected.clone();
            spawn(move || {
                let waits = protected.lock.waiting() > 0;
                protected.release();
                let overtook = protected.lock.try_acquire(Acquire::Block).unwrap();
                assert!(!(waits && overtook), "it was the waiter's turn");
                if overtook {
                    protected.release();
                }
            })
        };
        end(releaser);
        let ledger = end(waiter);
        assert_eq!(ledger.len(), 1);
        protected.release();
        assert_eq!(ledger.len(), 0);
        protected.assert_free();
    });
}

fn cancelled_during_a_release() {
    let (protected, _) = Protected::held();
    let task = Task::new("waits", None);
    let waiter = {
        let protected = protected.clone();
        spawn_as(&task, move || protected.cycle())
    };
    let canceller = canceller(&task);
    let releaser = protected.releaser(1);
    end(canceller);
    end(releaser);
    assert_had_or_cancelled(&end(waiter));
    assert_eq!(task.ledger().len(), 0);
    protected.assert_free();
}

#[test]
fn loom_i11_a_waiter_that_is_cancelled_during_a_release_holds_the_lock_or_not() {
    explore(TWICE, cancelled_during_a_release);
}

#[test]
fn loom_i11_a_waiter_that_is_cancelled_during_a_hand_over_holds_the_lock_or_not() {
    explore_overdue(TWICE, cancelled_during_a_release);
}

fn cancelled_and_next() {
    let (protected, _) = Protected::held();
    let task = Task::new("waits", None);
    let cancelled = {
        let protected = protected.clone();
        spawn_as(&task, move || protected.cycle())
    };
    let canceller = canceller(&task);
    let next = protected.cycler();
    // An overtaken waiter finds the lock held, and may be cancelled when it waits again.
    let releaser = protected.releaser(1);
    end(canceller);
    end(releaser);
    end(next).unwrap(); // or loom reports a deadlock
    assert_had_or_cancelled(&end(cancelled));
    protected.assert_free();
}

#[test]
fn loom_i11_i12_a_cancelled_waiter_is_skipped_and_the_next_gets_the_lock() {
    explore(ONCE, cancelled_and_next);
}

#[test]
fn loom_i11_i12_a_cancelled_waiter_is_skipped_and_the_lock_handed_over_to_the_next() {
    explore_overdue(ONCE, cancelled_and_next);
}

// ---------------------------------------------------------------------- taken again

fn taken_again() {
    let lock = Lock::reentrant("model", OnKill::Poison);
    let data = Exclusive::new();
    let cycle = |depth: usize| {
        let (lock, data) = (lock.clone(), data.clone());
        move || {
            for taken in 1..=depth {
                let acquired = lock.acquire(Acquire::Block, Time::NEVER);
                if acquired.is_err() {
                    assert_eq!((taken, lock.depth()), (1, 0), "only the first one waits");
                }
                assert!(acquired?);
                assert_eq!(
                    (lock.depth(), scope::current_ledger().len()),
                    (taken, taken)
                );
            }
            for left in (0..depth).rev() {
                data.touch(); // also after one release
                lock.release().unwrap();
                assert_eq!((lock.depth(), scope::current_ledger().len()), (left, left));
            }
            assert!(lock.release().is_err());
            Ok(())
        }
    };
    let task = Task::new("waits", None);
    let actors = [spawn_as(&task, cycle(1)), spawn(cycle(2))];
    let canceller = canceller(&task);
    let [cancelled, other] = actors.map(end);
    end(canceller);
    assert_had_or_cancelled(&cancelled);
    other.unwrap();
    assert!(!lock.is_locked());
    assert_eq!((lock.waiting(), task.ledger().len()), (0, 0));
}

#[test]
fn loom_i11_i12_a_reentrant_lock_is_free_when_it_was_released_as_often_as_acquired() {
    explore(TWICE, taken_again);
}

#[test]
fn loom_i11_i12_a_reentrant_lock_is_handed_over_when_it_was_released_as_often_as_acquired() {
    explore_overdue(TWICE, taken_again);
}

#[test]
fn loom_i12_a_lock_released_for_a_wait_goes_to_another_thread_and_is_reacquired() {
    explore(TWICE, || {
        let lock = Lock::reentrant("model", OnKill::Poison);
        let data = Exclusive::new();
        let lender = {
            let (lock, data) = (lock.clone(), data.clone());
            spawn(move || {
                for _ in 0..2 {
                    assert!(lock.acquire(Acquire::Block, Time::NEVER).unwrap());
                }
                data.touch();
                let holds = lock.release_all().unwrap();
                assert_eq!((lock.depth(), scope::current_ledger().len()), (0, 0));
                lock.reacquire(holds).unwrap();
                assert_eq!((lock.depth(), scope::current_ledger().len()), (2, 2));
                data.touch();
                lock.release().unwrap();
                lock.release().unwrap();
            })
        };
        let other = Protected { lock, data };
        let borrowers = [(); 2].map(|()| other.cycler());
        end(lender);
        for borrower in borrowers {
            end(borrower).unwrap();
        }
        other.assert_free();
    });
}

// ---------------------------------------------------------------------- the holder's end

#[test]
fn loom_i21_the_lock_of_a_killed_holder_is_poisoned_before_another_thread_holds_it() {
    explore(TWICE, || {
        let (protected, ledger) = Protected::held();
        let killer = spawn({
            let data = protected.data.clone();
            move || {
                data.touch(); // the holder's last use
                ledger.sweep(&Termination::Killed(kill_of_holder()))
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
        let killer = spawn(move || ledger.sweep(&Termination::Killed(kill_of_holder())));
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
fn loom_i21_a_lock_is_released_or_unavailable_with_its_abandoned_holder() {
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
            spawn(move || ledger.sweep(&Termination::Abandoned(kill_of_holder())))
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

fn overtaken_by_a_killed_thread() {
    let (protected, _) = Protected::held();
    let waiters = [(); 2].map(|()| protected.cycler());
    let releaser = {
        let protected = protected.clone();
        spawn(move || {
            protected.release();
            if protected.lock.try_acquire(Acquire::Block).unwrap() {
                protected.data.touch();
                scope::current_ledger().sweep(&Termination::Killed(kill_of_holder()));
                return true;
            }
            false
        })
    };
    let killed = end(releaser);
    for waiter in waiters {
        match end(waiter) {
            Ok(()) => {}
            Err(LockError::Poisoned(_)) => assert!(killed),
            other => panic!("{other:?}"),
        }
    }
    assert!(!protected.lock.is_locked());
    assert_eq!(
        (protected.lock.waiting(), protected.lock.is_poisoned()),
        (0, killed)
    );
}

#[test]
fn loom_i12_i21_all_waiters_get_poisoned_even_one_woken_for_the_free_lock() {
    explore(TWICE, overtaken_by_a_killed_thread);
}

// ---------------------------------------------------------------------- fences

/// A fenced lock that the main thread holds, its ledger, and the hold.
fn held_fenced() -> (Protected, Arc<Ledger>, Holding) {
    let protected = Protected {
        lock: Lock::new("model", OnKill::Release).fenced(),
        data: Exclusive::new(),
    };
    assert!(protected.lock.try_acquire(Acquire::Known).unwrap());
    let holding = protected.lock.holding();
    (protected, scope::current_ledger(), holding)
}

fn abandoned_while_it_ends() {
    let (protected, ledger, stale) = held_fenced();
    let first = stale.epoch();
    let holder = spawn(move || stale.release(None).is_ok());
    let abandoner = spawn(move || ledger.sweep(&Termination::Abandoned(kill_of_holder())));
    let next = {
        let protected = protected.clone();
        spawn(move || {
            let acquired = protected.lock.acquire(Acquire::Known, Time::NEVER);
            assert!(acquired.unwrap(), "the fence lets others in");
            let holding = protected.lock.holding();
            protected.data.touch();
            assert!(holding.check().is_ok(), "no other thread can end it");
            let epoch = holding.epoch();
            assert!(protected.lock.is_locked());
            assert_eq!(holding.release(None), Ok(false));
            epoch
        })
    };
    let (released, swept) = (end(holder), end(abandoner));
    assert_ne!(released, swept.released.len() == 1, "one of them ends it");
    assert_eq!(end(next), first + 1);
    protected.assert_free();
}

#[test]
fn loom_i34_a_fenced_lock_goes_on_and_its_stale_holder_does_not_release_the_new_hold() {
    explore(THRICE, abandoned_while_it_ends);
}

#[test]
fn loom_i34_a_fenced_lock_is_handed_over_and_its_stale_holder_does_not_release_the_new_hold() {
    explore_overdue(TWICE, abandoned_while_it_ends);
}

/// A value that changes in two steps, and its rollback.
#[derive(Default)]
struct Steps(Mutex<(u32, bool)>);

impl Undo for Steps {
    fn undo(&self) -> bool {
        let (steps, open) = &mut *self.0.lock();
        if std::mem::take(open) {
            *steps = 0;
        }
        true
    }

    fn discard(&self) {}
}

#[test]
fn loom_i21_no_thread_sees_a_half_changed_value_of_an_abandoned_holder() {
    explore(TWICE, || {
        let steps = Arc::new(Steps::default());
        let lock = Lock::new("model", OnKill::Poison).with_undo(steps.clone());
        assert!(lock.try_acquire(Acquire::Known).unwrap());
        let (holding, ledger) = (lock.holding(), scope::current_ledger());
        let holder = {
            let steps = steps.clone();
            spawn(move || {
                let step = |open| {
                    holding.while_held(|| {
                        let now = &mut *steps.0.lock();
                        *now = (now.0 + 1, open);
                    })
                };
                let done = step(true).and_then(|()| step(false));
                done.and_then(|()| holding.release(None)).is_ok()
            })
        };
        let abandoner = spawn(move || ledger.sweep(&Termination::Abandoned(kill_of_holder())));
        let next = {
            let (lock, steps) = (lock.clone(), steps.clone());
            spawn(move || {
                assert!(lock.acquire(Acquire::Known, Time::NEVER).unwrap());
                let seen = [(); 2].map(|()| steps.0.lock().0);
                lock.release().unwrap();
                assert_eq!(seen[0], seen[1], "no other thread changes it");
                seen[0]
            })
        };
        let (released, swept) = (end(holder), end(abandoner));
        assert_ne!(released, swept.released.len() == 1);
        match end(next) {
            0 => assert!(!released),
            2 => {} // it had finished before it was abandoned
            half => panic!("{half} steps of two"),
        }
        assert!(!lock.is_poisoned() && !lock.is_locked());
    });
}
