//! Ending a call of another thread: the order, the pins, and the two ways in which the watcher is told.

use super::{ALL, Exclusive, end, explore, spawn};
use crate::atomics::{Arc, AtomicU32, AtomicU64, Ordering};
use crate::clock::Time;
use crate::foreign::{Answer, Order, Slot, View, light_fence};
use crate::token::alarm::Alarm;

const SEEN: [u64; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

/// The handler, for a signal with this number.
fn handle(order: &Order, number: u64, acts: &Exclusive) {
    if let Some((seen, grace)) = order.take(number) {
        assert_eq!((seen, grace), (SEEN, None));
        acts.touch();
        order.reply(number, Answer::Ended);
    }
}

#[test]
fn loom_i46_an_order_is_either_answered_or_withdrawn() {
    explore(ALL, || {
        let order = Arc::new(Order::new());
        let acts = Exclusive::new();
        let number = order.arm(&SEEN, None).unwrap();
        let handler = {
            let (order, acts) = (order.clone(), acts.clone());
            spawn(move || handle(&order, number, &acts))
        };
        let sender = spawn({
            let order = order.clone();
            move || {
                let withdrawn = order.withdraw();
                let answer = order.answer();
                assert!(
                    !(withdrawn && answer.is_some()),
                    "ended after it was withdrawn"
                );
                if answer == Some(Answer::Ended) {
                    acts.touch(); // what the handler did is seen
                }
                withdrawn
            }
        });
        end(handler);
        if end(sender) {
            assert!(
                order.arm(&SEEN, None).is_some(),
                "the signal has freed the slot"
            );
        }
    });
}

#[test]
fn loom_i46_a_signal_of_an_earlier_order_takes_no_later_one() {
    explore(ALL, || {
        let order = Arc::new(Order::new());
        let first = order.arm(&SEEN, None).unwrap();
        order.reset();
        let later = spawn({
            let order = order.clone();
            move || {
                let number = order.arm(&SEEN, None).unwrap();
                assert_ne!(number, first);
                assert!(order.take(number).is_some());
            }
        });
        let stale = spawn(move || assert!(order.take(first).is_none()));
        end(stale);
        end(later);
    });
}

#[test]
fn loom_i46_a_pinned_flag_is_not_freed() {
    explore(ALL, || {
        let slot = Arc::new(Slot::new());
        // Stands for the memory of a node: its thread frees it, another one uses it.
        let memory = Exclusive::new();
        let flag = Arc::new(AtomicU32::new(1));
        let view = View {
            flag: &raw const *flag,
            ..View::NONE
        };
        slot.publish(&view);
        let watcher = spawn({
            let (slot, memory) = (slot.clone(), memory.clone());
            move || {
                let pin = slot.pin();
                if !pin.flag().is_null() {
                    memory.touch();
                }
            }
        });
        let thread = spawn(move || {
            slot.publish(&View::NONE);
            memory.touch();
        });
        end(watcher);
        end(thread);
        drop(flag);
    });
}

#[test]
fn loom_i47_a_cancelled_flag_that_is_published_is_watched() {
    explore(ALL, || {
        let slot = Arc::new(Slot::new());
        let flag = Arc::new(AtomicU32::new(1));
        slot.mark(); // by the cancel, before the thread has published
        let watcher = spawn({
            let slot = slot.clone();
            move || slot.unwatch()
        });
        let thread = spawn({
            let (slot, flag) = (slot.clone(), flag.clone());
            move || {
                let view = View {
                    flag: &raw const *flag,
                    ..View::NONE
                };
                slot.publish(&view);
                if !slot.is_watched() {
                    slot.mark();
                }
            }
        });
        end(watcher);
        end(thread);
        assert!(
            slot.is_watched(),
            "the watcher has stopped looking at a cancelled thread"
        );
    });
}

#[test]
fn loom_i47_the_watcher_sleeps_past_no_deadline() {
    explore(ALL, || {
        let alarm = Arc::new(Alarm::new());
        alarm.bring_forward(Time::from_nanos(3)); // the look that the watcher takes now
        let deadline = Arc::new(AtomicU64::new(u64::MAX));
        let watcher = spawn({
            let (alarm, deadline) = (alarm.clone(), deadline.clone());
            move || {
                alarm.set(Time::from_nanos(9), || {
                    Time::from_nanos(deadline.load(Ordering::Relaxed))
                })
            }
        });
        let thread = spawn(move || {
            deadline.store(5, Ordering::Relaxed);
            light_fence();
            alarm.is_late_for(Time::from_nanos(5))
        });
        let until = end(watcher);
        let wakes = end(thread);
        assert!(wakes || until.as_nanos() <= 5, "nothing wakes the watcher");
    });
}
