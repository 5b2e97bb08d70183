//! `FileQueue`: items that are kept in a file, as bytes; failures are kept as text, which any SQLite
//! program shows.
//!
//! Every operation may wait for the disk, so all of them run detached.

use std::path::PathBuf;
use std::sync::Arc;

use crate::python::binding::interned::interned;
use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyString, PyType};

use super::codec::Codec;
use super::items::{Wanted, listed};
use super::lease::LeaseSlot;
use super::options::{self, PutArguments};
use super::port::PoolQueue;
use super::promises::{ItemResult, Promises};
use super::source::{Delivery, Hold, LeaseHandle, LeaseKey, LeaseSource};
use super::{Dead, Lease, RetryPolicy, counts, earliest, not_dead};
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::binding::host::detached;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error;
use crate::python::op::Visited;
use crate::work::{self, Bytes, FileError, FileOptions, Nack, NackOutcome};

/// A LeaseQueue in a file.
///
/// put() returns when the item is on the disk. An item whose worker's process dies, of SIGKILL or a
/// crash, is leased again by another process that has the file open, or by the next that opens it, and
/// the attempt counts. After a loss of power, items whose end was not on the disk yet may be done
/// again. Any number of processes may have the same file open.
///
/// The file is a SQLite database that can be read with the sqlite3 program: its view `queue` is
/// made for that. Never open it with the sqlite3 module in a process that has it open as a
/// FileQueue: when that closes the file, the locks of both are lost.
///
/// Items are kept with pickle, or as JSON with `codec="json"`; failures are kept as text. As unpickling
/// can run any code, a pickled file must belong to the user of the process or to root, and be
/// writable by other users only as far as `mode` says. The files are made with the permissions `mode`,
/// by default for their user alone. None of them may be a symbolic or hard link, or a FIFO.
///
/// `retry`, `maxsize` and `lease_timeout` are as with LeaseQueue; each process has its own.
///
/// Blocks: all methods, for as long as the disk or another process's transaction takes. Only those
/// with a timeout are checkpoints.
///
/// On cancel: a method without a timeout goes on, and so does a commit that has begun.
///
/// Raises:
///     QueueFileError: (an OSError) the file cannot be used, or is no queue; it is not changed then. If
///         a file of the queue was deleted, moved or replaced, all later calls raise it as well.
#[pyclass(frozen, weakref, module = "desist")]
pub(in crate::python) struct FileQueue {
    file: Arc<File>,
}

impl FileQueue {
    /// The operations of a pool, for an object that also has this one.
    pub(super) fn pool_queue(&self) -> Arc<dyn PoolQueue> {
        self.file.clone()
    }
}

#[pymethods]
impl FileQueue {
    #[new]
    #[pyo3(signature = (
        path: "str | os.PathLike[str]",
        *,
        retry = None,
        maxsize = 0,
        lease_timeout = None,
        codec: "Literal['pickle', 'json']" = "pickle",
        mode: "int" = 0o600,
    ) -> "FileQueue[_T]")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        retry: Option<Py<RetryPolicy>>,
        maxsize: isize,
        lease_timeout: Option<Seconds<'_, '_>>,
        codec: &str,
        mode: i64,
    ) -> PyResult<Self> {
        let runs_code = codec == "pickle";
        let codec = Codec::named(py, codec)?;
        let options = FileOptions {
            queue: options::of_queue(retry.as_ref(), maxsize, lease_timeout)?,
            mode: file_mode(mode)?,
            only_trusted_writers: runs_code,
        };
        let queue = detached(py, || work::FileQueue::open(path, options));
        Ok(Self {
            file: Arc::new(File {
                queue: queue.map_err(|failure| from_file(py, failure))?,
                codec,
                retry,
                promises: Arc::default(),
            }),
        })
    }

    #[classmethod]
    #[pyo3(signature = (item: "object", /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class, item)
    }

    /// Add an item; returns its id, when the item is on the disk. The arguments are those of
    /// LeaseQueue.put().
    ///
    /// Blocks: for the disk, and where there is a maxsize, until there is room, for `timeout` seconds
    /// at most.
    /// On cancel: a checkpoint; Cancelled means that nothing was added.
    /// On kill: Killed means that nothing was added.
    ///
    /// Raises:
    ///     Full: no room in time.
    ///     TypeError: the codec cannot write it.
    #[pyo3(signature = (
        item: "_T",
        /,
        *,
        key = None,
        priority = 0,
        delay = None,
        expires = None,
        time_limit = None,
        timeout = None,
    ))]
    #[allow(clippy::too_many_arguments)]
    fn put(
        &self,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        key: Option<&str>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        time_limit: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let terms = options::of_put(key, priority, delay, expires, time_limit, timeout)?;
        let item = self.file.codec.encode(item)?;
        self.file.put(py, item, terms)
    }

    /// Add many items; returns their ids, in order. All of them or none, and much quicker than one
    /// by one.
    ///
    /// Blocks: for the disk, and where there is a maxsize, until there is room for all, for `timeout`
    /// seconds at most.
    /// On cancel: a checkpoint; Cancelled means that nothing was added.
    /// On kill: Killed means that nothing was added.
    ///
    /// Raises:
    ///     Full: no room in time.
    ///     TypeError: the codec cannot write one of them.
    #[pyo3(signature = (items: "Iterable[_T]", /, *, priority = 0, delay = None, expires = None, time_limit = None, timeout = None))]
    #[allow(clippy::too_many_arguments)] // the options of the items
    fn put_many(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        time_limit: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Vec<u64>> {
        let terms = options::of_put(None, priority, delay, expires, time_limit, timeout)?;
        let codec = &self.file.codec;
        let items = items
            .try_iter()?
            .map(|item| Ok((codec.encode(&item?)?, terms.options.clone())))
            .collect::<PyResult<Vec<_>>>()?;
        let queue = &self.file.queue;
        let put = detached(py, || queue.put_many(items, terms.until));
        put.map_err(|failure| from_file(py, failure))?
            .ok_or_else(|| error::ordinary(py, "Full", &""))
    }

    /// Lease the next item. The caller must acknowledge or requeue it; a WorkerPool does that for its
    /// handlers.
    ///
    /// An item that cannot be decoded has failed: it is requeued, or dead, as the RetryPolicy says, and the
    /// next item is leased.
    ///
    /// Blocks: until there is an item, for `timeout` seconds at most, and while the item is decoded.
    /// On cancel: a checkpoint; Cancelled means that nothing was leased.
    /// On timeout: returns None.
    /// On kill: Killed means that nothing was leased.
    #[pyo3(signature = (timeout = None) -> "Lease[_T] | None")]
    fn lease<'py>(
        slf: &Bound<'py, Self>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Option<Bound<'py, Lease>>> {
        let py = slf.py();
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        let slot = LeaseSlot::new(py)?;
        while let Some(delivery) = slf.get().file.lease(py, until)? {
            if let Some(decoded) = delivery.decoded(py)? {
                let owner = Some(slf.clone().into_any().unbind());
                return Ok(Some(slot.fill(decoded, owner)));
            }
        }
        Ok(None)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Visited {
        self.file.codec.traverse(&visit)?;
        visit.call(&self.file.retry)?;
        self.file.promises.traverse(&visit)
    }

    fn __clear__(&self) {
        self.file.promises.clear();
    }

    /// How many items are in each state, at one instant. `done` counts from the file's beginning.
    #[pyo3(signature = () -> "dict[Literal['ready', 'leased', 'delayed', 'done', 'dead'], int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts(py, self.file.run(py, work::FileQueue::counts)?)
    }

    /// The dead items: id, item, and all failures, as text.
    ///
    /// An item that cannot be decoded here is listed with its bytes in place of the item, and the
    /// decoder's exception as its last failure.
    #[pyo3(signature = () -> "list[tuple[int, _T | bytes, list[str]]]")]
    fn dead(&self, py: Python<'_>) -> PyResult<Vec<Dead<String>>> {
        let dead = self.file.run(py, work::FileQueue::dead)?;
        let show = |(id, item, failures): work::Dead<Bytes, work::Failure>| {
            let failures = failures.iter().map(ToString::to_string).collect();
            let (item, failures) = self.file.codec.dead_item(py, &item, failures)?;
            Ok((id, item, failures))
        };
        dead.into_iter().map(show).collect()
    }

    /// The items that are not done: their states, attempts, ages and holders, but not the items
    /// themselves. Leased ones come first, then ready, delayed and dead ones; within a state in the
    /// order in which they were put. `state` lists those of one state only, `limit` so many at most.
    /// Ages are by the wall clock.
    ///
    /// Raises:
    ///     ValueError: there is no such state, or a negative limit.
    #[pyo3(signature = (
        *,
        state: "Literal['leased', 'ready', 'delayed', 'dead'] | None" = None,
        limit = None,
    ) -> "list[ItemInfo]")]
    fn items<'py>(
        &self,
        py: Python<'py>,
        state: Option<&str>,
        limit: Option<isize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let wanted = Wanted::of(py, state, limit)?;
        let items = self
            .file
            .run(py, |queue| queue.items(wanted.state, wanted.limit))?;
        listed(py, items, |holder| (holder.pid, holder.thread))
    }

    /// Give a dead item all its attempts again.
    ///
    /// Raises:
    ///     ValueError: it is not dead.
    #[pyo3(signature = (item_id: "int", /))]
    fn retry(&self, py: Python<'_>, item_id: u64) -> PyResult<()> {
        if self.file.run(py, |queue| queue.retry(item_id))? {
            return Ok(());
        }
        Err(not_dead(item_id))
    }

    fn __repr__(&self) -> String {
        format!("<FileQueue {}>", self.file.queue.path().display())
    }
}

/// The queue, shared by the `FileQueue` object, its leases and the workers' loops. These have the object
/// as well, see `source`.
struct File {
    queue: work::FileQueue,
    codec: Codec,
    /// Shown to the collector by the queue's object. `None`: the default.
    retry: Option<Py<RetryPolicy>>,
    /// Shared with puts that are on their way to the disk.
    promises: Arc<Promises>,
}

impl File {
    /// Use the queue detached: any operation may wait for the disk or another process.
    fn run<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&work::FileQueue) -> Result<R, FileError> + Send,
    ) -> PyResult<R> {
        detached(py, || work(&self.queue)).map_err(|failure| from_file(py, failure))
    }

    fn put(&self, py: Python<'_>, item: Bytes, arguments: PutArguments) -> PyResult<u64> {
        let PutArguments { options, until } = arguments;
        self.run(py, |queue| queue.put(item, options, until))?
            .ok_or_else(|| error::ordinary(py, "Full", &""))
    }

    fn deliver(self: &Arc<Self>, py: Python<'_>, lease: &work::Lease<Bytes, Bytes>) -> Delivery {
        let key = LeaseKey {
            number: lease.id,
            epoch: lease.epoch,
            deadline: lease.deadline().unwrap_or(Time::NEVER),
        };
        Delivery {
            hold: Hold::new(key, self.clone()),
            attempt: lease.attempt,
            item: self.codec.content(py, &lease.item),
            context: self.promises.context(py, lease.id),
            progress: lease
                .progress()
                .map(|progress| self.codec.content(py, progress)),
            item_key: lease
                .details
                .as_ref()
                .and_then(|details| details.key.clone()),
            ends: lease.ends(),
            time_limit: lease.time_limit(),
        }
    }
}

impl LeaseSource for Arc<File> {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        let thread = current_thread_name(py)?;
        let lease = self.run(py, |queue| queue.lease_for(&thread, until))?;
        Ok(lease.map(|lease| self.deliver(py, &lease)))
    }
}

impl PoolQueue for File {
    fn source(self: Arc<Self>) -> Arc<dyn LeaseSource> {
        Arc::new(self)
    }

    fn retry(&self) -> Option<&Py<RetryPolicy>> {
        self.retry.as_ref()
    }

    fn name(&self) -> String {
        self.queue.path().display().to_string()
    }

    fn submit(
        &self,
        item: &Bound<'_, PyAny>,
        promise: &Bound<'_, PyAny>,
        arguments: PutArguments,
    ) -> PyResult<u64> {
        let item_bytes = self.codec.encode(item)?;
        let PutArguments { options, until } = arguments;
        // Taken by the commit: a worker finds the item's context as soon as it has leased the item.
        let waiting = Arc::new(Mutex::new(Some(promise.clone().unbind())));
        let (promises, taken) = (self.promises.clone(), waiting.clone());
        let on_put = move |id| {
            if let Some(promise) = taken.lock().take() {
                promises.add(id, promise);
            }
        };
        let put = self.run(item.py(), |queue| {
            queue.put_and_tell(item_bytes, options, until, on_put)
        });
        let unput = waiting.lock().take();
        drop(unput); // attached
        put?.ok_or_else(|| error::ordinary(item.py(), "Full", &""))
    }

    fn cancel(&self, py: Python<'_>, item_id: u64, failure: Py<PyAny>) -> PyResult<Option<bool>> {
        let note = self.codec.describe(py, &failure);
        let (dead, item) = self.run(py, |queue| {
            Ok((queue.cancel(item_id, note)?, queue.item(item_id)?))
        })?;
        // An item that had ended and is still there is dead: it may have expired just now.
        if dead == Some(true) || dead.is_none() && item.is_some() {
            self.promises.fail(py, item_id, failure);
        }
        Ok(dead)
    }

    fn failures_of(&self, py: Python<'_>, item_id: u64) -> PyResult<Option<Vec<Py<PyAny>>>> {
        let mut dead = self.run(py, work::FileQueue::dead)?.into_iter();
        let Some((_, _, failures)) = dead.find(|(id, ..)| *id == item_id) else {
            return Ok(None);
        };
        let texts = failures
            .iter()
            .map(|failure| PyString::new(py, &failure.to_string()).into_any().unbind());
        Ok(Some(texts.collect()))
    }

    fn drain(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Result<bool, PyErr>> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        match detached(py, || self.queue.drain(until)) {
            Err(FileError::Stop(stop)) => Err(error::from_stop(py, stop)),
            drained => Ok(drained.map_err(|failure| from_file(py, failure))),
        }
    }

    /// The items stay in the file for other processes, which do not know these futures.
    fn abandon(&self, py: Python<'_>, failure: &Py<PyAny>) -> PyResult<()> {
        self.promises.fail_all(py, failure);
        Ok(())
    }
}

impl LeaseHandle for File {
    fn id(&self, lease: LeaseKey) -> ItemId {
        lease.number.into()
    }

    fn is_cancelled(&self, py: Python<'_>, lease: LeaseKey) -> PyResult<bool> {
        self.run(py, |queue| queue.is_cancelled(lease.number, lease.epoch))
    }

    fn ack(&self, py: Python<'_>, lease: LeaseKey) -> PyResult<()> {
        self.run(py, |queue| queue.ack(lease.number, lease.epoch))
    }

    fn nack(
        &self,
        py: Python<'_>,
        lease: LeaseKey,
        nack: Nack,
        failure: Py<PyAny>,
    ) -> PyResult<NackOutcome> {
        let note = Some(self.codec.describe(py, &failure));
        self.run(py, |queue| {
            queue.nack(lease.number, lease.epoch, nack, note)
        })
    }

    fn release(&self, lease: LeaseKey) {
        self.queue.release(lease.number, lease.epoch);
    }

    fn extend(
        &self,
        py: Python<'_>,
        lease: LeaseKey,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Time> {
        let progress = progress.map(|progress| self.codec.encode(progress.bind(py)));
        let progress = progress.transpose()?;
        let until = self.run(py, |queue| {
            queue.extend(lease.number, lease.epoch, progress)
        })?;
        Ok(earliest(lease.deadline, until))
    }

    fn report(&self, py: Python<'_>, lease: LeaseKey, result: ItemResult) {
        self.promises.settle(py, lease.number, &result);
    }
}

/// The permissions of a file that its owner can read and write, and no user can execute.
fn file_mode(mode: i64) -> PyResult<u32> {
    let is_usable = |mode: &u32| mode & 0o600 == 0o600 && mode & !0o666 == 0;
    let mode = u32::try_from(mode).ok().filter(is_usable);
    mode.ok_or_else(|| {
        PyValueError::new_err(
            "mode must be permissions to read and write, the owner's among them: 0o600, or 0o660 \
             to share the file with its group",
        )
    })
}

fn from_file(py: Python<'_>, failure: FileError) -> PyErr {
    match failure {
        FileError::Stop(stop) => error::from_stop(py, stop),
        FileError::Fenced => error::fenced(py, &work::Fenced),
        FileError::Forked => PyRuntimeError::new_err(failure.to_string()),
        FileError::Untrusted(..) => {
            let advice = format!("{failure}; or keep the items as JSON, with codec=\"json\"");
            error::ordinary(py, "QueueFileError", &advice)
        }
        _ => error::ordinary(py, "QueueFileError", &failure),
    }
}

/// The name of the calling thread, as the holder of its leases.
fn current_thread_name(py: Python<'_>) -> PyResult<String> {
    let threading = py.import(interned!(py, "threading"))?;
    let thread = threading.call_method0(interned!(py, "current_thread"))?;
    thread.getattr(interned!(py, "name"))?.extract()
}
