"""A running pool is paused, resumed, and given more or fewer workers."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    LeaseQueue,
    RestartPolicy,
    RetryPolicy,
    TaskCancelled,
    WorkerPool,
)
from held import PATIENCE, STUCK, Hold
from support import ABANDON, NEVER, DeafEvent, Victim, queue_of, until_asleep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist import Lease

    Opened = Callable[[], Any]

RETRY = RetryPolicy(max_attempts=1000, backoff=0)
OFTEN = RestartPolicy(intensity=1000, max_abandoned=1000)


@pytest.fixture(params=["memory", "file"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens an empty queue."""
    return partial(queue_of, request.param, tmp_path, retry=RETRY)


class Gate:
    """A handler that reports its begin, and goes on when the test lets it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = DeafEvent()

    def __call__(self, lease: Lease[int]) -> int:
        self.begun.release()
        self.go_on.wait()
        return lease.item


def until(met: Callable[[], bool]) -> None:
    while not met():
        threading.Event().wait(0.001)  # there is no notification


# --- pause() and resume() -------------------------------------------------------------------------


def test_a_paused_pool_leases_nothing_until_it_is_resumed(opened: Opened) -> None:
    queue = opened()
    with WorkerPool[int, Any](lambda lease: lease.item, workers=3, queue=queue) as pool:
        assert pool.submit(1).result() == 1
        pool.pause()
        pool.pause()
        futures = [pool.submit(item) for item in range(20)]
        assert queue.counts()["ready"] == 20
        assert not any(future.done() for future in futures)
        assert pool.stats().started == 1
        pool.resume()
        assert [future.result() for future in futures] == list(range(20))
        pool.resume()
        assert queue.items() == []


def test_when_pause_has_returned_no_handler_begins(opened: Opened) -> None:
    queue = opened()
    paused = False
    late: list[int] = []

    def handler(lease: Lease[int]) -> None:
        if paused:
            late.append(lease.item)

    with WorkerPool(handler, workers=4, queue=queue) as pool:
        for turn in range(50):
            queue.put(turn)
            pool.pause()
            while queue.counts()["leased"]:
                desist.checkpoint()
            paused = True
            queue.put(turn)
            desist.checkpoint()
            paused = False
            pool.resume()
        pool.drain()
    assert late == []


def test_a_paused_worker_ends_the_item_that_it_works_on() -> None:
    gate = Gate()
    with WorkerPool(gate, workers=1) as pool:
        future = pool.submit(1)
        assert gate.begun.acquire(timeout=PATIENCE)
        pool.pause()
        other = pool.submit(2)
        gate.go_on.set()
        assert future.result() == 1
        assert pool.queue.counts()["ready"] == 1
        pool.resume()
        assert other.result() == 2


def test_a_paused_pool_can_be_stopped() -> None:
    pool: WorkerPool[int, Any] = WorkerPool(lambda lease: lease.item, workers=2)
    pool.pause()
    future = pool.submit(1)
    pool.stop()
    with pytest.raises(TaskCancelled):
        future.result()
    assert [worker.state for worker in pool.workers] == ["stopped", "stopped"]
    for change in (pool.pause, pool.resume, lambda: pool.resize(1)):
        with pytest.raises(RuntimeError, match="has been stopped"):
            change()


def test_a_drain_does_not_wait_for_a_paused_pool(opened: Opened) -> None:
    queue = opened()
    with WorkerPool[int, Any](lambda lease: lease.item, queue=queue) as pool:
        pool.pause()
        assert pool.drain()
        pool.submit(1)
        with pytest.raises(RuntimeError, match="the pool is paused"):
            pool.drain()
        assert not pool.drain(0.01)
        pool.resume()
        assert pool.drain()


def test_a_pause_ends_a_drain_that_waits() -> None:
    gate = Gate()
    with WorkerPool(gate, workers=1) as pool:
        pool.submit(1)

        def drain(ready: Callable[[], None]) -> None:
            ready()
            pool.drain()

        with Victim(drain) as victim:
            until_asleep(victim)
            pool.pause()
        assert isinstance(victim.raised, RuntimeError)
        gate.go_on.set()
        pool.resume()


def test_the_end_of_the_block_of_a_paused_pool_with_work_raises() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    pool: WorkerPool[int, Any] = WorkerPool(lambda lease: lease.item, queue=queue)
    pool.pause()
    pool.submit(1)
    with pytest.raises(RuntimeError, match="the pool is paused"), pool:
        pass
    assert queue.counts()["ready"] == 1
    assert {worker.state for worker in pool.workers} == {"stopped"}


def test_a_handler_may_pause_its_own_pool() -> None:
    def handler(lease: Lease[int]) -> int:
        pool.pause()
        return lease.item

    with WorkerPool(handler, workers=2) as pool:
        assert pool.submit(1).result() == 1
        future = pool.submit(2)
        assert pool.queue.counts()["ready"] == 1
        pool.resume()
        assert future.result() == 2
        pool.resume()


def test_i15_a_pause_in_a_cancelled_scope_changes_nothing() -> None:
    with WorkerPool[int, Any](lambda lease: lease.item) as pool:
        with desist.move_on_after(0):
            pool.pause()
        with desist.move_on_after(0):
            pool.resize(7)
        assert pool.submit(1).result() == 1
        assert len(pool.workers) == 4


def test_pools_of_one_queue_are_paused_alone() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    with (
        WorkerPool(lambda _: "one", queue=queue) as one,
        WorkerPool(lambda _: "other", queue=queue) as other,
    ):
        one.pause()
        assert [other.submit(item).result() for item in range(20)] == ["other"] * 20
        assert one.stats().started == 0


# --- resize() -------------------------------------------------------------------------------------


def test_a_pool_grows() -> None:
    gate = Gate()
    with WorkerPool(gate, workers=1) as pool:
        futures = [pool.submit(item) for item in range(3)]
        pool.resize(3)
        for _ in range(3):
            assert gate.begun.acquire(timeout=PATIENCE)
        assert [worker.name for worker in pool.workers] == [
            f"desist-worker-{number}" for number in range(3)
        ]
        assert pool.stats().workers == 3
        gate.go_on.set()
        assert [future.result() for future in futures] == [0, 1, 2]


def test_idle_workers_leave_first_and_a_busy_one_after_its_item() -> None:
    gate = Gate()
    with WorkerPool(gate, workers=3) as pool:
        futures = [pool.submit(item) for item in range(2)]
        for _ in range(2):
            assert gate.begun.acquire(timeout=PATIENCE)
        pool.resize(1)
        until(lambda: len(pool.workers) == 2)
        assert [worker.state for worker in pool.workers] == ["busy", "busy"]
        gate.go_on.set()
        assert [future.result() for future in futures] == [0, 1]
        until(lambda: len(pool.workers) == 1)
        assert pool.submit(7).result() == 7
        assert pool.stats().restarts == 0


def test_an_item_that_a_leaving_worker_works_on_can_be_cancelled_and_killed() -> None:
    with WorkerPool[int, Any](lambda _: desist.sleep_forever(), workers=2) as pool:
        futures = [pool.submit(item) for item in range(2)]
        until(lambda: pool.stats().busy == 2)
        pool.resize(1)
        for future in futures:
            future.kill()
            assert future.state is desist.TaskState.CANCELLED
        until(lambda: len(pool.workers) == 1)


def test_a_pool_grows_again_while_workers_leave_it() -> None:
    gate = Gate()
    with WorkerPool(gate, workers=2) as pool:
        futures = [pool.submit(item) for item in range(2)]
        for _ in range(2):
            assert gate.begun.acquire(timeout=PATIENCE)
        pool.resize(1)
        pool.resize(3)
        names = [worker.name for worker in pool.workers]
        assert len(names) == len(set(names)) == 4
        gate.go_on.set()
        assert [future.result() for future in futures] == [0, 1]
        until(lambda: len(pool.workers) == 3)


def test_new_workers_of_a_paused_pool_are_paused() -> None:
    with WorkerPool[int, Any](lambda lease: lease.item, workers=1) as pool:
        pool.pause()
        pool.resize(4)
        futures = [pool.submit(item) for item in range(10)]
        pool.resize(2)
        until(lambda: len(pool.workers) == 2)
        assert pool.queue.counts()["ready"] == 10
        pool.resume()
        assert [future.result() for future in futures] == list(range(10))


def test_a_leaving_worker_that_is_abandoned_is_not_replaced() -> None:
    gate = Gate()
    with WorkerPool(gate, workers=2, restart=OFTEN) as pool:
        pool.submit(0)
        pool.submit(1)
        for _ in range(2):
            assert gate.begun.acquire(timeout=PATIENCE)
        pool.resize(1)
        [leaving] = [worker for worker in pool.workers if worker._seat.retired]
        leaving.kill(policy=ABANDON)
        assert len(pool.workers) == 1
        assert leaving not in pool.workers
        gate.go_on.set()


@pytest.mark.parametrize("count", [0, -1])
def test_a_pool_has_one_worker_at_least(count: int) -> None:
    with WorkerPool[int, Any](lambda lease: lease.item) as pool:
        with pytest.raises(ValueError, match=f"workers must be at least 1, not {count}"):
            pool.resize(count)
        assert len(pool.workers) == 4


def test_processes_come_and_go_with_the_workers() -> None:
    import process_handlers as handlers

    queue: LeaseQueue[int] = LeaseQueue()
    with WorkerPool(handlers.double, workers=1, queue=queue, isolation="process") as pool:
        pool.resize(2)
        assert len(pool._roster.children) == 2
        pool.resize(1)
        until(lambda: len(pool._roster.children) == 1)
        assert pool.submit(4).result() == 8


# --- two at once, at every line -------------------------------------------------------------------


def kill(pool: WorkerPool[int, int]) -> None:
    """Abandon the workers that are busy now."""
    for worker in pool.workers:
        worker.kill(policy=ABANDON)


ACTS: dict[str, Callable[[WorkerPool[int, int]], object]] = {
    "pause": lambda pool: pool.pause(),
    "grow": lambda pool: pool.resize(4),
    "shrink": lambda pool: pool.resize(1),
    "kill": kill,
    "stop": lambda pool: pool.stop(),
}


def meet(first: str, second: str, number: int) -> bool:
    """Let two calls meet at one line of the first; False: it has fewer lines."""
    before = threading.active_count()
    gate = Gate()
    queue: LeaseQueue[int] = LeaseQueue(retry=RETRY)
    pool: WorkerPool[int, Any] = WorkerPool(
        gate, workers=2, queue=queue, policy=ABANDON, restart=OFTEN
    )
    futures = [pool.submit(item) for item in range(3)]
    for _ in range(2):
        assert gate.begun.acquire(timeout=PATIENCE)
    refused: list[BaseException] = []

    def act(name: str) -> None:
        try:
            ACTS[name](pool)
        except RuntimeError as failure:
            refused.append(failure)

    hold = Hold(number)
    held = hold.run(lambda: act(first))
    met = hold.news.get(timeout=PATIENCE) == "held"
    other = threading.Thread(target=act, args=(second,))
    other.start()
    other.join(STUCK)
    hold.go_on.set()
    for thread in (held, other):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if "stop" in (first, second):
        assert all("stopped" in str(failure) for failure in refused)
        assert {worker.state for worker in pool.workers} <= {"stopped", "abandoned"}
        assert queue.counts()["leased"] == 0
    else:
        assert refused == []
        if "pause" in (first, second):
            leased = {one.id for one in queue.items(state="leased")}
            assert pool.stats().busy == len(leased)
            gate.go_on.set()
            until(lambda: pool.stats().busy == 0)
            assert queue.counts()["leased"] == 0
            pool.resume()
        gate.go_on.set()
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]
        expected = {"grow": 4, "shrink": 1}
        count = next((expected[name] for name in (second, first) if name in expected), 2)
        until(lambda: len(pool.workers) == count)
        assert all(worker.state in ("idle", "busy") for worker in pool.workers)
    gate.go_on.set()
    pool.stop()
    until(lambda: threading.active_count() <= before)
    return met


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pause", "kill"),
        ("kill", "pause"),
        ("grow", "stop"),
        ("shrink", "stop"),
        ("stop", "grow"),
        ("stop", "shrink"),
        ("grow", "kill"),
        ("shrink", "kill"),
        ("kill", "shrink"),
        ("pause", "grow"),
        ("grow", "pause"),
        ("pause", "stop"),
        ("stop", "pause"),
    ],
)
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # abandoned
def test_i27_calls_that_change_a_pool_may_meet_at_any_line(first: str, second: str) -> None:
    number = 1
    while meet(first, second, number):
        number += 1
    assert number > 1


def test_i13_no_item_is_lost_while_a_pool_is_paused_and_resized(opened: Opened) -> None:
    queue = opened()
    done: list[int] = []

    with WorkerPool(lambda lease: done.append(lease.item), workers=3, queue=queue) as pool:
        for turn in range(60):
            queue.put(turn)
            pool.pause()
            pool.resize(1 + turn % 4)
            pool.resume()
            queue.put(-turn)
        pool.drain(NEVER)
    assert sorted(done) == sorted([*range(60), *(-turn for turn in range(60))])
    assert queue.counts()["done"] == 120
