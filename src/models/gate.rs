//! The gate of a worker: pausing and retiring it, against its leases.

use std::sync::Arc;

use super::{Number, TWICE, end, explore, spawn};
use crate::clock::Time;
use crate::error::Stop;
use crate::work::gate::{LeaseGate, Passed};
use crate::work::{Lease, LeaseQueue, PutOptions, RetryPolicy};

type Queue = LeaseQueue<u32, Note>;

#[derive(Debug, Clone, PartialEq)]
struct Note;

impl From<crate::cause::Cause> for Note {
    fn from(_: crate::cause::Cause) -> Self {
        Note
    }
}

fn queue() -> Queue {
    LeaseQueue::new(RetryPolicy::default())
}

fn put(queue: &Queue) {
    queue.try_put(1, &PutOptions::default()).unwrap();
}

/// The worker comes to lease, once.
fn come(gate: &LeaseGate, queue: &Queue) -> Passed<Result<Option<Lease<u32, Note>>, Stop>> {
    gate.pass(|| queue.lease(Time::NEVER), Result::is_err)
}

/// An actor that leases as a worker does, until it has an item (true) or is to leave.
fn worker(gate: &Arc<LeaseGate>, queue: &Queue) -> loom::thread::JoinHandle<bool> {
    let (gate, queue) = (gate.clone(), queue.clone());
    spawn(move || {
        loop {
            match come(&gate, &queue) {
                Passed::Leased(leased) => return leased.unwrap().is_some(),
                Passed::Again => {}
                Passed::Wait => gate.until_open().unwrap(),
                Passed::Leave => return false,
            }
        }
    })
}

#[test]
fn loom_i12_a_retired_worker_that_waits_for_an_item_leaves() {
    explore(TWICE, || {
        let (gate, queue) = (Arc::new(LeaseGate::new()), queue());
        let worker = worker(&gate, &queue);
        let retirer = {
            let gate = gate.clone();
            spawn(move || {
                gate.retire();
                gate.until_outside().unwrap();
            })
        };
        end(retirer);
        assert!(!end(worker)); // or loom reports a deadlock
    });
}

#[test]
fn loom_i13_an_item_that_comes_while_its_worker_retires_is_leased_or_still_there() {
    explore(TWICE, || {
        let (gate, queue) = (Arc::new(LeaseGate::new()), queue());
        let worker = worker(&gate, &queue);
        let retirer = {
            let gate = gate.clone();
            spawn(move || gate.retire())
        };
        let producer = {
            let queue = queue.clone();
            spawn(move || put(&queue))
        };
        end(retirer);
        end(producer);
        let leased = end(worker);
        let counts = queue.counts();
        assert_eq!(
            (counts.ready, counts.leased),
            (usize::from(!leased), usize::from(leased))
        );
    });
}

#[test]
fn loom_i35_a_paused_worker_leases_nothing_when_the_pause_has_returned() {
    explore(TWICE, || {
        let (gate, queue) = (Arc::new(LeaseGate::new()), queue());
        put(&queue);
        // Used while the worker may lease, and then by the thread that has paused it.
        let leases = Number::new(0);
        let worker = {
            let (gate, leases, queue) = (gate.clone(), leases.clone(), queue.clone());
            spawn(move || {
                let leased = gate.pass(
                    || {
                        let leased = queue.lease(Time::NEVER);
                        if matches!(leased, Ok(Some(_))) {
                            leases.set(leases.get() + 1);
                        }
                        leased
                    },
                    Result::is_err,
                );
                matches!(leased, Passed::Leased(Ok(Some(_))))
            })
        };
        let pauser = {
            let (gate, leases) = (gate.clone(), leases.clone());
            spawn(move || {
                gate.pause();
                gate.until_outside().unwrap();
                leases.get()
            })
        };
        let seen = end(pauser);
        assert_eq!(seen == 1, end(worker));
    });
}

#[test]
fn loom_i12_a_worker_leases_again_when_it_is_resumed() {
    explore(TWICE, || {
        let (gate, queue) = (Arc::new(LeaseGate::new()), queue());
        put(&queue);
        let worker = worker(&gate, &queue);
        let pauser = {
            let gate = gate.clone();
            spawn(move || {
                gate.pause();
                gate.resume();
            })
        };
        end(pauser);
        assert!(end(worker)); // or loom reports a deadlock
    });
}

#[test]
fn loom_i12_a_worker_that_is_paused_and_retired_leaves() {
    explore(TWICE, || {
        let (gate, queue) = (Arc::new(LeaseGate::new()), queue());
        gate.pause();
        let worker = worker(&gate, &queue);
        let retirer = {
            let gate = gate.clone();
            spawn(move || gate.retire())
        };
        let pauser = {
            let gate = gate.clone();
            spawn(move || gate.pause())
        };
        end(retirer);
        end(pauser);
        assert!(!end(worker));
    });
}
