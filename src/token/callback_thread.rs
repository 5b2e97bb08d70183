//! The callback thread: runs the callbacks of passed deadlines, so that they never delay a deadline.
//!
//! Guarantees: one after another, in the order in which their deadlines passed; a panic ends the
//! callback, not the thread; in a forked child what was still queued is run there, too. What had
//! begun is the parent's. If the system refuses a thread, the queued callbacks run on the thread that queued
//! the last of them.

use std::collections::VecDeque;

use crate::clock::{Time, source};
use crate::park::service::{Service, Work};
use crate::token::tree::Callbacks;

static CALLBACK_THREAD: Service<Queued> = Service::new();

/// Callbacks to be run, in their order.
#[derive(Default)]
struct Queued(VecDeque<Callbacks>);

/// Run a passed deadline's callbacks, on their own thread.
pub(crate) fn hand_over(callbacks: Callbacks) {
    if callbacks.is_empty() {
        return;
    }
    if source::is_set() {
        return run_safely(callbacks); // another thread would run out of turn
    }
    CALLBACK_THREAD.update(|queued| queued.0.push_back(callbacks));
}

impl Work for Queued {
    type Job = Callbacks;
    const NAME: &'static str = "desist-callbacks";
    const CALLS_HOST: bool = true;

    fn next(&self) -> Time {
        if self.0.is_empty() {
            Time::NEVER
        } else {
            Time::from_nanos(0)
        }
    }

    fn take_due(&mut self, _now: Time) -> Option<Callbacks> {
        self.0.pop_front()
    }

    fn perform(callbacks: Callbacks) {
        run_safely(callbacks);
    }

    fn without_thread(service: &'static Service<Queued>) {
        let queued = service.peek(|queued| std::mem::take(&mut queued.0));
        queued.into_iter().flatten().for_each(run_safely);
    }
}

/// A panic was reported by the panic hook; it must not end this thread.
fn run_safely(callbacks: Callbacks) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callbacks.run()));
}
