//! What happens at a node when it is cancelled.
//!
//! Guarantees: hooks are fired in the order in which they came, and callbacks are left for later,
//! to be popped the latest first; a hook that was taken out has not happened and never will.
//! Whoever has a [`Hooks`] in hand holds the lock of its node.
#![allow(unsafe_code)] // flags that live elsewhere

use super::{NodeRef, Weak};
use crate::atomics::Arc;
use crate::park::{self, Ticket, WaitOutcome, Waiter};
use crate::token::callback::Callback;

/// What happens at a node when it is cancelled. All but calls happen at once, under the node's
/// lock, before any callback of the whole tree.
pub(crate) enum Hook {
    /// Settle a blocked thread's wait as cancelled.
    Wake(Arc<Waiter>),
    /// Grant a blocked thread what it waits for: this very cancellation.
    Grant(Ticket),
    /// Raise a flag that lives elsewhere.
    Raise(Flag),
    /// Cancel another node, which is linked to this one.
    Link(Weak),
    /// Nothing happens: this node is linked to another, whose hook goes when this node goes.
    LinkedTo(NodeRef, HookId),
    /// Run a callback, later and unlocked.
    Call(Arc<Callback>),
}

/// A flag outside the core that mirrors "cancelled": may do nothing but store to memory.
#[derive(Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) raise: unsafe fn(*const ()),
    pub(crate) place: *const (),
}

// SAFETY: `raise` is called at most once, from any thread, with the node's lock held, while whoever
// hooked it keeps `place` valid.
unsafe impl Send for Flag {}

/// Names a hook of one node; never reused within it.
pub(crate) type HookId = u64;

/// The hooks of one node.
#[derive(Default)]
pub(super) struct Hooks {
    next: HookId,
    /// In order of their ids, which is the order in which they came.
    list: Vec<(HookId, Hook)>,
}

/// Hooks that have been fired under the node's lock; the rest is done without it.
#[must_use]
pub(super) struct Fired {
    hooks: Vec<(HookId, Hook)>,
    linked: Vec<NodeRef>,
}

impl Hooks {
    pub(super) fn add(&mut self, hook: Hook) -> HookId {
        let id = self.next;
        self.next += 1;
        self.list.push((id, hook));
        id
    }

    pub(super) fn take_out(&mut self, id: HookId) -> Option<Hook> {
        // Most hooks leave in the reverse order of their coming.
        let at = match self.list.last() {
            Some((last, _)) if *last == id => self.list.len() - 1,
            _ => self.list.binary_search_by_key(&id, |(id, _)| *id).ok()?,
        };
        Some(self.list.remove(at).1)
    }

    /// Settle waiters and raise flags. Callbacks and links to other nodes stay.
    pub(super) fn fire(&mut self) -> Fired {
        let mut linked = Vec::new();
        let mut all = true;
        for (_, hook) in &self.list {
            match hook {
                Hook::Wake(waiter) => _ = waiter.settle(WaitOutcome::Cancelled),
                Hook::Grant(ticket) => _ = ticket.grant(),
                // SAFETY: `place` is valid while it is hooked, and the lock is held.
                Hook::Raise(flag) => unsafe { (flag.raise)(flag.place) },
                Hook::Link(weak) => linked.extend(weak.upgrade()),
                Hook::Call(_) | Hook::LinkedTo(..) => all = false,
            }
        }
        let mut hooks = std::mem::take(&mut self.list);
        if !all {
            let stays = |hook: &Hook| matches!(hook, Hook::Call(_) | Hook::LinkedTo(..));
            (self.list, hooks) = hooks.into_iter().partition(|(_, hook)| stays(hook));
        }
        Fired { hooks, linked }
    }

    /// Links come first, when the node is made, so a look at the last tells.
    pub(super) fn has_callback(&self) -> bool {
        matches!(self.list.last(), Some((_, Hook::Call(_))))
    }

    pub(super) fn pop_callback(&mut self) -> Option<Arc<Callback>> {
        match self.list.pop() {
            Some((_, Hook::Call(callback))) => Some(callback),
            other => {
                self.list.extend(other);
                None
            }
        }
    }

    /// Nothing but flags to raise?
    pub(super) fn are_flags(&self) -> bool {
        let is_flag = |hook: &Hook| matches!(hook, Hook::Raise(_));
        self.list.iter().all(|(_, hook)| is_flag(hook))
    }

    /// The nodes that this one is linked to, and its hooks there.
    pub(super) fn into_links(self) -> impl Iterator<Item = (NodeRef, HookId)> {
        self.list.into_iter().filter_map(|(_, hook)| match hook {
            Hook::LinkedTo(other, id) => Some((other, id)),
            _ => None,
        })
    }

    #[cfg(all(test, loom))]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
}

impl Fired {
    /// Wake whom they have settled. Returns the nodes that are linked to this one. Not under a
    /// lock: waking is a system call, and a last drop may be anybody's code.
    pub(super) fn wake(self) -> Vec<NodeRef> {
        for (_, hook) in self.hooks {
            // Another settler may have come first, and wakes as well: no harm.
            let waiter = match hook {
                Hook::Wake(waiter) => waiter,
                Hook::Grant(ticket) => ticket.into_waiter(),
                _ => continue,
            };
            waiter.wake();
            park::note_woken(waiter);
        }
        self.linked
    }
}
