"""Worker: the handle of one of a pool's workers. Roster: all workers of a pool, and their start.

A handle stays with its worker: when the worker's thread is abandoned, the handle's state remains
"abandoned", and the worker that takes its place has the same name and a handle of its own. A
process that dies is replaced behind the same handle.

An attempt that takes longer than its time limit is killed by the same ladder. Such kills begin on
the thread that runs the callbacks of deadlines, and all that have begun before the "desist-kill"
thread comes to them are finished by this one thread, side by side: there is no thread for each.

How: the tuple of workers is replaced as a whole, under the roster's lock, so that readers need no
lock. A worker is in the tuple before its thread is started, so that pause(), resize() and stop()
reach it, and leaves it when it has left its loop because it was retired. One transition,
`Roster.replace_if_abandoned`, counts a worker that was abandoned and starts another in its place.
It is made under the lock, once for a worker, however many kills of it there are, and whichever has
abandoned it. stop() closes the roster under the same lock: from then on none is started, so stop()
waits for every worker that there is. Lock order: the roster's, then the supervisor's. Both are of
threading, and reentrant: a signal handler may stop the pool in the middle of a change.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from desist._core import (
    BegunKill,
    CancelCause,
    CancelSource,
    ProcessStopPolicy,
    WorkerSlot,
    call_masked,
)
from desist._exceptions import PoolExhausted, PoolFailed
from desist._killing import kill_now, kill_soon

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist._child import ChildHandler
    from desist._core import KillReport, Lease, PoolMetrics, StopPolicy
    from desist._events import Events
    from desist._future import Future
    from desist._ports import QueuePort
    from desist._supervisor import Supervisor

T = TypeVar("T")
R = TypeVar("R")


class Worker:
    """One worker of a WorkerPool, out of WorkerPool.workers.

    It is the handle of this one worker. If that is abandoned, another worker takes its place, which
    has the same name, and a handle of its own in WorkerPool.workers.
    """

    def __init__(self, roster: Roster[Any, Any], seat: WorkerSlot) -> None:
        """For WorkerPool."""
        self._roster = roster
        self._seat = seat
        self._thread = threading.Thread(
            target=roster._run,  # noqa: SLF001 (its own module)
            args=(self,),
            name=seat.name,
            daemon=True,
        )
        self._child: ChildHandler[Any, Any] | None = None
        # It was abandoned, and that is counted, and its place taken if there is a need. Written by
        # Roster, once, under its lock.
        self._is_accounted_for = False

    @property
    def name(self) -> str:
        """Its name, as in WorkEvent.worker."""
        return self._seat.name

    @property
    def state(self) -> Literal["idle", "busy", "abandoned", "stopped"]:
        """Whether it waits for an item, works on one, or no longer counts as a worker.

        "abandoned": no rung of a kill has ended its handler, which may still run. "stopped": it has
        left its loop, with its pool or because of resize().
        """
        if self._seat.abandoned:
            return "abandoned"
        if self._seat.is_over():
            return "stopped"
        return "busy" if self._seat.busy else "idle"

    @property
    def item_id(self) -> int | str | None:
        """The id of the item that it works on; None unless it is busy."""
        return self._seat.item_id

    def cancel(self, reason: str | None = None) -> bool:
        """Ask the handler to stop the item that it works on, which is then leased again.

        False: the worker is idle, or its handler was asked before. Never blocks. An item that is
        not wanted any more is cancelled by its future, or by WorkerPool.cancel_item().
        """
        return self._seat.cancel(reason)

    def kill(
        self,
        reason: str | None = None,
        *,
        policy: StopPolicy | ProcessStopPolicy | None = None,
    ) -> KillReport:
        """Stop the worker's handler, rung by rung of the policy, and report how it ended.

        The item is leased again, and the worker goes on with the next one. An idle worker has
        nothing to kill: ALREADY_DONE. A worker that no rung ends is abandoned, and another takes
        its place. The policy is the pool's unless one is given.

        Blocks: until the handler has ended or was abandoned: at most for the sum of the policy's
        seconds, and as long as clean-up and commit blocks defer the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            PoolExhausted: the worker was abandoned and is not replaced: that happened too often.
            RuntimeError: called by the worker's own handler, or the pool has been stopped.
        """
        return kill_now(partial(self._begin_kill, reason, policy))

    def kill_soon(
        self,
        reason: str | None = None,
        *,
        policy: StopPolicy | ProcessStopPolicy | None = None,
    ) -> Future[KillReport]:
        """Start a kill() without waiting for it; the future has its report.

        When this returns, the handler has been cancelled, and a daemon thread named "desist-kill"
        goes up the ladder. Never blocks, and never raises: the future raises kill()'s exceptions.
        The future cannot be cancelled.
        """
        return kill_soon(partial(self._begin_kill, reason, policy))

    def _begin_kill(
        self,
        reason: str | None,
        policy: StopPolicy | ProcessStopPolicy | None,
        item_id: int | str | None = None,
    ) -> Callable[[], KillReport]:
        roster = self._roster
        roster.check_usable()
        policy = roster.policy if policy is None else policy
        begun = self._seat.begin_kill(reason, policy, item_id)

        def finish() -> KillReport:
            try:
                return begun.finish()
            finally:
                roster.replace_if_abandoned(self)

        return finish

    def __repr__(self) -> str:
        at = "" if self.item_id is None else f" on item {self.item_id}"
        return f"<Worker {self.name} {self.state}{at}>"


class Roster(Generic[T, R]):
    """The workers of one pool; starts, cancels and kills them."""

    def __init__(
        self,
        handler: Callable[[Lease[T]], R],
        *,
        port: QueuePort,
        policy: StopPolicy | ProcessStopPolicy,
        time_limit: float | None,
        supervisor: Supervisor,
        pool: CancelSource,
        tally: PoolMetrics,
        events: Events | None,
    ) -> None:
        self.policy = policy
        # Replaced as a whole, under the lock.
        self.workers: tuple[Worker, ...] = ()
        # Of all workers there ever were.
        self.threads: list[threading.Thread] = []
        self.children: list[ChildHandler[T, R]] = []
        # Written under the lock. Set by the pool's stop().
        self.stopped: bool = False
        # Cancelled while the pool is paused. Replaced under the lock.
        self.pausing: CancelSource = CancelSource()
        # The process that the workers are in.
        self.process: int = os.getpid()
        self._handler = handler
        self._port = port
        self._time_limit = time_limit
        # Kills of attempts that took too long, which no thread finishes yet. Under the lock.
        self._overdue: list[tuple[WorkerSlot, BegunKill]] = []
        self._supervisor = supervisor
        self._pool = pool
        self._tally = tally
        self._events = events
        # The standard library's, so that a cancelled thread takes it as well.
        self._lock = threading.RLock()

    def check_usable(self) -> None:
        """Raise RuntimeError if the pool is stopped, or another process's."""
        if os.getpid() != self.process:
            message = "this pool's workers are in the parent process; make a new pool after a fork"
            raise RuntimeError(message)
        if self.stopped:
            message = "this pool has been stopped; make a new one"
            raise RuntimeError(message)

    def resize(self, count: int) -> None:
        """Start workers, or retire some, until `count` stay. Inside call_masked()."""
        with self._lock:
            self.check_usable()
            staying = [one for one in self.workers if not one._seat.retired]  # noqa: SLF001
            # Idle ones leave first, and of these the last.
            staying.sort(key=lambda one: not one._seat.busy)  # noqa: SLF001
            leaving = staying[count:]
            for worker in leaving:
                worker._seat.retire()  # noqa: SLF001 (its own module)
            taken = {one.name for one in self.workers}
            names = (f"desist-worker-{index}" for index in itertools.count())
            free = (name for name in names if name not in taken)
            new = [self._new(name) for name in islice(free, max(count - len(staying), 0))]
            self.workers = (*self.workers, *new)
        self._start(new)
        for worker in leaving:
            worker._seat.until_not_leasing()  # noqa: SLF001 (its own module)

    def pause(self) -> None:
        """Let the workers, and those to come, lease nothing more. Inside call_masked()."""
        with self._lock:
            self.pausing.cancel()
            workers = self.workers
            for worker in workers:
                worker._seat.pause()  # noqa: SLF001 (its own module)
        for worker in workers:
            worker._seat.until_not_leasing()  # noqa: SLF001 (its own module)

    def resume(self) -> None:
        """Let them lease again. Inside call_masked()."""
        with self._lock:
            if self.pausing.token.cancelled:
                self.pausing = CancelSource()
            for worker in self.workers:
                worker._seat.resume()  # noqa: SLF001 (its own module)

    def stop(self) -> None:
        """Refuse all other calls from now on. Inside call_masked()."""
        with self._lock:
            self.stopped = True

    def _new(self, name: str) -> Worker:
        """Make a worker, with the lock held: it may be paused before its thread is started."""
        seat = WorkerSlot(
            name,
            self._port,
            self._pool.token,
            self._tally,
            self._time_limit,
            self.policy,
            self._finish_soon,
        )
        if self.pausing.token.cancelled:
            seat.pause()
        return Worker(self, seat)

    def _start(self, new: list[Worker]) -> None:
        """Start the threads of workers. Those that cannot be started leave the roster."""
        waiting = deque(new)
        try:
            while waiting:
                self._start_thread(waiting[0])
                waiting.popleft()
        except BaseException:
            for worker in waiting:
                worker._seat.unlaunch()  # noqa: SLF001 (its own module)
                self._forget(worker)
            raise

    def _start_thread(self, worker: Worker) -> None:
        seat, thread = worker._seat, worker._thread  # noqa: SLF001 (its own module)
        seat.launch()
        if isinstance(self.policy, ProcessStopPolicy):
            # Here, so that the pool's constructor raises the error about the handler.
            worker._child = call_masked(self._new_child, seat, self.policy)  # noqa: SLF001
        self.threads.append(thread)
        call_masked(thread.start)  # a kill in it would leave locks of threading held

    def _run(self, worker: Worker) -> None:
        """Work, on the worker's thread."""
        seat, child = worker._seat, worker._child  # noqa: SLF001 (its own module)
        failed = self._supervisor.queue_failed
        try:
            if child is None:
                seat.work(self._handler, failed)
            else:
                child.work(failed)
        finally:
            if seat.retired:
                self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        """The worker has left its loop for good, or never began it."""
        with self._lock:
            self.workers = tuple(one for one in self.workers if one is not worker)
        with suppress(ValueError):
            self.threads.remove(worker._thread)  # noqa: SLF001 (its own module)
        self.children[:] = [one for one in self.children if one is not worker._child]  # noqa: SLF001

    def _new_child(self, seat: WorkerSlot, policy: ProcessStopPolicy) -> ChildHandler[T, R]:
        from desist._child import ChildHandler  # few need it, and it is heavy

        child = ChildHandler(
            self._handler, policy, self._pool.token, seat, self._supervisor.count_restart
        )
        self.children.append(child)
        return child

    def replace_if_abandoned(self, worker: Worker) -> None:
        """Account for a worker that was abandoned, once, and start another in its place.

        None is started when the pool is stopped. Inside kill_now().

        Raises:
            PoolExhausted, PoolFailed: the pool has ended, and nothing is replaced.
        """
        if worker._seat.abandoned:  # noqa: SLF001 (its own module)
            call_masked(self._replace, worker)

    def _replace(self, abandoned: Worker) -> None:
        what = f"{abandoned.name} could not be ended"
        with self._lock:
            if abandoned._is_accounted_for:  # noqa: SLF001 (its own module)
                return
            abandoned._is_accounted_for = True  # noqa: SLF001 (its own module)
            self._supervisor.add_abandoned(abandoned._thread)  # noqa: SLF001 (its own module)
            if self.stopped:
                return
            refusal = self._supervisor.count(what)
            if refusal is None:
                refusal = self._fill_place_of(abandoned, what)
        if refusal is not None:
            self._supervisor.end(refusal)
            self._supervisor.check()

    def _fill_place_of(self, abandoned: Worker, what: str) -> str | None:
        """Start a worker in its place, with the lock held; returns why that failed."""
        if abandoned._seat.retired:  # noqa: SLF001 (its own module)
            self.workers = tuple(one for one in self.workers if one is not abandoned)
            return None
        new = self._new(abandoned.name)
        self.workers = tuple(new if one is abandoned else one for one in self.workers)
        try:
            self._start([new])
        except Exception as failure:  # noqa: BLE001 (there is no thread, or no process)
            return f"{what}, and no worker could be started in its place: {failure}"
        return None

    # The kills of attempts that took too long.

    def _finish_soon(self, seat: WorkerSlot, kill: BegunKill) -> None:
        """Have this kill finished by the next "desist-kill" thread. Where no kill is delivered."""
        with self._lock:
            self._overdue.append((seat, kill))
            if len(self._overdue) > 1:
                return  # that thread has been started
        finishing = kill_soon(lambda: self._finish_overdue)
        if finishing.done() and finishing.exception() is not None:
            self._finish_overdue()  # the system refuses a thread

    def _finish_overdue(self) -> None:
        with self._lock:
            overdue, self._overdue = self._overdue, []
        BegunKill.finish_all([kill for _, kill in overdue])
        for seat, _ in overdue:
            self._replace_seat(seat)

    def _replace_seat(self, seat: WorkerSlot) -> None:
        for worker in self.workers:
            if worker._seat is seat:  # noqa: SLF001 (its own module)
                with suppress(PoolExhausted, PoolFailed):  # the pool has ended, and says so
                    self.replace_if_abandoned(worker)

    # The operations of a future of the pool on its item.

    def cancel_item(self, item_id: int | str, reason: str | None, /) -> bool | None:
        """Cancel the item. True: it never begins. False: it was begun. None: it had ended."""
        dead = self._port.cancel(item_id, reason)
        if dead and self._events is not None:
            call_masked(self._events.dead, item_id, CancelCause.explicit(reason))
        if dead is False:
            for worker in self.workers:
                worker._seat.cancel(reason, item_id)  # noqa: SLF001 (its own module)
        return dead

    def is_at_work(self, item_id: int | str, /) -> bool:
        """Does one of the workers work on this item?"""
        return any(worker.item_id == item_id for worker in self.workers)

    def kill_item(
        self,
        item_id: int | str,
        reason: str | None,
        policy: StopPolicy | ProcessStopPolicy | None,
        /,
    ) -> KillReport:
        """Kill the attempt of a worker at this item, if there is one."""
        return kill_now(partial(self.begin_kill_item, item_id, reason, policy))

    def begin_kill_item(
        self,
        item_id: int | str,
        reason: str | None,
        policy: StopPolicy | ProcessStopPolicy | None,
        /,
    ) -> Callable[[], KillReport]:
        """Begin that kill; returns the function that finishes it."""
        workers = self.workers
        worker = next((one for one in workers if one.item_id == item_id), workers[0])
        return worker._begin_kill(reason, policy, item_id)  # noqa: SLF001 (its own module)
