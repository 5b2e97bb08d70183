//! A kill that was posted before a lock was acquired is not raised while the lock is held. A unit test of
//! `src/wait.rs`, because it posts the kill between two steps of a wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::*;
use crate::boundary::{BodyEnd, Boundary};
use crate::cause::{Cause, CauseKind};
use crate::sync::{Acquire, Lock, LockError};
use crate::task::{Interrupter, Task};

/// Counts the exceptions in the host's slot for the body's thread.
#[derive(Default)]
struct Slot(AtomicI32);

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

/// Acquire a lock by `acquire` in the body of a task that is killed when `kill` is called. The body
/// holds nothing then, so the kill is posted; it must be retracted when the lock is acquired.
fn acquire_while_killed(acquire: impl FnOnce(&Lock, &dyn Fn())) {
    let (lock, slot) = (Lock::default(), Arc::new(Slot::default()));
    let task = Task::new("body", None);
    let boundary = Boundary::enter(&task, Some(slot.clone()));
    acquire(&lock, &|| {
        let cause = Cause::now(CauseKind::Explicit, None, None);
        task.request_kill(&cause, Time::NEVER);
        assert!(task.deliver_async());
        assert_eq!(slot.0.load(Ordering::Relaxed), 1, "nothing defers it");
    });
    assert_eq!(task.ledger().len(), 1);
    assert_eq!(
        slot.0.load(Ordering::Relaxed),
        0,
        "it would be raised inside"
    );
    assert!(lock.release().is_ok());
    assert!(
        matches!(checkpoint(), Err(Stop::Killed(_))),
        "it was only deferred"
    );
    boundary.leave(BodyEnd::Unwound);
}

/// Acquires a lock, and posts the kill right before the attempt.
struct Late<'a, A> {
    acquiring: A,
    kill: Option<&'a dyn Fn()>,
}

impl<A: Waitable> Waitable for Late<'_, A> {
    fn enqueue(&mut self, ticket: Ticket) {
        self.acquiring.enqueue(ticket);
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.acquiring.dequeue(ticket)
    }
}

impl<A: Op<Output = (), Error = LockError>> Op for Late<'_, A> {
    type Output = ();
    type Error = Failed;

    fn attempt(&mut self) -> Result<Option<()>, Failed> {
        if let Some(kill) = self.kill.take() {
            kill();
        }
        self.acquiring.attempt().map_err(|_| Failed)
    }
}

#[derive(Debug)]
struct Failed;

impl From<Stop> for Failed {
    fn from(_: Stop) -> Self {
        Failed
    }
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Failed
    }
}

#[test]
fn i24_a_kill_posted_during_the_wait_for_a_lock_is_not_raised_inside() {
    acquire_while_killed(|lock, kill| {
        let helper = Lock::clone(lock);
        std::thread::spawn(move || helper.try_acquire(Acquire::Task))
            .join()
            .unwrap()
            .unwrap();
        let mut acquiring = lock.acquire_op(Acquire::Block);
        perform_by(&mut acquiring, Time::NEVER, |park| {
            lock.release().unwrap(); // notifies this thread; the lock is free until it looks
            kill();
            park()
        })
        .unwrap();
    });
}

#[test]
fn i24_a_kill_posted_right_before_a_lock_is_acquired_is_not_raised_inside() {
    fn late<'a>(
        lock: &'a Lock,
        kill: &'a dyn Fn(),
    ) -> Late<'a, impl Op<Output = (), Error = LockError>> {
        Late {
            acquiring: lock.acquire_op(Acquire::Block),
            kill: Some(kill),
        }
    }
    acquire_while_killed(|lock, kill| {
        perform(&mut late(lock, kill), Time::NEVER).unwrap();
    });
    acquire_while_killed(|lock, kill| {
        perform_any(&mut [&mut late(lock, kill)], Time::NEVER, |park| park()).unwrap();
    });
    acquire_while_killed(|lock, kill| {
        perform_shielded(&mut late(lock, kill)).unwrap();
    });
    acquire_while_killed(|lock, kill| {
        kill();
        assert!(lock.try_acquire(Acquire::Block).unwrap());
    });
}
