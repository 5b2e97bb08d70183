"""Future: concurrent.futures.Future, whose waits can be cancelled."""

from __future__ import annotations

import concurrent.futures

from desist._core import Latch, defer_kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from desist._core import Op

    _R = TypeVar("_R")

BRIEFLY = 5.0
"""Seconds: a bound for steps that take moments, and must all be done, or none."""

_CANCELLED = ("CANCELLED", "CANCELLED_AND_NOTIFIED")
_ENDED = (*_CANCELLED, "FINISHED")


class Future(concurrent.futures.Future["_R"]):
    """What will become of something that was submitted.

    result() and exception() are desist waits: they can be cancelled. No kill of a desist thread
    that uses a future leaves anything locked in it.
    """

    def __init__(self) -> None:
        """One that nobody will settle but you; submit() makes those that are of use."""
        super().__init__()
        self._settled = settled = Latch()
        # The first of the callbacks, so that none of them keeps waiters waiting.
        super().add_done_callback(lambda _: settled.set())

    def result(self, timeout: float | None = None) -> _R:
        """Wait for the result, at most for `timeout` seconds.

        Raises what the code raised; TaskCancelled if it was cancelled, TaskAborted if it was
        killed or given up; concurrent.futures.TimeoutError if it is not done in time.
        """
        failure = self.exception(timeout)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # a cycle through the traceback
        return self._result  # type: ignore[return-value]  # there is one, as nothing failed

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As result(), but returns what the code raised, or None.

        TaskCancelled is raised also here if the code never began.
        """
        if not self._settled.wait(None if timeout is None else max(timeout, 0.0)):
            raise concurrent.futures.TimeoutError
        if self._state in _CANCELLED:
            raise self._why_cancelled()
        return self._exception

    def _done_op(self) -> Op[Future[_R]]:
        return self._settled.wait_op(self)

    def _why_cancelled(self) -> concurrent.futures.CancelledError:
        return concurrent.futures.CancelledError()

    # The base class does these under a lock of threading's, which a kill would leave held.

    def cancel(self) -> bool:
        """As concurrent.futures.Future.cancel()."""
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
        """As concurrent.futures.Future.add_done_callback()."""
        with defer_kill(BRIEFLY):
            super().add_done_callback(fn)
