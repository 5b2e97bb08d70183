//! The boundary around a body: the only door through which a thread enters and leaves a task.
//!
//! [`Boundary::enter`] gives the thread the task's context and opens the task for kills;
//! [`Boundary::leave`] shuts it, in one critical section of the task (I22), sweeps what the body
//! still holds (I20), gives the thread back the context it had, and records how the body ended. Both run on
//! the body's own thread. A boundary that is dropped without `leave` (its body panicked) does the
//! same and sets [`Task::over`] itself.

use std::fmt;
use std::sync::Arc;

use crate::ledger::{KillInfo, Termination};
use crate::scope::{self, Outer};
use crate::stack::Stack;
use crate::task::{Interrupter, Task};

/// How a body came to its end.
#[derive(Debug)]
pub enum BodyEnd {
    /// It returned, failed or was cancelled, and unwound.
    Unwound,
    /// `Killed` came out of it, from here.
    Killed(Option<Stack>),
}

/// The task's body is running on this thread, between `enter` and `leave`.
pub struct Boundary {
    task: Arc<Task>,
    outer: Option<Outer>,
}

impl Boundary {
    /// The body begins: from here kills are taken.
    pub fn enter(task: &Arc<Task>, interrupter: Option<Arc<dyn Interrupter>>) -> Boundary {
        let outer = scope::begin_task(task);
        task.open(interrupter);
        Boundary {
            task: task.clone(),
            outer: Some(outer),
        }
    }

    /// The body is over: sweeps what it holds. False: the task had been abandoned, and whoever did
    /// that has taken care of what it was working on.
    ///
    /// The caller then settles what the body worked on and calls [`Task::over`]`.set()`.
    pub fn leave(mut self, end: BodyEnd) -> bool {
        self.close(end)
    }

    /// The body's last instruction has run: from here kills are refused, and what was posted and
    /// not yet raised is taken back. [`Boundary::leave`] does it if it was not done.
    pub fn shut(&mut self) {
        self.task.shut();
    }

    fn close(&mut self, end: BodyEnd) -> bool {
        let Some(outer) = self.outer.take() else {
            return true;
        };
        self.shut();
        let task = &self.task;
        let (abandoned, cause) = task.fate();
        let (end, stack) = match (end, cause) {
            (BodyEnd::Killed(stack), Some(cause)) => {
                let kill = KillInfo {
                    task: task.name().clone(),
                    cause,
                    stack: stack.clone(),
                };
                (Termination::Killed(Arc::new(kill)), stack)
            }
            _ => (Termination::Unwound, None),
        };
        let killed = matches!(end, Termination::Killed(_));
        let swept = task.ledger().sweep(&end);
        scope::end_task(outer);
        task.conclude();
        if !abandoned {
            let rung = killed.then(|| task.delivered()).flatten();
            task.amend(|record| {
                record.swept.released.extend(swept.released);
                record.swept.poisoned.extend(swept.poisoned);
                record.killed_at = rung.or(record.killed_at);
                record.stack = stack.or(record.stack.take());
            });
        }
        !abandoned
    }
}

impl Drop for Boundary {
    fn drop(&mut self) {
        // Not left: the body panicked, and nobody is there to settle anything.
        if self.outer.is_some() && self.close(BodyEnd::Unwound) {
            self.task.over().set();
        }
    }
}

impl fmt::Debug for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Boundary")
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}
