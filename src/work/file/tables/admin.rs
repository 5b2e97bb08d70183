//! Cancelling, dead-lettering, retrying and listing items.

use std::time::Duration;

use rusqlite::{Row, params};

use super::{CancelOutcome, END, Failure, Result, Tables, attempts, count, number, row_id};
use crate::work::file::{Bytes, FileHolder};
use crate::work::{Counts, Dead, ItemInfo, ItemState};

impl Tables<'_> {
    /// See [`FileQueue::cancel`](crate::work::FileQueue::cancel).
    pub(in super::super) fn cancel(&mut self, id: u64, note: &Bytes) -> Result<CancelOutcome> {
        let id = row_id(id);
        let found = self.find("SELECT state, epoch FROM items WHERE id = ?", [id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))
        })?;
        match found {
            Some((0, _)) => self.meta.ready -= 1,
            Some((1, epoch)) => {
                self.execute(
                    "UPDATE items SET unwanted = coalesce(unwanted, ?) WHERE id = ?",
                    params![&**note, id],
                )?;
                let epoch = number(epoch.unwrap_or_default());
                return Ok(CancelOutcome::Leased { epoch });
            }
            Some((2, _)) => self.meta.delayed -= 1,
            _ => return Ok(CancelOutcome::Ended),
        }
        self.fail(id, &Failure::Noted(note.clone()))?;
        self.dead_letter(id)?;
        Ok(CancelOutcome::Dead)
    }

    /// See [`FileQueue::is_cancelled`](crate::work::FileQueue::is_cancelled).
    pub(in super::super) fn is_cancelled(&self, id: u64, epoch: u64) -> Result<bool> {
        let found = self.find(
            "SELECT unwanted IS NOT NULL FROM items WHERE id = ? AND state = 1 AND epoch = ?",
            [row_id(id), row_id(epoch)],
            |row| row.get(0),
        )?;
        Ok(found.unwrap_or(false))
    }

    /// See [`FileQueue::dead_letter_all`](crate::work::FileQueue::dead_letter_all). The ready items
    /// come first, then the delayed ones, in the order in which they would have been leased.
    pub(in super::super) fn dead_letter_all(&mut self, note: &Bytes) -> Result<Vec<Bytes>> {
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
        let mut unleased = self.all(
            "SELECT id, item FROM items WHERE state = 0 ORDER BY priority, turn",
            [],
            read,
        )?;
        unleased.extend(self.all(
            "SELECT id, item FROM items WHERE state = 2 ORDER BY changes, id",
            [],
            read,
        )?);
        (self.meta.ready, self.meta.delayed) = (0, 0);
        let mut items = Vec::with_capacity(unleased.len());
        for (id, item) in unleased {
            self.fail(id, &Failure::Noted(note.clone()))?;
            self.dead_letter(id)?;
            items.push(item);
        }
        Ok(items)
    }

    /// See [`FileQueue::retry`](crate::work::FileQueue::retry).
    pub(in super::super) fn retry(&mut self, id: u64) -> Result<bool> {
        let found = self.execute(
            "UPDATE items SET attempt = 0, expires = NULL, expires_wall = NULL, timeout = NULL \
             WHERE id = ? AND state = 3",
            [row_id(id)],
        )?;
        if found == 0 {
            return Ok(false);
        }
        self.meta.dead -= 1;
        let turn = self.next_turn();
        self.make_ready(row_id(id), turn)?;
        Ok(true)
    }

    /// See [`FileQueue::counts`](crate::work::FileQueue::counts). No row is counted.
    pub(in super::super) fn counts(&self) -> Counts {
        Counts {
            ready: count(self.meta.ready),
            leased: count(self.meta.leased),
            delayed: count(self.meta.delayed),
            done: number(self.meta.done),
            dead: count(self.meta.dead),
        }
    }

    /// True if no item is unfinished; if not, it is noted that the process waits for the end.
    pub(in super::super) fn is_drained(&mut self) -> bool {
        let is_drained = self.meta.is_drained();
        if !is_drained {
            self.meta.awaited |= END;
        }
        is_drained
    }

    /// See [`FileQueue::item`](crate::work::FileQueue::item).
    pub(in super::super) fn item(&self, id: u64) -> Result<Option<Bytes>> {
        self.find("SELECT item FROM items WHERE id = ?", [row_id(id)], |row| {
            row.get(0)
        })
    }

    /// See [`FileQueue::items`](crate::work::FileQueue::items).
    pub(in super::super) fn infos(
        &self,
        state: Option<ItemState>,
        limit: usize,
    ) -> Result<Vec<ItemInfo<FileHolder>>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let now = self.context.now.wall;
        self.all(
            "SELECT items.id, state, attempt, put_wall, pid, holder, key FROM items \
             LEFT JOIN owners ON owners.id = items.owner WHERE ?1 IS NULL OR state = ?1 \
             ORDER BY CASE state WHEN 1 THEN -1 ELSE state END, items.id LIMIT ?2",
            params![state.map(column), limit],
            |row| {
                let age = now.saturating_sub(row.get(3)?);
                let pid: Option<u32> = row.get(4)?;
                let thread: Option<String> = row.get(5)?;
                let thread = thread.unwrap_or_default();
                Ok(ItemInfo {
                    id: number(row.get(0)?),
                    state: state_of(row.get(1)?),
                    attempt: attempts(row.get(2)?),
                    age: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
                    holder: pid.map(|pid| FileHolder { pid, thread }),
                    key: row.get::<_, Option<String>>(6)?.map(Into::into),
                })
            },
        )
    }

    /// See [`FileQueue::dead`](crate::work::FileQueue::dead).
    pub(in super::super) fn dead(&self) -> Result<Vec<Dead<Bytes, Failure>>> {
        let dead = self.all(
            "SELECT id, item FROM items WHERE state = 3 ORDER BY turn",
            [],
            |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)),
        )?;
        dead.into_iter()
            .map(|(id, item)| Ok((number(id), item, self.failures(id)?)))
            .collect()
    }

    /// The failures of an item, in order.
    fn failures(&self, id: i64) -> Result<Vec<Failure>> {
        self.all(
            "SELECT kind, pid, note FROM failures WHERE item = ? ORDER BY number",
            [id],
            |row| {
                let kind: String = row.get(0)?;
                Ok(match kind.as_str() {
                    "owner died" => Failure::OwnerDied { pid: row.get(1)? },
                    "lease timed out" => Failure::LeaseTimedOut,
                    "item timed out" => Failure::ItemExpired,
                    _ => Failure::Noted(row.get(2)?),
                })
            },
        )
    }
}

/// The column of a state.
fn column(state: ItemState) -> i64 {
    match state {
        ItemState::Ready => 0,
        ItemState::Leased => 1,
        ItemState::Delayed => 2,
        ItemState::Dead => 3,
    }
}

/// The inverse of [`column`].
fn state_of(column: i64) -> ItemState {
    match column {
        0 => ItemState::Ready,
        1 => ItemState::Leased,
        2 => ItemState::Delayed,
        _ => ItemState::Dead,
    }
}
