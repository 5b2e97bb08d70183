//! One transaction for all who come at the same time.
//!
//! Whoever finds nobody at the file does his own operation and all that are brought meanwhile, in
//! one transaction; the others sleep until their result is there. Nothing is handed to another
//! thread when there is only one, and with many they share the sync of the disk.
//!
//! An operation that fails takes the whole transaction back; then each is done alone, so that it
//! fails alone. So operations may run twice, and must not use anything up.

use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::Connection;

use super::error::FileError;
use super::tables::{Changed, Meta, Tables, Terms};
use crate::atomics::Mutex;
use crate::fork;
use crate::park::{WaitOutcome, Waiter};

/// How often one thread serves the others before one of them takes over.
const ROUNDS: usize = 8;
/// How many operations go into one transaction at most.
const BATCH: usize = 256;

type Operation = Box<dyn FnMut(&mut Tables<'_>) -> Result<(), FileError> + Send>;

struct Request {
    run: Operation,
    durable: bool,
    terms: Terms,
    done: Arc<Done>,
}

struct Done {
    waiter: crate::atomics::Arc<Waiter>,
    outcome: Mutex<Option<Result<(), FileError>>>,
}

impl Done {
    /// Wake whoever waits: with an outcome, or to take over.
    fn wake(&self) {
        self.waiter.settle_and_wake(WaitOutcome::Granted);
    }
}

/// The connection, and the line in front of it.
pub(super) struct Committer {
    line: Mutex<Line>,
    /// Locked by the one who is at the file, and nobody waits for it. `None`: closed.
    db: Mutex<Option<Db>>,
}

struct Db {
    connection: Connection,
    /// Each commit is on the disk when it returns.
    syncs: bool,
}

impl Db {
    fn sync(&mut self, each_commit: bool) -> Result<(), FileError> {
        if self.syncs != each_commit {
            let level = if each_commit { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.syncs = each_commit;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Line {
    requests: VecDeque<Request>,
    /// Somebody is at the file, or has been told to come.
    served: bool,
}

impl Committer {
    pub(super) fn new(connection: Connection) -> Committer {
        let db = Db {
            connection,
            syncs: false,
        };
        Committer {
            line: Mutex::default(),
            db: Mutex::new(Some(db)),
        }
    }

    /// Do it in a transaction, on these terms; `changed` is told of every commit that the calling
    /// thread makes for itself or others. A durable one is on the disk when this returns.
    ///
    /// Blocks for the time of the file's work, whatever the calling thread is told meanwhile.
    pub(super) fn run<R: Send + 'static>(
        &self,
        durable: bool,
        terms: Terms,
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
            terms,
            done: done.clone(),
        };
        let is_served = {
            let mut line = self.line.lock();
            line.requests.push_back(request);
            std::mem::replace(&mut line.served, true)
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

    /// Close the connection.
    pub(super) fn close(&self) {
        let db = self.db.lock().take();
        drop(db);
    }

    /// Do what is in the line. The own request is in it: among the first.
    fn serve(&self, changed: &dyn Fn(&Changed)) {
        // A fork in the middle would leave SQLite's own locks held in the child.
        let _inside = fork::inside();
        let mut db = self.db.lock();
        for round in 0.. {
            let mut batch: Vec<Request> = {
                let mut line = self.line.lock();
                let next = line.requests.front().map(|next| next.done.clone());
                match next {
                    None => return line.served = false,
                    Some(next) if round == ROUNDS => {
                        drop(line);
                        drop(db);
                        return next.wake();
                    }
                    Some(_) => {}
                }
                let count = line.requests.len().min(BATCH);
                line.requests.drain(..count).collect()
            };
            let outcomes = do_all(db.as_mut(), &mut batch, changed);
            for (request, outcome) in batch.iter().zip(outcomes) {
                *request.done.outcome.lock() = Some(outcome);
                request.done.wake();
            }
        }
    }
}

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
        // Nobody gets at the file: not one by one, each with all the patience again.
        Err(FileError::Locked) => batch.iter().map(|_| Err(FileError::Locked)).collect(),
        Err(_) => batch
            .iter_mut()
            .map(|request| transact(db, std::slice::from_mut(request), changed))
            .collect(),
    }
}

/// All of them, or none.
fn transact(
    db: &mut Db,
    batch: &mut [Request],
    changed: &dyn Fn(&Changed),
) -> Result<(), FileError> {
    db.sync(batch.iter().any(|request| request.durable))?;
    let done = attempt(&db.connection, batch);
    // SQLite may have taken it back itself; otherwise it is still open.
    if done.is_err() && !db.connection.is_autocommit() {
        db.connection.execute_batch("ROLLBACK")?;
    }
    changed(&done?);
    Ok(())
}

fn attempt(db: &Connection, batch: &mut [Request]) -> Result<Changed, FileError> {
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let mut meta = Meta::read(db)?;
    let before = meta;
    let mut changed = Changed::default();
    for request in batch {
        let mut tables = Tables::new(db, &request.terms, &mut meta, &mut changed);
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
        let marked = Terms {
            owner: -1,
            ..shared.terms()
        };
        // The keeper may be in the line, too.
        let are_there = |line: &Line| {
            let is_put = |request: &&Request| request.durable;
            line.requests.iter().filter(is_put).count() == 2
                && line
                    .requests
                    .iter()
                    .any(|request| request.terms.owner == -1)
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
                    .run(false, theirs.shared().terms(), move |_| {
                        let _ = arrived.send(());
                        while !are_there(&at_the_file.shared().committer.line.lock()) {
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
            std::fs::remove_file(super::super::schema::beside(path, ending)).unwrap();
        }
    }
}
