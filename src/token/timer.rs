//! The timer: notices deadlines that no thread is waiting for.
//!
//! A thread that waits under a deadline sleeps no longer than that and notices it itself; a thread that
//! only polls a flag depends on the timer to raise it. So a node is *armed*, put into the timer, only
//! when a token for it (or below it) is handed out, or its deadline moves. Most scopes are never armed.
//!
//! Guarantees:
//! 1. A deadline is never noticed early.
//! 2. There are at most as many entries as armed nodes: a node has one, which is replaced when its
//!    deadline moves, and removed when it expires or the node is freed.
//! 3. The thread sleeps until the earliest deadline and is woken only for an earlier one.
//! 4. A callback never delays a deadline: it is handed over to the thread in `callback_thread`.
//!
//! Protocol. [`Deadlines`] belongs to the lock of the service. A node's own deadline is written under that
//! lock only (after its birth), in one step with its entry, so the entry that belongs to it can always
//! be found. The thread takes due entries out under the lock, with a count of each node, and expires
//! the nodes unlocked, since that takes node locks and wakes threads.
//!
//! | step                    | under the lock                              | then, unlocked               |
//! |-------------------------|---------------------------------------------|------------------------------|
//! | [`arm`]                 | set ARMED, insert                           | wake the thread, if earliest |
//! | [`set`], [`bring_forward`] | set ARMED, store, replace the entry      | wake the thread, if earliest |
//! | a deadline passes       | remove the entry, take a count of the node  | expire, unless it was moved  |
//! | the node is freed: [`forget`] | remove the entry                      | free the memory              |
//!
//! Lock order: no other lock is taken under the service's, and no node is locked when it is taken.

use std::collections::BTreeSet;

use crate::clock::{Time, source};
use crate::park::service::{Service, Work};
use crate::token::tree::{NodeRef, Weak};

/// The timer of the process.
static TIMER: Service<Deadlines> = Service::new();

/// The armed nodes. A node that is freed waits for the service's lock in [`forget`], so the memory
/// of each node in here is valid while the lock is held.
#[derive(Default)]
struct Deadlines {
    /// By the system's clock, the earliest first: the timer's thread expires them.
    real: BTreeSet<(Time, Weak)>,
    /// By a [clock source](crate::clock), which moves without that thread. Expired by the simulation.
    simulated: BTreeSet<(Time, Weak)>,
}

/// Tell the timer of a node's deadline, if it does not know the node yet.
pub(crate) fn arm(node: &NodeRef) {
    if !node.is_armed() {
        insert(node, |node| node.mark_armed().then(|| node.own_deadline()));
    }
}

/// Arm a node and those above it that may have deadlines.
pub(crate) fn arm_path(node: &NodeRef) {
    node.timed_path()
        .filter(|node| !node.own_deadline().is_never())
        .for_each(arm);
}

/// Move a node's deadline, and arm the node.
pub(crate) fn set(node: &NodeRef, deadline: Time) {
    insert(node, |node| {
        node.mark_armed();
        node.store_deadline(deadline);
        Some(deadline)
    });
}

/// Move a node's deadline, and arm the node, unless its deadline is earlier: of several threads that
/// do this at once, the earliest deadline stays.
pub(crate) fn bring_forward(node: &NodeRef, deadline: Time) {
    insert(node, |node| {
        let earlier = deadline < node.own_deadline();
        earlier.then(|| {
            node.mark_armed();
            node.store_deadline(deadline);
            deadline
        })
    });
}

/// Remove the entry of a node that is being freed; `deadline` is its last one. Waits for the lock, so
/// the node's memory stays valid for a thread that has it.
pub(crate) fn forget(node: Weak, deadline: Time) {
    TIMER.peek(|deadlines| deadlines.remove(&(deadline, node)));
}

/// How many entries there are: for tests of leaks.
#[cfg(feature = "python")]
pub(crate) fn armed() -> usize {
    let count = |deadlines: &mut Deadlines| deadlines.real.len() + deadlines.simulated.len();
    TIMER.peek(count).unwrap_or(0)
}

/// The earliest deadline by a simulated clock: for the simulation, which advances its clock to it.
#[cfg(not(loom))]
pub(crate) fn next_simulated() -> Time {
    let first = TIMER.peek(|deadlines| first(&deadlines.simulated));
    first.unwrap_or(Time::NEVER)
}

/// Expire the deadlines that have passed by the simulated time `now`, on the calling thread.
#[cfg(not(loom))]
pub(crate) fn expire_simulated(now: Time) {
    let due = TIMER.peek(|deadlines| take_due(&mut deadlines.simulated, now));
    expire(due.unwrap_or_default());
}

/// Take due entries out, the earliest first, with a count of each node that is not being freed. Called
/// with the timer's lock held.
fn take_due(entries: &mut BTreeSet<(Time, Weak)>, now: Time) -> Vec<(Time, NodeRef)> {
    let mut due = Vec::new();
    while let Some(&(deadline, node)) = entries.first() {
        if deadline > now {
            break;
        }
        entries.pop_first();
        // A node that is being freed waits for the timer's lock in `forget`: its memory is valid.
        due.extend(node.upgrade().map(|node| (deadline, node)));
    }
    due
}

/// Cancel nodes whose deadline has passed, with the deadline as the cause. No lock is held.
fn expire(due: Vec<(Time, NodeRef)>) {
    for (deadline, node) in due {
        // It may have been moved since it was taken out. A move after this check comes too late.
        if node.own_deadline() == deadline {
            node.expire(deadline);
        }
    }
}

/// Replace a node's entry. `change` runs under the lock, may store a new deadline, and returns the one
/// that is to be noticed; `None` leaves the timer as it is.
fn insert(node: &NodeRef, change: impl FnOnce(&NodeRef) -> Option<Time>) {
    TIMER.update(|deadlines| {
        let before = (node.own_deadline(), node.weak());
        let Some(deadline) = change(node) else { return };
        deadlines.remove(&before);
        if deadline.is_never() {
            return;
        }
        let entries = if source::is_set() {
            &mut deadlines.simulated
        } else {
            &mut deadlines.real
        };
        entries.insert((deadline, node.weak()));
    });
}

/// The earliest deadline, or [`Time::NEVER`].
fn first(entries: &BTreeSet<(Time, Weak)>) -> Time {
    entries.first().map_or(Time::NEVER, |(at, _)| *at)
}

impl Deadlines {
    /// Remove an entry from whichever set has it: the clock may have been changed since it was inserted.
    fn remove(&mut self, entry: &(Time, Weak)) {
        self.real.remove(entry);
        self.simulated.remove(entry);
    }
}

impl Work for Deadlines {
    type Job = Vec<(Time, NodeRef)>;
    const NAME: &'static str = "desist-timer";
    const CALLS_HOST: bool = false;

    fn next(&self) -> Time {
        first(&self.real)
    }

    fn take_due(&mut self, now: Time) -> Option<Self::Job> {
        let due = take_due(&mut self.real, now);
        (!due.is_empty()).then_some(due)
    }

    fn perform(due: Self::Job) {
        expire(due);
    }
}
