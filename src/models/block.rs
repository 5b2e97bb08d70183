//! A kill of one block races with the block's end.

use std::sync::Arc;

use super::{THRICE, TWICE, end, explore, spawn};
use crate::atomics::{AtomicBool, Ordering};
use crate::cause::Cause;
use crate::clock::Time;
use crate::error::Stop;
use crate::host::Home;
use crate::scope::{self, ForcedExit, Kind, Unwinding};
use crate::task::Interrupter;
use crate::token::tree::NodeRef;
use crate::wait;

/// The slot of the block's thread.
struct Slot {
    posted: AtomicBool,
}

impl Interrupter for Slot {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        then();
    }

    fn post(&self) {
        self.posted.store(true, Ordering::Release);
    }

    fn retract(&self) {
        self.posted.store(false, Ordering::Release);
    }

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

/// A thread enters and leaves a block, and another one requests its kill and delivers it. In every
/// interleaving the slot is empty behind the block, and none of the thread's other waits is killed.
fn race(body: fn(&NodeRef) -> Unwinding) {
    let slot = Arc::new(Slot {
        posted: AtomicBool::new(false),
    });
    let (tell, told) = loom::sync::mpsc::channel();
    let thread = {
        let slot = slot.clone();
        spawn(move || {
            let hour = std::time::Duration::from_secs(3600);
            let (node, watch) = scope::enter_forced(
                Time::NEVER,
                None,
                None,
                hour,
                Home::NATIVE,
                None,
                slot.clone(),
            );
            let task = scope::current_task().unwrap();
            let id = task.open_block_at(0).unwrap();
            tell.send((task, id)).unwrap();
            let unwinding = body(&node);
            let exit = scope::exit_forced(&node, unwinding, || None);
            drop(watch);
            assert!(!slot.posted.load(Ordering::Acquire), "late");
            assert_eq!(wait::checkpoint(), Ok(()));
            (unwinding, exit)
        })
    };
    let enforcer = spawn(move || {
        let (task, id) = told.recv().unwrap();
        task.expire_block(id, Time::from_nanos(1));
        task.request_block_kill(
            id,
            &Cause::deadline(Time::from_nanos(1)),
            Time::from_nanos(0),
        );
        task.deliver_at_wait();
        task.deliver_async_to_block(id);
    });
    end(enforcer);
    let (unwinding, exit) = end(thread);
    match unwinding {
        Unwinding::Killed => assert!(matches!(exit, Ok(ForcedExit::Absorbed(_)))),
        _ => assert_eq!(exit, Ok(ForcedExit::Pass)),
    }
    assert!(
        !slot.posted.load(Ordering::Acquire),
        "posted at a thread that has left"
    );
}

fn look(_node: &NodeRef) -> Unwinding {
    match wait::checkpoint() {
        Err(Stop::Killed(_)) => Unwinding::Killed,
        _ => Unwinding::Nothing,
    }
}

fn wait_shielded(_node: &NodeRef) -> Unwinding {
    let shield = scope::enter(Kind::Shield, Time::NEVER, None, Home::NATIVE);
    assert!(matches!(
        wait::sleep_until(Time::NEVER),
        Err(Stop::Killed(_))
    ));
    scope::exit(&shield, false).unwrap();
    Unwinding::Killed
}

#[test]
fn loom_i22_a_kill_of_a_block_is_not_seen_behind_it() {
    explore(THRICE, || race(look));
}

#[test]
fn loom_i12_i22_a_kill_of_a_block_ends_a_wait_under_a_shield() {
    explore(TWICE, || race(wait_shielded));
}
