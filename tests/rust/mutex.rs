use std::sync::Arc;
use std::thread;
use std::time::Duration;

use desist::boundary::{BodyEnd, Boundary};
use desist::sync::{LockError, Mutex};
use desist::task::Task;
use desist::{Stop, Time, move_on_after};

use crate::support::{PAST, Parker};

#[test]
fn the_guard_gives_access_and_then_releases_the_lock() {
    let mutex = Mutex::new(vec![1]);
    mutex.lock().unwrap().push(2);
    let guard = mutex.lock().unwrap();
    assert_eq!(*guard, [1, 2]);
    let timed_out = thread::scope(|threads| {
        threads
            .spawn(|| mutex.lock_until(PAST).unwrap().is_none())
            .join()
    });
    assert!(timed_out.unwrap());
    drop(guard);
    assert!(mutex.lock_until(PAST).unwrap().is_some());
}

#[test]
fn a_wait_for_it_that_timed_out_does_not_release_it() {
    let mutex = Mutex::new(());
    let guard = mutex.lock().unwrap();
    let wait_in_vain = || mutex.lock_until(PAST).unwrap().is_none();
    for _ in 0..2 {
        let timed_out = thread::scope(|threads| threads.spawn(wait_in_vain).join());
        assert!(timed_out.unwrap(), "two threads would have the same data");
    }
    drop(guard);
    assert!(!wait_in_vain());
}

#[test]
fn many_threads_lose_no_update() {
    let mutex = Mutex::new(0);
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..1000).for_each(|_| *mutex.lock().unwrap() += 1));
        }
    });
    assert_eq!(*mutex.lock().unwrap(), 4000);
}

#[test]
fn a_cancelled_waiter_gets_no_guard_and_the_next_one_does() {
    let mutex = Arc::new(Mutex::new(()));
    let guard = mutex.lock().unwrap();
    let wait = |task: &Arc<Task>| {
        let (task, mutex) = (task.clone(), mutex.clone());
        Parker::spawn_parked(move || {
            let boundary = Boundary::enter(&task, None);
            let stopped = matches!(mutex.lock(), Err(LockError::Stop(Stop::Cancelled(_))));
            boundary.leave(BodyEnd::Unwound);
            stopped
        })
    };
    let tasks = [Task::new("cancelled", None), Task::new("patient", None)];
    let [cancelled, patient] = tasks.each_ref().map(wait);
    tasks[0].source().cancel();
    assert!(cancelled.join());
    drop(guard);
    assert!(!patient.join());
    assert!(mutex.lock_until(PAST).unwrap().is_some());
}

#[test]
fn a_guard_that_outlives_a_scope_still_holds() {
    let mutex = Mutex::new(1);
    let guard = move_on_after(Duration::from_secs(3600), |_| {
        Ok::<_, Stop>(mutex.lock().unwrap())
    })
    .unwrap()
    .unwrap();
    let free = thread::scope(|threads| {
        threads
            .spawn(|| mutex.lock_until(PAST).unwrap().is_some())
            .join()
    });
    assert!(!free.unwrap(), "two threads would have the same data");
    assert_eq!(*guard, 1);
}

#[test]
fn a_guard_that_outlives_its_task_still_holds() {
    let mutex = Mutex::new(1);
    let task = Task::new("body", None);
    let boundary = Boundary::enter(&task, None);
    let guard = mutex.lock().unwrap();
    boundary.leave(BodyEnd::Unwound);
    assert!(
        thread::scope(|threads| threads
            .spawn(|| mutex.lock_until(PAST).unwrap().is_none())
            .join())
        .unwrap()
    );
    drop(guard);
    assert!(mutex.lock_until(Time::NEVER).unwrap().is_some());
}
