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

mod latch;
#[cfg(not(loom))]
pub(crate) mod scheduler;
#[cfg_attr(loom, path = "park/model.rs")]
#[cfg_attr(all(target_os = "linux", not(loom)), path = "park/futex.rs")]
#[cfg_attr(all(not(target_os = "linux"), not(loom)), path = "park/queue.rs")]
mod sys;
#[cfg(all(unix, not(loom)))]
mod waker;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::atomics::{Arc, AtomicU32, Ordering, thread_local};
use crate::clock::{Time, source};
use crate::fork;
use crate::host;
pub use latch::{Interrupted, Latch};
#[cfg(not(loom))]
pub(crate) use scheduler::Scheduler;
#[cfg(all(unix, not(loom)))]
pub use waker::Readiness;
#[cfg(all(unix, not(loom)))]
pub(crate) use waker::{any_ready, is_ready, wait_for_any};

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum WaitOutcome {
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
/// Above it: which of the things that were waited for was granted.
const WHICH: u32 = 16;

/// One wait of one thread.
#[derive(Debug)]
pub(crate) struct Waiter {
    word: AtomicU32,
    /// The process in which its thread waits.
    generation: u32,
    /// Decides when its thread runs, if the kernel does not. Fixed at birth.
    #[cfg(not(loom))]
    scheduler: Option<std::sync::Arc<dyn Scheduler>>,
    /// It polls these beside its word.
    #[cfg(all(unix, not(loom)))]
    polls: Option<PollSet>,
}

#[cfg(all(unix, not(loom)))]
#[derive(Debug)]
struct PollSet {
    waker: std::sync::Arc<waker::Waker>,
    interests: Interests,
    /// For which of the things waited for each interest stands.
    which: Vec<usize>,
}

/// Descriptors, and what they are waited for.
#[cfg(all(unix, not(loom)))]
pub(crate) type Interests = Vec<(std::os::fd::RawFd, Readiness)>;
#[cfg(all(not(unix), not(loom)))]
pub(crate) type Interests = Vec<()>;

impl Waiter {
    pub(crate) fn new() -> Arc<Waiter> {
        Arc::new(Waiter {
            #[cfg(not(loom))]
            scheduler: scheduler::current(),
            ..Waiter::bare()
        })
    }

    /// A waiter that goes by the real clock in any case.
    #[cfg(not(loom))]
    pub(crate) fn real() -> Arc<Waiter> {
        Arc::new(Waiter::bare())
    }

    fn bare() -> Waiter {
        Waiter {
            word: AtomicU32::new(WAITING),
            generation: fork::generation(),
            #[cfg(not(loom))]
            scheduler: None,
            #[cfg(all(unix, not(loom)))]
            polls: None,
        }
    }

    /// A waiter that also notices when descriptors are ready, each for one of the things waited
    /// for. An error: the process has no descriptor left for its own use.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn polling(
        interests: &[(usize, std::os::fd::RawFd, Readiness)],
    ) -> std::io::Result<Arc<Waiter>> {
        let waker = waker::Waker::get()?;
        Ok(Arc::new(Waiter {
            scheduler: scheduler::current(),
            polls: Some(PollSet {
                waker,
                which: interests.iter().map(|(which, _, _)| *which).collect(),
                interests: interests.iter().map(|(_, fd, what)| (*fd, *what)).collect(),
            }),
            ..Waiter::bare()
        }))
    }

    /// Try to decide the wait. True: it is decided so, and the caller must [`Waiter::wake`].
    pub(crate) fn settle(&self, outcome: WaitOutcome) -> bool {
        self.settle_to(outcome as u32)
    }

    /// [`Waiter::settle`], then [`Waiter::wake`] if this call decided the wait. For callers that
    /// hold no lock; where the waiter is settled under one, the two steps stay apart.
    pub(crate) fn settle_and_wake(&self, outcome: WaitOutcome) {
        if self.settle(outcome) {
            self.wake();
        }
    }

    #[allow(clippy::cast_possible_truncation)] // nobody waits for so many things
    fn grant(&self, which: usize) -> bool {
        self.settle_to(WaitOutcome::Granted as u32 | (which as u32) << WHICH)
    }

    fn settle_to(&self, outcome: u32) -> bool {
        // Release: what the settler did before (the grant) is seen by the waiter.
        let mut seen = self.word.load(Ordering::Acquire);
        while seen & !ASLEEP == WAITING {
            match self.word.compare_exchange(
                seen,
                seen | outcome,
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
        if self.word.load(Ordering::Relaxed) & ASLEEP == 0 {
            return;
        }
        #[cfg(not(loom))]
        if let Some(scheduler) = &self.scheduler {
            return scheduler.wake(self);
        }
        #[cfg(all(unix, not(loom)))]
        if let Some(polls) = &self.polls {
            return polls.waker.wake();
        }
        sys::wake(&self.word);
    }

    /// The outcome, if there is one yet.
    pub(crate) fn outcome(&self) -> Option<WaitOutcome> {
        match self.word.load(Ordering::Acquire) & (ASLEEP - 1) {
            WAITING => None,
            1 => Some(WaitOutcome::Granted),
            2 => Some(WaitOutcome::Cancelled),
            3 => Some(WaitOutcome::Killed),
            4 => Some(WaitOutcome::TimedOut),
            _ => Some(WaitOutcome::Interrupted),
        }
    }

    /// Which of the things waited for was granted, once the outcome is that.
    pub(crate) fn which(&self) -> usize {
        (self.word.load(Ordering::Relaxed) >> WHICH) as usize
    }

    /// Block until the wait is decided or the clock shows `until`; then `None`, and the wait is
    /// still open. Only the host's signals interrupt it.
    pub(crate) fn park(&self, until: Time) -> Option<WaitOutcome> {
        // No signal handler slips in before a sleep that is none.
        let slice = if self.has_scheduler() {
            None
        } else {
            host::slice()
        };
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
            let signalled = fork::outside(|| self.sleep(this_time)) || slice.is_some();
            if self.outcome().is_some() {
                continue;
            }
            self.word.fetch_and(!ASLEEP, Ordering::AcqRel);
            if signalled && host::interrupted() == ControlFlow::Break(()) {
                self.settle(WaitOutcome::Interrupted);
            }
        }
    }

    /// Block until the wait is decided, deaf to the host's signals: for what does not take long.
    #[cfg(all(unix, not(loom)))]
    #[cfg_attr(not(feature = "file"), allow(dead_code))]
    pub(crate) fn wait_uninterruptible(&self) {
        while self.outcome().is_none() {
            if self
                .word
                .compare_exchange(WAITING, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                fork::outside(|| self.sleep(Time::NEVER));
                self.word.fetch_and(!ASLEEP, Ordering::AcqRel);
            }
        }
    }

    /// Sleep once. True: interrupted by a signal.
    fn sleep(&self, until: Time) -> bool {
        #[cfg(not(loom))]
        if let Some(scheduler) = &self.scheduler {
            self.sleep_by(&**scheduler, until);
            return false;
        }
        #[cfg(all(unix, not(loom)))]
        if let Some(polls) = &self.polls {
            return match polls.waker.sleep(&polls.interests, until) {
                waker::Slept::Woken => false,
                waker::Slept::Signalled => true,
                waker::Slept::Ready(index) => {
                    self.grant(polls.which[index]);
                    false
                }
            };
        }
        sys::wait(&self.word, ASLEEP, until)
    }

    #[cfg(loom)]
    #[allow(clippy::unused_self)]
    fn has_scheduler(&self) -> bool {
        false
    }

    #[cfg(not(loom))]
    fn has_scheduler(&self) -> bool {
        self.scheduler.is_some()
    }

    /// Sleep once, for as long as the scheduler says.
    #[cfg(not(loom))]
    fn sleep_by(&self, scheduler: &dyn Scheduler, until: Time) {
        #[cfg(unix)]
        let interests = self.polls.as_ref().map(|polls| polls.interests.clone());
        #[cfg(not(unix))]
        let interests = None;
        if !scheduler.park(self, until, interests.unwrap_or_default()) {
            host::stuck();
            self.settle(WaitOutcome::Interrupted);
        }
        #[cfg(unix)]
        if let Some(polls) = &self.polls {
            let ready = |(fd, what): &(_, _)| waker::is_ready(*fd, *what).unwrap_or(true);
            if let Some(index) = polls.interests.iter().position(ready) {
                self.grant(polls.which[index]);
            }
        }
    }

    /// [`Waiter::park`], and then the wait is decided: `TimedOut` if nothing else was quicker.
    pub(crate) fn finish(&self, until: Time) -> WaitOutcome {
        loop {
            match self.park(until) {
                Some(outcome) => return outcome,
                None => self.settle(WaitOutcome::TimedOut),
            };
        }
    }
}

#[cfg(all(unix, not(loom)))]
impl Drop for PollSet {
    fn drop(&mut self) {
        // A ring that comes late is noticed by the next wait, and taken for nothing.
        waker::Waker::keep(self.waker.clone());
    }
}

/// A place in a line: a waiter, and which of the things that it waits for this is.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    waiter: Arc<Waiter>,
    which: usize,
}

impl Ticket {
    pub(crate) fn new(waiter: &Arc<Waiter>, which: usize) -> Ticket {
        Ticket {
            waiter: waiter.clone(),
            which,
        }
    }

    /// Decide the wait: this is what it gets. True: the caller must [`Ticket::wake`], and may do
    /// so after it has let its locks go. False: the waiter has given up, or its thread was left
    /// behind in a parent process.
    pub(crate) fn grant(&self) -> bool {
        self.waiter.generation == fork::generation() && self.waiter.grant(self.which)
    }

    pub(crate) fn wake(&self) {
        self.waiter.wake();
    }

    pub(crate) fn into_waiter(self) -> Arc<Waiter> {
        self.waiter
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Ticket) -> bool {
        Arc::ptr_eq(&self.waiter, &other.waiter) && self.which == other.which
    }
}

/// Those who wait for one thing, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue(VecDeque<Ticket>);

impl WaitQueue {
    pub(crate) fn push(&mut self, ticket: Ticket) {
        self.0.push_back(ticket);
    }

    pub(crate) fn remove(&mut self, ticket: &Ticket) {
        self.0.retain(|other| other != ticket);
    }

    /// Grant the first who still wants it. The caller must wake it.
    pub(crate) fn grant_one(&mut self) -> Option<Ticket> {
        std::iter::from_fn(|| self.0.pop_front()).find(Ticket::grant)
    }

    /// Grant all. The caller must wake them.
    pub(crate) fn grant_all(&mut self) -> Vec<Ticket> {
        let mut all = std::mem::take(&mut self.0);
        all.retain(Ticket::grant);
        all.into()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

thread_local! {
    /// Whom the calling thread has woken last, for [`yield_to_woken`].
    static WOKEN: Cell<Option<Arc<Waiter>>> = const { Cell::new(None) };
}

/// The calling thread has woken this one; for [`yield_to_woken`].
pub(crate) fn note_woken(waiter: Arc<Waiter>) {
    // At the thread's own end there is no place to keep it, and nobody to make way.
    let _ = WOKEN.try_with(|woken| woken.set(Some(waiter)));
}

/// Let the thread that was woken last leave its wait first, where both next need the same thing:
/// an interpreter's lock, say, which goes round only every few milliseconds. Waits for the
/// system's scheduler and for none of that thread's code, and at most so long.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn yield_to_woken(longest: Duration) {
    if source::is_set() {
        return; // its scheduler lets one thread run at a time
    }
    let Ok(Some(woken)) = WOKEN.try_with(Cell::take) else {
        return;
    };
    let until = Time::after(longest);
    // A waiting thread has a count of its waiter until it leaves the wait.
    while Arc::strong_count(&woken) > 1 && Time::now() < until {
        std::thread::yield_now();
    }
    let until = Time::after(HANDOFF_SPIN);
    while Time::now() < until {
        std::thread::yield_now();
    }
}

/// What a thread takes from its wait to what it needs next, cold caches and all.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
const HANDOFF_SPIN: Duration = Duration::from_micros(3);

#[cfg(all(not(unix), not(loom)))]
pub(crate) fn any_ready(_interests: &Interests) -> bool {
    false
}

#[cfg(all(not(unix), not(loom)))]
pub(crate) fn wait_for_any(_interests: &Interests) {}
