//! A service thread: one of the core's own threads, which performs work that other threads bring. The
//! timer, the callback thread and the enforcer are such threads.
//!
//! Guarantees:
//! 1. The thread starts with the first work, sleeps until the next work is due, and is woken only
//!    for work that is due earlier.
//! 2. Work is performed by one thread, one after another, with the state unlocked.
//! 3. A fork finds the state unlocked: the forking thread holds its lock from before the fork until
//!    after it, in both processes. In the child, where the thread is gone, another one starts if
//!    [`Work::survive_fork`] leaves it something to do.
//!
//! The protocol. All of [`Slot`] is read and written under the one lock. A thread that brings work
//! changes the state, and takes `sleeper` out if the thread would sleep for too long; with the lock
//! released it then wakes that waiter. The service thread takes due work out and, if there was none,
//! leaves its waiter in `sleeper`, in one critical section: work comes before it, and is found, or
//! after it, and finds the waiter. Lock order: nothing else is locked under this lock.
//!
//! The lock is one that may be held across a fork, and not a channel's: a receiver takes locks on
//! its way to sleep and back, and a child that was forked in that moment would find them held for
//! ever (I37).

use std::any::Any;
use std::thread;

use once_cell::race::OnceBox;

use super::{WaitOutcome, Waiter};
use crate::atomics::{Arc, ForkMutex};
use crate::clock::Time;
use crate::fork::{self, ForkAware};
use crate::host;

/// The work of a service thread: the state that its lock protects.
pub(crate) trait Work: Default + Send + Sized + 'static {
    /// One piece of work, taken out of the state and performed with the state unlocked.
    type Job;

    /// The thread's name, for debuggers and error messages.
    const NAME: &'static str;

    /// True if the work calls the host. The thread is then attached to the host from its start.
    const CALLS_HOST: bool;

    /// When the next work is due; [`Time::NEVER`] if there is none. Called with the state locked.
    fn next(&self) -> Time;

    /// Takes out a job that is due by `now`. Called on the service thread, with the state locked.
    fn take_due(&mut self, now: Time) -> Option<Self::Job>;

    /// Performs a job, on the service thread, with the state unlocked. Must not panic.
    fn perform(job: Self::Job);

    /// In a forked child: drops the work for threads of the parent.
    fn survive_fork(&mut self) {}

    /// The system refuses a thread. With the state unlocked, on the thread that brought work.
    ///
    /// # Panics
    /// Unless there is another way to do the work.
    fn without_thread(_service: &'static Service<Self>) {
        panic!("the system refuses to start the thread {}", Self::NAME);
    }
}

/// A service thread and its state, as a static.
pub(crate) struct Service<W> {
    /// Made by the first thread that brings work, after the service is known to forks. `OnceBox`
    /// has no lock of its own that a fork could leave locked.
    slot: OnceBox<ForkMutex<Slot<W>>>,
}

/// The fields that the service's lock protects.
struct Slot<W> {
    /// Written by the threads that bring work, and by the service thread, which takes it out.
    work: W,
    /// The thread exists in this process, or is about to be started by the thread that set this.
    runs: bool,
    /// The waiter with which the thread sleeps, and until when. Set by the service thread, taken out by
    /// the thread that wakes it.
    sleeper: Option<(Time, Arc<Waiter>)>,
}

impl<W: Work> Service<W> {
    /// A service without state and without thread; both come with the first work.
    pub(crate) const fn new() -> Service<W> {
        Service {
            slot: OnceBox::new(),
        }
    }

    /// Changes the state, which is made if there is none yet, and sees that the thread notices.
    pub(crate) fn update<R>(&'static self, change: impl FnOnce(&mut W) -> R) -> R {
        let slot = self.slot.get_or_init(|| {
            fork::register(self);
            Box::new(ForkMutex::new(Slot {
                work: W::default(),
                runs: false,
                sleeper: None,
            }))
        });
        let (result, sleeper, start) = {
            let mut slot = slot.lock();
            let result = change(&mut slot.work);
            let next = slot.work.next();
            let sleeper = slot.sleeper.take_if(|(until, _)| next < *until);
            let start = !slot.runs && !next.is_never();
            slot.runs |= start;
            (result, sleeper, start)
        };
        if let Some((_, waiter)) = sleeper {
            waiter.settle_and_wake(WaitOutcome::Granted);
        }
        if start {
            self.start();
        }
        result
    }

    /// Reads the state, or takes something out of it; `None` if there is none. Not for bringing work: the
    /// thread is not woken.
    pub(crate) fn peek<R>(&self, look: impl FnOnce(&mut W) -> R) -> Option<R> {
        Some(look(&mut self.slot.get()?.lock().work))
    }

    /// Starts the thread, after `runs` was set, with the state unlocked.
    fn start(&'static self) {
        let thread = thread::Builder::new().name(W::NAME.into());
        if thread.spawn(|| self.serve()).is_err() {
            if let Some(slot) = self.slot.get() {
                slot.lock().runs = false;
            }
            W::without_thread(self);
        }
    }

    /// The service thread's loop. It is inside the core, so that a fork waits until it sleeps.
    fn serve(&'static self) {
        let _inside = fork::inside();
        if W::CALLS_HOST {
            host::thread_started();
        }
        while let Some(slot) = self.slot.get() {
            let waiter = Waiter::new();
            let (due, until) = {
                let mut slot = slot.lock();
                let due = slot.work.take_due(Time::now());
                let until = slot.work.next();
                // In one critical section with the look: later work finds the waiter.
                if due.is_none() {
                    slot.sleeper = Some((until, waiter.clone()));
                }
                (due, until)
            };
            match due {
                Some(job) => W::perform(job),
                None => _ = waiter.park(until),
            }
        }
    }
}

impl<W: Work> ForkAware for Service<W> {
    /// The guard of the lock, which the forking thread keeps until after the fork.
    fn hold(&'static self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.slot.get()?.lock()))
    }

    fn restart_in_child(&'static self) {
        let Some(slot) = self.slot.get() else { return };
        let start = {
            let mut slot = slot.lock();
            slot.sleeper = None; // it belongs to the thread of the parent
            slot.work.survive_fork();
            slot.runs = !slot.work.next().is_never();
            slot.runs
        };
        if start {
            self.start();
        }
    }
}
