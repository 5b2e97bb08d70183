//! Hooks: the actions of a node's cancellation.
//!
//! Guarantees:
//! 1. Hooks are fired in the order in which they were added. Callbacks stay for later, to be popped the
//!    latest first.
//! 2. A hook that was removed has not been fired and never will be; one that was fired is gone.
//! 3. Nothing but atomic writes happens under the node's lock: waiters are settled there, and woken
//!    when it is unlocked; nodes that are linked are upgraded there, and flagged afterwards.
//!
//! Protocol: a thread that can borrow a [`Hooks`] holds the lock of its node. A hook is added by the
//! thread that waits or registers, removed by the same or by the drop of its target, and fired
//! once by the thread that has set CANCELLED.
#![allow(unsafe_code)] // flags that live outside the core

use std::time::Duration;

use super::{NodeRef, Weak};
use crate::atomics::Arc;
use crate::clock::Time;
use crate::park::{self, Ticket, WaitOutcome, Waiter};
use crate::token::callback::Callback;

/// An action of a node's cancellation. All but callbacks run before any callback of the
/// whole tree runs, so that a slow callback delays no waiter.
pub(crate) enum Hook {
    /// Settle a blocked thread's wait as cancelled: the thread is in a scope of this node.
    Wake(Arc<Waiter>),
    /// Grant a blocked thread's operation: it waits for this very cancellation.
    Grant(Ticket),
    /// Raise a flag outside the core.
    #[cfg(feature = "python")]
    Raise(Flag),
    /// Cancel another node, which is linked to this one and removes this hook when it is freed.
    Link(Weak),
    /// Nothing happens. This node is linked to another one, which has the hook with this id for it;
    /// remembered so that the free of this node can remove it.
    LinkedTo(NodeRef, HookId),
    /// Run a callback, when the whole tree is flagged, with no lock held.
    Call(Arc<Callback>),
    /// Nothing happens. A clean-up zone, whose end a later cancel of this node may move earlier; and the
    /// grace for a canceller that names none. The zone removes this hook when it is freed.
    Shorten(Weak, Duration),
}

/// How later cancels and kills of a cancelled node have shortened the grace of the first.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// The earliest end that one of them has named.
    end: Time,
    /// When the first of them came that has named none.
    unnamed: Time,
}

impl Patience {
    /// One cancel that came at `at`. `grace`: `None` if it named none.
    pub(super) fn of(at: Time, grace: Option<Duration>) -> Patience {
        match grace {
            Some(grace) => Patience {
                end: at + grace,
                ..Patience::default()
            },
            None => Patience {
                unnamed: at,
                ..Patience::default()
            },
        }
    }

    /// The end of a zone under it; `own`: the grace for a canceller that names none.
    pub(super) fn end(self, own: Duration) -> Time {
        self.end.min(self.unnamed + own)
    }

    /// Both.
    fn min(self, other: Patience) -> Patience {
        Patience {
            end: self.end.min(other.end),
            unnamed: self.unnamed.min(other.unnamed),
        }
    }
}

impl Default for Patience {
    /// There was no later cancel.
    fn default() -> Patience {
        Patience {
            end: Time::NEVER,
            unnamed: Time::NEVER,
        }
    }
}

/// A flag outside the core that mirrors "cancelled": may do nothing but store to memory.
#[cfg(feature = "python")]
#[derive(Clone, Copy)]
pub(crate) struct Flag {
    /// Stores to `place`, and does nothing else: it runs under the node's lock.
    pub(crate) raise: unsafe fn(*const ()),
    /// Kept valid by the owner of the hook until it has removed the hook.
    pub(crate) place: *const (),
}

// SAFETY: `raise` is called at most once, from any thread, with the node's lock held, while the
// owner of the hook keeps `place` valid.
#[cfg(feature = "python")]
unsafe impl Send for Flag {}

/// Names a hook of one node; never reused within it.
pub(crate) type HookId = u64;

/// The hooks of one node.
#[derive(Default)]
pub(super) struct Hooks {
    /// The id of the next hook. Only ever raised.
    next: HookId,
    /// Ascending by id, which is the order in which they were added.
    list: Vec<(HookId, Hook)>,
    /// Of a cancelled node: the effect of later cancels, for zones that are entered after them.
    patience: Patience,
}

/// Hooks that have been fired under the node's lock, for the steps that are made without it.
#[must_use]
pub(super) struct Fired {
    /// Waiters that may have to be woken, and hooks to be dropped.
    hooks: Vec<(HookId, Hook)>,
    /// Nodes to be cancelled with this one, with a count each.
    linked: Vec<NodeRef>,
}

impl Hooks {
    /// Add a hook. The node's `HAS_HOOKS` is set already. The id removes it.
    pub(super) fn add(&mut self, hook: Hook) -> HookId {
        let id = self.next;
        self.next += 1;
        self.list.push((id, hook));
        id
    }

    /// Remove a hook; `None` if it has been fired or popped.
    pub(super) fn take_out(&mut self, id: HookId) -> Option<Hook> {
        // Most hooks are removed in the reverse order of their arrival: look at the last one first.
        let at = match self.list.last() {
            Some((last, _)) if *last == id => self.list.len() - 1,
            _ => self.list.binary_search_by_key(&id, |(id, _)| *id).ok()?,
        };
        Some(self.list.remove(at).1)
    }

    /// Settle waiters, raise flags, upgrade linked nodes. Callbacks stay, to be popped, and so do the
    /// links to other nodes, which are needed when this one is freed.
    pub(super) fn fire(&mut self) -> Fired {
        let mut linked = Vec::new();
        let mut all = true;
        for (_, hook) in &self.list {
            match hook {
                Hook::Wake(waiter) => _ = waiter.settle(WaitOutcome::Cancelled),
                Hook::Grant(ticket) => _ = ticket.grant(),
                // SAFETY: `place` is valid while it is hooked, and the lock is held.
                #[cfg(feature = "python")]
                Hook::Raise(flag) => unsafe { (flag.raise)(flag.place) },
                Hook::Link(weak) => linked.extend(weak.upgrade()),
                Hook::Call(_) | Hook::LinkedTo(..) | Hook::Shorten(..) => all = false,
            }
        }
        let mut hooks = std::mem::take(&mut self.list);
        if !all {
            let stays = |hook: &Hook| {
                matches!(hook, Hook::Call(_) | Hook::LinkedTo(..) | Hook::Shorten(..))
            };
            (self.list, hooks) = hooks.into_iter().partition(|(_, hook)| stays(hook));
        }
        Fired { hooks, linked }
    }

    /// True if a callback is left.
    pub(super) fn has_callback(&self) -> bool {
        self.last_callback().is_some()
    }

    /// The place of the callback that was registered last. Few hooks are behind it, if any: what is
    /// left beside callbacks was added when the node was made, or after its cancellation.
    fn last_callback(&self) -> Option<usize> {
        let is_callback = |(_, hook): &(HookId, Hook)| matches!(hook, Hook::Call(_));
        self.list.iter().rposition(is_callback)
    }

    /// Remove the callback that was registered last.
    pub(super) fn pop_callback(&mut self) -> Option<Arc<Callback>> {
        match self.list.remove(self.last_callback()?).1 {
            Hook::Call(callback) => Some(callback),
            _ => None,
        }
    }

    /// A later cancel: keeps its effect for zones to come, and returns the open ones, with their ends.
    pub(super) fn shorten(&mut self, by: Patience) -> Vec<(NodeRef, Time)> {
        self.patience = self.patience.min(by);
        let zone = |(_, hook): &(HookId, Hook)| match hook {
            Hook::Shorten(zone, own) => Some((zone.upgrade()?, by.end(*own))),
            _ => None,
        };
        self.list.iter().filter_map(zone).collect()
    }

    /// The effect of the later cancels so far.
    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// True if there are no hooks but flags to raise.
    #[cfg(feature = "python")]
    pub(super) fn are_flags(&self) -> bool {
        let is_flag = |hook: &Hook| matches!(hook, Hook::Raise(_));
        self.list.iter().all(|(_, hook)| is_flag(hook))
    }

    /// The nodes that this one is linked to.
    pub(super) fn linked_to(&self) -> impl Iterator<Item = NodeRef> + '_ {
        self.list.iter().filter_map(|(_, hook)| match hook {
            Hook::LinkedTo(other, _) => Some(other.clone()),
            _ => None,
        })
    }

    /// The nodes that this one is linked to, each with the id of its hook there.
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
    /// Wake the waiters that were settled. Returns the nodes that are linked to this one. Called with no
    /// lock held: waking is a system call, and the last drop of a hook may run a user's destructor.
    pub(super) fn wake(self) -> Vec<NodeRef> {
        for (_, hook) in self.hooks {
            // Another settler may have been first and wakes as well: a spurious wake-up at most.
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
