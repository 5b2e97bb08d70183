"""call(), and deadline() with `abandon` and `isolation`: control comes back in time."""

from __future__ import annotations

import contextvars
import os
import re
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    Cancelled,
    DeadlineExceeded,
    KillOutcome,
    PoolExhausted,
    TaskState,
    WorkerDied,
    call,
    deadline,
    testing,
)
from desist import _call as calls
from support import NEVER, DeafEvent, in_child, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON = 0.05


@pytest.fixture
def deaf() -> Iterator[DeafEvent]:
    """Code that waits for it is ended by nothing but its set()."""
    event = DeafEvent()
    yield event
    event.set()


def spin() -> None:
    while True:
        pass


def swallow() -> None:
    while True:
        with suppress(BaseException):
            spin()


def clean_up_for_ever() -> None:
    try:
        desist.sleep(NEVER)
    finally:
        with desist.cleanup():
            desist.sleep(NEVER)


def return_when_asked() -> str:
    try:
        desist.sleep(NEVER)
    except Cancelled:
        return "done"
    raise AssertionError


def end_by_itself() -> None:
    os._exit(3)


def catastrophic() -> object:
    return re.match(r"(a+)+$", "a" * 40 + "b")  # keeps the GIL for minutes


def name_of_the_thread() -> str:
    return threading.current_thread().name


def process() -> int:
    return os.getpid()


async def coroutine() -> None: ...


# --- on a thread ----------------------------------------------------------------------------------


def test_the_result_and_the_exceptions_are_those_of_the_function() -> None:
    assert call(pow, 2, 3, timeout=NEVER) == 8
    assert call(partial(int, "11", base=2), timeout=None) == 3
    with pytest.raises(ValueError, match="invalid literal"):
        call(int, "x", timeout=NEVER)
    assert call(name_of_the_thread, timeout=NEVER).startswith("desist-call")


@pytest.mark.parametrize("function", [spin, swallow, clean_up_for_ever])
def test_a_function_that_does_not_end_is_killed(function: Callable[[], object]) -> None:
    with pytest.raises(DeadlineExceeded) as late:
        call(function, timeout=SOON, kill_after=SOON)
    report = late.value.report
    assert report is not None
    assert report.outcome not in (None, KillOutcome.ABANDONED)


def test_control_comes_back_from_a_function_that_nothing_ends(deaf: DeafEvent) -> None:
    begun = desist.current_time()
    with pytest.raises(DeadlineExceeded) as late:
        call(deaf.wait, timeout=SOON, kill_after=SOON)
    assert desist.current_time() - begun < 5
    report = late.value.report
    assert report is not None
    assert report.outcome is KillOutcome.ABANDONED
    assert report.blocked is not None
    assert "support.py" in report.blocked


def test_i46_calls_of_other_threads_are_ended_beside_an_abandoned_one(deaf: DeafEvent) -> None:
    # CPython 3.11 runs no Python function of a traced thread while an exception is posted to a
    # thread that does not raise it: the abandoned one.
    if not desist.foreign_status().available:
        pytest.skip("this system ends no calls of foreign code")
    with pytest.raises(DeadlineExceeded):
        call(deaf.wait, timeout=SOON, kill_after=SOON)
    for _ in range(3):
        with desist.ThreadPoolExecutor(1) as executor:
            sleeper = executor.submit(time.sleep, NEVER)
            desist.sleep(0.01)
            sleeper.cancel()
            assert isinstance(sleeper.exception(10), desist.TaskCancelled)


def test_what_the_function_returns_when_it_is_asked_to_stop_is_not_lost() -> None:
    assert call(return_when_asked, timeout=SOON) == "done"


def test_a_function_that_ends_when_it_is_asked_to_has_a_soft_report_or_none() -> None:
    with pytest.raises(DeadlineExceeded) as late:
        call(desist.sleep, NEVER, timeout=SOON)
    report = late.value.report
    assert report is None or report.outcome in (KillOutcome.COOPERATIVE, KillOutcome.ALREADY_DONE)


def test_without_abandon_the_function_has_ended(deaf: DeafEvent) -> None:
    released = []

    def release() -> None:
        released.append(True)
        deaf.set()

    releasing = threading.Timer(0.3, release)
    releasing.start()
    with pytest.raises(DeadlineExceeded) as late:
        call(deaf.wait, timeout=SOON, kill_after=0, abandon=False)
    assert released
    assert late.value.report is not None
    releasing.join()


def test_the_function_is_under_the_scope_and_in_the_context_of_the_caller() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(1)
    assert call(variable.get, timeout=NEVER) == 1
    with desist.fail_after(100) as outer:
        assert call(desist.current_effective_deadline, timeout=NEVER) == outer.deadline
        within = call(desist.current_effective_deadline, timeout=1)
        assert within < outer.deadline


@pytest.mark.parametrize("function", [partial(desist.sleep, NEVER), spin])
def test_the_function_ends_with_the_scope_of_its_caller(function: Callable[[], object]) -> None:
    before = calls._executor._unfinished.copy()
    with desist.move_on_after(SOON) as scope:
        call(function, timeout=NEVER, kill_after=SOON)
    assert scope.cancelled_caught
    assert calls._executor._unfinished == before


def test_the_function_ends_with_a_kill_of_its_caller() -> None:
    begun = desist.Event()
    tokens = []

    def function() -> None:
        tokens.append(desist.current_token())
        begun.set()
        spin()

    caller = desist.Thread(target=call, args=(function,), kwargs={"timeout": NEVER})
    caller.start()
    begun.wait()
    caller.kill(policy=desist.StopPolicy(cooperative=0))
    assert caller.state in (TaskState.KILLED, TaskState.CANCELLED)
    tokens[0].wait()


def test_so_many_abandoned_functions_may_run_and_no_more() -> None:
    calls._after_fork()  # another executor, which this test exhausts
    events = []

    def abandon() -> None:
        events.append(DeafEvent())
        with pytest.raises(DeadlineExceeded):
            call(events[-1].wait, timeout=SOON, kill_after=0)

    try:
        for _ in range(calls._MAX_ABANDONED + 1):
            abandon()
        with pytest.raises(PoolExhausted):
            abandon()
        abandoned = list(calls._executor._abandoned)
        for event in events:
            event.set()
        for thread in abandoned:
            thread.join()
        assert call(abs, -1, timeout=NEVER) == 1
    finally:
        calls._after_fork()


def test_i37_a_forked_child_can_call() -> None:
    assert call(abs, -1, timeout=NEVER) == 1
    assert in_child(lambda: call(abs, -1, timeout=NEVER)) == "1"


def test_calls_one_after_the_other_need_few_threads() -> None:
    for _ in range(100):
        call(abs, -1, timeout=NEVER)
    assert len(calls._executor._threads) < 20


def test_a_call_may_be_made_in_simulated_time() -> None:
    assert testing.run(partial(call, abs, -1, timeout=1)) == 1

    def late() -> float:
        begun = desist.current_time()
        with pytest.raises(DeadlineExceeded):
            call(desist.sleep, 1000, timeout=100)
        return desist.current_time() - begun

    assert testing.run(late) == pytest.approx(100)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": 1, "kill_after": -1}, ValueError),
        ({"timeout": 1, "kill_after": None}, TypeError),
        ({"timeout": 1, "isolation": "thread"}, ValueError),
        ({"timeout": 1, "isolation": "process", "kill_after": -1}, ValueError),
        ({}, TypeError),
    ],
)
def test_bad_times_and_isolations_are_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(pytest.fail, **arguments)


@pytest.mark.parametrize("fn", [coroutine, None])
def test_i43_a_function_whose_call_runs_nothing_is_refused(fn: Any) -> None:
    with pytest.raises(TypeError, match="fn"):
        call(fn, timeout=1)


# --- in a process ---------------------------------------------------------------------------------


def test_a_process_has_the_result_and_the_exceptions() -> None:
    assert call(process, timeout=NEVER, isolation="process") != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        call(int, "x", timeout=NEVER, isolation="process")
    with pytest.raises(WorkerDied, match="exit code 3"):
        call(end_by_itself, timeout=NEVER, isolation="process")
    with pytest.raises(TypeError, match="the call cannot be sent"):
        call(lambda: None, timeout=NEVER, isolation="process")


def test_control_comes_back_from_code_that_keeps_the_interpreter_to_itself() -> None:
    with pytest.raises(DeadlineExceeded) as late:
        call(catastrophic, timeout=1, isolation="process")
    assert late.value.report is not None
    assert late.value.report.outcome in (KillOutcome.SIGTERM, KillOutcome.SIGKILL)


def test_a_cancelled_caller_leaves_no_process() -> None:
    with desist.move_on_after(SOON) as scope:
        call(signal.pause, timeout=NEVER, isolation="process", kill_after=SOON)
    assert scope.cancelled_caught


# --- the decorator --------------------------------------------------------------------------------


@deadline(NEVER, isolation="process")
def in_a_process(number: int, *, more: int = 0) -> tuple[int, int]:
    return os.getpid(), number + more


def test_a_decorated_function_may_run_in_a_process() -> None:
    pid, result = in_a_process(1, more=2)
    assert pid != os.getpid()
    assert result == 3


def test_a_decorated_function_that_nothing_ends_is_abandoned(deaf: DeafEvent) -> None:
    @deadline(SOON, kill_after=SOON, abandon=True)
    def function(*, event: DeafEvent) -> None:
        event.wait()

    with pytest.raises(DeadlineExceeded) as late:
        function(event=deaf)
    assert late.value.report is not None
    assert late.value.report.outcome is KillOutcome.ABANDONED


def test_a_decorated_function_has_the_thread_that_was_asked_for() -> None:
    here = deadline(NEVER)(name_of_the_thread)
    elsewhere = deadline(NEVER, abandon=True)(name_of_the_thread)
    assert in_thread(here) != in_thread(elsewhere)
    assert elsewhere().startswith("desist-call")


@pytest.mark.parametrize(
    ("options", "error"),
    [({"abandon": True, "grace": 1}, TypeError), ({"isolation": "thread"}, ValueError)],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        deadline(1, **options)
