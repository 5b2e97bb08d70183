//! Virtual time, for tests: threads that wait do not take any.
//!
//! A thread that runs under a [`Simulation`] has the simulation's clock, and so have the threads
//! that it starts. Guarantees:
//! 1. One of them runs at a time. The next one is chosen when the running one waits or ends: the
//!    one that was ready first or, with a seed, a pseudo-random one, so that runs are reproducible (I39).
//! 2. The clock stands still while any of them can run, and jumps to the next deadline when all
//!    wait; nothing is ever later than its deadline (I16).
//! 3. When all wait and none has a deadline, the wait of the thread that began the simulation (the
//!    *root*) ends with a report of the deadlock. The root ends the simulation when all others have ended.
//!
//! The states of a simulated thread. A thread that is not running sleeps in real time, on a waiter of its
//! own in `turns`, until it is chosen:
//!
//! | state    | known by                     | left                                                           |
//! |----------|------------------------------|----------------------------------------------------------------|
//! | ready    | its number in `ready`        | when it is chosen: running                                     |
//! | running  | `running`                    | in a wait: parked; in `outside`: away; in `jump`: ready; at its end |
//! | parked   | an entry of `parked`         | its waiter is settled, its time comes, or a descriptor of its is ready: ready |
//! | away     | counted in `away`            | when it comes back from `outside`: ready                       |
//! | finished | it is in none of these       |                                                                |
//!
//! While the root waits for the others in `finish` it is in none of them either, but `finishing` is set.
//!
//! Protocol. All of this belongs to the mutex `state`. The thread that gives its turn away clears
//! `running` under it, and then calls `dispatch`, which chooses the next one or advances the clock; so
//! does a thread that makes another one ready while none runs. No wake-up is lost: a parking thread looks
//! at its waiter's outcome under `state`, which `Scheduler::wake` takes after the outcome is written; and
//! a chosen thread that has not yet put a waiter into `turns` finds its number in `running`.
//!
//! Lock order: `state`, then the timer's. Nothing of a user runs under `state`: callbacks of a virtual
//! deadline run after it is unlocked, on the thread that advances the clock.
//!
//! Relies on two seams below, a clock source and a park scheduler, both of which are set exactly while a
//! thread takes part, and on the timer, which keeps virtual deadlines apart from real ones.
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
//! A thread that blocks outside of desist counts as running, so the clock stands still meanwhile. A wait
//! for a descriptor ends when the descriptor is really ready: all of them are polled before the clock
//! jumps, and waited for, in real time, when there is no deadline to jump to.

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

/// A clock that jumps, and the threads that go by it. One exists at a time in a process.
pub struct Simulation {
    /// The simulated time, in nanoseconds. It only grows, set under `state` by the thread that advances
    /// the clock; read by any thread without the lock. Acquire and Release: a thread that sees a later
    /// time sees all writes from before it.
    now: AtomicU64,
    /// Which thread runs, and the waits of the others.
    state: Mutex<State>,
}

/// The number of a simulated thread, in the order of enrolment.
type Id = u64;

/// The fields that the simulation's mutex protects; any simulated thread writes them when it ends its turn.
struct State {
    /// The state of the pseudo-random generator that chooses among the ready threads. `None`: the one that
    /// was ready first is chosen.
    random: Option<u64>,
    /// The clock jumps by itself when all threads wait; else only [`Simulation::jump`] advances it. Fixed.
    autojump: bool,
    /// The number of the thread enrolled last; never lowered, so a number is used once.
    enrolled: Id,
    /// Enrolled threads that have not ended, in the order of their numbers; the root is not among them.
    /// Removed by the thread itself when it ends, or by the enrolling one if it was not started.
    others: BTreeMap<Id, Participant>,
    /// The thread that runs. `None` only between two turns, or while all wait, or are away.
    running: Option<Id>,
    /// Number of threads in [`outside`]. While it is not zero the clock does not jump: such a thread may
    /// come back and run at the present time.
    away: usize,
    /// Threads that can run, in the order in which they became ready.
    ready: Vec<Id>,
    /// Threads in a wait.
    parked: Vec<Parked>,
    /// Where threads that do not run sleep, in real time. Added by the sleeping thread, removed when it is
    /// chosen.
    turns: HashMap<Id, atomics::Arc<Waiter>>,
    /// All threads wait without a deadline, and the root has been made ready to report it; cleared by the
    /// root.
    deadlocked: bool,
    /// The root is in [`Simulation::finish`], and ready when `others` is empty.
    finishing: bool,
}

/// A thread that takes part, other than the root. Fixed at enrolment.
struct Participant {
    /// For the report of a deadlock.
    name: Arc<str>,
    /// Cancelled if it is to end because of a deadlock. To be dropped with no lock held: this may be the
    /// last count.
    node: NodeRef,
}

/// A thread in a wait.
struct Parked {
    /// The thread.
    id: Id,
    /// Address of its waiter: only compared, never dereferenced. The waiter is alive, since its thread is
    /// in the middle of parking on it.
    waiter: usize,
    /// When it is ready although its waiter was not settled; [`Time::NEVER`] if it has no deadline.
    until: Time,
    /// Descriptors that make it ready.
    interests: Interests,
}

/// The thread that began the simulation. Enrolled threads have the numbers from 1 on.
const ROOT: Id = 0;

thread_local! {
    /// The simulation that the calling thread takes part in, and its number there. Written by that thread
    /// alone, together with its clock source and its scheduler, in [`set_membership`].
    static MEMBERSHIP: RefCell<Option<(Arc<Simulation>, Id)>> = const { RefCell::new(None) };
}

/// A simulation was entered while another one exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlreadySimulating;

/// All threads of a simulation waited, and none had a deadline. Two of them wait for each other, or one
/// waits for something that no thread of the simulation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlock {
    /// Names of the threads that waited, in the order in which they were started; the thread that gets this
    /// report is not among them.
    pub waiting: Vec<Arc<str>>,
}

/// The simulation that the calling thread runs under.
pub(crate) fn current() -> Option<Arc<Simulation>> {
    membership().map(|(simulation, _)| simulation)
}

/// The calling thread's simulation and number. One load where no simulation exists; `None` at the end of a
/// thread's life, too, when its thread-locals are gone.
fn membership() -> Option<(Arc<Simulation>, Id)> {
    if !source::exists() {
        return None;
    }
    MEMBERSHIP
        .try_with(|cell| cell.borrow().clone())
        .ok()
        .flatten()
}

/// From now on the calling thread takes part in this simulation, under this number, or in none. Returns
/// its earlier simulation, if there was one.
fn set_membership(new: Option<(Arc<Simulation>, Id)>) -> Option<(Arc<Simulation>, Id)> {
    let simulation = new.as_ref().map(|(simulation, _)| simulation.clone());
    let scheduler = simulation.clone();
    source::set(simulation.map(|simulation| simulation as Arc<dyn Source>));
    scheduler::set(scheduler.map(|simulation| simulation as Arc<dyn Scheduler>));
    MEMBERSHIP.with(|cell| cell.replace(new))
}

/// Run `body` in simulated time, and wait for the threads that it has [spawned](spawn). With a `seed`, a
/// pseudo-random generator chooses the thread that runs next; the same seed makes the same choices.
///
/// # Blocking
/// Blocks in real time until `body` and the threads have ended, and before that until another run in this
/// process has ended.
///
/// # Errors
/// [`Deadlock`] if the spawned threads waited without a deadline after `body` had returned; they have been
/// cancelled. If `body` itself waits at a deadlock, its wait ends with
/// [`Stop::Interrupted`](crate::Stop::Interrupted) instead.
///
/// # Panics
/// If it is called under a simulation; and with the panic of `body`.
pub fn run<T>(seed: Option<u64>, body: impl FnOnce() -> T) -> Result<T, Deadlock> {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    assert!(membership().is_none(), "{AlreadySimulating}");
    let _turn = ONE_AT_A_TIME.lock();
    let simulation = Simulation::new(true, seed);
    let Ok(enrolled) = simulation.enter() else {
        unreachable!("{AlreadySimulating}") // unless a host has a run of its own at the same time
    };
    let result = body();
    let finished = simulation.finish();
    drop(enrolled);
    finished.map(|()| result)
}

/// Start a thread that takes part in the simulation under which the calling thread runs; an ordinary
/// thread if there is none. It runs `body` as a task of its own, whose token is cancelled if the simulation
/// comes to a deadlock.
///
/// # Blocking
/// Never blocks: the new thread begins when the calling one waits. Joining it blocks in real time, and the
/// clock stands still meanwhile, so join a thread only when it has ended.
///
/// # Panics
/// If the system refuses to start a thread.
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
    /// A simulation whose clock begins at the present time, and jumps by itself if `autojump`. `seed`: as
    /// for [`run`].
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
                deadlocked: false,
                finishing: false,
            }),
        })
    }

    /// The simulated time. Callable from any thread.
    pub fn time(&self) -> Time {
        Time::from_nanos(self.now.load(Ordering::Acquire))
    }

    /// Advance the clock by this time. It stops at each deadline on the way, in their order, until the
    /// work that is due then is done. A thread of the simulation first lets all others run until they
    /// wait, and again after each deadline.
    ///
    /// # Blocking
    /// Blocks in real time until the other threads wait, if the calling thread takes part; else never.
    pub fn jump(self: &Arc<Self>, by: Duration) {
        let participant = membership().filter(|(simulation, _)| Arc::ptr_eq(simulation, self));
        let yield_turn = || {
            if let Some((_, id)) = &participant {
                self.yield_turn(*id);
            }
        };
        yield_turn(); // so that the others have set the deadlines that the clock is to stop at
        let until = self.time() + by;
        loop {
            let mut state = self.state.lock();
            let next = state.next_deadline().min(until);
            // Called from outside while all threads wait, the jump itself has to wake one.
            let idle = self.advance(&mut state, next) && state.running.is_none();
            let turn = if idle { state.choose() } else { None };
            drop(state);
            timer::expire_simulated(next);
            wake(turn);
            yield_turn();
            if next >= until {
                return;
            }
        }
    }

    /// Let the ready threads run, and return when all others wait. Called by the running thread `id`.
    fn yield_turn(&self, id: Id) {
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

    /// Let the calling thread take part as the root, until the result is dropped.
    ///
    /// # Errors
    /// [`AlreadySimulating`] if a simulation, this one included, has a root already.
    pub fn enter(self: &Arc<Self>) -> Result<Enrolled, AlreadySimulating> {
        if !source::announce() {
            return Err(AlreadySimulating);
        }
        self.state.lock().running = Some(ROOT);
        set_membership(Some((self.clone(), ROOT)));
        Ok(Enrolled { id: ROOT })
    }

    /// On the root: wait until all other threads have ended. On a deadlock they are cancelled, once, and
    /// waited for again; those that do not end then either are left alone.
    ///
    /// # Blocking
    /// Blocks in real time, for as long as the other threads run.
    ///
    /// # Errors
    /// [`Deadlock`], with the threads that waited when it was noticed.
    pub fn finish(&self) -> Result<(), Deadlock> {
        let mut deadlock = None;
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
            let (others, deadlocked) = {
                let mut state = self.state.lock();
                state.finishing = false;
                let nodes = state.others.values().map(|other| other.node.clone());
                let nodes = nodes.collect::<Vec<_>>();
                (nodes, std::mem::take(&mut state.deadlocked))
            };
            if deadlocked {
                if deadlock.is_some() {
                    break; // cancelled, they have deadlocked again
                }
                deadlock = Some(self.deadlock());
                for node in others {
                    let reason = "deadlock: every simulated thread is blocked";
                    let reason = Some(Arc::from(reason));
                    node.cancel(Cause::now(CauseKind::Shutdown, reason, None));
                }
            }
        }
        deadlock.map_or(Ok(()), Err)
    }

    /// The report of a deadlock, with the threads that have not ended.
    pub(crate) fn deadlock(&self) -> Deadlock {
        let state = self.state.lock();
        let waiting = state.others.values().map(|other| other.name.clone());
        Deadlock {
            waiting: waiting.collect(),
        }
    }

    /// Advance the clock to `now`: threads whose time has come are ready. True if there are any.
    fn advance(&self, state: &mut State, now: Time) -> bool {
        self.now.fetch_max(now.as_nanos(), Ordering::AcqRel);
        let due = state.take_due(now);
        let any = !due.is_empty();
        state.ready.extend(due.into_iter().map(|parked| parked.id));
        any
    }

    /// If no thread runs, choose the next one and wake it; else without effect. Where none is ready,
    /// waits for a descriptor, advances the clock, or reports a deadlock, in this order, until one is.
    /// Called with no lock held, by any thread; at most one of several at a time finds a thread to
    /// choose.
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
            // Nothing to do if no thread is left, nor if one is away: it may make others ready when it
            // comes back.
            let idle = state.parked.is_empty() && !state.finishing;
            if state.running.is_some() || state.away > 0 || idle {
                return;
            }
            if state.make_ready_by_descriptor() {
                continue;
            }
            if !state.autojump {
                return; // `jump` will go on
            }
            let next = state.next_deadline();
            if next.is_never() {
                if state
                    .parked
                    .iter()
                    .any(|parked| !parked.interests.is_empty())
                {
                    // Only a descriptor can end a wait: sleep for one, in real time.
                    let interests = state.interests();
                    drop(state);
                    park::wait_for_any(&interests);
                } else if !state.report_to_root() {
                    return;
                }
                continue;
            }
            self.advance(&mut state, next);
            // Counted as away: the first thread that is woken below runs at once, and must not find that
            // nothing is left to do before the other deadlines of this instant have been noticed.
            state.away += 1;
            drop(state);
            // Cancels at this deadline, which settles waiters and so makes more threads ready.
            timer::expire_simulated(next);
            self.state.lock().away -= 1;
        }
    }

    /// Sleep in real time until this thread is the one that runs.
    fn await_turn(&self, id: Id) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                if state.running == Some(id) {
                    return;
                }
                // One that the kernel wakes: this thread's own scheduler is the simulation.
                let waiter = Waiter::real();
                state.turns.insert(id, waiter.clone());
                waiter
            };
            // A signal handler of the host that raises does not end this sleep: the thread would run out
            // of turn.
            while waiter.park(Time::NEVER).is_none() {}
        }
    }

    /// This thread has ended, or was not started: the next one runs.
    fn retire(&self, id: Id) {
        let participant = {
            let mut state = self.state.lock();
            let participant = state.others.remove(&id);
            if state.running == Some(id) {
                state.running = None;
            }
            // The condition for which the root thread waits in `finish`.
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
    /// The waiter of one of its threads was settled: the thread is ready. It runs when the calling thread,
    /// if that takes part, waits.
    fn wake(&self, waiter: &Waiter) {
        let turn = {
            let mut state = self.state.lock();
            let address = std::ptr::from_ref(waiter).addr();
            let same = |parked: &Parked| parked.waiter == address;
            let Some(at) = state.parked.iter().position(same) else {
                return; // it has not parked, and will look at the outcome before it does
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

    /// Let the other threads run until the waiter is settled, its time has come, or one of its descriptors
    /// may be ready. False, on the root only: all threads wait without a deadline, and the root's wait is
    /// to end with the report.
    fn park(&self, waiter: &Waiter, until: Time, interests: Interests) -> bool {
        let Some((_, id)) = membership() else {
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
        !(id == ROOT && std::mem::take(&mut state.deadlocked))
    }
}

impl State {
    /// Choose one of the ready threads, which is `running` from now on. Returns the waiter on which it
    /// sleeps; `None` if none is ready, or if the chosen one is not asleep yet and will find its number.
    fn choose(&mut self) -> Option<atomics::Arc<Waiter>> {
        if self.ready.is_empty() {
            return None;
        }
        let at = match &mut self.random {
            None => 0,
            Some(seed) => {
                // splitmix64, by Vigna. Any generator will do whose sequence follows from its seed.
                *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut drawn = *seed;
                drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                usize::try_from((drawn ^ (drawn >> 31)) % self.ready.len() as u64).unwrap_or(0)
            }
        };
        let id = self.ready.remove(at);
        self.running = Some(id);
        self.turns.remove(&id)
    }

    /// The earliest deadline of all waits and of all tokens that the timer knows; [`Time::NEVER`] if there
    /// is none. Locks the timer.
    fn next_deadline(&self) -> Time {
        self.parked
            .iter()
            .map(|parked| parked.until)
            .fold(timer::next_simulated(), Time::min)
    }

    /// All descriptors that parked threads wait for.
    fn interests(&self) -> Interests {
        let each = self.parked.iter().flat_map(|parked| &parked.interests);
        each.copied().collect()
    }

    /// Make one thread ready that waits for a descriptor which is ready, or bad. False: there is none.
    fn make_ready_by_descriptor(&mut self) -> bool {
        let noticed = self
            .parked
            .iter()
            .position(|parked| park::any_ready(&parked.interests));
        let parked = noticed.map(|at| self.parked.remove(at));
        self.ready.extend(parked.iter().map(|parked| parked.id));
        parked.is_some()
    }

    /// Make the root ready, to report a deadlock. False: it neither waits nor is in [`Simulation::finish`],
    /// because it is away or has left, so there is no thread to report to.
    fn report_to_root(&mut self) -> bool {
        match self.parked.iter().position(|parked| parked.id == ROOT) {
            Some(at) => _ = self.parked.remove(at),
            None if self.finishing => {}
            None => return false,
        }
        self.ready.push(ROOT);
        self.deadlocked = true;
        true
    }

    /// Take out the threads whose time has come by `now`, the earliest first, in the order of parking where
    /// several have the same.
    fn take_due(&mut self, now: Time) -> Vec<Parked> {
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|parked| parked.until <= now);
        self.parked = later;
        due.sort_by_key(|parked| parked.until);
        due
    }
}

/// Wake the chosen thread. Called with no lock held.
fn wake(turn: Option<atomics::Arc<Waiter>>) {
    if let Some(turn) = turn {
        turn.settle_and_wake(WaitOutcome::Granted);
    }
}

/// A place in the simulation for a thread that is being started, and moved to it. It keeps the order of
/// starting, whatever the system's scheduler does with the new thread; if it is dropped on the way, the
/// place is withdrawn.
#[must_use]
pub(crate) struct Enrolment {
    /// The simulation of the starting thread.
    simulation: Arc<Simulation>,
    /// The new thread's number, in `others` and `ready` from the start.
    id: Id,
    /// [`Enrolment::begin`] was called, so the drop leaves the place to [`Enrolled`].
    taken: bool,
}

/// A place for a thread that the calling one is about to start; `None` if that takes part in no simulation.
/// `node`: cancelled if the simulation comes to a deadlock.
pub(crate) fn enrol(name: &str, node: &NodeRef) -> Option<Enrolment> {
    let simulation = current()?;
    let id = {
        let mut state = simulation.state.lock();
        state.enrolled += 1;
        let id = state.enrolled;
        // Ready at once: the new thread is chosen in its turn, even if it has not yet begun to run.
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
        set_membership(Some((self.simulation.clone(), self.id)));
        self.simulation.await_turn(self.id);
        Enrolled { id: self.id }
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        // The thread was not started.
        let (simulation, id) = (&self.simulation, self.id);
        let mut state = simulation.state.lock();
        state.ready.retain(|other| *other != id);
        drop(state);
        simulation.retire(id);
    }
}

/// The calling thread takes part in a simulation until this is dropped, which lets the next thread run. To
/// be dropped on the thread that made it.
#[must_use]
pub struct Enrolled {
    /// The thread's number; the root's drop ends the simulation.
    id: Id,
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let membership = set_membership(None);
        if self.id == ROOT {
            // The next simulation may begin.
            source::withdraw();
        }
        if let Some((simulation, id)) = membership {
            simulation.retire(id);
        }
    }
}

/// Run `act` in real time, with the calling thread away from its simulation: for waits whose end is up to
/// simulated threads, as a kill's is. They run meanwhile, and the clock stands still when all of them wait.
/// Afterwards the calling thread waits for its turn.
pub(crate) fn in_real_time<R>(act: impl FnOnce() -> R) -> R {
    let Some((simulation, id)) = membership() else {
        return act();
    };
    {
        let mut state = simulation.state.lock();
        state.running = None;
        state.away += 1;
    }
    simulation.dispatch();
    // The real clock and the kernel's scheduler, for the time of the call.
    set_membership(None);
    let result = act();
    set_membership(Some((simulation.clone(), id)));
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

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("every thread waits, and none of them has a deadline")?;
        if !self.waiting.is_empty() {
            write!(f, "; beside this one: {}", self.waiting.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Deadlock {}
