//! The slot for a node's own cause: empty, or filled for good by the first thread that offers one.
//!
//! Guarantees: a cause that is read stays where it is as long as its slot. Protocol: the slot is filled by a
//! compare-and-set from null, with release; a reader acquires, so it sees the cause as it was offered.
#![allow(unsafe_code)] // a box behind an atomic pointer

use std::ptr;

use crate::atomics::{AtomicPtr, Ordering};
use crate::cause::Cause;

pub(super) struct CauseSlot(
    /// A box, or null. Freed with the slot.
    AtomicPtr<Cause>,
);

impl CauseSlot {
    pub(super) fn empty() -> CauseSlot {
        CauseSlot(AtomicPtr::new(ptr::null_mut()))
    }

    /// Fill the slot, if it is empty. True: with this cause.
    pub(super) fn offer(&self, cause: Cause) -> bool {
        let offered = Box::into_raw(Box::new(cause));
        let slot = self.0.compare_exchange(
            ptr::null_mut(),
            offered,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if slot.is_err() {
            drop(CauseSlot(AtomicPtr::new(offered))); // frees it
        }
        slot.is_ok()
    }

    pub(super) fn get(&self) -> Option<&Cause> {
        // SAFETY: null, or a box that is neither changed nor freed before the slot.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}

impl Drop for CauseSlot {
    fn drop(&mut self) {
        // Relaxed: no other thread has the slot any more, and its uses happened before.
        let cause = self.0.load(Ordering::Relaxed);
        if !cause.is_null() {
            // SAFETY: of `Box::into_raw`, and in this slot alone.
            drop(unsafe { Box::from_raw(cause) });
        }
    }
}
