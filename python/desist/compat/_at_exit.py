"""cancel_at_exit(): daemon threads that may clean up before the interpreter ends."""

from __future__ import annotations

import atexit
from weakref import WeakKeyDictionary

from desist._core import CancelCause, cancel_because, cleanup, current_time
from desist._exit import REASON
from desist._thread import Thread

_graces: WeakKeyDictionary[Thread, float] = WeakKeyDictionary()


def cancel_at_exit(thread: Thread, grace: float = 5.0) -> None:
    """Cancel a daemon thread when the interpreter exits, and wait for its end.

    All such threads are cancelled at once, when the interpreter has waited for all other threads.
    Each has `grace` seconds for cleaning up, and is joined for as long; after that the interpreter
    exits without it. This is done by a handler of atexit: handlers that were registered after the
    first call of this function run before it, those registered earlier run after it.

    Blocks: never; the handler blocks for the longest grace at most.

    Raises:
        TypeError: not a desist.Thread, or a grace that is not a number.
        ValueError: not a daemon (the interpreter waits for such a thread before it runs handlers),
            or a grace that is negative or NaN.
    """
    if not isinstance(thread, Thread):
        message = f"thread must be a desist.Thread, not {type(thread).__qualname__}"  # type: ignore[unreachable]
        raise TypeError(message)
    if not thread.daemon:
        message = (
            f"the thread {thread.name} is no daemon: the interpreter waits for its end before it"
            " cancels anything. Make it one (daemon=True), or cancel it yourself"
        )
        raise ValueError(message)
    cleanup(grace)  # raises for a grace that is not valid
    if not _graces:
        atexit.unregister(_cancel_all)
        atexit.register(_cancel_all)
    _graces[thread] = grace


def _cancel_all() -> None:
    alive = [(thread, grace) for thread, grace in _graces.items() if thread.is_alive()]
    begin = current_time()
    for thread, grace in alive:
        cancel_because(thread.token, CancelCause.shutdown(REASON, grace=grace))
    for thread, grace in alive:
        thread.join(max(begin + grace - current_time(), 0.0))
