"""Locks and other things that threads share, without contention and with it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from measure import each, plain
from table import Row

import desist

THREADS = 4
TURNS = 40_000  # of each thread
ROUNDS = 7


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    native, ours, fenced, guard, value, aiologic = each(
        [
            plain("with lock: pass", "import threading; lock = threading.Lock()"),
            plain("with lock: pass", "import desist; lock = desist.Lock()"),
            plain("with lock: pass", "import desist; lock = desist.Lock(fenced=True)"),
            plain("with lock.guard(): pass", "import desist; lock = desist.Lock()"),
            plain("with guarded.lock(): pass", "import desist; guarded = desist.Guarded(1)"),
            plain("with lock: pass", "import aiologic; lock = aiologic.Lock()"),
        ]
    )
    floor, peers = ("threading.Lock", native), {"aiologic": aiologic}
    yield Row("with Lock(), free", "ns", ours, floor, 1.2, peers)
    yield Row("with Lock(fenced=True), free", "ns", fenced, floor)
    yield Row("with Lock().guard(), free", "ns", guard, floor)
    yield Row("with Guarded().lock(), free", "ns", value, floor)
    yield against("with RLock(), free", "RLock", "with thing: pass")
    yield against("with RLock(), held already", "RLock", "with thing: pass", "; thing.acquire()")
    yield against("with Semaphore(), free", "Semaphore", "with thing: pass")
    yield against("Semaphore: acquire, release", "Semaphore", "thing.acquire(); thing.release()")
    yield against("Event: set, is_set, wait, clear", "Event", EVENT)
    yield against("with Condition(): notify", "Condition", "with thing: thing.notify()")
    yield against("Barrier of one: wait", "Barrier", "thing.wait()", made="(1)")
    for work, note in ((nothing, "nothing in it"), (something, "a little in it")):
        yield contended(work, note)


EVENT = "thing.set(); thing.is_set(); thing.wait(); thing.clear()"


def against(subject: str, name: str, work: str, more: str = "", made: str = "()") -> Row:
    """Compare the class of this name of desist with that of threading."""
    theirs, ours = each(
        [
            plain(work, f"import {module}; thing = {module}.{name}{made}{more}")
            for module in ("threading", "desist")
        ]
    )
    return Row(subject, "ns", ours, (f"threading.{name}", theirs), 1.0)


def nothing() -> None:
    """Do nothing inside the lock."""


def something() -> None:
    """Hold the lock for a microsecond or two."""
    for _ in range(20):
        pass


def contended(work: Callable[[], None], note: str) -> Row:
    """Nanoseconds of wall time for a turn, of threads that do nothing but take turns."""
    makers: tuple[Callable[[], AbstractContextManager[Any]], ...] = (threading.Lock, desist.Lock)
    figures: list[list[float]] = [[], []]
    for number in range(ROUNDS):
        for turn in range(len(makers)):
            at = (number + turn) % len(makers)
            figures[at].append(scramble(makers[at](), work))
    theirs, ours = map(median, figures)
    return Row(f"with Lock(), {THREADS} threads, {note}", "ns", ours, ("threading.Lock", theirs), 1)


def scramble(lock: AbstractContextManager[Any], work: Callable[[], None]) -> float:
    """Run the threads until each has had all its turns."""

    def take_turns() -> None:
        for _ in range(TURNS):
            with lock:
                work()

    threads = [threading.Thread(target=take_turns) for _ in range(THREADS)]
    start = time.perf_counter_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - start) / (TURNS * THREADS)
