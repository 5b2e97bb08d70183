//! A place where threads wait for each other.
//!
//! Guarantees:
//! 1. All parties of a round pass it, or none does.
//! 2. A party that is cancelled before the last one arrives is not counted, and the others keep waiting.
//!    A party that is cancelled later passes with the others; its next checkpoint raises. The barrier's
//!    mutex decides between the two.
//! 3. The indices of a round's parties are 0, 1, 2 and so on, each once.
//!
//! Protocol. [`BarrierState`] belongs to its mutex. A round is an object of its own, since its parties
//! may look at it when the barrier is in the next round; it is changed under the barrier's mutex only,
//! and has a mutex of its own so that a party can read it without the barrier's.
//!
//! | round's phase | event                                         | becomes                           |
//! |---------------|-----------------------------------------------|-----------------------------------|
//! | Filling       | a party arrives, not the last                 | Filling, arrived + 1              |
//! | Filling       | a party is cancelled                          | Filling, arrived - 1              |
//! | Filling       | the last party arrives                        | Opening; its [`Opening`] is made  |
//! | Filling       | a party times out, `abort`, `reset`           | Broken                            |
//! | Opening       | a party is cancelled or times out             | Opening: it passes                |
//! | Opening       | [`Opening::open`]                             | Passed                            |
//! | Opening       | the [`Opening`] is dropped, `abort`, `reset`  | Broken                            |
//!
//! Leaving Filling or Opening for Passed or Broken is [`BarrierState::end_round`], which also begins
//! the next round and wakes every waiter: the parties of the round that ended, and early ones of the
//! next, which queue while the last party has not opened and now arrive.
//!
//! A party's index is computed at the end, from its arrival number and the arrival numbers of parties
//! that were cancelled: which parties have left is known only when the round is complete.
//!
//! Relies on `wait`: if `dequeue` returns true, the wait counts as granted and `collect` is called,
//! whichever outcome ended it. So a party that is cancelled too late passes.
//!
//! Lock order: `state`, then a round's mutex, then the waiters' words. Nothing that runs under `state`
//! blocks; the last party's action runs unlocked, between the making of its [`Opening`] and `open`.
//!
//! Checked by the models in `models/barrier.rs`: arrivals against cancellations, against the end of the
//! last party's action, and against `abort` and `reset`.

use std::fmt;
use std::sync::Arc;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{self, Op, Waitable};

/// A meeting point of a fixed number of threads, round after round.
///
/// ```
/// use desist::Time;
/// use desist::sync::Barrier;
///
/// let barrier = Barrier::new(2);
/// std::thread::scope(|threads| {
///     let other = threads.spawn(|| barrier.wait_until(Time::NEVER));
///     let mut indices = [barrier.wait_until(Time::NEVER), other.join().unwrap()];
///     indices.sort_by_key(|index| index.clone().ok());
///     assert_eq!(indices, [Ok(0), Ok(1)]);
/// });
/// ```
#[derive(Debug)]
pub struct Barrier {
    /// How many threads a round takes; at least 1, never changed.
    parties: usize,
    /// See the table above.
    state: Mutex<BarrierState>,
}

/// The fields that the barrier's mutex protects.
#[derive(Debug)]
struct BarrierState {
    /// The current round: Filling or Opening. Replaced when it has ended.
    round: Arc<Round>,
    /// Parties of the current round that have arrived and not been cancelled, the last included.
    arrived: usize,
    /// The parties of the round, but the last; while that one opens, also early ones of the next.
    waiting: WaitQueue,
    /// Arriving is an error until `reset`. Set by `abort`, a timeout, or a dropped [`Opening`].
    broken: bool,
}

/// One round, shared by its parties. Written with the barrier's mutex locked.
#[derive(Debug, Default)]
struct Round(Mutex<Parties>);

/// The fields that a round's mutex protects.
#[derive(Debug, Default)]
struct Parties {
    /// Ends at Passed or Broken, and is not changed afterwards.
    phase: RoundPhase,
    /// The arrival numbers of parties that were cancelled while the round was filling: how many had
    /// arrived before each, cancelled ones included. Final once the phase is not Filling.
    left: Vec<usize>,
}

/// See the table above.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum RoundPhase {
    /// Parties are missing.
    #[default]
    Filling,
    /// All parties are there, and the last one runs its action before they pass.
    Opening,
    /// All parties pass.
    Passed,
    /// No party passes.
    Broken,
}

/// Why a thread did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BarrierError {
    /// The calling thread is to stop, and does not count as a party.
    Stop(Stop),
    /// The barrier is broken: by `abort`, by a party that timed out, or by the last party, which
    /// failed to open.
    Broken,
}

/// The place of a thread in the round that it passes.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// It has passed with the others; the number is how many of them had arrived before it.
    Passed(usize),
    /// It is the last party, and opens the barrier for the others.
    Last(Opening<'a>),
}

/// Given to the last party. Dropped without [`Opening::open`], it breaks the barrier.
#[derive(Debug)]
pub struct Opening<'a> {
    barrier: &'a Barrier,
    /// The round that it opens, which `abort` or `reset` may have ended meanwhile.
    round: Arc<Round>,
}

impl Barrier {
    /// A barrier for this many threads; at least one.
    pub fn new(parties: usize) -> Barrier {
        Barrier {
            parties: parties.max(1),
            state: Mutex::new(BarrierState {
                round: Arc::default(),
                arrived: 0,
                waiting: WaitQueue::default(),
                broken: false,
            }),
        }
    }

    /// Wait for the other parties and pass with them; yields how many had arrived before.
    ///
    /// # Blocking
    /// Blocks until all parties have arrived. A party whose time limit passes breaks the barrier for
    /// all.
    ///
    /// # Cancellation
    /// A checkpoint on entry. A cancelled party is not counted; once all have arrived it passes.
    ///
    /// # Errors
    /// The thread is to stop, or the barrier is broken.
    pub fn wait_until(&self, until: Time) -> Result<usize, BarrierError> {
        match self.arrive(until)? {
            Arrival::Passed(index) => Ok(index),
            Arrival::Last(opening) => opening.open(),
        }
    }

    /// As [`Barrier::wait_until`], but the last party may run an action before all parties pass.
    ///
    /// # Errors
    /// As [`Barrier::wait_until`].
    pub fn arrive(&self, until: Time) -> Result<Arrival<'_>, BarrierError> {
        let mut arriving = ArriveOp {
            barrier: self,
            joined: None,
        };
        if let Some(arrival) = wait::perform(&mut arriving, until)? {
            return Ok(arrival);
        }
        // The time limit has passed; a stop has returned above, and has broken nothing.
        let mut state = self.state.lock();
        if state.round.phase() == RoundPhase::Opening {
            // This thread is early for the next round; the current one is complete and still passes.
            state.broken = true;
        } else {
            state.end_round(RoundPhase::Broken, true);
        }
        Err(BarrierError::Broken)
    }

    /// Break it: the parties that wait, and those that arrive until `reset`, get an error. Never
    /// blocks.
    pub fn abort(&self) {
        self.state.lock().end_round(RoundPhase::Broken, true);
    }

    /// Make it usable again. Parties that wait get the error that it is broken. Never blocks.
    pub fn reset(&self) {
        // Without parties there is none to get an error, and the round's phase means nothing.
        let mut state = self.state.lock();
        let phase = if state.arrived > 0 {
            RoundPhase::Broken
        } else {
            RoundPhase::Passed
        };
        state.end_round(phase, false);
    }

    /// How many threads a round takes.
    pub fn parties(&self) -> usize {
        self.parties
    }

    /// How many parties wait for the others. 0 while the last one opens.
    pub fn waiting(&self) -> usize {
        let state = self.state.lock();
        match state.round.phase() {
            RoundPhase::Filling => state.arrived,
            _ => 0,
        }
    }

    /// True if it is broken, until `reset`.
    pub fn is_broken(&self) -> bool {
        self.state.lock().broken
    }
}

impl BarrierState {
    /// End the current round in `phase`, begin the next, and wake all waiters.
    fn end_round(&mut self, phase: RoundPhase, broken: bool) {
        self.round.decide(phase);
        self.round = Arc::default();
        self.arrived = 0;
        self.broken = broken;
        // Woken with the mutex locked, unlike elsewhere: a barrier has few parties, and a round ends
        // once.
        self.waiting.grant_all().iter().for_each(Ticket::wake);
    }
}

/// One call of [`Barrier::arrive`]: the operation that the wait performs.
struct ArriveOp<'a> {
    barrier: &'a Barrier,
    /// The round it is a party of, and its arrival number there: how many had arrived before,
    /// cancelled ones included. `None` until it has queued in a round that is filling.
    joined: Option<(Arc<Round>, usize)>,
}

impl<'a> ArriveOp<'a> {
    /// Become the last party of the round that is filling, if one party is missing.
    fn complete(&self, state: &mut BarrierState) -> Option<Arrival<'a>> {
        let last = state.arrived + 1 == self.barrier.parties;
        if !last || state.round.phase() != RoundPhase::Filling {
            return None;
        }
        state.arrived += 1;
        state.round.decide(RoundPhase::Opening);
        Some(Arrival::Last(Opening {
            barrier: self.barrier,
            round: state.round.clone(),
        }))
    }
}

impl Waitable for ArriveOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.barrier.state.lock();
        let filling = state.round.phase() == RoundPhase::Filling;
        // Changed since `attempt`: this party is the last now, or the barrier is broken.
        if state.broken || filling && state.arrived + 1 == self.barrier.parties {
            ticket.grant();
            return;
        }
        // A party that comes while the last one opens queues without arriving: it tries again when the
        // round has ended.
        if filling {
            let before = state.arrived + state.round.0.lock().left.len();
            self.joined = Some((state.round.clone(), before));
            state.arrived += 1;
        }
        state.waiting.push(ticket);
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        let mut state = self.barrier.state.lock();
        state.waiting.remove(ticket);
        let Some((round, before)) = &self.joined else {
            return false;
        };
        // Once all parties have arrived, this one included, it passes, whatever ended its wait.
        if round.phase() != RoundPhase::Filling {
            return true;
        }
        state.arrived -= 1;
        round.0.lock().left.push(*before);
        self.joined = None;
        false
    }
}

impl<'a> Op for ArriveOp<'a> {
    type Output = Arrival<'a>;
    type Error = BarrierError;

    // Only the last party completes here; every other one has to queue to be counted.
    fn attempt(&mut self) -> Result<Option<Arrival<'a>>, BarrierError> {
        let mut state = self.barrier.state.lock();
        if state.broken {
            return Err(BarrierError::Broken);
        }
        Ok(self.complete(&mut state))
    }

    fn collect(&mut self) -> Result<Option<Arrival<'a>>, BarrierError> {
        let Some((round, before)) = &self.joined else {
            return self.attempt();
        };
        let mut passing = PassOp {
            barrier: self.barrier,
            round,
        };
        // The round is complete. The last party runs its action; this one cannot leave any more.
        wait::perform_shielded(&mut passing)?;
        Ok(Some(Arrival::Passed(round.index(*before))))
    }
}

/// The wait of a party of a complete round until the last party has opened, or failed to.
struct PassOp<'a> {
    barrier: &'a Barrier,
    /// The complete round, which may be the barrier's last one by now.
    round: &'a Round,
}

impl Waitable for PassOp<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        let mut state = self.barrier.state.lock();
        if self.round.phase() == RoundPhase::Opening {
            state.waiting.push(ticket);
        } else {
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.barrier.state.lock().waiting.remove(ticket);
        false
    }
}

impl Op for PassOp<'_> {
    type Output = ();
    type Error = BarrierError;

    fn attempt(&mut self) -> Result<Option<()>, BarrierError> {
        match self.round.phase() {
            RoundPhase::Passed => Ok(Some(())),
            RoundPhase::Broken => Err(BarrierError::Broken),
            RoundPhase::Filling | RoundPhase::Opening => Ok(None),
        }
    }
}

impl Round {
    /// Its phase. Lasting only while the barrier's mutex is locked, unless it is Passed or Broken.
    fn phase(&self) -> RoundPhase {
        self.0.lock().phase
    }

    /// Called with the barrier's mutex locked.
    fn decide(&self, phase: RoundPhase) {
        self.0.lock().phase = phase;
    }

    /// The index of the party with arrival number `before`: cancelled parties do not count. Called
    /// when the round is complete and no party leaves any more.
    fn index(&self, before: usize) -> usize {
        let left = &self.0.lock().left;
        before - left.iter().filter(|earlier| **earlier < before).count()
    }
}

impl Opening<'_> {
    /// How many had arrived before: all other parties.
    pub fn index(&self) -> usize {
        self.barrier.parties - 1
    }

    /// Let all parties pass, this one included; yields its index. Never blocks.
    ///
    /// # Errors
    /// The barrier was aborted or reset meanwhile, and no party passes.
    pub fn open(self) -> Result<usize, BarrierError> {
        let mut state = self.barrier.state.lock();
        if self.round.phase() != RoundPhase::Opening {
            return Err(BarrierError::Broken); // meanwhile, by another thread
        }
        let broken = state.broken; // set by an early party that timed out: for the next round
        state.end_round(RoundPhase::Passed, broken);
        drop(state);
        Ok(self.index())
    }
}

impl Drop for Opening<'_> {
    // After `open` the phase is not Opening any more, so nothing happens.
    fn drop(&mut self) {
        let mut state = self.barrier.state.lock();
        if self.round.phase() == RoundPhase::Opening {
            state.end_round(RoundPhase::Broken, true);
        }
    }
}

impl From<Stop> for BarrierError {
    fn from(stop: Stop) -> BarrierError {
        BarrierError::Stop(stop)
    }
}

impl fmt::Display for BarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BarrierError::Stop(stop) => stop.fmt(f),
            BarrierError::Broken => f.write_str(
                "the barrier is broken: a party timed out or aborted it; reset() makes it usable again",
            ),
        }
    }
}

impl std::error::Error for BarrierError {}
