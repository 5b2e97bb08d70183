//! A task: one run of one body on one thread.
//!
//! Guarantees:
//! 1. A kill is addressed to a task, never to a thread. Before `Task::open` and after `Task::shut`,
//!    which the [boundary](crate::boundary) alone calls, the task refuses it, under the same lock under
//!    which it would be posted: no other code of the thread ever sees it (I22).
//! 2. While a mask is open (a clean-up zone, a commit), or the body holds a desist lock, a kill is
//!    deferred. That is bounded, by the mask's end and by the request's time for locks; then the kill
//!    is delivered (I24).
//! 3. The first cause of a kill stays. Further requests can only shorten the time for locks.
//! 4. [`Task::over`] is set when all is recorded, so a thread that has waited for it reads a final
//!    record.
//!
//! # Phases
//!
//! | from | by | to |
//! |---|---|---|
//! | `New` | `launch` | `Launched`: a thread is being started for it |
//! | `Launched` | `unlaunch`: no thread could be started | `New` |
//! | `New`, `Launched` | `open`, on the body's thread | `Running` |
//! | `Running` | `shut`, on the body's thread | `Closed` |
//! | `Running` | `abandon`, on the killer's thread | `Abandoned` |
//!
//! Nothing leaves `Closed` and `Abandoned`; all other calls leave the phase as it is.
//!
//! # A kill of the body
//!
//! *Deferred* means that a mask is open whose end has not come, or that `lock_grace_until` has not come and
//! the ledger is not empty, or the body is inside of a module with locks of its own (I42). The host alone
//! can tell the latter, so that is decided where `Killed` is posted or raised from outside, not at a wait.
//! *Posted* means that an exception is, or may be, in the host's slot for the thread. A kill is *due* if it is requested, not deferred, and the phase is `Running`.
//!
//! | phase | requested | deferred | posted | what happens next |
//! |---|---|---|---|---|
//! | `New` | no | | no | `request_kill` refuses |
//! | `Launched`, `Running` | no | | no | `request_kill` records the request; waits and checkpoints pass |
//! | `Launched` | yes | | no | nothing is delivered; `open` makes it due |
//! | `Running` | yes | no | no | the next wait or checkpoint raises; `deliver_async` posts, at most every 50 ms |
//! | `Running` | yes | no | yes | the host raises, and `arrived` clears posted; or a wait raises first, and retracts it |
//! | `Running` | yes | yes | no | waits and checkpoints pass; nothing is posted; the killer tries again later |
//! | `Running` | yes | yes | yes | the step that began to defer it (`mask`, an acquired lock) retracts it at once |
//! | `Closed` | any | | no | `request_kill` refuses; `shut` has retracted a posted exception |
//! | `Abandoned` | yes | any | any | nothing is delivered any more; `shut`, if it comes, retracts |
//!
//! If the exception was raised before it could be retracted, `arrived` still takes it for the kill:
//! the exception is on its way through the body, and has to be accounted for.
//!
//! A kill can also be addressed to one block of the body (`block`), an exception of the user's goes
//! the same way (`injected`), and a body may run in another process (`remote`).
//!
//! # Locks
//!
//! All fields of `TaskInner` are read and written under `inner`. Lock order: the host's own lock, if
//! any, then `inner`. Under `inner` nothing is called but [`Interrupter::post`] and
//! [`RemoteBody::signal`], which only store or send, and the ledger, which calls nothing. Whatever
//! may run code of the host (retracting, dropping a node, waking) is done after the lock is released.
//! `record` is a leaf, and never taken together with `inner`.

mod block;
mod deliver;
mod injected;
mod mask;
pub(crate) mod policy;
mod remote;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

#[cfg(any(feature = "python", test))]
pub(crate) use block::BlockExit;
use block::{Block, Target};
pub use injected::Injected;
use injected::Injection;
use mask::Mask;
pub use mask::MaskNumber;
use policy::KillOutcome;
pub use remote::RemoteBody;

use crate::atomics::{self, AtomicBool, Mutex};
use crate::cause::Cause;
use crate::clock::Time;
use crate::fork;
use crate::item::ItemId;
pub use crate::ledger::KillInfo;
use crate::ledger::{Ledger, Swept};
use crate::park::{Latch, WaitOutcome, Waiter};
use crate::stack::Stack;
use crate::token::tree::NodeRef;
use crate::token::{CancelSource, CancelToken};

/// How the host raises an exception in a body that reaches no checkpoint.
///
/// Without one, a body can be stopped at its waits and checkpoints only.
pub trait Interrupter: Send + Sync {
    /// Calls `then` once, holding the lock under which the host allows [`Interrupter::post`]. While it
    /// is held, the body runs no code of the host, or [`Interrupter::sees_body`] is false. May block; called
    /// with no internal lock held.
    fn with_host_lock(&self, then: &mut dyn FnMut());

    /// The module that the body is inside of, if that holds locks of its own, which an exception raised now
    /// might leave held. On the body's own thread, or inside [`Interrupter::with_host_lock`], which is then
    /// held until the exception is posted.
    fn inside(&self) -> Option<Arc<str>> {
        None
    }

    /// Can [`Interrupter::inside`] be asked on other threads than the body's own? False where the body runs on
    /// in spite of [`Interrupter::with_host_lock`]; it is not asked there.
    fn sees_body(&self) -> bool {
        true
    }

    /// Has the body's thread raise `Killed` as soon as it runs code of the host. Only stores a note of
    /// that: it is called inside [`Interrupter::with_host_lock`], and under a lock of the task.
    fn post(&self);

    /// On the body's own thread: retracts an exception that was posted and not raised. Runs code of the
    /// host, so it is called with no lock held.
    fn retract(&self);

    /// Asked on the body's own thread, by a host that can choose where it raises: may `Killed` be raised
    /// at this place of the code? `place` is in the host's terms.
    fn may_deliver_at(&self, place: Option<u32>) -> bool {
        let _ = place;
        true
    }

    /// A block swallows posted exceptions, or one must not be raised where its thread is now: from the next
    /// [`Interrupter::post`] on, the thread has to call `Task::deliver_here` before each step. Without effect
    /// for a host that cannot do it.
    fn escalate(&self) {}

    /// From now on the body's thread calls [`Task::stepped`] before each step of the body, and raises
    /// `Killed` there if a cause is returned. Called again and again, inside
    /// [`Interrupter::with_host_lock`] while the body runs, because code that the body calls may have
    /// switched it off. Steps inside of a module with locks of its own may be left out, unless
    /// `everywhere`. Without effect for a host that cannot do it.
    fn trace(&self, _task: &Arc<Task>, _everywhere: bool) {}

    /// Ends [`Interrupter::trace`]. On the body's own thread, or inside
    /// [`Interrupter::with_host_lock`].
    fn end_trace(&self, _task: &Task) {}

    /// The calls that the body is in now, for reports, the outermost first. `None`: the host cannot tell.
    fn stack(&self) -> Option<Vec<String>>;
}

/// Number of tasks that were launched or opened and have not ended: raised by `launch` and `open`,
/// lowered by `unlaunch` and `conclude`. Relaxed, because only tests of leaks read it.
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// Number of tasks that have begun, or are about to, and have not ended.
#[cfg(feature = "python")]
pub(crate) fn unfinished() -> usize {
    UNFINISHED.load(Ordering::Relaxed)
}

/// One run of a body.
pub struct Task {
    /// Differs from that of every other task of the process.
    id: u64,
    /// For reports, and for the poison of locks that the task leaves behind.
    name: Arc<str>,
    /// Cancelled by a kill before it is requested, and by the parent; closed when the body has ended.
    source: CancelSource,
    /// The holds of the body. Recorded by the body's thread; swept by the boundary, or by the thread
    /// that abandons the task.
    ledger: Arc<Ledger>,
    /// True while a request, for the body or a block, or an injected exception is pending: spares
    /// checkpoints the lock. Written under `inner` only. Release, read with Acquire: a checkpoint that
    /// sees it finds the request that was stored before it.
    requested: AtomicBool,
    /// The state of the run, see the tables at the top.
    inner: Mutex<TaskInner>,
    /// For the kill's report. Written by the boundary, the thread that abandons the task, and the binding;
    /// final once `over` is set.
    record: Mutex<Record>,
    /// Set last of all: by the code that ran the boundary, or by the thread that abandoned the task.
    over: Latch,
    /// It stands for a thread outside of any task, which has forced blocks. Such a task is never over,
    /// and cannot be killed as a whole.
    #[cfg_attr(not(any(feature = "python", test)), allow(dead_code))]
    of_thread: bool,
}

/// The fields that the task's lock protects.
#[derive(Default)]
struct TaskInner {
    /// Written by the thread that starts the body's thread, by the boundary, and by `abandon`.
    phase: Phase,
    /// The kill of the body. Stored by the first killer, and never taken out.
    request: Option<KillRequest>,
    /// An exception to be raised in the body, once. Stored by any thread, taken by the body's own.
    injection: Option<Injection>,
    /// The injected exception that was raised last, see `injected`. Written by the body's thread.
    raised: Option<Injected>,
    /// Open blocks that can be ended by force, the innermost last. The body's thread opens and closes them;
    /// the enforcer's thread marks them.
    blocks: Vec<Block>,
    /// Open masks, the innermost last. Opened by the body's thread. They close in any order, and on
    /// any thread: a suspended generator may keep one open.
    masks: Vec<Mask>,
    /// Number of masks made by [`Task::mask`], for their numbers.
    masks_made: u64,
    /// The waiter of the desist wait that the body is in. Set and cleared by the body's thread; a killer
    /// settles it.
    waiter: Option<atomics::Arc<Waiter>>,
    /// Cancelled when a kill is delivered at a wait, see [`Task::on_delivery`]. Added by the body's
    /// thread, taken out by the killer's.
    hooks: Vec<Weak<CancelSource>>,
    /// Set by `open`, if the host has one, and taken out by `shut`.
    interrupter: Option<Arc<dyn Interrupter>>,
    /// Where the body runs, if its thread only waits for it. Set before the body begins.
    remote: Option<Arc<dyn RemoteBody>>,
    /// A kill of the body is, or may be, in the host's slot for this thread. Set by a killer together
    /// with [`Interrupter::post`]; cleared by the body's thread, when it arrives or is retracted.
    posted: bool,
    /// The host traces the body, and why. Set by a killer, cleared by `shut` and `abandon`.
    traced: Option<Tracing>,
    /// The body has run no code of the host since a kill was posted, or tracing began: it is in foreign
    /// code. Cleared by `arrived` and `stepped`, on the body's thread.
    unanswered: bool,
    /// When a kill of the body was last posted or arrived, or first settled a wait. The next one is posted
    /// [`RESEND_AFTER`] later.
    last_delivery: Option<Time>,
    /// The rung whose `Killed` was raised in the body, written by the body's thread. A stronger rung
    /// overwrites a weaker one.
    delivered: Option<KillOutcome>,
    /// The last look at the body, by a killer or by its own thread, has found it inside of a module with
    /// locks of its own.
    inside: bool,
    /// The modules in whose code the body was when a kill was posted or raised all the same, because the
    /// request's time had passed. For the report; each once.
    interrupted: Vec<Arc<str>>,
}

/// Where the run is. For the transitions see the top of the file.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    New,
    /// Its thread is on its way to the boundary. Kills are recorded already.
    Launched,
    /// The only phase in which a kill is delivered.
    Running,
    /// The body's last instruction has run.
    Closed,
    /// Abandoned while it ran; its thread may still run.
    Abandoned,
}

/// The purpose for which a body is traced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tracing {
    /// The rung `AsyncExc`: to raise `Killed` as soon as the body is at a place where that is allowed.
    UntilPlace,
    /// The rung `Trace`: to raise it in front of every step.
    EveryStep,
}

/// After a kill was posted or raised, the body's clean-up code has this long before the next is posted.
const RESEND_AFTER: Duration = Duration::from_millis(50);

/// A kill that was requested: of the body, of a block, or, with no cause of interest, an injection.
#[derive(Clone)]
struct KillRequest {
    /// Of the first request; it stays.
    cause: Cause,
    /// Until then held desist locks defer it, and modules with locks of their own. Only ever lowered.
    lock_grace_until: Time,
}

/// How a task ended and the fate of its holds, for [`KillReport`](crate::stop::KillReport).
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// Locks and permits that the sweep released or poisoned.
    pub(crate) swept: Swept,
    /// Items whose lease was given back to its queue.
    pub(crate) requeued: Vec<ItemId>,
    /// Items whose lease the abandoned body still believes to hold.
    pub(crate) fenced: Vec<ItemId>,
    /// The rung that ended the body; `None`: it ended by itself.
    pub(crate) killed_at: Option<KillOutcome>,
    /// `Cancelled` came out of the body. Written and read by the binding.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) cancelled: bool,
    /// Where `Killed` was raised, or where the body was when it was abandoned.
    pub(crate) stack: Option<Stack>,
    /// The foreign call that the abandoned body had not come back from.
    pub(crate) blocked: Option<Arc<str>>,
    /// The blocking calls of the body that were ended in its cancellation, in words, in order.
    pub(crate) ended_calls: Vec<Arc<str>>,
}

/// The meaning of an asynchronous exception that has reached a body.
pub enum Arrival {
    /// A kill, with its cause.
    Kill(Cause),
    /// An exception that another thread has injected.
    Injected(Injected),
}

/// The place in its code that a running body has reached.
pub(crate) struct Place {
    /// Its calls, the outermost first.
    pub(crate) stack: Stack,
    /// The innermost call, if the body has not left it since a kill was posted.
    pub(crate) blocked: Option<Arc<str>>,
}

/// The part of its life that a task is in, as callers see it: the phase, and whether it is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It was made, and its thread has not been started.
    Pending,
    /// Its body is about to begin.
    Launched,
    /// Its body runs.
    Running,
    /// Its body runs and was asked to stop.
    Cancelling,
    /// No instruction of its body will run any more.
    Over,
    /// Abandoned; its body may still run. Or its thread runs in the process that forked this one.
    Abandoned,
}

impl Task {
    /// A task, cancelled with `parent` if there is one.
    pub fn new(name: &str, parent: Option<&CancelToken>) -> Arc<Task> {
        Arc::new(Task::bare(name, CancelSource::without_deadline(parent)))
    }

    /// A task, cancelled with `parent`, and at `deadline` at the latest.
    #[cfg(feature = "python")]
    pub(crate) fn with_deadline(name: &str, parent: &CancelToken, deadline: Time) -> Arc<Task> {
        Arc::new(Task::bare(name, parent.child_with_deadline(deadline)))
    }

    /// A task that is not shared yet.
    fn bare(name: &str, source: CancelSource) -> Task {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name: Arc<str> = name.into();
        Task {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            source,
            ledger: Arc::new(Ledger::of(Some(name.clone()))),
            name,
            requested: AtomicBool::new(false),
            inner: Mutex::default(),
            record: Mutex::default(),
            over: Latch::new(),
            of_thread: false,
        }
    }

    /// Its number; never used again.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The source that cancels it.
    pub fn source(&self) -> &CancelSource {
        &self.source
    }

    /// The node of its source, which is the outermost node of the body's scopes.
    pub(crate) fn node(&self) -> &NodeRef {
        self.source.node()
    }

    /// The holds of the body.
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Set when the task is over or abandoned and everything about it is recorded.
    pub fn over(&self) -> &Latch {
        &self.over
    }

    /// The part of its life that it is in.
    pub fn progress(&self) -> Progress {
        match self.inner.lock().phase {
            Phase::New => Progress::Pending,
            Phase::Launched | Phase::Running if self.is_lost_in_fork() => Progress::Abandoned,
            Phase::Launched => Progress::Launched,
            Phase::Running if self.node().is_cancelled() => Progress::Cancelling,
            Phase::Running => Progress::Running,
            // Its thread had not come to the end when the process was forked.
            Phase::Closed if self.is_lost_in_fork() && !self.over.is_set() => Progress::Abandoned,
            Phase::Closed => Progress::Over,
            Phase::Abandoned => Progress::Abandoned,
        }
    }

    /// True if its thread runs in the process that this one was forked from, and not in this one.
    pub(crate) fn is_lost_in_fork(&self) -> bool {
        self.ledger.is_lost_in_fork()
    }

    /// In a forked child, of a task that has begun and not ended in the parent process: it is abandoned for
    /// good, its token is cancelled with a cause of the kind `Forked`, and its waiters go on (I37). Nothing
    /// else happens to any task.
    #[cfg(feature = "python")]
    pub(crate) fn lose_if_forked(&self) {
        if self.is_lost_in_fork() && self.progress() == Progress::Abandoned {
            self.inner.lock().phase = Phase::Abandoned;
            self.node().cancel(Cause::forked());
            self.over.set();
        }
    }

    /// To be called before its thread is started: kills are recorded from now on, though the body has
    /// not begun. False: it was launched before.
    pub fn launch(&self) -> bool {
        let mut inner = self.inner.lock();
        let first = inner.phase == Phase::New;
        if first {
            inner.phase = Phase::Launched;
            UNFINISHED.fetch_add(1, Ordering::Relaxed);
        }
        first
    }

    /// Undoes `launch`: the thread could not be started.
    #[cfg(feature = "python")]
    pub(crate) fn unlaunch(&self) {
        let mut inner = self.inner.lock();
        if inner.phase == Phase::Launched {
            inner.phase = Phase::New;
            UNFINISHED.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The place that its body has reached, for reports; `None` unless it runs under a host that can tell.
    /// May block: it waits for the host's lock.
    pub(crate) fn place(&self) -> Option<Place> {
        let (interrupter, unanswered) = {
            let inner = self.inner.lock();
            // A body in a desist wait is not in foreign code: there the kill is deferred.
            let unanswered = inner.unanswered && inner.waiter.is_none();
            (inner.interrupter.clone()?, unanswered)
        };
        let mut calls = None;
        fork::outside(|| interrupter.with_host_lock(&mut || calls = interrupter.stack()));
        let calls = calls?;
        Some(Place {
            stack: calls.concat().as_str().into(),
            blocked: calls
                .last()
                .filter(|_| unanswered)
                .map(|call| call.trim_end().into()),
        })
    }

    /// On the body's thread: a blocking call of it was ended, and it has met the error. Recorded if the task is
    /// cancelled: only then is the list short.
    #[cfg(feature = "python")]
    pub(crate) fn note_ended_call(&self, call: &str) {
        if self.node().is_cancelled() {
            self.amend(|record| record.ended_calls.push(call.into()));
        }
    }

    /// The system call that its thread sits in, in words; `None` if that is not known.
    #[cfg(not(loom))]
    pub(crate) fn sits_in(&self) -> Option<Arc<str>> {
        let runs = self.inner.lock().phase == Phase::Running;
        runs.then(|| self.node().slot()?.sits_in())
            .flatten()
            .map(Into::into)
    }

    /// A copy of the record so far.
    pub(crate) fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Changes the record, under its lock. `change` must not call back into the task.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.lock());
    }

    // ------------------------------------------------------------------ waits

    /// On the body's thread: it begins a wait that a kill may end. A kill that is due settles the waiter
    /// here; one that comes later finds it in `waiter`.
    pub(crate) fn begin_wait(&self, waiter: &atomics::Arc<Waiter>) {
        let mut inner = self.inner.lock();
        if let Some(target) = inner.due(&self.ledger) {
            // Not woken: its thread, the calling one, has not parked.
            waiter.settle(WaitOutcome::Killed);
            inner.note_delivery_at_wait(target);
        }
        inner.waiter = Some(waiter.clone());
    }

    /// On the body's thread: the wait is over, whatever has ended it.
    pub(crate) fn end_wait(&self) {
        self.inner.lock().waiter = None;
    }

    /// True if a kill or an injected exception is pending; it may be deferred.
    pub(crate) fn is_kill_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// On the body's thread, at a checkpoint: the cause, if a kill is due. The caller raises it, and
    /// counts as delivered at a wait.
    pub fn kill_due(&self) -> Option<Cause> {
        if !self.is_kill_requested() {
            return None;
        }
        self.settle_raised();
        let mut inner = self.inner.lock();
        let target = inner.due(&self.ledger)?;
        inner.note_delivery_at_wait(target);
        inner.raised_at_wait(target)
    }

    /// On the body's thread, after a kill has settled its wait: the cause. By now the kill may be deferred.
    pub(crate) fn kill_cause(&self) -> Option<Cause> {
        let mut inner = self.inner.lock();
        let target = inner.addressee(&self.ledger)?;
        inner.raised_at_wait(target)
    }

    /// The meaning of the asynchronous exception that the host is about to raise on the body's thread.
    /// `None`: nothing is pending, and the exception is not the core's.
    pub fn arrived(&self) -> Option<Arrival> {
        let mut inner = self.inner.lock();
        match inner.addressee(&self.ledger)? {
            Target::Block(index) => inner.deliver_to_block(index).map(Arrival::Kill),
            Target::Injected => {
                let (injected, former) = inner.injected_arrives()?;
                self.note_requests(&inner);
                drop(inner);
                drop(former); // unlocked: it is the host's
                Some(Arrival::Injected(injected))
            }
            Target::Body => {
                let cause = inner.request.as_ref()?.cause.clone();
                // The host raises an exception that is being retracted as well, but not in the body.
                if std::mem::take(&mut inner.posted) {
                    inner.delivered = Some(KillOutcome::AsyncExc);
                }
                inner.unanswered = false;
                inner.last_delivery = Some(Time::now());
                Some(Arrival::Kill(cause))
            }
        }
    }

    /// Sets the flag in front of the lock if a kill or an injection is pending, and clears it otherwise.
    fn note_requests(&self, inner: &TaskInner) {
        self.requested
            .store(inner.is_kill_requested(), Ordering::Release);
    }

    /// The traced body is about to take a step, at this place of its code. The cause, if it must not take it
    /// and `Killed` is to be raised there.
    pub fn stepped(&self, place: Option<u32>) -> Option<Cause> {
        let interrupter = {
            let mut inner = self.inner.lock();
            let tracing = inner.traced?;
            inner.unanswered = false;
            let is_due = tracing == Tracing::EveryStep || inner.may_send_again();
            if !is_due || !self.may_deliver(&inner) {
                return None;
            }
            inner.interrupter.clone()?
        };
        // Unlocked: the host looks at the body's frames.
        let (inside, may) = (interrupter.inside(), interrupter.may_deliver_at(place));
        let mut inner = self.inner.lock();
        if !may || !self.may_deliver(&inner) || !inner.may_interrupt_body(inside) {
            return None;
        }
        inner.delivered = Some(match inner.traced? {
            Tracing::UntilPlace => KillOutcome::AsyncExc,
            Tracing::EveryStep => KillOutcome::Trace,
        });
        inner.last_delivery = Some(Time::now());
        inner.request.as_ref().map(|request| request.cause.clone())
    }

    /// True if the host is to trace the body.
    pub fn is_traced(&self) -> bool {
        self.inner.lock().traced.is_some()
    }
}

impl Task {
    // ------------------------------------------------------------------ the boundary's side

    /// The body begins on the calling thread: from here on kills are delivered. An exception injected
    /// before is posted now.
    pub(crate) fn open(&self, interrupter: Option<Arc<dyn Interrupter>>) {
        let injected = {
            let mut inner = self.inner.lock();
            if inner.phase != Phase::Launched {
                UNFINISHED.fetch_add(1, Ordering::Relaxed);
            }
            inner.phase = Phase::Running;
            inner.interrupter = interrupter;
            inner.injection.is_some()
        };
        if injected {
            self.deliver_injected();
        }
    }

    /// The body's last instruction has run: from here on kills are refused, and an exception that was
    /// posted and not raised is retracted. Idempotent. One critical section decides (I22): a kill is
    /// posted before it, and withdrawn here, or finds the task closed.
    pub(crate) fn shut(&self) {
        let (blocks, injected, posted, traced) = {
            let mut inner = self.inner.lock();
            if inner.phase == Phase::Running {
                inner.phase = Phase::Closed;
            }
            let posted = inner.withdraw_posted();
            let traced = inner.traced.take();
            let interrupter = inner.interrupter.take().filter(|_| traced.is_some());
            let blocks = std::mem::take(&mut inner.blocks);
            let injected = (inner.injection.take(), inner.raised.take());
            (blocks, injected, posted, interrupter)
        };
        drop(blocks); // unlocked: each may have the last count of its node
        block::retract_all(posted);
        drop(injected); // unlocked: they are the host's, and may lead to this task
        if let Some(interrupter) = traced {
            fork::outside(|| interrupter.end_trace(self));
        }
    }

    /// After [`Task::shut`]: whether the task was abandoned before, and the cause of its kill, if one
    /// was requested.
    pub(crate) fn fate(&self) -> (bool, Option<Cause>) {
        let inner = self.inner.lock();
        let cause = inner.request.as_ref().map(|request| request.cause.clone());
        (inner.phase == Phase::Abandoned, cause)
    }

    /// The body that [`Task::open`] began has ended, and is swept: closes the source, and counts it out.
    pub(crate) fn conclude(&self) {
        self.source.close();
        UNFINISHED.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TaskInner {
    /// The body is inside of that module, or of none: may its kill be posted or raised there? Notes the
    /// answer.
    fn may_interrupt_body(&mut self, inside: Option<Arc<str>>) -> bool {
        let until = self
            .request
            .as_ref()
            .map(|request| request.lock_grace_until);
        self.may_interrupt(inside, until)
    }

    /// [`TaskInner::may_interrupt_body`], for a kill that the module defers until then.
    fn may_interrupt(&mut self, inside: Option<Arc<str>>, until: Option<Time>) -> bool {
        self.inside = inside.is_some();
        let Some(module) = inside else {
            return true;
        };
        if until.is_some_and(|until| until > Time::now()) {
            return false;
        }
        if !self.interrupted.contains(&module) {
            self.interrupted.push(module);
        }
        true
    }

    /// Has the time passed for which held locks, of desist or of other modules, defer the body's kill?
    fn may_interrupt_anywhere(&self) -> bool {
        let request = self.request.as_ref();
        request.is_none_or(|request| request.lock_grace_until <= Time::now())
    }

    /// Has clean-up code had its time since the last delivery?
    fn may_send_again(&self) -> bool {
        let again = |last| Time::now() - last >= RESEND_AFTER;
        self.last_delivery.is_none_or(again)
    }

    /// Called inside [`Interrupter::with_host_lock`], with the kill due.
    fn post(&mut self, interrupter: &dyn Interrupter) {
        interrupter.post();
        self.posted = true;
        self.unanswered = true;
    }

    /// `Killed` is about to be raised at a wait. The first time, clean-up code gets [`RESEND_AFTER`] before
    /// the host's exception follows; later ones do not put that off any further.
    fn note_delivery_at_wait(&mut self, target: Target) {
        match target {
            Target::Body if self.delivered.is_none() => self.last_delivery = Some(Time::now()),
            Target::Body | Target::Injected => {}
            Target::Block(index) => self.note_block_delivery_at_wait(index),
        }
    }

    /// `Killed`, or the injected exception, is raised at a wait now. Returns the cause.
    fn raised_at_wait(&mut self, target: Target) -> Option<Cause> {
        match target {
            Target::Body => {
                self.delivered.get_or_insert(KillOutcome::AtWait);
                self.request.as_ref().map(|request| request.cause.clone())
            }
            Target::Injected => self.raise_injected(),
            Target::Block(index) => self.raised_in_block(index),
        }
    }

    /// Clears all that is posted, and returns by which interrupter each is to be retracted, unlocked.
    fn withdraw_posted(&mut self) -> Vec<Arc<dyn Interrupter>> {
        let mut posted = self.withdraw_posted_blocks(0);
        let injection = self.injection.as_mut();
        let injected = injection.is_some_and(|injection| std::mem::take(&mut injection.posted));
        if std::mem::take(&mut self.posted) || injected {
            posted.extend(self.interrupter.clone());
        }
        posted
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
