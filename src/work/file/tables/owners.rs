//! The owners of leases: open queues of processes. The leases of an owner that is gone are over.
//!
//! An owner is removed once: by its own queue when it is closed, or by any watcher that finds its
//! process dead. The one whose `DELETE` finds the row ends the leases.

use std::time::Duration;

use rusqlite::params;

use super::{Failure, ItemRow, Result, Tables};
use crate::work::file::process::Process;

impl Tables<'_> {
    /// Add an owner; returns its id.
    pub(in super::super) fn add_owner(&mut self, own: &Process) -> Result<i64> {
        self.rebase_times(&own.boot)?;
        self.meta.last_owner += 1;
        let id = self.meta.last_owner;
        self.execute(
            "INSERT INTO owners VALUES (?, ?, ?, ?, ?)",
            params![id, own.pid, own.started, &*own.boot, own.namespace],
        )?;
        self.meta.owners += 1;
        self.changed.tell = self.meta.owners > 1; // the other watchers have to watch its process
        Ok(id)
    }

    /// All owners but that of the operation.
    pub(in super::super) fn other_owners(&self) -> Result<Vec<(i64, Process)>> {
        self.all(
            "SELECT id, pid, started, machine_start, pid_space FROM owners WHERE id <> ?",
            [self.context.owner],
            |row| {
                let boot: String = row.get(3)?;
                let process = Process {
                    pid: row.get(1)?,
                    started: row.get(2)?,
                    boot: boot.into(),
                    namespace: row.get(4)?,
                };
                Ok((row.get(0)?, process))
            },
        )
    }

    /// Remove an owner and end its leases. `died`: the pid of its process, if that has died.
    pub(in super::super) fn remove_owner(&mut self, owner: i64, died: Option<u32>) -> Result<()> {
        if self.execute("DELETE FROM owners WHERE id = ?", [owner])? == 0 {
            return Ok(()); // another process has removed it
        }
        self.meta.owners -= 1;
        self.changed.tell |= self.meta.owners > 0; // its watcher does not look at the times any more
        let leased = self.all(
            "SELECT id, attempt, unwanted, expires FROM items WHERE state = 1 AND owner = ? \
             ORDER BY epoch DESC",
            [owner],
            ItemRow::read,
        )?;
        for leased in leased {
            let failure = died.map(|pid| Failure::OwnerDied { pid });
            self.end(&leased, Some(Duration::ZERO), failure.as_ref())?;
        }
        Ok(())
    }
}
