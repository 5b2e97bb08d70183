//! The enforcer: the service thread that interrupts blocks which overrun their `kill_after`.
//!
//! Guarantees:
//! 1. A watched block is interrupted when it is due, and again after the pauses that the task asks for, until
//!    it is closed or its watch is dropped.
//! 2. Deadlines are never late because of it: interrupting waits for the host's lock, so it is not the
//!    timer's work.
//! 3. In a forked child nothing is watched; the next block starts a thread.
//!
//! The protocol: a block's thread enters it here (through its [`BlockWatch`]) after it was opened in the task,
//! and takes it out after it was closed there. The enforcer takes a due block out, calls
//! [`Task::interrupt_block`] with the state unlocked, and puts it back with the next time. If the block was
//! closed meanwhile, that puts back an entry which nothing takes out but its turn; then the task does not
//! know the block any more, and the entry goes. That no kill is raised after a block's end is not this
//! module's work but that of [`Task::close_block`].
//!
//! Lock order: the service's lock and a task's lock are never held together.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use crate::clock::Time;
use crate::park::service::{Service, Work};
use crate::task::Task;
use crate::token::{CancelToken, Registration};

static ENFORCER: Service<Watched> = Service::new();

/// The state of the service: open blocks that are due at some time. `times` and `blocks` have the same entries.
#[derive(Default)]
struct Watched {
    /// The blocks by the time of their next interruption.
    times: BTreeSet<(Time, u64)>,
    /// The time and the task of each block. Weak: a watch that is never dropped keeps no task alive.
    blocks: HashMap<u64, (Time, Weak<Task>)>,
}

/// Number of blocks that are watched: for tests of leaks.
#[cfg(feature = "python")]
pub(crate) fn watched() -> usize {
    ENFORCER.peek(|watched| watched.blocks.len()).unwrap_or(0)
}

/// One open block, watched until this is dropped.
#[derive(Debug)]
pub(crate) struct BlockWatch {
    /// The task whose block it is.
    task: Weak<Task>,
    /// The block's number in that task.
    block: u64,
    /// At a token with which the block is cancelled as well.
    on_cancel: Option<Registration>,
}

impl BlockWatch {
    /// Watches the block, which the calling thread has just opened, and which is cancelled with `token` as well.
    pub(crate) fn begin(task: &Arc<Task>, block: u64, token: Option<&CancelToken>) -> BlockWatch {
        let mut watch = BlockWatch {
            task: Arc::downgrade(task),
            block,
            on_cancel: None,
        };
        watch.refresh();
        let task = watch.task.clone();
        watch.on_cancel = token.map(|token| token.on_cancel(move |_| refresh(&task, block)));
        watch
    }

    /// Reads anew when the block is due: it was cancelled, or its deadline was moved.
    pub(crate) fn refresh(&self) {
        refresh(&self.task, self.block);
    }
}

/// See [`BlockWatch::refresh`].
fn refresh(task: &Weak<Task>, block: u64) {
    let due = task.upgrade().and_then(|task| task.block_due(block));
    if let Some(due) = due {
        ENFORCER.update(|watched| watched.set(block, due, task));
    } else {
        ENFORCER.peek(|watched| watched.remove(block));
    }
}

impl Drop for BlockWatch {
    fn drop(&mut self) {
        drop(self.on_cancel.take()); // first: it may watch the block anew, and the drop waits until it has
        ENFORCER.peek(|watched| watched.remove(self.block));
    }
}

impl Watched {
    /// Forgets the block. Without effect if it is not watched.
    fn remove(&mut self, block: u64) {
        if let Some((at, _)) = self.blocks.remove(&block) {
            self.times.remove(&(at, block));
        }
    }

    /// Has the block interrupted at `at`, and not at the time that was set before.
    fn set(&mut self, block: u64, at: Time, task: &Weak<Task>) {
        self.remove(block);
        self.times.insert((at, block));
        self.blocks.insert(block, (at, task.clone()));
    }
}

impl Work for Watched {
    type Job = (u64, Weak<Task>);
    const NAME: &'static str = "desist-enforcer";
    const CALLS_HOST: bool = true;

    fn next(&self) -> Time {
        self.times.first().map_or(Time::NEVER, |(at, _)| *at)
    }

    fn take_due(&mut self, now: Time) -> Option<Self::Job> {
        let (_, block) = *self.times.first().filter(|(at, _)| *at <= now)?;
        let task = self.blocks.get(&block).map(|(_, task)| task.clone());
        self.remove(block);
        task.map(|task| (block, task))
    }

    /// Interrupts the block once, unless it is closed, and sets the time for the next attempt.
    fn perform((block, task): Self::Job) {
        let Some(next) = task.upgrade().and_then(|task| task.interrupt_block(block)) else {
            return;
        };
        // If it was closed meanwhile, it comes up once more, and the task does not know it any more. An
        // earlier time was set by `refresh`, and stays.
        ENFORCER.update(|watched| {
            let is_moved = watched.blocks.get(&block).is_some_and(|(at, _)| *at < next);
            if !is_moved {
                watched.set(block, next, &task);
            }
        });
    }

    /// The threads of most blocks are not in the child, and the forking thread's blocks are closed there.
    fn survive_fork(&mut self) {
        *self = Watched::default();
    }
}
