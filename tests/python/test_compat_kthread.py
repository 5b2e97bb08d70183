"""thread2, kthread and the trace recipe, and the same on a desist thread."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

import desist
import recipes
from desist import Killed, KillOutcome, LeaseQueue, Lock, TaskState, WorkerPool
from desist.compat import KThread
from desist.testing import sweep_kills
from support import LINUX, NEVER, Victim, drained, until_asleep

if TYPE_CHECKING:
    from collections.abc import Callable

# A kill may be raised in a finalizer that happens to run in the body; a finalizer cannot propagate
# it and reports it. A real kill is delivered again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Killable(KThread, Victim[Any]):
    """A victim that is killed as KThread does it."""


# --- held locks -----------------------------------------------------------------------------------


def test_thread2_leaves_a_lock_held() -> None:
    assert recipes.alone(recipes.thread2_leaves_a_lock_held) == ["held without a holder: True"]


def test_wherever_a_desist_thread_is_killed_no_lock_is_left_held() -> None:
    def trial() -> None:
        lock = Lock(on_kill="release")

        def body() -> None:
            lock.acquire()
            try:
                pass
            finally:
                lock.release()

        thread = desist.Thread(target=body)
        thread.start()
        thread.join()
        assert not lock.locked()
        assert lock.acquire(blocking=False)

    assert sweep_kills(trial, victims="started").points > 5


def test_kthread_leaves_a_queue_locked() -> None:
    told = recipes.alone(recipes.kthread_leaves_a_queue_locked)
    assert told == ["every get() and put() hangs: True"]


def test_wherever_a_desist_thread_is_killed_its_queue_works_on() -> None:
    def trial() -> None:
        jobs: desist.Queue[int] = desist.Queue()
        jobs.put(1)
        thread = desist.Thread(target=jobs.get)
        thread.start()
        thread.join()
        jobs.put_nowait(2)
        assert jobs.get_nowait() in (1, 2)

    assert sweep_kills(trial, victims="started").points > 0


def test_thread2_loses_an_item_despite_the_handler_that_puts_it_back() -> None:
    assert recipes.alone(recipes.thread2_loses_an_item) == ["queued: 0 done: 0"]


def test_wherever_a_desist_worker_is_killed_its_item_is_done() -> None:
    def trial() -> None:
        queue: LeaseQueue[int] = LeaseQueue()
        done: list[int] = []

        def handler(lease: desist.Lease[int]) -> None:
            with lease.commit():
                done.append(lease.item)
                lease.ack()

        with WorkerPool(handler, workers=1, queue=queue):
            queue.put(1)
            assert drained(queue)
        assert done == [1]

    assert sweep_kills(trial, victims="started").points > 5


# --- swallowed kills ------------------------------------------------------------------------------


def test_the_exception_of_kthread_is_swallowed() -> None:
    assert recipes.alone(recipes.kthread_is_swallowed) == ["goes on"]


def test_a_kill_is_repeated_until_it_has_ended_the_thread() -> None:
    def body(ready: Callable[[], None]) -> None:
        ready()
        while True:
            try:
                while True:
                    sum(range(10))
            except BaseException:  # noqa: BLE001, PERF203 (as a victim does)
                pass

    with Killable(body) as victim:
        report = victim.kill()
    assert report.outcome in (KillOutcome.ASYNC_EXC, KillOutcome.TRACE)
    assert victim.state is TaskState.KILLED


# --- waits, and the cost of tracing ---------------------------------------------------------------


@pytest.mark.parametrize(
    "scene",
    [
        recipes.kthread_does_not_notice_while_it_waits,
        recipes.tracing_does_not_notice_while_it_waits,
    ],
)
def test_they_do_not_notice_while_they_wait_and_then_lose_the_item_they_took(
    scene: Callable[[], None],
) -> None:
    assert recipes.alone(scene) == [
        "killed; alive: True",
        "has taken the lock and left it held: True",
    ]


@pytest.mark.parametrize("name", ["lock", "event", "queue"])
def test_a_kill_ends_a_wait(name: str) -> None:
    lock, event, queue = Lock(), desist.Event(), desist.Queue[int]()
    waits: dict[str, Callable[[], object]] = {
        "lock": lock.acquire,
        "event": event.wait,
        "queue": queue.get,
    }
    lock.acquire()

    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER):
            ready()
            waits[name]()

    with Killable(body) as victim:
        until_asleep(victim)
        report = victim.kill("enough")
    assert report.outcome in (KillOutcome.AT_WAIT, KillOutcome.ASYNC_EXC)
    assert isinstance(victim.raised, Killed)
    assert victim.raised.cause.reason == "enough"
    lock.release()
    queue.put(1)
    assert (lock.locked(), queue.qsize()) == (False, 1)


def test_tracing_checks_every_line_even_without_a_kill() -> None:
    told = recipes.alone(recipes.tracing_checks_every_line)
    assert told == ["1000 turns of a loop, without a kill, checks: 2000"]


def test_a_desist_thread_that_is_not_killed_is_not_traced() -> None:
    seen: list[object] = []
    thread = KThread(target=lambda: seen.append(sys.gettrace()))
    tracer = sys.gettrace()
    thread.start()
    thread.join()
    assert seen == [tracer]
    assert not thread.killed


def test_kthread_knows_that_it_was_killed_and_says_how() -> None:
    def body(ready: Callable[[], None]) -> None:
        ready()
        while True:
            pass

    victim = Killable(body)
    with victim:
        report = victim.kill(policy=desist.StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER))
    assert victim.killed
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert victim.kill().outcome is KillOutcome.ALREADY_DONE
    with pytest.raises(RuntimeError, match="start"):
        KThread().kill()


# --- the target of a kill -------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="elsewhere an id may be short")
def test_a_thread_id_that_is_cut_to_an_int_finds_no_thread() -> None:
    assert recipes.alone(recipes.a_thread_id_is_wider_than_an_int) == [
        "found by: number 0",
        "found by: False 0",
        "found by: True 1",
        "found by: True 1",
    ]
