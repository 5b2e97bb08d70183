//! A lock that knows its holder.
//!
//! Guarantees: it is handed from holder to waiter directly, in the order of arrival, skipping
//! waiters that gave up; changing hands and changing ledgers is one critical section, so that
//! nothing is ever held and not recorded; a wait that ends with an error has not taken it (I11).
//! After its holder was stopped hard it is poisoned before anyone else gets it (I21).

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::atomics::{self, Mutex};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::Stop;
use crate::ledger::{Death, End, Held, Keeper, Ledger};
use crate::park::{Outcome, Waiter};
use crate::{scope, wait};

/// A mutual exclusion lock whose waits can be cancelled, and which a stopped task gives back.
///
/// Not reentrant. May be released by another thread than the one that acquired it. Cloning gives
/// another handle of the same lock.
#[derive(Clone)]
pub struct Lock {
    core: Arc<Core>,
}

struct Core {
    name: Arc<str>,
    on_kill: OnKill,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    holder: Option<Arc<Ledger>>,
    /// The holder is a block, whose end will come and ask to release it.
    by_block: bool,
    /// Holds of blocks that a sweep has taken back, and whose block's end has not come, and may
    /// never.
    orphans: usize,
    queue: VecDeque<Request>,
    /// Set: nobody gets it until it is repaired.
    poison: Option<Poison>,
}

struct Request {
    waiter: atomics::Arc<Waiter>,
    ledger: Arc<Ledger>,
    acquire: Acquire,
    /// Filled before the waiter is settled: it was not handed the lock, but this news.
    refused: Arc<OnceLock<LockError>>,
}

#[derive(Clone)]
enum Poison {
    /// The holder is dead; the data may be half changed.
    Killed(Arc<Death>),
    /// The holder was given up and may still be using it.
    OwnerLost(Arc<Death>),
}

/// What happens to a lock whose holder is stopped hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnKill {
    /// The next to acquire it gets an error until somebody repairs it.
    #[default]
    Poison,
    /// It is free again.
    Release,
}

/// For whom a lock is acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquire {
    /// A block: the scope or task around it takes it back if the block did not.
    Block,
    /// The task: held until somebody releases it, or the task ends.
    Task,
    /// A guard that gives access for as long as it lives.
    Guard,
    /// A block that sets right what it protects: also if it is poisoned.
    Repair,
}

/// Why a lock was not acquired. It is not held.
#[derive(Debug, Clone)]
pub enum LockError {
    /// The calling thread is to stop.
    Stop(Stop),
    /// The last holder was killed inside.
    Poisoned(Arc<Death>),
    /// The holder was abandoned, and may still be inside.
    OwnerLost(Arc<Death>),
}

/// Why a lock was not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseError {
    /// Nobody holds it.
    NotHeld,
}

impl Lock {
    /// A free lock; the name is for reports.
    pub fn new(name: &str, on_kill: OnKill) -> Lock {
        Lock {
            core: Arc::new(Core {
                name: name.into(),
                on_kill,
                state: Mutex::default(),
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.core.name
    }

    /// Acquire it, waiting until `until` at most (then false). A checkpoint on entry, even if it
    /// is free.
    pub fn acquire(&self, acquire: Acquire, until: Time) -> Result<bool, LockError> {
        wait::checkpoint()?;
        let ledger = scope::current_ledger();
        if self.core.take_if_free(&ledger, acquire)? {
            return Ok(true);
        }
        if until <= Time::now() {
            return Ok(false);
        }
        let refused = Arc::new(OnceLock::new());
        let granted = wait::block(
            until,
            |waiter| {
                let (waiter, refused) = (waiter.clone(), refused.clone());
                self.core.enqueue(Request {
                    waiter,
                    ledger,
                    acquire,
                    refused,
                });
            },
            |waiter| {
                self.core
                    .state
                    .lock()
                    .queue
                    .retain(|request| !atomics::Arc::ptr_eq(&request.waiter, waiter));
            },
        )?;
        if granted {
            // It was granted under this lock: now it is recorded, too.
            drop(self.core.state.lock());
            refused.get().cloned().map_or(Ok(()), Err)?;
        }
        Ok(granted)
    }

    /// Acquire it if it is free; not a checkpoint, never blocks.
    pub fn try_acquire(&self, acquire: Acquire) -> Result<bool, LockError> {
        self.core.take_if_free(&scope::current_ledger(), acquire)
    }

    /// Give it to the next in line.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let holder = self
            .core
            .state
            .lock()
            .holder
            .clone()
            .ok_or(ReleaseError::NotHeld)?;
        self.core
            .take_from(&holder, None)
            .map(|_| ())
            .ok_or(ReleaseError::NotHeld)
    }

    /// Give it up in the middle of a kill: its holder, the calling task, unwinds because it was
    /// stopped hard, and what the lock protects may be half changed. True: it is poisoned now.
    pub(crate) fn release_killed(&self, death: Death) -> Result<bool, ReleaseError> {
        let holder = self
            .core
            .state
            .lock()
            .holder
            .clone()
            .ok_or(ReleaseError::NotHeld)?;
        self.core
            .take_from(&holder, Some(&End::Killed(Arc::new(death))))
            .ok_or(ReleaseError::NotHeld)
    }

    /// A block that took it ends. True: a sweep has taken back what the block held, so there is
    /// nothing to release, and whoever holds it now is somebody else.
    #[cfg(feature = "python")]
    pub(crate) fn block_was_swept(&self) -> bool {
        let ledger = scope::current_ledger();
        let mut state = self.core.state.lock();
        if state.orphans == 0
            || state
                .holder
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, &ledger))
        {
            return false;
        }
        state.orphans -= 1;
        true
    }

    /// Held by anyone?
    pub fn is_locked(&self) -> bool {
        self.core.state.lock().holder.is_some()
    }

    /// Poisoned, or lost with its holder?
    pub fn is_poisoned(&self) -> bool {
        self.core.state.lock().poison.is_some()
    }

    /// What it protects is consistent again: called by a holder that acquired it to repair.
    pub fn mark_consistent(&self) {
        self.core.state.lock().poison = None;
    }
}

impl Core {
    fn take_if_free(
        self: &Arc<Self>,
        ledger: &Arc<Ledger>,
        acquire: Acquire,
    ) -> Result<bool, LockError> {
        let mut state = self.state.lock();
        if state
            .holder
            .as_ref()
            .is_some_and(|holder| holder.is_lost_in_fork())
        {
            let cause = Cause::now(CauseKind::Forked, None, None);
            let task = Arc::from("a thread of the parent process");
            state.poison = Some(Poison::OwnerLost(Arc::new(Death {
                task,
                cause,
                stack: None,
            })));
        }
        state.check_poison(acquire)?;
        if state.holder.is_some() {
            return Ok(false);
        }
        self.give(&mut state, ledger.clone(), acquire);
        Ok(true)
    }

    /// Make `ledger` the holder: the one place where the lock and a ledger change together.
    fn give(self: &Arc<Self>, state: &mut State, ledger: Arc<Ledger>, acquire: Acquire) {
        let keeper = match acquire {
            Acquire::Block | Acquire::Repair => Keeper::Block,
            Acquire::Task => Keeper::Task,
            Acquire::Guard => Keeper::Guard,
        };
        ledger.record(self.clone(), keeper);
        state.by_block = keeper == Keeper::Block;
        state.holder = Some(ledger);
    }

    fn enqueue(self: &Arc<Self>, request: Request) {
        let mut state = self.state.lock();
        if let Err(refusal) = state.check_poison(request.acquire) {
            let _ = request.refused.set(refusal);
            request.waiter.settle(Outcome::Granted);
        } else if state.holder.is_some() {
            state.queue.push_back(request);
        } else if request.waiter.settle(Outcome::Granted) {
            self.give(&mut state, request.ledger, request.acquire);
        }
    }

    /// Take it from `holder` and pass it on. Returns whether it is poisoned now; `None` if
    /// `holder` does not hold it.
    fn take_from(self: &Arc<Self>, holder: &Arc<Ledger>, end: Option<&End>) -> Option<bool> {
        let mut wake = Vec::new();
        let entry;
        let poisoned = {
            let mut state = self.state.lock();
            if !state
                .holder
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, holder))
            {
                return None;
            }
            entry = holder.strike_out(Arc::as_ptr(self).cast());
            state.poison = match end {
                Some(End::Killed(death)) if self.on_kill == OnKill::Poison => {
                    Some(Poison::Killed(death.clone()))
                }
                Some(End::Abandoned(death)) => Some(Poison::OwnerLost(death.clone())),
                _ => state.poison.take(),
            };
            state.holder = None;
            self.pass_on(&mut state, &mut wake);
            state.poison.is_some()
        };
        for waiter in wake {
            waiter.wake();
        }
        drop(entry); // may be the last count of this lock
        Some(poisoned)
    }

    /// Give a free lock to the first in line who still wants it; tell all who cannot have it.
    fn pass_on(self: &Arc<Self>, state: &mut State, wake: &mut Vec<atomics::Arc<Waiter>>) {
        let queue = std::mem::take(&mut state.queue);
        for request in queue {
            let refusal = state.check_poison(request.acquire).err();
            if state.holder.is_some() && refusal.is_none() {
                state.queue.push_back(request);
                continue;
            }
            let refused = refusal.is_some();
            refusal.map(|refusal| request.refused.set(refusal));
            if request.waiter.settle(Outcome::Granted) {
                wake.push(request.waiter);
                if !refused {
                    self.give(state, request.ledger, request.acquire);
                }
            }
        }
    }
}

impl State {
    fn check_poison(&self, acquire: Acquire) -> Result<(), LockError> {
        match &self.poison {
            None => Ok(()),
            Some(Poison::OwnerLost(death)) => Err(LockError::OwnerLost(death.clone())),
            Some(Poison::Killed(_)) if acquire == Acquire::Repair => Ok(()),
            Some(Poison::Killed(death)) => Err(LockError::Poisoned(death.clone())),
        }
    }
}

impl Held for Core {
    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn take_back(self: Arc<Self>, holder: &Arc<Ledger>, end: &End) -> Option<bool> {
        let mut state = self.state.lock();
        if state.by_block
            && state
                .holder
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, holder))
        {
            state.orphans += 1;
        }
        drop(state);
        self.take_from(holder, Some(end))
    }
}

impl From<Stop> for LockError {
    fn from(stop: Stop) -> Self {
        LockError::Stop(stop)
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Stop(stop) => stop.fmt(f),
            LockError::Poisoned(death) => write!(
                f,
                "{} was killed while it held this lock ({}), so what the lock protects may be half \
                 changed: set it right inside repair()",
                death.task, death.cause
            ),
            LockError::OwnerLost(death) => write!(
                f,
                "{} was given up while it held this lock ({}) and may still be using what it \
                 protects; the lock cannot be had any more: use a new one",
                death.task, death.cause
            ),
        }
    }
}

impl std::error::Error for LockError {}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this lock is not held; acquire it first, and release it once")
    }
}

impl std::error::Error for ReleaseError {}

impl Default for Lock {
    fn default() -> Self {
        Lock::new("lock", OnKill::default())
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("name", &self.core.name)
            .field("locked", &self.is_locked())
            .finish()
    }
}
