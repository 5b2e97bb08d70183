//! Simulated time, and descriptors, from Rust.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use desist::sync::{Event, Order, Queue};
use desist::{Stop, Time, sleep, testing};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn i16_a_wait_takes_no_real_time_and_ends_exactly_at_its_deadline() {
    let took = testing::run(None, || {
        let began = Time::now();
        sleep(HOUR)?;
        Ok::<_, Stop>(Time::now() - began)
    });
    assert_eq!(took, Ok(Ok(HOUR)));
}

#[test]
fn i39_a_run_is_reproducible_and_another_seed_is_another_run() {
    fn race() -> String {
        let order = Arc::new(Mutex::new(String::new()));
        let threads = ['a', 'b', 'c', 'd'].map(|letter| {
            let order = order.clone();
            testing::spawn("racer", move || {
                sleep(HOUR).expect("not cancelled");
                order.lock().expect("not poisoned").push(letter);
            })
        });
        sleep(2 * HOUR).expect("not cancelled");
        for thread in threads {
            thread.join().expect("no panic");
        }
        order.lock().expect("not poisoned").clone()
    }
    assert_eq!(testing::run(None, race).as_deref(), Ok("abcd"));
    let runs: Vec<_> = (0..20).map(|seed| testing::run(Some(seed), race)).collect();
    let again: Vec<_> = (0..20).map(|seed| testing::run(Some(seed), race)).collect();
    assert_eq!(runs, again);
    assert!(runs.iter().any(|run| *run != runs[0]));
}

#[test]
fn deadlocked_threads_are_cancelled_and_named() {
    let waited = Arc::new(Mutex::new(None));
    let result = testing::run(None, {
        let waited = waited.clone();
        move || {
            testing::spawn("waiter", move || {
                let outcome = Event::new().wait_until(Time::NEVER);
                *waited.lock().expect("not poisoned") = Some(outcome);
            })
        }
    });
    let stuck = result.expect_err("the event is never set");
    assert_eq!(stuck.waiting, ["waiter".into()]);
    // The thread has ended before the run did.
    let waited = waited.lock().expect("not poisoned").take();
    assert!(
        matches!(waited, Some(Err(Stop::Cancelled(_)))),
        "{waited:?}"
    );
}

#[test]
fn items_are_handed_over_at_the_instant_at_which_they_are_put() {
    let seen = testing::run(None, || {
        let queue = Arc::new(Queue::new(Order::Fifo, 0));
        let began = Time::now();
        testing::spawn("producer", {
            let queue = queue.clone();
            move || {
                for item in 1..=3 {
                    sleep(HOUR).expect("not cancelled");
                    queue.put(item, Time::NEVER).expect("not cancelled");
                }
            }
        });
        [(); 3].map(|()| {
            let item = queue.get(Time::NEVER).expect("not cancelled");
            (item, Time::now() - began)
        })
    });
    let hours = |count| HOUR * count;
    let expected = [
        (Some(1), hours(1)),
        (Some(2), hours(2)),
        (Some(3), hours(3)),
    ];
    assert_eq!(seen, Ok(expected));
}

#[cfg(unix)]
mod descriptors {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::thread;

    use desist::CancelSource;
    use desist::boundary::{BodyEnd, Boundary};
    use desist::io::{Readiness, ReadyError, closing, wait_ready};
    use desist::task::Task;

    use super::*;

    fn far() -> Time {
        Time::after(HOUR)
    }

    #[test]
    fn a_descriptor_is_waited_for() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        let fd = ours.as_raw_fd();
        assert!(wait_ready(fd, Readiness::Writable, far()).expect("open"));
        assert!(!wait_ready(fd, Readiness::Readable, Time::now()).expect("open"));
        let writer = thread::spawn(move || theirs.write_all(b"x").expect("open"));
        assert!(wait_ready(fd, Readiness::Readable, far()).expect("open"));
        writer.join().expect("no panic");
        assert_eq!(ours.read(&mut [0; 8]).expect("ready"), 1);
    }

    #[test]
    fn the_wait_for_a_descriptor_is_cancelled() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let source = CancelSource::new();
        let task = Task::new("waiter", Some(&source.token()));
        let (begin, begun) = channel();
        let waiter = thread::spawn(move || {
            let boundary = Boundary::enter(&task, None);
            begin.send(()).expect("the test waits");
            let waited = wait_ready(ours.as_raw_fd(), Readiness::Readable, far());
            boundary.leave(BodyEnd::Unwound);
            waited
        });
        begun.recv().expect("the waiter runs");
        source.cancel();
        let waited = waiter.join().expect("no panic");
        assert!(matches!(waited, Err(ReadyError::Stop(Stop::Cancelled(_)))));
    }

    #[test]
    fn a_bad_descriptor_and_one_that_is_about_to_be_closed_are_errors() {
        assert!(matches!(
            wait_ready(99_999, Readiness::Readable, far()),
            Err(ReadyError::Io(_))
        ));
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let fd = ours.as_raw_fd();
        let waiter = thread::spawn(move || wait_ready(fd, Readiness::Readable, far()));
        while !waiter.is_finished() {
            closing(fd); // the thread may not wait yet
            thread::yield_now();
        }
        assert!(matches!(waiter.join(), Ok(Err(ReadyError::Io(_)))));
    }
}
