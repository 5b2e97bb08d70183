//! The one place where a thread blocks for a user: in every wait that can be cancelled or timed out.
//!
//! Guarantees:
//! 1. A wait ends in exactly one outcome: the first successful compare-and-set in
//!    [`Waiter::settle`] decides (I11). For every other settler `settle` returns false, and it offers
//!    its resource to the next waiter.
//! 2. A waiter that is settled before it parks does not park; one that is settled later is woken
//!    (I12): the kernel compares the word under its own lock before it puts the thread to sleep.
//! 3. No wake-up depends on an interval. The only slices of a sleep are the host's, for its signals.
//! 4. A thread that a fork left in the parent process is granted nothing in the child.
//!
//! Protocol. A wait is one [`Waiter`], shared by its thread and by every place that may end the wait.
//! They agree by one atomic word:
//!
//! | the word             | is changed by                               | to                         |
//! |----------------------|---------------------------------------------|----------------------------|
//! | `WAITING`            | the waiting thread, before it sleeps: CAS   | `ASLEEP`                   |
//! | `WAITING`            | a settler, in any thread: CAS               | outcome                    |
//! | `ASLEEP`             | a settler, in any thread: CAS               | outcome + `ASLEEP`         |
//! | `ASLEEP`             | the waiting thread, woken without outcome   | `WAITING`                  |
//! | outcome + `ASLEEP`   | the waiting thread, awake                   | outcome, or left as it is  |
//!
//! An outcome never changes. Settling and waking are two steps, so that a lock held while settling can
//! be unlocked before the system call. The settler that sees `ASLEEP` must wake the thread. One that
//! does not see it need not: the waiting thread sets the bit from `WAITING` only, so it cannot set it
//! any more.
//!
//! Which outcome may be settled by which thread:
//!
//! | outcome       | settled by                                                                      |
//! |---------------|---------------------------------------------------------------------------------|
//! | `Granted`     | a thread that releases the resource, under the resource's mutex, through a [`Ticket`]; the waiting thread, if a descriptor is ready |
//! | `Cancelled`   | the canceller of the scope's node, under the node's lock; the waiting thread, at its own deadline |
//! | `Killed`      | the killer of the task, under the task's lock; the waiting thread, if the kill was requested before |
//! | `TimedOut`    | the waiting thread                                                              |
//! | `Interrupted` | the waiting thread, after a signal handler of the host has raised               |
//!
//! Orderings. A settler's CAS is a release and the waiting thread's load of the outcome an acquire, so
//! all that the settler did before (the item in its slot, the new holder, the cause of a cancellation)
//! is visible to the waiting thread once it sees the outcome.
//!
//! A thread that sleeps is outside the core: a fork need not wait for it ([`fork::outside`]). In the child
//! it does not exist, and by its waiter's generation no ticket of it is granted there (4).
//!
//! Some waits do without this module, none of which a user could cancel: the file queue's watcher polls
//! its descriptors, a thread that is joined is joined by the system, and the gate of a fork spins.
//!
//! Lock order: the word comes last; it is an atomic, and settling takes no lock. [`Waiter::wake`] may
//! take the lock of a scheduler or do a system call, and is called with no lock held.
//!
//! Checked by the models in `models/park.rs`, with a kernel of mutex and condition variable in place of the
//! futex (`park/model.rs`), and by planted bugs: a lost comparison, a relaxed grant, a missing `ASLEEP`.

mod latch;
#[cfg(not(loom))]
pub(crate) mod scheduler;
pub(crate) mod service;
#[cfg_attr(loom, path = "park/model.rs")]
#[cfg_attr(all(target_os = "linux", not(loom)), path = "park/futex.rs")]
#[cfg_attr(all(not(target_os = "linux"), not(loom)), path = "park/parking_lot.rs")]
mod sys;
#[cfg(all(unix, not(loom)))]
mod waker;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::ControlFlow;

use crate::atomics::{Arc, AtomicU32, Ordering, thread_local};
use crate::clock::Time;
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
    /// The resource was handed over, or is worth another try.
    Granted = 1,
    /// The scope around the wait was cancelled, or its deadline has passed.
    Cancelled = 2,
    /// The task of the thread is being killed.
    Killed = 3,
    /// The caller's own time limit has passed.
    TimedOut = 4,
    /// A signal handler of the host raised, and the host wants the wait ended.
    Interrupted = 5,
}

/// The word of a wait that is not settled and whose thread does not sleep.
const WAITING: u32 = 0;
/// Beside the outcome: the thread sleeps, or is about to. Where it is not set, the settler is spared
/// the system call.
const ASLEEP: u32 = 1 << 8;
/// The bits above it: the index of the operation that was granted.
const WHICH: u32 = 16;

/// One wait of one thread. Made for the wait, shared with every place that may end it, and not used again:
/// a late settler finds an outcome, never the thread's next wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// See the tables above. Also the address that the thread sleeps on.
    word: AtomicU32,
    /// The process in which its thread waits, see [`fork::generation`]. Fixed at birth.
    generation: u32,
    /// Decides when its thread runs, if the kernel does not. Fixed at birth.
    #[cfg(not(loom))]
    scheduler: Option<std::sync::Arc<dyn Scheduler>>,
    /// The descriptors that it polls while it sleeps. Fixed at birth.
    #[cfg(all(unix, not(loom)))]
    polls: Option<PollSet>,
}

/// The poll in which a waiter sleeps, instead of on its word, if it also waits for descriptors.
#[cfg(all(unix, not(loom)))]
#[derive(Debug)]
struct PollSet {
    /// A descriptor of the thread's own, polled with the others, which a settler makes ready.
    waker: std::sync::Arc<waker::Waker>,
    interests: Interests,
    /// For each interest, the index of the operation that it belongs to.
    which: Vec<usize>,
}

/// Descriptors, each with the readiness that it is waited for. Plain numbers: the descriptors belong to
/// the user's code, which may close them at any time.
#[cfg(all(unix, not(loom)))]
pub(crate) type Interests = Vec<(std::os::fd::RawFd, Readiness)>;
#[cfg(all(not(unix), not(loom)))]
pub(crate) type Interests = Vec<()>;

impl Waiter {
    /// A waiter for one wait of the calling thread, on its scheduler if it has one.
    pub(crate) fn new() -> Arc<Waiter> {
        Arc::new(Waiter {
            #[cfg(not(loom))]
            scheduler: scheduler::current(),
            ..Waiter::bare()
        })
    }

    /// A waiter that the kernel schedules in any case: for threads of the core that serve simulated
    /// and real threads alike.
    #[cfg(not(loom))]
    pub(crate) fn real() -> Arc<Waiter> {
        Arc::new(Waiter::bare())
    }

    /// Not settled, scheduled by the kernel, without descriptors.
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

    /// A waiter that is also granted when a descriptor is ready; each interest names the operation that
    /// it stands for. An error means that the process has no descriptor left for the waker.
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

    /// Try to decide the wait. True: `outcome` is final, and the caller must call [`Waiter::wake`] once
    /// it holds no lock. False: another outcome was first.
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

    /// [`Waiter::settle`] as granted, by the operation with this index.
    #[allow(clippy::cast_possible_truncation)] // no wait has that many operations
    fn grant(&self, which: usize) -> bool {
        self.settle_to(WaitOutcome::Granted as u32 | (which as u32) << WHICH)
    }

    /// The one place where a wait is decided.
    fn settle_to(&self, outcome: u32) -> bool {
        // Release on success: the waiting thread, which acquires, sees all earlier writes of the settler.
        // Acquire on failure: the loser sees all earlier writes of the winner, and can go on from there.
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

    /// Wake the thread after a won [`Waiter::settle`]. Called with no lock held.
    pub(crate) fn wake(&self) {
        // Relaxed: the caller's own CAS read the bit, and after an outcome only the waiting thread
        // changes it, by clearing it when it is awake.
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

    /// The outcome, once there is one. Acquire: see the orderings above.
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

    /// The index of the operation that was granted, once [`Waiter::outcome`] has said so. Relaxed: that
    /// call has acquired the word, whose outcome and index are one write.
    pub(crate) fn which(&self) -> usize {
        (self.word.load(Ordering::Relaxed) >> WHICH) as usize
    }

    /// Block until the wait is decided, or until `until`; then `None`, and the wait is still open.
    ///
    /// After a signal, and after each slice that the host asks for, the host may run its handlers; if
    /// one raises, the wait is settled as interrupted. Called on the waiter's own thread, with no lock
    /// held.
    pub(crate) fn park(&self, until: Time) -> Option<WaitOutcome> {
        // A scheduler's sleep takes no real time, so the host needs no slices of it.
        let slice = if self.has_scheduler() {
            None
        } else {
            host::max_sleep()
        };
        loop {
            if let Some(outcome) = self.outcome() {
                return Some(outcome);
            }
            // Without a time limit the clock is not read.
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
            // With slices the host is asked after each: there a signal does not end the sleep.
            let signalled = fork::outside(|| self.sleep(this_time)) || slice.is_some();
            if self.outcome().is_some() {
                continue; // `ASLEEP` may stay: a settler that sees it wakes a thread that is awake
            }
            // Not settled by now. If it is settled before the next line, the top of the loop sees it.
            self.word.fetch_and(!ASLEEP, Ordering::AcqRel);
            if signalled && host::interrupted() == ControlFlow::Break(()) {
                self.settle(WaitOutcome::Interrupted);
            }
        }
    }

    /// Block until the wait is decided, not interrupted by signals; use only for short waits.
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

    /// Sleep once: until woken, a signal, or `until`, and perhaps spuriously. True: interrupted by a
    /// signal.
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

    /// A model schedules its threads below the kernel's level.
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
        // False: every thread of the simulation is blocked. The host reports the deadlock.
        if !scheduler.park(self, until, interests.unwrap_or_default()) {
            host::deadlocked();
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

    /// As [`Waiter::park`], but at `until` the wait is settled as timed out, unless another outcome was
    /// first. Returns the final outcome.
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
        // A late wake-up is seen by the thread's next poll as a spurious one.
        waker::Waker::keep(self.waker.clone());
    }
}

/// The entry of an operation in a queue: its waiter, and the index of the operation in that wait. Keeps
/// the waiter alive for a settler that comes after the wait has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    waiter: Arc<Waiter>,
    /// The index that a grant reports, see [`Waiter::which`].
    which: usize,
}

impl Ticket {
    /// The ticket of operation `which` in a wait.
    pub(crate) fn new(waiter: &Arc<Waiter>, which: usize) -> Ticket {
        Ticket {
            waiter: waiter.clone(),
            which,
        }
    }

    /// Decide the wait in favour of this operation. True: the resource is the waiter's, and the caller
    /// must call [`Ticket::wake`] after it has unlocked. False: the waiter was cancelled, killed or
    /// timed out, or was granted another operation, or its thread exists in a parent process only; the
    /// caller tries the next ticket.
    pub(crate) fn grant(&self) -> bool {
        // A thread of the parent process would never take a granted resource.
        self.waiter.generation == fork::generation() && self.waiter.grant(self.which)
    }

    /// [`Waiter::wake`], after a successful grant, with no lock held.
    pub(crate) fn wake(&self) {
        self.waiter.wake();
    }

    /// Its waiter, for [`note_woken`].
    pub(crate) fn into_waiter(self) -> Arc<Waiter> {
        self.waiter
    }
}

impl PartialEq for Ticket {
    /// The same operation of the same wait.
    fn eq(&self, other: &Ticket) -> bool {
        Arc::ptr_eq(&self.waiter, &other.waiter) && self.which == other.which
    }
}

/// The tickets that wait for one resource, in the order of their arrival. Guarded by that resource's
/// mutex.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue(VecDeque<Ticket>);

impl WaitQueue {
    /// Queue a ticket, behind all others.
    pub(crate) fn push(&mut self, ticket: Ticket) {
        self.0.push_back(ticket);
    }

    /// Remove a ticket, if it is still there.
    pub(crate) fn remove(&mut self, ticket: &Ticket) {
        self.0.retain(|other| other != ticket);
    }

    /// Pop tickets until one accepts the grant, which the caller must wake.
    pub(crate) fn grant_one(&mut self) -> Option<Ticket> {
        std::iter::from_fn(|| self.0.pop_front()).find(Ticket::grant)
    }

    /// Empty the queue. Returns the tickets that accepted the grant, which the caller must wake.
    pub(crate) fn grant_all(&mut self) -> Vec<Ticket> {
        let mut all = std::mem::take(&mut self.0);
        all.retain(Ticket::grant);
        all.into()
    }

    /// How many tickets are queued.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Ends the wait of the first ticket as if its time had come. False: none is queued.
    #[cfg(all(test, loom))]
    pub(crate) fn time_out_first(&self) -> bool {
        let first = self.0.front();
        first.inspect(|first| first.waiter.settle_and_wake(WaitOutcome::TimedOut));
        first.is_some()
    }
}

thread_local! {
    /// The waiter that the calling thread has woken last, for `yield_to_woken`, which takes it.
    static WOKEN: Cell<Option<Arc<Waiter>>> = const { Cell::new(None) };
}

/// Remember the waiter that the calling thread has just woken, for `yield_to_woken`.
pub(crate) fn note_woken(waiter: Arc<Waiter>) {
    // Fails at the end of the thread, which will not yield any more.
    let _ = WOKEN.try_with(|woken| woken.set(Some(waiter)));
}

/// Yield briefly, so that the thread woken last gets the interpreter's lock before the calling thread
/// takes it again: it would change hands only after the host's switch interval of milliseconds.
///
/// Waits until that thread has left its wait, and for [`HANDOFF_SPIN`] longer, but at most `longest`
/// and only for the system's scheduler: never for code of that thread.
#[cfg(feature = "python")]
pub(crate) fn yield_to_woken(longest: std::time::Duration) {
    if crate::clock::source::is_set() {
        return; // its scheduler lets one thread run at a time
    }
    let Ok(Some(woken)) = WOKEN.try_with(Cell::take) else {
        return;
    };
    let until = Time::after(longest);
    // A waiting thread keeps a count of its waiter until it leaves the wait. An estimate is enough.
    while Arc::strong_count(&woken) > 1 && Time::now() < until {
        std::thread::yield_now();
    }
    let until = Time::after(HANDOFF_SPIN);
    while Time::now() < until {
        std::thread::yield_now();
    }
}

/// How long a thread takes from the end of its wait to its request for the interpreter's lock, with
/// cold caches.
#[cfg(feature = "python")]
const HANDOFF_SPIN: std::time::Duration = std::time::Duration::from_micros(3);

#[cfg(all(not(unix), not(loom)))]
pub(crate) fn any_ready(_interests: &Interests) -> bool {
    false
}

#[cfg(all(not(unix), not(loom)))]
pub(crate) fn wait_for_any(_interests: &Interests) {}
