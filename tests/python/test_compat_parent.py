"""A thread whose failure stops its parent, inside the block and nowhere else."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

import desist
import recipes
from desist import Cancelled, DeadlineExceeded, Killed, ScopeMisuse, TaskState, testing
from desist.compat import Thread, parent_scope
from desist.testing import sweep_kills
from support import AT_WAIT, NEVER, Victim, until_asleep

# A kill may be raised in a finalizer that happens to run in the body; a finalizer cannot propagate
# it and reports it. A real kill is delivered again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Mine(Exception):
    """The failure of a child."""


def fail() -> None:
    raise Mine("why")


def child(target: Any = fail) -> Thread:
    return Thread(target=target, name="child", is_kill_parent=True)


def test_a_child_raises_in_its_parent_after_the_block() -> None:
    told = recipes.alone(recipes.a_child_raises_in_its_parent_after_the_block)
    assert told == ["behind the block: ValueError()"]


def test_the_block_waits_for_its_children_and_raises_their_failure() -> None:
    left = desist.Event()

    def late() -> None:
        left.wait()
        fail()

    steps: list[str] = []

    def block() -> None:
        with parent_scope() as scope:
            child(late).start()
            left.set()
            while not scope.cancel_called:
                pass
            steps.append("nothing is raised where nothing waits")

    with testing.no_leaks():
        with pytest.raises(Mine, match="why"):
            block()
        assert len(steps) == 1


def test_a_parent_that_waits_does_not_notice() -> None:
    told = recipes.alone(recipes.a_parent_that_waits_does_not_notice)
    assert told == ["a child has failed; parent and sibling wait: True True"]


def test_a_failure_ends_the_parents_wait_and_those_of_the_siblings() -> None:
    threads: list[Thread] = []
    scopes: list[desist.CancelScope] = []

    def block() -> None:
        with parent_scope() as scope:
            scopes.append(scope)
            threads.extend([child(desist.sleep_forever), child()])
            for thread in threads:
                thread.start()
            desist.sleep_forever()

    with pytest.raises(Mine, match="why"):
        block()
    scope = scopes[0]
    assert [thread.state for thread in threads] == [TaskState.CANCELLED, TaskState.FAILED]
    assert not any(thread.is_alive() for thread in threads)
    assert scope.cancelled_caught
    assert scope.cause is not None
    assert scope.cause.reason == "child failed: Mine('why')"
    assert scope.cause.by_thread == "child"


def test_a_block_whose_children_succeed_is_done_when_they_are() -> None:
    done: list[int] = []
    with parent_scope() as scope:
        threads = [child(lambda: done.append(1)) for _ in range(3)]
        for thread in threads:
            thread.start()
    assert done == [1] * 3
    assert not scope.cancel_called


def test_only_the_first_failure_is_raised_and_the_others_go_to_the_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def second() -> None:
        try:
            desist.sleep_forever()
        except Cancelled:
            raise ZeroDivisionError from None

    def block() -> None:
        with parent_scope():
            child(second).start()
            child().start()
            desist.sleep_forever()

    with pytest.raises(Mine):
        block()
    assert [one.exc_type for one in told] == [ZeroDivisionError]
    told.clear()


def test_the_blocks_own_error_after_the_stop_is_the_context() -> None:
    def block() -> None:
        with parent_scope():
            child().start()
            try:
                desist.sleep_forever()
            finally:
                raise ZeroDivisionError

    with pytest.raises(Mine) as raised:
        block()
    assert isinstance(raised.value.__context__, ZeroDivisionError)


def test_an_error_of_the_block_cancels_the_children_and_is_raised() -> None:
    threads: list[Thread] = []

    def block() -> None:
        with parent_scope():
            threads.append(child(desist.sleep_forever))
            threads[0].start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert threads[0].state is TaskState.CANCELLED


def test_a_deadline_of_the_block_ends_the_children_too() -> None:
    with testing.no_leaks(), pytest.raises(DeadlineExceeded), parent_scope(timeout=0.01):
        child(desist.sleep_forever).start()


def test_a_cancel_of_the_block_is_quiet() -> None:
    with testing.no_leaks(), parent_scope() as scope:
        child(desist.sleep_forever).start()
        scope.cancel("enough")
    assert scope.cancelled_caught


def test_a_cancel_from_outside_passes_and_the_failure_goes_to_the_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with desist.cancel_scope() as outer:
        with parent_scope() as scope:
            child().start()
            while not scope.cancel_called:
                pass
            outer.cancel()
            desist.checkpoint()
        raise AssertionError
    assert outer.cancelled_caught
    assert [(one.exc_type, one.thread.name) for one in told] == [(Mine, "child")]
    told.clear()


def test_children_that_are_cancelled_killed_or_exit_are_no_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pytest's own hook reports SystemExit as well.
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)

    def leave() -> None:
        raise SystemExit

    def shielded() -> None:
        with desist.shield(NEVER):
            desist.sleep_forever()

    with parent_scope() as scope:
        threads = [child(desist.sleep_forever), child(shielded), child(leave)]
        for thread in threads:
            thread.start()
        threads[0].cancel()
        threads[1].kill(policy=AT_WAIT)
        threads[2].join()
        assert not scope.cancel_called
    assert [thread.state for thread in threads[:2]] == [TaskState.CANCELLED, TaskState.KILLED]


def test_the_children_of_a_killed_parent_are_killed() -> None:
    threads: list[Thread] = []

    def body(ready: Any) -> object:
        with parent_scope():
            threads.append(child(desist.sleep_forever))
            threads[0].start()
            with desist.shield(NEVER):
                ready()
                desist.sleep_forever()
        return None

    with Victim(body) as victim:
        until_asleep(victim)
        victim.kill(policy=AT_WAIT)
    assert isinstance(victim.raised, Killed)
    threads[0].join()
    assert threads[0].state is TaskState.CANCELLED


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 11),
    reason="traced threads stand still while one that joins them has not noticed its kill",
)
def test_wherever_a_parent_is_killed_its_children_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3.14 may raise right behind an `__enter__`. The enclosing scope then finds the inner one open.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def trial() -> None:
        threads: list[Thread] = []

        def body() -> None:
            with parent_scope() as scope:
                threads.append(child(desist.sleep_forever))
                threads[0].start()
                scope.cancel()

        parent = desist.Thread(target=body)
        parent.start()
        parent.join()
        for thread in threads:
            if thread.ident is not None:
                thread.join()

    assert sweep_kills(trial, victims="started").points > 100


def test_a_thread_that_failed_to_start_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with parent_scope():
        thread = child(int)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                thread.start()


def test_a_thread_belongs_to_the_innermost_block_of_the_thread_that_made_it() -> None:
    with parent_scope() as outer:
        with pytest.raises(Mine), parent_scope():
            child().start()
        assert not outer.cancel_called
        refused: list[BaseException] = []

        def elsewhere() -> None:
            try:
                child()
            except ScopeMisuse as misuse:
                refused.append(misuse)

        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(refused) == 1


def test_a_failure_propagates_through_all_generations() -> None:
    def middle() -> None:
        with parent_scope():
            child().start()
            desist.sleep_forever()

    def block() -> None:
        with parent_scope():
            child(middle).start()
            desist.sleep(NEVER)

    with pytest.raises(Mine):
        block()


def test_a_thread_that_has_no_parent_to_stop_is_refused() -> None:
    with pytest.raises(ScopeMisuse, match="parent_scope"):
        child()
    with parent_scope():
        thread = child()
    with pytest.raises(ScopeMisuse):
        thread.start()
    assert Thread().is_alive() is False
