//! A worker that stops gives its work back: the next one finds it, and nothing is lost.

use std::time::Duration;

use desist::work::{Back, Lease, LeaseQueue, RetryPolicy};
use desist::{Cause, Stop, Time, move_on_after, sleep};

type Queue = LeaseQueue<&'static str, Cause>;

/// Take one item and work on it for so long.
fn work(queue: &Queue, takes: Duration) -> Result<(), Stop> {
    let Some(lease) = queue.lease(Time::NEVER)? else {
        return Ok(());
    };
    let Lease {
        id,
        epoch,
        attempt,
        item,
        ..
    } = lease;
    match sleep(takes) {
        Ok(()) => {
            println!("{item}: done at attempt {attempt}");
            queue.ack(id, epoch).expect("nobody took the lease away");
            Ok(())
        }
        Err(stop) => {
            println!("{item}: given back ({stop})");
            queue
                .give_back(id, epoch, Back::AtOnce, None)
                .expect("nobody took the lease away");
            Err(stop)
        }
    }
}

pub(crate) fn main() {
    let queue = Queue::new(RetryPolicy::default());
    queue.put("letter").expect("nothing stops it");
    queue.put("parcel").expect("nothing stops it");

    let slow = move_on_after(Duration::from_millis(5), |_| {
        work(&queue, Duration::from_secs(3600))
    });
    assert_eq!(slow, Ok(None));

    for _ in 0..2 {
        work(&queue, Duration::ZERO).expect("in no scope nothing stops it");
    }
    assert_eq!(queue.counts().done, 2);
}
