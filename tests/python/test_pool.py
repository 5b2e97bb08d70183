from __future__ import annotations

import concurrent.futures
import gc
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    Cancelled,
    CauseKind,
    KillOutcome,
    LeaseQueue,
    PoolExhausted,
    RestartPolicy,
    RetryPolicy,
    StopPolicy,
    TaskCancelled,
    WorkerPool,
)
from desist._item_future import ItemFuture, ItemPromise
from support import INSIST, NEVER, DeafEvent, in_thread, queue_of

if TYPE_CHECKING:
    from pathlib import Path

    from desist import Lease, WorkEvent

AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)
LONG = 1000.0
ABANDON = StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None)


def double(lease: Lease[int]) -> int:
    return lease.item * 2


class Gate:
    """A handler that reports its begin, and goes on when the test lets it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = DeafEvent()
        self.attempts: list[int] = []

    def deaf(self, lease: Lease[int]) -> int:
        self.attempts.append(lease.attempt)
        self.begun.release()
        self.go_on.wait()
        return lease.item

    def spin(self, lease: Lease[int]) -> int:
        self.attempts.append(lease.attempt)
        with desist.cleanup():
            self.begun.release()
        while not self.go_on.is_set():
            pass
        return lease.item

    def wait(self, lease: Lease[int]) -> int:
        self.attempts.append(lease.attempt)
        self.begun.release()
        desist.sleep_forever()
        return lease.item


# --- results --------------------------------------------------------------------------------------


def test_futures_have_the_handlers_result() -> None:
    with WorkerPool(double) as pool:
        futures = [pool.submit(item) for item in range(20)]
        assert [future.result() for future in futures] == [item * 2 for item in range(20)]
        done = concurrent.futures.wait(futures, timeout=NEVER).done
        assert done == set(futures)
    assert pool.queue.counts()["done"] == 20


def test_leaving_the_block_waits_for_all_work() -> None:
    with WorkerPool(double, workers=2) as pool:
        futures = [pool.submit(item) for item in range(50)]
    assert all(future.done() for future in futures)
    assert pool.workers_alive() == 0


def test_a_handler_may_set_the_result() -> None:
    def handler(lease: Lease[int]) -> None:
        with lease.commit():
            lease.ack(lease.item + 1)

    with WorkerPool(handler) as pool:
        assert pool.submit(1).result() == 2


def test_a_handler_that_fails_is_tried_again_and_then_the_item_is_dead() -> None:
    attempts: list[int] = []

    def handler(lease: Lease[int]) -> None:
        attempts.append(lease.attempt)
        raise ZeroDivisionError(str(lease.attempt))

    queue: LeaseQueue[int] = LeaseQueue(retry=AT_ONCE)
    with WorkerPool(handler, queue=queue) as pool:
        future = pool.submit(1)
        with pytest.raises(ZeroDivisionError, match="3"):
            future.result()
    assert attempts == [1, 2, 3]
    [(_, _, failures)] = queue.dead()
    assert [str(failure) for failure in failures] == ["1", "2", "3"]


def test_a_handler_may_requeue_its_lease() -> None:
    def handler(lease: Lease[int]) -> int:
        if lease.attempt < 3:
            lease.nack(reason="not now")
        return lease.attempt

    with WorkerPool(handler) as pool:
        assert pool.submit(1).result() == 3


def test_an_error_of_a_handler_after_its_acknowledgement_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def handler(lease: Lease[int]) -> None:
        lease.ack("good")
        raise ZeroDivisionError

    with WorkerPool(handler) as pool:
        assert pool.submit(1).result() == "good"
    assert [one.exc_type for one in told] == [ZeroDivisionError]
    told.clear()


def test_an_error_of_a_done_callback_stops_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    def fail(_: object) -> None:
        raise ZeroDivisionError

    with WorkerPool(gate.deaf, workers=1) as pool:
        future = pool.submit(1)
        future.add_done_callback(fail)
        gate.go_on.set()
        assert future.result() == 1
        assert pool.submit(2).result() == 2
    assert "ZeroDivisionError" in caplog.text


def test_result_may_be_waited_for_with_a_timeout_and_can_be_cancelled() -> None:
    gate = Gate()
    with WorkerPool(gate.deaf) as pool:
        future = pool.submit(1)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout=0)
        with desist.move_on_after(0.01) as scope:
            future.result()
        assert scope.cancelled_caught
        gate.go_on.set()
        assert future.exception() is None


# --- cancelled items ------------------------------------------------------------------------------


def test_a_cancelled_item_is_stopped_and_not_tried_again() -> None:
    gate = Gate()
    with WorkerPool(gate.wait, workers=1) as pool:
        future = pool.submit(1)
        gate.begun.acquire()
        assert pool.cancel_item(future.item_id, "unwanted")
        with pytest.raises(TaskCancelled, match="unwanted") as raised:
            future.result()
        assert isinstance(raised.value, concurrent.futures.CancelledError)
        assert raised.value.cause.kind is CauseKind.EXPLICIT
        assert not pool.cancel_item(future.item_id)
    assert gate.attempts == [1]
    assert pool.queue.counts()["dead"] == 1


def test_an_item_that_is_cancelled_before_it_begins_never_begins() -> None:
    gate = Gate()
    with WorkerPool(gate.deaf, workers=1) as pool:
        pool.submit(1)
        gate.begun.acquire()
        waiting = pool.submit(2)
        assert waiting.cancel()
        with pytest.raises(TaskCancelled):
            waiting.result()
        gate.go_on.set()
    assert len(gate.attempts) == 1


def test_an_item_that_is_cancelled_behind_its_lease_never_begins() -> None:
    called: list[int] = []

    def listen(event: WorkEvent) -> None:
        if event.kind == "started":  # it is leased, and the handler has not been called yet
            pool.cancel_item(event.item_id)

    def handler(lease: Lease[int]) -> None:
        called.append(lease.item)

    with WorkerPool(handler, workers=1, on_event=listen) as pool:
        with pytest.raises(TaskCancelled):
            pool.submit(1).result()
        assert pool.stats().cancelled == 1
    assert called == []


def test_of_two_threads_that_settle_a_future_at_once_the_first_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    future: ItemFuture[int] = ItemFuture()
    promise = ItemPromise(future)
    promise.finish(1)
    monkeypatch.setattr(future, "done", lambda: False)  # as the other thread has just seen it
    promise.finish(2)
    promise.fail(ValueError())
    assert future.result() == 1


def test_the_future_of_an_expired_item_is_cancelled() -> None:
    with WorkerPool[str, str](lambda lease: lease.item) as pool:
        future = pool.submit("a", delay=NEVER, expires=0.01)
        with pytest.raises(desist.TaskCancelled, match="its time was over"):
            future.result()


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("option", ["expires", "lease_timeout"])
def test_the_token_of_a_lease_has_its_end_as_the_deadline(
    kind: str, option: str, tmp_path: Path
) -> None:
    def handler(lease: Lease[str]) -> tuple[float, float, float]:
        token = lease.token
        return token.deadline, token.remaining(), desist.current_effective_deadline()

    queue = queue_of(kind, tmp_path, lease_timeout=LONG if option == "lease_timeout" else None)
    with WorkerPool[Any, Any](handler, queue=queue) as pool:
        future = pool.submit("a", expires=LONG if option == "expires" else None)
        deadline, remaining, effective = future.result(timeout=NEVER)
    assert deadline == effective
    assert 0 < remaining < LONG + 0.01  # a file has another clock, which is converted


# --- killed workers -------------------------------------------------------------------------------


def test_the_item_of_a_killed_worker_is_leased_again() -> None:
    gate = Gate()
    with WorkerPool(gate.spin, workers=1, policy=INSIST) as pool:
        future = pool.submit(1)
        gate.begun.acquire()
        report = pool.workers[0].kill("enough")
        assert report.outcome is KillOutcome.ASYNC_EXC
        assert report.requeued == [future.item_id]
        gate.begun.acquire()
        gate.go_on.set()
        assert future.result() == 1
        assert pool.workers_alive() == 1
    assert gate.attempts == [1, 2]


def test_an_idle_worker_has_nothing_to_kill() -> None:
    with WorkerPool(double, workers=1, policy=INSIST) as pool:
        assert pool.workers[0].kill().outcome is KillOutcome.ALREADY_DONE
        assert pool.submit(1).result() == 2


def test_an_abandoned_worker_is_replaced_and_its_late_result_is_refused() -> None:
    gate, late = Gate(), threading.Event()
    refused: list[BaseException] = []

    def handler(lease: Lease[int]) -> int:
        if lease.attempt == 1:
            gate.deaf(lease)
            try:
                lease.ack("late")
            except desist.Fenced as raised:
                refused.append(raised)
            late.set()
        return lease.attempt

    with WorkerPool(handler, workers=1, policy=ABANDON) as pool:
        future = pool.submit(1)
        gate.begun.acquire()
        report = pool.workers[0].kill()
        assert report.outcome is KillOutcome.ABANDONED
        assert (report.requeued, report.fenced) == ([future.item_id], [future.item_id])
        assert future.result() == 2
        assert pool.workers_alive() == 1
        gate.go_on.set()
        late.wait()
        assert pool.submit(2).result() == 1 or gate.attempts
    assert len(refused) == 1
    assert pool.queue.counts()["done"] == 2


def test_a_pool_that_has_abandoned_too_many_workers_fails() -> None:
    gate = Gate()
    queue: LeaseQueue[int] = LeaseQueue()
    pool = WorkerPool(
        gate.deaf, workers=1, queue=queue, policy=ABANDON, restart=RestartPolicy(max_abandoned=0)
    )
    pool.submit(1)
    gate.begun.acquire()
    with pytest.raises(
        PoolExhausted, match="could not be ended, and 0 abandoned threads still run"
    ):
        pool.workers[0].kill()
    with pytest.raises(PoolExhausted, match="the pool has stopped"):
        pool.submit(2)
    assert (pool.stats().alive, pool.stats().abandoned) == (0, 1)
    gate.go_on.set()
    with pytest.raises(PoolExhausted, match="unfinished items are still in its queue"), pool:
        pass
    assert queue.counts()["ready"] == 1


def test_threads_that_were_abandoned_and_have_ended_do_not_count() -> None:
    gate = Gate()
    restart = RestartPolicy(intensity=100, max_abandoned=1)
    with WorkerPool(gate.deaf, workers=1, policy=ABANDON, restart=restart) as pool:
        for _ in range(3):
            gate.go_on.clear()
            before = threading.active_count()
            pool.submit(1)
            gate.begun.acquire()
            assert pool.workers[0].kill().outcome is KillOutcome.ABANDONED
            gate.begun.acquire()  # the item's next attempt, by another worker
            assert pool.stats().abandoned == 1
            gate.go_on.set()
            pool.drain()
            while threading.active_count() > before:
                threading.Event().wait(0.001)  # there is no notification
            assert pool.stats().abandoned == 0
        assert pool.stats().restarts == 3


# --- stopping -------------------------------------------------------------------------------------


def test_an_error_in_the_block_stops_the_workers_at_once() -> None:
    gate = Gate()
    queue: LeaseQueue[int] = LeaseQueue()
    pool = WorkerPool(gate.wait, queue=queue, workers=1)
    pool.submit(1)
    gate.begun.acquire()
    with pytest.raises(ZeroDivisionError), pool:
        raise ZeroDivisionError
    assert queue.counts() == {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    with WorkerPool(double, queue=queue):
        pass
    assert queue.counts()["done"] == 1


def test_stop_can_be_called_twice_and_then_the_pool_is_refused() -> None:
    pool = WorkerPool(double)
    pool.stop()
    pool.stop()
    with pytest.raises(RuntimeError, match="make a new one"):
        pool.submit(1)
    with pytest.raises(RuntimeError, match="make a new one"):
        pool.workers[0].kill()


def test_a_handler_sees_its_token() -> None:
    seen: list[object] = []

    def handler(lease: Lease[int]) -> None:
        seen.append(lease.token.cancelled)
        try:
            desist.sleep_forever()
        except Cancelled as raised:
            seen.append(lease.token.cause == raised.cause)
            raise

    pool = WorkerPool(handler, workers=1)
    future = pool.submit(1)
    while not seen:
        in_thread(lambda: None)
    pool.cancel_item(future.item_id)
    with pytest.raises(TaskCancelled):
        future.result()
    pool.stop()
    assert seen == [False, True]


def test_dropped_pools_and_futures_are_freed() -> None:
    pool = WorkerPool(double, workers=1)
    future = pool.submit(1)
    assert future.result() == 2
    pool.stop()
    gone = weakref.ref(pool), weakref.ref(future)
    del pool, future
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


# --- killing an item ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["submit", "put"])
def test_i31_an_item_is_killed_by_its_id_and_never_leased_again(by: str) -> None:
    gate = Gate()
    queue: LeaseQueue[int] = LeaseQueue(retry=AT_ONCE)
    with WorkerPool(gate.spin, workers=1, queue=queue, policy=INSIST) as pool:
        item_id = pool.submit(1).item_id if by == "submit" else queue.put(1)
        gate.begun.acquire()
        report = pool.kill_item(item_id, "enough")
        assert report.outcome is KillOutcome.ASYNC_EXC
        assert pool.workers_alive() == 1
        assert gate.attempts == [1]
        pool.drain()
    [[dead_id, _, failures]] = queue.dead()
    assert dead_id == item_id
    assert "enough" in str(failures[-1])


def test_a_kill_of_an_item_settles_its_future_as_the_futures_own_kill_does() -> None:
    gate = Gate()
    with WorkerPool(gate.wait, workers=1, policy=INSIST) as pool:
        future = pool.submit(1)
        gate.begun.acquire()
        pool.kill_item(future.item_id, "enough")
        with pytest.raises(TaskCancelled, match="enough"):
            future.result()


def test_a_kill_of_an_item_that_no_worker_has_cancels_it() -> None:
    gate = Gate()
    with WorkerPool(gate.deaf, workers=1) as pool:
        pool.submit(1)
        gate.begun.acquire()
        waiting = pool.submit(2)
        assert pool.kill_item(waiting.item_id).outcome is KillOutcome.ALREADY_DONE
        assert waiting.cancelled()
        gate.go_on.set()
    assert gate.attempts == [1]


def test_a_kill_of_an_unknown_item_finds_nothing_to_kill() -> None:
    gate = Gate()
    with WorkerPool(gate.deaf, workers=1) as pool:
        future = pool.submit(1)
        gate.begun.acquire()
        assert pool.kill_item(10**6).outcome is KillOutcome.ALREADY_DONE
        gate.go_on.set()
        assert future.result() == 1
        assert pool.kill_item(future.item_id).outcome is KillOutcome.ALREADY_DONE
    with pytest.raises(RuntimeError, match="stopped"):
        pool.kill_item(1)
