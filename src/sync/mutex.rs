//! Data behind a [`Lock`], for Rust programs.
#![allow(unsafe_code)] // the data is reached through the lock

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::clock::Time;
use crate::sync::lock::{Acquire, Lock, LockError, OnKill};

/// Data that is reached only while its lock is held. The wait for it can be cancelled.
///
/// The guard gives the lock back when it is dropped, however the scope or task is left.
pub struct Mutex<T: ?Sized> {
    lock: Lock,
    data: UnsafeCell<T>,
}

// SAFETY: the lock gives the data to one thread at a time.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

/// The held mutex.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    /// A free mutex.
    pub fn new(data: T) -> Mutex<T> {
        // A guard outlives no borrow, and its thread is not stopped hard, so nothing to poison.
        Mutex {
            lock: Lock::new("mutex", OnKill::Release),
            data: UnsafeCell::new(data),
        }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Acquire it. A checkpoint; `Err` means that it is not held.
    pub fn lock(&self) -> Result<MutexGuard<'_, T>, LockError> {
        self.lock.acquire(Acquire::Guard, Time::NEVER)?;
        Ok(MutexGuard { mutex: self })
    }

    /// Acquire it, waiting until `until` at most; then `None`.
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
        // Refused only if this task was abandoned meanwhile: then the lock is lost to all.
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
