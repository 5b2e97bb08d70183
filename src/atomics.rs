//! The atomics and the mutex of the core: the real ones, or loom's under `--cfg loom`, so that a
//! model checks the very code that ships.

#[cfg(not(loom))]
mod chosen {
    pub(crate) use parking_lot::Mutex;
    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
    pub(crate) use std::thread_local;

    /// A mutex that may be held across a fork, for the kernel alone knows who waits for it.
    /// `parking_lot`'s keeps a list of them, and in a child would hand itself to who is not there.
    pub(crate) struct ForkMutex<T>(std::sync::Mutex<T>);

    impl<T> ForkMutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

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
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

    /// loom's, which does not know the `const { }` form.
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
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a model's thread panicked")
        }
    }
}

#[cfg(loom)]
pub(crate) use Mutex as ForkMutex;
pub(crate) use chosen::*;
