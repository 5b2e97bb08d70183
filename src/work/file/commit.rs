//! Group commit: one transaction for all threads that come at the same time.
//!
//! # Protocol
//!
//! An operation is put into the commit queue. The thread that finds `served` false sets it, and is
//! the leader: it locks the database, runs its own operation and all that are queued meanwhile in
//! one transaction, and hands each thread its outcome. The other threads sleep until they have
//! one. With one thread nothing is handed over to another; with many they share the sync of the
//! disk, which takes most of the time.
//!
//! A leader serves [`ROUNDS`] transactions at most. Then it wakes the first thread of the queue
//! without an outcome, which is the leader from then on; `served` stays true. The leader that
//! finds the queue empty sets it to false, under the same lock, so that an operation is either
//! found by the leader or its thread becomes the leader.
//!
//! | `served` | event | then |
//! |---|---|---|
//! | false: the queue is empty | an operation is queued | true; its thread is the leader |
//! | true | an operation is queued | its thread sleeps |
//! | true | the leader takes a batch and runs it | the threads of the batch have outcomes and are awake |
//! | true | the leader has served [`ROUNDS`] | the first sleeping thread is the leader |
//! | true | the leader finds the queue empty | false |
//!
//! A thread that becomes the leader has its own operation in front of the queue, and so in its first
//! batch: it never serves without an outcome of its own in the end.
//!
//! The leader alone writes [`Done::outcome`], then settles the waiter; the thread of the operation
//! reads it after that. The operation's result goes another way, by a slot that the closure fills, so
//! that operations of all types are one list.
//!
//! Lock order: `db`, then `queue` or an outcome, neither of which is held while another lock is taken.
//! `changed` is called with `db` locked, and takes the lock of the wait lists (`waits.rs`): the
//! commits are published in their order.
//!
//! If an operation fails, the whole transaction is rolled back, and each operation is run in a
//! transaction of its own, so that the failing one fails alone. So an operation may run twice, and
//! must not use anything up.
//!
//! The thread of an operation sleeps without regard to cancellation: whether its operation was
//! committed has to be known.
//!
//! A transaction is begun only while the files are where they were opened (`files.rs`): an operation
//! that begins after one was deleted or replaced fails, and changes nothing.
//!
//! Relies on operations that do not panic: a leader that unwinds would leave `served` set. And on
//! SQLite's rollback: what an operation has changed of the file is gone when its transaction fails;
//! its [`Meta`] and [`Changed`] go with the failed attempt.

use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::Connection;

use super::error::FileError;
use super::files::Files;
use super::schema;
use super::tables::{Changed, Meta, OpContext, Tables};
use crate::atomics::Mutex;
use crate::fork;
use crate::park::{WaitOutcome, Waiter};

/// The most transactions of one leader. It bounds how long a thread works for others before its own
/// call returns.
const ROUNDS: usize = 8;
/// The most operations of one transaction. It bounds how long the file is locked for other processes.
const BATCH: usize = 256;

/// Changes the tables, and leaves its result in a slot of its own. May be called twice.
type Operation = Box<dyn FnMut(&mut Tables<'_>) -> Result<(), FileError> + Send>;

/// An operation in the commit queue.
struct Request {
    /// Run by the leader, on the leader's thread.
    run: Operation,
    /// Its transaction must be on the disk when it returns.
    durable: bool,
    /// Time, owner and options of the operation, which its transaction does not share.
    context: OpContext,
    /// Shared with the thread of the operation.
    done: Arc<Done>,
}

/// The result of a thread's request: the thread waits for it, and the leader fills it in.
struct Done {
    /// Settled by the leader, once.
    waiter: crate::atomics::Arc<Waiter>,
    /// How the operation ended. Written by the leader before it settles the waiter; still empty
    /// then, it says that the thread is the leader now.
    outcome: Mutex<Option<Result<(), FileError>>>,
}

impl Done {
    /// Wake the thread of the operation, with its outcome or to be the leader.
    fn wake(&self) {
        self.waiter.settle_and_wake(WaitOutcome::Granted);
    }
}

/// The connection, and the operations that wait for it.
pub(super) struct Committer {
    /// The operations that no leader has taken yet. Locked for the time of a push or of a take.
    queue: Mutex<CommitQueue>,
    /// Locked by the leader alone, so no thread waits for it for long. `None`: closed.
    db: Mutex<Option<Db>>,
}

/// The connection, as the leader uses it.
struct Db {
    /// The only connection of this queue. In no transaction between two batches.
    connection: Connection,
    /// The connection's setting: each commit is on the disk when it returns.
    syncs: bool,
    /// The files that the connection has open, checked before each transaction: SQLite itself would
    /// go on with deleted ones.
    files: Arc<Files>,
}

impl Db {
    /// Change the setting, if it is another.
    fn sync(&mut self, each_commit: bool) -> Result<(), FileError> {
        if self.syncs != each_commit {
            let level = if each_commit { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.syncs = each_commit;
        }
        Ok(())
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if self.files.check().is_err() {
            schema::leave_wal(&self.connection);
        }
    }
}

/// The fields that the lock of the queue protects.
#[derive(Default)]
struct CommitQueue {
    /// In the order of arrival, which is the order in their transaction. Empty while `served` is
    /// false.
    requests: VecDeque<Request>,
    /// There is a leader. Set by the thread that becomes it, reset by it under the same lock
    /// under which it finds the queue empty.
    served: bool,
}

impl Committer {
    /// For a connection that was just opened, with syncs for checkpoints only.
    pub(super) fn new(connection: Connection, files: Arc<Files>) -> Committer {
        let db = Db {
            connection,
            syncs: false,
            files,
        };
        Committer {
            queue: Mutex::default(),
            db: Mutex::new(Some(db)),
        }
    }

    /// Run `work` in a transaction, in this context. If the calling thread is the leader,
    /// `changed` is called for every commit that it makes, with the database locked. A `durable`
    /// operation is on the disk when this returns.
    ///
    /// # Blocking
    /// For the time that the file takes, without regard to cancellation.
    pub(super) fn run<R: Send + 'static>(
        &self,
        durable: bool,
        context: OpContext,
        changed: &dyn Fn(&Changed),
        mut work: impl FnMut(&mut Tables<'_>) -> Result<R, FileError> + Send + 'static,
    ) -> Result<R, FileError> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        let done = Arc::new(Done {
            waiter: Waiter::real(),
            outcome: Mutex::new(None),
        });
        let request = Request {
            run: Box::new(move |tables| {
                *slot.lock() = Some(work(tables)?);
                Ok(())
            }),
            durable,
            context,
            done: done.clone(),
        };
        let is_served = {
            let mut queue = self.queue.lock();
            queue.requests.push_back(request);
            std::mem::replace(&mut queue.served, true)
        };
        if is_served {
            done.waiter.wait_uninterruptible();
        }
        let outcome = done.outcome.lock().take();
        let outcome = outcome.unwrap_or_else(|| {
            self.serve(changed);
            done.outcome.lock().take().unwrap_or(Ok(()))
        });
        outcome?;
        let result = result.lock().take();
        result.ok_or_else(|| FileError::Failed("it is closed".into()))
    }

    /// Close the connection, after the batches of the present leader. Every later operation fails.
    pub(super) fn close(&self) {
        let db = self.db.lock().take();
        drop(db);
    }

    /// Be the leader: run the operations of the queue, the own one among the first.
    fn serve(&self, changed: &dyn Fn(&Changed)) {
        // A fork in the middle would leave SQLite's own locks held in the child.
        let _inside = fork::inside();
        let mut db = self.db.lock();
        for round in 0.. {
            let mut batch: Vec<Request> = {
                let mut queue = self.queue.lock();
                let next = queue.requests.front().map(|next| next.done.clone());
                match next {
                    None => return queue.served = false,
                    Some(next) if round == ROUNDS => {
                        drop(queue);
                        drop(db);
                        return next.wake();
                    }
                    Some(_) => {}
                }
                let count = queue.requests.len().min(BATCH);
                queue.requests.drain(..count).collect()
            };
            let outcomes = do_all(db.as_mut(), &mut batch, changed);
            for (request, outcome) in batch.iter().zip(outcomes) {
                *request.done.outcome.lock() = Some(outcome);
                request.done.wake();
            }
        }
    }
}

/// Run a batch in one transaction, or if that fails, each operation alone.
fn do_all(
    db: Option<&mut Db>,
    batch: &mut [Request],
    changed: &dyn Fn(&Changed),
) -> Vec<Result<(), FileError>> {
    let Some(db) = db else {
        let closed = || Err(FileError::Failed("it is closed".into()));
        return batch.iter().map(|_| closed()).collect();
    };
    if let [alone] = batch {
        return vec![transact(db, std::slice::from_mut(alone), changed)];
    }
    match transact(db, batch, changed) {
        Ok(()) => batch.iter().map(|_| Ok(())).collect(),
        // The others would be locked out as well, each for the whole time that is waited.
        Err(FileError::Locked) => batch.iter().map(|_| Err(FileError::Locked)).collect(),
        Err(_) => batch
            .iter_mut()
            .map(|request| transact(db, std::slice::from_mut(request), changed))
            .collect(),
    }
}

/// Run a batch in one transaction: all operations are done, or none.
fn transact(
    db: &mut Db,
    batch: &mut [Request],
    changed: &dyn Fn(&Changed),
) -> Result<(), FileError> {
    let is_durable = batch.iter().any(|request| request.durable);
    if is_durable {
        db.files.check()?;
    } else {
        db.files.check_database()?;
    }
    db.sync(is_durable)?;
    let done = attempt(&db.connection, batch);
    // After some errors SQLite has rolled back itself; otherwise the transaction is still open.
    if done.is_err() && !db.connection.is_autocommit() {
        db.connection.execute_batch("ROLLBACK")?;
    }
    changed(&done?);
    Ok(())
}

/// Run a batch in one transaction and commit it. On an error the transaction may still be open.
fn attempt(db: &Connection, batch: &mut [Request]) -> Result<Changed, FileError> {
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let mut meta = Meta::read(db)?;
    let before = meta;
    let mut changed = Changed::default();
    for request in batch {
        let mut tables = Tables::new(db, &request.context, &mut meta, &mut changed);
        (request.run)(&mut tables)?;
    }
    meta.tell(&mut changed);
    if meta != before {
        meta.write(db)?;
    }
    db.prepare_cached("COMMIT")?.execute([])?;
    changed.ready = meta.count_ready();
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::Time;
    use crate::work::{FileQueue, PutOptions, QueueOptions};

    #[test]
    fn an_operation_that_fails_takes_no_other_with_it() {
        const PAST: Time = Time::from_nanos(1);
        let path = std::env::temp_dir().join(format!("desist-commit-{}.db", std::process::id()));
        let queue = FileQueue::open(&path, QueueOptions::default()).unwrap();
        let shared = queue.shared();
        let runs = Arc::new(AtomicUsize::new(0));
        let put = || queue.put(*b"item", PutOptions::default(), PAST);
        let marked = OpContext {
            owner: -1,
            ..shared.context()
        };
        // The watcher may be in the queue, too.
        let are_there = |queue: &CommitQueue| {
            let is_put = |request: &&Request| request.durable;
            queue.requests.iter().filter(is_put).count() == 2
                && queue
                    .requests
                    .iter()
                    .any(|request| request.context.owner == -1)
        };
        let fail = || {
            let runs = runs.clone();
            shared.run(false, marked, move |_| {
                runs.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(FileError::NoSpace)
            })
        };
        std::thread::scope(|threads| {
            // The one at the file waits until the others are in the line: they are one batch.
            let (theirs, (arrived, is_there)) = (queue.clone(), std::sync::mpsc::channel());
            let first = threads.spawn(move || {
                let at_the_file = theirs.clone();
                theirs
                    .shared()
                    .run(false, theirs.shared().context(), move |_| {
                        let _ = arrived.send(());
                        while !are_there(&at_the_file.shared().committer.queue.lock()) {
                            std::thread::yield_now();
                        }
                        Ok(())
                    })
            });
            is_there.recv().unwrap();
            let others = [threads.spawn(put), threads.spawn(put)];
            let failing = threads.spawn(fail);
            assert_eq!(first.join().unwrap(), Ok(()));
            let mut put = others.map(|put| put.join().unwrap().unwrap().unwrap());
            put.sort_unstable();
            assert_eq!(put, [1, 2], "and no number is left out");
            assert_eq!(failing.join().unwrap(), Err(FileError::NoSpace));
        });
        assert_eq!(queue.counts().unwrap().ready, 2);
        assert_eq!(
            runs.load(Ordering::Relaxed),
            2,
            "with the others, and alone"
        );
        drop(queue);
        remove(&path);
    }

    fn remove(path: &Path) {
        for ending in ["", "-wake"] {
            std::fs::remove_file(super::super::files::beside(path, ending)).unwrap();
        }
    }
}
