"""HeartbeatThread: extends the leases of an EngineQueue, and detects when one is lost.

Guarantees:

- A lease is extended three times in each `lease_timeout`, as long as its `HeldLease` object exists:
  the references here are weak, so that a lease which a program drops unsettled runs out.
- A lease that the server gives to another worker, or that runs out while the server is away, is
  marked as lost (`HeldLease.lose`), which cancels the token of its handler.
- A failure of the engine other than ConnectionError is raised once, by the next call of the queue
  that leases or drains. The thread goes on, as after ConnectionError: leases whose holders are at
  work do not run out because one call has failed.

Only this thread calls `Engine.tend` and, on its own schedule, `Engine.extend`. `add` and `remove`
are called by any thread: each is one operation of a dict.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING

from desist._core import CancelCause, call_masked, cancel_because, current_time, sleep
from desist._exceptions import Fenced
from desist._thread import Thread
from desist.engines._held import RECONNECT, HeldLease

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist.engines._port import Engine


class HeartbeatThread:
    """A daemon thread that extends all leases this process holds, and calls `Engine.tend`."""

    def __init__(self, engine: Engine, changed: Callable[[], object]) -> None:
        """`changed()` is called whenever the queue may have become empty, for drain()."""
        self._engine = engine
        self._changed = changed
        self._held: dict[int, weakref.ref[HeldLease]] = {}
        self._thread: Thread | None = None
        self.period = engine.lease_timeout / 3
        """Seconds from one extension of a lease to the next."""
        self._failures: deque[Exception] = deque(maxlen=1)
        """The last failure of the engine that no caller has been told yet. Appended by the thread,
        taken by any; each step is one call of the deque."""

    def start(self) -> None:
        """Start the thread, unless it runs. The caller holds off kills."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="desist-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end. Never blocks."""
        if self._thread is not None:
            cancel_because(self._thread.token, CancelCause.shutdown("the queue is closed"))

    def join(self) -> None:
        """Wait until the thread has ended. A checkpoint."""
        if self._thread is not None:
            self._thread.join()

    def add(self, held: HeldLease) -> None:
        """Extend this lease from now on."""
        key = id(held)
        self._held[key] = weakref.ref(held, lambda _: self._held.pop(key, None))

    def remove(self, held: HeldLease) -> None:
        """Extend this lease no more: it is settled or lost."""
        self._held.pop(id(held), None)

    def held(self) -> list[HeldLease]:
        """The leases that are extended now."""
        references = list(self._held.values())
        return [held for reference in references if (held := reference()) is not None]

    def check(self) -> None:
        """Raise a failure of the engine that no other caller has been told."""
        try:
            failure = self._failures.pop()
        except IndexError:
            return
        raise failure

    @property
    def idle(self) -> bool:
        """Is there no lease to extend?"""
        return not self._held

    def _run(self) -> None:
        due = current_time() + self.period
        shortest, longest = RECONNECT
        pause = shortest
        while True:
            try:
                self._engine.tend(max(due - current_time(), 0))
                pause = shortest
                if current_time() >= due:
                    due = current_time() + self.period
                    self._extend_all()
            except Exception as failure:  # noqa: BLE001 (the queue raises it where items are leased)
                if not isinstance(failure, ConnectionError):
                    self._failures.append(failure)
                    self._changed()
                self._lose_expired()
                due = current_time()  # extend at once when the server is back
                sleep(pause)
                pause = min(2 * pause, longest, self.period)
            self._changed()

    def _extend_all(self) -> None:
        failed: Exception | None = None
        for held in self.held():
            asked = current_time()
            try:
                call_masked(self._engine.extend, held.delivery, None)
            except Fenced:
                held.lose("its lease is over, and another worker has the item")
            except ConnectionError:
                raise
            except Exception as failure:  # noqa: BLE001 (the other leases come first)
                failed = failure
            else:
                held.until = asked + self._engine.lease_timeout
        if failed is not None:
            raise failed

    def _lose_expired(self) -> None:
        now = current_time()
        for held in self.held():
            if now >= held.until:
                held.lose("its lease ran out while the queue's server was away, or failed")
