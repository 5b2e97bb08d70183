"""Kills of one worker that cross each other, or the end of its pool, at every line of the two.

One of the threads is held at one line of desist's code, until the other has done all that it can.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from desist import LeaseQueue, PoolExhausted, RestartPolicy, StopPolicy, WorkerPool
from held import PATIENCE, STUCK, Hold
from support import ABANDON, Deaf

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist._item_future import ItemFuture
    from desist._worker import Worker

NO_LIMIT = RestartPolicy(intensity=10**6, max_abandoned=10**6)


@pytest.fixture(autouse=True)
def _abandoned_workers_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


class Subject(NamedTuple):
    """A pool whose only worker is at work, and cannot be ended."""

    pool: WorkerPool[int, None]
    worker: Worker
    future: ItemFuture[None]
    deaf: Deaf


def subject(policy: StopPolicy) -> Subject:
    deaf = Deaf()
    pool = WorkerPool(deaf, workers=1, queue=LeaseQueue(), policy=policy, restart=NO_LIMIT)
    future = pool.submit(1)
    deaf.begun.acquire()
    return Subject(pool, pool.workers[0], future, deaf)


def kill(at: Subject) -> None:
    at.worker.kill()


def kill_soon(at: Subject) -> None:
    at.worker.kill_soon().exception(PATIENCE)


def kill_the_item(at: Subject) -> None:
    at.future.kill()


def stop(at: Subject) -> None:
    at.pool.stop()


def threads_of(pool: WorkerPool[int, None]) -> list[threading.Thread]:
    return [thread for thread in pool._roster.threads if thread.is_alive()]


def cross(number: int, held: Callable[[Subject], None], other: Callable[[Subject], None]) -> bool:
    """Let the two meet at one line of the first; False: there is no such line."""
    at = subject(ABANDON)
    hold = Hold(number)
    refusals: list[str] = []

    def act(which: Callable[[Subject], None]) -> None:
        try:
            which(at)
        except RuntimeError as refused:  # the pool was stopped first
            refusals.append(str(refused))

    first = hold.run(lambda: act(held))
    met = hold.news.get(timeout=PATIENCE) == "held"
    second = threading.Thread(target=lambda: act(other))
    second.start()
    second.join(STUCK)
    hold.go_on.set()
    for thread in (first, second):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    check(at, {held, other}, refusals)
    return met


def check(at: Subject, acts: set[Callable[[Subject], None]], refusals: list[str]) -> None:
    pool, worker = at.pool, at.worker
    stats = pool.stats()
    assert worker.state == "abandoned"
    if stop in acts:
        assert all("has been stopped" in refusal for refusal in refusals)
        assert stats.restarts <= 1
        # The worker in its place may have got the item, and then stop() has abandoned it.
        assert stats.abandoned == 1 + (stats.restarts and pool.workers[0].state == "abandoned")
        abandoned = {one._thread for one in (worker, *pool.workers) if one.state == "abandoned"}
        for thread in set(threads_of(pool)) - abandoned:
            thread.join(PATIENCE)
        assert set(threads_of(pool)) == abandoned, "a worker runs on behind stop()"
    else:
        assert refusals == []
        assert (stats.workers, stats.alive) == (1, 1)
        assert pool.workers[0] is not worker
        # The kill of the item may find it with the worker in the other one's place.
        assert stats.restarts == stats.abandoned in ({1, 2} if kill_the_item in acts else {1})
        assert len(threads_of(pool)) == stats.abandoned + 1
    at.deaf.go_on.set()
    pool.stop()
    for thread in threads_of(pool):
        thread.join(PATIENCE)
    assert pool.queue.counts()["leased"] == 0


@pytest.mark.parametrize(
    ("held", "other"),
    [
        (kill, kill),
        (kill, kill_soon),
        (kill_soon, kill),
        (kill, kill_the_item),
        (kill_the_item, kill),
        (kill, stop),
        (stop, kill),
    ],
    ids=lambda act: act.__name__,
)
def test_i27_a_worker_that_is_killed_twice_is_replaced_once(
    held: Callable[[Subject], None], other: Callable[[Subject], None]
) -> None:
    number = 1
    while cross(number, held, other):
        number += 1
    assert number > 10


def test_i27_many_kills_of_one_worker_replace_it_once() -> None:
    at = subject(StopPolicy(cooperative=0, at_wait=0.01, async_exc=0.01, trace=0.01))
    killers = [threading.Thread(target=at.worker.kill) for _ in range(8)]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()
    at.deaf.begun.acquire()  # the worker in its place has the item
    stats = at.pool.stats()
    assert (stats.alive, stats.restarts, stats.abandoned) == (1, 1, 1)
    assert len(threads_of(at.pool)) == 2
    at.deaf.go_on.set()
    at.pool.stop()


def test_i36_a_pool_whose_worker_cannot_be_replaced_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = subject(ABANDON)

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(PoolExhausted, match="no worker could be started in its place: can't"):
            at.pool.workers[0].kill()
    with pytest.raises(PoolExhausted):
        at.pool.drain()
    at.deaf.go_on.set()
    at.pool.stop()
