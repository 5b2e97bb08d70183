//! What keeps threads apart that are all attached to the interpreter.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | with a global lock, an object has two words; without one it has more | 3.10-3.15 | `test_many_threads` of CPython's tests of queue |
//! | with a global lock, one thread at a time is attached | 3.10-3.15 | the same |
#![allow(unsafe_code)] // a lock is what others rely on

use parking_lot::RawMutex;
use parking_lot::lock_api;
use pyo3::ffi;

/// A mutex for what only attached threads reach, and what none of them has locked while it lets the
/// interpreter go or touches an object, which might; but references may be counted. With a global
/// lock it does nothing.
pub(in crate::python) struct Attached {
    mutex: RawMutex,
}

/// In doubt, as in an interpreter that traces its objects, there is a mutex too many.
pub(in crate::python) const ONE_AT_A_TIME: bool =
    size_of::<ffi::PyObject>() == 2 * size_of::<usize>();

// SAFETY: either the mutex keeps threads apart, or the interpreter does: whoever is here is
// attached, and stays so until it has unlocked, as the rules in `python` have it.
unsafe impl lock_api::RawMutex for Attached {
    #[allow(clippy::declare_interior_mutable_const)] // the trait's
    const INIT: Attached = Attached {
        mutex: RawMutex::INIT,
    };
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock(&self) {
        if ONE_AT_A_TIME {
            // SAFETY: it may be called at any time.
            debug_assert_eq!(unsafe { ffi::PyGILState_Check() }, 1, "not attached");
        } else {
            self.mutex.lock();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        ONE_AT_A_TIME || self.mutex.try_lock()
    }

    #[inline]
    unsafe fn unlock(&self) {
        if !ONE_AT_A_TIME {
            // SAFETY: it is locked, as the caller says.
            unsafe { self.mutex.unlock() };
        }
    }
}
