"""Thread.raise_exc() and terminate(): once, in the thread's own code."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import KillOutcome, TaskState
from support import HAS_GIL, INSIST, NEVER, Victim, spin

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


def wait(ready: Callable[[], None]) -> None:
    with desist.shield(NEVER):
        ready()
        desist.sleep_forever()


BODIES = pytest.mark.parametrize("body", [spin, wait], ids=lambda body: body.__name__)


@BODIES
@pytest.mark.parametrize(
    "exc", [KeyError, KeyError("which"), KeyboardInterrupt], ids=["class", "instance", "base"]
)
def test_the_given_exception_is_raised(body: Callable[..., None], exc: Any) -> None:
    with Victim(body) as victim:
        victim.raise_exc(exc)
    kind = exc if isinstance(exc, type) else type(exc)
    assert type(victim.raised) is kind
    if isinstance(exc, BaseException):
        assert victim.raised is exc
    assert victim.state in (TaskState.DONE, TaskState.FAILED)


@BODIES
def test_a_handler_of_its_class_catches_it_and_it_is_not_raised_again(
    body: Callable[..., None],
) -> None:
    caught: list[BaseException] = []

    def catching(ready: Callable[[], None]) -> str:
        try:
            body(ready)
        except LookupError as raised:
            caught.append(raised)
        for _ in range(10_000):
            desist.checkpoint()
        return "went on"

    with Victim(catching) as victim:
        victim.raise_exc(KeyError("which"))
    assert [str(one) for one in caught] == ["'which'"]
    assert victim.results == ["went on"]


@BODIES
def test_terminate_ends_a_thread_without_a_report(body: Callable[..., None]) -> None:
    with Victim(body) as victim:
        victim.terminate()
    assert isinstance(victim.raised, SystemExit)
    assert not victim.is_alive()


def test_i24_a_clean_up_zone_and_a_lock_defer_it() -> None:
    lock, inside, go_on = desist.Lock(), threading.Event(), threading.Event()
    steps: list[str] = []

    def body(ready: Callable[[], None]) -> None:
        with lock:
            with desist.cleanup():
                ready()
                inside.set()
                while not go_on.is_set():
                    pass
                steps.append("cleaned up")
            steps.append("released")
        steps.append("too far")

    with Victim(body) as victim:
        inside.wait()
        victim.raise_exc(KeyError)
        go_on.set()
    assert steps == ["cleaned up", "released"]
    assert isinstance(victim.raised, KeyError)
    assert not lock.poisoned
    assert not lock.locked()


def test_i22_it_is_not_raised_behind_the_body() -> None:
    for _ in range(200):
        started = threading.Event()
        seen: list[BaseException] = []
        task = desist._core.Task("short")

        def run(task: Any = task, started: Any = started, seen: Any = seen) -> None:
            try:
                with suppress(KeyError):  # behind the body
                    task.run(started.set)
                for _ in range(100):
                    pass
            except BaseException as raised:  # noqa: BLE001 (shown below)
                seen.append(raised)

        thread = threading.Thread(target=run)
        task.launch()
        thread.start()
        task.inject(KeyError())
        thread.join()
        assert not seen


class Finalized:
    """An object whose finalizer runs `code`."""

    def __init__(self, code: Callable[[], None]) -> None:
        self.code = code

    def __del__(self) -> None:
        self.code()


def in_a_finalizer(code: Callable[[], None]) -> None:
    Finalized(code)


def in_a_cycle(code: Callable[[], None]) -> None:
    made = Finalized(code)
    made.itself = made  # type: ignore[attr-defined]
    del made
    gc.collect()


def in_a_callback_of_a_weak_reference(code: Callable[[], None]) -> None:
    made = Finalized(lambda: None)
    reference = weakref.ref(made, lambda _: code())
    del made
    assert reference() is None


SWALLOWING = pytest.mark.parametrize(
    "swallow", [in_a_finalizer, in_a_cycle, in_a_callback_of_a_weak_reference]
)


@BODIES
@SWALLOWING
@pytest.mark.parametrize("hook", ["in C", "in Python"])
def test_an_exception_that_a_finalizer_has_swallowed_is_raised_again(
    body: Callable[..., None],
    swallow: Callable[..., None],
    hook: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignored: list[BaseException | None] = []

    def in_python(unraisable: Any) -> None:
        ignored.append(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", ignored.append if hook == "in C" else in_python)
    inside = threading.Event()
    error = KeyError("which")

    def swallowing(ready: Callable[[], None]) -> None:
        ready()
        swallow(lambda: body(inside.set))
        body(lambda: None)

    with Victim(swallowing) as victim:
        assert inside.wait(NEVER)
        victim.raise_exc(error)
    assert victim.raised is error
    assert len(ignored) == 1


@SWALLOWING
def test_terminate_ends_a_thread_although_a_finalizer_has_swallowed_it(
    swallow: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", id)
    inside = threading.Event()

    def swallowing(ready: Callable[[], None]) -> None:
        ready()
        swallow(lambda: spin(inside.set))
        desist.sleep_forever()

    with Victim(swallowing) as victim:
        assert inside.wait(NEVER)
        victim.terminate()
    assert isinstance(victim.raised, SystemExit)


def test_an_exception_that_a_finalizer_has_handled_is_not_raised_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    inside, go_on = threading.Event(), threading.Event()
    handled: list[BaseException] = []

    def handling() -> None:
        try:
            spin(inside.set)
        except KeyError as error:
            handled.append(error)
        raise ValueError

    def body(ready: Callable[[], None]) -> str:
        ready()
        in_a_finalizer(handling)
        go_on.wait()
        for _ in range(10_000):
            desist.checkpoint()
        return "went on"

    with Victim(body) as victim:
        assert inside.wait(NEVER)
        victim.raise_exc(KeyError)
        go_on.set()
    assert victim.results == ["went on"]
    assert len(handled) == len(ignored) == 1


@pytest.mark.skipif(
    not HAS_GIL, reason="without the GIL an object may be freed later, by the thread that made it"
)
def test_a_raised_exception_is_not_kept_alive_beyond_the_next_checkpoint() -> None:
    class Mine(Exception):
        pass

    gone: list[weakref.ref[Finalized]] = []
    alive: list[bool] = []

    def body(ready: Callable[[], None]) -> None:
        with suppress(Mine):
            spin(ready)
        desist.checkpoint()
        alive.extend(ref() is not None for ref in gone)

    def raise_it(victim: Victim[None]) -> None:
        error = Mine()
        error.part = Finalized(lambda: None)  # type: ignore[attr-defined]
        gone.append(weakref.ref(error.part))  # type: ignore[attr-defined]
        victim.raise_exc(error)

    with Victim(body) as victim:
        raise_it(victim)
    assert alive == [False]


def test_a_kill_takes_precedence() -> None:
    with Victim(spin) as victim, desist.Lock():
        victim.raise_exc(KeyError)
        report = victim.kill(policy=INSIST)
    assert report.outcome is not KillOutcome.ABANDONED
    assert victim.raised is not None


def test_a_thread_that_has_ended_is_left_alone() -> None:
    with Victim(lambda ready: ready()) as victim:
        pass
    victim.raise_exc(KeyError)
    victim.terminate()
    assert victim.state is TaskState.DONE


def test_on_the_calling_thread_it_is_raised_at_once() -> None:
    def body(ready: Callable[[], None]) -> None:
        ready()
        with pytest.raises(KeyError):
            victim.raise_exc(KeyError)
        victim.terminate()

    with (victim := Victim(body)):
        pass
    assert isinstance(victim.raised, SystemExit)


def test_it_cannot_be_raised_in_a_thread_that_is_not_started() -> None:
    with pytest.raises(RuntimeError, match="start it first"):
        desist.Thread().raise_exc(KeyError)
    with pytest.raises(RuntimeError, match="start it first"):
        desist.Thread().terminate()


@pytest.mark.parametrize("bad", [7, None, "text", int, object()])
def test_an_object_that_is_no_exception_cannot_be_raised(bad: Any) -> None:
    with Victim(spin) as victim:
        with pytest.raises(TypeError, match="must derive from BaseException"):
            victim.raise_exc(bad)
        with pytest.raises(TypeError):
            victim.raise_exc(UnicodeDecodeError)  # needs arguments
        victim.terminate()
