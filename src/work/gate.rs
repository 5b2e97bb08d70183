//! `LeaseGate`: whether a worker may lease its next item.
//!
//! Guarantees:
//! 1. When [`LeaseGate::pause`] or [`LeaseGate::retire`] has returned, and then [`LeaseGate::until_outside`],
//!    the worker leases nothing until it is resumed; a retired one never again.
//! 2. An item that was leased before is neither lost nor cancelled: the worker works on it first.
//!
//! Protocol. The worker alone calls [`LeaseGate::pass`], which opens a scope around each lease and passes
//! it in with `leasing`. Any thread pauses, resumes and retires, under the lock of `state`: one that
//! finds a scope there cancels it, and the wait for an item ends without one, or with one that was granted
//! first. A worker that comes later sees the flags. `open` and `outside` follow from `state`, and are
//! written under its lock, so that they agree with it.
//!
//! | `paused` | `retired` | `open` | the worker that comes to lease |
//! |---|---|---|---|
//! | no | no | set | leases |
//! | yes | no | not set | waits for `open` |
//! | any | yes | set | leaves its loop |
//!
//! Lock order: the lock of `state`, then that of an event, for a few instructions. The scope is cancelled
//! with neither of them held, since that wakes the worker.

use crate::atomics::Mutex;
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::Stop;
use crate::host::Home;
use crate::scope::{self, Exit, Kind};
use crate::sync::Event;
use crate::token::tree::NodeRef;

/// See the header.
pub(crate) struct LeaseGate {
    state: Mutex<GateState>,
    /// Set unless the worker has to wait before its next lease.
    open: Event,
    /// Set unless the worker is leasing.
    outside: Event,
}

/// The fields that the gate's lock protects.
#[derive(Default)]
struct GateState {
    paused: bool,
    /// Never reset.
    retired: bool,
    /// Of the scope in which the worker is leasing. Written by the worker.
    leasing: Option<NodeRef>,
}

/// What has come of the worker's wish to lease.
pub(crate) enum Passed<L> {
    /// What its lease has returned. If it was stopped, the pool has stopped, and not the gate.
    Leased(L),
    /// It was stopped by the gate while it leased, and comes again.
    Again,
    /// It waits by [`LeaseGate::until_open`], and comes again.
    Wait,
    /// It leaves its loop.
    Leave,
}

impl LeaseGate {
    pub(crate) fn new() -> Self {
        let gate = Self {
            state: Mutex::default(),
            open: Event::new(),
            outside: Event::new(),
        };
        gate.open.set();
        gate.outside.set();
        gate
    }

    /// Lease the next item by `lease`, if the worker may, on the worker's thread. `is_stopped`: the lease
    /// was ended by a cancellation, and nothing was leased.
    pub(crate) fn pass<L>(
        &self,
        lease: impl FnOnce() -> L,
        is_stopped: impl FnOnce(&L) -> bool,
    ) -> Passed<L> {
        let node = scope::enter(Kind::Plain, Time::NEVER, None, Home::NATIVE);
        let passed = self.come_in(&node).unwrap_or_else(|| {
            let leased = lease();
            self.leave();
            Passed::Leased(leased)
        });
        let stopped = matches!(&passed, Passed::Leased(leased) if is_stopped(leased));
        // By construction innermost and on this thread.
        let exit = scope::exit(&node, stopped).unwrap_or(Exit::Pass);
        scope::close_unless_private(&node);
        match exit {
            Exit::Absorbed(_) => Passed::Again,
            Exit::Pass => passed,
        }
    }

    /// Let the worker lease in the scope of this node; or the reason why it may not.
    fn come_in<L>(&self, node: &NodeRef) -> Option<Passed<L>> {
        let mut state = self.state.lock();
        if state.retired {
            Some(Passed::Leave)
        } else if state.paused {
            Some(Passed::Wait)
        } else {
            state.leasing = Some(node.clone());
            self.outside.clear();
            None
        }
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        let node = state.leasing.take();
        self.outside.set();
        drop(state);
        drop(node);
    }

    /// Let the worker lease nothing more.
    pub(crate) fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Let the worker lease again.
    pub(crate) fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    /// Let the worker leave its loop, instead of leasing the next item.
    pub(crate) fn retire(&self) {
        self.change(|state| state.retired = true);
    }

    fn change(&self, change: impl FnOnce(&mut GateState)) {
        let mut state = self.state.lock();
        change(&mut state);
        if state.paused && !state.retired {
            self.open.clear();
        } else {
            self.open.set();
        }
        let is_shut = state.paused || state.retired;
        let leasing = state.leasing.clone().filter(|_| is_shut);
        drop(state);
        if let Some(node) = leasing {
            let reason = "the worker is to lease nothing more";
            node.cancel(Cause::now(CauseKind::Explicit, Some(reason.into()), None));
        }
    }

    #[cfg(feature = "python")]
    pub(crate) fn retired(&self) -> bool {
        self.state.lock().retired
    }

    /// Wait until the worker may lease, or is to leave.
    ///
    /// # Errors
    /// The calling thread is to stop.
    pub(crate) fn until_open(&self) -> Result<(), Stop> {
        self.open.wait_until(Time::NEVER).map(drop)
    }

    /// Wait until the worker is not leasing.
    ///
    /// # Errors
    /// The calling thread is to stop.
    pub(crate) fn until_outside(&self) -> Result<(), Stop> {
        self.outside.wait_until(Time::NEVER).map(drop)
    }
}
