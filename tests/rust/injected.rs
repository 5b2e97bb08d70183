//! Injected exceptions: raised once, in the body and nowhere else, and not where they are deferred.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::boundary::{BodyEnd, Boundary};
use crate::clock::Time;
use crate::error::Stop;
use crate::sync::{Acquire, Lock};
use crate::task::{Arrival, Injected, Interrupter, Task};
use crate::wait::{checkpoint, sleep_until};

/// Counts the posts in the slot of the body's thread.
#[derive(Default)]
struct Slot(AtomicI32);

impl Slot {
    fn posted(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Interrupter for Slot {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        then();
    }

    fn post(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn retract(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

/// A body on the calling thread.
fn begin() -> (Arc<Task>, Arc<Slot>, Boundary) {
    let (task, slot) = (Task::new("body", None), Arc::new(Slot::default()));
    let boundary = Boundary::enter(&task, Some(slot.clone()));
    (task, slot, boundary)
}

fn something() -> Injected {
    Arc::new("something")
}

fn is_something(thrown: Option<Injected>) -> bool {
    thrown.is_some_and(|thrown| thrown.downcast_ref() == Some(&"something"))
}

fn stopped(result: &Result<(), Stop>) -> bool {
    matches!(result, Err(Stop::Killed(_)))
}

#[test]
fn it_is_raised_once_by_force() {
    let (task, slot, boundary) = begin();
    assert!(task.inject(something()));
    assert_eq!(slot.posted(), 1);
    assert!(matches!(task.arrived(), Some(Arrival::Injected(_))));
    assert!(task.arrived().is_none());
    assert!(checkpoint().is_ok());
    boundary.leave(BodyEnd::Unwound);
}

#[test]
fn it_is_raised_once_at_a_wait_and_the_posted_exception_is_retracted() {
    let (task, slot, boundary) = begin();
    assert!(task.inject(something()));
    assert!(stopped(&sleep_until(Time::NEVER)));
    assert_eq!(slot.posted(), 0);
    assert!(is_something(task.take_injected()));
    assert!(checkpoint().is_ok());
    boundary.leave(BodyEnd::Unwound);
}

#[test]
fn i24_locks_and_masks_defer_it() {
    let (task, slot, boundary) = begin();
    let lock = Lock::default();
    assert!(lock.try_acquire(Acquire::Block).is_ok());
    assert!(task.inject(something()));
    assert_eq!(slot.posted(), 0);
    assert!(checkpoint().is_ok());
    let mask = task.mask(Time::NEVER);
    assert!(lock.release().is_ok());
    assert!(checkpoint().is_ok());
    task.unmask(mask);
    assert!(stopped(&checkpoint()));
    assert!(is_something(task.take_injected()));
    boundary.leave(BodyEnd::Unwound);
}

#[test]
fn i24_a_mask_retracts_it_and_keeps_it() {
    let (task, slot, boundary) = begin();
    assert!(task.inject(something()));
    assert_eq!(slot.posted(), 1);
    let mask = task.mask(Time::NEVER);
    assert_eq!(slot.posted(), 0);
    assert!(task.arrived().is_none(), "it was retracted");
    task.unmask(mask);
    assert!(stopped(&checkpoint()));
    assert!(is_something(task.take_injected()));
    boundary.leave(BodyEnd::Unwound);
}

#[test]
fn i22_nothing_is_pending_behind_the_body() {
    let (task, slot, boundary) = begin();
    assert!(task.inject(something()));
    boundary.leave(BodyEnd::Unwound);
    assert_eq!(slot.posted(), 0);
    assert!(checkpoint().is_ok());
    assert!(!task.inject(something()));
}

#[test]
fn an_exception_injected_before_the_body_begins_is_raised_in_it() {
    let (task, slot) = (Task::new("body", None), Arc::new(Slot::default()));
    assert!(!task.inject(something()), "not launched");
    assert!(task.launch());
    assert!(task.inject(something()));
    let boundary = Boundary::enter(&task, Some(slot.clone()));
    assert_eq!(slot.posted(), 1);
    boundary.leave(BodyEnd::Unwound);
}

#[test]
fn i22_it_is_raised_once_even_if_it_was_posted_at_the_end_of_a_wait() {
    for during in [true, false] {
        let (task, slot, boundary) = begin();
        if during {
            assert!(task.inject(something()));
            assert_eq!(slot.posted(), 1);
        } else {
            let lock = Lock::default();
            assert!(lock.try_acquire(Acquire::Block).is_ok());
            assert!(task.inject(something()));
            assert!(lock.release().is_ok());
        }
        // The wait has ended, and the injection is not yet taken; now the injecting thread posts.
        assert!(task.kill_due().is_some());
        task.deliver_injected();
        assert!(is_something(task.take_injected()));
        assert_eq!(slot.posted(), 0, "it would be raised again");
        assert!(checkpoint().is_ok());
        boundary.leave(BodyEnd::Unwound);
    }
}

#[test]
fn one_that_the_host_has_dropped_is_raised_again() {
    let (task, slot, boundary) = begin();
    let what = something();
    assert!(task.inject(what.clone()));
    assert_eq!(slot.posted(), 1);
    assert!(matches!(task.arrived(), Some(Arrival::Injected(_))));
    task.inject_again(|_| false);
    task.inject_again(|raised| Arc::ptr_eq(raised, &what));
    assert!(
        stopped(&checkpoint()),
        "a wait may raise it before it is posted"
    );
    assert!(is_something(task.take_injected()));
    assert!(checkpoint().is_ok());
    task.inject_again(|_| true);
    assert!(checkpoint().is_ok(), "the checkpoint has settled it");
    boundary.leave(BodyEnd::Unwound);
}

#[test]
fn one_that_was_injected_since_replaces_a_dropped_one() {
    let (task, slot, boundary) = begin();
    assert!(task.inject(Arc::new("lost")));
    assert!(matches!(task.arrived(), Some(Arrival::Injected(_))));
    assert!(task.inject(something()));
    assert_eq!(slot.posted(), 2);
    task.inject_again(|_| true);
    assert!(stopped(&checkpoint()));
    assert!(is_something(task.take_injected()));
    assert!(checkpoint().is_ok());
    boundary.leave(BodyEnd::Unwound);
}
