"""func_timeout, stopit and timeout_decorator, and desist's versions, which end with the block."""

from __future__ import annotations

import contextlib
import contextvars
import math
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import desist
import recipes
from desist import Cancelled, DeadlineExceeded, Killed, Lock, ScopeMisuse, testing
from desist.compat import (
    FunctionTimedOut,
    ThreadingTimeout,
    TimeoutException,
    func_set_timeout,
    func_timeout,
    threading_timeoutable,
    timeout,
)
from support import AT_WAIT, NEVER, Victim, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")

SOON = 0.01


def wait(_: object = None) -> str:
    desist.sleep_forever()
    return "never"


def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


def stop_at(seconds: float) -> None:
    """Check that nothing is raised after the block, which all of them promise."""
    end = desist.current_time() + seconds
    while desist.current_time() < end:
        pass
    desist.checkpoint()


def return_late() -> str:
    """Return just after the limit, without a wait that could be cancelled."""
    end = desist.current_time() + SOON
    while desist.current_time() <= end:
        pass
    return "late"


def on_this_thread(body: Callable[[], T]) -> T:
    return body()


PLACES = pytest.mark.parametrize("place", [on_this_thread, in_thread])


# --- func_timeout ---------------------------------------------------------------------------------


def test_func_timeout_leaves_the_function_running_with_its_locks() -> None:
    assert recipes.alone(recipes.func_timeout_leaves_the_function_running) == [
        "timed out; threads left: True",
        "held: True",
    ]


def test_a_function_that_timed_out_has_ended_and_holds_nothing() -> None:
    lock = Lock()

    def function() -> None:
        with lock:
            wait()

    with pytest.raises(FunctionTimedOut):
        func_timeout(SOON, function)
    assert not lock.locked()
    assert not lock.poisoned
    stop_at(SOON)


def test_func_timeout_calls_the_function_and_returns_its_result() -> None:
    assert func_timeout(NEVER, double, (2,)) == 4
    assert func_timeout(NEVER, double, kwargs={"number": 3}) == 6
    with pytest.raises(ZeroDivisionError):
        func_timeout(NEVER, lambda: 1 // 0)


def test_function_timed_out_describes_the_call_and_can_retry() -> None:
    outcomes: list[Callable[[], str]] = [wait, wait, str, str]

    def function(*_: object, **__: object) -> str:
        return outcomes.pop(0)()

    with pytest.raises(FunctionTimedOut, match=r"function was not done after 0\.01") as raised:
        func_timeout(SOON, function, (1,), {"two": 2})
    timed_out = raised.value
    assert isinstance(timed_out, TimeoutError)
    assert timed_out.timedOutAfter == SOON
    assert timed_out.timedOutFunction is function
    assert (timed_out.timedOutArgs, timed_out.timedOutKwargs) == ((1,), {"two": 2})
    assert timed_out.msg == str(timed_out)
    with pytest.raises(FunctionTimedOut):
        timed_out.retry()
    assert timed_out.retry(NEVER) == ""
    assert timed_out.retry(None) == ""
    with pytest.raises(ValueError, match="no function"):
        FunctionTimedOut("made by hand").retry()


def test_a_timeout_of_the_functions_own_is_not_taken_for_this_one() -> None:
    def function() -> None:
        with desist.fail_after(SOON):
            wait()

    with pytest.raises(DeadlineExceeded) as raised:
        func_timeout(NEVER, function)
    assert not isinstance(raised.value, FunctionTimedOut)
    with pytest.raises(FunctionTimedOut) as outer:
        func_timeout(SOON, func_timeout, (NEVER, wait))
    assert outer.value.timedOutFunction is func_timeout


def test_a_cancel_from_outside_is_not_taken_for_a_timeout() -> None:
    with desist.cancel_scope() as scope:
        scope.cancel()
        func_timeout(NEVER, wait)
    assert scope.cancelled_caught


def test_func_set_timeout_gives_each_call_its_time() -> None:
    @func_set_timeout(SOON)
    def late() -> None:
        wait()

    for _ in range(2):
        with pytest.raises(FunctionTimedOut):
            late()
    limited = func_set_timeout(NEVER)(double)
    assert limited(2) == 4
    assert (limited.__name__, limited.__doc__) == ("double", double.__doc__)


def test_func_set_timeout_takes_a_function_of_the_arguments() -> None:
    asked: list[int] = []

    def seconds(number: int) -> float:
        asked.append(number)
        return NEVER

    assert func_set_timeout(seconds)(double)(5) == 10
    assert asked == [5]


def test_a_call_may_override_its_timeout() -> None:
    late = func_set_timeout(NEVER, allowOverride=True)(wait)
    with pytest.raises(FunctionTimedOut):
        late(forceTimeout=SOON)
    assert func_set_timeout(SOON, allowOverride=True)(double)(2) == 4
    with pytest.raises(TypeError, match="forceTimeout"):
        func_set_timeout(NEVER)(double)(2, forceTimeout=1)  # type: ignore[call-arg]


LATE: dict[str, Callable[[Callable[..., Any]], object]] = {
    "func_timeout": lambda function: func_timeout(SOON, function),
    "func_set_timeout": lambda function: func_set_timeout(SOON)(function)(),
    "timeout": lambda function: timeout(SOON)(function)(),
    "timeout without signals": lambda function: timeout(SOON, use_signals=False)(function)(),
}


@PLACES
@pytest.mark.parametrize("name", ["func_timeout", "func_set_timeout", "timeout without signals"])
def test_a_caller_gets_control_back_from_a_function_that_is_blocked_in_c(
    name: str, place: Callable[[Callable[[], object]], object]
) -> None:
    blocked = threading.Lock()
    blocked.acquire()
    returned = threading.Event()

    def function() -> None:
        try:
            blocked.acquire()  # C code, which no force interrupts
        finally:
            returned.set()

    with pytest.raises(DeadlineExceeded):
        place(lambda: LATE[name](function))
    assert not returned.is_set()
    blocked.release()
    assert returned.wait(NEVER)


def test_timeout_gives_control_back_on_other_threads_than_the_main_one() -> None:
    blocked = threading.Lock()
    blocked.acquire()
    with pytest.raises(DeadlineExceeded):
        in_thread(timeout(SOON)(blocked.acquire))
    blocked.release()


def test_a_system_call_on_the_main_thread_is_interrupted() -> None:
    with pytest.raises(DeadlineExceeded):
        timeout(SOON)(time.sleep)(NEVER)


@PLACES
@pytest.mark.parametrize("name", LATE)
def test_a_function_that_returns_just_after_its_limit_is_late(
    name: str, place: Callable[[Callable[[], object]], object]
) -> None:
    with pytest.raises(DeadlineExceeded):
        place(lambda: LATE[name](return_late))
    assert threading_timeoutable("default")(return_late)(timeout=SOON) == "default"


@pytest.mark.parametrize("name", ["func_timeout", "timeout without signals"])
@pytest.mark.parametrize("failure", [KeyError, SystemExit, KeyboardInterrupt])
def test_an_exception_of_the_function_is_raised_in_the_caller(
    name: str, failure: type[BaseException]
) -> None:
    raised = failure("which")

    def function() -> None:
        raise raised

    with pytest.raises(failure) as caught:
        LATE[name](function)
    assert caught.value is raised


def test_a_function_runs_in_a_copy_of_its_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)

    def function() -> int:
        value = variable.get()
        variable.set(2)
        return value

    assert func_timeout(NEVER, function) == 1
    assert variable.get() == 1


def test_a_function_ends_with_the_code_that_waits_for_it() -> None:
    begun, ended = threading.Event(), threading.Event()

    def function() -> None:
        try:
            begun.set()
            wait()
        finally:
            ended.set()

    def call(ready: Callable[[], None]) -> None:
        ready()
        func_timeout(NEVER, function)

    with Victim(call) as victim:
        assert begun.wait(NEVER)
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    assert ended.is_set()
    begun.clear()
    ended.clear()
    with Victim(call) as victim:
        assert begun.wait(NEVER)
        victim.kill(policy=AT_WAIT)
    assert isinstance(victim.raised, Killed)
    assert ended.wait(NEVER)


def test_ctrl_c_ends_the_function() -> None:
    ended = threading.Event()

    def function() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            wait()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        func_timeout(NEVER, function)
    assert ended.wait(NEVER)


def test_a_cancelled_caller_does_not_begin() -> None:
    begun: list[int] = []
    with desist.cancel_scope() as scope:
        scope.cancel()
        func_timeout(NEVER, begun.append, (1,))
    assert not begun


# --- stopit ---------------------------------------------------------------------------------------


def test_stopit_raises_after_the_block() -> None:
    assert recipes.alone(recipes.stopit_raises_after_the_block) == [
        "the block is done",
        "out of a block that swallows it: TimeoutException",
    ]


def test_a_block_that_ends_just_after_its_limit_is_late() -> None:
    with ThreadingTimeout(SOON) as block:
        return_late()
    assert not block
    assert block.state == block.TIMED_OUT
    stop_at(SOON)
    with pytest.raises(TimeoutException), ThreadingTimeout(SOON, swallow_exc=False) as block:
        return_late()
    assert block.state == block.TIMED_OUT
    with pytest.raises(ZeroDivisionError), ThreadingTimeout(SOON):
        raise ZeroDivisionError(return_late())


def test_the_exception_of_stopit_is_swallowed() -> None:
    assert recipes.alone(recipes.stopit_is_swallowed) == [
        "handled as if it were the code's own",
        "goes on, with no timeout any more",
    ]


@pytest.mark.filterwarnings("ignore::desist.CancelledSwallowedWarning")
@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_block_that_swallows_is_stopped_at_its_next_wait(kind: type[BaseException]) -> None:
    swallowed: list[type[BaseException]] = []
    with ThreadingTimeout(SOON) as block:
        for _ in range(3):
            try:
                wait()
            except kind as raised:  # noqa: PERF203 (as user code may)
                swallowed.append(type(raised))
        desist.checkpoint()
        raise AssertionError
    assert block.state == block.TIMED_OUT
    assert swallowed == ([Cancelled] * 3 if kind is BaseException else [])


def test_a_block_knows_how_it_ended() -> None:
    block = ThreadingTimeout(NEVER)
    assert (block.state, bool(block)) == (block.EXECUTED, True)
    with block as entered:
        assert entered is block
        assert (block.state, bool(block)) == (block.EXECUTING, True)
        assert repr(block) == "<ThreadingTimeout in state: 1>"
    assert (block.state, bool(block)) == (block.EXECUTED, True)
    with ThreadingTimeout(SOON) as block:
        wait()
    assert (block.state, bool(block)) == (block.TIMED_OUT, False)
    with pytest.raises(ZeroDivisionError), ThreadingTimeout(NEVER) as block:
        raise ZeroDivisionError
    assert block.state == block.EXECUTED


def test_a_block_that_is_not_to_swallow_raises() -> None:
    with pytest.raises(TimeoutException), ThreadingTimeout(SOON, swallow_exc=False) as block:
        wait()
    assert block.state == block.TIMED_OUT


def test_a_block_whose_timeout_is_cancelled_takes_its_time() -> None:
    with ThreadingTimeout(NEVER) as block:
        assert desist.current_effective_deadline() < math.inf
        block.cancel()
        assert desist.current_effective_deadline() == math.inf
        assert block.state == block.CANCELED
    assert block
    with ThreadingTimeout(SOON) as block:
        wait()
    block.cancel()
    assert block.state == block.TIMED_OUT


def test_a_block_can_be_entered_by_an_exit_stack_once() -> None:
    block = ThreadingTimeout(SOON)
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(block) is block
        wait()
    assert block.state == block.TIMED_OUT
    with pytest.raises(ScopeMisuse), block:
        pass


def test_nested_blocks_end_by_their_own_time() -> None:
    with ThreadingTimeout(NEVER) as outer:
        with ThreadingTimeout(SOON) as inner:
            wait()
        assert inner.state == inner.TIMED_OUT
        assert outer.state == outer.EXECUTING
    with ThreadingTimeout(SOON) as outer:
        with ThreadingTimeout(NEVER) as inner:
            wait()
        raise AssertionError
    assert outer.state == outer.TIMED_OUT
    assert inner.state == inner.EXECUTED


def test_a_timeoutable_function_returns_the_default_when_it_is_late() -> None:
    late = threading_timeoutable(default="late")(wait)
    assert late(timeout=SOON) == "late"
    assert threading_timeoutable()(wait)(timeout=SOON) is None
    assert threading_timeoutable(timeout_param="within")(wait)(within=SOON) is None
    assert threading_timeoutable("late")(double)(2) == 4
    assert threading_timeoutable("late")(double)(2, timeout=NEVER) == 4


# --- timeout_decorator ----------------------------------------------------------------------------


def test_timeout_decorator_is_for_the_main_thread() -> None:
    told = recipes.alone(recipes.timeout_decorator_is_for_the_main_thread)
    assert told == ["signal only works in main thread"]


def test_any_thread_may_call_a_function_with_a_timeout() -> None:
    with pytest.raises(DeadlineExceeded):
        in_thread(timeout(SOON)(wait))


def test_timeout_decorator_ends_the_timeout_around_it() -> None:
    told = recipes.alone(recipes.timeout_decorator_ends_the_timeout_around_it)
    assert told == ["seconds left to the outer one: 0.0"]


def test_a_timeout_stays_when_one_inside_has_ended() -> None:
    @timeout(SOON)
    def outer() -> None:
        timeout(NEVER)(double)(1)
        wait()

    with pytest.raises(DeadlineExceeded):
        outer()


def test_timeout_decorator_raises_after_the_call() -> None:
    assert recipes.alone(recipes.timeout_decorator_raises_after_the_call) == [
        "will kill: True",
        "after the call: TimeoutError",
    ]


def test_a_timeout_given_to_a_call_ends_with_it() -> None:
    limited = timeout()(double)
    with testing.no_leaks():
        assert limited(2, timeout=SOON) == 4
        assert desist.current_effective_deadline() == math.inf
    stop_at(SOON)
    with pytest.raises(DeadlineExceeded):
        timeout()(wait)(timeout=SOON)
    with pytest.raises(DeadlineExceeded):
        timeout(NEVER)(wait)(timeout=SOON)


def test_a_timeout_raises_the_given_exception() -> None:
    class Mine(Exception):
        pass

    with pytest.raises(Mine) as raised:
        timeout(SOON, timeout_exception=Mine)(wait)()
    assert raised.value.args == ()
    with pytest.raises(Mine, match="too late"):
        timeout(SOON, use_signals=False, timeout_exception=Mine, exception_message="too late")(
            wait
        )()
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(DeadlineExceeded):
        timeout(SOON)(wait)()
    assert signal.getsignal(signal.SIGALRM) is handler


# --- by force -------------------------------------------------------------------------------------


def count() -> None:
    n = 0
    while True:
        n += 1


def block_that_counts() -> None:
    with ThreadingTimeout(SOON, swallow_exc=False):
        n = 0
        while True:
            n += 1


@pytest.mark.parametrize("place", [lambda body: body(), in_thread])
@pytest.mark.parametrize(
    "body",
    [
        lambda: func_timeout(SOON, count),
        func_set_timeout(SOON)(count),
        timeout(SOON)(count),
        block_that_counts,
    ],
)
def test_code_that_neither_waits_nor_stops_is_ended_by_force(body: Any, place: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        place(body)
    stop_at(SOON)


def test_code_that_is_ended_by_force_releases_its_locks() -> None:
    lock = Lock(on_kill="release")

    def holds() -> None:
        with lock:
            desist.sleep(0)
        lock.acquire()
        count()

    assert threading_timeoutable("late")(holds)(timeout=SOON) == "late"
    assert not lock.locked()


# --- bad input ------------------------------------------------------------------------------------


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> None:
    pass


async def asynchronous() -> AsyncIterator[int]:
    yield 1


def test_timeout_decorator_is_over_before_a_generator_begins() -> None:
    told = recipes.alone(recipes.timeout_decorator_is_over_before_a_generator_begins)
    assert told == ["seconds left to the generator: 0.0"]


DECORATORS: list[Callable[[], Callable[[Any], Any]]] = [
    lambda: lambda function: func_timeout(NEVER, function),
    lambda: func_set_timeout(NEVER),
    threading_timeoutable,
    lambda: timeout(NEVER),
]


@pytest.mark.parametrize("make", DECORATORS)
@pytest.mark.parametrize(
    ("function", "kind"),
    [(generator, "generator"), (coroutine, "coroutine"), (asynchronous, "asynchronous generator")],
)
def test_generators_and_coroutines_are_refused(make: Any, function: Any, kind: str) -> None:
    name = function.__name__
    with pytest.raises(TypeError, match=rf"{name} is an? {kind} function, .*fail_after"):
        make()(function)


@pytest.mark.parametrize("make", DECORATORS)
def test_an_object_that_is_not_callable_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="the function must be callable, not int"):
        make()(1)


SPANS: list[Callable[[Any], object]] = [
    lambda span: func_timeout(span, double, (1,)),
    func_set_timeout,
    lambda span: func_set_timeout(lambda _: span)(double)(1),
    ThreadingTimeout,
    lambda span: threading_timeoutable()(double)(1, timeout=span),
    timeout,
    lambda span: timeout()(double)(1, timeout=span),
]


@pytest.mark.parametrize("make", SPANS)
@pytest.mark.parametrize(
    ("span", "error"),
    [(-1, ValueError), (math.nan, ValueError), ("5", TypeError), ([5], TypeError)],
)
def test_an_invalid_time_is_refused(make: Any, span: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"timeout must (be a number|not be)|real number"):
        make(span)


@pytest.mark.parametrize("wrong", [1, "TimeoutError", TimeoutError(), int])
def test_an_object_that_is_no_exception_class_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="timeout_exception must be an exception class, not "):
        timeout(1, timeout_exception=wrong)
