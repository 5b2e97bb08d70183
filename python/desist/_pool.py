"""WorkerPool: threads that work through a queue of leases, and can be killed while they do.

Guarantees: an item of the queue is done, ready again, or dead, whatever ends its handler;
and every future that submit() has returned is settled, at the latest when the pool stops.

How: the loop of a worker, and the settlement of its item, are native (`WorkerSlot`). The workers
are in the `Roster`, limits of their replacement in the `Supervisor`. A future is settled by the
queue when its item ends, by the supervisor when the pool ends by itself, or by stop(), and the
first of them counts.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from contextlib import ExitStack
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from desist._core import (
    BegunKill,
    CancelCause,
    CancelSource,
    FileQueue,
    Lease,
    LeaseQueue,
    OwnerBlock,
    PoolMetrics,
    ProcessStopPolicy,
    StopPolicy,
    call_masked,
    cancel_because,
    cancel_scope,
    check_runnable,
    checked_time_limit,
    checkpoint,
    shield,
)
from desist._enums import CauseKind, KillOutcome, TaskState
from desist._events import Events
from desist._exceptions import TaskAborted
from desist._exit import REASON, end_at_exit
from desist._item_future import ItemFuture, ItemPromise
from desist._killing import end_now, report
from desist._ports import port_of
from desist._supervisor import RestartPolicy, Supervisor
from desist._worker import Roster, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist._child import ChildHandler
    from desist._core import KillReport
    from desist._events import WorkEvent
    from desist.engines import EngineQueue

T = TypeVar("T")
R = TypeVar("R")

_STOPPING = "the pool is stopping"


class PoolStats(NamedTuple):
    """The counts of a WorkerPool."""

    workers: int
    """Workers that the pool has, those included that leave it after their item."""
    alive: int
    """Workers that are idle or busy."""
    busy: int
    """Workers that work on an item."""
    restarts: int
    """Replacements of workers."""
    abandoned: int
    """Workers that no rung of a kill has ended, and whose threads still run."""
    started: int
    """Attempts. Each ends as one of the next four."""
    done: int
    failed: int
    cancelled: int
    killed: int
    requeued: int
    """Attempts after which the item was ready, or delayed, again."""
    dead: int
    """Items that were dead-lettered."""


class WorkerPool(OwnerBlock, Generic[T, R]):
    """Threads that call `handler(lease)` for every item of a queue.

    With `isolation="process"` each thread has a child process, in which the handler is called: a
    kill also ends calls that block in C, and a crash loses one attempt, not the program. Handler,
    items and results are pickled, and the main module is imported in the process (see
    docs/processes.md).

    The handler's return value is the item's result, unless the handler has called lease.ack()
    itself. A coroutine function or a generator function is refused, whose call returns before its
    code runs; an attempt whose handler returns a coroutine, a generator or another awaitable has
    failed. After an exception the item is requeued, as the queue's RetryPolicy says. A worker that
    is killed goes on with the next item, and its item is leased again.

    Leaving the `with` block waits until all work has ended, then stops the workers; an exception
    that leaves the block, or is raised in that wait, stops them at once. The wait is that of
    drain(), the stop that of stop(), with what is said there of cancels and kills.

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
        time_limit: float | None = None,
        restart: RestartPolicy | None = None,
        on_event: Callable[[WorkEvent], object] | None = None,
    ) -> None:
        """Start `workers` threads, and a process for each with `isolation="process"`.

        `queue` has the items: a queue; a path, for the FileQueue in that file; or a URL that
        desist.engines.open_queue() takes. Without it, the pool has a LeaseQueue of its own, whose
        unfinished items are dead when the pool stops; other queues keep them.

        `policy` is for killing workers: a StopPolicy, or a ProcessStopPolicy for worker processes.
        A worker that no rung ends is abandoned, and replaced.

        `time_limit`: seconds that an attempt may take, counted from the lease. At the limit the
        handler is cancelled, with a deadline as the cause; if that does not end it, it is killed as
        by Worker.kill(), rung by rung of the policy. The attempt has failed then, with a
        TimeoutError that names the limit. An item's own time_limit counts instead of the pool's,
        whether it is shorter or longer; math.inf means that there is none. In simulated time an
        attempt is cancelled at its limit, and not killed.

        `on_event(event)` is called for every event of an item: those of one item one after another
        and in their order, "submitted" first. It is called on the thread on which the event
        happens, a worker's where no kill is delivered, or on that of the item's event before; so it
        should be quick. Its exceptions stop nothing, and go to sys.unraisablehook, the first of
        each type.

        Raises:
            TypeError: the handler cannot be pickled, or its call would not run its code, or an
                argument is of the wrong type.
            ValueError: a number is out of its range.
        """
        time_limit = checked_time_limit(time_limit)
        restart = RestartPolicy() if restart is None else restart
        _check(handler, workers, restart, isolation)
        stop = _policy_for(isolation, policy)
        self._owns_queue = queue is None or isinstance(queue, (str, PathLike))
        self.queue: LeaseQueue[T] | FileQueue[T] | EngineQueue[T] = _opened(queue)
        self._source = CancelSource()
        self._port = port_of(self.queue)
        self._events = _events_for(on_event, self._port.name)
        self._tally = PoolMetrics(self._events)
        if self._events is not None:
            self._events.metrics = self._tally
        self._promises: set[ItemPromise] = set()
        # Set before the promises are failed; a submission looks at it when its promise is there.
        self._has_ended = False
        self._supervisor = Supervisor(restart, self._source, self._promises)
        self._roster = Roster(
            handler,
            port=self._port,
            policy=stop,
            time_limit=time_limit,
            supervisor=self._supervisor,
            pool=self._source,
            tally=self._tally,
            events=self._events,
        )
        # A pool without references stops working.
        dropped = weakref.finalize(self, _stop_dropped, self._source, self._roster.children)
        dropped.atexit = False
        end_at_exit(self)
        call_masked(self._roster.resize, workers)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers, the oldest first; a replacement is in the place of the one it replaces."""
        return self._roster.workers

    def submit(
        self,
        item: T,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float | None = None,
        expires: float | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> ItemFuture[R]:
        """Add an item; its future has the result, if a worker of this pool does the work.

        The handler runs in a copy of the caller's context (contextvars), each attempt in a copy of
        its own; items of put(), and all items in worker processes, have an empty one.

        The arguments are those of the queue's put(). With a key that the queue has, the future is
        settled with the item that is there.

        Blocks: for room, in a queue with a maxsize, for `timeout` seconds at most; and until the
        queue's file or server has answered. A checkpoint.
        On cancel: Cancelled is raised, and nothing was added.
        On timeout: as put() of the queue.
        On kill: as on cancel, with Killed.

        Raises:
            PoolExhausted, PoolFailed: the pool has stopped by itself.
            RuntimeError: the pool has been stopped.
            TypeError: the item cannot be pickled, for a process or a file.
        """
        checkpoint()
        self._roster.check_usable()
        self._supervisor.check()
        if self._roster.children:
            from desist._child import pickled_item

            pickled_item(item)  # raises here, not in the worker later
        future: ItemFuture[R] = ItemFuture()
        promise = ItemPromise(future)
        item_id = self._submit(
            item,
            promise,
            key=key,
            priority=priority,
            delay=delay,
            expires=expires,
            time_limit=time_limit,
            timeout=timeout,
        )
        promise.submitted(item_id, (self._roster, self), self._promises)
        if expires is not None:
            promise.expire_after(expires, self._roster.cancel_item)
        if key is not None:
            self._fail_if_dead(promise)
        if self._supervisor.ended.cancelled:  # perhaps before the promise was known
            self._supervisor.fail(promise)
        if self._has_ended:
            call_masked(self._fail_unfinished)
        return future

    def _submit(
        self,
        item: T,
        promise: ItemPromise,
        *,
        key: str | None,
        timeout: float | None,
        **options: Any,
    ) -> int | str:
        """Put the item, and tell the listener."""
        events = self._events
        if events is None:
            return self._port.submit(item, promise, key=key, timeout=timeout, **options)
        put = partial(self._port.submit, item, promise, key=key, **options)
        return events.submit(put, key, timeout)

    def _fail_if_dead(self, promise: ItemPromise) -> None:
        """The item that stands for this one may be dead already: no worker will lease it."""
        if not self.queue.counts()["dead"]:
            return
        item_id = promise.future.item_id
        failures = self._port.failures_of(item_id)
        if failures is None:
            return
        why = failures[-1] if failures else None
        if not isinstance(why, (BaseException, CancelCause)):
            why = RuntimeError(f"item {item_id}, which has this key, is dead: {why}")
        promise.fail(why)

    def cancel_item(self, item_id: int | str, reason: str | None = None) -> bool:
        """Cancel an item: it is never leased again, and code at work on it is asked to stop.

        Never blocks, except for a queue whose server or file has to answer. False: it had ended.
        """
        self._roster.check_usable()
        return self._roster.cancel_item(item_id, reason) is not None

    def kill_item(
        self,
        item_id: int | str,
        reason: str | None = None,
        *,
        policy: StopPolicy | ProcessStopPolicy | None = None,
    ) -> KillReport:
        """Cancel an item, and stop the worker's code for it, as its future's kill() does.

        Items that put() has added are killed as well. The policy is the pool's unless one is given.
        ALREADY_DONE: no worker of this pool works on an item with this id.

        Blocks: until the code has ended or was abandoned: at most for the sum of the policy's
        seconds, and as long as clean-up and commit blocks defer the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            PoolExhausted: the worker was abandoned and is not replaced: that happened too often.
            RuntimeError: called by the code itself, or the pool has been stopped.
        """
        self.cancel_item(item_id, reason)
        return self._roster.kill_item(item_id, reason, policy)

    def pause(self) -> None:
        """Let the workers lease nothing more; they end the items that they work on. Idempotent.

        When this has returned, no item is leased until resume(): not by workers that replace
        others, nor by those that resize() adds. The handler of an item that was leased just before
        may still begin. Items can be submitted, cancelled and killed, and the pool can be stopped.
        drain() without a timeout raises RuntimeError while there is work, and so does the end of
        the `with` block. Other pools of the queue go on.

        Blocks: until no worker is leasing: at once, unless the queue's file or server has to
        answer. A checkpoint.
        On cancel: Cancelled is raised; the pool is paused all the same, but a worker that was
        leasing may have got an item.
        On kill: as on cancel, with Killed.

        Raises:
            RuntimeError: the pool has been stopped.
        """
        checkpoint()
        self._roster.check_usable()
        call_masked(self._roster.pause)

    def resume(self) -> None:
        """Let the workers lease items again, after pause(). Idempotent; never blocks.

        Raises:
            RuntimeError: the pool has been stopped.
        """
        self._roster.check_usable()
        call_masked(self._roster.resume)

    def resize(self, workers: int) -> None:
        """Let the pool have so many workers, at least one; pause() is for none.

        New workers are started. If there are too many, idle ones leave the pool first, and the
        others when they have ended the items that they work on: until then they are in `workers`.

        Blocks: as pause(), for the workers that leave; and for the start of worker processes.
        On cancel: Cancelled is raised before anything is changed; or from the wait for the workers
        that leave, and they do all the same.
        On kill: as on cancel, with Killed.

        Raises:
            PoolExhausted, PoolFailed: the pool has stopped by itself.
            RuntimeError: the pool has been stopped.
            ValueError: `workers` is less than one.
        """
        _check_count(workers)
        checkpoint()
        self._roster.check_usable()
        self._supervisor.check()
        call_masked(self._roster.resize, workers)

    def workers_alive(self) -> int:
        """Count the workers that are idle or busy."""
        return sum(worker.state in ("idle", "busy") for worker in self.workers)

    def stats(self) -> PoolStats:
        """Count the attempts of the pool, and its workers. Never blocks.

        The end of an item is counted after the queue has recorded it, so drain() may return an
        instant earlier.
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
        """Wait until all work has ended (True), at most for `timeout` seconds.

        Blocks: until then. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the workers go on.
        On timeout: returns False.
        On kill: as on cancel, with Killed.

        Raises:
            ConnectionError: the queue's server was away until `timeout` was over. The pool goes on.
            PoolExhausted, PoolFailed: the pool has stopped by itself, or the queue fails here.
            RuntimeError: the pool has been stopped. Or it is paused, or becomes so meanwhile: there
                is work, and no timeout was given, so that the wait might not end.
        """
        self._roster.check_usable()
        failed, watched = self._supervisor.queue_failed, [self._supervisor.ended]
        if timeout is None:
            if self._roster.pausing.token.cancelled and self._port.drain(0, failed):
                return True
            watched.append(self._roster.pausing.token)
        with cancel_scope() as scope, ExitStack() as stack:
            for token in watched:
                stack.enter_context(token.on_cancel(lambda _: scope.cancel()))
            if self._port.drain(timeout, failed):
                return True
        self._supervisor.check()
        if not scope.cancelled_caught:
            return False
        message = (
            "the pool is paused, and its queue is not empty: resume() it, give drain() a timeout, "
            "or stop() the pool, which leaves the items in the queue"
        )
        raise RuntimeError(message)

    def stop(self) -> None:
        """Stop the workers; the items that they worked on are ready again. Idempotent.

        Unfinished items of the pool's own queue are dead; a queue that was passed in keeps them for
        other pools. Futures of unfinished items raise TaskCancelled.

        Blocks: until each worker has ended or was abandoned, as the pool's policy says; they are
        killed side by side. The TaskAborted of an abandoned one is passed to threading.excepthook.
        On cancel: goes on; the caller's own cancellation does not interrupt it, and its own kill is
        deferred. Ctrl-C has the workers killed at once, and is raised when they have ended.

        Raises:
            RuntimeError: called by a worker of this pool, which cannot wait for itself.
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
        call_masked(roster.stop)
        cancel_because(self._source.token, CancelCause.shutdown(_STOPPING))
        with shield(math.inf):  # a cancelled caller leaves no worker behind either
            try:
                end_now(self._begin_end)
            finally:
                call_masked(self._settle)

    def _begin_end(self) -> Callable[[], None]:
        """Begin to kill the busy workers; returns the function that goes on with it."""
        roster = self._roster
        busy = [
            (worker, f"{worker.name} item {worker.item_id}")
            for worker in roster.workers
            if worker._seat.busy  # noqa: SLF001 (the pool's own)
        ]
        kind, policy = CauseKind.SHUTDOWN, roster.policy
        kills = [
            worker._seat.begin_kill(_STOPPING, policy, kind=kind)  # noqa: SLF001 (the pool's own)
            for worker, _ in busy
        ]

        def finish() -> None:
            try:
                BegunKill.finish_all(kills)
            finally:
                for worker, work in busy:
                    roster.replace_if_abandoned(worker)
                    if worker.state == "abandoned":
                        cause = CancelCause.shutdown(_STOPPING)
                        report(TaskAborted(work, KillOutcome.ABANDONED, cause))

        return finish

    def _settle(self) -> None:
        """Wait for the workers, which have nothing to do any more, and fail what is unfinished."""
        for worker in self._roster.workers:
            worker._seat.wait()  # noqa: SLF001 (the pool's own)
        for child in list(self._roster.children):
            if child.seat.abandoned:
                child.dismiss()
            else:
                child.gone.wait()
        self._has_ended = True
        self._fail_unfinished()

    def _fail_unfinished(self) -> None:
        """Fail what is unfinished, when no worker leases items any more. Idempotent."""
        unfinished = list(self._promises)
        stopped = CancelCause.shutdown("the pool has stopped")
        if self._owns_queue:
            self._port.abandon("the pool has stopped")
            if self._events is not None and isinstance(self.queue, LeaseQueue):
                for promise in unfinished:
                    self._events.dead(promise.future.item_id, stopped)
        for promise in unfinished:
            promise.fail(stopped)

    # Of an Owner.

    _lets_work_end = False
    # The futures that were not settled when the interpreter began to exit, and the counts.
    _at_exit: tuple[list[ItemFuture[R]], dict[str, int]] | None = None

    def _begin_at_exit(self, _until: float, /) -> list[BegunKill]:
        roster = self._roster
        if roster.stopped:
            return []
        futures = [promise.future for promise in list(self._promises)]
        self._at_exit = (futures, self._tally.counts())
        roster.stop()
        cancel_because(self._source.token, CancelCause.shutdown(REASON))
        seats = [worker._seat for worker in roster.workers]  # noqa: SLF001 (the pool's own)
        kind, policy = CauseKind.SHUTDOWN, roster.policy
        return [seat.begin_kill(REASON, policy, kind=kind) for seat in seats if seat.busy]

    def _finish_at_exit(self) -> str | None:
        if self._at_exit is None:
            return None
        self._settle()
        futures, before = self._at_exit
        after = self._tally.counts()
        handlers = sum(after[how] - before[how] for how in ("cancelled", "killed"))
        handlers += sum(worker.state == "abandoned" for worker in self.workers)
        items = sum(future.state is TaskState.CANCELLED for future in futures)
        if not handlers and not items:
            return None
        rest = "lost with its queue" if isinstance(self.queue, LeaseQueue) else "still in its queue"
        return f"handlers that were cut off: {handlers}; items that are not done: {items} ({rest})"

    # Of the block's end.

    def _join_work(self) -> None:
        if not self._roster.stopped:
            self.drain()

    def _end_work(self) -> None:
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


def _check(
    handler: Callable[..., object], workers: int, restart: RestartPolicy, isolation: str
) -> None:
    check_runnable(handler, "handler")
    if not isinstance(restart, RestartPolicy):
        message = f"restart must be a RestartPolicy, not {type(restart).__name__}"  # type: ignore[unreachable]
        raise TypeError(message)
    _check_count(workers)
    if isolation not in ("thread", "process"):
        message = f'isolation must be "thread" or "process", not {isolation!r}'
        raise ValueError(message)
    for name, value in restart._asdict().items():
        if not value >= 0:
            message = f"{name} of RestartPolicy must not be negative, but is {value}"
            raise ValueError(message)


def _check_count(workers: int) -> None:
    if workers < 1:
        message = f"workers must be at least 1, not {workers}"
        raise ValueError(message)


def _events_for(on_event: Callable[[WorkEvent], object] | None, queue: str) -> Events | None:
    if on_event is None:
        return None
    check_runnable(on_event, "on_event")
    return Events(on_event, queue)


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


def _stop_dropped(source: CancelSource, children: list[ChildHandler[T, R]]) -> None:
    cause = CancelCause.shutdown("the pool was dropped without stop()")
    cancel_because(source.token, cause)
    for child in children:
        child.dismiss()
