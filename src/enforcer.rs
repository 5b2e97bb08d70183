//! Who forces threads out of blocks that ignore their deadline.
//!
//! One thread for all, started when the first such block is entered, and asleep until the earliest
//! is due. Not the timer's: to strike one has to wait for the host, which would delay all deadlines.
//!
//! A block is entered here when it is entered, and leaves with its end; that nothing strikes it
//! afterwards is not this module's doing but that of [`Task::close_block`].

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::thread;

use once_cell::sync::OnceCell;

use crate::atomics::{self, ForkMutex};
use crate::clock::Time;
use crate::fork;
use crate::host;
use crate::park::{WaitOutcome, Waiter};
use crate::task::Task;

struct Enforcer {
    /// Held across forks, see `timer`.
    state: ForkMutex<State>,
}

#[derive(Default)]
struct State {
    /// By when something is to be done.
    times: BTreeSet<(Time, u64)>,
    blocks: HashMap<u64, (Time, Weak<Task>)>,
    /// There is a thread, in this process.
    runs: bool,
    /// It is asleep, and until when.
    asleep: Option<(Time, atomics::Arc<Waiter>)>,
}

static ENFORCER: OnceCell<Enforcer> = OnceCell::new();

/// Open blocks that are watched, and due at some time.
#[cfg_attr(not(feature = "python"), allow(dead_code))]
pub(crate) fn watched() -> usize {
    ENFORCER
        .get()
        .map_or(0, |enforcer| enforcer.state.lock().blocks.len())
}

/// Around a fork, as the timer has it.
pub(crate) fn hold_for_fork() -> Option<impl Sized> {
    ENFORCER.get().map(|enforcer| enforcer.state.lock())
}

/// In a forked child nothing is left armed. The next block starts a thread.
pub(crate) fn forget_in_child() {
    if let Some(enforcer) = ENFORCER.get() {
        *enforcer.state.lock() = State::default();
    }
}

/// One open block, watched until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    task: Weak<Task>,
    block: u64,
}

impl Watch {
    pub(crate) fn begin(task: &Arc<Task>, block: u64) -> Watch {
        let watch = Watch {
            task: Arc::downgrade(task),
            block,
        };
        watch.look_again();
        watch
    }

    /// The block was cancelled, or its deadline was moved.
    pub(crate) fn look_again(&self) {
        let due = self
            .task
            .upgrade()
            .and_then(|task| task.block_due(self.block));
        if let Some(due) = due {
            let enforcer = ENFORCER.get_or_init(|| Enforcer {
                state: ForkMutex::new(State::default()),
            });
            enforcer.set(self.block, due, &self.task);
        } else if let Some(enforcer) = ENFORCER.get() {
            enforcer.state.lock().remove(self.block);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(enforcer) = ENFORCER.get() {
            enforcer.state.lock().remove(self.block);
        }
    }
}

impl State {
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

impl Enforcer {
    fn set(&'static self, block: u64, at: Time, task: &Weak<Task>) {
        let (start, woken) = {
            let mut state = self.state.lock();
            state.set(block, at, task);
            let earlier = matches!(&state.asleep, Some((until, _)) if at < *until);
            let woken = if earlier { state.asleep.take() } else { None };
            (!std::mem::replace(&mut state.runs, true), woken)
        };
        if let Some((_, waiter)) = woken {
            waiter.settle_and_wake(WaitOutcome::Granted);
        }
        if start {
            start_thread(self);
        }
    }

    fn serve(&self) -> ! {
        let _inside = fork::inside();
        host::join();
        loop {
            let (due, until, waiter) = {
                let mut state = self.state.lock();
                let due = state.take_due(Time::now());
                let first = state.times.first();
                let until = first.map_or(Time::NEVER, |(at, _)| *at);
                let waiter = Waiter::new();
                if due.is_none() {
                    state.asleep = Some((until, waiter.clone()));
                }
                (due, until, waiter)
            };
            match due {
                Some((block, task)) => self.press(block, &task),
                None => _ = waiter.park(until),
            }
        }
    }

    /// Take the next step against a block, unless it has been left.
    fn press(&self, block: u64, task: &Weak<Task>) {
        let next = task.upgrade().and_then(|task| task.press_block(block));
        let mut state = self.state.lock();
        match (next, state.blocks.get(&block)) {
            // It was moved meanwhile.
            (Some(next), Some((at, _))) if *at < next => {}
            // If it was left meanwhile, it is taken for nothing once more.
            (Some(next), _) => state.set(block, next, task),
            (None, _) => {}
        }
    }
}

impl State {
    fn take_due(&mut self, now: Time) -> Option<(u64, Weak<Task>)> {
        let (_, block) = *self.times.first().filter(|(at, _)| *at <= now)?;
        let task = self.blocks.get(&block).map(|(_, task)| task.clone());
        self.remove(block);
        task.map(|task| (block, task))
    }
}

#[allow(clippy::expect_used)]
fn start_thread(enforcer: &'static Enforcer) {
    thread::Builder::new()
        .name("desist-enforcer".into())
        .spawn(|| enforcer.serve())
        .expect("the system refuses to start a thread for blocks that are ended by force");
}
