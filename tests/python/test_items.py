"""The list of a queue's items: items()."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import FileQueue, ItemInfo, LeaseQueue, RetryPolicy, WorkerPool, testing
from support import NEVER, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist import Lease

    Opened = Callable[[], Any]

AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)


@pytest.fixture(params=["memory", "file"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens an empty queue."""
    return partial(queue_of, request.param, tmp_path, retry=AT_ONCE)


def test_i28_each_item_is_listed_in_its_state(opened: Opened) -> None:
    queue = opened()
    assert queue.items() == []
    first, second = queue.put("first"), queue.put("second", key="a key")
    done = queue.lease(0)
    leased = queue.lease(0)
    done.ack()
    delayed = queue.put("third", delay=NEVER)
    dead = queue.put("fourth", priority=-1)
    queue.lease(0).discard()
    ready = queue.put("fifth")
    listed = queue.items()
    assert [(one.id, one.state, one.attempt) for one in listed] == [
        (second, "leased", 1),
        (ready, "ready", 0),
        (delayed, "delayed", 0),
        (dead, "dead", 1),
    ]
    assert first not in [one.id for one in listed]
    assert [one.key for one in listed] == ["a key", None, None, None]
    assert all(one.age is not None and 0 <= one.age < NEVER for one in listed)
    assert isinstance(listed[0], ItemInfo)
    leased.ack()


@pytest.mark.parametrize("state", ["leased", "ready", "delayed", "dead"])
def test_a_list_can_be_of_one_state_and_of_a_length(opened: Opened, state: str) -> None:
    queue = opened()
    ids = [queue.put("ready") for _ in range(6)]
    leases = [queue.lease(0) for _ in range(4)]
    for lease in leases[:2]:
        lease.discard()
    delayed = [queue.put("delayed", delay=NEVER) for _ in range(2)]
    expected = {"dead": ids[:2], "leased": ids[2:4], "ready": ids[4:], "delayed": delayed}[state]
    assert [one.id for one in queue.items(state=state)] == expected
    assert [one.id for one in queue.items(state=state, limit=1)] == expected[:1]
    assert [one.id for one in queue.items(limit=3)] == [*ids[2:4], ids[4]]
    assert queue.items(limit=0) == []
    del leases


def test_the_holder_is_the_thread_that_has_leased(opened: Opened) -> None:
    queue = opened()
    queue.put("item")
    lease = queue.lease(0)
    [info] = queue.items()
    host, pid, thread = info.holder.split("/", 2)
    assert host
    assert (pid, thread) == (str(os.getpid()), threading.current_thread().name)
    lease.nack()
    [info] = queue.items()
    assert (info.state, info.attempt, info.holder) == ("ready", 1, None)


def test_the_holder_is_the_worker_also_if_it_has_waited_for_the_item(opened: Opened) -> None:
    def handler(_: Lease[str]) -> Any:
        return queue.items(state="leased")

    queue = opened()
    with WorkerPool(handler, workers=1, queue=queue) as pool:
        for _ in range(3):
            [info] = pool.submit("item").result()
            assert info.holder.endswith(f"/{os.getpid()}/desist-worker-0")


def test_the_age_is_that_since_the_item_was_put() -> None:
    def body() -> list[float | None]:
        queue: LeaseQueue[int] = LeaseQueue()
        queue.put(1)
        desist.sleep(60)
        queue.put(2)
        desist.sleep(5)
        lease = queue.lease(0)
        assert lease is not None
        return [one.age for one in queue.items()]

    assert testing.run(body) == [65, 5]


class Unreadable:
    """An object whose pickle cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_an_item_that_cannot_be_decoded_is_listed(tmp_path: Path) -> None:
    queue: FileQueue[Unreadable] = FileQueue(tmp_path / "jobs.db")
    item_id = queue.put(Unreadable())
    [info] = queue.items()
    assert (info.id, info.state) == (item_id, "ready")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"state": "done"}, ValueError, "one of leased, ready, delayed, dead, or None"),
        ({"state": ""}, ValueError, "not ''"),
        ({"limit": -1}, ValueError, "limit must not be negative, but is -1"),
        ({"limit": "many"}, TypeError, "limit|integer"),  # 3.10 names no argument
    ],
    ids=str,
)
def test_a_list_that_cannot_be_is_refused(
    opened: Opened, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened().items(**arguments)
