"""Help for tests: simulated time, kills at every bytecode, and a check for leaks.

    from desist import sleep, testing

    testing.run(lambda: sleep(3600))  # at once
    testing.sweep_kills(use, check, setup=Bank)  # use(bank) is killed everywhere

Under :func:`run` time stands still while any thread can run, and jumps to the next deadline when
all of them wait. Threads take turns at their desist waits, so a run is reproducible.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from desist._core import Simulation, leak_counts
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
    only when :meth:`jump` is called. `seed`: the next thread is chosen pseudo-randomly, and in the
    same way for the same seed; without one it is the thread that could run first.
    """

    def __init__(self, *, autojump: bool = True, seed: int | None = None) -> None:
        """Make a clock that has not begun."""
        self._simulation = Simulation(autojump, seed)

    def jump(self, seconds: float) -> None:
        """Advance the clock by `seconds`; a thread whose deadline passes runs at that instant.

        Called under :func:`run`, it lets all other threads run until they wait before it begins,
        and after each deadline.

        Blocks: until these threads wait; in real time for as long as their code takes.
        On cancel: nothing changes: this is no checkpoint.

        Raises:
            ValueError: negative, or NaN.
        """
        self._simulation.jump(seconds)

    def time(self) -> float:
        """The clock's time in seconds: under :func:`run` the same as desist.current_time()."""
        return self._simulation.time()


def run(fn: Callable[[], _T], *, clock: MockClock | None = None, seed: int | None = None) -> _T:
    """Call `fn()` in simulated time, and wait for its desist threads; returns its result.

    The calling thread, the desist threads that it starts, the workers of its pools, and the threads
    that these start, use `clock`. They take turns, and switch at desist waits only: while code
    computes, or blocks elsewhere, the other threads wait and the clock stands still. kill(), of
    threads and of workers, takes real time. `seed` is that of MockClock, instead of `clock`.

    Blocks: until `fn` has returned and the threads have ended.

    On cancel: `fn` runs in the calling code: its desist waits raise Cancelled.

    Raises:
        Deadlock: every thread waits and none has a deadline. It is raised in `fn`'s wait; or here
            if `fn` has returned, after the other threads were cancelled.
        RuntimeError: there is a run already.
        ValueError: a seed and a clock.
    """
    if clock is None:
        clock = MockClock(seed=seed)
    elif seed is not None:
        raise ValueError("give the seed to the clock, or leave the clock out")
    return clock._simulation.run(fn)  # noqa: SLF001 (its own module)


_WHAT = ("unfinished tasks", "armed deadlines", "held locks and permits", "open blocks")


@contextmanager
def no_leaks() -> Iterator[None]:
    """Raise LeakError if there is more at the end of the block than at its beginning.

    Counted are the tasks of threads and pool workers that have not ended, the deadlines of sources
    and tokens that are armed, and, of the calling thread, the desist locks and permits that it
    holds and the blocks that it is in. An exception out of the block is raised instead.
    """
    before = leak_counts()
    yield
    gc.collect()
    left = [
        f"{now - then} {what}"
        for what, then, now in zip(_WHAT, before, leak_counts(), strict=True)
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
    """Run `fn` once for each of its bytecodes, and kill it in front of that bytecode.

    Each run is a task on a thread of its own; `check` is called after it, in the calling thread.
    The kill is a real one: CPython raises it where it would if another thread had killed the task
    at this moment, which may be some bytecodes later.

    `setup` makes the state of a run: it is called before each, and its result is the argument of
    `fn` and `check`. `victims="started"`: not `fn` is killed, but the tasks that begin while it
    runs, in desist threads and in handlers of pools; `fn` should wait for them. `defer`: a held
    lock defers the kill, as in a kill's first `StopPolicy.defer` seconds; else Killed is raised
    inside. `block`: not the task is killed, but this one of the open blocks that have `kill_after`
    (the outermost is 0), as if its time were over; only its bytecodes count. `only`: this bytecode
    alone, for example in a debugger. `limit`: the most bytecodes that `fn` may take. `timeout`:
    seconds that a run may take.

    One sweep at a time. Tools that trace or monitor, such as coverage and debuggers, do not see the
    swept code.

    Blocks: until all runs are over.

    On cancel: the present run is killed, or abandoned, and Cancelled is raised.

    On timeout: the run is killed, or abandoned, and SweepError is raised, with its stack.

    Raises:
        SweepError: (an AssertionError) `check` failed or returned False, or `fn` itself raised or
            hung; the error names the bytecode.
        ValueError: `fn` takes no bytecodes, or more than `limit`; or there is no bytecode `only`.
        RuntimeError: another sweep is running.
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
    """As :func:`sweep_kills`, with a cancel: the next checkpoint raises Cancelled.

    Blocks: until all runs are over.

    On cancel: the present run is killed, or abandoned, and Cancelled is raised.

    On timeout: the run is killed, or abandoned, and SweepError is raised, with its stack.

    Raises:
        SweepError, ValueError, RuntimeError: as sweep_kills().
    """
    return Sweep(fn, check, setup, victims, only, limit, timeout, cancels=True).run()
