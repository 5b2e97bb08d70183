//! The one clock: monotonic nanoseconds, on Linux the same as Python's `time.monotonic()`.
//!
//! All deadlines of the core are absolute instants of it, so that a wait which is woken in between does not
//! have to count the rest, and so that they can be compared across threads. It does not run while the
//! machine is suspended, and is not comparable between machines; times that must outlive a process are
//! of another clock (see `work`).
//!
//! A thread's clock is the first of these that there is: a frozen one (unit tests), a clock source
//! (`source`: virtual time), the system's. Which one a thread has changes only at the begin and the end of
//! a simulation, on that thread.

use std::ops::{Add, Sub};
use std::time::Duration;

/// An instant of the monotonic clock, in nanoseconds; [`Time::NEVER`] is later than all others.
///
/// Eight bytes, so that a token can hold one in an atomic. Arithmetic saturates at `NEVER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// No deadline. A wait until it ends for another reason.
    pub const NEVER: Time = Time(u64::MAX);

    /// The current time, by the calling thread's clock.
    pub fn now() -> Time {
        #[cfg(all(test, not(loom)))]
        if let Some(now) = testing::now() {
            return now;
        }
        if let Some(now) = source::now() {
            return now;
        }
        Time(monotonic_nanos())
    }

    /// `delay` from now; [`Time::NEVER`] if that is beyond the clock's range.
    pub fn after(delay: Duration) -> Time {
        Time::now() + delay
    }

    /// The instant with this many nanoseconds on the clock.
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// Nanoseconds on the clock; `u64::MAX` for [`Time::NEVER`].
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// True for [`Time::NEVER`].
    pub const fn is_never(self) -> bool {
        self.0 == u64::MAX
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    /// The instant `delay` later; [`Time::NEVER`] if that is beyond the clock's range, or from there.
    fn add(self, delay: Duration) -> Time {
        Time(
            self.0
                .saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Time {
    type Output = Duration;

    /// How long after `earlier` this is; zero if it is not after, [`Duration::MAX`] for
    /// [`Time::NEVER`].
    fn sub(self, earlier: Time) -> Duration {
        if self.is_never() {
            Duration::MAX
        } else {
            Duration::from_nanos(self.0.saturating_sub(earlier.0))
        }
    }
}

/// `CLOCK_MONOTONIC`; a futex's absolute timeout is compared with it as well.
#[cfg(target_os = "linux")]
#[allow(clippy::cast_sign_loss)] // neither field is ever negative
fn monotonic_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The time since the first call, by the standard library's monotonic clock.
#[cfg(not(target_os = "linux"))]
fn monotonic_nanos() -> u64 {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Clocks other than the system's, each for the threads that go by it: the seam at which virtual
/// time enters. At most one such clock exists at a time.
#[cfg(not(loom))]
pub(crate) mod source {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Time;

    /// A clock of its own.
    pub(crate) trait Source: Send + Sync {
        /// The time that the threads which go by it see.
        fn now(&self) -> Time;
    }

    /// A source exists. While it does not, [`Time::now`] costs this one load beside the system's
    /// clock. Relaxed: a thread that goes by a source has set its own `SOURCE` before.
    static EXISTS: AtomicBool = AtomicBool::new(false);

    thread_local! {
        /// The source of the calling thread, which alone writes it.
        static SOURCE: RefCell<Option<Arc<dyn Source>>> = const { RefCell::new(None) };
    }

    /// Announces that threads may be given a source. False: one exists already. To be called before the
    /// first [`set`], which would have no effect without it.
    pub(crate) fn announce() -> bool {
        !EXISTS.swap(true, Ordering::AcqRel)
    }

    /// The announced source is gone; no thread goes by it any more.
    pub(crate) fn withdraw() {
        EXISTS.store(false, Ordering::Release);
    }

    /// May any thread of the process go by a source?
    #[inline]
    pub(crate) fn exists() -> bool {
        EXISTS.load(Ordering::Relaxed)
    }

    /// From now on the calling thread goes by this source, or by the system's clock.
    pub(crate) fn set(source: Option<Arc<dyn Source>>) {
        SOURCE.with(|cell| cell.replace(source));
    }

    /// Does the calling thread go by a source?
    pub(crate) fn is_set() -> bool {
        now().is_some()
    }

    /// The time by the calling thread's source, if it has one.
    #[inline]
    pub(super) fn now() -> Option<Time> {
        if exists() { look() } else { None }
    }

    /// The rest of [`now`] while a source exists: most threads of the process have none. Also without
    /// one at the thread's own end, when its thread-locals are gone.
    #[cold]
    fn look() -> Option<Time> {
        let now = |cell: &RefCell<Option<Arc<dyn Source>>>| cell.borrow().as_ref().map(|s| s.now());
        SOURCE.try_with(now).ok().flatten()
    }
}

/// A model has no clock, and so no other.
#[cfg(loom)]
pub(crate) mod source {
    pub(crate) fn is_set() -> bool {
        false
    }

    pub(super) fn now() -> Option<super::Time> {
        None
    }
}

/// A thread's own time, for the unit tests: it stands still and moves when told to.
#[cfg(all(test, not(loom)))]
pub(crate) mod testing {
    use super::{Duration, Time};
    use std::cell::Cell;

    thread_local! {
        /// The time at which the calling thread's clock stands; `None` while it runs. Written through
        /// [`Frozen`].
        static NOW: Cell<Option<Time>> = const { Cell::new(None) };
    }

    /// The time on the calling thread's clock, if that stands still.
    pub(super) fn now() -> Option<Time> {
        NOW.get()
    }

    /// Stop the calling thread's clock until the guard is dropped. It shows a time in the far future, so
    /// that deadlines set by it never pass for the timer, which goes by the real clock.
    pub(crate) fn freeze() -> Frozen {
        NOW.set(Some(Time::now() + Duration::from_secs(1_000_000)));
        Frozen
    }

    /// The calling thread's clock stands still.
    pub(crate) struct Frozen;

    impl Frozen {
        /// Let so much time pass on the clock.
        #[allow(clippy::unused_self)] // it proves that the clock stands still
        pub(crate) fn advance(&self, by: Duration) {
            NOW.set(Some(Time::now() + by));
        }
    }

    impl Drop for Frozen {
        fn drop(&mut self) {
            NOW.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_never() {
        assert_eq!(Time::NEVER + Duration::from_secs(1), Time::NEVER);
        assert_eq!(Time::now() + Duration::MAX, Time::NEVER);
        assert_eq!(Time::from_nanos(1) - Time::from_nanos(2), Duration::ZERO);
        assert_eq!(Time::NEVER - Time::now(), Duration::MAX);
    }

    #[test]
    fn the_clock_does_not_go_back() {
        let first = Time::now();
        assert!(Time::now() >= first);
        assert!(!first.is_never());
    }
}
