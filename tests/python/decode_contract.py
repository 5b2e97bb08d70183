"""The contract of decoding, for every queue that keeps bytes (I43), as tests.

A module of tests has a class of `Decoding`, and a fixture `queues` that opens its queue with a
RetryPolicy.
"""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import KillOutcome, RetryPolicy, TaskCancelled, WorkerPool
from desist.engines import EngineQueue
from support import ABANDON, NEVER, in_its_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desist import Lease, WorkEvent
    from engine_contract import Engines

    Queues = Callable[[RetryPolicy], Any]

TWICE = RetryPolicy(max_attempts=2, backoff=0)
OFTEN = RetryPolicy(max_attempts=100, backoff=0)

DECODERS: dict[str, Callable[[], object]] = {}
"""What the decoding of an item does, by the item's name."""


def decode(name: str) -> object:
    return DECODERS[name]()


class Item:
    """An item whose decoding calls its function of `DECODERS`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return decode, (self.name,)


def item(decoder: Callable[[], object]) -> Item:
    name = f"item {len(DECODERS)}"
    DECODERS[name] = decoder
    return Item(name)


def fail() -> None:
    raise ZeroDivisionError("cannot be decoded")


class Once:
    """A decoder that does something at its first call, and returns its number of calls."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.calls = 0
        self.inside = threading.Event()

    def __call__(self) -> int:
        self.calls += 1
        if self.calls == 1:
            self.inside.set()
            self.act()
        return self.calls


def spin() -> None:
    while True:
        pass


def same(lease: Lease[Any]) -> Any:
    return lease.item


class Decoding:
    """The tests of one queue."""

    def test_i43_an_item_that_cannot_be_decoded_fails_and_keeps_its_bytes(
        self, queues: Queues
    ) -> None:
        queue = queues(TWICE)
        events: list[WorkEvent] = []
        bad = item(fail)
        handled: list[object] = []
        with WorkerPool[Any, None](
            lambda lease: handled.append(lease.item),
            queue=queue,
            workers=1,
            on_event=events.append,
        ) as pool:
            future = pool.submit(bad)
            with pytest.raises(ZeroDivisionError):
                future.result()
            pool.submit("good").result()
        assert handled == ["good"]
        assert [event.kind for event in events if event.item_id == future.item_id] == [
            *("submitted", "leased", "started", "failed", "requeued"),
            *("leased", "started", "failed", "dead"),
        ]
        failures = [event.failure for event in events if event.failure is not None]
        assert isinstance(failures[0], ZeroDivisionError)
        counts = queue.counts()
        assert (counts["done"], counts["dead"]) == (1, 1)
        [(item_id, body, why)] = queue.dead()
        assert item_id == future.item_id
        assert body == pickle.dumps(bad, 5)
        assert len(why) == 3
        assert all("ZeroDivisionError: cannot be decoded" in text for text in why)
        assert why[-1].startswith("its bytes cannot be decoded here")
        # When the code is fixed, the item can be looked at, and revived.
        DECODERS[bad.name] = lambda: "fixed"
        assert [(found, len(failures)) for _, found, failures in queue.dead()] == [("fixed", 2)]
        queue.retry(item_id)
        lease = queue.lease(NEVER)
        assert (lease.item, lease.attempt) == ("fixed", 1)
        lease.ack()

    def test_i43_one_dead_item_that_cannot_be_decoded_hides_no_other(self, queues: Queues) -> None:
        queue = queues(RetryPolicy(max_attempts=1))
        for one in ("a", item(fail), "b"):
            queue.put(one)
        while (lease := queue.lease(0)) is not None:
            lease.nack(reason="no")
        found = [found for _, found, _ in queue.dead()]
        assert len(found) == 3
        assert {"a", "b"} <= set(found)

    def test_i43_a_stop_in_a_list_of_the_dead_is_raised(self, queues: Queues) -> None:
        queue = queues(RetryPolicy(max_attempts=1))
        queue.put(item(desist.checkpoint))
        queue.lease(NEVER).nack(reason="no")
        with desist.cancel_scope() as scope:
            scope.cancel()
            queue.dead()
        assert scope.cancelled_caught

    def test_i43_a_dead_item_that_cannot_be_decoded_fails_the_future_of_its_key(
        self, queues: Queues
    ) -> None:
        queue = queues(RetryPolicy(max_attempts=1))
        dead = queue.put(item(fail), key="a")
        assert queue.lease(0) is None
        with WorkerPool[Any, Any](same, queue=queue, workers=1) as pool:
            future = pool.submit("another", key="a")
            assert future.item_id == dead
            with pytest.raises(RuntimeError, match="which has this key, is dead"):
                future.result(NEVER)

    @pytest.mark.parametrize("how", [desist.sleep_forever, spin], ids=["waits", "computes"])
    def test_i43_a_decoder_can_be_killed_as_a_handler(
        self, queues: Queues, how: Callable[[], object]
    ) -> None:
        queue = queues(OFTEN)
        decoder = Once(how)
        with WorkerPool[Any, Any](same, queue=queue, workers=1) as pool:
            future = pool.submit(item(decoder))
            assert decoder.inside.wait(NEVER)
            [worker] = pool.workers
            assert worker.state == "busy"
            assert worker.item_id == future.item_id
            assert pool.stats().busy == 1
            report = worker.kill()
            assert report.outcome is not KillOutcome.ALREADY_DONE
            assert report.requeued == [future.item_id]
            assert future.result() == 2

    def test_i43_a_decoder_that_nothing_ends_is_abandoned_and_its_item_leased_again(
        self, queues: Queues
    ) -> None:
        queue = queues(OFTEN)
        gate = threading.Lock()
        decoder = Once(gate.acquire)
        handled: list[object] = []
        with (
            gate,
            WorkerPool[Any, None](
                lambda lease: handled.append(lease.item), queue=queue, workers=1
            ) as pool,
        ):
            future = pool.submit(item(decoder))
            assert decoder.inside.wait(NEVER)
            [worker] = pool.workers
            thread = worker._thread
            report = worker.kill(policy=ABANDON)
            assert report.outcome is KillOutcome.ABANDONED
            assert report.fenced == report.requeued == [future.item_id]
            future.result()
        thread.join(NEVER)
        gate.release()
        assert handled == [2]  # not by the abandoned thread, when it went on

    def test_i43_a_stop_climbs_its_policy_for_a_decoder(
        self, queues: Queues, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[object] = []
        monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
        queue = queues(OFTEN)
        gate = threading.Lock()
        decoder = Once(gate.acquire)
        with gate:
            pool = WorkerPool[Any, Any](same, queue=queue, workers=1, policy=ABANDON)
            future = pool.submit(item(decoder))
            assert decoder.inside.wait(NEVER)
            [worker] = pool.workers
            pool.stop()
            assert worker.state == "abandoned"
            with pytest.raises(TaskCancelled):
                future.result(NEVER)
            assert [type(report) for report in told] == [desist.TaskAborted]
            assert queue.counts()["ready"] == 1
        worker._thread.join(NEVER)
        gate.release()
        assert queue.counts()["ready"] == 1

    def test_i31_an_item_that_is_cancelled_while_it_is_decoded_does_not_begin(
        self, queues: Queues
    ) -> None:
        queue = queues(OFTEN)
        handled: list[object] = []
        submitted = threading.Event()

        def cancel() -> None:
            submitted.wait()
            assert pool.cancel_item(future.item_id)

        with WorkerPool[Any, None](
            lambda lease: handled.append(lease.item), queue=queue, workers=1
        ) as pool:
            future = pool.submit(item(Once(cancel)))
            submitted.set()
            with pytest.raises(TaskCancelled):
                future.result()
        assert not handled
        assert queue.counts()["dead"] == 1

    def test_i43_progress_that_cannot_be_decoded_is_a_failure_of_the_item(
        self, queues: Queues
    ) -> None:
        queue = queues(TWICE)
        queue.put("a")
        lease = queue.lease(NEVER)
        lease.heartbeat(item(fail))
        lease.nack(delay=0)
        handled: list[object] = []
        with WorkerPool[Any, Any](handled.append, queue=queue, workers=1) as pool:
            pool.drain()
        assert not handled
        [(_, found, why)] = queue.dead()
        assert found == "a"
        assert "ZeroDivisionError" in why[-1]

    def test_i43_lease_goes_on_to_the_next_item_if_one_cannot_be_decoded(
        self, queues: Queues
    ) -> None:
        queue = queues(TWICE)
        queue.put(item(fail))
        queue.put("good")
        held = queue.lease(NEVER)
        assert held.item == "good"
        while not queue.counts()["dead"]:
            assert queue.lease(0) is None
        [(_, _, why)] = queue.dead()
        assert len(why) == 3
        assert queue.counts()["leased"] == 1

    def test_i43_a_cancelled_lease_requeues_the_item_that_it_decodes(self, queues: Queues) -> None:
        queue = queues(OFTEN)
        decoder = Once(desist.sleep_forever)
        queue.put(item(decoder))
        with in_its_wait(lambda: queue.lease(NEVER)) as victim:
            assert decoder.inside.wait(NEVER)
            victim.cancel()
        assert isinstance(victim.raised, desist.Cancelled)
        victim.raised = None
        lease = queue.lease(NEVER)
        assert (lease.item, lease.attempt) == (2, 2)

    def test_i43_a_lease_that_is_cancelled_behind_the_decoder_has_leased_nothing(
        self, queues: Queues
    ) -> None:
        queue = queues(OFTEN)
        with desist.cancel_scope() as scope:
            queue.put(item(Once(scope.cancel)))
            queue.lease(NEVER)
            pytest.fail("it was leased")
        assert queue.counts()["leased"] == 0
        assert queue.lease(NEVER).item == 2


class EngineDecoding(Decoding):
    """The tests of an engine's queue; a fixture `engines` opens the engine."""

    @pytest.fixture
    def queues(self, engines: Engines) -> Iterator[Queues]:
        opened: list[EngineQueue[Any]] = []

        def open_queue(retry: RetryPolicy) -> EngineQueue[Any]:
            opened.append(EngineQueue(engines(), retry=retry))
            return opened[-1]

        yield open_queue
        for queue in opened:
            queue.close()
