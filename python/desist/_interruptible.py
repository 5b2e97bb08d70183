"""interruptible(): blocking calls of other libraries, with the library's own way to wake them.

Guarantees: `unblock` is called at most once, and only while `fn` runs. Once it was called, the end
of `fn` counts as the work of `unblock`: the stop is raised, whether `fn` has raised or returned.

How: `_Call` has a lock; the cancelling thread holds it while it calls `unblock`, and the calling
thread takes it before and after `fn`. So `fn` begins only if no cancel has come before, and
interruptible() returns only when an `unblock` that has begun has ended; whether one was called is
read after that, for `fn` may return by itself in the same moment. Two callbacks are registered: one
with the calling code's token, for a cancel, and one with the task, for a kill.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from desist._core import (
    CancelCause,
    KillSignal,
    call_for_effect,
    call_left_alone,
    call_masked,
    check_runnable,
    checkpoint,
    cleanup,
    current_token,
)
from desist._exceptions import Unblocked

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def interruptible(fn: Callable[[], _T], *, unblock: Callable[[], object]) -> _T:
    """Call `fn()`, which blocks in its own way, so that it ends when the calling code is to stop.

    `unblock()` makes `fn` return or raise: it closes the connection, interrupts the query, or sends
    the message that ends the loop. It is called at most once, only if the calling code is cancelled
    or killed, from the cancelling thread (from desist's callback thread for a deadline), and only
    while `fn` runs. It may be called when `fn` has hardly begun, so its effect should last, as that
    of closing does; and it must not wait for the calling thread. Its exceptions go to
    sys.unraisablehook, and `fn` keeps running.

    Blocks: as long as `fn` does.

    On cancel: unblock() is called, and when `fn` has ended, Cancelled is raised. Its `__cause__` is
    the Exception that `fn` then raised, or, if `fn` returned, an exception whose `result` is what
    `fn` returned: a result of its own that came in the same moment is not lost. Without a
    `__cause__`, `fn` was not called. A checkpoint on entry. If `fn` has ended before the cancel,
    its result is returned, and the next checkpoint raises.

    On kill: as on cancel, with Killed. A kill goes through shield() and waits for cleanup(), as at
    every wait.

    Raises:
        TypeError: `fn` or `unblock` is not callable, or its call would not run its code.
    """
    check_runnable(fn, "fn")
    check_runnable(unblock, "unblock")
    checkpoint()
    call = _Call(unblock)
    # Made beforehand: a kill may be delivered between the making of a block and its `with`.
    leaving = cleanup()
    signal = KillSignal()
    registrations = [
        current_token().on_cancel(call.interrupt),
        signal.token.on_cancel(call.interrupt),
    ]
    try:
        try:
            if not call_masked(call.enter):  # a kill would leave its lock held
                checkpoint()
            result = call_left_alone(fn)
        finally:
            # CPython 3.10, too, delivers no kill where a handler begins with a try. Should one be
            # delivered nevertheless, right behind the exception that led here, this is done again.
            try:
                with leaving:
                    call.leave()
                    for registration in registrations:
                        registration.unregister()
            finally:
                call.leave()
    except Exception as failure:
        call.raise_stop_from(failure)
        raise
    if call.interrupted:
        call.raise_stop_from(Unblocked(result))
    return result


class _Call:
    """Whether `fn` runs, agreed on between its thread and the cancelling one."""

    def __init__(self, unblock: Callable[[], object]) -> None:
        self._unblock = unblock
        # Held by the cancelling thread during unblock(), so that leave() waits for its end.
        # Reentrant, for a signal handler that cancels may run while its own thread holds it.
        self._lock = threading.RLock()
        self._inside = False
        """Whether `fn` runs. Written by the calling thread, under the lock."""
        self._too_early = False
        """Whether a cancel came while `fn` did not run. Written under the lock."""
        self.interrupted = False
        """Whether unblock() was called. Written under the lock."""

    def interrupt(self, _cause: CancelCause, /) -> Any:
        with self._lock:
            if self._inside and not self.interrupted:
                self.interrupted = True
                call_for_effect(self._unblock)
            elif not self.interrupted:
                self._too_early = True

    def enter(self) -> bool:
        """Return False if a cancel came before: `fn` would not be woken, and is not called."""
        with self._lock:
            self._inside = True
        # Read after the lock was released: a signal handler of this thread passes the lock.
        if self._too_early:
            self._inside = False
        return self._inside

    def leave(self) -> None:
        with self._lock:
            self._inside = False

    def raise_stop_from(self, ended: Exception) -> None:
        """Raise the stop for which unblock() was called, if it was; `ended`: how `fn` did."""
        if self.interrupted:
            try:
                checkpoint()
            except BaseException as stop:
                raise stop from ended
