"""Help for tests: a clock that jumps, and a look at what was left behind.

    from desist import sleep, testing

    testing.run(lambda: sleep(3600))  # at once

Under :func:`run` time stands still while any thread can run, and jumps to the next deadline when
all of them wait. Threads take turns at their desist waits, so a run can be had again.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from desist._core import Simulation, census
from desist._exceptions import Deadlock, LeakError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Deadlock", "LeakError", "MockClock", "no_leaks", "run"]

_T = TypeVar("_T")


class MockClock:
    """A clock that jumps instead of running. For :func:`run`, once.

    It begins at the present time. `autojump`: it jumps by itself when every thread waits; else
    only when :meth:`jump` is called. `seed`: draw lots for which thread runs next, the same for
    the same seed; without one it is whichever could go on first.
    """

    def __init__(self, *, autojump: bool = True, seed: int | None = None) -> None:
        """A clock."""
        self._simulation = Simulation(autojump, seed)

    def jump(self, seconds: float) -> None:
        """Let so many seconds pass at once; whoever has a deadline until then runs.

        Never blocks. ValueError: negative, or NaN.
        """
        self._simulation.jump(seconds)

    def time(self) -> float:
        """What it shows, in seconds: under :func:`run` the same as desist.current_time()."""
        return self._simulation.time()


def run(fn: Callable[[], _T], *, clock: MockClock | None = None, seed: int | None = None) -> _T:
    """Call `fn()` in simulated time, and wait for the desist threads that it has started.

    Returns what it returned. The calling thread, the desist threads that it starts, the workers
    of its pools, and theirs, go by `clock`; they take turns, and give way at desist waits only:
    code that computes, or blocks elsewhere, keeps all others waiting and the clock standing.
    Thread.kill() and kill_worker() take real time.

    Deadlock: every thread waits and none has a deadline; it is raised in `fn`'s wait, or here if
    `fn` has returned, after the others were cancelled. RuntimeError: there is a run already.
    `seed` as with MockClock, and instead of `clock`.
    """
    if clock is None:
        clock = MockClock(seed=seed)
    elif seed is not None:
        raise ValueError("give the seed to the clock, or leave the clock out")
    return clock._simulation.run(fn)  # noqa: SLF001 (its own module)


_WHAT = ("unfinished tasks", "armed deadlines", "held locks and permits", "open blocks")


@contextmanager
def no_leaks() -> Iterator[None]:
    """Raise LeakError if the block leaves more behind than it found.

    Counted are threads and pool workers' tasks that have not ended, deadlines of sources and
    tokens that are still armed, and, of the calling thread, desist locks and permits that it holds
    and blocks that it is in. An exception out of the block goes first.
    """
    before = census()
    yield
    gc.collect()
    left = [
        f"{now - then} {what}"
        for what, then, now in zip(_WHAT, before, census(), strict=True)
        if now > then
    ]
    if left:
        raise LeakError("left behind: " + ", ".join(left))
