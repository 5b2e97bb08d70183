//! Conditions: waiting for a change of the data that a lock protects.
//!
//! Guarantees:
//! 1. Releasing the lock and queuing are one step as far as a notifier can tell: a notify made with
//!    the lock held after the release finds the waiter in the queue.
//! 2. A notify goes to a thread that is still waiting, or to none; it is not lost with a waiter that
//!    was cancelled or timed out (I11).
//! 3. However the wait ends, the lock is held again, as often as before, when it is over; unless a
//!    signal handler raises during the reacquisition, or the lock was poisoned meanwhile.
//!
//! Protocol. The waiter queues its ticket first and releases the lock then, both in `enqueue`; no
//! thread can hold the lock, and so notify for the change, between the two. After the wait it
//! reacquires the lock uncancelled, and only then reports how the wait ended.
//!
//! Lock order: `waiting` is locked alone, never together with the lock's state.

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::park::{Ticket, WaitQueue, Waiter};
use crate::sync::lock::{Holds, Lock, LockError, ReleaseError};
use crate::wait::{self, Waitable};

/// A condition variable of a [`Lock`], which its user holds to wait and to notify.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use desist::Time;
/// use desist::sync::{Condition, Lock, OnKill, WaitError};
///
/// let changed = Condition::new(Lock::new("changed", OnKill::Poison));
/// let done = AtomicBool::new(false); // protected by the lock
/// std::thread::scope(|threads| {
///     let waiter = threads.spawn(|| {
///         let _guard = changed.lock().guard(Time::NEVER)?;
///         while !done.load(Ordering::Relaxed) {
///             changed.wait_until(Time::NEVER)?;
///         }
///         Ok::<(), WaitError>(())
///     });
///     let guard = changed.lock().guard(Time::NEVER);
///     done.store(true, Ordering::Relaxed);
///     changed.notify(1);
///     drop(guard);
///     assert!(waiter.join().unwrap().is_ok());
/// });
/// ```
#[derive(Debug)]
pub struct Condition {
    lock: Lock,
    /// The waiters, in the order of their arrival. Pushed and removed by the waiter, popped by a
    /// notifier.
    waiting: Mutex<WaitQueue>,
}

/// Why a wait for a condition ended without a notify.
#[derive(Debug, Clone)]
pub enum WaitError {
    /// The calling thread does not hold the lock.
    NotHeld(ReleaseError),
    /// The thread is to stop, and holds the lock. Or, for any error but [`LockError::Stop`], the lock
    /// could not be reacquired and is not held.
    Lock(LockError),
}

impl Condition {
    /// A condition of the data that `lock` protects.
    pub fn new(lock: Lock) -> Condition {
        Condition {
            lock,
            waiting: Mutex::default(),
        }
    }

    /// The lock it was made with.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Release the lock, wait for a notify or until `until` (then false), and reacquire the lock.
    ///
    /// # Blocking
    /// Blocks until a notify, and then until the lock is free.
    ///
    /// # Cancellation
    /// A checkpoint on entry, before the lock is released. A cancelled wait reacquires the lock before
    /// it returns `Err`; the reacquisition itself cannot be cancelled.
    ///
    /// # Errors
    /// The lock is not held, the thread is to stop, or the lock was poisoned meanwhile.
    pub fn wait_until(&self, until: Time) -> Result<bool, WaitError> {
        if !self.lock.is_locked() {
            // Before it queues: a thread without the lock must not take a notify from a waiter.
            return Err(WaitError::NotHeld(ReleaseError::NotHeld));
        }
        wait::checkpoint().map_err(LockError::Stop)?;
        let mut waiting = Waiting {
            condition: self,
            released: None,
        };
        let notified = wait::block(&Waiter::new(), until, &mut [&mut waiting]);
        match waiting.released {
            Some(Ok(holds)) => self.lock.reacquire(holds).map_err(WaitError::Lock)?,
            Some(Err(not_held)) => return Err(WaitError::NotHeld(not_held)),
            None => {}
        }
        match notified {
            Ok(notified) => Ok(notified.is_some()),
            Err(stop) => Err(WaitError::Lock(LockError::Stop(stop))),
        }
    }

    /// Wake at most `count` waiters, the longest waiting first. Never blocks, and is no checkpoint. The
    /// caller holds the lock, or a waiter may miss it that has looked and not yet queued.
    pub fn notify(&self, count: usize) {
        let woken: Vec<Ticket> = {
            let mut waiting = self.waiting.lock();
            std::iter::from_fn(|| waiting.grant_one())
                .take(count)
                .collect()
        };
        woken.iter().for_each(Ticket::wake);
    }

    /// Queue without releasing the lock: for a waiter that checks the protected data after it has
    /// queued, and again when it is granted.
    #[cfg(feature = "python")]
    pub(crate) fn join(&self, ticket: Ticket) {
        self.waiting.lock().push(ticket);
    }

    /// Leave the queue, if the ticket is still there.
    #[cfg(feature = "python")]
    pub(crate) fn leave(&self, ticket: &Ticket) {
        self.waiting.lock().remove(ticket);
    }

    /// How many threads wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// One call of [`Condition::wait_until`], in the waiter's thread.
struct Waiting<'a> {
    condition: &'a Condition,
    /// The result of releasing the lock: the holds to restore, or that the thread did not hold it. `None`:
    /// the wait was decided before it queued, so the lock was not released.
    released: Option<Result<Holds, ReleaseError>>,
}

impl Waitable for Waiting<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        // Queue first: the next holder of the lock may notify at once.
        self.condition.waiting.lock().push(ticket.clone());
        let released = self.condition.lock.release_all();
        if released.is_err() {
            self.condition.waiting.lock().remove(&ticket);
            ticket.grant(); // end the wait; `wait_until` reports the error
        }
        self.released = Some(released);
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.condition.waiting.lock().remove(ticket);
        false
    }
}

impl From<LockError> for WaitError {
    fn from(error: LockError) -> WaitError {
        WaitError::Lock(error)
    }
}
