"""The kind of the cause with which work ends that does not end by itself, for every way."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
import process_handlers
from desist import (
    CancelCause,
    Cancelled,
    CauseKind,
    FileQueue,
    Killed,
    LeaseQueue,
    Lock,
    LockPoisoned,
    PoolFailed,
    TaskAborted,
    TaskCancelled,
    TaskGroup,
    ThreadPoolExecutor,
    WorkerPool,
    testing,
)
from desist.engines import EngineQueue
from support import ABANDON, AT_WAIT, INSIST, NEVER, DeafEvent, in_thread
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist import Future, ItemFuture


class Causes:
    """Collects the causes that work sees which does not end by itself."""

    def __init__(self) -> None:
        self.seen: list[CancelCause] = []
        self.begun = threading.Semaphore(0)

    def wait(self, *_: object) -> Any:
        """The work."""
        self.begun.release()
        try:
            desist.sleep_forever()
        except (Cancelled, Killed) as stopped:
            self.seen.append(stopped.cause)
            raise

    def of(self, future: Future[Any]) -> None:
        """Take the cause of the exception that a future raises."""
        try:
            future.result(NEVER)
        except (TaskCancelled, TaskAborted) as ended:
            self.seen.append(ended.cause)


def stop_pool(causes: Causes, pool: WorkerPool[Any, Any]) -> list[ItemFuture[Any]]:
    """Stop a pool with one worker while it is at work and has a second item."""
    futures = [pool.submit(1), pool.submit(2)]
    causes.begun.acquire()
    pool.stop()
    for future in futures:
        causes.of(future)
    return futures


def stop(causes: Causes) -> None:
    for future in stop_pool(causes, WorkerPool(causes.wait, workers=1)):
        assert future.token.cause is not None
        causes.seen.append(future.token.cause)


def stop_by_force(causes: Causes) -> None:
    lock = Lock()

    def handler(_: object) -> None:
        with lock, desist.shield(NEVER):
            causes.wait()

    pool: WorkerPool[Any, Any] = WorkerPool(handler, workers=1, policy=INSIST)
    pool.submit(1)
    causes.begun.acquire()
    pool.stop()
    with pytest.raises(LockPoisoned) as poisoned:
        lock.acquire()
    assert poisoned.value.cause is not None
    causes.seen.append(poisoned.value.cause)


def stop_in_vain(causes: Causes, monkeypatch: pytest.MonkeyPatch) -> None:
    end, begun = DeafEvent(), threading.Event()

    def handler(_: object) -> None:
        begun.set()
        end.wait(NEVER)

    queue = LeaseQueue[int]()
    pool: WorkerPool[Any, Any] = WorkerPool(handler, workers=1, policy=ABANDON, queue=queue)
    pool.submit(1)
    begun.wait()
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    pool.stop()
    end.set()
    causes.seen += [args.exc_value.cause for args in told]
    lease = queue.lease(0)
    assert lease is not None
    assert len(told) == 1


def stop_a_file(causes: Causes, tmp_path: Path) -> None:
    queue = FileQueue[int](tmp_path / "queue")
    stop_pool(causes, WorkerPool(causes.wait, workers=1, queue=queue))


def stop_an_engine(causes: Causes) -> None:
    with EngineQueue[int](DictEngine()) as queue:
        stop_pool(causes, WorkerPool(causes.wait, workers=1, queue=queue))


def stop_processes(causes: Causes) -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(
        process_handlers.raise_kind, workers=1, isolation="process"
    )
    future = pool.submit(1)
    while not pool.stats().busy:
        threading.Event().wait(0.001)  # there is no notification
    pool.stop()
    causes.of(future)


def drop(causes: Causes) -> None:
    queue = LeaseQueue[int]()
    queue.put(1)
    pool: WorkerPool[Any, Any] = WorkerPool(causes.wait, workers=1, queue=queue)
    causes.begun.acquire()
    threads = pool._roster.threads
    del pool
    for thread in threads:
        thread.join()


def exhaust(causes: Causes) -> None:
    restart = desist.RestartPolicy(intensity=0)
    end, begun = DeafEvent(), threading.Event()

    def handler(lease: desist.Lease[str]) -> None:
        if lease.item == "wait":
            causes.wait()
        begun.set()
        end.wait(NEVER)

    pool: WorkerPool[Any, Any] = WorkerPool(handler, workers=2, policy=ABANDON, restart=restart)
    pool.submit("wait")
    causes.begun.acquire()
    pool.submit("deaf")
    begun.wait()
    (deaf,) = [worker for worker in pool.workers if worker.item_id == 2]
    with pytest.raises(desist.PoolExhausted):
        deaf.kill()
    pool.stop()
    end.set()


class Broken(DictEngine):  # type: ignore[misc] # it is loaded
    def lease(self, timeout: float) -> Any:
        if threading.current_thread().name == "desist-worker-1":
            raise ZeroDivisionError
        return super().lease(timeout)


def fail(causes: Causes) -> None:
    with EngineQueue[int](Broken()) as queue:
        queue.put(1)
        pool: WorkerPool[Any, Any] = WorkerPool(causes.wait, workers=2, queue=queue)
        pool._source.token.wait()
        assert pool._source.token.cause is not None
        causes.seen.append(pool._source.token.cause)
        with suppress(PoolFailed):
            pool.stop()


def close(causes: Causes) -> None:
    class Tended(DictEngine):  # type: ignore[misc] # it is loaded
        def tend(self, _: float) -> None:
            causes.wait()

    queue = EngineQueue[int](Tended())
    assert queue.lease(0) is None
    causes.begun.acquire()
    queue.close()


def shut_down(causes: Causes) -> None:
    executor = ThreadPoolExecutor(1)
    futures = [executor.submit(causes.wait), executor.submit(causes.wait)]
    causes.begun.acquire()
    executor.shutdown(cancel_running=True)
    for future in futures:
        causes.of(future)
        assert future.token.cause is not None
        causes.seen.append(future.token.cause)


def shut_down_by_force(causes: Causes) -> None:
    executor = ThreadPoolExecutor(1, policy=AT_WAIT)
    future = executor.submit(causes.wait)
    causes.begun.acquire()
    executor.shutdown(wait=False, cancel_running=True)
    causes.of(future)


def shut_down_the_rest(causes: Causes) -> None:
    with ThreadPoolExecutor(1) as executor:
        go_on = desist.Event()
        executor.submit(go_on.wait)
        waiting = executor.submit(int)
        executor.shutdown(wait=False, cancel_futures=True)
        go_on.set()
        causes.of(waiting)


def leave_early(causes: Causes) -> None:
    with suppress(ZeroDivisionError), ThreadPoolExecutor(1) as executor:
        future = executor.submit(causes.wait)
        causes.begun.acquire()
        raise ZeroDivisionError
    causes.of(future)
    with suppress(ZeroDivisionError), WorkerPool[Any, Any](causes.wait, workers=1) as pool:
        item = pool.submit(1)
        causes.begun.acquire()
        raise ZeroDivisionError
    causes.of(item)


def simulate(causes: Causes) -> None:
    def main() -> None:
        thread = desist.Thread(target=causes.wait)
        thread.start()
        thread.join()

    with pytest.raises(testing.Deadlock):
        testing.run(main)


WAYS: list[Callable[..., None]] = [
    stop,
    stop_by_force,
    stop_in_vain,
    stop_a_file,
    stop_an_engine,
    stop_processes,
    drop,
    exhaust,
    fail,
    close,
    shut_down,
    shut_down_by_force,
    shut_down_the_rest,
    leave_early,
    simulate,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_work_that_ends_with_its_owner_has_a_cause_of_the_kind_shutdown(
    way: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    causes = Causes()
    names = way.__code__.co_varnames[1 : way.__code__.co_argcount]
    way(causes, **{name: request.getfixturevalue(name) for name in names})
    assert causes.seen
    assert {cause.kind for cause in causes.seen} == {CauseKind.SHUTDOWN}


EXIT = """
import os, threading, desist
from desist.compat import cancel_at_exit

def body(*_):
    begun.release()
    try:
        desist.sleep_forever()
    except (desist.Cancelled, desist.Killed) as stopped:
        os.write(1, f"{stopped.cause.kind.name}\\n".encode())  # whole, beside the others
        raise

def group():
    with desist.TaskGroup() as group:
        group.start_soon(body)

begun = threading.Semaphore(0)
executor = desist.ThreadPoolExecutor(1)
executor.submit(body)
pool = desist.WorkerPool(body, workers=1)
pool.submit(1)
threading.Thread(target=group, daemon=True).start()
thread = desist.Thread(target=body, daemon=True)
cancel_at_exit(thread)
thread.start()
for _ in range(4):
    begun.acquire()
"""


def test_work_that_ends_with_the_interpreter_has_a_cause_of_the_kind_shutdown() -> None:
    line = [sys.executable, "-c", EXIT]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["SHUTDOWN"] * 4


def test_work_that_its_caller_ends_has_another_kind() -> None:
    causes = Causes()

    def fail() -> None:
        with TaskGroup() as group:
            group.start_soon(causes.wait)
            causes.begun.acquire()
            raise ZeroDivisionError

    with pytest.raises(Exception, match="unhandled errors"):
        fail()
    with WorkerPool[Any, Any](causes.wait, workers=1) as pool, ThreadPoolExecutor(1) as executor:
        item, call = pool.submit(1), executor.submit(causes.wait)
        causes.begun.acquire()
        causes.begun.acquire()
        in_thread(item.kill)
        in_thread(call.kill)
        causes.of(item)
        causes.of(call)
    kinds = [cause.kind for cause in causes.seen]
    assert kinds == [CauseKind.SCOPE_EXITED] + [CauseKind.EXPLICIT] * 4
