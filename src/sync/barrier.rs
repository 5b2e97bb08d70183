//! A place where threads wait for each other.
//!
//! Guarantees: all parties of a round pass it, or none does; one who gives up before the last has
//! come has not been there, and the others wait on; who gives up later passes with them. Which it
//! is, is decided under one lock. The numbers of a round's parties are 0, 1, 2 and so on, each once.

use std::fmt;
use std::sync::Arc;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::error::Stop;
use crate::park::{Ticket, WaitQueue};
use crate::wait::{self, Op, Waitable};

/// A meeting point of a fixed number of threads, round after round.
#[derive(Debug)]
pub struct Barrier {
    parties: usize,
    state: Mutex<BarrierState>,
}

#[derive(Debug)]
struct BarrierState {
    round: Arc<Round>,
    arrived: usize,
    /// The parties of the round, but the last; or, while that one opens, also early ones of the
    /// next.
    waiting: WaitQueue,
    broken: bool,
}

/// One round, shared by its parties; changed under the barrier's lock.
#[derive(Debug, Default)]
struct Round(Mutex<Parties>);

#[derive(Debug, Default)]
struct Parties {
    phase: RoundPhase,
    /// Those who came and gave up: how many had come before them, these included.
    left: Vec<usize>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum RoundPhase {
    /// Not all are there.
    #[default]
    Filling,
    /// All are there, and the last one does what is to be done before they go.
    Opening,
    Passed,
    Broken,
}

/// Why a thread did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BarrierError {
    /// The calling thread is to stop; it has not been there.
    Stop(Stop),
    /// Somebody broke the barrier, or waited for too long.
    Broken,
}

/// How a thread came through.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// With the others; the number of those who had come before it.
    Passed(usize),
    /// As the last one: it lets the others go.
    Last(Opening<'a>),
}

/// Held by the last to arrive. Dropped without [`Opening::open`], it breaks the barrier.
#[derive(Debug)]
pub struct Opening<'a> {
    barrier: &'a Barrier,
    round: Arc<Round>,
}

impl Barrier {
    /// For so many threads, one at least.
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

    /// Wait for the others and pass with them; yields the number of those who had come before.
    /// Whoever waits until `until` in vain breaks the barrier. A checkpoint.
    pub fn wait_until(&self, until: Time) -> Result<usize, BarrierError> {
        match self.arrive(until)? {
            Arrival::Passed(index) => Ok(index),
            Arrival::Last(opening) => opening.open(),
        }
    }

    /// [`Barrier::wait_until`], but the last to arrive may do something before all go.
    pub fn arrive(&self, until: Time) -> Result<Arrival<'_>, BarrierError> {
        let mut arriving = ArriveOp {
            barrier: self,
            joined: None,
        };
        if let Some(arrival) = wait::perform(&mut arriving, until)? {
            return Ok(arrival);
        }
        let mut state = self.state.lock();
        if state.round.phase() == RoundPhase::Opening {
            // Too early for the next round: this one is complete, and does not wait for it.
            state.broken = true;
        } else {
            state.end_round(RoundPhase::Broken, true);
        }
        Err(BarrierError::Broken)
    }

    /// Break it: whoever waits, or comes, is told so.
    pub fn abort(&self) {
        self.state.lock().end_round(RoundPhase::Broken, true);
    }

    /// Make it as new; whoever waits is told that it is broken.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        let phase = if state.arrived > 0 {
            RoundPhase::Broken
        } else {
            RoundPhase::Passed
        };
        state.end_round(phase, false);
    }

    /// How many threads it is for.
    pub fn parties(&self) -> usize {
        self.parties
    }

    /// How many wait in it.
    pub fn waiting(&self) -> usize {
        let state = self.state.lock();
        match state.round.phase() {
            RoundPhase::Filling => state.arrived,
            _ => 0,
        }
    }

    /// Broken?
    pub fn is_broken(&self) -> bool {
        self.state.lock().broken
    }
}

impl BarrierState {
    fn end_round(&mut self, phase: RoundPhase, broken: bool) {
        self.round.decide(phase);
        self.round = Arc::default();
        self.arrived = 0;
        self.broken = broken;
        // Under the lock, for so little; all of them but those who gave up are asleep.
        self.waiting.grant_all().iter().for_each(Ticket::wake);
    }
}

/// One call of [`Barrier::arrive`].
struct ArriveOp<'a> {
    barrier: &'a Barrier,
    /// The round it is a party of, and how many had come before, those who have left included.
    joined: Option<(Arc<Round>, usize)>,
}

impl<'a> ArriveOp<'a> {
    /// Be the last party of the round that is filling, if that is so.
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
        // Changed since the last look: look again.
        if state.broken || filling && state.arrived + 1 == self.barrier.parties {
            ticket.grant();
            return;
        }
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
        wait::perform_shielded(&mut passing)?;
        Ok(Some(Arrival::Passed(round.index(*before))))
    }
}

/// A party of a complete round waits until the last one has let all go.
struct PassOp<'a> {
    barrier: &'a Barrier,
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
    fn phase(&self) -> RoundPhase {
        self.0.lock().phase
    }

    fn decide(&self, phase: RoundPhase) {
        self.0.lock().phase = phase;
    }

    /// How many of those who were there to the end had come before, once nobody leaves any more.
    fn index(&self, before: usize) -> usize {
        let left = &self.0.lock().left;
        before - left.iter().filter(|earlier| **earlier < before).count()
    }
}

impl Opening<'_> {
    /// How many came before: all others.
    pub fn index(&self) -> usize {
        self.barrier.parties - 1
    }

    /// Let all go.
    pub fn open(self) -> Result<usize, BarrierError> {
        let mut state = self.barrier.state.lock();
        if self.round.phase() != RoundPhase::Opening {
            return Err(BarrierError::Broken); // meanwhile, by somebody else
        }
        let broken = state.broken; // for the next round
        state.end_round(RoundPhase::Passed, broken);
        drop(state);
        Ok(self.index())
    }
}

impl Drop for Opening<'_> {
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
                "the barrier is broken: a party gave up or broke it; reset() makes it usable again",
            ),
        }
    }
}

impl std::error::Error for BarrierError {}
