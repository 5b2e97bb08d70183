"""The attach of desist's own threads to the interpreter: src/python/binding/attach.rs."""

from __future__ import annotations

import contextvars
import ctypes
import threading
from typing import TYPE_CHECKING

from desist import CancelSource, TaskGroup
from support import FORCE, NEVER, Victim, in_thread, on_deadline, spin

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from desist import CancelCause


def when_passed(callback: Callable[[CancelCause], object]) -> None:
    """Run a callback for a passed deadline, and wait for its end."""
    over = threading.Event()

    def call(cause: CancelCause) -> None:
        callback(cause)
        over.set()

    _source, _registration = on_deadline(call)
    assert over.wait(NEVER)


def group_of_a_killed_thread() -> None:
    """Kill a thread with a task group, whose tasks are killed, each by a thread of its own."""

    def body(ready: Callable[[], None]) -> None:
        with TaskGroup(policy=FORCE) as group:
            ready_too = threading.Event()
            group.start_soon(spin, ready_too.set)
            ready_too.wait()
            ready()
            while True:
                pass

    with Victim(body) as victim:
        victim.kill(policy=FORCE)


def thread_states() -> int:
    """Count the thread states of the interpreter."""
    api = ctypes.pythonapi
    for function in (api.PyInterpreterState_ThreadHead, api.PyThreadState_Next):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    state = api.PyInterpreterState_ThreadHead(api.PyInterpreterState_Get())
    count = 0
    while state:
        state = api.PyThreadState_Next(state)
        count += 1
    return count


def test_a_system_thread_leaves_no_thread_state_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it reports each kill
    came: list[int] = []
    when_passed(lambda _: came.append(threading.get_ident()))  # starts the callback thread
    group_of_a_killed_thread()
    before = thread_states()
    for _ in range(20):
        when_passed(lambda _: came.append(threading.get_ident()))
        group_of_a_killed_thread()
    assert len(set(came)) == 1
    assert came[0] != threading.get_ident()
    assert thread_states() <= before + 1  # the last thread may be about to end


def test_a_context_variable_set_in_a_callback_stays_in_it() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def callback(_: CancelCause) -> None:
        seen.append(variable.get())
        variable.set("the callback's")
        seen.append(variable.get())

    for _ in range(2):
        when_passed(callback)
    assert seen == ["unset", "the callback's"] * 2


def test_a_callback_of_a_callback_has_the_context_of_the_latter() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def callback(_: CancelCause) -> None:
        variable.set("the first one's")
        other = CancelSource()
        other.token.on_cancel(lambda _: seen.append(variable.get()))
        other.cancel()

    when_passed(callback)
    assert seen == ["the first one's"]


def test_a_callback_on_the_cancelling_thread_has_that_threads_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def cancel() -> None:
        variable.set("the canceller's")
        source = CancelSource()
        source.token.on_cancel(lambda _: seen.append(variable.get()))
        source.cancel()

    in_thread(cancel)
    assert seen == ["the canceller's"]
