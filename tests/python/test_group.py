from __future__ import annotations

import contextvars
import gc
import os
import signal
import sys
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import desist
from desist import (
    CancelSource,
    CauseKind,
    KillOutcome,
    PoolExhausted,
    StopPolicy,
    Task,
    TaskAborted,
    TaskCancelled,
    TaskGroup,
    TaskState,
    testing,
)
from support import (
    ABANDON,
    ASK,
    AT_WAIT,
    FORCE,
    HAS_GIL,
    INSIST,
    NEVER,
    DeafEvent,
    Victim,
    in_child,
    in_thread,
    until_asleep,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=0)


def fail() -> None:
    raise ZeroDivisionError


@contextmanager
def ends_with(kind: type[BaseException]) -> Iterator[None]:
    """Check that the block ends with this exception."""
    with pytest.raises(kind):
        yield


@contextmanager
def fails_with(*kinds: type[Exception]) -> Iterator[list[Any]]:
    """Check that the block ends with an ExceptionGroup of these, and collect them in a list."""
    parts: list[Any] = []
    with pytest.raises(ExceptionGroup) as raised:
        yield parts
    assert errors_of(raised.value) == list(kinds)
    parts += raised.value.exceptions


def errors_of(raised: BaseException) -> list[type[BaseException]]:
    assert isinstance(raised, BaseExceptionGroup)
    return [type(one) for one in raised.exceptions]


def running(group: TaskGroup, fn: Callable[[], Any] = desist.sleep_forever) -> Task[Any]:
    """Start a task, and return it when its function has begun."""
    begun = threading.Event()

    def body() -> Any:
        begun.set()
        return fn()

    task = group.start_soon(body)
    assert begun.wait(NEVER)
    return task


def deaf(end: DeafEvent) -> Callable[[], None]:
    """Start a task that ignores every cancel until `end`."""

    def body() -> None:
        end.wait()

    return body


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the calls of the hook for errors in threads."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    return told


# --- success --------------------------------------------------------------------------------------


def test_the_block_ends_when_its_tasks_have() -> None:
    def add(a: int, *, b: int) -> int:
        return a + b

    before = threading.active_count()
    with testing.no_leaks(), TaskGroup() as group:
        first, second = group.start_soon(add, 1, b=2), group.start_soon(add, 3, b=4)
    assert threading.active_count() == before
    assert (first.result(), second.result()) == (3, 7)
    assert first.state is TaskState.DONE
    assert first.join(0)
    assert first.name.endswith("add")
    assert second.id > first.id
    assert repr(first) == f"<Task {first.id} {first.name!r} DONE>"


def test_an_empty_group_does_nothing() -> None:
    with TaskGroup(name="empty") as group:
        assert repr(group) == "<TaskGroup 'empty'>"
    assert list(group.as_completed()) == []


def test_tasks_may_start_tasks_also_when_the_block_is_over() -> None:
    done: list[int] = []

    def start(depth: int) -> None:
        if depth:
            group.start_soon(start, depth - 1)
        done.append(depth)

    with TaskGroup() as group:
        group.start_soon(start, 5)
    assert sorted(done) == [0, 1, 2, 3, 4, 5]


def test_tasks_run_in_a_copy_of_the_context_that_starts_them() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    def body() -> int:
        was = variable.get()
        variable.set(100)
        return was

    with TaskGroup() as group:
        tasks = []
        for number in range(3):
            variable.set(number)
            tasks.append(group.start_soon(body))
    assert [task.result() for task in tasks] == [0, 1, 2]
    assert variable.get() == 2


def test_tasks_are_yielded_as_they_end() -> None:
    def body() -> list[tuple[int, float]]:
        begin = desist.current_time()

        def nap(seconds: int) -> int:
            desist.sleep(seconds)
            return seconds

        with TaskGroup() as group:
            for seconds in (3, 1, 2):
                group.start_soon(nap, seconds)
            seen = [
                (task.result(), round(desist.current_time() - begin))
                for task in group.as_completed()
            ]
        assert list(group.as_completed()) == []
        return seen  # type: ignore[return-value]

    assert testing.run(body) == [(1, 1), (2, 2), (3, 3)]


def test_a_wait_for_the_next_to_end_can_be_cancelled_and_begun_again() -> None:
    def body() -> None:
        with TaskGroup() as group:
            group.start_soon(desist.sleep, 10)
            for seconds in (1, 2):
                with desist.move_on_after(seconds) as scope:
                    next(group.as_completed())
                assert scope.cancelled_caught
            assert next(group.as_completed()).state is TaskState.DONE

    testing.run(body)


def test_a_task_can_be_waited_for() -> None:
    with TaskGroup() as group:
        one, other = running(group), group.start_soon(int)
        found = desist.wait_any(one, other)
        assert found == (1, other)
        one.cancel()


def test_at_most_max_workers_threads_run_at_a_time() -> None:
    def body() -> tuple[int, float]:
        begin = desist.current_time()
        inside: list[int] = []
        most = 0

        def work() -> None:
            nonlocal most
            inside.append(1)
            most = max(most, len(inside))
            desist.sleep(1)
            inside.pop()

        with TaskGroup(max_threads=3) as group:
            for _ in range(10):
                group.start_soon(work)
        return most, round(desist.current_time() - begin)

    assert testing.run(body) == (3, 4)


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_cancels_the_others_and_the_block() -> None:
    with fails_with(ZeroDivisionError), TaskGroup() as group:
        waits = running(group)
        group.start_soon(fail)
        desist.sleep_forever()
    assert waits.state is TaskState.CANCELLED
    with pytest.raises(TaskCancelled) as why:
        waits.result()
    assert why.value.cause.kind is CauseKind.SIBLING_FAILED
    assert why.value.cause.reason == "fail failed with ZeroDivisionError"
    assert group.cancel_scope.cancelled_caught


def test_an_error_may_leave_the_other_tasks_running() -> None:
    def body() -> None:
        twice = fails_with(ZeroDivisionError, ZeroDivisionError)
        with twice, TaskGroup(on_error="continue") as group:
            tasks = [group.start_soon(fail), group.start_soon(fail)]
            tasks.append(group.start_soon(desist.sleep, 1))
            desist.sleep(2)
        assert [task.state.name for task in tasks] == ["FAILED", "FAILED", "DONE"]
        with pytest.raises(ZeroDivisionError):
            tasks[0].result()

    testing.run(body)


def test_an_error_of_the_block_cancels_the_tasks_and_is_in_the_exception_group() -> None:
    with fails_with(KeyError), TaskGroup() as group:
        waits = running(group)
        raise KeyError
    assert waits.state is TaskState.CANCELLED


def test_an_exit_exception_is_raised_as_it_is(hooked: list[Any]) -> None:
    with ends_with(SystemExit), TaskGroup(on_error="continue") as group:
        group.start_soon(fail).join()
        waits = running(group)
        group.start_soon(sys.exit)
        desist.sleep_forever()
    assert waits.state is TaskState.CANCELLED
    assert hooked == [ZeroDivisionError]
    with ends_with(GeneratorExit), TaskGroup() as group:
        raise GeneratorExit


# --- cancellation ---------------------------------------------------------------------------------


def test_a_cancelled_group_is_left_without_an_error() -> None:
    with TaskGroup() as group:
        waits = running(group)
        assert group.cancel("enough")
        assert not group.cancel("again")
        late = in_thread(lambda: group.start_soon(fail))  # not called
        desist.sleep_forever()
    assert waits.state is late.state is TaskState.CANCELLED
    assert group.cancel_scope.cause is not None
    assert group.cancel_scope.cause.reason == "enough"
    with pytest.raises(TaskCancelled, match="enough"):
        late.result()


def test_a_group_that_is_cancelled_while_it_waits_is_left_without_an_error() -> None:
    with Victim[object](group_of_one) as victim:
        until_asleep(victim)
        group, task = shared.pop()
        group.cancel()
    assert victim.raised is None
    assert task.state is TaskState.CANCELLED


shared: list[tuple[TaskGroup, Task[Any]]] = []


def group_of_one(ready: Callable[[], None]) -> None:
    with TaskGroup() as group:
        shared.append((group, running(group)))
        ready()


def test_a_cancel_from_outside_is_raised_when_all_tasks_have_ended() -> None:
    cleaned: list[int] = []

    def careful() -> None:
        try:
            desist.sleep_forever()
        finally:
            with desist.cleanup():
                desist.sleep(1)
                cleaned.append(1)

    def body() -> None:
        with desist.move_on_after(1) as scope:
            with TaskGroup() as group:
                group.start_soon(careful)
            cleaned.append(2)
        assert scope.cancelled_caught
        assert cleaned == [1]

    testing.run(body)


def test_errors_take_precedence_over_a_cancel_from_outside() -> None:
    def late() -> None:
        try:
            desist.sleep_forever()
        finally:
            raise KeyError

    def body() -> None:
        with fails_with(KeyError), desist.cancel_scope(timeout=1), TaskGroup() as group:
            group.start_soon(late)

    testing.run(body)


def test_the_deadline_of_the_groups_scope_is_an_error() -> None:
    def body() -> None:
        with ends_with(desist.DeadlineExceeded), TaskGroup() as group:
            group.cancel_scope.deadline = desist.current_time() + 1
            group.start_soon(desist.sleep_forever)

    testing.run(body)


def test_the_token_of_a_task_is_below_the_groups_scope() -> None:
    with TaskGroup() as group:
        one, other = running(group), running(group)
        assert not one.cancel("this one")  # it has begun
        assert one.token.cancelled
        assert not other.token.cancelled
        assert one.join(NEVER)
        assert not group.cancel_scope.token.cancelled
        group.cancel("all")
    with pytest.raises(TaskCancelled, match="this one"):
        one.result()


def test_a_task_that_only_polls_its_token_sees_a_deadline_around_the_group() -> None:
    box: list[desist.CancelToken] = []

    def look() -> None:
        while not box:
            pass
        while not box[0].cancelled:
            pass

    with desist.move_on_after(0.02), TaskGroup() as group:
        task = group.start_soon(look)
        box.append(task.token)
        task.join()
    assert task.state is TaskState.DONE


def test_a_cancel_by_a_foreign_token_is_the_tasks_own_failure() -> None:
    source = CancelSource()
    source.cancel("a foreign token")
    with TaskGroup() as group:
        task = group.start_soon(source.token.check)
    assert task.state is TaskState.CANCELLED
    # In the block it is raised on, and not taken for the group's own cancel.
    with ends_with(desist.Cancelled), TaskGroup() as group:
        waits = running(group)
        source.token.check()
    assert waits.state is TaskState.CANCELLED


def test_a_queued_task_that_is_cancelled_ends_at_once() -> None:
    with TaskGroup(max_threads=1) as group:
        first = running(group)
        second, third = group.start_soon(fail), group.start_soon(fail)
        assert second.state.name == "PENDING"
        assert second.stack() is None
        second.cancel("unwanted")
        assert second.state.name == "CANCELLED"
        assert third.kill(policy=ASK).outcome is KillOutcome.ALREADY_DONE
        assert third.state.name == "CANCELLED"
        assert [next(group.as_completed()) for _ in range(2)] == [second, third]
        first.cancel()


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_cancels_the_tasks_and_kills_them_when_pressed_again(
    presses: int, hooked: list[Any]
) -> None:
    def stubborn() -> None:
        with suppress(desist.Cancelled):
            desist.sleep_forever()
        if presses == 2:
            os.kill(os.getpid(), signal.SIGINT)
            with desist.shield(NEVER):
                desist.sleep_forever()

    policy = StopPolicy(cooperative=NEVER, at_wait=NEVER)
    with ends_with(KeyboardInterrupt), TaskGroup(policy=policy) as group:
        task = running(group, stubborn)
        os.kill(os.getpid(), signal.SIGINT)
        desist.sleep_forever()
    assert task.state is (TaskState.DONE if presses == 1 else TaskState.KILLED)
    assert hooked == [TaskAborted] * (presses - 1)


# --- kills ----------------------------------------------------------------------------------------


def test_i35_a_task_that_is_killed_has_failed() -> None:
    def spin() -> None:
        while True:
            pass

    with fails_with(TaskAborted) as parts, TaskGroup() as group:
        waits, spins = running(group), running(group, spin)
        stack = spins.stack()
        assert stack is not None
        assert "in spin" in stack
        assert spins.kill("stuck", policy=FORCE).outcome is KillOutcome.ASYNC_EXC
        desist.sleep_forever()
    (aborted,) = parts
    assert str(aborted).startswith("running.<locals>.body was killed (")
    assert aborted.outcome is KillOutcome.ASYNC_EXC
    assert aborted.cause.reason == "stuck"
    assert spins.state is TaskState.KILLED
    assert waits.state is TaskState.CANCELLED
    with pytest.raises(TaskAborted):
        spins.result()


def test_a_task_that_stops_when_asked_has_not_failed_though_it_was_to_be_killed() -> None:
    with TaskGroup() as group:
        assert running(group).kill(policy=ASK).outcome is KillOutcome.COOPERATIVE


def test_i35_an_abandoned_task_has_failed_and_is_not_waited_for() -> None:
    end = DeafEvent()
    with fails_with(TaskAborted) as parts, TaskGroup(on_error="continue") as group:
        stuck = running(group, deaf(end))
        assert stuck.kill(policy=ABANDON).outcome is KillOutcome.ABANDONED
        assert next(group.as_completed()) is stuck
    (aborted,) = parts
    assert aborted.outcome is KillOutcome.ABANDONED
    assert "was abandoned" in str(aborted)
    assert stuck.state is TaskState.ABANDONED
    end.set()


def test_no_task_runs_beside_an_abandoned_one_for_which_there_is_no_room() -> None:
    end = DeafEvent()
    failed = fails_with(TaskAborted, PoolExhausted, PoolExhausted)
    with failed, TaskGroup(on_error="continue", max_threads=1) as group:
        stuck = running(group, deaf(end))
        waiting = group.start_soon(int, "7")
        stuck.kill(policy=ABANDON)
        with pytest.raises(PoolExhausted, match="have not ended"):
            waiting.result()
        with pytest.raises(PoolExhausted, match="have not ended"):
            group.start_soon(int, "7")
        assert list(group.as_completed()) == [stuck, waiting]
        end.set()
        while True:  # there is no notification
            with suppress(PoolExhausted):
                late = group.start_soon(int, "7")
                break
        assert late.result() == 7
        raise PoolExhausted


def test_tasks_go_on_waiting_for_the_threads_that_were_not_abandoned() -> None:
    end, go_on = DeafEvent(), DeafEvent()
    with fails_with(TaskAborted), TaskGroup(on_error="continue", max_threads=2) as group:
        stuck, other = running(group, deaf(end)), running(group, deaf(go_on))
        waiting = [group.start_soon(int, "7") for _ in range(3)]
        stuck.kill(policy=ABANDON)
        assert not waiting[0].done()
        go_on.set()
        assert [task.result() for task in (other, *waiting)] == [None, 7, 7, 7]
    end.set()


@pytest.mark.parametrize("policy", [ASK, AT_WAIT, INSIST], ids=["ask", "at_wait", "insist"])
def test_i35_the_tasks_of_a_group_whose_thread_is_killed_end_with_it(policy: StopPolicy) -> None:
    tasks: list[Task[Any]] = []

    def body(ready: Callable[[], None]) -> None:
        with TaskGroup() as group:
            tasks.extend(running(group) for _ in range(3))
            ready()

    with Victim(body) as victim:
        report = victim.kill(policy=policy)
    assert report.outcome is not KillOutcome.ABANDONED
    assert [task.state for task in tasks] == [TaskState.CANCELLED] * 3


def test_i35_tasks_that_ignore_the_cancel_are_killed_with_the_groups_thread(
    hooked: list[Any],
) -> None:
    tasks: list[Task[Any]] = []

    def stubborn() -> None:
        with desist.shield(NEVER):
            desist.sleep_forever()

    def body(ready: Callable[[], None]) -> None:
        with TaskGroup(policy=NOW) as group:
            tasks.extend(running(group, stubborn) for _ in range(3))
            ready()
            desist.sleep_forever()

    with Victim(body) as victim:
        report = victim.kill(policy=INSIST)
    assert report.outcome is not KillOutcome.ABANDONED
    assert [task.state for task in tasks] == [TaskState.KILLED] * 3
    # Without the GIL the cancel may come before the kill: then the group raises the tasks' errors.
    if HAS_GIL or victim.state is not TaskState.DONE:
        assert victim.state.name in ("KILLED", "CANCELLED")
        assert hooked == [TaskAborted] * 3


def test_i35_tasks_of_a_killed_group_that_cannot_be_ended_are_abandoned(hooked: list[Any]) -> None:
    end = DeafEvent()
    tasks: list[Task[Any]] = []

    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER), TaskGroup(policy=ABANDON) as group:
            tasks.extend(running(group, deaf(end)) for _ in range(3))
            ready()

    with Victim[object](body) as victim:
        until_asleep(victim)
        victim.kill(policy=INSIST)
    assert victim.state is TaskState.KILLED
    assert [task.state for task in tasks] == [TaskState.ABANDONED] * 3
    assert hooked == [TaskAborted] * 3
    end.set()


@pytest.mark.parametrize("shielded", [False, True])
def test_i35_a_block_whose_end_never_runs_ends_with_its_thread(
    shielded: bool, hooked: list[Any]
) -> None:
    tasks: list[Task[Any]] = []

    def body(ready: Callable[[], None]) -> None:
        if shielded:
            desist.shield(NEVER).__enter__()
        group = TaskGroup(on_error="continue").__enter__()
        group.start_soon(fail).join()
        tasks.append(running(group))
        ready()

    with Victim(body) as victim:
        pass
    assert victim.state is TaskState.DONE
    assert [task.state for task in tasks] == [TaskState.CANCELLED]
    assert hooked == [ZeroDivisionError]


def test_i35_a_block_whose_end_is_skipped_ends_with_the_forced_block_around_it(
    hooked: list[Any],
) -> None:
    tasks: list[Task[Any]] = []

    def body() -> None:
        with desist.cancel_scope(kill_after=0) as scope:
            group = TaskGroup(on_error="continue").__enter__()
            group.start_soon(fail).join()
            tasks.append(running(group))
            scope.deadline = desist.current_time()
            while True:
                pass

    with pytest.raises(desist.DeadlineExceeded):
        in_thread(body)
    assert [task.state for task in tasks] == [TaskState.CANCELLED]
    assert hooked == [ZeroDivisionError]


def test_i35_a_group_in_a_block_that_is_ended_by_force_is_joined() -> None:
    tasks: list[Task[Any]] = []

    def body() -> None:
        with desist.cancel_scope(kill_after=0) as scope, TaskGroup() as group:
            tasks.append(running(group))
            scope.deadline = desist.current_time()
            while True:
                pass

    with pytest.raises(desist.DeadlineExceeded):
        in_thread(body)
    assert [task.state for task in tasks] == [TaskState.CANCELLED]


# --- bad input ------------------------------------------------------------------------------------


def test_tasks_are_started_inside_the_block() -> None:
    group = TaskGroup()
    with pytest.raises(RuntimeError, match="has not begun"):
        group.start_soon(fail)
    with group:
        pass
    with pytest.raises(RuntimeError, match="has ended"):
        group.start_soon(fail)
    with pytest.raises(desist.ScopeMisuse), group:
        pass
    with pytest.raises(desist.ScopeMisuse):
        TaskGroup().__exit__(None, None, None)


def test_bad_arguments_are_refused() -> None:
    bad: Any = "neither"
    with pytest.raises(ValueError, match="on_error"):
        TaskGroup(on_error=bad)
    with pytest.raises(ValueError, match="max_threads"):
        TaskGroup(max_threads=0)
    with pytest.raises(TypeError):
        TaskGroup(policy=bad)
    with fails_with(TypeError), TaskGroup() as group:
        group.start_soon(bad)


def test_a_task_cannot_wait_for_itself_nor_kill_itself() -> None:
    box: list[Task[None]] = []

    def body() -> None:
        with pytest.raises(RuntimeError, match="its own end"):
            box[0].result()
        with pytest.raises(RuntimeError, match="kill itself"):
            box[0].kill()

    with TaskGroup(max_threads=1) as group:
        first = running(group)
        box.append(group.start_soon(body))
        first.cancel()
    assert box[0].result() is None


def test_a_result_that_is_late_is_a_timeout() -> None:
    with TaskGroup() as group:
        task = running(group)
        with pytest.raises(TimeoutError):
            task.result(timeout=0)
        assert not task.join(timeout=-1)
        task.cancel()


def test_groups_that_end_in_the_wrong_order_raise_and_lose_nothing() -> None:
    first, second = TaskGroup(), TaskGroup()
    first.__enter__()
    second.__enter__()
    tasks = [running(first), running(second)]
    tasks[0].cancel()
    with pytest.raises(desist.ScopeMisuse):
        first.__exit__(None, None, None)
    tasks[1].cancel()
    second.__exit__(None, None, None)
    assert [task.state for task in tasks] == [TaskState.CANCELLED] * 2


def test_a_thread_that_cannot_be_started_is_an_error_of_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with testing.no_leaks():
        with fails_with(RuntimeError), TaskGroup() as group:
            monkeypatch.setattr(threading.Thread, "start", start)
            group.start_soon(fail)
        assert list(group.as_completed()) == []


def test_an_interrupt_behind_the_start_of_a_thread_does_not_lose_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, begun = threading.Thread.start, threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        begun.wait()
        raise KeyboardInterrupt

    def body() -> None:
        begun.set()
        desist.sleep_forever()

    with ends_with(KeyboardInterrupt), TaskGroup() as group:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        group.start_soon(body)
    assert [task.state for task in group.as_completed()] == [TaskState.CANCELLED]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_leaves_the_group_alone() -> None:
    def body() -> str:
        with pytest.raises(RuntimeError, match="after a fork"):
            group.start_soon(fail)
        group.__exit__(None, None, None)
        return "left"

    with TaskGroup() as group:
        task = running(group)
        assert in_child(body) == "left"
        task.cancel()


def test_dropped_groups_and_tasks_are_freed() -> None:
    gone: list[weakref.ref[Any]] = []

    def use() -> None:
        with suppress(ExceptionGroup), TaskGroup() as group:
            gone.append(weakref.ref(group))
            gone.append(weakref.ref(group.start_soon(lambda: group.start_soon(fail))))

    use()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


# --- race -----------------------------------------------------------------------------------------


def test_the_first_success_wins_and_the_others_are_cancelled() -> None:
    ended: list[int] = []

    def racer(seconds: float) -> float:
        try:
            desist.sleep(seconds)
        finally:
            ended.append(round(seconds))
        if seconds == 1:
            raise KeyError
        return seconds

    def body() -> float:
        begin = desist.current_time()
        won = desist.race(lambda: racer(1), lambda: racer(3), lambda: racer(2))
        assert sorted(ended) == [1, 2, 3]
        assert round(desist.current_time() - begin) == 2
        return won

    assert testing.run(body) == 2


def test_a_race_without_a_winner_raises_all_errors() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        desist.race(fail, fail)
    assert errors_of(raised.value) == [ZeroDivisionError] * 2
    with pytest.raises(ValueError, match="needs a function"):
        desist.race()
    source = CancelSource()
    source.cancel()
    with pytest.raises(TaskCancelled):
        desist.race(source.token.check)


def test_a_race_can_be_cancelled() -> None:
    def body() -> None:
        with desist.move_on_after(1) as scope:
            desist.race(desist.sleep_forever, desist.sleep_forever)
        assert scope.cancelled_caught

    testing.run(body)


# --- random programs ------------------------------------------------------------------------------

PLANS = st.lists(
    st.tuples(st.sampled_from(["return", "raise", "cancel itself", "swallow"]), st.integers(0, 5)),
    max_size=6,
)


@given(
    plans=PLANS,
    on_error=st.sampled_from(["cancel", "continue"]),
    threads=st.none() | st.integers(1, 3),
    block=st.sampled_from(["ends", "raises", "cancels", "waits", "has a deadline"]),
    seed=st.integers(0, 1000),
)
def test_i35_every_task_is_accounted_for(  # noqa: C901 (many outcomes)
    plans: list[tuple[str, int]], on_error: Any, threads: int | None, block: str, seed: int
) -> None:
    def child(plan: str, seconds: int) -> int:
        if plan == "swallow":
            with suppress(desist.Cancelled):
                desist.sleep(seconds)
            return seconds
        desist.sleep(seconds)
        if plan == "raise":
            raise KeyError
        if plan == "cancel itself":
            source = CancelSource()
            source.cancel()
            source.token.check()
        return seconds

    def body() -> None:
        tasks: list[Task[int]] = []
        raised: BaseException | None = None
        scope = desist.cancel_scope()
        try:
            with scope:
                if block == "has a deadline":
                    scope.deadline = desist.current_time() + 2
                with TaskGroup(on_error=on_error, max_threads=threads) as group:
                    tasks.extend(group.start_soon(child, *plan) for plan in plans)
                    if block == "raises":
                        raise ValueError
                    if block == "cancels":
                        group.cancel()
                    if block == "waits":
                        desist.sleep(3)
        except (ExceptionGroup, desist.DeadlineExceeded) as error:
            raised = error
        over = {TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED}
        assert {task.state for task in tasks} <= over
        failed = sum(task.state is TaskState.FAILED for task in tasks)
        failed += block == "raises"
        if failed:
            assert raised is not None
            assert len(errors_of(raised)) == failed
        else:
            assert not isinstance(raised, ExceptionGroup)
        if on_error == "continue" and block in ("ends", "waits"):
            expected = {"return": "DONE", "swallow": "DONE", "raise": "FAILED"}
            for task, (plan, _) in zip(tasks, plans, strict=True):
                assert task.state.name == expected.get(plan, "CANCELLED")

    with testing.no_leaks():
        testing.run(body, seed=seed)
