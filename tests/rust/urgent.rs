//! The steps of a kill before its first wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::*;
use crate::boundary::{BodyEnd, Boundary};
use crate::task::Interrupter;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Counted {
    posts: AtomicUsize,
    traces: AtomicUsize,
}

impl Counted {
    fn counts(&self) -> (usize, usize) {
        let count = |number: &AtomicUsize| number.load(Ordering::SeqCst);
        (count(&self.posts), count(&self.traces))
    }
}

impl Interrupter for Counted {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        then();
    }

    fn post(&self) {
        self.posts.fetch_add(1, Ordering::SeqCst);
    }

    fn retract(&self) {}

    fn trace(&self, _task: &Arc<Task>, _everywhere: bool) {
        self.traces.fetch_add(1, Ordering::SeqCst);
    }

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

/// A body that runs until the test ends it, without a desist wait.
fn body(interrupter: &Arc<Counted>) -> (Arc<Task>, impl FnOnce() -> JoinHandle<()>) {
    let (task, (ready, is_ready)) = (Task::new("body", None), channel());
    let (end, ended): (_, Receiver<()>) = channel();
    let (theirs, interrupter) = (task.clone(), interrupter.clone());
    let thread = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, Some(interrupter));
        ready.send(()).expect("the test waits");
        ended.recv().expect("the test ends it");
        boundary.leave(BodyEnd::Unwound);
        theirs.over().set();
    });
    is_ready.recv().expect("the body begins");
    (task, move || {
        end.send(()).expect("the body waits");
        thread
    })
}

/// The posts and traces when `begin` returns, and the outcome of the kill when the body ends then.
fn begun_with(policy: &StopPolicy) -> ((usize, usize), Option<KillOutcome>) {
    let interrupter = Arc::new(Counted::default());
    let (task, end) = body(&interrupter);
    let mut kill = Kill::new(&task, CauseKind::Explicit, None, policy).expect("it runs");
    kill.begin();
    assert!(task.node().is_cancelled());
    let counts = interrupter.counts();
    let body = end();
    let report = kill.run(&mut || {}).expect("nothing interrupts");
    body.join().expect("no panic");
    (counts, report.outcome)
}

const AT_ONCE: StopPolicy = StopPolicy {
    cooperative: Duration::ZERO,
    at_wait: Some(Duration::ZERO),
    async_exc: Some(HOUR),
    trace: None,
    defer: HOUR,
    abandon: false,
};

#[test]
fn i23_an_urgent_kill_is_delivered_before_it_waits() {
    assert_eq!(
        begun_with(&AT_ONCE),
        ((1, 0), Some(KillOutcome::Cooperative))
    );
    let by_trace = StopPolicy {
        async_exc: Some(Duration::ZERO),
        trace: Some(HOUR),
        ..AT_ONCE
    };
    assert_eq!(
        begun_with(&by_trace),
        ((0, 1), Some(KillOutcome::Cooperative))
    );
}

#[test]
fn i23_a_kill_that_gives_time_uses_no_force_before_it_waits() {
    let asks = StopPolicy {
        cooperative: HOUR,
        ..AT_ONCE
    };
    assert_eq!(begun_with(&asks), ((0, 0), Some(KillOutcome::Cooperative)));
    let at_waits = StopPolicy {
        at_wait: Some(HOUR),
        ..AT_ONCE
    };
    assert_eq!(
        begun_with(&at_waits),
        ((0, 0), Some(KillOutcome::Cooperative))
    );
}
