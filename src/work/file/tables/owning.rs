//! Who holds leases, and those that are over because their holder is gone or late.

use std::time::Duration;

use rusqlite::params;

use super::{Ending, Failure, Result, Tables};
use crate::work::file::owners::Process;

impl Tables<'_> {
    /// Become an owner; returns which.
    pub(in super::super) fn join(&mut self, own: &Process) -> Result<i64> {
        self.count_time_from(&own.machine)?;
        self.meta.last_owner += 1;
        let id = self.meta.last_owner;
        self.execute(
            "INSERT INTO owners VALUES (?, ?, ?, ?, ?)",
            params![id, own.pid, own.started, &*own.machine, own.space],
        )?;
        self.meta.owners += 1;
        self.changed.tell = self.meta.owners > 1; // who is there watches who comes
        Ok(id)
    }

    /// All owners but the operation's own.
    pub(in super::super) fn others(&self) -> Result<Vec<(i64, Process)>> {
        self.all(
            "SELECT id, pid, started, machine_start, pid_space FROM owners WHERE id <> ?",
            [self.terms.owner],
            |row| {
                let machine: String = row.get(3)?;
                let process = Process {
                    pid: row.get(1)?,
                    started: row.get(2)?,
                    machine: machine.into(),
                    space: row.get(4)?,
                };
                Ok((row.get(0)?, process))
            },
        )
    }

    /// An owner is gone, and its leases are over; it may have died, as this process.
    pub(in super::super) fn part(&mut self, owner: i64, died: Option<u32>) -> Result<()> {
        if self.execute("DELETE FROM owners WHERE id = ?", [owner])? == 0 {
            return Ok(()); // somebody else was quicker
        }
        self.meta.owners -= 1;
        let endings = self.all(
            "SELECT id, attempt, unwanted FROM items WHERE state = 1 AND owner = ? \
             ORDER BY epoch DESC",
            [owner],
            Ending::read,
        )?;
        for ending in endings {
            let failure = died.map(|pid| Failure::OwnerDied { pid });
            self.end(ending, Duration::ZERO, failure.as_ref())?;
        }
        Ok(())
    }

    /// End the leases that nobody has extended in time; returns when the next one ends.
    pub(in super::super) fn end_leases(&mut self) -> Result<i64> {
        let endings = self.all(
            "SELECT id, attempt, unwanted FROM items WHERE state = 1 AND lease_until <= ? \
             ORDER BY epoch DESC",
            [self.terms.now.machine()],
            Ending::read,
        )?;
        for ending in endings {
            self.end(ending, Duration::ZERO, Some(&Failure::LeaseTimedOut))?;
        }
        let next = "SELECT min(lease_until) FROM items WHERE state = 1";
        let next = self.find(next, [], |row| row.get::<_, Option<i64>>(0))?;
        Ok(next.flatten().unwrap_or(i64::MAX))
    }

    /// After another start of the machine: what was left of each pause, as the wall has it.
    fn count_time_from(&mut self, start: &str) -> Result<()> {
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
