"""Items from producers to consumers: nanoseconds of wall time for each."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import aiologic
import culsans
from table import Row

import desist

End = Callable[[Any, int], None]

ITEMS = 60_000
ROUNDS = 7


class Aiologic:
    """The queue of aiologic, by the names of the other queues."""

    def __init__(self) -> None:
        items = aiologic.SimpleQueue()
        self.put, self.get = items.green_put, items.green_get


MAKERS: dict[str, Callable[[], Any]] = {
    "queue.Queue": queue.Queue,
    "queue.SimpleQueue": queue.SimpleQueue,
    "desist.Queue": desist.Queue,
    "desist.SimpleQueue": desist.SimpleQueue,
    "culsans": lambda: culsans.Queue().sync_q,
    "aiologic": Aiologic,
}


def rows() -> Iterator[Row]:
    """Yield the rows of this subject."""
    for pairs in (1, 4):
        figures: dict[str, list[float]] = {name: [] for name in MAKERS}
        names = list(MAKERS)
        code = {name: ends() for name in names}
        for number in range(ROUNDS):
            for turn in range(len(names)):
                name = names[(number + turn) % len(names)]
                slow = name not in ("queue.SimpleQueue", "desist.Queue", "desist.SimpleQueue")
                items = ITEMS // 10 if slow else ITEMS
                figures[name].append(pass_on(MAKERS[name](), code[name], pairs, items // pairs))
        medians = {name: median(taken) for name, taken in figures.items()}
        ours, simple = medians.pop("desist.Queue"), medians.pop("desist.SimpleQueue")
        theirs = medians.pop("queue.Queue")
        work = f"Queue: put, get, {pairs} to {pairs}"
        yield Row(work, "ns", ours, ("queue.Queue", theirs), 1 / 3)
        floor = medians.pop("queue.SimpleQueue")
        work = f"Queue: put, get, {pairs} to {pairs}"
        peers = {"desist.SimpleQueue": simple, **medians}
        yield Row(work, "ns", ours, ("queue.SimpleQueue", floor), 1, peers)


# CPython specialises code for the class that it calls, so each class has a copy of its own.
ENDS = """
def produce(items, count):
    for item in range(count):
        items.put(item)

def consume(items, count):
    for _ in range(count):
        items.get()
"""


def ends() -> tuple[End, End]:
    """Compile a producer and a consumer of a given number of items."""
    names: dict[str, End] = {}
    exec(ENDS, names)  # type: ignore[arg-type]  # noqa: S102 (as timeit does)
    return names["produce"], names["consume"]


def pass_on(items: Any, both: tuple[End, End], pairs: int, count: int) -> float:
    """Run `pairs` producers and as many consumers, of `count` items each."""
    threads = [threading.Thread(target=end, args=(items, count)) for end in both * pairs]
    start = time.perf_counter_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - start) / (count * pairs)
