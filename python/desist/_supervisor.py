"""Supervisor: counts how often a pool's workers are replaced, and ends the pool beyond a limit.

The roster asks the supervisor before it replaces a worker, and reports a failed queue to it. It
guarantees: once it has ended the pool, the pool's token is cancelled, and every future that the
pool has made fails with the same reason.

How: `restarts`, `_abandoned` and `_recent` are written under `_lock`, and only there. `_ended_by`
is written once, under it, before `ended` is cancelled and the futures fail; a thread that adds a
future looks at `ended` afterwards, so that one of the two settles it. The lock is the standard
library's, so that no cancellation keeps the supervisor from counting, and it is only held inside
`call_masked()`, so that no kill leaves it held. It is never held while the pool is ended, which
calls the users' callbacks of futures and tokens: a count only answers that the pool has to end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from desist._core import CancelCause, CancelSource, call_masked, cancel_because
from desist._exceptions import PoolExhausted, PoolFailed

if TYPE_CHECKING:
    from desist._core import CancelToken
    from desist._item_future import ItemPromise


class RestartPolicy(NamedTuple):
    """How often a WorkerPool replaces workers before it stops with PoolExhausted."""

    intensity: int = 3
    """At most this many replacements within `period`; one more ends the pool. Abandoned threads and
    worker processes that could not start count; a process that dies while it works counts as an
    attempt of its item."""
    period: float = 5.0
    """Seconds over which replacements are counted."""
    max_abandoned: int = 2
    """So many threads that were abandoned and still run are replaced; with one more the pool is
    exhausted."""


class Supervisor:
    """Counts the replacements of one pool's workers; see the module's text."""

    def __init__(
        self, policy: RestartPolicy, pool: CancelSource, promises: set[ItemPromise]
    ) -> None:
        self._policy = policy
        # Cancels the pool's workers.
        self._pool = pool
        # Of the pool's futures that are not settled; the pool adds and removes them.
        self._promises = promises
        # When workers were replaced within the last `period`, oldest first.
        self._recent: deque[float] = deque()
        self._lock = threading.RLock()  # a signal handler may have workers replaced, too
        self._source = CancelSource()
        # Why the pool has ended, and the queue's exception if the queue failed.
        self._ended_by: tuple[str, BaseException | None] | None = None
        # Cancelled when the supervisor has ended the pool.
        self.ended: CancelToken = self._source.token
        self.restarts: int = 0
        # Those that were alive when the last one was added.
        self._abandoned: list[threading.Thread] = []

    @property
    def abandoned(self) -> int:
        """Number of threads that were abandoned and still run."""
        return sum(thread.is_alive() for thread in self._abandoned)

    def add_abandoned(self, thread: threading.Thread) -> None:
        """Count a thread that was abandoned, for as long as it runs. Inside a mask."""
        with self._lock:
            self._abandoned = [one for one in (*self._abandoned, thread) if one.is_alive()]

    def count(self, what: str) -> str | None:
        """Count the replacement of a worker, unless a limit is reached. Inside a mask.

        Returns why the pool has to end instead; None: the worker is to be replaced.
        """
        now = time.monotonic()
        intensity, period, limit = self._policy
        with self._lock:
            if self._ended_by is not None:
                return f"{what}, and the pool has ended"
            if self.abandoned > limit:
                return f"{what}, and {limit} abandoned threads still run"
            self._recent.append(now)
            while now - self._recent[0] > period:
                self._recent.popleft()
            if len(self._recent) > intensity:
                return f"{what}, and {intensity} were replaced in {period} s already"
            self.restarts += 1
        return None

    def count_restart(self, what: str) -> None:
        """Count a worker's process that is replaced; ends the pool if that happens too often."""
        call_masked(self._count_restart, what)

    def _count_restart(self, what: str) -> None:
        refusal = self.count(what)
        if refusal is not None:
            self.end(refusal)

    def queue_failed(self, failure: BaseException) -> None:
        """End the pool: the queue raised `failure`, to a worker or to a caller of drain().

        The queue decides which exceptions are its own: neither those that stop the calling code,
        nor ConnectionError of a server that is away, for which workers wait.
        """
        call_masked(self.end, "the queue failed", failure)

    def end(self, why: str, failure: BaseException | None = None) -> None:
        """End the pool, unless it has ended before. `failure`: of the queue. Inside a mask."""
        with self._lock:
            if self._ended_by is None:
                self._ended_by = (why, failure)
        self._source.cancel(why)
        cancel_because(self._pool.token, CancelCause.shutdown(why))
        for promise in list(self._promises):
            self.fail(promise)

    def fail(self, promise: ItemPromise) -> None:
        """Settle the future of a promise, if the pool has ended."""
        try:
            self.check()
        except (PoolExhausted, PoolFailed) as ended:
            promise.fail(ended)

    def check(self) -> None:
        """Raise if the pool has ended.

        Raises:
            PoolExhausted: workers had to be replaced too often.
            PoolFailed: the queue has failed, with the failure as `__cause__`.
        """
        if self._ended_by is not None:
            why, failure = self._ended_by
            message = f"the pool has stopped: {why}; unfinished items are still in its queue"
            if failure is not None:
                raise PoolFailed(message) from failure
            raise PoolExhausted(message)
