//! By what clock the file's times go.
//!
//! What is due is told in milliseconds since the machine started, sleep included, beside the name
//! of that start: so a wall clock that is set does no harm. The wall's time stands beside it, for
//! people, and for the next start: what was to be waited for then is what the wall says is left,
//! but never more than the whole pause.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Time;

const NANOS: i64 = 1_000_000;

/// An instant, on all clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    time: Time,
    /// How far the machine's clock is ahead of [`Time`]'s, for that one may stand in sleep.
    ahead: i64,
    /// Milliseconds since 1970.
    pub(super) wall: i64,
}

/// A time to come, as the file has it: on the machine's clock, on the wall, and how long that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: i64,
    pub(super) wall: i64,
    pub(super) pause: i64,
}

impl Now {
    fn nanos(self) -> i64 {
        i64::try_from(self.time.as_nanos())
            .unwrap_or(i64::MAX)
            .saturating_add(self.ahead)
    }

    /// Milliseconds since the machine's start.
    pub(super) fn machine(self) -> i64 {
        self.nanos().div_euclid(NANOS)
    }

    /// So long from now, or a little later.
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

    /// When the machine's clock shows this.
    pub(super) fn time_of(self, machine: i64) -> Time {
        let nanos = machine.saturating_mul(NANOS).saturating_sub(self.ahead);
        if machine == i64::MAX {
            Time::NEVER
        } else {
            Time::from_nanos(u64::try_from(nanos).unwrap_or(0))
        }
    }
}

/// The clocks of the file.
pub(super) trait Clock: Send + Sync {
    fn now(&self) -> Now;

    /// This start of the machine.
    fn start(&self) -> Arc<str>;
}

/// The machine's own.
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

    // Nothing tells the starts apart: an owner is gone if its process is.
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
    // They differ by the time asleep; what passes between the two calls is less than is counted.
    let ahead = read(ClockId::Boottime) - read(ClockId::Monotonic);
    ahead.div_euclid(NANOS).max(0) * NANOS
}

/// [`Time`] counts from the start of the process there, the file from 1970.
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

/// Clocks that stand still, for the tests.
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
