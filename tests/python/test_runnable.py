"""Work that a call would not run: refused where it is handed in, or a failure (I43)."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import gc
import sys
import threading
import types
import warnings
from contextlib import contextmanager, suppress
from functools import cache, partial, partialmethod, wraps
from typing import TYPE_CHECKING, Any

import pytest

import desist
import process_handlers
from desist import RetryPolicy, WorkerPool, compat
from desist.engines import EngineQueue
from desist.testing import run, sweep_cancels, sweep_kills
from support import NEVER
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from desist import Lease

ONCE = RetryPolicy(max_attempts=1, backoff=0)
TWICE = RetryPolicy(max_attempts=2, backoff=0)


def ran() -> None:
    pytest.fail("the code ran")


async def coroutine(*_: object) -> None:
    ran()


def unawaited(*_: object) -> Any:
    return coroutine()


def generator(*_: object) -> Iterator[None]:
    ran()
    yield


async def asynchronous(*_: object) -> AsyncIterator[None]:
    ran()
    yield


@types.coroutine
def of_types(*_: object) -> Iterator[None]:
    ran()
    yield


class Methods:
    async def method(self, *_: object) -> None:
        ran()

    @classmethod
    def of_class(cls, *_: object) -> Iterator[None]:
        ran()
        yield

    @staticmethod
    async def static(*_: object) -> None:
        ran()

    part = partialmethod(method, 1)


class Asynchronous:
    async def __call__(self, *_: object) -> None:
        ran()


class Outer:
    """Its call leads to a callable object."""

    __call__ = Asynchronous()


class Partial(partial[Any]):
    pass


UNRUN: dict[str, tuple[Callable[..., Any], str]] = {
    "coroutine function": (coroutine, "coroutine"),
    "generator function": (generator, "generator"),
    "asynchronous generator function": (asynchronous, "asynchronous generator"),
    "types.coroutine": (of_types, "coroutine"),
    "bound method": (Methods().method, "coroutine"),
    "class method": (Methods.of_class, "generator"),
    "static method": (Methods.static, "coroutine"),
    "partial method": (Methods().part, "coroutine"),
    "partial": (partial(coroutine, 1), "coroutine"),
    "partial of partial": (partial(partial(generator), 1), "generator"),
    "partial of a method": (partial(Methods().method), "coroutine"),
    "subclass of partial": (Partial(asynchronous), "asynchronous generator"),
    "callable object": (Asynchronous(), "coroutine"),
    "callable object of a callable object": (Outer(), "coroutine"),
    "partial of a callable object": (partial(Asynchronous()), "coroutine"),
    "cached function": (cache(coroutine), "coroutine"),
    "function wrapped by itself": (wraps(coroutine)(coroutine), "coroutine"),
    "method of a function": (types.MethodType(coroutine, 1), "coroutine"),
}


def compatible(function: Callable[..., Any]) -> None:
    compat.StoppableThread(target=function)


def in_group(function: Callable[..., Any]) -> None:
    with desist.TaskGroup() as group:
        try:
            group.start_soon(function)
        except TypeError as refused:
            error = refused
        else:
            pytest.fail("it was not refused")
    raise error


def in_executor(function: Callable[..., Any]) -> None:
    with desist.ThreadPoolExecutor(1) as executor:
        executor.submit(function)


def mapped(function: Callable[..., Any]) -> None:
    with desist.ThreadPoolExecutor(1) as executor:
        list(executor.map(function, [1]))


def thread_of_subclass(function: Callable[..., Any]) -> None:
    class Subclass(desist.Thread):
        pass

    Subclass.run = function  # type: ignore[method-assign]
    Subclass()


def waits_for(function: Callable[..., Any]) -> None:
    condition = desist.Condition()
    with condition:
        condition.wait_for(function, 0)


ENTRIES: dict[str, Callable[[Callable[..., Any]], object]] = {
    "WorkerPool": WorkerPool,
    "WorkerPool, in processes": lambda function: WorkerPool(function, isolation="process"),
    "on_event": lambda function: WorkerPool(print, on_event=function),
    "submit": in_executor,
    "map": mapped,
    "initializer": lambda function: desist.ThreadPoolExecutor(initializer=function),
    "start_soon": in_group,
    "race": lambda function: desist.race(pytest.fail, function),
    "Thread": lambda function: desist.Thread(target=function),
    "run() of a Thread": thread_of_subclass,
    "Timer": lambda function: desist.Timer(0, function),
    "compat.Thread": lambda function: compat.Thread(target=function),
    "compat.KThread": lambda function: compat.KThread(target=function),
    "compat.StoppableThread": compatible,
    "compat.func_timeout": partial(compat.func_timeout, NEVER),
    "compat.func_set_timeout": compat.func_set_timeout(NEVER),
    "compat.threading_timeoutable": compat.threading_timeoutable(),
    "compat.timeout": compat.timeout(NEVER),
    "deadline": desist.deadline(NEVER),
    "interruptible": lambda function: desist.interruptible(function, unblock=print),
    "unblock": lambda function: desist.interruptible(print, unblock=function),
    "on_cancel": desist.CancelSource().token.on_cancel,
    "add_done_callback": desist.Future[Any]().add_done_callback,
    "repair": desist.Lock().repair,
    "rollback": lambda function: desist.Guarded(1, rollback=function),
    "action of a Barrier": lambda function: desist.Barrier(1, function),
    "wait_for": waits_for,
    "testing.run": run,
    "sweep_kills": sweep_kills,
    "check of sweep_kills": lambda function: sweep_kills(print, function),
    "setup of sweep_cancels": lambda function: sweep_cancels(print, setup=function),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("unrun", ["coroutine function", "callable object", "generator function"])
def test_i43_work_that_its_call_would_not_run_is_refused_everywhere(entry: str, unrun: str) -> None:
    function, kind = UNRUN[unrun]
    before = threading.active_count()
    with pytest.raises(TypeError, match=f"is an? {kind} function, whose call returns before"):
        ENTRIES[entry](function)
    assert threading.active_count() <= before


@pytest.mark.parametrize("entry", ENTRIES)
def test_i43_an_object_that_cannot_be_called_is_refused_everywhere(entry: str) -> None:
    with pytest.raises(TypeError, match=r"must be (callable, not object|a callable)"):
        ENTRIES[entry](object())  # type: ignore[arg-type]


@pytest.mark.parametrize("unrun", UNRUN)
def test_i43_the_code_of_a_call_is_found_behind_methods_partials_and_callables(unrun: str) -> None:
    function, kind = UNRUN[unrun]
    with pytest.raises(TypeError, match=f"handler must run .* is an? {kind} function"):
        WorkerPool(function)


def runs_a_coroutine(*_: object) -> str:
    async def work() -> str:
        return "done"

    return asyncio.run(work())


class Runs:
    """An object that is called, and whose class makes coroutines only otherwise."""

    def __call__(self, *_: object) -> str:
        return "done"

    async def work(self) -> None:
        ran()


@pytest.mark.parametrize(
    "function",
    [
        runs_a_coroutine,
        wraps(coroutine)(runs_a_coroutine),
        Runs(),
        partial(Runs()),
        Runs().__call__,
        cache(runs_a_coroutine),
        contextmanager(lambda *_: iter([1])),  # a call of it runs its code
        "done".format,
    ],
    ids=repr,
)
def test_i43_a_function_that_runs_its_code_is_taken(function: Callable[..., Any]) -> None:
    with WorkerPool[int, Any](function, workers=1) as pool:
        result = pool.submit(1).result()
    with desist.ThreadPoolExecutor(1) as executor:
        assert type(executor.submit(function, 1).result()) is type(result)


def test_i43_an_object_whose_call_leads_back_to_itself_is_taken_by_no_endless_search() -> None:
    class Circle:
        __call__: Any

    setattr(Circle, "__call__", Circle())  # noqa: B010 (for the type checker)
    desist.Thread(target=Circle())


# --- results --------------------------------------------------------------------------------------


class Awaitable:
    def __await__(self) -> Iterator[None]:
        ran()
        yield


RETURNED: dict[str, Callable[[], Any]] = {
    "coroutine": coroutine,
    "generator": generator,
    "asynchronous generator": asynchronous,
    "awaitable": Awaitable,
}


@contextmanager
def no_warnings() -> Iterator[None]:
    """A coroutine that is dropped without close() is reported as never awaited."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.parametrize("returned", RETURNED)
def test_i43_an_attempt_has_failed_whose_handler_returns_work_that_has_not_run(
    returned: str,
) -> None:
    events: list[str] = []
    queue: desist.LeaseQueue[int] = desist.LeaseQueue(retry=TWICE)
    with (
        no_warnings(),
        WorkerPool[int, object](
            lambda _: RETURNED[returned](),
            queue=queue,
            workers=1,
            on_event=lambda event: events.append(event.kind),
        ) as pool,
    ):
        future = pool.submit(1)
        with pytest.raises(TypeError, match=f"returned an? {returned}, .*has not run to its end"):
            future.result()
    assert queue.counts()["done"] == 0
    assert queue.counts()["dead"] == 1
    attempt = ["leased", "started", "failed"]
    assert events == ["submitted", *attempt, "requeued", *attempt, "dead"]


def test_i43_a_handler_in_a_process_that_returns_a_coroutine_has_failed() -> None:
    queue: desist.LeaseQueue[object] = desist.LeaseQueue(retry=ONCE)
    with WorkerPool(
        process_handlers.coroutine, queue=queue, workers=1, isolation="process"
    ) as pool:
        future = pool.submit(1)
        with pytest.raises(TypeError, match="returned a coroutine"):
            future.result()
    assert queue.counts()["dead"] == 1


def test_i43_a_coroutine_and_a_generator_that_have_run_to_their_end_are_results() -> None:
    def handler(_: Lease[int]) -> Any:
        async def work() -> None:
            pass

        ended = work()
        asyncio.run(ended)
        return ended

    def exhausted(_: Lease[int]) -> Any:
        numbers = (number for number in [1])
        assert list(numbers) == [1]
        return numbers

    for function in (handler, exhausted):
        with WorkerPool[int, Any](function, workers=1) as pool:
            pool.submit(1).result()
        assert pool.queue.counts()["done"] == 1


def test_i43_the_code_of_a_coroutine_that_is_closed_can_be_killed() -> None:
    closing = threading.Event()

    async def suspended() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closing.set()
            desist.sleep_forever()

    def handler(lease: Lease[int]) -> Any:
        if lease.attempt > 1:
            return None
        work = suspended()
        work.send(None)
        return work

    with WorkerPool[int, Any](handler, workers=1) as pool:
        future = pool.submit(1)
        assert closing.wait(NEVER)
        report = pool.workers[0].kill()
        assert report.requeued == [future.item_id]
        assert future.result() is None


def in_an_executor(function: Callable[[], Any]) -> Any:
    with desist.ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def test_i43_a_coroutine_is_no_result_of_an_executor() -> None:
    with no_warnings(), pytest.raises(TypeError, match="returned a coroutine, coroutine, whose"):
        in_an_executor(unawaited)


def test_i43_a_coroutine_is_no_result_of_a_task() -> None:
    def work() -> Any:
        return coroutine()

    tasks: list[Any] = []
    with no_warnings(), suppress(Exception), desist.TaskGroup() as group:
        tasks.append(group.start_soon(work))
    assert "returned a coroutine" in str(tasks[0].exception())


@pytest.mark.parametrize("returned", ["generator", "asynchronous generator", "awaitable"])
def test_a_generator_is_handed_on_by_an_executor_as_any_result(returned: str) -> None:
    made = RETURNED[returned]()
    assert in_an_executor(lambda: made) is made
    with desist.TaskGroup() as group:
        assert group.start_soon(lambda: made).result() is made


@pytest.mark.parametrize("returned", RETURNED)
def test_i43_a_thread_whose_target_returns_work_that_has_not_run_has_failed(
    returned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: failures.append(args.exc_value))

    def target() -> Any:
        return RETURNED[returned]()

    for make in (partial(desist.Thread, target=target), partial(desist.Timer, 0, target)):
        with no_warnings():
            thread = make()
            thread.start()
            thread.join()
        assert isinstance(failures.pop(), TypeError)
        assert thread.state is desist.TaskState.FAILED


def test_i43_an_initializer_that_returns_a_coroutine_breaks_its_executor() -> None:
    with desist.ThreadPoolExecutor(1, initializer=unawaited) as executor:
        future = executor.submit(print)
        with pytest.raises(concurrent.futures.thread.BrokenThreadPool, match="initializer"):
            future.result(NEVER)


def test_i43_a_lock_stays_poisoned_whose_repair_returns_a_coroutine() -> None:
    lock = desist.Lock()
    with pytest.raises(TypeError, match="returned a coroutine"):
        lock.repair(unawaited)
    assert not lock.locked()


def test_i43_callbacks_that_return_a_coroutine_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    source = desist.CancelSource()
    source.token.on_cancel(unawaited)
    source.cancel()
    assert isinstance(seen.pop(), TypeError)


@pytest.mark.parametrize("method", ["put", "lease", "ack", "nack", "extend", "tend"])
def test_i43_an_engine_with_a_coroutine_for_an_operation_is_refused(method: str) -> None:
    engine = DictEngine()
    monkey: Any = engine
    setattr(monkey, method, coroutine)
    with pytest.raises(TypeError, match=rf"DictEngine\.{method}\(\) must run"):
        EngineQueue(engine)


def test_a_thread_is_named_after_its_target() -> None:
    def target() -> None:
        names.append(threading.current_thread().name)

    names: list[str] = []
    thread = desist.Thread(target=target)
    thread.start()
    thread.join()
    assert names == [thread.name]
    assert "target" in thread.name
