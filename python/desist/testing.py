"""Help for tests: a clock that jumps, kills at every bytecode, a look at what was left behind.

    from desist import sleep, testing

    testing.run(lambda: sleep(3600))  # at once
    testing.sweep_kills(use, check, setup=Bank)  # use(bank) is killed everywhere

Under :func:`run` time stands still while any thread can run, and jumps to the next deadline when
all of them wait. Threads take turns at their desist waits, so a run can be had again.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from desist._core import Simulation, census
from desist._exceptions import Deadlock, LeakError, SweepError
from desist._sweep import Sweep, SweepReport, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Deadlock",
    "LeakError",
    "MockClock",
    "SweepError",
    "SweepReport",
    "no_leaks",
    "run",
    "sweep_cancels",
    "sweep_kills",
]

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
        """Let so many seconds pass; whoever has a deadline until then runs at that instant.

        Called under :func:`run`, it lets all other threads run until they wait before it begins,
        and after each deadline. ValueError: negative, or NaN.
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
    kill(), of threads and of workers, takes real time.

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


@overload
def sweep_kills(
    fn: Callable[[], object],
    check: Callable[[], object] | None = None,
    *,
    victims: Literal["fn", "started"] = "fn",
    defer: bool = False,
    block: int | None = None,
    only: int | None = None,
    limit: int = 10_000,
    timeout: float = 10.0,
) -> SweepReport: ...
@overload
def sweep_kills(
    fn: Callable[[_T], object],
    check: Callable[[_T], object] | None = None,
    *,
    setup: Callable[[], _T],
    victims: Literal["fn", "started"] = "fn",
    defer: bool = False,
    block: int | None = None,
    only: int | None = None,
    limit: int = 10_000,
    timeout: float = 10.0,
) -> SweepReport: ...
def sweep_kills(
    fn: Callable[..., object],
    check: Callable[..., object] | None = None,
    *,
    setup: Callable[[], Any] = nothing,
    victims: Literal["fn", "started"] = "fn",
    defer: bool = False,
    block: int | None = None,
    only: int | None = None,
    limit: int = 10_000,
    timeout: float = 10.0,
) -> SweepReport:
    """Run `fn` again and again, killed in front of its first bytecode, its second, and so on.

    Each run is a task on a thread of its own; `check` is called after it, in the calling thread.
    SweepError, an AssertionError: `check` failed or returned False, or `fn` itself has raised or
    hung; it names the bytecode. The kill is a real one: CPython raises it where it would raise it
    if another thread had killed the task at this moment, which may be some bytecodes later.

    `setup` makes what a run works on: it is called before each, and `fn` and `check` get what it
    returned. `victims="started"`: not `fn` is killed, but the tasks that begin while it runs, in
    desist threads and in handlers of pools; it should wait for them. `defer`: a held lock holds
    the kill off, as in a kill's first `StopPolicy.defer` seconds; without, it is struck inside.
    `block`: not the task is killed, but this one of the open blocks that have `kill_after` (the
    outermost is 0), as if its time were up; only its bytecodes count.
    `only`: just this point, to look at it closely. ValueError: `fn` takes more bytecodes than
    `limit`. `timeout`: so many seconds a run may take.

    One sweep at a time. While it runs, coverage and debuggers do not see what they trace by
    sys.settrace.
    """
    return Sweep(fn, check, setup, victims, only, limit, timeout, defer=defer, block=block).run()


@overload
def sweep_cancels(
    fn: Callable[[], object],
    check: Callable[[], object] | None = None,
    *,
    victims: Literal["fn", "started"] = "fn",
    only: int | None = None,
    limit: int = 10_000,
    timeout: float = 10.0,
) -> SweepReport: ...
@overload
def sweep_cancels(
    fn: Callable[[_T], object],
    check: Callable[[_T], object] | None = None,
    *,
    setup: Callable[[], _T],
    victims: Literal["fn", "started"] = "fn",
    only: int | None = None,
    limit: int = 10_000,
    timeout: float = 10.0,
) -> SweepReport: ...
def sweep_cancels(
    fn: Callable[..., object],
    check: Callable[..., object] | None = None,
    *,
    setup: Callable[[], Any] = nothing,
    victims: Literal["fn", "started"] = "fn",
    only: int | None = None,
    limit: int = 10_000,
    timeout: float = 10.0,
) -> SweepReport:
    """As :func:`sweep_kills`, but cancelled: the next checkpoint behind the bytecode raises."""
    return Sweep(fn, check, setup, victims, only, limit, timeout, cancels=True).run()
