"""func_timeout, stopit and timeout_decorator: limits for the time of a function or a block.

Guarantees: nothing is raised after the block or the call. Code that is late is reported as late,
also if it ends by itself just after the limit. When the error is raised, the code has ended; only a
call into C that does not return is left behind, by func_timeout() and timeout(), whose callers get
control back all the same.

How: the code runs in a block of its own with a deadline and `kill_after`. So its desist waits and
checkpoints raise Cancelled, and code that does not wait is forced out soon after. The block is on
the thread that the package uses for it: the calling one for stopit, and for timeout_decorator on
the main thread, where a signal ends blocking system calls; else another one, by desist.call().
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from desist._call import call
from desist._core import (
    CancelScope,
    call_masked,
    cancel_scope,
    current_time,
    move_on_after,
)
from desist._deadline import refuse
from desist._exceptions import DeadlineExceeded, ScopeMisuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

_P = ParamSpec("_P")
_R = TypeVar("_R")

TimeoutException = DeadlineExceeded
"""The exception that leaves a block of ThreadingTimeout."""


_KILL_AFTER = 0.1
"""Seconds after the deadline until code that does not wait, or swallows Cancelled, is killed."""


def _block(seconds: float) -> CancelScope:
    return move_on_after(seconds, kill_after=_KILL_AFTER)


def _call_here(
    seconds: float, function: Callable[..., _R], args: Any, kwargs: Any
) -> tuple[_R] | None:
    """Call a function on this thread, and return its result; None if it was late."""
    block = _block(seconds)
    with block:
        result = function(*args, **kwargs)
    return None if block.cancelled_caught or current_time() > block.deadline else (result,)


def _call_elsewhere(
    seconds: float, function: Callable[..., _R], args: Any, kwargs: Any
) -> tuple[_R] | None:
    """Call a function on a thread of its own, and return its result; None if it was late.

    A function that has not ended soon after its limit, or after its caller was stopped, is killed
    meanwhile; what is blocked in C is abandoned.
    """
    deadline = _block(seconds).deadline
    call_it = functools.partial(function, *args, **kwargs)
    try:
        result = call(call_it, timeout=seconds, kill_after=_KILL_AFTER)
    except Exception:
        if current_time() <= deadline:
            raise
        return None
    return (result,) if current_time() <= deadline else None


# --- func_timeout ---------------------------------------------------------------------------------


class FunctionTimedOut(DeadlineExceeded):
    """The function has not ended in time. A TimeoutError; func_timeout's is a BaseException."""

    def __init__(
        self,
        msg: str = "",
        timedOutAfter: float | None = None,  # noqa: N803 (the names are func_timeout's)
        timedOutFunction: Callable[..., Any] | None = None,  # noqa: N803
        timedOutArgs: tuple[Any, ...] | None = None,  # noqa: N803
        timedOutKwargs: Mapping[str, Any] | None = None,  # noqa: N803
    ) -> None:
        """Keep the call's function, arguments and timeout."""
        self.timedOutAfter = timedOutAfter
        self.timedOutFunction = timedOutFunction
        self.timedOutArgs = timedOutArgs
        self.timedOutKwargs = timedOutKwargs
        if not msg:
            name = getattr(timedOutFunction, "__qualname__", repr(timedOutFunction))
            msg = f"{name} was not done after {timedOutAfter} seconds"
        self.msg = msg
        super().__init__(msg)

    def retry(self, timeout: float | str | None = "RETRY_SAME_TIMEOUT") -> Any:
        """Call the function again: with the same timeout, with another, or (None) with none.

        Blocks: as func_timeout(); without a timeout, until the function has ended.
        On cancel: as func_timeout(); without a timeout, Cancelled goes through the call.
        On timeout: FunctionTimedOut.

        Raises:
            ValueError: this exception does not have the function.
        """
        function = self.timedOutFunction
        if function is None:
            raise ValueError("there is no function to call again")
        args, kwargs = self.timedOutArgs or (), self.timedOutKwargs or {}
        if timeout is None:
            return function(*args, **kwargs)
        if timeout == "RETRY_SAME_TIMEOUT":
            timeout = self.timedOutAfter
        return func_timeout(timeout, function, args, kwargs)  # type: ignore[arg-type]


def func_timeout(
    timeout: float,
    func: Callable[..., _R],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> _R:
    """Call `func(*args, **kwargs)`, and raise FunctionTimedOut if it has not ended in time.

    It is called on another thread, in a copy of the caller's context (contextvars).
    func_timeout's own abandons that thread, with all its locks. Here it has ended when
    FunctionTimedOut is raised, unless it is blocked in C: then it is killed as soon as it returns,
    and abandoned some seconds later. The native way: ``with desist.fail_after(timeout):``.

    Blocks: until the function has ended, or 0.2 seconds after the timeout at most.

    On cancel: the function is cancelled as well, and killed if it does not end.

    On timeout: FunctionTimedOut, also if the function has just returned.

    Raises:
        TypeError: a generator or coroutine function, whose call returns before its code runs.
    """
    refuse(func)
    returned = _call_elsewhere(timeout, func, args, kwargs or {})
    if returned is None:
        raise FunctionTimedOut("", timeout, func, args, kwargs)
    return returned[0]


@overload
def func_set_timeout(
    timeout: float | Callable[..., float],
    allowOverride: Literal[False] = False,  # noqa: N803
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]: ...
@overload
def func_set_timeout(
    timeout: float | Callable[..., float],
    allowOverride: Literal[True],  # noqa: N803
) -> Callable[[Callable[..., _R]], Callable[..., _R]]: ...
def func_set_timeout(
    timeout: float | Callable[..., float],
    allowOverride: bool = False,  # noqa: N803 (func_timeout's name)
) -> Callable[[Callable[..., _R]], Callable[..., _R]]:
    """Limit each call of a function to `timeout` seconds, as func_timeout() does.

    `timeout` may be a function of the call's arguments. `allowOverride`: a call may be given
    another, as ``forceTimeout=``. The native way: ``with desist.fail_after(timeout):`` inside.
    The decorator itself never blocks.

    On timeout: the call raises FunctionTimedOut; the rest is as with func_timeout().
    """
    if not callable(timeout):
        _block(timeout)  # raises for a time that is not valid

    def decorate(function: Callable[..., _R]) -> Callable[..., _R]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: Any, **kwargs: Any) -> _R:
            if allowOverride and "forceTimeout" in kwargs:
                seconds = kwargs.pop("forceTimeout")
            else:
                seconds = timeout(*args, **kwargs) if callable(timeout) else timeout
            return func_timeout(seconds, function, args, kwargs)

        return within

    return decorate


# --- stopit ---------------------------------------------------------------------------------------


class _OfTheScope:
    """An `__enter__` or `__exit__` that runs no Python code.

    Python code there would belong neither to the block nor to the code around it, and Killed could
    be raised between the two.
    """

    def __init__(
        self, bind: Callable[[ThreadingTimeout], Callable[..., Any]], call: Callable[..., Any]
    ) -> None:
        self._bind = bind
        self._call = call

    def __get__(self, instance: ThreadingTimeout | None, owner: object) -> Callable[..., Any]:
        # ExitStack, unlike `with`, takes the method from the class.
        return self._call if instance is None else self._bind(instance)


class ThreadingTimeout:
    """A block that has to end within `seconds`; afterwards it is true if it has, and `state` tells.

    A block that is late is left quietly; with ``swallow_exc=False`` TimeoutException is raised. A
    call into C has to return first. For one `with` statement. The native way: move_on_after() and
    fail_after().

    Blocks: never; every desist wait inside ends in time.

    On cancel: of the code around it: Cancelled goes through the block.

    On timeout: the block's desist waits and checkpoints raise Cancelled, and 0.1 seconds later the
    block is ended by force. Then it is left, quietly or with TimeoutException.
    """

    EXECUTED, EXECUTING, TIMED_OUT, INTERRUPTED, CANCELED = range(5)

    def __init__(self, seconds: float, swallow_exc: bool = True) -> None:
        """Make a block that has not begun."""
        self.seconds = seconds
        self.swallow_exc = swallow_exc
        self._scope: CancelScope = (
            _block(seconds) if swallow_exc else cancel_scope(seconds, kill_after=_KILL_AFTER)
        )
        self._entered = self._canceled = self._late = False

    @property
    def state(self) -> int:
        """EXECUTED (also before it has begun), EXECUTING, TIMED_OUT or CANCELED.

        INTERRUPTED, by the exception of another block, does not happen: each block has its own.
        """
        if self._late or self._scope.cancelled_caught:
            return self.TIMED_OUT
        if self._canceled:
            return self.CANCELED
        return self.EXECUTING if self._entered and self._is_open() else self.EXECUTED

    def _is_open(self) -> bool:
        try:
            return bool(self._scope.token)
        except ScopeMisuse:
            return False

    def cancel(self) -> None:
        """Take the time limit away."""
        if not self._entered or self._is_open():
            self._scope.deadline = math.inf
            self._canceled = True

    def __bool__(self) -> bool:
        """Has it ended in time, or may it still?"""
        return self.state in (self.EXECUTED, self.EXECUTING, self.CANCELED)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in state: {self.state}>"

    def _enter(self) -> Callable[[], ThreadingTimeout]:
        self._entered = True
        # compress() enters the scope, which is true, and then yields the one item of its data.
        entered = itertools.starmap(self._scope.__enter__, ((),))
        return functools.partial(next, itertools.compress((self,), entered))

    def _leave(self, kind: Any, raised: BaseException | None, traceback: Any) -> bool:
        caught = self._scope.__exit__(kind, raised, traceback)
        # Its last call into C may have returned just after the limit.
        if raised is None and current_time() > self._scope.deadline:
            self._late = True
            if not self.swallow_exc:
                raise TimeoutException("the deadline passed before the block was done")
        return caught

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
        def __exit__(
            self,
            kind: type[BaseException] | None,
            raised: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool: ...

    else:
        __enter__ = _OfTheScope(_enter, lambda self: self._enter()())
        # The mask holds off the block's own Killed until the scope has ended.
        __exit__ = _OfTheScope(
            lambda self: functools.partial(call_masked, self._leave),
            lambda self, *raised: call_masked(self._leave, *raised),
        )


def threading_timeoutable(
    default: Any = None, timeout_param: str = "timeout"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let calls of a function take a timeout, as ``timeout=``.

    A call that is late returns `default`. `timeout_param`: another name for that argument. The
    native way: ``with desist.move_on_after(...):`` inside. The decorator itself never blocks.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: Any, **kwargs: Any) -> Any:
            seconds = kwargs.pop(timeout_param, None)
            if seconds is None:
                return function(*args, **kwargs)
            returned = _call_here(seconds, function, args, kwargs)
            return default if returned is None else returned[0]

        return within

    return decorate


# --- timeout_decorator ----------------------------------------------------------------------------


def timeout(
    seconds: float | None = None,
    use_signals: bool = True,
    timeout_exception: type[BaseException] = DeadlineExceeded,
    exception_message: str | None = None,
) -> Callable[[Callable[..., _R]], Callable[..., _R]]:
    """Limit each call of a function to `seconds` (None: no limit).

    A call may be given another timeout, as ``timeout=``. A call that is late raises
    `timeout_exception`, with `exception_message` if there is one. Any thread may call the function:
    on the main thread, and with `use_signals`, it runs there; else on a thread of its own, as with
    func_timeout(), and never in a process. The native way: ``with desist.fail_after(seconds):``
    inside. The decorator itself never blocks.

    On timeout: `timeout_exception`, also if the function has just returned.

    Raises:
        TypeError: `timeout_exception` is no class of exceptions.
        ValueError: a time that is negative or NaN.
    """
    given: object = timeout_exception
    if not (isinstance(given, type) and issubclass(given, BaseException)):
        raise TypeError(f"timeout_exception must be an exception class, not {given!r}")
    if seconds is not None:
        _block(seconds)  # raises for a time that is not valid

    def decorate(function: Callable[..., _R]) -> Callable[..., _R]:
        refuse(function)

        @functools.wraps(function)
        def within(*args: Any, **kwargs: Any) -> _R:
            limit = kwargs.pop("timeout", seconds)
            if limit is None:
                return function(*args, **kwargs)
            here = use_signals and threading.current_thread() is threading.main_thread()
            call = _call_here if here else _call_elsewhere
            returned = call(limit, function, args, kwargs)
            if returned is None:
                raise timeout_exception(*() if exception_message is None else (exception_message,))
            return returned[0]

        return within

    return decorate
