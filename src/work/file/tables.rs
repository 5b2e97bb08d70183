//! The operations on the tables, inside a transaction.
//!
//! The rules are those of the table in `work.rs`, and the same as in `memory/state.rs`. Every
//! method runs in the transaction of `commit.rs`, may run twice, and changes three things together:
//! - the rows of `items`, `failures` and `owners`;
//! - [`Meta`], the row of counts and last numbers, which is read at the begin of the transaction and
//!   written at its end: so the counts add up at every instant (I28), and no operation counts rows;
//! - [`Changed`], the changes that the commit reports to waiters.
//!
//! Before any operation `catch_up` makes the state changes that are due (`transitions.rs`).
//!
//! # Protocol
//!
//! SQLite's write lock, which `BEGIN IMMEDIATE` takes, is the only lock: all processes and threads make
//! their transactions one after the other, and what an operation reads stays true until the commit. A
//! transaction that fails is rolled back, and [`Meta`] and [`Changed`] of it are thrown away: so the
//! second run of an operation begins where the first one did. The time, and the random part of a
//! pause, are given to an operation, so that both runs do the same.
//!
//! # Rows
//!
//! The state of an item is the column `state`, and decides which columns are set:
//!
//! | `state` | `epoch`, `owner` | `lease_until` | `due`, `due_wall`, `delay` | `unwanted` | `turn` |
//! |---|---|---|---|---|---|
//! | 0 ready | | | | | the place among the ready items of its priority |
//! | 1 leased | the lease, and the open queue that has it | its end, if leases time out | | if it was cancelled meanwhile | as before |
//! | 2 delayed | | | the end of the delay | | as before |
//! | 3 dead | | | | | the place among the dead items |
//!
//! | from | by | to |
//! |---|---|---|
//! | | `add` | 0, or 2 with a delay |
//! | 0 | `take_first` | 1 |
//! | 1 | `ack` | no row |
//! | 1 | `end`: from `nack`, `requeue`, a lease that times out, an owner that is gone | 3, or 0 without a pause, or 2; a snooze first takes its attempt back |
//! | 2 | `come_due` | 0, or 3 if it has expired |
//! | 0, 2 | `cancel`, `dead_letter_all`; `come_due` of an item that expires | 3 |
//! | 3 | `retry` | 0 |
//!
//! Every call of a worker names `state = 1 AND epoch = ?` in its statement, so a lease that is over
//! changes nothing (I29). Each transition first subtracts the item from the count of its
//! former state, and `make_ready`, `dead_letter` or `count_delayed` adds it to the next one.
//!
//! # Other processes
//!
//! [`Meta::awaited`] is set in the same transaction as the look that has found nothing. A later
//! change of another process is a later transaction and sees the bit, so that no waiter is missed
//! (I12). The commit that notifies resets the bit; a process that still waits sets it when it looks
//! again.

mod admin;
mod owners;
mod transitions;

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::clock::{Due, Now};
use super::error::FileError;
use super::{Bytes, Failure};
use crate::clock::Time;
use crate::work::{
    Details, Fenced, LEASE_RELEASED, Lease, Nack, NackOutcome, PutOptions, RetryPolicy,
};

type Result<T> = std::result::Result<T, FileError>;

/// Called with an item's id when its put is committed, before any queue of this process leases the item. On
/// the thread that has made the commit, with the database locked.
pub(super) type OnPut = Arc<dyn Fn(u64) + Send + Sync>;

/// Bit of the column `awaited`: threads of a process wait for an item.
const ITEMS: i64 = 1;
/// Bit of the column `awaited`: threads of a process wait for room.
const ROOM: i64 = 2;
/// Bit of the column `awaited`: threads of a process wait until no item is unfinished.
const END: i64 = 4;

/// The settings of the queue that an operation belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpContext {
    /// When it began; the one time of all that it does.
    pub(super) now: Now,
    /// The owner of its leases: the row of the open queue in `owners`.
    pub(super) owner: i64,
    /// When its failed items are leased again. This and the next two are the options of that queue;
    /// other processes may have others.
    pub(super) retry: RetryPolicy,
    /// How many unfinished items there may be; 0 for any number.
    pub(super) maxsize: usize,
    /// How long its leases last; `None`: until they are settled.
    pub(super) lease_timeout: Option<Duration>,
}

/// The changes of a transaction that concern waiters. Times are on the machine's clock. Written by the
/// operations, and read by `Shared::publish` after the commit, on the thread that has made it.
#[derive(Default)]
pub(super) struct Changed {
    /// The first ids of puts, and the functions that get them after the commit.
    pub(super) put: Vec<(u64, OnPut)>,
    /// How many items have become ready.
    pub(super) made_ready: usize,
    /// How many items are ready after the commit.
    pub(super) ready: usize,
    /// The earliest time until which an item was delayed.
    pub(super) due: Option<i64>,
    /// How many items have become done or dead.
    pub(super) room: usize,
    /// After one of the operations no item was unfinished.
    pub(super) drained: bool,
    /// The earliest end of a lease, or expiry of an item, that was set.
    pub(super) ends: Option<i64>,
    /// Other processes wait for these changes, and must be notified.
    pub(super) tell: bool,
}

impl Changed {
    /// False for most changes, which then need no look at the wait lists.
    pub(super) fn concerns_waiters(&self) -> bool {
        self.made_ready > 0 || self.due.is_some() || self.room > 0 || self.drained
    }
}

/// The row of the table `meta`. Read when a transaction begins, changed with the other tables, and
/// written before the commit if it differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// The rows of `items` with state 0; the next three count the other states (I28).
    ready: i64,
    /// The rows with state 1.
    leased: i64,
    /// The rows with state 2.
    delayed: i64,
    /// The rows with state 3.
    dead: i64,
    /// Done items, which have no row: the count only grows.
    done: i64,
    /// The last id that was given out; it only grows, so no id is used twice.
    last_id: i64,
    /// The last epoch that was given out, by any process; it only grows (I34).
    last_epoch: i64,
    /// The least turn: an item before all others gets the next lower one.
    first_turn: i64,
    /// The greatest turn. Dead items have turns, too, in the order in which they died.
    last_turn: i64,
    /// The last id of an owner.
    last_owner: i64,
    /// How many owners there are. With one no other process has to be notified.
    owners: i64,
    /// The events that threads of any process wait for: [`ITEMS`], [`ROOM`], [`END`]. Set by an
    /// operation that finds nothing, reset when the processes are notified.
    awaited: i64,
}

impl Meta {
    /// Read the row.
    ///
    /// # Errors
    /// The file is damaged: there is none.
    pub(super) fn read(db: &Connection) -> Result<Meta> {
        let mut query = db.prepare_cached(
            "SELECT ready, leased, delayed, dead, done, last_id, last_epoch, first_turn, \
             last_turn, last_owner, owners, awaited FROM meta",
        )?;
        let meta = query.query_row([], |row| {
            Ok(Meta {
                ready: row.get(0)?,
                leased: row.get(1)?,
                delayed: row.get(2)?,
                dead: row.get(3)?,
                done: row.get(4)?,
                last_id: row.get(5)?,
                last_epoch: row.get(6)?,
                first_turn: row.get(7)?,
                last_turn: row.get(8)?,
                last_owner: row.get(9)?,
                owners: row.get(10)?,
                awaited: row.get(11)?,
            })
        });
        meta.optional()?
            .ok_or_else(|| FileError::Damaged("its counts are gone".into()))
    }

    /// Write the row.
    pub(super) fn write(&self, db: &Connection) -> Result<()> {
        let mut update = db.prepare_cached(
            "UPDATE meta SET ready = ?, leased = ?, delayed = ?, dead = ?, done = ?, last_id = ?, \
             last_epoch = ?, first_turn = ?, last_turn = ?, last_owner = ?, owners = ?, awaited = ?",
        )?;
        update.execute(params![
            self.ready,
            self.leased,
            self.delayed,
            self.dead,
            self.done,
            self.last_id,
            self.last_epoch,
            self.first_turn,
            self.last_turn,
            self.last_owner,
            self.owners,
            self.awaited,
        ])?;
        Ok(())
    }

    /// How many items are ready.
    pub(super) fn count_ready(&self) -> usize {
        count(self.ready)
    }

    /// How many items are neither done nor dead: those that `maxsize` bounds.
    fn unfinished(&self) -> i64 {
        self.ready + self.leased + self.delayed
    }

    /// True if every item is done or dead.
    fn is_drained(&self) -> bool {
        self.unfinished() == 0
    }

    /// Find out whether other processes wait for these changes. They are notified once, and note their
    /// waits again when they look.
    pub(super) fn tell(&mut self, changed: &mut Changed) {
        if self.owners < 2 {
            return;
        }
        let mut told = 0;
        if changed.made_ready > 0 || changed.due.is_some() {
            told |= ITEMS;
        }
        if changed.room > 0 {
            told |= ROOM;
        }
        if changed.drained {
            told |= END;
        }
        changed.tell |= self.awaited & told != 0;
        self.awaited &= !told;
    }
}

/// The tables, for one operation in a transaction.
pub(super) struct Tables<'a> {
    /// The connection, in a transaction that has the write lock of the file.
    db: &'a Connection,
    /// Of this operation; the others of the transaction have their own.
    context: &'a OpContext,
    /// Shared by the operations of the transaction.
    meta: &'a mut Meta,
    /// Shared by the operations of the transaction.
    changed: &'a mut Changed,
}

/// The columns of an item by which the rules decide its next state.
struct ItemRow {
    /// Its number, under which it is found in all tables.
    id: i64,
    /// How often it was leased, since it was put or last retried.
    attempt: i64,
    /// Why it was cancelled while it was leased.
    unwanted: Option<Bytes>,
    /// When it expires, on the machine's clock.
    expires: Option<i64>,
}

impl ItemRow {
    /// Of the columns id, attempt, unwanted, expires.
    fn read(row: &Row<'_>) -> rusqlite::Result<ItemRow> {
        Ok(ItemRow {
            id: row.get(0)?,
            attempt: row.get(1)?,
            unwanted: row.get(2)?,
            expires: row.get(3)?,
        })
    }
}

/// The result of [`Tables::take`].
pub(super) enum TakeOutcome {
    /// An item was ready and is leased now.
    Lease(Lease<Bytes, Bytes>),
    /// No item is ready.
    Nothing {
        /// When the next delayed item is due, on the machine's clock.
        next_due: i64,
    },
}

/// The result of [`Tables::cancel`].
pub(super) enum CancelOutcome {
    /// The item is dead now.
    Dead,
    /// The item is leased, and will be dead when this lease ends without success.
    Leased {
        /// The epoch of the lease.
        epoch: u64,
    },
    /// The item is done or dead already, or there never was one with this id.
    Ended,
}

impl<'a> Tables<'a> {
    /// For one operation of a transaction that has begun.
    pub(super) fn new(
        db: &'a Connection,
        context: &'a OpContext,
        meta: &'a mut Meta,
        changed: &'a mut Changed,
    ) -> Tables<'a> {
        Tables {
            db,
            context,
            meta,
            changed,
        }
    }

    /// Run a statement, which stays prepared. Returns how many rows it has changed.
    fn execute(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        Ok(self.db.prepare_cached(sql)?.execute(params)?)
    }

    /// The first row of a query, if there is one.
    fn find<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let mut query = self.db.prepare_cached(sql)?;
        Ok(query.query_row(params, read).optional()?)
    }

    /// All rows of a query.
    fn all<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut query = self.db.prepare_cached(sql)?;
        Ok(query
            .query_map(params, read)?
            .collect::<rusqlite::Result<_>>()?)
    }

    // ------------------------------------------------------------------ putting

    /// Put all items, or none if there is no room for all (`None`). An item whose key another item
    /// has is not added.
    pub(super) fn put(&mut self, items: &[(Bytes, PutOptions)]) -> Result<Option<Vec<u64>>> {
        let mut ids = Vec::with_capacity(items.len());
        let mut known = 0;
        for (_, options) in items {
            let id = match &options.key {
                Some(key) => self.find_key(key)?,
                None => None,
            };
            known += usize::from(id.is_some());
        }
        let unfinished = count(self.meta.unfinished());
        let most = self.context.maxsize;
        let new = items.len() - known;
        // More than `maxsize` at once are accepted by a queue in which nothing is unfinished.
        let is_full = most > 0 && unfinished > 0 && unfinished + new > most;
        if new > 0 && is_full {
            self.meta.awaited |= ROOM;
            return Ok(None);
        }
        for (item, options) in items {
            let known = match &options.key {
                Some(key) => self.find_key(key)?,
                None => None,
            };
            let id = match known {
                Some(id) => id,
                None => self.add(item, options)?,
            };
            ids.push(number(id));
        }
        Ok(Some(ids))
    }

    /// Call the function with this id if the transaction is committed.
    pub(super) fn after_commit(&mut self, id: u64, on_put: OnPut) {
        self.changed.put.push((id, on_put));
    }

    /// The id of the item with this key.
    fn find_key(&self, key: &str) -> Result<Option<i64>> {
        self.find("SELECT id FROM items WHERE key = ?", [key], |row| {
            row.get(0)
        })
    }

    /// Insert an item; returns its id.
    fn add(&mut self, item: &[u8], options: &PutOptions) -> Result<i64> {
        let now = self.context.now;
        let due = (!options.delay.is_zero()).then(|| now.after(options.delay));
        let expires = options.expires.map(|expires| now.after(expires));
        self.meta.last_id += 1;
        let id = self.meta.last_id;
        let turn = self.next_turn();
        self.execute(
            "INSERT INTO items (id, state, priority, turn, attempt, due, due_wall, delay, expires, \
             expires_wall, timeout, put_wall, key, item, time_limit) \
             VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                id,
                if due.is_some() { 2 } else { 0 },
                options.priority,
                turn,
                due.map(|due| due.at),
                due.map(|due| due.wall),
                due.map(|due| due.pause),
                expires.map(|expires| expires.at),
                expires.map(|expires| expires.wall),
                expires.map(|expires| expires.pause),
                now.wall,
                options.key.as_deref(),
                item,
                options.time_limit.map(nanos),
            ],
        )?;
        match due {
            Some(due) => self.count_delayed(due),
            None => self.count_ready(),
        }
        self.note_end(expires.map(|expires| expires.at));
        Ok(id)
    }

    /// A turn after all others.
    fn next_turn(&mut self) -> i64 {
        self.meta.last_turn += 1;
        self.meta.last_turn
    }

    /// An item has become ready.
    fn count_ready(&mut self) {
        self.meta.ready += 1;
        self.changed.made_ready += 1;
    }

    /// An item was delayed until then. Waiting workers whose bound is later must look again.
    fn count_delayed(&mut self, due: Due) {
        self.meta.delayed += 1;
        let earliest = self.changed.due.map_or(due.at, |at| at.min(due.at));
        self.changed.due = Some(earliest);
    }

    /// A state change by itself was set for then.
    fn note_end(&mut self, at: Option<i64>) {
        self.changed.ends = [self.changed.ends, at].into_iter().flatten().min();
    }

    /// An item is done or dead. It has been subtracted from the count of its former state.
    fn count_ended(&mut self) {
        self.changed.room += 1;
        self.changed.drained |= self.meta.is_drained();
    }

    // ------------------------------------------------------------------ leasing and settling

    /// Lease the next item to this thread, if one is ready; if not, it is noted that the process waits for one.
    pub(super) fn take(&mut self, thread: &str) -> Result<TakeOutcome> {
        if self.meta.ready > 0 {
            return self.take_first(thread).map(TakeOutcome::Lease);
        }
        self.meta.awaited |= ITEMS;
        let next = "SELECT min(due) FROM items WHERE state = 2";
        let next = self.find(next, [], |row| row.get::<_, Option<i64>>(0))?;
        Ok(TakeOutcome::Nothing {
            next_due: next.flatten().unwrap_or(i64::MAX),
        })
    }

    /// Lease the ready item with the least priority and turn. `Damaged`: there is none, although
    /// [`Meta`] counts one.
    fn take_first(&mut self, thread: &str) -> Result<Lease<Bytes, Bytes>> {
        let now = self.context.now;
        self.meta.last_epoch += 1;
        let epoch = self.meta.last_epoch;
        let until = self.lease_until();
        let found = self.find(
            "UPDATE items SET state = 1, attempt = attempt + 1, epoch = ?, owner = ?, \
             holder = ?, lease_until = ? WHERE id = \
             (SELECT id FROM items WHERE state = 0 ORDER BY priority, turn LIMIT 1) \
             RETURNING id, attempt, item, progress, expires, key, time_limit",
            params![epoch, self.context.owner, thread, until],
            |row| {
                let expires = row.get::<_, Option<i64>>(4)?;
                Ok(Lease {
                    id: number(row.get(0)?),
                    epoch: number(epoch),
                    attempt: attempts(row.get(1)?),
                    item: row.get(2)?,
                    details: Details {
                        progress: row.get(3)?,
                        deadline: expires.map(|expires| now.time_of(expires)),
                        until: until.map(|until| now.time_of(until)),
                        key: row.get::<_, Option<String>>(5)?.map(Into::into),
                        time_limit: row.get::<_, Option<i64>>(6)?.map(from_nanos),
                    }
                    .if_any(),
                })
            },
        )?;
        self.meta.ready -= 1;
        self.meta.leased += 1;
        found.ok_or_else(|| FileError::Damaged("an item that it counts is not there".into()))
    }

    /// When a lease ends that begins, or is extended, now.
    fn lease_until(&mut self) -> Option<i64> {
        let until = self.context.lease_timeout;
        let until = until.map(|timeout| self.context.now.after(timeout).at);
        self.note_end(until);
        until
    }

    /// The item is ready. It has been subtracted from the count of its former state.
    fn make_ready(&mut self, id: i64, turn: i64) -> Result<()> {
        self.execute(
            "UPDATE items SET state = 0, turn = ?, epoch = NULL, owner = NULL, lease_until = NULL, \
             due = NULL, due_wall = NULL, delay = NULL WHERE id = ?",
            [turn, id],
        )?;
        self.count_ready();
        Ok(())
    }

    /// The item is dead. It has been subtracted from the count of its former state.
    fn dead_letter(&mut self, id: i64) -> Result<()> {
        let turn = self.next_turn();
        self.execute(
            "UPDATE items SET state = 3, turn = ?, epoch = NULL, owner = NULL, lease_until = NULL, \
             due = NULL, due_wall = NULL, delay = NULL, unwanted = NULL WHERE id = ?",
            [turn, id],
        )?;
        self.meta.dead += 1;
        self.count_ended();
        Ok(())
    }

    /// Store a failure of an item, after those that it has. The kinds are read back by `failures`.
    fn fail(&mut self, id: i64, failure: &Failure) -> Result<()> {
        let (kind, pid, note) = match failure {
            Failure::Noted(note) => ("noted", None, Some(&**note)),
            Failure::OwnerDied { pid } => ("owner died", Some(*pid), None),
            Failure::LeaseTimedOut => ("lease timed out", None, None),
            Failure::ItemExpired => ("item timed out", None, None),
        };
        self.execute(
            "INSERT INTO failures SELECT ?1, 1 + coalesce(max(number), 0), ?2, ?3, ?4 \
             FROM failures WHERE item = ?1",
            params![id, kind, pid, note],
        )?;
        Ok(())
    }

    /// See [`FileQueue::ack`](crate::work::FileQueue::ack). The row is removed, and its failures.
    pub(super) fn ack(&mut self, id: u64, epoch: u64) -> Result<std::result::Result<(), Fenced>> {
        let (id, epoch) = (row_id(id), row_id(epoch));
        let found = self.execute(
            "DELETE FROM items WHERE id = ? AND state = 1 AND epoch = ?",
            [id, epoch],
        )?;
        if found == 0 {
            return Ok(Err(Fenced));
        }
        self.execute("DELETE FROM failures WHERE item = ?", [id])?;
        self.meta.leased -= 1;
        self.meta.done += 1;
        self.count_ended();
        Ok(Ok(()))
    }

    /// Requeue the items of these leases, each an item's id and an epoch, whose holders are gone. A lease
    /// that is over stays as it is.
    pub(super) fn requeue(&mut self, leases: &[(u64, u64)]) -> Result<()> {
        for (id, epoch) in leases {
            let failure = Failure::Noted(LEASE_RELEASED.as_bytes().into());
            let _over = self.nack(*id, *epoch, Nack::AtOnce, Some(&failure), 0.0)?;
        }
        Ok(())
    }

    /// See [`FileQueue::nack`](crate::work::FileQueue::nack). `random`, between 0 and 1, is given so
    /// that a second run makes the same pause.
    pub(super) fn nack(
        &mut self,
        id: u64,
        epoch: u64,
        nack: Nack,
        failure: Option<&Failure>,
        random: f64,
    ) -> Result<std::result::Result<NackOutcome, Fenced>> {
        let found = self.find(
            "SELECT id, attempt, unwanted, expires FROM items \
             WHERE id = ? AND state = 1 AND epoch = ?",
            [row_id(id), row_id(epoch)],
            ItemRow::read,
        )?;
        let Some(mut leased) = found else {
            return Ok(Err(Fenced));
        };
        let pause = match nack {
            Nack::Failed => Some(self.context.retry.pause(attempts(leased.attempt), random)),
            Nack::After(pause) => Some(pause),
            Nack::AtOnce => Some(Duration::ZERO),
            Nack::Discard => None,
            Nack::Snooze(pause) => {
                leased.attempt -= 1;
                let update = "UPDATE items SET attempt = ? WHERE id = ?";
                self.execute(update, [leased.attempt, leased.id])?;
                return self.end(&leased, Some(pause), None).map(Ok);
            }
        };
        self.end(&leased, pause, failure).map(Ok)
    }

    /// End the lease of this item without success: it is dead if it may not be tried again, and
    /// else ready, before others, or delayed. No `pause`: it is not tried again.
    fn end(
        &mut self,
        leased: &ItemRow,
        pause: Option<Duration>,
        failure: Option<&Failure>,
    ) -> Result<NackOutcome> {
        let id = leased.id;
        if let Some(failure) = failure {
            self.fail(id, failure)?;
        }
        self.meta.leased -= 1;
        let mut is_last = attempts(leased.attempt) >= self.context.retry.max_attempts;
        if let Some(note) = &leased.unwanted {
            self.fail(id, &Failure::Noted(note.clone()))?;
            is_last = true;
        }
        if !is_last && self.is_expired(leased) {
            self.fail(id, &Failure::ItemExpired)?;
            is_last = true;
        }
        let Some(pause) = pause.filter(|_| !is_last) else {
            self.dead_letter(id)?;
            return Ok(NackOutcome::Dead);
        };
        self.note_end(leased.expires);
        if pause.is_zero() {
            self.meta.first_turn -= 1;
            self.make_ready(id, self.meta.first_turn)?;
        } else {
            let due = self.context.now.after(pause);
            self.execute(
                "UPDATE items SET state = 2, epoch = NULL, owner = NULL, lease_until = NULL, \
                 due = ?, due_wall = ?, delay = ? WHERE id = ?",
                [due.at, due.wall, due.pause, id],
            )?;
            self.count_delayed(due);
        }
        Ok(NackOutcome::Requeued)
    }

    /// See [`FileQueue::extend`](crate::work::FileQueue::extend). Without a progress the last one stays.
    pub(super) fn extend(
        &mut self,
        id: u64,
        epoch: u64,
        progress: Option<&[u8]>,
    ) -> Result<std::result::Result<Option<Time>, Fenced>> {
        let until = self.lease_until();
        let found = self.execute(
            "UPDATE items SET lease_until = ?, progress = coalesce(?, progress) \
             WHERE id = ? AND state = 1 AND epoch = ?",
            params![until, progress, row_id(id), row_id(epoch)],
        )?;
        let until = until.map(|until| self.context.now.time_of(until));
        Ok(if found == 0 { Err(Fenced) } else { Ok(until) })
    }
}

/// A count for the core; a negative one, which only a damaged file has, is 0.
fn count(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Numbers in the file are signed, and never negative but for turns.
#[allow(clippy::cast_sign_loss)]
fn number(column: i64) -> u64 {
    column as u64
}

/// The inverse of [`number`]: a number that no row has when it is out of range.
#[allow(clippy::cast_possible_wrap)]
fn row_id(number: u64) -> i64 {
    number as i64
}

/// A length of time for the column `time_limit`; the greatest number is any that is longer.
fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

/// The inverse of [`nanos`].
fn from_nanos(column: i64) -> Duration {
    Duration::from_nanos(number(column.max(0)))
}

/// A count of attempts for the core, which has fewer bits than the column.
fn attempts(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
