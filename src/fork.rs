//! The gate between forks and the core's locks, and the number that tells processes apart.
//!
//! A fork copies one thread. A lock that another thread held at that moment would stay locked in
//! the child forever (I37). So a thread that the forking one cannot keep from running is *inside*
//! while it uses the core, and a fork waits until no thread is. It is *outside* again while
//! it sleeps, and while it calls the runtime, which the forking thread may have stopped.
//!
//! The locks and waiters of threads that are gone in a child are recognised by the [`generation`] in
//! which they were made: a lock that such a thread held is lost, not held forever. The procedure that
//! a forking runtime calls is [`at_fork`](crate::at_fork).

use std::any::Any;
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use once_cell::race::OnceBox;

/// See [`generation`]. Written by [`begin_child`] alone, when the process has one thread.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Number of forks between this process and the first; things made before a fork differ from it.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Number of threads inside; [`FORKING`] is added while the gate is closed.
static INSIDE: AtomicU32 = AtomicU32::new(0);
const FORKING: u32 = 1 << 31;

thread_local! {
    /// How many [`Inside`] guards the calling thread has; it is counted once in [`INSIDE`].
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread uses the core, until this is dropped. Waits while another one forks.
#[must_use]
pub(crate) fn inside() -> Inside {
    if DEPTH.get() == 0 {
        come_in();
    }
    DEPTH.set(DEPTH.get() + 1);
    Inside(())
}

/// See [`inside`].
pub(crate) struct Inside(());

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if DEPTH.get() == 0 {
            INSIDE.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Pass the gate: one count in [`INSIDE`], once no fork is near.
fn come_in() {
    // Counted first, compared after: a fork that closes the gate in between waits until this count is
    // undone.
    while INSIDE.fetch_add(1, Ordering::Acquire) & FORKING != 0 {
        INSIDE.fetch_sub(1, Ordering::Release);
        while INSIDE.load(Ordering::Relaxed) & FORKING != 0 {
            thread::yield_now();
        }
    }
}

/// Runs `act` with the calling thread marked as outside the core: for sleeps, and for calls into
/// the runtime.
pub(crate) fn outside<R>(act: impl FnOnce() -> R) -> R {
    struct Back(u32);
    impl Drop for Back {
        fn drop(&mut self) {
            come_in();
            DEPTH.set(self.0);
        }
    }
    let depth = DEPTH.try_with(Cell::take).unwrap_or(0);
    let _back = (depth > 0).then(|| {
        INSIDE.fetch_sub(1, Ordering::Release);
        Back(depth)
    });
    act()
}

/// From now on no other thread comes in; those inside are still there, see [`others_inside`].
pub(crate) fn close_gate() {
    INSIDE.fetch_or(FORKING, Ordering::Acquire);
}

/// Are threads inside, other than the calling one? Acquire: their writes inside are visible.
pub(crate) fn others_inside() -> bool {
    let own = u32::from(DEPTH.get() > 0);
    INSIDE.load(Ordering::Acquire) & !FORKING > own
}

/// After [`close_gate`], where the process goes on with all its threads.
pub(crate) fn open_gate() {
    INSIDE.fetch_and(!FORKING, Ordering::Release);
}

/// After [`close_gate`], in a child with the calling thread alone: a new generation.
pub(crate) fn begin_child() {
    // Another thread on its way in or out may have left its count behind.
    INSIDE.store(u32::from(DEPTH.get() > 0), Ordering::Release);
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Something with a lock of its own, which a fork must find unlocked, or with a thread, which a
/// child does not have.
pub(crate) trait ForkAware: Sync {
    /// Locks it. The returned guard is dropped after the fork, in both processes. `None`: there is
    /// nothing to lock yet.
    fn hold(&'static self) -> Option<Box<dyn Any>>;

    /// In the child, where threads may be started.
    fn restart_in_child(&'static self);
}

/// The [`register`]ed objects, in the first places. Each place is filled once and without a lock,
/// because a fork may happen meanwhile.
static REGISTERED: [OnceBox<&'static dyn ForkAware>; 8] = [const { OnceBox::new() }; 8];

/// From now on every fork holds it. Idempotent.
///
/// # Panics
/// If more than eight things are registered.
pub(crate) fn register(service: &'static dyn ForkAware) {
    let address = |service: &'static dyn ForkAware| std::ptr::from_ref(service).cast::<()>();
    for place in &REGISTERED {
        let now_in_it = place.get_or_init(|| Box::new(service));
        if address(*now_in_it) == address(service) {
            return;
        }
    }
    panic!(
        "more than {} things are registered for forks",
        REGISTERED.len()
    );
}

/// The registered objects, in the order of their registration.
pub(crate) fn registered() -> impl Iterator<Item = &'static dyn ForkAware> {
    REGISTERED.iter().map_while(|place| place.get().copied())
}

#[cfg(all(test, not(loom)))]
pub(crate) fn gate_is_closed() -> bool {
    INSIDE.load(Ordering::Acquire) & FORKING != 0
}
