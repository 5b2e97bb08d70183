//! `CancelSource`, `CancelToken`, `Registration`: handles of the core's tree of tokens.
//!
//! A token has its state in a slot that the interpreter reads as an attribute, without a call. The
//! cancelling thread writes the slot through a hook in the token's node (see `CancelToken`). The hook
//! is removed in the token's drop, which waits until a cancel that runs has left it.
//!
//! # Callbacks and the garbage collector
//!
//! A callback may lead back to its source. The collector frees such a cycle, for it can follow it: the
//! functions are not in the core's nodes but in a Python object, the token's [`Callbacks`]. They are
//! added and removed by attached threads only, so that no collection sees the table change. The node
//! has to keep the table, for the node may outlive the token object (a child of it may, or a task). So
//! the token has two references to the table: one of its own, and one that it shares with the node's
//! hooks. It always shows the collector the first; the second one only while every count of the node
//! belongs to an object that shows the collector this token ([`Shown`]), so that token and node live
//! equally long. A stale answer to that question is harmless: it decides only whether the table is kept
//! by the node, and the first reference keeps it for as long as any object has the token.
#![allow(unsafe_code)] // the slot `cancelled`, see `CancelToken`

mod headers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

use crate::cause::DEFAULT_GRACE;
use crate::clock::Time;
use crate::python::binding::attach::attach;
use crate::python::binding::host::detached;
use crate::python::binding::lazy_arg::{LazyClass, LazyException, LazyTraceback};
use crate::python::binding::runnable::{check_function, check_result};
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::cause::CancelCause;
use crate::python::error;
use crate::python::hard_stop::mask::Mask;
use crate::python::op::{Op, Operation, Started, Visited, Yield, adapted};
use crate::python::wait::blocking;
use crate::scope;
use crate::task::Task;
use crate::token::tree::{Flag, Hook};
use crate::wait::Cancellation;
use crate::{park, token};

/// Shows whether its source was cancelled; can be waited for, and takes callbacks. It cannot cancel.
///
/// `cancelled` is a slot that the interpreter reads without a call.
// The slot holds False or True. The cancelling thread writes it, attached or not: one atomic store of a
// pointer to an object that never goes away. `#[pyo3(get)]` on a `Py` field of a frozen class gives a
// plain object member, for which LOAD_ATTR is specialised.
#[pyclass(frozen, weakref, module = "desist")]
pub(super) struct CancelToken {
    /// True once cancelled.
    #[pyo3(get)]
    cancelled: Py<PyBool>,
    /// The id of the hook in the node, plus one; 0: none. Written once, before the token is shared.
    hook: AtomicU64,
    /// Made by the first `on_cancel()`.
    callbacks: OnceLock<Table>,
    /// How many counts of the node belong to objects that show the collector this token, itself not
    /// included. Changed by [`Shown`].
    shown: AtomicU32,
    /// The tokens that the node is linked to, for one of any_of(). Dropped before the node.
    linked: Vec<Shown>,
    /// Whose token it is, if it is a task's own. Weak: a task has its token's node, which may have callbacks
    /// that refer to this object.
    task: Weak<Task>,
    token: token::CancelToken,
}

/// The functions registered with one token.
#[pyclass(frozen, module = "desist._core")]
struct Callbacks {
    /// By the ids of their registrations. Locked by attached threads only, and for moments.
    functions: Mutex<HashMap<u64, Py<PyAny>>>,
    /// The id of the next registration.
    next: AtomicU64,
}

/// A token's references to its [`Callbacks`]; see the module's header.
struct Table {
    own: Py<Callbacks>,
    /// Shared with the hooks in the node.
    of_node: Arc<Py<Callbacks>>,
}

#[pymethods]
impl Callbacks {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        // Locked only if this thread itself collects inside a critical section: then in the whole
        // collection, in which the functions count as in use.
        match self.functions.try_lock() {
            Some(functions) => functions
                .values()
                .try_for_each(|function| visit.call(function)),
            None => Ok(()),
        }
    }

    fn __clear__(&self) {
        let functions = std::mem::take(&mut *self.functions.lock());
        drop(functions); // unlocked: may run any code
    }
}

impl Callbacks {
    fn add(&self, function: Py<PyAny>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.functions.lock().insert(id, function);
        id
    }

    /// Takes a function out, to be called or dropped. `None`: it is gone, or its token was garbage.
    fn take(&self, id: u64) -> Option<Py<PyAny>> {
        self.functions.lock().remove(&id)
    }
}

/// A reference to a token, which its holder shows the collector, and with which the holder has a count
/// of the token's node. Dropped before that count.
pub(super) struct Shown(Py<CancelToken>);

impl Shown {
    fn new(token: Py<CancelToken>) -> Self {
        token.get().shown.fetch_add(1, Ordering::Relaxed);
        Self(token)
    }

    fn get(&self) -> &Py<CancelToken> {
        &self.0
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.get().shown.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Store True in a token's slot.
///
/// # Safety
/// `place` is the address of the `cancelled` field of a live `CancelToken`.
unsafe fn raise(place: *const ()) {
    // SAFETY: the field is a pointer, aligned as one, and all accesses while it is shared are
    // this store and the interpreter's loads. `CancelToken` has interior mutability (`hook`), so
    // no reference to it claims that its memory stays the same.
    let slot = unsafe { &*place.cast::<AtomicPtr<ffi::PyObject>>() };
    // SAFETY: Py_True is a static object.
    slot.store(unsafe { ffi::Py_True() }, Ordering::Release);
}

impl CancelToken {
    pub(super) fn wrap(py: Python<'_>, token: token::CancelToken) -> PyResult<Py<CancelToken>> {
        Self::make(py, token, Vec::new(), Weak::new())
    }

    /// The own token of a task.
    pub(super) fn of_task(py: Python<'_>, task: &Arc<Task>) -> PyResult<Py<CancelToken>> {
        let token = task.source().token();
        Self::make(py, token, Vec::new(), Arc::downgrade(task))
    }

    fn make(
        py: Python<'_>,
        token: token::CancelToken,
        linked: Vec<Shown>,
        task: Weak<Task>,
    ) -> PyResult<Py<CancelToken>> {
        let cancelled = PyBool::new(py, false).to_owned().unbind();
        // Before CPython 3.12 True and False are counted: own one of each, whichever is in the
        // slot when the token goes (`drop`).
        std::mem::forget(PyBool::new(py, true).to_owned());
        let this = Py::new(
            py,
            CancelToken {
                cancelled,
                hook: AtomicU64::new(0),
                callbacks: OnceLock::new(),
                shown: AtomicU32::new(0),
                linked,
                task,
                token,
            },
        )?;
        let place = (&raw const this.get().cancelled).cast();
        match this
            .get()
            .token
            .node()
            .hook(Hook::Raise(Flag { raise, place }))
        {
            Ok(id) => this.get().hook.store(id + 1, Ordering::Relaxed),
            // SAFETY: `place` is this token's field.
            Err(_) => unsafe { raise(place) },
        }
        Ok(this)
    }

    pub(super) fn inner(&self) -> &token::CancelToken {
        &self.token
    }

    /// Before a wait, in a forked child: the token of a task of the parent process is cancelled.
    fn notice_fork(&self) {
        if let Some(task) = self.task.upgrade() {
            task.lose_if_forked();
        }
    }

    /// The table of its callbacks, which is made if there is none.
    fn table(&self, py: Python<'_>) -> PyResult<&Table> {
        if self.callbacks.get().is_none() {
            let own = Py::new(
                py,
                Callbacks {
                    functions: Mutex::default(),
                    next: AtomicU64::new(0),
                },
            )?;
            let of_node = Arc::new(own.clone_ref(py));
            let _ = self.callbacks.set(Table { own, of_node }); // another thread may be first
        }
        let table = self.callbacks.get();
        table.ok_or_else(|| PyRuntimeError::new_err("the table of callbacks has just been made"))
    }
}

impl Drop for CancelToken {
    fn drop(&mut self) {
        if let Some(id) = self.hook.get_mut().checked_sub(1) {
            self.token.node().unhook(id);
        }
        // The field releases its own reference; the other one is released here.
        // SAFETY: `wrap` took a count of each; a Python object is dropped attached.
        unsafe {
            let now_true = self.cancelled.as_ptr() == ffi::Py_True();
            ffi::Py_DECREF(if now_true {
                ffi::Py_False()
            } else {
                ffi::Py_True()
            });
        }
    }
}

/// Waits until the token is cancelled.
struct WaitUntilCancelled(Py<CancelToken>);

impl Operation for WaitUntilCancelled {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        self.0.get().notice_fork();
        adapted(Cancellation::of(self.0.get().token.node()), |()| {
            Yield::Plain
        })
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)
    }

    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.0.get().token.cause() {
            Some(cause) => Ok(Bound::new(py, CancelCause::from(cause))?.into_any()),
            None => Ok(py.None().into_bound(py)),
        }
    }
}

#[pymethods]
impl CancelToken {
    /// Why, once cancelled; else None.
    #[getter]
    fn cause(&self) -> Option<CancelCause> {
        self.token.cause().map(CancelCause::from)
    }

    /// The earliest deadline of the token and those above it, on the clock of current_time();
    /// infinity if there is none.
    #[getter]
    fn deadline(&self) -> f64 {
        seconds::from_time(self.token.deadline())
    }

    /// Address of a 32-bit word for native code: its lowest bit is set once the token is cancelled.
    ///
    /// Valid as long as this token is kept. To be read as desist.h does, see get_include().
    #[getter]
    fn flag(&self) -> usize {
        self.token.flag().addr()
    }

    /// Seconds until the deadline, 0.0 once it has passed; infinity if there is none.
    fn remaining(&self) -> f64 {
        let deadline = self.token.deadline();
        if deadline.is_never() {
            f64::INFINITY
        } else {
            (deadline - Time::now()).as_secs_f64()
        }
    }

    /// The headers that carry this token to another process: the seconds that are left until its deadline,
    /// and its cancellation, if it is cancelled. CancelSource.from_headers() reads them there.
    ///
    /// They are valid in HTTP and in other protocols whose headers are text. Without a deadline and a
    /// cancellation there are none.
    #[pyo3(signature = () -> "dict[str, str]")]
    fn to_headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        headers::of(py, &self.token)
    }

    /// Raise Cancelled if the token is cancelled. Never blocks.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.token
            .check()
            .map_err(|stop| error::from_stop(py, stop))
    }

    /// Block until the token is cancelled (True), or for the given seconds (False).
    ///
    /// Blocks: until then. A checkpoint.
    /// On cancel: of the calling code: Cancelled is raised.
    /// On timeout: returns False.
    /// On kill: of the calling code: Killed is raised.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        self.notice_fork();
        blocking(py, || self.token.wait_until(until))
    }

    /// The token is cancelled: an operation for wait_any() that yields the cause. The token itself
    /// means the same there.
    #[pyo3(signature = () -> "Op[CancelCause]")]
    pub(super) fn cancelled_op(slf: Py<Self>) -> Op {
        Op::new(WaitUntilCancelled(slf))
    }

    /// Call `fn(cause)` once when the token is cancelled; at once if it is already.
    ///
    /// It runs on the thread that cancels, or for a deadline, and for a cancel in a signal handler or
    /// a finalizer, on a thread of desist's, in an empty
    /// context (contextvars), after all waiters have been woken. Its exceptions go to
    /// sys.unraisablehook. A kill of the cancelling thread is deferred until it returns, for 5 seconds
    /// at most. It stays registered as long as the token lives, whether or not the registration is
    /// kept.
    #[pyo3(signature = (r#fn: "Callable[[CancelCause], object]", /))]
    fn on_cancel(slf: &Bound<'_, Self>, r#fn: Py<PyAny>) -> PyResult<Registration> {
        let (py, this) = (slf.py(), slf.get());
        check_function(r#fn.bind(py), "the callback", None)?;
        let table = this.table(py)?.of_node.clone();
        let id = table.get().add(r#fn);
        let call = move |cause: &crate::Cause| {
            // `None` once the interpreter is being finalized: no Python code runs any more. The table
            // is moved in, to be dropped attached: PyO3's list of objects dropped detached has a lock.
            attach(move |py| {
                let Some(function) = table.get().take(id) else {
                    return;
                };
                drop(table);
                let _mask = Mask::open(DEFAULT_GRACE); // the cancelling thread may be killed
                let called = Py::new(py, CancelCause::from(cause.clone()))
                    .and_then(|cause| function.bind(py).call1((cause,)))
                    .and_then(|result| check_result(result, true));
                if let Err(raised) = called {
                    raised.write_unraisable(py, Some(function.bind(py)));
                }
            });
        };
        let registration = detached(py, || this.token.on_cancel(call));
        // Without a count of the node, if the callback has run here.
        let token = registration
            .has_node()
            .then(|| Shown::new(slf.clone().unbind()));
        Ok(Registration {
            token,
            id,
            inner: Some(registration),
        })
    }

    /// A token that is cancelled with any of the given ones, with that one's cause. Its deadline is the
    /// earliest of theirs.
    ///
    /// It leaves nothing behind in them.
    #[staticmethod]
    #[pyo3(signature = (*tokens: "CancelToken"))]
    fn any_of(py: Python<'_>, tokens: &Bound<'_, PyTuple>) -> PyResult<Py<CancelToken>> {
        let tokens: Vec<Py<CancelToken>> = tokens.extract()?;
        let inner: Vec<&token::CancelToken> =
            tokens.iter().map(|token| &token.get().token).collect();
        let any = token::CancelToken::any_of(&inner);
        // A node that is cancelled may have fewer links: none is shown, then.
        let linked = if any.is_cancelled() {
            Vec::new()
        } else {
            tokens.into_iter().map(Shown::new).collect()
        };
        CancelToken::make(py, any, linked, Weak::new())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        for token in &self.linked {
            visit.call(token.get())?;
        }
        let Some(table) = self.callbacks.get() else {
            return Ok(());
        };
        visit.call(&table.own)?;
        // See the module's header.
        if self.token.node().count() == 1 + self.shown.load(Ordering::Relaxed) {
            visit.call(&*table.of_node)?;
        }
        Ok(())
    }

    fn __repr__(&self) -> String {
        match self.token.cause() {
            None => "<CancelToken>".into(),
            Some(cause) => format!("<CancelToken {cause}>"),
        }
    }
}

/// Cancels its `token`, and all tokens below it. Give the token to other code, and keep the source.
///
/// As a context manager it closes itself at the end of the block. Making one never blocks. One that is
/// dropped without close() cancels nothing: the tokens below it are still cancelled by its deadline, and
/// with its parent, and when they are gone, too, nothing is left of it.
#[pyclass(frozen, weakref, module = "desist")]
pub(super) struct CancelSource {
    /// Made by the first use of `token`.
    token: OnceLock<Shown>,
    /// The parent's token; its node is kept by this source's.
    parent: Option<Shown>,
    source: token::CancelSource,
}

impl CancelSource {
    fn make(parent: Option<&Bound<'_, CancelToken>>, deadline: Option<Time>) -> Self {
        let source = match (parent, deadline) {
            (None, None) => token::CancelSource::new(),
            (None, Some(deadline)) => token::CancelSource::with_deadline(deadline),
            (Some(parent), None) => parent.get().token.child(),
            (Some(parent), Some(deadline)) => parent.get().token.child_with_deadline(deadline),
        };
        Self {
            token: OnceLock::new(),
            parent: parent.map(|parent| Shown::new(parent.clone().unbind())),
            source,
        }
    }
}

#[pymethods]
impl CancelSource {
    /// A source, below `parent` if one is given; `deadline` on the clock of current_time(), or
    /// `timeout` in seconds from now, cancels it in time. Never blocks.
    ///
    /// Raises:
    ///     TypeError: a time that is not a number, or both a deadline and a timeout.
    ///     ValueError: a time that is NaN, or a negative number of seconds.
    #[new]
    #[pyo3(signature = (parent = None, *, deadline = None, timeout = None))]
    fn new(
        parent: Option<&Bound<'_, CancelToken>>,
        deadline: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Self> {
        Ok(Self::make(parent, deadline_of(deadline, timeout)?))
    }

    /// A source for the work that a message asks for: below `parent` if one is given, with the deadline in the
    /// headers that CancelToken.to_headers() has made, and cancelled (REMOTE) if they say so. Never blocks.
    ///
    /// The deadline is counted from now: the clocks of the two hosts are not compared. Other headers are
    /// passed over, and the names may be in any case.
    ///
    /// Raises:
    ///     TypeError: `headers` has no items(), or has names or values that are no strings.
    ///     ValueError: the time in the headers is not a number of seconds.
    #[staticmethod]
    #[pyo3(signature = (headers: "Mapping[str, str] | Message", parent = None))]
    fn from_headers(
        headers: &Bound<'_, PyAny>,
        parent: Option<&Bound<'_, CancelToken>>,
    ) -> PyResult<Self> {
        let received = headers::received(headers)?;
        let this = Self::make(parent, received.timeout.map(Time::after));
        if let Some(cause) = received.cause {
            this.source.node().cancel(cause);
        }
        Ok(this)
    }

    /// The token to hand out.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<CancelToken>> {
        if let Some(token) = self.token.get() {
            return Ok(token.get().clone_ref(py));
        }
        let made = CancelToken::wrap(py, self.source.token())?;
        let token = self.token.get_or_init(|| Shown::new(made)); // another thread may be first
        Ok(token.get().clone_ref(py))
    }

    /// When it is cancelled at the latest, on the clock of current_time(); infinity if it has no deadline of
    /// its own.
    ///
    /// It can be moved, earlier or later, by any thread, until the source is cancelled.
    #[getter]
    fn deadline(&self) -> f64 {
        seconds::from_time(self.source.node().own_deadline())
    }

    #[setter]
    fn set_deadline(&self, value: Seconds<'_, '_>) -> PyResult<()> {
        self.source
            .set_deadline(seconds::instant(value, "deadline")?);
        Ok(())
    }

    /// Cancel. True: this call was the first; False: it was cancelled, or closed, before.
    ///
    /// Never raises, and never waits for the cancelled code; works from any thread, signal handler and
    /// finalizer. `grace`: seconds that clean-up zones may still take (5 unless given); a later call
    /// can shorten it, counted from that call, and never lengthens it. Callbacks run on
    /// this thread; in a signal handler, a finalizer or a trace function, which interrupt code that may
    /// hold a lock, on a thread of desist's.
    #[pyo3(signature = (reason = None, *, grace = None))]
    fn cancel(
        &self,
        py: Python<'_>,
        reason: Option<&str>,
        grace: Option<Seconds<'_, '_>>,
    ) -> PyResult<bool> {
        let grace = seconds::optional_span(grace, "grace")?;
        Ok(cancel_node(py, self.source.node(), reason, grace))
    }

    /// Close: sources and tokens below are cancelled (SCOPE_EXITED). Idempotent.
    fn close(&self, py: Python<'_>) {
        detached(py, || self.source.close());
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (_type, _value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: LazyClass<'_, '_>,
        _value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) {
        self.close(py);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        let tokens = self.token.get().into_iter().chain(&self.parent);
        tokens
            .map(Shown::get)
            .try_for_each(|token| visit.call(token))
    }

    fn __repr__(&self) -> String {
        match self.source.node().cause() {
            None => "<CancelSource>".into(),
            Some(cause) => format!("<CancelSource {cause}>"),
        }
    }
}

/// Cancels by an explicit cause that happens now; see [`cancel_by`].
pub(super) fn cancel_node(
    py: Python<'_>,
    node: &token::tree::NodeRef,
    reason: Option<&str>,
    grace: Option<Duration>,
) -> bool {
    if node.is_cancelled() && grace.is_none() {
        return false;
    }
    let cause = crate::Cause::now(crate::CauseKind::Explicit, reason.map(Into::into), grace);
    cancel_by(py, node, cause)
}

/// Cancel a token by this cause, which need not be an explicit one. True: this call was the first.
#[pyfunction]
#[pyo3(signature = (token, cause, /))]
pub(super) fn cancel_because(
    py: Python<'_>,
    token: &Bound<'_, CancelToken>,
    cause: &Bound<'_, CancelCause>,
) -> bool {
    let node = token.get().inner().node();
    cancel_by(py, node, cause.get().core().clone())
}

/// Cancels detached, unless the node has neither waiters nor callbacks.
fn cancel_by(py: Python<'_>, node: &token::tree::NodeRef, cause: crate::Cause) -> bool {
    if !node.has_followers() {
        return node.cancel(cause);
    }
    detached(py, || {
        let first = node.cancel(cause);
        // Attached again at once, this thread would keep the woken one waiting for the interpreter
        // until the switch interval is over: 5 ms.
        park::yield_to_woken(WAKES_UP_IN);
        first
    })
}

/// The time in which the system wakes a thread up on a machine that is not overloaded.
const WAKES_UP_IN: Duration = Duration::from_micros(50);

/// One deadline out of two ways to give it.
pub(super) fn deadline_of(
    deadline: Option<Seconds<'_, '_>>,
    timeout: Option<Seconds<'_, '_>>,
) -> PyResult<Option<Time>> {
    match (deadline, timeout) {
        (None, None) => Ok(None),
        (Some(deadline), None) => seconds::instant(deadline, "deadline").map(Some),
        (None, Some(timeout)) => {
            seconds::span(timeout, "timeout").map(|span| Some(Time::after(span)))
        }
        (Some(_), Some(_)) => Err(timeout_and_deadline()),
    }
}

/// Both ways were used.
pub(super) fn timeout_and_deadline() -> PyErr {
    PyTypeError::new_err("give a timeout or a deadline, not both")
}

/// A callback registered with CancelToken.on_cancel(). As a context manager it closes itself.
#[pyclass(frozen, module = "desist._core")]
pub(super) struct Registration {
    /// `None` if the callback ran when it was registered.
    token: Option<Shown>,
    /// Of its function, in the token's table.
    id: u64,
    /// `None` only in the drop.
    inner: Option<token::Registration>,
}

impl Registration {
    fn close_until(&self, py: Python<'_>, until: Time) -> PyResult<bool> {
        match &self.inner {
            Some(registration) if !self.unregister() => {
                blocking(py, || registration.close_until(until))
            }
            _ => Ok(true),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Python code need not keep a registration. And a drop must not wait: it is attached, and
        // the running callback needs the interpreter.
        self.token = None; // before the count of the node
        if let Some(registration) = self.inner.take() {
            registration.detach();
        }
    }
}

#[pymethods]
impl Registration {
    /// Never blocks. True: the callback has not started and never will.
    fn unregister(&self) -> bool {
        let registration = self.inner.as_ref();
        let first = registration.is_some_and(token::Registration::unregister);
        if let (true, Some(token)) = (first, &self.token) {
            let table = token.get().get().callbacks.get();
            let function = table.and_then(|table| table.own.get().take(self.id));
            drop(function); // unlocked: may run any code
        }
        first
    }

    /// Unregister; if the callback is running on another thread, wait for its end, at most for
    /// the given seconds. True: it is not running, and never will; False: it still runs.
    ///
    /// Blocks: until the callback has ended; not at all from inside any cancel callback. What a signal
    /// handler raises ends the wait.
    /// On cancel: the wait is clean-up: it goes on until the canceller's grace is spent, and then raises
    /// Cancelled. A kill is deferred as long. No checkpoint if there is nothing to wait for.
    /// On timeout: returns False; the callback still runs.
    #[pyo3(signature = (timeout = None))]
    fn close(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        self.close_until(py, until)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        self.token
            .as_ref()
            .map_or(Ok(()), |token| visit.call(token.get()))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (_type, _value, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: LazyClass<'_, '_>,
        _value: LazyException<'_, '_>,
        _traceback: LazyTraceback<'_, '_>,
    ) -> PyResult<()> {
        self.close_until(py, Time::NEVER).map(|_| ())
    }
}

/// The token that the calling code is under: of the innermost scope, else of the task.
///
/// Outside both, a token that is never cancelled.
#[pyfunction]
pub(super) fn current_token(py: Python<'_>) -> PyResult<Py<CancelToken>> {
    CancelToken::wrap(py, scope::current_token())
}
