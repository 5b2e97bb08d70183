"""The random kills, the numbers of one run, and the decision that a run hangs."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desist._demo.work import Store, Totals

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from desist._demo.work import Row


class RandomKills:
    """A thread that kills a random worker every few milliseconds while the `with` block runs.

    The workers may be built in any way: `kill` is a function that kills the worker of an index.
    """

    def __init__(
        self, kill: Callable[[int], str], *, workers: int, every: float, seed: int
    ) -> None:
        """Prepare; the first kill comes in the `with` block.

        Args:
            kill: Kills the worker of that index, and returns how it ended.
            workers: The number of workers.
            every: Seconds between two kills.
            seed: Decides the order of the workers.
        """
        self.outcomes: Counter[str] = Counter()
        self._kill = kill
        self._workers = workers
        self._every = every
        self._random = random.Random(seed)  # noqa: S311 (not for secrets)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="random-kills", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the end of the last kill, and raise the exception of one that failed."""
        self._over.set()
        self._thread.join(None if error is None else 1.0)
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._over.wait(self._every):
                self.outcomes[self._kill(self._random.randrange(self._workers))] += 1
        except BaseException as error:  # noqa: BLE001 (raised again in __exit__)
            self._error = error


class Watchdog:
    """Finds out that a run makes no progress any more."""

    def __init__(self, patience: float) -> None:
        """Report a standstill that lasts for more than `patience` seconds."""
        self.patience = patience
        self._seen: object = None
        self._since = time.monotonic()

    def stuck(self, progress: object) -> bool:
        """Compare the progress with that of the call before.

        Args:
            progress: Any value that changes as long as the run makes progress.

        Returns:
            Whether it has been the same for longer than the patience.
        """
        now = time.monotonic()
        if progress != self._seen:
            self._seen, self._since = progress, now
        return now - self._since > self.patience


@dataclass
class RunStats:
    """The numbers of one run: some grow while it lasts, others are known at its end."""

    items: int
    workers: int
    store: Store = field(default_factory=Store)

    # While the run lasts.
    starts: int = 0
    """How often a worker took an item."""
    kills: Counter[str] = field(default_factory=Counter)
    """The number of kills by outcome."""
    seconds: float = 0.0

    # At its end.
    hung: str = ""
    """Why the run did not end by itself; empty if it did."""
    locks_held: list[str] = field(default_factory=list)
    """Names of the locks that were never released."""
    queued: set[str] = field(default_factory=set)
    """Paths of the items that were still in the queue."""
    unacked: int = 0
    """Items taken but never acknowledged: they would make a join of the queue hang."""
    acked_twice: int = 0
    """Items acknowledged more than once."""
    escaped: int = 0
    """Exceptions that were raised outside of every handler."""
    alive: int = 0
    """Workers that could work on one more item."""

    # After the audit.
    lost: int = 0
    """Items without a row that are not in the queue either."""
    twice: int = 0
    """Rows written more than once."""
    torn: bool = False
    """Whether the totals disagree with the rows: an update was interrupted half-way."""
    same: bool = False
    """Whether rows and totals are those of an undisturbed run."""

    @property
    def finished(self) -> int:
        """Items whose row has been written so far."""
        return self.store.totals.files

    def audit(self, undisturbed: list[Row]) -> None:
        """Compare the store with the rows of a run without kills."""
        rows, totals = self.store.rows(), self.store.totals
        wanted, written = ({row.path for row in some} for some in (undisturbed, rows))
        self.lost = len(wanted - written - self.queued)
        self.twice = len(rows) - len(written)
        self.torn = totals != Totals.of(rows)
        self.same = rows == undisturbed and totals == Totals.of(undisturbed)

    @property
    def intact(self) -> bool:
        """Whether nothing was lost, doubled, torn, left locked or left undone."""
        damage = (
            self.hung,
            self.locks_held,
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
