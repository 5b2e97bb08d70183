//! Scopes: blocks of code that can be cancelled, each of one thread, and the stack of them for each thread.
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
//!
//! 6. A scope is in force only on its own thread and only while its block is on that thread's stack (I41).
//!    `stack` asks the host for that: before the thread waits, raises, opens a scope inside another one or
//!    hands out its token, and when a scope is left that is not the innermost. Entering and leaving a
//!    scope outside of any other one asks nothing.
//!
//! The cancellations that each `Kind` lets the code inside see:
//!
//! | kind    | parent of its node      | cancelled outside | its own deadline | a kill               |
//! |---------|-------------------------|-------------------|------------------|----------------------|
//! | Plain   | the innermost open node | raises            | raises           | raises               |
//! | Shield  | none                    | hidden            | raises           | raises               |
//! | Cleanup | none                    | hidden until the cut-off of rule 5, then raises | raises | deferred until the zone's deadline or end (I24, I25) |
//! | Task    | the task's parent token | raises, through the token | raises   | raises               |
//!
//! "Raises" holds for every checkpoint inside, at any depth, unless a frame further in hides it. A kill
//! is absorbed by no scope of this file: it ends at the boundary of its task, or in the forced block
//! that it is meant for, see `forced`.
//!
//! Protocol. Each thread has one `Context`, which only this thread reads and writes; no lock is
//! needed. Other threads reach an open scope through its node alone, to cancel it or to move its
//! deadline, and the owning thread sees that at its next checkpoint, or by the hook of its wait.
//! `OPEN` says whether the context has a frame or a task; each function that changes either writes it.
//!
//! | step                     | `frames`                        | `task`, `ledger`              |
//! |--------------------------|---------------------------------|-------------------------------|
//! | `enter`                | push                            |                               |
//! | `exit`                 | pop; removed if not innermost   |                               |
//! | `begin_task`           | replaced by one `Task` frame    | the task's, the former saved  |
//! | `end_task`             | the former ones again           | the former ones again         |
//! | `enter_forced`         | push                            | a task of the thread, if it had none |
//! | `exit_forced`          | pop                             | none again, after the last forced block |
//! | `close_above`          | cut back to the killed block    | as `exit_forced`            |
//! | `stack::settle`        | suspended ones move to `away` and back, dead ones go | as `exit_forced` |
//! | `stack::discard`       | the one of a block that is no more is removed        | as `exit_forced` |
//!
//! Lock order: a borrow of the context, then a node's lock, the timer's, or the task's state. No code
//! of the host or of a user runs under a borrow, since it may enter a scope on this thread. So frames
//! are dropped, locks swept and posted exceptions retracted after the borrow has ended, and the
//! callbacks of a deadline that a checkpoint notices run on the callback thread. In virtual time there is
//! none; there the thread that advances the clock runs them, before any checkpoint can notice the deadline.
//!
//! `rules` decides what is visible and what is absorbed, `foreign_calls` publishes it for calls of other code,
//! `forced` has the blocks that are ended by
//! force, `blocks` the closures for Rust programs. Relies on `token` (the tree, the timer), on `task`
//! (whether a kill is due) and on `ledger` (the holds of a scope's code).

mod blocks;
#[cfg(any(feature = "python", test))]
mod forced;
#[cfg_attr(loom, path = "scope/no_foreign_calls.rs")]
mod foreign_calls;
mod rules;
#[cfg(any(feature = "python", test))]
mod stack;

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

pub use blocks::{Scope, cancel_scope, cleanup, fail_after, move_on_after, shield};
#[cfg(any(feature = "python", all(test, not(loom))))]
pub(crate) use forced::close_above;
#[cfg(any(feature = "python", test))]
pub(crate) use forced::{ForcedExit, Unwinding, enter_forced, exit_forced};
use foreign_calls::{Place, Published};
#[cfg(feature = "python")]
pub(crate) use foreign_calls::{has_ended_call, leave_calls_alone, note_raised};
use rules::{absorb, cutoff, end_nested_zones, limiting, reaching, shorten_on_cancel, visible};
#[cfg(feature = "python")]
pub(crate) use stack::discard;
#[cfg(any(feature = "python", test))]
use stack::settle;
#[cfg(feature = "python")]
pub(crate) use stack::settle_before;

use crate::atomics::thread_local;
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::{ScopeMisuse, Stop};
use crate::foreign::Slot;
use crate::host::{self, Home};
use crate::ledger::{AbandonHook, Ledger, Termination};
use crate::park::Waiter;
use crate::task::Task;
use crate::token::tree::NodeRef;
use crate::token::{CancelToken, Registration};

/// From this raise on in one scope, each checkpoint first sleeps, a millisecond longer each time: code
/// that swallows its stop in a loop would otherwise spin at full speed.
const BRAKE_FROM: u32 = 10;
/// The longest of these sleeps. Short enough that the loop still notices when it is to end.
const LONGEST_BRAKE: Duration = Duration::from_millis(100);

/// Which cancellations the code inside a scope sees; the columns are in the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything outside: a timeout, a `cancel_scope`.
    Plain,
    /// Nothing outside, for a bounded time.
    Shield,
    /// Nothing outside until the grace is spent, and no kill: code that must finish.
    Cleanup,
    /// The outermost frame of a task: its token. Only [`begin_task`] makes one, and no scope is left by it.
    Task,
}

/// One open scope of a thread. Fixed when it is entered, but for `raised` and `forced`.
struct Frame {
    /// Shared with tokens and, for a scope of the host, with the object that stands for the block. Any
    /// thread may cancel it or move its deadline.
    node: NodeRef,
    /// Decides what is visible from inside.
    kind: Kind,
    /// The time of clean-up zones inside when this scope is cancelled and the cause names no grace.
    grace: Option<Duration>,
    /// How often `Cancelled` was raised while this was the innermost scope, raises in the clean-up of one
    /// before not counted. From the second time on, the code inside is known to swallow it.
    raised: u32,
    /// Where the block was opened: for the host, which finds it on the stack.
    #[cfg_attr(not(any(feature = "python", test)), allow(dead_code))]
    home: Home,
    /// The sequence number that the thread's ledger would have given next when the scope was entered:
    /// entries from here on were made inside. 0 if the thread had no ledger then.
    first_seq: u64,
    /// The block's number in its task, if it can be ended by force. Set once, by [`enter_forced`].
    #[cfg_attr(not(any(feature = "python", test)), allow(dead_code))]
    forced: Option<NonZeroU64>,
    /// Boxed: few scopes have any.
    hooks: Option<Box<Hooks>>,
    /// What the thread publishes while this is the innermost frame.
    published: Published,
}

/// What runs at events of one scope.
struct Hooks {
    /// Of a clean-up zone: callbacks at the frames outside, which move the zone's deadline earlier.
    /// Unregistered when the frame is dropped, which may wait for one that is running.
    _cutoffs: Vec<Registration>,
    /// Runs if the block's end never does.
    abandon_hook: Option<Arc<dyn AbandonHook>>,
}

impl Frame {
    /// See [`Hooks::abandon_hook`].
    fn abandon_hook(&self) -> Option<&Arc<dyn AbandonHook>> {
        self.hooks.as_ref()?.abandon_hook.as_ref()
    }
}

/// The scopes and the task that the calling thread is in. The cells are separate, since a ledger is
/// looked up while the frames are borrowed.
#[derive(Default)]
struct Context {
    /// The slot in which the thread publishes its scopes. The first field, so that at the thread's end it is
    /// given back before the nodes are dropped.
    place: Place,
    /// The scopes in force, innermost last, as far as the thread has noticed (see `stack`). In a task's
    /// body the first is of [`Kind::Task`].
    frames: RefCell<Vec<Frame>>,
    /// Open scopes whose blocks were not on the stack when the thread last looked: suspended generators'.
    away: RefCell<Vec<Frame>>,
    /// The task whose body runs; outside of any task, the one that stands for the thread while it is in
    /// a forced block.
    task: RefCell<Option<Arc<Task>>>,
    /// The task's ledger, or the thread's own, which is made when it is first needed.
    ledger: RefCell<Option<Arc<Ledger>>>,
}

impl Context {
    /// Puts a task in the place of the one whose body runs, which is returned; the slot has its number.
    fn set_task(&self, task: Option<Arc<Task>>) -> Option<Arc<Task>> {
        self.place
            .set_task(task.as_ref().map_or(0, |task| task.id()));
        self.task.replace(task)
    }
}

thread_local! {
    /// See [`Context`].
    static CONTEXT: Context = Context::default();
}

thread_local! {
    /// True exactly while the context has a frame, also one that is away, or a task. Lets a checkpoint outside any scope cost
    /// one load: unlike the context, this needs neither to be made nor to be dropped.
    static OPEN: Cell<bool> = const { Cell::new(false) };
}

/// The effect of a scope's exit on the stop that unwinds out of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nothing: an exception that is unwinding goes on.
    Pass,
    /// It was this scope's, and ends here. The cause is the scope's own. Boxed: most exits absorb nothing.
    Absorbed(Box<Cause>),
}

/// In a Rust program each block is one call, so it is in force while it is open.
#[cfg(not(any(feature = "python", test)))]
fn settle() {}

// ---------------------------------------------------------------------- entering and leaving

/// Open a scope on the calling thread; [`exit`] leaves it. `deadline`: absolute, [`Time::NEVER`] for
/// none. `grace`: see [`Frame::grace`]. Never blocks, and is no checkpoint: a scope inside a cancelled
/// one is entered, and its first checkpoint raises. `home`: where the block was opened. A caller whose home
/// is not native has called `settle_before`, since a child of a scope that is not in force would be cancelled
/// with it.
pub(crate) fn enter(kind: Kind, deadline: Time, grace: Option<Duration>, home: Home) -> NodeRef {
    let node = open(kind, deadline, grace, home, Extras::default());
    if kind == Kind::Cleanup {
        // Not under a borrow: an exception that was posted is retracted, by code of the host.
        if let Some(task) = current_task() {
            task.mask_zone(&node);
        }
    }
    node
}

/// What few scopes have.
#[derive(Default)]
pub(crate) struct Extras<'a> {
    /// A token with which the scope is cancelled as well.
    #[cfg_attr(not(any(feature = "python", test)), allow(dead_code))]
    pub(crate) token: Option<&'a CancelToken>,
    /// Of a block that has threads or the like to end: does so if the block's end never runs.
    pub(crate) abandon_hook: Option<Arc<dyn AbandonHook>>,
}

/// [`enter`], for a plain scope with extras.
#[cfg(feature = "python")]
pub(crate) fn enter_with(
    extras: Extras<'_>,
    deadline: Time,
    grace: Option<Duration>,
    home: Home,
) -> NodeRef {
    open(Kind::Plain, deadline, grace, home, extras)
}

/// [`enter`], without the mask of a clean-up zone.
fn open(
    kind: Kind,
    deadline: Time,
    grace: Option<Duration>,
    home: Home,
    extras: Extras<'_>,
) -> NodeRef {
    CONTEXT.with(|context| {
        let mut frames = context.frames.borrow_mut();
        let mut hooks = extras.abandon_hook.map(|hook| Hooks {
            _cutoffs: Vec::new(),
            abandon_hook: Some(hook),
        });
        let slot = context.place.slot();
        let index = slot.map_or(0, Slot::index);
        let node = match (kind, frames.last()) {
            // A block that can be suspended would keep the cancellation of one around it when it is
            // resumed elsewhere; `reaching` finds that one without the tree.
            (Kind::Plain, Some(inner)) if !home.suspendable => {
                inner.node.child_of(index, Some(deadline))
            }
            (Kind::Cleanup, _) => {
                let cutoff = visible(&frames, frames.len()).map(cutoff).min();
                let deadline = deadline.min(cutoff.unwrap_or(Time::NEVER));
                let node = NodeRef::root_of(index, Some(deadline));
                let cutoffs = limiting(&frames).map(|frame| shorten_on_cancel(&node, frame));
                hooks = Some(Hooks {
                    _cutoffs: cutoffs.collect(),
                    abandon_hook: None,
                });
                node
            }
            _ => NodeRef::root_of(index, Some(deadline)),
        };
        if let Some(token) = extras.token {
            node.link_to(token.node());
        }
        let outer = frames.last().map(|frame| &frame.published);
        let own_deadline = node.own_deadline();
        let published = Published::inside(outer, kind, own_deadline, home);
        let first_seq = context
            .ledger
            .borrow()
            .as_ref()
            .map_or(0, |ledger| ledger.next_seq());
        frames.push(Frame {
            node: node.clone(),
            kind,
            grace,
            raised: 0,
            home,
            first_seq,
            forced: None,
            hooks: hooks.map(Box::new),
            published,
        });
        if let Some(slot) = slot {
            foreign_calls::entered(slot, &mut frames);
        }
        OPEN.with(|open| open.set(true));
        node
    })
}

/// Leave a scope. `unwinding`: a `Cancelled` is on its way out of the block; only then can the scope
/// absorb. Reclaims the locks that blocks inside have taken and not released (I20). Scopes entered later
/// that are not in force are no hindrance: suspended ones stay, and those whose ends were skipped go.
///
/// # Errors
/// [`ScopeMisuse::WrongThread`] if the scope is not open on this thread, and then nothing has changed.
/// [`ScopeMisuse::NotInnermost`] if a scope entered later is in force; this one is removed all the same,
/// so that the thread does not keep its cancellation forever, and absorbs nothing.
pub(crate) fn exit(node: &NodeRef, unwinding: bool) -> Result<Exit, ScopeMisuse> {
    match exit_innermost(node, unwinding) {
        Some(exit) => Ok(exit),
        None => exit_from_within(node, unwinding).map(finish),
    }
}

/// [`exit`] for the innermost scope. `None`: it is not that, as far as the thread has noticed, and nothing
/// has changed. Unlike [`exit`] it never waits.
#[inline]
pub(crate) fn exit_innermost(node: &NodeRef, unwinding: bool) -> Option<Exit> {
    CONTEXT
        .with(|context| pop(context, node, unwinding))
        .map(finish)
}

/// A scope that was left.
struct Popped {
    /// The effect of that.
    exit: Exit,
    /// The ledger, if it has entries of the scope's code.
    ledger: Option<Arc<Ledger>>,
    /// See [`Frame::first_seq`].
    first_seq: u64,
    /// What is to be dropped when nothing is borrowed.
    _rest: (NodeRef, Option<Box<Hooks>>),
}

/// The end of an exit, when nothing is borrowed.
#[inline]
fn finish(popped: Popped) -> Exit {
    if let Some(ledger) = popped.ledger {
        ledger.sweep_blocks(popped.first_seq, &Termination::Unwound);
        ledger.abandon_blocks(popped.first_seq);
    }
    popped.exit
}

/// Leave the scope if it is the innermost.
#[inline]
fn pop(context: &Context, node: &NodeRef, unwinding: bool) -> Option<Popped> {
    let mut frames = context.frames.borrow_mut();
    frames.last().filter(|frame| frame.node.same(node))?;
    let exit = if unwinding {
        absorb(&frames)
    } else {
        Exit::Pass
    };
    let frame = frames.pop()?;
    foreign_calls::left(context, &frame, &frames);
    unmask(&frame, context);
    note_open(context, &frames, &context.away.borrow());
    // Blocks that the scope's code has entered and whose ends the host has skipped.
    let ledger = context
        .ledger
        .borrow()
        .as_ref()
        .filter(|ledger| ledger.next_seq() > frame.first_seq)
        .cloned();
    Some(Popped {
        exit,
        ledger,
        first_seq: frame.first_seq,
        _rest: (frame.node, frame.hooks),
    })
}

/// The rest of [`exit`] for a scope that is not the innermost, as far as the thread has noticed.
#[cold]
fn exit_from_within(node: &NodeRef, unwinding: bool) -> Result<Popped, ScopeMisuse> {
    settle();
    CONTEXT.with(|context| {
        if let Some(popped) = pop(context, node, unwinding) {
            return Ok(popped);
        }
        let mut frames = context.frames.borrow_mut();
        let Some(index) = frames.iter().rposition(|frame| frame.node.same(node)) else {
            return Err(ScopeMisuse::WrongThread);
        };
        let frame = frames.remove(index);
        foreign_calls::changed(context, &frames);
        unmask(&frame, context);
        Err(ScopeMisuse::NotInnermost)
    })
}

/// Write `OPEN` after a change of the context, which has these frames.
fn note_open(context: &Context, frames: &[Frame], away: &[Frame]) {
    let open = !frames.is_empty() || !away.is_empty() || context.task.borrow().is_some();
    OPEN.with(|cell| cell.set(open));
}

/// A frame is removed: if it is a clean-up zone, it defers kills no longer. One that is due is raised at
/// the next checkpoint, or by [`kill_due`].
fn unmask(frame: &Frame, context: &Context) {
    if let (Kind::Cleanup, Some(task)) = (frame.kind, context.task.borrow().as_ref()) {
        task.unmask_zone(&frame.node);
    }
}

/// Close scopes whose ends were skipped (a gap in the host's exception table) or never reached,
/// innermost first: cancel the nodes below each, and run its hook. May block. The frames are to be
/// dropped after this, outside a borrow of the context.
fn run_abandon_hooks(left: &[Frame]) {
    for frame in left.iter().rev().filter(|frame| frame.kind != Kind::Task) {
        close_unless_private(&frame.node);
        if let Some(abandon_hook) = frame.abandon_hook() {
            abandon_hook.on_abandoned();
        }
    }
}

/// Cancel the nodes below a scope that was left, and take it out of its parent. A node to which there is
/// no other reference has nothing below and is spared both: it goes with its last count.
pub(crate) fn close_unless_private(node: &NodeRef) {
    if !node.is_private() {
        node.close(CauseKind::ScopeExited);
    }
}

// ------------------------------------------------------------- the calling thread's own view

/// The nodes that visible cancellations of the calling thread reach, innermost first: the innermost open
/// scope's, in a task's body at least the task's, none outside of both. There is more than one only in a
/// generator's block, whose node has no parent.
pub(crate) fn current_nodes() -> Nodes {
    if !OPEN.with(Cell::get) {
        return Nodes::default();
    }
    settle();
    CONTEXT.with(|context| {
        let frames = context.frames.borrow();
        let mut nodes = reaching(&frames).cloned();
        Nodes {
            inner: nodes.next(),
            outer: nodes.collect(),
        }
    })
}

/// See [`current_nodes`]. The first is apart, so that the usual case needs no memory.
#[derive(Default)]
pub(crate) struct Nodes {
    /// The innermost scope's.
    inner: Option<NodeRef>,
    /// Those that its node is not below.
    outer: Vec<NodeRef>,
}

impl Nodes {
    /// The innermost scope's.
    pub(crate) fn inner(&self) -> Option<&NodeRef> {
        self.inner.as_ref()
    }

    /// The others.
    pub(crate) fn outer(&self) -> &[NodeRef] {
        &self.outer
    }

    /// All of them, innermost first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &NodeRef> {
        self.inner.iter().chain(&self.outer)
    }
}

/// How many scopes are open on the calling thread; a task's own frame counts.
#[cfg(feature = "python")]
pub(crate) fn depth() -> usize {
    CONTEXT.with(|context| context.frames.borrow().len() + context.away.borrow().len())
}

/// The task whose body the calling thread runs; outside of any task, the one that stands for the thread
/// while it is in a forced block.
pub(crate) fn current_task() -> Option<Arc<Task>> {
    CONTEXT.with(|context| context.task.borrow().clone())
}

/// The cause, if a kill of the calling thread's task was deferred and may be raised now. The caller
/// raises it, so an exception posted for it is retracted. Call it after the end of anything that
/// defers kills.
#[cfg(feature = "python")]
pub(crate) fn kill_due() -> Option<Cause> {
    if !OPEN.with(Cell::get) {
        return None;
    }
    let cause = CONTEXT.with(|context| context.task.borrow().as_ref()?.kill_due())?;
    current_task()?.retract();
    Some(cause)
}

/// To be called after something was acquired: a kill that was posted before is deferred from now on, so
/// it is retracted before it can be raised in the code that holds the resource (I24). Costs one load
/// where no scope is open.
#[inline]
pub(crate) fn defer_pending_kill() {
    if OPEN.with(Cell::get) {
        retract_if_holding();
    }
}

/// The rest, where a scope or task is open. A kill that is requested after the ledger was looked at finds
/// the entry there and is deferred by itself.
fn retract_if_holding() {
    let holds = |task: &&Arc<Task>| task.is_kill_requested() && task.ledger().len() > 0;
    let task = CONTEXT.with(|context| context.task.borrow().as_ref().filter(holds).cloned());
    if let Some(task) = task {
        task.retract();
    }
}

/// The ledger in which the calling thread records its holds: the task's, or its own.
pub(crate) fn current_ledger() -> Arc<Ledger> {
    with_ledger(Arc::clone)
}

/// [`current_ledger`], lent instead of counted, which spares the fast path of a lock two atomic writes.
/// `act` must not run code of the host: the context is borrowed.
#[inline]
pub(crate) fn with_ledger<R>(act: impl FnOnce(&Arc<Ledger>) -> R) -> R {
    CONTEXT.with(|context| {
        if let Some(ledger) = &*context.ledger.borrow() {
            return act(ledger);
        }
        act(&first_ledger(context))
    })
}

/// In a forked child: what the forking thread holds is still its own. A thread that has no ledger yet
/// gets none here, because [`first_ledger`] asks the host for the thread's name, and the host cannot be
/// called before it has put itself right after the fork.
pub(crate) fn keep_ledger_in_child() {
    CONTEXT.with(|context| {
        if let Some(ledger) = &*context.ledger.borrow() {
            ledger.survive_fork();
        }
    });
}

/// The ledger of a thread outside any task, made when the thread acquires something for the first time.
#[cold]
fn first_ledger(context: &Context) -> Arc<Ledger> {
    // Not under a borrow: the host names the thread, and its code may acquire something as well.
    let made = Arc::new(Ledger::of(host::thread_name()));
    context.ledger.borrow_mut().get_or_insert(made).clone()
}

/// The token of the innermost scope, of the task if no scope is open, or one that is never
/// cancelled. Inside a shield or a clean-up zone it is that block's, which does not hear of a
/// cancellation outside.
///
/// # Blocking
/// Never blocks, and is no checkpoint.
pub fn current_token() -> CancelToken {
    let nodes = current_nodes();
    match nodes.inner {
        None => CancelToken::never(),
        Some(inner) if nodes.outer.is_empty() => CancelToken::from_node(inner),
        Some(inner) => {
            let tokens = std::iter::once(inner).chain(nodes.outer);
            let tokens: Vec<_> = tokens.map(CancelToken::from_node).collect();
            CancelToken::any_of(&tokens.iter().collect::<Vec<_>>())
        }
    }
}

/// The tightest deadline that the calling thread is under, as far as it is visible from the innermost
/// scope; [`Time::NEVER`] if there is none.
///
/// # Blocking
/// Never blocks, and is no checkpoint.
pub fn current_effective_deadline() -> Time {
    let nodes = current_nodes();
    let deadlines = nodes.iter().map(NodeRef::effective_deadline);
    deadlines.min().unwrap_or(Time::NEVER)
}

/// `Err` if the calling thread is to stop: a kill first, since shields do not hide it.
#[inline]
pub(crate) fn checkpoint() -> Result<(), Stop> {
    if OPEN.with(Cell::get) {
        checkpoint_inside()
    } else {
        Ok(())
    }
}

/// [`checkpoint`] in a scope or task. Looks at the clock only if a visible scope has a deadline, and at the
/// host's stack only if there is something to raise, or a scope that was not in force may be so again.
fn checkpoint_inside() -> Result<(), Stop> {
    let is_doubtful = CONTEXT.with(|context| {
        let is_kill_requested = |task: &Arc<Task>| task.is_kill_requested();
        !context.away.borrow().is_empty()
            || context
                .task
                .borrow()
                .as_ref()
                .is_some_and(is_kill_requested)
            || cancelled(&context.frames.borrow()).is_some()
    });
    if !is_doubtful {
        return Ok(());
    }
    settle();
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
        Some(stop) => Err(before_raise(stop)),
    }
}

/// The innermost node that is cancelled by now, itself or with a visible node above, and reaches the
/// calling thread.
fn cancelled(frames: &[Frame]) -> Option<&NodeRef> {
    end_nested_zones(frames);
    reaching(frames).find(|node| node.is_cancelled_by_now())
}

/// Call it with every stop that is about to be raised in the user's code; it returns the stop.
///
/// A kill that is raised here is retracted where it was posted, or it would be raised twice. A
/// cancellation is counted in the innermost scope, unless the one before is still on its way: the second
/// one there means that the first was swallowed, which the host is told; from [`BRAKE_FROM`] on, the call
/// sleeps. The sleep is a plain
/// park: nothing but the clock and the host's signals ends it.
pub(crate) fn before_raise(stop: Stop) -> Stop {
    if let (Stop::Killed(_), Some(task)) = (&stop, current_task()) {
        task.retract();
    }
    if let Stop::Cancelled(_) = stop {
        let count = |more: u32| {
            CONTEXT.with(|context| {
                context.frames.borrow_mut().last_mut().map_or(0, |frame| {
                    frame.raised = frame.raised.saturating_add(more);
                    frame.raised
                })
            })
        };
        if count(0) > 0 && !host::was_swallowed() {
            return stop;
        }
        let raised = count(1);
        if raised > 1 {
            host::cancel_swallowed(raised);
        }
        if raised >= BRAKE_FROM {
            let brake =
                LONGEST_BRAKE.min(Duration::from_millis(u64::from(raised - BRAKE_FROM) + 1));
            Waiter::new().park(Time::after(brake));
        }
    }
    stop
}

// ---------------------------------------------------------------------- tasks

/// The thread's [`Context`], field by field, as it was before the thread began a task's body. Kept by
/// the boundary, on the same thread, until the body has ended.
pub(crate) struct Outer {
    /// Not visible from the body, whose first frame is of [`Kind::Task`].
    frames: Vec<Frame>,
    /// As [`Context::away`].
    away: Vec<Frame>,
    /// The task in whose body this one runs, if any.
    task: Option<Arc<Task>>,
    /// That task's ledger, or the thread's own; the body records nothing in it.
    ledger: Option<Arc<Ledger>>,
}

/// Begin a task's body on the calling thread: a context with nothing but the task's token and ledger. The
/// boundary calls it before it opens the task, so that a kill finds the context in place.
pub(crate) fn begin_task(task: &Arc<Task>) -> Outer {
    CONTEXT.with(|context| {
        let slot = context.place.slot();
        let node = task.node().clone();
        if let Some(slot) = slot {
            node.set_slot(slot.index());
        }
        let deadline = node.effective_deadline();
        let published = Published::inside(None, Kind::Task, deadline, Home::NATIVE);
        let root = Frame {
            node,
            kind: Kind::Task,
            grace: None,
            raised: 0,
            home: Home::NATIVE,
            first_seq: 0,
            forced: None,
            hooks: None,
            published,
        };
        let mut frames = vec![root];
        if let Some(slot) = slot {
            foreign_calls::entered(slot, &mut frames);
        }
        OPEN.with(|open| open.set(true));
        Outer {
            frames: context.frames.replace(frames),
            away: context.away.take(),
            task: context.set_task(Some(task.clone())),
            ledger: context.ledger.replace(Some(task.ledger().clone())),
        }
    })
}

/// The body has ended: the thread's context is again the one from before. Scopes that the body has left
/// open are closed, innermost first. Called after the task is shut and its ledger swept; may block, in
/// the hooks of abandoned blocks.
pub(crate) fn end_task(outer: Outer) {
    let left = CONTEXT.with(|context| {
        context.set_task(outer.task);
        context.ledger.replace(outer.ledger);
        let mut left = context.frames.replace(outer.frames);
        left.extend(context.away.replace(outer.away));
        if let Some(root) = left.first() {
            foreign_calls::left(context, root, &context.frames.borrow());
        }
        note_open(context, &context.frames.borrow(), &context.away.borrow());
        left
    });
    run_abandon_hooks(&left); // outside the borrow, as is their drop
}

/// In a forked child: blocks that are open on the calling thread are not ended by force any more, since
/// the enforcer's thread has stayed in the parent. Their scopes are left as plain ones.
pub(crate) fn forget_forced_blocks() {
    if let Some(task) = current_task() {
        task.forget_blocks();
    }
}

#[cfg(all(test, not(loom)))]
#[path = "../tests/rust/scope_model.rs"]
mod model;
