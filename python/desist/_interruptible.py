"""Blocking calls of other libraries, which have a way of their own to be woken."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from desist._core import CancelCause, Strike, checkpoint, cleanup, current_token, hold_off

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def interruptible(fn: Callable[[], _T], *, unblock: Callable[[], object]) -> _T:
    """Call `fn()`, which blocks in its own way, so that it ends when the calling code is to stop.

    `unblock()` makes it return or raise: it closes the connection, interrupts the query, sends the
    message that ends the loop. It is called at most once, only if the calling code is cancelled or
    killed, by the thread that does that (for a deadline, by one of desist's), and only while fn is
    inside:
    not before it was called, and not after interruptible() has returned. It may come at the very
    beginning of fn, so it should be something that lasts, as closing does; and it must not wait for
    the calling thread. What it raises goes to sys.unraisablehook, and fn runs on.

    What fn returns is returned, also after unblock(): then the next checkpoint raises. An
    Exception out of fn after unblock() becomes the `__cause__` of Cancelled; any other is raised as
    it is. A checkpoint on entry: Cancelled without a cause from fn means that it was not called.

    A kill pierces shield(), and waits for cleanup(), here as at every wait.
    """
    given: object
    for given in (fn, unblock):
        if not callable(given):
            raise TypeError(f"expected a function to call, not {type(given).__qualname__}")
    checkpoint()
    call = _Call(unblock)
    # Made beforehand: between its making and its block a kill could strike.
    leaving = cleanup()
    strike = Strike()
    registrations = [
        current_token().on_cancel(call.interrupt),
        strike.token.on_cancel(call.interrupt),
    ]
    try:
        if not hold_off(call.enter):  # a kill would leave its lock held
            checkpoint()
        return fn()
    except Exception as failure:
        if call.interrupted:
            try:
                checkpoint()
            except BaseException as stop:
                raise stop from failure
        raise
    finally:
        # Also CPython 3.10 lets no kill strike where a handler begins with a try; should one
        # strike nevertheless, right behind the exception that came here, this is done again.
        try:
            with leaving:
                call.leave()
                for registration in registrations:
                    registration.unregister()
        finally:
            call.leave()


class _Call:
    """Whether fn is inside, agreed on between its thread and the one that cancels."""

    def __init__(self, unblock: Callable[[], object]) -> None:
        self._unblock = unblock
        # Held by the canceller during unblock(), so that leave() waits for its end. Reentrant, for
        # a signal handler that cancels may come while its own thread holds it.
        self._lock = threading.RLock()
        self._inside = False
        self._too_early = False
        self.interrupted = False

    def interrupt(self, _cause: CancelCause, /) -> Any:
        with self._lock:
            if self._inside and not self.interrupted:
                self.interrupted = True
                self._unblock()
            elif not self.interrupted:
                self._too_early = True

    def enter(self) -> bool:
        """False: cancelled before; fn must not be called, for nothing would wake it."""
        with self._lock:
            self._inside = True
        # Looked at afterwards: a signal handler of this thread passes the lock.
        if self._too_early:
            self._inside = False
        return self._inside

    def leave(self) -> None:
        with self._lock:
            self._inside = False
