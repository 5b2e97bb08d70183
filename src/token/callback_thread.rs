//! Who runs the callbacks of passed deadlines: one thread, so that they never delay a deadline.
//!
//! Guarantees: one after another, in the order of their deadlines' passing; a panic ends the
//! callback, not the thread; in a forked child what was still queued is run there, too. What had
//! begun is the parent's.
//!
//! They are queued under one lock that a fork can hold, and not in a channel: its receiver takes
//! locks on its way to sleep and back, and a child that was forked in that moment would find them
//! held for ever (I37).

use std::collections::VecDeque;
use std::thread;

use once_cell::sync::OnceCell;

use crate::atomics::{Arc, ForkMutex};
use crate::clock::{Time, source};
use crate::fork;
use crate::host;
use crate::park::{WaitOutcome, Waiter};
use crate::token::tree::Callbacks;

struct Runner {
    /// Held across forks, see `timer`.
    state: ForkMutex<State>,
}

#[derive(Default)]
struct State {
    queued: VecDeque<Callbacks>,
    /// There is a thread, in this process.
    runs: bool,
    asleep: Option<Arc<Waiter>>,
}

static RUNNER: OnceCell<Runner> = OnceCell::new();

/// Run a passed deadline's callbacks, on their own thread.
pub(crate) fn hand_over(callbacks: Callbacks) {
    if callbacks.is_empty() {
        return;
    }
    if source::is_set() {
        return run_safely(callbacks); // another thread would run out of turn
    }
    let runner = RUNNER.get_or_init(|| Runner {
        state: ForkMutex::new(State::default()),
    });
    runner.add(callbacks);
}

/// Around a fork, as the timer has it.
pub(crate) fn hold_for_fork() -> Option<impl Sized> {
    RUNNER.get().map(|runner| runner.state.lock())
}

/// In a forked child, which has only the thread that forked.
pub(crate) fn restart_in_child() {
    let Some(runner) = RUNNER.get() else { return };
    let start = {
        let mut state = runner.state.lock();
        state.asleep = None;
        state.runs = !state.queued.is_empty();
        state.runs
    };
    if start {
        runner.start();
    }
}

impl Runner {
    fn add(&'static self, callbacks: Callbacks) {
        let (start, woken) = {
            let mut state = self.state.lock();
            state.queued.push_back(callbacks);
            let start = !std::mem::replace(&mut state.runs, true);
            (start, state.asleep.take())
        };
        if let Some(waiter) = woken {
            waiter.settle_and_wake(WaitOutcome::Granted);
        }
        if start {
            self.start();
        }
    }

    fn start(&'static self) {
        let thread = thread::Builder::new().name("desist-callbacks".into());
        if thread.spawn(|| self.serve()).is_err() {
            // There is no thread to be had, now; and nobody else would run them.
            let queued = {
                let mut state = self.state.lock();
                state.runs = false;
                std::mem::take(&mut state.queued)
            };
            queued.into_iter().for_each(run_safely);
        }
    }

    fn serve(&self) -> ! {
        let _inside = fork::inside();
        host::join();
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.queued.pop_front();
                next.ok_or_else(|| state.asleep.insert(Waiter::new()).clone())
            };
            match next {
                Ok(callbacks) => run_safely(callbacks),
                Err(waiter) => _ = waiter.park(Time::NEVER),
            }
        }
    }
}

/// A panic was reported by the panic hook; it must not end this thread.
fn run_safely(callbacks: Callbacks) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callbacks.run()));
}
