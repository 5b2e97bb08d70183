"""I13: stopped at any bytecode, code neither loses an item of a queue nor gets it twice."""

from __future__ import annotations

import threading
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist.testing import sweep_cancels, sweep_kills
from support import IN_HAND, NEVER, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist.testing import SweepReport


class Hooked(desist.Queue[Any]):
    """A queue with a store of its own, as in subclasses of queue.Queue."""

    def _init(self, maxsize: int) -> None:
        del maxsize
        self.store: dict[int, Any] = {}
        self.number = 0

    def _qsize(self) -> int:
        return len(self.store)

    def _put(self, item: Any) -> None:
        self.number += 1
        self.store[self.number] = item

    def _get(self) -> Any:
        first = min(self.store)
        return self.store.pop(first)


QUEUES: dict[str, Callable[[], Any]] = {
    "Queue": lambda: desist.Queue(3),
    "LifoQueue": lambda: desist.LifoQueue(3),
    "PriorityQueue": lambda: desist.PriorityQueue(3),
    "a subclass of Queue": lambda: Hooked(3),
    "SimpleQueue": desist.SimpleQueue,
}


class Passed:
    """A queue with two items, and the items got from it.

    An item is recorded by the call that gets it: CPython raises no kill between the two, so that a
    lost item must have been lost by the queue.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.queue = make()
        self.counts = not isinstance(self.queue, desist.SimpleQueue)
        self.got: list[int] = []
        self.done: list[None] = []
        for item in (1, 2):
            self.queue.put(item)

    def check(self) -> None:
        left = self.left()
        there = sorted(self.got + left)
        lost = ([1], [2], [1, 3], [2, 3]) if IN_HAND else ()
        assert there in ([1, 2], [1, 2, 3], *lost), (self.got, left)
        if self.counts:
            unfinished = len(self.got) + len(left) - len(self.done)
            # Counted as done, and killed before that was recorded.
            assert abs(self.queue.unfinished_tasks - unfinished) <= (2 if IN_HAND else 1)
            while self.queue.unfinished_tasks:
                self.queue.task_done()
            self.queue.join()

    def left(self) -> list[int]:
        """The items still in the queue."""
        with desist.fail_after(5):
            left = [self.queue.get(timeout=0) for _ in range(self.queue.qsize())]
        assert self.queue.empty()
        return left


def wait(state: Passed) -> None:
    state.queue.put(3)
    for _ in range(3):
        state.got.append(state.queue.get())


def wait_for_a_time(state: Passed) -> None:
    state.queue.put(3, timeout=NEVER)
    for _ in range(3):
        state.got.append(state.queue.get(timeout=NEVER))


def do_not_wait(state: Passed) -> None:
    state.queue.put_nowait(3)
    for _ in range(3):
        state.got.append(state.queue.get_nowait())


def find_it_empty(state: Passed) -> None:
    try:
        while True:
            state.got.append(state.queue.get(block=False))
    except Empty:
        state.queue.put(3)


def count(state: Passed) -> None:
    while not state.queue.empty():
        state.got.append(state.queue.get())
        if state.counts:
            state.done.append(state.queue.task_done())


def wait_for_any(state: Passed) -> None:
    other = desist.Event()
    desist.wait_any(other, state.queue.put_op(3))
    for _ in range(3):
        state.got.append(desist.wait_any(state.queue.get_op(), other)[1])  # type: ignore[index]


USES = [wait, wait_for_a_time, do_not_wait, find_it_empty, count, wait_for_any]

queues = pytest.mark.parametrize("queue", QUEUES)
uses = pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
sweeps = pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])


@queues
@uses
@sweeps
def test_i13_nothing_is_lost_by_a_stop_at_any_bytecode(
    queue: str, use: Callable[[Passed], None], sweep: Callable[..., SweepReport]
) -> None:
    if use is wait_for_any and queue not in ("Queue", "LifoQueue"):
        pytest.skip("not offered")
    report = sweep(use, Passed.check, setup=lambda: Passed(QUEUES[queue]))
    tell(f"{queue}: {use.__name__}, {sweep.__name__}", report)
    assert report.points > 20
    assert report.stopped > 0 or sweep is sweep_cancels


class Partner:
    """A thread that is not killed, and performs the step that the code under test waits for."""

    def __init__(self, make: Callable[[], Any], act: Callable[[Any], Any]) -> None:
        self.queue = make()
        self.results: list[Any] = []
        self.sent: list[None] = []
        self.thread = threading.Thread(target=lambda: self.results.append(act(self.queue)))
        self.thread.start()


@queues
@sweeps
def test_i12_a_waiting_get_receives_the_item_that_is_put(
    queue: str, sweep: Callable[..., SweepReport]
) -> None:
    def put(state: Partner) -> None:
        state.sent.append(state.queue.put(1))

    def check(state: Partner) -> None:
        if not state.sent and not state.results:
            # Put without a wake-up? Then the item is queued, and the waiter sleeps.
            state.thread.join(0.02)
            assert state.queue.empty(), "a waiter sleeps though there is something to get"
            state.queue.put(1)
        state.thread.join(5)
        assert state.results == [1]

    report = sweep(put, check, setup=lambda: Partner(QUEUES[queue], lambda queue: queue.get()))
    tell(f"{queue}: put to a waiter, {sweep.__name__}", report)
    assert report.points >= 5


@queues
@sweeps
def test_i12_a_waiting_put_gets_the_room_that_is_made(
    queue: str, sweep: Callable[..., SweepReport]
) -> None:
    if queue == "SimpleQueue":
        pytest.skip("there is always a place")

    def full() -> Any:
        made = QUEUES[queue]()
        for item in (1, 2, 3):
            made.put(item)
        return made

    def get(state: Partner) -> None:
        state.results.append(state.queue.get())

    def check(state: Partner) -> None:
        got = [item for item in state.results if item is not None]
        if not got:
            state.thread.join(0.02)
            assert state.queue.full() or not state.thread.is_alive(), (
                "a waiter sleeps though there is a place"
            )
            got = [state.queue.get()]
        state.thread.join(5)
        left = [state.queue.get_nowait() for _ in range(state.queue.qsize())]
        there = sorted(got + left)
        assert there == [1, 2, 3, 4] or (IN_HAND and len(there) == 3)

    report = sweep(get, check, setup=lambda: Partner(full, lambda queue: queue.put(4)))
    tell(f"{queue}: get from a full one, {sweep.__name__}", report)
    assert report.points >= 5
