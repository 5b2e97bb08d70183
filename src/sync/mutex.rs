//! Data behind a [`Lock`], for Rust programs.
//!
//! Guarantee: the data is reached only through a guard, and while a guard exists no other thread can
//! acquire the lock. Its hold is [`Acquire::Guard`], which no sweep reclaims: a guard that unwinding
//! drops releases the lock itself. Only if the whole task is abandoned is the hold reclaimed, and then
//! the lock is lost for good ([`LockError::OwnerLost`]), since the stale guard still reaches the data.
#![allow(unsafe_code)] // the data is reached through the lock

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::clock::Time;
use crate::sync::lock::{Acquire, Lock, LockError, OnKill};

/// Data that is reached only while its lock is held. The wait for it can be cancelled.
///
/// The guard releases the lock when it is dropped, however the scope or task is left.
///
/// ```
/// use desist::sync::Mutex;
///
/// let balance = Mutex::new(10);
/// *balance.lock()? += 5;
/// assert_eq!(*balance.lock()?, 15);
/// # Ok::<(), desist::sync::LockError>(())
/// ```
pub struct Mutex<T: ?Sized> {
    /// Plain: not reentrant, or two guards of one thread would reach the data at once.
    lock: Lock,
    /// Read and written through a guard only.
    data: UnsafeCell<T>,
}

// SAFETY: the lock admits one thread at a time to the data.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

/// Access to the data of a held mutex; its drop releases the lock.
pub struct MutexGuard<'a, T: ?Sized> {
    /// Held by the thread that made the guard, until the drop.
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    /// A free mutex.
    pub fn new(data: T) -> Mutex<T> {
        // A Rust thread is never killed between two instructions, so there is nothing to poison.
        Mutex {
            lock: Lock::new("mutex", OnKill::Release),
            data: UnsafeCell::new(data),
        }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Acquire it.
    ///
    /// # Blocking
    /// Blocks while another thread holds it, and forever if the calling thread does.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if the lock is free.
    ///
    /// # Errors
    /// The thread is to stop, or the lock was lost with an abandoned task; it is not held.
    pub fn lock(&self) -> Result<MutexGuard<'_, T>, LockError> {
        self.lock.acquire(Acquire::Guard, Time::NEVER)?;
        Ok(MutexGuard { mutex: self })
    }

    /// As [`Mutex::lock`], waiting until `until` at most; then `None`.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    pub fn lock_until(&self, until: Time) -> Result<Option<MutexGuard<'_, T>>, LockError> {
        // Made only if it is held: a guard that is dropped releases.
        let acquired = self.lock.acquire(Acquire::Guard, until)?;
        Ok(acquired.then(|| MutexGuard { mutex: self }))
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, and shares the data only as long as it is borrowed.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // Refused only if this task was abandoned meanwhile: then the lock is unavailable for good.
        let _ = self.mutex.lock.release();
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex")
            .field("locked", &self.lock.is_locked())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mutex.fmt(f)
    }
}
