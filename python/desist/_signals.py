"""cancel_on_signal(): a block that is cancelled by a signal to the process.

The handlers are installed and restored by the main thread, on entry and at the end. A handler runs
on the main thread as well, between two bytecodes, and may do no more than cancel the scope.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from desist._core import CancelScope, cancel_scope

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class CancelOnSignal:
    """The context manager of cancel_on_signal(), for one `with` statement."""

    def __init__(self, signums: tuple[int, ...], grace: float | None) -> None:
        if not signums:
            raise TypeError("cancel_on_signal() needs a signal: cancel_on_signal(signal.SIGTERM)")
        self._signums = [signal.Signals(signum) for signum in signums]
        self._scope = cancel_scope(grace=grace)
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> CancelScope:
        """Install the handlers; gives the block's scope."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "cancel_on_signal() works in the main thread, where Python handles signals; "
                "hand its scope's token to other threads"
            )
        scope = self._scope.__enter__()
        try:
            for signum in self._signums:
                self._before[signum] = signal.signal(signum, self._handle)
        except BaseException:
            self._restore()
            self._scope.__exit__(None, None, None)
            raise
        return scope

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool:
        """Restore the handlers; the scope's cancellation ends here."""
        self._restore()
        return self._scope.__exit__(kind, value, traceback)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        self._restore()  # so that a second signal has its effect from before the block
        self._scope.cancel(f"received {signal.Signals(signum).name}")

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def cancel_on_signal(*signums: int, grace: float | None = None) -> CancelOnSignal:
    """A block that is cancelled when the process gets one of these signals.

        with cancel_on_signal(signal.SIGTERM), WorkerPool(handle, queue="jobs.db") as pool:
            pool.drain()

    stops cleanly: items that the workers could not finish are requeued. `with` gives the block's
    scope, whose `cancelled_caught` says afterwards whether a signal came; the Cancelled that the
    waits inside raise ends here. `grace`: seconds that clean-up blocks inside may take. A second
    signal has its effect from before the block: by default it ends the process, or raises
    KeyboardInterrupt.

    Blocks: never.

    Raises:
        TypeError: no signal was given.
        ValueError: not a signal, or a grace that is not valid.
        RuntimeError: on entry, in another thread than the main one.
        OSError: on entry, for a signal that cannot be handled.
    """
    return CancelOnSignal(signums, grace)
