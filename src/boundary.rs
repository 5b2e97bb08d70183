//! The boundary around a body: the only door through which a thread enters and leaves a task.
//!
//! Guarantees:
//! 1. Kills are delivered only between [`Boundary::enter`] and [`Boundary::shut`]; both are one critical
//!    section of the task (I22).
//! 2. Locks that the body still holds when it has ended are swept: released, or poisoned if a kill ended
//!    it (I20).
//! 3. The thread gets back the context that it had before the body, whatever the body left open.
//! 4. `leave` returns true to the one party that settles the body's work (its lease, its future): the
//!    caller, or, if the task was abandoned meanwhile, the thread that abandoned it.
//!
//! The steps of an end, all on the body's own thread and in this order: shut the task; sweep the
//! ledger; close the scopes that are open, and run the abandon hooks of scopes and of other blocks; close
//! the task's source; record. The caller then settles, and sets [`Task::over`]. A boundary that is dropped without
//! `leave`, because its body panicked, takes the same steps and sets it itself.
//!
//! No lock is held across two of the steps. The sweep and the hooks may block.

use std::fmt;
use std::sync::Arc;

use crate::ledger::{KillInfo, Termination};
use crate::scope::{self, Outer};
use crate::stack::Stack;
use crate::task::{Interrupter, Task};

/// How a body came to its end.
#[derive(Debug)]
pub enum BodyEnd {
    /// It returned, failed, or was cancelled, and has unwound.
    Unwound,
    /// `Killed` came out of it, from here.
    Killed(Option<Stack>),
}

/// The task's body is running on this thread, between `enter` and `leave`.
pub struct Boundary {
    /// The task, `Running` from `enter` to `shut`.
    task: Arc<Task>,
    /// The thread's context from before. Taken out by the end, so that it is restored once.
    outer: Option<Outer>,
}

impl Boundary {
    /// The body begins on the calling thread: from here on kills are delivered. `interrupter`: how the host
    /// raises exceptions in it, if it can.
    pub fn enter(task: &Arc<Task>, interrupter: Option<Arc<dyn Interrupter>>) -> Boundary {
        let outer = scope::begin_task(task);
        task.open(interrupter);
        Boundary {
            task: task.clone(),
            outer: Some(outer),
        }
    }

    /// The body has ended: takes all steps of the end. False: the task had been abandoned, and the thread
    /// that did so has settled the body's work.
    ///
    /// If true, the caller settles that, and then calls [`Task::over`]`.set()`.
    ///
    /// # Blocking
    ///
    /// For hooks of blocks whose exit never ran, and for the locks of the resources that are swept.
    pub fn leave(mut self, end: BodyEnd) -> bool {
        self.close(end)
    }

    /// The body's last instruction has run: from here on kills are refused, and an exception that was
    /// posted and not raised is retracted. Idempotent; [`Boundary::leave`] does it if it was not done.
    pub fn shut(&mut self) {
        self.task.shut();
    }

    /// All steps of the end, once. True: the caller is to settle.
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
        task.ledger().abandon_blocks(0);
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
        // Not left: the body panicked, and there is no caller to settle anything.
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
