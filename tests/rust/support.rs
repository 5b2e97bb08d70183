//! Helpers of the tests: threads that report when they are about to park, and an allocator that
//! counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use desist::Time;
use desist::boundary::{BodyEnd, Boundary};
use desist::host::{self, Host, HostThread};
use desist::stop::{KillReport, StopPolicy, kill};
use desist::task::{Interrupter, Task};

/// A time in the far future.
pub(crate) fn far() -> Time {
    Time::after(Duration::from_secs(3600))
}

/// A deadline that has long passed.
pub(crate) const PAST: Time = Time::from_nanos(1);

thread_local! {
    static PARKS: RefCell<Option<Sender<()>>> = const { RefCell::new(None) };
    static SWALLOWED: Cell<u32> = const { Cell::new(0) };
}

/// The core calls its host on the way into each park, after the waiter was registered: from then on a
/// grant or a cancel finds the waiter.
struct Spy;

impl Host for Spy {
    fn interrupted(&self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn max_sleep(&self) -> Option<Duration> {
        let _ = PARKS.try_with(|parks| parks.borrow().as_ref().map(|parks| parks.send(())));
        None
    }

    fn thread_name(&self) -> Option<Arc<str>> {
        thread::current().name().map(Arc::from)
    }

    fn deadlocked(&self) {}

    fn thread(&self) -> Option<HostThread> {
        Some(HostThread { ident: 0, state: 0 })
    }

    fn ends_calls(&self) -> bool {
        true
    }

    fn cancel_swallowed(&self, raised: u32) {
        SWALLOWED.set(raised);
    }
}

fn install() {
    host::install(&Spy);
}

/// The last report of swallowing on the calling thread: the number of raises.
pub(crate) fn swallowed() -> u32 {
    install();
    SWALLOWED.get()
}

/// Call this before the code whose swallowing [`swallowed`] reports.
pub(crate) fn watch_swallowing() {
    install();
    SWALLOWED.set(0);
}

/// A thread whose parks are reported.
pub(crate) struct Parker<T> {
    thread: JoinHandle<T>,
    parks: Receiver<()>,
}

impl<T: Send + 'static> Parker<T> {
    /// Run `body` on a thread of its own, reporting its parks.
    pub(crate) fn spawn(body: impl FnOnce() -> T + Send + 'static) -> Parker<T> {
        install();
        let (sender, parks) = channel();
        let thread = thread::spawn(move || {
            PARKS.set(Some(sender));
            let result = body();
            PARKS.set(None);
            result
        });
        Parker { thread, parks }
    }

    /// Run `body`, and return once it is in its first wait.
    pub(crate) fn spawn_parked(body: impl FnOnce() -> T + Send + 'static) -> Parker<T> {
        let parker = Parker::spawn(body);
        parker.until_parked();
        parker
    }

    /// Block until the thread parks (once more).
    pub(crate) fn until_parked(&self) {
        self.parks.recv().expect("the thread ended without waiting");
    }

    /// The result of the thread; its panic is propagated.
    pub(crate) fn join(self) -> T {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Run `body` as a task on a thread of its own; returns once it is in its first wait.
pub(crate) fn parked_task<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> (Arc<Task>, Parker<T>) {
    let task = Task::new("body", None);
    let theirs = task.clone();
    let parker = Parker::spawn_parked(move || {
        let boundary = Boundary::enter(&theirs, None);
        let result = body();
        boundary.leave(BodyEnd::Unwound);
        theirs.over().set();
        result
    });
    (task, parker)
}

/// An interrupter that never interrupts, so that the body is killed in its wait.
pub(crate) struct Feeble;

impl Interrupter for Feeble {
    fn with_host_lock(&self, _then: &mut dyn FnMut()) {}

    fn post(&self) {}

    fn retract(&self) {}

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

/// Kill a task that runs under a [`Feeble`] interrupter, in its current wait.
pub(crate) fn kill_in_its_wait(task: &Arc<Task>, reason: Option<&str>) -> KillReport {
    let policy = StopPolicy {
        cooperative: Duration::ZERO,
        at_wait: None,
        async_exc: Some(Duration::from_secs(3600)),
        trace: None,
        defer: Duration::ZERO,
        abandon: false,
    };
    kill(task, reason.map(Arc::from), &policy, &mut || ()).unwrap()
}

/// The bytes that the calling thread has allocated and not freed since one point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocated {
    pub(crate) blocks: isize,
    /// Rounded up as the system's allocator does, with its own bookkeeping.
    pub(crate) bytes: isize,
}

thread_local! {
    static ALLOCATED: Cell<Allocated> = const { Cell::new(Allocated { blocks: 0, bytes: 0 }) };
}

/// The bytes that `run` leaves allocated, and its result.
pub(crate) fn allocated_by<T>(run: impl FnOnce() -> T) -> (Allocated, T) {
    let before = ALLOCATED.get();
    let result = run();
    let after = ALLOCATED.get();
    let difference = Allocated {
        blocks: after.blocks - before.blocks,
        bytes: after.bytes - before.bytes,
    };
    (difference, result)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Count an allocated (1) or freed (-1) block.
#[allow(clippy::cast_possible_wrap)] // no block is that large
fn count(sign: isize, layout: Layout) {
    // malloc: a word of bookkeeping, in units of two words.
    let word = size_of::<usize>();
    let bytes = (layout.size() + word)
        .next_multiple_of(2 * word)
        .max(4 * word);
    let _ = ALLOCATED.try_with(|allocated| {
        let mut now = allocated.get();
        now.blocks += sign;
        now.bytes += sign * bytes as isize;
        allocated.set(now);
    });
}

#[allow(unsafe_code)] // the trait is unsafe
// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout);
        // SAFETY: the caller upholds the contract of `GlobalAlloc`, and it is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-1, layout);
        // SAFETY: the caller upholds the contract of `GlobalAlloc`, and it is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}
