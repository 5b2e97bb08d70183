"""The whole life of items on a server, one of whose connections fails once, at any message."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest

from desist import RetryPolicy, WorkerPool
from desist.engines import open_queue
from engine_model import counts
from network import FailingOnce, forwarding
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease
    from servers import Server

T = TypeVar("T")

WORKERS = 4
LIVES = pytest.mark.parametrize(
    ("items", "step"),
    [
        (2, 3),
        pytest.param(4, 1, marks=pytest.mark.soak),
        pytest.param(200, 40, marks=pytest.mark.soak),
    ],
    ids=["some", "all", "many"],
)
"""The items of each life, and by how many messages the failure moves from one life to the next."""
AT_ONCE = 8
"""So many lives are led side by side: most of their time they wait."""


def survive_resets(
    server: Server, url: str, fault: str, *, items: int, lease_timeout: float, step: int
) -> int:
    """I48: a connection fails once in each life, at every `step`-th message; returns how many."""

    def fails_at(number: int) -> bool:
        with forwarding(FailingOnce(server.port, fault, number)) as way:
            there = url.replace(f":{server.port}/", f":{way.port}/")
            live(f"{there}of{number}&lease_timeout={lease_timeout}", items)
            return way.left <= 0

    lives, numbers = 0, itertools.count(1, step)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while True:
            failed = list(threads.map(fails_at, itertools.islice(numbers, AT_ONCE)))
            lives += sum(failed)
            if not all(failed):
                return lives


def live(url: str, items: int) -> None:
    """Have one half of the items worked on, then the other, on the connections that are there."""
    told: list[ConnectionError] = []
    runs: list[int] = []

    def handler(lease: Lease[int]) -> int:
        runs.append(lease.item)
        lease.heartbeat(lease.attempt)
        if lease.item % 3 == 0 and lease.attempt == 1:
            raise ValueError(lease.item)
        return lease.item

    def until_answered(call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except ConnectionError as failure:  # noqa: PERF203
                told.append(failure)

    retry = RetryPolicy(max_attempts=1000, backoff=0)
    with (
        open_queue(url, retry=retry) as queue,
        WorkerPool(handler, queue=queue, workers=WORKERS) as pool,
    ):
        for half in (range(items // 2), range(items // 2, items)):
            pool.pause()  # no item is done before all are there, so each key is of one item
            submits = [partial(pool.submit, item, key=str(item)) for item in half]
            futures = [until_answered(submit) for submit in submits]
            pool.resume()
            assert [future.result(NEVER) for future in futures] == list(half)
            assert pool.drain(NEVER)
            assert until_answered(queue.counts) == counts(done=half.stop)
    assert len(told) <= 1, told
    assert set(runs) == set(range(items))
