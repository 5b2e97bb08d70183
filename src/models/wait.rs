//! One wait for several operations: one of them is performed, and the others leave no trace.

use std::sync::Arc;

use super::{Exclusive, ONCE, TWICE, canceller, end, explore, explore_overdue, spawn, spawn_as};
use crate::clock::Time;
use crate::error::Stop;
use crate::park::Waiter;
use crate::sync::{Acquire, Lock, Order, Queue, Semaphore};
use crate::task::Task;
use crate::wait::{self, Op, Waitable};

/// The operation that was performed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done<A, B> {
    First(A),
    Second(B),
}

/// Perform the operation that is possible first.
fn either<A: Op, B: Op>(first: &mut A, second: &mut B) -> Result<Done<A::Output, B::Output>, Stop> {
    let unrefused = "only a stop refuses it in these models";
    loop {
        if let Some(done) = first.attempt().ok().expect(unrefused) {
            return Ok(Done::First(done));
        }
        if let Some(done) = second.attempt().ok().expect(unrefused) {
            return Ok(Done::Second(done));
        }
        let both: &mut [&mut dyn Waitable] = &mut [first, second];
        match wait::block(&Waiter::new(), Time::NEVER, both)? {
            Some(0) => {
                if let Some(done) = first.collect().ok().expect(unrefused) {
                    return Ok(Done::First(done));
                }
            }
            Some(1) => {
                if let Some(done) = second.collect().ok().expect(unrefused) {
                    return Ok(Done::Second(done));
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A queue and a semaphore, both empty.
#[derive(Clone)]
struct Both {
    queue: Arc<Queue<u32>>,
    semaphore: Semaphore,
}

impl Both {
    fn new() -> Both {
        Both {
            queue: Arc::new(Queue::new(Order::Fifo, 0)),
            semaphore: Semaphore::new(0),
        }
    }

    fn either(&self) -> Result<Done<u32, ()>, Stop> {
        either(&mut self.queue.get_op(), &mut self.semaphore.acquire_op())
    }

    fn putter(&self) -> loom::thread::JoinHandle<()> {
        let queue = self.queue.clone();
        spawn(move || assert_eq!(queue.put(7, Time::NEVER), Ok(None)))
    }

    fn releaser(&self) -> loom::thread::JoinHandle<()> {
        let semaphore = self.semaphore.clone();
        spawn(move || semaphore.release(1).unwrap())
    }

    /// Check the remaining state, and that no waiter is queued.
    fn assert_left(&self, items: usize, permits: usize) {
        assert_eq!((self.queue.len(), self.semaphore.free()), (items, permits));
        assert_eq!((self.queue.waiting(), self.semaphore.waiting()), (0, 0));
    }
}

#[test]
fn loom_i11_i14_of_an_item_and_a_permit_one_is_taken_and_the_other_stays() {
    explore(TWICE, || {
        let both = Both::new();
        let waiter = {
            let both = both.clone();
            spawn(move || both.either())
        };
        let (putter, releaser) = (both.putter(), both.releaser());
        end(putter);
        end(releaser);
        match end(waiter) {
            Ok(Done::First(7)) => both.assert_left(0, 1),
            Ok(Done::Second(())) => both.assert_left(1, 0),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn loom_i11_i14_a_cancelled_wait_for_an_item_or_a_permit_has_taken_neither() {
    explore(ONCE, || {
        let both = Both::new();
        let task = Task::new("waits", None);
        let waiter = {
            let both = both.clone();
            spawn_as(&task, move || both.either())
        };
        let canceller = canceller(&task);
        let (putter, releaser) = (both.putter(), both.releaser());
        end(canceller);
        end(putter);
        end(releaser);
        match end(waiter) {
            Ok(Done::First(7)) => both.assert_left(0, 1),
            Ok(Done::Second(())) => both.assert_left(1, 0),
            Err(Stop::Cancelled(_)) => both.assert_left(1, 1),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn loom_i11_i14_two_waiters_for_either_of_two_things_have_one_each() {
    explore(ONCE, || {
        let both = Both::new();
        let waiters = [(); 2].map(|()| {
            let both = both.clone();
            spawn(move || both.either())
        });
        let (putter, releaser) = (both.putter(), both.releaser());
        end(putter);
        end(releaser);
        // Neither may have been kept for the waiter that had the other.
        match waiters.map(end) {
            [Ok(Done::First(7)), Ok(Done::Second(()))]
            | [Ok(Done::Second(())), Ok(Done::First(7))] => both.assert_left(0, 0),
            other => panic!("{other:?}"),
        }
    });
}

/// A waiter for a lock or an item, and another one for the lock alone.
fn lock_or_item() {
    let (lock, data) = (Lock::default(), Exclusive::new());
    let queue = Arc::new(Queue::new(Order::Fifo, 0));
    assert!(lock.try_acquire(Acquire::Task).unwrap());
    let waiter = {
        let (lock, data, queue) = (lock.clone(), data.clone(), queue.clone());
        spawn(move || {
            let done = either(&mut lock.acquire_op(Acquire::Task), &mut queue.get_op());
            if done == Ok(Done::First(())) {
                data.touch();
                lock.release().unwrap();
            }
            done
        })
    };
    let other = {
        let (lock, data) = (lock.clone(), data.clone());
        spawn(move || {
            assert!(lock.acquire(Acquire::Task, Time::NEVER).unwrap());
            data.touch();
            lock.release().unwrap();
        })
    };
    let releaser = {
        let (lock, data) = (lock.clone(), data.clone());
        spawn(move || {
            data.touch();
            lock.release().unwrap();
        })
    };
    let putter = {
        let queue = queue.clone();
        spawn(move || assert_eq!(queue.put(7, Time::NEVER), Ok(None)))
    };
    end(releaser);
    end(putter);
    end(other); // or loom reports a deadlock: the wake-up went to the waiter with the item
    let left = match end(waiter) {
        Ok(Done::First(())) => 1,
        Ok(Done::Second(7)) => 0,
        other => panic!("{other:?}"),
    };
    assert_eq!((queue.len(), queue.waiting()), (left, 0));
    assert_eq!((lock.is_locked(), lock.waiting()), (false, 0));
}

#[test]
fn loom_i11_i14_a_waiter_with_an_item_has_neither_the_lock_nor_consumed_its_wake_up() {
    explore(ONCE, lock_or_item);
}

#[test]
fn loom_i11_i14_a_waiter_with_an_item_is_not_handed_the_lock() {
    explore_overdue(ONCE, lock_or_item);
}
