//! The slots: one for each thread that is, or was, in a scope. A static table, so that a signal's handler
//! finds the slot by its index, and never an address.
//!
//! Guarantees:
//! 1. A slot belongs to one thread at a time, and its `tid` is that thread's until the thread gives it back,
//!    under the send lock: no signal goes to a number of the kernel that another thread has by now.
//! 2. The published flag is valid for the thread's own signal handler at every instant, and for another
//!    thread as long as it has the slot pinned.
//! 3. A cancellation of a published flag is noticed: by the canceller, which marks the slot, or by the thread,
//!    which looks at the flag after it has published it.
//!
//! Protocol.
//!
//! | field                      | written by                                        | read by                     |
//! |----------------------------|---------------------------------------------------|-----------------------------|
//! | `tid`                      | a thread that takes the free slot: CAS; its end   | senders, under the send lock |
//! | `flag`, `grace`            | its thread, when it enters or leaves a scope      | its handler; a thread that has pinned it |
//! | `home_frame`, `home_place` | its thread, likewise                              | the host, while the thread runs no code of the host's |
//! | `deadline`                 | its thread; the watcher, by a CAS, where it has passed | the watcher            |
//! | `not_before`, `ended`, `unraised` | its thread, also in the handler; a kill sets `not_before` | the watcher  |
//! | `own_code`, `masked_until` | its thread; the end of a mask                     | its handler                 |
//! | `pins`                     | the watcher, a kill                               | its thread, after it has replaced the flag |
//! | `task`                     | its thread                                        | the watcher, a kill         |
//! | `kill`                     | a kill, under its own lock                        | the watcher                 |
//! | `by_kill`                  | the watcher, while the host keeps the thread from going on | its handler        |
//! | `watched`, `fresh`         | cancellers and its thread set it, the watcher clears it | all                   |
//! | `has_ended`                | the watcher: set under the send lock, cleared when the host was told; until then a thread's end leaves the slot to it | a thread that looks for a free slot |
//! | `look_at`, `pause`         | the watcher                                       | the watcher                 |
//! | `order`, `sending`         | see `order` and `send`                            |                             |
//!
//! Pins (2): another thread raises `pins`, and then reads the flag; the thread replaces the flag, and then
//! waits until `pins` is zero, before it lets go of the memory behind the old flag. The fences of `fence` are
//! between the two steps on each side.
//!
//! The watched bit (3): a canceller sets the flag, then the bit. The watcher clears the bit first, and then
//! looks at the flag once more. The thread publishes, then looks at the flag and the bit. Checked by the models
//! in `models/foreign.rs`.
#![allow(unsafe_code)] // published flags are found through raw pointers, see 2
#![cfg_attr(loom, allow(dead_code))] // models use a part of it

use std::ptr;
#[cfg(not(loom))]
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[cfg(not(loom))]
use super::DueKill;
use super::fence;
use super::order::Order;
use crate::atomics::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::clock::Time;
use crate::host::{Home, HostThread};

/// The lowest bit of a published flag: cancelled.
const CANCELLED: u32 = 1;

/// So many calls one after the other are ended in code that raises no error for it.
const TRIES: u32 = 3;

/// What a thread publishes of its scopes: which cancellation ends its calls. A copy is kept with each scope,
/// for the return to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// The flag of the innermost visible node; null: no call is ended.
    pub(crate) flag: *const AtomicU32,
    /// The earliest visible deadline that no timer may know.
    pub(crate) deadline: Time,
    /// Where the block of that node was opened.
    pub(crate) home: Home,
}

impl View {
    /// Of a thread in no scope.
    pub(crate) const NONE: View = View {
        flag: ptr::null(),
        deadline: Time::NEVER,
        home: Home::NATIVE,
    };
}

/// See the table above. Two cache lines, since the processor fetches them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slot {
    /// The kernel's number of the thread; 0: the slot is free.
    pub(super) tid: AtomicU32,
    /// Threads that may be reading the flag at this moment.
    pins: AtomicU32,
    /// See [`View::flag`].
    flag: AtomicPtr<AtomicU32>,
    /// See [`View::deadline`]. 0 while the slot is free: without meaning then.
    deadline: AtomicU64,
    /// In nanoseconds: how long no further call is ended after the first one, if the canceller names no time.
    pub(super) grace: AtomicU64,
    /// See [`View::home`]: its frame.
    home_frame: AtomicUsize,
    /// And its place.
    home_place: AtomicUsize,
    /// No call is ended before this instant; 0: none was ended in the visible cancellation.
    pub(super) not_before: AtomicU64,
    /// Calls that were ended in the visible cancellation.
    pub(super) ended: AtomicU32,
    /// See [`HostThread`]. Written by the thread that takes the slot.
    host_ident: AtomicU64,
    host_state: AtomicUsize,
    /// A call was ended in the cancellation that the watcher looks at.
    has_ended: AtomicBool,
    /// Under a host: calls that were ended one after the other, of which the code has raised no error yet.
    pub(super) unraised: AtomicU32,
    /// The number of the task in whose body the thread is; 0: in none.
    task: AtomicU64,
    /// The kill of a task that was on this thread, for which its blocked call is to be ended.
    #[cfg(not(loom))]
    kill: Mutex<Option<Weak<dyn DueKill>>>,
    /// The call that the thread is in is being ended for a kill. While the host keeps the thread from going on.
    by_kill: AtomicBool,
    /// How deep the thread is in code of this crate: in a wait, which is settled in another way, or in a step that
    /// must not be interrupted half-way.
    pub(super) own_code: AtomicU32,
    /// No call is ended before this instant: kills of the thread's task are deferred.
    masked_until: AtomicU64,
    /// The watcher is to look at the thread, or does so again and again.
    watched: AtomicBool,
    /// The thread was cancelled since the watcher last looked.
    fresh: AtomicBool,
    /// When the watcher looks next.
    look_at: AtomicU64,
    /// In nanoseconds: how long it then waits.
    pause: AtomicU64,
    /// The process of the thread that sends to this one; 0: none does.
    pub(super) sending: AtomicU32,
    /// The order for this thread.
    pub(super) order: Order,
}

/// While this exists, the memory behind the slot's flag stays valid.
pub(crate) struct Pin<'a>(&'a Slot);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // Release: the thread, which acquires, frees after the last use.
        self.0.pins.fetch_sub(1, Ordering::Release);
    }
}

impl Pin<'_> {
    /// The flag that the thread has published; null for none. Valid as long as the pin.
    pub(crate) fn flag(&self) -> *mut AtomicU32 {
        self.0.flag.load(Ordering::Acquire)
    }

    /// True if the thread is in a scope that is cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        // SAFETY: null, or valid: the thread waits for this pin before it frees what it has published.
        let flag = unsafe { self.flag().as_ref() };
        flag.is_some_and(|flag| flag.load(Ordering::Acquire) & CANCELLED != 0)
    }
}

macro_rules! constructor {
    ($($constant:tt)?) => {
        /// A free slot: all zero, so that the table needs no space in the program's file.
        pub(crate) $($constant)? fn new() -> Slot {
            Slot {
                tid: AtomicU32::new(0),
                pins: AtomicU32::new(0),
                flag: AtomicPtr::new(ptr::null_mut()),
                deadline: AtomicU64::new(0),
                grace: AtomicU64::new(0),
                home_frame: AtomicUsize::new(0),
                home_place: AtomicUsize::new(0),
                not_before: AtomicU64::new(0),
                ended: AtomicU32::new(0),
                host_ident: AtomicU64::new(0),
                host_state: AtomicUsize::new(0),
                has_ended: AtomicBool::new(false),
                unraised: AtomicU32::new(0),
                task: AtomicU64::new(0),
                #[cfg(not(loom))]
                kill: Mutex::new(None),
                by_kill: AtomicBool::new(false),
                own_code: AtomicU32::new(0),
                masked_until: AtomicU64::new(0),
                watched: AtomicBool::new(false),
                fresh: AtomicBool::new(false),
                look_at: AtomicU64::new(0),
                pause: AtomicU64::new(0),
                sending: AtomicU32::new(0),
                order: Order::new(),
            }
        }
    };
}

impl Slot {
    #[cfg(not(loom))]
    constructor!(const);
    #[cfg(loom)]
    constructor!();

    /// In a model there is no table.
    #[cfg(loom)]
    #[allow(clippy::unused_self)]
    pub(crate) fn index(&self) -> usize {
        0
    }

    // ------------------------------------------------------------------ its own thread

    /// Publishes the view, by the slot's thread. After this no other thread uses the memory behind the
    /// flag that was published before.
    #[inline]
    pub(crate) fn publish(&self, view: &View) {
        self.home_frame.store(view.home.frame, Ordering::Relaxed);
        self.home_place.store(view.home.place, Ordering::Relaxed);
        self.deadline
            .store(view.deadline.as_nanos(), Ordering::Relaxed);
        // Release: a thread that reads the flag finds the node as it was made.
        self.flag.store(view.flag.cast_mut(), Ordering::Release);
        fence::light();
        // Acquire: uses under a pin have happened before.
        if self.pins.load(Ordering::Acquire) != 0 {
            self.wait_for_pins();
        }
    }

    /// The grace in the innermost scope, in nanoseconds. By the slot's thread, when it enters or leaves one with
    /// another grace.
    #[cfg(not(loom))]
    pub(crate) fn set_grace(&self, grace: u64) {
        self.grace.store(grace, Ordering::Relaxed);
    }

    /// A pin lasts for a few loads, or for the moment in which its thread does not run.
    #[cold]
    fn wait_for_pins(&self) {
        let mut rounds = 0_u32;
        while self.pins.load(Ordering::Acquire) != 0 {
            #[cfg(loom)]
            loom::thread::yield_now();
            #[cfg(not(loom))]
            std::thread::yield_now();
            rounds = rounds.saturating_add(1);
            #[cfg(not(loom))]
            if rounds > 1000 && table::is_of_parent() {
                self.pins.store(0, Ordering::Relaxed); // its thread is not in this process
            }
        }
    }

    /// The instant before which no call of the thread is ended; 0: none was ended yet. A scope that hides
    /// what is outside keeps it, and sets it again at its end.
    pub(crate) fn quiet_until(&self) -> u64 {
        self.not_before.load(Ordering::Relaxed)
    }

    /// See [`Slot::quiet_until`]. 0: the cancellation was left, or another one is visible.
    pub(crate) fn set_quiet_until(&self, instant: u64) {
        self.not_before.store(instant, Ordering::Relaxed);
        if instant == 0 {
            self.ended.store(0, Ordering::Relaxed);
            self.unraised.store(0, Ordering::Relaxed);
        }
    }

    /// The code of the thread raises the error of the call that was ended last. By that thread. True: its calls
    /// had been left alone, and the watcher is to look at it again.
    #[cfg(feature = "python")]
    pub(crate) fn note_raised(&self) -> bool {
        self.unraised.swap(0, Ordering::Relaxed) >= TRIES
    }

    /// A call was ended; by its thread, or while that cannot run. Code that keeps the errors of sleeps for itself goes on
    /// with what it slept for, and is never left alone: each sleep is ended. Without a host that raises errors
    /// it is not known what the code does.
    pub(super) fn note_unraised(&self, was_sleep: bool) {
        if self.host_ident.load(Ordering::Relaxed) == 0 {
            return;
        }
        if was_sleep {
            self.unraised.fetch_max(1, Ordering::Relaxed);
        } else {
            self.unraised.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// True if the code took the errors of the last few calls for another try, or kept them for itself: no more
    /// calls are ended then, before it raises one.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.unraised.load(Ordering::Relaxed) >= TRIES
    }

    /// True if the code has not raised the error of the call that was ended last.
    pub(crate) fn is_unraised(&self) -> bool {
        self.unraised.load(Ordering::Relaxed) != 0
    }

    /// Another thread: `kill` is to be raised. The grace is over, if a cancellation has begun.
    #[cfg(not(loom))]
    pub(crate) fn end_for(&self, kill: Weak<dyn DueKill>) {
        *self.lock_kill() = Some(kill);
        self.not_before.store(1, Ordering::Relaxed);
        self.mark();
    }

    #[cfg(not(loom))]
    fn lock_kill(&self) -> MutexGuard<'_, Option<Weak<dyn DueKill>>> {
        self.kill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kill that is due for the body in which the thread is.
    #[cfg(not(loom))]
    pub(crate) fn due_kill(&self) -> Option<Arc<dyn DueKill>> {
        let kill = self.lock_kill().as_ref()?.upgrade()?;
        let is_its = kill.task() == self.task.load(Ordering::Relaxed);
        (is_its && kill.is_due()).then_some(kill)
    }

    #[cfg(not(loom))]
    fn has_due_kill(&self) -> bool {
        self.due_kill().is_some()
    }

    /// There are no tasks in a model of slots.
    #[cfg(loom)]
    #[allow(clippy::unused_self)]
    fn has_due_kill(&self) -> bool {
        false
    }

    /// The thread begins or ends a task's body, by that thread. `task`: the number of the one it is in now.
    #[cfg(not(loom))]
    pub(crate) fn set_task(&self, task: u64) {
        self.task.store(task, Ordering::Relaxed);
    }

    /// Runs `attempt`, in which the thread's call is ended for a kill that is due. While the host keeps the thread
    /// from going on.
    #[cfg(not(loom))]
    pub(super) fn for_kill<R>(&self, attempt: impl FnOnce() -> R) -> R {
        self.by_kill.store(true, Ordering::Release);
        let made = attempt();
        self.by_kill.store(false, Ordering::Release);
        made
    }

    /// True while the thread's call is being ended for a kill.
    pub(super) fn is_for_kill(&self) -> bool {
        self.by_kill.load(Ordering::Acquire)
    }

    /// True if a call of the slot's thread was ended in the cancellation that is visible. By that thread.
    pub(crate) fn has_ended_call(&self) -> bool {
        self.ended.load(Ordering::Relaxed) != 0
    }

    /// For the handler: may a call be ended now, by what is published? On the slot's own thread only: it needs
    /// no fence to see its own stores, so the pin is made without one.
    #[cfg(not(loom))]
    pub(super) fn may_end(&self, now: u64) -> bool {
        self.pins.fetch_add(1, Ordering::Relaxed);
        let pin = Pin(self);
        self.own_code.load(Ordering::Relaxed) == 0
            && now >= self.masked_until.load(Ordering::Relaxed)
            && !self.is_left_alone()
            && (self.is_for_kill() && !pin.flag().is_null()
                || pin.is_cancelled()
                    && (self.is_unraised() || now >= self.not_before.load(Ordering::Relaxed)))
    }

    // ------------------------------------------------------------------ other threads

    /// Where the block was opened whose flag is published. While the thread cannot enter or leave a block.
    pub(crate) fn home(&self) -> Home {
        Home {
            frame: self.home_frame.load(Ordering::Relaxed),
            place: self.home_place.load(Ordering::Relaxed),
            suspendable: false,
        }
    }

    /// Keeps the memory behind the flag valid.
    pub(crate) fn pin(&self) -> Pin<'_> {
        self.pins.fetch_add(1, Ordering::SeqCst);
        fence::heavy();
        Pin(self)
    }

    /// The thread, as the host has it. While the thread cannot take or give back a slot.
    pub(crate) fn host_thread(&self) -> HostThread {
        HostThread {
            ident: self.host_ident.load(Ordering::Relaxed),
            state: self.host_state.load(Ordering::Relaxed),
        }
    }

    /// The instant before which calls are left alone, since kills are deferred.
    #[cfg(not(loom))]
    pub(crate) fn masked_until(&self) -> Time {
        Time::from_nanos(self.masked_until.load(Ordering::Relaxed))
    }

    /// The watcher, with the send lock held: it has ended a call.
    #[cfg(not(loom))]
    pub(super) fn note_ended(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// The watcher: has it ended a call since it was asked last?
    pub(crate) fn forget_ended(&self) -> bool {
        self.has_ended.swap(false, Ordering::Relaxed)
    }

    /// The slot is free, but for the watcher, which has ended a call of its last thread.
    #[cfg(not(loom))]
    fn is_left_behind(&self) -> bool {
        // Acquire: what the last thread's end was to see of the watcher happened before.
        self.tid.load(Ordering::Acquire) == 0 && self.has_ended.load(Ordering::Relaxed)
    }

    /// The earliest deadline that the watcher is to notice.
    pub(crate) fn deadline(&self) -> Time {
        Time::from_nanos(self.deadline.load(Ordering::Relaxed))
    }

    /// The watcher has looked at `passed`: the next deadline is another one. Without effect if the thread has
    /// published meanwhile.
    pub(crate) fn move_deadline(&self, passed: Time, next: Time) {
        let _ = self.deadline.compare_exchange(
            passed.as_nanos(),
            next.as_nanos(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Has the watcher look at the thread, from now on. Stores alone, for it is called under a node's lock.
    pub(crate) fn mark(&self) {
        self.fresh.store(true, Ordering::Relaxed);
        self.watched.store(true, Ordering::Release);
    }

    /// True if the watcher looks at the thread, or is about to.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// The watcher: stop looking, unless the thread is in a cancelled scope, or a kill of it is due. True: it is.
    pub(crate) fn unwatch(&self) -> bool {
        self.watched.store(false, Ordering::SeqCst);
        // The pin's fence: a thread that publishes a cancelled flag after this look sees the bit cleared.
        let is_to_stop = self.pin().is_cancelled() || self.has_due_kill();
        if is_to_stop {
            self.watched.store(true, Ordering::Relaxed);
        }
        is_to_stop
    }

    /// The watcher: stop looking, until the slot is marked again.
    pub(crate) fn stop_watching(&self) {
        self.watched.store(false, Ordering::SeqCst);
    }

    /// The watcher's own: when to look next, and the pause after that; anew if the thread was cancelled anew.
    #[cfg(not(loom))]
    pub(crate) fn schedule(&self, first: u64) -> (Time, u64) {
        if self.fresh.swap(false, Ordering::Relaxed) {
            (Time::from_nanos(0), first)
        } else {
            let at = self.look_at.load(Ordering::Relaxed);
            (Time::from_nanos(at), self.pause.load(Ordering::Relaxed))
        }
    }

    /// See [`Slot::schedule`].
    #[cfg(not(loom))]
    pub(crate) fn set_schedule(&self, look_at: Time, pause: u64) {
        self.look_at.store(look_at.as_nanos(), Ordering::Relaxed);
        self.pause.store(pause, Ordering::Relaxed);
    }
}

#[cfg(all(feature = "python", not(loom)))]
pub(crate) use table::CallsMasked;
#[cfg(not(loom))]
pub(crate) use table::{
    Seat, begin_child, has_work, in_use, left_behind, slot, with_calls_left_alone,
};

/// The table, and which thread has which slot.
#[cfg(not(loom))]
mod table {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;

    use super::{AtomicU32, Ordering, Slot, View, fence};
    use crate::clock::Time;
    use crate::host;

    /// As many threads at a time can be in scopes and have their calls ended. Memory is used only for
    /// slots that were taken once.
    const SIZE: usize = 1 << 14;

    /// Slot 0 is never taken: an index of 0 means none.
    static TABLE: [Slot; SIZE] = [const { Slot::new() }; SIZE];
    /// The indices below it may be in use. Only ever raised.
    static HIGH: AtomicUsize = AtomicUsize::new(1);
    /// Where the search for a free slot begins: the slot that was given back last.
    static HINT: AtomicUsize = AtomicUsize::new(1);
    /// The process to which the table belongs; another one in a forked child.
    static PROCESS: AtomicU32 = AtomicU32::new(0);

    thread_local! {
        /// The calling thread's slot.
        static MINE: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    }

    /// The slot with this index, if there is one that was taken once.
    pub(crate) fn slot(index: usize) -> Option<&'static Slot> {
        (index != 0 && index < HIGH.load(Ordering::Acquire)).then(|| &TABLE[index])
    }

    /// The slots that threads have now.
    pub(crate) fn in_use() -> impl Iterator<Item = &'static Slot> {
        let high = HIGH.load(Ordering::Acquire);
        let is_taken = |slot: &&Slot| slot.tid.load(Ordering::Acquire) != 0;
        TABLE[1..high].iter().filter(is_taken)
    }

    /// The slots whose threads have ended, and of which the watcher has to tell the host.
    pub(crate) fn left_behind() -> impl Iterator<Item = &'static Slot> {
        let high = HIGH.load(Ordering::Acquire);
        TABLE[1..high].iter().filter(|slot| slot.is_left_behind())
    }

    impl Slot {
        /// Its index in the table.
        pub(crate) fn index(&'static self) -> usize {
            (std::ptr::from_ref(self).addr() - TABLE.as_ptr().addr()) / size_of::<Slot>()
        }
    }

    /// The kernel's number of the calling thread.
    fn own_tid() -> u32 {
        #[cfg(target_os = "linux")]
        return rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        #[cfg(not(target_os = "linux"))]
        return 1; // nothing is sent there
    }

    /// A thread's place in the table, which is given back when this is dropped, on the same thread.
    #[derive(Debug)]
    pub(crate) struct Seat(&'static Slot);

    impl Seat {
        /// A slot for the calling thread, which has none, with this grace. `None`: all are taken, or the host wants none.
        pub(crate) fn take(grace: u64) -> Option<Seat> {
            let thread = host::thread()?;
            fence::prepare();
            PROCESS.store(std::process::id(), Ordering::Relaxed);
            let tid = own_tid();
            let hint = HINT.load(Ordering::Relaxed);
            let all = (hint..SIZE).chain(1..hint);
            let slot = all.map(|index| &TABLE[index]).find(|slot| {
                // Relaxed, then acquired by the CAS: the former thread's writes happened before.
                slot.tid.load(Ordering::Relaxed) == 0
                    && !slot.is_left_behind()
                    && slot
                        .tid
                        .compare_exchange(0, tid, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            })?;
            // The next search begins behind it. A slot is found by others once it has published.
            HINT.store((slot.index() + 1).min(SIZE - 1), Ordering::Relaxed);
            slot.host_ident.store(thread.ident, Ordering::Relaxed);
            slot.host_state.store(thread.state, Ordering::Relaxed);
            slot.set_grace(grace);
            slot.publish(&View::NONE);
            HIGH.fetch_max(slot.index() + 1, Ordering::AcqRel);
            MINE.set(Some(slot));
            Some(Seat(slot))
        }

        /// The slot.
        #[inline]
        pub(crate) fn slot(&self) -> &'static Slot {
            self.0
        }
    }

    impl Drop for Seat {
        /// Waits for a thread that sends to this one, which is a matter of its patience.
        fn drop(&mut self) {
            let slot = self.0;
            let _ = MINE.try_with(|mine| mine.set(None));
            slot.publish(&View::NONE);
            slot.set_quiet_until(0);
            slot.set_task(0);
            slot.masked_until.store(0, Ordering::Relaxed);
            slot.while_nothing_is_sent(|| {
                slot.order.reset();
                slot.tid.store(0, Ordering::Release);
            });
            HINT.store(slot.index(), Ordering::Relaxed);
        }
    }

    /// Runs code of this crate, a wait or one that must not be interrupted half-way: no call in it is ended.
    pub(crate) fn with_calls_left_alone<R>(own: impl FnOnce() -> R) -> R {
        let Ok(Some(slot)) = MINE.try_with(Cell::get) else {
            return own();
        };
        let _own = OwnCode::enter(slot);
        own()
    }

    /// Calls of the thread that has made it are left alone while this exists, but not beyond its time.
    #[cfg(feature = "python")]
    #[derive(Debug)]
    pub(crate) struct CallsMasked {
        slot: &'static Slot,
        /// As it was before.
        outer: u64,
    }

    #[cfg(feature = "python")]
    impl CallsMasked {
        /// `None`: the thread has no slot, so no call of it is ended.
        pub(crate) fn until(end: Time) -> Option<CallsMasked> {
            let slot = MINE.try_with(Cell::get).ok()??;
            let outer = slot
                .masked_until
                .fetch_max(end.as_nanos(), Ordering::Relaxed);
            Some(CallsMasked { slot, outer })
        }
    }

    #[cfg(feature = "python")]
    impl Drop for CallsMasked {
        fn drop(&mut self) {
            self.slot.masked_until.store(self.outer, Ordering::Relaxed);
        }
    }

    /// Code of this crate, entered; left when this is dropped.
    struct OwnCode(&'static Slot);

    impl OwnCode {
        fn enter(slot: &'static Slot) -> OwnCode {
            let depth = slot.own_code.load(Ordering::Relaxed);
            slot.own_code.store(depth + 1, Ordering::Release);
            OwnCode(slot)
        }
    }

    impl Drop for OwnCode {
        fn drop(&mut self) {
            let depth = self.0.own_code.load(Ordering::Relaxed);
            self.0.own_code.store(depth - 1, Ordering::Release);
        }
    }

    /// True in a forked child that does not know it yet.
    pub(super) fn is_of_parent() -> bool {
        PROCESS.load(Ordering::Relaxed) != std::process::id()
    }

    /// In a forked child, on its only thread: the other slots are free, and nothing was sent to this thread.
    pub(crate) fn begin_child() {
        PROCESS.store(std::process::id(), Ordering::Relaxed);
        let mine = MINE.try_with(Cell::get).ok().flatten();
        for slot in in_use() {
            slot.pins.store(0, Ordering::Relaxed);
            slot.sending.store(0, Ordering::Relaxed);
            slot.order.reset();
            let is_mine = mine.is_some_and(|mine| std::ptr::eq(mine, slot));
            if !is_mine {
                slot.publish(&View::NONE);
                slot.set_quiet_until(0);
            }
            slot.tid
                .store(if is_mine { own_tid() } else { 0 }, Ordering::Release);
        }
    }

    /// True if a thread has published a deadline, or is watched.
    pub(crate) fn has_work() -> bool {
        in_use().any(|slot| slot.deadline() != Time::NEVER || slot.is_watched())
    }
}

impl Slot {
    /// Runs `act` with the slot's send lock held. The lock names the process that holds it: a child that was
    /// forked meanwhile finds it free.
    #[cfg(not(loom))]
    pub(super) fn while_nothing_is_sent<R>(&self, act: impl FnOnce() -> R) -> R {
        let own = std::process::id();
        let mut holder = self.sending.load(Ordering::Relaxed);
        loop {
            if holder == own {
                std::thread::yield_now();
                holder = self.sending.load(Ordering::Relaxed);
                continue;
            }
            let exchange = self.sending.compare_exchange_weak(
                holder,
                own,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match exchange {
                Ok(_) => break,
                Err(now) => holder = now,
            }
        }
        let result = act();
        self.sending.store(0, Ordering::Release);
        result
    }
}
