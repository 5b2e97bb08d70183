//! The native parts of `desist.testing`: simulated time, leak counts, and the injector of the sweeps.

pub(super) mod injector;

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::python::binding::host::detached;
use crate::python::binding::runnable::check_function;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::token::timer;
use crate::{at_fork, enforcer, scope, task, testing};

/// A simulated clock, and the threads that run under it.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Simulation {
    simulation: Arc<testing::Simulation>,
}

#[pymethods]
impl Simulation {
    #[new]
    #[pyo3(signature = (autojump, seed = None))]
    fn new(autojump: bool, seed: Option<u64>) -> Self {
        let simulation = testing::Simulation::new(autojump, seed);
        Self { simulation }
    }

    /// Does the calling thread run under one?
    #[staticmethod]
    fn is_current() -> bool {
        testing::current().is_some()
    }

    /// The clock's time.
    fn time(&self) -> f64 {
        seconds::from_time(self.simulation.time())
    }

    /// Move the clock forward by this many seconds.
    fn jump(&self, py: Python<'_>, seconds: Seconds<'_, '_>) -> PyResult<()> {
        let span = seconds::span(seconds, "the time to jump")?;
        detached(py, || self.simulation.jump(span));
        Ok(())
    }

    /// Run `fn()` under the clock, and wait for all threads that it has started.
    #[pyo3(signature = (r#fn: "Callable[[], _T]") -> "_T")]
    fn run<'py>(&self, py: Python<'py>, r#fn: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        check_function(r#fn, "fn", None)?;
        let enrolled = self
            .simulation
            .enter()
            .map_err(|busy| PyRuntimeError::new_err(busy.to_string()))?;
        let result = r#fn.call0();
        let finished = detached(py, || self.simulation.finish());
        detached(py, || drop(enrolled));
        match (result, finished) {
            (Ok(_), Err(stuck)) => Err(error::ordinary(py, "Deadlock", &stuck)),
            (result, _) => result,
        }
    }
}

/// Counts of objects that code may leave behind by mistake: tasks that have not ended; armed deadlines,
/// those of blocks with `kill_after` included; locks and permits that the calling thread holds; scopes
/// that it is in.
#[pyfunction]
pub(super) fn leak_counts() -> (usize, usize, usize, usize) {
    (
        task::unfinished(),
        timer::armed() + enforcer::watched(),
        scope::current_ledger().len(),
        scope::depth(),
    )
}

/// Number of forks that timed out waiting for a thread to leave the core.
#[pyfunction]
pub(super) fn fork_timeouts() -> u32 {
    at_fork::fork_timeouts()
}
