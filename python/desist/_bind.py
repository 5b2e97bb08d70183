"""bind(): a function takes the scope of the code that has bound it with it, to any thread."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from desist._core import call_under, check_runnable, current_token
from desist._exceptions import TaskCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


def bind(fn: Callable[_P, _R], /) -> Callable[_P, _R]:
    """Make a function that calls `fn` under the calling code's scope, on any thread.

    It is for threads that other libraries have started: ``pool.submit(bind(fn), ...)`` of a stock
    executor or of joblib, or a callback. Each call is a block that is cancelled with the scope in
    which bind() was called, at its deadline as well, and with the scope around the call. The result
    and the exceptions are those of `fn`.

    The function itself never blocks.

    On cancel: of the scope in which bind() was called: Cancelled is raised in `fn`, and the call
    raises TaskCancelled, an ordinary exception, which no pool takes for its own end. A call that
    has not begun by then, also one after the end of that scope, raises it at once. Back in that
    scope it counts as the scope's own cancellation: the scope absorbs it.

    Raises:
        TypeError: `fn` is not callable, or it is a coroutine function or a generator function,
            whose call returns before its code runs.
    """
    check_runnable(fn, "fn")
    token = current_token()

    @functools.wraps(fn)
    def bound(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        cause = token.cause
        if cause is not None:
            raise TaskCancelled(cause)
        return call_under(fn, args, kwargs, token)

    return bound
