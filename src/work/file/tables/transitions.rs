//! What time does to items.

use std::time::Duration;

use super::{Failure, Result, Standing, Tables};

impl Tables<'_> {
    /// Do what is due, in the order of the times at which it was.
    pub(in super::super) fn catch_up(&mut self) -> Result<()> {
        while let Some((item, state)) = self.find(
            "SELECT id, attempt, unwanted, expires, state FROM items WHERE changes <= ? \
             ORDER BY changes, id LIMIT 1",
            [self.terms.now.machine()],
            |row| Ok((Standing::read(row)?, row.get::<_, i64>(4)?)),
        )? {
            self.come_due(&item, state)?;
        }
        Ok(())
    }

    fn come_due(&mut self, item: &Standing, state: i64) -> Result<()> {
        match state {
            0 => self.meta.ready -= 1,
            1 => {
                let lost = Some(&Failure::LeaseTimedOut);
                return self.end(item, Duration::ZERO, lost).map(|_| ());
            }
            _ => self.meta.delayed -= 1,
        }
        if self.is_expired(item) {
            self.fail(item.id, &Failure::ItemExpired)?;
            return self.bury(item.id);
        }
        let turn = self.last_turn();
        self.make_ready(item.id, turn)
    }

    pub(super) fn is_expired(&self, item: &Standing) -> bool {
        let now = self.terms.now.machine();
        item.expires.is_some_and(|expires| expires <= now)
    }

    /// When time changes the next item.
    pub(in super::super) fn next_change(&self) -> Result<i64> {
        let next = "SELECT changes FROM items WHERE changes IS NOT NULL ORDER BY changes LIMIT 1";
        let next = self.find(next, [], |row| row.get(0))?;
        Ok(next.unwrap_or(i64::MAX))
    }

    /// After another start of the machine: what was left of each pause, as the wall has it.
    pub(super) fn count_time_from(&mut self, start: &str) -> Result<()> {
        let now = self.terms.now;
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
