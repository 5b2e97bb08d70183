//! Threads that work through a queue, and can be killed at it.
//!
//! Each lease is worked on in a task of its own, whose boundary is around the handler alone: a
//! kill ends one handler, and the worker goes on with the next item. Whatever ends a handler, its
//! item is done, ready again, or dead (I31). A worker that cannot be ended is given up: its lease
//! is over, and another one takes its place.

use std::any::Any;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::{fmt, thread};

use crate::atomics::Mutex;
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::{MayStop, Stop};
use crate::stop::{self, KillError, KillReport, Rung, StopPolicy};
use crate::sync::Latch;
use crate::task::{BodyEnd, Boundary, Task};
use crate::testing::{self, Enrolment};
use crate::token::CancelSource;
use crate::token::timer;
use crate::wait;
use crate::work::{Back, Lease, LeaseQueue, Returned};

/// What a pool's queue keeps of an item: what went wrong, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note<E, P = ()> {
    /// The handler failed.
    Failed(E),
    /// The handler panicked, with this message.
    Panicked(Arc<str>),
    /// The handler was stopped, or the item was unwanted, or its time had passed.
    Stopped(Cause),
    /// What the handler said of its progress.
    Progress(P),
}

impl<E, P> From<Cause> for Note<E, P> {
    fn from(cause: Cause) -> Self {
        Note::Stopped(cause)
    }
}

/// How many threads a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// So many work at the same time.
    pub workers: NonZeroUsize,
    /// So many workers that nothing ends are replaced by others.
    pub max_abandoned: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            workers: NonZeroUsize::MIN.saturating_add(3),
            max_abandoned: 2,
        }
    }
}

/// Why a worker was not killed, or has not been replaced.
#[derive(Debug)]
pub enum PoolError {
    /// There is no worker with that number.
    NoSuchWorker,
    /// The kill made no sense.
    Kill(KillError),
    /// The worker was given up, and nobody takes its place: that has happened too often.
    Exhausted(Box<KillReport>),
    /// The worker was given up, and the system has no thread for another.
    NotReplaced(io::Error),
}

/// Threads that call a handler for every item of a queue.
///
/// `Ok` acknowledges the item. An error or a panic gives it back, to be tried again as the queue's
/// [`RetryPolicy`](crate::work::RetryPolicy) says; if the handler was stopped, and its error says
/// so, the item is ready again at once.
///
/// Dropped, the pool asks its workers to stop and does not wait for them; see
/// [`WorkerPool::stop`].
pub struct WorkerPool<T, E, P = ()> {
    shared: Arc<Shared<T, E, P>>,
    seats: Mutex<Seats>,
}

struct Seats {
    seats: Vec<Arc<Seat>>,
    may_abandon: usize,
}

struct Shared<T, E, P> {
    queue: LeaseQueue<T, Note<E, P>>,
    handler: Box<Handler<T, E, P>>,
    /// Cancelled when the pool stops.
    source: CancelSource,
}

type Handler<T, E, P> = dyn Fn(&Job<'_, T, E, P>) -> Result<(), E> + Send + Sync;

/// A worker's place: what it is doing now can be stopped there.
struct Seat {
    name: String,
    state: Mutex<SeatState>,
    /// Set when its thread has left the loop, or was given up.
    over: Latch,
}

#[derive(Default)]
struct SeatState {
    current: Option<Current>,
    /// It begins nothing any more: the pool is stopping, or it was given up.
    leaving: bool,
}

/// What a worker is working on.
#[derive(Clone)]
struct Current {
    task: Arc<Task>,
    id: u64,
    epoch: u64,
}

/// A lease that a handler works on.
pub struct Job<'a, T, E, P = ()> {
    lease: &'a Lease<T, Note<E, P>>,
    queue: &'a LeaseQueue<T, Note<E, P>>,
    /// Cancelled when the handler is to stop because its lease ends.
    source: &'a CancelSource,
}

impl<T, E, P> WorkerPool<T, E, P>
where
    T: Clone + Send + 'static,
    E: Clone + MayStop + Send + 'static,
    P: Clone + Send + 'static,
{
    /// Start the workers. `Err`: the system has no threads for them; those that were started stop.
    pub fn new(
        queue: LeaseQueue<T, Note<E, P>>,
        options: PoolOptions,
        handler: impl Fn(&Job<'_, T, E, P>) -> Result<(), E> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue,
            handler: Box::new(handler),
            source: CancelSource::new(),
        });
        let pool = Self {
            shared,
            seats: Mutex::new(Seats {
                seats: Vec::new(),
                may_abandon: options.max_abandoned,
            }),
        };
        for index in 0..options.workers.get() {
            let seat = pool.shared.start_worker(index)?;
            pool.seats.lock().seats.push(seat);
        }
        Ok(pool)
    }

    /// Its queue: put work there.
    pub fn queue(&self) -> &LeaseQueue<T, Note<E, P>> {
        &self.shared.queue
    }

    /// The worker is unwanted: what it does is killed, and its item leased again. An idle worker
    /// has nothing to kill.
    ///
    /// Blocks until the handler has ended or was given up, as long as the policy says; not
    /// interrupted by the caller's own cancellation.
    pub fn kill_worker(
        &self,
        index: usize,
        reason: Option<&str>,
        policy: &StopPolicy,
    ) -> Result<KillReport, PoolError> {
        let seat = self.seats.lock().seats.get(index).cloned();
        let seat = seat.ok_or(PoolError::NoSuchWorker)?;
        let report = self
            .shared
            .kill(&seat, reason, policy)
            .map_err(PoolError::Kill)?;
        if report.outcome == Some(Rung::Abandoned) {
            self.replace(index, &seat, report)
        } else {
            Ok(report)
        }
    }

    /// Another worker in the place of one that was given up.
    fn replace(
        &self,
        index: usize,
        seat: &Arc<Seat>,
        report: KillReport,
    ) -> Result<KillReport, PoolError> {
        let mut seats = self.seats.lock();
        let replaced = !Arc::ptr_eq(&seats.seats[index], seat);
        if replaced || self.shared.source.token().is_cancelled() {
            return Ok(report);
        }
        if seats.may_abandon == 0 {
            return Err(PoolError::Exhausted(Box::new(report)));
        }
        seats.seats[index] = self
            .shared
            .start_worker(index)
            .map_err(PoolError::NotReplaced)?;
        seats.may_abandon -= 1;
        Ok(report)
    }

    /// The work is unwanted: it is never leased again, and code at work on it is asked to stop.
    /// False: it had ended before.
    pub fn cancel_item(&self, id: u64, reason: Option<&str>) -> bool {
        let cause = Cause::now(CauseKind::Explicit, reason.map(Arc::from), None);
        let dead = self.queue().cancel(id, Note::Stopped(cause.clone()));
        if dead == Some(false) {
            let seats = self.seats.lock().seats.clone();
            let current = seats.iter().filter_map(|seat| seat.current());
            for current in current.filter(|current| current.id == id) {
                current.task.node().cancel(cause.clone());
            }
        }
        dead.is_some()
    }

    /// How many workers are there to work; one that was given up is not.
    pub fn workers_alive(&self) -> usize {
        let seats = self.seats.lock();
        seats
            .seats
            .iter()
            .filter(|seat| !seat.over.is_set())
            .count()
    }

    /// Wait until all work has ended, or until `until` (then false). A checkpoint.
    pub fn drain(&self, until: Time) -> Result<bool, Stop> {
        self.queue().drain(until)
    }

    /// Stop the workers; what they were working on is ready again. Idempotent.
    ///
    /// Blocks until each has ended or was given up, as long as the policy says, and for ever if it
    /// does not allow to give them up; not interrupted by the caller's own cancellation. `Err`:
    /// called by a handler of this pool, or a signal handler of the host raised; the workers stop
    /// when they next look.
    pub fn stop(&self, policy: &StopPolicy) -> Result<(), KillError> {
        let reason = "the pool is stopping";
        self.shared
            .source
            .cancel_as(CauseKind::Shutdown, Some(reason.into()), None);
        let seats = self.seats.lock().seats.clone();
        for seat in &seats {
            seat.state.lock().leaving = true;
        }
        for seat in &seats {
            self.shared.kill(seat, Some(reason), policy)?;
        }
        for seat in &seats {
            seat.over
                .wait_uncancelled(Time::NEVER)
                .map_err(|_| KillError::Interrupted)?;
        }
        Ok(())
    }
}

impl<T, E, P> Shared<T, E, P>
where
    T: Clone + Send + 'static,
    E: Clone + MayStop + Send + 'static,
    P: Clone + Send + 'static,
{
    fn start_worker(self: &Arc<Self>, index: usize) -> io::Result<Arc<Seat>> {
        let seat = Arc::new(Seat {
            name: format!("desist-worker-{index}"),
            state: Mutex::default(),
            over: Latch::new(),
        });
        let enrolment = testing::enrol(&seat.name, self.source.node());
        let (shared, theirs) = (self.clone(), seat.clone());
        thread::Builder::new()
            .name(seat.name.clone())
            .spawn(move || {
                let _enrolled = enrolment.map(Enrolment::begin);
                shared.work(&theirs);
                theirs.over.set();
            })?;
        Ok(seat)
    }

    /// Work, until the pool stops or the worker is given up.
    fn work(&self, seat: &Seat) {
        let task = Task::new(&seat.name, Some(&self.source.token()));
        let boundary = Boundary::enter(&task, None);
        while let Ok(Some(lease)) = self.queue.lease(Time::NEVER) {
            self.work_on(seat, &lease);
            if seat.state.lock().leaving {
                break;
            }
        }
        boundary.leave(BodyEnd::Unwound);
    }

    /// One lease, from delivery to settlement.
    fn work_on(&self, seat: &Seat, lease: &Lease<T, Note<E, P>>) {
        let (id, epoch) = (lease.id, lease.epoch);
        let pool = self.source.token();
        let source = match lease.ends() {
            Time::NEVER => pool.child(),
            ends => pool.child_with_deadline(ends),
        };
        let name = format!("{} item {id}", seat.name);
        let task = Task::new(&name, Some(&source.token()));
        let boundary = Boundary::enter(&task, None);
        // Who kills finds the body, or this worker finds that it is to leave.
        let task_to_kill = task.clone();
        let body = seat
            .begin(Current {
                task: task_to_kill,
                id,
                epoch,
            })
            .then(|| {
                let job = Job {
                    lease,
                    queue: &self.queue,
                    source: &source,
                };
                catch_unwind(AssertUnwindSafe(|| (self.handler)(&job)))
            });
        let stop = match &body {
            Some(Ok(Err(failure))) => failure.stop().cloned(),
            _ => None,
        };
        let killed = matches!(stop, Some(Stop::Killed(_)));
        let stopped = task.node().cause().filter(|_| stop.is_some());
        let end = if killed {
            BodyEnd::Killed(None)
        } else {
            BodyEnd::Unwound
        };
        if !boundary.leave(end) {
            return; // whoever gave it up has settled its lease
        }
        seat.state.lock().current = None;
        let (back, note) = match (body, stopped) {
            (Some(Ok(Ok(()))), _) => {
                // Fenced: the lease was lost meanwhile, and somebody else does the work.
                let _ = self.queue.ack(id, epoch);
                return task.over().set();
            }
            (None, _) => (Back::AtOnce, None),
            (Some(_), Some(cause)) => (Back::AtOnce, Some(Note::Stopped(cause))),
            (Some(Ok(Err(failure))), None) => (Back::Failed, Some(Note::Failed(failure))),
            (Some(Err(panic)), None) => (Back::Failed, Some(Note::Panicked(message(&*panic)))),
        };
        if self.queue.give_back(id, epoch, back, note) == Ok(Returned::Requeued) {
            task.amend(|record| record.requeued.push(id.into()));
        }
        task.over().set();
    }

    fn kill(
        &self,
        seat: &Seat,
        reason: Option<&str>,
        policy: &StopPolicy,
    ) -> Result<KillReport, KillError> {
        let Some(Current { task, id, epoch }) = seat.current() else {
            return Ok(stop::nothing_to_kill());
        };
        let reason: Option<Arc<str>> = reason.map(Arc::from);
        stop::kill(&task, reason.clone(), policy, &mut || {
            seat.state.lock().leaving = true;
            let cause = Cause::now(CauseKind::Explicit, reason.clone(), None);
            let note = Some(Note::Stopped(cause));
            let returned = self.queue.give_back(id, epoch, Back::AtOnce, note);
            task.amend(|record| {
                record.fenced.push(id.into());
                if returned == Ok(Returned::Requeued) {
                    record.requeued.push(id.into());
                }
            });
            seat.over.set();
        })
    }
}

impl Seat {
    fn current(&self) -> Option<Current> {
        self.state.lock().current.clone()
    }

    /// It is about to work on this. False: it must not.
    fn begin(&self, current: Current) -> bool {
        let mut state = self.state.lock();
        if state.leaving {
            return false;
        }
        state.current = Some(current);
        true
    }
}

impl<T: Clone, E: Clone, P: Clone> Job<'_, T, E, P> {
    /// Keep the lease, and the progress for the next attempt. A checkpoint; `Err` also if the
    /// lease is over, and the work somebody else's.
    pub fn heartbeat(&self, progress: P) -> Result<(), Stop> {
        wait::checkpoint()?;
        let progress = Some(Note::Progress(progress));
        match self.queue.extend(self.lease.id, self.lease.epoch, progress) {
            Ok(Some(until)) => {
                let unwanted = self.lease.deadline().unwrap_or(Time::NEVER);
                timer::set(self.source.node(), until.min(unwanted));
            }
            Ok(None) => {}
            Err(_) => _ = self.source.cancel_because("its lease is over"),
        }
        wait::checkpoint()
    }
}

impl<T, E, P> Deref for Job<'_, T, E, P> {
    type Target = Lease<T, Note<E, P>>;

    fn deref(&self) -> &Self::Target {
        self.lease
    }
}

impl<T, E, P> Drop for WorkerPool<T, E, P> {
    fn drop(&mut self) {
        let reason = "nobody has the pool any more";
        self.shared
            .source
            .cancel_as(CauseKind::Shutdown, Some(reason.into()), None);
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> Arc<str> {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    said.unwrap_or("it said nothing").into()
}

impl<T, E, P> fmt::Debug for WorkerPool<T, E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool")
            .field("workers", &self.seats.lock().seats.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolError::NoSuchWorker => f.write_str("there is no worker with this number"),
            PoolError::Kill(KillError::Itself) => {
                f.write_str("a handler cannot kill its own worker: return an error instead")
            }
            PoolError::Kill(_) => {
                f.write_str("a signal handler raised, and the kill went no further")
            }
            PoolError::Exhausted(_) => f.write_str(
                "the worker was given up and is not replaced: that has happened too often",
            ),
            PoolError::NotReplaced(error) => {
                write!(
                    f,
                    "the worker was given up, and none can be started in its place: {error}"
                )
            }
        }
    }
}

impl std::error::Error for PoolError {}
