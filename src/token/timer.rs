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
use std::thread;

use once_cell::sync::OnceCell;

use crate::atomics::{Arc, ForkMutex};
use crate::clock::{Time, source};
use crate::fork;
use crate::park::{WaitOutcome, Waiter};
use crate::token::tree::{NodeRef, Weak};

struct Timer {
    /// Held across forks. In a child nobody who waits for it in the parent is there any more, so
    /// it must not be a lock that is handed from one to the next.
    state: ForkMutex<State>,
}

struct State {
    entries: BTreeSet<(Time, Weak)>,
    /// Deadlines by a [clock source](crate::clock), which moves without this thread.
    simulated: BTreeSet<(Time, Weak)>,
    /// The timer's thread asleep, and until when.
    asleep: Option<(Time, Arc<Waiter>)>,
}

static TIMER: OnceCell<Timer> = OnceCell::new();

/// Tell the timer of a node's deadline, if it does not know yet.
pub(crate) fn arm(node: &NodeRef) {
    if !node.is_armed() {
        TIMER.get_or_init(Timer::start).insert(node, |node| {
            (node.mark_armed()).then(|| node.own_deadline())
        });
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
    let timer = TIMER.get_or_init(Timer::start);
    timer.insert(node, |node| {
        node.mark_armed();
        node.store_deadline(deadline);
        Some(deadline)
    });
}

/// The node with this last deadline is on its way out: drop its entry.
pub(crate) fn forget(node: Weak, deadline: Time) {
    if let Some(timer) = TIMER.get() {
        timer.state.lock().remove(&(deadline, node));
    }
}

/// How many deadlines the timer knows.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn armed() -> usize {
    TIMER.get().map_or(0, |timer| {
        let state = timer.state.lock();
        state.entries.len() + state.simulated.len()
    })
}

/// Around a fork: no other thread may be inside the timer. The guard is held from before the fork
/// until after it, in both processes.
pub(crate) fn hold_for_fork() -> Option<impl Sized> {
    TIMER.get().map(|timer| timer.state.lock())
}

/// In a forked child, which has only the thread that forked.
pub(crate) fn restart_in_child() {
    if let Some(timer) = TIMER.get() {
        timer.state.lock().asleep = None;
        start_thread(|| timer.serve());
    }
}

/// The next deadline of a simulated clock.
#[cfg(not(loom))]
pub(crate) fn next_simulated() -> Time {
    TIMER.get().map_or(Time::NEVER, |timer| {
        let state = timer.state.lock();
        state
            .simulated
            .first()
            .map_or(Time::NEVER, |(deadline, _)| *deadline)
    })
}

/// The simulated clock shows `now`.
#[cfg(not(loom))]
pub(crate) fn expire_simulated(now: Time) {
    let Some(timer) = TIMER.get() else { return };
    let due = take_due(&mut timer.state.lock().simulated, now);
    expire(due);
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

impl State {
    fn remove(&mut self, entry: &(Time, Weak)) {
        self.entries.remove(entry);
        self.simulated.remove(entry);
    }
}

impl Timer {
    fn start() -> Timer {
        start_thread(|| TIMER.wait().serve());
        Timer {
            state: ForkMutex::new(State {
                entries: BTreeSet::new(),
                simulated: BTreeSet::new(),
                asleep: None,
            }),
        }
    }

    /// Change a node's deadline under the lock; `change` tells the new one, if it is to be noticed.
    fn insert(&self, node: &NodeRef, change: impl FnOnce(&NodeRef) -> Option<Time>) {
        let woken = {
            let mut state = self.state.lock();
            let before = (node.own_deadline(), node.weak());
            let Some(deadline) = change(node) else { return };
            state.remove(&before);
            if deadline.is_never() {
                return;
            }
            if source::is_set() {
                state.simulated.insert((deadline, node.weak()));
                return;
            }
            state.entries.insert((deadline, node.weak()));
            match &state.asleep {
                Some((until, _)) if deadline < *until => state.asleep.take(),
                _ => None,
            }
        };
        if let Some((_, waiter)) = woken {
            waiter.settle_and_wake(WaitOutcome::Granted);
        }
    }

    fn serve(&self) -> ! {
        let _inside = fork::inside();
        loop {
            let (due, until, waiter) = {
                let mut state = self.state.lock();
                let due = take_due(&mut state.entries, Time::now());
                let until = state
                    .entries
                    .first()
                    .map_or(Time::NEVER, |(deadline, _)| *deadline);
                let waiter = Waiter::new();
                if due.is_empty() {
                    state.asleep = Some((until, waiter.clone()));
                }
                (due, until, waiter)
            };
            if due.is_empty() {
                waiter.park(until);
            }
            expire(due);
        }
    }
}

#[allow(clippy::expect_used)]
fn start_thread(serve: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .name("desist-timer".into())
        .spawn(serve)
        .expect("the system refuses to start a thread for deadlines");
}
