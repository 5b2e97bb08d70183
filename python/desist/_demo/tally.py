"""What one run measured, and whether it held."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desist._demo.store import Store, Totals

if TYPE_CHECKING:
    from desist._demo.job import Row


@dataclass
class Tally:
    """The numbers of one run: some grow while it lasts, others are known at its end."""

    items: int
    workers: int
    store: Store = field(default_factory=Store)

    # While it lasts.
    starts: int = 0
    """How often a worker took an item."""
    kills: Counter[str] = field(default_factory=Counter)
    """By the rung that ended them."""
    seconds: float = 0.0

    # At its end.
    hung: str = ""
    """Why it did not end by itself; empty if it did."""
    held: list[str] = field(default_factory=list)
    """Names of the locks that nobody gave back."""
    queued: set[str] = field(default_factory=set)
    """Paths of items that nobody took out of the queue any more."""
    unacked: int = 0
    """Items taken but never acknowledged: whoever joins the queue hangs."""
    acked_twice: int = 0
    """Items acknowledged more than once."""
    escaped: int = 0
    """Exceptions that came out where no handler stood."""
    alive: int = 0
    """Workers that could do one more item."""

    # After the audit.
    lost: int = 0
    """Items without a row that are not in the queue either."""
    twice: int = 0
    """Rows written more than once."""
    torn: bool = False
    """Whether the totals disagree with the rows: an update was left half done."""
    same: bool = False
    """Whether rows and totals are those of an undisturbed run."""

    @property
    def finished(self) -> int:
        """Items that have got their row so far."""
        return self.store.totals.files

    def audit(self, undisturbed: list[Row]) -> None:
        """Compare what is in the store with what a run without kills gave."""
        rows, totals = self.store.rows(), self.store.totals
        wanted, written = ({row.path for row in some} for some in (undisturbed, rows))
        self.lost = len(wanted - written - self.queued)
        self.twice = len(rows) - len(written)
        self.torn = totals != Totals.of(rows)
        self.same = rows == undisturbed and totals == Totals.of(undisturbed)

    @property
    def held_up(self) -> bool:
        """Whether nothing was lost, doubled, torn, left held or left behind."""
        damage = (
            self.hung,
            self.held,
            self.queued,
            self.unacked,
            self.acked_twice,
            self.escaped,
            self.workers - self.alive,
            self.lost,
            self.twice,
            self.torn,
        )
        return self.same and not any(damage)
