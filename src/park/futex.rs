//! Sleeping on Linux: a futex with an absolute deadline.
//!
//! Not a condition variable of a library, for three reasons: a futex returns on a signal, so the host can
//! run its handlers, where a library would go back to sleep; its timeout is an absolute time of the
//! clock that the core uses, so no time is lost between the computation and the sleep; and it needs no
//! memory but the waiter's word. The kernel compares the word with `expected` under its own lock before
//! it sleeps; guarantee 2 of the parent module relies on that.

use std::num::NonZeroU32;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::{AtomicU32, Time};

/// Nanoseconds between the timer's interrupt and the first instruction of the woken thread. The sleep
/// ends earlier by that time, so that the thread runs on time. If it runs early, which the kernel's own
/// timer slack makes rare, the caller looks at the clock and sleeps again.
const AHEAD: u64 = 1_000;

/// Sleep while the word is `expected`, until `until`. True: interrupted by a signal.
pub(in crate::park) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
    let nanos = until.as_nanos().saturating_sub(AHEAD);
    let timeout = Timespec {
        tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: u32::try_from(nanos % 1_000_000_000).unwrap_or(0).into(),
    };
    let timeout = (!until.is_never()).then_some(&timeout);
    // BITSET with all bits set is a plain wait whose timeout is absolute on CLOCK_MONOTONIC.
    let all = NonZeroU32::MAX;
    futex::wait_bitset(word, Flags::PRIVATE, expected, timeout, all) == Err(Errno::INTR)
}

/// Wake the thread that sleeps on the word, if it does. At most one does: a waiter has one thread.
pub(in crate::park) fn wake(word: &AtomicU32) {
    // The address is valid: it cannot fail.
    let _ = futex::wake(word, Flags::PRIVATE, 1);
}
