"""Keeps leases while their worker lives, and learns when one is lost."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from desist._core import current_time, hold_off, sleep
from desist._exceptions import Fenced
from desist._thread import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist.engines._port import Engine
    from desist.engines._queue import Held

RECONNECT = 0.05, 2.0
"""Seconds between tries to reach an engine that is away: at first, and at most."""


class Keeper:
    """Extends all leases in hand, on a daemon thread of its own, and tends the engine.

    A lease is in hand as long as its Held lives: who throws one away unsettled lets it run out. So
    does a process that is gone.
    """

    def __init__(self, engine: Engine, changed: Callable[[], object]) -> None:
        """`changed()` is called when there may be news for those who wait for the end of all."""
        self._engine = engine
        self._changed = changed
        self._held: dict[int, weakref.ref[Held]] = {}
        self._thread: Thread | None = None
        self.period = engine.lease_timeout / 3
        """Seconds between two times that a lease is extended."""
        self.failure: BaseException | None = None
        """Why leases are not extended any more."""

    def start(self) -> None:
        """Begin, if it has not. No kill may strike."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="desist-keeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, soon. Never blocks."""
        if self._thread is not None:
            self._thread.cancel("the queue is closed")

    def join(self) -> None:
        """Wait for the end. A checkpoint."""
        if self._thread is not None:
            self._thread.join()

    def take(self, held: Held) -> None:
        """This lease is in hand now."""
        key = id(held)
        self._held[key] = weakref.ref(held, lambda _: self._held.pop(key, None))

    def let_go(self, held: Held) -> None:
        """It is not any more."""
        self._held.pop(id(held), None)

    @property
    def idle(self) -> bool:
        """No lease is in hand."""
        return not self._held

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as failure:  # noqa: BLE001 (it is raised where items are leased)
            self.failure = failure
            self._changed()

    def _keep(self) -> None:
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
            except ConnectionError:
                self._give_up_what_has_run_out()
                due = current_time()  # they may be late by now
                sleep(pause)
                pause = min(2 * pause, longest, self.period)
            self._changed()

    def _in_hand(self) -> list[Held]:
        references = list(self._held.values())
        return [held for reference in references if (held := reference()) is not None]

    def _extend_all(self) -> None:
        for held in self._in_hand():
            asked = current_time()
            try:
                hold_off(self._engine.extend, held.delivery, None)
            except Fenced:
                held.lose("its lease is over, and somebody else has the item")
            else:
                held.until = asked + self._engine.lease_timeout

    def _give_up_what_has_run_out(self) -> None:
        now = current_time()
        for held in self._in_hand():
            if now >= held.until:
                held.lose("its lease has run out while the queue's server was away")
