"""A pool's counts, events and failures, and its end when the process is to end."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    FileQueue,
    LeaseQueue,
    PoolExhausted,
    RestartPolicy,
    RetryPolicy,
    StopPolicy,
    WorkerPool,
)
from support import NEVER, Deaf, in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from desist import Lease, WorkEvent

ABANDON = StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None)
AT_ONCE = RetryPolicy(max_attempts=2, backoff=0)


# --- events and figures ---------------------------------------------------------------------------


def test_on_event_gets_the_end_of_each_attempt_and_item() -> None:
    events: list[WorkEvent] = []
    dead = threading.Event()

    def handler(lease: Lease[str]) -> str:
        if lease.item == "bad":
            raise ZeroDivisionError(lease.attempt)
        return lease.item

    def listen(event: WorkEvent) -> None:
        events.append(event)
        if event.kind == "dead":
            dead.set()

    queue: LeaseQueue[str] = LeaseQueue(retry=AT_ONCE)
    with WorkerPool(handler, workers=1, queue=queue, on_event=listen) as pool:
        good = pool.submit("good").item_id
        bad = pool.submit("bad").item_id
        pool.drain()
        assert dead.wait(NEVER)  # the worker reports the end after the queue has recorded it
        assert pool.stats() == (1, 1, 0, 0, 0, 3, 1, 2, 0, 0, 1, 1)
    own = {
        item_id: [(event.kind, event.attempt) for event in events if event.item_id == item_id]
        for item_id in (good, bad)
    }
    assert own[good] == [("submitted", 0), ("leased", 1), ("started", 1), ("done", 1)]
    assert own[bad] == [
        ("submitted", 0),
        *[("leased", 1), ("started", 1), ("failed", 1), ("requeued", 1)],
        *[("leased", 2), ("started", 2), ("failed", 2), ("dead", 2)],
    ]
    assert {event.worker for event in events} == {"", "desist-worker-0"}
    assert [str(event.failure) for event in events if event.failure] == ["1", "2", "2"]


def test_kills_and_cancels_are_distinguished() -> None:
    events: list[WorkEvent] = []
    begun = threading.Semaphore(0)

    def handler(lease: Lease[int]) -> int:
        begun.release()
        if lease.attempt == 1:
            with desist.shield(math.inf) if lease.item == 1 else desist.cancel_scope():
                desist.sleep_forever()
        return lease.item

    policy = StopPolicy(cooperative=0, at_wait=NEVER)
    with WorkerPool(handler, workers=1, policy=policy, on_event=events.append) as pool:
        killed = pool.submit(1)
        begun.acquire()
        pool.workers[0].kill("enough")
        killed.result()
        begun.acquire()
        unwanted = pool.submit(2)
        begun.acquire()
        assert pool.cancel_item(unwanted.item_id, "not any more")
    assert [event.kind for event in events] == [
        *("submitted", "leased", "started", "killed", "requeued"),
        *("leased", "started", "done"),
        *("submitted", "leased", "started", "cancelled", "dead"),
    ]
    assert [getattr(event.failure, "reason", None) for event in events if event.failure] == [
        "enough",
        "not any more",
        "not any more",
    ]


def test_an_error_of_on_event_stops_no_worker() -> None:
    def listener(event: WorkEvent) -> None:
        if event.kind == "started":
            raise ZeroDivisionError

    raised: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, raised.append
    try:
        with WorkerPool[int, int](lambda lease: lease.item, on_event=listener) as pool:
            assert pool.submit(1).result() == 1
    finally:
        sys.unraisablehook = hook
    assert len(raised) == 1


def test_stats_count_the_busy_workers() -> None:
    deaf = Deaf()
    with WorkerPool(deaf, workers=3, policy=ABANDON) as pool:
        pool.submit(1)
        deaf.begun.acquire()
        assert (pool.stats().alive, pool.stats().busy) == (3, 1)
        deaf.go_on.set()
        pool.drain()
    assert (pool.stats().alive, pool.stats().busy, pool.stats().done) == (0, 0, 1)


# --- a pool that fails ----------------------------------------------------------------------------


def test_i36_a_pool_replaces_workers_up_to_its_limit_in_a_period_and_no_more() -> None:
    deaf = Deaf()
    queue: LeaseQueue[int] = LeaseQueue(retry=RetryPolicy(max_attempts=100))
    restart = RestartPolicy(intensity=2, period=NEVER, max_abandoned=100)
    pool = WorkerPool(deaf, workers=1, queue=queue, policy=ABANDON, restart=restart)
    pool.submit(1)
    for replaced in range(2):
        deaf.begun.acquire()
        pool.workers[0].kill()
        assert pool.stats().restarts == replaced + 1
    deaf.begun.acquire()
    with pytest.raises(PoolExhausted, match="could not be ended, and 2 were replaced"):
        pool.workers[0].kill()
    assert pool.stats()[:5] == (1, 0, 0, 2, 3)
    with pytest.raises(PoolExhausted):
        pool.drain()
    deaf.go_on.set()
    with pytest.raises(PoolExhausted), pool:
        pass
    assert queue.counts()["ready"] == 1


def test_i36_a_pool_that_fails_asks_all_its_workers_to_stop_and_ends_a_drain() -> None:
    deaf = Deaf()
    cancelled = threading.Event()

    def handler(lease: Lease[int]) -> None:
        if lease.item == 0:
            deaf(lease)
            return
        deaf.begun.release()
        try:
            desist.sleep_forever()
        finally:
            cancelled.set()

    started: list[str] = []
    pool = WorkerPool(
        handler,
        workers=2,
        policy=ABANDON,
        restart=RestartPolicy(max_abandoned=0),
        on_event=lambda event: started.extend([event.worker] * (event.kind == "started")),
    )
    pool.submit(0)
    deaf.begun.acquire()
    pool.submit(1)
    deaf.begun.acquire()
    with pytest.raises(PoolExhausted):
        pool.workers[int(started[0][-1])].kill()
    cancelled.wait()
    with pytest.raises(PoolExhausted):
        pool.drain()
    deaf.go_on.set()
    pool.stop()


def test_the_futures_of_a_failed_pool_have_its_error() -> None:
    deaf = Deaf()
    pool = WorkerPool(deaf, workers=1, policy=ABANDON, restart=RestartPolicy(max_abandoned=0))
    futures = [pool.submit(item) for item in range(2)]
    deaf.begun.acquire()
    with pytest.raises(PoolExhausted):
        pool.workers[0].kill()
    for future in futures:
        with pytest.raises(PoolExhausted, match="could not be ended"):
            future.result()
    deaf.go_on.set()
    pool.stop()


def test_an_interrupt_has_a_stop_kill_the_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(str(args.exc_value)))
    deaf = Deaf()
    policy = StopPolicy(cooperative=NEVER, at_wait=None, async_exc=None, trace=None)
    pool = WorkerPool(deaf, workers=1, policy=policy)
    busy, waiting = pool.submit(1), pool.submit(2)
    deaf.begun.acquire()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            pool.stop()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert pool.workers[0].state == "abandoned"
    (report,) = told
    assert report.startswith(f"desist-worker-0 item {busy.item_id} was abandoned and may still run")
    for future in (busy, waiting):
        with pytest.raises(desist.TaskCancelled, match="the pool has stopped"):
            future.result()
    pool.stop()
    deaf.go_on.set()


def test_a_worker_does_not_wait_for_its_own_end() -> None:
    pool: WorkerPool[int, None] = WorkerPool(lambda _: pool.stop(), workers=1)
    with pool, pytest.raises(RuntimeError, match="cannot wait for its own end"):
        pool.submit(1).result()


@pytest.mark.parametrize("path", [None, "jobs.db"])
def test_a_dead_item_does_not_stand_for_a_new_one(path: str | None, tmp_path: Path) -> None:
    def handler(_: Lease[int]) -> None:
        raise ZeroDivisionError("no luck")

    retry = RetryPolicy(max_attempts=1)
    queue: LeaseQueue[int] | FileQueue[int] = (
        LeaseQueue(retry=retry) if path is None else FileQueue(tmp_path / path, retry=retry)
    )
    with WorkerPool(handler, queue=queue) as pool:
        for _ in range(2):
            with pytest.raises((ZeroDivisionError, RuntimeError), match="no luck"):
                pool.submit(1, key="k").result()


def test_futures_of_items_left_in_a_given_queue_are_cancelled() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    deaf = Deaf()
    pool = WorkerPool(deaf, workers=1, queue=queue)
    pool.submit(1)
    deaf.begun.acquire()
    left = pool.submit(2)
    threading.Timer(0.05, deaf.go_on.set).start()
    pool.stop()
    with pytest.raises(desist.TaskCancelled, match="the pool has stopped"):
        left.result()
    assert queue.counts()["ready"] == 1
    with WorkerPool[int, None](lambda _: None, queue=queue):
        pass
    assert queue.counts()["done"] == 2


def test_hung_workers_are_stopped_side_by_side() -> None:
    begun = threading.Semaphore(0)
    all_killed = threading.Barrier(3)

    def handler(_: Lease[int]) -> None:
        try:
            with desist.shield(math.inf):
                begun.release()
                desist.sleep_forever()
        except BaseException:
            all_killed.wait()
            raise

    policy = StopPolicy(cooperative=0, at_wait=NEVER)
    pool = WorkerPool(handler, workers=3, policy=policy)
    for item in range(3):
        pool.submit(item)
    for _ in range(3):
        begun.acquire()
    pool.stop()
    assert (pool.stats().killed, all_killed.broken) == (3, False)


def test_a_pool_in_a_block_that_is_cancelled_leaves_no_worker_behind() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    deaf = Deaf()
    with desist.cancel_scope() as scope, WorkerPool(deaf, workers=2, queue=queue) as pool:
        pool.submit(1)
        deaf.begun.acquire()
        threading.Timer(0.05, deaf.go_on.set).start()  # after its checkpoint
        scope.cancel()
        pool.drain()
    assert scope.cancelled_caught
    assert (pool.workers_alive(), queue.counts()["leased"]) == (0, 0)


# --- signals --------------------------------------------------------------------------------------

PROGRAM = """
import signal, sys, threading
import desist
queue = desist.LeaseQueue()
begun = threading.Semaphore(0)
def handler(lease):
    begun.release()
    desist.sleep_forever()
with desist.cancel_on_signal(signal.SIGTERM) as scope:
    with desist.WorkerPool(handler, workers=2, queue=queue) as pool:
        for item in range(5):
            pool.submit(item)
        begun.acquire()
        begun.acquire()
        print("begun", flush=True)
        pool.drain()
print(scope.cancelled_caught, scope.cause.reason, queue.counts()["ready"])
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
"""


def test_a_signal_requeues_unfinished_items_and_the_program_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "begun\n"
        it.send_signal(signal.SIGTERM)
        out, _ = it.communicate(timeout=30)
    assert out.splitlines() == ["True received SIGTERM 5", "True"]
    assert it.returncode == 0


def test_a_second_signal_has_its_former_effect() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: got.append(signum))
    try:
        with desist.cancel_on_signal(signal.SIGTERM) as scope:
            signal.raise_signal(signal.SIGTERM)
            assert scope.cancel_called
            assert got == []
            signal.raise_signal(signal.SIGTERM)
            assert got == [signal.SIGTERM]
            desist.checkpoint()
        assert scope.cancelled_caught
    finally:
        signal.signal(signal.SIGTERM, before)


def test_invalid_signals_are_refused_and_nothing_stays_installed() -> None:
    with pytest.raises(TypeError, match="needs a signal"):
        desist.cancel_on_signal()
    with pytest.raises(ValueError, match="not a valid Signals"):
        desist.cancel_on_signal(12345)
    before = signal.getsignal(signal.SIGTERM)
    refused = desist.cancel_on_signal(signal.SIGTERM, signal.SIGKILL)
    with pytest.raises(OSError, match="Invalid argument"), refused:
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    assert desist.current_effective_deadline() == float("inf")

    def elsewhere() -> None:
        with (
            pytest.raises(RuntimeError, match="main thread"),
            desist.cancel_on_signal(signal.SIGTERM),
        ):
            pass

    in_thread(elsewhere)
