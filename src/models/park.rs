//! One wait: its settlement is unique, and its thread wakes.

use super::{ALL, Exclusive, ONCE, TWICE, because, end, explore, run_as, spawn};
use crate::atomics::{Arc, Mutex};
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitOutcome, Waiter};
use crate::task::Task;
use crate::token::CancelToken;
use crate::token::tree::{Hook, NodeRef};
use crate::wait::{self, Waitable};

fn settler(waiter: &Arc<Waiter>, outcome: WaitOutcome) -> loom::thread::JoinHandle<bool> {
    let waiter = waiter.clone();
    spawn(move || {
        let won = waiter.settle(outcome);
        if won {
            waiter.wake();
        }
        won
    })
}

#[test]
fn loom_i11_i12_grant_cancel_and_timeout_race_and_one_wakes_the_waiter() {
    explore(TWICE, || {
        let waiter = Waiter::new();
        let grant = settler(&waiter, WaitOutcome::Granted);
        let cancel = settler(&waiter, WaitOutcome::Cancelled);
        let timeout = settler(&waiter, WaitOutcome::TimedOut);
        let parked = {
            let waiter = waiter.clone();
            spawn(move || waiter.finish(Time::NEVER))
        };
        let won = [
            (end(grant), WaitOutcome::Granted),
            (end(cancel), WaitOutcome::Cancelled),
            (end(timeout), WaitOutcome::TimedOut),
        ];
        let winners: Vec<WaitOutcome> = won
            .iter()
            .filter(|(won, _)| *won)
            .map(|(_, outcome)| *outcome)
            .collect();
        assert_eq!(winners, [end(parked)]);
        assert_eq!(waiter.outcome(), Some(winners[0]), "and so it stays");
    });
}

#[test]
fn loom_i12_writes_before_the_grant_are_seen_after_the_wait() {
    explore(ALL, || {
        let data = Exclusive::new();
        let waiter = Waiter::new();
        let granter = {
            let (waiter, data) = (waiter.clone(), data.clone());
            spawn(move || {
                data.touch();
                assert!(waiter.settle(WaitOutcome::Granted));
                waiter.wake();
            })
        };
        let parked = spawn(move || {
            waiter.finish(Time::NEVER);
            data.touch();
        });
        end(granter);
        end(parked);
    });
}

#[test]
fn loom_i12_a_hooked_waiter_is_woken_by_a_cancel_or_the_hook_is_refused() {
    explore(ALL, || {
        let node = NodeRef::root(None);
        let child = node.child(None);
        let canceller = {
            let node = node.clone();
            spawn(move || node.cancel(because("for a test")))
        };
        let waiter = spawn(move || {
            let waiter = Waiter::new();
            match child.hook(Hook::Wake(waiter.clone())) {
                Ok(id) => {
                    assert_eq!(waiter.finish(Time::NEVER), WaitOutcome::Cancelled);
                    assert!(child.unhook(id).is_none(), "it has happened");
                }
                Err(_) => assert!(child.is_cancelled()),
            }
            assert!(
                child.cause().is_some(),
                "a cancelled waiter finds its cause"
            );
        });
        end(canceller);
        end(waiter);
    });
}

/// A queue for one waiter.
#[derive(Clone, Default)]
struct PlaceOp(Arc<Mutex<Option<Ticket>>>);

impl PlaceOp {
    /// Grant the waiter. False: there is none any more.
    fn grant(&self) -> bool {
        let ticket = self.0.lock().take();
        let granted = ticket.as_ref().is_some_and(Ticket::grant);
        if let Some(ticket) = ticket.filter(|_| granted) {
            ticket.wake();
        }
        granted
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_none()
    }
}

impl Waitable for PlaceOp {
    fn enqueue(&mut self, ticket: Ticket) {
        *self.0.lock() = Some(ticket);
    }

    fn dequeue(&mut self, _: &Ticket) -> bool {
        drop(self.0.lock().take());
        false
    }
}

#[test]
fn loom_i11_i12_a_blocked_task_is_granted_or_cancelled_and_leaves_no_hook() {
    explore(TWICE, || {
        let task = Task::new("waits", None);
        let place = PlaceOp::default();
        let waiter = {
            let (task, mut place) = (task.clone(), place.clone());
            spawn(move || {
                run_as(&task, || {
                    let result = wait::block(&Waiter::new(), Time::NEVER, &mut [&mut place]);
                    assert_eq!(task.node().followers(), (0, 0));
                    result
                })
            })
        };
        let granter = {
            let place = place.clone();
            spawn(move || place.grant())
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        end(canceller);
        match (end(waiter), end(granter)) {
            (Ok(Some(0)), true) => {}
            (Err(Stop::Cancelled(cause)), false) => {
                assert_eq!(cause.reason.as_deref(), Some("for a test"));
            }
            other => panic!("both or neither: {other:?}"),
        }
        assert!(place.is_empty());
    });
}

#[test]
fn loom_i12_all_waiters_of_a_token_wake() {
    explore(ONCE, || {
        let node = NodeRef::root(None);
        let wait = || {
            let token = CancelToken::from_unarmed(node.clone());
            spawn(move || token.wait_until(Time::NEVER))
        };
        let (one, other) = (wait(), wait());
        let canceller = {
            let node = node.clone();
            spawn(move || node.cancel(because("for a test")))
        };
        end(canceller);
        assert_eq!((end(one), end(other)), (Ok(true), Ok(true)));
        assert_eq!(node.followers(), (0, 0));
    });
}

#[test]
fn loom_i11_a_wait_for_a_token_that_is_itself_cancelled_leaves_no_hook_in_it() {
    explore(TWICE, || {
        let node = NodeRef::root(None);
        let task = Task::new("waits", None);
        let waiter = {
            let (token, task) = (CancelToken::from_unarmed(node.clone()), task.clone());
            spawn(move || run_as(&task, || token.wait_until(Time::NEVER)))
        };
        let canceller = {
            let node = task.node().clone();
            spawn(move || node.cancel(because("for a test")))
        };
        end(canceller);
        assert!(matches!(end(waiter), Err(Stop::Cancelled(_))));
        assert_eq!(node.followers(), (0, 0));
    });
}
