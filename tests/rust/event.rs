use std::sync::Arc;
use std::time::Duration;

use desist::sync::Event;
use desist::task::Task;
use desist::{Stop, Time, move_on_after};

use crate::support::{PAST, Parker, far, parked_task};

fn waiting_for(event: &Arc<Event>) -> (Arc<Task>, Parker<Result<bool, Stop>>) {
    let event = event.clone();
    parked_task(move || event.wait_until(Time::NEVER))
}

#[test]
fn it_can_be_set_and_cleared_again_and_again() {
    let event = Event::new();
    for _ in 0..2 {
        assert!(!event.is_set());
        event.clear();
        assert_eq!(event.wait_until(PAST), Ok(false));
        event.set();
        event.set();
        assert!(event.is_set());
        assert_eq!(event.wait_until(PAST), Ok(true));
        assert_eq!(event.wait_until(Time::NEVER), Ok(true));
        event.clear();
    }
}

#[test]
fn i12_all_waiters_wake_even_if_it_is_cleared_again_at_once() {
    for _ in 0..50 {
        let event = Arc::new(Event::new());
        let waiters = [waiting_for(&event).1, waiting_for(&event).1];
        event.set();
        event.clear();
        for waiter in waiters {
            assert_eq!(waiter.join(), Ok(true));
        }
        assert!(!event.is_set());
    }
}

#[test]
fn i11_a_cancelled_waiter_is_not_set_free_by_a_later_set_and_the_others_are() {
    let event = Arc::new(Event::new());
    let (task, cancelled) = waiting_for(&event);
    let (_, other) = waiting_for(&event);
    task.source().cancel();
    assert!(matches!(cancelled.join(), Err(Stop::Cancelled(_))));
    event.set();
    assert_eq!(other.join(), Ok(true));
}

#[test]
fn i11_a_wait_for_an_unset_event_times_out() {
    let event = Event::new();
    let soon = Time::after(Duration::from_millis(1));
    assert_eq!(event.wait_until(soon), Ok(false));
    let hurried = move_on_after(Duration::from_millis(1), |_| event.wait_until(Time::NEVER));
    assert_eq!(hurried, Ok(None));
}

#[test]
fn i15_a_wait_in_a_cancelled_scope_raises_even_if_it_is_set() {
    let event = Event::new();
    event.set();
    let left = move_on_after(Duration::from_secs(3600), |scope| {
        scope.cancel();
        event.wait_until(far())
    });
    assert_eq!(left, Ok(None));
}
