"""Kills a random worker every few milliseconds, for as long as a run lasts."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self


class Saboteur:
    """A thread that is up to no good while the `with` block runs.

    It knows nothing of how the workers are built: it is given a function that
    kills one of them and tells by which rung.
    """

    def __init__(
        self, kill: Callable[[int], str], *, workers: int, every: float, seed: int
    ) -> None:
        """Prepare.

        Args:
            kill: Kills the worker of that index and names the rung that it took.
            workers: How many workers there are.
            every: Seconds of rest between two kills.
            seed: Decides who is next.
        """
        self.kills: Counter[str] = Counter()
        self._kill = kill
        self._workers = workers
        self._every = every
        self._dice = random.Random(seed)  # noqa: S311 (not for secrets)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saboteur", daemon=True)

    def __enter__(self) -> Self:
        """Begin to kill."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, wait until the last kill has ended, and report what went wrong."""
        self._over.set()
        self._thread.join(None if error is None else 1.0)
        if self._error is not None and error is None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self._over.wait(self._every):
                self.kills[self._kill(self._dice.randrange(self._workers))] += 1
        except BaseException as error:  # noqa: BLE001 (raised again in __exit__)
            self._error = error
