//! The threads of this process that wait at a queue in a file.
//!
//! # Protocol
//!
//! The wait lists have a mutex of their own. Every commit that changes something for waiters, and
//! every notification of other processes, adds 1 to `version` under it, then grants waiters.
//!
//! An operation reads `version`, tries in a transaction, and if it is not possible, joins its list
//! under the mutex, unless the version has changed since: then it tries again. A change is
//! committed either before the transaction, which then sees it, or after; and then its version is
//! counted before the waiter joins, which tries again, or after, and the waiter is in the list
//! (I12).
//!
//! A grant only says that another try is worth while: the item may be leased by another thread, or
//! another process, first. A try that fails with an error lets all waiters look again, as the item
//! for which it was granted is still there.
//!
//! Each waiting worker has the time at which the next delayed item is due, and looks again by
//! itself then. All processes may have waiters: what they wait for is noted in the file, in the
//! column `awaited`, so that only a commit that they wait for wakes their watchers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::FileError;
use super::tables::{Changed, OnPut, TakeOutcome};
use super::{Bytes, Shared};
use crate::clock::Time;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{Op, Waitable};
use crate::work::{Lease, PutOptions};

/// The waiters of a queue in this process.
#[derive(Default)]
pub(super) struct WaitLists {
    /// How often something has changed for waiters; see the header.
    version: u64,
    /// Set once: no more leases.
    pub(super) closed: bool,
    /// Waiting workers, in order of arrival, each with the time on the machine's clock at which it
    /// looks again.
    leasing: VecDeque<(Ticket, i64)>,
    /// Draining threads, each with its flag, which is set before the grant if the queue was drained.
    draining: Vec<(Ticket, Arc<AtomicBool>)>,
    /// Waiting putters, in order of arrival.
    putting: WaitQueue,
}

impl WaitLists {
    /// Grant the waiters that a commit concerns. Returns the tickets to wake, without the lock.
    pub(super) fn change(&mut self, changed: &Changed) -> Vec<Ticket> {
        let mut wake = Vec::new();
        self.version += 1;
        let found = changed.made_ready.min(changed.ready);
        while wake.len() < found {
            let Some((ticket, _)) = self.leasing.pop_front() else {
                break;
            };
            wake.extend(Some(ticket).filter(Ticket::grant));
        }
        if let Some(due) = changed.due {
            self.leasing.retain(|(ticket, next)| {
                let is_late = due < *next;
                wake.extend(Some(ticket.clone()).filter(|ticket| is_late && ticket.grant()));
                !is_late
            });
        }
        if changed.drained {
            for (ticket, drained) in self.draining.drain(..) {
                drained.store(true, Ordering::Release);
                wake.extend(Some(ticket).filter(Ticket::grant));
            }
        }
        wake.extend((0..changed.room).map_while(|_| self.putting.grant_one()));
        wake
    }

    /// Grant all waiters, so that they look again. Returns the tickets to wake, without the lock.
    pub(super) fn wake_all(&mut self) -> Vec<Ticket> {
        self.version += 1;
        let leasing = self.leasing.drain(..).map(|(ticket, _)| ticket);
        let draining = self.draining.drain(..).map(|(ticket, _)| ticket);
        let mut wake: Vec<_> = leasing.chain(draining).filter(Ticket::grant).collect();
        wake.extend(self.putting.grant_all());
        wake
    }
}

/// One call of [`FileQueue::lease`](super::FileQueue::lease).
pub(super) struct LeaseOp<'a> {
    shared: &'a Shared,
    /// The name of the thread that leases.
    thread: Arc<str>,
    /// The version before the last try.
    seen: u64,
    /// When the next delayed item is due, as the last try found.
    next_due: i64,
    /// The same on the clock of waits.
    bound: Time,
}

impl LeaseOp<'_> {
    pub(super) fn new(shared: &Shared, thread: Arc<str>) -> LeaseOp<'_> {
        LeaseOp {
            shared,
            thread,
            seen: 0,
            next_due: i64::MAX,
            bound: Time::NEVER,
        }
    }
}

impl Waitable for LeaseOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut waits = self.shared.waits.lock();
        if waits.closed || waits.version != self.seen {
            ticket.grant();
        } else {
            waits.leasing.push_back((ticket, self.next_due));
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut waits = self.shared.waits.lock();
        waits.leasing.retain(|(other, _)| other != ticket);
        false
    }

    fn bound(&self) -> Time {
        self.bound
    }
}

impl Op for LeaseOp<'_> {
    /// `None`: the queue is closed.
    type Output = Option<Lease<Bytes, Bytes>>;
    type Error = FileError;

    fn attempt(&mut self) -> Result<Option<Self::Output>, FileError> {
        {
            let waits = self.shared.waits.lock();
            if waits.closed {
                return Ok(Some(None));
            }
            self.seen = waits.version;
        }
        let context = self.shared.context();
        let thread = self.thread.clone();
        let taken = self
            .shared
            .run(false, context, move |tables| tables.take(&thread));
        // The item for which this waiter was granted is still there, for another one.
        match taken.inspect_err(|_| self.shared.wake_all())? {
            TakeOutcome::Lease(lease) => Ok(Some(Some(lease))),
            TakeOutcome::Nothing { next_due } => {
                self.next_due = next_due;
                self.bound = context.now.time_of(next_due);
                Ok(None)
            }
        }
    }
}

/// One call of [`FileQueue::put_many`](super::FileQueue::put_many).
pub(super) struct PutOp<'a> {
    shared: &'a Shared,
    /// Shared with the operation, which may run twice.
    items: Arc<[(Bytes, PutOptions)]>,
    /// Called with the first item's id when the items were put.
    on_put: Option<OnPut>,
    /// The version before the last try.
    seen: u64,
}

impl<'a> PutOp<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        items: Arc<[(Bytes, PutOptions)]>,
        on_put: Option<OnPut>,
    ) -> PutOp<'a> {
        PutOp {
            shared,
            items,
            on_put,
            seen: 0,
        }
    }
}

impl Waitable for PutOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut waits = self.shared.waits.lock();
        if waits.version == self.seen {
            waits.putting.push(ticket);
        } else {
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.shared.waits.lock().putting.remove(ticket);
        false
    }
}

impl Op for PutOp<'_> {
    type Output = Vec<u64>;
    type Error = FileError;

    fn attempt(&mut self) -> Result<Option<Vec<u64>>, FileError> {
        self.seen = self.shared.waits.lock().version;
        let (items, on_put) = (self.items.clone(), self.on_put.clone());
        let put = self.shared.run(true, self.shared.context(), move |tables| {
            let ids = tables.put(&items)?;
            if let (Some([first, ..]), Some(on_put)) = (ids.as_deref(), &on_put) {
                tables.after_commit(*first, on_put.clone());
            }
            Ok(ids)
        });
        put.inspect_err(|_| self.shared.wake_all())
    }
}

/// One call of [`FileQueue::drain`](super::FileQueue::drain).
pub(super) struct DrainOp<'a> {
    shared: &'a Shared,
    /// The version before the last try.
    seen: u64,
    /// Set by the thread that grants, if it has drained the queue.
    drained: Arc<AtomicBool>,
}

impl DrainOp<'_> {
    pub(super) fn new(shared: &Shared) -> DrainOp<'_> {
        DrainOp {
            shared,
            seen: 0,
            drained: Arc::default(),
        }
    }
}

impl Waitable for DrainOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut waits = self.shared.waits.lock();
        if waits.version == self.seen {
            waits.draining.push((ticket, self.drained.clone()));
        } else {
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut waits = self.shared.waits.lock();
        waits.draining.retain(|(other, _)| other != ticket);
        false
    }
}

impl Op for DrainOp<'_> {
    type Output = ();
    type Error = FileError;

    fn attempt(&mut self) -> Result<Option<()>, FileError> {
        self.seen = self.shared.waits.lock().version;
        let is_drained = self.shared.run(false, self.shared.context(), |tables| {
            Ok(tables.is_drained())
        })?;
        Ok(is_drained.then_some(()))
    }

    // It was drained at the instant of the grant, even if more items came since.
    fn collect(&mut self) -> Result<Option<()>, FileError> {
        if self.drained.load(Ordering::Acquire) {
            return Ok(Some(()));
        }
        self.attempt()
    }
}
