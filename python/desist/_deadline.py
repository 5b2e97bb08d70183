"""deadline(): a decorator that limits the time of each call of a function."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from desist._core import call_within, check_runnable, fail_after

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


def deadline(
    timeout: float | None,
    *,
    grace: float | None = None,
    kill_after: float | None = None,
    abandon: bool = False,
    isolation: Literal["process"] | None = None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Limit each call of a function to `timeout` seconds.

    Each call is a block of its own, as that of fail_after(): its desist waits end in time.
    `timeout`: seconds from the call; None: no deadline. `grace`: seconds that clean-up blocks
    inside may take after the deadline. `kill_after`: if the function still runs this many seconds
    after its deadline, Killed is raised in it by force, wherever it is, until it returns, and never
    afterwards; see cancel_scope().

    ``abandon=True`` gives the caller control back in any case: the function is called by call(), on
    another thread. ``isolation="process"`` calls it in a process. `kill_after` is then the time of
    clean-up blocks, too.

    The decorator itself never blocks.

    On cancel: of the code that calls the function: Cancelled goes through the call.

    On timeout: the call raises DeadlineExceeded (a TimeoutError).

    Raises:
        TypeError: a time that is not a number, or a generator or coroutine function, whose call
            returns before its code runs; or a `grace` with `abandon` or `isolation`.
        ValueError: a time that is negative or NaN, or another isolation.
    """
    fail_after(timeout, grace=grace, kill_after=kill_after)  # raises for a time that is not valid
    if abandon or isolation is not None:
        if grace is not None:
            raise TypeError("give kill_after, which is the time for clean-up here, and no grace")
        return _elsewhere(timeout, kill_after, abandon, isolation)

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return call_within(function, args, kwargs, timeout, grace=grace, kill_after=kill_after)

        return within

    return decorate


def _elsewhere(
    timeout: float | None,
    kill_after: float | None,
    abandon: bool,
    isolation: Literal["process"] | None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    from desist._call import KILL_AFTER, call, check_isolation  # heavy, and few need it

    check_isolation(isolation)
    kill_after = KILL_AFTER if kill_after is None else kill_after

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            body: Callable[..., _R] = function if isolation is None else _Undecorated(within)
            return call(
                functools.partial(body, *args, **kwargs),
                timeout=timeout,
                kill_after=kill_after,
                abandon=abandon,
                isolation=isolation,
            )

        return within

    return decorate


class _Undecorated:
    """The function in a decorated one. By the function's name, a pickle finds the decorated one."""

    def __init__(self, decorated: Callable[..., Any]) -> None:
        self._decorated = decorated

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._decorated, "__wrapped__")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._decorated.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]


def refuse(function: Callable[..., object]) -> None:
    """Raise TypeError unless the function's code has run when its call returns."""
    advice = "put `with desist.fail_after(...)` around the code that uses its result"
    check_runnable(function, "the function", advice)
