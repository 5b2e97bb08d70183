//! Scopes: blocks of code that can be cancelled, one thread each.
//!
//! The rules, which `tests/rust/scope_model.rs` has in executable form:
//! 1. A scope's node is a child of the innermost open scope's. A shield's and a clean-up zone's
//!    node has no parent: what is outside is not *visible* from inside.
//! 2. Once a visible scope is cancelled, every checkpoint raises until that scope is left (I1).
//! 3. A stop that unwinds is absorbed by the outermost cancelled scope that is visible from
//!    inside the exiting one. This is decided anew at each exit from the state of the scopes;
//!    the exception carries no addressee (I3, I4).
//! 4. Deadlines are absolute, and the tightest visible one wins, for it cancels first (I6).
//! 5. A clean-up zone sees, instead of the cancellation outside, its time plus the grace that
//!    the canceller gave. All zones under one cancellation see the same instant, so together
//!    they get the grace once (I8), and the instant only moves earlier.

mod blocks;
mod forced;
mod rules;

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

pub use blocks::{Scope, cancel_scope, cleanup, fail_after, move_on_after, shield};
pub(crate) use forced::forget_force;
#[cfg_attr(not(feature = "python"), allow(unused_imports))]
pub(crate) use forced::{ForcedExit, Unwinding, close_above, enter_forced, exit_forced};
use rules::{absorb, beyond_zones, cutoff, meet_outer_zones, shorten_with, visible};

use crate::atomics::thread_local;
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::{ScopeMisuse, Stop};
use crate::host;
use crate::ledger::{Ledger, Termination};
use crate::park::Waiter;
use crate::task::Task;
use crate::token::tree::NodeRef;
use crate::token::{CancelToken, Registration};

/// From this raise on in one scope, a swallowing loop is slowed down.
const BRAKE_FROM: u32 = 10;
const LONGEST_BRAKE: Duration = Duration::from_millis(100);

/// What a scope lets its inside see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything outside.
    Plain,
    /// Nothing outside.
    Shield,
    /// Nothing outside until the grace is spent.
    Cleanup,
    /// The outermost frame of a task: its token.
    Task,
}

/// One open scope of a thread.
struct Frame {
    node: NodeRef,
    kind: Kind,
    grace: Option<Duration>,
    /// How often a checkpoint has raised while this was the innermost scope.
    raised: u32,
    /// Entries made in the ledger before the start: guards of later ones are the scope's.
    recorded: u64,
    /// Its number, if it can be ended by force.
    forced: Option<NonZeroU64>,
    /// A clean-up zone listens for cancellations outside.
    _listening: Vec<Registration>,
    /// Is told if the block's end never runs.
    ward: Option<Arc<dyn Ward>>,
}

/// What a block answers for beside its own code.
pub(crate) trait Ward: Send + Sync {
    /// The block's end has not run, nor will it, for what is around it has ended. What is below
    /// its scope has been cancelled. Called on the block's thread; may wait.
    fn forsaken(&self);
}

/// What the calling thread is in the middle of.
#[derive(Default)]
struct Context {
    frames: RefCell<Vec<Frame>>,
    task: RefCell<Option<Arc<Task>>>,
    /// The task's ledger, or the thread's own.
    ledger: RefCell<Option<Arc<Ledger>>>,
}

thread_local! {
    static CONTEXT: Context = Context::default();
}

thread_local! {
    /// Anything open at all? Lets a checkpoint outside any scope cost one load: unlike the context,
    /// this needs neither to be made nor to be dropped.
    static OPEN: Cell<bool> = const { Cell::new(false) };
}

/// How a scope was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was unwinding, if anything, goes on.
    Pass,
    /// The stop was this scope's, and ends here.
    Absorbed(Cause),
}

// ---------------------------------------------------------------------- entering and leaving

/// Open a scope on the calling thread.
pub(crate) fn enter(kind: Kind, deadline: Time, grace: Option<Duration>) -> NodeRef {
    let node = open(kind, deadline, grace, None);
    if kind == Kind::Cleanup {
        // Not under a borrow: what was posted is taken back, by code of the host.
        if let Some(task) = current_task() {
            task.mask_zone(&node);
        }
    }
    node
}

/// Open a plain scope for a block that answers for more than its own code.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn enter_for(ward: Arc<dyn Ward>, deadline: Time, grace: Option<Duration>) -> NodeRef {
    open(Kind::Plain, deadline, grace, Some(ward))
}

fn open(
    kind: Kind,
    deadline: Time,
    grace: Option<Duration>,
    ward: Option<Arc<dyn Ward>>,
) -> NodeRef {
    CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let mut listening = Vec::new();
        let node = match (kind, frames.last()) {
            (Kind::Plain, Some(inner)) => inner.node.child(Some(deadline)),
            (Kind::Cleanup, _) => {
                let cutoff = visible(&frames, frames.len()).map(cutoff).min();
                let node = NodeRef::root(Some(deadline.min(cutoff.unwrap_or(Time::NEVER))));
                listening = beyond_zones(&frames)
                    .map(|frame| shorten_with(&node, frame))
                    .collect();
                node
            }
            _ => NodeRef::root(Some(deadline)),
        };
        let recorded = context
            .ledger
            .borrow()
            .as_ref()
            .map_or(0, |ledger| ledger.next_seq());
        frames.push(Frame {
            node: node.clone(),
            kind,
            grace,
            raised: 0,
            recorded,
            forced: None,
            _listening: listening,
            ward,
        });
        OPEN.with(|open| open.set(true));
        node
    })
}

/// Leave a scope. `unwinding`: a `Cancelled` is on its way out of the block.
pub(crate) fn exit(node: &NodeRef, unwinding: bool) -> Result<Exit, ScopeMisuse> {
    let (frame, exit, ledger) = CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let Some(index) = frames.iter().rposition(|frame| frame.node.same(node)) else {
            return Err(ScopeMisuse::WrongThread);
        };
        if index + 1 != frames.len() {
            unmask(&frames.remove(index), context);
            return Err(ScopeMisuse::NotInnermost);
        }
        let exit = if unwinding {
            absorb(&frames)
        } else {
            Exit::Pass
        };
        let frame = frames.pop().ok_or(ScopeMisuse::NotEntered)?;
        unmask(&frame, context);
        let open = !frames.is_empty() || context.task.borrow().is_some();
        OPEN.with(|cell| cell.set(open));
        // Guards that the scope's code took and, by a hole in its host's unwinding, did not leave.
        let ledger = context
            .ledger
            .borrow()
            .as_ref()
            .filter(|ledger| ledger.next_seq() > frame.recorded)
            .cloned();
        Ok((frame, exit, ledger))
    })?;
    if let Some(ledger) = ledger {
        ledger.sweep_blocks(frame.recorded, &Termination::Unwound);
    }
    Ok(exit)
}

/// A clean-up zone no longer holds kills off.
fn unmask(frame: &Frame, context: &Context) {
    if let (Kind::Cleanup, Some(task)) = (frame.kind, context.task.borrow().as_ref()) {
        task.unmask_zone(&frame.node);
    }
}

/// The host has left these blocks by a hole in its unwinding, or not at all. May wait.
fn forsake(left: &[Frame]) {
    for frame in left.iter().rev().filter(|frame| frame.kind != Kind::Task) {
        close_unless_private(&frame.node);
        if let Some(ward) = &frame.ward {
            ward.forsaken();
        }
    }
}

/// What is still below a scope that was left is cancelled; a node nobody else knows just goes.
pub(crate) fn close_unless_private(node: &NodeRef) {
    if !node.is_private() {
        node.close(CauseKind::ScopeExited);
    }
}

// ---------------------------------------------------------------------- what the thread sees

/// The innermost open scope's node.
pub(crate) fn current_node() -> Option<NodeRef> {
    CONTEXT.with(|context| {
        context
            .frames
            .borrow()
            .last()
            .map(|frame| frame.node.clone())
    })
}

/// How many scopes are open on the calling thread.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn depth() -> usize {
    CONTEXT.with(|context| context.frames.borrow().len())
}

/// The task whose body the calling thread runs.
pub(crate) fn current_task() -> Option<Arc<Task>> {
    CONTEXT.with(|context| context.task.borrow().clone())
}

/// The cause, if a kill was held off on the calling thread and may arrive now.
pub(crate) fn kill_due() -> Option<Cause> {
    if !OPEN.with(Cell::get) {
        return None;
    }
    let cause = CONTEXT.with(|context| context.task.borrow().as_ref()?.kill_due())?;
    current_task()?.take_back();
    Some(cause)
}

/// Has a kill reached the code of the calling thread?
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn is_struck() -> bool {
    current_task().is_some_and(|task| task.delivered().is_some())
}

/// Something has been acquired: a kill that was posted while nothing was held yet is held off now,
/// and must not strike inside.
#[inline]
pub(crate) fn hold_off_kill() {
    if OPEN.with(Cell::get) {
        take_back_if_holding();
    }
}

fn take_back_if_holding() {
    let holds = |task: &&Arc<Task>| task.is_ordered() && task.ledger().len() > 0;
    let task = CONTEXT.with(|context| context.task.borrow().as_ref().filter(holds).cloned());
    if let Some(task) = task {
        task.take_back();
    }
}

/// Where the calling thread records what it takes.
pub(crate) fn current_ledger() -> Arc<Ledger> {
    with_ledger(Arc::clone)
}

/// [`current_ledger`], without a count of it. `act` must not run code of the host.
#[inline]
pub(crate) fn with_ledger<R>(act: impl FnOnce(&Arc<Ledger>) -> R) -> R {
    CONTEXT.with(|context| {
        if let Some(ledger) = &*context.ledger.borrow() {
            return act(ledger);
        }
        act(&first_ledger(context))
    })
}

/// The ledger of a thread outside any task, made when the thread takes something for the first time.
#[cold]
fn first_ledger(context: &Context) -> Arc<Ledger> {
    // Not under a borrow: the host names the thread.
    let made = Arc::new(Ledger::of(host::thread_name()));
    context.ledger.borrow_mut().get_or_insert(made).clone()
}

/// The token of the innermost scope, of the task if no scope is open, or one that is never
/// cancelled.
pub fn current_token() -> CancelToken {
    current_node().map_or_else(CancelToken::never, CancelToken::from_node)
}

/// The tightest deadline that the calling thread is under.
pub fn current_effective_deadline() -> Time {
    current_node().map_or(Time::NEVER, |node| node.effective_deadline())
}

/// `Err` if the calling thread is to stop.
#[inline]
pub(crate) fn checkpoint() -> Result<(), Stop> {
    if OPEN.with(Cell::get) { look() } else { Ok(()) }
}

/// [`checkpoint`], where something is open.
fn look() -> Result<(), Stop> {
    let stop = CONTEXT.with(|context| {
        if let Some(cause) = context
            .task
            .borrow()
            .as_ref()
            .and_then(|task| task.kill_due())
        {
            return Some(Stop::Killed(cause));
        }
        let frames = context.frames.borrow();
        cancelled(&frames)?.cause().map(Stop::Cancelled)
    });
    match stop {
        None => Ok(()),
        Some(stop) => Err(raising(stop)),
    }
}

/// The innermost node, if it is cancelled by now.
fn cancelled(frames: &[Frame]) -> Option<&NodeRef> {
    meet_outer_zones(frames);
    let node = &frames.last()?.node;
    node.is_cancelled_by_now().then_some(node)
}

/// Every stop passes here on its way to the user's code, so that swallowing is noticed.
pub(crate) fn raising(stop: Stop) -> Stop {
    if let (Stop::Killed(_), Some(task)) = (&stop, current_task()) {
        task.take_back();
    }
    if let Stop::Cancelled(_) = stop {
        let raised = CONTEXT.with(|context| {
            context.frames.borrow_mut().last_mut().map_or(0, |frame| {
                frame.raised = frame.raised.saturating_add(1);
                frame.raised
            })
        });
        if raised > 1 {
            host::swallowed(raised);
        }
        if raised >= BRAKE_FROM {
            // A loop that catches everything would otherwise spin at full speed.
            let brake =
                LONGEST_BRAKE.min(Duration::from_millis(u64::from(raised - BRAKE_FROM) + 1));
            Waiter::new().park(Time::after(brake));
        }
    }
    stop
}

// ---------------------------------------------------------------------- tasks

/// What the thread was in the middle of before a task's body.
pub(crate) struct Outer {
    frames: Vec<Frame>,
    task: Option<Arc<Task>>,
    ledger: Option<Arc<Ledger>>,
}

/// Begin a task's body on the calling thread: a fresh context with the task's token.
pub(crate) fn begin_task(task: &Arc<Task>) -> Outer {
    CONTEXT.with(|context| {
        let root = Frame {
            node: task.node().clone(),
            kind: Kind::Task,
            grace: None,
            raised: 0,
            recorded: 0,
            forced: None,
            _listening: Vec::new(),
            ward: None,
        };
        OPEN.with(|open| open.set(true));
        Outer {
            frames: context.frames.replace(vec![root]),
            task: context.task.replace(Some(task.clone())),
            ledger: context.ledger.replace(Some(task.ledger().clone())),
        }
    })
}

/// The body is over, whatever it left open.
pub(crate) fn end_task(outer: Outer) {
    let left = CONTEXT.with(|context| {
        let open = !outer.frames.is_empty() || outer.task.is_some();
        OPEN.with(|cell| cell.set(open));
        context.task.replace(outer.task);
        context.ledger.replace(outer.ledger);
        context.frames.replace(outer.frames)
    });
    forsake(&left); // outside the borrow, as what drops them
}

#[cfg(all(test, not(loom)))]
#[path = "../tests/rust/scope_model.rs"]
mod model;
