//! The one place where a thread blocks.
//!
//! Guarantees:
//! 1. A waiter ends in exactly one outcome: whoever wins the compare-and-set in
//!    [`Waiter::settle`] decides (I11); all others see that they lost and pass on what they had.
//! 2. A waiter settled before it parks does not park, one settled later is woken (I12): the
//!    kernel compares the word under its own lock before it puts the thread to sleep.
//! 3. No interval takes part in a wake-up. The only slices are the host's, for its signals.
//!
//! Settling and waking are two steps, so that a lock held while settling can be dropped before
//! the system call.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::atomics::{Arc, AtomicU32, Ordering, thread_local};
use crate::clock::Time;
use crate::host;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Outcome {
    /// What was waited for was handed over.
    Granted = 1,
    Cancelled = 2,
    Killed = 3,
    TimedOut = 4,
    /// The host wants the wait ended: a signal handler raised.
    Interrupted = 5,
}

const WAITING: u32 = 0;
/// Beside the outcome: the thread sleeps, or is about to. Where it is not set, whoever settles is
/// spared the system call.
const ASLEEP: u32 = 1 << 8;

/// One wait of one thread.
#[derive(Debug)]
pub(crate) struct Waiter {
    word: AtomicU32,
}

impl Waiter {
    pub(crate) fn new() -> Arc<Waiter> {
        Arc::new(Waiter {
            word: AtomicU32::new(WAITING),
        })
    }

    /// Try to decide the wait. True: it is decided so, and the caller must [`Waiter::wake`].
    pub(crate) fn settle(&self, outcome: Outcome) -> bool {
        // Release: what the settler did before (the grant) is seen by the waiter.
        let mut seen = self.word.load(Ordering::Acquire);
        while seen & !ASLEEP == WAITING {
            match self.word.compare_exchange(
                seen,
                seen | outcome as u32,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Wake the thread; call it after a won [`Waiter::settle`], with no lock held.
    pub(crate) fn wake(&self) {
        if self.word.load(Ordering::Relaxed) & ASLEEP != 0 {
            sys::wake(&self.word);
        }
    }

    /// The outcome, if there is one yet.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self.word.load(Ordering::Acquire) & !ASLEEP {
            WAITING => None,
            1 => Some(Outcome::Granted),
            2 => Some(Outcome::Cancelled),
            3 => Some(Outcome::Killed),
            4 => Some(Outcome::TimedOut),
            _ => Some(Outcome::Interrupted),
        }
    }

    /// Block until the wait is decided or the clock shows `until`; then `None`, and the wait is
    /// still open. Only the host's signals interrupt it.
    pub(crate) fn park(&self, until: Time) -> Option<Outcome> {
        let slice = host::slice();
        loop {
            if let Some(outcome) = self.outcome() {
                return Some(outcome);
            }
            let this_time = if until.is_never() && slice.is_none() {
                until
            } else {
                let now = Time::now();
                if now >= until {
                    return None;
                }
                slice.map_or(until, |longest| until.min(now + longest))
            };
            if self
                .word
                .compare_exchange(WAITING, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                continue;
            }
            let signalled = sys::wait(&self.word, ASLEEP, this_time) || slice.is_some();
            if self.outcome().is_some() {
                continue;
            }
            self.word.fetch_and(!ASLEEP, Ordering::AcqRel);
            if signalled && host::interrupted() == ControlFlow::Break(()) {
                self.settle(Outcome::Interrupted);
            }
        }
    }

    /// [`Waiter::park`], and then the wait is decided: `TimedOut` if nothing else was quicker.
    pub(crate) fn finish(&self, until: Time) -> Outcome {
        loop {
            match self.park(until) {
                Some(outcome) => return outcome,
                None => self.settle(Outcome::TimedOut),
            };
        }
    }
}

thread_local! {
    /// Whom the calling thread has woken last, for [`make_way`].
    static WOKEN: Cell<Option<Arc<Waiter>>> = const { Cell::new(None) };
}

/// The calling thread has woken this one; for [`make_way`].
pub(crate) fn woke(waiter: Arc<Waiter>) {
    // At the thread's own end there is no place to keep it, and nobody to make way.
    let _ = WOKEN.try_with(|woken| woken.set(Some(waiter)));
}

/// Let the thread that was woken last leave its wait first, where both next need the same thing:
/// an interpreter's lock, say, which goes round only every few milliseconds. Waits for the
/// system's scheduler and for none of that thread's code, and at most so long.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn make_way(longest: Duration) {
    let Ok(Some(woken)) = WOKEN.try_with(Cell::take) else {
        return;
    };
    let until = Time::after(longest);
    // A waiting thread has a count of its waiter until it leaves the wait.
    while Arc::strong_count(&woken) > 1 && Time::now() < until {
        std::thread::yield_now();
    }
    let until = Time::after(LAST_STEPS);
    while Time::now() < until {
        std::thread::yield_now();
    }
}

/// What a thread takes from its wait to what it needs next, cold caches and all.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
const LAST_STEPS: Duration = Duration::from_micros(3);

/// Linux: a futex with an absolute deadline, which returns on signals (a condition variable of a
/// library would go back to sleep).
#[cfg(all(target_os = "linux", not(loom)))]
#[allow(unsafe_code)] // two system calls on an address that a reference keeps valid
mod sys {
    use super::{AtomicU32, Time};

    /// Sleep while the word is `expected`, until `until`. True: interrupted by a signal.
    pub(super) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
        let nanos = until.as_nanos();
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

    pub(super) fn wake(word: &AtomicU32) {
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
}

/// Elsewhere: parking_lot's queue of parked threads, keyed by the word's address.
#[cfg(all(not(target_os = "linux"), not(loom)))]
#[allow(unsafe_code)]
mod sys {
    use super::{AtomicU32, Time};
    use crate::atomics::Ordering;
    use parking_lot_core::{DEFAULT_PARK_TOKEN, DEFAULT_UNPARK_TOKEN};

    pub(super) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
        let deadline =
            (!until.is_never()).then(|| std::time::Instant::now() + (until - Time::now()));
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

    pub(super) fn wake(word: &AtomicU32) {
        // SAFETY: as in `wait`.
        unsafe { parking_lot_core::unpark_one(word.as_ptr() as usize, |_| DEFAULT_UNPARK_TOKEN) };
    }
}

/// In a model: the futex is one mutex with the comparison under it. Time does not pass; what the
/// clock would do, a thread of the model does by settling as `TimedOut`.
#[cfg(loom)]
mod sys {
    use super::{AtomicU32, Time};
    use crate::atomics::Ordering;

    loom::lazy_static! {
        static ref KERNEL: (loom::sync::Mutex<()>, loom::sync::Condvar) =
            (loom::sync::Mutex::new(()), loom::sync::Condvar::new());
    }

    pub(super) fn wait(word: &AtomicU32, expected: u32, until: Time) -> bool {
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

    pub(super) fn wake(_word: &AtomicU32) {
        let _held = KERNEL.0.lock().expect("a model's thread panicked");
        KERNEL.1.notify_all();
    }
}
