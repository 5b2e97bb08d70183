//! The latch: set, cancelled, timed out and waited for at the same time.

use std::sync::Arc;

use super::{Exclusive, ONCE, THRICE, TWICE, because, end, explore, run_as, spawn};
use crate::clock::Time;
use crate::error::Stop;
use crate::sync::Latch;
use crate::task::Task;

#[test]
fn loom_i12_all_waiters_of_a_latch_wake_and_see_earlier_writes() {
    explore(TWICE, || {
        let latch = Arc::new(Latch::new());
        let data = Exclusive::new();
        let setter = {
            let (latch, data) = (latch.clone(), data.clone());
            spawn(move || {
                data.touch();
                latch.set();
            })
        };
        let checkpointed = {
            let (latch, data) = (latch.clone(), data.clone());
            spawn(move || {
                assert_eq!(latch.wait_until(Time::NEVER), Ok(true));
                data.touch();
            })
        };
        let uncancelled = {
            let latch = latch.clone();
            spawn(move || latch.wait_shielded(Time::NEVER).is_ok_and(|set| set))
        };
        end(setter);
        end(checkpointed);
        assert!(end(uncancelled) && latch.is_set());
        assert_eq!(latch.waiting(), 0);
    });
}

#[test]
fn loom_i11_a_wait_for_a_latch_ends_set_or_cancelled_and_leaves_nothing() {
    explore(THRICE, || {
        let latch = Arc::new(Latch::new());
        let task = Task::new("waits", None);
        let waiter = {
            let (latch, task) = (latch.clone(), task.clone());
            spawn(move || run_as(&task, || latch.wait_until(Time::NEVER)))
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        // It is never set: only the canceller ends the wait.
        end(canceller);
        assert!(matches!(end(waiter), Err(Stop::Cancelled(_))));
        assert_eq!(latch.waiting(), 0);
    });
}

#[test]
fn loom_i11_set_and_cancel_race_for_a_latch() {
    explore(ONCE, || {
        let latch = Arc::new(Latch::new());
        let task = Task::new("waits", None);
        let waiter = {
            let (latch, task) = (latch.clone(), task.clone());
            spawn(move || run_as(&task, || latch.wait_until(Time::NEVER)))
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        let setter = {
            let latch = latch.clone();
            spawn(move || latch.set())
        };
        end(canceller);
        end(setter);
        assert!(matches!(end(waiter), Ok(true) | Err(Stop::Cancelled(_))));
        assert_eq!(latch.waiting(), 0);
    });
}

#[test]
fn loom_i11_a_wait_for_a_latch_that_times_out_leaves_nothing() {
    explore(THRICE, || {
        let latch = Arc::new(Latch::new());
        let waiter = {
            let latch = latch.clone();
            spawn(move || latch.wait_shielded(Time::NEVER))
        };
        let clock = {
            let latch = latch.clone();
            spawn(move || latch.time_out_first())
        };
        let timed_out = end(clock);
        if !timed_out {
            latch.set(); // the waiter was not queued yet
        }
        assert_eq!(end(waiter), Ok(!timed_out));
        assert_eq!(latch.waiting(), 0);
    });
}
