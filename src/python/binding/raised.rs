//! The exception that ends a wait: the one that a signal handler raised during it, or a deadlock of a
//! simulation.
//!
//! The core reports both as [`Stop::Interrupted`](crate::error::Stop::Interrupted), which carries no
//! exception. [`keep`] stores the exception on the waiting thread before the core ends the wait;
//! [`take`] hands it to the code that made the wait. Both run on the same thread, so there is no lock.

use std::cell::RefCell;

use pyo3::prelude::*;

thread_local! {
    /// Written by [`keep`], emptied by [`take`].
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Store the exception with which the calling thread's wait is about to end.
pub(in crate::python) fn keep(raised: PyErr) {
    let before = RAISED.replace(Some(raised));
    drop(before); // outside the borrow: a finalizer may wait, too
}

/// The exception that ended the calling thread's wait with `Stop::Interrupted`.
pub(in crate::python) fn take() -> Option<PyErr> {
    RAISED.take()
}
