"""deadline(): a decorator that limits the time of each call of a function."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from desist._core import call_within, check_runnable, fail_after

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


def deadline(
    timeout: float | None, *, grace: float | None = None, kill_after: float | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Limit each call of a function to `timeout` seconds.

    Each call is a block of its own, as that of fail_after(): its desist waits end in time.
    `timeout`: seconds from the call; None: no deadline. `grace`: seconds that clean-up blocks
    inside may take after the deadline. `kill_after`: if the function still runs this many seconds
    after its deadline, Killed is raised in it by force, wherever it is, until it returns, and never
    afterwards; see cancel_scope().

    The decorator itself never blocks.

    On cancel: of the code that calls the function: Cancelled goes through the call.

    On timeout: the call raises DeadlineExceeded (a TimeoutError).

    Raises:
        TypeError: a time that is not a number, or a generator or coroutine function, whose call
            returns before its code runs.
        ValueError: a time that is negative or NaN.
    """
    fail_after(timeout, grace=grace, kill_after=kill_after)  # raises for a time that is not valid

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return call_within(function, args, kwargs, timeout, grace=grace, kill_after=kill_after)

        return within

    return decorate


def refuse(function: Callable[..., object]) -> None:
    """Raise TypeError unless the function's code has run when its call returns."""
    advice = "put `with desist.fail_after(...)` around the code that uses its result"
    check_runnable(function, "the function", advice)
