"""ItemFuture: the result of one item of a WorkerPool, and the promise that settles it.

The user has the future, the queue and the pool have the promise. The queue that keeps the item
settles it; the pool does if the item will not be worked on. The first of them counts, later ones
change nothing.
"""

from __future__ import annotations

from concurrent.futures import InvalidStateError
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from desist._core import CancelCause, CancelSource, KillReport, Registration
from desist._enums import TaskState
from desist._exceptions import TaskCancelled
from desist._killing import ThreadFuture, kill_soon

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable
    from contextvars import Context

    from desist._core import ProcessStopPolicy, StopPolicy
    from desist._future import Future

R = TypeVar("R")


class ItemOwner(Protocol):
    """The pool of an item, as the item's future uses it."""

    def cancel_item(self, item_id: int | str, reason: str | None, /) -> bool | None:
        """Cancel the item. True: it never begins. False: it was begun. None: it had ended."""

    def is_at_work(self, item_id: int | str, /) -> bool:
        """Does one of the pool's workers work on the item?"""

    def kill_item(
        self,
        item_id: int | str,
        reason: str | None,
        policy: StopPolicy | ProcessStopPolicy | None,
        /,
    ) -> KillReport:
        """Kill the attempt of the pool's worker at the item, if there is one."""

    def begin_kill_item(
        self,
        item_id: int | str,
        reason: str | None,
        policy: StopPolicy | ProcessStopPolicy | None,
        /,
    ) -> Callable[[], KillReport]:
        """Begin that kill; returns the function that finishes it."""


class ItemFuture(ThreadFuture[R]):
    """The result of an item of a WorkerPool; made by WorkerPool.submit()."""

    def __init__(self) -> None:
        """For WorkerPool.submit()."""
        super().__init__()
        # Finds the item's worker. Kept until the future is settled, since it keeps the pool alive:
        # a dropped pool stops.
        self._owner: tuple[ItemOwner, object] | None = None
        self.item_id: int | str = 0

    @property
    def state(self) -> TaskState:
        """Where the item is in its life.

        RUNNING and CANCELLING: a worker of this pool works on it. An item that another pool of the
        same queue works on is PENDING here, until it has ended.
        """
        if self._is_settled():
            return self._state_at_the_end()
        if self._lost_in_fork() is not None:
            return TaskState.ABANDONED
        owner = self._owner
        if owner is None or not owner[0].is_at_work(self.item_id):
            return TaskState.PENDING
        return TaskState.RUNNING if self._requested is None else TaskState.CANCELLING

    def _work_name(self) -> str:
        return f"item {self.item_id}"

    def _state_at_the_end(self) -> TaskState:
        failure = self._exception
        if isinstance(failure, TaskCancelled):
            return TaskState.CANCELLED
        return TaskState.DONE if failure is None else TaskState.FAILED

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the item: it is never leased again, and code at work on it is asked to stop.

        As with concurrent.futures, True says that it has not begun and never will. result() raises
        TaskCancelled, unless the code that works on it returns a result all the same. Never blocks,
        except for a queue whose server or file has to answer.
        """
        owner = self._owner
        if owner is None or self._settled.is_set():
            return False
        self._request(CancelCause.explicit(reason))
        return owner[0].cancel_item(self.item_id, reason) is True

    def kill(
        self,
        reason: str | None = None,
        *,
        policy: StopPolicy | ProcessStopPolicy | None = None,
    ) -> KillReport:
        """Cancel the item, and stop the worker's code for it, rung by rung of the policy.

        As after cancel(), the item is never leased again, and result() raises TaskCancelled; so
        this removes an item for good. Worker.kill() stops the attempt, too, but then
        the item is leased again. The policy is the pool's unless one is given. ALREADY_DONE: no
        worker of this pool works on the item.

        Blocks: until the code has ended or was abandoned: at most for the sum of the policy's
        seconds, and as long as clean-up and commit blocks defer the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            PoolExhausted: the worker was abandoned and is not replaced: that happened too often.
            RuntimeError: called by the code itself, or the pool has been stopped.
        """
        self.cancel(reason)
        owner = self._owner
        if owner is None:
            return KillReport.already_done()
        return owner[0].kill_item(self.item_id, reason, policy)

    def kill_soon(
        self,
        reason: str | None = None,
        *,
        policy: StopPolicy | ProcessStopPolicy | None = None,
    ) -> Future[KillReport]:
        """Start a kill() without waiting for it; the future that this returns has its report.

        When it returns, the item has been cancelled, and a daemon thread named "desist-kill" goes
        up the ladder. Never blocks, and never raises: that future raises kill()'s exceptions.
        It cannot be cancelled.
        """

        def begin() -> Callable[[], KillReport]:
            self.cancel(reason)
            owner = self._owner
            if owner is None:
                return KillReport.already_done
            return owner[0].begin_kill_item(self.item_id, reason, policy)

        return kill_soon(begin)

    def cancelled(self) -> bool:
        """Was it cancelled, before or while a worker worked on it?"""
        return isinstance(self._exception, TaskCancelled)


class ItemPromise:
    """Settles an ItemFuture; `Promise` of desist._ports.

    The core calls it on the worker's thread, while no kill can be delivered there. It is the other
    half of the future, and the only code besides that writes the future's private attributes.
    """

    def __init__(self, future: ItemFuture[Any]) -> None:
        self.future = future
        # Of the code that submits the item. Each attempt runs in a copy of its own.
        self.context: Context = copy_context()
        self._expiry: Registration | None = None
        self._unsettled: set[ItemPromise] | None = None

    def submitted(
        self,
        item_id: int | str,
        owner: tuple[ItemOwner, object],
        unsettled: set[ItemPromise],
    ) -> None:
        """The item has this id and pool; the promise is in the set until it is settled."""
        self.future.item_id = item_id
        self.future._owner = owner  # noqa: SLF001 (see the class)
        self._unsettled = unsettled
        unsettled.add(self)
        if self.future.done():  # a worker may have been quicker
            self._forget_owner()

    def finish(self, result: Any, /) -> None:
        """The item was acknowledged with this result."""
        self._forget_owner()
        with suppress(InvalidStateError):  # its pool has stopped meanwhile
            self.future.set_result(result)

    def fail(self, failure: BaseException | CancelCause, /) -> None:
        """The item is dead, or will not be worked on."""
        self._forget_owner()
        if self.future.done():
            return
        if isinstance(failure, CancelCause):
            self.future._request(failure)  # noqa: SLF001 (see the class)
            failure = TaskCancelled(failure)
        with suppress(InvalidStateError):  # another thread has settled it meanwhile
            self.future.set_exception(failure)

    def follow(self, first: ItemPromise) -> None:
        """Another item stands for this one: end as `first` does."""

        def settle(ended: concurrent.futures.Future[Any]) -> None:
            failure = ended.exception()
            if failure is None:
                self.finish(ended.result())
            else:
                self.fail(failure)

        first.future.add_done_callback(settle)

    def expire_after(self, seconds: float, cancel: Callable[[int | str, str], bool | None]) -> None:
        """Cancel the item when its time is over, in case no other access to the queue does."""
        item_id = self.future.item_id
        source = CancelSource(timeout=seconds)
        self._expiry = source.token.on_cancel(lambda _: cancel(item_id, "its time was over"))
        if self.future.done():
            self._forget_owner()

    def _forget_owner(self) -> None:
        self.future._owner = None  # noqa: SLF001 (see the class)
        if self._unsettled is not None:
            self._unsettled.discard(self)
        if self._expiry is not None:
            self._expiry.unregister()
