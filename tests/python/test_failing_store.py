"""A store that fails once: no item is lost or stays leased, and the failure is told once (I48)."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    Fenced,
    RetryPolicy,
    testing,
)
from desist.engines import EngineQueue
from engine_contract import leased
from engine_faults import CALLS, Fault, live
from support import in_child, queue_of
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Faulty(DictEngine):  # type: ignore[misc] # it is loaded
    """An engine, one call of which fails."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name in CALLS:
            return lambda *args, **named: self.fault.around(method, *args, **named)
        return method


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [ConnectionError, ZeroDivisionError])
@pytest.mark.parametrize(
    ("items", "workers", "step"),
    [
        (5, 2, 1),
        pytest.param(200, 4, 10, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
    ids=["few", "many"],
)
def test_i48_an_engine_that_fails_once_at_any_call_loses_nothing(
    items: int, workers: int, step: int, error: Callable[[], Exception], *, after: bool
) -> None:
    def run(number: int) -> int:
        fault = Fault(number, error, after=after)
        # The handler takes longer than a heartbeat's pause.
        told = live(Faulty(fault), items, workers, lambda: desist.sleep(11))
        assert len(told) <= 1, told
        return fault.left

    lives = 1
    while testing.run(partial(run, 1 + (lives - 1) * step)) <= 0:
        lives += 1
    sys.stdout.write(f"{lives} lives\n")  # for `pytest -rP`
    assert lives > 30


def test_a_failure_of_the_heartbeat_is_raised_once_and_the_leases_are_kept() -> None:
    def run() -> None:
        fault = Fault(-1, ZeroDivisionError, after=False)
        with EngineQueue[str](Faulty(fault)) as queue:
            queue.put("a")
            held = leased(queue)
            fault.left = 1  # of the heartbeat, which tends
            desist.sleep(100)
            with pytest.raises(ZeroDivisionError):
                queue.lease(0)
            assert queue.lease(0) is None
            held.ack()

    testing.run(run)


def test_i48_a_lease_that_could_not_be_settled_runs_out_although_its_object_is_kept() -> None:
    def run() -> None:
        engine = DictEngine()
        with EngineQueue[str](engine) as queue:
            queue.put("a")
            held = leased(queue)
            ack, engine.ack = engine.ack, fail
            with pytest.raises(ZeroDivisionError):
                held.ack()
            engine.ack = ack
            again = leased(queue)
            assert again.attempt == 2
            with pytest.raises(Fenced):
                held.ack()
            again.ack()

    testing.run(run)


def fail(*_: object) -> None:
    raise ZeroDivisionError


def test_i48_a_dead_item_that_could_not_be_rejected_in_time_is_leased_and_rejected_again() -> None:
    def run() -> None:
        engine = DictEngine()
        with EngineQueue[str](engine, retry=RetryPolicy(max_attempts=1)) as queue:
            queue.put("a")
            leased(queue)  # dropped: it runs out
            reject, engine.reject = engine.reject, away
            assert queue.lease(100) is None  # Fenced, when the lease had run out
            engine.reject = reject
            assert queue.lease(100) is None
            assert queue.counts()["dead"] == 1

    testing.run(run)


def away(*_: object) -> None:
    raise ConnectionError


# --- a file -----------------------------------------------------------------------------------


PROGRAM = """
import resource, sys, desist
queue = desist.FileQueue(sys.argv[1], retry=desist.RetryPolicy(max_attempts=100, backoff=0))
items, full_at = int(sys.argv[2]), int(sys.argv[3])
for number in range(items):
    queue.put((number, b"z" * 3000))
unlimited, most = resource.getrlimit(resource.RLIMIT_FSIZE)
seen, kept, told = [], [], []
def handler(lease):
    kept.append(lease)  # other code still has the object
    seen.append(lease.item[0])
    if len(seen) == full_at:  # from here on nothing can be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))
for _ in range(2):
    try:
        with desist.WorkerPool(handler, queue=queue, workers=4) as pool:
            assert pool.drain(60)
    except desist.PoolFailed as failed:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, most))
        told.append(type(failed.__cause__).__name__)
print(told, len(set(seen)), queue.counts())
"""


@pytest.mark.parametrize(
    ("items", "points"),
    [
        (6, range(1, 8)),
        pytest.param(200, range(1, 201, 2), marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
    ids=["few", "many"],
)
def test_i48_a_disk_that_is_full_for_a_moment_leaves_no_item_leased(
    items: int, points: range, tmp_path: Path
) -> None:
    for point in points:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / f"jobs{point}")]
        command += [str(items), str(point)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        told = ["QueueFileError"] if point <= items else []
        counts = {"ready": 0, "leased": 0, "delayed": 0, "done": items, "dead": 0}
        assert out == f"{told} {items} {counts}\n", point


# --- leases that are dropped, or the parent's ---------------------------------------------------


@pytest.fixture(params=["memory", "file", "engine"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "engine":
        return EngineQueue(DictEngine())
    return queue_of(request.param, tmp_path)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_i48_a_lease_that_is_dropped_requeues_its_item(kind: str, tmp_path: Path) -> None:
    queue = queue_of(kind, tmp_path)
    queue.put("a")
    lease = queue.lease(0)
    assert queue.counts()["leased"] == 1
    del lease
    assert queue.counts()["ready"] == 1
    again = queue.lease(0)
    assert (again.item, again.attempt) == ("a", 2)
    again.ack()
    del again
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 0}


def test_a_lease_of_the_parent_cannot_be_settled_in_a_forked_child(queue: Any) -> None:
    queue.put("a")
    lease = queue.lease(10)
    for use in (lease.ack, lease.nack, lease.heartbeat, lambda: lease.nack(delay=1)):
        answer = in_child(use)
        assert answer.startswith("RuntimeError: "), answer
        assert "fork" in answer
    lease.ack()
    assert queue.counts()["done"] == 1
