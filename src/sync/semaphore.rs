//! A counter of permits.
//!
//! Guarantees:
//! 1. Free permits and permits given out add up at every instant.
//! 2. A permit that is released while threads wait is handed to the first waiter that still wants it.
//!    A waiter that was cancelled or timed out refuses it, so no permit is lost with it (I11).
//! 3. A permit that a block acquired is in the ledger, and is released however the block ends (I20).
//!
//! Protocol. [`SemaphoreState`] belongs to its mutex. A permit is handed over, not announced: the
//! releasing thread grants the waiter's ticket and records the permit in the waiter's ledger, all under
//! the mutex. So a waiter that wakes up locks the mutex once, to be sure that the record is complete.
//!
//! | event                              | free        | holders          | orphans                    |
//! |------------------------------------|-------------|------------------|----------------------------|
//! | acquire, one free                  | - 1         | + 1 if for block |                            |
//! | release of n, w waiters granted    | + n - w     | + waiters' blocks |                           |
//! | end of a block                     | as release of 1 | - 1          |                            |
//! | sweep of a block's permit          | as release of 1 | - 1          | + 1                        |
//! | end of that block, if it comes     |             |                  | - 1                        |
//!
//! Fair, unlike the lock: as long as threads wait, a released permit is theirs, and a running thread
//! cannot overtake them.
//!
//! Relies on `wait`: a waiter whose ticket was granted calls `collect` and keeps the permit, also if it
//! was cancelled at the same time.
//!
//! Lock order: `state`, then a ledger's entries, then the waiter's word. Tickets are woken, and
//! ledger entries dropped, after `state` is unlocked. Nothing that runs under `state` blocks.
//!
//! Checked by the models in `models/semaphore.rs` and by `tests/rust/semaphore.rs`; the tests of
//! blocks, which only a host has, are at the end of this file.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{Hold, HoldKind, Ledger, Resource, Termination};
use crate::park::Ticket;
#[cfg(any(feature = "python", test))]
use crate::scope;
use crate::wait::{self, Op, Waitable};

/// Permits to be acquired and released, by any thread. Waits for one can be cancelled.
///
/// A permit has no owner: it may be released by another thread than the one that acquired it. Only a
/// permit that was acquired for a block is reclaimed with the scope or task around it.
///
/// ```
/// use desist::Time;
/// use desist::sync::Semaphore;
///
/// let connections = Semaphore::bounded(2);
/// assert!(connections.acquire(Time::NEVER)?);
/// assert!(connections.try_acquire());
/// assert!(!connections.try_acquire(), "both are taken");
/// connections.release(2).expect("two were taken");
/// assert!(connections.release(1).is_err(), "there were never more than two");
/// # Ok::<(), desist::Stop>(())
/// ```
#[derive(Clone)]
pub struct Semaphore {
    /// Shared with all clones, and with each ledger in which a permit is recorded.
    core: Arc<SemaphoreCore>,
}

/// The semaphore itself.
struct SemaphoreCore {
    /// No more permits than this are ever free. Fixed when it is made; `usize::MAX` for no bound.
    bound: usize,
    /// See the table above.
    state: Mutex<SemaphoreState>,
}

/// The fields that the semaphore's mutex protects.
struct SemaphoreState {
    /// Permits that can be acquired at once. 0 while `queue` has a waiter that wants one: a permit is
    /// handed to it first.
    free: usize,
    /// The waiters, in the order of their arrival.
    queue: VecDeque<PermitRequest>,
    /// The ledgers that have a permit for a block, once for each permit, in the order of acquisition.
    holders: Vec<Arc<Ledger>>,
    /// Permits of blocks that a sweep has reclaimed and whose block has not ended yet; it may never
    /// end. The block's end finds the count and releases nothing.
    orphans: usize,
}

/// A place in the semaphore's queue. Pushed and removed by its waiter, popped by a release.
struct PermitRequest {
    /// Granted together with the permit.
    ticket: Ticket,
    /// Where the permit is recorded; `None` if it is not for a block.
    ledger: Option<Arc<Ledger>>,
}

/// The release would exceed the bound of the semaphore, and released no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyReleases;

impl Semaphore {
    /// A semaphore with `permits` free permits, to which a release may add any number.
    pub fn new(permits: usize) -> Semaphore {
        Semaphore::with(permits, usize::MAX)
    }

    /// A semaphore with `permits` free permits, and never more.
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

    /// Acquire a permit, waiting until `until` at most; then false.
    ///
    /// # Blocking
    /// Blocks while no permit is free. Waiters are served in the order of their arrival; a running
    /// thread can take a free permit without queuing, but not one that is handed to a waiter.
    ///
    /// # Cancellation
    /// A checkpoint on entry, even if a permit is free.
    ///
    /// # Errors
    /// The thread is to stop, and has acquired no permit.
    pub fn acquire(&self, until: Time) -> Result<bool, Stop> {
        wait::perform(&mut self.acquire_op(), until).map(|acquired| acquired.is_some())
    }

    /// Acquire a permit if one is free. Never blocks, and is no checkpoint.
    pub fn try_acquire(&self) -> bool {
        self.core.take(&mut self.core.state.lock(), None)
    }

    #[cfg(test)]
    pub(crate) fn acquire_for_block(&self) -> Result<(), Stop> {
        wait::perform(&mut self.acquire_op_for_block(), Time::NEVER).map(|_| ())
    }

    /// The end of a block that acquired a permit: release it. False: a sweep has released it before.
    #[cfg(any(feature = "python", test))]
    pub(crate) fn end_block(&self) -> bool {
        let ledger = scope::current_ledger();
        let mut state = self.core.state.lock();
        // Of several permits of one task the latest is released: blocks end in reverse order.
        let mine = |holder: &Arc<Ledger>| Arc::ptr_eq(holder, &ledger);
        let at = match state.holders.iter().rposition(mine) {
            None if state.orphans > 0 => {
                state.orphans -= 1;
                return false;
            }
            // The block has moved from one thread to another, as a generator can: release the oldest.
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

    /// Acquiring a permit, as an operation to be performed alone or as one of several.
    pub(crate) fn acquire_op(&self) -> PermitOp<'_> {
        PermitOp {
            core: &self.core,
            ledger: None,
        }
    }

    /// Acquiring a permit for a block of the calling thread, which releases it by
    /// [`Semaphore::end_block`].
    #[cfg(any(feature = "python", test))]
    pub(crate) fn acquire_op_for_block(&self) -> PermitOp<'_> {
        PermitOp {
            core: &self.core,
            ledger: Some(scope::current_ledger()),
        }
    }

    /// Release `permits` permits, or add new ones. Waiters are served first. Never blocks, and is no
    /// checkpoint.
    ///
    /// # Errors
    /// There would be more than the bound, and none is released.
    pub fn release(&self, permits: usize) -> Result<(), TooManyReleases> {
        let mut state = self.core.state.lock();
        // Checked before any waiter is served, so that a refused release has done nothing.
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

    /// How many permits are free. Stale as soon as it is returned.
    pub fn free(&self) -> usize {
        self.core.state.lock().free
    }

    #[cfg(all(test, loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.core.state.lock().queue.len()
    }
}

impl SemaphoreCore {
    /// Take a free permit, if there is one, and record it for a block.
    fn take(self: &Arc<Self>, state: &mut SemaphoreState, ledger: Option<&Arc<Ledger>>) -> bool {
        if state.free == 0 {
            return false;
        }
        state.free -= 1;
        self.record(state, ledger);
        true
    }

    /// Record a permit that was taken for a block. Under `state`, so that a permit given out is never
    /// unrecorded.
    fn record(self: &Arc<Self>, state: &mut SemaphoreState, ledger: Option<&Arc<Ledger>>) {
        if let Some(ledger) = ledger {
            ledger.record(self.clone(), HoldKind::Block);
            state.holders.push(ledger.clone());
        }
    }

    /// Hand `permits` permits to waiters, and make the rest free. Returns the tickets to wake.
    fn put(self: &Arc<Self>, state: &mut SemaphoreState, permits: usize) -> Vec<Ticket> {
        let mut wake = Vec::new();
        for _ in 0..permits {
            let next = std::iter::from_fn(|| state.queue.pop_front())
                .find(|request| request.ticket.grant());
            let Some(request) = next else { break };
            // After the grant, but before the waiter can see it: `collect` locks `state`.
            self.record(state, request.ledger.as_ref());
            wake.push(request.ticket);
        }
        state.free += permits - wake.len();
        wake
    }
}

/// A sweep reclaims the permits of blocks one by one. A semaphore is never poisoned: a permit protects
/// no data.
impl Resource for SemaphoreCore {
    fn name(&self) -> Arc<str> {
        "semaphore".into()
    }

    fn reclaim(self: Arc<Self>, holder: &Arc<Ledger>, hold: Hold, _: &Termination) -> Option<bool> {
        let mut state = self.state.lock();
        let entry = holder.remove(Arc::as_ptr(&self).cast(), hold)?;
        // The entry is gone, so the holder leaves the list in the same critical section.
        let same = |other: &Arc<Ledger>| Arc::ptr_eq(other, holder);
        if let Some(at) = state.holders.iter().rposition(same) {
            state.holders.remove(at);
        }
        state.orphans += 1;
        let wake = self.put(&mut state, 1);
        drop(state);
        wake.iter().for_each(Ticket::wake);
        drop(entry); // may be the last count of this semaphore but `self`
        Some(false)
    }
}

/// One call of [`Semaphore::acquire`]: the operation that the wait performs.
pub(crate) struct PermitOp<'a> {
    core: &'a Arc<SemaphoreCore>,
    /// Where the permit is recorded, if it is for a block.
    ledger: Option<Arc<Ledger>>,
}

impl Waitable for PermitOp<'_> {
    // A permit may have been released since `attempt`: look again under the mutex.
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.core.state.lock();
        if state.free == 0 {
            let ledger = self.ledger.clone();
            state.queue.push_back(PermitRequest { ticket, ledger });
        } else if ticket.grant() {
            self.core.take(&mut state, self.ledger.as_ref());
        }
    }

    // Not after a grant, so no permit was handed over and there is nothing to undo.
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
        // The granter records the permit after the grant, with `state` locked. When this thread gets
        // the mutex, the record is complete.
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
    fn a_block_releases_its_permit_once() {
        let semaphore = taken();
        assert_eq!(scope::current_ledger().len(), 2);
        assert!(semaphore.end_block() && semaphore.end_block());
        assert_eq!((semaphore.free(), scope::current_ledger().len()), (2, 0));
        assert!(!semaphore.end_block(), "there is none to release");
        assert_eq!(semaphore.free(), 2);
    }

    #[test]
    fn i20_a_task_holds_no_permit_of_a_block_after_any_end() {
        for killed in [false, true] {
            let task = Task::new("body", None);
            let boundary = Boundary::enter(&task, None);
            let semaphore = taken();
            assert_eq!(task.ledger().len(), 2);
            let end = if killed {
                let cause = Cause::now(CauseKind::Explicit, None, None);
                assert!(task.request_kill(&cause, Time::from_nanos(0)));
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
    fn i20_a_permit_without_a_block_is_not_swept() {
        let semaphore = Semaphore::new(1);
        let boundary = Boundary::enter(&Task::new("body", None), None);
        assert!(semaphore.try_acquire());
        boundary.leave(BodyEnd::Unwound);
        assert_eq!(semaphore.free(), 0);
    }

    #[test]
    fn i20_a_block_whose_permit_was_swept_releases_no_other() {
        let semaphore = Semaphore::bounded(1);
        let left = move_on_after(Duration::from_secs(3600), |_| semaphore.acquire_for_block());
        assert_eq!((left, semaphore.free()), (Ok(Some(())), 1));
        // It was acquired again meanwhile.
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
