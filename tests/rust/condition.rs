use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use desist::boundary::{BodyEnd, Boundary};
use desist::stop::KillOutcome;
use desist::sync::{Acquire, Condition, Lock, LockError, OnKill, ReleaseError, WaitError};
use desist::task::Task;
use desist::{Stop, Time, checkpoint, move_on_after};

use crate::support::{Feeble, PAST, Parker, far, kill_in_its_wait, parked_task};

const HOUR: Duration = Duration::from_secs(3600);

fn plain() -> Arc<Condition> {
    Arc::new(Condition::new(Lock::default()))
}

fn reentrant() -> Arc<Condition> {
    Arc::new(Condition::new(Lock::reentrant("lock", OnKill::Poison)))
}

fn lock(condition: &Condition) {
    let acquired = condition.lock().acquire(Acquire::Block, Time::NEVER);
    assert!(acquired.unwrap());
}

fn unlock(condition: &Condition) {
    condition.lock().release().unwrap();
}

/// Wait with the lock held `times` times; afterwards it has to be held as often.
fn wait(condition: &Condition, depth: usize) -> Result<bool, WaitError> {
    for _ in 0..depth {
        lock(condition);
    }
    let notified = condition.wait_until(Time::NEVER);
    assert_eq!(condition.lock().depth(), depth);
    for _ in 0..depth {
        unlock(condition);
    }
    notified
}

/// A thread that waits, and may be cancelled.
fn waiting(
    condition: &Arc<Condition>,
    depth: usize,
) -> (Arc<Task>, Parker<Result<bool, WaitError>>) {
    let condition = condition.clone();
    parked_task(move || wait(&condition, depth))
}

fn is_cancelled(result: &Result<bool, WaitError>) -> bool {
    matches!(
        result,
        Err(WaitError::Lock(LockError::Stop(Stop::Cancelled(_))))
    )
}

#[test]
fn a_wait_releases_the_lock_and_reacquires_it_after_a_notify() {
    for condition in [plain(), reentrant()] {
        let (_, waiter) = waiting(&condition, 1);
        assert!(!condition.lock().is_locked());
        assert_eq!(condition.waiting(), 1);
        lock(&condition);
        condition.notify(1);
        assert_eq!(condition.waiting(), 0);
        assert!(condition.lock().is_mine(), "a notify does not give it up");
        unlock(&condition);
        assert!(waiter.join().unwrap());
        assert!(!condition.lock().is_locked());
    }
}

#[test]
fn a_lock_held_several_times_is_released_whole_and_reacquired_as_often() {
    let condition = reentrant();
    let (_, waiter) = waiting(&condition, 3);
    lock(&condition);
    condition.notify(1);
    unlock(&condition);
    assert!(waiter.join().unwrap());
    assert!(!condition.lock().is_locked());
}

#[test]
fn notifies_go_to_the_longest_waiters_first() {
    let condition = plain();
    let (sender, woken) = channel();
    let waiters = [0, 1, 2, 3].map(|number| {
        let (condition, sender) = (condition.clone(), sender.clone());
        Parker::spawn_parked(move || {
            assert!(wait(&condition, 1).unwrap());
            sender.send(number).unwrap();
        })
    });
    condition.notify(0);
    assert_eq!(condition.waiting(), 4);
    condition.notify(1);
    assert_eq!(woken.recv(), Ok(0));
    condition.notify(2);
    let mut two = [woken.recv().unwrap(), woken.recv().unwrap()];
    two.sort_unstable();
    assert_eq!((two, condition.waiting()), ([1, 2], 1));
    condition.notify(usize::MAX);
    assert_eq!(woken.recv(), Ok(3));
    waiters.into_iter().for_each(Parker::join);
    condition.notify(1); // there is no waiter, and the notify is not kept
    lock(&condition);
    assert!(!condition.wait_until(PAST).unwrap());
    unlock(&condition);
}

#[test]
fn i11_a_wait_that_timed_out_holds_the_lock_again() {
    let condition = plain();
    lock(&condition);
    for until in [PAST, Time::after(Duration::from_millis(1))] {
        assert!(!condition.wait_until(until).unwrap());
        assert!(condition.lock().is_mine());
    }
    assert_eq!(condition.waiting(), 0);
    unlock(&condition);
}

#[test]
fn i11_a_cancelled_waiter_holds_the_lock_and_the_notify_goes_to_the_next() {
    let condition = reentrant();
    let (task, cancelled) = waiting(&condition, 2);
    let (_, next) = waiting(&condition, 1);
    lock(&condition);
    task.source().cancel();
    // The waiter has left the queue, or is dead in it; its reacquire is uninterruptible.
    condition.notify(1);
    unlock(&condition);
    assert!(is_cancelled(&cancelled.join()));
    assert!(next.join().unwrap());
    assert_eq!(condition.waiting(), 0);
    assert!(!condition.lock().is_locked());
}

#[test]
fn a_notify_before_the_cancel_is_returned_and_the_next_checkpoint_raises() {
    let condition = plain();
    let theirs = condition.clone();
    let (task, waiter) = parked_task(move || {
        let notified = wait(&theirs, 1);
        (notified, checkpoint().is_err())
    });
    lock(&condition);
    condition.notify(1);
    task.source().cancel();
    unlock(&condition);
    let (notified, stopped) = waiter.join();
    assert!(notified.unwrap() && stopped);
}

#[test]
fn i15_a_wait_in_a_cancelled_scope_does_not_release_the_lock() {
    let condition = plain();
    lock(&condition);
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        let stopped = condition.wait_until(far());
        assert!(is_cancelled(&stopped));
        assert!(condition.lock().is_mine());
        checkpoint()
    });
    assert_eq!(left, Ok(None));
    unlock(&condition);
}

#[test]
fn a_wait_without_the_lock_is_refused() {
    for condition in [plain(), reentrant()] {
        assert!(matches!(
            condition.wait_until(far()),
            Err(WaitError::NotHeld(ReleaseError::NotHeld))
        ));
        assert_eq!(condition.waiting(), 0);
    }
    let condition = reentrant();
    lock(&condition);
    let theirs = condition.clone();
    let refused = thread::spawn(move || theirs.wait_until(far())).join();
    assert!(matches!(
        refused.unwrap(),
        Err(WaitError::NotHeld(ReleaseError::NotHolder))
    ));
    assert_eq!((condition.lock().depth(), condition.waiting()), (1, 0));
    unlock(&condition);
}

/// Run `body` as a task on a thread of its own, and kill it in its first wait.
fn kill_in_a_wait(body: impl FnOnce() -> bool + Send + 'static) {
    let task = Task::new("killed", None);
    let theirs = task.clone();
    let killed = Parker::spawn_parked(move || {
        let boundary = Boundary::enter(&theirs, Some(Arc::new(Feeble)));
        let killed = body();
        boundary.leave(BodyEnd::Killed(None));
        theirs.over().set();
        killed
    });
    let report = kill_in_its_wait(&task, None);
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
    assert!(killed.join());
}

#[test]
fn i21_a_lock_that_was_poisoned_during_the_wait_is_not_held_after_it() {
    for depth in [1, 2] {
        let condition = reentrant();
        let (inside, theirs) = (condition.clone(), condition.clone());
        let (_, waiter) = parked_task(move || {
            for _ in 0..depth {
                lock(&inside);
            }
            let result = inside.wait_until(Time::NEVER);
            (result, inside.lock().depth())
        });
        kill_in_a_wait(move || {
            lock(&theirs);
            theirs.notify(1);
            matches!(
                desist::shield(HOUR, || desist::sleep(HOUR)),
                Err(Stop::Killed(_))
            )
        });
        let (result, held) = waiter.join();
        assert!(matches!(
            result,
            Err(WaitError::Lock(LockError::Poisoned(_)))
        ));
        assert_eq!(held, 0);
        assert!(!condition.lock().is_locked() && condition.lock().is_poisoned());
    }
}

#[test]
fn i20_i21_a_waiter_killed_in_the_wait_reacquires_its_lock_and_the_sweep_poisons_it() {
    let condition = reentrant();
    let theirs = condition.clone();
    kill_in_a_wait(move || {
        lock(&theirs);
        lock(&theirs);
        let killed = desist::shield(HOUR, || match theirs.wait_until(Time::NEVER) {
            Err(WaitError::Lock(LockError::Stop(stop))) => Err(stop),
            other => panic!("{other:?}"),
        });
        assert_eq!(theirs.lock().depth(), 2);
        matches!(killed, Err::<Option<()>, _>(Stop::Killed(_)))
    });
    assert_eq!(condition.waiting(), 0);
    assert!(!condition.lock().is_locked() && condition.lock().is_poisoned());
}
