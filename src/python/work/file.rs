//! `FileQueue`: items that are kept in a file, as bytes.
//!
//! What is said of a failure is kept as text, so that people can read it with any SQLite program.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyGenericAlias, PyType};

use super::codec::Codec;
use super::engine::{Delivery, Engine, Hold, Told};
use super::lease::Blank;
use super::options::{self, Terms};
use super::promises::Promises;
use super::{Dead, Lease, RetryPolicy, counts, earliest, failure, not_dead};
use crate::CauseKind;
use crate::clock::Time;
use crate::item::ItemId;
use crate::python::binding::host::detached;
use crate::python::binding::seconds;
use crate::python::binding::seconds::Seconds;
use crate::python::error;
use crate::work::{self, Bytes, FileError, Nack, NackOutcome};

/// A LeaseQueue in a file.
///
/// put() returns when the item is on the disk. What is leased when its process dies, of SIGKILL or
/// a crash, is leased again by another process that has the file open, or by the next that opens
/// it, and the attempt counts. After a loss of power, items may be done again whose end was not on
/// the disk yet. Any number of processes may have the same file open.
///
/// The file is a SQLite database that can be read with the sqlite3 program: its view `queue` is
/// made for that. Never open it with the sqlite3 module in a process that has it open as a
/// FileQueue: when that closes the file, the locks of both are gone.
///
/// Items are kept with pickle, or as JSON with `codec="json"`; what goes wrong is kept as text.
/// `retry`, `maxsize` and `lease_timeout` are as with LeaseQueue; each process has its own.
///
/// All methods may block for as long as the disk takes, or another process's transaction; only
/// those with a timeout are checkpoints. QueueFileError, an OSError: the file cannot be used, or is
/// something else; it is left as it is then.
#[pyclass(frozen, weakref, module = "desist")]
pub(in crate::python) struct FileQueue {
    engine: Arc<File>,
}

impl FileQueue {
    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(self.engine.clone())
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
    ) -> "FileQueue[_T]")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        retry: Option<&RetryPolicy>,
        maxsize: isize,
        lease_timeout: Option<Seconds<'_, '_>>,
        codec: &str,
    ) -> PyResult<Self> {
        let codec = Codec::named(py, codec)?;
        let options = options::of_queue(retry, maxsize, lease_timeout)?;
        let queue = detached(py, || work::FileQueue::open(path, options));
        Ok(Self {
            engine: Arc::new(File {
                queue: queue.map_err(|failure| from_file(py, failure))?,
                codec,
                promises: Promises::default(),
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

    /// Add an item; returns its id, when the item is on the disk. As LeaseQueue.put(). TypeError:
    /// the codec cannot write it.
    #[pyo3(signature = (
        item: "_T",
        /,
        *,
        key = None,
        priority = 0,
        delay = None,
        expires = None,
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
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let terms = options::of_put(key, priority, delay, expires, timeout)?;
        let item = self.engine.codec.encode(item)?;
        self.engine.put(py, item, terms)
    }

    /// Add many items; returns their ids, in order. All of them or none, and much quicker than one
    /// by one. As put().
    #[pyo3(signature = (items: "Iterable[_T]", /, *, priority = 0, delay = None, expires = None, timeout = None))]
    fn put_many(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Vec<u64>> {
        let terms = options::of_put(None, priority, delay, expires, timeout)?;
        let codec = &self.engine.codec;
        let items = items
            .try_iter()?
            .map(|item| Ok((codec.encode(&item?)?, terms.options.clone())))
            .collect::<PyResult<Vec<_>>>()?;
        let queue = &self.engine.queue;
        let put = detached(py, || queue.put_many(items, terms.until));
        put.map_err(|failure| from_file(py, failure))?
            .ok_or_else(|| error::ordinary(py, "Full", &""))
    }

    /// As put(); `future` is told how the work ended. For WorkerPool.
    #[pyo3(signature = (item: "_T", future: "object", /, *, key = None, priority = 0, delay = None, expires = None, timeout = None))]
    #[allow(clippy::too_many_arguments)]
    fn _submit(
        &self,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        future: &Bound<'_, PyAny>,
        key: Option<&str>,
        priority: i64,
        delay: Option<Seconds<'_, '_>>,
        expires: Option<Seconds<'_, '_>>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<u64> {
        let terms = options::of_put(key, priority, delay, expires, timeout)?;
        let item = self.engine.codec.encode(item)?;
        self.engine
            .promises
            .keep(future, || self.engine.put(py, item, terms))
    }

    /// Lease the next item; waits for one, at most for `timeout` seconds (then None). As
    /// LeaseQueue.lease().
    #[pyo3(signature = (timeout = None) -> "Lease[_T] | None")]
    fn lease<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<Seconds<'_, '_>>,
    ) -> PyResult<Option<Bound<'py, Lease>>> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        let blank = Blank::new(py)?;
        let delivery = self.engine.lease(py, until)?;
        Ok(delivery.map(|delivery| blank.of(delivery)))
    }

    /// How many items are in each state, at one instant. `done` counts from the file's beginning.
    #[pyo3(signature = () -> "dict[Literal['ready', 'leased', 'delayed', 'done', 'dead'], int]")]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts(py, self.engine.run(py, work::FileQueue::counts)?)
    }

    /// The dead items: id, item, and all that went wrong, as text.
    #[pyo3(signature = () -> "list[tuple[int, _T, list[str]]]")]
    fn dead(&self, py: Python<'_>) -> PyResult<Vec<Dead<String>>> {
        let dead = self.engine.run(py, work::FileQueue::dead)?;
        let show = |(id, item, failures): work::Dead<Bytes, work::Failure>| {
            let item = self.engine.codec.decode(py, &item)?;
            Ok((id, item, failures.iter().map(ToString::to_string).collect()))
        };
        dead.into_iter().map(show).collect()
    }

    /// Give a dead item all its attempts again. ValueError if it is not dead.
    #[pyo3(signature = (item_id: "int", /))]
    fn retry(&self, py: Python<'_>, item_id: u64) -> PyResult<()> {
        if self.engine.run(py, |queue| queue.retry(item_id))? {
            return Ok(());
        }
        Err(not_dead(item_id))
    }

    /// As LeaseQueue._cancel(). For WorkerPool.
    #[pyo3(signature = (item_id: "int", reason = None))]
    fn _cancel(
        &self,
        py: Python<'_>,
        item_id: u64,
        reason: Option<&str>,
    ) -> PyResult<Option<bool>> {
        let failure = failure(py, CauseKind::Explicit, reason)?;
        let note = self.engine.codec.describe(py, &failure);
        let (dead, item) = self.engine.run(py, |queue| {
            Ok((queue.cancel(item_id, note)?, queue.item(item_id)?))
        })?;
        // What is there though it had ended is dead: its time may have passed just now.
        if dead == Some(true) || dead.is_none() && item.is_some() {
            self.engine.promises.tell_off(py, item_id, failure);
        }
        Ok(dead)
    }

    /// The pool that has opened it is done with it. What is in it is for others, who will not tell
    /// the futures. For WorkerPool.
    #[pyo3(signature = (reason = None))]
    fn _give_up(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        let failure = failure(py, CauseKind::Shutdown, reason)?;
        self.engine.promises.tell_off_all(py, &failure);
        Ok(())
    }

    /// Wait until nothing is ready, leased or delayed (True), or the seconds have passed.
    #[pyo3(signature = (timeout = None))]
    fn _drain(&self, py: Python<'_>, timeout: Option<Seconds<'_, '_>>) -> PyResult<bool> {
        let until = seconds::until(seconds::optional_span(timeout, "timeout")?);
        self.engine.run(py, |queue| queue.drain(until))
    }

    fn __repr__(&self) -> String {
        format!("<FileQueue {}>", self.engine.queue.path().display())
    }
}

/// What a FileQueue is for those who work.
struct File {
    queue: work::FileQueue,
    codec: Codec,
    promises: Promises,
}

impl File {
    fn run<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&work::FileQueue) -> Result<R, FileError> + Send,
    ) -> PyResult<R> {
        detached(py, || work(&self.queue)).map_err(|failure| from_file(py, failure))
    }

    fn put(&self, py: Python<'_>, item: Bytes, terms: Terms) -> PyResult<u64> {
        self.run(py, |queue| queue.put(item, terms.options, terms.until))?
            .ok_or_else(|| error::ordinary(py, "Full", &""))
    }

    /// An item that cannot be read is given back as failed; the next may be better.
    fn deliver(
        self: &Arc<Self>,
        py: Python<'_>,
        lease: &work::Lease<Bytes, Bytes>,
    ) -> PyResult<Option<Delivery>> {
        let item = self.codec.decode(py, &lease.item);
        let progress = lease
            .progress()
            .map(|progress| self.codec.decode(py, progress));
        let hold = Held {
            file: self.clone(),
            id: lease.id,
            epoch: lease.epoch,
            deadline: lease.deadline().unwrap_or(Time::NEVER),
        };
        let (item, progress) = match (item, progress.transpose()) {
            (Ok(item), Ok(progress)) => (item, progress),
            (Err(unreadable), _) | (_, Err(unreadable)) => {
                let failure = unreadable.into_value(py).into_any();
                if hold.nack(py, Nack::Failed, failure.clone_ref(py))? == NackOutcome::Dead {
                    hold.tell(py, Told::Failed(failure));
                }
                return Ok(None);
            }
        };
        Ok(Some(Delivery {
            epoch: lease.epoch,
            attempt: lease.attempt,
            item,
            progress,
            ends: lease.ends(),
            hold: Box::new(hold),
        }))
    }
}

impl Engine for Arc<File> {
    fn lease(&self, py: Python<'_>, until: Time) -> PyResult<Option<Delivery>> {
        while let Some(lease) = self.run(py, |queue| queue.lease(until))? {
            if let Some(delivery) = self.deliver(py, &lease)? {
                return Ok(Some(delivery));
            }
        }
        Ok(None)
    }
}

/// A leased item of a FileQueue.
struct Held {
    file: Arc<File>,
    id: u64,
    epoch: u64,
    deadline: Time,
}

impl Hold for Held {
    fn id(&self) -> ItemId {
        self.id.into()
    }

    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        self.file.run(py, |queue| queue.ack(self.id, self.epoch))
    }

    fn nack(&self, py: Python<'_>, nack: Nack, failure: Py<PyAny>) -> PyResult<NackOutcome> {
        let note = Some(self.file.codec.describe(py, &failure));
        self.file
            .run(py, |queue| queue.nack(self.id, self.epoch, nack, note))
    }

    fn extend(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Time> {
        let progress = progress.map(|progress| self.file.codec.encode(progress.bind(py)));
        let progress = progress.transpose()?;
        let file = &self.file;
        let until = file.run(py, |queue| queue.extend(self.id, self.epoch, progress))?;
        Ok(earliest(self.deadline, until))
    }

    fn tell(&self, py: Python<'_>, told: Told) {
        self.file.promises.tell(py, self.id, &told);
    }
}

fn from_file(py: Python<'_>, failure: FileError) -> PyErr {
    match failure {
        FileError::Stopped(stop) => error::from_stop(py, stop),
        FileError::Fenced => error::fenced(py, &work::Fenced),
        FileError::Forked => PyRuntimeError::new_err(failure.to_string()),
        _ => error::ordinary(py, "QueueFileError", &failure),
    }
}
