"""WorkerPool: threads that work through a LeaseQueue, and can be killed at it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

from desist._core import (
    CancelCause,
    CancelSource,
    KillReport,
    Lease,
    LeaseQueue,
    Seat,
    StopPolicy,
    hold_off,
)
from desist._enums import Outcome
from desist._exceptions import PoolExhausted, TaskCancelled
from desist._future import Future

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")


class ItemFuture(Future[R]):
    """What will become of an item of a WorkerPool."""

    def __init__(self) -> None:
        """For WorkerPool.submit()."""
        super().__init__()
        self._cancel_item: Callable[[], bool | None] = bool
        self.item_id = 0

    def cancel(self) -> bool:
        """The item is unwanted: as WorkerPool.cancel_item().

        True if it has not been started and never will be. False if code is at work on it, which is
        asked to stop, or if it had ended.
        """
        return not self._settled.is_set() and self._cancel_item() is True

    def cancelled(self) -> bool:
        """Was it cancelled, before or while it was worked on?"""
        return isinstance(self._exception, TaskCancelled)

    # Called by the core, on the worker's thread, when no kill can strike it.

    def _finish(self, result: R) -> None:
        self.set_running_or_notify_cancel()
        self.set_result(result)

    def _fail(self, failure: BaseException | CancelCause) -> None:
        self.set_running_or_notify_cancel()
        self.set_exception(TaskCancelled(failure) if isinstance(failure, CancelCause) else failure)


class WorkerPool(Generic[T, R]):
    """Threads that call `handler(lease)` for every item of a LeaseQueue.

    What the handler returns is the item's result, unless it has called lease.ack() itself; an
    exception gives the item back, to be tried again as the queue's RetryPolicy says. A worker
    that is killed goes on with the next item, and the one that it had is leased again.

    Leaving the `with` block waits until all work has ended, then stops the workers; if an
    exception leaves it, they are stopped at once.
    """

    def __init__(
        self,
        handler: Callable[[Lease[T]], R],
        *,
        workers: int = 4,
        queue: LeaseQueue[T] | None = None,
        policy: StopPolicy | None = None,
        max_abandoned: int = 2,
    ) -> None:
        """Start `workers` threads.

        `policy` is for killing workers. A worker that no rung ends is given up and replaced, at
        most `max_abandoned` times.
        """
        if not callable(handler):
            message = f"handler must be callable, not {type(handler).__name__}"  # type: ignore[unreachable]
            raise TypeError(message)
        if workers < 1:
            message = f"workers must be at least 1, not {workers}"
            raise ValueError(message)
        if max_abandoned < 0:
            message = f"max_abandoned must not be negative, but is {max_abandoned}"
            raise ValueError(message)
        self.queue: LeaseQueue[T] = LeaseQueue() if queue is None else queue
        self._owns_queue = queue is None
        self._handler = handler
        self._policy = StopPolicy() if policy is None else policy
        self._may_abandon = max_abandoned
        self._source = CancelSource()
        # A pool that nobody has any more, or that is still there at exit, stops working.
        weakref.finalize(self, self._source.cancel, "nobody has the pool any more")
        self._process = os.getpid()
        self._stopped = False
        self._seats = [self._start_worker(index) for index in range(workers)]

    def _start_worker(self, index: int) -> Seat:
        seat = Seat(self.queue, self._source.token)
        name = f"desist-worker-{index}"
        seat.launch(name)
        thread = threading.Thread(
            target=seat.work, args=(name, self._handler), name=name, daemon=True
        )
        hold_off(thread.start)  # a kill in it would leave locks of threading held
        return seat

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            message = "this pool's workers are in the parent process; make a new pool after a fork"
            raise RuntimeError(message)
        if self._stopped:
            message = "this pool has been stopped; make a new one"
            raise RuntimeError(message)

    def submit(self, item: T) -> ItemFuture[R]:
        """Add an item; its future tells what becomes of it. Never blocks."""
        self._check_usable()
        if not self.workers_alive():
            message = "all workers of this pool were given up; nobody is left to do the work"
            raise PoolExhausted(message)
        future: ItemFuture[R] = ItemFuture()
        future.item_id = item_id = self.queue._submit(item, future)  # noqa: SLF001 (the core's own door)
        future._cancel_item = lambda: self._cancel(item_id, None)  # noqa: SLF001 (its own module)
        return future

    def cancel_item(self, item_id: int, reason: str | None = None) -> bool:
        """The work is unwanted: it is never leased again, and code at work on it is asked to stop.

        False if it had ended before.
        """
        self._check_usable()
        return self._cancel(item_id, reason) is not None

    def _cancel(self, item_id: int, reason: str | None) -> bool | None:
        dead = self.queue._cancel(item_id, reason)  # noqa: SLF001 (the core's own door)
        if dead is False:
            for seat in self._seats:
                seat.cancel(item_id, reason)
        return dead

    def kill_worker(self, index: int, reason: str | None = None) -> KillReport:
        """The worker is unwanted: what it does is killed, and its item leased again.

        Blocks until it has ended or was given up, as long as the pool's policy says. An idle
        worker has nothing to kill. PoolExhausted: it was given up, and is not replaced, for
        that has happened too often.
        """
        self._check_usable()
        if not 0 <= index < len(self._seats):
            message = (
                f"there is no worker {index}; they are numbered from 0 to {len(self._seats) - 1}"
            )
            raise IndexError(message)
        seat = self._seats[index]
        report = seat.kill(reason, self._policy)
        if report.outcome is Outcome.ABANDONED:
            if self._may_abandon == 0:
                message = (
                    f"worker {index} was given up and is not replaced: that has happened too often"
                )
                raise PoolExhausted(message)
            self._may_abandon -= 1
            self._seats[index] = self._start_worker(index)
        return report

    def workers_alive(self) -> int:
        """How many workers are there to work; one that was given up is not."""
        return sum(not seat.wait(0) for seat in self._seats)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all work has ended (True), at most for `timeout` seconds. A checkpoint."""
        self._check_usable()
        return self.queue._drain(timeout)  # noqa: SLF001

    def stop(self) -> None:
        """Stop the workers; what they were working on is ready again. Idempotent.

        If the queue is the pool's own, nobody will work on what is left in it: it is dead, and
        its futures raise TaskCancelled. A queue that was passed in keeps it for other pools.

        Blocks until each has ended or was given up, as the pool's policy says.
        """
        if self._stopped or os.getpid() != self._process:
            return
        self._stopped = True
        self._source.cancel("the pool is stopping")
        for seat in self._seats:
            seat.kill("the pool is stopping", self._policy)
        for seat in self._seats:
            seat.wait()
        if self._owns_queue:
            self.queue._give_up("the pool has stopped")  # noqa: SLF001

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
            if kind is None and self.workers_alive():
                self.drain()
        finally:
            self.stop()
