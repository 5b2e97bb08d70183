"""What the listener of a pool, on_event, is told: all events, in order, with times and names."""

from __future__ import annotations

import queue as queue_module
import sys
import threading
import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import LeaseQueue, RetryPolicy, WorkerPool
from desist._events import Events
from held import PATIENCE
from support import queue_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist import Lease, WorkEvent

    Opened = Callable[[], Any]

AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)


@pytest.fixture(params=["memory", "file"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens an empty queue."""
    return partial(queue_of, request.param, tmp_path, retry=AT_ONCE, maxsize=5)


ENDS = {"done", "failed", "cancelled", "killed", "requeued", "dead"}


def check_order(kinds: list[str]) -> None:
    """Check the kinds of one item's events, which was put by submit() and is done or dead."""
    assert kinds[0] == "submitted"
    assert kinds.count("submitted") == 1
    assert kinds[-1] in ("done", "dead")
    rest = kinds[1:]
    while rest and rest[0] != "dead":
        assert rest[:2] == ["leased", "started"]
        ends = [kind for kind in rest[2:4] if kind in ENDS]
        assert ends in (
            ["done"],
            ["requeued"],
            ["dead"],
            ["failed", "requeued"],
            ["failed", "dead"],
        )
        rest = rest[2 + len(ends) :]


def end_in_many_ways(lease: Lease[int]) -> None:
    if lease.item % 5 == 1 and lease.attempt < 3:
        lease.nack()
    elif lease.item % 5 == 2:
        raise ZeroDivisionError
    elif lease.item % 5 == 3:
        lease.discard()


def test_the_events_of_an_item_are_told_in_their_order(opened: Opened) -> None:
    told: dict[int | str, list[str]] = defaultdict(list)
    inside: set[int | str] = set()

    def listen(event: WorkEvent) -> None:
        assert event.item_id not in inside, "two at a time"
        inside.add(event.item_id)
        told[event.item_id].append(event.kind)
        inside.discard(event.item_id)

    def submit(first: int) -> None:
        for item in range(first, first + 40):
            pool.submit(item)

    queue = opened()
    with WorkerPool(end_in_many_ways, workers=4, queue=queue, on_event=listen) as pool:
        threads = [threading.Thread(target=submit, args=(first,)) for first in (0, 40, 80)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(told) == 120
    for kinds in told.values():
        check_order(kinds)
    stats = pool.stats()
    assert sum(kinds.count("started") for kinds in told.values()) == stats.started
    assert sum(kinds.count("dead") for kinds in told.values()) == stats.dead
    assert pool._events is not None
    assert pool._events._items == {}
    assert pool._events._announced == set()


def test_an_event_has_its_time_its_duration_and_the_names(opened: Opened) -> None:
    events: list[WorkEvent] = []
    before = time.time()
    queue = opened()
    with WorkerPool[str, Any](
        lambda lease: lease.item, queue=queue, on_event=events.append
    ) as pool:
        pool.submit("item", key="a key")
    assert [event.kind for event in events] == ["submitted", "leased", "started", "done"]
    assert [event.attempt for event in events] == [0, 1, 1, 1]
    times = [event.time for event in events]
    assert before <= times[0]
    assert times[-1] <= time.time()
    [none, *durations] = [event.duration for event in events]
    assert none is None
    assert durations == sorted(duration for duration in durations if duration is not None)
    assert {event.key for event in events} == {"a key"}
    [name] = {event.queue for event in events}
    assert name == "memory" or name.endswith("jobs.db")


def test_an_item_that_others_have_put_has_all_events_but_submitted(opened: Opened) -> None:
    events: list[WorkEvent] = []
    queue = opened()
    queue.put("item", key="a key")
    with WorkerPool[str, Any](lambda lease: lease.item, queue=queue, on_event=events.append):
        pass
    assert [event.kind for event in events] == ["leased", "started", "done"]
    assert {event.key for event in events} == {"a key"}


def test_a_worker_waits_for_no_submission_that_waits_for_room_and_submitted_is_told_first() -> None:
    told: list[WorkEvent] = []
    events = Events(told.append, "memory")

    def put(*, timeout: float | None) -> int:
        if timeout == 0:
            raise queue_module.Full
        lease = ("leased", 7, 1, "worker", None, 1, None)  # before submit() knows the number
        worker = threading.Thread(target=events.note, args=lease)
        worker.start()
        worker.join(PATIENCE)
        assert not worker.is_alive()
        return 7

    events.submit(put, None, None)
    assert [event.kind for event in told] == ["submitted", "leased"]


def test_a_refused_submission_is_no_event() -> None:
    events: list[WorkEvent] = []
    queue: LeaseQueue[int] = LeaseQueue(maxsize=1)
    pool: WorkerPool[int, Any] = WorkerPool(
        lambda lease: lease.item, queue=queue, on_event=events.append
    )
    pool.pause()
    pool.submit(1)
    with pytest.raises(queue_module.Full):
        pool.submit(2, timeout=0.01)
    pool.stop()
    assert [event.kind for event in events] == ["submitted"]


def test_items_that_no_worker_had_are_told_of_when_they_are_dead() -> None:
    events: list[WorkEvent] = []
    pool: WorkerPool[int, int] = WorkerPool(lambda lease: lease.item, on_event=events.append)
    pool.pause()
    cancelled, left = pool.submit(1), pool.submit(2)
    assert cancelled.cancel("not wanted")
    pool.stop()
    assert [(event.kind, event.item_id) for event in events] == [
        ("submitted", cancelled.item_id),
        ("submitted", left.item_id),
        ("dead", cancelled.item_id),
        ("dead", left.item_id),
    ]
    assert [event.attempt for event in events] == [0] * 4
    assert "not wanted" in str(events[2].failure)


def test_i35_the_last_events_are_told_before_stop_returns() -> None:
    events: list[WorkEvent] = []
    pool: WorkerPool[int, Any] = WorkerPool(
        lambda _: desist.sleep_forever(), workers=2, on_event=events.append
    )
    futures = [pool.submit(item) for item in range(2)]
    while pool.stats().busy < 2:
        desist.checkpoint()
    pool.stop()
    for future in futures:
        kinds = [event.kind for event in events if event.item_id == future.item_id]
        assert kinds[:4] == ["submitted", "leased", "started", "cancelled"]
        assert kinds[-1] in ("requeued", "dead")


def test_each_kind_of_a_listeners_exception_is_told_once_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def listen(event: WorkEvent) -> None:
        raise (ValueError if event.kind == "submitted" else KeyError)(event.kind)

    with WorkerPool[int, Any](lambda lease: lease.item, on_event=listen) as pool:
        assert [pool.submit(item).result() for item in range(10)] == list(range(10))
    assert [one.exc_type for one in told] == [ValueError, KeyError]


def test_without_a_listener_there_are_no_events() -> None:
    with WorkerPool[int, Any](lambda lease: lease.item) as pool:
        assert pool.submit(1).result() == 1
    assert pool._events is None
