"""Work is submitted while another thread leaves the owner's block early, at every line of both."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import desist
from desist import FileQueue, LeaseQueue, TaskCancelled, TaskGroup, ThreadPoolExecutor, WorkerPool
from held import PATIENCE, STUCK, Hold

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Crossing(NamedTuple):
    """An owner's block, and its submission."""

    block: Any
    submit: Callable[[], Any]


def group(_: Path) -> Crossing:
    tasks = TaskGroup()
    return Crossing(tasks, lambda: tasks.start_soon(desist.sleep_forever))


def executor(_: Path) -> Crossing:
    threads = ThreadPoolExecutor(1)
    return Crossing(threads, lambda: threads.submit(desist.sleep_forever))


def wait(_: object) -> None:
    desist.sleep_forever()


def pool(_: Path) -> Crossing:
    workers: WorkerPool[int, None] = WorkerPool(wait, workers=1)
    return Crossing(workers, lambda: workers.submit(1))


def pool_of_others(_: Path) -> Crossing:
    workers: WorkerPool[int, None] = WorkerPool(wait, workers=1, queue=LeaseQueue())
    return Crossing(workers, lambda: workers.submit(1))


def pool_of_a_file(path: Path) -> Crossing:
    workers: WorkerPool[int, None] = WorkerPool(wait, workers=1, queue=FileQueue(path))
    return Crossing(workers, lambda: workers.submit(1))


def cross(crossing: Crossing, number: int, held: str) -> bool:
    """Let the two meet at one line; False: there is no such line. No work may be lost."""
    results: list[Any] = []
    refusals: list[str] = []
    inside, leave = threading.Event(), threading.Event()
    hold = Hold(number)

    def submit() -> None:
        try:
            results.append(crossing.submit())
        except RuntimeError as refused:
            refusals.append(str(refused))

    def own() -> None:
        with suppress(Exception), crossing.block:  # a group's is an ExceptionGroup
            inside.set()
            leave.wait()
            if held == "end":
                sys.settrace(hold.trace)
            raise ZeroDivisionError
        sys.settrace(None)
        hold.news.put("ended")

    owner = threading.Thread(target=own)
    owner.start()
    inside.wait()
    if held == "submit":
        submitter = hold.run(submit)
        met = hold.news.get(timeout=PATIENCE) == "held"
        leave.set()
        owner.join(STUCK)
    else:
        leave.set()
        met = hold.news.get(timeout=PATIENCE) == "held"
        submitter = threading.Thread(target=submit)
        submitter.start()
        submitter.join(STUCK)
    hold.go_on.set()
    submitter.join(PATIENCE)
    owner.join(PATIENCE)
    assert not submitter.is_alive()
    assert not owner.is_alive()
    assert len(results) + len(refusals) == 1
    assert all(re.search("stopped|ended|shutdown", refusal) for refusal in refusals)
    for work in results:
        with suppress(TaskCancelled):  # it has not begun
            assert work.exception(PATIENCE) is not None
    return met


@pytest.mark.parametrize("held", ["submit", "end"])
@pytest.mark.parametrize(
    "new", [group, executor, pool, pool_of_others, pool_of_a_file], ids=lambda new: new.__name__
)
def test_i35_no_work_is_lost_that_is_submitted_while_its_owner_ends(
    new: Callable[[Path], Crossing], held: str, tmp_path: Path
) -> None:
    before = threading.active_count()
    number = 1
    while cross(new(tmp_path / f"queue{number}"), number, held):
        number += 1
    assert number > 1
    while threading.active_count() > before:
        threading.Event().wait(0.001)  # there is no notification
