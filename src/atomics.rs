//! The atomics and the mutexes of the core: the real ones, or loom's under `--cfg loom`, so that a
//! model checks the very code that ships.
//!
//! Everything that takes part in a hand-off between threads comes from here. Atomics that no model
//! examines (counters of names, a process's generation) may be those of `std`; loom does not see them.
//!
//! Two mutexes. [`Mutex`] is `parking_lot`'s: one byte, and fast where it is not contended. It is held for
//! a few instructions, and a fork waits until no thread is inside the core, so no child finds one
//! locked. [`ForkMutex`] is held across a fork, by the forking thread.

#[cfg(not(loom))]
mod chosen {
    pub(crate) use parking_lot::Mutex;
    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    };
    pub(crate) use std::thread_local;

    /// A mutex that may be held across a fork: its waiters are queued by the kernel (a futex), which
    /// forgets them in the child. `parking_lot` queues waiters in user space, and in the child would hand
    /// the mutex to a thread that does not exist.
    ///
    /// Not poisoned by a panic: the code that changes its data does not panic.
    pub(crate) struct ForkMutex<T>(std::sync::Mutex<T>);

    impl<T> ForkMutex<T> {
        /// An unlocked mutex.
        pub(crate) fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        /// Lock it, blocking for the moments in which another thread has it.
        pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }
}

#[cfg(loom)]
mod chosen {
    pub(crate) use loom::sync::Arc;
    use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };

    /// loom's `thread_local`, which does not know the `const { }` form.
    macro_rules! of_model {
        ($(#[$about:meta])* static $name:ident: $type:ty = const { $first:expr };) => {
            loom::thread_local! { $(#[$about])* static $name: $type = $first; }
        };
        ($($plain:tt)*) => { loom::thread_local! { $($plain)* } };
    }
    pub(crate) use of_model as thread_local;

    /// loom's mutex with `parking_lot`'s signature: a model has no poisoning.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// An unlocked mutex. Not `const`, as loom's is not: statics of the core that a model runs are made
        /// when they are first used.
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Lock it; a point at which loom tries other threads first.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a model's thread panicked")
        }
    }
}

/// A model does not fork.
#[cfg(loom)]
pub(crate) use Mutex as ForkMutex;
pub(crate) use chosen::*;
