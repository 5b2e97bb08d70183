"""Every result handle has one protocol, and each of its parts means the same for all."""

from __future__ import annotations

import concurrent.futures
import inspect
import math
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    CancelToken,
    Future,
    ItemFuture,
    Killed,
    KillOutcome,
    Task,
    TaskAborted,
    TaskCancelled,
    TaskFuture,
    TaskGroup,
    TaskState,
    ThreadPoolExecutor,
    WorkerPool,
    testing,
)
from desist._handle import Handle, KillableHandle
from support import AT_WAIT, NEVER, ends_with_a_cancel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desist import KillReport


class Side:
    """Where code runs whose result is a handle: one piece of it at a time."""

    def __init__(self, submit: Callable[[Callable[[], Any]], Any]) -> None:
        self.submit = submit

    def running(self, fn: Callable[[], object] = desist.sleep_forever) -> KillableHandle[Any]:
        """Give the handle of code that has begun."""
        begun = threading.Event()

        def body() -> object:
            begun.set()
            return fn()

        handle: KillableHandle[Any] = self.submit(body)
        assert begun.wait(NEVER)
        return handle


@contextmanager
def task() -> Iterator[Side]:
    with TaskGroup(on_error="continue", max_threads=1) as group:
        try:
            yield Side(group.start_soon)
        finally:
            group.cancel()
            group._errors.clear()  # of the test


@contextmanager
def task_future() -> Iterator[Side]:
    with ThreadPoolExecutor(1) as executor:
        yield Side(executor.submit)


@contextmanager
def item_future() -> Iterator[Side]:
    queue: desist.LeaseQueue[Any] = desist.LeaseQueue(retry=desist.RetryPolicy(max_attempts=1))
    pool: WorkerPool[Any, Any] = WorkerPool(lambda lease: lease.item(), workers=1, queue=queue)
    try:
        yield Side(pool.submit)
    finally:
        pool.stop()


SIDES = pytest.mark.parametrize("side", [task, task_future, item_future])
CLASSES = pytest.mark.parametrize("handle", [Future, Task, TaskFuture, ItemFuture])


def failure_of(handle: Handle[Any]) -> BaseException | None:
    """Return the result of exception(), or its exception for code that has not begun."""
    try:
        return handle.exception(NEVER)
    except TaskCancelled as cancelled:
        return cancelled


def resolved(result: object) -> object:
    """Give the result of a future, or what is none."""
    return result.result(NEVER) if isinstance(result, Future) else result


def state_of(handle: Handle[Any]) -> TaskState:
    """Give its state, which a type checker takes for one that does not change."""
    return handle.state


# --- the shape ------------------------------------------------------------------------------------


def members_of(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


@CLASSES
def test_a_handle_has_all_that_the_protocol_has(handle: type) -> None:
    protocols = [Handle] if handle is Future else [Handle, KillableHandle]
    for protocol in protocols:
        for name in members_of(protocol):
            own, declared = inspect.getattr_static(handle, name), vars(protocol)[name]
            assert isinstance(own, property) == isinstance(declared, property), name
            if isinstance(own, property):
                continue
            wanted = inspect.signature(declared).parameters
            given = inspect.signature(own).parameters
            for parameter in wanted.values():
                found = given[parameter.name]
                assert (found.kind, found.default) == (parameter.kind, parameter.default), name


def test_the_types_of_the_handles_are_those_of_the_protocol() -> None:
    # A type checker compares them; calls are all that this needs at run time.
    def use(handle: KillableHandle[int], future: Handle[int]) -> None:
        del handle, future

    future: Future[int] = Future()
    with ThreadPoolExecutor(1) as executor, TaskGroup() as group:
        task_future: TaskFuture[int] = executor.submit(int)
        of_group: Task[int] = group.start_soon(int)
        item: ItemFuture[int] = ItemFuture()
        for handle in (task_future, of_group, item):
            use(handle, future)


# --- what it means --------------------------------------------------------------------------------


@SIDES
def test_a_result_is_there_when_it_is_done(side: Any) -> None:
    with side() as here:
        handle = here.submit(lambda: 7)
        assert handle.result(NEVER) == 7
        assert handle.done()
        assert handle.exception() is None
        assert state_of(handle) is TaskState.DONE
        assert not handle.cancel("too late")
        assert handle.result() == 7


@SIDES
def test_a_failure_is_raised_and_returned(side: Any) -> None:
    with side() as here:
        handle = here.submit(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            handle.result(NEVER)
        assert isinstance(handle.exception(), ZeroDivisionError)
        assert state_of(handle) is TaskState.FAILED
        assert handle.done()


@SIDES
def test_code_that_runs_is_not_done(side: Any) -> None:
    with side() as here:
        handle = here.running()
        assert state_of(handle) is TaskState.RUNNING
        assert isinstance(handle.token, CancelToken)
        assert not handle.done()
        assert not handle.token.cancelled
        for wait in (handle.result, handle.exception):
            with pytest.raises(concurrent.futures.TimeoutError):
                wait(0)
            with pytest.raises(TimeoutError):
                wait(timeout=-1)
            ends_with_a_cancel(wait)
        handle.cancel()


@SIDES
def test_a_cancel_of_code_that_has_begun_returns_false_and_is_seen_by_the_code(side: Any) -> None:
    cleaned_up = threading.Event()

    def body() -> None:
        try:
            desist.sleep_forever()
        finally:
            with desist.cleanup():
                cleaned_up.wait(NEVER)

    with side() as here:
        handle = here.running(body)
        assert not handle.cancel("enough")
        assert state_of(handle) is TaskState.CANCELLING
        assert handle.token.cancelled
        assert handle.token.cause.reason == "enough"
        assert not handle.done()
        cleaned_up.set()
        failure = failure_of(handle)
        assert isinstance(failure, TaskCancelled)
        assert failure.cause.reason == "enough"
        assert state_of(handle) is TaskState.CANCELLED
        with pytest.raises(TaskCancelled):
            handle.result()


@SIDES
def test_a_cancel_of_code_that_has_not_begun_returns_true(side: Any) -> None:
    with side() as here:
        first, waiting = here.running(), here.submit(lambda: 1 / 0)
        assert state_of(waiting) is TaskState.PENDING
        assert waiting.cancel("unwanted")
        assert waiting.done()
        assert state_of(waiting) is TaskState.CANCELLED
        assert waiting.token.cancelled
        failure = failure_of(waiting)
        assert isinstance(failure, TaskCancelled)
        assert failure.cause.reason == "unwanted"
        first.cancel()


def hold_on() -> None:
    """Sleep in a shield, so that a cancel does not end it."""
    with desist.shield(math.inf):
        desist.sleep_forever()


@SIDES
@pytest.mark.parametrize("soon", [False, True])
def test_a_kill_ends_the_code_and_says_how(side: Any, soon: bool) -> None:
    with side() as here:
        handle = here.running(hold_on)
        report: KillReport = (
            handle.kill_soon("stuck", policy=AT_WAIT).result(NEVER)
            if soon
            else handle.kill("stuck", policy=AT_WAIT)
        )
        assert report.outcome is KillOutcome.AT_WAIT
        assert [rung.rung for rung in report.rungs] == [KillOutcome.AT_WAIT]
        assert handle.done()
        assert handle.token.cancelled
        failure = failure_of(handle)
        assert isinstance(failure, (TaskAborted, TaskCancelled))
        assert failure.cause.reason == "stuck"
        # An item is cancelled, so that it is not worked on again; code is killed.
        state = TaskState.CANCELLED if isinstance(handle, ItemFuture) else TaskState.KILLED
        assert state_of(handle) is state
        assert handle.kill().outcome is KillOutcome.ALREADY_DONE
        assert handle.kill_soon().result(NEVER).rungs == []


@SIDES
def test_a_kill_of_code_that_has_not_begun_cancels_it(side: Any) -> None:
    with side() as here:
        first, waiting = here.running(), here.submit(lambda: 1 / 0)
        assert waiting.kill_soon("unwanted").result(NEVER).outcome is KillOutcome.ALREADY_DONE
        assert state_of(waiting) is TaskState.CANCELLED
        first.cancel()


@SIDES
@pytest.mark.parametrize("soon", [False, True])
def test_code_cannot_kill_itself(side: Any, soon: bool) -> None:
    box: list[KillableHandle[Any]] = []
    told = threading.Event()

    def body() -> None:
        told.wait()
        kill = box[0].kill_soon if soon else box[0].kill
        # An item is cancelled first, so that a wait without the shield would raise.
        with desist.shield(NEVER), pytest.raises(RuntimeError, match="kill itself"):
            resolved(kill())

    with side() as here:
        box.append(here.running(body))
        told.set()
        failure = failure_of(box[0])
        assert failure is None


@SIDES
def test_a_handle_can_be_waited_for(side: Any) -> None:
    with side() as here:
        first, other = here.running(), here.submit(lambda: None)
        first.cancel()
        never: Future[int] = Future()
        assert desist.wait_any(first, never) == (0, first)
        assert other.result(NEVER) is None


# --- a future without code ------------------------------------------------------------------------


def test_a_plain_future_has_the_states_of_its_work() -> None:
    future: Future[int] = Future()
    assert state_of(future) is TaskState.PENDING
    future.set_running_or_notify_cancel()
    assert state_of(future) is TaskState.RUNNING
    assert not future.cancel("enough")
    assert state_of(future) is TaskState.CANCELLING
    assert future.token.cancelled
    assert future.token.cause is not None
    assert future.token.cause.reason == "enough"
    future.set_result(7)
    assert state_of(future) is TaskState.DONE
    failed: Future[int] = Future()
    failed.set_exception(KeyError())
    assert state_of(failed) is TaskState.FAILED
    assert not failed.token.cancelled


def test_a_plain_future_that_was_cancelled_says_why() -> None:
    future: Future[int] = Future()
    token = future.token
    assert future.cancel("unwanted")
    assert token.cancelled
    assert state_of(future) is TaskState.CANCELLED
    for wait in (future.result, future.exception):
        with pytest.raises(TaskCancelled, match="unwanted"):
            wait()


@CLASSES
def test_a_handle_that_is_a_future_is_one_of_concurrent_futures(handle: type) -> None:
    assert issubclass(handle, concurrent.futures.Future) == (handle is not Task)


def test_the_futures_of_an_executor_keep_the_rules_of_concurrent_futures() -> None:
    with ThreadPoolExecutor(1) as executor:
        begun = threading.Event()

        def body() -> int:
            begun.set()
            desist.sleep(NEVER)
            return 1

        running, waiting = executor.submit(body), executor.submit(int)
        assert begun.wait(NEVER)
        called: list[object] = []
        waiting.add_done_callback(called.append)
        assert (running.running(), waiting.running()) == (True, False)
        assert waiting.cancel()
        assert waiting.cancelled()
        assert called == [waiting]
        assert not running.cancel()
        done, rest = concurrent.futures.wait([running, waiting], timeout=NEVER)
        assert (done, rest) == ({running, waiting}, set())
        assert not running.cancelled()  # it has begun
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()


# --- kill_soon ------------------------------------------------------------------------------------


def test_kill_soon_returns_before_the_thread_has_ended() -> None:
    go_on = threading.Event()

    def body() -> None:
        with desist.cleanup():
            begun.set()
            go_on.wait()

    begun = threading.Event()
    thread = desist.Thread(target=body)
    thread.start()
    assert begun.wait(NEVER)
    future = thread.kill_soon("enough", policy=AT_WAIT)
    assert thread.token.cancelled  # this is done when the call returns
    cause = thread.token.cause
    assert cause is not None
    assert (cause.reason, cause.by_thread) == ("enough", threading.current_thread().name)
    assert state_of(future) is TaskState.RUNNING
    assert not future.cancel()  # a kill that has begun goes on
    assert not future.done()
    go_on.set()
    assert future.result(NEVER).outcome in (KillOutcome.COOPERATIVE, KillOutcome.AT_WAIT)


def test_the_future_of_kill_soon_raises_the_errors_of_kill() -> None:
    thread = desist.Thread(target=print)
    future = thread.kill_soon()
    assert future.done()
    with pytest.raises(RuntimeError, match="start it first"):
        future.result()


@pytest.mark.parametrize("stop", ["cancel", "kill"])
def test_i23_a_kill_goes_on_when_the_caller_of_kill_soon_is_stopped_itself(stop: str) -> None:
    futures: list[Future[KillReport]] = []
    waits = threading.Event()

    def kill_and_wait() -> None:
        victim = desist.Thread(target=hold_on, daemon=True)
        victim.start()
        futures.append(victim.kill_soon(policy=AT_WAIT))
        waits.set()
        desist.sleep_forever()

    with testing.no_leaks():
        caller = desist.Thread(target=kill_and_wait)
        caller.start()
        assert waits.wait(NEVER)
        if stop == "cancel":
            caller.cancel()
        else:
            caller.kill(policy=AT_WAIT)
        caller.join()
        [future] = futures
        assert future.result(NEVER).outcome in (KillOutcome.AT_WAIT, KillOutcome.COOPERATIVE)
        names = {thread.name for thread in threading.enumerate()}
        desist.sleep(0)
        while "desist-kill" in names:  # it is on its last few steps
            names = {thread.name for thread in threading.enumerate()}


def test_kill_soon_works_in_simulated_time() -> None:
    def run() -> None:
        thread = desist.Thread(target=hold_on)
        thread.start()
        desist.sleep(1)
        future = thread.kill_soon(policy=AT_WAIT)
        assert future.result().outcome is KillOutcome.AT_WAIT

    testing.run(run)


def test_i23_a_sweep_of_kills_over_kill_soon_leaves_no_kill_unfinished() -> None:
    class Started:
        def __init__(self) -> None:
            self.victim = desist.Thread(target=hold_on, daemon=True)
            self.victim.start()
            self.futures: list[Future[KillReport]] = []

        def use(self) -> None:
            self.futures.append(self.victim.kill_soon(policy=AT_WAIT))

        def check(self) -> None:
            for future in self.futures:
                future.result(NEVER)
            if not self.victim.token.cancelled:
                self.victim.kill(policy=AT_WAIT)
            # Else the kill had begun, and a thread of its own goes on with it.
            self.victim.join(NEVER)
            assert not self.victim.is_alive()

    report = testing.sweep_kills(Started.use, Started.check, setup=Started)
    assert report.points > 10


# --- reports --------------------------------------------------------------------------------------


def test_a_report_has_a_record_for_each_rung() -> None:
    def swallow() -> None:
        with desist.shield(math.inf), suppress(Killed):
            desist.sleep_forever()
        desist.sleep_forever()

    thread = desist.Thread(target=swallow)
    thread.start()
    policy = desist.StopPolicy(cooperative=0.01, at_wait=0.05, async_exc=NEVER, trace=None)
    report = thread.kill(policy=policy)
    first, second = report.rungs[:2]
    assert (first.rung, second.rung) == (KillOutcome.COOPERATIVE, KillOutcome.AT_WAIT)
    assert (first.limit, second.limit) == (0.01, 0.05)
    assert first.attempts == 1
    assert second.attempts >= 1
    assert first.seconds >= 0.01
    assert sum(rung.seconds for rung in report.rungs) <= report.elapsed
    assert repr(first).startswith("<RungReport KillOutcome.COOPERATIVE: 1 attempt in 0.01")
    assert first == report.rungs[0]
    assert first != second
