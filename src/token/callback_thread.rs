//! The callback thread: runs the callbacks of passed deadlines, so that they never delay a deadline, and
//! those of cancels in code that interrupts other code.
//!
//! An explicit cancel runs callbacks on the cancelling thread, which asked for them. A deadline is
//! noticed by the timer, or by a thread that waits or polls; neither may be held up by a user's code.
//! A signal handler or a finalizer that cancels interrupts code which may hold a lock that a callback
//! needs; on the interrupted thread the callback would wait for that lock for ever (I19).
//!
//! Guarantees:
//! 1. Callbacks run one after another, in the order in which their deadlines passed.
//! 2. A panic ends the callback, not the thread.
//! 3. In a forked child the callbacks that were still queued run there, too. One that had begun goes on
//!    in the parent only.
//! 4. If the system refuses a thread, the queued callbacks run on the thread that queued the last.
//!
//! Protocol: [`Queued`] belongs to the lock of the service. Nodes are queued flagged, so nothing here
//! decides anything. Lock order: no other lock is taken under the service's.

use std::collections::VecDeque;

use crate::clock::{Time, source};
use crate::host;
use crate::park::service::{Service, Work};
use crate::token::tree::Callbacks;

/// The callback thread of the process.
static CALLBACK_THREAD: Service<Queued> = Service::new();

/// The callbacks to be run, those of the first passed deadline at the front.
#[derive(Default)]
struct Queued(VecDeque<Callbacks>);

/// Run the callbacks of an explicit cancel, on the calling thread unless it [interrupts] other code.
///
/// [interrupts]: host::Host::is_interrupting
pub(crate) fn run(callbacks: Callbacks) {
    if !callbacks.is_empty() && host::is_interrupting() {
        hand_over(callbacks);
    } else {
        callbacks.run();
    }
}

/// Run a passed deadline's callbacks on the callback thread. Never blocks on them, except if no thread
/// can be started, and in a simulation.
pub(crate) fn hand_over(callbacks: Callbacks) {
    if callbacks.is_empty() {
        return;
    }
    if source::is_set() {
        return run_safely(callbacks); // in a simulation only the thread whose turn it is may run
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

/// Run callbacks. A panic has been reported by the panic hook, and must not end the calling thread.
fn run_safely(callbacks: Callbacks) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callbacks.run()));
}
