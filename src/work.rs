//! Work that a stopped worker gives back.
//!
//! An item is in exactly one state: ready, leased, delayed, done or dead (I28). A lease is one
//! delivery of one item; it is settled at most once, by the number (epoch) it was given, which only
//! grows (I29, I34). Each lease counts as an attempt; after [`RetryPolicy::max_attempts`] the item
//! is dead, with all that went wrong (I30).
//!
//! The queues keep their items in memory or in a file, and do the same. Whatever time changes is
//! changed when anybody looks, in the order of the times: an item that is delayed becomes ready, as
//! the last of its priority; a lease that was not extended is lost, and its item the first; what
//! nobody wants any more is dead, unless a worker has it.

#[cfg(all(feature = "file", unix, not(loom)))]
mod file;
mod memory;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

#[cfg(all(feature = "file", unix, not(loom)))]
pub use file::{Bytes, Failure, FileError, FileQueue};
pub use memory::LeaseQueue;

use crate::cause::Cause;
use crate::clock::Time;
pub use crate::item::ItemId;

/// One delivery of one item. `N` is a note: what is kept of a failure, or of progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease<T, N> {
    /// The item's number.
    pub id: u64,
    /// The lease's own number; a later lease of any item has a greater one.
    pub epoch: u64,
    /// How often the item has been leased, this time included.
    pub attempt: u32,
    /// The item.
    pub item: T,
    /// What most leases do without, which are small for that.
    pub details: Option<Box<Details<N>>>,
}

/// What few leases have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details<N> {
    /// How far an earlier attempt has come, if it said so.
    pub progress: Option<N>,
    /// Nobody wants the work any more after that.
    pub deadline: Option<Time>,
    /// When the lease is lost unless it is extended; then the item is for others.
    pub until: Option<Time>,
}

impl<N> Details<N> {
    /// For [`Lease::details`].
    #[inline]
    pub fn if_any(self) -> Option<Box<Self>> {
        let any = self.progress.is_some() || self.deadline.is_some() || self.until.is_some();
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

    /// When whoever works on it is to stop.
    #[inline]
    pub fn ends(&self) -> Time {
        let ends = [self.deadline(), self.until()].into_iter().flatten().min();
        ends.unwrap_or(Time::NEVER)
    }
}

/// What a queue goes by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QueueOptions {
    /// How failed work is tried again.
    pub retry: RetryPolicy,
    /// So many items may be ready, leased or delayed before whoever puts one waits; zero means any
    /// number.
    pub maxsize: usize,
    /// A lease that is not extended for so long is lost. `None`: it lasts until it is settled.
    pub lease_timeout: Option<Duration>,
}

/// A lease that lasts for centuries lasts until it is settled.
const CENTURIES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl QueueOptions {
    /// As a queue keeps them.
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

/// How often, and how soon, failed work is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// After so many leases the item is dead.
    pub max_attempts: u32,
    /// The pause after the first failure; it doubles with each.
    pub backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// The pause is longer or shorter by up to this part of it.
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
    /// Waiting to be leased.
    pub ready: usize,
    /// With a worker.
    pub leased: usize,
    /// Waiting for their next attempt's time.
    pub delayed: usize,
    /// Acknowledged.
    pub done: u64,
    /// Given up.
    pub dead: usize,
}

/// The lease is not valid any more; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

/// What became of a lease that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NackOutcome {
    /// It will be leased again.
    Requeued,
    /// It was the last attempt, or the item expired.
    Dead,
}

/// How a lease ended, if not well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nack {
    /// The work failed: again after the policy's pause.
    Failed,
    /// Again after this pause.
    After(Duration),
    /// The worker was stopped, through no fault of the work: again at once, before others.
    AtOnce,
}

/// What is said about an item when it is put.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// As long as an item with this key is not done, dead or alive, it stands for this one too.
    pub key: Option<Arc<str>>,
    /// Of the ready items the one with the least is leased first.
    pub priority: i64,
    /// It is not leased before so long has passed.
    pub delay: Duration,
    /// After so long the item expired, begun or not.
    pub expires: Option<Duration>,
}

/// A dead item: its number, itself, all that went wrong.
pub type Dead<T, N> = (u64, T, Vec<N>);

impl RetryPolicy {
    /// How long failed work rests after that attempt. Exponential, with jitter so that what failed
    /// together does not come back together; `random` is between 0 and 1.
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

/// What is noted of an item whose own deadline has passed.
fn expired(deadline: Time) -> Cause {
    Cause {
        reason: Some(EXPIRED.into()),
        ..Cause::deadline(deadline)
    }
}

/// What is noted of an item whose lease was not extended in time.
fn lease_lost(until: Time) -> Cause {
    Cause {
        reason: Some(LEASE_LOST.into()),
        ..Cause::deadline(until)
    }
}

/// Numbers between 0 and 1, by lot: the same for the same number.
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
            "this lease is over: the item was acknowledged or given back, or the lease was not \
             extended in time, or its worker was given up; nothing was changed",
        )
    }
}

impl std::error::Error for Fenced {}
