"""Many at once: pending timeouts, and sleeping threads."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from table import Row

import desist

TIMEOUTS = 100_000
ROUNDS = 5
SLEEPERS = 1_000
WATCHED = 1.0  # second


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    figures = [(asyncio.run(handles()), sources()) for _ in range(ROUNDS)]
    for at, part in enumerate(("create and cancel", "create", "cancel")):
        theirs, ours = (median(figure[side][at] for figure in figures) for side in (0, 1))
        target = 1.0 if at == 0 else None
        work = f"{TIMEOUTS:,} pending timeouts: {part} one"
        yield Row(work, "ns", ours, ("asyncio call_later", theirs), target)
    yield Row(f"{TIMEOUTS:,} pending timeouts: memory", "B", memory(), ("300 bytes", 300), 1.0)
    yield Row(f"{SLEEPERS:,} threads in sleep(): CPU", "ms/s", sleeping(), ("1 ms/s", 1), 1.0)


async def handles() -> tuple[float, float, float]:
    """Nanoseconds for each timeout of asyncio."""
    loop = asyncio.get_running_loop()
    gc.collect()
    start = time.process_time_ns()
    pending = [loop.call_later(3600, int) for _ in range(TIMEOUTS)]
    created = time.process_time_ns()
    for handle in pending:
        handle.cancel()
    return each(start, created)


def sources() -> tuple[float, float, float]:
    """Nanoseconds for each timeout of desist."""
    gc.collect()
    start = time.process_time_ns()
    pending = [desist.CancelSource(timeout=3600) for _ in range(TIMEOUTS)]
    created = time.process_time_ns()
    for source in pending:
        source.cancel()
    return each(start, created)


def each(start: int, created: int) -> tuple[float, float, float]:
    """Split the time for one timeout: both steps together, then each."""
    end = time.process_time_ns()
    return tuple(part / TIMEOUTS for part in (end - start, created - start, end - created))  # type: ignore[return-value]


def memory() -> float:
    """Bytes for each timeout in a fresh process, allocator overhead included."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import crowds; print(crowds.taken())"
    return float(subprocess.check_output([sys.executable, "-c", code]))  # noqa: S603 (our own)


def taken() -> float:
    """Bytes for each timeout in this process."""
    before = resident()
    pending = [desist.CancelSource(timeout=3600) for _ in range(TIMEOUTS)]
    return (resident() - before) / len(pending)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sleeping() -> float:
    """Milliseconds of CPU time per second of the process while its threads sleep."""
    scope = desist.CancelSource()

    def sleep() -> None:
        scope.token.wait(3600)

    threads = [threading.Thread(target=sleep) for _ in range(SLEEPERS)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)  # all threads are asleep then
    before = time.process_time()
    time.sleep(WATCHED)
    taken = (time.process_time() - before) / WATCHED * 1e3
    scope.cancel()
    for thread in threads:
        thread.join()
    return taken
