//! The ladder, on Rust threads, which cannot be interrupted by force, and with an interrupter that
//! counts.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use desist::boundary::{BodyEnd, Boundary};
use desist::stop::{KillError, KillOutcome, KillReport, ProcessStopPolicy, StopPolicy, kill};
use desist::sync::{Acquire, Latch, Lock, LockError};
use desist::task::{Interrupter, Progress, RemoteBody, Task};
use desist::{
    CauseKind, Stop, Time, cancel_scope, checkpoint, cleanup, move_on_after, shield, sleep,
};

use crate::support::{PAST, Parker, far};
use crate::wait::Error;

const HOUR: Duration = Duration::from_secs(3600);

/// No rungs: each test adds those that it is about.
const NO_RUNG: StopPolicy = StopPolicy {
    cooperative: Duration::ZERO,
    at_wait: None,
    async_exc: None,
    trace: None,
    defer: Duration::ZERO,
    abandon: false,
};

fn end_of<T>(result: &Result<T, Stop>) -> BodyEnd {
    match result {
        Err(Stop::Killed(_)) => BodyEnd::Killed(Some("here".into())),
        _ => BodyEnd::Unwound,
    }
}

/// The steps of a worker's loop around one body.
fn run<T>(
    task: &Arc<Task>,
    interrupter: Option<Arc<dyn Interrupter>>,
    body: impl FnOnce() -> Result<T, Stop>,
) -> Result<T, Stop> {
    let boundary = Boundary::enter(task, interrupter);
    let result = body();
    if boundary.leave(end_of(&result)) {
        task.over().set();
    }
    result
}

fn parked<T: Send + 'static>(
    task: &Arc<Task>,
    body: impl FnOnce() -> Result<T, Stop> + Send + 'static,
) -> Parker<Result<T, Stop>> {
    let task = task.clone();
    Parker::spawn_parked(move || run(&task, None, body))
}

fn kill_with(task: &Arc<Task>, policy: &StopPolicy) -> KillReport {
    kill(task, Some("a test".into()), policy, &mut || ()).unwrap()
}

fn killed<T>(result: &Result<T, Stop>) -> bool {
    matches!(result, Err(Stop::Killed(cause)) if cause.reason.as_deref() == Some("a test"))
}

// ---------------------------------------------------------------------- rung by rung

#[test]
fn a_body_that_stops_when_it_is_asked_is_not_killed() {
    let task = Task::new("body", None);
    let body = parked(&task, || sleep(HOUR));
    assert_eq!(task.progress(), Progress::Running);
    let report = kill_with(
        &task,
        &StopPolicy {
            cooperative: HOUR,
            ..NO_RUNG
        },
    );
    assert_eq!(report.outcome, Some(KillOutcome::Cooperative));
    assert!(matches!(body.join(), Err(Stop::Cancelled(_))));
    assert_eq!(task.progress(), Progress::Over);
}

#[test]
fn a_kill_ends_a_wait_in_spite_of_shields_and_scopes() {
    let task = Task::new("body", None);
    let body = parked(&task, || {
        // These scopes absorb every cancellation, but not a kill.
        let result = shield(HOUR, || {
            let inner: Result<Option<()>, Error> = cancel_scope(HOUR, |scope| {
                scope.cancel();
                let _ = checkpoint();
                Ok(shield(HOUR, || sleep(HOUR)).map(|_| ())?)
            });
            match inner {
                Err(Error::Stop(stop)) => Err(stop),
                other => panic!("absorbed: {other:?}"),
            }
        });
        result.map(|_: Option<()>| ())
    });
    let report = kill_with(
        &task,
        &StopPolicy {
            at_wait: Some(HOUR),
            ..NO_RUNG
        },
    );
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
    assert_eq!(report.stack.as_deref(), Some("here"));
    assert!(killed(&body.join()));
}

#[test]
fn a_body_that_swallows_every_cancel_is_killed_at_its_next_checkpoint() {
    let task = Task::new("body", None);
    let theirs = task.clone();
    let body = thread::spawn(move || {
        run(&theirs, None, || {
            loop {
                match checkpoint() {
                    Err(Stop::Killed(cause)) => return Err::<(), _>(Stop::Killed(cause)),
                    _ => thread::yield_now(),
                }
            }
        })
    });
    while task.progress() == Progress::Pending {
        thread::yield_now();
    }
    let report = kill_with(
        &task,
        &StopPolicy {
            at_wait: Some(HOUR),
            ..NO_RUNG
        },
    );
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
    assert!(killed(&body.join().unwrap()));
}

#[test]
fn i15_a_killed_body_begins_no_further_wait() {
    let task = Task::new("body", None);
    let lock = Lock::default();
    let theirs = lock.clone();
    let body = parked(&task, move || {
        let first = shield(HOUR, || sleep(HOUR));
        assert!(killed(&first));
        assert!(matches!(
            theirs.acquire(Acquire::Task, far()),
            Err(LockError::Stop(Stop::Killed(_)))
        ));
        assert!(
            killed(&shield(HOUR, || sleep(HOUR))),
            "swallowed, it comes again"
        );
        first
    });
    kill_with(
        &task,
        &StopPolicy {
            at_wait: Some(HOUR),
            ..NO_RUNG
        },
    );
    assert!(killed(&body.join()));
    assert!(!lock.is_locked());
}

/// A body in a call that cannot be interrupted, until the sender sends.
fn stuck(task: &Arc<Task>) -> (thread::JoinHandle<bool>, Sender<()>) {
    let theirs = task.clone();
    let (begin, begun) = channel();
    let (finish, finished) = channel();
    let body = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, None);
        begin.send(()).unwrap();
        finished.recv().unwrap();
        boundary.leave(BodyEnd::Unwound)
    });
    begun.recv().unwrap();
    (body, finish)
}

#[test]
fn a_body_that_cannot_be_ended_is_abandoned_and_learns_it_when_it_returns() {
    let task = Task::new("body", None);
    let (body, finish) = stuck(&task);
    let mut fenced = 0;
    let policy = StopPolicy {
        at_wait: Some(Duration::ZERO),
        async_exc: Some(HOUR),
        trace: None,
        abandon: true,
        ..NO_RUNG
    };
    let report = kill(&task, None, &policy, &mut || {
        assert!(!task.over().is_set(), "before anyone is told");
        fenced += 1;
    });
    assert_eq!(
        report.unwrap().outcome,
        Some(KillOutcome::Abandoned),
        "at once: there is no interrupter to wait for"
    );
    assert_eq!((fenced, task.progress()), (1, Progress::Abandoned));
    assert!(task.over().is_set());
    finish.send(()).unwrap();
    assert!(!body.join().unwrap(), "another thread has settled its work");
    assert_eq!(task.progress(), Progress::Abandoned);
}

#[test]
fn a_policy_that_does_not_abandon_reports_that_the_body_still_runs() {
    let task = Task::new("body", None);
    let (body, finish) = stuck(&task);
    assert_eq!(kill_with(&task, &NO_RUNG).outcome, None);
    assert_eq!(task.progress(), Progress::Cancelling);
    finish.send(()).unwrap();
    assert!(body.join().unwrap());
}

#[test]
fn a_second_kill_reports_that_the_body_had_ended() {
    let task = Task::new("body", None);
    run(&task, None, || Ok(())).unwrap();
    let report = kill_with(&task, &StopPolicy::default());
    assert_eq!(report.outcome, Some(KillOutcome::AlreadyDone));
    let cause = task.source().token().cause().unwrap();
    assert_eq!(
        cause.kind,
        CauseKind::ScopeExited,
        "it was not cancelled again"
    );
}

#[test]
fn a_report_has_one_record_for_every_rung_tried() {
    let task = Task::new("body", None);
    let (body, finish) = stuck(&task);
    let moment = Duration::from_millis(5);
    let policy = StopPolicy {
        cooperative: moment,
        at_wait: Some(moment),
        async_exc: Some(HOUR),
        abandon: true,
        ..NO_RUNG
    };
    let report = kill_with(&task, &policy);
    let tried: Vec<_> = report.rungs.iter().map(|rung| rung.rung).collect();
    assert_eq!(
        tried,
        [KillOutcome::Cooperative, KillOutcome::AtWait],
        "there is no interrupter for the third one"
    );
    assert_eq!(report.rungs[0].attempts, 1);
    for rung in &report.rungs {
        assert!(rung.elapsed >= rung.limit && rung.limit == moment);
    }
    let all: Duration = report.rungs.iter().map(|rung| rung.elapsed).sum();
    assert!(all <= report.elapsed);
    finish.send(()).unwrap();
    body.join().unwrap();
    assert!(kill_with(&task, &policy).rungs.is_empty());
}

struct OfNoUse;

impl RemoteBody for OfNoUse {
    fn signal(&self, _task: u64, _rung: KillOutcome) {}
}

#[test]
fn a_policy_is_refused_that_is_not_for_the_place_where_the_body_runs() {
    let here = Task::new("here", None);
    here.launch();
    let for_process = ProcessStopPolicy::default();
    let refused = kill(&here, None, &for_process, &mut || ()).unwrap_err();
    assert_eq!(refused, KillError::WrongPolicy);
    let remote = Task::new("remote", None);
    remote.run_remotely(Arc::new(OfNoUse));
    remote.launch();
    let refused = kill(&remote, None, &NO_RUNG, &mut || ()).unwrap_err();
    assert_eq!(refused, KillError::WrongPolicy);
    assert!(!remote.source().token().is_cancelled(), "nothing was done");
    for task in [here, remote] {
        run(&task, None, || Ok(())).unwrap();
    }
}

#[test]
fn invalid_kills_are_refused() {
    let task = Task::new("body", None);
    assert_eq!(
        kill(&task, None, &NO_RUNG, &mut || ()).unwrap_err(),
        KillError::NotStarted
    );
    let own = run(&task, None, || {
        Ok(kill(&task, None, &NO_RUNG, &mut || ()).unwrap_err())
    });
    assert_eq!(own, Ok(KillError::Itself));
}

#[test]
fn a_body_that_panics_is_over_and_its_locks_are_free() {
    let task = Task::new("body", None);
    let lock = Lock::default();
    let (theirs, held) = (task.clone(), lock.clone());
    let body = thread::spawn(move || {
        let _boundary = Boundary::enter(&theirs, None);
        held.acquire(Acquire::Block, Time::NEVER).unwrap();
        std::panic::resume_unwind(Box::new("of the body"));
    });
    assert!(body.join().is_err());
    assert!(task.over().is_set());
    assert!(!lock.is_locked());
    assert_eq!(
        kill_with(&task, &StopPolicy::default()).outcome,
        Some(KillOutcome::AlreadyDone)
    );
}

#[test]
fn the_killer_is_not_interrupted_by_its_own_cancellation() {
    let (killer, task) = (Task::new("killer", None), Task::new("body", None));
    let body = parked(&task, || shield(HOUR, || sleep(HOUR)));
    killer.source().cancel();
    let policy = StopPolicy {
        at_wait: Some(HOUR),
        ..NO_RUNG
    };
    let report = run(&killer, None, || Ok(kill_with(&task, &policy)));
    assert_eq!(report.unwrap().outcome, Some(KillOutcome::AtWait));
    assert!(killed(&body.join()));
}

#[test]
fn two_killers_share_the_first_cause_and_both_return() {
    let task = Task::new("body", None);
    let body = parked(&task, || shield(HOUR, || sleep(HOUR)));
    let policy = StopPolicy {
        at_wait: Some(HOUR),
        ..NO_RUNG
    };
    let kill_it = || {
        let task = task.clone();
        thread::spawn(move || kill_with(&task, &policy).outcome)
    };
    let [first, second] = [kill_it(), kill_it()].map(|killer| killer.join().unwrap());
    for outcome in [first, second] {
        assert!(
            matches!(
                outcome,
                Some(KillOutcome::AtWait | KillOutcome::AlreadyDone)
            ),
            "{outcome:?}"
        );
    }
    assert!(killed(&body.join()));
}

// ---------------------------------------------------------------------- by force

/// An interrupter that counts, and reports its calls to the test.
struct Fake {
    asked: Mutex<Sender<()>>,
    posted: Mutex<Sender<()>>,
    posts: AtomicU32,
    retracted: AtomicU32,
    /// Whether the body's thread has left the body.
    over: AtomicBool,
}

struct Calls {
    asked: Receiver<()>,
    posted: Receiver<()>,
}

impl Fake {
    fn new() -> (Arc<Fake>, Calls) {
        let ((asked, asked_calls), (posted, posted_calls)) = (channel(), channel());
        let fake = Fake {
            asked: Mutex::new(asked),
            posted: Mutex::new(posted),
            posts: AtomicU32::new(0),
            retracted: AtomicU32::new(0),
            over: AtomicBool::new(false),
        };
        (
            Arc::new(fake),
            Calls {
                asked: asked_calls,
                posted: posted_calls,
            },
        )
    }

    fn counted(&self) -> (u32, u32) {
        (
            self.posts.load(Ordering::SeqCst),
            self.retracted.load(Ordering::SeqCst),
        )
    }
}

impl Interrupter for Fake {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        let _ = self.asked.lock().unwrap().send(());
        then();
    }

    fn post(&self) {
        assert!(
            !self.over.load(Ordering::SeqCst),
            "posted at a thread that has left the body"
        );
        self.posts.fetch_add(1, Ordering::SeqCst);
        let _ = self.posted.lock().unwrap().send(());
    }

    fn retract(&self) {
        // A host runs code for this, which may use the whole core.
        let _ = move_on_after(HOUR, |_| checkpoint());
        self.retracted.fetch_add(1, Ordering::SeqCst);
    }

    fn stack(&self) -> Option<Vec<String>> {
        Some(vec!["stack of the fake".into()])
    }
}

const BY_FORCE: StopPolicy = StopPolicy {
    async_exc: Some(HOUR),
    trace: None,
    ..NO_RUNG
};

const BY_TRACE: StopPolicy = StopPolicy {
    async_exc: None,
    trace: Some(HOUR),
    ..NO_RUNG
};

/// Run a body with that interrupter on a thread of its own, and kill it.
fn kill_forced(
    fake: &Arc<Fake>,
    policy: &StopPolicy,
    body: impl FnOnce(&Arc<Task>) -> BodyEnd + Send + 'static,
) -> KillReport {
    let task = Task::new("body", None);
    let (theirs, interrupter) = (task.clone(), fake.clone());
    let (begin, begun) = channel();
    let thread = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, Some(interrupter.clone()));
        begin.send(()).unwrap();
        let end = body(&theirs);
        let mine = boundary.leave(end);
        interrupter.over.store(true, Ordering::SeqCst);
        if mine {
            theirs.over().set();
        }
    });
    begun.recv().unwrap();
    let report = kill_with(&task, policy);
    thread.join().unwrap();
    report
}

#[test]
fn i23_a_swallowed_kill_is_posted_again_until_the_boundary_confirms() {
    let (fake, calls) = Fake::new();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        for _ in 0..3 {
            calls.posted.recv().unwrap();
            assert!(task.arrived().is_some());
        }
        BodyEnd::Killed(Some("the fourth would be too many".into()))
    });
    assert_eq!(report.outcome, Some(KillOutcome::AsyncExc));
    assert_eq!(
        report.stack.as_deref(),
        Some("the fourth would be too many")
    );
    assert!(fake.counted().0 >= 3);
}

#[test]
fn i22_a_posted_kill_that_was_not_raised_is_retracted_at_the_boundary() {
    let (fake, calls) = Fake::new();
    let report = kill_forced(&fake, &BY_FORCE, move |_| {
        calls.posted.recv().unwrap();
        BodyEnd::Unwound
    });
    assert_eq!(
        report.outcome,
        Some(KillOutcome::Cooperative),
        "it came to an end by itself"
    );
    assert_eq!(fake.counted().1, 1);
}

#[test]
fn i22_no_kill_is_posted_after_the_body_has_left() {
    for round in 0..200 {
        let (fake, calls) = Fake::new();
        kill_forced(&fake, &BY_FORCE, move |task| {
            if round % 2 == 0 {
                calls.posted.recv().unwrap();
            }
            if round % 4 == 0 {
                task.arrived();
            }
            BodyEnd::Unwound
        });
        // `Fake::post` is the assertion; the content of the slot was taken out of it.
        let (posts, retracted) = fake.counted();
        assert!(retracted <= 1 && posts >= retracted);
    }
}

/// A slow host: its lock is free only when the body has left.
struct Late {
    asked: Mutex<Sender<()>>,
    left: Mutex<Receiver<()>>,
}

impl Interrupter for Late {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        self.asked.lock().unwrap().send(()).unwrap();
        self.left.lock().unwrap().recv().unwrap();
        then();
    }

    fn post(&self) {
        panic!("posted at a thread that has left the body");
    }

    fn retract(&self) {
        panic!("nothing was posted");
    }

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

#[test]
fn i22_a_kill_under_way_when_the_body_leaves_is_not_posted() {
    let ((asked, asked_calls), (leave, left)) = (channel(), channel());
    let (asked, left) = (Mutex::new(asked), Mutex::new(left));
    let host = Arc::new(Late { asked, left });
    kill_a_body_that_leaves(host, &BY_FORCE, asked_calls, leave);
}

/// Kill a body that leaves when its host was `asked`, and then sends `leave` to the host, which waits for it.
fn kill_a_body_that_leaves(
    host: Arc<dyn Interrupter>,
    policy: &StopPolicy,
    asked: Receiver<()>,
    leave: Sender<()>,
) {
    let (task, begun) = (Task::new("body", None), Arc::new(Latch::new()));
    let (theirs, begin) = (task.clone(), begun.clone());
    let body = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, Some(host));
        begin.set();
        asked.recv().unwrap();
        boundary.leave(BodyEnd::Unwound);
        leave.send(()).unwrap();
        theirs.over().set();
    });
    assert_eq!(begun.wait_until(Time::NEVER), Ok(true));
    assert_eq!(
        kill_with(&task, policy).outcome,
        Some(KillOutcome::Cooperative)
    );
    body.join().unwrap();
}

/// A host that does not keep the body from running: the body leaves while the host begins to trace it.
struct Loose {
    asked: Mutex<Sender<()>>,
    left: Mutex<Receiver<()>>,
    traces: AtomicBool,
}

impl Interrupter for Loose {
    fn with_host_lock(&self, then: &mut dyn FnMut()) {
        then();
    }

    fn sees_body(&self) -> bool {
        false
    }

    fn post(&self) {
        panic!("posted by a host that does not see the body");
    }

    fn retract(&self) {
        panic!("nothing was posted");
    }

    fn trace(&self, _: &Arc<Task>, _: bool) {
        self.asked.lock().unwrap().send(()).unwrap();
        self.left.lock().unwrap().recv().unwrap();
        self.traces.store(true, Ordering::SeqCst);
    }

    fn end_trace(&self, _: &Task) {
        self.traces.store(false, Ordering::SeqCst);
    }

    fn stack(&self) -> Option<Vec<String>> {
        None
    }
}

#[test]
fn no_body_is_traced_after_it_has_left() {
    for policy in [BY_FORCE, BY_TRACE] {
        let ((asked, asked_calls), (leave, left)) = (channel(), channel());
        let host = Arc::new(Loose {
            asked: Mutex::new(asked),
            left: Mutex::new(left),
            traces: AtomicBool::new(false),
        });
        kill_a_body_that_leaves(host.clone(), &policy, asked_calls, leave);
        assert!(!host.traces.load(Ordering::SeqCst));
    }
}

#[test]
fn i24_a_kill_waits_behind_a_mask_and_is_delivered_once_when_it_closes() {
    let (fake, calls) = Fake::new();
    let theirs = fake.clone();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        let outer = task.mask(far());
        let inner = task.mask(far());
        let before = theirs.counted();
        while calls.asked.try_recv().is_ok() {}
        (0..3).for_each(|_| calls.asked.recv().unwrap());
        assert!(
            matches!(checkpoint(), Err(Stop::Cancelled(_))),
            "asked, but not killed"
        );
        task.unmask(inner);
        assert_eq!(task.kill_due(), None, "the outer one is still open");
        assert_eq!(theirs.counted(), before);
        task.unmask(outer);
        assert_eq!(task.kill_due().unwrap().reason.as_deref(), Some("a test"));
        BodyEnd::Killed(None)
    });
    assert_eq!(
        report.outcome,
        Some(KillOutcome::AtWait),
        "where it had been held off"
    );
}

#[test]
fn i24_a_mask_closes_only_itself_even_out_of_order_and_from_another_thread() {
    let (fake, calls) = Fake::new();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        let (suspended, mine) = (task.mask(PAST), task.mask(far()));
        while calls.asked.try_recv().is_ok() {}
        (0..3).for_each(|_| calls.asked.recv().unwrap());
        thread::scope(|threads| {
            threads.spawn(|| task.unmask(suspended));
        });
        task.unmask(suspended); // a second close: the number belongs to no other mask
        assert_eq!(task.kill_due(), None, "mine is still open");
        let zone = cleanup(|| {
            task.unmask(mine);
            Ok::<_, Stop>(task.kill_due())
        });
        assert_eq!(zone, Ok(Some(None)), "the zone is open");
        assert!(task.kill_due().is_some());
        BodyEnd::Killed(None)
    });
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
}

#[test]
fn i24_a_mask_defers_a_kill_no_longer_than_its_bound() {
    let (fake, calls) = Fake::new();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        let until = Time::after(Duration::from_millis(3));
        task.mask(until);
        while calls.posted.try_recv().is_ok() {} // before the mask
        calls.posted.recv().unwrap();
        assert!(Time::now() >= until);
        task.arrived().unwrap();
        BodyEnd::Killed(None)
    });
    assert_eq!(report.outcome, Some(KillOutcome::AsyncExc));
}

#[test]
fn i24_a_mask_that_opens_under_a_posted_kill_retracts_it_and_delivers_it_when_it_closes() {
    let (fake, calls) = Fake::new();
    let theirs = fake.clone();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        calls.posted.recv().unwrap();
        let mask = task.mask(far());
        assert_eq!(theirs.counted(), (1, 1), "the host's slot is empty again");
        while calls.asked.try_recv().is_ok() {}
        (0..3).for_each(|_| calls.asked.recv().unwrap());
        assert_eq!(theirs.counted(), (1, 1), "nor is it filled again");
        assert_eq!(task.kill_due(), None);
        task.unmask(mask);
        assert!(task.kill_due().is_some());
        BodyEnd::Killed(None)
    });
    assert_eq!(
        report.outcome,
        Some(KillOutcome::AtWait),
        "where it had been held off"
    );
}

#[test]
fn i24_a_clean_up_zone_that_opens_under_a_posted_kill_retracts_it() {
    let (fake, calls) = Fake::new();
    let theirs = fake.clone();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        calls.posted.recv().unwrap();
        let zone = cleanup(|| Ok::<_, Stop>(theirs.counted()));
        assert_eq!(zone, Ok(Some((1, 1))));
        assert!(task.kill_due().is_some());
        BodyEnd::Killed(None)
    });
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
}

#[test]
fn i25_a_clean_up_zone_defers_a_kill_until_its_end() {
    let (fake, calls) = Fake::new();
    let theirs = fake.clone();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        let zone = cleanup(|| {
            let before = theirs.counted();
            while calls.asked.try_recv().is_ok() {}
            (0..3).for_each(|_| calls.asked.recv().unwrap());
            assert_eq!(theirs.counted(), before);
            checkpoint()
        });
        assert_eq!(
            zone,
            Ok(Some(())),
            "it is neither cancelled nor killed in there"
        );
        assert!(task.kill_due().is_some());
        BodyEnd::Killed(None)
    });
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
}

#[test]
fn i24_a_kill_waits_for_a_held_lock_and_is_due_when_it_is_released() {
    let (fake, calls) = Fake::new();
    let lock = Lock::default();
    let (theirs, held) = (fake.clone(), lock.clone());
    let report = kill_forced(
        &fake,
        &StopPolicy {
            defer: HOUR,
            ..BY_FORCE
        },
        move |task| {
            let mask = task.mask(far()); // so that no cancel comes before the lock is held
            assert!(held.try_acquire(Acquire::Block).unwrap());
            task.unmask(mask);
            let before = theirs.counted();
            while calls.asked.try_recv().is_ok() {}
            (0..3).for_each(|_| calls.asked.recv().unwrap());
            assert_eq!((theirs.counted(), task.kill_due()), (before, None));
            held.release().unwrap();
            assert!(task.kill_due().is_some());
            BodyEnd::Killed(None)
        },
    );
    assert_eq!(
        report.outcome,
        Some(KillOutcome::AtWait),
        "where it had been held off"
    );
    assert!(report.poisoned.is_empty() && !lock.is_poisoned());
}

#[test]
fn i21_a_lock_that_defers_a_kill_for_too_long_is_poisoned() {
    let (fake, calls) = Fake::new();
    let lock = Lock::default();
    let held = lock.clone();
    let report = kill_forced(&fake, &BY_FORCE, move |task| {
        let mask = task.mask(far()); // so that no cancel comes before the lock is held
        while calls.posted.try_recv().is_ok() {}
        assert!(held.try_acquire(Acquire::Block).unwrap());
        task.unmask(mask);
        calls.posted.recv().unwrap();
        task.arrived().unwrap();
        BodyEnd::Killed(None)
    });
    assert_eq!(
        (report.outcome, report.poisoned.len()),
        (Some(KillOutcome::AsyncExc), 1)
    );
    assert!(lock.is_poisoned() && !lock.is_locked());
}

#[test]
fn a_forced_body_that_does_not_end_is_abandoned_and_the_report_has_its_stack() {
    let (fake, _calls) = Fake::new();
    let task = Task::new("body", None);
    let (theirs, interrupter) = (task.clone(), fake.clone());
    let ((begin, begun), (finish, finished)) = (channel(), channel::<()>());
    let body = thread::spawn(move || {
        let boundary = Boundary::enter(&theirs, Some(interrupter));
        begin.send(()).unwrap();
        finished.recv().unwrap();
        boundary.leave(BodyEnd::Unwound)
    });
    begun.recv().unwrap();
    let policy = StopPolicy {
        async_exc: Some(Duration::from_millis(3)),
        trace: None,
        abandon: true,
        ..NO_RUNG
    };
    let report = kill_with(&task, &policy);
    assert_eq!(
        (report.outcome, report.stack.as_deref()),
        (Some(KillOutcome::Abandoned), Some("stack of the fake"))
    );
    let before = fake.counted().0;
    assert!(before >= 1);
    finish.send(()).unwrap();
    assert!(!body.join().unwrap());
    assert_eq!(
        fake.counted(),
        (before, 1),
        "nothing more was posted, and the rest retracted"
    );
}

// ---------------------------------------------------------------------- without force

#[test]
fn a_wait_under_a_held_lock_is_killed_without_force_when_the_lock_has_deferred_it_long_enough() {
    for async_exc in [None, Some(HOUR)] {
        let (task, lock) = (Task::new("body", None), Lock::default());
        let held = lock.clone();
        let body = parked(&task, move || {
            held.acquire(Acquire::Block, Time::NEVER).unwrap();
            shield(HOUR, || sleep(HOUR))
        });
        let policy = StopPolicy {
            at_wait: Some(Duration::from_secs(2)),
            async_exc,
            trace: None,
            defer: Duration::from_millis(2),
            abandon: true,
            ..NO_RUNG
        };
        let report = kill_with(&task, &policy);
        assert_eq!(
            (report.outcome, report.poisoned.len()),
            (Some(KillOutcome::AtWait), 1)
        );
        assert!(killed(&body.join()));
        assert!(lock.is_poisoned());
    }
}

#[test]
fn i25_a_masked_body_is_not_abandoned_without_force_before_its_mask_ends() {
    let task = Task::new("body", None);
    let theirs = task.clone();
    let (begin, begun) = channel();
    let body = thread::spawn(move || {
        run(&theirs, None, || {
            let mask = theirs.mask(far());
            begin.send(()).unwrap();
            // After the request to stop it goes on for longer than all rungs together.
            assert!(sleep(HOUR).is_err());
            assert_eq!(shield(Duration::from_millis(10), || sleep(HOUR)), Ok(None));
            theirs.unmask(mask);
            theirs
                .kill_due()
                .map_or(Ok(()), |cause| Err(Stop::Killed(cause)))
        })
    });
    begun.recv().unwrap();
    let policy = StopPolicy {
        at_wait: Some(Duration::from_millis(1)),
        async_exc: Some(HOUR),
        trace: None,
        abandon: true,
        ..NO_RUNG
    };
    let report = kill_with(&task, &policy);
    assert_eq!(report.outcome, Some(KillOutcome::AtWait));
    assert!(killed(&body.join().unwrap()));
}
