//! `Queue`, `LifoQueue` and `SimpleQueue`: the core's queue of objects, with the signatures of `queue`.
//!
//! A subclass of `Queue` with hooks of its own (`_put`, `_get`, ...) gets methods that call them, from
//! `desist._queue.adopt`; the native methods serve all other classes. The fast paths (`offer`, `take`)
//! do no more than a checkpoint and one critical section: a put and get take 1.2 times as long as in
//! `queue.SimpleQueue`.

use std::sync::atomic::{AtomicIsize, Ordering};

use crate::python::binding::interned::interned;
use pyo3::PyClass;
use pyo3::exceptions::PyValueError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::{PyDict, PyGenericAlias, PyTuple, PyType};

use crate::clock::Time;
use crate::park::Ticket;
use crate::python::binding::lazy_arg;
use crate::python::binding::seconds::{self, Seconds};
use crate::python::error;
use crate::python::op::{Failure, Op, Operation, Started, Visited, Yield, adapted};
use crate::python::ports::hooked_queue;
use crate::python::sync::condition::Condition;
use crate::python::wait::{checkpoint, perform};
use crate::sync::{self, Order};
use crate::wait::{Op as CoreOp, Until, Waitable};

type Items = sync::Queue<Py<PyAny>>;

/// When the wait times out; `None`: the call does not wait. As in `queue`, a timeout counts only with `block`.
#[inline]
fn patience(block: bool, timeout: Option<Seconds<'_, '_>>) -> PyResult<Option<Time>> {
    match timeout {
        None => Ok(block.then_some(Time::NEVER)),
        Some(_) if !block => Ok(None),
        Some(timeout) => counted(timeout),
    }
}

fn counted(timeout: Seconds<'_, '_>) -> PyResult<Option<Time>> {
    let timeout = seconds::number(timeout, "timeout")?;
    if timeout < 0.0 {
        let message = "'timeout' must be a non-negative number";
        return Err(PyValueError::new_err(message));
    }
    Ok(Some(seconds::after(timeout)))
}

#[inline]
fn put(py: Python<'_>, items: &Items, item: Py<PyAny>, until: Option<Time>) -> PyResult<()> {
    if until.is_some() {
        checkpoint(py)?;
    }
    match items.offer(item) {
        Ok(()) => Ok(()),
        Err(item) => wait_and_put(py, items, item, until),
    }
}

/// There was no place just now, or the queue is shut down.
#[cold]
fn wait_and_put(
    py: Python<'_>,
    items: &Items,
    item: Py<PyAny>,
    until: Option<Time>,
) -> PyResult<()> {
    let mut left = items
        .try_put(item)
        .map_err(|failure| error::from_queue(py, failure))?;
    if let (Some(item), Some(until)) = (left.take_if(|_| until.is_some()), until) {
        let mut putting = items.put_op(item);
        let put =
            perform(py, &mut putting, until).map_err(|failure| error::from_queue(py, failure))?;
        left = putting.into_item().filter(|_| put.is_none());
    }
    match left {
        None => Ok(()),
        Some(_) => Err(error::ordinary(py, "Full", &"")),
    }
}

#[inline]
fn get(py: Python<'_>, items: &Items, until: Option<Time>) -> PyResult<Py<PyAny>> {
    if until.is_some() {
        checkpoint(py)?;
    } else {
        // A kill that is raised right behind the call would lose the item.
        error::check_kill(py)?;
    }
    match items.take() {
        Some(item) => Ok(item),
        None => wait_and_get(py, items, until),
    }
}

/// There was no item just now, or the queue is shut down.
#[cold]
fn wait_and_get(py: Python<'_>, items: &Items, until: Option<Time>) -> PyResult<Py<PyAny>> {
    let mut got = items.try_get();
    if let (Ok(None), Some(until)) = (&got, until) {
        got = perform(py, &mut items.get_op(), until);
    }
    match got {
        Ok(Some(item)) => Ok(item),
        Ok(None) => Err(error::ordinary(py, "Empty", &"")),
        Err(failure) => Err(error::from_queue(py, failure)),
    }
}

/// A queue like queue.Queue, whose waits can be cancelled.
///
/// `maxsize`: how many items it may have; any number if that is zero or less. A subclass may
/// override the hooks `_init`, `_qsize`, `_put` and `_get`, as it may with queue.Queue.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct Queue {
    items: Items,
    maxsize: AtomicIsize,
}

#[pymethods]
impl Queue {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object") -> "Queue[_T]", text_signature = "(maxsize=0)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            items: Items::new(Order::Fifo, 0),
            maxsize: AtomicIsize::new(0),
        }
    }

    #[pyo3(signature = (maxsize = 0))]
    fn __init__(slf: &Bound<'_, Self>, maxsize: isize) -> PyResult<()> {
        let py = slf.py();
        if slf.get_type().is(py.get_type::<Self>()) {
            slf.get().configure(maxsize, false);
        } else {
            slf.call_method1(hooked_queue::_set_up(py), (maxsize,))?;
        }
        Ok(())
    }

    /// `native`: its hooks do the same as the native methods.
    #[classmethod]
    #[pyo3(signature = (*, native: "bool" = false, **kwargs: "object"))]
    fn __init_subclass__(
        class: &Bound<'_, PyType>,
        native: bool,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let py = class.py();
        py.import("builtins")?
            .call_method1("super", (py.get_type::<Self>(), class))?
            .call_method("__init_subclass__", (), kwargs)?;
        if !native {
            py.import("desist._queue")?
                .call_method1("adopt", (class,))?;
        }
        Ok(())
    }

    /// Configure the queue as its class is; called once, before it is used.
    #[pyo3(signature = (maxsize: "int"))]
    fn _set_up(&self, maxsize: isize) {
        self.configure(maxsize, false);
    }

    /// Set order and size, before the queue is used.
    #[pyo3(name = "_configure", signature = (maxsize, *, lifo = false))]
    fn configure(&self, maxsize: isize, lifo: bool) {
        let order = if lifo { Order::Lifo } else { Order::Fifo };
        let capacity = usize::try_from(maxsize).unwrap_or(0);
        self.items.configure(order, capacity);
        self.maxsize.store(maxsize, Ordering::Relaxed);
    }

    // The hooks of queue.Queue, for an overriding hook that calls super(): they keep the items in an
    // attribute `queue` of the subclass. The native methods do not use them.

    #[pyo3(signature = (maxsize: "int"))]
    fn _init(slf: &Bound<'_, Self>, maxsize: isize) -> PyResult<()> {
        let _ = maxsize;
        let py = slf.py();
        slf.setattr("queue", py.import("collections")?.call_method0("deque")?)
    }

    fn _qsize(slf: &Bound<'_, Self>) -> PyResult<usize> {
        slf.getattr("queue")?.len()
    }

    #[pyo3(signature = (item: "_T"))]
    fn _put(slf: &Bound<'_, Self>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.getattr("queue")?.call_method1("append", (item,))?;
        Ok(())
    }

    #[pyo3(signature = () -> "_T")]
    fn _get<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.getattr("queue")?.call_method0("popleft")
    }

    /// The most items that it may have; zero or less means any number.
    #[getter]
    fn maxsize(&self) -> isize {
        self.maxsize.load(Ordering::Relaxed)
    }

    /// Waiting putters get the added places.
    #[setter]
    fn set_maxsize(&self, maxsize: isize) {
        self.maxsize.store(maxsize, Ordering::Relaxed);
        self.items.resize(usize::try_from(maxsize).unwrap_or(0));
    }

    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// Put an item.
    ///
    /// Blocks: until there is a free place, for `timeout` seconds at most; not at all with
    /// `block=False`.
    /// On cancel: a blocking call raises Cancelled, also if there is a place; the item was not put.
    /// On timeout: Full is raised.
    /// On kill: Killed is raised, and the item was not put.
    ///
    /// Raises:
    ///     Full: no place in time.
    ///     ShutDown: the queue was shut down.
    #[pyo3(signature = (item: "_T", block: "bool" = true, timeout = None))]
    fn put(
        &self,
        py: Python<'_>,
        item: Py<PyAny>,
        #[pyo3(from_py_with = lazy_arg::truth)] block: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<()> {
        put(py, &self.items, item, patience(block, timeout)?)
    }

    /// put(item, block=False). Never blocks.
    #[pyo3(signature = (item: "_T"))]
    fn put_nowait(&self, py: Python<'_>, item: Py<PyAny>) -> PyResult<()> {
        put(py, &self.items, item, None)
    }

    /// Get an item.
    ///
    /// Blocks: until there is an item, for `timeout` seconds at most; not at all with `block=False`.
    /// On cancel: a blocking call raises Cancelled, also if there is an item; none was taken.
    /// On timeout: Empty is raised.
    /// On kill: Killed is raised, and no item was taken.
    ///
    /// Raises:
    ///     Empty: no item in time.
    ///     ShutDown: the queue is empty and shut down.
    #[pyo3(signature = (block: "bool" = true, timeout = None) -> "_T")]
    fn get(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = lazy_arg::truth)] block: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Py<PyAny>> {
        get(py, &self.items, patience(block, timeout)?)
    }

    /// get(block=False). Never blocks.
    #[pyo3(signature = () -> "_T")]
    fn get_nowait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        get(py, &self.items, None)
    }

    /// The operation get(), for wait_any(); yields the item. Making it never blocks.
    #[pyo3(signature = () -> "Op[_T]")]
    fn get_op(slf: &Bound<'_, Self>) -> PyResult<Op> {
        // A queue with hooks of its own keeps its items itself, and has the condition for them.
        match slf.getattr_opt(interned!(slf.py(), "not_empty"))? {
            Some(condition) => {
                let condition = condition.cast_into::<Condition>()?;
                condition.get().core()?;
                let queue = slf.clone().into_any().unbind();
                Ok(Op::new(HookedGet(queue, condition.unbind())))
            }
            None => Ok(Op::new(GetItem(slf.clone().unbind()))),
        }
    }

    /// The operation put(item), for wait_any(); yields None.
    ///
    /// Raises:
    ///     TypeError: a PriorityQueue, or another queue with hooks of its own.
    #[pyo3(signature = (item: "_T", /) -> "Op[None]")]
    fn put_op(slf: Py<Self>, item: Py<PyAny>) -> Op {
        Op::new(PutItem(slf, item))
    }

    /// Count one item as done.
    ///
    /// Raises:
    ///     ValueError: all items that were put are counted as done already.
    fn task_done(&self) -> PyResult<()> {
        self.items
            .task_done()
            .map_err(|failure| PyValueError::new_err(failure.to_string()))
    }

    /// Wait until task_done() was called for each item that was put.
    ///
    /// Blocks: until then.
    /// On cancel: Cancelled is raised.
    /// On kill: Killed is raised.
    fn join(&self, py: Python<'_>) -> PyResult<()> {
        checkpoint(py)?;
        if self.items.unfinished() > 0 {
            perform(py, &mut self.items.join_op(), Time::NEVER)
                .map_err(|stop| error::from_stop(py, stop))?;
        }
        Ok(())
    }

    /// Shut the queue down: put() raises ShutDown, and so does get() once the queue is empty, also in
    /// threads that wait. `immediate`: the queue is emptied at once, and its items count as done.
    #[pyo3(signature = (immediate: "bool" = false))]
    fn shutdown(&self, #[pyo3(from_py_with = lazy_arg::truth)] immediate: bool) {
        drop(self.items.shut_down(immediate));
    }

    /// Is it shut down?
    #[getter]
    fn is_shutdown(&self) -> bool {
        self.items.is_shut_down()
    }

    /// How many items were put and not yet counted as done.
    #[getter]
    fn unfinished_tasks(&self) -> usize {
        self.items.unfinished()
    }

    /// How many items are in it, at this instant.
    fn qsize(&self) -> usize {
        self.items.len()
    }

    /// Is it empty, at this instant?
    fn empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Is it full, at this instant?
    fn full(&self) -> bool {
        self.items.is_full()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        traverse(&self.items, &visit)
    }

    fn __clear__(&self) {
        drop(self.items.clear());
    }
}

/// An unbounded queue like queue.SimpleQueue, whose waits can be cancelled.
#[pyclass(frozen, weakref, subclass, module = "desist")]
pub(in crate::python) struct SimpleQueue {
    items: Items,
}

#[pymethods]
impl SimpleQueue {
    // Takes any arguments, because a subclass's `__init__` may have its own.
    #[new]
    #[pyo3(signature = (*_args: "object", **_kwargs: "object") -> "SimpleQueue[_T]", text_signature = "()")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            items: Items::new(Order::Fifo, 0),
        }
    }

    #[pyo3(signature = ())]
    fn __init__(&self) {}

    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// Put an item. Never blocks, and is no checkpoint; the other arguments are ignored, and
    /// are there so that the signature is that of Queue.put().
    #[pyo3(signature = (item: "_T", block: "bool" = true, timeout: "float | None" = None))]
    fn put(
        &self,
        py: Python<'_>,
        item: Py<PyAny>,
        #[pyo3(from_py_with = lazy_arg::truth)] block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (block, timeout);
        put(py, &self.items, item, None)
    }

    /// put(item). Never blocks.
    #[pyo3(signature = (item: "_T"))]
    fn put_nowait(&self, py: Python<'_>, item: Py<PyAny>) -> PyResult<()> {
        put(py, &self.items, item, None)
    }

    /// Get an item.
    ///
    /// Blocks: until there is an item, for `timeout` seconds at most; not at all with `block=False`.
    /// On cancel: a blocking call raises Cancelled, also if there is an item; none was taken.
    /// On timeout: Empty is raised.
    /// On kill: Killed is raised, and no item was taken.
    ///
    /// Raises:
    ///     Empty: no item in time.
    #[pyo3(signature = (block: "bool" = true, timeout = None) -> "_T")]
    fn get(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = lazy_arg::truth)] block: bool,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Py<PyAny>> {
        get(py, &self.items, patience(block, timeout)?)
    }

    /// get(block=False). Never blocks.
    #[pyo3(signature = () -> "_T")]
    fn get_nowait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        get(py, &self.items, None)
    }

    /// The operation get(), for wait_any(); yields the item. Making it never blocks.
    #[pyo3(signature = () -> "Op[_T]")]
    fn get_op(slf: Py<Self>) -> Op {
        Op::new(GetItem(slf))
    }

    /// How many items are in it, at this instant.
    fn qsize(&self) -> usize {
        self.items.len()
    }

    /// Is it empty, at this instant?
    fn empty(&self) -> bool {
        self.items.is_empty()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        traverse(&self.items, &visit)
    }

    fn __clear__(&self) {
        drop(self.items.clear());
    }
}

fn traverse(items: &Items, visit: &PyVisit<'_>) -> Visited {
    let mut visited = Ok(());
    items.try_for_each(|item| {
        if visited.is_ok() {
            visited = visit.call(item);
        }
    });
    visited
}

// ---------------------------------------------------------------------- operations

/// A class that has items.
trait Holder: PyClass<Frozen = True> + Sync {
    fn items(&self) -> &Items;
}

impl Holder for Queue {
    fn items(&self) -> &Items {
        &self.items
    }
}

impl Holder for SimpleQueue {
    fn items(&self) -> &Items {
        &self.items
    }
}

/// Gets an item.
struct GetItem<C>(Py<C>);

impl<C: Holder> Operation for GetItem<C> {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        adapted(self.0.get().items().get_op(), Yield::Object)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)
    }
}

/// Puts this item.
struct PutItem(Py<Queue>, Py<PyAny>);

impl Operation for PutItem {
    fn start<'a>(&'a self, py: Python<'_>) -> Started<'a> {
        let item = self.1.clone_ref(py);
        adapted(self.0.get().items.put_op(item), |()| Yield::Plain)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)?;
        visit.call(&self.1)
    }
}

/// Gets an item of a queue that keeps its items by methods of its own.
struct HookedGet(Py<PyAny>, Py<Condition>);

impl Operation for HookedGet {
    fn start<'a>(&'a self, _: Python<'_>) -> Started<'a> {
        let HookedGet(queue, condition) = self;
        match condition.get().core() {
            Ok(condition) => Box::new(GettingHooked { queue, condition }),
            // Not possible: get_op() has made sure that there is one.
            Err(_) => adapted(Until(Time::NEVER), |()| Yield::Plain),
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Visited {
        visit.call(&self.0)?;
        visit.call(&self.1)
    }
}

/// A wait for an item of a queue that keeps its items by methods of its own.
struct GettingHooked<'a> {
    queue: &'a Py<PyAny>,
    condition: &'a sync::Condition,
}

impl Waitable for GettingHooked<'_> {
    fn enqueue(&mut self, ticket: Ticket) {
        self.condition.join(ticket.clone());
        // Items that were put before this waiter joined have notified other waiters.
        let news = Python::attach(|py| {
            self.queue
                .call_method0(py, hooked_queue::_has_news(py))?
                .is_truthy(py)
        });
        if news.unwrap_or(true) {
            self.condition.leave(&ticket);
            ticket.grant();
        }
    }

    fn dequeue(&mut self, ticket: &Ticket) -> bool {
        self.condition.leave(ticket);
        false
    }
}

impl CoreOp for GettingHooked<'_> {
    type Output = Yield;
    type Error = Failure;

    fn attempt(&mut self) -> Result<Option<Yield>, Failure> {
        Python::attach(|py| match self.queue.call_method0(py, "get_nowait") {
            Ok(item) => Ok(Some(Yield::Object(item))),
            Err(raised) if error::is(py, &raised, "Empty") => Ok(None),
            Err(raised) => Err(raised.into()),
        })
    }
}
