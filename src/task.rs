//! A task: one run of one body on one thread.
//!
//! A kill is addressed to a task, never to a thread: before `Task::open` and after
//! `Task::shut`, which only the [boundary](crate::boundary) calls, the task refuses it, under the
//! same lock under which it would be posted, so no kill is seen by other code of the thread (I22).
//!
//! While the body is in a mask (clean-up, a commit) or holds a lock of ours, a kill waits,
//! bounded, and is delivered on the way out (I24).
//!
//! A kill can also be addressed to one block of the body, see `block`; and a body may run in
//! another process, see `remote`.
//!
//! Lock order: the interpreter's own lock if any, then `inner`. Nothing is called under
//! `inner` but [`Interrupter::post`] and [`RemoteBody::signal`].

mod block;
mod injected;
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
use policy::KillOutcome;
pub use remote::RemoteBody;

use crate::atomics::{self, AtomicBool, Mutex};
use crate::cause::{Cause, DEFAULT_GRACE};
use crate::clock::Time;
use crate::fork;
use crate::item::ItemId;
pub use crate::ledger::KillInfo;
use crate::ledger::{Ledger, Swept, Termination};
use crate::park::{Latch, WaitOutcome, Waiter};
use crate::stack::Stack;
use crate::token::tree::NodeRef;
use crate::token::{CancelSource, CancelToken};

/// How the host stops a body that does not look.
pub trait Interrupter: Send + Sync {
    /// Call `then` at a moment at which the host allows [`Interrupter::post`].
    fn with_host_lock(&self, then: &mut dyn FnMut());

    /// Make the body's thread raise `Killed` as soon as it runs code of the host.
    fn post(&self);

    /// On the body's own thread, after its end: take back what was posted and not yet raised.
    fn retract(&self);

    /// Asked on the body's own thread by a host that can choose where it raises: here? `place` is
    /// in the host's words.
    fn may_deliver_at(&self, place: Option<u32>) -> bool {
        let _ = place;
        true
    }

    /// A block swallows what is posted: have its thread call `Task::deliver_here` in front of its
    /// every step, from the next [`Interrupter::post`] on. Without effect for a host that cannot.
    fn escalate(&self) {}

    /// Have the body's thread call [`Task::stepped`] in front of every step of the body from now
    /// on, and raise `Killed` there if it says so. Called again and again, at a safe moment: the
    /// body may be elsewhere by now. Without effect for a host that cannot.
    fn trace(&self, _task: &Arc<Task>) {}

    /// No more of that. On the body's own thread, or at a safe moment.
    fn end_trace(&self, _task: &Task) {}

    /// Where the body is now, for reports: its calls, the outermost first.
    fn stack(&self) -> Option<Vec<String>>;
}

/// Tasks that have been launched, or entered, and are not over.
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// How many tasks have begun, or are about to, and have not ended.
#[cfg(feature = "python")]
pub(crate) fn unfinished() -> usize {
    UNFINISHED.load(Ordering::Relaxed)
}

/// One run of a body.
pub struct Task {
    id: u64,
    name: Arc<str>,
    source: CancelSource,
    ledger: Arc<Ledger>,
    /// A kill has been ordered; spares checkpoints the lock.
    requested: AtomicBool,
    inner: Mutex<TaskInner>,
    record: Mutex<Record>,
    over: Latch,
    /// It stands for a thread outside of any task.
    #[cfg_attr(not(any(feature = "python", test)), allow(dead_code))]
    of_thread: bool,
}

#[derive(Default)]
struct TaskInner {
    phase: Phase,
    request: Option<KillRequest>,
    /// What somebody throws into the body.
    injection: Option<Injection>,
    /// Open blocks that can be ended by force, innermost last.
    blocks: Vec<Block>,
    /// Open masks, innermost last, but they close in any order: a suspended generator may keep one
    /// open.
    masks: Vec<Mask>,
    /// How many have been made by [`Task::mask`].
    masks_made: u64,
    /// The desist wait that the body is in.
    waiter: Option<atomics::Arc<Waiter>>,
    /// What the body has others do when it is struck, see [`Task::on_delivery`].
    hooks: Vec<Weak<CancelSource>>,
    interrupter: Option<Arc<dyn Interrupter>>,
    /// Where the body runs, if its thread only waits for it.
    remote: Option<Arc<dyn RemoteBody>>,
    /// Something is, or may be, in the host's slot for this thread.
    posted: bool,
    /// The host has been told to trace the body.
    traced: bool,
    /// It was struck by force, and has shown no sign of life since.
    unanswered: bool,
    /// When a kill was last posted or arrived.
    last_delivery: Option<Time>,
    /// The rung whose `Killed` reached the body.
    delivered: Option<KillOutcome>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    New,
    /// Its thread is on its way to the boundary.
    Launched,
    Running,
    /// The body's last instruction has run.
    Closed,
    /// Given up while it ran.
    Abandoned,
}

/// What holds a kill off.
enum Mask {
    /// Something short, until then.
    Until(Time, MaskNumber),
    /// A clean-up zone, until its own end, which may still move.
    Zone(NodeRef),
}

/// Which of all masks that [`Task::mask`] has made for its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskNumber(u64);

impl Mask {
    fn end(&self, request: &KillRequest) -> Time {
        let end = match self {
            Mask::Until(end, _) => return *end,
            Mask::Zone(node) => node.own_deadline(),
        };
        // A zone inside a shield does not hear of the kill's own cancellation.
        if end.is_never() {
            request.cause.at + DEFAULT_GRACE
        } else {
            end
        }
    }
}

/// After a kill was raised, clean-up code has so long before it is raised again.
const RESEND_AFTER: Duration = Duration::from_millis(50);

/// A kill on its way.
#[derive(Clone)]
struct KillRequest {
    cause: Cause,
    /// Until then held locks hold it off.
    lock_grace_until: Time,
}

/// What happened to a task and what it held, for [`KillReport`](crate::stop::KillReport).
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) swept: Swept,
    pub(crate) requeued: Vec<ItemId>,
    pub(crate) fenced: Vec<ItemId>,
    pub(crate) killed_at: Option<KillOutcome>,
    /// `Cancelled` came out of the body.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) cancelled: bool,
    pub(crate) stack: Option<Stack>,
    pub(crate) blocked: Option<Arc<str>>,
}

/// What has reached a body.
pub enum Arrival {
    /// A kill, with its cause.
    Kill(Cause),
    /// What somebody has thrown.
    Injected(Injected),
}

/// Where a body is.
pub(crate) struct Place {
    pub(crate) stack: Stack,
    /// The innermost call, if it is known to have been there all the time it was struck.
    pub(crate) blocked: Option<Arc<str>>,
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has been done with it.
    Pending,
    /// Its body is about to begin.
    Launched,
    /// Its body runs.
    Running,
    /// Its body runs and was asked to stop.
    Cancelling,
    /// No instruction of its body will run any more.
    Over,
    /// Given up; its body may still run. Or left behind in the process that forked this one.
    Abandoned,
}

impl Task {
    /// A task, cancelled with `parent` if there is one.
    pub fn new(name: &str, parent: Option<&CancelToken>) -> Arc<Task> {
        Arc::new(Task::bare(name, parent))
    }

    fn bare(name: &str, parent: Option<&CancelToken>) -> Task {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name: Arc<str> = name.into();
        Task {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            source: parent.map_or_else(CancelSource::new, CancelToken::child),
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

    /// What cancels it.
    pub fn source(&self) -> &CancelSource {
        &self.source
    }

    pub(crate) fn node(&self) -> &NodeRef {
        self.source.node()
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Set when the task is over or abandoned and everything about it is recorded.
    pub fn over(&self) -> &Latch {
        &self.over
    }

    /// Where it is in its life.
    pub fn progress(&self) -> Progress {
        match self.inner.lock().phase {
            Phase::New => Progress::Pending,
            Phase::Launched | Phase::Running if self.is_lost_in_fork() => Progress::Abandoned,
            Phase::Launched => Progress::Launched,
            Phase::Running if self.node().is_cancelled() => Progress::Cancelling,
            Phase::Running => Progress::Running,
            Phase::Closed => Progress::Over,
            Phase::Abandoned => Progress::Abandoned,
        }
    }

    /// Its thread runs in the process that this one was forked from, and not here.
    pub(crate) fn is_lost_in_fork(&self) -> bool {
        self.ledger.is_lost_in_fork()
    }

    /// Its thread is being started: kills are taken from now on, though the body has not begun.
    /// False: that is so already, or it has begun.
    pub fn launch(&self) -> bool {
        let mut inner = self.inner.lock();
        let first = inner.phase == Phase::New;
        if first {
            inner.phase = Phase::Launched;
            UNFINISHED.fetch_add(1, Ordering::Relaxed);
        }
        first
    }

    /// It was not started after all.
    #[cfg(feature = "python")]
    pub(crate) fn unlaunch(&self) {
        let mut inner = self.inner.lock();
        if inner.phase == Phase::Launched {
            inner.phase = Phase::New;
            UNFINISHED.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where its body is now, for reports; `None` unless it runs under a host that can tell.
    pub(crate) fn place(&self) -> Option<Place> {
        let (interrupter, unanswered) = {
            let inner = self.inner.lock();
            // In a wait of ours it is not out of reach, but held off.
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

    pub(crate) fn record(&self) -> Record {
        self.record.lock().clone()
    }

    pub(crate) fn amend(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.lock());
    }

    // ------------------------------------------------------------------ waits

    /// The body begins a wait that a kill may end.
    pub(crate) fn begin_wait(&self, waiter: &atomics::Arc<Waiter>) {
        let mut inner = self.inner.lock();
        if let Some(target) = inner.due(&self.ledger) {
            // No need to wake: its thread has not parked.
            waiter.settle(WaitOutcome::Killed);
            inner.note_delivery_at_wait(target);
        }
        inner.waiter = Some(waiter.clone());
    }

    pub(crate) fn end_wait(&self) {
        self.inner.lock().waiter = None;
    }

    /// A kill is on its way.
    pub(crate) fn is_kill_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// The cause, if a kill is due at a checkpoint of the body.
    pub fn kill_due(&self) -> Option<Cause> {
        if !self.is_kill_requested() {
            return None;
        }
        let mut inner = self.inner.lock();
        let target = inner.due(&self.ledger)?;
        inner.note_delivery_at_wait(target);
        inner.raised_at_wait(target)
    }

    /// The cause of the kill that the body has been told of.
    pub(crate) fn kill_cause(&self) -> Option<Cause> {
        let mut inner = self.inner.lock();
        let target = inner.addressee(&self.ledger)?;
        inner.raised_at_wait(target)
    }

    /// What the host raises asynchronously has reached the body. `None`: no kill is on its way.
    pub fn arrived(&self) -> Option<Arrival> {
        let mut inner = self.inner.lock();
        match inner.addressee(&self.ledger)? {
            Target::Block(index) => inner.deliver_to_block(index).map(Arrival::Kill),
            Target::Injected => {
                let injected = inner.injected_arrives().map(Arrival::Injected);
                self.note_requests(&inner);
                injected
            }
            Target::Body => {
                let cause = inner.request.as_ref()?.cause.clone();
                // What is being taken back is raised, too, but not in the body.
                if std::mem::take(&mut inner.posted) {
                    inner.delivered = Some(KillOutcome::AsyncExc);
                }
                inner.unanswered = false;
                inner.last_delivery = Some(Time::now());
                Some(Arrival::Kill(cause))
            }
        }
    }

    /// Spares checkpoints the lock, as long as nothing is on its way.
    fn note_requests(&self, inner: &TaskInner) {
        self.requested
            .store(inner.is_kill_requested(), Ordering::Release);
    }

    /// The traced body is about to take a step. The cause, if it must not, but is to be struck.
    pub fn stepped(&self) -> Option<Cause> {
        let mut inner = self.inner.lock();
        if !inner.traced {
            return None;
        }
        inner.unanswered = false;
        if !self.may_deliver(&inner) {
            return None;
        }
        inner.delivered = Some(KillOutcome::Trace);
        inner.request.as_ref().map(|request| request.cause.clone())
    }

    /// Is the host to trace the body?
    pub fn is_traced(&self) -> bool {
        self.inner.lock().traced
    }

    // ------------------------------------------------------------------ masks

    /// Hold kills off until `until` at the latest; one that was posted and not yet raised is
    /// taken back. Close it with [`Task::unmask`].
    pub fn mask(&self, until: Time) -> MaskNumber {
        let number = {
            let mut inner = self.inner.lock();
            inner.masks_made += 1;
            let number = MaskNumber(inner.masks_made);
            inner.masks.push(Mask::Until(until, number));
            number
        };
        self.retract_behind_mask();
        number
    }

    /// Hold kills off until the zone's end. Close it with [`Task::unmask_zone`].
    pub(crate) fn mask_zone(&self, zone: &NodeRef) {
        self.inner.lock().masks.push(Mask::Zone(zone.clone()));
        self.retract_behind_mask();
    }

    /// Nobody posts while a mask is open; the order stands, and is delivered when it closes.
    fn retract_behind_mask(&self) {
        // An order that is not seen here comes after the mask, and finds it.
        if self.is_kill_requested() {
            self.retract();
        }
    }

    /// Take back what was posted and not yet raised, for the body is masked from now on, or is
    /// about to raise `Killed` by itself: one kill is not to strike twice.
    pub(crate) fn retract(&self) {
        let posted = self.inner.lock().withdraw_posted();
        block::retract_all(posted);
    }

    /// Close this mask and no other; from any thread. What it held off is due now, see
    /// [`Task::kill_due`].
    pub fn unmask(&self, number: MaskNumber) {
        self.close_mask(|mask| matches!(mask, Mask::Until(_, made) if *made == number));
    }

    pub(crate) fn unmask_zone(&self, zone: &NodeRef) {
        self.close_mask(|mask| matches!(mask, Mask::Zone(node) if node.same(zone)));
    }

    fn close_mask(&self, is_it: impl Fn(&Mask) -> bool) {
        let closed = {
            let mut inner = self.inner.lock();
            let at = inner.masks.iter().rposition(is_it);
            at.map(|at| inner.close_mask(at))
        };
        drop(closed); // unlocked: a zone's node may be the last of it
    }

    fn may_deliver(&self, inner: &TaskInner) -> bool {
        inner.due(&self.ledger) == Some(Target::Body)
    }

    // ------------------------------------------------------------------ the killer's side

    /// Until when a kill on its way is held off, at most; the past if it is not.
    pub(crate) fn deferred_until(&self) -> Time {
        let inner = self.inner.lock();
        let Some(request) = &inner.request else {
            return Time::from_nanos(0);
        };
        let locks = if self.ledger.len() == 0 {
            Time::from_nanos(0)
        } else {
            request.lock_grace_until
        };
        inner
            .masks
            .iter()
            .map(|mask| mask.end(request))
            .fold(locks, Time::max)
    }

    /// Order the kill: from now on the body's desist waits raise. False: nothing to kill.
    pub(crate) fn request_kill(&self, cause: &Cause, lock_grace_until: Time) -> bool {
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Launched | Phase::Running) {
            return false;
        }
        // A second killer may only press on: the first cause stays.
        match &mut inner.request {
            Some(request) => {
                request.lock_grace_until = request.lock_grace_until.min(lock_grace_until);
            }
            None => {
                inner.request = Some(KillRequest {
                    cause: cause.clone(),
                    lock_grace_until,
                });
            }
        }
        self.requested.store(true, Ordering::Release);
        true
    }

    /// A source that a kill cancels when it strikes the body, and not before: what holds the kill
    /// off holds it back. For waits that are not ours, as long as it is kept.
    pub fn on_delivery(&self) -> Arc<CancelSource> {
        let source = Arc::new(CancelSource::new());
        let mut inner = self.inner.lock();
        inner.hooks.retain(|hook| hook.strong_count() > 0);
        inner.hooks.push(Arc::downgrade(&source));
        source
    }

    /// Wake the body to be killed, if it may be: out of a desist wait, and what it waits for in
    /// ways of its own.
    pub(crate) fn deliver_at_wait(&self) {
        let (waiter, hooks, cause) = {
            let mut inner = self.inner.lock();
            let due = inner.due(&self.ledger);
            let waiter = inner.waiter.clone().zip(due);
            let settled = waiter.filter(|(waiter, _)| waiter.settle(WaitOutcome::Killed));
            if let Some((_, target)) = &settled {
                inner.note_delivery_at_wait(*target);
            }
            let hooks = if matches!(due, Some(Target::Body | Target::Injected)) {
                std::mem::take(&mut inner.hooks)
            } else {
                Vec::new()
            };
            let cause = due.and_then(|target| inner.cause(target));
            (settled.map(|(waiter, _)| waiter), hooks, cause)
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        for hook in hooks.iter().filter_map(Weak::upgrade) {
            if let Some(cause) = &cause {
                hook.node().cancel(cause.clone());
            }
        }
    }

    /// Its body runs, under a host that can strike it.
    #[cfg(feature = "python")]
    pub(crate) fn has_interrupter(&self) -> bool {
        self.inner.lock().interrupter.is_some()
    }

    /// Post the host's asynchronous exception, if the body may be struck now. False: it has no
    /// such force.
    pub(crate) fn deliver_async(&self) -> bool {
        let again = |inner: &TaskInner| {
            let again = |last| Time::now() - last >= RESEND_AFTER;
            inner.last_delivery.is_none_or(again)
        };
        let interrupter = {
            let inner = self.inner.lock();
            match (&inner.interrupter, inner.phase) {
                // Whoever waits for a safe moment keeps the body from running.
                (Some(_), _) if !again(&inner) => return true,
                (Some(interrupter), _) => interrupter.clone(),
                (None, Phase::Launched) => return true, // it will come
                (None, _) => return false,
            }
        };
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                let mut inner = self.inner.lock();
                if again(&inner) && self.may_deliver(&inner) {
                    inner.post(&*interrupter);
                    inner.last_delivery = Some(Time::now());
                }
            });
        });
        true
    }

    /// Have every step of the body struck, wherever it may be struck. False: it has no such force.
    pub(crate) fn deliver_by_trace(self: &Arc<Self>) -> bool {
        let interrupter = {
            let mut inner = self.inner.lock();
            let interrupter = match (&inner.interrupter, inner.phase) {
                (Some(interrupter), _) => interrupter.clone(),
                (None, Phase::Launched) => return true, // it will come
                (None, _) => return false,
            };
            if !inner.traced {
                inner.traced = true;
                inner.unanswered = true;
            }
            interrupter
        };
        fork::outside(|| {
            interrupter.with_host_lock(&mut || {
                interrupter.trace(self);
                // Its end may have come first, and did not see what was to be ended.
                if self.inner.lock().phase != Phase::Running {
                    interrupter.end_trace(self);
                }
            });
        });
        true
    }

    /// For a host that can begin to trace on the body's own thread only: bring it to
    /// [`Task::arrived`] there, if it may be struck.
    pub fn post_to_trace(&self, interrupter: &dyn Interrupter) {
        let mut inner = self.inner.lock();
        if !inner.posted && self.may_deliver(&inner) {
            inner.post(interrupter);
        }
    }

    /// Give the body up: its leases are fenced, what it holds is lost to all others. False: it
    /// came to its end in time.
    pub(crate) fn abandon(&self, kill: KillInfo) -> bool {
        let traced = {
            let mut inner = self.inner.lock();
            if inner.phase != Phase::Running {
                return false;
            }
            inner.phase = Phase::Abandoned;
            let traced = std::mem::take(&mut inner.traced);
            inner.interrupter.clone().filter(|_| traced)
        };
        if let Some(interrupter) = traced {
            fork::outside(|| interrupter.with_host_lock(&mut || interrupter.end_trace(self)));
        }
        let swept = self.ledger.sweep(&Termination::Abandoned(Arc::new(kill)));
        self.amend(|record| record.swept = swept);
        true
    }

    /// Who dies, for what it holds as this entry of its ledger. `None`: no kill has reached the
    /// body, or is just about to, or a block of it in which that was taken.
    #[cfg(any(feature = "python", all(test, not(loom))))]
    pub(crate) fn kill_info(&self, number: Option<u64>, stack: Option<Stack>) -> Option<KillInfo> {
        let inner = self.inner.lock();
        let request = inner.request.as_ref();
        match request.filter(|_| inner.delivered.is_some() || inner.posted) {
            Some(request) => Some(self.kill_info_of(request.cause.clone(), stack)),
            None => self.kill_info_in_block(&inner, number, stack),
        }
    }

    pub(crate) fn delivered(&self) -> Option<KillOutcome> {
        self.inner.lock().delivered
    }
}

impl Task {
    // ------------------------------------------------------------------ the boundary's side

    /// The body begins on the calling thread: from here kills are taken. What was thrown before is
    /// delivered now.
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

    /// The body's last instruction has run: from here kills are refused, and what was posted and
    /// not yet raised is retracted. Idempotent. One critical section decides (I22): a kill is
    /// posted before it, and withdrawn here, or finds the task closed.
    pub(crate) fn shut(&self) {
        let (blocks, posted, traced) = {
            let mut inner = self.inner.lock();
            if inner.phase == Phase::Running {
                inner.phase = Phase::Closed;
            }
            let posted = inner.withdraw_posted();
            let traced = std::mem::take(&mut inner.traced);
            let interrupter = inner.interrupter.take().filter(|_| traced);
            (std::mem::take(&mut inner.blocks), posted, interrupter)
        };
        drop(blocks); // unlocked: a node may be the last of it
        block::retract_all(posted);
        if let Some(interrupter) = traced {
            fork::outside(|| interrupter.end_trace(self));
        }
    }

    /// After [`Task::shut`]: was it abandoned before, and why was it to be killed, if it was?
    pub(crate) fn fate(&self) -> (bool, Option<Cause>) {
        let inner = self.inner.lock();
        let cause = inner.request.as_ref().map(|request| request.cause.clone());
        (inner.phase == Phase::Abandoned, cause)
    }

    /// The last step of a body that [`Task::open`] has begun: it is not unfinished any more.
    pub(crate) fn conclude(&self) {
        self.source.close();
        UNFINISHED.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TaskInner {
    fn close_mask(&mut self, at: usize) -> Mask {
        self.blocks
            .iter_mut()
            .for_each(|block| block.mask_closed(at));
        self.masks.remove(at)
    }

    fn post(&mut self, interrupter: &dyn Interrupter) {
        interrupter.post();
        self.posted = true;
        self.unanswered = true;
    }

    /// `Killed` is about to be raised at a wait: the first time, clean-up code gets its time
    /// before the host's exception follows.
    fn note_delivery_at_wait(&mut self, target: Target) {
        match target {
            Target::Body if self.delivered.is_none() => self.last_delivery = Some(Time::now()),
            Target::Body | Target::Injected => {}
            Target::Block(index) => self.note_block_delivery_at_wait(index),
        }
    }

    /// It is raised there. Returns the cause.
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

    /// What is on its way by force, taken out: to be taken back.
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
