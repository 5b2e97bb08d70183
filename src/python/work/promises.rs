//! Who waits for what becomes of an item.

use std::collections::HashMap;

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::LONGEST_COMMIT;
use super::engine::Told;
use crate::python::hard_stop::mask::Mask;

/// Futures of items that were submitted here, by the items' numbers.
#[derive(Default)]
pub(super) struct Promises {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// An item that was put twice, with one key, may have several.
    futures: HashMap<u64, Vec<Py<PyAny>>>,
    /// How many items are being put, whose numbers are not known yet.
    underway: usize,
    /// What became of items meanwhile.
    early: HashMap<u64, Told>,
}

impl Promises {
    /// Put an item, and have the future told what becomes of it.
    pub(super) fn keep(
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
        let told = match &number {
            Ok(number) => early
                .get(number)
                .or_else(|| state.early.get(number))
                .map(|told| told.clone_ref(py)),
            Err(_) => None,
        };
        if let (Ok(number), None) = (&number, &told) {
            state
                .futures
                .entry(*number)
                .or_default()
                .push(future.clone_ref(py));
        }
        drop(state); // what follows is the user's code, or lets go of his objects
        if let Some(told) = told {
            told.to(py, future);
        }
        number
    }

    /// Tell the item's futures.
    pub(super) fn tell(&self, py: Python<'_>, number: u64, told: &Told) {
        let futures = {
            let mut state = self.state.lock();
            let futures = state.futures.remove(&number);
            if state.underway > 0 {
                state.early.insert(number, told.clone_ref(py));
            }
            futures
        };
        for future in futures.into_iter().flatten() {
            told.clone_ref(py).to(py, &future);
        }
    }

    /// Tell the item's futures that nobody will do the work. On the caller's thread, which may be
    /// killed: not inside a future's own locks.
    pub(super) fn tell_off(&self, py: Python<'_>, number: u64, failure: Py<PyAny>) {
        let mask = Mask::open(LONGEST_COMMIT);
        self.tell(py, number, &Told::Failed(failure));
        drop(mask);
    }

    /// ... and those of all items.
    pub(super) fn tell_off_all(&self, py: Python<'_>, failure: &Py<PyAny>) {
        let numbers: Vec<u64> = self.state.lock().futures.keys().copied().collect();
        for number in numbers {
            self.tell_off(py, number, failure.clone_ref(py));
        }
    }
}
