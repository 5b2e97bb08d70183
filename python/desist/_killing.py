"""Kills that do not block their caller, and the exceptions of a killed task's result.

A kill is begun on the calling thread: the task is cancelled, and force that the policy wants at
once is delivered. A daemon thread of its own then goes up the ladder and settles the future. The
beginning, and the start of that thread, are done while kills of the caller are deferred, so that a
kill that has begun always has its thread, and that thread always settles the future.
"""

from __future__ import annotations

import os
import threading

from desist._core import CancelCause, Cancelled, Killed, WorkerThread, call_masked
from desist._enums import KillOutcome, TaskState
from desist._exceptions import TaskAborted, TaskCancelled
from desist._future import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from desist._core import Task

    _R = TypeVar("_R")


def kill_now(begin: Callable[[], Callable[[], _R]]) -> _R:
    """Begin a kill and finish it; a kill of the caller comes during its waits, or afterwards."""
    result: _R = call_masked(_now, begin)
    return result


def _now(begin: Callable[[], Callable[[], _R]]) -> _R:
    return begin()()


def end_now(begin: Callable[[], Callable[[], object]]) -> None:
    """Begin to kill what an owner has left running, and finish it, whatever interrupts that.

    The exception of a signal handler goes on afterwards; that of a second one at once.
    """
    try:
        kill_now(begin)
    except BaseException:
        kill_now(begin)  # the rest
        raise


class ThreadFuture(Future["_R"]):
    """A future that only threads of the process settle in which it was made."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def _work_name(self) -> str:
        """Name the work whose result it is."""
        raise NotImplementedError

    def _lost_in_fork(self) -> BaseException | None:
        return lost_in_fork(self._work_name()) if self._process != os.getpid() else None


class _KillFuture(ThreadFuture["_R"]):
    """The result of a kill that a thread of its own finishes."""

    def _work_name(self) -> str:
        return "a kill"


def kill_soon(begin: Callable[[], Callable[[], _R]]) -> Future[_R]:
    """Begin a kill, and have a thread of its own finish it; never blocks.

    `begin()` returns the function that finishes the kill. The future raises an exception of either.
    """
    future: Future[_R] = _KillFuture()
    future.set_running_or_notify_cancel()  # a kill that has begun is not called off
    call_masked(_begin, begin, future)
    return future


def _begin(begin: Callable[[], Callable[[], _R]], future: Future[_R]) -> None:
    try:
        finish = begin()
        # A WorkerThread takes its place in a simulation, if there is one.
        hand = WorkerThread("desist-kill")
        thread = threading.Thread(
            target=hand.work, args=(_finish, finish, future), name="desist-kill", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            if hand.withdraw():
                raise
    except Exception as failure:  # noqa: BLE001 (the future raises it)
        future.set_exception(failure)


def _finish(finish: Callable[[], _R], future: Future[_R]) -> None:
    try:
        report = finish()
    except BaseException as failure:  # noqa: BLE001 (the future raises it)
        future.set_exception(failure)
    else:
        future.set_result(report)


def report_abandoned(results: Iterable[Future[Any]]) -> None:
    """Pass the failures of abandoned work to threading.excepthook."""
    for result in results:
        failure = result.exception() if result.state is TaskState.ABANDONED else None
        if failure is not None:
            report(failure)


def report(failure: BaseException) -> None:
    """Pass a failure that no exception carries to threading.excepthook."""
    args = (type(failure), failure, failure.__traceback__, None)
    threading.excepthook(threading.ExceptHookArgs(args))


def lost_in_fork(name: str) -> TaskAborted:
    """Return the exception of work of the parent process, in a forked child."""
    return TaskAborted(name, KillOutcome.ABANDONED, CancelCause.forked())


def failure_of(task: Task, raised: BaseException | None) -> BaseException | None:
    """Return the exception of a task's result, after `raised` came out of its body."""
    failure: BaseException
    if isinstance(raised, Cancelled):
        failure = TaskCancelled(raised.cause)
    elif isinstance(raised, Killed):
        outcome = task.killed_at
        assert outcome is not None  # noqa: S101 (for the type checker: Killed was delivered)
        failure = TaskAborted(task.name, outcome, raised.cause)
    else:
        return raised
    failure.__cause__ = raised
    return failure
