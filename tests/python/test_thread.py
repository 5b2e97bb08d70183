from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, TaskState, Thread
from desist.testing import sweep_kills
from support import FORCE, NEVER, Victim, spin

if TYPE_CHECKING:
    from collections.abc import Callable


def test_it_is_a_threading_thread() -> None:
    done: list[Any] = []
    thread = Thread(None, done.append, "name", ([1],), daemon=True)
    assert isinstance(thread, threading.Thread)
    assert (thread.name, thread.daemon, thread.is_alive()) == ("name", True, False)
    thread.start()
    thread.join()
    assert done == [[1]]
    with pytest.raises(RuntimeError):
        thread.start()


def test_its_state_follows_its_life() -> None:
    go_on = threading.Event()

    def body(ready: Callable[[], None]) -> None:
        ready()
        go_on.wait()

    victim = Victim(body)
    states = [victim.state]
    with victim:
        states.append(victim.state)
        victim.cancel()
        states.append(victim.state)
        go_on.set()
    states.append(victim.state)
    assert states == [
        TaskState.PENDING,
        TaskState.RUNNING,
        TaskState.CANCELLING,
        TaskState.DONE,
    ]


def test_a_cancelled_thread_ends_quietly() -> None:
    def body(ready: Callable[[], None]) -> None:
        ready()
        desist.sleep_forever()

    with Victim(body) as victim:
        assert victim.cancel("enough")
        assert not victim.cancel("again")
    assert isinstance(victim.raised, Cancelled)
    assert victim.raised.cause.reason == "enough"
    assert victim.state is TaskState.CANCELLED


def test_a_killed_thread_ends_quietly() -> None:
    with Victim(spin) as victim:
        victim.kill(policy=FORCE)
    assert victim.state is TaskState.KILLED
    assert not victim.is_alive()


def test_other_errors_go_to_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail() -> None:
        raise ZeroDivisionError

    thread = Thread(target=fail)
    thread.start()
    thread.join()
    assert [one.exc_type for one in told] == [ZeroDivisionError]
    assert thread.state is TaskState.FAILED
    told.clear()


def test_a_thread_cancelled_before_it_starts_stops_at_its_first_checkpoint() -> None:
    steps: list[str] = []

    def body() -> None:
        steps.append("begins")
        desist.checkpoint()
        steps.append("goes on")

    thread = Thread(target=body)
    thread.cancel()
    thread.start()
    thread.join()
    assert steps == ["begins"]
    assert thread.state is TaskState.CANCELLED


def test_scopes_and_masks_of_the_starting_thread_are_not_inherited() -> None:
    seen: list[float] = []

    def look() -> None:
        desist.checkpoint()
        seen.append(desist.current_effective_deadline())

    with desist.move_on_after(0), desist.cleanup():
        thread = Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [float("inf")]


def test_it_runs_in_a_copy_of_the_context_that_made_it() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(1)
    seen: list[int] = []

    def look() -> None:
        seen.append(variable.get())
        variable.set(2)

    thread = Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [1]
    assert variable.get() == 1


def test_a_join_that_is_cancelled_leaves_the_thread_alone() -> None:
    go_on = threading.Event()

    def body(ready: Callable[[], None]) -> None:
        ready()
        go_on.wait()

    with Victim(body) as victim:
        with desist.move_on_after(0.01) as scope:
            victim.join()
        assert scope.cancelled_caught
        victim.join(timeout=0)
        assert victim.is_alive()
        go_on.set()


def test_join_before_start_is_refused_as_in_threading() -> None:
    with pytest.raises(RuntimeError, match="before it is started"):
        Thread().join()


def test_a_thread_and_its_arguments_are_freed_when_it_has_run() -> None:
    class Argument:
        pass

    argument = Argument()
    thread = Thread(target=lambda _: None, args=(argument,))
    thread.start()
    thread.join()
    gone = weakref.ref(argument), weakref.ref(thread)
    del argument, thread
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_killed_thread_is_freed_too() -> None:
    with Victim(spin) as victim:
        victim.kill(policy=FORCE)
    gone = weakref.ref(victim)
    del victim
    gc.collect()
    assert gone() is None


def test_a_token_of_a_thread_outlives_it() -> None:
    thread = Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert thread.token.cancelled
    assert thread.token.cause is not None
    assert thread.token.cause.kind is desist.CauseKind.SCOPE_EXITED
    assert not thread.cancel("too late")
    assert thread.kill("too late").outcome is desist.KillOutcome.ALREADY_DONE
    assert thread.token.wait(NEVER)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_thread_begins_or_not_wherever_its_starter_is_killed() -> None:
    def trial() -> None:
        began = threading.Event()
        started = Thread(target=began.set)
        starter = Thread(target=started.start)
        starter.start()
        starter.join()
        # Killed before the start: then the thread never began.
        if started.ident is not None:
            started.join()
            assert began.is_set() or started.state is TaskState.KILLED

    assert sweep_kills(trial, victims="started").points > 10


# --- context --------------------------------------------------------------------------------------


def test_a_thread_runs_in_the_context_that_it_is_given() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    context = contextvars.copy_context()
    context.run(variable.set, 1)
    seen: list[int] = []

    def body() -> None:
        seen.append(variable.get())
        variable.set(2)

    thread = desist.Thread(target=body, context=context)
    thread.start()
    thread.join()
    assert seen == [1]
    assert context[variable] == 2
    assert variable.get() == 0
    empty = desist.Thread(
        target=lambda: seen.append(variable.get(5)), context=contextvars.Context()
    )
    variable.set(3)
    copied = desist.Thread(target=lambda: seen.append(variable.get(5)))
    for thread in (empty, copied):
        thread.start()
        thread.join()
    assert seen == [1, 5, 3]


def test_an_object_that_is_no_context_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a contextvars\.Context, not dict"):
        desist.Thread(context={})  # type: ignore[arg-type]
