"""The handles of a pool's workers stay with their workers."""

from __future__ import annotations

import math
import threading

import pytest

import desist
from desist import (
    KillOutcome,
    Lease,
    LeaseQueue,
    PoolExhausted,
    RestartPolicy,
    RetryPolicy,
    TaskCancelled,
    TaskState,
    WorkerPool,
)
from support import ABANDON, AT_WAIT, NEVER, DeafEvent


class Stuck:
    """A handler that blocks in C until the test ends it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = DeafEvent()

    def __call__(self, lease: Lease[int]) -> int:
        self.begun.release()
        if lease.attempt == 1:
            self.go_on.wait(NEVER)
        return lease.attempt


def hold_on(lease: Lease[threading.Event]) -> int:
    """Wait in a shield at the first attempt."""
    lease.item.set()
    if lease.attempt == 1:
        with desist.shield(math.inf):
            desist.sleep_forever()
    return lease.attempt


def test_a_worker_is_idle_then_busy_then_stopped() -> None:
    stuck = Stuck()
    with WorkerPool(stuck, workers=1) as pool:
        [worker] = pool.workers
        assert (worker.name, worker.state, worker.item_id) == ("desist-worker-0", "idle", None)
        assert not worker.cancel()
        assert worker.kill().outcome is KillOutcome.ALREADY_DONE
        future = pool.submit(1)
        stuck.begun.acquire()
        assert (worker.state, worker.item_id) == ("busy", future.item_id)
        assert future.state is TaskState.RUNNING
        assert repr(worker) == f"<Worker desist-worker-0 busy on item {future.item_id}>"
        stuck.go_on.set()
        assert future.result(NEVER) == 1
    assert worker.state == "stopped"
    with pytest.raises(RuntimeError, match="has been stopped"):
        worker.kill()


def test_a_worker_that_is_asked_to_stop_leaves_its_item_to_the_next_attempt() -> None:
    begun = threading.Event()

    def handler(lease: Lease[int]) -> int:
        if lease.attempt == 1:
            begun.set()
            desist.sleep_forever()
        return lease.attempt

    with WorkerPool(handler, workers=1) as pool:
        future = pool.submit(1)
        assert begun.wait(NEVER)
        [worker] = pool.workers
        assert worker.cancel("make room")
        assert future.result(NEVER) == 2


@pytest.mark.parametrize("soon", [False, True])
def test_a_kill_of_a_worker_requeues_its_item(soon: bool) -> None:
    with WorkerPool(hold_on, workers=1, policy=AT_WAIT) as pool:
        begun = threading.Event()
        future = pool.submit(begun)
        assert begun.wait(NEVER)
        [worker] = pool.workers
        report = worker.kill_soon().result(NEVER) if soon else worker.kill()
        assert report.outcome is KillOutcome.AT_WAIT
        assert report.requeued == [future.item_id]
        assert future.result(NEVER) == 2
        assert pool.workers == (worker,)


@pytest.mark.parametrize("soon", [False, True])
def test_a_kill_of_an_item_ends_it_for_good(soon: bool) -> None:
    with WorkerPool(hold_on, workers=1, policy=AT_WAIT) as pool:
        begun = threading.Event()
        future = pool.submit(begun)
        assert begun.wait(NEVER)
        kill = future.kill_soon("unwanted").result(NEVER) if soon else future.kill("unwanted")
        assert kill.outcome is KillOutcome.AT_WAIT
        with pytest.raises(TaskCancelled, match="unwanted"):
            future.result(NEVER)
        assert pool.drain(NEVER)
        assert pool.queue.counts()["dead"] == 1


def test_the_handle_of_an_abandoned_worker_is_not_the_handle_of_its_replacement() -> None:
    stuck = Stuck()
    with WorkerPool(stuck, workers=2, policy=ABANDON) as pool:
        future = pool.submit(1)
        stuck.begun.acquire()
        before = pool.workers
        [busy] = [worker for worker in before if worker.state == "busy"]
        at = before.index(busy)
        assert busy.kill().outcome is KillOutcome.ABANDONED
        assert (busy.state, busy.item_id) == ("abandoned", None)
        assert future.result(NEVER) == 2
        after = pool.workers
        assert len(after) == 2
        assert after[at] is not busy
        assert after[at].name == busy.name
        assert after[1 - at] is before[1 - at]
        # The old handle never reaches the replacement.
        assert busy.kill().outcome is KillOutcome.ALREADY_DONE
        assert not busy.cancel()
        assert pool.stats().abandoned == 1
        stuck.go_on.set()


def test_several_kills_of_one_worker_replace_it_once() -> None:
    stuck = Stuck()
    queue: LeaseQueue[int] = LeaseQueue(retry=RetryPolicy(max_attempts=100))
    with WorkerPool(stuck, workers=1, queue=queue, policy=ABANDON) as pool:
        pool.submit(1)
        stuck.begun.acquire()
        [worker] = pool.workers
        futures = [worker.kill_soon() for _ in range(4)]
        outcomes = {future.result(NEVER).outcome for future in futures}
        assert outcomes <= {KillOutcome.ABANDONED, KillOutcome.ALREADY_DONE}
        assert (pool.stats().abandoned, pool.stats().restarts) == (1, 1)
        assert len(pool.workers) == 1
        stuck.go_on.set()


def test_a_worker_that_is_not_replaced_says_so_in_the_kill_and_in_its_future() -> None:
    stuck = Stuck()
    pool = WorkerPool(stuck, workers=1, policy=ABANDON, restart=RestartPolicy(max_abandoned=0))
    pool.submit(1)
    stuck.begun.acquire()
    with pytest.raises(PoolExhausted, match="could not be ended"):
        pool.workers[0].kill_soon().result(NEVER)
    stuck.go_on.set()
    pool.stop()
