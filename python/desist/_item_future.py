"""ItemFuture: the result of one item of a WorkerPool.

The queue that keeps the item settles the future, through `_finish` and `_fail`; the pool settles it
if the item will not be worked on. The first of them counts, later ones change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from desist._core import CancelCause, CancelSource, Registration
from desist._exceptions import TaskCancelled
from desist._future import Future

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class ItemFuture(Future[R]):
    """What will become of an item of a WorkerPool."""

    def __init__(self) -> None:
        """For WorkerPool.submit()."""
        super().__init__()
        self._cancel_item: Callable[[], bool | None] = bool
        self._expiry: Registration | None = None
        self.item_id: int | str = 0

    def cancel(self) -> bool:
        """The item is unwanted: as WorkerPool.cancel_item().

        True if it has not been started and never will be. False if code is at work on it, which is
        asked to stop, or if it had ended.
        """
        return not self._settled.is_set() and self._cancel_item() is True

    def cancelled(self) -> bool:
        """Was it cancelled, before or while it was worked on?"""
        return isinstance(self._exception, TaskCancelled)

    # Called by the core, on the worker's thread, when no kill can strike it.

    def _finish(self, result: R) -> None:
        self._forget_expiry()
        if self.done():
            return  # its pool has stopped meanwhile
        self.set_running_or_notify_cancel()
        self.set_result(result)

    def _fail(self, failure: BaseException | CancelCause) -> None:
        self._forget_expiry()
        if self.done():
            return
        self.set_running_or_notify_cancel()
        self.set_exception(TaskCancelled(failure) if isinstance(failure, CancelCause) else failure)

    def _expire_after(
        self, seconds: float, cancel: Callable[[int | str, str], bool | None]
    ) -> None:
        """Nobody may look at the queue when its time is over: look then."""
        item_id = self.item_id
        source = CancelSource(timeout=seconds)
        self._expiry = source.token.on_cancel(lambda _: cancel(item_id, "its time was over"))
        if self._settled.is_set():
            self._forget_expiry()

    def _forget_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.unregister()
