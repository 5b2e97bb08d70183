"""Future: concurrent.futures.Future, whose waits can be cancelled.

It adds this to the standard library's: result() and exception() wait for a latch of desist's, which
the future's first callback sets, so that no callback of a user keeps waiters waiting; and cancel()
takes a reason, which the future's token carries.

In a forked child the thread that settles a future of the parent is not there, wherever it was at
the fork. An end that was recorded by then counts, although the callbacks have not been called: the
latch is set by the waiter that sees it. A future without an end is lost, if it says so
(`_lost_in_fork`), and its waiters go on.

The token's source is made when the token is first asked for. cancel() writes `_requested` and then
reads `_source`, `token` writes `_source` and then reads `_requested`: so one of the two cancels the
source, whichever comes first.
"""

from __future__ import annotations

import concurrent.futures

from desist._core import (
    CancelCause,
    CancelSource,
    Latch,
    cancel_because,
    check_runnable,
    defer_kill,
)
from desist._enums import TaskState
from desist._exceptions import AnyTimeoutError, TaskCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from desist._core import CancelToken, Op

    _R = TypeVar("_R")

BRIEFLY = 5.0
"""Seconds for which a kill is deferred by steps that belong together and take moments."""

_EVER = Latch()
"""Set."""
_EVER.set()

_CANCELLED = ("CANCELLED", "CANCELLED_AND_NOTIFIED")
_ENDED = (*_CANCELLED, "FINISHED")


class Future(concurrent.futures.Future["_R"]):
    """The result of submitted work.

    result() and exception() are desist waits: they can be cancelled. No kill of a desist thread
    that uses a future leaves anything locked in it.
    """

    # The source of `token`; in the instance's __dict__ from the first use of `token` on.
    _source: CancelSource | None = None
    # Why cancel() was called first; written by that call only.
    _requested: CancelCause | None = None

    def __init__(self) -> None:
        """For code that settles it with set_result() or set_exception()."""
        super().__init__()
        self._settled = settled = Latch()
        # The first of the callbacks, so that none of them keeps waiters waiting.
        super().add_done_callback(lambda _: settled.set())

    @property
    def state(self) -> TaskState:
        """Where the work is in its life."""
        if self._state in _CANCELLED:
            return TaskState.CANCELLED
        if self._state == "FINISHED":
            return TaskState.DONE if self._exception is None else TaskState.FAILED
        if self._state == "PENDING":
            return TaskState.PENDING
        return TaskState.RUNNING if self._requested is None else TaskState.CANCELLING

    @property
    def token(self) -> CancelToken:
        """Cancelled by cancel(), for code that does the work."""
        source = self._source
        if source is None:
            source = self.__dict__.setdefault("_source", CancelSource())
            if self._requested is not None:
                cancel_because(source.token, self._requested)
        if self._lost_in_fork() is not None and not self._is_settled():
            cancel_because(source.token, CancelCause.forked())
        return source.token

    def result(self, timeout: float | None = None) -> _R:
        """Wait for the result, at most for `timeout` seconds.

        Raises the code's exception; TaskCancelled if it was cancelled, TaskAborted if it was
        killed or abandoned.

        Blocks: until it is done, for `timeout` seconds at most. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the work goes on.
        On timeout: TimeoutError is raised; the work goes on.
        On kill: as on cancel, with Killed.
        """
        failure = self.exception(timeout)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # a cycle through the traceback
        return self._result  # type: ignore[return-value]  # there is one, as nothing failed

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As result(), but returns the code's exception, or None.

        TaskCancelled is raised also here if the code never began.

        Blocks: until it is done, for `timeout` seconds at most. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the work goes on.
        On timeout: TimeoutError is raised; the work goes on.
        On kill: as on cancel, with Killed.
        """
        if not self._is_settled():
            lost = self._lost_in_fork()
            if lost is not None:
                return lost
        if not self._settled.wait(timeout):
            raise AnyTimeoutError
        if self._state in _CANCELLED:
            raise TaskCancelled(self._cause())
        return self._exception

    def _done_op(self) -> Op[Future[_R]]:
        if not self._is_settled() and self._lost_in_fork() is not None:
            return _EVER.wait_op(self)  # it never ends here
        return self._settled.wait_op(self)

    def _is_settled(self) -> bool:
        """Has it ended? The thread that has recorded that may not have set the latch."""
        if self._state in _ENDED:
            self._settled.set()
        return self._settled.is_set()

    def _lost_in_fork(self) -> BaseException | None:
        """In a forked child: the exception of unsettled work that goes on in the parent alone."""
        return None

    def _cause(self) -> CancelCause:
        return self._requested or CancelCause.explicit()

    def cancel(self, reason: str | None = None) -> bool:
        """Ask for the end of the work: its token is cancelled.

        As with concurrent.futures, True says that the work has not begun and never will. Never
        blocks.
        """
        if not self.done():
            self._request(CancelCause.explicit(reason))
        return self._cancel_unbegun()

    def _request(self, cause: CancelCause) -> None:
        if self._requested is None:
            self._requested = cause
            source = self._source
            if source is not None:
                cancel_because(source.token, cause)

    # The base class does these under a lock of threading's, which a kill would leave held.

    def _cancel_unbegun(self) -> bool:
        with defer_kill(BRIEFLY):
            return super().cancel()

    def cancelled(self) -> bool:
        """As concurrent.futures.Future.cancelled()."""
        return self._state in _CANCELLED

    def running(self) -> bool:
        """As concurrent.futures.Future.running()."""
        return self._state == "RUNNING"

    def done(self) -> bool:
        """As concurrent.futures.Future.done()."""
        return self._state in _ENDED

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[_R]], object]) -> None:
        """As concurrent.futures.Future.add_done_callback().

        Raises:
            TypeError: `fn` is not callable, or its call would not run its code.
        """
        check_runnable(fn, "fn")
        with defer_kill(BRIEFLY):
            super().add_done_callback(fn)
