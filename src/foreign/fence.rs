//! Two fences that belong together: a store before [`light`] and a load behind it, and on another thread a
//! store before [`heavy`] and a load behind that: at least one of the loads sees the other thread's
//! store.
//!
//! Threads that enter and leave scopes use the light one, the watcher the heavy one. Where the kernel
//! can have all running threads of the process execute a barrier (`membarrier`), the light one is an
//! order to the compiler alone. Where it cannot, and in models, both are sequentially consistent fences.

#[cfg(any(loom, not(target_os = "linux")))]
mod chosen {
    use crate::atomics::{Ordering, fence};

    /// The fence of threads that enter and leave scopes.
    pub(crate) fn light() {
        fence(Ordering::SeqCst);
    }

    /// The fence of the watcher.
    pub(crate) fn heavy() {
        fence(Ordering::SeqCst);
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
mod chosen {
    use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

    use rustix::thread::{MembarrierCommand, membarrier};

    /// The process is registered with the kernel. Set by [`prepare`] before the first slot is taken, so
    /// before the watcher exists, and never cleared; a fork keeps the registration.
    static REGISTERED: AtomicBool = AtomicBool::new(false);

    /// Called by every thread before its first [`light`].
    pub(crate) fn prepare() {
        if !REGISTERED.load(Ordering::SeqCst)
            && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
        {
            REGISTERED.store(true, Ordering::SeqCst);
        }
    }

    /// The fence of threads that enter and leave scopes.
    #[inline]
    pub(crate) fn light() {
        if REGISTERED.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// The fence of the watcher. A few microseconds.
    pub(crate) fn heavy() {
        fence(Ordering::SeqCst);
        if REGISTERED.load(Ordering::SeqCst) {
            let _ = membarrier(MembarrierCommand::PrivateExpedited); // it is registered: no failure
        }
    }
}

pub(crate) use chosen::*;
