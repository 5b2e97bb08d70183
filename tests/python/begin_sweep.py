"""Something happens at each instant between the lease of an item and the call of its handler.

The instants are the lines of Python that the worker's thread executes: those of the queue, if it is
written in Python, of the item's class while it is decoded, and of the pool's observer. The action
is done within the trace function, as another thread could do it there.
"""

from __future__ import annotations

import gc
import queue
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import desist
from desist import RetryPolicy, TaskCancelled, WorkerPool
from support import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from desist import Lease, WorkEvent
    from desist._item_future import ItemFuture

    Pool = WorkerPool[Any, Any]

TRACED = str(Path(desist.__file__).parent), str(Path(__file__).parent)
PATIENCE = 20.0
"""Seconds after which a test fails: a cancel was lost."""
AT_ONCE = RetryPolicy(backoff=0)


class Item:
    """Is decoded by code that has lines, and a checkpoint."""

    def __setstate__(self, state: object) -> None:
        self.state = state
        desist.checkpoint()

    def __getstate__(self) -> object:
        return "a"


class Instants:
    """Calls `act` at the instant with this number, on the worker's thread."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.left = number
        self.act = act
        self.submitted = threading.Event()
        self.submitting = False
        self.news: queue.SimpleQueue[str] = queue.SimpleQueue()

    def trace(self, frame: FrameType, what: str, _: object) -> Any:
        """The trace function of all new threads."""
        if threading.current_thread().name != "desist-worker-0":
            return None
        if frame.f_code.co_name == "handler":
            self.left = 0
            self.news.put("begun")
            return None
        if (
            not frame.f_code.co_filename.startswith(TRACED)
            or "dict_engine" in frame.f_code.co_filename
        ):
            return None  # it may hold a lock that a canceller needs
        if what == "line" and self.submitting and self.left:
            self.submitted.wait()
            self.left -= 1
            if not self.left:
                self.act()
                self.news.put("acted")
        return self.trace


def cancel(pool: Pool, future: ItemFuture[Any]) -> None:
    pool.cancel_item(future.item_id, "not wanted")


def kill(_: Pool, future: ItemFuture[Any]) -> None:
    future.kill_soon("not wanted")


def stop(pool: Pool, _: ItemFuture[Any]) -> None:
    stopping = threading.Event()
    registration = pool._source.token.on_cancel(lambda _: stopping.set())
    threading.Thread(target=pool.stop, daemon=True).start()
    stopping.wait()
    registration.unregister()


ACTIONS = [cancel, kill, stop]


def acted_at(number: int, of_queue: Any, action: Callable[[Pool, ItemFuture[Any]], object]) -> bool:
    """Act at one instant, and check that it was not lost; False: the handler begins earlier."""
    futures: list[ItemFuture[Any]] = []
    ends: list[BaseException] = []

    def handler(_: Lease[Any]) -> None:
        try:
            desist.sleep_forever()
        except BaseException as end:
            ends.append(end)
            raise

    def listen(_: WorkEvent) -> None:
        len(futures)  # a line, at which the item is leased

    instants = Instants(number, lambda: action(pool, futures[0]))
    threading.settrace(instants.trace)
    try:
        pool: Pool = WorkerPool(handler, workers=1, queue=of_queue, on_event=listen)
    finally:
        threading.settrace(sys.gettrace())  # a coverage tool's, or none
    try:
        instants.submitting = True
        futures.append(pool.submit(Item()))
        instants.submitted.set()
        acted = instants.news.get(timeout=PATIENCE) == "acted"
        if not acted:
            pool.cancel_item(futures[0].item_id)
        assert isinstance(futures[0].exception(PATIENCE), TaskCancelled), f"lost at {number}"
        assert all(isinstance(end, (desist.Cancelled, desist.Killed)) for end in ends)
    finally:
        in_thread(pool.stop)
    return acted


def sweep(new_queue: Callable[[], Any], action: Callable[[Pool, ItemFuture[Any]], object]) -> int:
    """Act at every instant; returns how many there are."""
    gc.collect()
    gc.disable()  # a finalizer that waits for its instant may have interrupted a lock's holder
    try:
        return _sweep(new_queue, action)
    finally:
        gc.enable()


def _sweep(new_queue: Callable[[], Any], action: Callable[[Pool, ItemFuture[Any]], object]) -> int:
    number = 1
    while True:
        of_queue = new_queue()
        before = of_queue.counts()
        acted = acted_at(number, of_queue, action)
        after = of_queue.counts()
        end = "ready" if action is stop and acted else "dead"
        added = {state: after[state] - before[state] for state in after}
        assert added == dict.fromkeys(after, 0) | {end: 1}, f"at {number}"
        if end == "ready":
            of_queue.lease(0).ack()
        with suppress(AttributeError):  # not all queues have it
            of_queue.close()
        if not acted:
            return number - 1
        number += 1
