"""How a figure is measured.

The sides take turns in small rounds, and the median of each side's rounds counts, so that other
load on the machine affects all of them alike. Only CPU time of this process counts, that of the
threads it starts included. The garbage collector is on, as in a program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from statistics import median
from time import process_time_ns
from typing import Any

import trio

import desist

Side = Callable[[int], float]
"""Does its work `count` times, and returns the nanoseconds that this took."""

ROUNDS = 61
ROUND_TAKES = 1e6  # nanoseconds; long enough for the cost of the clock not to matter

TEMPLATE = """
{kind} run(times):
    {prepare}
    for count in (5, times):
        start = process_time_ns()
        for _ in repeat(None, count):
            {work}
        taken = process_time_ns() - start
    return taken
"""


def plain(work: str, prepare: str = "pass") -> Side:
    """Make a side of ordinary code."""
    run: Side = compiled("def", work, prepare)
    return run


def in_asyncio(work: str, prepare: str = "pass") -> Side:
    """Make a side that runs inside an event loop of asyncio."""
    run = compiled("async def", work, prepare)
    return lambda count: asyncio.run(run(count))


def in_trio(work: str, prepare: str = "import trio") -> Side:
    """Make a side that runs inside trio."""
    run = compiled("async def", work, prepare)
    return lambda count: trio.run(run, count)


def in_block(side: Side) -> Side:
    """Run the side inside a block with a deadline."""

    def run(count: int) -> float:
        with desist.cancel_scope(timeout=3600):
            return side(count)

    return run


def in_task(side: Side) -> Side:
    """Run the side in a desist thread, which can be killed."""

    def run(count: int) -> float:
        taken: list[float] = []
        thread = desist.Thread(target=lambda: taken.append(side(count)))
        thread.start()
        thread.join()
        return taken[0]

    return run


def compiled(kind: str, work: str, prepare: str) -> Any:
    """Compile a function that measures `work`."""
    names: dict[str, Any] = {"process_time_ns": process_time_ns, "repeat": repeat}
    exec(TEMPLATE.format(kind=kind, work=work, prepare=prepare), names)  # noqa: S102 (as timeit does)
    return names["run"]


def each(sides: Sequence[Side]) -> list[float]:
    """Nanoseconds of one run of each side's work, without the loop around it."""
    all_sides = [plain("pass"), *sides]
    counts = [enough(side) for side in all_sides]
    figures: list[list[float]] = [[] for _ in all_sides]
    for number in range(ROUNDS):
        for turn in range(len(all_sides)):
            at = (number + turn) % len(all_sides)
            figures[at].append(all_sides[at](counts[at]) / counts[at])
    loop, *rest = map(median, figures)
    return [figure - loop for figure in rest]


def enough(side: Side) -> int:
    """The number of runs of the work in a round."""
    count = 10
    while (taken := side(count)) < ROUND_TAKES / 5:
        count *= 3
    return max(1, int(count * ROUND_TAKES / taken))


def quantile(figures: Iterable[float], part: float) -> float:
    """The figure below which this part of the figures lies."""
    ordered = sorted(figures)
    return ordered[round((len(ordered) - 1) * part)]
