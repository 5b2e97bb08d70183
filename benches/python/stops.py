"""The latency of a kill, rung by rung, and its cost for threads that are not killed."""

import ctypes
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from statistics import median
from typing import Any

from measure import quantile
from table import Row

import desist

KILLS = 300
TRACED = 100
BATCHES = 5
ROUNDS = 15
ANYWHERE = desist.StopPolicy(cooperative=0, at_wait=0, async_exc=60, defer=60)
AT_WAIT = desist.StopPolicy(cooperative=0, at_wait=60, async_exc=None, trace=None)
BY_TRACE = desist.StopPolicy(cooperative=0, at_wait=0, async_exc=0, trace=60, defer=0)


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    yield from latencies()
    yield from unarmed()
    yield from bystanders()


# --- latency --------------------------------------------------------------------------------------


def spin(ready: Callable[[], None]) -> None:
    """Python code, and no wait."""
    ready()
    while True:
        pass


def wait(ready: Callable[[], None]) -> None:
    """A desist wait in a shield, which a cancellation does not end."""
    with desist.shield(60):
        ready()
        desist.sleep_forever()


def swallow(ready: Callable[[], None]) -> None:
    """Code that swallows every exception."""
    ready()
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001, PERF203, S110 (on purpose)
            pass


def latencies() -> Iterator[Row]:
    """The time until kill() returns; the floor is a bare exception and join()."""
    bare: list[float] = []
    sides: list[tuple[str, Callable[[Any], None], desist.StopPolicy, list[float]]] = [
        ("async exception, in a loop", spin, ANYWHERE, []),
        ("at a desist wait", wait, AT_WAIT, []),
    ]
    for number in range(-5, KILLS):
        figures = [killed_by_recipe(), *(killed(body, policy) for _, body, policy, _ in sides)]
        if number >= 0:
            bare.append(figures[0])
            for (*_, found), figure in zip(sides, figures[1:], strict=True):
                found.append(figure)
    traced = [killed(swallow, BY_TRACE) for _ in range(TRACED)]
    sides.append(("by tracing, in a loop that swallows", swallow, BY_TRACE, traced))
    for part in (0.5, 0.99):
        floor = ("bare SetAsyncExc and join()", of_batches(bare, part))
        for name, _, _, found in sides:
            work = f"kill() {name}, p{round(part * 100)}"
            yield Row(work, "us", of_batches(found, part), floor)


def of_batches(figures: list[float], part: float) -> float:
    """The median of the batches' quantiles, so that one bad moment does not decide."""
    size = len(figures) // BATCHES
    batches = (figures[at * size : (at + 1) * size] for at in range(BATCHES))
    return median(quantile(batch, part) for batch in batches)


def killed(body: Callable[[Callable[[], None]], None], policy: desist.StopPolicy) -> float:
    """Microseconds of a kill(): when it returns, the thread's locks have been released."""
    ready = threading.Event()
    thread = desist.Thread(target=body, args=(ready.set,))
    thread.start()
    ready.wait()
    time.sleep(0.0005)  # the thread is in the code to be killed
    begin = time.perf_counter_ns()
    thread.kill(policy=policy)
    end = time.perf_counter_ns()
    thread.join()
    return (end - begin) / 1e3


class AsyncKill(BaseException):
    """The exception that is raised without desist."""


def killed_by_recipe() -> float:
    """Microseconds until the thread is known to have ended, which only join() tells."""
    ready = threading.Event()

    def target() -> None:
        with suppress(AsyncKill):
            spin(ready.set)

    thread = threading.Thread(target=target)
    thread.start()
    ready.wait()
    time.sleep(0.0005)
    begin = time.perf_counter_ns()
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(AsyncKill)
    )
    thread.join()
    return (time.perf_counter_ns() - begin) / 1e3


# --- nothing armed --------------------------------------------------------------------------------


def benchmark(name: str) -> Any:
    """Import a benchmark of pyperformance."""
    files = distribution("pyperformance").locate_file("pyperformance/data-files/benchmarks")
    path = Path(str(files)) / f"bm_{name}" / "run_benchmark.py"
    spec = importlib.util.spec_from_file_location(f"bm_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def unarmed() -> Iterator[Row]:
    """Code that is not killed, in a task and in a plain thread."""
    nbody, richards = benchmark("nbody"), benchmark("richards")
    for name, work in (
        ("nbody", lambda: nbody.bench_nbody(1, nbody.DEFAULT_REFERENCE, 5_000)),
        ("richards", lambda: richards.Richards().run(1)),
    ):
        ours, theirs = in_turns(
            lambda work=work: in_thread(desist.Thread, work),
            lambda work=work: in_thread(threading.Thread, work),
        )
        plain = ("a plain thread", theirs)
        yield Row(f"{name} in a desist thread, not killed", "ms", ours, plain, 1.01)


def in_turns(*sides: Callable[[], float]) -> list[float]:
    """The medians of interleaved rounds."""
    figures: list[list[float]] = [[] for _ in sides]
    for number in range(-1, 2 * ROUNDS):
        for turn in range(len(sides)):
            at = (number + turn) % len(sides)
            figure = sides[at]()
            if number >= 0:
                figures[at].append(figure)
    return [median(found) for found in figures]


def in_thread(kind: type[threading.Thread], work: Callable[[], object]) -> float:
    """Milliseconds of CPU time of the work in a thread of this class."""
    taken: list[int] = []

    def target() -> None:
        begin = time.thread_time_ns()
        work()
        taken.append(time.thread_time_ns() - begin)

    thread = kind(target=target)
    thread.start()
    thread.join()
    return taken[0] / 1e6


# --- bystanders -----------------------------------------------------------------------------------


def count(pause: Callable[[], object] = int) -> None:
    """Code that several threads run."""
    pause()
    n = 0
    while n < 300_000:
        n += 1


def block(pause: Callable[[], object]) -> None:
    """Code that one thread runs."""
    pause()


def bystanders() -> Iterator[Row]:
    """The work of another thread while one is traced."""
    for name, body in (("the same code", count), ("other code", block)):
        alone, traced = in_turns(
            lambda: in_thread(threading.Thread, count),
            lambda body=body: beside_a_victim(body),
        )
        yield Row(
            f"a thread beside one that is traced, {name}",
            "ms",
            traced,
            ("no thread traced", alone),
        )


def beside_a_victim(body: Callable[[Callable[[], object]], None]) -> float:
    """Milliseconds of CPU time of the work, while a thread in foreign code is on the rung TRACE."""
    over = threading.Lock()
    over.acquire()
    victim = desist.Thread(target=body, args=(over.acquire,))
    victim.start()
    killer = threading.Thread(target=victim.kill, kwargs={"policy": BY_TRACE})
    killer.start()
    time.sleep(0.02)  # the kill has come to that rung
    taken = in_thread(threading.Thread, count)
    over.release()
    victim.join()
    killer.join()
    return taken
