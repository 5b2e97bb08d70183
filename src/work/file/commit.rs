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
use crate::park::{Outcome, Waiter};

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
        if self.waiter.settle(Outcome::Granted) {
            self.waiter.wake();
        }
    }
}

/// The connection, and the line in front of it.
pub(super) struct Committer {
    line: Mutex<Line>,
    /// Locked by the one who is at the file, and nobody waits for it. `None`: closed.
    db: Mutex<Option<Connection>>,
}

#[derive(Default)]
struct Line {
    requests: VecDeque<Request>,
    /// Somebody is at the file, or has been told to come.
    served: bool,
}

impl Committer {
    pub(super) fn new(db: Connection) -> Committer {
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
            done.waiter.finish_deaf();
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
    db: Option<&mut Connection>,
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
    db: &Connection,
    batch: &mut [Request],
    changed: &dyn Fn(&Changed),
) -> Result<(), FileError> {
    let durable = batch.iter().any(|request| request.durable);
    if durable {
        db.execute_batch("PRAGMA synchronous = FULL")?;
    }
    let done = attempt(db, batch);
    // SQLite may have taken it back itself; otherwise it is still open.
    if done.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    if durable {
        db.execute_batch("PRAGMA synchronous = NORMAL")?;
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
    meta.tell(before, &mut changed);
    if meta != before {
        meta.write(db)?;
    }
    db.prepare_cached("COMMIT")?.execute([])?;
    changed.ready = meta.count_ready();
    Ok(changed)
}
