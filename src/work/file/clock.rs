//! The clock of the file's times.
//!
//! A time in the file must mean the same to every process, and outlive a reboot. So it is kept
//! three times ([`Due`]): in milliseconds since the machine's boot, time asleep included, which is
//! what counts and which no setting of the wall clock moves (I38); as wall time, for people, and
//! for the next boot; and as the whole pause. After a reboot a pause is what the wall clock says
//! is left of it, but never more than the whole (`Tables::rebase_times`). The table `meta` has the
//! boot from which the file's times are counted.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Time;

/// In a millisecond.
const NANOS: i64 = 1_000_000;

/// An instant, on all clocks. Read once for an operation, so that all it does has one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    time: Time,
    /// By how many nanoseconds the machine's clock is ahead of [`Time`]'s, which stops while the
    /// machine sleeps. A multiple of [`NANOS`].
    ahead: i64,
    /// The wall clock, in milliseconds since 1970.
    pub(super) wall: i64,
}

/// A time to come, as the file keeps it; all in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// On the machine's clock.
    pub(super) at: i64,
    /// On the wall clock.
    pub(super) wall: i64,
    /// How long it was until then when it was written.
    pub(super) pause: i64,
}

impl Now {
    fn nanos(self) -> i64 {
        i64::try_from(self.time.as_nanos())
            .unwrap_or(i64::MAX)
            .saturating_add(self.ahead)
    }

    /// The machine's clock: milliseconds since the boot.
    pub(super) fn machine(self) -> i64 {
        self.nanos().div_euclid(NANOS)
    }

    /// This long from now, rounded up.
    pub(super) fn after(self, pause: Duration) -> Due {
        let nanos = i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX);
        let rounded = |nanos: i64| nanos / NANOS + i64::from(nanos % NANOS > 0);
        let pause = rounded(nanos);
        Due {
            at: rounded(self.nanos().saturating_add(nanos)),
            wall: self.wall.saturating_add(pause),
            pause,
        }
    }

    /// The [`Time`] at which the machine's clock shows this.
    pub(super) fn time_of(self, machine: i64) -> Time {
        let nanos = machine.saturating_mul(NANOS).saturating_sub(self.ahead);
        if machine == i64::MAX {
            Time::NEVER
        } else {
            Time::from_nanos(u64::try_from(nanos).unwrap_or(0))
        }
    }
}

/// Where a queue reads its clocks. Tests have one that stands still.
pub(super) trait Clock: Send + Sync {
    fn now(&self) -> Now;

    /// The id of this boot of the machine.
    fn start(&self) -> Arc<str>;
}

/// The clocks of the machine.
pub(super) struct Machine;

impl Clock for Machine {
    fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        Now {
            ahead: ahead(),
            time: Time::now(),
            wall: i64::try_from(wall).unwrap_or(i64::MAX),
        }
    }

    #[cfg(target_os = "linux")]
    fn start(&self) -> Arc<str> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.unwrap_or_default().trim().into()
    }

    // Nothing tells the boots apart: an owner is dead if its process is.
    #[cfg(not(target_os = "linux"))]
    fn start(&self) -> Arc<str> {
        "".into()
    }
}

#[cfg(target_os = "linux")]
fn ahead() -> i64 {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec * 1_000_000_000 + now.tv_nsec
    };
    // They differ by the time asleep. The time between the two calls is below a millisecond, which
    // the rounding drops.
    let ahead = read(ClockId::Boottime) - read(ClockId::Monotonic);
    ahead.div_euclid(NANOS).max(0) * NANOS
}

/// Elsewhere [`Time`] counts from the start of the process, and the file from 1970.
#[cfg(not(target_os = "linux"))]
fn ahead() -> i64 {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        });
    static AHEAD: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *AHEAD.get_or_init(|| wall - i64::try_from(Time::now().as_nanos()).unwrap_or(0))
}

/// Clocks that stand still, for tests.
#[cfg(test)]
pub(super) mod testing {
    use super::{Arc, Clock, NANOS, Now, Time};
    use std::sync::Mutex;

    pub(crate) struct Set(pub(crate) Mutex<(u64, i64, &'static str)>);

    impl Set {
        /// Milliseconds since the start, milliseconds on the wall, the start's name.
        pub(crate) fn to(machine: u64, wall: i64, start: &'static str) -> Arc<Set> {
            Arc::new(Set(Mutex::new((machine, wall, start))))
        }

        pub(crate) fn set(&self, machine: u64, wall: i64) {
            let mut clocks = self.0.lock().unwrap();
            (clocks.0, clocks.1) = (machine, wall);
        }
    }

    impl Clock for Set {
        fn now(&self) -> Now {
            let (machine, wall, _) = *self.0.lock().unwrap();
            Now {
                time: Time::from_nanos(machine * NANOS as u64),
                ahead: 0,
                wall,
            }
        }

        fn start(&self) -> Arc<str> {
            self.0.lock().unwrap().2.into()
        }
    }
}
