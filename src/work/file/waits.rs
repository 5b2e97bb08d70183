//! Who waits for what, and how they learn of it.
//!
//! Every commit that changes something for those who wait counts up `version`, under the lock of
//! the lines. Whoever joins a line has looked before, and if the version is another one by then he
//! looks again: no wake-up is lost (I12). What other processes change the keeper reports, and then
//! all look again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::FileError;
use super::tables::{Changed, Taken};
use super::{Bytes, Shared};
use crate::clock::Time;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{Op, Waitable};
use crate::work::{Lease, PutOptions};

/// All who wait, of this process.
#[derive(Default)]
pub(super) struct Lines {
    version: u64,
    pub(super) closed: bool,
    /// For an item; beside each, when the next delayed one is due.
    leasing: VecDeque<(Ticket, i64)>,
    /// For the end; the flag says that it has come.
    draining: Vec<(Ticket, Arc<AtomicBool>)>,
    /// For room.
    putting: WaitQueue,
}

impl Lines {
    /// Wake whom the change concerns: the caller does it, without the lock.
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
            for (ticket, has_come) in self.draining.drain(..) {
                has_come.store(true, Ordering::Release);
                wake.extend(Some(ticket).filter(Ticket::grant));
            }
        }
        wake.extend((0..changed.room).map_while(|_| self.putting.grant_one()));
        wake
    }

    /// Have all look again.
    pub(super) fn stir(&mut self) -> Vec<Ticket> {
        self.version += 1;
        let leasing = self.leasing.drain(..).map(|(ticket, _)| ticket);
        let draining = self.draining.drain(..).map(|(ticket, _)| ticket);
        let mut wake: Vec<_> = leasing.chain(draining).filter(Ticket::grant).collect();
        wake.extend(self.putting.grant_all());
        wake
    }
}

/// One call of [`FileQueue::lease`](super::FileQueue::lease).
pub(super) struct Leasing<'a> {
    shared: &'a Shared,
    seen: u64,
    next_due: i64,
    bound: Time,
}

impl Leasing<'_> {
    pub(super) fn new(shared: &Shared) -> Leasing<'_> {
        Leasing {
            shared,
            seen: 0,
            next_due: i64::MAX,
            bound: Time::NEVER,
        }
    }
}

impl Waitable for Leasing<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut lines = self.shared.lines.lock();
        if lines.closed || lines.version != self.seen {
            ticket.grant();
        } else {
            lines.leasing.push_back((ticket, self.next_due));
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut lines = self.shared.lines.lock();
        lines.leasing.retain(|(other, _)| other != ticket);
        false
    }

    fn bound(&self) -> Time {
        self.bound
    }
}

impl Op for Leasing<'_> {
    /// `None`: the queue is closed.
    type Output = Option<Lease<Bytes, Bytes>>;
    type Error = FileError;

    fn attempt(&mut self) -> Result<Option<Self::Output>, FileError> {
        {
            let lines = self.shared.lines.lock();
            if lines.closed {
                return Ok(Some(None));
            }
            self.seen = lines.version;
        }
        let terms = self.shared.terms();
        #[allow(clippy::redundant_closure_for_method_calls)] // the method has one lifetime
        let taken = self.shared.run(false, terms, |tables| tables.take());
        // The item that this one was woken for is still there: for another.
        match taken.inspect_err(|_| self.shared.stir())? {
            Taken::Lease(lease) => Ok(Some(Some(lease))),
            Taken::Nothing { next_due } => {
                self.next_due = next_due;
                self.bound = terms.now.time_of(next_due);
                // An own look that finds nothing is no news.
                Ok(None)
            }
        }
    }
}

/// One call of [`FileQueue::put_many`](super::FileQueue::put_many).
pub(super) struct Putting<'a> {
    shared: &'a Shared,
    items: Arc<[(Bytes, PutOptions)]>,
    seen: u64,
}

impl<'a> Putting<'a> {
    pub(super) fn new(shared: &'a Shared, items: Arc<[(Bytes, PutOptions)]>) -> Putting<'a> {
        Putting {
            shared,
            items,
            seen: 0,
        }
    }
}

impl Waitable for Putting<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut lines = self.shared.lines.lock();
        if lines.version == self.seen {
            lines.putting.push(ticket);
        } else {
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.shared.lines.lock().putting.remove(ticket);
        false
    }
}

impl Op for Putting<'_> {
    type Output = Vec<u64>;
    type Error = FileError;

    fn attempt(&mut self) -> Result<Option<Vec<u64>>, FileError> {
        self.seen = self.shared.lines.lock().version;
        let items = self.items.clone();
        let put = self
            .shared
            .run(true, self.shared.terms(), move |tables| tables.put(&items));
        put.inspect_err(|_| self.shared.stir())
    }
}

/// One call of [`FileQueue::drain`](super::FileQueue::drain).
pub(super) struct Draining<'a> {
    shared: &'a Shared,
    seen: u64,
    has_come: Arc<AtomicBool>,
}

impl Draining<'_> {
    pub(super) fn new(shared: &Shared) -> Draining<'_> {
        Draining {
            shared,
            seen: 0,
            has_come: Arc::default(),
        }
    }
}

impl Waitable for Draining<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut lines = self.shared.lines.lock();
        if lines.version == self.seen {
            lines.draining.push((ticket, self.has_come.clone()));
        } else {
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut lines = self.shared.lines.lock();
        lines.draining.retain(|(other, _)| other != ticket);
        false
    }
}

impl Op for Draining<'_> {
    type Output = ();
    type Error = FileError;

    fn attempt(&mut self) -> Result<Option<()>, FileError> {
        self.seen = self.shared.lines.lock().version;
        let is_drained = self
            .shared
            .run(false, self.shared.terms(), |tables| Ok(tables.is_drained()))?;
        Ok(is_drained.then_some(()))
    }

    // It was drained once, whatever came after.
    fn collect(&mut self) -> Result<Option<()>, FileError> {
        if self.has_come.load(Ordering::Acquire) {
            return Ok(Some(()));
        }
        self.attempt()
    }
}
