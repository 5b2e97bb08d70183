//! Models of the hand-offs between threads. loom runs each in every possible interleaving of its
//! threads, and with every value that a relaxed load may return.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_` runs them; with `-- --nocapture` each
//! prints the number of executions. `tests/seeded_bugs.py` shows that they can fail.
//!
//! Rules, each learned from a bug that a model without it let through:
//! 1. Every actor is a spawned thread, also one that only reads: the model's main thread is hardly
//!    interleaved with the others after it has spawned them.
//! 2. loom does not check freed memory. Nodes have a canary that is read on use and written on free,
//!    links have one that is written on use, and the live nodes are counted. loom's own `Arc` reports
//!    leaks.
//! 3. loom sees neither `std`'s atomics and `Arc` nor plain memory: an atomic that takes part comes
//!    from [`crate::atomics`], data under a lock is an [`Exclusive`], and the main thread outlives
//!    its actors, so that it drops the shared objects.
//! 4. No clock: a timeout is a thread that settles as `TimedOut`.

#![allow(unsafe_code)] // `Exclusive` is shared on purpose: loom checks that it may be
#![allow(clippy::unwrap_used)] // tests
#![allow(clippy::similar_names)] // `cancelled` by a `canceller`

mod barrier;
mod block;
mod callback;
mod condition;
mod event;
mod foreign;
mod gate;
mod latch;
mod lease;
mod lock;
mod park;
mod queue;
mod semaphore;
mod task;
mod token;
mod wait;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::boundary::{BodyEnd, Boundary};
use crate::cause::{Cause, CauseKind};
use crate::task::Task;
use crate::token::tree::live;

/// All interleavings.
const ALL: Option<usize> = None;
/// Interleavings with at most this many preemptions, that is, switches at which the thread need not
/// wait. Used where all would take minutes; nearly every bug needs only one or two.
/// `LOOM_MAX_PREEMPTIONS` overrides it.
const ONCE: Option<usize> = Some(1);
const TWICE: Option<usize> = Some(2);
const THRICE: Option<usize> = Some(3);

/// Run a model in all interleavings with at most `preemptions` preemptions.
fn explore(preemptions: Option<usize>, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 10_000; // of one execution: more means a livelock
    let bound = builder.preemption_bound;
    let before = live::count();
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = executions.clone();
    let began = Instant::now();
    builder.check(move || {
        assert_eq!(
            live::count(),
            before,
            "the execution before this one leaked nodes"
        );
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    assert_eq!(live::count(), before, "the last execution leaked nodes");
    let executions = executions.load(Ordering::Relaxed);
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    println!(
        "{name}: {executions} executions, preemptions {bound:?}, {:.1?}",
        began.elapsed()
    );
    assert!(
        executions > 1,
        "nothing was interleaved: are the actors spawned?"
    );
}

thread_local! {
    static OVERDUE: Cell<bool> = const { Cell::new(false) };
}

/// Whether every waiter of a lock has waited past its hand-over limit.
pub(crate) fn overdue() -> bool {
    OVERDUE.get()
}

/// [`explore`], where every waiter of a lock is past its hand-over limit.
fn explore_overdue(preemptions: Option<usize>, model: fn()) {
    OVERDUE.set(true);
    explore(preemptions, model);
    OVERDUE.set(false);
}

/// Spawn an actor; [`end`] returns its result.
fn spawn<T: 'static>(actor: impl FnOnce() -> T + 'static) -> loom::thread::JoinHandle<T> {
    loom::thread::spawn(actor)
}

/// Wait for the end of an actor.
fn end<T>(actor: loom::thread::JoinHandle<T>) -> T {
    actor.join().unwrap()
}

/// Run `body` inside the task, so that the task's source cancels its waits.
fn run_as<T>(task: &Arc<Task>, body: impl FnOnce() -> T) -> T {
    let boundary = Boundary::enter(task, None);
    let result = body();
    boundary.leave(BodyEnd::Unwound);
    result
}

/// An actor that cancels the task.
fn canceller(task: &Arc<Task>) -> loom::thread::JoinHandle<bool> {
    let node = task.node().clone();
    spawn(move || node.cancel(because("for a test")))
}

/// Run `body` inside the task, in an actor.
fn spawn_as<T: 'static>(
    task: &Arc<Task>,
    body: impl FnOnce() -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    let task = task.clone();
    spawn(move || run_as(&task, body))
}

/// A cause with a reason of its own.
fn because(reason: &str) -> Cause {
    Cause::now(CauseKind::Explicit, Some(reason.into()), None)
}

/// Stands for data that one thread at a time may use: loom fails a model in which two uses are not
/// ordered by a happens-before relation.
struct Exclusive(loom::cell::UnsafeCell<()>);

// SAFETY: loom's threads share one real thread, and there is nothing inside.
unsafe impl Sync for Exclusive {}

impl Exclusive {
    fn new() -> Arc<Exclusive> {
        Arc::new(Exclusive(loom::cell::UnsafeCell::new(())))
    }

    fn touch(&self) {
        self.0.with_mut(|_| ());
    }
}

/// A number that one thread at a time may use.
#[derive(Clone)]
struct Number {
    exclusive: Arc<Exclusive>,
    value: Arc<AtomicUsize>,
}

impl Number {
    fn new(value: usize) -> Number {
        Number {
            exclusive: Exclusive::new(),
            value: Arc::new(AtomicUsize::new(value)),
        }
    }

    fn get(&self) -> usize {
        self.exclusive.touch();
        self.value.load(Ordering::Relaxed)
    }

    fn set(&self, value: usize) {
        self.exclusive.touch();
        self.value.store(value, Ordering::Relaxed);
    }
}
