//! Cases that the model of the scopes, `scope_model.rs`, does not cover: panics, swallowing, other
//! threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use desist::scope::{current_effective_deadline, current_token};
use desist::sync::{Acquire, Lock};
use desist::{Stop, Time, checkpoint, cleanup, move_on_after, shield};

use crate::support::{swallowed, watch_swallowing};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_block_that_panics_leaves_its_scope() {
    let result = catch_unwind(AssertUnwindSafe(|| {
        move_on_after(HOUR, |scope| -> Result<(), Stop> {
            scope.cancel();
            std::panic::resume_unwind(Box::new("of the block"));
        })
    }));
    assert_eq!(
        result.unwrap_err().downcast_ref::<&str>(),
        Some(&"of the block")
    );
    assert_eq!(checkpoint(), Ok(()));
    assert_eq!(current_effective_deadline(), Time::NEVER);
}

#[test]
fn outside_of_any_scope_nothing_is_cancelled() {
    assert_eq!(checkpoint(), Ok(()));
    assert!(!current_token().is_cancelled());
    assert_eq!(current_token().deadline(), Time::NEVER);
}

#[test]
fn a_scope_is_cancelled_once_and_only_the_first_call_says_so() {
    let done = move_on_after(HOUR, |scope| {
        assert!(scope.cancel());
        assert!(!scope.cancel());
        assert!(scope.token().is_cancelled() && current_token().is_cancelled());
        Ok::<_, Stop>("a block that does not look is not cut short")
    });
    assert!(done.unwrap().is_some());
}

#[test]
fn scopes_of_one_thread_are_not_seen_by_another() {
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        assert_eq!(std::thread::spawn(checkpoint).join().unwrap(), Ok(()));
        checkpoint()
    });
    assert_eq!(left, Ok(None));
}

#[test]
fn the_token_of_a_shield_is_not_the_one_outside() {
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        let seen_inside = || Ok::<_, Stop>(current_token().is_cancelled());
        assert_eq!(shield(HOUR, seen_inside), Ok(Some(false)));
        assert_eq!(cleanup(seen_inside), Ok(Some(false)));
        checkpoint()
    });
    assert_eq!(left, Ok(None));
}

#[test]
fn swallowing_is_reported_to_the_host_from_the_second_raise_in_a_scope() {
    watch_swallowing();
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        assert!(checkpoint().is_err());
        assert_eq!(swallowed(), 0, "the first is not known to be swallowed");
        assert!(checkpoint().is_err());
        assert_eq!(swallowed(), 2);
        // An inner scope has a count of its own.
        let inner = move_on_after(HOUR, |_| checkpoint());
        assert!(inner.is_err());
        assert_eq!(swallowed(), 2);
        inner
    });
    assert_eq!(left, Ok(None));
}

#[test]
fn from_the_tenth_raise_on_a_swallowing_loop_is_slowed_down() {
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        let nine = Time::now();
        (0..9).for_each(|_| assert!(checkpoint().is_err()));
        let tenth = Time::now();
        let result = checkpoint();
        assert!(
            Time::now() >= tenth + Duration::from_millis(1),
            "{:?} before",
            tenth - nine
        );
        result
    });
    assert_eq!(left, Ok(None));
}

#[test]
fn a_lock_that_a_block_did_not_release_is_reclaimed_when_its_scope_is_left() {
    let (block, task) = (Lock::default(), Lock::default());
    move_on_after(HOUR, |_| {
        assert!(block.acquire(Acquire::Block, Time::NEVER).unwrap());
        assert!(task.acquire(Acquire::Task, Time::NEVER).unwrap());
        Ok::<_, Stop>(())
    })
    .unwrap();
    assert!(!block.is_locked() && !block.is_poisoned());
    assert!(
        task.is_locked(),
        "it was acquired for longer than the scope"
    );
    task.release().unwrap();
}

#[test]
fn a_lock_held_before_the_scope_stays_held_and_one_exchanged_inside_is_reclaimed() {
    let [before, given_back, inside] = std::array::from_fn(|_| Lock::default());
    before.acquire(Acquire::Block, Time::NEVER).unwrap();
    given_back.acquire(Acquire::Block, Time::NEVER).unwrap();
    move_on_after(HOUR, |_| {
        given_back.release().unwrap();
        inside.acquire(Acquire::Block, Time::NEVER).unwrap();
        Ok::<_, Stop>(())
    })
    .unwrap();
    assert!(before.is_locked());
    assert!(
        !inside.is_locked(),
        "as many locks are held as before, but this one is the scope's"
    );
    before.release().unwrap();
}
