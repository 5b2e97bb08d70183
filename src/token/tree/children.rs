//! The list of a node's children, and the stack of those that a canceller has taken out of one.
//! Both are threaded through the nodes themselves, so that neither allocates.
//!
//! Guarantees: a child is in its parent's list or on one stack, never both; a list holds no
//! counts, a stack holds one for each node on it.
#![allow(unsafe_code)] // nodes are found through raw pointers, see 4 and 5 of the tree's invariants

use std::ptr;

use super::{Node, NodeRef, TAKEN};
use crate::atomics::Ordering;

/// Where a node is in its parent's list, or on a stack.
pub(super) struct Links {
    previous: *const Node,
    next: *const Node,
}

impl Links {
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

/// The children of one node; whoever has it in hand holds that node's lock.
pub(super) struct Children {
    first: *const Node,
}

impl Children {
    pub(super) const NONE: Children = Children { first: ptr::null() };

    /// Add a child.
    ///
    /// # Safety
    /// Nobody else knows of it.
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

    /// Take a child out, if it is in the list.
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

    /// Take children out, so many at most. `flag` says of each whether it has set TAKEN; then the
    /// links are its own. True: there are more.
    ///
    /// # Safety
    /// What `flag` says is so.
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

/// Children wait in memory, not in the cache, and mostly as far from each other as these two are:
/// fetch one to come. A wrong guess costs nothing and touches nothing.
fn fetch_ahead(child: *const Node, next: *const Node) {
    const AHEAD: usize = 16; // as many as are flagged while one is fetched
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

/// Nodes that a canceller has taken out of their lists.
#[must_use]
pub(super) struct NodeStack {
    top: *const Node,
}

// SAFETY: counts of nodes, which are Send.
unsafe impl Send for NodeStack {}

impl NodeStack {
    pub(super) const EMPTY: NodeStack = NodeStack { top: ptr::null() };

    pub(super) fn is_empty(&self) -> bool {
        self.top.is_null()
    }

    /// # Safety
    /// The caller has set TAKEN, and the node is on no stack.
    #[inline]
    pub(super) unsafe fn push(&mut self, node: NodeRef) {
        let node = std::mem::ManuallyDrop::new(node).as_ptr();
        // SAFETY: counted, and its links are the caller's (5).
        unsafe { links(node).next = self.top };
        self.top = node;
    }

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

impl Drop for NodeStack {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
