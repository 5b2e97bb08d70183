//! `LeaseGate`: whether a worker may lease its next item.
//!
//! Guarantees:
//! 1. When [`LeaseGate::pause`] or [`LeaseGate::retire`] has returned, and then [`LeaseGate::until_outside`],
//!    the worker leases nothing until it is resumed; a retired one never again.
//! 2. An item that was leased before is neither lost nor cancelled: the worker works on it first.
//!
//! Protocol. The worker alone calls [`LeaseGate::lease`], which opens a scope around each lease and passes
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
//! All of this is done by attached threads, and the lock is held for a few instructions.

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::source::{Delivery, LeaseSource};
use crate::clock::Time;
use crate::host::Home;
use crate::python::error::Cancelled;
use crate::python::token;
use crate::python::wait::blocking;
use crate::scope::{self, Exit, Kind};
use crate::sync::Event;
use crate::token::tree::NodeRef;

/// See the header.
pub(super) struct LeaseGate {
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

/// Whether a worker may lease.
enum Pass {
    Lease,
    Wait,
    Leave,
}

impl LeaseGate {
    pub(super) fn new() -> Self {
        let gate = Self {
            state: Mutex::default(),
            open: Event::new(),
            outside: Event::new(),
        };
        gate.open.set();
        gate.outside.set();
        gate
    }

    /// Lease the next item, on the worker's thread. `None`: the worker is to leave its loop.
    ///
    /// # Errors
    /// Cancelled: the pool has stopped. Or an exception of the queue.
    pub(super) fn lease(
        &self,
        py: Python<'_>,
        source: &dyn LeaseSource,
    ) -> PyResult<Option<Delivery>> {
        loop {
            let node = scope::enter(Kind::Plain, Time::NEVER, None, Home::NATIVE);
            let pass = self.pass(&node);
            let leased = match pass {
                Pass::Lease => source.lease(py, Time::NEVER),
                Pass::Wait | Pass::Leave => Ok(None),
            };
            self.leave();
            let stopped = leased
                .as_ref()
                .is_err_and(|raised| raised.is_instance_of::<Cancelled>(py));
            // By construction innermost and on this thread.
            let exit = scope::exit(&node, stopped).unwrap_or(Exit::Pass);
            scope::close_unless_private(&node);
            match pass {
                Pass::Leave => return Ok(None),
                Pass::Wait => _ = blocking(py, || self.open.wait_until(Time::NEVER))?,
                Pass::Lease if matches!(exit, Exit::Absorbed(_)) => {}
                Pass::Lease => return leased,
            }
        }
    }

    /// Let the worker lease in the scope of this node, if it may.
    fn pass(&self, node: &NodeRef) -> Pass {
        let mut state = self.state.lock();
        if state.retired {
            Pass::Leave
        } else if state.paused {
            Pass::Wait
        } else {
            state.leasing = Some(node.clone());
            self.outside.clear();
            Pass::Lease
        }
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        let node = state.leasing.take();
        self.outside.set();
        drop(state);
        drop(node);
    }

    /// Let the worker lease nothing more. Never blocks.
    pub(super) fn pause(&self, py: Python<'_>) {
        self.change(py, |state| state.paused = true);
    }

    /// Let the worker lease again.
    pub(super) fn resume(&self, py: Python<'_>) {
        self.change(py, |state| state.paused = false);
    }

    /// Let the worker leave its loop, instead of leasing the next item. Never blocks.
    pub(super) fn retire(&self, py: Python<'_>) {
        self.change(py, |state| state.retired = true);
    }

    fn change(&self, py: Python<'_>, change: impl FnOnce(&mut GateState)) {
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
            token::cancel_node(py, &node, Some("the worker is to lease nothing more"), None);
        }
    }

    pub(super) fn retired(&self) -> bool {
        self.state.lock().retired
    }

    /// Wait until the worker is not leasing.
    pub(super) fn until_outside(&self, py: Python<'_>) -> PyResult<()> {
        blocking(py, || self.outside.wait_until(Time::NEVER)).map(drop)
    }
}
