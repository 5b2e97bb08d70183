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
//! so that no child can be started afterwards. A join goes from `Wait` to `End`, and never back:
//!
//! | mode | the children | ends with |
//! |---|---|---|
//! | `Wait` | run | their end; a cancellation, kill or signal of the group's thread: `End` |
//! | `End` | are cancelled, and killed, all at once, as the policy says | their end, or their abandonment |
//!
//! A kill of the group's thread is deferred while it ends the children, which takes no longer than the
//! policy says ([`finish_all`]). An abandoned child keeps its thread: it counts until its function
//! returns, so that no more than `most` of them run at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::boundary::{BodyEnd, Boundary};
use crate::cause::{Cause, CauseKind};
use crate::clock::Time;
use crate::error::{ScopeMisuse, Stop};
use crate::foreign;
use crate::fork;
use crate::ledger::AbandonHook;
use crate::python::binding::attach::attach;
use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::error::{self, Cancelled};
use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::mask::Mask;
use crate::python::op::Visited;
use crate::python::ports::{group_hooks, group_task};
use crate::python::scope::{CancelScope, deadline_exceeded};
use crate::python::task::Task;
use crate::python::task::stop::{StopPolicy, finish_all};
use crate::python::token::CancelToken as PyCancelToken;
use crate::python::wait::blocking;
use crate::scope;
use crate::stop;
use crate::sync::Interrupted;
use crate::task;
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
    /// Threads that run children or are being started, at most `most`; those of abandoned children are
    /// among them.
    threads: usize,
    /// Threads whose child was abandoned, and has not returned. Raised by the thread that abandons it,
    /// before the child is over; lowered by the thread itself afterwards.
    abandoned: usize,
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
    /// The block is left early, and ends its children.
    End,
}

/// The stop that interrupted a join, and the exception of a signal handler that raised afterwards.
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
    fn cancel_children(&self, py: Python<'_>) {
        if let Some(children_source) = self.children_source.get() {
            let reason = Some("the group's block was left early".into());
            detached(py, || {
                children_source.cancel_as(CauseKind::ScopeExited, reason, None)
            });
        }
    }

    /// Waits until all children have ended, or ends them, whatever interrupts the wait.
    fn join(&self, py: Python<'_>, mut mode: JoinMode) -> Interruption {
        let mut up = Interruption::default();
        if mode == JoinMode::Wait {
            if let Err(stop) = wait::checkpoint() {
                mode = JoinMode::End;
                up.note(py, stop);
            }
        }
        if mode == JoinMode::End {
            self.cancel_children(py);
        }
        while let Some(child) = self.one_left() {
            if mode == JoinMode::End {
                self.end_children(py, &mut up);
            } else if let Err(stop) = detached(py, || child.over().wait_until(Time::NEVER)) {
                mode = JoinMode::End;
                up.note(py, stop);
                self.cancel_children(py);
            }
        }
        up
    }

    /// Ends the children, all at once, as the policy says. If that does not abandon a child that no rung
    /// has ended, this waits for the end of each.
    fn end_children(&self, py: Python<'_>, up: &mut Interruption) {
        self.end_waiting(py);
        let alive: Vec<Child> = {
            let state = self.state.lock();
            let children = state.children.iter();
            children.map(|child| child.clone_ref(py)).collect()
        };
        // Given to each child, which the cancellation may not have reached yet.
        let children_source = self.children_source.get();
        let cause = children_source.and_then(|source| source.token().cause());
        let begin = |child: &Child| {
            // Fails only for a task that was not started, or that calls this itself.
            let kill =
                stop::Kill::new(&child.core, CauseKind::Explicit, None, &self.policy).ok()?;
            let mut kill = match &cause {
                Some(cause) => kill.because(cause.clone()),
                None => kill,
            };
            kill.begin();
            Some(kill)
        };
        let kills = detached(py, || alive.iter().filter_map(begin).collect());
        let abandoned = |index: usize| alive[index].abandoned();
        let (_, raised) = finish_all(py, kills, &abandoned);
        let raised = raised.or_else(|| {
            let ended = |child: &Child| child.core.over().wait_shielded(Time::NEVER);
            let ended = detached(py, || {
                alive.iter().try_for_each(|child| ended(child).map(drop))
            });
            ended
                .err()
                .map(|Interrupted| error::from_stop(py, Stop::Interrupted))
        });
        up.raised = up.raised.take().or(raised);
    }

    /// Ends the children that wait for a thread, whose functions are not called any more.
    fn end_waiting(&self, py: Python<'_>) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        let _mask = Mask::open(BRIEFLY); // a task that is out of the queue is ended by this thread alone
        for task in waiting {
            if let Err(raised) = task.call_method0(py, group_task::_run(py)) {
                raised.write_unraisable(py, None);
            }
        }
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
        // What is absorbed is no failure.
        let leaving = raised.as_ref().filter(|_| !matches!(left, Ok(Some(_))));
        let leaving = leaving.map(|raised| raised.value(py).clone());
        let instead = match slf.call_method1(group_hooks::_verdict(py), (leaving,)) {
            // By a signal handler. The errors that are left are reported, and its exception goes on.
            Err(signal) if !signal.is_instance_of::<PyException>(py) => {
                slf.call_method1(group_hooks::_verdict(py), (signal.value(py),))?;
                return Err(signal);
            }
            instead => instead?,
        };
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

impl Interruption {
    /// Records the exception that interrupted the join.
    fn note(&mut self, py: Python<'_>, stop: Stop) {
        match stop {
            Stop::Cancelled(cause) => self.cancelled = Some(cause),
            Stop::Killed(cause) => self.killed = Some(cause),
            Stop::Interrupted => self.raised = Some(error::from_stop(py, Stop::Interrupted)),
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
                crew.get().join(py, JoinMode::End);
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
    #[pyo3(signature = (policy, most, token))]
    fn new(
        py: Python<'_>,
        policy: Option<&StopPolicy>,
        most: Option<usize>,
        token: Option<&Bound<'_, PyCancelToken>>,
    ) -> PyResult<Self> {
        let token = token.map(|token| token.get().inner().clone());
        Ok(Self {
            scope: Py::new(py, CancelScope::for_group(token))?,
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
        let parent = CancelToken::from_node(node);
        let children_source = CancelSource::without_deadline(Some(&parent));
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
        let mode = if r#type.is_none() {
            JoinMode::Wait
        } else {
            JoinMode::End
        };
        let mut up = this.join(py, mode);
        if up.killed.is_none() && !value.is_instance_of::<Killed>() {
            up.killed = scope::kill_due(); // it was deferred until the children had ended
        }
        let absorbed = Self::conclude(slf, &value, &up)?;
        if absorbed || r#type.is_none() {
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
            let enough = state.threads >= this.most;
            if enough && state.abandoned >= state.threads {
                let message = "all threads of this group were abandoned, and have not ended";
                return Err(error::ordinary(py, "PoolExhausted", &message));
            }
            core.launch();
            let crowded = state.children.len() == state.children.capacity();
            let ended = if crowded {
                state.take_ended()
            } else {
                Vec::new()
            };
            state.children.push(child);
            state.started += 1;
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

    /// Are the tasks cancelled? Then `core` is, though the cancellation may be on its way to it still: an
    /// ended sibling must not be followed by a task that is called all the same.
    fn _has_cancelled(&self, py: Python<'_>, core: &Task) -> bool {
        let source = self.children_source.get();
        let cause = source.and_then(|source| source.token().cause());
        let cancelled = cause.is_some();
        if let Some(cause) = cause {
            detached(py, || core.core().node().cancel(cause));
        }
        cancelled
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

    /// The task of one of the threads was abandoned, and is not over yet. Returns the tasks that wait, if
    /// no thread is left for them.
    fn _thread_lost(&self) -> Vec<Py<PyAny>> {
        let mut state = self.state.lock();
        state.abandoned += 1;
        if state.abandoned < state.threads {
            return Vec::new();
        }
        std::mem::take(&mut state.waiting).into()
    }

    /// The function of an abandoned task has returned, and its thread goes on.
    fn _thread_regained(&self) {
        self.state.lock().abandoned -= 1;
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
        // It waits until the thread runs, also in a cancelled group.
        let started = foreign::with_calls_left_alone(|| {
            slf.call_method1(group_hooks::_start_thread(py), (&hand, task))
        });
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
