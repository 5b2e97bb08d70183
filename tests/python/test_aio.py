from __future__ import annotations

import asyncio
import contextvars
import os
import random
import selectors
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import desist
from desist import Cancelled, CancelSource, CauseKind, TaskCancelled, aio
from desist._exceptions import Unblocked
from support import LINUX, NEVER, DeafEvent, fork, held, turns, until, until_asleep, until_there_are

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from conftest import Run


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    until_there_are(before)
    assert not aio._calls._running


class Stubborn:
    """A call that begins to wait, and whose clean-up only the test ends."""

    def __init__(self) -> None:
        self.begun, self.stopped, self.go_on = threading.Event(), threading.Event(), DeafEvent()
        self.ended = False

    def __call__(self) -> str:
        self.begun.set()
        try:
            desist.sleep_forever()
        finally:
            self.stopped.set()
            self.go_on.wait()
            self.ended = True
        return "never"


def waiting() -> list[threading.Thread]:
    """Give the threads of perform()."""
    return [thread for thread in threading.enumerate() if thread.name == "desist-aio"]


async def until_waiting() -> None:
    """Wait until the thread of the only perform() is in its wait."""
    while not waiting():
        await checkpoint()
    until_asleep(waiting()[0])


class Result:
    """A task of asyncio that awaits `make()` and then, at once, something that does not end."""

    def __init__(self, make: Callable[[], Awaitable[object]]) -> None:
        self.got: list[object] = []
        self._make = make
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        self.got.append(await self._make())
        await asyncio.get_running_loop().create_future()


# --- to_thread ------------------------------------------------------------------------------------


def test_the_result_of_a_call_on_another_thread_is_returned(run: Run) -> None:
    def add(one: int, *, more: int) -> tuple[int, str]:
        return one + more, threading.current_thread().name

    async def main() -> None:
        result, name = await aio.to_thread(add, 3, more=4)
        assert result == 7
        assert name.startswith("desist-aio-")

    run(main)


def test_the_call_runs_in_a_copy_of_the_context(run: Run) -> None:
    variable = contextvars.ContextVar("variable", default=0)

    def change() -> int:
        before = variable.get()
        variable.set(2)
        return before

    async def main() -> None:
        variable.set(1)
        assert await aio.to_thread(change) == 1
        assert variable.get() == 1

    run(main)


def test_the_loop_goes_on_while_the_call_runs(run: Run) -> None:
    go_on = desist.Event()
    order: list[str] = []

    async def other() -> None:
        order.append("other")
        go_on.set()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            await aio.to_thread(go_on.wait)
            order.append("call")

    run(main)
    assert order == ["other", "call"]


@pytest.mark.parametrize(
    "error", [ValueError("x"), asyncio.CancelledError("x"), GeneratorExit("x")]
)
def test_the_exception_of_a_call_is_raised_as_it_is(run: Run, error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def main() -> None:
        with pytest.raises(type(error)) as raised:
            await aio.to_thread(fail)
        assert raised.value is error

    run(main)


def test_a_stop_iteration_becomes_a_runtime_error_as_in_every_coroutine(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await aio.to_thread(next, iter(()))

    run(main)


async def coroutine() -> None:
    """Do nothing."""


def generator() -> Iterator[None]:
    yield


@pytest.mark.parametrize("bad", [coroutine, generator, None, 7])
def test_a_function_whose_call_runs_nothing_is_refused(run: Run, bad: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="fn must"):
            await aio.to_thread(bad)

    run(main)


def test_a_call_that_returns_a_coroutine_has_failed(run: Run) -> None:
    def make() -> object:
        return coroutine()

    async def main() -> None:
        with pytest.raises(TypeError, match="returned a coroutine"):
            await aio.to_thread(make)

    run(main)


def test_a_cancelled_task_ends_when_its_call_has_ended_and_no_sooner(run: Run) -> None:
    call = Stubborn()
    ended: list[bool] = []

    async def task() -> None:
        try:
            await aio.to_thread(call)
        finally:
            ended.append(call.ended)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            await until(call.begun)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await until(call.stopped)
                await turns()
                assert not ended
                call.go_on.set()

    run(main)
    assert ended == [True]


def test_a_timeout_of_the_library_stops_the_call(run: Run) -> None:
    raised: list[BaseException] = []

    def sleep() -> None:
        try:
            desist.sleep_forever()
        except Cancelled as cancelled:
            raised.append(cancelled)
            raise

    async def main() -> None:
        with anyio.move_on_after(0.02) as scope:
            await aio.to_thread(sleep)
        assert scope.cancelled_caught

    run(main)
    assert isinstance(raised.pop(), Cancelled)


def test_a_deadline_around_the_event_loop_reaches_the_call(run: Run) -> None:
    def remaining() -> float:
        return desist.current_token().remaining()

    async def main() -> None:
        assert 0 < await aio.to_thread(remaining) < NEVER
        await aio.to_thread(desist.sleep_forever)

    async def begin() -> None:
        await aio.to_thread(desist.sleep, 0)

    run(begin)  # what is imported first takes its time
    with pytest.raises(desist.DeadlineExceeded), desist.fail_after(0.2):
        run(main)


@pytest.mark.parametrize("wait", [False, True])
def test_in_a_cancelled_scope_around_the_event_loop_nothing_begins(
    run: Run, wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: desist.Queue[int] = desist.Queue()

    async def main() -> None:
        scope.cancel()
        await (aio.perform(queue.put_op(1)) if wait else aio.to_thread(queue.put, 1))

    monkeypatch.setattr(threading.Thread, "start", None)
    with desist.move_on_after(NEVER) as scope:
        run(main)
    assert scope.cancelled_caught
    assert queue.empty()


def test_all_tasks_of_a_loop_in_a_cancelled_scope_are_stopped() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(aio.to_thread(desist.sleep_forever)) for _ in range(2)]
        await asyncio.wait(tasks)
        assert [type(task.exception()) for task in tasks] == [Cancelled, Cancelled]
        tasks[0].result()

    with desist.move_on_after(0.05) as scope:
        asyncio.run(main())
    assert scope.cancelled_caught


class Selector(selectors.DefaultSelector):
    """A selector whose wait is a cancellation point, once."""

    def __init__(self) -> None:
        super().__init__()
        self.raised = False

    def select(self, timeout: float | None = None) -> Any:
        if not self.raised:
            try:
                desist.wait_readable(self.fileno(), None if timeout is None else max(timeout, 0))
            except Cancelled:
                self.raised = True
                raise
            timeout = 0
        return super().select(timeout)

    if TYPE_CHECKING:

        def fileno(self) -> int: ...


@pytest.mark.skipif(not LINUX, reason="the selector needs a descriptor")
def test_a_cancellation_of_the_loop_itself_ends_the_calls_of_all_tasks() -> None:
    ended: list[str] = []

    def call() -> None:
        try:
            desist.sleep_forever()
        finally:
            ended.append("call")

    async def task() -> None:
        try:
            await aio.to_thread(call)
        except asyncio.CancelledError:
            ended.append("task")
            raise

    async def main() -> None:
        await asyncio.gather(task(), task(), asyncio.sleep(NEVER))

    loop = asyncio.SelectorEventLoop(Selector())
    with desist.move_on_after(0.1) as scope:
        try:
            loop.run_until_complete(main())
        finally:  # as asyncio.run() does
            tasks = asyncio.all_tasks(loop)
            for one in tasks:
                one.cancel()
            with desist.shield(NEVER):
                loop.run_until_complete(asyncio.wait(tasks))
                loop.close()
    assert scope.cancelled_caught
    assert sorted(ended) == ["call", "call", "task", "task"]


def test_a_cancelled_call_of_a_task_that_is_not_cancelled_is_a_failure(run: Run) -> None:
    source = CancelSource()
    source.cancel("enough")

    async def main() -> None:
        with pytest.raises(TaskCancelled) as failure:
            await aio.to_thread(source.token.check)
        assert failure.value.cause.reason == "enough"
        await checkpoint()  # the task is not cancelled

    run(main)


def test_what_the_call_raises_or_returns_after_the_cancel_is_the_cause(run: Run) -> None:
    def fail() -> None:
        try:
            begun.set()
            desist.sleep_forever()
        finally:
            raise ZeroDivisionError

    def finish() -> str:
        begun.set()
        with suppress(Cancelled):
            desist.sleep_forever()
        return "done"

    causes: list[BaseException | None] = []
    begun = threading.Event()

    async def task(call: Callable[[], object]) -> None:
        try:
            await aio.to_thread(call)
        except anyio.get_cancelled_exc_class() as cancelled:
            causes.append(cancelled.__cause__)
            raise

    async def main() -> None:
        for call in (desist.sleep_forever, fail, finish):
            begun.clear()
            async with anyio.create_task_group() as group:
                group.start_soon(task, call)
                if call is not desist.sleep_forever:
                    await until(begun)
                await turns()
                group.cancel_scope.cancel()

    run(main)
    assert [type(cause) for cause in causes] == [type(None), ZeroDivisionError, Unblocked]
    result = causes.pop()
    assert isinstance(result, Unblocked)
    assert result.result == "done"


def test_a_cancel_that_comes_with_the_result_is_raised() -> None:
    async def main() -> None:
        waiters: list[aio._Waiter] = []
        task = asyncio.create_task(aio.to_thread(Call(waiters)))
        while not (waiters and waiters[0].done()):  # noqa: ASYNC110 (the future is the task's)
            await asyncio.sleep(0)
        task.cancel("late")
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert cancelled.value.args == (("late",) if sys.version_info >= (3, 11) else ())

    class Call:
        """Tells the future that is settled when the call has ended."""

        def __init__(self, waiters: list[aio._Waiter]) -> None:
            self.waiters = waiters

        def __call__(self) -> None:
            (call,) = aio._calls._running
            wake: Any = call._wake
            self.waiters.append(wake.__self__)

    asyncio.run(main())


def test_a_call_that_is_cancelled_before_it_begins_is_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []
    start = threading.Thread.start

    def late(thread: threading.Thread) -> None:
        tasks[0].cancel()
        start(thread)

    async def main() -> None:
        tasks.append(asyncio.create_task(aio.to_thread(called.append, 1)))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    tasks: list[asyncio.Task[None]] = []
    # As a signal handler that cancels the task while it starts the thread: the request is kept
    # until the task awaits.
    monkeypatch.setattr(threading.Thread, "start", late)
    begin = aio._Call._run
    monkeypatch.setattr(aio._Call, "_run", lambda call: (call.task.token.wait(), begin(call)))
    asyncio.run(main())
    assert not called


def test_more_cancels_do_not_end_the_wait_for_the_call() -> None:
    call = Stubborn()

    async def main() -> None:
        task = asyncio.create_task(aio.to_thread(call))
        await until(call.begun)
        for number in range(3):
            assert task.cancel(str(number))
            await turns()
            assert not task.done()
        await until(call.stopped)
        call.go_on.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert cancelled.value.args == (("0",) if sys.version_info >= (3, 11) else ())
        assert call.ended

    asyncio.run(main())


def test_without_anyio_it_works_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anyio", "sniffio"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    async def main() -> None:
        assert await aio.to_thread(lambda: 7) == 7
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aio.to_thread(desist.sleep_forever), 0.02)

    asyncio.run(main())


def test_a_cancelled_scope_of_anyio_does_not_keep_the_loop_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cancels: list[object] = []
    cancel = aio._Waiter.cancel

    def count(waiter: aio._Waiter, msg: Any = None) -> bool:
        cancels.append(msg)
        return cancel(waiter, msg)

    monkeypatch.setattr(aio._Waiter, "cancel", count)
    call = Stubborn()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.01, scope.cancel)
            other = asyncio.create_task(later())
            await aio.to_thread(call)
        await other

    async def later() -> None:
        await until(call.stopped)
        await turns()
        call.go_on.set()

    anyio.run(main)
    assert len(cancels) == 1


def test_a_coroutine_that_is_closed_cancels_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "anyio")
    call = Stubborn()
    call.go_on.set()
    loop = asyncio.new_event_loop()
    awaiting = aio.to_thread(call)
    task = loop.create_task(awaiting)
    loop.run_until_complete(until(call.begun))
    loop.close()
    awaiting.close()
    call.stopped.wait()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # or asyncio complains


def test_a_kill_of_the_thread_of_the_loop_ends_its_calls() -> None:
    call = Stubborn()
    call.go_on.set()
    loop = desist.Thread(target=asyncio.run, args=(aio.to_thread(call),), daemon=True)
    loop.start()
    call.begun.wait()
    loop.cancel()
    loop.join()
    assert call.ended


def test_without_a_thread_nothing_has_begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        begins: list[Callable[[], Awaitable[object]]] = [
            lambda: aio.to_thread(int),
            lambda: aio.perform(desist.Event()),
        ]
        for begin in begins:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", fail)
                with pytest.raises(RuntimeError, match="new thread"):
                    await begin()
        await checkpoint()

    run(main)


def test_another_library_is_refused() -> None:
    sniffio = pytest.importorskip("sniffio", reason="sniffio comes with trio")

    async def main() -> None:
        reset = sniffio.current_async_library_cvar.set("curio")
        with pytest.raises(RuntimeError, match="not in curio"):
            await aio.to_thread(int)
        sniffio.current_async_library_cvar.reset(reset)

    asyncio.run(main())


def test_at_exit_a_call_that_still_runs_is_ended_and_named() -> None:
    code = """
        import asyncio, threading, time
        from desist import aio
        begun = threading.Event()
        def busy():
            begun.set()
            while True:
                pass
        threading.Thread(target=asyncio.run, args=(aio.to_thread(busy),), daemon=True).start()
        begun.wait()
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "the interpreter exits, and stops" in run.stderr
    assert "busy (KILLED)" in run.stderr


# --- perform --------------------------------------------------------------------------------------


def test_what_is_possible_at_once_is_done_at_once(run: Run) -> None:
    queue: desist.Queue[int] = desist.Queue()
    lock, source = desist.Lock(), CancelSource()
    source.cancel("enough")

    async def main() -> None:
        await aio.perform(queue.put_op(3))
        assert await aio.perform(queue.get_op()) == 3
        assert await aio.perform(lock.acquire_op())
        assert lock.locked()
        assert (await aio.perform(source.token)).reason == "enough"

    threads = threading.active_count()
    run(main)
    assert threading.active_count() == threads
    lock.release()


def test_what_is_not_possible_yet_is_awaited(run: Run) -> None:
    queue: desist.Queue[int] = desist.Queue(maxsize=1)
    semaphore, event = desist.Semaphore(0), desist.Event()
    thread = desist.Thread(target=event.wait)
    got: list[object] = []

    async def task(what: Any) -> None:
        got.append(await aio.perform(what))

    async def main() -> None:
        steps: list[tuple[Any, Callable[[], object]]] = [
            (queue.get_op(), lambda: queue.put(1)),
            (semaphore.acquire_op(), semaphore.release),
            (thread, event.set),
            (event, event.set),
        ]
        for what, make_possible in steps:
            if what is event:
                event.clear()
            async with anyio.create_task_group() as group:
                group.start_soon(task, what)
                await until_waiting()
                make_possible()
            while waiting():  # its thread has yet to end
                await checkpoint()
        queue.put(2)
        async with anyio.create_task_group() as group:
            group.start_soon(task, queue.put_op(3))
            await until_waiting()
            assert queue.get() == 2

    thread.start()
    run(main)
    assert got == [1, True, thread, True, None]
    assert queue.get() == 3


def test_a_lock_that_was_awaited_can_be_released_by_the_loop(run: Run) -> None:
    lock = desist.Lock()

    async def task() -> None:
        assert await aio.perform(lock.acquire_op())
        assert lock.locked()
        lock.release()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            with held(lock):
                group.start_soon(task)
                await until_waiting()

    run(main)
    assert not lock.locked()


def test_a_token_is_awaited_without_a_thread(run: Run) -> None:
    async def task() -> None:
        assert (await aio.perform(source.token)).kind is CauseKind.DEADLINE

    async def main() -> None:
        threads = threading.active_count()
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            await turns()
            assert threading.active_count() == threads

    called = threading.Event()
    first = CancelSource(timeout=0.001)
    first.token.on_cancel(lambda _: called.set())
    called.wait()  # desist's own thread for callbacks has begun
    source = CancelSource(timeout=0.05)
    run(main)


def test_a_cancelled_wait_for_a_token_leaves_no_callback(run: Run) -> None:
    source = CancelSource()
    other = desist.move_on_after(NEVER)

    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await aio.perform(source.token)
        assert scope.cancelled_caught
        source.cancel()
        await turns()

    with other:
        run(main)


def test_a_cancelled_scope_around_the_event_loop_ends_its_waits(run: Run) -> None:
    source, event = CancelSource(), desist.Event()
    for what in (source.token, event):

        async def main(what: Any = what) -> None:
            await aio.perform(what)

        with desist.move_on_after(0.05) as scope:
            run(main)
        assert scope.cancelled_caught


def test_an_error_of_the_operation_is_raised(run: Run) -> None:
    queue: desist.Queue[int] = desist.Queue()
    raised: list[type] = []

    async def task() -> None:
        try:
            await aio.perform(queue.get_op())
        except desist.ShutDown as shut_down:
            raised.append(type(shut_down))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            await until_waiting()
            queue.shutdown()
            group.start_soon(task)
        with pytest.raises(TypeError):
            await aio.perform(7)  # type: ignore[call-overload]

    run(main)
    assert raised == [desist.ShutDown] * 2


def test_a_cancelled_wait_has_done_nothing(run: Run) -> None:
    queue: desist.Queue[int] = desist.Queue()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.perform, queue.get_op())
            await until_waiting()
            group.cancel_scope.cancel()
        assert desist.wait_any(queue.get_op(), timeout=0) is None
        queue.put(1)

    run(main)
    assert queue.get_nowait() == 1


def test_an_item_that_comes_with_the_cancel_is_returned_and_the_next_await_is_cancelled() -> None:
    async def main() -> None:
        queue: desist.Queue[int] = desist.Queue()
        result = Result(lambda: aio.perform(queue.get_op()))
        await until_waiting()
        queue.put(7)  # it goes to the waiting thread
        result.task.cancel("late")
        with pytest.raises(asyncio.CancelledError):
            await result.task
        assert result.got == [7]
        if sys.version_info >= (3, 11):
            assert result.task.cancelling() == 1

    asyncio.run(main())


def test_an_item_that_comes_with_the_cancel_is_the_result_of_a_task_that_then_ends() -> None:
    async def main() -> None:
        queue: desist.Queue[int] = desist.Queue()
        task: asyncio.Future[int] = asyncio.ensure_future(aio.perform(queue.get_op()))
        await until_waiting()
        queue.put(7)
        task.cancel()
        assert await task == 7

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() is of 3.11")
def test_a_timeout_that_comes_with_the_item_does_not_cancel_what_follows_its_block() -> None:
    stdlib: Any = asyncio  # for a type checker it is that of 3.10

    async def main() -> None:
        async def task() -> int:
            async with stdlib.timeout(NEVER) as timeouts:
                limits.append(timeouts)
                item = await aio.perform(queue.get_op())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return item

        limits: list[Any] = []
        queue: desist.Queue[int] = desist.Queue()
        running = asyncio.create_task(task())
        await until_waiting()
        queue.put(7)
        limits[0]._on_timeout()  # as at its time
        assert await running == 7

    asyncio.run(main())


def test_in_trio_an_item_that_comes_with_the_cancel_is_returned() -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")
    queue: desist.Queue[int] = desist.Queue()
    got: list[int] = []

    async def task() -> None:
        got.append(await aio.perform(queue.get_op()))
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await until_waiting()
            queue.put(7)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert got == [7]


# --- random cancels -------------------------------------------------------------------------------


class Storm:
    """Tasks with a call or a wait each, half of which are cancelled at a random moment."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.chance = random.Random(1)
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        self.queue: desist.Queue[int] = desist.Queue()
        self.got: list[int] = []
        self.failures: list[tuple[int, int]] = []
        self.cancelled = 0

    def call(self, number: int, seconds: float) -> int:
        self.begun.add(number)
        try:
            desist.sleep(seconds)
            if number % 3 == 0:
                raise LookupError(number)
            return number
        finally:
            self.ended.add(number)

    async def one(self, number: int) -> None:
        seconds, patience = self.chance.random() * 0.04, self.chance.random() * 0.02
        with anyio.CancelScope() as scope:
            if number % 2 == 0:
                scope.deadline = anyio.current_time() + patience
            if number % 5 == 0:
                self.got.append(await aio.perform(self.queue.get_op()))
                await checkpoint()
                return
            try:
                assert await aio.to_thread(self.call, number, seconds) == number
                assert number % 3
            except LookupError as error:
                self.failures.append((number, *error.args))
            finally:
                assert number in self.ended or number not in self.begun
            assert number in self.ended
        if scope.cancelled_caught:
            self.cancelled += 1
            assert number % 2 == 0

    async def main(self) -> None:
        limit = anyio.Semaphore(50)

        async def limited(number: int) -> None:
            async with limit:
                await self.one(number)

        async with anyio.create_task_group() as group:
            for number in range(self.tasks):
                group.start_soon(limited, number)
                if number % 5 == 0:
                    group.start_soon(self.put, number)

    async def put(self, number: int) -> None:
        await anyio.sleep(self.chance.random() * 0.04)
        self.queue.put(number)

    def check(self) -> None:
        rest = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        assert sorted(self.got + rest) == [n for n in range(self.tasks) if n % 5 == 0]
        assert self.begun == self.ended
        assert all(one == other and one % 3 == 0 for one, other in self.failures)
        assert self.cancelled > self.tasks / 20


@contextmanager
def load() -> Iterator[None]:
    """Have other threads want the interpreter all the time."""
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=busy) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 20)  # or most of the time is spent waiting for a turn
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)


def test_random_cancels_lose_nothing_and_hit_no_other_task(run: Run) -> None:
    storm = Storm(60)
    run(storm.main)
    storm.check()


@pytest.mark.soak
def test_a_thousand_random_cancels_under_load(run: Run) -> None:
    cancelled = 0
    with load():
        while cancelled < 1000:
            storm = Storm(500)
            run(storm.main)
            storm.check()
            cancelled += storm.cancelled


def test_after_a_fork_a_new_loop_works() -> None:
    asyncio.run(aio.to_thread(int))
    child = fork()
    if child == 0:
        with suppress(BaseException):
            os._exit(asyncio.run(aio.to_thread(int, "7")))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
