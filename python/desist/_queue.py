"""LifoQueue, PriorityQueue, and queues with hooks of their own.

Guarantees: a subclass that overrides `_init`, `_qsize`, `_put` or `_get` works as with queue.Queue,
and a kill neither loses an item nor the notification of it.

How: the native Queue keeps its items out of Python's reach, so such a subclass gets the methods of
`_Hooked` instead (`adopt`). They call the hooks with `mutex` held; each change of the queue runs in
call_masked(), which defers a kill except while it waits. The extension imports this module by name.
"""

from __future__ import annotations

from heapq import heappop, heappush

from desist._core import (
    Condition,
    Lock,
    Queue,
    call_masked,
    checkpoint,
    current_time,
    move_on_after,
    shield,
)
from desist._exceptions import Empty, Full, ShutDown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _T = TypeVar("_T")

_FOREVER = float("inf")  # math is another library to load


_HOOKS = frozenset({"_init", "_qsize", "_put", "_get"})


class _Hooked:
    """The methods of a queue whose items are kept by its `_put` and `_get`.

    These may run any code, so they are called with a lock held that lets the interpreter go. By
    the names that queue.Queue has for them: `mutex`, `not_empty`, `not_full`, `all_tasks_done`.
    """

    if TYPE_CHECKING:
        maxsize: int
        _configure: Callable[[int], None]
        _init: Callable[[int], None]
        _qsize: Callable[[], int]
        _put: Callable[[Any], None]
        _get: Callable[[], Any]

    def _set_up(self, maxsize: int) -> None:
        self._configure(maxsize)
        self.mutex = Lock(name="queue", on_kill="release")
        self.not_empty = Condition(self.mutex)
        self.not_full = Condition(self.mutex)
        self.all_tasks_done = Condition(self.mutex)
        self._unfinished = 0
        self._shut = False
        self._init(maxsize)

    # Each change of the queue is made in call_masked(): Killed is raised before it, while it waits,
    # or after it, and neither an item nor its notification is lost.

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if block:
            end = _end(timeout)
            checkpoint()
            call_masked(self._wait_and_put, item, end)
        else:
            call_masked(self._put_at_once, item)

    def _put_at_once(self, item: Any) -> None:
        with shield(_FOREVER):
            self._wait_and_put(item, 0)

    def _wait_and_put(self, item: Any, end: float) -> None:
        with self.mutex:
            self._wait_until(self.not_full, self._has_place, end)
            if self._shut:
                raise ShutDown
            if not self._has_place():
                raise Full
            self._put(item)
            self._unfinished += 1
            self.not_empty.notify()

    def put_op(self, item: Any, /) -> Any:
        del item
        raise TypeError(
            f"put_op() is for Queue and LifoQueue: a {type(self).__qualname__} keeps its items "
            "itself, and cannot put one without waiting for its lock; use put()"
        )

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            end = _end(timeout)
            checkpoint()
            return call_masked(self._wait_and_get, end)
        return call_masked(self._get_at_once)

    def _get_at_once(self) -> Any:
        with shield(_FOREVER):
            item = self._wait_and_get(0)
        return item  # noqa: RET504 (a block's end could hold an exception back, for all mypy knows)

    def _wait_and_get(self, end: float) -> Any:
        with self.mutex:
            self._wait_until(self.not_empty, self._has_news, end)
            if not self._qsize():
                raise ShutDown if self._shut else Empty
            item = self._get()
            self.not_full.notify()
        return item

    @staticmethod
    def _wait_until(condition: Condition, met: Callable[[], bool], end: float) -> None:
        """Wait until `met()` is true, or until `end` at most."""
        while not met():
            left = end - current_time()
            if left <= 0 or not condition._wait(left):  # noqa: SLF001 (its own door)
                return

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def _has_place(self) -> bool:
        return self._shut or self.maxsize <= 0 or self._qsize() < self.maxsize

    def _has_news(self) -> bool:
        return self._shut or self._qsize() > 0

    def task_done(self) -> None:
        call_masked(self._count_as_done)

    def _count_as_done(self) -> None:
        with shield(_FOREVER), self.mutex:
            if not self._unfinished:
                raise ValueError("task_done() called too many times")
            self._finish(1)

    def _finish(self, count: int) -> None:
        self._unfinished = max(0, self._unfinished - count)
        if not self._unfinished:
            self.all_tasks_done.notify_all()

    def join(self) -> None:
        with self.mutex:
            self.all_tasks_done.wait_for(lambda: not self._unfinished)

    def shutdown(self, immediate: bool = False) -> None:
        call_masked(self._shut_down, immediate)

    def _shut_down(self, immediate: bool) -> None:
        with shield(_FOREVER), self.mutex:
            self._shut = True
            if immediate:
                dropped = self._qsize()
                for _ in range(dropped):
                    self._get()
                self._finish(dropped)
            self.not_empty.notify_all()
            self.not_full.notify_all()

    def qsize(self) -> int:
        return call_masked(self._locked_qsize)

    def _locked_qsize(self) -> int:
        with shield(_FOREVER), self.mutex:
            size = self._qsize()
        return size  # noqa: RET504 (as above)

    def empty(self) -> bool:
        return not self.qsize()

    def full(self) -> bool:
        return 0 < self.maxsize <= self.qsize()

    @property
    def is_shutdown(self) -> bool:
        """Is it shut down?"""
        return self._shut

    @property
    def unfinished_tasks(self) -> int:
        """How many items were put and not yet counted as done."""
        return self._unfinished


for _name, _method in vars(_Hooked).items():
    if callable(_method) and not _method.__doc__:
        _method.__doc__ = getattr(Queue, _name, _method).__doc__  # they do the same


def _end(timeout: float | None) -> float:
    """Return when a wait of this length ends; ValueError if it is negative."""
    return move_on_after(timeout).deadline


def adopt(cls: type[Queue[Any]]) -> None:
    """Give a new subclass of Queue that overrides a hook the methods that call hooks."""
    if _HOOKS.isdisjoint(cls.__dict__):
        return
    for name, method in vars(_Hooked).items():
        if name not in cls.__dict__ and (callable(method) or isinstance(method, property)):
            setattr(cls, name, method)


class LifoQueue(Queue["_T"], native=True):
    """A Queue in which the item that was put last is got first."""

    queue: list[_T]
    """The items, if a subclass overrides hooks."""

    def _set_up(self, maxsize: int) -> None:
        self._configure(maxsize, lifo=True)

    def _get(self) -> Any:
        return self.queue.pop()


class PriorityQueue(Queue["_T"]):
    """A Queue in which the least item is got first."""

    queue: list[Any]
    """The items, as a heap."""

    def _init(self, maxsize: int) -> None:
        del maxsize
        self.queue = []

    def _put(self, item: Any) -> None:
        heappush(self.queue, item)

    def _get(self) -> Any:
        return heappop(self.queue)
