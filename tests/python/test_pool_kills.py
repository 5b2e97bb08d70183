"""Handlers that hang in any way cost their pool neither items nor workers."""

from __future__ import annotations

import math
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

import desist
from desist import FileQueue, LeaseQueue, RestartPolicy, RetryPolicy, StopPolicy, WorkerPool
from support import DeafEvent, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist import Lease

POLICY = StopPolicy(cooperative=0, at_wait=0.01, async_exc=0.03, trace=0.1)
RETRY = RetryPolicy(max_attempts=3, backoff=0)
NO_LIMIT = RestartPolicy(intensity=10**6, max_abandoned=10**6)


class Hangs:
    """Ways to hang, until the end of the test."""

    def __init__(self) -> None:
        self.over = DeafEvent()
        self.reading, self.writing = os.pipe()
        self.ways: dict[str, Callable[[], object]] = {
            "in a desist wait": desist.sleep_forever,
            "in a shielded one": self.shielded,
            "in time.sleep": self.sleep,
            "in a swallowing loop": self.swallow,
            "in C": lambda: os.read(self.reading, 1),
            "in a lock of threading": self.over.wait,
        }

    def shielded(self) -> None:
        with desist.shield(math.inf):
            desist.sleep_forever()

    def sleep(self) -> None:
        while not self.over.is_set():
            time.sleep(0.01)

    def swallow(self) -> None:
        while not self.over.is_set():
            try:
                while not self.over.is_set():
                    pass
            except BaseException:  # noqa: BLE001, PERF203 (that is the point)
                pass

    def end(self) -> None:
        self.over.set()
        os.close(self.writing)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_i28_i30_a_pool_keeps_its_workers_and_items_when_handlers_hang(
    kind: str, tmp_path: Path
) -> None:
    queue: LeaseQueue[tuple[str, bool]] | FileQueue[tuple[str, bool]] = queue_of(
        kind, tmp_path, retry=RETRY
    )
    hangs = Hangs()

    def handler(lease: Lease[tuple[str, bool]]) -> None:
        way, always = lease.item
        if always or lease.attempt < 3:
            hangs.ways[way]()

    rng = random.Random(0)
    pool = WorkerPool(handler, workers=4, queue=queue, policy=POLICY, restart=NO_LIMIT)
    items = [(way, always) for way in hangs.ways for always in (False, True)]
    futures = {item: pool.submit(item) for item in items}
    while not pool.drain(0.001):
        pool.workers[rng.randrange(4)].kill("it hangs")
    assert pool.workers_alive() == 4
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 6, "dead": 6}
    for item, future in futures.items():
        assert future.exception() is None or item[1]
    for _, dead, why in queue.dead():
        assert dead[1]
        assert len(why) == 3
        assert all("it hangs" in str(cause) for cause in why)
    hangs.end()
    pool.stop()
    stats = pool.stats()
    assert (stats.started, stats.killed + stats.cancelled) == (36, 30)
    assert (stats.done, stats.dead, stats.busy) == (6, 6, 0)
