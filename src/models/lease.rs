//! The lease queue: leasing, settling, closing.

use super::{ONCE, THRICE, TWICE, because, canceller, end, explore, run_as, spawn, spawn_as};
use crate::cause::Cause;
use crate::clock::Time;
use crate::error::Stop;
use crate::task::Task;
use crate::work::{Counts, Lease, LeaseQueue, Nack, PutOptions, QueueOptions, RetryPolicy};

type Queue = LeaseQueue<u32, Note>;

#[derive(Debug, Clone, PartialEq)]
struct Note(&'static str);

impl From<Cause> for Note {
    fn from(_: Cause) -> Self {
        Note("late")
    }
}

fn queue() -> Queue {
    LeaseQueue::new(RetryPolicy::default())
}

/// A queue for one item, which is full.
fn full() -> Queue {
    let queue = Queue::new(QueueOptions {
        maxsize: 1,
        ..QueueOptions::default()
    });
    put(&queue, 1);
    queue
}

/// Put an item where there is room.
fn put(queue: &Queue, item: u32) -> u64 {
    queue.try_put(item, &PutOptions::default()).unwrap()
}

/// Lease the queued item, and acknowledge it.
fn work(queue: &Queue) -> u32 {
    let lease = queue.lease(Time::NEVER).unwrap().unwrap();
    queue.ack(lease.id, lease.epoch).unwrap();
    lease.item
}

fn leaser(queue: &Queue) -> loom::thread::JoinHandle<Option<Lease<u32, Note>>> {
    let queue = queue.clone();
    spawn(move || queue.lease(Time::NEVER).unwrap())
}

#[test]
fn loom_i13_an_item_is_leased_or_still_queued_when_its_leaser_is_cancelled() {
    explore(TWICE, || {
        let queue = queue();
        let task = Task::new("leases", None);
        let leaser = {
            let (queue, task) = (queue.clone(), task.clone());
            spawn(move || run_as(&task, || queue.lease(Time::NEVER)))
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        let producer = {
            let queue = queue.clone();
            spawn(move || put(&queue, 7))
        };
        end(canceller);
        end(producer);
        let expected = match end(leaser) {
            Ok(Some(lease)) => {
                assert_eq!((lease.item, lease.attempt), (7, 1));
                Counts {
                    leased: 1,
                    ..Counts::default()
                }
            }
            Err(Stop::Cancelled(_)) => Counts {
                ready: 1,
                ..Counts::default()
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(queue.counts(), expected);
    });
}

#[test]
fn loom_i13_a_cancelled_leaser_is_skipped_and_the_next_gets_the_item() {
    explore(ONCE, || {
        let queue = queue();
        let task = Task::new("leases", None);
        let cancelled = {
            let (queue, task) = (queue.clone(), task.clone());
            spawn(move || {
                let lease = run_as(&task, || queue.lease(Time::NEVER));
                if let Ok(Some(lease)) = lease {
                    // Worked on and requeued: then the other worker gets it.
                    queue
                        .nack(lease.id, lease.epoch, Nack::AtOnce, None)
                        .unwrap();
                }
            })
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        let next = leaser(&queue);
        let producer = {
            let queue = queue.clone();
            spawn(move || put(&queue, 7))
        };
        end(producer);
        end(canceller);
        end(cancelled);
        assert_eq!(end(next).unwrap().item, 7); // or loom reports a deadlock
        assert_eq!(
            queue.counts(),
            Counts {
                leased: 1,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn loom_i13_two_leasers_get_two_items_each_once() {
    explore(TWICE, || {
        let queue = queue();
        let (one, other) = (leaser(&queue), leaser(&queue));
        let producer = {
            let queue = queue.clone();
            spawn(move || (put(&queue, 1), put(&queue, 2)))
        };
        end(producer);
        let (one, other) = (end(one).unwrap(), end(other).unwrap());
        assert_eq!(one.item + other.item, 3, "not the same twice");
        assert_ne!(one.epoch, other.epoch);
        assert_eq!(
            queue.counts(),
            Counts {
                leased: 2,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn loom_i12_close_wakes_all_waiting_leases() {
    explore(TWICE, || {
        let queue = queue();
        let (one, other) = (leaser(&queue), leaser(&queue));
        let closer = {
            let queue = queue.clone();
            spawn(move || {
                put(&queue, 1);
                queue.close();
            })
        };
        end(closer);
        let leased = usize::from(end(one).is_some()) + usize::from(end(other).is_some());
        assert!(leased <= 1);
        assert_eq!(
            queue.counts(),
            Counts {
                ready: 1 - leased,
                leased,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn loom_i12_drain_ends_when_the_last_lease_is_settled() {
    explore(THRICE, || {
        let queue = queue();
        put(&queue, 1);
        let drainer = {
            let queue = queue.clone();
            spawn(move || queue.drain(Time::NEVER))
        };
        let worker = {
            let queue = queue.clone();
            spawn(move || {
                let lease = queue.lease(Time::NEVER).unwrap().unwrap();
                queue.ack(lease.id, lease.epoch).unwrap();
            })
        };
        end(worker);
        assert_eq!(end(drainer), Ok(true));
        assert_eq!(
            queue.counts(),
            Counts {
                done: 1,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn loom_i28_i29_a_lease_is_settled_once_and_a_requeued_item_is_leased_again() {
    explore(TWICE, || {
        let queue = queue();
        put(&queue, 1);
        let lease = queue.lease(Time::NEVER).unwrap().unwrap();
        let (id, epoch) = (lease.id, lease.epoch);
        let acker = {
            let queue = queue.clone();
            spawn(move || queue.ack(id, epoch).is_ok())
        };
        let giver = {
            let queue = queue.clone();
            spawn(move || {
                let given = queue.nack(id, epoch, Nack::AtOnce, None).is_ok();
                queue.close(); // otherwise the lease would wait forever if the item is done
                given
            })
        };
        let leaser = leaser(&queue);
        let (acked, given) = (end(acker), end(giver));
        assert_ne!(acked, given, "settled once");
        let counts = Counts {
            done: u64::from(acked),
            ..Counts::default()
        };
        match end(leaser) {
            None => assert_eq!(
                queue.counts(),
                Counts {
                    ready: usize::from(given),
                    ..counts
                }
            ),
            Some(again) => {
                assert!(given && again.epoch > epoch && again.attempt == 2);
                assert_eq!(
                    queue.counts(),
                    Counts {
                        leased: 1,
                        ..counts
                    }
                );
            }
        }
    });
}

#[test]
fn loom_i31_an_item_that_is_cancelled_while_it_is_leased_is_not_leased_again() {
    explore(THRICE, || {
        let queue = queue();
        let id = put(&queue, 1);
        let canceller = {
            let queue = queue.clone();
            spawn(move || queue.cancel(id, Note("unwanted")).unwrap())
        };
        let worker = {
            let queue = queue.clone();
            spawn(move || {
                let lease = queue.lease(Time::from_nanos(0)).unwrap();
                if let Some(lease) = &lease {
                    queue
                        .nack(lease.id, lease.epoch, Nack::AtOnce, None)
                        .unwrap();
                }
                lease.is_some()
            })
        };
        end(canceller);
        end(worker);
        assert_eq!(
            queue.counts(),
            Counts {
                dead: 1,
                ..Counts::default()
            }
        );
        assert_eq!(queue.dead(), [(id, 1, vec![Note("unwanted")])]);
    });
}

#[test]
fn loom_i13_an_item_is_put_or_not_when_its_wait_for_room_is_cancelled() {
    explore(TWICE, || {
        let queue = full();
        let task = Task::new("puts", None);
        let putter = {
            let queue = queue.clone();
            spawn_as(&task, move || queue.put(2))
        };
        let canceller = canceller(&task);
        let worker = {
            let queue = queue.clone();
            spawn(move || work(&queue))
        };
        end(canceller);
        assert_eq!(end(worker), 1);
        let ready = match end(putter) {
            Ok(id) => {
                assert_eq!(queue.item(id), Some(2));
                1
            }
            Err(Stop::Cancelled(_)) => 0,
            other => panic!("{other:?}"),
        };
        let counts = Counts {
            ready,
            done: 1,
            ..Counts::default()
        };
        assert_eq!(queue.counts(), counts);
    });
}

#[test]
fn loom_i12_room_goes_to_the_next_put_when_the_waiting_one_is_cancelled() {
    explore(ONCE, || {
        let queue = full();
        let task = Task::new("puts", None);
        let cancelled = {
            let queue = queue.clone();
            spawn_as(&task, move || queue.put(2).is_ok())
        };
        let canceller = canceller(&task);
        let next = {
            let queue = queue.clone();
            spawn(move || queue.put(3).unwrap())
        };
        let worker = {
            let queue = queue.clone();
            spawn(move || (work(&queue), work(&queue))) // or loom reports a deadlock
        };
        end(canceller);
        end(worker);
        let put = end(cancelled);
        end(next);
        let counts = Counts {
            ready: usize::from(put),
            done: 2,
            ..Counts::default()
        };
        assert_eq!(queue.counts(), counts);
    });
}

#[test]
fn loom_i12_two_waiting_puts_get_room_one_after_the_other() {
    explore(TWICE, || {
        let queue = full();
        let putters = [2, 3].map(|item| {
            let queue = queue.clone();
            spawn(move || queue.put(item).unwrap())
        });
        let worker = {
            let queue = queue.clone();
            spawn(move || work(&queue) + work(&queue) + work(&queue))
        };
        assert_eq!(end(worker), 6);
        let [one, other] = putters.map(end);
        assert_ne!(one, other);
        let counts = Counts {
            done: 3,
            ..Counts::default()
        };
        assert_eq!(queue.counts(), counts);
    });
}

#[test]
fn loom_i28_the_same_key_put_twice_at_the_same_time_is_one_item() {
    explore(TWICE, || {
        let queue = full();
        let options = PutOptions {
            key: Some("key".into()),
            ..PutOptions::default()
        };
        let putters = [2, 3].map(|item| {
            let (queue, options) = (queue.clone(), options.clone());
            spawn(move || queue.put_with(item, &options, Time::NEVER).unwrap())
        });
        let worker = {
            let queue = queue.clone();
            spawn(move || work(&queue))
        };
        end(worker);
        let [one, other] = putters.map(end); // or loom reports a deadlock
        assert!(one.is_some() && one == other);
        let counts = Counts {
            ready: 1,
            done: 1,
            ..Counts::default()
        };
        assert_eq!(queue.counts(), counts);
    });
}

#[test]
fn loom_i48_a_lease_that_is_released_while_it_is_settled_ends_once() {
    explore(TWICE, || {
        let queue = queue();
        put(&queue, 1);
        let lease = queue.lease(Time::NEVER).unwrap().unwrap();
        let (id, epoch) = (lease.id, lease.epoch);
        let acker = {
            let queue = queue.clone();
            spawn(move || queue.ack(id, epoch).is_ok())
        };
        // The killing thread of an abandoned worker, and then the worker's own.
        let releaser = {
            let queue = queue.clone();
            spawn(move || {
                queue.release(id, epoch);
                queue.release(id, epoch);
                queue.close(); // otherwise the lease would wait forever if the item is done
            })
        };
        let leaser = leaser(&queue);
        let acked = end(acker);
        end(releaser);
        let again = end(leaser);
        let counts = queue.counts();
        assert!(!(acked && again.is_some()), "settled once");
        if let Some(again) = &again {
            assert_eq!(again.attempt, 2);
            assert!(again.epoch > epoch);
        }
        assert_eq!(counts.done, u64::from(acked));
        assert_eq!(counts.leased, usize::from(again.is_some()));
        assert_eq!(counts.ready, usize::from(!acked && again.is_none()));
    });
}
