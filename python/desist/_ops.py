"""What wait_any() can wait for besides the native things: futures, threads and tasks."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from typing import Any, TypeVar, overload

from desist._core import Latch, Op, hold_off, latch_op, over_op
from desist._group import Task
from desist._thread import Thread

_T = TypeVar("_T")

# A future cannot be told to forget a callback, so each gets one, once, however often it is waited
# for.
_latches: weakref.WeakKeyDictionary[concurrent.futures.Future[Any], Latch] = (
    weakref.WeakKeyDictionary()
)
_latches_lock = threading.Lock()


@overload
def done_op(what: concurrent.futures.Future[_T], /) -> Op[concurrent.futures.Future[_T]]: ...
@overload
def done_op(what: Thread, /) -> Op[Thread]: ...
@overload
def done_op(what: Task[_T], /) -> Op[Task[_T]]: ...
def done_op(what: Any, /) -> Op[Any]:
    """Wait until a future, a desist Thread or a Task is done; yields that very object.

    Its result() then returns, or raises, at once. TypeError: none of them.
    """
    if isinstance(what, Thread):
        return over_op(what._task, what)  # noqa: SLF001
    if isinstance(what, Task):
        return over_op(what._core, what)  # noqa: SLF001
    if not isinstance(what, concurrent.futures.Future):
        raise TypeError(f"expected a Future, a Thread or a Task, not {type(what).__qualname__}")
    # Locks of threading are taken in it, which a kill would leave held.
    return hold_off(_settled_op, what)


def _settled_op(future: concurrent.futures.Future[_T]) -> Op[concurrent.futures.Future[_T]]:
    with _latches_lock:
        latch = _latches.get(future)
        new = latch is None
        if latch is None:
            latch = _latches[future] = Latch()
    if new:
        future.add_done_callback(lambda _done: latch.set())
    return latch_op(latch, future)
