//! The tree of tokens: one node a source, 72 bytes, one allocation.
//!
//! Invariants:
//! 1. `state` is the only truth. CANCELLED is set once, by one read-modify-write, and never
//!    cleared. The old value of that write lists all work announced before it (children, hooks);
//!    a later announcement is a write to the same word and sees CANCELLED instead. One
//!    modification order, so nothing can fall between.
//! 2. The cause is put in its slot before CANCELLED|OWN is set and is not replaced (I2, I10). A
//!    node flagged by an ancestor has no OWN and finds its cause by walking up.
//! 3. A parent is flagged before its children; a child born under a flagged parent is flagged.
//! 4. A child holds its parent; the parent's list holds no count. The last drop of a child
//!    unlinks it under the parent's lock, so a thread that holds that lock may look at any child
//!    in the list, and gets a count by `try_ref` only.
//! 5. `links` of a child belong to the parent's lock while it is in the list. TAKEN, set under
//!    that lock, says that a canceller has taken it out to flag it: its links are the canceller's
//!    from then on, and no other thread looks at them.
//!
//! The bits of `state`. Each is set once and never cleared, so every write is a fetch-or or a CAS:
//!
//! | bit          | is set by                                    | under                  |
//! |--------------|----------------------------------------------|------------------------|
//! | CANCELLED    | `claim`, `flag_child`; `child`, below a cancelled parent | nothing; the parent's lock |
//! | OWN          | `claim`, in one write with CANCELLED         | nothing                |
//! | TAKEN        | `flag_child`, in one write with CANCELLED    | the parent's lock      |
//! | `HAS_CHILDREN` | `child`, before it links the child           | the node's lock        |
//! | `HAS_HOOKS`    | `hook`, before it adds the hook              | the node's lock        |
//! | ARMED        | the timer                                    | the timer's lock       |
//! | TIMED, `TIMED_ABOVE`         | the birth of the node          | it is not yet shared   |
//! | LINKED       | [`NodeRef::link_to`], by the thread that has made the node | nothing |
//! | the slot's index | the birth of a scope's node; [`NodeRef::set_slot`], for a task's | nothing |
//!
//! Orderings. The write of CANCELLED is a release, and [`NodeRef::is_cancelled`] an acquire: a thread
//! that sees the flag sees the cause in its slot (2). Bits that are fixed at birth are read relaxed. A
//! count is taken relaxed, since it is made from another; it is given back with release, and the
//! thread that frees the node acquires, so that all uses happen before the free.
//!
//! No deadlock: no thread ever holds two node locks, and nothing foreign (a callback, a drop of
//! the user's data, a system call) runs under one. The one lock taken under a node's is the status of a
//! callback, under which no other is taken. The timer's lock and a node's are never held together: a
//! freed node is taken out of the timer with nothing locked. No recursion: subtrees are walked, and
//! chains dropped, with the links of the nodes themselves as the stack.
//!
//! A cancellation goes through the tree like this: `claim` decides the cause and flags the root;
//! `flag_tree` flags the rest, breadth by batches, settling and waking waiters as it goes; then the
//! callbacks run, unlocked, or are handed to their thread if a deadline has cancelled.
//!
//! A node's life: `alloc` makes it with one count; `child` adds it to the parent's list, or flags it if
//! the parent is flagged; clones, children, hooks and canceller's stacks hold counts; the last count
//! that goes takes the node out of the parent's list (4), out of the timer and out of the nodes it is
//! linked to, and frees it and then its ancestors, as far as nothing else keeps them.
//!
//! This file has a node's state, its life, and the walk of a cancellation. The use of links, see 5, is
//! in `children`; the actions at one node are in `hooks`, its cause in `cause_slot`.
//!
//! Costs: `is_cancelled` is one load. A child is one allocation, and one lock of its parent at its birth
//! and one at its end. A cancellation locks each node with children or hooks once or twice, and a node
//! with very many children once a batch; a leaf costs one compare-and-set and no count.
//!
//! Checked by the models in `models/token.rs` and `models/callback.rs`, into which `tests/seeded_bugs.py`
//! plants bugs, and by `tests/rust/token.rs` for chains and trees of 200,000 nodes.
#![allow(unsafe_code)] // intrusive lists: nodes are found through raw pointers, see 4 and 5

mod cause_slot;
mod children;
mod hooks;

use std::any::Any;
use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::time::Duration;

use crate::atomics::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
#[cfg(not(loom))]
use crate::foreign::{self, Slot};
use cause_slot::CauseSlot;
use children::{Children, Links, NodeStack, Taken};
#[cfg(feature = "python")]
pub(crate) use hooks::Flag;
pub(crate) use hooks::{Hook, HookId};
use hooks::{Hooks, Patience};

/// Cancelled, by a cause of its own or from above. The lowest bit: see [`NodeRef::flag`].
const CANCELLED: u32 = 1;
/// The cause is this node's own.
const OWN: u32 = 1 << 1;
/// Children may be in the list. Set before the first is added, and kept when the last has left.
const HAS_CHILDREN: u32 = 1 << 2;
/// Hooks may be in the list. Set before the first is added, and kept when the last has left.
const HAS_HOOKS: u32 = 1 << 3;
/// This node may have a deadline of its own, or is LINKED to one that may expire. Fixed at birth.
const TIMED: u32 = 1 << 4;
/// A node above may have a deadline. Fixed at birth.
const TIMED_ABOVE: u32 = 1 << 5;
/// The timer has, or had, an entry for this node: its last drop has to remove it.
const ARMED: u32 = 1 << 6;

/// A canceller has taken this node out of its parent's list and flagged it.
const TAKEN: u32 = 1 << 7;

/// This node is cancelled with others than those above, of which its hooks have the list; their deadlines
/// are its own.
const LINKED: u32 = 1 << 8;

/// From this bit on: the index of the slot of the thread whose scope it is, 0 for none (`foreign`). Fixed at
/// birth, but for a task's node, to which the thread that begins its body adds it.
const SLOT: u32 = 16;

/// Children flagged in one critical section. Bounds how long a thread waits that wants to add a child
/// or a hook to a node with very many children.
const BATCH: usize = 256;

/// The fields that a node's lock protects.
struct Lists {
    /// Its children that are not TAKEN, and through them their `links`.
    children: Children,
    /// `None` until the first hook: most nodes never have one, and a node is to stay small.
    hooks: Option<Box<Hooks>>,
}

/// One source of cancellation, of any kind. Its fields are in this order so that what a canceller reads
/// and writes of a child lies in the first 24 bytes.
#[repr(C)]
pub(crate) struct Node {
    /// How many [`NodeRef`]s there are, those kept as raw pointers on a stack included. At 0 the node
    /// is freed by the thread that took the last count away.
    refs: AtomicU32,
    /// See the bits above.
    state: AtomicU32,
    /// The place in the parent's list or on a canceller's stack, see 5.
    links: UnsafeCell<Links>,
    /// Keeps all ancestors alive (4). Fixed at birth; taken out when the node is freed.
    parent: Option<NodeRef>,
    /// The node's lock. Locked alone, for a few instructions or one batch.
    lists: Mutex<Lists>,
    /// Filled by the first `claim` (2).
    cause: CauseSlot,
    /// In nanoseconds, [`Time::NEVER`] for none. Written at birth, and under the timer's lock if it is
    /// moved, so that the timer's entry always has the deadline of the node.
    deadline: AtomicU64,
    /// In models: read by each use, written by the free.
    #[cfg(loom)]
    canary: loom::cell::UnsafeCell<()>,
    /// In models: written by each use of `links`, so that two at a time are found.
    #[cfg(loom)]
    links_canary: loom::cell::UnsafeCell<()>,
}

/// A counted reference to a node. Dropping the last one frees the node, and may free ancestors.
pub(crate) struct NodeRef(NonNull<Node>);

/// A pointer to a node without a count. The lock under which it is kept is also taken by the free of the
/// node, which removes the pointer; so while that lock is held the memory is valid, though the last
/// count may be gone. See [`Hook::Link`] (the other node's lock) and the timer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Weak(NonNull<Node>);

// SAFETY: every field of Node is atomic, immutable, or guarded as invariant 5 says; hooks hold
// Send things only.
unsafe impl Send for NodeRef {}
// SAFETY: as above.
unsafe impl Sync for NodeRef {}
// SAFETY: a Weak gives access through `Weak::upgrade` only, under the lock that keeps it valid.
unsafe impl Send for Weak {}

/// The nodes of a flagged subtree that have callbacks, which are to be run at once or handed over.
#[must_use]
pub(crate) struct Callbacks {
    /// Nodes below the roots, TAKEN, so that their links thread the stack.
    below: NodeStack,
    /// The node that was cancelled, and nodes linked to nodes below it. They stay in their parents'
    /// lists, so their links are not the canceller's.
    roots: Vec<NodeRef>,
}

impl Node {
    /// Acquire: with CANCELLED comes the cause, with a HAS bit the list that it announces.
    #[inline]
    fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    /// Take it out of its parent's list, if it is there, and if `may` says so under the parent's lock. False:
    /// `may` has refused. A root is in no list.
    #[inline]
    fn unlink_if(&self, may: impl FnOnce(&Node) -> bool) -> bool {
        let Some(parent) = &self.parent else {
            return true;
        };
        let mut lists = parent.node().lists.lock();
        if !may(self) {
            return false;
        }
        // SAFETY: a child of that node.
        unsafe { lists.children.unlink(self) };
        true
    }
}

impl NodeRef {
    /// A node without a parent. `deadline`: `None` means that it will never have one.
    #[inline]
    pub(crate) fn root(deadline: Option<Time>) -> NodeRef {
        Self::root_of(0, deadline)
    }

    /// [`NodeRef::root`], for a scope of the thread with this slot.
    #[inline]
    pub(crate) fn root_of(slot: usize, deadline: Option<Time>) -> NodeRef {
        let timed = if deadline.is_some() { TIMED } else { 0 };
        Self::alloc(None, timed | slot_bits(slot), deadline)
    }

    /// A child, cancelled with this node. If this node is cancelled the child is born cancelled (3) and
    /// not linked; the cause is found by walking up (2).
    pub(crate) fn child(&self, deadline: Option<Time>) -> NodeRef {
        self.child_of(0, deadline)
    }

    /// [`NodeRef::child`], for a scope of the thread with this slot.
    pub(crate) fn child_of(&self, slot: usize, deadline: Option<Time>) -> NodeRef {
        // Relaxed: both bits are fixed at birth.
        let above = if self.may_expire() { TIMED_ABOVE } else { 0 };
        let timed = if deadline.is_some() { TIMED } else { 0 };
        let state = above | timed | slot_bits(slot);
        let child = Self::alloc(Some(self.clone()), state, deadline);
        let mut lists = self.node().lists.lock();
        // Announced, then linked, both under the lock: a canceller that sees the bit locks the list and
        // finds the child; one that has set CANCELLED before makes `announce` refuse.
        if self.announce(HAS_CHILDREN) {
            // SAFETY: it was just made.
            unsafe { lists.children.add(&child) };
        } else {
            // Release, as every write of CANCELLED; there is nothing at the child to be fired.
            child.node().state.fetch_or(CANCELLED, Ordering::Release);
        }
        drop(lists);
        child
    }

    /// A node that no other thread can see, in no list. `state`: the bits that are fixed at birth.
    #[inline]
    fn alloc(parent: Option<NodeRef>, state: u32, deadline: Option<Time>) -> NodeRef {
        let node = Box::new(Node {
            refs: AtomicU32::new(1),
            state: AtomicU32::new(state),
            links: UnsafeCell::new(Links::NONE),
            parent,
            lists: Mutex::new(Lists {
                children: Children::NONE,
                hooks: None,
            }),
            cause: CauseSlot::empty(),
            deadline: AtomicU64::new(deadline.unwrap_or(Time::NEVER).as_nanos()),
            #[cfg(loom)]
            canary: loom::cell::UnsafeCell::new(()),
            #[cfg(loom)]
            links_canary: loom::cell::UnsafeCell::new(()),
        });
        live::born();
        NodeRef(NonNull::from(Box::leak(node)))
    }

    /// The node, valid as long as this count is.
    #[inline]
    fn node(&self) -> &Node {
        // SAFETY: a NodeRef is a count, so the node is not freed.
        let node = unsafe { self.0.as_ref() };
        #[cfg(loom)]
        node.canary.with(|_| ());
        node
    }

    /// Its address, which is also its identity.
    fn as_ptr(&self) -> *const Node {
        self.0.as_ptr()
    }

    /// A pointer without a count, for a holder that learns of the node's end.
    pub(crate) fn weak(&self) -> Weak {
        Weak(self.0)
    }

    /// A reference that has no count. It is never dropped.
    ///
    /// # Safety
    /// The node is not freed as long as the reference is used.
    unsafe fn borrow(node: NonNull<Node>) -> ManuallyDrop<NodeRef> {
        ManuallyDrop::new(NodeRef(node))
    }

    /// One acquire load.
    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.node().state() & CANCELLED != 0
    }

    /// The address of the state word, valid as long as the node lives. CANCELLED is its lowest bit.
    #[cfg(not(loom))]
    pub(crate) fn flag(&self) -> *const AtomicU32 {
        &raw const self.node().state
    }

    /// As [`NodeRef::flag`], for what a thread publishes in its slot.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn published_flag(&self) -> *const AtomicU32 {
        &raw const self.node().state
    }

    /// The node whose flag the thread of this slot has published, with a count of its own.
    #[cfg(not(loom))]
    pub(crate) fn published(slot: &Slot) -> Option<NodeRef> {
        let pin = slot.pin();
        let flag = NonNull::new(pin.flag())?;
        // SAFETY: every published flag is the state of a node, which its thread keeps alive as long as the pin
        // exists; so the count can be taken from one that stands.
        unsafe {
            let node = flag.byte_sub(std::mem::offset_of!(Node, state)).cast();
            Some(NodeRef::clone(&NodeRef::borrow(node)))
        }
    }

    /// The slot of the thread whose scope, or whose task's node, this is.
    #[cfg(not(loom))]
    pub(crate) fn slot(&self) -> Option<&'static Slot> {
        foreign::slot((self.node().state() >> SLOT) as usize)
    }

    /// The node is from now on that of the thread with this slot. Called once, for a task's.
    pub(crate) fn set_slot(&self, slot: usize) {
        // Release and acquire: a canceller sees the bits, or its flag is seen by the thread, which looks next.
        self.node()
            .state
            .fetch_or(slot_bits(slot), Ordering::AcqRel);
    }

    /// True if it was cancelled by a cause of its own, not from above.
    #[cfg(any(feature = "python", test))]
    pub(crate) fn is_cancelled_itself(&self) -> bool {
        self.node().state() & OWN != 0
    }

    /// The cause, once cancelled: the node's own, or that of the nearest ancestor with one.
    pub(crate) fn cause(&self) -> Option<Cause> {
        if !self.is_cancelled() {
            return None;
        }
        // From the flagged node upwards the first with OWN decided. There is one: a node is flagged from
        // above only after its parent (3), so the path ends at a node that was claimed.
        let mut at = self;
        loop {
            if at.node().state() & OWN != 0 {
                return at.node().cause.get().cloned(); // filled before OWN was set (2)
            }
            at = at.node().parent.as_ref()?;
        }
    }

    /// The node whose cancellation cancels this one.
    pub(crate) fn parent(&self) -> Option<&NodeRef> {
        self.node().parent.as_ref()
    }

    /// True for the same node, not for an equal one.
    pub(crate) fn same(&self, other: &NodeRef) -> bool {
        self.0 == other.0
    }

    // ------------------------------------------------------------------ deadlines

    /// The node's own deadline. Acquire, with the release of `store_deadline`.
    pub(crate) fn own_deadline(&self) -> Time {
        Time::from_nanos(self.node().deadline.load(Ordering::Acquire))
    }

    /// The store alone: called by the timer, under its lock, when it moves its entry.
    pub(crate) fn store_deadline(&self, deadline: Time) {
        self.node()
            .deadline
            .store(deadline.as_nanos(), Ordering::Release);
    }

    /// Set ARMED, under the timer's lock. True: it was not set before.
    pub(crate) fn mark_armed(&self) -> bool {
        self.node().state.fetch_or(ARMED, Ordering::AcqRel) & ARMED == 0
    }

    /// True if the timer has been told of the node's deadline.
    pub(crate) fn is_armed(&self) -> bool {
        self.node().state() & ARMED != 0
    }

    /// True if this node or one above may have a deadline. Relaxed: the bits are fixed at birth.
    pub(crate) fn may_expire(&self) -> bool {
        self.node().state.load(Ordering::Relaxed) & (TIMED | TIMED_ABOVE) != 0
    }

    /// This node and those above that may have deadlines, innermost first. Ends below the first ancestor
    /// above which there are none, so a path without deadlines costs one load.
    pub(crate) fn timed_path(&self) -> impl Iterator<Item = &NodeRef> {
        let mut next = self.may_expire().then_some(self);
        std::iter::from_fn(move || {
            let node = next?;
            let above = node.node().state.load(Ordering::Relaxed) & TIMED_ABOVE != 0;
            next = if above { node.parent() } else { None };
            Some(node)
        })
    }

    /// The earliest deadline here, above, and of linked nodes. May be stale at once, if one is moved.
    pub(crate) fn effective_deadline(&self) -> Time {
        let mut earliest = Time::NEVER;
        for node in self.timed_path() {
            if node.is_linked() {
                let all = self.timed_nodes();
                return all
                    .iter()
                    .map(NodeRef::own_deadline)
                    .min()
                    .unwrap_or(earliest);
            }
            earliest = earliest.min(node.own_deadline());
        }
        earliest
    }

    /// True if it is cancelled with other nodes than those above. Relaxed: the bit is set before the node is
    /// handed out.
    fn is_linked(&self) -> bool {
        self.node().state.load(Ordering::Relaxed) & LINKED != 0
    }

    /// All nodes whose deadlines cancel this one: those of [`NodeRef::timed_path`], and the same for
    /// nodes linked to one of these. Each once, so that links which meet again cost no more.
    #[cold]
    fn timed_nodes(&self) -> Vec<NodeRef> {
        let mut found: Vec<NodeRef> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut starts = vec![self.clone()];
        while let Some(start) = starts.pop() {
            for node in start.timed_path() {
                if !seen.insert(node.as_ptr()) {
                    break; // and so are those above it
                }
                if node.is_linked() {
                    let lists = node.node().lists.lock();
                    starts.extend(lists.hooks.iter().flat_map(|hooks| hooks.linked_to()));
                }
                found.push(node.clone());
            }
        }
        found
    }

    /// True if the node is cancelled at `now`. Deadlines that have passed unnoticed cancel their nodes
    /// first, the earliest first, so that each cause has its own time (I2).
    pub(crate) fn poll(&self, now: Time) -> bool {
        if self.timed_path().any(NodeRef::is_linked) {
            let all = self.timed_nodes();
            expire_passed(now, || all.iter());
        } else {
            expire_passed(now, || self.timed_path());
        }
        self.is_cancelled()
    }

    /// As [`NodeRef::poll`] at the current time. Reads the clock only if there is a deadline.
    pub(crate) fn is_cancelled_by_now(&self) -> bool {
        if self.is_cancelled() || !self.may_expire() {
            return self.is_cancelled();
        }
        !self.effective_deadline().is_never() && self.poll(Time::now())
    }

    // ------------------------------------------------------------------ hooks

    /// Set a HAS bit, with the node's lock held, before something is added to a list. False: the node is
    /// cancelled, its canceller may have looked at the list already, and nothing may be added (1).
    fn announce(&self, what: u32) -> bool {
        let seen = self.node().state();
        // If the bit is set and CANCELLED is not, the write that cancels comes later in the word's
        // modification order and returns the bit. That spares the atomic write in the common case.
        let seen = if seen & (what | CANCELLED) == 0 {
            self.node().state.fetch_or(what, Ordering::AcqRel)
        } else {
            seen
        };
        seen & CANCELLED == 0
    }

    /// Add a hook. `Err` returns it: the node is cancelled already.
    pub(crate) fn hook(&self, hook: Hook) -> Result<HookId, Hook> {
        let mut lists = self.node().lists.lock();
        if !self.announce(HAS_HOOKS) {
            return Err(hook);
        }
        Ok(lists.hooks.get_or_insert_default().add(hook))
    }

    /// Remove a hook. `Some`: it has not been fired and never will be. `None`: it has been.
    pub(crate) fn unhook(&self, id: HookId) -> Option<Hook> {
        let mut lists = self.node().lists.lock();
        lists.hooks.as_mut()?.take_out(id)
    }

    // ------------------------------------------------------------------ cancelling

    /// Cancel this node and all its descendants. True: `cause` is recorded; false: an earlier one is, and
    /// the grace that `cause` names ends open clean-up zones earlier, if it is over before theirs.
    ///
    /// Deadlines at or above this node that have passed count first. Waiters are woken before
    /// callbacks run. A callback's panic is rethrown after all others have run.
    pub(crate) fn cancel(&self, cause: Cause) -> bool {
        let (at, grace) = (cause.at, cause.grace);
        let first = self.cancel_first(cause);
        if !first && grace.is_some() {
            self.shorten(Patience::of(at, grace));
        }
        first
    }

    /// [`NodeRef::cancel`] for a kill, which names no grace. If the node was cancelled before, its zones
    /// end as if the kill had been the first.
    pub(crate) fn cancel_to_kill(&self, cause: Cause) {
        let at = cause.at;
        if !self.cancel_first(cause) {
            self.shorten(Patience::of(at, None));
        }
    }

    /// [`NodeRef::cancel`], without an effect on a node that is cancelled.
    fn cancel_first(&self, cause: Cause) -> bool {
        if self.is_cancelled() {
            return false;
        }
        // A deadline that has passed before `cause.at` is the true cause, though it was not noticed (I2).
        if self.may_expire() && self.poll(cause.at) {
            return false;
        }
        let at = cause.at;
        // A scope that was left has no call to be ended; the scopes below it may have.
        let slot = if cause.kind == CauseKind::ScopeExited {
            (1 << SLOT) - 1
        } else {
            u32::MAX
        };
        let (before, won) = self.claim(cause, 0);
        if let Some(before) = before {
            crate::token::callback_thread::run(flag_below(self, before & slot, at));
        }
        won
    }

    /// Move the ends of zones under this node, which is cancelled, earlier; never later.
    #[cold]
    fn shorten(&self, by: Patience) {
        let zones = {
            let mut lists = self.node().lists.lock();
            // So that the node's end frees the hooks.
            self.node().state.fetch_or(HAS_HOOKS, Ordering::AcqRel);
            lists.hooks.get_or_insert_default().shorten(by)
        };
        for (zone, end) in zones {
            crate::token::timer::bring_forward(&zone, end);
        }
    }

    /// Have later cancels of this node, or of one above up to the one with the cause, move the end of
    /// `zone` earlier, until the zone is freed. Returns the end by those that have come so far. The node
    /// is cancelled. `own`: the grace for a canceller that names none.
    pub(crate) fn watch_grace(&self, zone: &NodeRef, own: Duration) -> Time {
        let mut end = Time::NEVER;
        let mut seen = BTreeSet::new();
        let mut starts = vec![self.clone()];
        while let Some(start) = starts.pop() {
            let mut next = Some(&start);
            while let Some(node) = next.filter(|node| seen.insert(node.as_ptr())) {
                let (id, patience) = {
                    let mut lists = node.node().lists.lock();
                    node.node().state.fetch_or(HAS_HOOKS, Ordering::AcqRel);
                    let hooks = lists.hooks.get_or_insert_default();
                    starts.extend(hooks.linked_to().filter(NodeRef::is_cancelled));
                    // In one critical section: a cancel comes before, and is read here, or finds the hook.
                    let id = hooks.add(Hook::Shorten(zone.weak(), own));
                    (id, hooks.patience())
                };
                end = end.min(patience.end(own));
                // Refused if the zone is over by now.
                if zone.hook(Hook::LinkedTo(node.clone(), id)).is_err() {
                    node.unhook(id);
                    return end;
                }
                let decided = node.node().state() & OWN != 0;
                next = if decided { None } else { node.parent() };
            }
        }
        end
    }

    /// Cancel by the deadline `at`, which has passed, unless another cause was first. The callbacks run
    /// on a thread of their own: the calling thread is the timer, or one that only polls or waits.
    pub(crate) fn expire(&self, at: Time) {
        if let (Some(before), _) = self.claim(Cause::deadline(at), 0) {
            crate::token::callback_thread::hand_over(flag_below(self, before, at));
        }
    }

    /// Set CANCELLED|OWN and `more`. Returns the state before, if this call set the flag, and whether
    /// its cause won.
    ///
    /// Two steps: the cause is put in the slot, then the flag is set (2). Between them another thread
    /// may set the flag, for its own claim or from above; the slot's cause then counts only if OWN is
    /// set. So the thread whose cause won and the thread that flags may be two different ones.
    fn claim(&self, cause: Cause, more: u32) -> (Option<u32>, bool) {
        let node = self.node();
        // Refused: another cause is in the slot, and its thread may not have set the flag yet. This thread
        // sets it for the other, so that its own call returns with the node cancelled.
        let ours = node.cause.offer(cause);
        let mut seen = node.state();
        while seen & CANCELLED == 0 {
            let flagged = seen | CANCELLED | OWN | more;
            match node.state.compare_exchange_weak(
                seen,
                flagged,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(before) => return (Some(before), ours),
                Err(now) => seen = now,
            }
        }
        // Flagged by another thread. With OWN it was flagged for the cause in the slot; without, from
        // above, and then the ancestor's cause is the one recorded.
        (None, ours && seen & OWN != 0)
    }

    /// Cancel with `reason`, if it is not cancelled, and leave the parent's list (I9). Unlinking twice is
    /// harmless, so this is idempotent.
    pub(crate) fn close(&self, reason: CauseKind) {
        if !self.is_cancelled() {
            self.cancel(Cause::now(reason, None, None));
        }
        self.node().unlink_if(|_| true);
    }

    /// How many counts there are; may be stale at once.
    #[cfg(feature = "python")]
    pub(crate) fn count(&self) -> u32 {
        self.node().refs.load(Ordering::Relaxed)
    }

    /// True if no other thread can reach this node: it has no clone, no child, no hook. Acquire: the
    /// uses by other threads that have dropped their counts happened before.
    pub(crate) fn is_private(&self) -> bool {
        self.node().refs.load(Ordering::Acquire) == 1 && self.node().state() & HAS_HOOKS == 0
    }

    /// A root that is cancelled with any of `others`, with the same cause. Its deadline is the earliest
    /// of theirs, wherever they are moved.
    pub(crate) fn linked(others: &[&NodeRef]) -> NodeRef {
        let timed = if others.iter().any(|other| other.may_expire()) {
            TIMED
        } else {
            0
        };
        let node = NodeRef::alloc(None, timed, None);
        for other in others {
            node.link_to(other);
        }
        node
    }

    /// From now on this node is cancelled with `other` as well, with the same cause. By the thread that has
    /// made it, before it is handed out. A node that may have no deadline cannot have that of another.
    ///
    /// The other one gets a hook that points here without a count. This node remembers the hook in one of
    /// its own and removes it when it is freed, so that none can point to freed memory.
    pub(crate) fn link_to(&self, other: &NodeRef) {
        debug_assert!(self.may_expire() || !other.may_expire());
        self.node().state.fetch_or(LINKED, Ordering::Relaxed);
        match other.hook(Hook::Link(self.weak())) {
            Ok(id) => {
                // Refused if it was cancelled meanwhile, by an earlier link or from above.
                if let Err(Hook::LinkedTo(other, id)) = self.hook(Hook::LinkedTo(other.clone(), id))
                {
                    other.unhook(id);
                }
            }
            // Already cancelled: so is this node, with a copy of the cause.
            Err(_) => {
                if let Some(cause) = other.cause() {
                    self.cancel(cause);
                }
            }
        }
    }

    /// How many children are in the list, and how many hooks.
    #[cfg(all(test, loom))]
    pub(crate) fn followers(&self) -> (usize, usize) {
        let lists = self.node().lists.lock();
        let hooks = lists.hooks.as_ref().map_or(0, |hooks| hooks.len());
        (lists.children.len(), hooks)
    }

    /// True if a cancellation would have more to do than to raise flags.
    #[cfg(feature = "python")]
    pub(crate) fn has_followers(&self) -> bool {
        let state = self.node().state();
        let has_more = |hooks: &Hooks| !hooks.are_flags();
        state & HAS_CHILDREN != 0
            || state & HAS_HOOKS != 0
                && self
                    .node()
                    .lists
                    .lock()
                    .hooks
                    .as_deref()
                    .is_some_and(has_more)
    }
}

/// Cancel the nodes whose deadlines have passed, the earliest first.
fn expire_passed<'a, I: Iterator<Item = &'a NodeRef>>(now: Time, nodes: impl Fn() -> I) {
    // Ends: each round cancels one more of them.
    while let Some(passed) = nodes()
        .filter(|node| node.own_deadline() <= now && !node.is_cancelled())
        .min_by_key(|node| node.own_deadline())
    {
        passed.expire(passed.own_deadline());
    }
}

/// Flag everything below `root`, which is flagged, and wake its waiters. `before`: its state before it
/// was flagged, which says whether it has children and hooks. `at`: the time of the cause.
fn flag_below(root: &NodeRef, before: u32, at: Time) -> Callbacks {
    let mut callbacks = Callbacks {
        below: NodeStack::EMPTY,
        roots: Vec::new(),
    };
    // Links are followed by a loop as well: a chain of linked tokens may be as long as a tree is deep.
    let mut linked = Vec::new();
    if flag_tree(root, before, at, &mut callbacks.below, &mut linked) {
        callbacks.roots.push(root.clone());
    }
    while let Some((root, before)) = linked.pop() {
        if flag_tree(&root, before, at, &mut callbacks.below, &mut linked) {
            callbacks.roots.push(root);
        }
    }
    marked::wake();
    callbacks
}

/// The bits of a state that name this slot.
#[inline]
#[allow(clippy::cast_possible_truncation)] // the table is smaller
fn slot_bits(slot: usize) -> u32 {
    (slot as u32) << SLOT
}

/// The scopes among the flagged nodes: the watcher has to look at their threads.
#[cfg(not(loom))]
mod marked {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{SLOT, foreign};

    /// A slot was marked since the watcher was woken last. By which thread does not matter: one of those that
    /// have set it wakes the watcher after all of them have marked their slots.
    static MARKED: AtomicBool = AtomicBool::new(false);

    /// Mark the slot that is named in the state of a node which has just been flagged. May be called under a
    /// node's lock.
    #[inline]
    pub(super) fn note(state: u32) {
        if state >> SLOT == 0 {
            return;
        }
        if let Some(slot) = foreign::slot((state >> SLOT) as usize) {
            slot.mark();
            MARKED.store(true, Ordering::Release);
        }
    }

    /// Wake the watcher, if a slot was marked. With nothing locked.
    pub(super) fn wake() {
        if MARKED.load(Ordering::Relaxed) && MARKED.swap(false, Ordering::Acquire) {
            crate::token::watcher::wake();
        }
    }
}

/// Calls are ended in no model but those of `foreign`.
#[cfg(loom)]
mod marked {
    pub(super) fn note(_state: u32) {}
    pub(super) fn wake() {}
}

/// [`flag_below`] but for nodes that are linked to those below: they are added to `linked`, nodes
/// with callbacks to the stack `below`. True: the root has callbacks.
fn flag_tree(
    root: &NodeRef,
    before: u32,
    at: Time,
    below: &mut NodeStack,
    linked: &mut Vec<(NodeRef, u32)>,
) -> bool {
    // A visited node has at most one place: it leaves `to_visit` before it is put on `below`.
    let mut to_visit = NodeStack::EMPTY;
    marked::note(before);
    let root_calls = visit(root, before, at, &mut to_visit, linked);
    while let Some(node) = to_visit.pop() {
        if visit(&node, node.node().state(), at, &mut to_visit, linked) {
            below.push(node);
        }
    }
    root_calls
}

impl Callbacks {
    /// True if no flagged node has a callback.
    pub(crate) fn is_empty(&self) -> bool {
        self.below.is_empty() && self.roots.is_empty()
    }

    /// Run them all, each with no lock held. The first panic is rethrown when all have run.
    pub(crate) fn run(mut self) {
        let mut panic: Option<Box<dyn Any + Send>> = None;
        while let Some(node) = self.pop() {
            run_callbacks(&node, &mut panic);
        }
        // A second panic while one unwinds would end the process (I19); the hook reported it.
        if let Some(panic) = panic.filter(|_| !std::thread::panicking()) {
            resume_unwind(panic);
        }
    }

    /// The next node with callbacks: those below before the roots, the latest flagged first.
    fn pop(&mut self) -> Option<NodeRef> {
        let below = self.below.pop().map(Taken::into_node);
        below.or_else(|| self.roots.pop())
    }
}

/// Flag the children of a flagged node and fire its hooks, if `state` says that it has any. True: it
/// has callbacks.
fn visit(
    node: &NodeRef,
    state: u32,
    at: Time,
    to_visit: &mut NodeStack,
    linked: &mut Vec<(NodeRef, u32)>,
) -> bool {
    if state & HAS_CHILDREN != 0 {
        while flag_children(node, at, to_visit) {}
    }
    state & HAS_HOOKS != 0 && fire_hooks(node, linked)
}

/// Flag one batch of children. True: there are more.
fn flag_children(node: &NodeRef, at: Time, to_visit: &mut NodeStack) -> bool {
    let flag = |child: &NodeRef| {
        let Some(before) = flag_child(child, at) else {
            return false;
        };
        marked::note(before);
        // A leaf needs nothing more, not even a count.
        if before & (HAS_CHILDREN | HAS_HOOKS) != 0 {
            if let Some(child) = try_ref(child) {
                // SAFETY: TAKEN was set just now.
                to_visit.push(unsafe { Taken::new(child) });
            }
        }
        true
    };
    // SAFETY: `flag_child` sets TAKEN whenever it returns a state.
    unsafe { node.node().lists.lock().children.take(BATCH, flag) }
}

/// Flag a child that is taken out of the list, from above, or by its own deadline if that has
/// passed. Returns the state before, if this call did it.
#[inline]
fn flag_child(child: &NodeRef, at: Time) -> Option<u32> {
    let node = child.node();
    // Relaxed: a stale value makes the CAS below fail, which yields the current one.
    let mut seen = node.state.load(Ordering::Relaxed);
    if seen & (TIMED | CANCELLED) == TIMED {
        let own = child.own_deadline();
        // In this very walk the parent may have been cancelled by an earlier deadline of its own.
        let above = || {
            child
                .parent()
                .and_then(NodeRef::cause)
                .map_or(at, |cause| cause.at)
        };
        if own <= at && own <= above() {
            return child.claim(Cause::deadline(own), TAKEN).0;
        }
    }
    while seen & CANCELLED == 0 {
        match node.state.compare_exchange_weak(
            seen,
            seen | CANCELLED | TAKEN,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            Ok(before) => return Some(before),
            Err(now) => seen = now,
        }
    }
    None
}

/// Take a count of a node whose last count may be gone. Relaxed: the caller holds the lock under which
/// the node was put where it is found, and a node with count 0 is not touched.
fn try_ref(found: &NodeRef) -> Option<NodeRef> {
    let node = found.node();
    let mut refs = node.refs.load(Ordering::Relaxed);
    while refs != 0 {
        match node
            .refs
            .compare_exchange_weak(refs, refs + 1, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => return Some(NodeRef(found.0)),
            Err(now) => refs = now,
        }
    }
    None
}

/// Fire a flagged node's hooks: settle waiters, raise flags, then, unlocked, wake, and flag linked nodes,
/// which are added to `linked` with the state they had. True: callbacks are left.
fn fire_hooks(node: &NodeRef, linked: &mut Vec<(NodeRef, u32)>) -> bool {
    let (fired, calls) = {
        let mut lists = node.node().lists.lock();
        let Some(hooks) = lists.hooks.as_mut() else {
            return false;
        };
        (hooks.fire(), hooks.has_callback())
    };
    for link in fired.wake() {
        let Some(cause) = node.cause() else { continue };
        // Its own deadline counts if that has passed before (I2); else a copy of the cause, for a linked
        // node does not find it above.
        let own = link.own_deadline();
        let cause = if own <= cause.at {
            Cause::deadline(own)
        } else {
            cause
        };
        if let Some(before) = link.claim(cause, 0).0 {
            linked.push((link, before));
        }
    }
    calls
}

/// Run the callbacks of a flagged node, one at a time, the latest first, unlocked.
fn run_callbacks(node: &NodeRef, panic: &mut Option<Box<dyn Any + Send>>) {
    // The lock is taken for each callback anew: it may unregister others, register, or cancel.
    while let Some(callback) = {
        let mut lists = node.node().lists.lock();
        let callback = lists.hooks.as_mut().and_then(|hooks| hooks.pop_callback());
        callback.inspect(|callback| callback.begin()) // locked: a thread that finds it gone finds it running
    } {
        let Some(cause) = node.cause() else { return };
        if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| callback.run(&cause))) {
            panic.get_or_insert(thrown);
        }
    }
}

impl Weak {
    /// A count, unless the last one is gone and the node is being freed.
    pub(crate) fn upgrade(self) -> Option<NodeRef> {
        // SAFETY: the holder of a Weak guarantees that the memory is valid here (see the type).
        let node = unsafe { NodeRef::borrow(self.0) };
        try_ref(&node)
    }
}

impl Clone for NodeRef {
    #[inline]
    fn clone(&self) -> NodeRef {
        // Relaxed: this count keeps the node alive, and the new one is made from it.
        self.node().refs.fetch_add(1, Ordering::Relaxed);
        NodeRef(self.0)
    }
}

impl Drop for NodeRef {
    #[inline]
    fn drop(&mut self) {
        if release(self) {
            free_upwards(ManuallyDrop::new(NodeRef(self.0)));
        }
    }
}

/// Give back the count of a reference. True: it was the last, and no thread can find the node any more.
#[inline]
fn release(node: &NodeRef) -> bool {
    let this = node.node();
    // A count that is the only one need not be given back, which spares an atomic write: others
    // are made from it, or found through a hook, the timer or, under its lock, the parent's list.
    if this.refs.load(Ordering::Acquire) == 1
        && this.state.load(Ordering::Relaxed) & (HAS_HOOKS | ARMED) == 0
        && this.unlink_if(|this| this.refs.load(Ordering::Acquire) == 1)
    {
        return true;
    }
    if this.refs.fetch_sub(1, Ordering::Release) != 1 {
        return false;
    }
    // Acquire, with the releases above of all other holders: their writes happen before the free.
    this.refs.load(Ordering::Acquire);
    // With count 0 a canceller may still look at the node in the parent's list, under the parent's lock
    // and by `try_ref`, which refuses. After this line it cannot.
    this.unlink_if(|_| true)
}

/// Free a node that no thread can find, and those above it whose last count it had. A loop, not
/// recursion: a chain of a million nodes is freed in this frame.
#[inline]
fn free_upwards(mut node: ManuallyDrop<NodeRef>) {
    let mut linked = Vec::new(); // nodes that freed ones were linked to
    loop {
        let mut above = free(&node, &mut linked);
        loop {
            let Some(next) = above.or_else(|| linked.pop()) else {
                return;
            };
            // Not dropped here, which would recurse: `release` gives the count back.
            node = ManuallyDrop::new(next);
            if release(&node) {
                break;
            }
            above = None;
        }
    }
}

/// Free a node that no thread can find. Returns the parent, whose count is then the caller's; counts
/// of nodes it was linked to are added to `linked`. Takes the timer's lock if the node is armed, so it
/// is called with nothing locked.
#[inline]
fn free(node: &NodeRef, linked: &mut Vec<NodeRef>) -> Option<NodeRef> {
    let this = node.node();
    // Relaxed here and below: `release` has acquired all that other holders wrote.
    let state = this.state.load(Ordering::Relaxed);
    if state & ARMED != 0 {
        crate::token::timer::forget(
            node.weak(),
            Time::from_nanos(this.deadline.load(Ordering::Relaxed)),
        );
    }
    if state & HAS_HOOKS != 0 {
        free_hooks(this, linked);
    }
    #[cfg(loom)]
    this.canary.with_mut(|_| ());
    // SAFETY: no count is left but perhaps the caller's, and the node is in no list.
    let mut owned = unsafe { Box::from_raw(node.0.as_ptr()) };
    live::died();
    owned.parent.take()
}

/// Free the hooks of a node that no thread can find but through its hooks in linked nodes.
#[cold]
fn free_hooks(node: &Node, linked: &mut Vec<NodeRef>) {
    let hooks = node.lists.lock().hooks.take();
    for (other, id) in hooks.into_iter().flat_map(|hooks| hooks.into_links()) {
        other.unhook(id); // after this no thread can find the node
        linked.push(other);
    }
}

/// Nodes alive in a model, so that a leak fails it. All threads of a model are coroutines of one
/// real thread, so a real thread-local counts for one model, whatever runs beside it.
#[cfg(loom)]
pub(crate) mod live {
    use std::cell::Cell;

    std::thread_local! {
        static COUNT: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn born() {
        COUNT.set(COUNT.get() + 1);
    }

    pub(super) fn died() {
        COUNT.set(COUNT.get() - 1);
    }

    #[cfg(test)]
    pub(crate) fn count() -> usize {
        COUNT.get()
    }
}

#[cfg(not(loom))]
mod live {
    pub(super) fn born() {}
    pub(super) fn died() {}
}
