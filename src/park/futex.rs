//! Linux: a futex with an absolute deadline, which returns on signals (a condition variable of a
//! library would go back to sleep).

use std::num::NonZeroU32;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::{AtomicU32, Time};

/// What passes, in nanoseconds, between the wake-up by the clock and the code that waited. The sleep
/// ends so much earlier; should the thread run before its time, which the kernel's own slack makes
/// rare, the caller looks at the clock and sleeps again.
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

pub(in crate::park) fn wake(word: &AtomicU32) {
    // The address is valid: it cannot fail.
    let _ = futex::wake(word, Flags::PRIVATE, 1);
}
