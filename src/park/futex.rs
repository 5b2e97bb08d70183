//! Linux: a futex with an absolute deadline, which returns on signals (a condition variable of a
//! library would go back to sleep).
#![allow(unsafe_code)] // two system calls on an address that a reference keeps valid

use super::{AtomicU32, Time};

/// What passes, in nanoseconds, between the wake-up by the clock and the code that waited. The sleep
/// ends so much earlier; should the thread run before its time, which the kernel's own slack makes
/// rare, the caller looks at the clock and sleeps again.
const AHEAD: u64 = 1_000;

/// Sleep while the word is `expected`, until `until`. True: interrupted by a signal.
pub(in crate::park) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
    let nanos = until.as_nanos().saturating_sub(AHEAD);
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(nanos / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(u32::try_from(nanos % 1_000_000_000).unwrap_or(0)),
    };
    let timeout = if until.is_never() {
        std::ptr::null()
    } else {
        &raw const timeout
    };
    // SAFETY: `word` outlives the call, `timeout` is null or valid during it. BITSET with all
    // bits set is a plain wait whose timeout is absolute on CLOCK_MONOTONIC.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG,
            expected,
            timeout,
            std::ptr::null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        )
    };
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
}

pub(in crate::park) fn wake(word: &AtomicU32) {
    // SAFETY: `word` is valid; waking needs no more than its address.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        )
    };
}
