"""cancel_on_signal(): a block that ends when the process is asked to."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from desist._core import CancelScope, cancel_scope

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class CancelOnSignal:
    """A block that a signal cancels; made by cancel_on_signal(), for one `with` statement."""

    def __init__(self, signums: tuple[int, ...], grace: float | None) -> None:
        if not signums:
            raise TypeError("cancel_on_signal() needs a signal: cancel_on_signal(signal.SIGTERM)")
        self._signums = [signal.Signals(signum) for signum in signums]
        self._scope = cancel_scope(grace=grace)
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> CancelScope:
        """Give the block's scope; from here on the signals cancel it."""
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
        """Handle the signals as before; the cancellation ends here."""
        self._restore()
        return self._scope.__exit__(kind, value, traceback)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        self._restore()  # whoever asks a second time means it
        self._scope.cancel(f"received {signal.Signals(signum).name}")

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def cancel_on_signal(*signums: int, grace: float | None = None) -> CancelOnSignal:
    """A block that is cancelled when the process gets one of these signals, for an orderly end.

        with cancel_on_signal(signal.SIGTERM), WorkerPool(handle, queue="jobs.db") as pool:
            pool.drain()

    gives back what the workers could not finish before the pool's policy has killed them. `with`
    gives the block's scope, whose `cancelled_caught` tells afterwards whether it was so; the
    Cancelled that the waits inside raise ends here. `grace` is how many seconds clean-up zones
    inside may take. A second signal does what it did before the block: by default it ends the
    process, or raises KeyboardInterrupt.

    Never blocks. RuntimeError on entering it in another thread than the main one. ValueError: not
    a signal, or a bad grace. OSError: a signal that cannot be handled.
    """
    return CancelOnSignal(signums, grace)
