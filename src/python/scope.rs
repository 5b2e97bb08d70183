//! `CancelScope`, `FailScope` and the functions that make them.
//!
//! Both classes are a [`Block`] with another answer to an absorbed cancellation. The block's state is
//! under one mutex; the core's scope is entered, and left, after the mutex is released wherever that
//! may wait or run Python code. A block is entered once, and left on the thread that has entered it.
//! If a kill skipped an `__exit__`, the next enclosing block does its work, or the task's end
//! (`scope::close_above`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::cause::{Cause, CauseKind, DEFAULT_GRACE};
use crate::clock::Time;
use crate::enforcer::BlockWatch;
use crate::error::ScopeMisuse;
use crate::host::Home;
use crate::ledger::AbandonHook;
use crate::python::binding::home::home_of_block;
use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::runnable::check_result;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::cause::CancelCause;
use crate::python::error::{self, Cancelled};
use crate::python::hard_stop;
use crate::python::hard_stop::in_place;
use crate::python::hard_stop::killed::Killed;
use crate::python::hard_stop::traceback;
use crate::python::token::{CancelToken, cancel_node, timeout_and_deadline};
use crate::scope::{self, Exit, Extras, ForcedExit, Kind, Unwinding};
use crate::task::Interrupter;
use crate::token::timer;
use crate::token::tree::NodeRef;
use crate::{testing, token};

/// When a block is to end.
#[derive(Clone, Copy)]
enum Limit {
    None,
    /// This long after it is entered.
    After(Duration),
    At(Time),
}

impl Limit {
    fn as_of_now(self) -> Time {
        match self {
            Limit::None => Time::NEVER,
            Limit::After(span) => Time::after(span),
            Limit::At(deadline) => deadline,
        }
    }
}

/// One block, from before it is entered until after it was left; the same for both classes.
struct Block {
    /// What it does to cancellations from outside. Fixed.
    kind: Kind,
    /// Fixed. Boxed: few blocks have any.
    options: Option<Box<Options>>,
    /// Written by the thread of the block; by any thread that cancels it or moves its deadline.
    state: Mutex<State>,
}

/// What few blocks have.
struct Options {
    /// How long clean-up blocks inside may take after its deadline; `None`: the usual time.
    grace: Option<Duration>,
    /// How long after its cancellation force begins.
    kill_after: Option<Duration>,
    /// Whether its cancellation ends blocking calls of foreign code.
    foreign: bool,
}

impl Options {
    const NONE: Options = Options {
        grace: None,
        kill_after: None,
        foreign: true,
    };
}

/// Fresh, Open, Left: each block goes through them once, in this order.
enum State {
    // A cause is boxed: few blocks ever have one, and all are moved when they are made.
    Fresh {
        /// Counted from the entry.
        limit: Limit,
        /// Cancels the block as well. Not kept beyond the entry, for the collector does not see it.
        token: Option<token::CancelToken>,
        /// Of a cancel() before the entry; it cancels the scope when that is made.
        cancelled: Option<Box<Cause>>,
    },
    Open {
        /// The node of the core's scope, which has the deadline and the cause from now on.
        node: NodeRef,
        /// Present if the block has `kill_after`.
        watch: Option<Box<BlockWatch>>,
        /// It is a generator's.
        suspendable: bool,
    },
    Left {
        /// As it was at the end.
        deadline: Time,
        /// Why the block itself was cancelled, if it was.
        cause: Option<Box<Cause>>,
        /// The cancellation was absorbed at the block's end.
        caught: bool,
    },
}

impl Block {
    fn new(kind: Kind, limit: Limit, token: Option<token::CancelToken>) -> Self {
        Self {
            kind,
            options: None,
            state: Mutex::new(State::Fresh {
                limit,
                token,
                cancelled: None,
            }),
        }
    }

    fn options(&self) -> &Options {
        self.options.as_deref().unwrap_or(&Options::NONE)
    }

    fn enter(
        &self,
        py: Python<'_>,
        home: Home,
        abandon_hook: Option<Arc<dyn AbandonHook>>,
    ) -> PyResult<()> {
        scope::settle_before(home); // unlocked: it may wait
        let mut state = self.state.lock();
        let State::Fresh {
            limit,
            token,
            cancelled,
        } = &mut *state
        else {
            drop(state);
            return Err(error::misuse(py, ScopeMisuse::EnteredTwice));
        };
        let (deadline, grace) = (limit.as_of_now(), self.options().grace);
        let node = if token.is_some() || abandon_hook.is_some() {
            let token = token.as_ref();
            let extras = Extras {
                token,
                abandon_hook,
            };
            scope::enter_with(extras, deadline, grace, home)
        } else {
            scope::enter(self.kind, deadline, grace, home)
        };
        if let Some(cause) = cancelled.take() {
            node.cancel(*cause);
        }
        *state = State::Open {
            node,
            watch: None,
            suspendable: home.suspendable,
        };
        Ok(())
    }

    /// Enters a block; `interrupter` can end it.
    #[cold]
    #[inline(never)]
    fn enter_forced(
        &self,
        py: Python<'_>,
        kill_after: Duration,
        home: Home,
        interrupter: Arc<dyn Interrupter>,
    ) -> PyResult<()> {
        // Asked for while nothing is locked, for it runs Python code; the core caches it.
        crate::host::thread_name();
        scope::settle_before(home);
        let mut state = self.state.lock();
        let State::Fresh {
            limit,
            token,
            cancelled,
        } = &mut *state
        else {
            drop(state);
            return Err(error::misuse(py, ScopeMisuse::EnteredTwice));
        };
        let cancelled = cancelled.take().map(|cause| *cause);
        let (node, watch) = scope::enter_forced(
            limit.as_of_now(),
            self.options().grace,
            cancelled,
            kill_after,
            home,
            token.as_ref(),
            interrupter,
        );
        let watch = Some(Box::new(watch));
        *state = State::Open {
            node,
            watch,
            suspendable: home.suspendable,
        };
        Ok(())
    }

    /// Enters it at the beginning of a `with` statement.
    fn enter_with(&self, py: Python<'_>) -> PyResult<()> {
        let home = home_of_block(py)?;
        let Some(options) = &self.options else {
            return self.enter(py, home, None);
        };
        match options.kill_after {
            // Simulated time stands still while code runs that is not in a desist wait.
            Some(kill_after) if testing::current().is_none() => {
                self.enter_forced(py, kill_after, home, hard_stop::for_this_block(py)?)?;
            }
            _ => self.enter(py, home, None)?,
        }
        if !options.foreign {
            scope::leave_calls_alone();
        }
        Ok(())
    }

    /// Leaves the block. Returns the cause if the block's own cancellation was absorbed.
    fn exit(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Cause>> {
        // The exception classes are final, so identity is the whole test.
        let unwinding = if kind.is_none() {
            Unwinding::Nothing
        } else if kind.is(py.get_type::<Cancelled>()) {
            Unwinding::Cancelled
        } else if kind.is(py.get_type::<Killed>()) {
            Unwinding::Killed
        } else if self.has_cancelled_other_code(value) {
            Unwinding::Cancelled
        } else {
            Unwinding::Nothing
        };
        if let (Unwinding::Killed, Some(node)) = (unwinding, self.node()) {
            scope::close_above(&node); // unlocked: it may wait
        }
        let mut state = self.state.lock();
        let State::Open { node, watch, .. } = &*state else {
            drop(state);
            return Err(error::misuse(py, ScopeMisuse::NotEntered));
        };
        let mut outward = false;
        let exit = if watch.is_some() {
            let node = node.clone();
            drop(state);
            let exit = exit_forced(py, &node, unwinding, value);
            outward = exit == Ok(ForcedExit::Outward);
            state = self.state.lock();
            exit.map(|exit| match exit {
                ForcedExit::Absorbed(cause) => Exit::Absorbed(cause),
                ForcedExit::Pass | ForcedExit::Outward => Exit::Pass,
            })
        } else if let Some(exit) = scope::exit_innermost(node, unwinding == Unwinding::Cancelled) {
            Ok(exit)
        } else {
            let node = node.clone();
            drop(state); // it may wait
            let exit = scope::exit(&node, unwinding == Unwinding::Cancelled);
            state = self.state.lock();
            exit
        };
        let State::Open {
            node, suspendable, ..
        } = &*state
        else {
            drop(state);
            return Err(error::misuse(py, ScopeMisuse::NotEntered));
        };
        if exit == Err(ScopeMisuse::WrongThread) && !suspendable {
            drop(state);
            return Err(error::misuse(py, ScopeMisuse::WrongThread)); // still open on its own thread
        }
        let caught = match &exit {
            Ok(Exit::Absorbed(cause)) => Some((**cause).clone()),
            _ => None,
        };
        let cause = if node.is_cancelled_itself() {
            node.cause().map(Box::new)
        } else {
            None
        };
        let left = State::Left {
            deadline: node.own_deadline(),
            cause,
            caught: caught.is_some(),
        };
        let open = std::mem::replace(&mut *state, left);
        drop(state);
        if let State::Open { node, watch, .. } = open {
            drop(watch);
            // A generator that ends on another thread than the one on which it opened the block closes it
            // there: the first thread takes it off when it next looks.
            if exit == Err(ScopeMisuse::WrongThread) || !node.is_private() {
                detached(py, || node.close(CauseKind::ScopeExited));
            }
        }
        if let Err(misuse) = exit {
            // Any other exception matters more, and so does the end of a generator that is collected.
            if kind.is_none() || unwinding == Unwinding::Cancelled {
                return Err(error::misuse(py, misuse));
            }
        }
        // A kill that a clean-up zone deferred is raised here, unless it is unwinding already.
        if self.kind == Kind::Cleanup && kind.is_none() {
            error::check_kill(py)?;
        }
        if outward {
            crate::wait::checkpoint().map_err(|stop| {
                let error = error::from_stop(py, stop);
                error.set_cause(py, Some(PyErr::from_value(value.clone())));
                error
            })?;
        }
        Ok(caught)
    }

    /// Is the exception the `TaskCancelled` of code on another thread that this block's cancellation has reached?
    /// It is then this cancellation, which has come in another way.
    fn has_cancelled_other_code(&self, raised: &Bound<'_, PyAny>) -> bool {
        let cause = self.node().and_then(|node| node.cause());
        cause.is_some_and(|cause| error::cause_of_other(raised) == Some(cause))
    }

    /// Calls a function as the block: no Python code runs between the function and the block's ends.
    /// `instead` makes the exception of a call that the block's cancellation has ended.
    fn call<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        arguments: &Bound<'py, PyTuple>,
        named: &Bound<'py, PyDict>,
        instead: impl FnOnce(Cause, &Bound<'py, PyAny>) -> PyErr,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        match self.options().kill_after {
            Some(kill_after) if testing::current().is_none() => {
                let interrupter = hard_stop::for_this_call(py)?;
                self.enter_forced(py, kill_after, Home::NATIVE, interrupter)?;
            }
            _ => self.enter(py, Home::NATIVE, None)?,
        }
        let result = in_place::checked(py, function.call(arguments, Some(named)));
        let none = py.None().into_bound(py);
        match result {
            Ok(value) => self.exit(py, &none, &none).map(|_| value),
            Err(raised) => {
                let (kind, value) = (raised.get_type(py), raised.value(py).clone().into_any());
                match self.exit(py, &kind, &value)? {
                    Some(cause) => Err(instead(cause, &value)),
                    None => Err(raised),
                }
            }
        }
    }

    fn cancel(&self, py: Python<'_>, reason: Option<&str>, grace: Option<Duration>) -> bool {
        let is_fresh = matches!(&*self.state.lock(), State::Fresh { .. });
        // Unlocked: it asks the interpreter for the thread's name.
        let early = is_fresh
            .then(|| Cause::now(CauseKind::Explicit, reason.map(Into::into), grace))
            .map(Box::new);
        let node = match &mut *self.state.lock() {
            State::Open { node, .. } => node.clone(),
            State::Fresh { cancelled, .. } if cancelled.is_none() => {
                *cancelled = early;
                return true;
            }
            State::Fresh {
                cancelled: Some(first),
                ..
            } => {
                if let Some(end) = grace.map(Time::after) {
                    let given = first
                        .grace
                        .or(self.options().grace)
                        .unwrap_or(DEFAULT_GRACE);
                    first.grace = Some(given.min(end - first.at));
                }
                return false;
            }
            _ => return false,
        };
        let first = cancel_node(py, &node, reason, grace);
        if first {
            self.refresh();
        }
        first
    }

    /// Tells the enforcer that the block's time has changed.
    fn refresh(&self) {
        if let State::Open {
            watch: Some(watch), ..
        } = &*self.state.lock()
        {
            watch.refresh();
        }
    }

    fn deadline(&self) -> f64 {
        seconds::from_time(match &*self.state.lock() {
            State::Fresh { limit, .. } => limit.as_of_now(),
            State::Open { node, .. } => node.own_deadline(),
            State::Left { deadline, .. } => *deadline,
        })
    }

    fn set_deadline(&self, py: Python<'_>, value: Seconds<'_, '_>) -> PyResult<()> {
        let new = seconds::instant(value, "deadline")?;
        let node = match &mut *self.state.lock() {
            State::Fresh { limit, .. } => {
                *limit = Limit::At(new);
                return Ok(());
            }
            State::Open { node, .. } => node.clone(),
            State::Left { .. } => return Err(error::misuse(py, ScopeMisuse::NotEntered)),
        };
        timer::set(&node, new);
        self.refresh();
        Ok(())
    }

    /// Its node, if it is open.
    fn node(&self) -> Option<NodeRef> {
        match &*self.state.lock() {
            State::Open { node, .. } => Some(node.clone()),
            _ => None,
        }
    }

    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        match self.node() {
            Some(node) => CancelToken::wrap(py, token::CancelToken::from_node(node)),
            None => Err(error::misuse(py, ScopeMisuse::NotEntered)),
        }
    }

    fn cause(&self) -> Option<Cause> {
        match &*self.state.lock() {
            State::Fresh { cancelled, .. } => cancelled.as_deref().cloned(),
            State::Open { node, .. } if node.is_cancelled_itself() => node.cause(),
            State::Open { .. } => None,
            State::Left { cause, .. } => cause.as_deref().cloned(),
        }
    }

    fn caught(&self) -> bool {
        matches!(&*self.state.lock(), State::Left { caught: true, .. })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let State::Open { node, watch, .. } = self.state.get_mut() {
            // The object that could run the block's end is no more.
            drop(watch.take());
            scope::discard(node);
        }
    }
}

/// Stops the enforcer's watch of a block. This runs Python code, so the block's mutex is not held.
#[cold]
#[inline(never)]
fn exit_forced(
    py: Python<'_>,
    node: &NodeRef,
    unwinding: Unwinding,
    value: &Bound<'_, PyAny>,
) -> Result<ForcedExit, ScopeMisuse> {
    scope::exit_forced(node, unwinding, || match unwinding {
        Unwinding::Killed => traceback::stack_of(py, &PyErr::from_value(value.clone())),
        _ => None,
    })
}

/// The exception that leaves a block whose own deadline was the cause.
pub(super) fn deadline_exceeded(py: Python<'_>, cancelled: &Bound<'_, PyAny>) -> PyErr {
    let error = error::ordinary(
        py,
        "DeadlineExceeded",
        &"the deadline passed before the block was done",
    );
    error.set_cause(py, Some(PyErr::from_value(cancelled.clone())));
    error
}

/// A block that can be cancelled; made by cancel_scope(), move_on_after(), shield() and
/// cleanup(), and used in a `with` statement, once, by one thread.
#[pyclass(frozen, weakref, module = "desist")]
pub(super) struct CancelScope {
    block: Block,
    /// The block's own deadline raises DeadlineExceeded, instead of leaving it quietly.
    raises: bool,
}

/// The scope that a group's block is.
impl CancelScope {
    pub(super) fn for_group(token: Option<token::CancelToken>) -> Self {
        Self {
            block: Block::new(Kind::Plain, Limit::None, token),
            raises: true,
        }
    }

    /// Enter it; its node.
    pub(super) fn enter_for(
        &self,
        py: Python<'_>,
        abandon_hook: Arc<dyn AbandonHook>,
    ) -> PyResult<NodeRef> {
        self.block
            .enter(py, home_of_block(py)?, Some(abandon_hook))?;
        self.node()
            .ok_or_else(|| error::misuse(py, ScopeMisuse::NotEntered))
    }

    /// Leaves it with this exception, if any. Returns the cause if its cancellation was absorbed.
    pub(super) fn leave(&self, py: Python<'_>, raised: Option<&PyErr>) -> PyResult<Option<Cause>> {
        match raised {
            Some(raised) => {
                self.block
                    .exit(py, raised.get_type(py).as_any(), raised.value(py).as_any())
            }
            None => self.block.exit(py, py.None().bind(py), py.None().bind(py)),
        }
    }

    /// Its node, if it is open.
    pub(super) fn node(&self) -> Option<NodeRef> {
        self.block.node()
    }
}

#[pymethods]
impl CancelScope {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().block.enter_with(slf.py())?;
        Ok(slf)
    }

    /// True if the block's own cancellation ends here.
    #[pyo3(signature = (r#type, value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        r#type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<bool> {
        match self.block.exit(py, &r#type, &value)? {
            Some(cause) if self.raises && cause.kind == CauseKind::Deadline => {
                Err(deadline_exceeded(py, &value))
            }
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// Cancel the block: it is left quietly at its next checkpoint. True: this call was the
    /// first; False: it was cancelled, or left, before.
    ///
    /// Never raises, and never waits for the block; works from any thread, signal handler and
    /// finalizer. `grace`: seconds that clean-up zones inside may still take (5 unless given).
    #[pyo3(signature = (reason = None, *, grace = None))]
    fn cancel(
        &self,
        py: Python<'_>,
        reason: Option<&str>,
        grace: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        let grace = seconds::optional_span(grace, "grace")?;
        Ok(self.block.cancel(py, reason, grace))
    }

    /// When the block is to end, on the clock of current_time(); infinity if it has no deadline.
    ///
    /// It can be moved, also by other threads, until the block is left.
    #[getter]
    fn deadline(&self) -> f64 {
        self.block.deadline()
    }

    #[setter]
    fn set_deadline(&self, py: Python<'_>, value: Seconds<'_, '_>) -> PyResult<()> {
        self.block.set_deadline(py, value)
    }

    /// The block's token, to hand out to other threads. The block must be open.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        self.block.token(py)
    }

    /// Was this block itself cancelled, by cancel() or its own deadline?
    #[getter]
    fn cancel_called(&self) -> bool {
        self.block.cause().is_some()
    }

    /// Was the block left early, and did that end here?
    #[getter]
    fn cancelled_caught(&self) -> bool {
        self.block.caught()
    }

    /// Why this block itself was cancelled; else None.
    #[getter]
    fn cause(&self) -> Option<CancelCause> {
        self.block.cause().map(CancelCause::from)
    }
}

/// A block whose deadline is an error; made by fail_after(), and used in a `with` statement, once,
/// by one thread.
///
/// It has no cancel(): it never leaves a block quietly.
#[pyclass(frozen, weakref, module = "desist")]
pub(super) struct FailScope {
    block: Block,
}

#[pymethods]
impl FailScope {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().block.enter_with(slf.py())?;
        Ok(slf)
    }

    /// Raises DeadlineExceeded where the block was left because of its deadline.
    #[pyo3(signature = (r#type, value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        r#type: LazyClass<'_, '_>,
        value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        self.block
            .exit(py, &r#type, &value)?
            .map_or(Ok(()), |_| Err(deadline_exceeded(py, &value)))
    }

    /// When the block is to end, on the clock of current_time(). It can be moved.
    #[getter]
    fn deadline(&self) -> f64 {
        self.block.deadline()
    }

    #[setter]
    fn set_deadline(&self, py: Python<'_>, value: Seconds<'_, '_>) -> PyResult<()> {
        self.block.set_deadline(py, value)
    }

    /// The block's token, to hand out to other threads. The block must be open.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        self.block.token(py)
    }

    /// Was the block left because of its deadline?
    #[getter]
    fn expired(&self) -> bool {
        self.block.caught()
    }
}

/// A block with options as given.
fn block(
    timeout: Option<Seconds<'_, '_>>,
    deadline: Option<Seconds<'_, '_>>,
    grace: Option<Seconds<'_, '_>>,
    kill_after: Option<Seconds<'_, '_>>,
) -> PyResult<Block> {
    let limit = match (timeout, deadline) {
        (None, None) => Limit::None,
        (Some(timeout), None) => after(timeout)?,
        (None, Some(deadline)) => Limit::At(seconds::instant(deadline, "deadline")?),
        (Some(_), Some(_)) => return Err(timeout_and_deadline()),
    };
    let mut block = Block::new(Kind::Plain, limit, None);
    if grace.is_some() || kill_after.is_some() {
        block.options = Some(Box::new(Options {
            grace: seconds::optional_span(grace, "grace")?,
            kill_after: seconds::optional_span(kill_after, "kill_after")?,
            ..Options::NONE
        }));
    }
    Ok(block)
}

/// A shield or a clean-up zone.
fn hiding(kind: Kind, limit: Limit) -> CancelScope {
    CancelScope {
        block: Block::new(kind, limit, None),
        raises: false,
    }
}

fn after(seconds: Seconds<'_, '_>) -> PyResult<Limit> {
    seconds::span(seconds, "timeout").map(Limit::After)
}

/// A block that can be cancelled, and whose deadline, if it has one, is an error.
///
/// If the deadline passes, DeadlineExceeded (a TimeoutError) leaves the block. If the scope's
/// cancel() is called, the block is left quietly, and `cancelled_caught` is true.
///
/// `timeout`: seconds from when the block is entered; None: no deadline. `deadline`: the time
/// itself instead, on the clock of current_time(). `grace`: seconds that clean-up blocks inside may
/// take after the deadline.
///
/// `token`: the block is cancelled with this token as well, and then has its cause and its grace: a deadline
/// of the token leaves the block as DeadlineExceeded, as the block's own does, and any other cancellation
/// leaves it quietly.
///
/// Blocking calls of foreign code are left early, too, where foreign_status() says so: time.sleep(), the
/// recv() of a library's socket, the wait for a child process, threading.Event.wait(). Cancelled is raised at
/// the call, which has then had no effect: once; then clean-up code may block for the canceller's grace
/// (`grace`), and is left early again. `foreign`: False if such calls are to go on.
///
/// `kill_after`: if the block still runs this many seconds after its deadline, or its cancel(), Killed
/// is raised in it by force, again and again until it is left, and never after it: at desist waits,
/// through shields, and anywhere in its code. The exception that leaves the block is the same as
/// without force, with Killed as the `__cause__` of DeadlineExceeded. Clean-up and commit blocks
/// inside defer it, and so do, for a second, desist locks that were taken inside; afterwards they
/// are poisoned. At its end a killed block's locks and leases are released.
///
/// On the main thread (Linux) a blocking system call is interrupted as well, by a real-time signal;
/// on other threads Killed is raised when the call returns. The block has to be one of a `with`
/// statement itself: force waits while the statement's function is suspended, as a generator is, or
/// has returned, as ExitStack.enter_context() has. In simulated time kill_after is not in force.
///
/// Blocks: never; every desist wait inside ends in time.
/// On cancel: a cancellation from outside goes through the block, and ends at its own scope.
/// On timeout: DeadlineExceeded leaves the block.
///
/// Raises:
///     TypeError: a time that is not a number, or both a timeout and a deadline.
///     ValueError: a time that is NaN, or a negative number of seconds.
#[pyfunction]
#[pyo3(signature = (timeout = None, *, deadline = None, grace = None, kill_after = None, foreign = true, token = None))]
pub(super) fn cancel_scope(
    timeout: Option<Seconds<'_, '_>>,
    deadline: Option<Seconds<'_, '_>>,
    grace: Option<Seconds<'_, '_>>,
    kill_after: Option<Seconds<'_, '_>>,
    foreign: bool,
    token: Option<&Bound<'_, CancelToken>>,
) -> PyResult<CancelScope> {
    let mut block = block(timeout, deadline, grace, kill_after)?;
    if !foreign {
        block
            .options
            .get_or_insert_with(|| Box::new(Options::NONE))
            .foreign = false;
    }
    if let (Some(given), State::Fresh { token, .. }) = (token, block.state.get_mut()) {
        *token = Some(given.get().inner().clone());
    }
    Ok(CancelScope {
        block,
        raises: true,
    })
}

/// Call a function as a block of its own, which DeadlineExceeded leaves after the given seconds.
#[pyfunction]
#[pyo3(signature = (function: "Callable[..., _T]", arguments: "tuple[object, ...]", named: "dict[str, object]", timeout, *, grace = None, kill_after = None) -> "_T")]
pub(super) fn call_within<'py>(
    function: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    named: &Bound<'py, PyDict>,
    timeout: Option<Seconds<'_, '_>>,
    grace: Option<Seconds<'_, '_>>,
    kill_after: Option<Seconds<'_, '_>>,
) -> PyResult<Bound<'py, PyAny>> {
    let block = block(timeout, None, grace, kill_after)?;
    block.call(function, arguments, named, |_, raised| {
        deadline_exceeded(raised.py(), raised)
    })
}

/// Call a function as a block that is cancelled with this token. TaskCancelled is raised in place of a Cancelled
/// that is the token's.
#[pyfunction]
#[pyo3(signature = (function: "Callable[..., _T]", arguments: "tuple[object, ...]", named: "dict[str, object]", token) -> "_T")]
pub(super) fn call_under<'py>(
    function: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    named: &Bound<'py, PyDict>,
    token: &Bound<'py, CancelToken>,
) -> PyResult<Bound<'py, PyAny>> {
    let token = token.get().inner().clone();
    let result = Block::new(Kind::Plain, Limit::None, Some(token)).call(
        function,
        arguments,
        named,
        |cause, raised| error::other_cancelled(raised.py(), cause, raised),
    );
    check_result(result?, true)
}

/// A block that is left quietly when its deadline has passed, or its cancel() is called.
///
/// `cancelled_caught` says afterwards whether it was. `timeout`: seconds from when the block is
/// entered; None: no deadline. `deadline`, `grace`, `kill_after` and the errors are those of
/// cancel_scope().
///
/// Blocks: never; every desist wait inside ends in time.
/// On cancel: a cancellation from outside goes through the block, and ends at its own scope.
/// On timeout: the block is left quietly.
#[pyfunction]
#[pyo3(signature = (timeout = None, *, deadline = None, grace = None, kill_after = None))]
pub(super) fn move_on_after(
    timeout: Option<Seconds<'_, '_>>,
    deadline: Option<Seconds<'_, '_>>,
    grace: Option<Seconds<'_, '_>>,
    kill_after: Option<Seconds<'_, '_>>,
) -> PyResult<CancelScope> {
    Ok(CancelScope {
        block: block(timeout, deadline, grace, kill_after)?,
        raises: false,
    })
}

/// A block that DeadlineExceeded (a TimeoutError) leaves when its deadline has passed.
///
/// `timeout`: seconds from when the block is entered; None: no deadline. `deadline`, `grace`,
/// `kill_after` and the errors are those of cancel_scope().
///
/// Blocks: never; every desist wait inside ends in time.
/// On cancel: a cancellation from outside goes through the block, and ends at its own scope.
/// On timeout: DeadlineExceeded leaves the block.
#[pyfunction]
#[pyo3(signature = (timeout = None, *, deadline = None, grace = None, kill_after = None))]
pub(super) fn fail_after(
    timeout: Option<Seconds<'_, '_>>,
    deadline: Option<Seconds<'_, '_>>,
    grace: Option<Seconds<'_, '_>>,
    kill_after: Option<Seconds<'_, '_>>,
) -> PyResult<FailScope> {
    Ok(FailScope {
        block: block(timeout, deadline, grace, kill_after)?,
    })
}

/// A block that sees no cancellation from outside, for at most the given seconds; then it is left
/// quietly. The bound is required: write out math.inf if you mean it.
///
/// Blocks: never.
/// On cancel: deferred: it is seen by the first checkpoint after the block.
/// On kill: Killed is raised inside; a shield does not defer kills.
#[pyfunction]
#[pyo3(signature = (seconds, /))]
pub(super) fn shield(seconds: Seconds<'_, '_>) -> PyResult<CancelScope> {
    Ok(hiding(Kind::Shield, after(seconds)?))
}

/// A block for cleaning up: a cancellation outside is hidden from it until the grace of that
/// cancellation is spent (5 seconds unless given); then it is left quietly. All such blocks under one
/// cancellation share that time. `seconds`: at most this long in any case.
///
/// On kill: deferred for as long.
#[pyfunction]
#[pyo3(signature = (seconds = None, /))]
pub(super) fn cleanup(seconds: Option<Seconds<'_, '_>>) -> PyResult<CancelScope> {
    let limit = seconds.map_or(Ok(Limit::None), after)?;
    Ok(hiding(Kind::Cleanup, limit))
}
