//! Who holds leases, and those that are over because their holder is gone.

use std::time::Duration;

use rusqlite::params;

use super::{Failure, Result, Standing, Tables};
use crate::work::file::process::Process;

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
        self.changed.tell |= self.meta.owners > 0; // who stays watches the times alone
        let leased = self.all(
            "SELECT id, attempt, unwanted, expires FROM items WHERE state = 1 AND owner = ? \
             ORDER BY epoch DESC",
            [owner],
            Standing::read,
        )?;
        for leased in leased {
            let failure = died.map(|pid| Failure::OwnerDied { pid });
            self.end(&leased, Duration::ZERO, failure.as_ref())?;
        }
        Ok(())
    }
}
