"""I43: the item of a file or a server is decoded as a part of the work at it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import process_handlers
from decode_contract import OFTEN, TWICE, Decoding, EngineDecoding
from desist import FileQueue, KillOutcome, ProcessStopPolicy, WorkerDied, WorkerPool
from desist._ports import port_of
from desist.engines import EngineQueue
from desist.engines._port import DeadItem
from desist.testing import sweep_kills
from support import IN_HAND, NEVER, drained, queue_of, tell
from test_engines import DictEngine
from test_file_queue import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from decode_contract import Queues
    from desist import RetryPolicy
    from desist.engines import Delivery
    from engine_contract import Engines


class TestFile(Decoding):
    @pytest.fixture
    def queues(self, tmp_path: Path) -> Queues:
        return lambda retry: FileQueue(tmp_path / "jobs.db", retry=retry)


class FullEngine(DictEngine):  # type: ignore[misc] # it is loaded
    """A dict that has all operations, but cancels leased items only."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, str] = {}
        self.failures: dict[str, list[str]] = {}
        self.unwanted: set[str] = set()

    def put(self, item_id: str, body: bytes, *, key: str | None, **options: Any) -> str:
        known = item_id if key is None else self.keys.setdefault(key, item_id)
        if known == item_id:
            super().put(item_id, body, key=None, **options)
        return known

    def nack(self, delivery: Delivery, delay: float, failure: str | None) -> bool:
        super().nack(delivery, delay, failure)
        self.failures.setdefault(delivery.id, []).append(str(failure))
        if delivery.id in self.unwanted:
            self.items[delivery.id].state = "dead"
        return delivery.id not in self.unwanted

    def reject(self, delivery: Delivery, failure: str) -> None:
        super().reject(delivery, failure)
        self.failures.setdefault(delivery.id, []).append(failure)

    def dead(self) -> list[DeadItem]:
        return [
            DeadItem(item_id, one.body, list(self.failures[item_id]))
            for item_id, one in self.items.items()
            if one.state == "dead"
        ]

    def retry(self, item_id: str) -> bool:
        self.items[item_id].state = "ready"
        self.items[item_id].attempt = 0
        return True

    def cancel(self, item_id: str, failure: str) -> bool | None:  # noqa: ARG002
        self.unwanted.add(item_id)
        return False


class TestDict(EngineDecoding):
    @pytest.fixture
    def engines(self) -> Engines:
        return FullEngine


# --- kills at every bytecode ----------------------------------------------------------------------


class Decoded:
    """Its decoding runs some bytecodes."""

    def __setstate__(self, state: dict[str, object]) -> None:
        numbers = [number for number in range(3) if number]
        self.state = state, numbers

    def __getstate__(self) -> dict[str, object]:
        return {"a": 1}


@pytest.mark.skipif(IN_HAND, reason="3.10 raises behind the call that has returned the lease")
def test_i43_a_lease_that_is_killed_anywhere_in_its_decoder_is_returned_or_requeued(
    tmp_path: Path,
) -> None:
    queue: FileQueue[Any] = FileQueue(tmp_path / "jobs.db", retry=OFTEN)
    leases: list[Any] = []

    def lease() -> None:
        # One call in C, behind which no kill is raised before the list has the lease.
        leases.extend(map(queue.lease, (NEVER,)))

    def check() -> None:
        assert queue.counts()["leased"] == len(leases)
        while leases:
            leases.pop().nack()
        assert queue.counts()["ready"] == 1

    queue.put(Decoded())
    report = sweep_kills(lease, check)
    tell("decode: in lease()", report)
    assert report.stopped > 10
    assert queue.counts()["dead"] == 0


# --- worker processes -----------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file", "engine"])
def any_queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queues]:
    opened: list[EngineQueue[Any]] = []

    def open_queue(retry: RetryPolicy) -> Any:
        if request.param != "engine":
            return queue_of(request.param, tmp_path, retry=retry)
        opened.append(EngineQueue(DictEngine(), retry=retry))
        return opened[-1]

    yield open_queue
    for queue in opened:
        queue.close()


def test_i43_a_worker_process_decodes_the_item_itself(any_queues: Queues) -> None:
    with WorkerPool[Any, int](
        process_handlers.same, queue=any_queues(TWICE), workers=1, isolation="process"
    ) as pool:
        assert pool.submit(process_handlers.DecodesToPid()).result() != os.getpid()


def test_i43_a_worker_process_that_hangs_in_a_decoder_is_killed(
    any_queues: Queues, tmp_path: Path
) -> None:
    queue = any_queues(OFTEN)
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    policy = ProcessStopPolicy(cooperative=0, sigterm=0)
    with WorkerPool[Any, str](
        process_handlers.same, queue=queue, workers=1, isolation="process", policy=policy
    ) as pool:
        future = pool.submit(process_handlers.HangsInDecoder(str(begun)))
        with begun.open() as told:
            assert told.readline() == "begun\n"
        report = pool.workers[0].kill()
        assert report.outcome is KillOutcome.SIGKILL
        assert report.requeued == [future.item_id]
        assert future.result() == "decoded"


def test_i43_a_process_that_dies_in_a_decoder_costs_an_attempt(any_queues: Queues) -> None:
    queue = any_queues(TWICE)
    with WorkerPool[Any, Any](
        process_handlers.same, queue=queue, workers=1, isolation="process"
    ) as pool:
        future = pool.submit(process_handlers.DiesInDecoder())
        with pytest.raises(WorkerDied, match="exit code 3"):
            future.result()
    assert queue.counts()["dead"] == 1


# --- the process of a thread's pool ---------------------------------------------------------------


def test_i43_an_item_that_ends_its_process_when_it_is_decoded_is_dead_at_last(
    tmp_path: Path,
) -> None:
    path = tmp_path / "jobs.db"
    queue: FileQueue[object] = FileQueue(path, retry=TWICE)
    item_id = queue.put(process_handlers.DiesInDecoder())
    code = """
        import sys, desist
        queue = desist.FileQueue(sys.argv[1], retry=desist.RetryPolicy(max_attempts=2, backoff=0))
        with desist.WorkerPool(print, queue=queue, workers=1) as pool:
            pool.drain()
        """
    for _ in range(2):
        with program(code, path) as other:
            assert other.wait() == 3
    assert drained(queue)
    assert queue.counts()["dead"] == 1
    assert port_of(queue).failures_of(item_id) is not None
