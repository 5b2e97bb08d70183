"""A model of a pool, which a real one is compared with, over any queue.

One thread runs a random program: it submits items, tells the handlers how to end, cancels and kills
items and workers, lists, pauses, resumes and resizes. Which item a worker leases is not the model's
to say; it learns that from the pool's events, and every event must be one that the model allows.
After each step the pool comes to rest: no worker that may lease is idle while an item is ready.
Then the model and the queue agree in all states, attempts and ends. There are no sleeps: handlers
wait for their orders, and the program for events.
"""

from __future__ import annotations

import math
import queue
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import desist
from desist import RetryPolicy, StopPolicy, TaskCancelled, TaskState, WorkerPool
from desist._ports import port_of
from held import PATIENCE
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease, WorkEvent
    from desist._item_future import ItemFuture

MOST = 3
RETRY = RetryPolicy(max_attempts=MOST, backoff=0)
POLICY = StopPolicy(cooperative=0, at_wait=NEVER)
SOON = 0.001
"""Seconds of a time limit that passes."""


class Item:
    """One item, as the model sees it."""

    def __init__(self, name: int, time_limit: float | None) -> None:
        self.name = name
        self.limited = time_limit == SOON
        self.state = "ready"
        self.attempts = 0
        self.worker = ""
        self.unwanted = False
        # How the attempt is to end: by an order, a limit, a cancel or a kill.
        self.ending: str | None = "limit" if self.limited else None
        self.orders: desist.Queue[str] = desist.Queue()
        self.future: ItemFuture[int]


class Program:
    """A random program on a pool over this queue."""

    STEPS = (
        *("submit", "submit", "submit", "order", "order", "order", "order"),
        *("cancel", "kill_item", "kill_future", "kill_worker"),
        *("pause", "resume", "resume", "resize"),
    )

    def __init__(self, of_queue: Any, seed: int) -> None:
        self.queue = of_queue
        self.seed = seed
        self.rng = random.Random(seed)
        self.before = of_queue.counts()
        self.items: dict[int | str, Item] = {}
        self.names: dict[int, Item] = {}
        self.size = self.rng.randrange(1, 4)
        self.paused = False
        self.stopping = False
        # Names of the workers that leave when they have ended their items.
        self.leaving: set[str] = set()
        self.events: queue.SimpleQueue[WorkEvent] = queue.SimpleQueue()
        self.log: list[str] = []
        self.pool: WorkerPool[int, int] = WorkerPool(
            self.handler,
            workers=self.size,
            queue=of_queue,
            policy=POLICY,
            on_event=self.events.put,
        )

    def handler(self, lease: Lease[int]) -> int:
        order = self.names[lease.item].orders.get()
        if order == "raise":
            raise OSError("ordered")
        if order == "discard":
            lease.discard("ordered")
        elif order == "snooze":
            lease.snooze(0)
        elif order == "later":
            lease.snooze(NEVER)
        return lease.item

    # --- the program

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                step = self.rng.choice(self.STEPS)
                self.log.append(step)
                getattr(self, step)()
                self.come_to_rest()
                self.compare()
            self.log.append("stop")
            self.stop()
        except BaseException as failure:
            self.pool.stop()
            if isinstance(failure, AssertionError):
                failure.args = (*failure.args, f"program {self.seed}: {self.log}")
            raise

    def some(self, *states: str) -> Item | None:
        items = [item for item in self.items.values() if item.state in states]
        return self.rng.choice(items) if items else None

    def submit(self) -> None:
        limit = self.rng.choice([None, None, None, NEVER, math.inf, SOON])
        name = len(self.names)
        item = self.names[name] = Item(name, limit)
        item.future = self.pool.submit(name, time_limit=limit)
        self.items[item.future.item_id] = item

    def order(self) -> None:
        item = self.some("busy")
        if item is not None:
            item.ending = self.rng.choice(
                ["return", "return", "raise", "discard", "snooze", "later"]
            )
            self.log.append(f"{item.name} {item.ending}")
            item.orders.put(item.ending)

    def cancel(self) -> None:
        item = self.some("ready", "busy", "delayed", "done", "dead")
        if item is not None:
            self.log.append(f"{item.name} {item.state}")
            cancelled = self.pool.cancel_item(item.future.item_id)
            assert cancelled is self.reject(item, "cancel")

    def kill_item(self) -> None:
        self.kill_by(lambda item: self.pool.kill_item(item.future.item_id))

    def kill_future(self) -> None:
        self.kill_by(lambda item: item.future.kill())

    def kill_by(self, kill: Callable[[Item], desist.KillReport]) -> None:
        item = self.some("ready", "busy", "delayed", "done", "dead")
        if item is not None:
            self.log.append(f"{item.name} {item.state}")
            may_be_at_work = item.state == "busy"
            self.reject(item, "kill")
            # It is cancelled first, which may end it.
            nothing = kill(item).outcome is desist.KillOutcome.ALREADY_DONE
            assert nothing or may_be_at_work

    def kill_worker(self) -> None:
        item = self.some("busy")
        if item is None:
            worker = self.rng.choice(self.pool.workers)
            assert worker.kill().outcome is desist.KillOutcome.ALREADY_DONE
            return
        [worker] = [one for one in self.pool.workers if one.item_id == item.future.item_id]
        item.ending = "kill"
        outcome = worker.kill().outcome
        assert outcome in (desist.KillOutcome.COOPERATIVE, desist.KillOutcome.AT_WAIT)

    def reject(self, item: Item, how: str) -> bool:
        """It is not wanted any more. Was it alive?"""
        if item.state in ("ready", "delayed"):
            item.state = "dead"
        elif item.state == "busy":
            item.unwanted = True
            item.ending = how
        else:
            return False
        return True

    def pause(self) -> None:
        self.pool.pause()
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.pool.resume()

    def resize(self) -> None:
        staying = len(self.busy() - self.leaving)
        self.size = self.rng.randrange(1, 5)
        self.log.append(str(self.size))
        self.pool.resize(self.size)
        retired = {one.name for one in self.pool.workers if one._seat.retired} & self.busy()
        assert retired >= self.leaving
        assert len(retired - self.leaving) == max(staying - self.size, 0), "idle ones leave first"
        self.leaving = retired

    def busy(self) -> set[str]:
        """The names of the workers that are at work."""
        return {item.worker for item in self.items.values() if item.state == "busy"}

    # --- what the pool does

    def take_event(self, event: WorkEvent) -> None:
        """Check that it may happen now."""
        item = self.items[event.item_id]
        self.log.append(f"({item.name} {event.kind})")
        getattr(self, f"see_{event.kind}")(item, event)
        self.leaving &= self.busy()

    def see_submitted(self, item: Item, event: WorkEvent) -> None:
        assert event.attempt == 0
        assert item.attempts == 0

    def see_leased(self, item: Item, event: WorkEvent) -> None:
        assert item.state == "ready"
        item.attempts += 1
        assert event.attempt == item.attempts
        item.state, item.worker = "busy", event.worker
        assert not self.paused
        assert event.worker not in self.leaving
        item.ending = "limit" if item.limited else None
        if self.stopping:
            # It was requeued by one worker before the stop had reached another.
            item.ending = "kill"

    def see_started(self, item: Item, event: WorkEvent) -> None:
        assert item.state == "busy"
        assert event.attempt == item.attempts

    def see_done(self, item: Item, _: WorkEvent) -> None:
        assert item.state == "busy"
        assert item.ending == "return"
        item.state = "done"

    def see_failed(self, item: Item, event: WorkEvent) -> None:
        assert item.state == "busy"
        assert item.ending in ("raise", "limit")
        expected = OSError if item.ending == "raise" else TimeoutError
        assert isinstance(event.failure, expected)

    def see_cancelled(self, item: Item, _: WorkEvent) -> None:
        assert item.state == "busy"
        assert item.ending in ("cancel", "kill")

    def see_killed(self, item: Item, _: WorkEvent) -> None:
        assert item.state == "busy"
        assert item.ending in ("kill", "limit")

    def see_requeued(self, item: Item, event: WorkEvent) -> None:
        assert item.state == "busy"
        if item.ending in ("snooze", "later"):
            item.attempts -= 1
        else:
            assert event.attempt < MOST
            assert not item.unwanted
            assert item.ending in ("raise", "limit", "kill")
        item.state = "delayed" if item.ending == "later" else "ready"

    def see_dead(self, item: Item, event: WorkEvent) -> None:
        if item.state == "dead":
            assert event.attempt == 0  # it was cancelled before a worker had it
            return
        assert item.state == "busy"
        assert item.unwanted or item.ending == "discard" or item.attempts == MOST
        item.state = "dead"

    def is_at_rest(self) -> bool:
        busy = [item for item in self.items.values() if item.state == "busy"]
        if any(item.ending is not None for item in busy):
            return False
        ready = any(item.state == "ready" for item in self.items.values())
        return self.paused or not ready or len(self.busy() - self.leaving) >= self.size

    def come_to_rest(self) -> None:
        while not self.is_at_rest() or not self.events.empty():
            self.take_event(self.next_event())

    def next_event(self) -> WorkEvent:
        try:
            return self.events.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("the pool does nothing") from None

    def compare(self) -> None:
        states = {item_id: item.state for item_id, item in self.items.items()}
        listed = {"leased" if state == "busy" else state for state in states.values()}
        counts = self.queue.counts()
        added = {state: counts[state] - self.before[state] for state in counts}
        expected = Counter("leased" if s == "busy" else s for s in states.values())
        assert added == {state: expected[state] for state in counts}, (added, expected)
        shown = {one.id: one for one in self.queue.items() if one.id in self.items}
        assert set(shown) == {item_id for item_id, state in states.items() if state != "done"}
        assert {one.state for one in shown.values()} == listed - {"done"}
        for item_id, one in shown.items():
            item = self.items[item_id]
            assert one.attempt == item.attempts
            assert (one.holder is not None) == (item.state == "busy")
        for item in self.items.values():
            if item.state == "busy":  # its handler is about to begin
                until(partial(is_running, item.future))
            elif item.state in ("ready", "delayed"):
                assert item.future.state is TaskState.PENDING
            elif item.state == "done":
                assert item.future.result(PATIENCE) == item.name
            else:
                failure = item.future.exception(PATIENCE)
                cancelled = item.unwanted or item.ending in (None, "discard", "kill")
                assert isinstance(failure, TaskCancelled) or not cancelled
        busy = sum(item.state == "busy" for item in self.items.values())
        until(lambda: len(self.pool.workers) == self.size + len(self.leaving))
        stats = self.pool.stats()
        assert (stats.busy, stats.restarts, stats.abandoned) == (busy, 0, 0)

    def stop(self) -> None:
        self.stopping = True
        for item in self.items.values():
            if item.state == "busy":
                item.ending = "kill"
        self.pool.stop()
        while not self.events.empty():
            self.take_event(self.events.get())
        assert not any(item.state == "busy" for item in self.items.values())
        counts = self.queue.counts()
        expected = Counter(item.state for item in self.items.values())
        added = {state: counts[state] - self.before[state] for state in counts}
        assert added == {state: expected[state] for state in counts}, (added, expected)
        # The queue's server may have the next program's items, too.
        for item_id, item in self.items.items():
            if item.state in ("ready", "delayed"):
                assert port_of(self.queue).cancel(item_id)


def is_running(future: ItemFuture[int]) -> bool:
    return future.state is TaskState.RUNNING


def until(met: Callable[[], bool]) -> None:
    tick = desist.Event()
    with desist.fail_after(PATIENCE):
        while not met():
            tick.wait(0.001)  # there is no notification


def run_programs(make: Callable[[], Any], programs: int, steps: int = 30) -> None:
    """Run that many, each on a queue of its own."""
    for seed in range(programs):
        of_queue = make()
        Program(of_queue, seed).run(steps)
        getattr(of_queue, "close", lambda: None)()
