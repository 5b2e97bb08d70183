from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import subprocess
import sys
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    Cancelled,
    KillOutcome,
    PoolExhausted,
    TaskAborted,
    TaskCancelled,
    TaskFuture,
    ThreadPoolExecutor,
    testing,
)
from support import ABANDON, FORCE, NEVER, DeafEvent, in_its_wait

if TYPE_CHECKING:
    from collections.abc import Callable


def running(
    executor: ThreadPoolExecutor, fn: Callable[[], Any] = desist.sleep_forever
) -> TaskFuture[Any]:
    """Submit a function, and return its future when it has begun."""
    begun = threading.Event()

    def body() -> Any:
        begun.set()
        return fn()

    future = executor.submit(body)
    assert begun.wait(NEVER)
    return future


def spin() -> None:
    while True:
        pass


# --- cancelling -----------------------------------------------------------------------------------


def test_a_cancel_asks_a_running_function_to_stop() -> None:
    with ThreadPoolExecutor(1) as executor:
        future = running(executor)
        assert not future.cancel()
        with pytest.raises(TaskCancelled) as raised:
            future.result(NEVER)
        assert isinstance(raised.value.__cause__, Cancelled)
        assert not future.cancelled()
        assert future.done()
        assert not future.cancel()
        assert executor.submit(int, "7").result() == 7


def test_a_cancel_carries_its_reason() -> None:
    with ThreadPoolExecutor(1) as executor:
        future = running(executor)
        assert not future.cancel("unwanted", grace=0)
        assert not future.cancel("again")
        failure = future.exception(NEVER)
        assert isinstance(failure, TaskCancelled)
        assert failure.cause.reason == "unwanted"
        assert not future.cancel("it is over")


def test_a_cancelled_function_that_has_not_begun_never_begins() -> None:
    begun: list[int] = []
    with testing.no_leaks(), ThreadPoolExecutor(1) as executor:
        first = running(executor)
        second, third = (executor.submit(begun.append, number) for number in range(2))
        assert second.cancel()
        assert second.cancel()
        assert second.cancelled()
        assert third.kill("unwanted").outcome is KillOutcome.ALREADY_DONE
        with pytest.raises(TaskCancelled, match="unwanted"):
            third.result()
        with pytest.raises(concurrent.futures.CancelledError):
            second.exception()
        first.cancel()
    assert not begun


def test_a_shutdown_may_cancel_the_functions_that_have_not_begun() -> None:
    with testing.no_leaks():
        executor = ThreadPoolExecutor(1)
        first = running(executor)
        second = executor.submit(spin)
        executor.shutdown(wait=False, cancel_futures=True)
        assert second.cancelled()
        assert first.running()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(spin)
        first.cancel()
        executor.shutdown()


def test_code_without_checkpoints_goes_on() -> None:
    end = DeafEvent()
    with ThreadPoolExecutor(1) as executor:
        future = running(executor, partial(end.wait, NEVER))
        future.cancel()
        end.set()
        assert future.result() is True


# --- asyncio --------------------------------------------------------------------------------------


def test_a_timeout_of_asyncio_stops_the_function() -> None:
    ended, stopped = threading.Event(), []

    def body() -> None:
        try:
            desist.sleep_forever()
        except Cancelled:
            stopped.append(1)
            raise
        finally:
            ended.set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        calls: list[Callable[[], Any]] = [
            lambda: asyncio.to_thread(body),
            lambda: loop.run_in_executor(None, body),
        ]
        for call in calls:
            ended.clear()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(call(), 0.02)
            assert await asyncio.to_thread(ended.wait, NEVER)

    asyncio.run(main())
    assert stopped == [1, 1]


def test_to_an_awaiting_task_a_cancelled_function_is_an_error() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            future = running(executor)
            awaited = asyncio.wrap_future(future)
            future.cancel("by other code")
            with pytest.raises(TaskCancelled, match="by other code"):
                await awaited
            assert not awaited.cancelled()
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelled()
        assert not issubclass(TaskCancelled, asyncio.CancelledError)

    asyncio.run(main())


# --- killing --------------------------------------------------------------------------------------


def test_a_kill_ends_the_function_and_not_the_thread() -> None:
    with ThreadPoolExecutor(1, policy=FORCE) as executor:
        thread = executor.submit(threading.current_thread).result()
        future: TaskFuture[Any] = executor.submit(int)
        for number in range(20):
            future = running(executor, spin)
            assert future.kill(str(number)).outcome is KillOutcome.ASYNC_EXC
            failure = future.exception()
            assert isinstance(failure, TaskAborted)
            assert failure.outcome is KillOutcome.ASYNC_EXC
            assert failure.cause.reason == str(number)
            assert executor.submit(threading.current_thread).result() is thread
        assert future.kill().outcome is KillOutcome.ALREADY_DONE


def test_i27_a_future_is_not_done_while_its_function_cleans_up() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def body() -> None:
        try:
            spin()
        finally:
            with desist.cleanup():
                inside.set()
                go_on.wait()

    with ThreadPoolExecutor(1, policy=FORCE) as executor:
        future = running(executor, body)
        killer = threading.Thread(target=future.kill)
        killer.start()
        inside.wait()
        assert future.running()
        assert not future.done()
        assert killer.is_alive()
        go_on.set()
        killer.join()
        assert future.done()


def test_a_function_cannot_kill_itself() -> None:
    box: list[TaskFuture[None]] = []

    def body() -> None:
        with pytest.raises(RuntimeError, match="kill itself"):
            box[0].kill()

    with ThreadPoolExecutor(1) as executor:
        first = running(executor)
        box.append(executor.submit(body))
        first.cancel()
        box[0].result()


def test_an_abandoned_thread_is_replaced_up_to_the_limit() -> None:
    ends = [DeafEvent() for _ in range(2)]
    executor = ThreadPoolExecutor(1, max_abandoned=1)
    for number, end in enumerate(ends):
        stuck = running(executor, partial(end.wait, NEVER))
        waiting = executor.submit(int, "7")
        assert stuck.kill(policy=ABANDON).outcome is KillOutcome.ABANDONED
        failure = stuck.exception(NEVER)
        assert isinstance(failure, TaskAborted)
        assert failure.outcome is KillOutcome.ABANDONED
        if number == 0:
            assert waiting.result(NEVER) == 7
        else:
            with pytest.raises(PoolExhausted):
                waiting.result(NEVER)
    with pytest.raises(PoolExhausted):
        executor.submit(spin)
    executor.shutdown()  # does not wait for abandoned threads
    for end in ends:
        end.set()


def test_an_executor_is_exhausted_by_one_thread_more_than_it_may_abandon() -> None:
    end = DeafEvent()
    executor = ThreadPoolExecutor(2, max_abandoned=0)
    stuck, busy = running(executor, partial(end.wait, NEVER)), running(executor)
    waiting = executor.submit(int, "7")
    assert stuck.kill(policy=ABANDON).outcome is KillOutcome.ABANDONED
    with pytest.raises(PoolExhausted, match="max_abandoned"):
        waiting.result(NEVER)
    assert busy.running()  # functions that have begun go on
    with pytest.raises(PoolExhausted):
        executor.submit(spin)
    busy.cancel()
    executor.shutdown()
    end.set()


def test_an_executor_is_not_exhausted_any_more_when_its_abandoned_threads_have_ended() -> None:
    with ThreadPoolExecutor(1, max_abandoned=0) as executor:
        for _ in range(3):
            end, threads = DeafEvent(), set(executor._threads)
            stuck = running(executor, partial(end.wait, NEVER))
            (thread,) = set(executor._threads) - threads or threads
            stuck.kill(policy=ABANDON)
            with pytest.raises(PoolExhausted, match="have not ended"):
                executor.submit(int, "7")
            end.set()
            thread.join()
            assert executor.submit(int, "7").result() == 7


def test_a_shutdown_may_end_what_runs_without_waiting_for_it() -> None:
    executor = ThreadPoolExecutor(1, policy=FORCE)
    busy, waiting = running(executor, spin), executor.submit(spin)
    executor.shutdown(wait=False, cancel_running=True)
    assert waiting.cancelled()
    assert isinstance(busy.exception(NEVER), TaskAborted)
    executor.shutdown()


def test_i35_work_that_is_submitted_while_the_block_is_left_is_ended_too() -> None:
    for _ in range(20):
        futures: list[TaskFuture[Any]] = []

        def submit(
            executor: ThreadPoolExecutor, futures: list[TaskFuture[Any]], many: threading.Event
        ) -> None:
            with contextlib.suppress(RuntimeError):  # the executor has been shut down
                while True:
                    futures.append(executor.submit(desist.sleep_forever))
                    if len(futures) == 10:
                        many.set()

        many = threading.Event()
        with contextlib.suppress(ZeroDivisionError), ThreadPoolExecutor(3) as executor:
            thread = threading.Thread(target=submit, args=(executor, futures, many))
            thread.start()
            many.wait()
            raise ZeroDivisionError
        thread.join()
        assert all(future.done() for future in futures)


# --- waiting --------------------------------------------------------------------------------------


def test_a_wait_for_a_result_can_be_cancelled() -> None:
    with ThreadPoolExecutor(1) as executor:
        future = running(executor)
        with in_its_wait(future.result) as victim:
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout=0)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.exception(timeout=-1)
        future.cancel()


def test_a_shutdown_that_is_cancelled_leaves_the_threads_to_end() -> None:
    executor = ThreadPoolExecutor(1)
    future = running(executor)
    with desist.move_on_after(0.01) as scope:
        executor.shutdown()
    assert scope.cancelled_caught
    future.cancel()
    executor.shutdown()


def test_waiters_wake_before_callbacks_run() -> None:
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        begin = threading.Event()
        future = executor.submit(begin.wait)
        future.add_done_callback(lambda _: go_on.wait(NEVER))
        begin.set()
        assert future.result(NEVER)
        go_on.set()


def test_it_uses_simulated_time() -> None:
    def body() -> list[float]:
        begin = desist.current_time()

        def nap(seconds: float) -> float:
            desist.sleep(seconds)
            return round(desist.current_time() - begin)

        with ThreadPoolExecutor(2) as executor:
            return list(executor.map(nap, [10, 20, 30]))

    assert testing.run(body) == [10, 20, 40]


def test_idle_threads_do_not_keep_a_simulation() -> None:
    def body() -> ThreadPoolExecutor:
        executor = ThreadPoolExecutor(1)
        executor.submit(int).result()
        return executor

    with pytest.raises(testing.Deadlock):
        testing.run(body)


# --- as in the standard library -------------------------------------------------------------------


@pytest.mark.parametrize("inherits", [True, False])
def test_the_context_is_that_of_the_submitting_thread_if_asked_for(inherits: bool) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    with ThreadPoolExecutor(1, inherit_context=inherits) as executor:
        executor.submit(variable.set, 5).result()
        variable.set(1)
        assert executor.submit(variable.get).result() == (1 if inherits else 5)


def test_bad_arguments_are_refused() -> None:
    bad: Any = "x"
    with pytest.raises(ValueError, match="max_workers"):
        ThreadPoolExecutor(0)
    with pytest.raises(ValueError, match="max_abandoned"):
        ThreadPoolExecutor(max_abandoned=-1)
    with pytest.raises(TypeError, match="initializer"):
        ThreadPoolExecutor(initializer=bad)
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError):
        executor.submit(bad).result()


def test_a_thread_of_the_pool_cannot_wait_for_its_end() -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="its own end"):
        executor.submit(executor.shutdown).result()


def test_a_dropped_executor_and_its_threads_are_freed() -> None:
    executor = ThreadPoolExecutor(2)
    future = executor.submit(int, "7")
    assert future.result() == 7
    threads = list(executor._threads)
    gone: list[weakref.ref[Any]] = [weakref.ref(executor), weakref.ref(future)]
    del executor, future
    gc.collect()
    for thread in threads:
        thread.join(NEVER)
        assert not thread.is_alive()
    assert [ref() for ref in gone] == [None, None]


def test_submitted_functions_run_before_the_interpreter_exits() -> None:
    code = (
        "import desist\n"
        "executor = desist.ThreadPoolExecutor(1)\n"
        "executor.submit(desist.sleep, 0.01)\n"
        "executor.submit(print, 'done')\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("done\n", "")


def test_an_abandoned_thread_does_not_keep_the_interpreter_from_its_exit() -> None:
    code = (
        "import desist, threading\n"
        "executor = desist.ThreadPoolExecutor(1)\n"
        "begun = threading.Event()\n"
        "stuck = threading.Lock()\n"
        "stuck.acquire()\n"
        "future = executor.submit(lambda: (begun.set(), stuck.acquire()))\n"
        "begun.wait()\n"
        "policy = desist.StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None)\n"
        "print(future.kill(policy=policy).outcome.name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "ABANDONED\n"


def test_futures_can_be_waited_for_in_the_ways_of_the_standard_library() -> None:
    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(int, str(number)) for number in range(4)]
        done, _ = concurrent.futures.wait(futures)
        assert done == set(futures)
        results = [future.result() for future in concurrent.futures.as_completed(futures)]
        assert sorted(results) == [0, 1, 2, 3]
        assert list(executor.map(abs, [1, -2, 3], timeout=NEVER)) == [1, 2, 3]
        assert desist.wait_any(futures[0]) == (0, futures[0])
