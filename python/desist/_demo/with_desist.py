"""The workers built with desist: how the library is meant to be used."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import desist
from desist._demo.measure import RandomKills, Watchdog
from desist._demo.work import PAUSE, study

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from desist._demo.measure import RunStats

REFRESH = 0.1
"""Seconds between two updates of the progress."""

POLICY = desist.StopPolicy(cooperative=0.002, at_wait=0.002, async_exc=30.0, defer=30.0)
"""Short times for the gentle rungs, so that many kills reach those that use force."""

RETRY = desist.RetryPolicy(max_attempts=1_000_000)
"""No limit in practice: an item whose worker was killed a hundred times is not at fault."""


class DesistWorkers:
    """A WorkerPool whose workers may be killed at any bytecode."""

    def __init__(self, stats: RunStats) -> None:
        """Prepare to write into the store of `stats`."""
        self.stats = stats
        self.lock = desist.Lock(name="store")
        self.acks: Counter[int | str] = Counter()

    def handle(self, lease: desist.Lease[Path]) -> None:
        """Work on one item; if a kill ends it, the item is leased again."""
        desist.sleep(PAUSE)  # a kill ends the wait
        row = study(lease.item)  # a kill is raised between two bytecodes
        with self.lock, lease.commit():  # a kill waits for the end of the block
            self.stats.store.add(row)
            self.stats.starts += lease.attempt
            lease.ack(row)
            self.acks[lease.id] += 1

    def run(
        self,
        files: Sequence[Path],
        *,
        every: float,
        seed: int,
        watch: Callable[[RunStats], object],
    ) -> None:
        """Work through the files while random workers are killed.

        Args:
            files: One item each.
            every: Seconds between two kills.
            seed: Decides which workers are killed.
            watch: Called with the stats several times a second.
        """
        stats = self.stats
        queue: desist.LeaseQueue[Path] = desist.LeaseQueue(retry=RETRY)
        pool: desist.WorkerPool[Path, None] = desist.WorkerPool(
            self.handle, workers=stats.workers, queue=queue, policy=POLICY
        )

        def kill(index: int) -> str:
            outcome = pool.workers[index].kill("the demo kills at random").outcome
            return "NONE" if outcome is None else outcome.name

        kills = RandomKills(kill, workers=stats.workers, every=every, seed=seed)
        watchdog = Watchdog(patience=30.0)
        stats.kills = kills.outcomes
        started = time.monotonic()
        with pool:
            futures = [pool.submit(file) for file in files]
            with kills:
                while not pool.drain(timeout=REFRESH):
                    stats.seconds = time.monotonic() - started
                    watch(stats)
                    if watchdog.stuck(stats.finished):
                        raise TimeoutError("no item was finished for 30 seconds")
            stats.seconds = time.monotonic() - started
            stats.alive = pool.workers_alive()
        stats.unacked = len(files) - queue.counts()["done"]
        stats.acked_twice = sum(self.acks.values()) - len(self.acks)
        stats.escaped = sum(bool(f.done() and f.exception()) for f in futures)
        stats.locks_held = ["store"] if self.lock.locked() else []
        watch(stats)
