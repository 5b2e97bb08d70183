"""I20, I21, I22, I27, I35: groups and executors, with a kill at every bytecode."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    Lock,
    StopPolicy,
    TaskAborted,
    TaskGroup,
    TaskState,
    ThreadPoolExecutor,
    WorkerPool,
)
from desist._core import Task, leak_counts
from desist.testing import sweep_kills
from support import NEVER, tell, until_there_are

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A kill may be raised in a finalizer that happens to run in the body; a finalizer cannot propagate
# it and reports it. A real kill is delivered again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextmanager
def nothing_left() -> Iterator[None]:
    """As no_leaks(), but without a garbage collection, for a thousand runs."""
    before = leak_counts()
    yield
    assert leak_counts() == before


OVER = {TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.KILLED}
POLICY = StopPolicy(cooperative=NEVER)


def two_that_end(start: Callable[..., Any], lock: Lock, _: TaskGroup) -> None:
    def child() -> None:
        with lock:
            pass

    start(child)
    start(child)


def one_that_waits(start: Callable[..., Any], lock: Lock, group: TaskGroup) -> None:
    def child() -> None:
        with lock:
            pass

    start(desist.sleep_forever)
    start(child).join()
    group.cancel()


def in_the_order_of_their_ends(start: Callable[..., Any], lock: Lock, group: TaskGroup) -> None:
    def child() -> None:
        with lock:
            pass

    start(child)
    start(child)
    for _ in group.as_completed():
        pass


class GroupTrial:
    """A task with a group of two tasks, one of the three being killed somewhere."""

    def __init__(self, block: Callable[..., None], threads: int | None) -> None:
        self.block = block
        self.threads = threads
        self.owners = self.children = self.forsaken = 0

    def __call__(self) -> None:
        lock = Lock(on_kill="release")
        children: list[Any] = []
        told: list[type[BaseException]] = []
        ended: list[int] = []

        def start(fn: Callable[[], object]) -> Any:
            task = groups[0].start_soon(fn)
            children.append(task)
            return task

        def body() -> None:
            with Group(max_threads=self.threads, policy=POLICY) as group:
                groups.append(group)
                self.block(start, lock, group)
            ended.append(1)

        trial = self

        class Group(TaskGroup):
            def _on_abandoned(self) -> None:
                trial.forsaken += 1
                super()._on_abandoned()

        groups: list[TaskGroup] = []
        owner = Task("owner")
        threading.excepthook = lambda args: told.append(args.exc_type)
        before = threading.active_count()
        with nothing_left():
            try:
                owner.run(body)
            except ExceptionGroup as raised:
                told += [type(error) for error in raised.exceptions]
        threading.excepthook = threading.__excepthook__
        # A started thread that was not registered, because its starter was killed, ends by itself.
        assert threading.active_count() == before, threading.enumerate()
        assert {child.state for child in children} <= OVER
        assert not lock.locked()
        killed = [child.state for child in children].count(TaskState.KILLED)
        assert told.count(TaskAborted) == len(told) >= killed
        assert not ended or not told
        if owner.state is TaskState.KILLED:
            self.owners += 1
        elif told:
            assert owner.state is TaskState.FAILED
            self.children += 1
        else:
            assert ended


@pytest.mark.parametrize(
    ("block", "threads"),
    [
        (two_that_end, 1),
        (one_that_waits, None),
        (in_the_order_of_their_ends, None),
    ],
)
@pytest.mark.timeout(300)  # a thousand runs, with threads
def test_i35_a_group_killed_at_any_bytecode_leaves_no_task(
    block: Callable[..., None], threads: int | None
) -> None:
    trial = GroupTrial(block, threads)
    points = sweep_kills(trial, victims="started").points
    print(  # noqa: T201 (for `pytest -rP`)
        f"{block.__name__}, {threads} threads: {points} points,"
        f" {trial.owners} owners killed, {trial.children} children,"
        f" {trial.forsaken} blocks whose end did not run"
    )
    assert points > 100
    assert trial.owners > 50
    assert trial.children > 5


def test_i22_an_executor_works_after_a_kill_at_any_bytecode_of_its_work() -> None:
    killed = 0

    def trial() -> None:
        nonlocal killed
        lock = Lock(on_kill="release")

        def work(number: int) -> int:
            with lock:
                return number * 2

        with nothing_left(), ThreadPoolExecutor(1) as executor:
            futures = [executor.submit(work, number) for number in range(2)]
            aborted = 0
            for number, future in enumerate(futures):
                if future.exception(NEVER) is None:
                    assert future.result() == number * 2
                else:
                    assert isinstance(future.exception(), TaskAborted)
                    aborted += 1
            assert aborted <= 1
            assert not lock.locked()
            (thread,) = executor._threads
            assert executor.submit(threading.get_ident).result() == thread.ident
            killed += aborted

    points = sweep_kills(trial, victims="started").points
    print(f"executor: {points} points, {killed} killed")  # noqa: T201
    assert points > 20
    assert killed > 10


class Left(Exception):
    """Raised in a block, which is left early."""


@pytest.mark.parametrize("kind", ["executor", "pool"])
@pytest.mark.timeout(300)
def test_i35_the_block_of_an_executor_or_a_pool_killed_at_any_bytecode_leaves_no_work(
    kind: str,
) -> None:
    killed = 0

    def trial() -> None:
        nonlocal killed
        entered: list[int] = []
        owner: Any
        if kind == "executor":
            owner = ThreadPoolExecutor(1, policy=POLICY)
        else:
            owner = WorkerPool(lambda lease: lease.item(), workers=1, policy=POLICY)

        def body() -> None:
            with owner:
                entered.append(1)
                owner.submit(desist.sleep_forever)
                raise Left

        task = Task("owner")
        with suppress(Left):
            task.run(body)
        killed += task.state is TaskState.KILLED
        if not entered:
            owner.shutdown() if kind == "executor" else owner.stop()
        # The end of the task has ended the work, if the end of the block was skipped.
        until_there_are(before)

    before = threading.active_count() + 1  # the thread of a run
    report = sweep_kills(trial, victims="started")
    tell(f"the block of an early left {kind}", report)
    assert killed > 50


def test_i20_an_executor_works_after_a_kill_at_any_bytecode_of_a_submitting_thread() -> None:
    killed = 0

    def trial() -> None:
        nonlocal killed
        results: list[int] = []

        def submit() -> None:
            results.append(executor.submit(int, "7").result())

        with nothing_left(), ThreadPoolExecutor(1) as executor:
            task = Task("submits")
            try:
                task.run(submit)
            except TaskAborted:  # the work was killed
                assert task.state is TaskState.FAILED
            killed += task.state is TaskState.KILLED
            assert results == [7] or task.state is not TaskState.DONE
            assert not executor._shutdown_lock.locked()
            assert executor.submit(int, "8").result(NEVER) == 8
            assert len(executor._threads) == 1

    points = sweep_kills(trial, victims="started").points
    print(f"submit and result: {points} points, {killed} killed")  # noqa: T201
    assert points > 50
    assert killed > 20


def test_i20_a_future_works_after_a_kill_at_any_bytecode_of_a_thread_that_uses_it() -> None:
    killed = 0

    def trial() -> None:
        nonlocal killed
        future: desist.Future[int] = desist.Future()
        told: list[Any] = []

        def look() -> None:
            future.add_done_callback(told.append)
            future.done()
            future.cancel()

        task = Task("looks")
        task.run(look)
        killed += task.state is TaskState.KILLED
        if not future.cancelled():
            future.set_running_or_notify_cancel()
            future.set_result(1)
            assert future.result(NEVER) == 1
        assert told == [future] or task.state is TaskState.KILLED

    points = sweep_kills(trial, victims="started").points
    print(f"future: {points} points, {killed} killed")  # noqa: T201
    assert killed > 20
