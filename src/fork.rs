//! What a fork leaves of threads: only the one that forked.
//!
//! A runtime that forks calls [`before`], and then [`after_in_parent`] or [`after_in_child`] on the
//! same thread, in the child before any other thread is started; and, as soon as it can have
//! threads there, [`restart_in_child`]. In the child the timer runs again, and what belonged to
//! threads that are gone is told apart by its [`generation`]: a lock that one of them held is lost,
//! not held for ever.
//!
//! The core's own locks are held for moments, but a fork may fall into one, and then nobody would
//! ever release it in the child (I37). So a thread that the forking one cannot keep from running is
//! *inside* while it uses the core, and a fork waits until none is. It is *outside* again while
//! it sleeps, and while it calls the runtime, which may be what the forking thread has stopped.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::token::{callback_thread, timer};
use crate::{enforcer, scope};

static GENERATION: AtomicU32 = AtomicU32::new(0);
/// The one that was restarted last.
static RESTARTED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static HELD: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// How many forks lie between this process and the first; things made before one differ from it.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// How many threads are inside; [`FORKING`] is added while a fork is near.
static INSIDE: AtomicU32 = AtomicU32::new(0);
const FORKING: u32 = 1 << 31;
/// Whoever is inside leaves at once. If one does not, a fork that may hang later is better than one
/// that hangs now.
const PATIENCE: Duration = Duration::from_secs(1);
static HURRIED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// How often the calling thread is inside.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread uses the core, until this is dropped. Waits while another one forks.
#[must_use]
pub(crate) fn inside() -> Inside {
    if DEPTH.get() == 0 {
        come_in();
    }
    DEPTH.set(DEPTH.get() + 1);
    Inside(())
}

/// See [`inside`].
pub(crate) struct Inside(());

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if DEPTH.get() == 0 {
            INSIDE.fetch_sub(1, Ordering::Release);
        }
    }
}

fn come_in() {
    while INSIDE.fetch_add(1, Ordering::Acquire) & FORKING != 0 {
        INSIDE.fetch_sub(1, Ordering::Release);
        while INSIDE.load(Ordering::Relaxed) & FORKING != 0 {
            thread::yield_now();
        }
    }
}

/// Do something that is not the core's: sleep, or call the runtime.
pub(crate) fn outside<R>(act: impl FnOnce() -> R) -> R {
    struct Back(u32);
    impl Drop for Back {
        fn drop(&mut self) {
            come_in();
            DEPTH.set(self.0);
        }
    }
    let depth = DEPTH.try_with(Cell::take).unwrap_or(0);
    let _back = (depth > 0).then(|| {
        INSIDE.fetch_sub(1, Ordering::Release);
        Back(depth)
    });
    act()
}

/// Call it before forking: waits until no other thread is inside the core, or its timer.
pub fn before() {
    INSIDE.fetch_or(FORKING, Ordering::Acquire);
    let ours = u32::from(DEPTH.get() > 0);
    let began = Instant::now();
    while INSIDE.load(Ordering::Acquire) & !FORKING > ours {
        if began.elapsed() > PATIENCE {
            HURRIED.fetch_add(1, Ordering::Relaxed);
            break;
        }
        thread::yield_now();
    }
    let guards = (
        timer::hold_for_fork(),
        callback_thread::hold_for_fork(),
        enforcer::hold_for_fork(),
    );
    HELD.with(|held| *held.borrow_mut() = Some(Box::new(guards)));
}

/// How many forks of this process have lost patience with a thread that did not leave: none, where
/// all goes well.
pub fn hurried() -> u32 {
    HURRIED.load(Ordering::Relaxed)
}

/// Call it after the fork in the parent, or if there was none after all.
pub fn after_in_parent() {
    INSIDE.fetch_and(!FORKING, Ordering::Release);
    HELD.with(|held| held.borrow_mut().take());
}

/// Call it after the fork in the child.
pub fn after_in_child() {
    after_in_parent();
    // A thread on its way in or out has left its mark; it is not here.
    INSIDE.store(u32::from(DEPTH.get() > 0), Ordering::Release);
    GENERATION.fetch_add(1, Ordering::Relaxed);
    scope::current_ledger().survive_fork();
}

/// Call it in the child after [`after_in_child`], where threads may be started; once is enough.
pub fn restart_in_child() {
    if RESTARTED.swap(generation(), Ordering::Relaxed) == generation() {
        return;
    }
    timer::restart_in_child();
    callback_thread::restart_in_child();
    enforcer::forget_in_child();
    scope::forget_force();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;

    use super::*;

    /// One at a time: there is one gate.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn i37_a_fork_waits_for_who_is_inside_and_holds_up_who_comes() {
        let _alone = ALONE.lock();
        let (entered, is_inside) = channel();
        let left = Arc::new(AtomicBool::new(false));
        let forked = Arc::new(AtomicBool::new(false));
        let other = thread::spawn({
            let (left, forked) = (left.clone(), forked.clone());
            move || {
                let guard = inside();
                entered.send(()).expect("the test waits");
                while INSIDE.load(Ordering::Acquire) & FORKING == 0 {
                    thread::yield_now();
                }
                // Time enough for a fork that does not wait.
                let began = Instant::now();
                while !forked.load(Ordering::Acquire) && began.elapsed() < PATIENCE / 20 {
                    thread::yield_now();
                }
                left.store(true, Ordering::Release);
                drop(guard);
                let _again = inside(); // held up until the fork is over
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
    fn a_fork_does_not_wait_for_who_sleeps_or_calls_the_host() {
        let _alone = ALONE.lock();
        let (entered, is_outside) = channel();
        let (end, ended) = channel::<()>();
        let other = thread::spawn(move || {
            let _inside = inside();
            outside(|| {
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
