//! The steps of a runtime around a fork, so that the core works in the child.
//!
//! The runtime calls, all on the forking thread: [`before`]; then [`after_in_parent`] or
//! [`after_in_child`], in the child before any other thread is started; and there
//! [`restart_in_child`] as soon as threads may be started.
//!
//! Guarantees:
//! 1. No lock of the core is held by another thread at the moment of the fork (I37): the gate of
//!    [`fork`] has let all threads out that use the core, and the forking thread holds the locks of
//!    all that is registered there.
//! 2. In the child, locks of threads that are gone are recognised by their generation, and are lost, not
//!    held forever; the forking thread keeps its own holds.
//! 3. In the child, service threads run again if they have work, and nothing is ended by force that was
//!    begun before the fork.
//!
//! | step | gate | locks of services | generation |
//! |---|---|---|---|
//! | `before` | closed, then empty | held by the forking thread | |
//! | `after_in_parent` | open | released | the same |
//! | `after_in_child` | open, with the calling thread alone | released | the next |
//!
//! Lock order: the gate, then the services in the order in which they were registered. None of them is
//! ever locked under another one.

use std::any::Any;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[cfg(not(loom))]
use crate::foreign;
use crate::fork::{self, ForkAware};
use crate::scope;

/// The generation that was restarted last.
static RESTARTED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Locks that the forking thread holds from before the fork until after it.
    static HELD: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Threads leave the core within microseconds. After this time the process forks anyway: a
/// possible deadlock in the child is better than a certain one here.
const PATIENCE: Duration = Duration::from_secs(1);
/// Number of forks that timed out waiting for a thread to leave the core.
static TIMEOUTS: AtomicU32 = AtomicU32::new(0);

/// Call it before forking: waits until no other thread is inside the core, or its timer.
pub fn before() {
    fork::close_gate();
    let began = Instant::now();
    while fork::others_inside() {
        if began.elapsed() > PATIENCE {
            TIMEOUTS.fetch_add(1, Ordering::Relaxed);
            break;
        }
        std::thread::yield_now();
    }
    let guards = fork::registered().filter_map(ForkAware::hold).collect();
    HELD.with(|held| held.replace(guards));
}

/// Number of forks of this process that timed out waiting for a thread to leave the core; zero
/// where all goes well.
pub fn fork_timeouts() -> u32 {
    TIMEOUTS.load(Ordering::Relaxed)
}

/// Call it after the fork in the parent, or if there was none after all.
pub fn after_in_parent() {
    fork::open_gate();
    HELD.with(RefCell::take);
}

/// Call it after the fork in the child.
pub fn after_in_child() {
    HELD.with(RefCell::take);
    fork::begin_child();
    #[cfg(not(loom))]
    foreign::begin_child();
    scope::keep_ledger_in_child();
}

/// Call it in the child after [`after_in_child`], where threads may be started; once is enough.
pub fn restart_in_child() {
    if RESTARTED.swap(fork::generation(), Ordering::Relaxed) == fork::generation() {
        return;
    }
    fork::registered().for_each(ForkAware::restart_in_child);
    scope::forget_forced_blocks();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    /// One at a time: there is one gate.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn i37_a_fork_waits_for_threads_inside_and_delays_threads_that_enter() {
        let _alone = ALONE.lock();
        let (entered, is_inside) = channel();
        let left = Arc::new(AtomicBool::new(false));
        let forked = Arc::new(AtomicBool::new(false));
        let other = thread::spawn({
            let (left, forked) = (left.clone(), forked.clone());
            move || {
                let guard = fork::inside();
                entered.send(()).expect("the test waits");
                while !fork::gate_is_closed() {
                    thread::yield_now();
                }
                // Time enough for a fork that does not wait.
                let began = Instant::now();
                while !forked.load(Ordering::Acquire) && began.elapsed() < PATIENCE / 20 {
                    thread::yield_now();
                }
                left.store(true, Ordering::Release);
                drop(guard);
                let _again = fork::inside(); // held up until the fork is over
                forked.load(Ordering::Acquire)
            }
        });
        is_inside.recv().expect("the other thread runs");
        before();
        assert!(left.load(Ordering::Acquire), "it did not wait");
        forked.store(true, Ordering::Release);
        after_in_parent();
        assert!(other.join().expect("no panic"), "it did not hold up");
    }

    #[test]
    fn a_fork_does_not_wait_for_threads_that_sleep_or_call_the_host() {
        let _alone = ALONE.lock();
        let (entered, is_outside) = channel();
        let (end, ended) = channel::<()>();
        let other = thread::spawn(move || {
            let _inside = fork::inside();
            fork::outside(|| {
                entered.send(()).expect("the test waits");
                ended.recv().expect("the test ends it");
            });
        });
        is_outside.recv().expect("the other thread runs");
        let began = Instant::now();
        before();
        after_in_parent();
        assert!(began.elapsed() < PATIENCE, "it waited");
        end.send(()).expect("the other thread waits");
        other.join().expect("no panic");
    }
}
