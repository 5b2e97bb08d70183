use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use desist::sync::{NothingUnfinished, Order, Queue, QueueError};
use desist::task::Task;
use desist::{Stop, Time, move_on_after};

use crate::support::{PAST, Parker, far, parked_task};

type Items = Arc<Queue<u64>>;
type Result<T> = std::result::Result<T, QueueError>;

const HOUR: Duration = Duration::from_secs(3600);

fn fifo(capacity: usize) -> Items {
    Arc::new(Queue::new(Order::Fifo, capacity))
}

fn full() -> Items {
    let queue = fifo(1);
    assert_eq!(queue.try_put(1), Ok(None));
    queue
}

/// A thread that waits for an item, and may be cancelled.
fn getting(queue: &Items) -> (Arc<Task>, Parker<Result<Option<u64>>>) {
    let queue = queue.clone();
    parked_task(move || queue.get(Time::NEVER))
}

/// A thread that waits for a place, and may be cancelled.
fn putting(queue: &Items, item: u64) -> (Arc<Task>, Parker<Result<Option<u64>>>) {
    let queue = queue.clone();
    parked_task(move || queue.put(item, Time::NEVER))
}

fn is_cancelled(result: &Result<Option<u64>>) -> bool {
    matches!(result, Err(QueueError::Stop(Stop::Cancelled(_))))
}

#[test]
fn items_are_got_in_the_order_of_the_kind_of_queue() {
    for (order, expected) in [(Order::Fifo, [1, 2, 3]), (Order::Lifo, [3, 2, 1])] {
        let queue = Queue::new(order, 0);
        for item in [1, 2, 3] {
            assert_eq!(queue.put(item, far()), Ok(None));
        }
        assert_eq!((queue.len(), queue.is_empty()), (3, false));
        assert_eq!(
            expected.map(|_| queue.get(far()).unwrap().unwrap()),
            expected
        );
        assert!(queue.is_empty());
        assert_eq!(queue.try_get(), Ok(None));
    }
}

#[test]
fn a_full_queue_gives_the_item_back_and_one_without_a_bound_is_never_full() {
    let queue = full();
    assert!(queue.is_full());
    assert_eq!(queue.try_put(2), Ok(Some(2)));
    assert_eq!(queue.put(2, PAST), Ok(Some(2)));
    let soon = Time::after(Duration::from_millis(1));
    assert_eq!(queue.put(2, soon), Ok(Some(2)));
    assert_eq!((queue.len(), queue.unfinished()), (1, 1));
    assert_eq!(queue.get(far()), Ok(Some(1)));
    assert!(!queue.is_full());
    let endless = fifo(0);
    for item in 0..1000 {
        assert_eq!(endless.try_put(item), Ok(None));
        assert!(!endless.is_full());
    }
}

#[test]
fn i11_a_get_from_an_empty_queue_times_out_and_takes_nothing_later() {
    let queue = fifo(0);
    let soon = Time::after(Duration::from_millis(1));
    assert_eq!((queue.get(PAST), queue.get(soon)), (Ok(None), Ok(None)));
    assert_eq!(queue.try_put(1), Ok(None));
    assert_eq!((queue.len(), queue.get(PAST)), (1, Ok(Some(1))));
}

#[test]
fn waiting_gets_are_handed_items_the_longest_waiting_first() {
    let queue = fifo(0);
    let getters = [getting(&queue).1, getting(&queue).1, getting(&queue).1];
    for item in [1, 2, 3] {
        assert_eq!(queue.try_put(item), Ok(None));
        assert_eq!(queue.try_get(), Ok(None), "it was handed over");
    }
    assert_eq!(
        getters.map(Parker::join),
        [1, 2, 3].map(|item| Ok(Some(item)))
    );
}

#[test]
fn a_waiting_put_has_room_as_soon_as_an_item_is_got() {
    let queue = full();
    let putters = [putting(&queue, 2).1, putting(&queue, 3).1];
    assert_eq!(queue.unfinished(), 1, "they are not put yet");
    assert_eq!(queue.get(far()), Ok(Some(1)));
    assert_eq!((queue.len(), queue.unfinished()), (1, 2));
    assert_eq!(
        queue.try_put(9),
        Ok(Some(9)),
        "it does not overtake the waiting puts"
    );
    assert_eq!(queue.try_get(), Ok(Some(2)));
    assert_eq!(queue.try_get(), Ok(Some(3)));
    assert_eq!(putters.map(Parker::join), [Ok(None), Ok(None)]);
}

#[test]
fn i11_i13_a_cancelled_get_takes_no_item() {
    let queue = fifo(0);
    let (task, cancelled) = getting(&queue);
    let (_, next) = getting(&queue);
    task.source().cancel();
    assert_eq!(queue.try_put(1), Ok(None));
    assert!(is_cancelled(&cancelled.join()));
    assert_eq!(next.join(), Ok(Some(1)));
}

#[test]
fn i11_i13_an_item_put_for_a_get_that_was_just_cancelled_stays() {
    for _ in 0..50 {
        let queue = fifo(0);
        let (task, getter) = getting(&queue);
        // Its wait has been settled, but the waiter is still in the queue.
        let (token, theirs) = (task.source().token(), queue.clone());
        let _put = token.on_cancel(move |_| assert_eq!(theirs.try_put(1), Ok(None)));
        task.source().cancel();
        assert!(is_cancelled(&getter.join()));
        assert_eq!(queue.try_get(), Ok(Some(1)));
    }
}

#[test]
fn i11_i13_the_item_of_a_cancelled_put_is_not_put() {
    for _ in 0..50 {
        let queue = full();
        let (task, putter) = putting(&queue, 2);
        // As above: there is room when the waiting put is dead and still in the queue.
        let (token, theirs) = (task.source().token(), queue.clone());
        let _get = token.on_cancel(move |_| assert_eq!(theirs.try_get(), Ok(Some(1))));
        task.source().cancel();
        assert!(is_cancelled(&putter.join()));
        assert_eq!((queue.len(), queue.unfinished()), (0, 1));
    }
}

#[test]
fn i15_in_a_cancelled_scope_nothing_is_put_or_got() {
    let queue = fifo(0);
    assert_eq!(queue.try_put(1), Ok(None));
    let left = move_on_after(HOUR, |scope| {
        scope.cancel();
        assert!(is_cancelled(&queue.put(2, far())));
        assert!(queue.join(far()).is_err());
        match queue.get(far()) {
            Err(QueueError::Stop(stop)) => Err(stop),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(left, Ok(None::<()>));
    assert_eq!(queue.len(), 1);
}

// ---------------------------------------------------------------------- done

#[test]
fn join_waits_until_all_put_items_are_counted_as_done() {
    let queue = fifo(0);
    assert_eq!(queue.join(Time::NEVER), Ok(true), "nothing was put");
    assert_eq!(queue.try_put(1), Ok(None));
    assert_eq!(queue.try_put(2), Ok(None));
    assert_eq!(queue.join(PAST), Ok(false));
    let theirs = queue.clone();
    let (_, joiner) = parked_task(move || theirs.join(Time::NEVER));
    let theirs = queue.clone();
    let (task, cancelled) = parked_task(move || theirs.join(Time::NEVER));
    task.source().cancel();
    assert!(matches!(cancelled.join(), Err(Stop::Cancelled(_))));
    assert_eq!(queue.try_get(), Ok(Some(1)));
    queue.task_done().unwrap();
    assert_eq!(queue.join(PAST), Ok(false));
    queue.task_done().unwrap(); // the item need not have been got
    assert_eq!(joiner.join(), Ok(true));
    assert_eq!(queue.unfinished(), 0);
}

#[test]
fn no_more_items_can_be_done_than_were_put() {
    let queue = fifo(0);
    assert_eq!(queue.task_done(), Err(NothingUnfinished));
    assert_eq!(queue.try_put(1), Ok(None));
    queue.task_done().unwrap();
    assert_eq!(queue.task_done(), Err(NothingUnfinished));
}

// ---------------------------------------------------------------------- the end

#[test]
fn i12_a_shutdown_wakes_all_and_queued_items_may_still_be_got() {
    let empty = fifo(0);
    let getters = [getting(&empty).1, getting(&empty).1];
    assert!(empty.shut_down(false).is_empty());
    for getter in getters {
        assert_eq!(getter.join(), Err(QueueError::ShutDown));
    }
    let queue = full();
    let putters = [putting(&queue, 2).1, putting(&queue, 3).1];
    assert!(queue.shut_down(false).is_empty());
    for putter in putters {
        assert_eq!(putter.join(), Err(QueueError::ShutDown));
    }
    assert!(queue.is_shut_down());
    assert_eq!(queue.try_put(4), Err(QueueError::ShutDown));
    assert_eq!(queue.put(4, far()), Err(QueueError::ShutDown));
    assert_eq!(queue.get(far()), Ok(Some(1)));
    assert_eq!(queue.get(far()), Err(QueueError::ShutDown));
    assert_eq!(queue.try_get(), Err(QueueError::ShutDown));
    assert_eq!(queue.unfinished(), 1, "got, and not done");
    queue.shut_down(false);
    assert!(queue.is_shut_down(), "once more changes nothing");
}

#[test]
fn i12_i13_an_immediate_shutdown_returns_the_queued_items_and_ends_a_join() {
    let queue = fifo(0);
    for item in [1, 2, 3] {
        assert_eq!(queue.try_put(item), Ok(None));
    }
    assert_eq!(queue.try_get(), Ok(Some(1)));
    queue.task_done().unwrap();
    let theirs = queue.clone();
    let (_, joiner) = parked_task(move || theirs.join(Time::NEVER));
    assert_eq!(queue.shut_down(true), [2, 3]);
    assert_eq!(joiner.join(), Ok(true));
    assert_eq!((queue.len(), queue.unfinished()), (0, 0));
    assert_eq!(queue.get(far()), Err(QueueError::ShutDown));
}

#[test]
fn i13_with_cancels_on_both_sides_the_items_put_are_the_items_got() {
    const EACH: u64 = 300;
    let queue = fifo(2);
    let hurry = |seed: u64, round: u64| {
        let nanos = (seed * 7919 + round * 104_729) % 60_000;
        Duration::from_nanos(nanos)
    };
    let stopped = |error| match error {
        QueueError::Stop(stop) => stop,
        QueueError::ShutDown => panic!("shut down"),
    };
    let put = |seed: u64| {
        let queue = queue.clone();
        thread::spawn(move || {
            let mut mine = BTreeSet::new();
            for round in 0..EACH {
                let item = seed * EACH + round;
                let put = || queue.put(item, Time::NEVER).map_err(stopped);
                if move_on_after(hurry(seed, round), |_| put()).unwrap() == Some(None) {
                    mine.insert(item);
                }
            }
            mine
        })
    };
    let get = |seed: u64| {
        let queue = queue.clone();
        thread::spawn(move || {
            let mut mine = BTreeSet::new();
            for round in 0..EACH {
                let get = || queue.get(Time::NEVER).map_err(stopped);
                if let Some(item) = move_on_after(hurry(seed, round), |_| get()).unwrap() {
                    assert!(mine.insert(item.unwrap()));
                }
            }
            mine
        })
    };
    let (putters, getters) = ([1, 2].map(put), [3, 4].map(get));
    let put: BTreeSet<u64> = putters
        .into_iter()
        .flat_map(|one| one.join().unwrap())
        .collect();
    let mut got: Vec<u64> = getters
        .into_iter()
        .flat_map(|one| one.join().unwrap())
        .collect();
    got.extend(std::iter::from_fn(|| queue.try_get().unwrap()));
    assert_eq!(got.len(), put.len(), "none twice");
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), put);
    assert_eq!(queue.unfinished(), put.len());
}
