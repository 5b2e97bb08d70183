"""The test of cut networks: pools lose the way to their server at random, and no item is lost."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import desist
from desist import RetryPolicy, WorkerPool
from desist.engines import open_queue
from engine_model import counts
from network import network
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desist import Lease
    from servers import Server

WORKERS = 4


def survive_cuts(
    server: Server, url: str, *, items: int, seconds: Sequence[float], lease_timeout: float
) -> None:
    """I48: the network is cut for so long, one time after the other, in the midst of the work.

    Every second time all connections stay silent afterwards; each third time the server is
    restarted meanwhile, or else works on, and may have done what it was asked for.
    """
    rng, lock = random.Random(48), threading.Lock()
    done: list[int] = []
    working = threading.Semaphore(0)

    def handler(lease: Lease[int]) -> None:
        working.release()
        desist.sleep(0.002)
        with lock:
            done.append(lease.item)

    with network(server.port) as way:
        way_to_it = url.replace(f":{server.port}/", f":{way.port}/")
        retry = RetryPolicy(max_attempts=1000, backoff=0)
        with open_queue(f"{way_to_it}&lease_timeout={lease_timeout}", retry=retry) as queue:
            for item in range(items):
                queue.put(item)
            with WorkerPool(handler, queue=queue, workers=WORKERS) as pool:
                for number, cut in enumerate(seconds):
                    for _ in range(rng.randrange(WORKERS, items // len(seconds))):
                        working.acquire(timeout=1)  # there may be less to do
                    way.cut()
                    if number % 3 == 2:
                        server.stop(signal.SIGINT)
                    time.sleep(cut)  # the time for which it is cut
                    if number % 3 == 2:
                        server.start()
                    way.heal(forget=number % 2 == 1)
                assert pool.drain(NEVER)
            assert queue.counts() == counts(done=items)
    assert set(done) == set(range(items))
    # Besides those that were acknowledged, each worker had one item at each cut.
    assert len(done) <= items + WORKERS * len(seconds)
