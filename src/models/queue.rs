//! The queue: put, got, cancelled, shut down.

use std::sync::Arc;

use super::{ONCE, THRICE, TWICE, canceller, end, explore, spawn, spawn_as};
use crate::clock::Time;
use crate::error::Stop;
use crate::sync::{Order, Queue, QueueError};
use crate::task::Task;

type Items = Arc<Queue<u32>>;

fn queue(capacity: usize) -> Items {
    Arc::new(Queue::new(Order::Fifo, capacity))
}

fn putter(queue: &Items, item: u32) -> loom::thread::JoinHandle<Result<Option<u32>, QueueError>> {
    let queue = queue.clone();
    spawn(move || queue.put(item, Time::NEVER))
}

/// Like [`putter`], but it can be cancelled.
fn putter_as(
    queue: &Items,
    item: u32,
    task: &Arc<Task>,
) -> loom::thread::JoinHandle<Result<Option<u32>, QueueError>> {
    let queue = queue.clone();
    spawn_as(task, move || queue.put(item, Time::NEVER))
}

fn getter(queue: &Items) -> loom::thread::JoinHandle<Result<Option<u32>, QueueError>> {
    let queue = queue.clone();
    spawn(move || queue.get(Time::NEVER))
}

/// Like [`getter`], but it can be cancelled.
fn getter_as(
    queue: &Items,
    task: &Arc<Task>,
) -> loom::thread::JoinHandle<Result<Option<u32>, QueueError>> {
    let queue = queue.clone();
    spawn_as(task, move || queue.get(Time::NEVER))
}

/// The item that was got, unless the get was cancelled.
fn got(result: Result<Option<u32>, QueueError>) -> Option<u32> {
    match result {
        Ok(Some(item)) => Some(item),
        Err(QueueError::Stop(Stop::Cancelled(_))) => None,
        other => panic!("{other:?}"),
    }
}

/// Get all remaining items; there are no more waiters.
fn rest(queue: &Items) -> Vec<u32> {
    assert_eq!(queue.waiting(), 0);
    std::iter::from_fn(|| queue.try_get().unwrap()).collect()
}

#[test]
fn loom_i11_i13_an_item_is_got_or_still_queued_when_its_get_is_cancelled() {
    explore(TWICE, || {
        let queue = queue(0);
        let task = Task::new("gets", None);
        let getter = getter_as(&queue, &task);
        let canceller = canceller(&task);
        let putter = putter(&queue, 7);
        end(canceller);
        assert_eq!(end(putter), Ok(None));
        match got(end(getter)) {
            Some(item) => assert_eq!((item, rest(&queue)), (7, vec![])),
            None => assert_eq!(rest(&queue), [7]),
        }
        assert_eq!(queue.unfinished(), 1);
    });
}

#[test]
fn loom_i11_cancelled_waits_on_a_queue_leave_nothing() {
    explore(TWICE, || {
        let queue = queue(0);
        let task = Task::new("gets", None);
        let getter = getter_as(&queue, &task);
        // Nothing is put, so no other thread takes the dead waiters out of the queue.
        end(canceller(&task));
        assert_eq!(got(end(getter)), None);
        assert_eq!(queue.waiting(), 0);
    });
    explore(TWICE, || {
        let queue = queue(1);
        assert_eq!(queue.try_put(1), Ok(None));
        let task = Task::new("puts", None);
        let putter = putter_as(&queue, 2, &task);
        end(canceller(&task));
        assert!(end(putter).is_err());
        assert_eq!(rest(&queue), [1]);
    });
}

#[test]
fn loom_i12_i13_a_cancelled_get_is_skipped_and_the_next_gets_the_item() {
    explore(ONCE, || {
        let queue = queue(0);
        let task = Task::new("gets", None);
        let cancelled = {
            let queue = queue.clone();
            spawn_as(&task, move || {
                let item = got(queue.get(Time::NEVER));
                if let Some(item) = item {
                    assert_eq!(queue.try_put(item), Ok(None)); // for the next
                }
            })
        };
        let next = getter(&queue);
        let canceller = canceller(&task);
        let putter = putter(&queue, 7);
        end(canceller);
        assert_eq!(end(putter), Ok(None));
        assert_eq!(end(next), Ok(Some(7))); // or loom reports a deadlock
        end(cancelled);
        assert!(rest(&queue).is_empty());
    });
}

#[test]
fn loom_i12_i13_two_puts_and_two_gets_pass_through_a_queue_of_one() {
    explore(TWICE, || {
        let queue = queue(1);
        let putters = [putter(&queue, 1), putter(&queue, 2)];
        let getters = [getter(&queue), getter(&queue)];
        assert_eq!(putters.map(end), [Ok(None), Ok(None)]);
        let mut all = getters.map(|getter| got(end(getter)).unwrap());
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
        assert!(rest(&queue).is_empty());
        assert_eq!(queue.unfinished(), 2);
    });
}

#[test]
fn loom_i12_i13_three_items_pass_through_a_queue_of_one_in_their_order() {
    explore(THRICE, || {
        let queue = queue(1);
        let producer = {
            let queue = queue.clone();
            spawn(move || [1, 2, 3].map(|item| queue.put(item, Time::NEVER)))
        };
        let consumer = {
            let queue = queue.clone();
            spawn(move || [(); 3].map(|()| got(queue.get(Time::NEVER)).unwrap()))
        };
        assert_eq!(end(producer), [const { Ok(None) }; 3]);
        assert_eq!(end(consumer), [1, 2, 3]);
        assert!(rest(&queue).is_empty());
    });
}

#[test]
fn loom_i11_i13_an_item_is_put_or_not_when_its_put_is_cancelled() {
    explore(TWICE, || {
        let queue = queue(1);
        assert_eq!(queue.try_put(1), Ok(None));
        let task = Task::new("puts", None);
        let putter = putter_as(&queue, 2, &task);
        let canceller = canceller(&task);
        let getter = getter(&queue);
        end(canceller);
        assert_eq!(end(getter), Ok(Some(1)));
        let put = match end(putter) {
            Ok(None) => vec![2],
            Err(QueueError::Stop(Stop::Cancelled(_))) => vec![],
            other => panic!("{other:?}"),
        };
        assert_eq!(queue.unfinished(), 1 + put.len());
        assert_eq!(rest(&queue), put);
    });
}

#[test]
fn loom_i12_i13_a_cancelled_put_is_skipped_and_the_next_has_room() {
    explore(ONCE, || {
        let queue = queue(1);
        assert_eq!(queue.try_put(1), Ok(None));
        let task = Task::new("puts", None);
        let cancelled = putter_as(&queue, 2, &task);
        let next = putter(&queue, 3);
        let canceller = canceller(&task);
        let consumer = {
            let queue = queue.clone();
            spawn(move || {
                let all = [(); 2].map(|()| got(queue.get(Time::NEVER)).unwrap());
                (all, queue.try_get().unwrap())
            })
        };
        end(canceller);
        let (all, more) = end(consumer);
        let put = end(cancelled).is_ok();
        assert_eq!(end(next), Ok(None)); // or loom reports a deadlock
        let mut all: Vec<u32> = all.into_iter().chain(more).chain(rest(&queue)).collect();
        all.sort_unstable();
        assert_eq!(all, if put { vec![1, 2, 3] } else { vec![1, 3] });
    });
}

// ---------------------------------------------------------------------- the end

#[test]
fn loom_i12_i13_a_shutdown_wakes_gets_and_puts_with_an_error() {
    explore(TWICE, || {
        let queue = queue(0);
        let getters = [getter(&queue), getter(&queue)];
        let putter = {
            let queue = queue.clone();
            spawn(move || {
                let put = queue.put(7, Time::NEVER);
                queue.shut_down(false);
                put
            })
        };
        let other = {
            let queue = queue.clone();
            spawn(move || drop(queue.shut_down(false)))
        };
        end(other);
        let put = end(putter).is_ok();
        let mut all = Vec::new();
        for getter in getters {
            match end(getter) {
                Ok(item) => all.extend(item),
                Err(failure) => assert_eq!(failure, QueueError::ShutDown),
            }
        }
        assert_eq!(all, if put { vec![7] } else { vec![] });
        assert!(queue.is_empty() && queue.waiting() == 0);
    });
}

#[test]
fn loom_i12_i13_an_immediate_shutdown_wakes_puts_and_joins() {
    explore(TWICE, || {
        let queue = queue(1);
        assert_eq!(queue.try_put(1), Ok(None));
        let putter = putter(&queue, 2);
        let joiner = {
            let queue = queue.clone();
            spawn(move || queue.join(Time::NEVER))
        };
        let closer = {
            let queue = queue.clone();
            spawn(move || queue.shut_down(true))
        };
        assert_eq!(end(closer), [1]);
        assert_eq!(end(putter), Err(QueueError::ShutDown));
        assert_eq!(end(joiner), Ok(true));
        assert_eq!((queue.unfinished(), queue.waiting()), (0, 0));
    });
}

#[test]
fn loom_i12_a_join_wakes_when_the_last_item_is_done() {
    explore(TWICE, || {
        let queue = queue(0);
        assert_eq!(queue.try_put(1), Ok(None));
        assert_eq!(queue.try_put(2), Ok(None));
        let workers = [(); 2].map(|()| {
            let queue = queue.clone();
            spawn(move || {
                got(queue.get(Time::NEVER)).unwrap();
                queue.task_done().unwrap();
            })
        });
        let joiner = {
            let queue = queue.clone();
            spawn(move || queue.join(Time::NEVER))
        };
        workers.into_iter().for_each(end);
        assert_eq!(end(joiner), Ok(true));
        assert!(rest(&queue).is_empty());
    });
}
