//! The timer: notices deadlines that nobody is waiting for.
//!
//! Whoever waits under a deadline sleeps no longer than that and notices it himself; a thread
//! that merely looks at a flag needs somebody to raise it. So a node is *armed*, put into the
//! timer, only when a token for it (or below it) is handed out, or its deadline moves.
//!
//! Guarantees: never early; entries leave with their node, so there are as many as armed nodes;
//! the thread sleeps until the earliest deadline and is woken only for an earlier one. A callback
//! never delays a deadline: it is handed over to the thread in `callback_thread`.

use std::collections::BTreeSet;

use crate::clock::{Time, source};
use crate::park::service::{Service, Work};
use crate::token::tree::{NodeRef, Weak};

static TIMER: Service<Deadlines> = Service::new();

/// The armed nodes. A node that is freed waits for the service's lock in [`forget`], so the memory
/// of each node in here is valid while the lock is held.
#[derive(Default)]
struct Deadlines {
    /// By the system's clock: the timer's thread expires them.
    real: BTreeSet<(Time, Weak)>,
    /// By a [clock source](crate::clock), which moves without that thread.
    simulated: BTreeSet<(Time, Weak)>,
}

/// Tell the timer of a node's deadline, if it does not know yet.
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

/// Move a node's deadline; the timer knows it from now on.
pub(crate) fn set(node: &NodeRef, deadline: Time) {
    insert(node, |node| {
        node.mark_armed();
        node.store_deadline(deadline);
        Some(deadline)
    });
}

/// The node with this last deadline is on its way out: drop its entry.
pub(crate) fn forget(node: Weak, deadline: Time) {
    TIMER.peek(|deadlines| deadlines.remove(&(deadline, node)));
}

/// How many deadlines the timer knows.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn armed() -> usize {
    let count = |deadlines: &mut Deadlines| deadlines.real.len() + deadlines.simulated.len();
    TIMER.peek(count).unwrap_or(0)
}

/// The next deadline of a simulated clock.
#[cfg(not(loom))]
pub(crate) fn next_simulated() -> Time {
    let first = TIMER.peek(|deadlines| first(&deadlines.simulated));
    first.unwrap_or(Time::NEVER)
}

/// The simulated clock shows `now`.
#[cfg(not(loom))]
pub(crate) fn expire_simulated(now: Time) {
    let due = TIMER.peek(|deadlines| take_due(&mut deadlines.simulated, now));
    expire(due.unwrap_or_default());
}

/// Take out what is due. Called with the timer's lock held.
fn take_due(entries: &mut BTreeSet<(Time, Weak)>, now: Time) -> Vec<(Time, NodeRef)> {
    let mut due = Vec::new();
    while let Some(&(deadline, node)) = entries.first() {
        if deadline > now {
            break;
        }
        entries.pop_first();
        // A dying node waits for the timer's lock in `forget`, so its memory is valid.
        due.extend(node.upgrade().map(|node| (deadline, node)));
    }
    due
}

fn expire(due: Vec<(Time, NodeRef)>) {
    for (deadline, node) in due {
        // It may have been moved while it was being taken out.
        if node.own_deadline() == deadline {
            node.expire(deadline);
        }
    }
}

/// Changes a node's deadline under the lock; `change` returns the new one, if it is to be noticed.
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

fn first(entries: &BTreeSet<(Time, Weak)>) -> Time {
    entries.first().map_or(Time::NEVER, |(at, _)| *at)
}

impl Deadlines {
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
