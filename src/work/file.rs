//! Leases of items that are kept in a file.
//!
//! The file is a SQLite database in WAL mode. It is the truth for everything, leases included:
//! several processes may have it open, and if one of them dies, the others go on.
//!
//! - An item is on the disk when its `put` has returned.
//! - Leases and their ends are in the file when the call returns, but not on the disk: they outlive
//!   the process, and after a loss of power some items are leased again.
//! - A lease is valid only while its holder lives. One that its holder has released, because it has
//!   failed or is gone, ends with the next transaction that succeeds (I48).
//! - And only while its process lives. When the process has died, another that has the
//!   file open, or the next that opens it, makes the item ready; the attempt counts (I33).
//!
//! Within a process the file must be opened by this library alone: closing it through a second copy
//! of SQLite (that of Python's `sqlite3`, say) would release the locks of the process. Other
//! processes may read it with any.
//!
//! # Leases whose holders are gone (I48)
//!
//! A holder whose settlement fails, as the disk is full, and one that goes without a settlement, releases
//! its lease. [`FileQueue::release`] does not use the file: it adds the lease to `Shared::released`, and
//! wakes the watcher. Every transaction, of any operation or of the watcher, first requeues the items
//! of all leases in that list; the thread of a transaction that was committed takes them out. The
//! watcher repeats a transaction that failed until one succeeds. So the item is ready as soon as the
//! file can be written, and before any other operation looks.
//!
//! A queue that is closed while the file cannot be written leaves a thread behind, which repeats the last
//! transaction: the one that removes its owner, and so ends all its leases (`watcher::close_later`).
//!
//! # How it works
//!
//! | module | subject |
//! |---|---|
//! | `files` | permissions; refusing links and FIFOs; noticing files that are gone |
//! | `schema` | the tables; opening a file, and refusing one that is no queue |
//! | `tables` | the operations, each inside a transaction; the table of states is in `work.rs` |
//! | `commit` | one transaction for all threads that come at the same time |
//! | `waits` | threads of this process that wait for items, room or the end |
//! | `watcher` | the thread that notices other processes and time |
//! | `process` | owners of leases: which process, and whether it lives |
//! | `clock` | the clock of the file's times, over reboots |
//!
//! An operation is a closure over the tables. `Shared::run` gives it to the committer, which runs
//! it in a transaction after all state changes that are due, and then notifies the waiters of this
//! process and the watchers of the others of the changes (`Shared::publish`).
//!
//! Lock order: the database before the commit queue (`commit.rs`), and the database before the wait
//! lists (`waits.rs`). Waiters are woken with the wait lists unlocked. No lock is taken while `released`
//! is locked.

mod clock;
mod commit;
mod error;
mod files;
mod process;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod waits;
mod watcher;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::atomics::{AtomicU64, Mutex, Ordering};
use crate::clock::Time;
use crate::fork;
use crate::park::Ticket;
use crate::wait;
use crate::work::{
    Counts, Dead, EXPIRED, ItemInfo, ItemState, Jitter, LEASE_LOST, Lease, Nack, NackOutcome,
    PutOptions, QueueOptions, RetryPolicy,
};
use clock::{Clock, Machine};
use commit::Committer;
pub use error::FileError;
use files::Files;
use process::{OpenFile, Process};
use tables::{CancelOutcome, Changed, OpContext, Tables};
use waits::{DrainOp, LeaseOp, PutOp, WaitLists};
use watcher::Notifier;

/// An item, a failure or a progress, as the file keeps it.
pub type Bytes = Arc<[u8]>;

/// One failure of an item of a [`FileQueue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The note that was given with `nack` or `cancel`.
    Noted(Bytes),
    /// The process that had the lease died.
    OwnerDied {
        /// Its pid.
        pid: u32,
    },
    /// The lease was not extended in time.
    LeaseTimedOut,
    /// The item's time to live has passed.
    ItemExpired,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Noted(note) => f.write_str(&String::from_utf8_lossy(note)),
            Failure::OwnerDied { pid } => {
                write!(f, "the process that worked on it, with pid {pid}, died")
            }
            Failure::LeaseTimedOut => f.write_str(LEASE_LOST),
            Failure::ItemExpired => f.write_str(EXPIRED),
        }
    }
}

/// The options of a [`FileQueue`], of which each process that opens the file has its own.
#[derive(Debug, Clone, Copy)]
pub struct FileOptions {
    /// Those of a queue in memory as well.
    pub queue: QueueOptions,
    /// The permissions with which the files are made, whatever the umask is: reading and writing
    /// by the owner, and more only if it says so. To share a queue between the users of a group:
    /// `0o660`, in a folder of the group that hands it on (`chmod g+s`).
    pub mode: u32,
    /// Refuse a file that users other than the caller and root can write, unless `mode` lets them.
    /// For items that can run code when they are decoded.
    pub only_trusted_writers: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        QueueOptions::default().into()
    }
}

impl From<QueueOptions> for FileOptions {
    fn from(queue: QueueOptions) -> Self {
        Self {
            queue,
            mode: 0o600,
            only_trusted_writers: false,
        }
    }
}

impl From<RetryPolicy> for FileOptions {
    fn from(retry: RetryPolicy) -> Self {
        QueueOptions::from(retry).into()
    }
}

/// The worker that has an item of a [`FileQueue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHolder {
    /// The pid of its process.
    pub pid: u32,
    /// The name of its thread; empty if it has none.
    pub thread: String,
}

/// A queue of leases, in a file. Cloning gives another handle; when the last one is dropped, items
/// still leased through them are ready again.
///
/// # Blocking
/// Every operation may block for the time that the disk takes, and the transaction of another
/// process. Only those with an `until` wait for something else, and are checkpoints.
///
/// # Errors
/// Every operation fails with a [`FileError`] if the file cannot be used; then nothing was changed.
#[derive(Clone)]
pub struct FileQueue {
    handle: Arc<Handle>,
}

/// The state that all handles share; its drop closes the queue.
struct Handle {
    shared: Arc<Shared>,
    /// `None` only while the queue is opened, and after the drop.
    watcher: Option<JoinHandle<()>>,
}

/// An open queue. Its watcher has it, too. Only what has locks of its own changes after the queue
/// was opened.
struct Shared {
    /// Shared with the committer, which checks them.
    files: Arc<Files>,
    options: QueueOptions,
    /// For the pauses of failed items.
    jitter: Jitter,
    /// The machine's, or that of a test.
    clock: Arc<dyn Clock>,
    /// The process that opened it; in a forked child another than the calling one.
    own: Process,
    /// Its id in the table `owners`.
    owner: i64,
    /// Has the connection, which is closed before `open_file` is dropped.
    committer: Committer,
    /// Registers the file as open in this process, until the queue is closed.
    open_file: Arc<OpenFile>,
    waits: Mutex<WaitLists>,
    /// The leases whose holders are gone, and whose items are still leased in the file; each by its
    /// item's id and its epoch. Added to by [`FileQueue::release`], which may be called anywhere; taken
    /// out by the thread of a transaction that has requeued the items.
    released: Mutex<Vec<(u64, u64)>>,
    /// The greatest epoch of a lease whose item was cancelled through this queue. It only grows. A
    /// later lease has a greater epoch, so that nearly all leases are known not to be cancelled
    /// without a look into the file.
    last_cancelled: AtomicU64,
    notifier: Notifier,
}

impl FileQueue {
    /// Open the queue in this file, which is made if there is none. Each process that opens it has
    /// options of its own.
    ///
    /// # Blocking
    /// For milliseconds, however many items there are, unless the state changes of many are due.
    ///
    /// # Errors
    /// The file is no queue, of a newer version, damaged, or cannot be written; it, or a file beside
    /// it, is a link or a FIFO, or can be written by other users.
    pub fn open(
        path: impl AsRef<Path>,
        options: impl Into<FileOptions>,
    ) -> Result<FileQueue, FileError> {
        FileQueue::open_by(path.as_ref(), options.into(), Arc::new(Machine))
    }

    fn open_by(
        path: &Path,
        options: FileOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<FileQueue, FileError> {
        // A fork in the middle would leave SQLite's own locks held in the child.
        let _inside = fork::inside();
        let files = Arc::new(Files::new(path, &options)?);
        let (db, open_file) = schema::open(&files)?;
        let own = Process::own(&clock.start());
        let mut shared = Shared {
            notifier: Notifier::open(&files)?, // before other processes know of this owner
            options: options.queue.kept(),
            jitter: Jitter::default(),
            clock,
            own,
            owner: 0,
            committer: Committer::new(db, files.clone()),
            files,
            open_file: Arc::new(open_file),
            waits: Mutex::default(),
            released: Mutex::default(),
            last_cancelled: AtomicU64::new(0),
        };
        let (own, open_file) = (shared.own.clone(), shared.open_file.clone());
        shared.owner = shared.commit(false, shared.context(), move |tables| {
            let owner = tables.add_owner(&own)?;
            open_file.add(owner); // in the transaction: the watcher of another queue looks for it
            Ok(owner)
        })?;
        let mut handle = Handle {
            shared: Arc::new(shared),
            watcher: None,
        };
        watcher::check_owners(&handle.shared)?;
        handle.watcher = Some(watcher::start(handle.shared.clone())?);
        Ok(FileQueue {
            handle: Arc::new(handle),
        })
    }

    /// The path of the file, without links.
    pub fn path(&self) -> &Path {
        self.shared().files.database()
    }

    /// Put an item, which is on the disk when this returns. Returns its id, or that of the item
    /// which has its key already and stands for it. `None`: there was no room until `until`.
    ///
    /// # Blocking
    /// Blocks while the queue is full ([`QueueOptions::maxsize`]).
    ///
    /// # Cancellation
    /// A checkpoint on entry. A cancelled call has put nothing.
    pub fn put(
        &self,
        item: impl Into<Bytes>,
        options: PutOptions,
        until: Time,
    ) -> Result<Option<u64>, FileError> {
        let put = self.put_many([(item.into(), options)], until)?;
        Ok(put.and_then(|ids| ids.first().copied()))
    }

    /// [`FileQueue::put`] for many items at once: all of them are put, or none.
    ///
    /// # Blocking
    /// Blocks until there is room for all of them, or no other item is unfinished.
    ///
    /// # Cancellation
    /// A checkpoint on entry. A cancelled call has put nothing.
    pub fn put_many(
        &self,
        items: impl IntoIterator<Item = (Bytes, PutOptions)>,
        until: Time,
    ) -> Result<Option<Vec<u64>>, FileError> {
        let mut putting = PutOp::new(self.shared(), items.into_iter().collect(), None);
        wait::perform(&mut putting, until)
    }

    /// [`FileQueue::put`]; `on_put` gets the id before any queue of this process leases the item.
    #[cfg(feature = "python")]
    pub(crate) fn put_and_tell(
        &self,
        item: impl Into<Bytes>,
        options: PutOptions,
        until: Time,
        on_put: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Option<u64>, FileError> {
        let items = Arc::new([(item.into(), options)]);
        let mut putting = PutOp::new(self.shared(), items, Some(Arc::new(on_put)));
        let put = wait::perform(&mut putting, until)?;
        Ok(put.and_then(|ids| ids.first().copied()))
    }

    /// Lease the next item; see [`LeaseQueue::lease`](crate::work::LeaseQueue::lease) for the order.
    /// `None`: no item came until `until`, or the queue is closed.
    ///
    /// # Blocking
    /// Blocks while no item is ready.
    ///
    /// # Cancellation
    /// A checkpoint on entry. A cancelled call has leased nothing. If an item was leased first it
    /// is returned, and the next checkpoint raises.
    pub fn lease(&self, until: Time) -> Result<Option<Lease<Bytes, Bytes>>, FileError> {
        let thread = std::thread::current();
        self.lease_for(thread.name().unwrap_or_default(), until)
    }

    /// [`FileQueue::lease`] for a thread that the host knows by this name.
    ///
    /// # Blocking
    /// As [`FileQueue::lease`].
    ///
    /// # Cancellation
    /// As [`FileQueue::lease`].
    pub fn lease_for(
        &self,
        thread: &str,
        until: Time,
    ) -> Result<Option<Lease<Bytes, Bytes>>, FileError> {
        let mut leasing = LeaseOp::new(self.shared(), thread.into());
        wait::perform(&mut leasing, until).map(Option::flatten)
    }

    /// Acknowledge: the work of this lease is done, and the item leaves the queue. At most one call
    /// succeeds for an item (I29).
    ///
    /// # Errors
    /// [`FileError::Fenced`]: the lease is over.
    pub fn ack(&self, id: u64, epoch: u64) -> Result<(), FileError> {
        Ok(self.run(move |tables| tables.ack(id, epoch))??)
    }

    /// End the lease without success, and store the failure, if there was one.
    ///
    /// # Errors
    /// [`FileError::Fenced`]: the lease is over.
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

    /// The holder of the lease is gone: requeue the item, unless the lease is over. Never blocks and never
    /// fails: it is done by the next transaction that succeeds, of any operation or the queue's own
    /// thread, and before any other change.
    pub fn release(&self, id: u64, epoch: u64) {
        let shared = self.shared();
        if shared.is_of_this_process() {
            shared.released.lock().push((id, epoch));
            shared.notifier.wake();
        }
    }

    /// Extend the lease for another [`QueueOptions::lease_timeout`], and keep the progress, if any
    /// is given, for the next attempt. Returns when the lease ends now.
    ///
    /// # Errors
    /// [`FileError::Fenced`]: the lease is over.
    pub fn extend(
        &self,
        id: u64,
        epoch: u64,
        progress: Option<Bytes>,
    ) -> Result<Option<Time>, FileError> {
        Ok(self.run(move |tables| tables.extend(id, epoch, progress.as_deref()))??)
    }

    /// Let the item be leased no more (I31). `Some(true)`: it is dead now. `Some(false)`: it is
    /// leased, and will be dead when its lease ends without success. `None`: it is done or dead
    /// already, or there never was one with this id.
    pub fn cancel(&self, id: u64, failure: Bytes) -> Result<Option<bool>, FileError> {
        Ok(match self.run(move |tables| tables.cancel(id, &failure))? {
            CancelOutcome::Dead => Some(true),
            CancelOutcome::Leased { epoch } => {
                // Release: a worker that is not found after this sees it when it begins.
                let last = &self.shared().last_cancelled;
                last.fetch_max(epoch, Ordering::Release);
                Some(false)
            }
            CancelOutcome::Ended => None,
        })
    }

    /// True if the item was cancelled, through this queue or its clones, since it was leased with this
    /// epoch. A cancel by another process that has the file open may not be seen.
    ///
    /// # Blocking
    /// Never, if no item of this lease or a later one was cancelled: then the file is not read.
    pub fn is_cancelled(&self, id: u64, epoch: u64) -> Result<bool, FileError> {
        if self.shared().last_cancelled.load(Ordering::Acquire) < epoch {
            return Ok(false);
        }
        self.run(move |tables| tables.is_cancelled(id, epoch))
    }

    /// Let all ready and delayed items be dead, and return them: no worker will lease them.
    pub fn dead_letter_all(&self, failure: Bytes) -> Result<Vec<Bytes>, FileError> {
        self.run(move |tables| tables.dead_letter_all(&failure))
    }

    /// The item with this id, if it is not done.
    pub fn item(&self, id: u64) -> Result<Option<Bytes>, FileError> {
        self.run(move |tables| tables.item(id))
    }

    /// Make a dead item ready, whether there is room or not, with all its attempts and without a
    /// time to live. False: it is not dead.
    pub fn retry(&self, id: u64) -> Result<bool, FileError> {
        self.run(move |tables| tables.retry(id))
    }

    /// How many items are in each state, at one instant.
    pub fn counts(&self) -> Result<Counts, FileError> {
        self.run(|tables| Ok(tables.counts()))
    }

    /// The items that are not done: at most `limit`, of this state only if one is given. In the order
    /// of [`ItemState`], and within a state in the order in which they were put. Ages are by the wall
    /// clock.
    pub fn items(
        &self,
        state: Option<ItemState>,
        limit: usize,
    ) -> Result<Vec<ItemInfo<FileHolder>>, FileError> {
        self.run(move |tables| tables.infos(state, limit))
    }

    /// The dead items, in the order in which they died.
    pub fn dead(&self) -> Result<Vec<Dead<Bytes, Failure>>, FileError> {
        self.run(|tables| tables.dead())
    }

    /// Wait until no item is ready, leased or delayed. False: there was one until `until`.
    ///
    /// # Blocking
    /// Blocks while items are unfinished.
    ///
    /// # Cancellation
    /// A checkpoint on entry.
    pub fn drain(&self, until: Time) -> Result<bool, FileError> {
        let drained = wait::perform(&mut DrainOp::new(self.shared()), until)?;
        Ok(drained.is_some())
    }

    /// From now on `lease` of this queue and its clones returns `None` at once, also to the threads
    /// that wait in it. Other queues that have the file open are not affected. The items keep
    /// their states, and more can be put.
    pub fn close(&self) {
        self.shared().waits.lock().closed = true;
        self.shared().wake_all();
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn run<R: Send + 'static>(
        &self,
        work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        self.shared().run(false, self.shared().context(), work)
    }
}

impl Shared {
    fn context(&self) -> OpContext {
        OpContext {
            now: self.clock.now(),
            owner: self.owner,
            retry: self.options.retry,
            maxsize: self.options.maxsize,
            lease_timeout: self.options.lease_timeout,
        }
    }

    /// False in a child that was forked after the queue was opened.
    fn is_of_this_process(&self) -> bool {
        self.own.pid == std::process::id()
    }

    /// Run `work` in a transaction, behind all state changes that are due. `durable`: it is on the
    /// disk when this returns.
    fn run<R: Send + 'static>(
        &self,
        durable: bool,
        context: OpContext,
        mut work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        self.commit(durable, context, move |tables| {
            tables.catch_up()?;
            work(tables)
        })
    }

    /// Run `work` in a transaction, behind the requeues of released leases.
    fn commit<R: Send + 'static>(
        &self,
        durable: bool,
        context: OpContext,
        mut work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        if !self.is_of_this_process() {
            return Err(FileError::Forked);
        }
        let released = self.released.lock().clone();
        let leases = released.clone();
        let done = self.committer.run(
            durable,
            context,
            &|changed| self.publish(changed),
            move |tables| {
                tables.requeue(&leases)?;
                work(tables)
            },
        );
        if matches!(done, Err(FileError::Gone(_))) {
            self.wake_all(); // whether the watcher was told or not
        }
        if done.is_ok() && !released.is_empty() {
            let mut left = self.released.lock();
            left.retain(|lease| !released.contains(lease));
        }
        done
    }

    /// Remove this queue from the owners, and end its leases.
    fn remove_owner(&self) -> Result<(), FileError> {
        let owner = self.owner;
        self.run(false, self.context(), move |tables| {
            tables.remove_owner(owner, None)
        })
    }

    /// Tell the waiters of this process, its watcher and other processes of a commit. Called by the
    /// thread that made it, with the database still locked, so in the order of the commits.
    fn publish(&self, changed: &Changed) {
        for (id, on_put) in &changed.put {
            on_put(*id);
        }
        if changed.concerns_waiters() {
            let wake = self.waits.lock().change(changed);
            wake.iter().for_each(Ticket::wake);
        }
        if let Some(end) = changed.ends {
            self.notifier.wake_by(end);
        }
        if changed.tell {
            self.notifier.notify_processes();
        }
    }

    /// Let all waiters look again.
    fn wake_all(&self) {
        let wake = self.waits.lock().wake_all();
        wake.iter().for_each(Ticket::wake);
    }

    /// How long it takes until the machine's clock shows this; `None`: forever.
    fn until(&self, machine: i64) -> Option<Duration> {
        let left = machine.saturating_sub(self.clock.now().machine()).max(0);
        (machine < i64::MAX).then(|| Duration::from_millis(left.unsigned_abs()))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // In a forked child the file and the watcher are the parent's: they must not be touched, not
        // even closed.
        if !self.shared.is_of_this_process() {
            return std::mem::forget(self.shared.clone());
        }
        self.shared.notifier.end();
        if let Some(watcher) = self.watcher.take() {
            let _ = fork::outside(|| watcher.join());
        }
        let removed = self.shared.remove_owner();
        self.shared.open_file.remove(self.shared.owner); // other queues of the process may remove it, too
        match removed {
            Err(error) if error.may_pass() => watcher::close_later(self.shared.clone()),
            _ => self.shared.committer.close(),
        }
    }
}

impl fmt::Debug for FileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileQueue")
            .field("path", &self.path())
            .finish()
    }
}
