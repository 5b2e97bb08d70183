//! Leases of items that are kept in a file.
//!
//! The file, a SQLite database in WAL mode, is the truth for everything, leases too: several
//! processes may have it open, and whichever of them dies, the others go on. What `put` has
//! returned for is on the disk. Leases and their ends are in the file when the call returns, but
//! not on the disk: they outlive the process, and after a loss of power some items are leased
//! again. A lease is good as long as its process lives; when that has died, another that has the
//! file open, or the next that opens it, leases the item anew, and counts the attempt (I33).
//!
//! Within a process the file must be opened by this library alone: a second copy of SQLite (that
//! of Python's `sqlite3`, say) would take its locks away. Other processes may look with any.

mod clock;
mod commit;
mod error;
mod process;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod waits;
mod watcher;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::atomics::Mutex;
use crate::clock::Time;
use crate::fork;
use crate::park::Ticket;
use crate::wait;
use crate::work::{
    Counts, Dead, EXPIRED, Jitter, LEASE_LOST, Lease, Nack, NackOutcome, PutOptions, QueueOptions,
};
use clock::{Clock, Machine};
use commit::Committer;
pub use error::FileError;
use process::{Opening, Process};
use tables::{Changed, Tables, Terms};
use waits::{Draining, Leasing, Lines, Putting};
use watcher::Bell;

/// What the file keeps of an item, a failure, a progress.
pub type Bytes = Arc<[u8]>;

/// What went wrong with an item of a [`FileQueue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// What was said when the lease was given back, or the item cancelled.
    Noted(Bytes),
    /// The process that worked on it died.
    OwnerDied {
        /// It had this number.
        pid: u32,
    },
    /// Its lease was not extended in time.
    LeaseTimedOut,
    /// Its own time has passed: nobody wants the work any more.
    ItemExpired,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Noted(note) => f.write_str(&String::from_utf8_lossy(note)),
            Failure::OwnerDied { pid } => {
                write!(f, "the process that worked on it, number {pid}, died")
            }
            Failure::LeaseTimedOut => f.write_str(LEASE_LOST),
            Failure::ItemExpired => f.write_str(EXPIRED),
        }
    }
}

/// A queue of leases, in a file. Cloning gives another handle; when the last one is dropped, what
/// is still leased through them is ready again.
///
/// All operations may block for the time of a disk's work, and of another process's transaction;
/// only those that wait for something take an `until`, and are checkpoints.
#[derive(Clone)]
pub struct FileQueue {
    handle: Arc<Handle>,
}

/// What there is once, however many handles.
struct Handle {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    options: QueueOptions,
    jitter: Jitter,
    clock: Arc<dyn Clock>,
    own: Process,
    owner: i64,
    opening: Arc<Opening>,
    committer: Committer,
    lines: Mutex<Lines>,
    bell: Bell,
}

impl FileQueue {
    /// Open the queue in this file; if there is none, it is made. Takes milliseconds, however
    /// many items there are, unless time has changed many meanwhile. Each process that opens the
    /// file has its own options.
    pub fn open(
        path: impl AsRef<Path>,
        options: impl Into<QueueOptions>,
    ) -> Result<FileQueue, FileError> {
        FileQueue::open_by(path.as_ref(), options.into(), Arc::new(Machine))
    }

    fn open_by(
        path: &Path,
        options: QueueOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<FileQueue, FileError> {
        // A fork in the middle would leave SQLite's own locks held in the child.
        let _inside = fork::inside();
        let (db, path, opening) = schema::open(path)?;
        let own = Process::own(&clock.start());
        let mut shared = Shared {
            bell: Bell::hang(&path)?, // before others know of this owner, and ring for it
            path,
            options: options.kept(),
            jitter: Jitter::default(),
            clock,
            own,
            owner: 0,
            opening: Arc::new(opening),
            committer: Committer::new(db),
            lines: Mutex::default(),
        };
        let (own, opening) = (shared.own.clone(), shared.opening.clone());
        shared.owner = shared.commit(false, shared.terms(), move |tables| {
            let owner = tables.join(&own)?;
            opening.add(owner); // at once: the keepers of others in this process look for it
            Ok(owner)
        })?;
        let mut handle = Handle {
            shared: Arc::new(shared),
            keeper: None,
        };
        watcher::look(&handle.shared)?;
        handle.keeper = Some(watcher::start(handle.shared.clone())?);
        Ok(FileQueue {
            handle: Arc::new(handle),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared().path
    }

    /// Add an item; returns its number, or that of the item which is there with its key. It is on
    /// the disk then. Where there is a `maxsize` it waits for room, until `until` at most (then
    /// `None`). A checkpoint; `Err` means that nothing was put.
    pub fn put(
        &self,
        item: impl Into<Bytes>,
        options: PutOptions,
        until: Time,
    ) -> Result<Option<u64>, FileError> {
        let put = self.put_many([(item.into(), options)], until)?;
        Ok(put.and_then(|ids| ids.first().copied()))
    }

    /// [`FileQueue::put`] for many at once: all or none are put. It waits for room for all of
    /// them, or until nothing else is ready, leased or delayed.
    pub fn put_many(
        &self,
        items: impl IntoIterator<Item = (Bytes, PutOptions)>,
        until: Time,
    ) -> Result<Option<Vec<u64>>, FileError> {
        let mut putting = Putting::new(self.shared(), items.into_iter().collect());
        wait::perform(&mut putting, until)
    }

    /// Lease the next item, waiting until `until` at most. `None`: none came, or the queue is
    /// closed. A checkpoint; `Err` means that nothing was leased.
    pub fn lease(&self, until: Time) -> Result<Option<Lease<Bytes, Bytes>>, FileError> {
        wait::perform(&mut Leasing::new(self.shared()), until).map(Option::flatten)
    }

    /// The work is done. At most one call succeeds for an item (I29).
    pub fn ack(&self, id: u64, epoch: u64) -> Result<(), FileError> {
        Ok(self.run(move |tables| tables.ack(id, epoch))??)
    }

    /// Give a lease back, with what went wrong, if anything did.
    pub fn nack(
        &self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: Option<Bytes>,
    ) -> Result<NackOutcome, FileError> {
        let random = self.shared().jitter.sample(epoch);
        let failure = failure.map(Failure::Noted);
        let given =
            self.run(move |tables| tables.nack(id, epoch, nack, failure.as_ref(), random))?;
        Ok(given?)
    }

    /// The work goes on: the lease is good for its whole time again, and the next attempt, if
    /// there is one, finds the progress. Returns until when.
    pub fn extend(
        &self,
        id: u64,
        epoch: u64,
        progress: Option<Bytes>,
    ) -> Result<Option<Time>, FileError> {
        Ok(self.run(move |tables| tables.extend(id, epoch, progress.as_deref()))??)
    }

    /// The work is unwanted: it will not be leased again (I31). `Some(true)`: it is dead now.
    /// `Some(false)`: it is with a worker, and will be when that gives it back. `None`: it is
    /// done or dead already, or never was.
    pub fn cancel(&self, id: u64, failure: Bytes) -> Result<Option<bool>, FileError> {
        self.run(move |tables| tables.cancel(id, &failure))
    }

    /// Nobody will work on what is here: all that is ready or delayed is dead now. Returns it.
    pub fn dead_letter_all(&self, failure: Bytes) -> Result<Vec<Bytes>, FileError> {
        self.run(move |tables| tables.dead_letter_all(&failure))
    }

    /// An item that has not been acknowledged.
    pub fn item(&self, id: u64) -> Result<Option<Bytes>, FileError> {
        self.run(move |tables| tables.item(id))
    }

    /// Give a dead item all its attempts again, and as much time as it needs, whether there is
    /// room or not. False: it is not dead.
    pub fn retry(&self, id: u64) -> Result<bool, FileError> {
        self.run(move |tables| tables.retry(id))
    }

    /// How many items are in each state, at one instant.
    pub fn counts(&self) -> Result<Counts, FileError> {
        self.run(|tables| Ok(tables.counts()))
    }

    /// The dead items, in the order in which they died.
    pub fn dead(&self) -> Result<Vec<Dead<Bytes, Failure>>, FileError> {
        self.run(|tables| tables.dead())
    }

    /// Wait until nothing is ready, leased or delayed, or until `until` (then false). A
    /// checkpoint.
    pub fn drain(&self, until: Time) -> Result<bool, FileError> {
        let drained = wait::perform(&mut Draining::new(self.shared()), until)?;
        Ok(drained.is_some())
    }

    /// From now on `lease` returns `None` at once, here and with all clones of this queue; others
    /// that have the file open go on. Items stay where they are, and more can be put.
    pub fn close(&self) {
        self.shared().lines.lock().closed = true;
        self.shared().stir();
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn run<R: Send + 'static>(
        &self,
        work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        self.shared().run(false, self.shared().terms(), work)
    }
}

impl Shared {
    fn terms(&self) -> Terms {
        Terms {
            now: self.clock.now(),
            owner: self.owner,
            retry: self.options.retry,
            maxsize: self.options.maxsize,
            lease_timeout: self.options.lease_timeout,
        }
    }

    fn is_of_this_process(&self) -> bool {
        self.own.pid == std::process::id()
    }

    /// Do it in a transaction, after all that is due.
    fn run<R: Send + 'static>(
        &self,
        durable: bool,
        terms: Terms,
        mut work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        self.commit(durable, terms, move |tables| {
            tables.catch_up()?;
            work(tables)
        })
    }

    fn commit<R: Send + 'static>(
        &self,
        durable: bool,
        terms: Terms,
        work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        if !self.is_of_this_process() {
            return Err(FileError::Forked);
        }
        self.committer
            .run(durable, terms, &|changed| self.tell(changed), work)
    }

    /// Tell those who wait of a commit.
    fn tell(&self, changed: &Changed) {
        if changed.concerns_somebody() {
            let wake = self.lines.lock().change(changed);
            wake.iter().for_each(Ticket::wake);
        }
        if let Some(end) = changed.ends {
            self.bell.by(end);
        }
        if changed.tell {
            self.bell.ring();
        }
    }

    /// Have all who wait look again.
    fn stir(&self) {
        let wake = self.lines.lock().stir();
        wake.iter().for_each(Ticket::wake);
    }

    /// How long it is until the machine's clock shows this; `None`: for ever.
    fn until(&self, machine: i64) -> Option<Duration> {
        let left = machine.saturating_sub(self.clock.now().machine()).max(0);
        (machine < i64::MAX).then(|| Duration::from_millis(left.unsigned_abs()))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The parent's file, and its thread: not to be touched, not even closed.
        if !self.shared.is_of_this_process() {
            return std::mem::forget(self.shared.clone());
        }
        self.shared.bell.end();
        if let Some(keeper) = self.keeper.take() {
            let _ = fork::outside(|| keeper.join());
        }
        let owner = self.shared.owner;
        // If the file cannot be written now, the next who opens it finds out.
        let _ = self.shared.run(false, self.shared.terms(), move |tables| {
            tables.part(owner, None)
        });
        self.shared.opening.remove(owner);
        self.shared.committer.close();
    }
}

impl fmt::Debug for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileQueue")
            .field("path", &self.path())
            .finish()
    }
}
