"""What wait_any() can wait for besides the native things: futures and threads."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from typing import TypeVar

from desist._core import Latch, Op, latch_op, over_op
from desist._thread import Thread

_F = TypeVar("_F", bound="concurrent.futures.Future[object] | Thread")

# A future cannot be told to forget a callback, so each gets one, once, however often it is waited
# for.
_latches: weakref.WeakKeyDictionary[concurrent.futures.Future[object], Latch] = (
    weakref.WeakKeyDictionary()
)
_latches_lock = threading.Lock()


def done_op(what: _F, /) -> Op[_F]:
    """Wait until a future, or a desist Thread, is done; yields that very object.

    The future's result() then returns, or raises, at once. TypeError: neither of both.
    """
    if isinstance(what, Thread):
        return over_op(what._task, what)  # noqa: SLF001
    if not isinstance(what, concurrent.futures.Future):
        raise TypeError(f"expected a Future or a desist Thread, not {type(what).__qualname__}")
    with _latches_lock:
        latch = _latches.get(what)
        new = latch is None
        if latch is None:
            latch = _latches[what] = Latch()
    if new:
        what.add_done_callback(lambda _done: latch.set())
    return latch_op(latch, what)
