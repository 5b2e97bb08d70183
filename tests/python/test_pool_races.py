"""Two calls on a pool that meet at a random instant: 10,000 rounds of each pair.

The sweeps (`test_kill_crossings.py`, `test_resize.py`, `test_begin_sweep.py`) hold one thread at
each line of desist's Python code. These rounds also meet between two instructions of the core. A
round is over when its pool has stopped. Then each item has exactly one end, no item is leased, and
no thread of the pool is left but those that its kills have abandoned.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import RestartPolicy, RetryPolicy, StopPolicy, TaskAborted, TaskCancelled, WorkerPool
from held import PATIENCE
from support import ABANDON, FORCE, HAS_GIL, fork, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from desist import Lease, WorkEvent
    from desist._item_future import ItemFuture

    Pool = WorkerPool[Any, Any]
    Act = Callable[[], object]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

ROUNDS = 10_000
ALIKE = RetryPolicy(max_attempts=10**6, backoff=0)
OFTEN = RestartPolicy(intensity=10**6, max_abandoned=10**6)
LEAD = 1e-5, 3e-3
"""Seconds by which one of the two calls begins before the other, at least and at most."""

kinds = pytest.mark.parametrize("kind", ["memory", "file"])


@pytest.fixture(autouse=True)
def _threads_often_switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Expect reports of abandoned workers, and let any thread run at any time."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Race:
    """One round: a pool, its items and their ends."""

    def __init__(self, rng: random.Random, queue: Any, *, workers: int, policy: Any) -> None:
        self.rng = rng
        self.queue = queue
        self.before = queue.counts()
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.events: list[WorkEvent] = []
        self.futures: list[ItemFuture[int]] = []
        self.pool: Pool = WorkerPool(
            self.handler,
            workers=workers,
            queue=queue,
            policy=policy,
            restart=OFTEN,
            on_event=self.events.append,
        )
        self.outcome: list[str] = []

    def handler(self, lease: Lease[Any]) -> int:
        self.begun.release()
        if lease.item == "deaf":
            self.go_on.wait()
        elif lease.item == "waits":
            desist.sleep_forever()
        elif lease.item == "loops":
            while not self.go_on.is_set():
                pass
        return 1

    def submit(self, item: str) -> ItemFuture[int]:
        future = self.pool.submit(item)
        self.futures.append(future)
        return future

    def meet(self, one: Act, other: Act) -> None:
        """Make the two calls at about the same time; one that comes behind a stop() is refused."""
        least, most = LEAD
        wait = least * (most / least) ** self.rng.random()
        waits = (0.0, wait) if self.rng.random() < 0.8 else (wait, 0.0)
        at_start: list[Act] = []
        failures: list[BaseException] = []

        def begin(act: Act, wait: float) -> None:
            at_start.append(act)
            while len(at_start) < 2:
                pass
            end = time.perf_counter() + wait
            while time.perf_counter() < end:
                pass
            try:
                act()
            except RuntimeError as refusal:
                if "has been stopped" not in str(refusal):
                    failures.append(refusal)
                self.outcome.append("refused")
            except BaseException as failure:  # noqa: BLE001 (the round fails with it)
                failures.append(failure)

        acts = zip((one, other), waits, strict=True)
        threads = [threading.Thread(target=begin, args=act, daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call hangs"
        assert failures == []

    def finish(self) -> None:
        """End the round, and check what is left."""
        pool, queue = self.pool, self.queue
        self.go_on.set()
        pool.stop()
        for thread in pool._roster.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a worker runs on behind stop()"
        assert {worker.state for worker in pool.workers} <= {"stopped", "abandoned"}
        stats = pool.stats()
        assert stats.alive == stats.busy == stats.abandoned == 0
        assert stats.started == stats.done + stats.failed + stats.cancelled + stats.killed
        counts = queue.counts()
        added = {state: counts[state] - self.before[state] for state in counts}
        assert added["leased"] == added["delayed"] == 0
        assert sum(added.values()) == len(self.futures), "each item is in one state"
        ends = Counter(one.item_id for one in self.events if one.kind in ("done", "dead"))
        assert set(ends.values()) <= {1}, "an item has two ends"
        assert len(ends) == added["done"] + added["dead"]
        for future in self.futures:
            failure = future.exception(PATIENCE)
            assert failure is None or isinstance(failure, (TaskCancelled, TaskAborted)), failure
            done = [e for e in self.events if e.item_id == future.item_id and e.kind == "done"]
            assert bool(done) == (failure is None)
        # The next round finds an empty queue.
        while added["ready"] and (lease := queue.lease(0)) is not None:
            lease.ack()


def rounds(
    name: str, kind: str, folder: Path, play: Callable[[random.Random, Any], Race]
) -> Counter[str]:
    """Play the rounds, each with a seed of its own; print their figures, return the outcomes."""
    queue = queue_of(kind, folder, retry=ALIKE)
    outcomes: Counter[str] = Counter()
    begin = time.perf_counter()
    for seed in range(ROUNDS):
        try:
            race = play(random.Random(seed), queue)
            race.finish()
        except BaseException:
            sys.stderr.write(f"{name}, {kind}: round {seed} has failed\n")
            faulthandler.dump_traceback()
            raise
        outcomes[" ".join(sorted(race.outcome))] += 1
    spent = time.perf_counter() - begin
    assert queue.counts()["leased"] == queue.counts()["ready"] == 0
    sys.stdout.write(f"{name}, {kind}: {ROUNDS} rounds in {spent:.0f} s, {dict(outcomes)}\n")
    assert len(outcomes) > 1, "the two calls have always come in the same order"
    return outcomes


# --- stop() ---------------------------------------------------------------------------------------


@kinds
def test_i43_items_that_are_submitted_while_the_pool_stops(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = Race(rng, queue, workers=2, policy=None)

        def submit() -> None:
            for _ in range(30):
                race.submit("returns")

        race.meet(submit, race.pool.stop)
        ends = {future.exception(PATIENCE) is None for future in race.futures}
        race.outcome += ["done" if end else "not done" for end in ends]
        return race

    rounds("submit x stop", kind, tmp_path, play)


@kinds
def test_i35_a_pool_that_is_resized_while_it_stops(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = Race(rng, queue, workers=2, policy=None)
        for _ in range(rng.randrange(3)):
            race.submit("waits")
        race.meet(partial(race.pool.resize, rng.choice([1, 3, 4])), race.pool.stop)
        race.outcome.append(str(len(race.pool._roster.threads)))
        return race

    rounds("resize x stop", kind, tmp_path, play)


# --- kills ----------------------------------------------------------------------------------------

ENDLESS = {"deaf": ABANDON, "loops": FORCE, "waits": StopPolicy(cooperative=0)}
"""Items, and the policy that ends, or abandons, their handler."""


def kills(race: Race) -> list[Act]:
    """The calls that kill the worker's attempt, or its item."""
    [worker], [future] = race.pool.workers, race.futures
    return [
        worker.kill,
        lambda: worker.kill_soon().result(PATIENCE),
        future.kill,
        lambda: race.pool.kill_item(future.item_id),
    ]


def at_work(rng: random.Random, queue: Any) -> Race:
    """A pool whose only worker is at work on an item that does not end."""
    items = list(ENDLESS) if HAS_GIL else ["deaf", "waits"]
    item = rng.choice(items)
    race = Race(rng, queue, workers=1, policy=ENDLESS[item])
    race.submit(item)
    assert race.begun.acquire(timeout=PATIENCE)
    return race


@kinds
def test_i27_two_kills_of_one_worker(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = at_work(rng, queue)
        race.meet(*rng.sample(kills(race), 2))
        stats = race.pool.stats()
        assert (stats.workers, stats.alive) == (1, 1)
        # An abandoned one ends by itself if its handler had not begun.
        assert stats.abandoned <= stats.restarts <= 2
        race.outcome += [f"{stats.restarts} replaced", race.futures[0].state.name]
        return race

    rounds("kill x kill", kind, tmp_path, play)


@kinds
def test_i35_a_kill_of_a_worker_whose_pool_stops(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = at_work(rng, queue)
        race.meet(rng.choice(kills(race)), race.pool.stop)
        stats = race.pool.stats()
        assert (stats.workers, stats.alive) == (1, 0)
        race.outcome.append(f"{stats.restarts} replaced")
        return race

    rounds("kill x stop", kind, tmp_path, play)


@kinds
def test_i31_a_kill_of_a_worker_whose_pool_is_paused(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = at_work(rng, queue)
        pool, [future] = race.pool, race.futures
        race.meet(rng.choice(kills(race)), pool.pause)
        counts, stats = queue.counts(), pool.stats()
        leased = counts["leased"]
        assert stats.alive == 1
        assert stats.busy <= leased
        race.outcome += [f"{leased} leased", f"{stats.restarts} replaced"]
        later = race.submit("returns")
        assert queue.counts()["ready"] == counts["ready"] + 1, "a paused pool has leased an item"
        race.go_on.set()
        if leased:
            future.kill()
        assert not later.done()
        future.cancel()
        pool.resume()
        assert later.result(PATIENCE) == 1
        return race

    rounds("pause x kill", kind, tmp_path, play)


# --- cancel_item() --------------------------------------------------------------------------------


@kinds
def test_i31_an_item_that_is_cancelled_while_it_is_leased(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = Race(rng, queue, workers=1, policy=None)
        race.pool.pause()
        future = race.submit("waits")
        cancelled: list[bool] = []
        race.meet(race.pool.resume, lambda: cancelled.append(race.pool.cancel_item(future.item_id)))
        assert cancelled == [True], "the item has not ended by itself"
        with pytest.raises(TaskCancelled):
            future.result(PATIENCE)
        events = [event.kind for event in race.events]
        race.outcome.append("begun" if "started" in events else "not begun")
        race.outcome.append("leased" if "leased" in events else "not leased")
        return race

    outcomes = rounds("cancel_item", kind, tmp_path, play)
    assert outcomes["begun leased"]
    assert outcomes["not begun not leased"]


# --- fork -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@kinds
def test_i37_a_fork_while_items_are_acknowledged(kind: str, tmp_path: Path) -> None:
    def play(rng: random.Random, queue: Any) -> Race:
        race = Race(rng, queue, workers=1, policy=None)
        race.submit("returns")
        ended: list[int] = []

        def work() -> None:
            race.submit("returns").result(PATIENCE)

        def split() -> None:
            child = fork()
            if child == 0:
                os._exit(in_the_child(race))
            _, status = os.waitpid(child, 0)
            ended.append(os.waitstatus_to_exitcode(status))

        race.meet(work, split)
        [code] = ended
        assert 0 <= code < BROKEN, f"the child has ended with {code}"
        race.outcome.append(f"{code} lost")
        return race

    rounds("fork x ack", kind, tmp_path, play)


BROKEN = 100


def in_the_child(race: Race) -> int:
    """Use everything; returns how many items of the parent are lost here."""
    faulthandler.dump_traceback_later(PATIENCE / 2, exit=True)
    lost = 0
    try:
        for future in race.futures:
            failure = future.exception(PATIENCE)
            if failure is not None:
                assert isinstance(failure, TaskAborted)
                assert failure.cause.kind.name == "FORKED"
                lost += 1
        with pytest.raises(RuntimeError, match="parent process"):
            race.pool.submit("refused")
        queue: desist.LeaseQueue[int] = desist.LeaseQueue()
        queue.put(1)
        lease = queue.lease(0)
        assert lease is not None
        lease.ack()
    except BaseException as failure:  # noqa: BLE001 (the parent is told)
        os.write(2, f"in the child: {failure!r}\n".encode())
        return BROKEN
    return lost
