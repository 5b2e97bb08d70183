//! The event: set, cleared, cancelled and waited for at the same time.

use std::sync::Arc;

use super::{ALL, Exclusive, ONCE, THRICE, TWICE, canceller, end, explore, spawn, spawn_as};
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitOutcome, Waiter};
use crate::sync::Event;
use crate::task::Task;
use crate::wait::{Op, Waitable};

#[test]
fn loom_i12_all_waiters_of_an_event_wake_and_see_earlier_writes() {
    explore(TWICE, || {
        let event = Arc::new(Event::new());
        let data = Exclusive::new();
        let setter = {
            let (event, data) = (event.clone(), data.clone());
            spawn(move || {
                data.touch();
                event.set();
            })
        };
        let sees = {
            let (event, data) = (event.clone(), data.clone());
            spawn(move || {
                assert_eq!(event.wait_until(Time::NEVER), Ok(true));
                data.touch();
            })
        };
        let other = {
            let event = event.clone();
            spawn(move || event.wait_until(Time::NEVER))
        };
        end(setter);
        end(sees);
        assert_eq!(end(other), Ok(true));
        assert_eq!(event.waiting(), 0);
    });
}

#[test]
fn loom_i12_a_waiter_wakes_even_if_the_event_is_cleared_at_once() {
    explore(ALL, || {
        let event = Arc::new(Event::new());
        // Queued before the set; the thread may or may not be parked by then.
        let waiter = Waiter::new();
        (&mut &*event).enqueue(Ticket::new(&waiter, 0));
        let parked = {
            let (event, waiter) = (event.clone(), waiter.clone());
            spawn(move || {
                assert_eq!(waiter.finish(Time::NEVER), WaitOutcome::Granted);
                (&mut &*event).collect()
            })
        };
        let pulser = {
            let event = event.clone();
            spawn(move || {
                event.set();
                event.clear();
            })
        };
        end(pulser);
        assert_eq!(end(parked), Ok(Some(())));
        assert!(!event.is_set());
        assert_eq!(event.waiting(), 0);
    });
}

#[test]
fn loom_i12_a_set_is_not_lost_beside_an_earlier_clear() {
    explore(TWICE, || {
        let event = Arc::new(Event::new());
        event.set();
        let waiter = {
            let event = event.clone();
            spawn(move || event.wait_until(Time::NEVER))
        };
        let other = {
            let event = event.clone();
            spawn(move || event.wait_until(Time::NEVER))
        };
        let clearer = {
            let event = event.clone();
            spawn(move || {
                event.clear();
                event.set();
            })
        };
        end(clearer);
        assert_eq!((end(waiter), end(other)), (Ok(true), Ok(true)));
        assert_eq!(event.waiting(), 0);
    });
}

#[test]
fn loom_i11_a_cancelled_wait_for_an_event_leaves_nothing() {
    explore(THRICE, || {
        let event = Arc::new(Event::new());
        let task = Task::new("waits", None);
        let waiter = {
            let event = event.clone();
            spawn_as(&task, move || event.wait_until(Time::NEVER))
        };
        // It is never set: only the canceller ends the wait.
        end(canceller(&task));
        assert!(matches!(end(waiter), Err(Stop::Cancelled(_))));
        assert_eq!(event.waiting(), 0);
    });
}

#[test]
fn loom_i11_set_and_cancel_race_for_an_event() {
    explore(ONCE, || {
        let event = Arc::new(Event::new());
        let task = Task::new("waits", None);
        let cancelled = {
            let event = event.clone();
            spawn_as(&task, move || event.wait_until(Time::NEVER))
        };
        let other = {
            let event = event.clone();
            spawn(move || event.wait_until(Time::NEVER))
        };
        let canceller = canceller(&task);
        let setter = {
            let event = event.clone();
            spawn(move || event.set())
        };
        end(canceller);
        end(setter);
        assert!(matches!(end(cancelled), Ok(true) | Err(Stop::Cancelled(_))));
        assert_eq!(end(other), Ok(true));
        assert_eq!(event.waiting(), 0);
    });
}
