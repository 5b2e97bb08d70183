"""thread2's raise_exc() and terminate(), and those of a desist thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
import recipes
from desist import TaskState, compat
from support import Victim, spin, until_asleep

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS: list[Any] = [desist.Thread, compat.Thread, compat.KThread, compat.StoppableThread]


class Mine(Exception):
    """The exception that is raised in a thread."""


def raised_in(body: Callable[[Callable[[], None]], object], what: Any) -> BaseException | None:
    """Raise an exception in a victim that is in `body`, and return the one that ends it."""
    victim = Victim(body)
    with victim:
        if body is sleep:
            until_asleep(victim)
        victim.raise_exc(what)
    return victim.raised


def sleep(ready: Callable[[], None]) -> None:
    ready()
    desist.sleep_forever()


def test_thread2_cannot_raise_an_instance_so_its_message_is_lost() -> None:
    assert recipes.alone(recipes.kthread_cannot_raise_an_instance) == [
        "Only types can be raised (not instances)",
        "ValueError()",
    ]


@pytest.mark.parametrize("body", [spin, sleep])
def test_an_instance_is_raised_as_it_is(body: Any) -> None:
    mine = Mine("why")
    assert raised_in(body, mine) is mine


@pytest.mark.parametrize("body", [spin, sleep])
def test_a_class_is_raised_too(body: Any) -> None:
    assert isinstance(raised_in(body, Mine), Mine)


@pytest.mark.parametrize("kind", KINDS)
def test_terminate_ends_a_thread_quietly(
    kind: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # pytest's own hook reports SystemExit as well.
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    ready = threading.Event()
    thread = kind(target=spin, args=(ready.set,))
    thread.start()
    ready.wait()
    thread.terminate()
    thread.join()
    assert not thread.is_alive()
    assert capsys.readouterr().err == ""


def test_it_returns_at_once_also_if_the_thread_is_blocked_in_c() -> None:
    go_on = threading.Event()

    def body(ready: Callable[[], None]) -> None:
        ready()
        go_on.wait()
        spin(lambda: None)

    victim = Victim(body)
    with victim:
        victim.raise_exc(Mine)
        assert victim.is_alive()
        go_on.set()
    assert isinstance(victim.raised, Mine)


def test_it_is_raised_once() -> None:
    caught: list[BaseException] = []

    def body(ready: Callable[[], None]) -> None:
        try:
            spin(ready)
        except Mine as mine:
            caught.append(mine)
        for _ in range(1000):
            desist.checkpoint()

    assert raised_in(body, Mine) is None
    assert len(caught) == 1


@pytest.mark.parametrize("zone", ["lock", "cleanup"])
def test_it_is_deferred_by_everything_that_defers_a_kill(zone: str) -> None:
    inside, go_on = threading.Event(), threading.Event()
    steps: list[str] = []
    lock = desist.Lock()

    def body(ready: Callable[[], None]) -> None:
        with lock if zone == "lock" else desist.cleanup():
            ready()
            inside.set()
            while not go_on.is_set():
                pass
            steps.append("inside")
        spin(lambda: None)

    victim = Victim(body)
    with victim:
        inside.wait()
        victim.raise_exc(Mine)
        go_on.set()
    assert steps == ["inside"]
    assert isinstance(victim.raised, Mine)
    assert lock.acquire(blocking=False)


def test_it_is_raised_in_the_body_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    for _ in range(100):
        thread = desist.Thread(target=sum, args=((1, 2),))
        thread.start()
        thread.raise_exc(Mine)
        thread.join()
        assert thread.state is (TaskState.FAILED if told else TaskState.DONE)
        assert {one.exc_type for one in told} <= {Mine}
        told.clear()


def test_a_thread_that_has_ended_is_left_alone() -> None:
    thread = desist.Thread(target=int)
    thread.start()
    thread.join()
    thread.raise_exc(Mine)
    thread.terminate()
    assert thread.state is TaskState.DONE


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_that_has_not_started_is_refused(kind: Any) -> None:
    with pytest.raises(RuntimeError, match="start"):
        kind().raise_exc(Mine)
    with pytest.raises(RuntimeError, match="start"):
        kind().terminate()


@pytest.mark.parametrize("wrong", [1, "Mine", None, int, object()])
def test_an_object_that_is_no_exception_is_refused(wrong: Any) -> None:
    victim = Victim(sleep)
    with victim:
        with pytest.raises(TypeError):
            victim.raise_exc(wrong)
        victim.cancel()
