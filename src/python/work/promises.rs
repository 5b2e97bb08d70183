//! The futures of submitted items, by the items' numbers.
//!
//! A future is registered before its item is put, since a worker may finish the item before
//! `put` returns its number: ends of items meanwhile are kept in `early`, and handed to the
//! future as soon as the number is known. Futures are Python objects, so they are settled and
//! dropped only while the lock is free. Only attached threads lock it, besides the thread that commits
//! to a file, which registers a future before any worker can lease its item.

use std::collections::HashMap;

use parking_lot::Mutex;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::LONGEST_COMMIT;
use crate::python::hard_stop::mask::Mask;
use crate::python::op::Visited;
use crate::python::ports::promise as promise_port;

/// The end of an item.
pub(super) enum ItemResult {
    /// It was acknowledged with this result.
    Finished(Py<PyAny>),
    /// It is dead, because of this exception or `CancelCause`.
    Failed(Py<PyAny>),
}

impl ItemResult {
    pub(super) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            ItemResult::Finished(value) => ItemResult::Finished(value.clone_ref(py)),
            ItemResult::Failed(failure) => ItemResult::Failed(failure.clone_ref(py)),
        }
    }

    /// Settle a future. Exceptions of its callbacks have no caller that could get them.
    pub(super) fn settle(self, py: Python<'_>, promise: &Py<PyAny>) {
        let settled = match self {
            ItemResult::Finished(value) => {
                promise.call_method1(py, promise_port::finish(py), (value,))
            }
            ItemResult::Failed(failure) => {
                promise.call_method1(py, promise_port::fail(py), (failure,))
            }
        };
        if let Err(raised) = settled {
            raised.write_unraisable(py, Some(promise.bind(py)));
        }
    }
}

/// The futures of a queue's items that were submitted in this process.
#[derive(Default)]
pub(super) struct Promises {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Those not settled yet. An item that was submitted twice, with one key, has several.
    futures: HashMap<u64, Vec<Py<PyAny>>>,
    /// How many calls of [`Promises::register`] have not returned: their items may be in the queue
    /// already, under numbers that are not known here yet.
    underway: usize,
    /// The ends of items that came while `underway` was not 0. Emptied when it is 0 again.
    early: HashMap<u64, ItemResult>,
}

impl Promises {
    /// Put an item, and register the future that is settled when the item has ended.
    pub(super) fn register(
        &self,
        future: &Bound<'_, PyAny>,
        put: impl FnOnce() -> PyResult<u64>,
    ) -> PyResult<u64> {
        let (py, future) = (future.py(), future.as_unbound());
        self.state.lock().underway += 1;
        let number = put();
        let mut state = self.state.lock();
        state.underway -= 1;
        let early = match state.underway {
            0 => std::mem::take(&mut state.early),
            _ => HashMap::new(),
        };
        let result = match &number {
            Ok(number) => early
                .get(number)
                .or_else(|| state.early.get(number))
                .map(|result| result.clone_ref(py)),
            Err(_) => None,
        };
        if let (Ok(number), None) = (&number, &result) {
            state
                .futures
                .entry(*number)
                .or_default()
                .push(future.clone_ref(py));
        }
        drop(state); // the rest runs the user's code, or drops the user's objects
        if let Some(result) = result {
            result.settle(py, future);
        }
        number
    }

    /// Register the future of an item whose number is known before any worker leases it. The one call that
    /// a thread makes detached, too: it moves the reference, and touches no count.
    pub(super) fn add(&self, number: u64, future: Py<PyAny>) {
        let mut state = self.state.lock();
        state.futures.entry(number).or_default().push(future);
    }

    /// The context of the item's first submit() in this process, if its future is not settled.
    pub(super) fn context(&self, py: Python<'_>, number: u64) -> Option<Py<PyAny>> {
        let future = {
            let state = self.state.lock();
            let futures = state.futures.get(&number);
            futures.and_then(|futures| futures.first().map(|future| future.clone_ref(py)))
        };
        future?.getattr(py, promise_port::context(py)).ok()
    }

    /// For the object of the queue.
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        let Some(state) = self.state.try_lock() else {
            return Ok(());
        };
        for future in state.futures.values().flatten() {
            visit.call(future)?;
        }
        for result in state.early.values() {
            let (ItemResult::Finished(object) | ItemResult::Failed(object)) = result;
            visit.call(object)?;
        }
        Ok(())
    }

    /// Forgets all futures: the collector has found them to be garbage.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        let dropped = (
            std::mem::take(&mut state.futures),
            std::mem::take(&mut state.early),
        );
        drop(state);
        drop(dropped); // unlocked: may run any code
    }

    /// Settle the item's futures.
    pub(super) fn settle(&self, py: Python<'_>, number: u64, result: &ItemResult) {
        let futures = {
            let mut state = self.state.lock();
            let futures = state.futures.remove(&number);
            if state.underway > 0 {
                state.early.insert(number, result.clone_ref(py));
            }
            futures
        };
        for future in futures.into_iter().flatten() {
            result.clone_ref(py).settle(py, &future);
        }
    }

    /// Settle the item's futures: its work will not be done. This runs on the caller's thread,
    /// which may be killed, so a mask keeps the kill out of a future's own locks.
    pub(super) fn fail(&self, py: Python<'_>, number: u64, failure: Py<PyAny>) {
        let mask = Mask::open(LONGEST_COMMIT);
        self.settle(py, number, &ItemResult::Failed(failure));
        drop(mask);
    }

    /// [`Promises::fail`] for all items.
    pub(super) fn fail_all(&self, py: Python<'_>, failure: &Py<PyAny>) {
        let numbers: Vec<u64> = self.state.lock().futures.keys().copied().collect();
        for number in numbers {
            self.fail(py, number, failure.clone_ref(py));
        }
    }
}
