"""I37. Each child prints its observations, and ends through os._exit()."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    CancelSource,
    KillOutcome,
    LeaseQueue,
    Lock,
    OwnerLost,
    TaskAborted,
    TaskGroup,
    TaskState,
    ThreadPoolExecutor,
    WorkerPool,
    _core,
)
from support import FORCE, INSIST, NEVER, Victim, drained, fork, held, in_child, on_deadline, spin

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def test_tokens_and_scopes_work_in_the_child() -> None:
    source = CancelSource()

    def child() -> object:
        assert source.cancel("here")
        with desist.move_on_after(0.01) as scope:
            desist.sleep_forever()
        return source.token.cause, scope.cancelled_caught

    assert in_child(child).endswith("here>, True)")
    assert not source.token.cancelled


def test_a_deadline_of_the_parent_still_comes_in_the_child() -> None:
    # The callback thread has been started by now, and waits for more.
    before = threading.Event()
    early = CancelSource(timeout=0.05)
    early.token.on_cancel(lambda _: before.set())
    assert before.wait(NEVER)
    assert not desist._core.Latch().wait(0.05)
    # Long enough for the fork to come first: a callback that runs during the fork belongs to the
    # parent.
    source = CancelSource(timeout=0.5)
    callback = threading.Event()
    source.token.on_cancel(lambda _: callback.set())

    def child() -> object:
        assert callback.wait(NEVER)
        assert source.token.cancelled
        return CancelSource(timeout=0.01).token.wait(NEVER)

    assert in_child(child) == "True"
    assert callback.wait(NEVER)


def test_a_fork_inside_a_scope_leaves_both_inside() -> None:
    with desist.move_on_after(NEVER) as scope:

        def child() -> object:
            before = desist.current_effective_deadline() == scope.deadline
            scope.cancel()
            try:
                desist.checkpoint()
            except desist.Cancelled:
                return before
            return "not cancelled"

        assert in_child(child) == "True"
        desist.checkpoint()


def test_a_lock_of_another_thread_is_unavailable_in_the_child_at_once() -> None:
    lock = Lock()
    with held(lock):
        answer = in_child(lock.acquire)
        assert answer.startswith("OwnerLost: a thread of the parent process")
        assert lock.locked()
    with lock:
        pass


def test_a_waiter_of_a_lock_does_not_get_it_in_the_child() -> None:
    lock = Lock()

    def wait(ready: Callable[[], None]) -> None:
        ready()
        with lock:
            pass

    lock.acquire()
    with Victim(wait):

        def child() -> object:
            lock.release()
            try:
                return lock.acquire(timeout=0)
            except OwnerLost:
                return "lost"

        # The lock may have been handed to a thread that the child does not have; it must not hang.
        assert in_child(child) in ("True", "False", "lost")
        lock.release()


def test_a_lock_that_the_forking_thread_holds_is_held_in_the_child() -> None:
    lock = Lock()
    with lock:

        def child() -> object:
            again = lock.acquire(timeout=0)
            lock.release()
            return again, lock.acquire(timeout=0)

        assert in_child(child) == "(False, True)"
        assert lock.locked()


def test_a_fork_inside_a_task_leaves_the_task_running_in_the_child() -> None:
    lock, answers = Lock(), list[str]()

    def child() -> object:
        lock.release()
        with lock, desist.move_on_after(0):
            desist.checkpoint()
        return thread.state, lock.locked()

    def body() -> None:
        lock.acquire()
        answers.append(in_child(child))

    thread = desist.Thread(target=body)
    thread.start()
    thread.join()
    assert answers == ["(<TaskState.RUNNING: 'running'>, False)"] or "RUNNING" in answers[0]
    assert not lock.locked()


def test_a_queue_of_the_parent_is_refused_in_the_child() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    queue.put(1)
    uses: list[Callable[[], object]] = [
        lambda: queue.put(1),
        lambda: queue.lease(0),
        lambda: queue.retry(1),
        lambda: drained(queue),
    ]
    for use in uses:
        assert in_child(use) == (
            "RuntimeError: this queue and its items belong to the parent process; "
            "make a new queue after a fork"
        )
    assert queue.counts()["ready"] == 1


def test_a_pool_of_the_parent_is_refused_in_the_child_and_a_new_one_works() -> None:
    def child() -> object:
        pool.stop()  # the parent's workers do not exist in the child
        with WorkerPool[int, int](lambda lease: lease.item * 2) as new:
            return new.submit(1).result(NEVER)

    with WorkerPool[int, int](lambda lease: lease.item) as pool:
        uses: list[Callable[[], object]] = [
            lambda: pool.submit(1),
            pool.workers[0].kill,
            lambda: pool.cancel_item(1),
            pool.drain,
        ]
        for use in uses:
            assert in_child(use).startswith("RuntimeError: this ")
        assert in_child(child) == "2"
        assert pool.submit(1).result(NEVER) == 1


def test_i37_a_callback_that_runs_in_the_parent_is_not_waited_for_in_the_child() -> None:
    called, go_on = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        called.set()
        go_on.wait()

    _source, registration = on_deadline(callback)
    with registration:
        called.wait()
        answer = in_child(registration.close)
        go_on.set()
    assert answer == "True"


def test_threads_can_be_started_and_killed_in_the_child() -> None:
    def child() -> object:
        with Victim(spin) as victim:
            return victim.kill(policy=FORCE).outcome

    assert in_child(child) == "KillOutcome.ASYNC_EXC"


def test_a_thread_of_the_parent_has_ended_in_the_child() -> None:
    def child() -> object:
        report = victim.kill(policy=INSIST)
        victim.join()
        return report.outcome, victim.state, victim.is_alive()

    with Victim(spin) as victim:
        answer = in_child(child)
        assert victim.state is TaskState.RUNNING
        victim.kill(policy=INSIST)
    assert answer == str((KillOutcome.ALREADY_DONE, TaskState.ABANDONED, False))


def test_i37_work_of_the_parent_has_a_cause_of_the_kind_forked_in_the_child() -> None:
    begun = threading.Semaphore(0)

    def wait(*_: object) -> None:
        begun.release()
        desist.sleep_forever()

    def ends(work: Any, failure: BaseException | None) -> tuple[object, ...]:
        assert isinstance(failure, TaskAborted)
        return work.state.name, failure.outcome.name, failure.cause.kind.name

    with (
        ThreadPoolExecutor(1) as executor,
        WorkerPool[Any, Any](wait, workers=1) as pool,
        TaskGroup() as group,
    ):
        task, call, item = group.start_soon(wait), executor.submit(wait), pool.submit(1)
        for _ in range(3):
            begun.acquire()
        waiting = executor.submit(int), pool.submit(2)

        def child() -> object:
            lost: list[Any] = [task, call, item, *waiting]
            assert task.join()
            assert all(desist.wait_any(work) == (0, work) for work in lost)
            return {ends(work, work.exception(NEVER)) for work in lost}

        answer = in_child(child)
        group.cancel()
        for one in (call, item, *waiting):
            one.cancel()
    assert answer == str({("ABANDONED", "ABANDONED", "FORKED")})


@pytest.mark.parametrize("wait", ["wait", "wait_any"])
def test_i37_the_token_of_a_thread_of_the_parent_is_cancelled_in_the_child(wait: str) -> None:
    def look(token: desist.CancelToken) -> object:
        if wait == "wait":
            assert token.wait(NEVER)
        else:
            assert desist.wait_any(token) == (0, token.cause)
        assert token.cancelled
        assert token.cause is not None
        return token.cause.kind.name

    begun = threading.Semaphore(0)

    def body(*_: object) -> None:
        begun.release()
        desist.sleep_forever()

    with (
        Victim(spin_until_cancelled) as victim,
        ThreadPoolExecutor(1) as executor,
        WorkerPool[Any, Any](body, workers=1) as pool,
        TaskGroup() as group,
    ):
        task, call, item = group.start_soon(body), executor.submit(body), pool.submit(1)
        for _ in range(3):
            begun.acquire()
        tokens = [victim.token, task.token, call.token, item.token]
        assert in_child(lambda: {look(token) for token in tokens[:3]}) == "{'FORKED'}"
        assert in_child(lambda: {look(work.token) for work in (victim, task, call, item)}) == (
            "{'FORKED'}"
        )
        assert not any(token.cancelled for token in tokens)
        victim.cancel()
        group.cancel()
        for one in (call, item):
            one.cancel()


def spin_until_cancelled(ready: Callable[[], None]) -> None:
    ready()
    desist.sleep_forever()


def test_i37_a_lock_of_another_thread_has_a_cause_of_the_kind_forked_in_the_child() -> None:
    lock = Lock()

    def child() -> object:
        try:
            lock.acquire()
        except OwnerLost as lost:
            return lost.cause.kind.name
        return "acquired"

    with held(lock):
        assert in_child(child) == "FORKED"


def test_a_fork_while_others_cancel_and_wait_hangs_no_thread() -> None:
    go_on = threading.Event()

    def churn(ready: Callable[[], None]) -> None:
        ready()
        while not go_on.is_set():
            with desist.move_on_after(0.0001):
                desist.sleep_forever()
            source = CancelSource(timeout=0.0001)
            source.token.on_cancel(lambda _: None)
            CancelSource(source.token).token.wait()

    with Victim(churn), Victim(churn):
        for _ in range(20):
            assert in_child(lambda: CancelSource(timeout=0.001).token.wait(NEVER)) == "True"
        go_on.set()


FEW_OR_MANY = pytest.mark.parametrize(
    "forks", [1_000, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)


@FEW_OR_MANY
def test_i37_a_fork_never_interrupts_the_hand_over_of_callbacks(forks: int) -> None:
    """Keep the callback thread busy: it falls asleep, wakes up and calls all the time.

    In a process of its own, where forks are quick, and whose main thread has used nothing of desist
    before it forks: the child must not ask the interpreter for that thread's name."""
    script = """if True:
        import os, sys
        from desist import CancelSource
        from test_fork import hung_child

        def churn():
            sources = [CancelSource(timeout=i * 1e-5) for i in range(10)]
            for source in sources:
                source.token.on_cancel(lambda _: None)
            sources[-1].token.wait()

        print(hung_child(int(sys.argv[1]), churn, churn), flush=True)
        os._exit(0)
    """
    assert output_of(script, forks) == ("None\n", "")


@FEW_OR_MANY
@pytest.mark.skipif(not hasattr(_core, "ParentWatch"), reason="no worker processes here")
def test_i37_a_fork_never_interrupts_the_attach_of_a_thread(forks: int) -> None:
    """Make threads attach to the interpreter for the first time, and end, all the time.

    A worker process does that: each cancel of its parent is delivered by a thread of its own."""
    script = """if True:
        import os, sys, threading
        from desist import CancelSource
        from desist._core import ChildProcess, ParentWatch, Task
        from test_fork import hung_child

        reader, writer = os.pipe()
        parent, watch = ChildProcess(), ParentWatch(reader, os.getppid(), 1000.0)
        parent.connect(writer)
        source = CancelSource()
        source.cancel()
        rounds = iter(range(sys.maxsize))

        def churn():
            number, task, called = next(rounds), Task("task"), threading.Event()
            task.token.on_cancel(lambda _: called.set())
            watch.begin(number, task)
            parent.cancel(number, source.token.cause)
            called.wait()
            watch.end()

        print(hung_child(int(sys.argv[1]), churn), flush=True)
        os._exit(0)  # the watch of the parent is never released
    """
    assert output_of(script, forks) == ("None\n", "")


def output_of(script: str, forks: int) -> tuple[str, str]:
    """Run a script in a process of its own; return its output and its errors."""
    command = [sys.executable, "-W", "ignore", "-c", script, str(forks)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return ran.stdout, ran.stderr


def hung_child(forks: int, *churns: Callable[[], None]) -> int | None:
    """Fork again and again while threads run these functions; return the number of a hung child."""
    stop, timeouts = threading.Event(), _core.fork_timeouts()

    def again_and_again(churn: Callable[[], None]) -> None:
        while not stop.is_set():
            churn()

    threads = [threading.Thread(target=again_and_again, args=[churn]) for churn in churns]
    for thread in threads:
        thread.start()
    try:
        hung = next((number for number in range(forks) if not ends_when_forked()), None)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert _core.fork_timeouts() == timeouts
    return hung


def ends_when_forked() -> bool:
    """Fork a child that ends at once; False if it hangs."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        os._exit(0)
    os.close(writer)
    ended, _, _ = select.select([reader], [], [], 20)
    os.close(reader)
    if not ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return bool(ended)


def test_a_child_can_use_everything_whatever_other_threads_did_at_the_fork() -> None:
    queue: desist.Queue[int] = desist.Queue(1)
    lock, permits = desist.Lock(), desist.Semaphore(1)
    event, changed = desist.Event(), desist.Condition()
    source = CancelSource()
    stop = threading.Event()

    def busy() -> None:
        """Wait, which detaches from the interpreter, and be woken, all the time."""
        while not stop.is_set():
            with desist.move_on_after(1e-5), permits:
                queue.put(1)
            with desist.move_on_after(1e-5), lock:
                queue.get()
            with changed:
                changed.wait(1e-5)
            event.wait(1e-5)
            source.token.wait(1e-5)

    def child() -> object:
        with desist.move_on_after(0.01):
            lock.acquire(timeout=0.001)
        permits.acquire(timeout=0.001)
        with desist.move_on_after(0.001):
            queue.get()
        with desist.move_on_after(0.001):
            queue.put(2)
        event.set()
        source.cancel()
        changed.acquire(timeout=0.001)
        desist.wait_any(event, source.token)
        return event.wait(NEVER) and source.token.wait(NEVER)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        answers = {in_child(child) for _ in range(60)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # The holder of the lock may have been a thread of the parent.
    assert {answer.partition(":")[0] for answer in answers} <= {"True", "OwnerLost"}
    assert "True" in answers
