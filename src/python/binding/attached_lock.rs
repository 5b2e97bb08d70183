//! `AttachedLock`: a lock of attached threads, under which the interpreter may be called.
//!
//! Guarantees:
//! 1. One thread at a time has the value.
//! 2. A thread that waits for it is detached, since the holder may need the interpreter.
//! 3. A forked child finds it free, whichever thread of the parent process had it.
//!
//! How. The lock names the process of its holder, so that in a child the holder's is another one (3). A
//! mutex of the library could not be freed there, and a fork can come while one is held: in a call of the
//! interpreter under it, and between the lock and the end of a wait, at which the thread attaches again.
//! The holder is detached then, in such a call; so the value is as that call found it, and whole.
#![allow(unsafe_code)] // the value in its cell

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use pyo3::prelude::*;

/// See the header.
#[derive(Debug, Default)]
pub(in crate::python) struct AttachedLock<T> {
    /// The process of the thread that has the value; 0: none has it.
    holder: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is used by one thread at a time: the one that has set `holder` to its process.
unsafe impl<T: Send> Sync for AttachedLock<T> {}

impl<T> AttachedLock<T> {
    pub(in crate::python) const fn new(value: T) -> Self {
        Self {
            holder: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until no other thread of this process has the value.
    pub(in crate::python) fn lock(&self, py: Python<'_>) -> AttachedGuard<'_, T> {
        let own = process::id();
        loop {
            let holder = self.holder.load(Ordering::Relaxed);
            if holder == own {
                // It is held for some calls of the interpreter.
                let held = &self.holder;
                py.detach(|| {
                    while held.load(Ordering::Relaxed) == own {
                        thread::yield_now();
                    }
                });
                continue;
            }
            // Acquire, with the release of the guard's drop.
            if self
                .holder
                .compare_exchange(holder, own, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return AttachedGuard { lock: self };
            }
        }
    }
}

/// The calling thread has the value.
#[derive(Debug)]
pub(in crate::python) struct AttachedGuard<'a, T> {
    lock: &'a AttachedLock<T>,
}

impl<T> Deref for AttachedGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread has the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for AttachedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread has the value, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for AttachedGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.holder.store(0, Ordering::Release);
    }
}
