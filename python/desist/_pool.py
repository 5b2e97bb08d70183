"""WorkerPool: threads that work through a LeaseQueue, and can be killed at it."""

from __future__ import annotations

import math
import os
import threading
import weakref
from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from desist._core import (
    CancelCause,
    CancelSource,
    FileQueue,
    KillReport,
    Lease,
    LeaseQueue,
    PoolMetrics,
    ProcessStopPolicy,
    StopPolicy,
    WorkerSlot,
    cancel_scope,
    shield,
)
from desist._item_future import ItemFuture, ItemPromise
from desist._killing import kill_soon
from desist._ports import port_of
from desist._supervisor import RestartPolicy, Supervisor
from desist._worker import Roster, Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from desist._child import ChildHandler
    from desist._future import Future
    from desist.engines import EngineQueue

T = TypeVar("T")
R = TypeVar("R")


class WorkEvent(NamedTuple):
    """Something that has happened to an item of a WorkerPool."""

    kind: Literal["started", "done", "failed", "cancelled", "killed", "requeued", "dead"]
    """What became of the attempt, and after all but the first two, what becomes of the item."""
    item_id: int | str
    attempt: int
    worker: str
    """The worker's name."""
    failure: BaseException | CancelCause | None
    """What went wrong, if anything did."""


class PoolStats(NamedTuple):
    """What a WorkerPool has done so far, and how it is."""

    workers: int
    """How many it is meant to have."""
    alive: int
    """How many are there."""
    busy: int
    """How many are at work on an item."""
    restarts: int
    """How many have been replaced."""
    abandoned: int
    """How many threads were given up and left behind."""
    started: int
    """Attempts. Those that are over are done, failed, cancelled or killed."""
    done: int
    failed: int
    cancelled: int
    killed: int
    requeued: int
    """Attempts after which the item was ready, or delayed, again."""
    dead: int
    """Items that were tried for the last time."""


class WorkerPool(Generic[T, R]):
    """Threads that call `handler(lease)` for every item of a queue.

    With `isolation="process"` each has a child process, in which the handler is called: a kill ends
    also what blocks in C, and a crash of it loses one attempt, not the program. Handler, items and
    results are pickled, and the main module is imported over there (see docs/processes.md).

    What the handler returns is the item's result, unless it has called lease.ack() itself; an
    exception gives the item back, to be tried again as the queue's RetryPolicy says. A worker
    that is killed goes on with the next item, and the one that it had is leased again.

    Leaving the `with` block waits until all work has ended, then stops the workers; if an
    exception leaves it, they are stopped at once.

    The pool stops by itself when workers have to be replaced more often than `restart` allows, or
    when the queue fails. Then submit(), drain(), the end of the `with` block and the futures raise
    PoolExhausted, or PoolFailed with the queue's exception as its `__cause__`. Unfinished items
    stay in the queue.
    """

    def __init__(
        self,
        handler: Callable[[Lease[T]], R],
        *,
        workers: int = 4,
        queue: LeaseQueue[T] | FileQueue[T] | EngineQueue[T] | str | PathLike[str] | None = None,
        isolation: Literal["thread", "process"] = "thread",
        policy: StopPolicy | ProcessStopPolicy | None = None,
        restart: RestartPolicy | None = None,
        on_event: Callable[[WorkEvent], object] | None = None,
    ) -> None:
        """Start `workers` threads, and a process for each if these are to be isolated so.

        TypeError: the handler cannot be pickled, for those processes.

        `queue` is where the items are: a queue; a path, for the FileQueue in that file; or a URL
        that desist.engines.open_queue() takes. Without, the pool has a LeaseQueue of its own, and
        what is left in it when the pool stops is dead; elsewhere it stays.

        `policy` is for killing workers: a StopPolicy, or a ProcessStopPolicy for worker processes.
        A worker that no rung ends is abandoned, and replaced.

        `on_event(event)` is called for whatever happens to an item, on the worker's own thread,
        where no kill strikes: it should be quick. What it raises goes to sys.unraisablehook.
        """
        restart = RestartPolicy() if restart is None else restart
        _check(handler, workers, restart, isolation)
        stop = _policy_for(isolation, policy)
        self._owns_queue = queue is None or isinstance(queue, (str, PathLike))
        self.queue: LeaseQueue[T] | FileQueue[T] | EngineQueue[T] = _opened(queue)
        self._tally = PoolMetrics(_observer(on_event))
        self._source = CancelSource()
        self._port = port_of(self.queue)
        self._promises: set[ItemPromise] = set()
        self._supervisor = Supervisor(restart, self._source, self._promises)
        self._roster = Roster(
            handler,
            port=self._port,
            policy=stop,
            supervisor=self._supervisor,
            pool=self._source,
            tally=self._tally,
        )
        # A pool without references, or one that is still there at exit, stops working.
        weakref.finalize(self, _let_go, self._source, self._roster.children)
        for index in range(workers):
            self._roster.add(f"desist-worker-{index}")

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers, in the order of their names; with one that was replaced its replacement."""
        return self._roster.workers

    def submit(
        self,
        item: T,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float | None = None,
        expires: float | None = None,
        timeout: float | None = None,
    ) -> ItemFuture[R]:
        """Add an item; its future tells what becomes of it, if a worker of this pool has it.

        The rest is as in put() of the queue: where that has a maxsize, it waits for room. With a
        key that is known the future is told of the item that is there.
        """
        self._roster.check_usable()
        self._supervisor.check()
        if self._roster.children:
            from desist._child import pickled_item

            pickled_item(item)  # told now, not by its worker later
        future: ItemFuture[R] = ItemFuture()
        promise = ItemPromise(future)
        item_id = self._port.submit(
            item,
            promise,
            key=key,
            priority=priority,
            delay=delay,
            expires=expires,
            timeout=timeout,
        )
        promise.submitted(item_id, (self._roster, self), self._promises)
        if expires is not None:
            promise.expire_after(expires, self._roster.cancel_item)
        if key is not None:
            self._fail_if_dead(promise)
        if self._supervisor.ended.cancelled:  # while this item was put
            self._supervisor.fail(promise)
        return future

    def _fail_if_dead(self, promise: ItemPromise) -> None:
        """The item that stands for this one may be dead already: no worker will lease it."""
        if not self.queue.counts()["dead"]:
            return
        with suppress(NotImplementedError):  # by an engine
            for item_id, _, failures in self.queue.dead():
                if item_id == promise.future.item_id:
                    why = failures[-1] if failures else None
                    if not isinstance(why, (BaseException, CancelCause)):
                        why = RuntimeError(f"item {item_id}, which has this key, is dead: {why}")
                    promise.fail(why)

    def cancel_item(self, item_id: int | str, reason: str | None = None) -> bool:
        """The work is unwanted: it is never leased again, and code at work on it is asked to stop.

        False if it had ended before.
        """
        self._roster.check_usable()
        return self._roster.cancel_item(item_id, reason) is not None

    def workers_alive(self) -> int:
        """How many workers are there to work; one that was given up is not."""
        return sum(worker.state in ("idle", "busy") for worker in self.workers)

    def stats(self) -> PoolStats:
        """What the pool has done so far, and how it is. Never blocks.

        A worker tells of the end of an item when the queue knows of it: drain() may be over an
        instant before that.
        """
        return PoolStats(
            workers=len(self.workers),
            alive=self.workers_alive(),
            busy=sum(worker.state == "busy" for worker in self.workers),
            restarts=self._supervisor.restarts,
            abandoned=self._supervisor.abandoned,
            **self._tally.counts(),
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all work has ended (True), at most for `timeout` seconds. A checkpoint.

        Raises:
            PoolExhausted, PoolFailed: the pool has stopped by itself.
        """
        self._roster.check_usable()
        with cancel_scope() as scope, self._supervisor.ended.on_cancel(lambda _: scope.cancel()):
            return self._port.drain(timeout)
        self._supervisor.check()
        return False

    def stop(self) -> None:
        """Stop the workers; what they were working on is ready again. Idempotent.

        If the queue is the pool's own, nobody will work on what is left in it: it is dead. A queue
        that was passed in keeps it for other pools. Futures of what was not done raise
        TaskCancelled. RuntimeError in a worker of this pool, which cannot wait for itself.

        Blocks until each has ended or was given up, as the pool's policy says, also in a block that
        is cancelled; they are killed side by side.
        """
        roster = self._roster
        if os.getpid() != roster.process:
            return
        if threading.current_thread() in roster.threads:
            message = (
                "a worker cannot wait for its own end: stop the pool from another thread, or raise "
                "something that the code around the pool acts on"
            )
            raise RuntimeError(message)
        roster.stopped = True
        self._source.cancel("the pool is stopping")
        with shield(math.inf):  # a cancelled caller leaves no worker behind either
            seats = [worker._seat for worker in roster.workers]  # noqa: SLF001 (the pool's own)
            for kill in [self._start_last_kill(seat) for seat in seats if seat.busy]:
                kill.result()
            for seat in seats:
                seat.wait()
            for child in roster.children:
                if child.seat.abandoned:
                    child.dismiss()
                else:
                    child.gone.wait()
            if self._owns_queue:
                self._port.abandon("the pool has stopped")
            stopped = CancelCause.explicit("the pool has stopped")
            for promise in list(self._promises):
                promise.fail(stopped)

    def _start_last_kill(self, seat: WorkerSlot) -> Future[KillReport]:
        return kill_soon(
            lambda: seat.begin_kill("the pool is stopping", self._roster.policy).finish
        )

    def __enter__(self) -> WorkerPool[T, R]:
        """Give the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Drain, unless an exception is on its way, and stop."""
        try:
            if kind is None and not self._roster.stopped:
                self.drain()
        finally:
            self.stop()


def _opened(queue: Any) -> Any:
    if queue is None:
        return LeaseQueue()
    if not isinstance(queue, (str, PathLike)):
        return queue
    if isinstance(queue, str) and "://" in queue:
        from desist.engines import open_queue

        return open_queue(queue)
    return FileQueue(queue)


def _check(handler: object, workers: int, restart: RestartPolicy, isolation: str) -> None:
    _check_callable("handler", handler)
    if not isinstance(restart, RestartPolicy):
        message = f"restart must be a RestartPolicy, not {type(restart).__name__}"  # type: ignore[unreachable]
        raise TypeError(message)
    if workers < 1:
        message = f"workers must be at least 1, not {workers}"
        raise ValueError(message)
    if isolation not in ("thread", "process"):
        message = f'isolation must be "thread" or "process", not {isolation!r}'
        raise ValueError(message)
    for name, value in restart._asdict().items():
        if not value >= 0:
            message = f"{name} of RestartPolicy must not be negative, but is {value}"
            raise ValueError(message)


def _check_callable(name: str, value: Any) -> None:
    if not callable(value):
        message = f"{name} must be callable, not {type(value).__name__}"
        raise TypeError(message)


def _observer(on_event: Callable[[WorkEvent], object] | None) -> Callable[..., object] | None:
    if on_event is None:
        return None
    _check_callable("on_event", on_event)
    return lambda *event: on_event(WorkEvent(*event))


def _policy_for(
    isolation: str, policy: StopPolicy | ProcessStopPolicy | None
) -> StopPolicy | ProcessStopPolicy:
    kind = ProcessStopPolicy if isolation == "process" else StopPolicy
    if policy is None:
        return kind()
    if not isinstance(policy, kind):
        message = (
            f'policy of a pool with isolation="{isolation}" must be a {kind.__name__}, '
            f"not {type(policy).__name__}"
        )
        raise TypeError(message)
    return policy


def _let_go(source: CancelSource, children: list[ChildHandler[T, R]]) -> None:
    source.cancel("the pool was dropped without stop()")
    for child in children:
        child.dismiss()
