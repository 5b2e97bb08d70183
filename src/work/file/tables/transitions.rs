//! The state changes that time makes.
//!
//! The generated column `changes` is when the state of an item changes by itself: the end of a lease,
//! the end of a delay or the expiry if that is earlier, the expiry of a ready item. It is indexed, so
//! the next change is found at once. All are made by the next operation of any process, before its
//! own change; so an operation never finds an item in a state that has ended.

use std::time::Duration;

use super::{Failure, ItemRow, Result, Tables};

impl Tables<'_> {
    /// Make all state changes that are due, in the order of their times.
    pub(in super::super) fn catch_up(&mut self) -> Result<()> {
        while let Some((item, state)) = self.find(
            "SELECT id, attempt, unwanted, expires, state FROM items WHERE changes <= ? \
             ORDER BY changes, id LIMIT 1",
            [self.context.now.machine()],
            |row| Ok((ItemRow::read(row)?, row.get::<_, i64>(4)?)),
        )? {
            self.come_due(&item, state)?;
        }
        Ok(())
    }

    /// The item's state changes by itself: a lease times out, a delay ends, or the item expires.
    fn come_due(&mut self, item: &ItemRow, state: i64) -> Result<()> {
        match state {
            0 => self.meta.ready -= 1,
            1 => {
                let lost = Some(&Failure::LeaseTimedOut);
                return self.end(item, Some(Duration::ZERO), lost).map(|_| ());
            }
            _ => self.meta.delayed -= 1,
        }
        if self.is_expired(item) {
            self.fail(item.id, &Failure::ItemExpired)?;
            return self.dead_letter(item.id);
        }
        let turn = self.next_turn();
        self.make_ready(item.id, turn)
    }

    /// True if the item's time to live has passed.
    pub(super) fn is_expired(&self, item: &ItemRow) -> bool {
        let now = self.context.now.machine();
        item.expires.is_some_and(|expires| expires <= now)
    }

    /// When the next state change by itself is due, on the machine's clock.
    pub(in super::super) fn next_change(&self) -> Result<i64> {
        let next = "SELECT changes FROM items WHERE changes IS NOT NULL ORDER BY changes LIMIT 1";
        let next = self.find(next, [], |row| row.get(0))?;
        Ok(next.unwrap_or(i64::MAX))
    }

    /// After a reboot: count the times of the file from this boot, with the rest of each pause as the
    /// wall clock gives it.
    pub(super) fn rebase_times(&mut self, start: &str) -> Result<()> {
        let now = self.context.now;
        let before = self.find("SELECT machine_start FROM meta", [], |row| {
            row.get::<_, String>(0)
        })?;
        if before.as_deref() == Some(start) {
            return Ok(());
        }
        self.execute(
            "UPDATE items SET due = ?1 + max(0, min(delay, due_wall - ?2)) WHERE state = 2",
            [now.machine(), now.wall],
        )?;
        self.execute(
            "UPDATE items SET expires = ?1 + max(0, min(timeout, expires_wall - ?2)) \
             WHERE expires IS NOT NULL",
            [now.machine(), now.wall],
        )?;
        self.execute("UPDATE meta SET machine_start = ?", [start])?;
        Ok(())
    }
}
