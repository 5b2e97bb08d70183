"""I23: code that swallows everything cannot go on. The rung TRACE."""

from __future__ import annotations

import itertools
import sys
import threading
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import KillOutcome, StopPolicy, TaskState
from support import NEVER, TRACE, DeafEvent, Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report errors of finalizers by a function in C, because Python code would be killed too."""
    monkeypatch.setattr(sys, "unraisablehook", id)


TRACE_ALONE = StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=NEVER, defer=0)


def nothing() -> None:
    """A call: every version checks for a kill at it."""


def a_loop_in_a_try(ready: Callable[[], None]) -> None:
    ready()
    while True:
        try:
            while True:
                nothing()
        except BaseException:  # noqa: BLE001, PERF203 (as a victim does)
            pass


def a_try_in_a_loop(ready: Callable[[], None]) -> None:
    ready()
    while True:
        try:  # noqa: SIM105 (no call in the handler)
            nothing()
        except BaseException:  # noqa: BLE001, PERF203
            pass


def handlers_that_call(ready: Callable[[], None]) -> None:
    ready()
    while True:
        try:
            while True:
                nothing()
        except BaseException:  # noqa: BLE001, PERF203
            with suppress(BaseException):
                nothing()
            with suppress(BaseException):
                nothing()


def nested(ready: Callable[[], None]) -> None:
    ready()
    while True:
        try:
            try:
                try:
                    while True:
                        nothing()
                except BaseException:  # noqa: BLE001
                    nothing()
            except BaseException:  # noqa: BLE001
                nothing()
        except BaseException:  # noqa: BLE001, PERF203
            nothing()


def finally_and_continue(ready: Callable[[], None]) -> None:
    # Compiled here, because newer versions warn about the syntax.
    source = "while True:\n try: nothing()\n finally: continue"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, "a victim", "exec")
    ready()
    exec(code, {"nothing": nothing})


def suppressed(ready: Callable[[], None]) -> None:
    ready()
    while True:
        with suppress(BaseException):
            while True:
                nothing()


def an_endless_iterator(ready: Callable[[], None]) -> None:
    ready()
    while True:
        with suppress(BaseException):
            for _ in itertools.count():
                nothing()


def a_generator_that_swallows(ready: Callable[[], None]) -> None:
    def numbers() -> Iterator[int]:
        while True:
            try:
                yield 1
                nothing()
            except BaseException:  # noqa: BLE001, PERF203
                pass

    ready()
    for _ in numbers():
        pass


def comprehensions(ready: Callable[[], None]) -> None:
    calls: list[Callable[[], Any]] = [nothing] * 1000
    ready()
    while True:
        with suppress(BaseException):
            [call() for call in calls]


def callbacks_of_sort(ready: Callable[[], None]) -> None:
    def key(number: int) -> int:
        with suppress(BaseException):
            nothing()
        return -number

    ready()
    while True:
        with suppress(BaseException):
            sorted(range(1000), key=key)


def finalizers(ready: Callable[[], None]) -> None:
    class Dying:
        def __del__(self) -> None:
            for _ in range(100):
                nothing()

    ready()
    while True:
        with suppress(BaseException):
            Dying()


def retries(ready: Callable[[], None]) -> None:
    def retry(function: Callable[[], None]) -> None:
        while True:
            try:
                function()
            except BaseException:  # noqa: BLE001, PERF203
                continue

    ready()
    retry(nothing)


SWALLOWERS = [
    a_loop_in_a_try,
    a_try_in_a_loop,
    handlers_that_call,
    nested,
    finally_and_continue,
    suppressed,
    an_endless_iterator,
    a_generator_that_swallows,
    comprehensions,
    callbacks_of_sort,
    finalizers,
    retries,
]


@pytest.mark.parametrize("body", SWALLOWERS, ids=lambda body: body.__name__)
def test_i23_code_that_swallows_a_kill_cannot_go_on(
    body: Callable[[Callable[[], None]], None],
) -> None:
    with Victim(body) as victim:
        report = victim.kill(policy=TRACE)
    assert report.outcome in (KillOutcome.ASYNC_EXC, KillOutcome.TRACE)
    assert report.blocked is None
    assert victim.state is TaskState.KILLED
    assert no_thread_is_watched()


def no_thread_is_watched() -> bool:
    monitoring: Any = getattr(sys, "monitoring", None)
    return monitoring is None or all(monitoring.get_tool(tool) != "desist" for tool in range(6))


@pytest.mark.usefixtures("no_tool_is_free")
@pytest.mark.parametrize("policy", [TRACE, TRACE_ALONE], ids=["after", "alone"])
def test_i23_a_kill_traces_without_a_free_tool_of_monitoring(
    policy: StopPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with Victim(nested) as victim:
        report = victim.kill(policy=policy)
    assert report.outcome is KillOutcome.TRACE
    assert not ignored


def test_the_outcome_names_the_rung() -> None:
    outcomes = set()
    for _ in range(20):
        with Victim(retries) as victim:
            outcomes.add(victim.kill(policy=TRACE).outcome)
    assert KillOutcome.TRACE in outcomes


def test_tracing_alone_is_enough() -> None:
    with Victim(a_loop_in_a_try) as victim:
        assert victim.kill(policy=TRACE_ALONE).outcome is KillOutcome.TRACE


def test_i24_a_mask_defers_tracing_too() -> None:
    inside, go_on = threading.Event(), threading.Event()
    steps: list[int] = []

    def body(ready: Callable[[], None]) -> None:
        ready()
        with desist.cleanup(), suppress(BaseException):
            inside.set()
            while not go_on.is_set():
                nothing()
            for step in range(100):
                steps.append(step)  # noqa: PERF402 (bytecodes are the point)
        while True:
            nothing()

    with Victim(body) as victim:
        inside.wait()
        killer = threading.Thread(target=victim.kill, kwargs={"policy": TRACE_ALONE})
        killer.start()
        victim.token.wait()
        assert not desist._core.Latch().wait(0.1)
        go_on.set()
        killer.join()
    assert len(steps) == 100
    assert victim.state is TaskState.KILLED


def test_i22_other_threads_in_the_same_code_are_not_killed() -> None:
    end = threading.Event()
    others: list[Victim[None]] = []

    def body(ready: Callable[[], None]) -> None:
        ready()
        while not end.is_set():
            with suppress(Exception):
                nothing()

    def swallowing(ready: Callable[[], None]) -> None:
        while True:
            with suppress(BaseException):
                body(ready)

    others = [Victim(body), Victim(body)]
    with others[0], others[1]:
        for _ in range(20):
            with Victim(swallowing) as victim:
                victim.kill(policy=TRACE)
            assert victim.state is TaskState.KILLED
        end.set()
    assert [other.state for other in others] == [TaskState.DONE] * 2
    assert [other.raised for other in others] == [None] * 2


def test_two_kills_at_once_do_not_end_each_others_tracing() -> None:
    victims = [Victim(retries) for _ in range(4)]
    for victim in victims:
        victim.__enter__()
    killers = [threading.Thread(target=victim.kill, kwargs={"policy": TRACE}) for victim in victims]
    for killer in killers:
        killer.start()
    for killer, victim in zip(killers, victims, strict=True):
        killer.join()
        assert victim.state is TaskState.KILLED
    assert no_thread_is_watched()


def test_a_former_tracer_of_a_thread_traces_it_again() -> None:
    seen: list[str] = []

    def tracer(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_name != "behind":
            return None  # a kill that is raised in here ends the tracing
        seen.append(event)
        return tracer

    def body() -> None:
        ready.set()
        while True:
            with suppress(BaseException):
                while True:
                    pass

    def behind() -> None:
        pass

    def run() -> None:
        sys.settrace(tracer)
        try:
            task.run(body)
            behind()
            assert sys.gettrace() is tracer
            seen.append("over")
        finally:
            sys.settrace(None)

    task, ready = desist._core.Task("traced"), threading.Event()
    task.launch()
    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    task.kill(policy=TRACE)
    thread.join()
    assert "call" in seen
    assert seen[-1] == "over"


def test_an_abandoned_thread_that_returns_from_c_is_not_traced_any_more() -> None:
    end = DeafEvent()
    seen: list[object] = []

    def body(ready: Callable[[], None]) -> None:
        ready()
        with suppress(BaseException):
            end.wait()
        with suppress(BaseException):
            nothing()
        seen.append(sys.gettrace())

    policy = StopPolicy(cooperative=0, at_wait=0, async_exc=0.02, trace=0.02, defer=0)
    with Victim(body) as victim:
        report = victim.kill(policy=policy)
        assert report.outcome is KillOutcome.ABANDONED
        assert report.blocked is not None
        end.set()
    threading.Thread.join(victim)
    assert no_thread_is_watched()
