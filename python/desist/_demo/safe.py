"""The workers built with desist: this is how it is meant to be used."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import desist
from desist._demo.job import PAUSE, study
from desist._demo.saboteur import Saboteur
from desist._demo.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from desist._demo.tally import Tally

GLANCE = 0.1
"""Seconds between two looks at the progress."""

EAGER = desist.StopPolicy(cooperative=0.002, at_wait=0.002, async_exc=30.0, defer=30.0)
"""Asks for a moment only, so that many kills climb to the rungs that use force."""

TIRELESS = desist.RetryPolicy(max_attempts=1_000_000)
"""An item that is killed a hundred times here is not a bad item."""


class SafeWorkers:
    """Workers that may be killed at any bytecode."""

    def __init__(self, tally: Tally) -> None:
        """Prepare to work into that tally's store."""
        self.tally = tally
        self.lock = desist.Lock(name="store")
        self.acks: Counter[int | str] = Counter()

    def handle(self, lease: desist.Lease[Path]) -> None:
        """Do one item; if a kill ends it, the item is leased again."""
        desist.sleep(PAUSE)  # a kill ends it at once
        row = study(lease.item)  # a kill ends it between two bytecodes
        with self.lock, lease.commit():  # a kill waits until both are given back
            self.tally.store.add(row)
            self.tally.starts += lease.attempt
            lease.ack(row)
            self.acks[lease.id] += 1

    def run(
        self,
        files: Sequence[Path],
        *,
        every: float,
        seed: int,
        watch: Callable[[Tally], object],
    ) -> None:
        """Work through the files while the saboteur kills.

        Args:
            files: One item each.
            every: Seconds between two kills.
            seed: Decides who is killed.
            watch: Called with the tally several times a second.
        """
        tally = self.tally
        queue: desist.LeaseQueue[Path] = desist.LeaseQueue(retry=TIRELESS)
        pool: desist.WorkerPool[Path, None] = desist.WorkerPool(
            self.handle, workers=tally.workers, queue=queue, policy=EAGER
        )

        def kill(index: int) -> str:
            outcome = pool.kill_worker(index, reason="sabotage").outcome
            return "NONE" if outcome is None else outcome.name

        saboteur = Saboteur(kill, workers=tally.workers, every=every, seed=seed)
        watchdog = Watchdog(patience=30.0)
        tally.kills = saboteur.kills
        started = time.monotonic()
        with pool:
            futures = [pool.submit(file) for file in files]
            with saboteur:
                while not pool.drain(timeout=GLANCE):
                    tally.seconds = time.monotonic() - started
                    watch(tally)
                    if watchdog.stuck(tally.finished):
                        raise TimeoutError("no item was finished for 30 seconds")
            tally.seconds = time.monotonic() - started
            tally.alive = pool.workers_alive()
        tally.unacked = len(files) - queue.counts()["done"]
        tally.acked_twice = sum(self.acks.values()) - len(self.acks)
        tally.escaped = sum(bool(f.done() and f.exception()) for f in futures)
        tally.held = ["store"] if self.lock.locked() else []
        watch(tally)
