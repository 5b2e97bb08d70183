//! What a fork leaves of threads: only the one that forked.
//!
//! A runtime that forks calls [`before`], and then [`after_in_parent`] or [`after_in_child`] on the
//! same thread. In the child the timer runs again, and what belonged to threads that are gone is
//! told apart by its [`generation`]: a lock that one of them held is lost, not held for ever.

use std::any::Any;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{deadline, scope};

static GENERATION: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static HELD: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// How many forks lie between this process and the first; things made before one differ from it.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Call it before forking: waits until no other thread is inside the timer.
pub fn before() {
    let guard = deadline::hold_for_fork().map(|guard| Box::new(guard) as Box<dyn Any>);
    HELD.with(|held| *held.borrow_mut() = guard);
}

/// Call it after the fork in the parent, or if there was none after all.
pub fn after_in_parent() {
    HELD.with(|held| held.borrow_mut().take());
}

/// Call it after the fork in the child.
pub fn after_in_child() {
    after_in_parent();
    GENERATION.fetch_add(1, Ordering::Relaxed);
    scope::current_ledger().survive_fork();
    deadline::restart_in_child();
}
