//! Leases: work that is leased again when its worker was stopped.
//!
//! A queue gives an item to a worker on lease. The worker acknowledges the lease when the work is
//! done; if it does not, because it failed, was killed, or its process died, the item is leased
//! again. The queues keep their items in memory ([`LeaseQueue`]) or in a file (`FileQueue`),
//! and follow the same rules.
//!
//! # States of an item
//!
//! An item is in exactly one state (I28). The transitions:
//!
//! | from | to | by |
//! |---|---|---|
//! | | ready | `put` |
//! | | delayed | `put` with a delay |
//! | ready | leased | `lease`: in a new epoch, and as one more attempt |
//! | leased | leased | `extend`: the lease ends later |
//! | leased | done | `ack` |
//! | leased | ready, before the others | [`Nack::AtOnce`]; a lease that times out, or is released; a worker's process that dies |
//! | leased | delayed | [`Nack::Failed`], [`Nack::After`] and [`Nack::Snooze`] |
//! | leased | dead | [`Nack::Discard`]; an end without success of the last attempt, of a cancelled item, or of an expired one |
//! | delayed | ready, after the others | time |
//! | ready, delayed | dead | `cancel`, `dead_letter_all`, and time: the item expires |
//! | dead | ready, after the others | `retry`: with all attempts, and without a time to live |
//!
//! A done item leaves the queue and is only counted. `cancel` of a leased item marks it, and asks
//! no worker to stop; if the work is acknowledged all the same, it is done.
//!
//! # Guarantees
//!
//! - A lease is settled at most once, by the epoch that it was given. Epochs only grow, so a late
//!   call of a worker whose lease is over finds another epoch, is [`Fenced`] and changes nothing
//!   (I29, I34).
//! - A leased item has a holder (I48): the owner of its [`Lease`]. A holder that goes without having settled
//!   the lease releases it, which needs no answer of the store: the queue keeps the release, and makes it
//!   with its next change that succeeds. So does a holder whose settlement has failed. A holder that dies
//!   with its process is missed by other processes.
//! - Each lease counts as an attempt, unless it ends by [`Nack::Snooze`]. After
//!   [`RetryPolicy::max_attempts`] the item is dead, with the notes of all failures (I30).
//! - Transitions that are due by time are made by the next operation on the queue, in the order of their
//!   times, and before the operation's own change. So they are never observed late.
//!
//! # Which data each party may change
//!
//! | where | what | under |
//! |---|---|---|
//! | memory | all items and wait lists | the mutex of the queue, `memory.rs` |
//! | file | all items and leases | an exclusive transaction of the database, made by one thread of the process at a time, `file/commit.rs` |
//! | file | wait lists of this process | their own mutex, `file/waits.rs` |

#[cfg(all(feature = "file", unix, not(loom)))]
mod file;
#[cfg(any(feature = "python", all(test, loom)))]
pub(crate) mod gate;
mod memory;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

#[cfg(all(feature = "file", unix, not(loom)))]
pub use file::{Bytes, Failure, FileError, FileHolder, FileOptions, FileQueue};
pub use memory::LeaseQueue;
#[cfg(feature = "python")]
pub(crate) use memory::Stored;

use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
pub use crate::item::ItemId;

/// One delivery of an item to a worker. `N` is a note: the stored form of a failure, or of progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease<T, N> {
    /// The item's id.
    pub id: u64,
    /// The number of the lease; a later lease of any item has a greater one.
    pub epoch: u64,
    /// How often the item has been leased, this time included, and snoozed leases left out.
    pub attempt: u32,
    /// The item.
    pub item: T,
    /// The fields that most leases leave empty, boxed so that a lease stays small.
    pub details: Option<Box<Details<N>>>,
}

/// The fields of a lease that most leases leave empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details<N> {
    /// The progress that an earlier attempt reported last.
    pub progress: Option<N>,
    /// When the item expires.
    pub deadline: Option<Time>,
    /// When the lease times out unless it is extended; then the item is leased to another worker.
    pub until: Option<Time>,
    /// The item's key.
    pub key: Option<Arc<str>>,
    /// How long the worker may work on the item, from the lease on. For the worker to keep: the queue
    /// does not end the lease.
    pub time_limit: Option<Duration>,
}

impl<N> Details<N> {
    /// The value of [`Lease::details`]: `None` if there are none.
    #[inline]
    pub fn if_any(self) -> Option<Box<Self>> {
        let times = self.deadline.is_some() || self.until.is_some() || self.time_limit.is_some();
        let any = self.progress.is_some() || times || self.key.is_some();
        any.then(|| Box::new(self))
    }
}

impl<T, N> Lease<T, N> {
    /// [`Details::progress`].
    pub fn progress(&self) -> Option<&N> {
        self.details.as_ref()?.progress.as_ref()
    }

    /// [`Details::deadline`].
    pub fn deadline(&self) -> Option<Time> {
        self.details.as_ref()?.deadline
    }

    /// [`Details::until`].
    pub fn until(&self) -> Option<Time> {
        self.details.as_ref()?.until
    }

    /// [`Details::time_limit`].
    pub fn time_limit(&self) -> Option<Duration> {
        self.details.as_ref()?.time_limit
    }

    /// When the worker must stop: the earlier of the lease's end and the item's deadline.
    #[inline]
    pub fn ends(&self) -> Time {
        let ends = [self.deadline(), self.until()].into_iter().flatten().min();
        ends.unwrap_or(Time::NEVER)
    }
}

/// The options of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QueueOptions {
    /// How often, and after which pauses, failed items are leased again.
    pub retry: RetryPolicy,
    /// The queue is full, and `put` waits, while this many items are ready, leased or delayed. Zero
    /// means any number.
    pub maxsize: usize,
    /// A lease that is not extended for this long times out. `None`: it lasts until it is settled.
    pub lease_timeout: Option<Duration>,
}

/// A lease timeout of at least this much is none: it spares the queue the bookkeeping.
const CENTURIES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl QueueOptions {
    /// The options as a queue keeps them.
    fn kept(mut self) -> Self {
        self.lease_timeout = self.lease_timeout.filter(|timeout| *timeout < CENTURIES);
        self
    }
}

impl From<RetryPolicy> for QueueOptions {
    fn from(retry: RetryPolicy) -> Self {
        Self {
            retry,
            ..Self::default()
        }
    }
}

/// How often, and how soon, a failed item is leased again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// The item is dead when this many leases have ended without success.
    pub max_attempts: u32,
    /// The pause after the first failure; it doubles with each.
    pub backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// The pause is randomised by up to this part of it, up and down, so that items which failed
    /// together do not come back together.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(60),
            jitter: 0.2,
        }
    }
}

/// How many items are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Items that wait to be leased.
    pub ready: usize,
    /// Items with a worker.
    pub leased: usize,
    /// Items that wait for the time of their next attempt.
    pub delayed: usize,
    /// Items that were acknowledged, since the queue was made.
    pub done: u64,
    /// Items that are not leased any more, and kept.
    pub dead: usize,
}

/// The lease is over; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

/// The state of the item after a nack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NackOutcome {
    /// It is ready or delayed, and will be leased again.
    Requeued,
    /// It is dead: this was the last attempt, or the item was discarded or cancelled, or has expired.
    Dead,
}

/// How a lease ends without success, and so when the item is leased again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nack {
    /// The work failed: after the pause of the [`RetryPolicy`].
    Failed,
    /// After this pause.
    After(Duration),
    /// The worker was stopped, through no fault of the work: at once, before other items.
    AtOnce,
    /// Not now: after this pause. The attempt does not count, and no failure is stored.
    Snooze(Duration),
    /// Never: the item is dead, whatever attempts it has left.
    Discard,
}

/// The options of one item, given when it is put.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// While an item with this key is not done (it may be dead), it stands for this one, which is
    /// not added.
    pub key: Option<Arc<str>>,
    /// The ready item with the least priority is leased first.
    pub priority: i64,
    /// The item is not leased before this much time has passed.
    pub delay: Duration,
    /// Its time to live: after this much time the item is dead, unless a worker has it; then the
    /// worker is to stop, and the item is dead when the lease ends without success.
    pub expires: Option<Duration>,
    /// How long a worker may work on the item at each attempt; each lease carries it. It is kept over a
    /// retry.
    pub time_limit: Option<Duration>,
}

/// The state of an item that is not done, in the order in which items are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemState {
    /// It is with a worker.
    Leased,
    /// It waits to be leased.
    Ready,
    /// It waits for the time of its next attempt.
    Delayed,
    /// It is not leased any more, and kept.
    Dead,
}

/// An item that is not done, without the item itself. `H` is what the queue knows of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemInfo<H> {
    /// The item's id.
    pub id: u64,
    /// Its state.
    pub state: ItemState,
    /// How often it has been leased, since it was put or last retried.
    pub attempt: u32,
    /// How long ago it was put.
    pub age: Duration,
    /// The worker that has it; `None` if none has, or the queue does not know which.
    pub holder: Option<H>,
    /// Its key.
    pub key: Option<Arc<str>>,
}

/// A dead item: its id, itself, and the notes of its failures, in order.
pub type Dead<T, N> = (u64, T, Vec<N>);

impl RetryPolicy {
    /// The pause after this attempt: exponential, and randomised by `random`, between 0 and 1.
    pub(crate) fn pause(&self, attempt: u32, random: f64) -> Duration {
        let doubled = self
            .backoff
            .saturating_mul(1 << attempt.saturating_sub(1).min(30))
            .min(self.max_backoff);
        let seconds = doubled.as_secs_f64() * (1.0 + self.jitter * (2.0 * random - 1.0)).max(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

const EXPIRED: &str = "the item expired";
const LEASE_LOST: &str = "its lease was not extended in time";
const LEASE_RELEASED: &str = "its worker ended, or failed, without settling the lease";

/// The note of an item that has expired.
fn expired(deadline: Time) -> Cause {
    Cause {
        reason: Some(EXPIRED.into()),
        ..Cause::deadline(deadline)
    }
}

/// The note of an item whose lease has timed out.
fn lease_lost(until: Time) -> Cause {
    Cause {
        reason: Some(LEASE_LOST.into()),
        ..Cause::deadline(until)
    }
}

/// The note of an item whose lease was released. Made without the host, as a release may be made by
/// its collector.
fn lease_released() -> Cause {
    Cause {
        reason: Some(LEASE_RELEASED.into()),
        kind: CauseKind::Explicit,
        ..Cause::deadline(Time::now())
    }
}

/// Pseudo-random numbers between 0 and 1: the same for the same number, so that an operation which
/// is repeated makes the same pause. The seed differs for each queue.
#[derive(Debug, Default)]
struct Jitter(RandomState);

impl Jitter {
    #[allow(clippy::cast_precision_loss)] // a random part of one
    fn sample(&self, number: u64) -> f64 {
        (self.0.hash_one(number) >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl fmt::Display for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this lease is over: the item was acknowledged or requeued, or the lease was not \
             extended in time, or its worker was abandoned; nothing was changed",
        )
    }
}

impl std::error::Error for Fenced {}
