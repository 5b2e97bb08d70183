//! The tree of tokens: children, closing and linking race with cancelling.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{ALL, ONCE, THRICE, TWICE, because, end, explore, spawn};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::token::Registration;
use crate::token::tree::NodeRef;

fn canceller(node: &NodeRef, reason: &'static str) -> loom::thread::JoinHandle<bool> {
    let node = node.clone();
    spawn(move || node.cancel(because(reason)))
}

/// Read the cause twice: a cause that was seen stays.
fn reader(node: &NodeRef) -> loom::thread::JoinHandle<Option<Cause>> {
    let node = node.clone();
    spawn(move || {
        let seen = node.cause();
        assert!(seen.is_none() || seen == node.cause());
        seen
    })
}

fn reason(node: &NodeRef) -> String {
    node.cause()
        .and_then(|cause| cause.reason)
        .unwrap()
        .to_string()
}

/// Count the cancellations of a node with a callback that stays registered.
fn count(node: &NodeRef, ran: &Arc<AtomicUsize>) {
    let ran = ran.clone();
    Registration::new(
        node,
        Box::new(move |_| _ = ran.fetch_add(1, Ordering::Relaxed)),
    )
    .detach();
}

// ---------------------------------------------------------------------- the cause

#[test]
fn loom_i2_i10_of_two_cancels_one_wins_and_its_cause_stays() {
    explore(TWICE, || {
        let node = NodeRef::root(None);
        let (first, second) = (canceller(&node, "first"), canceller(&node, "second"));
        let reader = reader(&node);
        let (first, second) = (end(first), end(second));
        assert!(first != second, "one wins");
        assert_eq!(reason(&node), if first { "first" } else { "second" });
        let seen = end(reader);
        assert!(seen.is_none() || seen == node.cause());
    });
}

#[test]
fn loom_i2_i10_a_node_cancelled_by_itself_and_from_above_has_one_cause() {
    explore(THRICE, || {
        let parent = NodeRef::root(None);
        let child = parent.child(None);
        let (own, above) = (canceller(&child, "own"), canceller(&parent, "above"));
        let reader = reader(&child);
        let (own, above) = (end(own), end(above));
        assert!(above, "no other actor cancels the parent");
        assert_eq!(reason(&child), if own { "own" } else { "above" });
        let seen = end(reader);
        assert!(seen.is_none() || seen == child.cause());
    });
}

#[test]
fn loom_i2_a_passed_deadline_is_the_cause_in_every_order() {
    explore(ALL, || {
        let passed = Time::from_nanos(1);
        let node = NodeRef::root(Some(passed));
        let canceller = canceller(&node, "too late");
        let poller = {
            let node = node.clone();
            spawn(move || node.poll(Time::now()))
        };
        assert!(!end(canceller) && end(poller));
        assert_eq!(node.cause(), Some(Cause::deadline(passed)));
    });
}

#[test]
fn loom_i2_the_passed_deadline_of_a_child_is_its_cause_despite_a_cancel_from_above() {
    explore(ALL, || {
        let passed = Time::from_nanos(1);
        let parent = NodeRef::root(None);
        let child = parent.child(Some(passed));
        let canceller = canceller(&parent, "above");
        let poller = {
            let child = child.clone();
            spawn(move || child.poll(Time::now()))
        };
        assert!(end(canceller) && end(poller));
        assert_eq!(child.cause(), Some(Cause::deadline(passed)));
    });
}

// ---------------------------------------------------------------------- children

#[test]
fn loom_i9_children_born_during_a_cancel_are_cancelled() {
    explore(TWICE, || {
        let node = NodeRef::root(None);
        let canceller = canceller(&node, "above");
        let bear = || {
            let node = node.clone();
            spawn(move || {
                let child = node.child(None);
                let grandchild = child.child(None);
                (child, grandchild)
            })
        };
        let (one, other) = (bear(), bear());
        end(canceller);
        for (child, grandchild) in [end(one), end(other)] {
            assert_eq!(reason(&child), "above");
            assert_eq!(reason(&grandchild), "above");
        }
        assert_eq!(node.followers(), (0, 0));
    });
}

#[test]
fn loom_i9_a_child_born_and_dropped_during_a_cancel_leaves_nothing() {
    explore(ALL, || {
        let node = NodeRef::root(None);
        let canceller = canceller(&node, "above");
        let parent = node.clone();
        let child = spawn(move || drop(parent.child(None)));
        end(canceller);
        end(child);
        assert_eq!(node.followers(), (0, 0));
    });
}

#[test]
fn loom_i9_neighbours_dropped_during_a_cancel_leave_the_list_whole() {
    explore(TWICE, || {
        let node = NodeRef::root(None);
        // The middle one stays; all have children, so that the canceller takes a reference.
        let [first, middle, last] = [(); 3].map(|()| node.child(None));
        let (below_first, below_last) = (first.child(None), last.child(None));
        let below = middle.child(None);
        let canceller = canceller(&node, "above");
        let one = spawn(move || drop((first, below_first)));
        let other = spawn(move || drop((last, below_last)));
        end(canceller);
        end(one);
        end(other);
        assert_eq!(
            (reason(&middle), reason(&below)),
            ("above".into(), "above".into())
        );
        assert_eq!(node.followers(), (0, 0));
    });
}

#[test]
fn loom_i9_a_family_dropped_in_parts_during_a_cancel_is_freed_once() {
    explore(TWICE, || {
        let node = NodeRef::root(None);
        let child = node.child(None);
        let grandchild = child.child(None);
        let canceller = canceller(&node, "above");
        let one = spawn(move || drop(child));
        let other = spawn(move || drop(grandchild));
        drop(node);
        end(canceller);
        end(one);
        end(other);
    });
}

#[test]
fn loom_i9_a_closed_child_has_left_its_parent_and_is_cancelled_once() {
    explore(TWICE, || {
        let ran = Arc::new(AtomicUsize::new(0));
        let node = NodeRef::root(None);
        let children = [(); 3].map(|()| node.child(None));
        for child in &children {
            count(child, &ran);
        }
        let canceller = canceller(&node, "above");
        let closed = children[1].clone();
        let closer = spawn(move || closed.close(CauseKind::ScopeExited));
        end(canceller);
        end(closer);
        assert_eq!(node.followers(), (0, 0));
        assert_eq!(ran.load(Ordering::Relaxed), 3, "each callback ran");
    });
}

#[test]
fn loom_i9_closing_twice_at_once_leaves_the_neighbours_in_the_list() {
    explore(ALL, || {
        let node = NodeRef::root(None);
        let [first, middle, last] = [(); 3].map(|()| node.child(None));
        let close = || {
            let middle = middle.clone();
            spawn(move || middle.close(CauseKind::ScopeExited))
        };
        let (one, other) = (close(), close());
        end(one);
        end(other);
        assert_eq!(node.followers(), (2, 0));
        node.cancel(because("above"));
        assert!(first.is_cancelled() && last.is_cancelled());
    });
}

// ---------------------------------------------------------------------- links

#[test]
fn loom_i9_a_linked_token_dropped_during_a_cancel_leaves_nothing() {
    explore(TWICE, || {
        let (one, other) = (NodeRef::root(None), NodeRef::root(None));
        let linked = NodeRef::linked(&[&one, &other]);
        let (first, second) = (canceller(&one, "one"), canceller(&other, "other"));
        let dropper = spawn(move || drop(linked));
        end(first);
        end(second);
        end(dropper);
        assert_eq!((one.followers(), other.followers()), ((0, 0), (0, 0)));
    });
}

#[test]
fn loom_i2_a_linked_token_takes_the_first_cause_and_hands_it_down() {
    explore(TWICE, || {
        let (one, other) = (NodeRef::root(None), NodeRef::root(None));
        let linked = NodeRef::linked(&[&one, &other]);
        let below = linked.child(None);
        let (first, second) = (canceller(&one, "one"), canceller(&other, "other"));
        let reader = reader(&below);
        assert!(end(first) && end(second));
        let seen = end(reader);
        assert!(below.is_cancelled());
        assert!(seen.is_none() || seen == below.cause());
        assert!(linked.cause() == one.cause() || linked.cause() == other.cause());
        assert_eq!(linked.cause(), below.cause());
    });
}

#[test]
fn loom_i9_a_token_linked_during_a_cancel_is_cancelled() {
    explore(ONCE, || {
        let (one, other) = (NodeRef::root(None), NodeRef::root(None));
        let (first, second) = (canceller(&one, "one"), canceller(&other, "other"));
        let linker = {
            let (one, other) = (one.clone(), other.clone());
            spawn(move || NodeRef::linked(&[&one, &other]))
        };
        end(first);
        end(second);
        let linked = end(linker);
        assert!(linked.cause() == one.cause() || linked.cause() == other.cause());
        drop(linked);
        assert_eq!((one.followers(), other.followers()), ((0, 0), (0, 0)));
    });
}

#[test]
fn loom_i9_a_child_that_is_linked_is_cancelled_once_and_leaves_nothing() {
    explore(TWICE, || {
        let (parent, other) = (NodeRef::root(None), NodeRef::root(None));
        let child = parent.child(None);
        child.link_to(&other);
        let ran = Arc::new(AtomicUsize::new(0));
        count(&child, &ran);
        let (first, second) = (canceller(&parent, "parent"), canceller(&other, "other"));
        assert!(end(first) && end(second));
        assert!(child.cause() == parent.cause() || child.cause() == other.cause());
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        drop(child);
        assert_eq!((parent.followers(), other.followers()), ((0, 0), (0, 0)));
    });
}

#[test]
fn loom_i9_a_child_that_is_linked_may_be_dropped_during_both_cancels() {
    explore(TWICE, || {
        let (parent, other) = (NodeRef::root(None), NodeRef::root(None));
        let child = parent.child(None);
        child.link_to(&other);
        let (first, second) = (canceller(&parent, "parent"), canceller(&other, "other"));
        drop(child);
        end(first);
        end(second);
        assert_eq!((parent.followers(), other.followers()), ((0, 0), (0, 0)));
    });
}

#[test]
fn loom_i2_the_passed_deadline_of_a_linked_token_is_its_cause() {
    explore(ONCE, || {
        let at = Time::from_nanos(1);
        let other = NodeRef::root(None);
        let linked = NodeRef::root(Some(at));
        linked.link_to(&other);
        let (first, second) = (canceller(&other, "other"), canceller(&linked, "own"));
        assert!(end(first) && !end(second));
        assert_eq!(linked.cause(), Some(Cause::deadline(at)));
    });
}
