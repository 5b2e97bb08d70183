//! What a runtime around the core (an interpreter, say) lends it.
//!
//! The core knows nothing of Python. Three things it cannot do alone: answer signals while a
//! thread is blocked, name the threads, and say in the user's language that code swallows its
//! cancellation.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::fork;

/// The runtime's side. All methods are called without any internal lock held.
pub trait Host: Sync {
    /// A wait of the calling thread was interrupted by a signal (or by [`Host::max_sleep`]).
    /// `Break` ends the wait; the host keeps what it wants raised.
    fn interrupted(&self) -> ControlFlow<()>;

    /// The longest single sleep allowed on this thread, for runtimes whose signal handlers can
    /// slip in just before a system call. `None`: no bound.
    fn max_sleep(&self) -> Option<Duration>;

    /// The calling thread's name.
    fn thread_name(&self) -> Option<Arc<str>>;

    /// A thread of the core's own begins. It calls the host now and then, as long as the process
    /// lives.
    fn thread_started(&self) {}

    /// In a simulation, nobody can go on: the wait of the calling thread is about to end as
    /// interrupted, and the host keeps what it wants raised.
    fn deadlocked(&self) {}

    /// The calling thread was told `raised` times that it is cancelled, in one scope.
    fn cancel_swallowed(&self, raised: u32);
}

static HOST: once_cell::sync::OnceCell<&'static dyn Host> = once_cell::sync::OnceCell::new();

thread_local! {
    // A thread's name is asked for once: cancelling is to stay cheap.
    static NAME: OnceCell<Option<Arc<str>>> = const { OnceCell::new() };
}

/// Install the runtime; the first one stays.
pub fn install(host: &'static dyn Host) {
    let _ = HOST.set(host);
}

pub(crate) fn interrupted() -> ControlFlow<()> {
    HOST.get().map_or(ControlFlow::Continue(()), |host| {
        fork::outside(|| host.interrupted())
    })
}

pub(crate) fn max_sleep() -> Option<Duration> {
    HOST.get().and_then(|host| host.max_sleep())
}

pub(crate) fn thread_started() {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.thread_started());
    }
}

#[cfg(not(loom))]
pub(crate) fn deadlocked() {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.deadlocked());
    }
}

pub(crate) fn cancel_swallowed(raised: u32) {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.cancel_swallowed(raised));
    }
}

pub(crate) fn thread_name() -> Option<Arc<str>> {
    if let Ok(Some(known)) = NAME.try_with(|name| name.get().cloned()) {
        return known;
    }
    // Not while the cell is being filled: the host runs code of its own, and a signal handler or
    // a finalizer may come in between that cancels something, too.
    let asked = match HOST.get() {
        Some(host) => fork::outside(|| host.thread_name()),
        None => std::thread::current().name().map(Arc::from),
    };
    // Past the thread's own end there is no place to keep the name.
    let _ = NAME.try_with(|name| name.set(asked.clone()));
    asked
}
