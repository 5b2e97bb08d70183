use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use desist::{CancelSource, CancelToken, CauseKind, Registration, Stop, Time, move_on_after};

use crate::support::{PAST, Parker, allocated_by, far};

fn reason(token: &CancelToken) -> String {
    token.cause().unwrap().reason.unwrap().to_string()
}

// ---------------------------------------------------------------------- causes

#[test]
fn i2_the_first_cause_is_final() {
    let source = CancelSource::new();
    assert!(source.cancel_because("first"));
    assert!(!source.cancel_because("second"));
    let first = source.token().cause().unwrap();
    source.close();
    assert_eq!(source.token().cause(), Some(first.clone()));
    assert_eq!(first.reason.as_deref(), Some("first"));
    assert_eq!(first.kind, CauseKind::Explicit);
    assert!(first.at <= Time::now());
}

#[test]
fn a_child_is_cancelled_with_its_parent_but_not_the_parent_with_its_child() {
    let parent = CancelSource::new();
    let child = parent.token().child();
    let sibling = parent.token().child();
    child.cancel_because("mine");
    assert!(!parent.token().is_cancelled() && !sibling.token().is_cancelled());
    parent.cancel_because("ours");
    assert_eq!(
        (reason(&child.token()), reason(&sibling.token())),
        ("mine".into(), "ours".into())
    );
    // A child made afterwards is cancelled from the start.
    assert_eq!(reason(&parent.token().child().token()), "ours");
}

#[test]
fn i2_a_passed_deadline_is_the_cause_despite_a_cancel_before_it_is_noticed() {
    for _ in 0..200 {
        // The timer may or may not take part in this race.
        let source = CancelSource::with_deadline(PAST);
        assert!(!source.cancel_because("too late"));
        let cause = source.token().cause().unwrap();
        assert_eq!(
            (cause.kind, cause.at, cause.reason),
            (CauseKind::Deadline, PAST, None)
        );
    }
}

#[test]
fn i2_a_passed_deadline_above_counts_before_a_cancel_below() {
    let nothing = move_on_after(Duration::ZERO, |outer| {
        let deadline = outer.token().deadline();
        let below = outer.token().child();
        assert!(!below.cancel_because("too late"));
        let cause = below.token().cause().unwrap();
        assert_eq!((cause.kind, cause.at), (CauseKind::Deadline, deadline));
        desist::checkpoint()
    });
    assert_eq!(nothing, Ok(None));
}

#[test]
fn i2_a_child_keeps_its_own_earlier_deadline_when_the_parent_is_cancelled() {
    let parent = CancelSource::new();
    let early = parent.token().child_with_deadline(PAST);
    let late = parent.token().child_with_deadline(far());
    parent.cancel_because("all");
    assert_eq!(early.token().cause().unwrap().at, PAST);
    assert_eq!(reason(&late.token()), "all");
}

#[test]
fn i10_of_many_concurrent_cancels_one_wins_and_all_see_its_cause() {
    const THREADS: usize = 4;
    for _ in 0..300 {
        let source = Arc::new(CancelSource::new());
        let start = Arc::new(Barrier::new(THREADS));
        let cancel = |name: usize| {
            let (source, start) = (source.clone(), start.clone());
            move || {
                start.wait();
                let won = source.cancel_because(&name.to_string());
                (won, reason(&source.token()))
            }
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|name| thread::spawn(cancel(name)))
            .collect();
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let winners: Vec<_> = (0..THREADS).filter(|name| results[*name].0).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert!(
            results
                .iter()
                .all(|(_, seen)| *seen == winners[0].to_string()),
            "{results:?}"
        );
    }
}

#[test]
fn i10_parent_and_child_cancelled_at_once_agree_with_the_results_of_the_calls() {
    for _ in 0..300 {
        let parent = CancelSource::new();
        let child = parent.token().child();
        let start = Arc::new(Barrier::new(2));
        let (token, theirs) = (child.token(), start.clone());
        let canceller = thread::spawn(move || {
            theirs.wait();
            child.cancel_because("child")
        });
        start.wait();
        assert!(parent.cancel_because("parent"));
        let child_won = canceller.join().unwrap();
        assert_eq!(reason(&token), if child_won { "child" } else { "parent" });
    }
}

// ---------------------------------------------------------------------- trees

#[test]
fn i9_a_closed_source_cancels_its_children_and_leaves_its_parent() {
    CancelSource::new().close(); // the thread's name is looked up once
    let parent = CancelSource::new();
    let token = parent.token();
    let (left, ()) = allocated_by(|| {
        let child = token.child();
        let below = child.token().child();
        child.close();
        child.close();
        assert_eq!(below.token().cause().unwrap().kind, CauseKind::ScopeExited);
        assert_eq!(child.token().cause().unwrap().kind, CauseKind::ScopeExited);
        assert!(!parent.token().is_cancelled());
    });
    assert_eq!(left.blocks, 0, "the parent holds nothing of it");
}

#[test]
fn nothing_stays_behind_in_a_long_lived_token() {
    let server = CancelSource::new();
    let token = server.token();
    let other = CancelSource::new();
    let use_it = || {
        let request = token.child();
        drop(request.token().child());
        drop(token.on_cancel(|_| {}));
        drop(CancelToken::any_of(&[&token, &other.token()]));
        assert_eq!(token.wait_until(PAST), Ok(false));
        // A wait for the token, ended by its own scope.
        let ended = move_on_after(Duration::from_micros(50), |_| token.wait_until(Time::NEVER));
        assert_eq!(ended, Ok(None));
        assert!(
            !move_on_after(Duration::ZERO, |_| token.wait_until(Time::NEVER))
                .is_ok_and(|some| some.is_some())
        );
    };
    use_it(); // lists that stay are allocated
    let (left, ()) = allocated_by(|| (0..100).for_each(|_| use_it()));
    // The timer's thread may free an ended node, which is then not counted as freed here.
    assert!(left.blocks < 50, "one a round would be 100: {left:?}");
}

#[test]
fn a_source_is_one_allocation_of_at_most_80_bytes() {
    let (root, _source) = allocated_by(CancelSource::new);
    assert_eq!(root.blocks, 1);
    assert!(root.bytes <= 80, "{root:?}");
    let parent = CancelSource::new().token();
    let (child, _source) = allocated_by(|| parent.child());
    assert_eq!(child.blocks, 1);
    assert!(child.bytes <= 80, "{child:?}");
    let (tokens, _tokens) = allocated_by(|| [parent.clone(), parent.clone()]);
    assert_eq!(tokens.blocks, 0);
}

/// Run it on a stack so small that any recursion over a deep chain ends the process.
fn on_a_small_stack(run: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(run)
        .unwrap()
        .join()
        .unwrap();
}

const DEEP: usize = 200_000;

/// A chain of which only the ends are referenced.
fn chain() -> (CancelSource, CancelSource) {
    let top = CancelSource::new();
    let mut bottom = top.token().child();
    for _ in 1..DEEP {
        bottom = bottom.token().child();
    }
    (top, bottom)
}

#[test]
fn a_chain_of_200_000_sources_is_cancelled_without_recursion() {
    on_a_small_stack(|| {
        let (top, bottom) = chain();
        let (sender, called) = channel();
        let _registration = bottom
            .token()
            .on_cancel(move |cause| sender.send(cause.reason.clone()).unwrap());
        assert!(top.cancel_because("deep"));
        assert_eq!(reason(&bottom.token()), "deep");
        assert_eq!(called.recv().unwrap().as_deref(), Some("deep"));
    });
}

#[test]
fn a_chain_of_200_000_sources_is_dropped_without_recursion() {
    on_a_small_stack(|| {
        let (left, ()) = allocated_by(|| drop(chain()));
        assert_eq!(left.blocks, 0);
        let (left, ()) = allocated_by(|| {
            let (top, bottom) = chain();
            drop(top);
            drop(bottom);
        });
        assert_eq!(left.blocks, 0);
    });
}

#[test]
fn a_chain_of_linked_tokens_is_cancelled_and_dropped_without_recursion() {
    on_a_small_stack(|| {
        for cancelled in [true, false] {
            let top = CancelSource::new();
            let mut bottom = CancelToken::any_of(&[&top.token()]);
            for _ in 1..50_000 {
                bottom = CancelToken::any_of(&[&bottom]);
            }
            if cancelled {
                top.cancel_because("linked");
                assert_eq!(reason(&bottom), "linked");
            }
            drop(bottom);
        }
    });
}

#[test]
fn all_of_200_000_children_are_cancelled() {
    let parent = CancelSource::new();
    let children: Vec<_> = (0..DEEP).map(|_| parent.token().child()).collect();
    parent.cancel();
    assert!(children.iter().all(|child| child.token().is_cancelled()));
}

#[test]
fn any_of_is_cancelled_with_the_first_and_with_its_cause() {
    let sources = [CancelSource::new(), CancelSource::new()];
    let [first, second] = [sources[0].token(), sources[1].token()];
    let any = CancelToken::any_of(&[&first, &second]);
    let below = any.child();
    assert!(!any.is_cancelled());
    sources[1].cancel_because("second");
    sources[0].cancel_because("first");
    assert_eq!(
        (reason(&any), reason(&below.token())),
        ("second".into(), "second".into())
    );
    assert_eq!(any.cause(), second.cause());
    // Of several cancelled tokens the first one counts.
    assert_eq!(reason(&CancelToken::any_of(&[&first, &second])), "first");
    assert!(!CancelToken::any_of(&[]).is_cancelled());
}

#[test]
fn a_source_can_be_given_a_deadline_later_and_its_children_know_of_it() {
    let source = CancelSource::new();
    let below = source.token().child();
    assert!(below.token().deadline().is_never());
    let (early, late) = (
        Time::after(Duration::from_secs(1000)),
        Time::after(Duration::from_secs(2000)),
    );
    for deadline in [late, early, late] {
        source.set_deadline(deadline);
        assert_eq!(below.token().deadline(), deadline);
    }
    source.set_deadline(Time::NEVER);
    assert!(below.token().deadline().is_never());
    source.set_deadline(Time::now());
    assert!(below.token().wait_until(Time::NEVER).unwrap());
    assert_eq!(below.token().cause().unwrap().kind, CauseKind::Deadline);
}

#[test]
fn a_token_of_a_scope_that_was_left_is_cancelled() {
    let kept = move_on_after(Duration::from_secs(3600), |scope| {
        Ok::<_, Stop>(scope.token())
    })
    .unwrap()
    .unwrap();
    assert_eq!(kept.cause().unwrap().kind, CauseKind::ScopeExited);
}

// ---------------------------------------------------------------------- callbacks

#[test]
fn i17_a_callback_runs_once_with_the_cause() {
    let source = CancelSource::new();
    let (sender, calls) = channel();
    let again = sender.clone();
    let _before = source
        .token()
        .on_cancel(move |cause| sender.send(cause.clone()).unwrap());
    source.cancel_because("now");
    source.cancel();
    source.close();
    let cause = source.token().cause().unwrap();
    assert_eq!(calls.try_recv().as_ref(), Ok(&cause));
    assert!(calls.try_recv().is_err(), "once");
    // Registered after the cancel, it runs at once.
    let _late = source
        .token()
        .on_cancel(move |cause| again.send(cause.clone()).unwrap());
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), [cause]);
}

#[test]
fn i17_an_unregistered_callback_never_runs() {
    let source = CancelSource::new();
    let calls = Arc::new(AtomicU32::new(0));
    let register = || {
        let calls = calls.clone();
        source
            .token()
            .on_cancel(move |_| _ = calls.fetch_add(1, Ordering::Relaxed))
    };
    let [unregistered, closed] = [register(), register()];
    drop(register());
    register().detach();
    assert!(unregistered.unregister());
    assert!(closed.close().is_ok());
    source.cancel();
    assert_eq!(calls.load(Ordering::Relaxed), 1, "only the detached one");
    assert!(!closed.unregister());
}

#[test]
fn i17_the_result_of_unregister_is_right_in_every_race() {
    for round in 0..500 {
        let source = CancelSource::new();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let registration = source
            .token()
            .on_cancel(move |_| _ = counted.fetch_add(1, Ordering::Relaxed));
        let start = Arc::new(Barrier::new(2));
        let theirs = start.clone();
        let canceller = thread::spawn(move || {
            theirs.wait();
            source.cancel();
        });
        start.wait();
        let never = registration.unregister();
        if round % 2 == 0 && !never {
            assert!(registration.close().is_ok());
            assert_eq!(calls.load(Ordering::Relaxed), 1, "close waits for the run");
        }
        canceller.join().unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), u32::from(!never));
    }
}

#[test]
fn waiters_are_awake_before_the_first_callback_runs() {
    let source = CancelSource::new();
    let (sender, woken) = channel();
    let token = source.token();
    let waiter = Parker::spawn_parked(move || {
        assert_eq!(token.wait_until(Time::NEVER), Ok(true));
        sender.send(()).unwrap();
    });
    // The callback returns only after the waiter has woken.
    let _registration = source.token().on_cancel(move |_| woken.recv().unwrap());
    source.cancel();
    waiter.join();
}

#[test]
fn i18_callbacks_that_close_each_other_do_not_deadlock() {
    let sources = [CancelSource::new(), CancelSource::new()];
    let registrations: Arc<[Mutex<Option<Registration>>; 2]> = Arc::default();
    let both_run = Arc::new(Barrier::new(2));
    for at in 0..2 {
        let (theirs, both_run) = (registrations.clone(), both_run.clone());
        let registration = sources[at].token().on_cancel(move |_| {
            both_run.wait();
            let other = theirs[1 - at].lock().unwrap().take();
            assert!(other.unwrap().close().is_ok());
        });
        *registrations[at].lock().unwrap() = Some(registration);
    }
    let cancel = |source: CancelSource| thread::spawn(move || source.cancel());
    for canceller in sources.map(cancel) {
        assert!(canceller.join().unwrap());
    }
}

#[test]
fn i18_a_callback_may_close_itself_and_others_of_its_token() {
    let source = CancelSource::new();
    let own: Arc<Mutex<Option<Registration>>> = Arc::default();
    let other = source
        .token()
        .on_cancel(|_| panic!("closed before its turn"));
    let place = own.clone();
    let registration = source.token().on_cancel(move |_| {
        drop(place.lock().unwrap().take());
        assert!(other.unregister());
    });
    *own.lock().unwrap() = Some(registration);
    assert!(source.cancel());
}

#[test]
fn close_waits_for_a_run_on_another_thread_and_close_until_times_out() {
    let source = CancelSource::new();
    let (begin, begun) = channel();
    let (finish, finished) = channel::<()>();
    let over = Arc::new(AtomicU32::new(0));
    let set_over = over.clone();
    let registration = source.token().on_cancel(move |_| {
        begin.send(()).unwrap();
        finished.recv().unwrap();
        set_over.store(1, Ordering::Relaxed);
    });
    let canceller = thread::spawn(move || source.cancel());
    begun.recv().unwrap();
    assert_eq!(registration.close_until(PAST), Ok(false));
    let closer = Parker::spawn_parked(move || {
        assert!(registration.close().is_ok());
        over.load(Ordering::Relaxed)
    });
    finish.send(()).unwrap();
    assert_eq!(closer.join(), 1);
    assert!(canceller.join().unwrap());
}

#[test]
fn after_a_panicking_callback_the_others_run_and_the_first_panic_goes_on() {
    let source = CancelSource::new();
    let below = source.token().child();
    let calls = Arc::new(AtomicU32::new(0));
    let panic = |token: &CancelToken| {
        let calls = calls.clone();
        token.on_cancel(move |_| {
            let number = calls.fetch_add(1, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new(number));
        })
    };
    let _registrations = [
        panic(&source.token()),
        panic(&below.token()),
        panic(&source.token()),
    ];
    let thrown = catch_unwind(AssertUnwindSafe(|| source.cancel())).unwrap_err();
    assert_eq!(thrown.downcast_ref::<u32>(), Some(&0));
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    assert!(below.token().is_cancelled());
}

// ---------------------------------------------------------------------- cancel from anywhere

/// Cancels when it is dropped.
struct CancelOnDrop(CancelSource);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel_because("dropped");
    }
}

#[test]
fn i19_cancel_may_be_called_from_a_destructor_also_while_a_panic_unwinds() {
    let source = CancelSource::new();
    let token = source.token();
    let _registration = token.on_cancel(|_| std::panic::resume_unwind(Box::new("of the callback")));
    let thrown = catch_unwind(AssertUnwindSafe(|| {
        let _cancel = CancelOnDrop(source);
        std::panic::resume_unwind(Box::new("of the body"));
    }));
    // A second panic during the first would have ended the process.
    assert_eq!(
        thrown.unwrap_err().downcast_ref::<&str>(),
        Some(&"of the body")
    );
    assert_eq!(reason(&token), "dropped");
}

#[test]
fn i19_cancel_may_be_called_while_thread_locals_are_destroyed() {
    std::thread_local! {
        static LAST: Mutex<Option<CancelOnDrop>> = const { Mutex::new(None) };
    }
    let source = CancelSource::new();
    let token = source.token();
    let (sender, called) = channel();
    let _registration = token.on_cancel(move |_| sender.send(()).unwrap());
    thread::spawn(move || LAST.with(|last| *last.lock().unwrap() = Some(CancelOnDrop(source))))
        .join()
        .unwrap();
    called.recv().unwrap();
    assert!(token.is_cancelled());
}

#[test]
fn i19_cancel_may_be_called_from_a_callback_of_the_same_tree() {
    let source = Arc::new(CancelSource::new());
    let other = Arc::new(CancelSource::new());
    let (inside, beside) = (source.clone(), other.clone());
    let below = source.token().child();
    let _registration = below.token().on_cancel(move |_| {
        assert!(!inside.cancel_because("again"));
        assert!(beside.cancel_because("on the way"));
    });
    assert!(source.cancel_because("first"));
    assert_eq!(
        (reason(&source.token()), reason(&other.token())),
        ("first".into(), "on the way".into())
    );
}

#[test]
fn i19_cancelling_a_changing_tree_from_many_threads_reaches_every_node() {
    for _ in 0..50 {
        let root = CancelSource::new();
        let start = Arc::new(Barrier::new(4));
        let grow = || {
            let (token, start) = (root.token(), start.clone());
            thread::spawn(move || {
                start.wait();
                let children: Vec<_> = (0..100).map(|_| token.child()).collect();
                let below: Vec<_> = children.iter().map(|child| child.token().child()).collect();
                drop(children.into_iter().step_by(2).collect::<Vec<_>>());
                below
            })
        };
        let growers = [grow(), grow()];
        let (token, theirs) = (root.token(), start.clone());
        let linker = thread::spawn(move || {
            theirs.wait();
            (0..100)
                .map(|_| CancelToken::any_of(&[&token]))
                .collect::<Vec<_>>()
        });
        start.wait();
        root.cancel_because("all");
        let links = linker.join().unwrap();
        let nodes = growers
            .into_iter()
            .flat_map(|grower| grower.join().unwrap());
        let tokens: Vec<_> = nodes.map(|node| node.token()).chain(links).collect();
        assert!(tokens.iter().all(|token| reason(token) == "all"));
    }
}

// ---------------------------------------------------------------------- the timer

#[test]
fn the_timer_notices_a_deadline_without_a_waiter() {
    let deadline = Time::after(Duration::from_millis(2));
    let source = CancelSource::with_deadline(deadline);
    // The linked token has no deadline of its own: only the timer can cancel it.
    let any = CancelToken::any_of(&[&source.token()]);
    assert_eq!(any.wait_until(Time::NEVER), Ok(true));
    assert!(Time::now() >= deadline, "never early");
    let cause = any.cause().unwrap();
    assert_eq!((cause.kind, cause.at), (CauseKind::Deadline, deadline));
    assert!(source.token().is_cancelled());
}

#[test]
fn deadlines_are_noticed_in_order_in_whatever_order_they_were_armed() {
    // On a busy machine the first may pass before the last is armed: then repeat with more time.
    for lead in [3, 30, 300, 3000, 30_000].map(Duration::from_millis) {
        let (sender, order) = channel();
        let base = Time::after(lead);
        let notice = |at: u64| {
            let deadline = base + Duration::from_millis(at);
            let source = CancelSource::with_deadline(deadline);
            let sender = sender.clone();
            let notice = source.token().on_cancel(move |_| _ = sender.send(at));
            (source, notice)
        };
        let kept = [2, 0, 3, 1].map(notice);
        if Time::now() < base {
            assert_eq!(order.iter().take(4).collect::<Vec<_>>(), [0, 1, 2, 3]);
            return;
        }
        drop(kept);
    }
    panic!("no time to register four callbacks");
}

#[test]
fn a_callback_of_a_deadline_does_not_delay_other_deadlines() {
    let slow = CancelSource::with_deadline(Time::after(Duration::from_millis(1)));
    let (begin, begun) = channel();
    let (finish, finished) = channel::<()>();
    let _registration = slow.token().on_cancel(move |_| {
        begin.send(()).unwrap();
        finished.recv().unwrap();
    });
    begun.recv().unwrap();
    let next = CancelSource::with_deadline(Time::after(Duration::from_millis(1)));
    let any = CancelToken::any_of(&[&next.token()]);
    assert_eq!(any.wait_until(Time::NEVER), Ok(true));
    finish.send(()).unwrap();
}

#[test]
fn a_dropped_source_takes_its_deadline_with_it() {
    let use_it = || drop(CancelSource::with_deadline(far()));
    use_it();
    let (left, ()) = allocated_by(|| (0..1000).for_each(|_| use_it()));
    assert!(left.blocks <= 0 || left.bytes < 1000, "{left:?}");
}
