"""Supervisor: counts how often a pool's workers are replaced, and ends the pool beyond a limit.

`WorkerPool` asks it before it replaces a worker, and tells it when its queue has failed. Everything
it counts is written under its one lock; `gave_up` is cancelled once, when the pool is given up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from desist._core import CancelSource, hold_off
from desist._exceptions import PoolExhausted

if TYPE_CHECKING:
    from desist._item_future import ItemFuture


class Restart(NamedTuple):
    """How often workers are replaced before their pool gives up, as a supervisor's in Erlang."""

    intensity: int = 3
    """So many within `period` are borne; with the next one the pool gives up. Counted are threads
    that were given up, and worker processes that could not start; a process that dies at work
    counts as an attempt of its item."""
    period: float = 5.0
    """Seconds."""
    max_abandoned: int = 2
    """So many threads that nothing ends may be left behind in all."""


class Supervisor:
    """Counts how often workers are replaced, and says when it is too often.

    Its lock is the standard library's, so that no cancel keeps it from counting; what is done
    under it is not killed.
    """

    def __init__(self, restart: Restart, pool: CancelSource, futures: set[ItemFuture[Any]]) -> None:
        self._restart = restart
        self._pool = pool
        self._futures = futures
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        self._source = CancelSource()
        self._why: tuple[str, BaseException | None] | None = None
        self.gave_up = self._source.token
        self.restarts = 0
        self.abandoned = 0

    def leave_behind(self, what: str) -> None:
        """A thread is left behind, and another is to take its place; or PoolExhausted."""
        hold_off(self._count_left_behind, what)
        self.restart(what)
        self.check()

    def _count_left_behind(self, what: str) -> None:
        with self._lock:
            self.abandoned += 1
            limit = self._restart.max_abandoned
            if self.abandoned > limit:
                self._give_up(f"{what}, and {limit} threads are left behind already", None)

    def restart(self, what: str) -> None:
        """A worker is to be replaced, unless that has happened too often."""
        hold_off(self._count_restart, what)

    def _count_restart(self, what: str) -> None:
        now = time.monotonic()
        intensity, period, _ = self._restart
        with self._lock:
            self._recent.append(now)
            while now - self._recent[0] > period:
                self._recent.popleft()
            if len(self._recent) > intensity:
                self._give_up(f"{what}, and {intensity} were replaced in {period} s already", None)
            if self._why is None:
                self.restarts += 1

    def queue_failed(self, failure: BaseException) -> None:
        """A worker has left, because its queue raised this."""
        hold_off(self._give_up, "the queue failed", failure)

    def _give_up(self, why: str, failure: BaseException | None) -> None:
        """For good."""
        if self._why is None:
            self._why = (why, failure)
        self._source.cancel(why)
        self._pool.cancel(why)
        for future in list(self._futures):
            self.tell(future)

    def tell(self, future: ItemFuture[Any]) -> None:
        """Nobody of this pool will do the work."""
        try:
            self.check()
        except PoolExhausted as given_up:
            future._fail(given_up)  # noqa: SLF001 (the pool's own future)

    def check(self) -> None:
        """PoolExhausted if the pool has given up."""
        if self._why is not None:
            why, failure = self._why
            message = f"the pool has given up: {why}; what was not done is still in its queue"
            raise PoolExhausted(message) from failure
