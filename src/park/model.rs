//! Sleeping in a model: the futex is one mutex with the comparison under it, so that loom explores
//! every order of settling, comparing and sleeping.
//!
//! Time does not pass in a model. A thread of the model takes the part of the clock by settling the
//! waiter as `TimedOut`.

use super::{AtomicU32, Time};
use crate::atomics::Ordering;

loom::lazy_static! {
    /// The kernel's lock, and the condition on which all sleeping threads of the model wait.
    static ref KERNEL: (loom::sync::Mutex<()>, loom::sync::Condvar) =
        (loom::sync::Mutex::new(()), loom::sync::Condvar::new());
}

/// Sleep while the word is `expected`. Wakes up with every other thread of the model, which tests that
/// a spurious wake-up is harmless.
pub(in crate::park) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
    assert!(
        until.is_never(),
        "a model has no clock: settle(TimedOut) from a thread of its own"
    );
    let held = KERNEL.0.lock().expect("a model's thread panicked");
    if word.load(Ordering::Acquire) == expected {
        drop(KERNEL.1.wait(held));
    }
    false
}

/// Wake all threads that sleep. The lock is taken so that a thread between comparison and sleep is
/// waited for.
pub(in crate::park) fn wake(_word: &AtomicU32) {
    let _held = KERNEL.0.lock().expect("a model's thread panicked");
    KERNEL.1.notify_all();
}
