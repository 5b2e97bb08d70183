"""wait_any() for futures that are not desist's.

Guarantees: a future that is waited for many times gets one callback, since it cannot forget one.

How: the callback sets a latch, which is kept as long as the future is; the operation waits for
the latch. `_latches` is read and written under `_latches_lock` alone.
"""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from typing import TYPE_CHECKING, Any

from desist._core import Latch, call_masked

if TYPE_CHECKING:
    from desist._core import Op

_latches: weakref.WeakKeyDictionary[concurrent.futures.Future[Any], Latch] = (
    weakref.WeakKeyDictionary()
)
_latches_lock = threading.Lock()


def done_op(what: object, /) -> Op[Any] | None:
    """The future is done: an operation that yields the future. None: it is no future."""
    if not isinstance(what, concurrent.futures.Future):
        return None
    # A kill in the middle would leave a lock of threading held.
    return call_masked(_latch_of, what).wait_op(what)


def _latch_of(future: concurrent.futures.Future[Any]) -> Latch:
    with _latches_lock:
        latch = _latches.get(future)
        new = latch is None
        if latch is None:
            latch = _latches[future] = Latch()
    if new:
        future.add_done_callback(lambda _done: latch.set())
    return latch
