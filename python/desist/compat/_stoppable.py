"""StoppableThread: the recipe of the exit flag, with a flag that ends waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desist._core import CancelSource, CancelToken, Event
from desist._enums import CauseKind
from desist._thread import Thread
from desist.compat._with import cancel_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextvars import Context

_REASON = "stopped"


class StopEvent(Event):
    """An Event for threads to poll; set() stops the StoppableThreads that have it.

    It stays set, for a thread that was stopped cannot be made to go on.
    """

    def __init__(self) -> None:
        """Make a flag that is not set."""
        super().__init__()
        self._source = CancelSource()

    @property
    def token(self) -> CancelToken:
        """A token that is cancelled when the flag is set."""
        return self._source.token

    def set(self) -> None:
        """Set the flag, wake its waiters, and stop its threads. Never blocks."""
        super().set()
        self._source.cancel(_REASON)

    def clear(self) -> None:
        """Do nothing; RuntimeError once the flag is set."""
        if self.is_set():
            raise RuntimeError("the threads of this StopEvent were told to stop: make a new one")


class StoppableThread(Thread):
    """A desist.Thread with stop() and stopped(): the flag is the thread's token.

    A body that polls the flag ends as it always did. A body that waits ends too, since its desist
    waits raise Cancelled, which it lets pass: clean-up belongs in a ``finally:``.
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        context: Context | None = None,
        stop_event: StopEvent | None = None,
    ) -> None:
        """As threading.Thread. `stop_event`: a flag of several threads, which stops this one, too.

        Raises:
            TypeError: another kind of event, which could not end a wait.
        """
        if not (stop_event is None or isinstance(stop_event, StopEvent)):
            raise TypeError(f"stop_event must be a StopEvent, not {type(stop_event).__qualname__}")
        super().__init__(group, target, name, args, kwargs, daemon=daemon, context=context)
        self._shared_flag = stop_event

    def stop(self) -> None:
        """Tell the thread to stop. Never blocks."""
        self.cancel(_REASON)

    def stopped(self) -> bool:
        """Was the thread told to stop?"""
        cause = self.token.cause
        # The token of a thread that has ended by itself is cancelled as well, by its end.
        return cause is not None and cause.kind is not CauseKind.SCOPE_EXITED

    def _run_behind_the_boundary(self) -> None:
        event, self._shared_flag = self._shared_flag, None
        if event is None:
            super()._run_behind_the_boundary()
            return
        with cancel_with(event.token, self, _REASON):
            super()._run_behind_the_boundary()
