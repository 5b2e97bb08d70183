"""A scope is in force only on its thread, and only while its block is on that thread's stack."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler

import anyio
import anyio.to_thread
import pytest

import desist
from desist import Cancelled
from desist._core import Task, _Injector, knows_homes
from desist._sweep import _MONITORED, _watched
from support import NEVER, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

LATER_JOBS = 10_000


def numbers(*made: Any) -> Iterator[int]:
    """Yield numbers, each within the scopes."""
    with ExitStack() as stack:
        for scope in made:
            stack.enter_context(scope)
        for number in range(100):
            desist.checkpoint()
            yield number


def directly(scope: Any) -> Iterator[int]:
    """Yield numbers within a scope that a statement of the generator opens."""
    with scope:
        for number in range(100):
            desist.checkpoint()
            yield number


def expire(*scopes: Any) -> None:
    """Let the deadlines pass, of scopes that have not been left."""
    for scope in scopes:
        with suppress(desist.ScopeMisuse):
            scope.deadline = desist.current_time()


def nothing_is_cancelled() -> None:
    """Check that no scope is in force on the calling thread."""
    assert desist.current_effective_deadline() == math.inf
    assert not desist.current_token().cancelled
    desist.checkpoint()
    desist.sleep(0.000_001)
    with desist.fail_after(NEVER) as scope:
        assert desist.current_effective_deadline() == scope.deadline
        desist.checkpoint()
        assert not scope.token.cancelled


def test_i41_homes_are_known() -> None:
    assert knows_homes()


# --- generators -----------------------------------------------------------------------------------

GENERATORS = pytest.mark.parametrize("stream", [directly, numbers])


@GENERATORS
def test_i41_the_consumer_of_a_suspended_generator_is_not_cancelled(stream: Any) -> None:
    scope = desist.fail_after(NEVER)
    generator = stream(scope)
    assert next(generator) == 0
    assert desist.current_effective_deadline() == math.inf
    expire(scope)
    nothing_is_cancelled()
    with pytest.raises(TimeoutError):
        next(generator)
    nothing_is_cancelled()


@GENERATORS
def test_i41_a_wait_of_the_consumer_goes_on_when_the_generators_time_is_over(stream: Any) -> None:
    scope = desist.fail_after(0.01)
    generator = stream(scope)
    next(generator)
    desist.sleep(0.02)
    with pytest.raises(desist.DeadlineExceeded):
        next(generator)


@GENERATORS
def test_i41_a_scope_of_the_consumer_is_not_below_that_of_a_generator(stream: Any) -> None:
    scope = desist.move_on_after(NEVER)
    generator = stream(scope)
    next(generator)
    with desist.cancel_scope() as consumer:
        token = consumer.token
        scope.cancel()
        assert not token.cancelled
        desist.checkpoint()
        assert list(generator) == []
        assert scope.cancelled_caught
        desist.checkpoint()
    nothing_is_cancelled()


@GENERATORS
def test_i41_a_generator_that_runs_is_cancelled_by_its_consumers_scope(stream: Any) -> None:
    scope = desist.fail_after(NEVER)
    generator = stream(scope)
    next(generator)
    with desist.move_on_after(NEVER) as consumer:
        next(generator)
        consumer.cancel()
        next(generator)
    assert consumer.cancelled_caught
    assert not scope.expired
    assert list(generator) == []
    nothing_is_cancelled()


def test_i41_a_wait_in_a_generator_is_ended_by_its_consumers_scope() -> None:
    def waits() -> Iterator[int]:
        with desist.fail_after(NEVER):
            desist.sleep(NEVER)
            yield 1

    with desist.move_on_after(0.01) as consumer:
        list(waits())
    assert consumer.cancelled_caught
    with pytest.raises(TimeoutError), desist.fail_after(0.01):
        list(waits())


def test_i41_the_token_inside_a_generator_is_cancelled_with_the_consumers_scope() -> None:
    def tokens() -> Generator[desist.CancelToken, None, None]:
        with desist.fail_after(NEVER):
            yield desist.current_token()

    with desist.move_on_after(NEVER) as consumer:
        token = next(tokens_of := tokens())
        consumer.cancel()
        assert token.cancelled
        tokens_of.close()


def test_i41_generators_that_run_each_other_keep_the_order_of_the_stack() -> None:
    def inner(scope: Any) -> Iterator[int]:
        with scope:
            while True:
                desist.checkpoint()
                yield 1

    def outer(scope: Any, below: Any) -> Iterator[int]:
        with scope:
            yield from inner(below)

    first, second = desist.move_on_after(NEVER), desist.move_on_after(NEVER)
    generator = outer(first, second)
    next(generator)
    nothing_is_cancelled()
    first.cancel()
    second.cancel()
    nothing_is_cancelled()
    assert list(generator) == []
    assert first.cancelled_caught
    assert not second.cancelled_caught


@GENERATORS
@pytest.mark.parametrize("end", ["close", "drop", "collect", "elsewhere"])
def test_i41_a_generator_that_is_ended_takes_its_scope_with_it(stream: Any, end: str) -> None:
    scope = desist.move_on_after(NEVER)
    generator = stream(scope)
    next(generator)
    nothing_is_cancelled()
    if end == "close":
        generator.close()
    elif end == "elsewhere":
        in_thread(generator.close)
    elif end == "collect":
        cycle: list[Any] = [generator]
        cycle.append(cycle)
        del cycle
    del generator
    gc.collect()
    scope.cancel()
    nothing_is_cancelled()


@GENERATORS
def test_i41_a_generator_that_goes_on_elsewhere_leaves_its_first_thread_alone(stream: Any) -> None:
    scope = desist.fail_after(NEVER)
    generator = stream(scope)
    next(generator)
    with pytest.raises(desist.ScopeMisuse, match="one thread"):
        in_thread(lambda: list(generator))
    nothing_is_cancelled()


def test_i41_a_clean_up_zone_of_a_suspended_generator_defers_no_kill() -> None:
    ready = threading.Event()

    def body() -> None:
        generator = directly(desist.cleanup())
        next(generator)
        ready.set()
        with desist.shield(math.inf):
            desist.sleep(NEVER)

    thread = desist.Thread(target=body)
    thread.start()
    ready.wait()
    policy = desist.StopPolicy(cooperative=0, at_wait=NEVER, async_exc=None, trace=None)
    assert thread.kill(policy=policy).outcome is desist.KillOutcome.AT_WAIT
    thread.join()


def test_i41_a_block_with_kill_after_is_not_killed_while_its_generator_is_suspended() -> None:
    scope = desist.move_on_after(0, kill_after=0)
    generator = directly(scope)
    with pytest.raises(StopIteration):
        next(generator)
    scope = desist.move_on_after(NEVER, kill_after=0)
    generator = directly(scope)
    next(generator)
    expire(scope)
    desist.sleep(0.02)  # the enforcer tries at once, and again and again
    nothing_is_cancelled()
    assert list(generator) == []
    assert scope.cancelled_caught


# --- context managers that enter a scope ----------------------------------------------------------


@contextmanager
def limit(scope: Any) -> Iterator[Any]:
    with scope as entered:
        yield entered


class Limit:
    """A context manager that is a class."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    def __enter__(self) -> Any:
        return self.scope.__enter__()

    def __exit__(self, *raised: object) -> Any:
        return self.scope.__exit__(*raised)


@pytest.mark.parametrize("made", [limit, Limit, lambda scope: limit(Limit(scope))])
def test_i41_a_context_manager_gives_its_callers_block_a_scope(made: Any) -> None:
    def code() -> None:
        with made(desist.fail_after(NEVER)) as scope:
            desist.checkpoint()
            expire(scope)
            desist.sleep(NEVER)

    with pytest.raises(TimeoutError):
        code()
    nothing_is_cancelled()


@pytest.mark.parametrize("made", [limit, Limit])
def test_i41_a_context_manager_in_a_generator_is_suspended_with_it(made: Any) -> None:
    scope = desist.fail_after(NEVER)
    generator = directly(made(scope))
    next(generator)
    nothing_is_cancelled()
    expire(scope)
    nothing_is_cancelled()
    with pytest.raises(TimeoutError):
        next(generator)


def test_i41_clean_up_code_behind_a_yield_is_in_the_scope() -> None:
    @contextmanager
    def cleans_up() -> Iterator[None]:
        with desist.move_on_after(NEVER) as scope:
            yield
            scope.cancel()
            desist.checkpoint()
            told.append("not reached")

    told: list[str] = []
    with cleans_up():
        pass
    assert told == []
    nothing_is_cancelled()


def test_i41_a_scope_on_an_exit_stack_is_in_force_until_the_stack_is_closed() -> None:
    def helper() -> Any:
        return stack.enter_context(desist.move_on_after(NEVER))

    with ExitStack() as stack:
        scope = helper()
        assert desist.current_effective_deadline() == scope.deadline
        scope.cancel()
        desist.sleep(NEVER)
    assert scope.cancelled_caught
    nothing_is_cancelled()


def test_i41_a_scope_whose_object_is_gone_ends_with_it() -> None:
    desist.move_on_after(0).__enter__()
    nothing_is_cancelled()


@pytest.fixture
def limited() -> Iterator[Any]:
    with desist.fail_after(NEVER) as scope:
        yield scope


def test_i41_the_scope_of_a_yield_fixture_is_not_in_force_in_the_test(limited: Any) -> None:
    expire(limited)
    nothing_is_cancelled()


# --- coroutines -----------------------------------------------------------------------------------

SCOPES: list[Callable[[], Any]] = [
    desist.cancel_scope,
    lambda: desist.move_on_after(1),
    lambda: desist.fail_after(1),
    lambda: desist.fail_after(1, kill_after=1),
    lambda: desist.shield(1),
    desist.cleanup,
    lambda: limit(desist.cancel_scope()),
    desist.TaskGroup,
]


@pytest.mark.parametrize("make", SCOPES)
def test_i41_a_coroutine_is_refused(make: Callable[[], Any]) -> None:
    async def coroutine() -> None:
        with make():
            pass

    with pytest.raises(desist.ScopeMisuse, match=r"asyncio\.timeout"):
        asyncio.run(coroutine())
    nothing_is_cancelled()


@pytest.mark.parametrize("make", SCOPES)
def test_i41_an_asynchronous_generator_is_refused(make: Callable[[], Any]) -> None:
    async def generator() -> Any:
        with make():
            yield 1

    async def consume() -> None:
        async for _ in generator():
            pass

    with pytest.raises(desist.ScopeMisuse, match=r"asyncio\.timeout"):
        asyncio.run(consume())
    nothing_is_cancelled()


def test_i41_a_function_that_a_coroutine_calls_may_have_a_scope() -> None:
    def function() -> bool:
        with desist.move_on_after(0) as scope:
            desist.checkpoint()
        return scope.cancelled_caught

    async def coroutine() -> bool:
        return function()

    assert asyncio.run(coroutine())


# --- greenlets ------------------------------------------------------------------------------------


def test_i41_a_scope_belongs_to_the_stack_of_its_greenlet() -> None:
    greenlet = pytest.importorskip("greenlet", reason="it cannot be built for 3.13t")
    main = greenlet.getcurrent()

    def body() -> str:
        with desist.move_on_after(NEVER) as scope:
            main.switch(scope)
            desist.checkpoint()
            return "not reached"
        return "cancelled"

    other = greenlet.greenlet(body)
    with desist.move_on_after(NEVER) as mine:
        scope = other.switch()
        assert desist.current_effective_deadline() == mine.deadline
        scope.cancel()
        desist.checkpoint()
    nothing_is_cancelled()
    assert other.switch() == "cancelled"
    nothing_is_cancelled()


# --- ends that a signal's exception skips ---------------------------------------------------------


class Stop(KeyboardInterrupt):
    """Raised by the handler."""


def one_in_one(first: Any, second: Any) -> None:
    with first, second:
        again = iter((True, True, False))
        while next(again):
            pass


def with_names(first: Any, second: Any) -> None:
    with first as outer:
        for _ in range(2):
            assert outer is first
        with second as inner:
            try:
                assert inner is second
            finally:
                len(())


def in_a_call(first: Any, second: Any) -> None:
    def block() -> int:
        with second:
            again = iter((True, False))
            while next(again):
                pass
            return 1

    with first:
        block()


def in_a_context_manager(first: Any, second: Any) -> None:
    with limit(first), second:
        len(())


def one_after_the_other(first: Any, second: Any) -> None:
    try:
        with first:
            again = iter((True, False))
            while next(again):
                pass
    except Stop:
        expire(first)
        with second:
            desist.checkpoint()
        raise


def in_a_loop(first: Any, second: Any) -> None:
    stopped = None
    for scope in (first, second):
        try:
            with scope:
                desist.checkpoint()
                again = iter((True, False))
                while next(again):
                    pass
        except Stop as error:  # noqa: PERF203 (the loop is the point)
            expire(scope)
            stopped = error
    if stopped is not None:
        raise stopped


BODIES = [
    one_in_one,
    with_names,
    in_a_call,
    in_a_context_manager,
    one_after_the_other,
    in_a_loop,
]


@pytest.mark.parametrize("kill_after", [None, 0], ids=["plain", "forced"])
@pytest.mark.parametrize("body", BODIES)
def test_i41_a_signal_at_any_bytecode_of_nested_scopes(
    body: Callable[[Any, Any], None], kill_after: float | None
) -> None:
    def handler(*_: object) -> None:
        raise Stop

    def job() -> None:
        first = desist.move_on_after(NEVER, kill_after=kill_after)
        second = desist.move_on_after(NEVER, kill_after=kill_after)
        try:
            body(first, second)
        except Stop:
            stopped.append(point)
        expire(first, second)
        desist.checkpoint()
        with desist.fail_after(NEVER):
            desist.checkpoint()
            for _ in range(50):
                len(())
        desist.sleep(0.000_001)
        assert desist.current_effective_deadline() == math.inf

    stopped: list[int] = []
    point = 0
    before = signal.signal(signal.SIGUSR1, handler)
    traced = sys.gettrace()
    try:
        while True:
            point += 1
            task = Task("a sweep of signals")
            injector = _Injector(point, task, signal=signal.SIGUSR1)
            with _watched(injector):
                sys.settrace(None if _MONITORED else injector)  # type: ignore[arg-type]
                try:
                    task.launch()
                    task.run(job)
                except Stop:  # behind the body
                    pass
                finally:
                    sys.settrace(traced)
            if injector.place is None:
                break
            nothing_is_cancelled()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(stopped) > 20


# --- pools of threads -----------------------------------------------------------------------------


def stream(kept: list[Any]) -> Generator[int, None, None]:
    """Yield numbers to a client, in a limited time."""
    scope = desist.fail_after(NEVER)
    kept.append(scope)
    with scope:
        yield from range(3)


def later_job() -> str:
    """Do something that has nothing to do with streams."""
    with desist.fail_after(NEVER):
        desist.checkpoint()
    return "fine"


def test_i41_no_later_job_of_a_stock_executor_is_cancelled() -> None:
    kept: list[Any] = []
    streams = [stream(kept) for _ in range(100)]
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(next, streams))
        for generator in streams[:30]:
            executor.submit(list, generator).exception()  # perhaps on another thread
        for generator in streams[30:60]:
            executor.submit(generator.close).result()
        del streams[60:80]
        expire(*kept)
        jobs = [executor.submit(later_job) for _ in range(LATER_JOBS)]
        assert {job.result() for job in jobs} == {"fine"}


def test_i41_no_later_job_of_anyios_threads_is_cancelled() -> None:
    kept: list[Any] = []

    async def consume(generator: Iterator[int]) -> None:
        await anyio.to_thread.run_sync(next, generator)
        with suppress(desist.ScopeMisuse):  # of another thread
            await anyio.to_thread.run_sync(list, generator)

    async def jobs(count: int) -> None:
        for _ in range(count):
            answer = await anyio.to_thread.run_sync(later_job)
            said.append(answer)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(consume, stream(kept))
        expire(*kept)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(jobs, LATER_JOBS // 10)

    said: list[str] = []
    anyio.run(main)
    assert said == ["fine"] * LATER_JOBS


def test_i41_no_later_request_of_a_wsgi_server_is_cancelled() -> None:
    kept: list[Any] = []

    def application(environment: dict[str, Any], start: Any) -> Iterator[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        if environment["PATH_INFO"] == "/later":
            return iter([later_job().encode()])
        return (b"%d" % number for number in stream(kept))

    def request(path: str, output: BytesIO | None = None) -> bytes:
        output = output or BytesIO()
        environment = {"PATH_INFO": path, "SERVER_PROTOCOL": "HTTP/1.1"}
        SimpleHandler(BytesIO(), output, StringIO(), environment).run(application)
        return output.getvalue()

    class Gone(BytesIO):
        """A client that goes away."""

        def write(self, _: object) -> int:
            raise ConnectionResetError

    with ThreadPoolExecutor(8) as server:
        list(server.map(request, ["/stream"] * 50))
        list(server.map(request, ["/stream"] * 50, [Gone() for _ in range(50)]))
        expire(*kept)
        answers = list(server.map(request, ["/later"] * LATER_JOBS))
    assert all(answer.endswith(b"fine") for answer in answers)


# --- code that swallows ---------------------------------------------------------------------------


def swallow() -> None:
    """Catch a cancellation, and go on."""
    try:
        desist.checkpoint()
    except BaseException:  # noqa: BLE001 (that is the point)
        return


def keep() -> None:
    """Go on while the exception lives."""
    kept: list[BaseException] = []
    try:
        desist.checkpoint()
    except BaseException as error:  # noqa: BLE001 (as above)
        kept.append(error)
    with suppress(Cancelled):
        desist.checkpoint()


def hand_over() -> BaseException | None:
    """Have the caller free the exception."""
    try:
        desist.checkpoint()
    except BaseException as error:  # noqa: BLE001 (as above)
        return error
    return None


def pass_over() -> None:
    """Have another function's `__exit__` catch it."""
    with suppress(BaseException):
        desist.checkpoint()


def convert() -> None:
    """Raise another exception, which the caller catches."""
    try:
        desist.checkpoint()
    except BaseException as error:
        raise LookupError from error


@pytest.mark.parametrize("code", [swallow, keep, hand_over, pass_over, convert])
def test_the_function_that_swallowed_is_named(code: Callable[[], object]) -> None:
    def goes_on() -> None:
        with desist.move_on_after(0):
            with suppress(LookupError):
                code()
            desist.checkpoint()

    with pytest.warns(desist.CancelledSwallowedWarning, match=rf"{code.__name__}\(\)") as told:
        goes_on()
    assert told[0].filename == __file__
    first = code.__code__.co_firstlineno
    assert first < told[0].lineno < first + 10


def test_clean_up_code_has_swallowed_nothing() -> None:
    def waits() -> None:
        try:
            desist.sleep(NEVER)
        finally:
            try:
                desist.sleep(NEVER)
            finally:
                desist.checkpoint()

    class Waits:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            desist.sleep(NEVER)

    def handles() -> None:
        try:
            desist.sleep(NEVER)
        except Cancelled:
            try:
                int("nothing")
            except ValueError:
                desist.checkpoint()
            raise

    for code in (waits, handles):
        with desist.move_on_after(0):  # a warning would be an error
            code()
    with desist.move_on_after(0), Waits(), Waits():
        desist.sleep(NEVER)
