//! `GroupCore`: the parts of `TaskGroup` that must be atomic with respect to kills. `WorkerThread`: a
//! thread that runs tasks of a group, or finishes a kill.
//!
//! Guarantees: a child that has been started is known to the group, and the group's block does not end
//! before its children, though the group's own thread may be killed, or interrupted by Ctrl-C, before
//! any bytecode, those of the group's methods included. So starting and joining are native. If the
//! kill skips `__exit__`, the core calls the block's hook ([`SkippedExit`]) at the end of an enclosing
//! scope or task, which joins the children instead.
//!
//! How: the group's state is under one mutex, and Python objects are dropped after it is released. The
//! phase goes Fresh, Open, Over; it becomes Over in the same critical section that finds no child left,
//! so that no child can be started afterwards. A join goes from `Wait` to `Shielded` to `Kill`, and
//! never back:
//!
//! | mode | the children | ends with |
//! |---|---|---|
//! | `Wait` | run | a cancel, kill or signal of the group's thread: `Shielded`, or `Kill` for a kill |
//! | `Shielded` | have been cancelled | a kill, or a second signal: `Kill` |
//! | `Kill` | are killed, all at once, as the policy says | their end, or their abandonment |

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::boundary::{BodyEnd, Boundary};
use crate::cause::{Cause, CauseKind, DEFAULT_GRACE};
use crate::clock::Time;
use crate::error::{ScopeMisuse, Stop};
use crate::fork;
use crate::host::Home;
use crate::python::binding::attach::attach;
use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::raised;
use crate::python::error::{self, Cancelled};
use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::mask::Mask;
use crate::python::op::Visited;
use crate::python::ports::{group_hooks, group_task};
use crate::python::scope::{CancelScope, deadline_exceeded};
use crate::python::task::Task;
use crate::python::task::stop::StopPolicy;
use crate::python::wait::blocking;
use crate::scope::{self, AbandonHook, Kind};
use crate::stop;
use crate::sync::Interrupted;
use crate::task::{self};
use crate::testing::{self, Enrolment};
use crate::token::{CancelSource, CancelToken};
use crate::wait;

/// The bound of masks around steps that take moments.
const BRIEFLY: Duration = Duration::from_secs(5);

/// The children of a TaskGroup, and the block that joins them.
#[pyclass(frozen, subclass, weakref, module = "desist._core")]
pub(in crate::python) struct GroupCore {
    /// The block's scope, which a cancellation of the group cancels. Above `children_source`.
    scope: Py<CancelScope>,
    /// Cancels the children, but not the block: its node is below the block's scope. Written once, when
    /// the block is entered.
    children_source: OnceLock<CancelSource>,
    /// For children that a join kills. Fixed.
    policy: stop::StopPolicy,
    /// The greatest number of threads. Fixed.
    most: usize,
    /// The fork generation of the process that has the threads. In a child of it they do not exist, and
    /// no join waits for them.
    generation: u32,
    /// Locked by attached threads, for moments; no Python code runs under it.
    state: Mutex<State>,
}

/// The fields that the group's mutex protects.
#[derive(Default)]
struct State {
    /// Written by `__enter__` and by the join that finds no child left.
    phase: Phase,
    /// Children that have been started; ended ones are removed by the next join.
    children: Vec<Child>,
    /// Threads that run children or are being started, at most `most`.
    threads: usize,
    /// How many children have been started in all.
    started: usize,
    /// For how many of these a caller of `_claim` waits or has waited; at most `started`.
    claimed: usize,
    /// Started children for which there is no thread yet, in order.
    waiting: VecDeque<Py<PyAny>>,
}

/// Where the group's block is; it goes from each to the next one, and never back.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not entered: no child can be started.
    #[default]
    Fresh,
    /// Children can be started, also while the block's end waits for them.
    Open,
    /// No child is left, and none can be started.
    Over,
}

/// A child that was started.
struct Child {
    /// Its task, which a join waits for.
    core: Arc<task::Task>,
    /// The object of `desist.Task`.
    task: Py<PyAny>,
}

/// How a group waits for its children; see the module's header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JoinMode {
    /// The block ended without an exception: a wait like any other.
    Wait,
    /// The children have been cancelled; a cancellation of the group's thread does not end this.
    Shielded,
    /// The group's own thread was killed, or a second signal came.
    Kill,
}

/// The first of each kind of stop that interrupted a join.
#[derive(Default)]
struct Interruption {
    /// Raised only if neither of the others, nor an exception of the block itself, is.
    cancelled: Option<Cause>,
    /// Goes before the other two.
    killed: Option<Cause>,
    /// The exception of a signal handler.
    raised: Option<PyErr>,
}

impl GroupCore {
    /// True in a forked child of the process that made the group.
    fn lost_in_fork(&self) -> bool {
        self.generation != fork::generation()
    }

    /// One child that has not ended. If there is none, the group is over, and no child can be started.
    fn one_left(&self) -> Option<Arc<task::Task>> {
        let (left, ended) = {
            let mut state = self.state.lock();
            let ended = if self.lost_in_fork() {
                state.waiting.clear();
                std::mem::take(&mut state.children)
            } else {
                state.take_ended()
            };
            let left = state.children.first().map(|child| child.core.clone());
            if left.is_none() {
                state.phase = Phase::Over;
            }
            (left, ended)
        };
        drop(ended); // unlocked: dropping an object may run any code
        left
    }

    /// Cancels the children, but not the block.
    fn cancel_children(&self, py: Python<'_>, reason: &str) {
        if let Some(children_source) = self.children_source.get() {
            detached(py, || {
                children_source.cancel_as(CauseKind::ScopeExited, Some(reason.into()), None)
            });
        }
    }

    /// Waits until all children have ended, whatever interrupts the wait.
    fn join(&self, py: Python<'_>, mut mode: JoinMode) -> Interruption {
        let mut up = Interruption::default();
        if mode == JoinMode::Wait {
            if let Err(stop) = wait::checkpoint() {
                mode = self.note(py, mode, stop, &mut up);
            }
        }
        while let Some(child) = self.one_left() {
            let ended = match mode {
                JoinMode::Wait => detached(py, || child.over().wait_until(Time::NEVER)),
                JoinMode::Shielded => {
                    detached(py, || shielded(|| child.over().wait_until(Time::NEVER)))
                }
                JoinMode::Kill => {
                    self.kill_children(py);
                    continue;
                }
            };
            if let Err(stop) = ended {
                mode = self.note(py, mode, stop, &mut up);
            }
        }
        up
    }

    /// Records the exception that interrupted the join, and returns the mode to go on in.
    fn note(&self, py: Python<'_>, mode: JoinMode, stop: Stop, up: &mut Interruption) -> JoinMode {
        match stop {
            Stop::Cancelled(cause) => {
                up.cancelled.get_or_insert(cause);
            }
            Stop::Killed(cause) => {
                up.killed.get_or_insert(cause);
            }
            Stop::Interrupted => {
                let raised = error::from_stop(py, Stop::Interrupted);
                up.raised.get_or_insert(raised);
            }
        }
        self.cancel_children(py, "the group's block was interrupted");
        if up.killed.is_some() || (mode == JoinMode::Shielded && up.raised.is_some()) {
            JoinMode::Kill
        } else {
            JoinMode::Shielded
        }
    }

    /// Kills the children, all at once, as the policy says.
    fn kill_children(&self, py: Python<'_>) {
        let alive: Vec<Child> = {
            let state = self.state.lock();
            state
                .children
                .iter()
                .map(|child| child.clone_ref(py))
                .collect()
        };
        let policy = self.policy;
        // A kill of the group's own thread is deferred until its children have ended.
        let _mask = Mask::open(longest(&policy));
        detached(py, || {
            let asked_until = Time::after(policy.cooperative);
            let unresponsive = |child: &Child| loop {
                match child.core.over().wait_shielded(asked_until) {
                    Ok(over) => return !over,
                    // One more Ctrl-C adds nothing.
                    Err(Interrupted) => drop(raised::take()),
                }
            };
            let unresponsive: Vec<Child> = alive.into_iter().filter(unresponsive).collect();
            let at_once = stop::StopPolicy {
                cooperative: Duration::ZERO,
                ..policy
            };
            let kill = |child: &Child| {
                let _inside = fork::inside();
                // Fails only for a task that was not started, or that calls this itself.
                let _ = stop::kill(&child.core, None, &at_once, &mut || child.abandoned());
            };
            // In a simulation the children need turns to end; the kill itself takes real time.
            testing::in_real_time(|| {
                fork::outside(|| {
                    thread::scope(|threads| {
                        for child in &unresponsive {
                            let killer = thread::Builder::new().name("desist-killer".into());
                            if killer.spawn_scoped(threads, move || kill(child)).is_err() {
                                kill(child);
                            }
                        }
                    });
                });
            });
            let _ = fork::outside(|| attach(|_| drop(unresponsive)));
        });
    }

    /// Makes and raises the exception that leaves the block, whose children have all ended.
    fn conclude(
        slf: &Bound<'_, Self>,
        value: &Bound<'_, PyAny>,
        up: &Interruption,
    ) -> PyResult<bool> {
        let (py, this) = (slf.py(), slf.get());
        let given = (!value.is_none()).then(|| PyErr::from_value(value.clone()));
        let killed = value.is_instance_of::<Killed>() || up.killed.is_some();
        let raised = if value.is_instance_of::<Killed>() {
            given
        } else if let Some(cause) = &up.killed {
            Some(error::from_stop(py, Stop::Killed(cause.clone())))
        } else if let Some(raised) = &up.raised {
            Some(raised.clone_ref(py))
        } else {
            let cancelled = up.cancelled.clone().map(Stop::Cancelled);
            given.or_else(|| Some(error::from_stop(py, cancelled?)))
        };
        let _mask = Mask::open(BRIEFLY);
        let left = this.scope.get().leave(py, raised.as_ref());
        let leaving = raised.as_ref().map(|raised| raised.value(py).clone());
        let instead = slf.call_method1(group_hooks::_verdict(py), (leaving,))?;
        if !instead.is_none() {
            return Err(PyErr::from_value(instead));
        }
        let absorbed = match left {
            Ok(absorbed) => absorbed,
            // The kill has skipped the end of a block inside this one.
            Err(_) if killed => None,
            Err(misuse) => return Err(misuse),
        };
        match (absorbed, raised) {
            (Some(cause), Some(raised)) if cause.kind == CauseKind::Deadline => {
                Err(deadline_exceeded(py, raised.value(py).as_any()))
            }
            (Some(_), _) => Ok(true),
            (None, Some(raised)) if !raised.value(py).is(value) => Err(raised),
            (None, _) => Ok(false),
        }
    }
}

impl State {
    fn take_ended(&mut self) -> Vec<Child> {
        let children = std::mem::take(&mut self.children);
        let (ended, left) = children
            .into_iter()
            .partition(|child| child.core.over().is_set());
        self.children = left;
        ended
    }
}

impl Child {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            core: self.core.clone(),
            task: self.task.clone_ref(py),
        }
    }

    fn abandoned(&self) {
        fork::outside(|| {
            attach(|py| {
                if let Err(raised) = self.task.call_method0(py, group_task::_abandoned(py)) {
                    raised.write_unraisable(py, None);
                }
            })
        });
    }
}

/// The longest that a kill by this policy takes.
fn longest(policy: &stop::StopPolicy) -> Duration {
    let rungs = [policy.at_wait, policy.async_exc, policy.trace];
    let rungs: Duration = rungs.into_iter().flatten().sum();
    policy.cooperative + rungs + policy.defer + DEFAULT_GRACE
}

/// Runs a wait that kills interrupt, and cancellations do not.
fn shielded<T>(wait: impl FnOnce() -> T) -> T {
    let node = scope::enter(Kind::Shield, Time::NEVER, None, Home::NATIVE);
    let result = wait();
    let _ = scope::exit(&node, false); // innermost, and on this thread
    result
}

/// The hook of a group's block whose `__exit__` was skipped.
struct SkippedExit(Mutex<Option<Py<GroupCore>>>);

impl AbandonHook for SkippedExit {
    fn on_abandoned(&self) {
        fork::outside(|| {
            attach(|py| {
                let Some(crew) = self.0.lock().take() else {
                    return;
                };
                let crew = crew.bind(py);
                crew.get().join(py, JoinMode::Kill);
                if let Err(raised) = crew.call_method0(group_hooks::_on_abandoned(py)) {
                    raised.write_unraisable(py, None);
                }
            })
        });
    }
}

#[pymethods]
impl GroupCore {
    #[new]
    #[pyo3(signature = (policy, most))]
    fn new(py: Python<'_>, policy: Option<&StopPolicy>, most: Option<usize>) -> PyResult<Self> {
        Ok(Self {
            scope: Py::new(py, CancelScope::for_group())?,
            children_source: OnceLock::new(),
            policy: policy.map_or_else(stop::StopPolicy::default, StopPolicy::core),
            most: most.unwrap_or(usize::MAX),
            generation: fork::generation(),
            state: Mutex::default(),
        })
    }

    /// The mutex is locked by attached threads only.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        visit.call(&self.scope)?;
        let Some(state) = self.state.try_lock() else {
            return Ok(());
        };
        let children = state.children.iter().map(|child| &child.task);
        children
            .chain(&state.waiting)
            .try_for_each(|task| visit.call(task))
    }

    fn __clear__(&self) {
        let mut state = self.state.lock();
        let dropped = (
            std::mem::take(&mut state.children),
            std::mem::take(&mut state.waiting),
        );
        drop(state);
        drop(dropped); // unlocked: may run any code
    }

    /// The block's scope: cancelling it cancels the block and its tasks.
    #[getter]
    fn cancel_scope(&self, py: Python<'_>) -> Py<CancelScope> {
        self.scope.clone_ref(py)
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let (py, this) = (slf.py(), slf.get());
        let abandon_hook = Arc::new(SkippedExit(Mutex::new(Some(slf.clone().unbind()))));
        let node = this.scope.get().enter_for(py, abandon_hook)?;
        // Made now, so that a task's token is below the scope even if the task never waits.
        let children_source = CancelToken::from_node(node).child();
        let _ = this.children_source.set(children_source); // the scope can be entered once
        this.state.lock().phase = Phase::Open;
        Ok(slf)
    }

    /// Waits until all tasks have ended.
    #[pyo3(signature = (r#type, value, _traceback, /))]
    fn __exit__(
        slf: &Bound<'_, Self>,
        r#type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<bool> {
        let (py, this) = (slf.py(), slf.get());
        let phase = this.state.lock().phase;
        match phase {
            Phase::Fresh => return Err(error::misuse(py, ScopeMisuse::NotEntered)),
            // The task that was in the block is over: a suspended generator is being dropped.
            Phase::Over => return Ok(false),
            Phase::Open => {}
        }
        let mode = if value.is_instance_of::<Killed>() {
            JoinMode::Kill
        } else if r#type.is_none() {
            JoinMode::Wait
        } else {
            JoinMode::Shielded
        };
        if mode != JoinMode::Wait {
            this.cancel_children(py, "the group's block was left by an exception");
        }
        let up = this.join(py, mode);
        let absorbed = Self::conclude(slf, &value, &up)?;
        if r#type.is_none() {
            error::check_kill(py)?;
        }
        Ok(absorbed)
    }

    /// A task to be started in the group. RuntimeError: its block is not open.
    fn _make(&self, name: &str) -> PyResult<Task> {
        self.check_open(self.state.lock().phase)?;
        let Some(children_source) = self.children_source.get() else {
            return Err(not_open(Phase::Fresh));
        };
        Ok(Task::of(task::Task::new(
            name,
            Some(&children_source.token()),
        )))
    }

    /// Start the body that `_make` has made, as `task`: on a new thread, or, if there are enough, on the
    /// first one that has nothing else to do.
    fn _start(slf: &Bound<'_, Self>, core: &Task, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let core = core.core();
        let mask = Mask::open(BRIEFLY);
        let child = Child {
            core: core.clone(),
            task: task.clone().unbind(),
        };
        let (ended, enough) = {
            let mut state = this.state.lock();
            this.check_open(state.phase)?;
            core.launch();
            let crowded = state.children.len() == state.children.capacity();
            let ended = if crowded {
                state.take_ended()
            } else {
                Vec::new()
            };
            state.children.push(child);
            state.started += 1;
            let enough = state.threads >= this.most;
            if enough {
                state.waiting.push_back(task.clone().unbind());
            } else {
                state.threads += 1;
            }
            (ended, enough)
        };
        drop(ended);
        if !enough {
            Self::start_thread(slf, core, task)?;
        }
        drop(mask);
        error::check_kill(py)
    }

    /// The next task for the calling worker thread; None: end.
    fn _next(&self) -> Option<Py<PyAny>> {
        let mut state = self.state.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.threads -= 1;
        }
        next
    }

    /// Take out a task that has no thread yet. False: it has one, or has ended.
    fn _withdraw(&self, core: &Task) -> bool {
        let mut state = self.state.lock();
        let is_it = |child: &Child| Arc::ptr_eq(&child.core, core.core());
        let Some(address) = state.children.iter().find(|child| is_it(child)) else {
            return false;
        };
        let address = address.task.as_ptr();
        let Some(place) = state
            .waiting
            .iter()
            .position(|task| task.as_ptr() == address)
        else {
            return false;
        };
        let task = state.waiting.remove(place);
        drop(state);
        drop(task); // unlocked
        true
    }

    /// One more thread, for a task that `_next` gave.
    fn _hire(slf: &Bound<'_, Self>, core: &Task, task: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::start_thread(slf, core.core(), task)
    }

    /// The caller will wait for one more task to end. False: there is none to wait for.
    fn _claim(&self) -> bool {
        let mut state = self.state.lock();
        let left = state.claimed < state.started;
        state.claimed += usize::from(left);
        left
    }

    /// The caller does not wait any more.
    fn _unclaim(&self) {
        self.state.lock().claimed -= 1;
    }

    /// A task has failed: the others, and the block, are cancelled.
    fn _fail(&self, py: Python<'_>, reason: &str) {
        if let Some(node) = self.scope.get().node() {
            let cause = Cause::now(CauseKind::SiblingFailed, Some(reason.into()), None);
            detached(py, || node.cancel(cause));
        }
    }
}

impl GroupCore {
    fn check_open(&self, phase: Phase) -> PyResult<()> {
        if self.lost_in_fork() {
            return Err(PyRuntimeError::new_err(
                "this group's tasks are in the parent process; make a new group after a fork",
            ));
        }
        if phase == Phase::Open {
            Ok(())
        } else {
            Err(not_open(phase))
        }
    }

    fn start_thread(
        slf: &Bound<'_, Self>,
        core: &Arc<task::Task>,
        task: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let hand = Bound::new(py, WorkerThread::new(core.name()))?;
        let started = slf.call_method1(group_hooks::_start_thread(slf.py()), (&hand, task));
        let Err(failure) = started else {
            return Ok(());
        };
        // Ctrl-C may have been raised after the thread had begun.
        if hand.get().withdraw(py) {
            let child = {
                let mut state = this.state.lock();
                state.threads -= 1;
                state.started -= 1;
                let place = state
                    .children
                    .iter()
                    .position(|child| Arc::ptr_eq(&child.core, core));
                place.map(|place| state.children.swap_remove(place))
            };
            drop(child);
            core.unlaunch();
        }
        Err(failure)
    }
}

fn not_open(phase: Phase) -> PyErr {
    PyRuntimeError::new_err(match phase {
        Phase::Fresh => "this group's block has not begun; start tasks inside `with group:`",
        _ => "this group's block has ended; start tasks inside it, or make a new group",
    })
}

/// A thread that runs tasks, or finishes a kill. It is a task itself, so that a kill between two bodies
/// is not delivered in its own code.
#[pyclass(frozen, module = "desist._core")]
pub(in crate::python) struct WorkerThread {
    /// The task that is never killed. It is over when the thread has ended its work, or was abandoned.
    worker: Arc<task::Task>,
    /// Taken by the thread when it begins, or by `withdraw`; the first of them counts.
    claimed: AtomicBool,
    /// The thread's place in a simulation; taken by the thread when it begins.
    enrolment: Mutex<Option<Enrolment>>,
}

#[pymethods]
impl WorkerThread {
    /// For a thread that the calling one is about to start.
    #[new]
    fn new(name: &str) -> Self {
        let worker = task::Task::new(name, None);
        let enrolment = testing::enrol(name, worker.node());
        Self {
            worker,
            claimed: AtomicBool::new(false),
            enrolment: Mutex::new(enrolment),
        }
    }

    /// On the thread: call `work(*arguments)`.
    #[pyo3(signature = (work: "Callable[..., object]", *arguments: "object"))]
    fn work(
        &self,
        py: Python<'_>,
        work: &Bound<'_, PyAny>,
        arguments: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        if self.claimed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let enrolment = self.enrolment.lock().take();
        // Without a simulation it stays attached: it takes its first task before its starter goes on.
        let enrolled = enrolment.map(|enrolment| detached(py, || enrolment.begin()));
        let boundary = Boundary::enter(&self.worker, None);
        let result = work.call1(arguments);
        detached(py, || boundary.leave(BodyEnd::Unwound));
        self.worker.over().set();
        detached(py, || drop(enrolled));
        match result {
            // A simulation that is deadlocked ends idle threads with this.
            Err(raised) if !raised.is_instance_of::<Cancelled>(py) => Err(raised),
            _ => Ok(()),
        }
    }

    /// Wait until it has ended its work, or was abandoned.
    ///
    /// Blocks: until then. A checkpoint.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        blocking(py, || self.worker.over().wait_until(Time::NEVER)).map(|_| ())
    }

    /// Its current task was abandoned, and the thread with it.
    fn abandoned(&self) {
        self.worker.over().set();
    }

    /// The thread could not be started. False: it was started all the same, and works.
    fn withdraw(&self, py: Python<'_>) -> bool {
        if self.claimed.swap(true, Ordering::AcqRel) {
            return false;
        }
        let enrolment = self.enrolment.lock().take();
        detached(py, || drop(enrolment));
        true
    }
}
