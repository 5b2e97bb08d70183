//! Sleeping on systems other than Linux: `parking_lot`'s queue of parked threads, keyed by the word's
//! address.
//!
//! The comparison of the word happens under the queue's lock, as a futex does it under the kernel's. A
//! signal does not end the sleep, so the host has to ask for slices, see `host`.
#![allow(unsafe_code)] // a library that parks by address

use super::{AtomicU32, Time};
use crate::atomics::Ordering;
use parking_lot_core::{DEFAULT_PARK_TOKEN, DEFAULT_UNPARK_TOKEN};

/// Sleep while the word is `expected`, until `until`. False: a signal is not noticed here.
pub(in crate::park) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
    let deadline = (!until.is_never()).then(|| std::time::Instant::now() + (until - Time::now()));
    // SAFETY: the key is the address of a word that is used for nothing else, and the
    // closures neither panic nor call back into parking_lot.
    unsafe {
        parking_lot_core::park(
            word.as_ptr() as usize,
            || word.load(Ordering::Acquire) == expected,
            || {},
            |_, _| {},
            DEFAULT_PARK_TOKEN,
            deadline,
        );
    }
    false
}

/// Wake the thread that sleeps on the word, if it does.
pub(in crate::park) fn wake(word: &AtomicU32) {
    // SAFETY: as in `wait`.
    unsafe { parking_lot_core::unpark_one(word.as_ptr() as usize, |_| DEFAULT_UNPARK_TOKEN) };
}
