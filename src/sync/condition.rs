//! Waiting for something that a lock protects to change.
//!
//! Guarantees: giving up the lock and standing in line are one step as far as a notifier can
//! tell; a notify goes to somebody who is still waiting, or to nobody (I11); whatever ends the
//! wait, the lock is held again, as often as before, when it is over.

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::park::{Ticket, WaitQueue, Waiter};
use crate::sync::lock::{Holds, Lock, LockError, ReleaseError};
use crate::wait::{self, Waitable};

/// A condition variable. Its lock is held while one waits for it, or notifies.
#[derive(Debug)]
pub struct Condition {
    lock: Lock,
    waiting: Mutex<WaitQueue>,
}

/// Why a wait for a condition ended without a notify.
#[derive(Debug, Clone)]
pub enum WaitError {
    /// The lock is not held, so there is nothing to wait with.
    NotHeld(ReleaseError),
    /// The thread is to stop, and holds the lock; or the lock could not be had again, and it does
    /// not hold it.
    Lock(LockError),
}

impl Condition {
    /// A condition of what `lock` protects.
    pub fn new(lock: Lock) -> Condition {
        Condition {
            lock,
            waiting: Mutex::default(),
        }
    }

    /// Its lock.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Give up the lock, block until a notify or until `until` (then false), and take the lock
    /// again. A checkpoint; the lock is held again before `Err`, too.
    pub fn wait_until(&self, until: Time) -> Result<bool, WaitError> {
        if !self.lock.is_locked() {
            return Err(WaitError::NotHeld(ReleaseError::NotHeld)); // and no notify is for it
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

    /// Wake so many of those who wait, the longest waiting first.
    pub fn notify(&self, count: usize) {
        let woken: Vec<Ticket> = {
            let mut waiting = self.waiting.lock();
            std::iter::from_fn(|| waiting.grant_one())
                .take(count)
                .collect()
        };
        woken.iter().for_each(Ticket::wake);
    }

    /// Stand in line without giving up the lock, for one who looks after what it protects anew
    /// once it is in line, and when it is granted.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn join(&self, ticket: Ticket) {
        self.waiting.lock().push(ticket);
    }

    /// Leave the line.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn leave(&self, ticket: &Ticket) {
        self.waiting.lock().remove(ticket);
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }
}

struct Waiting<'a> {
    condition: &'a Condition,
    /// What became of the lock when the wait began.
    released: Option<Result<Holds, ReleaseError>>,
}

impl Waitable for Waiting<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        // In line first: whoever has the lock next may notify.
        self.condition.waiting.lock().push(ticket.clone());
        let released = self.condition.lock.release_all();
        if released.is_err() {
            self.condition.waiting.lock().remove(&ticket);
            ticket.grant();
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
