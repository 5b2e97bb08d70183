//! In a model: the futex is one mutex with the comparison under it. Time does not pass; what the
//! clock would do, a thread of the model does by settling as `TimedOut`.

use super::{AtomicU32, Time};
use crate::atomics::Ordering;

loom::lazy_static! {
    static ref KERNEL: (loom::sync::Mutex<()>, loom::sync::Condvar) =
        (loom::sync::Mutex::new(()), loom::sync::Condvar::new());
}

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

pub(in crate::park) fn wake(_word: &AtomicU32) {
    let _held = KERNEL.0.lock().expect("a model's thread panicked");
    KERNEL.1.notify_all();
}
