//! The port between a queue of leases and the code that works on them: the workers' loop and the
//! handler's `Lease`.
//!
//! A queue is a [`LeaseSource`]. It leases a [`Delivery`], which carries the
//! [`LeaseHandle`] through which the lease is settled. `memory`, `file` and `py_queue` implement
//! both; this file knows none of them.
//!
//! The holder of a lease is the owner of its [`Hold`]: first the code that delivers the item, then the
//! `Lease` object. A hold that is dropped without a settlement releases the lease, and so does the
//! worker's loop when its settlement has failed, although other code may still have the `Lease`. So
//! no item stays leased without a holder (I48), on any path. The leases of an engine are released by
//! the engine's side (`desist.engines._held`).
//!
//! The collector sees these objects of Rust only through the Python objects that have them. A queue
//! that is a Python object of the extension (`LeaseQueue`, `FileQueue`) shows its own contents; so every
//! Python object with a source or a handle of it also has, and shows, the queue's Python object (its
//! *owner*), and the contents live as long as that. A source or handle with objects of its own
//! shows them to the one Python object that has it.
//!
//! A handle is shared by all leases of a queue if possible, and a call names the lease by its
//! [`LeaseKey`]: a lease then costs no allocation besides the Python object.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyConnectionError, PyException};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::content::Content;
use super::promises::ItemResult;
use super::{LONGEST_COMMIT, cause_of};
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::hard_stop::mask::Mask;
use crate::python::op::Visited;
use crate::python::{error, wait};
use crate::task::Task;
use crate::work::{Nack, NackOutcome};

/// A queue, as a worker's loop sees it.
pub(super) trait LeaseSource: Send + Sync {
    /// Lease the next item, waiting until `until` at most. `None`: no item came in time, or the
    /// queue is closed. `Cancelled` and `Killed` mean that nothing was leased.
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>>;

    /// Shows the collector the objects that this has and no queue object shows.
    fn traverse(&self, _visit: &PyVisit<'_>) -> Visited {
        Ok(())
    }
}

/// One lease of one item, with the operations for Python.
pub(super) struct Delivery {
    pub(super) hold: Hold,
    /// How often the item has been leased, this time included.
    pub(super) attempt: u32,
    pub(super) item: Content,
    /// The context (contextvars) of the item's submit(), of which the handler gets a copy. `None`: it was
    /// put, or submitted in another process.
    pub(super) context: Option<Py<PyAny>>,
    /// The progress that an earlier attempt has stored with `heartbeat()`.
    pub(super) progress: Option<Content>,
    /// The key with which the item was put.
    pub(super) item_key: Option<Arc<str>>,
    /// When its handler is to stop: the item expires, or the lease does.
    pub(super) ends: Time,
    /// How long this attempt may take, from the lease on; `None`: the item has no limit of its own.
    pub(super) time_limit: Option<Duration>,
}

/// A lease, until it is settled or released.
pub(super) struct Hold {
    key: LeaseKey,
    handle: Arc<dyn LeaseHandle>,
    /// Nothing is left to do for the lease. Set by the thread that has settled it, and by the first that
    /// releases it; it guards no other data.
    is_over: AtomicBool,
}

impl Hold {
    /// Of a lease that was just given out.
    #[inline]
    pub(super) fn new(key: LeaseKey, handle: Arc<dyn LeaseHandle>) -> Self {
        let is_over = AtomicBool::new(false);
        Self {
            key,
            handle,
            is_over,
        }
    }

    pub(super) fn handle(&self) -> &dyn LeaseHandle {
        &*self.handle
    }

    /// Which of the handle's leases this is.
    pub(super) fn key(&self) -> LeaseKey {
        self.key
    }

    /// [`LeaseHandle::ack`].
    #[inline]
    pub(super) fn ack(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.ack(py, self.key)?;
        self.is_over.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// [`LeaseHandle::nack`].
    pub(super) fn nack(
        &self,
        py: Python<'_>,
        nack: Nack,
        failure: Py<PyAny>,
    ) -> PyResult<NackOutcome> {
        let outcome = self.handle.nack(py, self.key, nack, failure)?;
        self.is_over.store(true, Ordering::Relaxed);
        Ok(outcome)
    }

    /// [`LeaseHandle::release`], unless the lease was settled or released here.
    pub(super) fn release(&self) {
        if !self.is_over.swap(true, Ordering::Relaxed) {
            self.handle.release(self.key);
        }
    }
}

impl Drop for Hold {
    #[inline]
    fn drop(&mut self) {
        if !*self.is_over.get_mut() {
            self.release();
        }
    }
}

impl Delivery {
    /// Decode the item and the progress, if they are bytes. A checkpoint then, for a cancel or a kill that
    /// came meanwhile.
    ///
    /// # Errors
    /// An exception of the decoder or of the item's class; `Cancelled` and `Killed`.
    #[inline]
    pub(super) fn decode(&self, py: Python<'_>) -> PyResult<()> {
        self.decode_bytes(py)?;
        self.check(py)
    }

    #[inline]
    fn decode_bytes(&self, py: Python<'_>) -> PyResult<()> {
        self.item.get(py)?;
        if let Some(progress) = &self.progress {
            progress.get(py)?;
        }
        Ok(())
    }

    #[inline]
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.item.is_encoded() {
            wait::checkpoint(py)?;
        }
        Ok(())
    }

    /// [`Delivery::decode`], for a lease that no worker settles. `None`: it cannot be decoded. The item is
    /// requeued as failed, and the next item is to be leased instead. An exception that is no error of the
    /// bytes is raised, after the item was requeued.
    pub(super) fn decoded(self, py: Python<'_>) -> PyResult<Option<Self>> {
        let decoded = self.decode_bytes(py);
        let is_readable = decoded.is_ok();
        let Err(raised) = decoded.and_then(|()| self.check(py)) else {
            return Ok(Some(self));
        };
        // Else Cancelled or Killed, of the calling code, or Ctrl-C.
        let failed = raised.is_instance_of::<PyException>(py);
        let failure = raised.value(py).clone().into_any().unbind();
        let (nack, failure) = if failed {
            (Nack::Failed, failure)
        } else if is_readable {
            // The caller was stopped before it had the item: for it, nothing was leased.
            (Nack::Snooze(Duration::ZERO), cause_of(py, &failure))
        } else {
            (Nack::AtOnce, cause_of(py, &failure))
        };
        let _mask = Mask::open(LONGEST_COMMIT);
        let nacked = self.hold.nack(py, nack, failure.clone_ref(py));
        match unless_fenced(py, nacked) {
            Ok(Some(NackOutcome::Dead)) => {
                let result = ItemResult::Failed(failure);
                self.hold.handle().report(py, self.hold.key(), result);
            }
            Ok(_) => {}
            Err(away) if is_away(py, &away) => {} // the lease runs out
            Err(broken) if failed => return Err(broken),
            Err(broken) => broken.write_unraisable(py, None),
        }
        if failed { Ok(None) } else { Err(raised) }
    }
}

/// `None`: the lease was over already, and the thread that ended it has settled the item.
pub(super) fn unless_fenced<R>(py: Python<'_>, done: PyResult<R>) -> PyResult<Option<R>> {
    match done {
        Ok(result) => Ok(Some(result)),
        Err(raised) if error::is(py, &raised, "Fenced") => Ok(None),
        Err(broken) => Err(broken),
    }
}

/// The queue's server does not answer: it may or may not have done what it was asked for.
pub(super) fn is_away(py: Python<'_>, raised: &PyErr) -> bool {
    raised.is_instance_of::<PyConnectionError>(py)
}

/// Which lease of its queue this is. A queue whose items have names ignores `number`: its handle is
/// of one lease only.
#[derive(Clone, Copy)]
pub(super) struct LeaseKey {
    pub(super) number: u64,
    /// A later lease of any item of the queue has a greater one.
    pub(super) epoch: u64,
    /// When the item expires.
    pub(super) deadline: Time,
}

/// How a lease is settled.
///
/// `Fenced` from any of these: the lease is over, and nothing was changed. `ConnectionError`: the call may
/// or may not have had its effect, and may be repeated.
pub(super) trait LeaseHandle: Send + Sync {
    /// The item's id.
    fn id(&self, lease: LeaseKey) -> ItemId;

    /// A worker is about to call its handler in `task`, which the queue may cancel if it finds out
    /// that the lease is lost.
    fn begun(&self, _py: Python<'_>, _task: &Arc<Task>) -> PyResult<()> {
        Ok(())
    }

    /// Was the item cancelled since it was leased? Asked when a cancel of the pool finds the handler; one
    /// that came before has not, and is seen here. False from a queue that cancels the task of `begun`
    /// itself.
    fn is_cancelled(&self, _py: Python<'_>, _lease: LeaseKey) -> PyResult<bool> {
        Ok(false)
    }

    /// The work is done.
    fn ack(&self, py: Python<'_>, lease: LeaseKey) -> PyResult<()>;

    /// The work was not done, because of `failure`: an exception, or a `CancelCause`.
    fn nack(
        &self,
        py: Python<'_>,
        lease: LeaseKey,
        nack: Nack,
        failure: Py<PyAny>,
    ) -> PyResult<NackOutcome>;

    /// The holder is gone, or has failed to settle the lease: let the item be leased again, now or as soon
    /// as that can be stored. Called attached, anywhere; never fails, and calls no Python code. Not
    /// needed where the lease ends with the object that this has.
    fn release(&self, _lease: LeaseKey) {}

    /// Keep the lease for another `lease_timeout`, and store `progress` for the next attempt.
    /// Returns when the handler is to stop now.
    fn extend(
        &self,
        py: Python<'_>,
        lease: LeaseKey,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Time>;

    /// Shows the collector the objects that this has and no queue object shows. A handle with any
    /// belongs to one lease.
    fn traverse(&self, _visit: &PyVisit<'_>) -> Visited {
        Ok(())
    }

    /// Settle the futures with which the item was submitted.
    fn report(&self, py: Python<'_>, lease: LeaseKey, result: ItemResult);
}
