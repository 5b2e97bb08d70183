"""The exit flag, and a flag that ends waits."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import desist
import recipes
from desist import Cancelled, TaskState
from desist.compat import StopEvent, StoppableThread


def test_a_flag_is_not_seen_by_a_wait() -> None:
    assert recipes.alone(recipes.a_flag_is_not_seen_by_a_wait) == [
        "alive: True",
        "done after it was stopped: ['one more']",
    ]


def test_a_stop_is_seen_by_a_wait() -> None:
    jobs: desist.Queue[str] = desist.Queue()
    looked, done = threading.Event(), []

    class Worker(StoppableThread):
        def run(self) -> None:
            while not self.stopped():
                looked.set()
                done.append(jobs.get())

    worker = Worker()
    worker.start()
    looked.wait()
    assert not worker.stopped()
    worker.stop()
    worker.join()
    assert worker.stopped()
    assert worker.state is TaskState.CANCELLED
    assert not done


def test_a_body_that_only_polls_ends_as_before() -> None:
    looked = threading.Event()
    steps: list[str] = []

    def body() -> None:
        while not worker.stopped():
            looked.set()
        steps.append("after the loop")

    worker = StoppableThread(target=body)
    worker.start()
    looked.wait()
    worker.stop()
    worker.stop()
    worker.join()
    assert steps == ["after the loop"]
    assert worker.state is TaskState.DONE


def test_a_thread_that_has_ended_by_itself_was_not_stopped() -> None:
    worker = StoppableThread(target=int)
    worker.start()
    worker.join()
    assert not worker.stopped()
    worker.stop()
    assert not worker.stopped()


def test_a_stop_event_stops_all_its_threads_in_their_waits() -> None:
    stop, looked = StopEvent(), desist.Barrier(4)
    raised: list[BaseException] = []

    def body() -> None:
        looked.wait()
        try:
            desist.sleep_forever()
        except Cancelled as cancelled:
            raised.append(cancelled)
            raise

    workers = [StoppableThread(target=body, stop_event=stop) for _ in range(3)]
    for worker in workers:
        worker.start()
    looked.wait()
    assert not stop.is_set()
    stop.set()
    for worker in workers:
        worker.join()
        assert worker.stopped()
    assert [str(one) for one in raised] == ["cancelled by MainThread: stopped"] * 3
    assert stop.is_set()
    assert stop.token.cancelled
    assert stop.wait()


def test_a_thread_that_gets_a_stop_event_which_is_set_stops_at_once() -> None:
    stop = StopEvent()
    stop.set()
    steps: list[int] = []

    def body() -> None:
        desist.checkpoint()
        steps.append(1)

    worker = StoppableThread(target=body, stop_event=stop)
    worker.start()
    worker.join()
    assert worker.state is TaskState.CANCELLED
    assert not steps


def test_a_stop_is_final() -> None:
    stop = StopEvent()
    stop.clear()
    stop.set()
    stop.set()
    with pytest.raises(RuntimeError, match="make a new one"):
        stop.clear()


@pytest.mark.parametrize("wrong", [threading.Event(), desist.Event(), True, "stop"])
def test_an_event_that_cannot_wake_a_waiter_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="stop_event must be a StopEvent, not "):
        StoppableThread(stop_event=wrong)
