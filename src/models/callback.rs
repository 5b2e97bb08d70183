//! Callbacks: registering, unregistering and closing race with cancelling.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{ALL, Exclusive, ONCE, THRICE, TWICE, because, end, explore, spawn};
use crate::atomics;
use crate::token::Registration;
use crate::token::tree::NodeRef;

fn canceller(node: &NodeRef) -> loom::thread::JoinHandle<bool> {
    let node = node.clone();
    spawn(move || node.cancel(because("for a test")))
}

fn count(node: &NodeRef, ran: &Arc<AtomicUsize>) -> Registration {
    let ran = ran.clone();
    Registration::new(
        node,
        Box::new(move |_| _ = ran.fetch_add(1, Ordering::Relaxed)),
    )
}

#[test]
fn loom_i17_a_callback_registered_during_a_cancel_runs_once() {
    explore(ONCE, || {
        let ran = Arc::new(AtomicUsize::new(0));
        let node = NodeRef::root(None);
        let canceller = canceller(&node);
        let register = || {
            let (node, ran) = (node.clone(), ran.clone());
            spawn(move || count(&node, &ran).detach())
        };
        let (one, other) = (register(), register());
        end(canceller);
        end(one);
        end(other);
        assert_eq!(ran.load(Ordering::Relaxed), 2);
        assert_eq!(node.followers(), (0, 0));
    });
}

#[test]
fn loom_i17_a_callback_runs_once_or_is_unregistered_once() {
    explore(ALL, || {
        let ran = Arc::new(AtomicUsize::new(0));
        let node = NodeRef::root(None);
        let registration = atomics::Arc::new(count(&node, &ran));
        let canceller = canceller(&node);
        let unregister = || {
            let registration = registration.clone();
            spawn(move || usize::from(registration.unregister()))
        };
        let (one, other) = (unregister(), unregister());
        end(canceller);
        let never = end(one) + end(other);
        assert_eq!(ran.load(Ordering::Relaxed) + never, 1);
    });
}

#[test]
fn loom_i17_of_two_cancellers_one_runs_the_callback() {
    explore(ALL, || {
        let ran = Arc::new(AtomicUsize::new(0));
        let parent = NodeRef::root(None);
        let child = parent.child(None);
        let _registration = count(&child, &ran);
        let (one, other) = (canceller(&parent), canceller(&child));
        end(one);
        end(other);
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_i17_after_close_the_callback_is_not_running() {
    explore(THRICE, || {
        let data = Exclusive::new();
        let node = NodeRef::root(None);
        let used = data.clone();
        let registration =
            atomics::Arc::new(Registration::new(&node, Box::new(move |_| used.touch())));
        let canceller = canceller(&node);
        let close = || {
            let registration = registration.clone();
            spawn(move || registration.close().expect("no stop"))
        };
        let (one, other) = (close(), close());
        end(one);
        data.touch(); // the canceller may not have returned yet, the callback must have
        end(other);
        end(canceller);
    });
}

#[test]
fn loom_i17_after_close_the_data_of_the_callback_is_free_to_use() {
    explore(TWICE, || {
        let data = Exclusive::new();
        let node = NodeRef::root(None);
        let used = data.clone();
        let registration = Registration::new(&node, Box::new(move |_| used.touch()));
        let canceller = canceller(&node);
        let closer = spawn(move || {
            registration.close().expect("no stop");
            data.touch();
        });
        end(canceller);
        end(closer);
    });
}

/// A slot for a registration that a callback takes.
type SharedRegistration = atomics::Arc<atomics::Mutex<Option<atomics::Arc<Registration>>>>;

#[test]
fn loom_i18_callbacks_that_close_each_other_do_not_deadlock() {
    explore(THRICE, || {
        let nodes = [NodeRef::root(None), NodeRef::root(None)];
        let places: [SharedRegistration; 2] =
            [SharedRegistration::default(), SharedRegistration::default()];
        let ran = Arc::new(AtomicUsize::new(0));
        for (mine, others) in [(0, 1), (1, 0)] {
            let (others, ran) = (places[others].clone(), ran.clone());
            let close_other = move |_: &_| {
                ran.fetch_add(1, Ordering::Relaxed);
                let registration = others.lock().clone();
                if let Some(registration) = registration {
                    registration.close().expect("no stop");
                }
            };
            let registration = Registration::new(&nodes[mine], Box::new(close_other));
            *places[mine].lock() = Some(atomics::Arc::new(registration));
        }
        let (one, other) = (canceller(&nodes[0]), canceller(&nodes[1]));
        end(one);
        end(other);
        let ran = ran.load(Ordering::Relaxed);
        assert!(
            ran == 1 || ran == 2,
            "at least one runs, and may close the other before it does"
        );
        // Otherwise the two would keep each other alive.
        for place in &places {
            drop(place.lock().take());
        }
    });
}

#[test]
fn loom_i18_a_callback_that_closes_itself_while_another_closes_it_does_not_deadlock() {
    explore(THRICE, || {
        let node = NodeRef::root(None);
        let place = SharedRegistration::default();
        let own = place.clone();
        let registration = Registration::new(
            &node,
            Box::new(move |_| {
                let registration = own.lock().clone();
                registration.unwrap().close().expect("no stop");
            }),
        );
        let registration = atomics::Arc::new(registration);
        *place.lock() = Some(registration.clone());
        let canceller = canceller(&node);
        let closer = spawn(move || registration.close().expect("no stop"));
        end(canceller);
        end(closer);
        place.lock().take();
    });
}
