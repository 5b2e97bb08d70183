"""I35: each owner of running work ends it when its block is left early.

A table: the owners, the kinds of work, and the ways out of the block, each with the others. The
owner has one thread or process, and more work waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pytest

import desist
import process_handlers as handlers
from desist import (
    KillOutcome,
    ProcessStopPolicy,
    StopPolicy,
    TaskAborted,
    TaskCancelled,
    TaskGroup,
    TaskState,
    ThreadPoolExecutor,
    WorkerPool,
)
from support import INSIST, NEVER, DeafEvent, Victim, left_with_its_end_skipped, until_there_are

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENDS = StopPolicy(cooperative=0.02, at_wait=0.02, async_exc=0.1, trace=NEVER)
"""Tries each rung, and has time for the last one."""
GIVES_UP = StopPolicy(cooperative=0.02, at_wait=0.02, async_exc=0.02, trace=0.02)
"""Tries each rung, and then abandons the work."""
PROCESS = ProcessStopPolicy(cooperative=0.02, sigterm=0.05, sigkill=NEVER)
SOON = 0.02
"""Seconds after which the block is left."""


# --- the work -------------------------------------------------------------------------------------


def waits(begun: Callable[[], None], _: DeafEvent) -> None:
    begun()
    desist.sleep_forever()


def spins(begun: Callable[[], None], _: DeafEvent) -> None:
    begun()
    while True:
        pass


def swallows(begun: Callable[[], None], _: DeafEvent) -> None:
    begun()
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001, PERF203 (the worst that code can do)
            pass


def blocks(begun: Callable[[], None], end: DeafEvent) -> None:
    begun()
    end.wait()


ENDINGS = {
    waits: TaskState.CANCELLED,
    spins: TaskState.KILLED,
    swallows: TaskState.KILLED,
    blocks: TaskState.ABANDONED,
}


# --- the owners -----------------------------------------------------------------------------------


class Owner(NamedTuple):
    """An object whose block owns work."""

    block: Any
    start: Callable[[Callable[[], object]], Any]
    state_of: Callable[[Any], TaskState]


def group(policy: StopPolicy) -> Owner:
    tasks = TaskGroup(max_threads=1, policy=policy)
    return Owner(tasks, tasks.start_soon, lambda task: task.state)


def executor(policy: StopPolicy) -> Owner:
    threads = ThreadPoolExecutor(1, policy=policy)
    return Owner(threads, threads.submit, state_of_future)


def state_of_future(future: desist.TaskFuture[Any]) -> TaskState:
    """Check that the result agrees with the state."""
    state, failure = future.state, None
    try:
        failure = future.exception(timeout=NEVER)
    except TaskCancelled as cancelled:
        failure = cancelled
    aborted = state in (TaskState.KILLED, TaskState.ABANDONED)
    assert isinstance(failure, TaskAborted if aborted else TaskCancelled)
    return state


def pool(policy: StopPolicy) -> Owner:
    killed: list[int | str] = []

    def listen(event: desist.WorkEvent) -> None:
        if event.kind == "killed":
            killed.append(event.item_id)

    def state_of(future: desist.ItemFuture[Any]) -> TaskState:
        assert isinstance(future.exception(timeout=NEVER), TaskCancelled)
        if future.item_id not in killed:
            return future.state
        abandoned = workers.workers[0].state == "abandoned"
        return TaskState.ABANDONED if abandoned else TaskState.KILLED

    workers: WorkerPool[Any, Any] = WorkerPool(
        lambda lease: lease.item(), workers=1, policy=policy, on_event=listen
    )
    return Owner(workers, workers.submit, state_of)


# --- the ways out ---------------------------------------------------------------------------------


class ItsOwnError(Exception):
    """An exception of the block."""


def fail_soon() -> NoReturn:
    desist.sleep(SOON)
    raise ZeroDivisionError


def soon(act: Callable[[], object]) -> None:
    """Act on another thread, perhaps when the calling one is already in the block's end."""
    timer = threading.Timer(SOON, act)
    timer.daemon = True
    timer.start()


@contextmanager
def an_exception() -> Iterator[Callable[[], object]]:
    def leave() -> None:
        raise ItsOwnError

    yield leave


@contextmanager
def ctrl_c() -> Iterator[Callable[[], object]]:
    yield lambda: soon(lambda: os.kill(os.getpid(), signal.SIGINT))


@contextmanager
def fail_after() -> Iterator[Callable[[], object]]:
    with desist.fail_after(NEVER) as scope:
        yield partial(set_deadline, scope)


@contextmanager
def move_on_after() -> Iterator[Callable[[], object]]:
    with desist.move_on_after(NEVER) as scope:
        yield partial(set_deadline, scope)


def set_deadline(scope: Any) -> None:
    scope.deadline = desist.current_time() + SOON


@contextmanager
def a_cancel() -> Iterator[Callable[[], object]]:
    with desist.cancel_scope() as scope:
        yield lambda: soon(scope.cancel)


@contextmanager
def an_outer_group() -> Iterator[Callable[[], object]]:
    with TaskGroup() as outer:
        yield lambda: outer.start_soon(fail_soon)


WAYS: dict[Any, type[BaseException] | None] = {
    an_exception: ItsOwnError,
    ctrl_c: KeyboardInterrupt,
    fail_after: desist.DeadlineExceeded,
    move_on_after: None,
    a_cancel: None,
    an_outer_group: ZeroDivisionError,
}


def parts_of(raised: BaseException | None) -> Iterator[BaseException]:
    """Yield the exceptions in a group of groups."""
    if isinstance(raised, ExceptionGroup):
        for part in raised.exceptions:
            yield from parts_of(part)
    elif raised is not None:
        yield raised


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the exceptions that are passed to the hook for errors in threads."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
    return told


def abandoned(raised: list[BaseException]) -> list[BaseException]:
    return [
        one
        for one in raised
        if isinstance(one, TaskAborted) and one.outcome is KillOutcome.ABANDONED
    ]


def check_end(  # noqa: PLR0917 (the columns of the table)
    owner: Owner, task: Any, work: Any, late: list[Any], reported: list[BaseException], before: int
) -> None:
    """Check that nothing runs on, but what was reported."""
    assert owner.state_of(task) is ENDINGS[work]
    assert owner.state_of(late[0]) is TaskState.CANCELLED
    assert len(late) == 1
    if work is blocks:
        (report,) = abandoned(reported)
        assert "was abandoned and may still run" in str(report)
        until_there_are(before + 1)
    else:
        assert not abandoned(reported)
        until_there_are(before)


@pytest.mark.parametrize("at_its_end", [False, True], ids=["inside", "at_its_end"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("work", ENDINGS, ids=lambda work: work.__name__)
@pytest.mark.parametrize("own", [group, executor, pool], ids=lambda own: own.__name__)
def test_i35_a_block_that_is_left_early_ends_its_work(
    own: Any, work: Any, way: Any, at_its_end: bool, hooked: list[Any]
) -> None:
    before, begun, end = threading.active_count(), threading.Event(), DeafEvent()
    owner = own(GIVES_UP if work is blocks else ENDS)
    raised: BaseException | None = None
    tasks: list[Any] = []
    late: list[Any] = []
    try:
        with way() as leave, owner.block:
            tasks.append(owner.start(partial(work, begun.set, end)))
            assert begun.wait(NEVER)
            late.append(owner.start(lambda: late.append("it was called")))
            leave()
            if not at_its_end:
                desist.sleep_forever()
    except BaseException as failure:  # noqa: BLE001 (it is examined)
        raised = failure
    parts = list(parts_of(raised))
    expected = WAYS[way]
    if not any(isinstance(part, TaskAborted) for part in parts):  # a group's errors come first
        assert [type(part) for part in parts] == ([expected] if expected else [])
    check_end(owner, tasks[0], work, late, [*parts, *hooked], before)
    end.set()
    until_there_are(before)


@pytest.mark.parametrize("work", ENDINGS, ids=lambda work: work.__name__)
@pytest.mark.parametrize("own", [group, executor, pool], ids=lambda own: own.__name__)
def test_i35_a_block_whose_thread_is_killed_ends_its_work(
    own: Any, work: Any, hooked: list[Any]
) -> None:
    before, begun, end = threading.active_count(), threading.Event(), DeafEvent()
    owner = own(GIVES_UP if work is blocks else ENDS)
    tasks: list[Any] = []
    late: list[Any] = []

    def body(ready: Callable[[], None]) -> None:
        with owner.block:
            tasks.append(owner.start(partial(work, begun.set, end)))
            assert begun.wait(NEVER)
            late.append(owner.start(lambda: late.append("it was called")))
            ready()
            desist.sleep_forever()

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert victim.state in (TaskState.KILLED, TaskState.CANCELLED)
    check_end(owner, tasks[0], work, late, hooked, before)
    victim.raised = None
    end.set()
    until_there_are(before)


def in_a_task(body: Callable[[], None]) -> None:
    thread = desist.Thread(target=body)
    thread.start()
    thread.join()
    assert thread.state is TaskState.DONE


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its code has no exception table")
@pytest.mark.parametrize("around", ["task", "scope", "forced"])
@pytest.mark.parametrize("work", ENDINGS, ids=lambda work: work.__name__)
@pytest.mark.parametrize("own", [group, executor, pool], ids=lambda own: own.__name__)
def test_i35_a_block_whose_end_was_skipped_ends_its_work_with_the_code_around_it(
    own: Any, work: Any, around: str, hooked: list[Any]
) -> None:
    before, begun, end = threading.active_count(), threading.Event(), DeafEvent()
    owner = own(GIVES_UP if work is blocks else ENDS)
    tasks: list[Any] = []
    late: list[Any] = []

    def block() -> None:
        with owner.block:
            tasks.append(owner.start(partial(work, begun.set, end)))
            assert begun.wait(NEVER)
            late.append(owner.start(lambda: late.append("it was called")))
            raise ZeroDivisionError

    if around == "task":
        in_a_task(partial(left_with_its_end_skipped, block))
    else:
        with desist.cancel_scope(kill_after=NEVER if around == "forced" else None):
            left_with_its_end_skipped(block)
    check_end(owner, tasks[0], work, late, hooked, before)
    end.set()
    until_there_are(before)


@pytest.mark.parametrize("own", [executor, pool], ids=lambda own: own.__name__)
def test_i35_an_owner_that_was_entered_by_a_call_is_left_alone_by_the_code_around_it(
    own: Any,
) -> None:
    owner, stack = own(ENDS), ExitStack()

    def enters() -> None:
        owner.block.__enter__()
        stack.enter_context(owner.block)

    in_a_task(enters)
    with desist.cancel_scope():
        enters()
    assert owner.start(int).result(timeout=NEVER) == 0
    with stack:
        pass


@pytest.mark.parametrize("own", [group, executor, pool], ids=lambda own: own.__name__)
def test_i15_nothing_is_started_in_a_cancelled_block(own: Any) -> None:
    called: list[int] = []
    owner = own(ENDS)
    with owner.block:
        with desist.move_on_after(0) as scope:
            owner.start(lambda: called.append(1))
        assert scope.cancelled_caught
    assert called == []


# --- processes ------------------------------------------------------------------------------------

HANDLERS = [handlers.wait, handlers.spin, handlers.swallow, handlers.block]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux and its pidfd")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_i35_a_pool_of_processes_whose_block_is_left_early_ends_them(
    handler: Any, way: Any, tmp_path: Path
) -> None:
    path = tmp_path / "told"
    os.mkfifo(path)
    told = os.fdopen(os.open(path, os.O_RDWR))
    raised: BaseException | None = None
    process, late = -1, None
    begin = time.monotonic()
    try:
        with (
            way() as leave,
            WorkerPool(handler, workers=1, isolation="process", policy=PROCESS) as pool,
        ):
            pool.submit(str(path))
            process = os.pidfd_open(int(told.readline()))
            late = pool.submit(str(path))
            leave()
            desist.sleep_forever()
    except BaseException as failure:  # noqa: BLE001 (it is examined)
        raised = failure
    expected = WAYS[way]
    assert [type(part) for part in parts_of(raised)] == ([expected] if expected else [])
    assert desist.wait_readable(process, 0), "the process still runs"
    os.close(process)
    told.close()
    assert late is not None
    assert isinstance(late.exception(timeout=0), TaskCancelled)
    assert time.monotonic() - begin < NEVER
