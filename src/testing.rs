//! Virtual time, for tests: threads that wait do not take any.
//!
//! A thread that runs under a [`Simulation`] has the simulation's clock, and so have the threads
//! that it starts. Guarantees:
//! 1. One of them runs at a time. The next one is chosen when the running one waits or ends: the
//!    one that could go on first, or, with a seed, one by lot. So a run can be had again (I39).
//! 2. The clock stands still while any of them can run, and jumps to the next deadline when all
//!    wait; nothing is ever later than its deadline (I16).
//! 3. When all wait and nobody has a deadline, the thread that began the simulation is told; it
//!    ends the simulation when all others have ended.
//!
//! ```
//! use std::time::Duration;
//! use desist::{Stop, sleep, testing};
//!
//! let slept = testing::run(None, || {
//!     let other = testing::spawn("other", || sleep(Duration::from_secs(3600)));
//!     sleep(Duration::from_secs(7200))?; // at once
//!     other.join().expect("no panic")
//! });
//! assert_eq!(slept, Ok(Ok::<(), Stop>(())));
//! ```
//!
//! What waits outside of desist is running as far as the simulation can tell. A wait for a
//! descriptor is looked after for real before the clock jumps.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::atomics::{self, Mutex};
use crate::boundary::{BodyEnd, Boundary};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::clock::source::{self, Source};
use crate::park::{self, Interests, Scheduler, WaitOutcome, Waiter, scheduler};
use crate::task::Task;
use crate::token::timer;
use crate::token::tree::NodeRef;

/// A clock that jumps, and the threads that go by it. There is one at a time.
pub struct Simulation {
    now: AtomicU64,
    state: Mutex<State>,
}

type Id = u64;

struct State {
    /// The lot, unless the first in line is always the next.
    random: Option<u64>,
    autojump: bool,
    /// Threads that have been enrolled.
    enrolled: Id,
    /// Those of them that have not ended, but for the one that began.
    others: BTreeMap<Id, Participant>,
    running: Option<Id>,
    /// Threads that are outside for a while, and may come back with anything.
    away: usize,
    ready: Vec<Id>,
    parked: Vec<Parked>,
    /// Where those wait whose turn it is not.
    turns: HashMap<Id, atomics::Arc<Waiter>>,
    /// The thread that began it has to be told that nobody can go on.
    stuck: bool,
    /// That thread waits for the others to end.
    finishing: bool,
}

/// A thread that takes part.
struct Participant {
    name: Arc<str>,
    /// Cancelled if it is to end because nobody can go on.
    node: NodeRef,
}

struct Parked {
    id: Id,
    /// Address of its waiter, which tells it from others and is never looked at.
    waiter: usize,
    until: Time,
    interests: Interests,
}

/// The thread that began the simulation.
const ROOT: Id = 0;

thread_local! {
    static MINE: RefCell<Option<(Arc<Simulation>, Id)>> = const { RefCell::new(None) };
}

/// There is a simulation already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlreadySimulating;

/// All threads of a simulation waited, and nobody had a deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Names of the threads, but for the one that is told.
    pub waiting: Vec<Arc<str>>,
}

/// The simulation that the calling thread runs under.
pub(crate) fn current() -> Option<Arc<Simulation>> {
    mine().map(|(simulation, _)| simulation)
}

fn mine() -> Option<(Arc<Simulation>, Id)> {
    if !source::exists() {
        return None;
    }
    MINE.try_with(|mine| mine.borrow().clone()).ok().flatten()
}

/// The calling thread goes by this simulation from now on, as this participant, or by none.
fn join(mine: Option<(Arc<Simulation>, Id)>) -> Option<(Arc<Simulation>, Id)> {
    let simulation = mine.as_ref().map(|(simulation, _)| simulation.clone());
    let scheduler = simulation.clone();
    source::set(simulation.map(|simulation| simulation as Arc<dyn Source>));
    scheduler::set(scheduler.map(|simulation| simulation as Arc<dyn Scheduler>));
    MINE.with(|cell| cell.replace(mine))
}

/// Run `body` in simulated time, and wait for the threads that it has [spawned](spawn). With a
/// `seed`, lots decide whose turn it is. Other runs in the process wait for the end of this one.
///
/// # Panics
/// Called under a simulation.
pub fn run<T>(seed: Option<u64>, body: impl FnOnce() -> T) -> Result<T, Stuck> {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    assert!(mine().is_none(), "{AlreadySimulating}");
    let _turn = ONE_AT_A_TIME.lock();
    let simulation = Simulation::new(true, seed);
    let Ok(enrolled) = simulation.enter() else {
        unreachable!("{AlreadySimulating}") // by a host, which has runs of its own
    };
    let result = body();
    let finished = simulation.finish();
    drop(enrolled);
    finished.map(|()| result)
}

/// Start a thread that takes part in the simulation under which the calling thread runs. It has a
/// token of its own, which is cancelled if nobody can go on.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let task = Task::new(name, None);
    let enrolment = enrol(name, task.node());
    thread::spawn(move || {
        let _enrolled = enrolment.map(Enrolment::begin);
        let boundary = Boundary::enter(&task, None);
        let result = body();
        boundary.leave(BodyEnd::Unwound);
        result
    })
}

impl Simulation {
    /// A simulation whose clock shows the real time, and jumps by itself if `autojump`. `seed`:
    /// draw lots for whose turn it is.
    pub fn new(autojump: bool, seed: Option<u64>) -> Arc<Simulation> {
        Arc::new(Simulation {
            now: AtomicU64::new(Time::now().as_nanos()),
            state: Mutex::new(State {
                random: seed,
                autojump,
                enrolled: ROOT,
                others: BTreeMap::new(),
                running: None,
                away: 0,
                ready: Vec::new(),
                parked: Vec::new(),
                turns: HashMap::new(),
                stuck: false,
                finishing: false,
            }),
        })
    }

    /// What its clock shows.
    pub fn time(&self) -> Time {
        Time::from_nanos(self.now.load(Ordering::Acquire))
    }

    /// Let so much time pass: deadlines that come due are met in their order. A thread of the
    /// simulation first lets all others run until they wait, and again after each deadline.
    pub fn jump(self: &Arc<Self>, by: Duration) {
        let one_of_us = mine().filter(|(simulation, _)| Arc::ptr_eq(simulation, self));
        let give_way = || {
            if let Some((_, id)) = &one_of_us {
                self.give_way(*id);
            }
        };
        give_way();
        let until = self.time() + by;
        loop {
            let mut state = self.state.lock();
            let next = state.next_deadline().min(until);
            let idle = self.pass(&mut state, next) && state.running.is_none();
            let turn = if idle { state.choose() } else { None };
            drop(state);
            timer::expire_simulated(next);
            wake(turn);
            give_way();
            if next >= until {
                return;
            }
        }
    }

    /// Go on when all others wait.
    fn give_way(&self, id: Id) {
        loop {
            {
                let mut state = self.state.lock();
                if state.ready.is_empty() {
                    return;
                }
                state.ready.push(id);
                state.running = None;
            }
            self.dispatch();
            self.await_turn(id);
        }
    }

    /// Run the calling thread under it, as the one that is told when nobody can go on.
    pub fn enter(self: &Arc<Self>) -> Result<Enrolled, AlreadySimulating> {
        if !source::announce() {
            return Err(AlreadySimulating);
        }
        self.state.lock().running = Some(ROOT);
        join(Some((self.clone(), ROOT)));
        Ok(Enrolled { id: ROOT })
    }

    /// On the thread that began: wait until all others have ended. `Err`: they cannot go on; those
    /// that could be cancelled have been, and have ended.
    pub fn finish(&self) -> Result<(), Stuck> {
        let mut stuck = None;
        loop {
            {
                let mut state = self.state.lock();
                if state.others.is_empty() {
                    break;
                }
                state.finishing = true;
                state.running = None;
            }
            self.dispatch();
            self.await_turn(ROOT);
            let (others, told) = {
                let mut state = self.state.lock();
                state.finishing = false;
                let nodes = state.others.values().map(|other| other.node.clone());
                (nodes.collect::<Vec<_>>(), std::mem::take(&mut state.stuck))
            };
            if told {
                if stuck.is_some() {
                    break; // nor after they have been cancelled
                }
                stuck = Some(self.stuck());
                for node in others {
                    let reason = Some(Arc::from("nobody can go on"));
                    node.cancel(Cause::now(CauseKind::Shutdown, reason, None));
                }
            }
        }
        stuck.map_or(Ok(()), Err)
    }

    /// Who waits, for a report.
    pub(crate) fn stuck(&self) -> Stuck {
        let state = self.state.lock();
        let waiting = state.others.values().map(|other| other.name.clone());
        Stuck {
            waiting: waiting.collect(),
        }
    }

    /// The clock shows `now`: whose time has come is ready. True if there is anybody.
    fn pass(&self, state: &mut State, now: Time) -> bool {
        self.now.fetch_max(now.as_nanos(), Ordering::AcqRel);
        let due = state.take_due(now);
        let any = !due.is_empty();
        state.ready.extend(due.into_iter().map(|parked| parked.id));
        any
    }

    /// Nobody runs: see who is next.
    fn dispatch(&self) {
        loop {
            let mut state = self.state.lock();
            if state.running.is_some() {
                return;
            }
            if let Some(turn) = state.choose() {
                drop(state);
                return wake(Some(turn));
            }
            let idle = state.parked.is_empty() && !state.finishing;
            if state.running.is_some() || state.away > 0 || idle {
                return;
            }
            if state.notice_descriptors() {
                continue;
            }
            if !state.autojump {
                return; // somebody else moves the clock
            }
            let next = state.next_deadline();
            if next.is_never() {
                if state
                    .parked
                    .iter()
                    .any(|parked| !parked.interests.is_empty())
                {
                    let interests = state.interests();
                    drop(state);
                    park::wait_for_any(&interests);
                } else if !state.tell_root() {
                    return;
                }
                continue;
            }
            self.pass(&mut state, next);
            drop(state);
            timer::expire_simulated(next);
        }
    }

    fn await_turn(&self, id: Id) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                if state.running == Some(id) {
                    return;
                }
                let waiter = Waiter::real();
                state.turns.insert(id, waiter.clone());
                waiter
            };
            // A signal handler that raises must not run ahead of its turn.
            while waiter.park(Time::NEVER).is_none() {}
        }
    }

    /// A thread has ended.
    fn retire(&self, id: Id) {
        let participant = {
            let mut state = self.state.lock();
            let participant = state.others.remove(&id);
            if state.running == Some(id) {
                state.running = None;
            }
            if state.finishing && state.others.is_empty() {
                state.ready.push(ROOT);
            }
            participant
        };
        drop(participant); // unlocked: it may be the last count of a node
        self.dispatch();
    }
}

impl Source for Simulation {
    fn now(&self) -> Time {
        self.time()
    }
}

impl Scheduler for Simulation {
    /// A waiter of one of its threads was settled.
    fn wake(&self, waiter: &Waiter) {
        let turn = {
            let mut state = self.state.lock();
            let address = std::ptr::from_ref(waiter).addr();
            let same = |parked: &Parked| parked.waiter == address;
            let Some(at) = state.parked.iter().position(same) else {
                return; // it is not asleep yet, and will look
            };
            let parked = state.parked.remove(at);
            state.ready.push(parked.id);
            if state.running.is_some() {
                None
            } else {
                state.choose()
            }
        };
        wake(turn);
    }

    /// Let the others run until the waiter is settled, its time has come, or one of its
    /// descriptors may be ready. False: nobody can go on, and the calling thread is to say so.
    fn park(&self, waiter: &Waiter, until: Time, interests: Interests) -> bool {
        let Some((_, id)) = mine() else {
            return true; // the thread has left the simulation meanwhile
        };
        {
            let mut state = self.state.lock();
            if waiter.outcome().is_some() {
                return true;
            }
            state.parked.push(Parked {
                id,
                waiter: std::ptr::from_ref(waiter).addr(),
                until,
                interests,
            });
            state.running = None;
        }
        self.dispatch();
        self.await_turn(id);
        let mut state = self.state.lock();
        !(id == ROOT && std::mem::take(&mut state.stuck))
    }
}

impl State {
    /// Whose turn it is now. `None` if nobody can run, or the one who can is on its way.
    fn choose(&mut self) -> Option<atomics::Arc<Waiter>> {
        if self.ready.is_empty() {
            return None;
        }
        let at = match &mut self.random {
            None => 0,
            Some(seed) => {
                // splitmix64, by Vigna: any lot will do that can be drawn again.
                *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut lot = *seed;
                lot = (lot ^ (lot >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                lot = (lot ^ (lot >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                usize::try_from((lot ^ (lot >> 31)) % self.ready.len() as u64).unwrap_or(0)
            }
        };
        let id = self.ready.remove(at);
        self.running = Some(id);
        self.turns.remove(&id)
    }

    fn next_deadline(&self) -> Time {
        self.parked
            .iter()
            .map(|parked| parked.until)
            .fold(timer::next_simulated(), Time::min)
    }

    fn interests(&self) -> Interests {
        let each = self.parked.iter().flat_map(|parked| &parked.interests);
        each.copied().collect()
    }

    /// Is a descriptor ready that somebody waits for? Then he is.
    fn notice_descriptors(&mut self) -> bool {
        let noticed = self
            .parked
            .iter()
            .position(|parked| park::any_ready(&parked.interests));
        let parked = noticed.map(|at| self.parked.remove(at));
        self.ready.extend(parked.iter().map(|parked| parked.id));
        parked.is_some()
    }

    /// Wake the thread that began it to be told. False: it is not there any more.
    fn tell_root(&mut self) -> bool {
        match self.parked.iter().position(|parked| parked.id == ROOT) {
            Some(at) => _ = self.parked.remove(at),
            None if self.finishing => {}
            None => return false,
        }
        self.ready.push(ROOT);
        self.stuck = true;
        true
    }

    /// Take out those whose time has come, the earliest first.
    fn take_due(&mut self, now: Time) -> Vec<Parked> {
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|parked| parked.until <= now);
        self.parked = later;
        due.sort_by_key(|parked| parked.until);
        due
    }
}

fn wake(turn: Option<atomics::Arc<Waiter>>) {
    if let Some(turn) = turn {
        turn.settle_and_wake(WaitOutcome::Granted);
    }
}

/// A place in the simulation for a thread that is being started, handed to it.
#[must_use]
pub(crate) struct Enrolment {
    simulation: Arc<Simulation>,
    id: Id,
    taken: bool,
}

/// A place for a thread that the calling one is about to start.
pub(crate) fn enrol(name: &str, node: &NodeRef) -> Option<Enrolment> {
    let simulation = current()?;
    let id = {
        let mut state = simulation.state.lock();
        state.enrolled += 1;
        let id = state.enrolled;
        let (name, node) = (name.into(), node.clone());
        state.others.insert(id, Participant { name, node });
        state.ready.push(id);
        id
    };
    Some(Enrolment {
        simulation,
        id,
        taken: false,
    })
}

impl Enrolment {
    /// On the new thread: wait for its first turn.
    pub(crate) fn begin(mut self) -> Enrolled {
        self.taken = true;
        join(Some((self.simulation.clone(), self.id)));
        self.simulation.await_turn(self.id);
        Enrolled { id: self.id }
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        // The thread was not started after all.
        let (simulation, id) = (&self.simulation, self.id);
        let mut state = simulation.state.lock();
        state.ready.retain(|other| *other != id);
        drop(state);
        simulation.retire(id);
    }
}

/// The calling thread runs under a simulation, until this is dropped.
#[must_use]
pub struct Enrolled {
    id: Id,
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let mine = join(None);
        if self.id == ROOT {
            source::withdraw();
        }
        if let Some((simulation, id)) = mine {
            simulation.retire(id);
        }
    }
}

/// Do something that takes real time, and depends on threads that take none.
pub(crate) fn outside<R>(act: impl FnOnce() -> R) -> R {
    let Some((simulation, id)) = mine() else {
        return act();
    };
    {
        let mut state = simulation.state.lock();
        state.running = None;
        state.away += 1;
    }
    simulation.dispatch();
    join(None);
    let result = act();
    join(Some((simulation.clone(), id)));
    {
        let mut state = simulation.state.lock();
        state.away -= 1;
        state.ready.push(id);
    }
    simulation.dispatch();
    simulation.await_turn(id);
    result
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("now", &self.time())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolled").finish_non_exhaustive()
    }
}

impl fmt::Display for AlreadySimulating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is a simulation already; end it first")
    }
}

impl std::error::Error for AlreadySimulating {}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("every thread waits, and none of them has a deadline")?;
        if !self.waiting.is_empty() {
            write!(f, "; beside this one: {}", self.waiting.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Stuck {}
