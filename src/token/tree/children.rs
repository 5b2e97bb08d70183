//! The list of a node's children, and the stack of nodes that a canceller has taken out of lists.
//! Both are threaded through the nodes themselves, so that neither allocates: a cancellation must not
//! fail for want of memory.
//!
//! Guarantees: a child is in its parent's list or on one stack, never both; a list holds no
//! counts, a stack holds one for each node on it.
//!
//! Protocol for a node's [`Links`], see 5 of the tree's invariants:
//!
//! | the node is             | its links belong to                        | leaves by                    |
//! |-------------------------|--------------------------------------------|------------------------------|
//! | being born              | the thread that makes it                   | [`Children::add`]            |
//! | in its parent's list    | the parent's lock                          | [`Children::unlink`], [`Children::take`] |
//! | taken, TAKEN is set     | the canceller that set it, without a lock  | [`NodeStack::pop`]           |
//! | in neither              | the parent's lock; they are null           | the free                     |
//!
//! `unlink` looks at TAKEN first, under the parent's lock, under which it is set. So a node that is
//! dropped while a canceller has it leaves its links alone.
#![allow(unsafe_code)] // nodes are found through raw pointers, see 4 and 5 of the tree's invariants

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use super::{Node, NodeRef, TAKEN};
use crate::atomics::Ordering;

/// A pointer without a count; `None` ends a list and a stack.
type Link = Option<NonNull<Node>>;

/// Where a node is in its parent's list, or on a stack.
pub(super) struct Links {
    /// The neighbour that was added later. `None` for the first of a list, unused on a stack.
    previous: Link,
    /// The neighbour that was added earlier; the node below on a stack.
    next: Link,
}

impl Links {
    /// In no list and on no stack.
    pub(super) const NONE: Links = Links {
        previous: None,
        next: None,
    };
}

/// The links of a node.
///
/// # Safety
/// The node is not freed, and its links are the caller's (5) for as long as it uses them.
unsafe fn links<'a>(node: NonNull<Node>) -> &'a mut Links {
    // SAFETY: the caller's promise.
    unsafe {
        let node = node.as_ref();
        #[cfg(loom)]
        node.links_canary.with_mut(|_| ());
        &mut *node.links.get()
    }
}

/// The children of one node. A thread that can borrow it holds that node's lock.
pub(super) struct Children {
    /// The child that was added last. The child's last drop unlinks it.
    first: Link,
}

impl Children {
    /// No children.
    pub(super) const NONE: Children = Children { first: None };

    /// Add a child, in front.
    ///
    /// # Safety
    /// No other thread can reach the child yet.
    pub(super) unsafe fn add(&mut self, child: &NodeRef) {
        let child = child.0;
        // SAFETY: the child is not yet shared; `first` is in this list (4).
        unsafe {
            links(child).next = self.first;
            if let Some(first) = self.first {
                links(first).previous = Some(child);
            }
        }
        self.first = Some(child);
    }

    /// Take a child out, if it is in the list; else nothing happens.
    ///
    /// # Safety
    /// It is a child of this list's node.
    pub(super) unsafe fn unlink(&mut self, child: &Node) {
        if child.state.load(Ordering::Relaxed) & TAKEN != 0 {
            return;
        }
        let child = NonNull::from(child);
        // SAFETY: the caller's promise; the neighbours are in the same list (4, 5).
        unsafe {
            let ours = links(child);
            match ours.previous {
                Some(previous) => links(previous).next = ours.next,
                None if self.first == Some(child) => self.first = ours.next,
                None => return, // taken out before
            }
            if let Some(next) = ours.next {
                links(next).previous = ours.previous;
            }
            *ours = Links::NONE;
        }
    }

    /// Take at most `most` children out. `flag` returns true if it has set TAKEN on the child, whose
    /// links are the caller's then; else they are cleared here. True: there are more children.
    ///
    /// # Safety
    /// `flag` returns true only if the calling thread has set TAKEN just now.
    #[inline]
    pub(super) unsafe fn take(
        &mut self,
        most: usize,
        mut flag: impl FnMut(&NodeRef) -> bool,
    ) -> bool {
        let mut next = self.first;
        for _ in 0..most {
            let Some(child) = next else {
                break;
            };
            // SAFETY: `child` is in the list and the lock is held (4), so it is not freed, and its
            // links are guarded by that lock (5).
            unsafe {
                next = links(child).next;
                fetch_ahead(child, next);
                if !flag(&NodeRef::borrow(child)) {
                    *links(child) = Links::NONE;
                }
            }
        }
        self.first = next;
        if let Some(first) = next {
            // SAFETY: still in the list, lock held.
            unsafe { links(first).previous = None };
        }
        next.is_some()
    }

    #[cfg(all(test, loom))]
    pub(super) fn len(&self) -> usize {
        let mut len = 0;
        let mut next = self.first;
        while let Some(child) = next {
            len += 1;
            // SAFETY: in the list whose lock is held (4, 5).
            next = unsafe { links(child).next };
        }
        len
    }
}

/// Prefetch a child that is still to come. Walking a long list is bound by cache misses, and children
/// made in a row lie in memory at equal distances, so the address of a later one can be guessed from
/// two neighbours. A wrong guess costs little and reads nothing.
fn fetch_ahead(child: NonNull<Node>, next: Link) {
    const AHEAD: usize = 16; // how many are flagged while one is fetched
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        if let Some(next) = next {
            let step = next.addr().get().wrapping_sub(child.addr().get());
            let guess = next.as_ptr().wrapping_byte_add(step.wrapping_mul(AHEAD));
            // SAFETY: a prefetch may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(guess.cast()) };
        }
    }
    let _ = (child, next, AHEAD);
}

/// A counted node on which the calling thread has set TAKEN, and which is on no stack: its links belong to
/// this value (5).
pub(super) struct Taken(NodeRef);

impl Taken {
    /// # Safety
    /// The calling thread has set TAKEN on the node, and has made no other such value of it.
    pub(super) unsafe fn new(node: NodeRef) -> Taken {
        Taken(node)
    }

    /// The count alone. The links are not used any more.
    pub(super) fn into_node(self) -> NodeRef {
        self.0
    }
}

impl Deref for Taken {
    type Target = NodeRef;

    fn deref(&self) -> &NodeRef {
        &self.0
    }
}

/// Nodes that a canceller has taken out of their lists, the last one on top. Owned by one thread.
#[must_use]
pub(super) struct NodeStack {
    /// Carries a count, as each node below does.
    top: Link,
}

// SAFETY: counts of nodes, which are Send.
unsafe impl Send for NodeStack {}

impl NodeStack {
    /// No nodes.
    pub(super) const EMPTY: NodeStack = NodeStack { top: None };

    /// True if no node is on it.
    pub(super) fn is_empty(&self) -> bool {
        self.top.is_none()
    }

    /// Put a node on top; its count is the stack's from now on.
    #[inline]
    pub(super) fn push(&mut self, node: Taken) {
        let node = ManuallyDrop::new(node).0.0;
        // SAFETY: counted, and its links are ours (5).
        unsafe { links(node).next = self.top };
        self.top = Some(node);
    }

    /// Take the top node off, with its count.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Taken> {
        let node = self.top?;
        // SAFETY: nodes on the stack carry a count, and their links are ours (5).
        self.top = unsafe { links(node).next.take() };
        Some(Taken(NodeRef(node)))
    }
}

/// Gives the counts back, if a walk ends early by a panic.
impl Drop for NodeStack {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
