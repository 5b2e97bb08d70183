use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use desist::boundary::{BodyEnd, Boundary};
use desist::stop::{KillOutcome, KillReport, StopPolicy, kill};
use desist::sync::{Acquire, Lock, LockError, OnKill, ReleaseError};
use desist::task::Task;
use desist::{Stop, Time, move_on_after, shield, sleep};

use crate::support::{Feeble, PAST, Parker, far, kill_in_its_wait};

const HOUR: Duration = Duration::from_secs(3600);

/// Abandons the task without any rung.
const GIVE_UP: StopPolicy = StopPolicy {
    cooperative: Duration::ZERO,
    at_wait: None,
    async_exc: None,
    trace: None,
    defer: Duration::ZERO,
    abandon: true,
};

fn held_by_me() -> Lock {
    let lock = Lock::default();
    assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
    lock
}

/// A thread that waits for the lock, and may be cancelled.
fn waiting_for(lock: &Lock, acquire: Acquire) -> (Arc<Task>, Parker<Result<bool, LockError>>) {
    let (task, lock) = (Task::new("waiter", None), lock.clone());
    let theirs = task.clone();
    let waiter = Parker::spawn_parked(move || {
        let boundary = Boundary::enter(&theirs, None);
        let result = lock.acquire(acquire, Time::NEVER);
        boundary.leave(BodyEnd::Unwound);
        result
    });
    (task, waiter)
}

/// A task that holds these locks in an uninterruptible wait. `after` runs on its thread when its
/// boundary has closed, before any waiter is woken.
fn parked_holder(
    locks: &[&Lock],
    acquire: Acquire,
    after: impl FnOnce() + Send + 'static,
) -> (Arc<Task>, Parker<()>) {
    let task = Task::new("holder", None);
    let theirs = task.clone();
    let locks: Vec<Lock> = locks.iter().map(|lock| (*lock).clone()).collect();
    let holder = Parker::spawn_parked(move || {
        let boundary = Boundary::enter(&theirs, Some(Arc::new(Feeble)));
        for lock in &locks {
            assert!(lock.acquire(acquire, Time::NEVER).unwrap());
        }
        let killed = shield(HOUR, || sleep(HOUR));
        assert!(matches!(killed, Err(Stop::Killed(_))), "{killed:?}");
        boundary.leave(BodyEnd::Killed(Some("in the middle".into())));
        after();
        theirs.over().set();
    });
    (task, holder)
}

fn kill_holder((task, holder): (Arc<Task>, Parker<()>)) -> KillReport {
    let report = kill_in_its_wait(&task, Some("a test"));
    holder.join();
    report
}

fn kill_a_holder(locks: &[&Lock], acquire: Acquire) -> KillReport {
    kill_holder(parked_holder(locks, acquire, || ()))
}

// ---------------------------------------------------------------------- waiting

#[test]
fn i11_a_cancelled_waiter_has_not_acquired_it_and_the_next_gets_it() {
    let lock = held_by_me();
    let (first, cancelled) = waiting_for(&lock, Acquire::Task);
    first.source().cancel();
    assert!(matches!(
        cancelled.join(),
        Err(LockError::Stop(Stop::Cancelled(_)))
    ));
    let (_, next) = waiting_for(&lock, Acquire::Task);
    lock.release().unwrap();
    assert!(next.join().unwrap());
    assert!(!lock.is_locked(), "the end of a task releases its holds");
}

#[test]
fn i11_a_lock_released_to_a_waiter_that_was_just_cancelled_is_free() {
    for _ in 0..50 {
        let lock = held_by_me();
        let (task, waiter) = waiting_for(&lock, Acquire::Task);
        // Its wait has been settled, but the waiter is still in the queue.
        let (token, held) = (task.source().token(), lock.clone());
        let _release = token.on_cancel(move |_| held.release().unwrap());
        task.source().cancel();
        assert!(matches!(
            waiter.join(),
            Err(LockError::Stop(Stop::Cancelled(_)))
        ));
        assert!(lock.try_acquire(Acquire::Task).unwrap());
        lock.release().unwrap();
    }
}

#[test]
fn i11_a_waiter_that_timed_out_has_not_acquired_it() {
    let lock = held_by_me();
    let other = lock.clone();
    let results = thread::spawn(move || {
        [PAST, Time::after(Duration::from_millis(1))]
            .map(|until| other.acquire(Acquire::Block, until).unwrap())
    });
    assert_eq!(results.join().unwrap(), [false, false]);
    lock.release().unwrap();
    assert!(!lock.is_locked());
}

#[test]
fn waiters_get_it_in_their_order_unless_they_are_overtaken() {
    let lock = held_by_me();
    let (sender, order) = channel();
    let waiters = [0, 1, 2, 3].map(|number| {
        let (lock, sender) = (lock.clone(), sender.clone());
        Parker::spawn_parked(move || {
            lock.acquire(Acquire::Task, Time::NEVER).unwrap();
            sender.send(number).unwrap();
            lock.release().unwrap();
        })
    });
    // Each is woken, or handed the lock, by the one before, and no other thread asks for it.
    lock.release().unwrap();
    let order: Vec<_> = order.iter().take(4).collect();
    waiters.into_iter().for_each(Parker::join);
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn a_released_lock_is_free_for_a_thread_that_comes_before_the_woken_waiter() {
    let lock = held_by_me();
    let (_, waiter) = waiting_for(&lock, Acquire::Task);
    // Either of the two may be faster, but neither hangs.
    lock.release().unwrap();
    if lock.try_acquire(Acquire::Task).unwrap() {
        lock.release().unwrap();
    }
    assert!(waiter.join().unwrap());
    assert!(!lock.is_locked());
}

#[test]
fn a_waiter_that_is_overtaken_again_and_again_gets_it_by_a_hand_over() {
    let lock = held_by_me();
    let theirs = lock.clone();
    let done = Arc::new(AtomicBool::new(false));
    let waiters_done = done.clone();
    let waiter = Parker::spawn_parked(move || {
        theirs.acquire(Acquire::Task, Time::NEVER).unwrap();
        waiters_done.store(true, Relaxed);
        theirs.release().unwrap();
    });
    // No thread yields: without the hand-over this could go on forever, and there is a minute.
    while !done.load(Relaxed) {
        lock.release().unwrap();
        lock.acquire(Acquire::Task, Time::NEVER).unwrap();
    }
    lock.release().unwrap();
    waiter.join();
}

#[test]
fn another_thread_may_release_it() {
    let lock = held_by_me();
    let theirs = lock.clone();
    thread::spawn(move || theirs.release())
        .join()
        .unwrap()
        .unwrap();
    assert!(!lock.is_locked());
    assert!(lock.try_acquire(Acquire::Block).unwrap());
    lock.release().unwrap();
}

#[test]
fn a_free_lock_cannot_be_released() {
    let lock = Lock::default();
    assert_eq!(lock.release(), Err(ReleaseError::NotHeld));
    lock.try_acquire(Acquire::Block).unwrap();
    lock.release().unwrap();
    assert_eq!(lock.release(), Err(ReleaseError::NotHeld));
}

#[test]
fn it_is_not_reentrant() {
    let lock = held_by_me();
    assert!(!lock.try_acquire(Acquire::Task).unwrap());
    let again = move_on_after(Duration::from_millis(1), |_| {
        match lock.acquire(Acquire::Task, Time::NEVER) {
            Err(LockError::Stop(stop)) => Err(stop),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(again, Ok(None::<()>));
    lock.release().unwrap();
}

#[test]
fn i13_under_contention_with_cancels_exactly_one_holds_it_at_a_time() {
    let lock = Lock::default();
    let inside = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let contend = |seed: u64| {
        let (lock, inside) = (lock.clone(), inside.clone());
        thread::spawn(move || {
            let mut entered = 0;
            for round in 0..400 {
                let hurry = Duration::from_nanos((seed * 7919 + round * 104_729) % 60_000);
                let took =
                    move_on_after(hurry, |_| match lock.acquire(Acquire::Task, Time::NEVER) {
                        Ok(held) => Ok(held),
                        Err(LockError::Stop(stop)) => Err(stop),
                        Err(other) => panic!("{other}"),
                    });
                if took.unwrap() == Some(true) {
                    assert_eq!(inside.fetch_add(1, Relaxed), 0);
                    thread::yield_now();
                    assert_eq!(inside.fetch_sub(1, Relaxed), 1);
                    entered += 1;
                    lock.release().unwrap();
                }
            }
            entered
        })
    };
    let entered: u32 = [1, 2, 3, 4]
        .map(contend)
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(entered > 0);
    assert!(!lock.is_locked());
}

// ---------------------------------------------------------------------- the holder's end

#[test]
fn i21_after_a_kill_inside_it_is_poisoned_before_another_thread_gets_it() {
    let lock = Lock::new("accounts", OnKill::Poison);
    let report = kill_a_holder(&[&lock], Acquire::Block);
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
    assert_eq!(report.poisoned, ["accounts".into()]);
    assert!(report.released.is_empty());
    assert_eq!(report.stack.as_deref(), Some("in the middle"));
    let Err(LockError::Poisoned(kill)) = lock.acquire(Acquire::Block, far()) else {
        panic!("not poisoned")
    };
    assert_eq!(
        (&*kill.task, kill.stack.as_deref()),
        ("holder", Some("in the middle"))
    );
    assert_eq!(kill.cause.reason.as_deref(), Some("a test"));
    assert!(matches!(
        lock.try_acquire(Acquire::Task),
        Err(LockError::Poisoned(_))
    ));
    assert!(!lock.is_locked());
}

#[test]
fn i21_an_end_that_unwound_does_not_poison() {
    let lock = Lock::default();
    let (task, body_lock) = (Task::new("holder", None), lock.clone());
    thread::spawn(move || {
        let boundary = Boundary::enter(&task, None);
        body_lock.acquire(Acquire::Block, Time::NEVER).unwrap();
        task.source().cancel();
        boundary.leave(BodyEnd::Unwound);
    })
    .join()
    .unwrap();
    assert!(!lock.is_locked() && !lock.is_poisoned());
}

#[test]
fn i20_after_the_boundary_nothing_is_held() {
    let locks: [Lock; 3] = std::array::from_fn(|at| Lock::new(&at.to_string(), OnKill::Release));
    let report = kill_a_holder(&[&locks[0], &locks[1], &locks[2]], Acquire::Task);
    assert_eq!(
        report.released,
        ["2".into(), "1".into(), "0".into()],
        "the latest first"
    );
    assert!(report.poisoned.is_empty());
    for lock in &locks {
        assert!(!lock.is_locked() && !lock.is_poisoned());
        assert!(lock.try_acquire(Acquire::Block).unwrap());
        lock.release().unwrap();
    }
}

#[test]
fn all_waiters_get_poisoned_and_a_repairer_among_them_gets_it() {
    let lock = Lock::default();
    let holder = parked_holder(&[&lock], Acquire::Block, || ());
    let kinds = [Acquire::Block, Acquire::Repair, Acquire::Task];
    let waiters = kinds.map(|acquire| waiting_for(&lock, acquire).1);
    kill_holder(holder);
    let [block, repair, task] = waiters.map(Parker::join);
    assert!(matches!(block, Err(LockError::Poisoned(_))));
    assert!(matches!(task, Err(LockError::Poisoned(_))));
    assert!(repair.unwrap());
}

#[test]
fn a_poisoned_lock_goes_to_a_repairer_and_then_to_all() {
    let lock = Lock::default();
    kill_a_holder(&[&lock], Acquire::Block);
    assert!(lock.acquire(Acquire::Repair, far()).unwrap());
    assert!(
        matches!(
            lock.try_acquire(Acquire::Block),
            Err(LockError::Poisoned(_))
        ),
        "not yet"
    );
    // A holder that releases without a repair leaves it poisoned.
    lock.release().unwrap();
    assert!(lock.is_poisoned());
    assert!(lock.acquire(Acquire::Repair, far()).unwrap());
    lock.mark_consistent();
    assert!(
        !lock.try_acquire(Acquire::Block).unwrap(),
        "held, and no more than that"
    );
    lock.release().unwrap();
    assert!(lock.acquire(Acquire::Block, far()).unwrap());
    lock.release().unwrap();
}

#[test]
fn a_waiter_woken_by_the_poison_is_refused_or_gets_the_lock_if_it_was_repaired_meanwhile() {
    for _ in 0..30 {
        let lock = Lock::default();
        let held = lock.clone();
        // Repaired by the holder's own thread, before or after the woken waiter runs.
        let holder = parked_holder(&[&lock], Acquire::Block, move || {
            assert!(held.acquire(Acquire::Repair, Time::NEVER).unwrap());
            held.mark_consistent();
            held.release().unwrap();
        });
        let (_, waiter) = waiting_for(&lock, Acquire::Task);
        kill_holder(holder);
        match waiter.join() {
            Ok(held) => assert!(held),
            Err(LockError::Poisoned(_)) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(!lock.is_poisoned() && !lock.is_locked());
    }
}

#[test]
fn a_lock_whose_holder_was_abandoned_is_unavailable_even_to_repairers() {
    let lock = Lock::new("accounts", OnKill::Release);
    let task = Task::new("holder", None);
    let (theirs, held) = (task.clone(), lock.clone());
    let (finish, finished) = channel::<()>();
    let (begin, begun) = channel();
    let holder = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, None);
        held.acquire(Acquire::Guard, Time::NEVER).unwrap();
        begin.send(()).unwrap();
        finished.recv().unwrap(); // not a desist wait, so nothing interrupts it
        (held.release(), boundary.leave(BodyEnd::Unwound))
    });
    begun.recv().unwrap();
    let (_, waiter) = waiting_for(&lock, Acquire::Repair);
    let report = kill(&task, None, &GIVE_UP, &mut || ()).unwrap();
    assert_eq!(
        (report.outcome, &report.poisoned[..]),
        (Some(KillOutcome::Abandoned), &["accounts".into()][..])
    );
    assert!(matches!(waiter.join(), Err(LockError::OwnerLost(_))));
    assert!(matches!(
        lock.try_acquire(Acquire::Repair),
        Err(LockError::OwnerLost(_))
    ));
    finish.send(()).unwrap();
    assert_eq!(holder.join().unwrap(), (Err(ReleaseError::NotHeld), false));
}

// ---------------------------------------------------------------------- taken again

fn reentrant() -> Lock {
    Lock::reentrant("again", OnKill::Poison)
}

/// The result of `look` in another thread.
fn elsewhere<T: Send + 'static>(lock: &Lock, look: impl FnOnce(&Lock) -> T + Send + 'static) -> T {
    let lock = lock.clone();
    thread::spawn(move || look(&lock)).join().unwrap()
}

#[test]
fn a_reentrant_lock_is_acquired_again_by_its_holder_and_free_when_released_as_often() {
    let lock = reentrant();
    assert!(lock.is_reentrant() && !Lock::default().is_reentrant());
    for depth in 1..=3 {
        assert!(lock.acquire(Acquire::Task, PAST).unwrap());
        assert_eq!((lock.depth(), lock.is_mine()), (depth, true));
    }
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    for depth in (0..4).rev() {
        assert!(!elsewhere(&lock, |lock| lock
            .try_acquire(Acquire::Task)
            .unwrap()));
        lock.release().unwrap();
        assert_eq!((lock.depth(), lock.is_mine()), (depth, depth > 0));
    }
    assert!(!lock.is_locked());
    assert_eq!(lock.release(), Err(ReleaseError::NotHeld));
}

#[test]
fn a_reentrant_lock_is_released_only_by_its_holder() {
    let lock = reentrant();
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    let (released, depth, mine) =
        elsewhere(&lock, |lock| (lock.release(), lock.depth(), lock.is_mine()));
    assert_eq!(released, Err(ReleaseError::NotHolder));
    assert_eq!((depth, mine), (0, false));
    lock.release().unwrap();
}

#[test]
fn a_reentrant_lock_belongs_to_the_task_and_not_to_its_thread() {
    let lock = reentrant();
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    let boundary = Boundary::enter(&Task::new("another", None), None);
    assert!(!lock.try_acquire(Acquire::Task).unwrap());
    assert_eq!(lock.release(), Err(ReleaseError::NotHolder));
    boundary.leave(BodyEnd::Unwound);
    lock.release().unwrap();
}

#[test]
fn i11_a_waiter_for_a_reentrant_lock_gets_it_at_the_last_release_or_is_cancelled() {
    let lock = reentrant();
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    let (task, cancelled) = waiting_for(&lock, Acquire::Task);
    let (_, next) = waiting_for(&lock, Acquire::Task);
    lock.release().unwrap();
    task.source().cancel();
    assert!(matches!(
        cancelled.join(),
        Err(LockError::Stop(Stop::Cancelled(_)))
    ));
    assert!(lock.is_mine());
    lock.release().unwrap();
    assert!(next.join().unwrap());
    assert!(!lock.is_locked());
}

#[test]
fn a_cancelled_holder_does_not_acquire_a_reentrant_lock_again() {
    let lock = reentrant();
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    let stopped = move_on_after(HOUR, |scope| {
        scope.cancel();
        match lock.acquire(Acquire::Task, far()) {
            Err(LockError::Stop(stop)) => Err(stop),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!((stopped, lock.depth()), (Ok(None::<()>), 1));
    lock.release().unwrap();
}

#[test]
fn i20_i21_a_reentrant_lock_is_released_whole_and_poisoned_at_the_end_of_a_killed_task() {
    let lock = reentrant();
    let report = kill_a_holder(&[&lock, &lock, &lock], Acquire::Block);
    assert!(!lock.is_locked() && lock.is_poisoned());
    assert_eq!(lock.depth(), 0);
    assert!(report.poisoned.contains(&"again".into()));
    assert!(matches!(
        lock.try_acquire(Acquire::Task),
        Err(LockError::Poisoned(_))
    ));
    assert!(lock.try_acquire(Acquire::Repair).unwrap());
    assert!(
        lock.try_acquire(Acquire::Task).unwrap(),
        "the repairer may acquire it again"
    );
    lock.mark_consistent();
    lock.release().unwrap();
    lock.release().unwrap();
    assert!(lock.acquire(Acquire::Task, far()).unwrap());
    lock.release().unwrap();
}

#[test]
fn i20_a_scope_reclaims_the_acquires_of_its_blocks_and_no_more() {
    let lock = reentrant();
    assert!(lock.try_acquire(Acquire::Block).unwrap());
    let left = move_on_after(HOUR, |_| {
        assert!(lock.try_acquire(Acquire::Block).unwrap());
        assert!(lock.try_acquire(Acquire::Block).unwrap());
        Ok::<_, Stop>(())
    });
    assert_eq!((left, lock.depth()), (Ok(Some(())), 1));
    lock.release().unwrap();
    assert!(!lock.is_locked());
}

// ---------------------------------------------------------------------- guards and fences

/// A task that holds the lock by a guard, and is abandoned; the guard is dropped together with the
/// second value. The thread returns the results of the guard's check before and after.
fn abandoned_holder(
    lock: &Lock,
) -> (
    u64,
    std::sync::mpsc::Sender<()>,
    thread::JoinHandle<[bool; 2]>,
) {
    let task = Task::new("holder", None);
    let (theirs, held) = (task.clone(), lock.clone());
    let (finish, finished) = channel::<()>();
    let (begin, begun) = channel();
    let holder = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, None);
        let guard = held.guard(Time::NEVER).unwrap().unwrap();
        let before = guard.check().is_ok();
        begin.send(guard.epoch()).unwrap();
        let _ = finished.recv(); // not a desist wait, so nothing interrupts it
        let after = guard.check().is_ok();
        drop(guard);
        boundary.leave(BodyEnd::Unwound);
        [before, after]
    });
    let epoch = begun.recv().unwrap();
    let report = kill(&task, None, &GIVE_UP, &mut || ()).unwrap();
    assert_eq!(report.outcome, Some(KillOutcome::Abandoned));
    (epoch, finish, holder)
}

#[test]
fn i34_each_holder_has_a_greater_epoch_however_it_gets_the_lock() {
    let lock = Lock::default();
    let epoch = || lock.guard(Time::NEVER).unwrap().unwrap().epoch();
    let first = epoch();
    assert!(lock.try_acquire(Acquire::Block).unwrap());
    let theirs = lock.clone();
    let waiter = Parker::spawn_parked(move || theirs.guard(Time::NEVER).unwrap().unwrap().epoch());
    lock.release().unwrap();
    assert!(waiter.join() > first + 1);
    assert!(lock.guard(PAST).unwrap().is_some());
}

#[test]
fn a_guard_that_timed_out_is_none_and_holds_nothing() {
    let lock = held_by_me();
    let theirs = lock.clone();
    assert!(
        thread::spawn(move || theirs.guard(PAST).unwrap().is_none())
            .join()
            .unwrap()
    );
    lock.release().unwrap();
    assert!(!lock.is_locked());
}

#[test]
fn i34_a_fenced_lock_goes_on_and_the_stale_guard_fails_its_check_and_releases_nothing() {
    let lock = Lock::new("accounts", OnKill::Release).fenced();
    let (stale, finish, holder) = abandoned_holder(&lock);
    let guard = lock.guard(Time::NEVER).unwrap().unwrap();
    assert!(guard.epoch() > stale);
    drop(finish);
    assert_eq!(holder.join().unwrap(), [true, false]);
    assert!(lock.is_locked() && guard.check().is_ok());
    drop(guard);
    assert!(!lock.is_locked());
}

#[test]
fn i21_a_fenced_lock_is_poisoned_when_its_holder_is_abandoned_and_can_be_repaired() {
    let lock = Lock::new("accounts", OnKill::Poison).fenced();
    let (_, finish, holder) = abandoned_holder(&lock);
    let refused = lock.acquire(Acquire::Block, Time::NEVER);
    assert!(matches!(refused, Err(LockError::Poisoned(_))));
    assert!(lock.acquire(Acquire::Repair, Time::NEVER).unwrap());
    lock.mark_consistent();
    lock.release().unwrap();
    assert!(lock.guard(Time::NEVER).unwrap().is_some());
    drop(finish);
    holder.join().unwrap();
}

#[test]
fn a_rust_guard_makes_even_a_fenced_lock_unavailable() {
    let lock = Lock::new("accounts", OnKill::Release).fenced();
    let task = Task::new("holder", None);
    let boundary = Boundary::enter(&task, None);
    assert!(lock.acquire(Acquire::Guard, Time::NEVER).unwrap());
    let theirs = task.clone();
    let killer = thread::spawn(move || kill(&theirs, None, &GIVE_UP, &mut || ()).unwrap());
    assert_eq!(killer.join().unwrap().outcome, Some(KillOutcome::Abandoned));
    boundary.leave(BodyEnd::Unwound);
    let refused = lock.acquire(Acquire::Block, Time::NEVER);
    assert!(matches!(refused, Err(LockError::OwnerLost(_))));
}

#[test]
fn a_stale_holder_that_releases_a_fenced_lock_gets_an_error() {
    let lock = Lock::new("accounts", OnKill::Release).fenced();
    let (begin, begun) = channel();
    let (finish, finished) = channel::<()>();
    let task = Task::new("holder", None);
    let (theirs, held) = (task.clone(), lock.clone());
    let holder = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, None);
        held.acquire(Acquire::Task, Time::NEVER).unwrap();
        begin.send(()).unwrap();
        finished.recv().unwrap();
        let released = held.release();
        boundary.leave(BodyEnd::Unwound);
        (released, held.release())
    });
    begun.recv().unwrap();
    kill(&task, None, &GIVE_UP, &mut || ()).unwrap();
    assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
    finish.send(()).unwrap();
    let expected = (Err(ReleaseError::Fenced), Err(ReleaseError::NotHolder));
    assert_eq!(holder.join().unwrap(), expected);
    lock.release().unwrap();
}

#[test]
fn i20_a_guard_is_reclaimed_by_its_scope_and_releases_nothing_later() {
    let lock = Lock::default();
    let guard = move_on_after(HOUR, |_| {
        Ok::<_, Stop>(lock.guard(Time::NEVER).unwrap().unwrap())
    });
    let guard = guard.unwrap().unwrap();
    assert!(!lock.is_locked() && guard.check().is_err());
    assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
    drop(guard);
    assert!(lock.is_locked());
    lock.release().unwrap();
}

#[test]
fn a_lock_names_its_holder() {
    let lock = Lock::default();
    assert_eq!(lock.owner(), None);
    let task = Task::new("holder", None);
    let boundary = Boundary::enter(&task, None);
    assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
    assert_eq!(lock.owner(), Some(Some("holder".into())));
    boundary.leave(BodyEnd::Unwound);
    assert_eq!(lock.owner(), None);
    let named = thread::Builder::new().name("plain".into());
    let theirs = lock.clone();
    let owner = named.spawn(move || {
        let _guard = theirs.guard(Time::NEVER).unwrap();
        theirs.owner()
    });
    assert_eq!(owner.unwrap().join().unwrap(), Some(Some("plain".into())));
}
