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

use std::ptr;

use super::{Node, NodeRef, TAKEN};
use crate::atomics::Ordering;

/// Where a node is in its parent's list, or on a stack. Null pointers end both.
pub(super) struct Links {
    /// The neighbour that was added later. Null for the first of a list, unused on a stack.
    previous: *const Node,
    /// The neighbour that was added earlier; the node below on a stack.
    next: *const Node,
}

impl Links {
    /// In no list and on no stack.
    pub(super) const NONE: Links = Links {
        previous: ptr::null(),
        next: ptr::null(),
    };
}

/// The links of a node.
///
/// # Safety
/// The node is not freed, and its links are the caller's (5) for as long as it uses them.
unsafe fn links<'a>(node: *const Node) -> &'a mut Links {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(loom)]
        (*node).links_canary.with_mut(|_| ());
        &mut *(*node).links.get()
    }
}

/// The children of one node. A thread that can borrow it holds that node's lock.
pub(super) struct Children {
    /// The child that was added last, or null. Carries no count: the child's last drop unlinks it.
    first: *const Node,
}

impl Children {
    /// No children.
    pub(super) const NONE: Children = Children { first: ptr::null() };

    /// Add a child, in front.
    ///
    /// # Safety
    /// No other thread can reach the child yet.
    pub(super) unsafe fn add(&mut self, child: &NodeRef) {
        let (first, child) = (self.first, child.as_ptr());
        // SAFETY: the child is not yet shared; `first` is in this list (4).
        unsafe {
            links(child).next = first;
            if !first.is_null() {
                links(first).previous = child;
            }
        }
        self.first = child;
    }

    /// Take a child out, if it is in the list; else nothing happens.
    ///
    /// # Safety
    /// It is a child of this list's node, and not freed.
    pub(super) unsafe fn unlink(&mut self, child: *const Node) {
        // SAFETY: the caller's promise; the neighbours are in the same list (4, 5).
        unsafe {
            if (*child).state.load(Ordering::Relaxed) & TAKEN != 0 {
                return;
            }
            let ours = links(child);
            if ours.previous.is_null() && self.first != child {
                return; // taken out before
            }
            if ours.previous.is_null() {
                self.first = ours.next;
            } else {
                links(ours.previous).next = ours.next;
            }
            if !ours.next.is_null() {
                links(ours.next).previous = ours.previous;
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
    pub(super) unsafe fn take(&mut self, most: usize, mut flag: impl FnMut(&Node) -> bool) -> bool {
        let mut child = self.first;
        for _ in 0..most {
            if child.is_null() {
                break;
            }
            // SAFETY: `child` is in the list and the lock is held (4), so it is not freed, and its
            // links are guarded by that lock (5).
            unsafe {
                let this = &*child;
                #[cfg(loom)]
                this.canary.with(|_| ());
                let next = links(child).next;
                fetch_ahead(child, next);
                if !flag(this) {
                    *links(child) = Links::NONE;
                }
                child = next;
            }
        }
        self.first = child;
        if !child.is_null() {
            // SAFETY: still in the list, lock held.
            unsafe { links(child).previous = ptr::null() };
        }
        !child.is_null()
    }

    #[cfg(all(test, loom))]
    pub(super) fn len(&self) -> usize {
        let mut len = 0;
        let mut child = self.first;
        while !child.is_null() {
            len += 1;
            // SAFETY: in the list whose lock is held (4, 5).
            child = unsafe { links(child).next };
        }
        len
    }
}

/// Prefetch a child that is still to come. Walking a long list is bound by cache misses, and children
/// made in a row lie in memory at equal distances, so the address of a later one can be guessed from
/// two neighbours. A wrong guess costs little and reads nothing.
fn fetch_ahead(child: *const Node, next: *const Node) {
    const AHEAD: usize = 16; // how many are flagged while one is fetched
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let step = next.addr().wrapping_sub(child.addr());
        let guess = next.wrapping_byte_add(step.wrapping_mul(AHEAD));
        // SAFETY: a prefetch may be given any address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(guess.cast()) };
    }
    let _ = (child, next, AHEAD);
}

/// Nodes that a canceller has taken out of their lists, the last one on top. Owned by one thread.
#[must_use]
pub(super) struct NodeStack {
    /// Null for an empty stack. Carries a count, as each node below does.
    top: *const Node,
}

// SAFETY: counts of nodes, which are Send.
unsafe impl Send for NodeStack {}

impl NodeStack {
    /// No nodes.
    pub(super) const EMPTY: NodeStack = NodeStack { top: ptr::null() };

    /// True if no node is on it.
    pub(super) fn is_empty(&self) -> bool {
        self.top.is_null()
    }

    /// Put a node on top; its count is the stack's from now on.
    ///
    /// # Safety
    /// The calling thread has set TAKEN on the node, which is on no stack.
    #[inline]
    pub(super) unsafe fn push(&mut self, node: NodeRef) {
        let node = std::mem::ManuallyDrop::new(node).as_ptr();
        // SAFETY: counted, and its links are the caller's (5).
        unsafe { links(node).next = self.top };
        self.top = node;
    }

    /// Take the top node off, with its count.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<NodeRef> {
        if self.top.is_null() {
            return None;
        }
        // SAFETY: nodes on the stack carry a count, and their links are ours (5).
        unsafe {
            let node = NodeRef::adopt(self.top);
            self.top = std::mem::replace(&mut links(self.top).next, ptr::null());
            Some(node)
        }
    }
}

/// Gives the counts back, if a walk ends early by a panic.
impl Drop for NodeStack {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
