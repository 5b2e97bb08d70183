"""I37: a fork at every line of the thread that settles a result: each wait in the child ends."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import LeaseQueue, StopPolicy, TaskAborted, TaskGroup, ThreadPoolExecutor, WorkerPool
from held import PATIENCE, STUCK, Hold
from support import NEVER, in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Work = Any

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

FUTURES = Future.set_result.__code__.co_filename


class HoldOthers(Hold):
    """Holds a thread that the code under test starts, also inside of the standard future."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.here = threading.get_ident()

    def trace(self, frame: FrameType, what: str, argument: object) -> Any:
        if threading.get_ident() == self.here:
            return None
        if frame.f_code.co_filename == FUTURES:
            return self.trace_line(frame, what, argument)
        return super().trace(frame, what, argument)

    def trace_line(self, _: FrameType, what: str, __: object) -> Any:
        if what == "line":
            self.count()
        return self.trace_line


def item(end: list[Callable[[], object]]) -> Work:
    queue: LeaseQueue[int] = LeaseQueue()
    pool = WorkerPool[int, int](lambda lease: lease.item, workers=1, queue=queue)
    end.append(pool.stop)
    return pool.submit(1)


def call(end: list[Callable[[], object]]) -> Work:
    executor = ThreadPoolExecutor(1)
    end.append(executor.shutdown)
    return executor.submit(int)


def task(end: list[Callable[[], object]]) -> Work:
    group = TaskGroup()
    group.__enter__()
    end.append(lambda: group.__exit__(None, None, None))
    return group.start_soon(int)


def kill(end: list[Callable[[], object]]) -> Work:
    thread = desist.Thread(target=desist.sleep_forever, daemon=True)
    thread.start()
    end.append(lambda: thread.join(PATIENCE))
    return thread.kill_soon(policy=StopPolicy(cooperative=0))


def wait_in_the_child(work: Work) -> object:
    assert desist.wait_any(work) == (0, work)
    failure = work.exception(NEVER)
    if failure is None:
        return "done"
    assert isinstance(failure, TaskAborted)
    assert failure.cause.kind is desist.CauseKind.FORKED
    return "lost"


def forked_at(number: int, begin: Callable[[list[Callable[[], object]]], Work]) -> str:
    """Fork while a thread is held at that line; "never": there is no such line."""
    hold = HoldOthers(number)
    ends: list[Callable[[], object]] = []
    before = threading.gettrace()
    threading.settrace(hold.trace)
    try:
        work = begin(ends)
    finally:
        threading.settrace(before)
    met = over = False
    while not met and not over:
        over = work.done()
        with suppress(Empty):
            met = hold.news.get(timeout=STUCK) == "held"
    answer = in_child(lambda: wait_in_the_child(work)) if met else "never"
    hold.go_on.set()
    work.exception(PATIENCE)
    for end in ends:
        end()
    return answer


@pytest.mark.parametrize("begin", [item, call, task, kill], ids=lambda begin: begin.__name__)
def test_i37_every_wait_for_a_result_ends_in_a_child_forked_at_any_line_of_its_thread(
    begin: Callable[[list[Callable[[], object]]], Work],
) -> None:
    answers: list[str] = []
    while (answer := forked_at(len(answers) + 1, begin)) != "never":
        answers.append(answer)
    assert set(answers) == {"done", "lost"}, answers
