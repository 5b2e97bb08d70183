//! Channels of crossbeam: a token's receiver, and waits that end when the thread is to stop.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{TryRecvError, bounded, never, select, unbounded};
use desist::channel::{RecvError, SendError, recv, send};
use desist::stop::{KillOutcome, StopPolicy, kill};
use desist::{CancelSource, CauseKind, Stop, Time, checkpoint, move_on_after, shield, testing};

use crate::support::{PAST, Parker, allocated_by, far, kill_in_its_wait, parked_task};

const HOUR: Duration = Duration::from_secs(3600);

// ---------------------------------------------------------------------- a token's receiver

#[test]
fn a_receiver_disconnects_when_its_token_is_cancelled() {
    let source = CancelSource::new();
    let stopped = source.token().receiver();
    assert_eq!(stopped.try_recv(), Err(TryRecvError::Empty));
    source.cancel();
    assert_eq!(stopped.try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn a_receiver_of_a_cancelled_token_is_disconnected_from_the_start() {
    let source = CancelSource::new();
    source.cancel();
    let stopped = source.token().receiver();
    assert_eq!(stopped.try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn a_receiver_disconnects_with_the_parent_and_at_the_deadline_of_its_token() {
    let parent = CancelSource::new();
    let stopped = parent.token().child().token().receiver();
    parent.cancel();
    assert!(stopped.recv().is_err());
    let timed = CancelSource::with_deadline(Time::after(Duration::from_millis(1)));
    // Blocks until the timer has cancelled the token.
    assert!(timed.token().receiver().recv().is_err());
    assert!(timed.token().is_cancelled());
}

#[test]
fn a_receiver_ends_a_select_whichever_comes_first() {
    for _ in 0..300 {
        let source = CancelSource::new();
        let token = source.token();
        let start = Barrier::new(2);
        thread::scope(|threads| {
            threads.spawn(|| {
                start.wait();
                let stopped = token.receiver();
                select! {
                    recv(never::<()>()) -> _ => unreachable!("nothing is sent"),
                    recv(stopped) -> message => assert!(message.is_err()),
                }
            });
            start.wait();
            source.cancel();
        });
    }
}

#[test]
fn a_dropped_receiver_leaves_nothing_behind_in_its_token() {
    let source = CancelSource::new();
    let token = source.token();
    let kept = |times: usize| {
        let make = || (0..times).for_each(|_| drop(token.receiver()));
        allocated_by(make).0
    };
    kept(1); // the list of callbacks keeps its room
    let (one, many) = (kept(1), kept(1000));
    assert_eq!((one.blocks, one.bytes), (0, 0));
    assert_eq!((many.blocks, many.bytes), (0, 0));
}

#[test]
fn waits_leave_nothing_behind_in_their_scope() {
    let (_sender, receiver) = unbounded::<u32>();
    move_on_after(HOUR, |_| {
        let wait = || assert_eq!(recv(&receiver, PAST), Err(RecvError::TimedOut));
        wait(); // the list of callbacks keeps its room, and crossbeam its thread's context
        let kept = allocated_by(|| (0..100).for_each(|_| wait())).0;
        assert_eq!((kept.blocks, kept.bytes), (0, 0));
        Ok::<_, Stop>(())
    })
    .unwrap();
}

// ---------------------------------------------------------------------- recv and send

#[test]
fn a_message_is_received_at_once_or_when_it_is_sent() {
    let (sender, receiver) = unbounded();
    sender.send(1).unwrap();
    assert_eq!(recv(&receiver, PAST), Ok(1));
    let receiving = Parker::spawn_parked(move || recv(&receiver, far()));
    sender.send(2).unwrap();
    assert_eq!(receiving.join(), Ok(2));
}

#[test]
fn a_message_is_handed_over_without_capacity() {
    let (sender, receiver) = bounded(0);
    let sending = Parker::spawn_parked(move || send(&sender, "item", far()));
    assert_eq!(recv(&receiver, far()), Ok("item"));
    assert_eq!(sending.join(), Ok(()));
}

#[test]
fn a_full_channel_takes_a_message_when_there_is_a_place() {
    let (sender, receiver) = bounded(1);
    assert_eq!(send(&sender, 1, PAST), Ok(()));
    assert_eq!(send(&sender, 2, PAST), Err(SendError::TimedOut(2)));
    let sending = Parker::spawn_parked(move || send(&sender, 3, far()));
    assert_eq!(receiver.recv(), Ok(1));
    assert_eq!(sending.join(), Ok(()));
    assert_eq!(receiver.recv(), Ok(3));
}

#[test]
fn a_disconnected_channel_says_so_before_and_during_a_wait() {
    let (sender, receiver) = unbounded::<u32>();
    let receiving = Parker::spawn_parked(move || recv(&receiver, far()));
    drop(sender);
    assert_eq!(receiving.join(), Err(RecvError::Disconnected));
    let (sender, receiver) = bounded(0);
    let sending = Parker::spawn_parked(move || {
        let during = send(&sender, 1, far());
        (during, send(&sender, 2, far()))
    });
    drop(receiver);
    let disconnected = |message| Err(SendError::Disconnected(message));
    assert_eq!(sending.join(), (disconnected(1), disconnected(2)));
}

#[test]
fn a_cancelled_thread_neither_receives_nor_sends() {
    let (sender, receiver) = unbounded();
    sender.send(1).unwrap();
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        let received = recv(&receiver, Time::NEVER);
        assert!(matches!(received, Err(RecvError::Stop(Stop::Cancelled(_)))));
        let sent = send(&sender, 2, Time::NEVER);
        assert!(matches!(&sent, Err(SendError::Stop(Stop::Cancelled(_), 2))));
        assert_eq!(sent.unwrap_err().into_message(), 2);
        received
    });
    assert_eq!(left, Ok(None));
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_cancellation_ends_a_wait_and_the_message_comes_back() {
    let (sender, receiver) = bounded(1);
    sender.send(0).unwrap();
    let source = CancelSource::new();
    let token = source.token();
    let waiting = Parker::spawn_parked(move || {
        let task = desist::task::Task::new("sends", Some(&token));
        let boundary = desist::boundary::Boundary::enter(&task, None);
        let sent = send(&sender, 1, far());
        boundary.leave(desist::boundary::BodyEnd::Unwound);
        sent
    });
    source.cancel_because("enough");
    let refused = waiting.join().unwrap_err();
    let SendError::Stop(Stop::Cancelled(cause), 1) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(cause.reason.as_deref(), Some("enough"));
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn a_scopes_deadline_ends_a_wait() {
    let (_sender, receiver) = unbounded::<u32>();
    let received = move_on_after(Duration::from_millis(1), |_| recv(&receiver, Time::NEVER));
    assert_eq!(received, Ok(None));
}

#[test]
fn a_shield_keeps_a_wait_from_a_cancellation() {
    let (sender, receiver) = unbounded();
    let waiting = Parker::spawn_parked(move || {
        move_on_after(HOUR, |scope| {
            scope.cancel();
            let received = shield(HOUR, || recv(&receiver, far()));
            assert_eq!(received, Ok(Some(7)));
            checkpoint()
        })
    });
    sender.send(7).unwrap();
    assert_eq!(waiting.join(), Ok(None));
}

#[test]
fn a_kill_ends_a_wait_at_once() {
    let (_sender, receiver) = unbounded::<u32>();
    let (task, waiting) = parked_task(move || {
        loop {
            match recv(&receiver, Time::NEVER) {
                // The cancellation with which a kill begins may arrive first.
                Err(RecvError::Stop(Stop::Cancelled(_))) => {}
                received => return received,
            }
        }
    });
    let policy = StopPolicy {
        cooperative: Duration::ZERO,
        at_wait: Some(HOUR),
        ..StopPolicy::default()
    };
    let report = kill(&task, Some("too slow".into()), &policy, &mut || ()).unwrap();
    assert_eq!(report.outcome, Some(KillOutcome::Cooperative)); // the body returns by itself
    let received = waiting.join();
    assert!(
        matches!(received, Err(RecvError::Stop(Stop::Killed(_)))),
        "{received:?}"
    );
}

#[test]
fn a_kill_ends_a_wait_under_a_shield() {
    let (_sender, receiver) = unbounded::<u32>();
    let (task, waiting) = parked_task(move || shield(HOUR, || recv(&receiver, Time::NEVER)));
    kill_in_its_wait(&task, None);
    let received = waiting.join();
    assert!(
        matches!(received, Err(RecvError::Stop(Stop::Killed(_)))),
        "{received:?}"
    );
}

#[test]
fn i13_a_message_is_received_or_still_there_when_its_receiver_is_cancelled() {
    for _ in 0..300 {
        let (sender, receiver) = unbounded();
        let source = CancelSource::new();
        let token = source.token();
        let start = Barrier::new(3);
        let received = thread::scope(|threads| {
            let receiving = threads.spawn(|| {
                let task = desist::task::Task::new("receives", Some(&token));
                let boundary = desist::boundary::Boundary::enter(&task, None);
                start.wait();
                let received = recv(&receiver, far());
                boundary.leave(desist::boundary::BodyEnd::Unwound);
                received
            });
            threads.spawn(|| {
                start.wait();
                sender.send(1).unwrap();
            });
            start.wait();
            source.cancel();
            receiving.join().unwrap()
        });
        match received {
            Ok(1) => assert!(receiver.is_empty()),
            Err(RecvError::Stop(Stop::Cancelled(cause))) => {
                assert_eq!(cause.kind, CauseKind::Explicit);
                assert_eq!(receiver.try_recv(), Ok(1));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn in_simulated_time_a_wait_ends_at_its_virtual_deadline_or_with_a_message() {
    testing::run(None, || {
        let (sender, receiver) = unbounded();
        let began = Time::now();
        let received = move_on_after(HOUR, |_| recv(&receiver, Time::NEVER));
        assert_eq!(received, Ok(None));
        assert_eq!(Time::now(), began + HOUR);
        let sending = testing::spawn("sends", move || {
            desist::sleep(HOUR).unwrap();
            sender.send(1).unwrap();
        });
        assert_eq!(recv(&receiver, Time::NEVER), Ok(1));
        sending.join().unwrap();
    })
    .unwrap();
}
