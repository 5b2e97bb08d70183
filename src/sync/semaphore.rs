//! A counter of permits.
//!
//! Guarantees: permits given out and permits left add up at every instant; a permit that is
//! released while somebody waits is handed to the first in line who still wants it, so a waiter
//! that has given up never takes one along (I11); a permit that a block took is in the ledger, and
//! comes back however the block ends (I20).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{Hold, HoldKind, Ledger, Resource, Termination};
use crate::park::Ticket;
use crate::scope;
use crate::wait::{self, Op, Waitable};

/// Permits to be acquired and released, by any thread. Waits for one can be cancelled.
///
/// A permit belongs to nobody: it may be released by another thread than the one that acquired
/// it. Only one that was acquired for a block is given back by the scope or task around it.
#[derive(Clone)]
pub struct Semaphore {
    core: Arc<SemaphoreCore>,
}

struct SemaphoreCore {
    /// No more permits than this are ever free.
    bound: usize,
    state: Mutex<SemaphoreState>,
}

struct SemaphoreState {
    free: usize,
    queue: VecDeque<PermitRequest>,
    /// Who holds a permit for a block, once for each.
    holders: Vec<Arc<Ledger>>,
    /// Permits of blocks that a sweep has taken back, and whose block's end has not come, and may
    /// never.
    orphans: usize,
}

struct PermitRequest {
    ticket: Ticket,
    /// Where the permit is recorded; `None` if it belongs to nobody.
    ledger: Option<Arc<Ledger>>,
}

/// More permits were released than the semaphore may have; none of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyReleases;

impl Semaphore {
    /// With so many free permits, and no bound to how many there may be.
    pub fn new(permits: usize) -> Semaphore {
        Semaphore::with(permits, usize::MAX)
    }

    /// With so many free permits, and never more.
    pub fn bounded(permits: usize) -> Semaphore {
        Semaphore::with(permits, permits)
    }

    fn with(free: usize, bound: usize) -> Semaphore {
        Semaphore {
            core: Arc::new(SemaphoreCore {
                bound,
                state: Mutex::new(SemaphoreState {
                    free,
                    queue: VecDeque::new(),
                    holders: Vec::new(),
                    orphans: 0,
                }),
            }),
        }
    }

    /// Acquire a permit, waiting until `until` at most (then false). A checkpoint on entry, even
    /// if one is free; `Err` means that none was taken.
    pub fn acquire(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut self.acquire_op(), until).map(|acquired| acquired.is_some())
    }

    /// Acquire a permit if one is free; not a checkpoint, never blocks.
    pub fn try_acquire(&self) -> bool {
        self.core.take(&mut self.core.state.lock(), None)
    }

    #[cfg(test)]
    pub(crate) fn acquire_for_block(&self) -> Result<(), Stop> {
        wait::perform(&mut self.acquire_op_for_block(), Time::NEVER).map(|_| ())
    }

    /// A block that took a permit ends. False: a sweep has given it back before.
    pub(crate) fn end_block(&self) -> bool {
        let ledger = scope::current_ledger();
        let mut state = self.core.state.lock();
        let mine = |holder: &Arc<Ledger>| Arc::ptr_eq(holder, &ledger);
        let at = match state.holders.iter().rposition(mine) {
            None if state.orphans > 0 => {
                state.orphans -= 1;
                return false;
            }
            // A block that has moved from one thread to another, as a generator can.
            None => 0,
            Some(at) => at,
        };
        if state.holders.is_empty() {
            return false;
        }
        let holder = state.holders.remove(at);
        let removed = holder.remove_latest(Arc::as_ptr(&self.core).cast());
        let wake = self.core.put(&mut state, 1);
        drop(state);
        wake.iter().for_each(Ticket::wake);
        drop(removed); // may be the last count of this semaphore
        true
    }

    /// Acquiring a permit, as one of several things to wait for.
    pub(crate) fn acquire_op(&self) -> PermitOp<'_> {
        PermitOp {
            core: &self.core,
            ledger: None,
        }
    }

    /// Acquiring a permit for a block, which gives it back by [`Semaphore::end_block`].
    pub(crate) fn acquire_op_for_block(&self) -> PermitOp<'_> {
        PermitOp {
            core: &self.core,
            ledger: Some(scope::current_ledger()),
        }
    }

    /// Give permits back, or add new ones: to those who wait first.
    pub fn release(&self, permits: usize) -> Result<(), TooManyReleases> {
        let mut state = self.core.state.lock();
        let fits = state.free.checked_add(permits);
        if fits.is_none_or(|free| free > self.core.bound) {
            return Err(TooManyReleases);
        }
        let wake = self.core.put(&mut state, permits);
        drop(state);
        wake.iter().for_each(Ticket::wake);
        Ok(())
    }

    /// No more permits than this are ever free.
    pub fn bound(&self) -> usize {
        self.core.bound
    }

    /// How many permits are free.
    pub fn free(&self) -> usize {
        self.core.state.lock().free
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.core.state.lock().queue.len()
    }
}

impl SemaphoreCore {
    fn take(self: &Arc<Self>, state: &mut SemaphoreState, ledger: Option<&Arc<Ledger>>) -> bool {
        if state.free == 0 {
            return false;
        }
        state.free -= 1;
        self.record(state, ledger);
        true
    }

    fn record(self: &Arc<Self>, state: &mut SemaphoreState, ledger: Option<&Arc<Ledger>>) {
        if let Some(ledger) = ledger {
            ledger.record(self.clone(), HoldKind::Block);
            state.holders.push(ledger.clone());
        }
    }

    /// Returns whom to wake.
    fn put(self: &Arc<Self>, state: &mut SemaphoreState, permits: usize) -> Vec<Ticket> {
        let mut wake = Vec::new();
        for _ in 0..permits {
            let next = std::iter::from_fn(|| state.queue.pop_front())
                .find(|request| request.ticket.grant());
            let Some(request) = next else { break };
            self.record(state, request.ledger.as_ref());
            wake.push(request.ticket);
        }
        state.free += permits - wake.len();
        wake
    }
}

impl Resource for SemaphoreCore {
    fn name(&self) -> Arc<str> {
        "semaphore".into()
    }

    fn reclaim(self: Arc<Self>, holder: &Arc<Ledger>, hold: Hold, _: &Termination) -> Option<bool> {
        let mut state = self.state.lock();
        let entry = holder.remove(Arc::as_ptr(&self).cast(), hold)?;
        let same = |other: &Arc<Ledger>| Arc::ptr_eq(other, holder);
        if let Some(at) = state.holders.iter().rposition(same) {
            state.holders.remove(at);
        }
        state.orphans += 1;
        let wake = self.put(&mut state, 1);
        drop(state);
        wake.iter().for_each(Ticket::wake);
        drop(entry);
        Some(false)
    }
}

/// One call of [`Semaphore::acquire`].
pub(crate) struct PermitOp<'a> {
    core: &'a Arc<SemaphoreCore>,
    ledger: Option<Arc<Ledger>>,
}

impl Waitable for PermitOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.core.state.lock();
        if state.free == 0 {
            let ledger = self.ledger.clone();
            state.queue.push_back(PermitRequest { ticket, ledger });
        } else if ticket.grant() {
            self.core.take(&mut state, self.ledger.as_ref());
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let queue = &mut self.core.state.lock().queue;
        queue.retain(|request| request.ticket != *ticket);
        false
    }
}

impl Op for PermitOp<'_> {
    type Output = ();
    type Error = Stop;

    fn attempt(&mut self) -> Result<Option<()>, Stop> {
        let mut state = self.core.state.lock();
        let taken = self.core.take(&mut state, self.ledger.as_ref());
        Ok(taken.then_some(()))
    }

    fn collect(&mut self) -> Result<Option<()>, Stop> {
        // It was granted under this lock: now it is recorded, too.
        drop(self.core.state.lock());
        Ok(Some(()))
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("free", &self.free())
            .finish()
    }
}

impl fmt::Display for TooManyReleases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("released more often than acquired")
    }
}

impl std::error::Error for TooManyReleases {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::boundary::{BodyEnd, Boundary};
    use crate::cause::{Cause, CauseKind};
    use crate::task::Task;
    use crate::{move_on_after, wait};
    use std::time::Duration;

    fn taken() -> Semaphore {
        let semaphore = Semaphore::bounded(2);
        assert_eq!(semaphore.acquire_for_block(), Ok(()));
        assert_eq!(semaphore.acquire_for_block(), Ok(()));
        assert_eq!(semaphore.free(), 0);
        semaphore
    }

    #[test]
    fn a_block_gives_its_permit_back_once() {
        let semaphore = taken();
        assert_eq!(scope::current_ledger().len(), 2);
        assert!(semaphore.end_block() && semaphore.end_block());
        assert_eq!((semaphore.free(), scope::current_ledger().len()), (2, 0));
        assert!(!semaphore.end_block(), "there is none to give back");
        assert_eq!(semaphore.free(), 2);
    }

    #[test]
    fn i20_a_task_leaves_no_permit_of_a_block_behind_however_it_ends() {
        for killed in [false, true] {
            let task = Task::new("body", None);
            let boundary = Boundary::enter(&task, None);
            let semaphore = taken();
            assert_eq!(task.ledger().len(), 2);
            let end = if killed {
                let cause = Cause::now(CauseKind::Explicit, None, None);
                assert!(task.order(&cause, Time::from_nanos(0)));
                assert!(matches!(wait::checkpoint(), Err(Stop::Killed(_))));
                BodyEnd::Killed(None)
            } else {
                BodyEnd::Unwound
            };
            boundary.leave(end);
            assert_eq!((semaphore.free(), task.ledger().len()), (2, 0));
        }
    }

    #[test]
    fn i20_a_permit_that_belongs_to_nobody_is_not_swept() {
        let semaphore = Semaphore::new(1);
        let boundary = Boundary::enter(&Task::new("body", None), None);
        assert!(semaphore.try_acquire());
        boundary.leave(BodyEnd::Unwound);
        assert_eq!(semaphore.free(), 0);
    }

    #[test]
    fn i20_a_block_whose_permit_was_swept_gives_back_no_other() {
        let semaphore = Semaphore::bounded(1);
        let left = move_on_after(Duration::from_secs(3600), |_| semaphore.acquire_for_block());
        assert_eq!((left, semaphore.free()), (Ok(Some(())), 1));
        // Somebody else has it now.
        assert!(semaphore.try_acquire());
        assert!(!semaphore.end_block());
        assert_eq!(semaphore.free(), 0);
        semaphore.release(1).unwrap();
    }

    #[test]
    fn i11_a_block_that_was_cancelled_before_it_began_has_no_permit() {
        let semaphore = Semaphore::bounded(1);
        let left = move_on_after(Duration::from_secs(3600), |scope| {
            scope.cancel();
            semaphore.acquire_for_block()
        });
        assert_eq!((left, semaphore.free()), (Ok(None), 1));
        assert_eq!(scope::current_ledger().len(), 0);
    }
}
