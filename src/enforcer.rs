//! Who forces threads out of blocks that ignore their deadline.
//!
//! One thread for all, started when the first such block is entered, and asleep until the earliest
//! is due. Not the timer's: to strike one has to wait for the host, which would delay all deadlines.
//!
//! A block is entered here when it is entered, and leaves with its end; that nothing strikes it
//! afterwards is not this module's doing but that of [`Task::close_block`].

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use crate::clock::Time;
use crate::park::service::{Service, Work};
use crate::task::Task;

static ENFORCER: Service<Watched> = Service::new();

/// Open blocks that are due at some time.
#[derive(Default)]
struct Watched {
    /// By when something is to be done, and to which block: the same as in `blocks`, in order.
    times: BTreeSet<(Time, u64)>,
    blocks: HashMap<u64, (Time, Weak<Task>)>,
}

/// Open blocks that are watched, and due at some time.
#[cfg(feature = "python")]
pub(crate) fn watched() -> usize {
    ENFORCER.peek(|watched| watched.blocks.len()).unwrap_or(0)
}

/// One open block, watched until this is dropped.
#[derive(Debug)]
pub(crate) struct BlockWatch {
    task: Weak<Task>,
    block: u64,
}

impl BlockWatch {
    pub(crate) fn begin(task: &Arc<Task>, block: u64) -> BlockWatch {
        let watch = BlockWatch {
            task: Arc::downgrade(task),
            block,
        };
        watch.refresh();
        watch
    }

    /// The block was cancelled, or its deadline was moved.
    pub(crate) fn refresh(&self) {
        let due = self
            .task
            .upgrade()
            .and_then(|task| task.block_due(self.block));
        if let Some(due) = due {
            ENFORCER.update(|watched| watched.set(self.block, due, &self.task));
        } else {
            ENFORCER.peek(|watched| watched.remove(self.block));
        }
    }
}

impl Drop for BlockWatch {
    fn drop(&mut self) {
        ENFORCER.peek(|watched| watched.remove(self.block));
    }
}

impl Watched {
    fn remove(&mut self, block: u64) {
        if let Some((at, _)) = self.blocks.remove(&block) {
            self.times.remove(&(at, block));
        }
    }

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

    /// Take the next step against a block, unless it has been left.
    fn perform((block, task): Self::Job) {
        let Some(next) = task.upgrade().and_then(|task| task.interrupt_block(block)) else {
            return;
        };
        // If it was left meanwhile, it comes up once more, and nothing is done.
        ENFORCER.update(|watched| {
            let is_moved = watched.blocks.get(&block).is_some_and(|(at, _)| *at < next);
            if !is_moved {
                watched.set(block, next, &task);
            }
        });
    }

    /// The blocks' threads may not be in the child; the one that is has left its blocks to nothing.
    fn survive_fork(&mut self) {
        *self = Watched::default();
    }
}
