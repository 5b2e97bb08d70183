"""deadline(): a function that has to be done in time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from desist._core import call_within, fail_after

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


def deadline(
    seconds: float, *, grace: float | None = None, kill_after: float | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Give each call of a function so many seconds, and raise DeadlineExceeded (a TimeoutError).

    Each call is a block of its own, as that of fail_after(): its desist waits end in time, and
    `grace` is how many seconds clean-up zones inside may take. `kill_after`: if the function still
    runs so many seconds after its deadline, Killed is raised in it by force, wherever it is, until
    it returns, and never afterwards; see cancel_scope(). ValueError or TypeError: a time that is
    negative, NaN or not a number.

    A generator or coroutine function would be done before its code has begun, and is refused with a
    TypeError.
    """
    fail_after(seconds, grace=grace, kill_after=kill_after)  # refuses what makes no sense

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return call_within(function, args, kwargs, seconds, grace=grace, kill_after=kill_after)

        return within

    return decorate


def refuse(function: Callable[..., object]) -> None:
    """Only what is done when it returns can be given a time."""
    import inspect

    can_be_called: bool = callable(function)
    if not can_be_called:
        raise TypeError(f"expected a function, not {type(function).__qualname__}")
    for kind, test in (
        ("a generator", inspect.isgeneratorfunction),
        ("a coroutine", inspect.iscoroutinefunction),
        ("an asynchronous generator", inspect.isasyncgenfunction),
    ):
        if test(function):
            name = getattr(function, "__qualname__", repr(function))
            raise TypeError(
                f"{name} is {kind} function, whose call returns before its code runs: put "
                f"`with desist.fail_after(...)` around the code that uses what it returns"
            )
