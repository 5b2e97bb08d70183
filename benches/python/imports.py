"""The CPU time of imports: that of a fresh process, less that of bare Python."""

import os
import sys
from collections.abc import Iterator
from statistics import median

from table import Row

ROUNDS = 25
IMPORTS = {
    "nothing": "pass",
    "stdlib": "import threading, queue, concurrent.futures",
    "desist": "import desist",
    "anyio": "import anyio",
    "cantok": "import cantok",
    "asyncio": "import asyncio",
    "trio": "import trio",
}


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    figures: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(-1, ROUNDS):
        for name, code in IMPORTS.items():
            taken = cpu_time(code)
            if number >= 0:
                figures[name].append(taken)
    medians = {name: median(taken) for name, taken in figures.items()}
    bare = medians.pop("nothing")
    net = {name: (taken - bare) * 1e3 for name, taken in medians.items()}
    floor = ("threading, queue, futures", net.pop("stdlib"))
    yield Row("import desist", "ms", net.pop("desist"), floor, 1.5, net)


def cpu_time(code: str) -> float:
    """Seconds of CPU time of a fresh Python that runs this code."""
    child = os.posix_spawn(sys.executable, [sys.executable, "-I", "-c", code], os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        message = f"{code!r} failed"
        raise RuntimeError(message)
    return usage.ru_utime + usage.ru_stime
