//! The lease queue: handing out, settling, closing.

use super::{ONCE, THRICE, TWICE, because, end, explore, run_as, spawn};
use crate::clock::Time;
use crate::error::Stop;
use crate::task::Task;
use crate::work::{Back, Counts, Lease, LeaseQueue, RetryPolicy};

type Queue = LeaseQueue<u32, &'static str>;

fn queue() -> Queue {
    LeaseQueue::new(RetryPolicy::default())
}

fn leaser(queue: &Queue) -> loom::thread::JoinHandle<Option<Lease<u32>>> {
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
            spawn(move || queue.put(7))
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
                    // Worked on and given back: the other gets it then.
                    queue
                        .give_back(lease.id, lease.epoch, Back::AtOnce, None)
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
            spawn(move || queue.put(7))
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
            spawn(move || (queue.put(1), queue.put(2)))
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
fn loom_i12_close_wakes_all_who_wait_for_an_item() {
    explore(TWICE, || {
        let queue = queue();
        let (one, other) = (leaser(&queue), leaser(&queue));
        let closer = {
            let queue = queue.clone();
            spawn(move || {
                queue.put(1);
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
        queue.put(1);
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
fn loom_i28_i29_a_lease_is_settled_once_and_what_was_given_back_is_leased_anew() {
    explore(TWICE, || {
        let queue = queue();
        queue.put(1);
        let lease = queue.lease(Time::NEVER).unwrap().unwrap();
        let (id, epoch) = (lease.id, lease.epoch);
        let acker = {
            let queue = queue.clone();
            spawn(move || queue.ack(id, epoch).is_ok())
        };
        let giver = {
            let queue = queue.clone();
            spawn(move || {
                let given = queue.give_back(id, epoch, Back::AtOnce, None).is_ok();
                queue.close(); // or the leaser would wait for ever where the item is done
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
        let id = queue.put(1);
        let canceller = {
            let queue = queue.clone();
            spawn(move || queue.cancel(id, "unwanted").unwrap())
        };
        let worker = {
            let queue = queue.clone();
            spawn(move || {
                let lease = queue.lease(Time::from_nanos(0)).unwrap();
                if let Some(lease) = &lease {
                    queue
                        .give_back(lease.id, lease.epoch, Back::AtOnce, None)
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
        assert_eq!(queue.dead(), [(id, 1, vec!["unwanted"])]);
    });
}
