"""A handler runs in a copy of the context (contextvars) of its item's submit()."""

from __future__ import annotations

import threading
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import RetryPolicy, WorkerPool
from desist.engines import EngineQueue
from support import INSIST, NEVER, queue_of
from test_engines import DictEngine

if TYPE_CHECKING:
    from pathlib import Path

    from desist import Lease

TWICE = RetryPolicy(max_attempts=2, backoff=0)

variable: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.fixture(params=["memory", "file", "engine"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "engine":
        return EngineQueue(DictEngine(), retry=TWICE)
    return queue_of(request.param, tmp_path, retry=TWICE)


def submit_from(pool: WorkerPool[Any, Any], value: str, item: object = 0) -> desist.ItemFuture[Any]:
    def submit() -> desist.ItemFuture[Any]:
        variable.set(value)
        return pool.submit(item)

    return copy_context().run(submit)


def test_a_handler_sees_the_variables_of_the_code_that_submitted(queue: Any) -> None:
    with WorkerPool(lambda _: variable.get(), workers=3, queue=queue) as pool:
        futures = [submit_from(pool, f"{number}") for number in range(200)]
        assert [future.result() for future in futures] == [f"{number}" for number in range(200)]
    assert variable.get() == "unset"


def test_an_item_that_was_put_runs_in_an_empty_context(queue: Any) -> None:
    seen: list[str] = []

    def handler(_: Lease[int]) -> None:
        seen.append(variable.get())
        variable.set("leaked")

    token = variable.set("of the pool's maker")
    try:
        with WorkerPool(handler, workers=1, queue=queue) as pool:
            for number in range(3):
                queue.put(number)
            pool.drain()
    finally:
        variable.reset(token)
    assert seen == ["unset"] * 3


def test_a_retry_gets_the_submitters_context_and_not_what_the_last_attempt_has_set(
    queue: Any,
) -> None:
    seen: list[str] = []

    def handler(lease: Lease[int]) -> None:
        seen.append(variable.get())
        variable.set("of the first attempt")
        if lease.attempt == 1:
            raise OSError

    with WorkerPool(handler, workers=1, queue=queue) as pool:
        submit_from(pool, "mine").result()
    assert seen == ["mine", "mine"]


def test_two_attempts_of_one_item_are_never_in_one_context() -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)

    def handler(lease: Lease[int]) -> str:
        begun.release()
        if lease.attempt == 1:
            gate.wait(NEVER)  # no rung ends it: it goes on beside the second attempt
        return variable.get()

    policy = desist.StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None)
    with WorkerPool(handler, workers=1, policy=policy) as pool:
        future = submit_from(pool, "mine")
        begun.acquire()
        pool.workers[0].kill()
        assert future.result() == "mine"
        gate.set()


def test_a_killed_handler_leaves_its_workers_thread_outside_of_its_context() -> None:
    begun = threading.Event()

    def handler(lease: Lease[int]) -> str:
        while lease.item == 1 and lease.attempt == 1:
            begun.set()
        return variable.get()

    with WorkerPool(handler, workers=1, policy=INSIST) as pool:
        first = submit_from(pool, "first", 1)
        second = submit_from(pool, "second", 2)
        begun.wait(NEVER)
        pool.workers[0].kill()
        assert (first.result(), second.result()) == ("first", "second")


def test_variables_do_not_reach_a_worker_process_and_do_not_leak_in_it() -> None:
    with WorkerPool(set_and_get, workers=1, isolation="process") as pool:
        futures = [submit_from(pool, "mine") for _ in range(3)]
        assert [future.result() for future in futures] == ["unset"] * 3


def set_and_get(_: Lease[int]) -> str:
    before = variable.get()
    variable.set("leaked")
    return before
