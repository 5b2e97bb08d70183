"""The facts about CPython that src/python/hard_stop.rs relies on."""

from __future__ import annotations

import ctypes
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Killed, KillOutcome, TaskState
from desist._core import Task, _Injector
from support import INSIST, Victim, spin

if TYPE_CHECKING:
    from collections.abc import Callable


def poster() -> Callable[[], object]:
    """Make a call into C that leaves a kill of the calling task in the slot."""
    return partial(_Injector(1), None, 0)


def test_a_posted_kill_is_retracted() -> None:
    # Posted by a call into C, with which the body ends: the interpreter has not checked the slot.
    behind: list[int] = []
    for _ in range(100):
        task = Task("short")
        task.run(poster())
        for step in range(10):
            behind.append(step)  # noqa: PERF402 (bytecodes are the point)
        assert task.state is TaskState.DONE
    assert len(behind) == 1000


def test_a_posted_kill_is_retracted_by_a_mask_and_raised_behind_it() -> None:
    steps: list[str] = []
    zone = desist.cleanup()

    def body() -> None:
        # Posted, then masked, both in C, with no bytecode in between.
        for _ in map(call, [poster(), zone.__enter__]):
            pass
        steps.append("inside")
        zone.__exit__(None, None, None)
        steps.append("behind")

    from operator import methodcaller

    call = methodcaller("__call__")
    task = Task("short")
    task.run(body)
    assert task.state is TaskState.KILLED
    assert steps in (["inside"], [])  # `for` checks the slot between two items on some versions


def test_the_constructor_runs_in_the_killed_thread() -> None:
    # A Killed can be made only in the thread of a task that is being killed.
    with pytest.raises(TypeError, match="by hand"):
        Killed()
    with Victim(spin) as victim:
        assert victim.kill("enough", policy=INSIST).outcome is KillOutcome.ASYNC_EXC
    assert isinstance(victim.raised, Killed)
    assert victim.raised.cause.reason == "enough"


def test_the_slot_takes_a_class_and_has_one_place() -> None:
    caught: list[type[BaseException]] = []

    class First(Exception):
        pass

    class Second(Exception):
        pass

    def body(ready: Callable[[], None]) -> None:
        ready()
        go_on.wait()
        try:
            for _ in range(1000):
                pass
        except (First, Second) as raised:
            caught.append(type(raised))
        for _ in range(1000):
            pass

    go_on = threading.Event()
    with Victim(body) as victim:
        post = ctypes.pythonapi.PyThreadState_SetAsyncExc
        ident = ctypes.c_ulong(victim.ident or 0)
        assert post(ident, ctypes.py_object(First)) == 1
        assert post(ident, ctypes.py_object(Second)) == 1
        go_on.set()
    if victim.raised is not None:  # delivered before the `try`
        caught.append(type(victim.raised))
    assert caught == [Second]
