//! The services that the core needs of the runtime around it (an interpreter, say).
//!
//! The core knows nothing of Python. The host does four things for it: it runs signal handlers while a
//! thread is blocked, names the threads, says whether a block is still on its thread's stack, and
//! reports in the user's language that code swallows its cancellation or that a simulation has come to a
//! deadlock. Without a host (a Rust program) each of the functions below has a default: signals do not
//! end a wait, a thread's name is that of `std`, every block is on the stack, and nothing is reported.
//!
//! Protocol. One [`Host`] is installed, once, before the first wait; `HOST` is never written again, so
//! it is read without a lock. The core calls it with no lock and no borrow of its own held, and marked
//! as outside (`fork`), so the host may block, fork, or call the core from inside the call. The bound
//! of a sleep and the place of a block are asked for inside: those methods only answer.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::fork;

/// The place at which a block was opened: what the host needs to find it on the stack again. Made by the
/// host; to the core the two numbers mean nothing but that equal places are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// The activation of the function whose block it is; 0 for a block that is one native call.
    pub frame: usize,
    /// The statement in it that opened the block; 0 if the block is not one of a statement.
    pub place: usize,
    /// The activation can be suspended and resumed, as a generator's can.
    pub suspendable: bool,
}

impl Home {
    /// A block that begins and ends in one native call, so it is on its thread's stack while it is open.
    pub const NATIVE: Home = Home {
        frame: 0,
        place: 0,
        suspendable: false,
    };

    /// True for [`Home::NATIVE`].
    #[cfg(any(feature = "python", test))]
    pub(crate) fn is_native(self) -> bool {
        self.frame == 0
    }
}

/// A blocked call that was ended: it has not happened, and fails with `ECANCELED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedCall {
    /// The system's name of it, such as `recvfrom`.
    pub call: &'static str,
    /// The descriptor that it was about, if it was about one.
    pub descriptor: Option<i32>,
}

/// A call of another thread, in which that was found blocked, in a cancelled scope.
pub trait BlockedCall {
    /// The thread.
    fn thread(&self) -> HostThread;

    /// The core's number of the thread, for [`Host::left_scope`]. No other thread has it before that was called:
    /// the runtime's numbers of a thread that has ended may be those of another one by then.
    fn number(&self) -> usize;

    /// Where the scope's block was opened. To be asked for while the thread can run no code of the runtime's;
    /// else it may be that of another block.
    fn home(&self) -> Home;

    /// The system's name of the call. In `futex` the thread waits for a change of memory: for a lock, say. Such a
    /// call is never ended by the core. The runtime can do so, if it knows the lock: it has to ask
    /// [`BlockedCall::end`] first, while the thread can run no code of the runtime's.
    fn name(&self) -> &'static str;

    /// Ends the call, unless the thread has left it; the call that was ended. About a millisecond at most.
    /// For a futex: whether the runtime is to end it, which counts as done.
    fn end(&mut self) -> Option<EndedCall>;
}

/// How the runtime finds one of its threads again. To the core the numbers mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostThread {
    /// The runtime's own number of the thread; 0 for one that raises no exceptions for errors of calls.
    pub ident: u64,
    /// Where the runtime keeps the thread's state.
    pub state: usize,
}

/// The relation of a block to the stack of the calling thread, which has opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The block is on the stack, in the activation that lies this many calls below the innermost one.
    Here(usize),
    /// It is not, but may come back: a suspended generator's, or one of another stack of the thread's.
    Away,
    /// Its end was skipped: the code has left it, and never comes back.
    Gone,
}

/// The runtime's side. All methods are called on the thread that they are about, with no lock of the core
/// held, and may call the core.
pub trait Host: Sync {
    /// A wait of the calling thread was interrupted by a signal (or by [`Host::max_sleep`]).
    /// `Break` ends the wait as interrupted; the host keeps the exception that it wants raised there.
    fn interrupted(&self) -> ControlFlow<()>;

    /// The longest single sleep allowed on this thread, for a runtime whose signal handlers only set a flag
    /// that is looked at between two sleeps: a signal just before the sleep would not be noticed by it.
    /// `None`: no bound.
    fn max_sleep(&self) -> Option<Duration>;

    /// The calling thread's name, for causes and reports; asked for once a thread.
    fn thread_name(&self) -> Option<Arc<str>>;

    /// The calling thread, if its blocked calls are to be ended in cancelled scopes (`foreign`). The
    /// runtime turns the error `ECANCELED` of a call into its own exception, and also takes it from a sleep.
    /// Asked when a thread first enters a scope, inside (`fork`).
    fn thread(&self) -> Option<HostThread> {
        None
    }

    /// True if blocked calls of the runtime's threads are ended at all.
    fn ends_calls(&self) -> bool {
        false
    }

    /// A call of another thread is about to be ended. The runtime may do something before and after it, or
    /// not end it at all; then it is looked at again later. Called on a thread of the core's own, outside.
    fn end_call(&self, call: &mut dyn BlockedCall) {
        call.end();
    }

    /// The thread is in a cancelled scope, in code that takes the error of a call for another try: its calls are
    /// left alone from now on. Called as [`Host::end_call`] is.
    fn left_alone(&self, thread: HostThread) {
        let _ = thread;
    }

    /// The thread has left the scope in which a call of its was ended, or has ended itself. `number`: see
    /// [`BlockedCall::number`]. Called as [`Host::end_call`] is, some time later.
    fn left_scope(&self, number: usize) {
        let _ = number;
    }

    /// A thread of the core's own begins: it will call the host now and then, as long as the process
    /// lives.
    fn thread_started(&self) {}

    /// Where a block of the calling thread is now. May run code of the runtime's own (a finalizer, say),
    /// so it is called with nothing borrowed. It is called inside (`fork`), since the answer is mostly a
    /// matter of a few loads; a host that may block for it goes outside itself. Not called for
    /// [`Home::NATIVE`].
    fn presence(&self, home: Home) -> Presence {
        let _ = home;
        Presence::Here(0)
    }

    /// True if the calling thread runs code that the host runs between any two steps of other code of the
    /// thread: a signal handler, a finalizer. The interrupted code may hold a lock.
    fn is_interrupting(&self) -> bool {
        false
    }

    /// A simulation has come to a deadlock: the wait of the calling thread, its root, is about to end as
    /// interrupted, and the host keeps the exception that it wants raised there.
    fn deadlocked(&self) {}

    /// `Cancelled` is about to be raised on the calling thread, not for the first time with the same
    /// innermost scope. True: the last one was caught and not raised again, so the code swallows it.
    /// False: it is still on its way, and this raise comes out of clean-up code.
    fn was_swallowed(&self) -> bool {
        true
    }

    /// The code of the calling thread has swallowed `Cancelled`: it is about to be raised for the
    /// `raised`th time with the same innermost scope, raises in clean-up code not counted.
    fn cancel_swallowed(&self, raised: u32);
}

/// The installed runtime. Written once, by [`install`].
static HOST: once_cell::sync::OnceCell<&'static dyn Host> = once_cell::sync::OnceCell::new();

thread_local! {
    /// The calling thread's name, once it was asked for: cancelling is to stay cheap. A thread that is
    /// renamed later keeps its first name here.
    static NAME: OnceCell<Option<Arc<str>>> = const { OnceCell::new() };
}

/// Install the runtime, for the life of the process; if there is one already, that one stays. Call it
/// before any wait.
pub fn install(host: &'static dyn Host) {
    let _ = HOST.set(host);
}

/// See [`Host::interrupted`]. Without a host the wait goes on.
pub(crate) fn interrupted() -> ControlFlow<()> {
    HOST.get().map_or(ControlFlow::Continue(()), |host| {
        fork::outside(|| host.interrupted())
    })
}

/// See [`Host::max_sleep`].
pub(crate) fn max_sleep() -> Option<Duration> {
    HOST.get().and_then(|host| host.max_sleep())
}

/// A thread of the core begins, see [`Host::thread_started`]. Called by it before its first work.
pub(crate) fn thread_started() {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.thread_started());
    }
}

/// See [`Host::presence`]. Without a host a block is always on the stack.
#[cfg(any(feature = "python", test))]
pub(crate) fn presence(home: Home) -> Presence {
    match HOST.get() {
        Some(host) if !home.is_native() => host.presence(home),
        _ => Presence::Here(usize::MAX),
    }
}

/// See [`Host::is_interrupting`]. Without a host nothing interrupts.
pub(crate) fn is_interrupting() -> bool {
    HOST.get()
        .is_some_and(|host| fork::outside(|| host.is_interrupting()))
}

/// See [`Host::thread`]. Without a host all calls are ended, and nothing has to find the thread.
#[cfg(not(loom))]
pub(crate) fn thread() -> Option<HostThread> {
    HOST.get()
        .map_or(Some(HostThread { ident: 0, state: 0 }), |host| {
            host.thread()
        })
}

/// See [`Host::ends_calls`]. Without a host they are.
#[cfg(not(loom))]
pub(crate) fn ends_calls() -> bool {
    HOST.get().is_none_or(|host| host.ends_calls())
}

/// True if there is a host.
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) fn is_installed() -> bool {
    HOST.get().is_some()
}

/// See [`Host::end_call`]. Without a host nothing is done before and after it.
#[cfg(not(loom))]
pub(crate) fn end_call(call: &mut dyn BlockedCall) {
    match HOST.get() {
        Some(host) => fork::outside(|| host.end_call(call)),
        None => _ = call.end(),
    }
}

/// See [`Host::left_alone`].
#[cfg(not(loom))]
pub(crate) fn left_alone(thread: HostThread) {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.left_alone(thread));
    }
}

/// See [`Host::left_scope`].
#[cfg(not(loom))]
pub(crate) fn left_scope(number: usize) {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.left_scope(number));
    }
}

/// See [`Host::deadlocked`].
#[cfg(not(loom))]
pub(crate) fn deadlocked() {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.deadlocked());
    }
}

/// See [`Host::was_swallowed`]. Without a host each raise but the first follows a swallowed one.
pub(crate) fn was_swallowed() -> bool {
    HOST.get()
        .is_none_or(|host| fork::outside(|| host.was_swallowed()))
}

/// See [`Host::cancel_swallowed`].
pub(crate) fn cancel_swallowed(raised: u32) {
    if let Some(host) = HOST.get() {
        fork::outside(|| host.cancel_swallowed(raised));
    }
}

/// The calling thread's name, see [`Host::thread_name`]. Never call it under a lock or a borrow: the first
/// time it runs code of the host.
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
