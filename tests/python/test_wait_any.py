"""Waiting for one of several things, and for files: I14, I15."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import testing, wait_any
from support import NEVER, Victim, held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


class Everything:
    """One operation of each kind, none of them possible yet."""

    def __init__(self, pipe: tuple[int, int]) -> None:
        self.pipe = pipe
        self.lock, self.permits = desist.Lock(), desist.Semaphore(0)
        self.fifo: desist.Queue[str] = desist.Queue()
        self.simple: desist.SimpleQueue[str] = desist.SimpleQueue()
        self.least: desist.PriorityQueue[str] = desist.PriorityQueue()
        self.full: desist.Queue[str] = desist.Queue(1)
        self.event = desist.Event()
        self.source = desist.CancelSource()
        self.future: concurrent.futures.Future[int] = concurrent.futures.Future()
        self.end = desist.Event()
        self.thread = desist.Thread(target=self.end.wait)
        self.lock.acquire()
        self.full.put("in the way")
        self.thread.start()

    def operations(self) -> list[Any]:
        return [
            self.lock.acquire_op(),
            self.permits.acquire_op(),
            self.fifo.get_op(),
            self.simple.get_op(),
            self.least.get_op(),
            self.full.put_op("put"),
            self.event,
            self.source.token,
            self.future,
            self.thread,
            desist.Op.readable(self.pipe[0]),
            desist.Op.after(NEVER),
        ]

    def causes(self) -> list[Callable[[], Any]]:
        """The functions that make each operation possible, except for the last one."""
        return [
            self.lock.release,
            self.permits.release,
            lambda: self.fifo.put("first"),
            lambda: self.simple.put("simple"),
            lambda: self.least.put("least"),
            self.full.get,
            self.event.set,
            lambda: self.source.cancel("why"),
            lambda: self.future.set_result(1),
            self.end.set,
            lambda: os.write(self.pipe[1], b"x"),
        ]


EXPECTED: list[object] = [True, True, "first", "simple", "least", None, True, "why", 1, None, None]


@pytest.mark.parametrize("which", range(len(EXPECTED)))
@pytest.mark.parametrize("waiting", [True, False])
def test_exactly_the_operation_that_is_possible_is_performed(
    pipe: tuple[int, int], which: int, waiting: bool
) -> None:
    every = Everything(pipe)
    cause = every.causes()[which]
    if waiting:

        def body(ready: Callable[[], None]) -> tuple[int, object] | None:
            ready()
            return wait_any(*every.operations())

        with Victim(body) as waiter:
            cause()
        done = waiter.results[0]
    else:
        cause()
        if which == 9:
            every.thread.join()
        done = wait_any(*every.operations())
    assert done is not None
    number, value = done
    assert number == which
    if which == 7:
        value = value.reason  # type: ignore[attr-defined]
    elif which == 8:
        assert value is every.future
        value = every.future.result()
    elif which == 9:
        assert value is every.thread
        value = None
    assert value == EXPECTED[which]
    # I14: the other objects are unchanged. The waiter's locks were released at its end.
    assert every.lock.locked() is not (which == 0 and waiting)
    assert every.permits._value == 0
    assert every.fifo.empty()
    assert every.simple.empty()
    assert every.least.empty()
    assert every.full.get_nowait() == ("put" if which == 5 else "in the way")
    # And no waiter is left in a queue.
    if every.lock.locked():
        every.lock.release()
    assert every.lock.acquire(blocking=False)
    every.lock.release()
    every.fifo.put("later")
    assert every.fifo.get_nowait() == "later"
    every.least.put("later")
    assert every.least.get_nowait() == "later"
    every.end.set()
    every.thread.join()


def test_the_first_of_several_possible_operations_is_performed() -> None:
    event = desist.Event()
    event.set()
    queue: desist.Queue[int] = desist.Queue()
    queue.put(1)
    assert wait_any(queue.get_op(), event) == (0, 1)
    queue.put(1)
    assert wait_any(event, queue.get_op()) == (0, True)
    assert queue.qsize() == 1


def test_a_timeout_returns_none() -> None:
    assert wait_any(desist.Event(), timeout=0) is None
    assert wait_any(desist.Event(), timeout=0.001) is None
    assert wait_any(desist.Op.after(0.001), timeout=NEVER) == (0, None)


def test_i15_no_operation_is_performed_in_a_cancelled_block() -> None:
    queue: desist.Queue[int] = desist.Queue()
    queue.put(1)
    with desist.move_on_after(NEVER) as scope:
        scope.cancel()
        wait_any(queue.get_op())
    assert scope.cancelled_caught
    assert queue.qsize() == 1


def test_an_error_of_the_operation_is_raised() -> None:
    queue: desist.Queue[int] = desist.Queue()
    event = desist.Event()

    def body(ready: Callable[[], None]) -> object:
        ready()
        return wait_any(event, queue.get_op())

    with Victim(body) as waiter:
        queue.shutdown()
    assert type(waiter.raised) is desist.ShutDown
    with pytest.raises(OSError, match="Bad file descriptor"):
        wait_any(event, desist.Op.readable(99_999))


def test_a_future_with_many_waiters_gets_one_callback() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    for _ in range(5):
        assert wait_any(future, timeout=0) is None
    assert len(future._done_callbacks) == 1  # type: ignore[attr-defined]


def test_futures_threads_and_tasks_are_given_as_they_are() -> None:
    ours: desist.Future[int] = desist.Future()
    assert wait_any(ours, timeout=0) is None
    ours.set_result(1)
    assert wait_any(ours) == (0, ours)
    ours = desist.Future()
    ours.cancel()
    assert wait_any(ours) == (0, ours)
    with desist.TaskGroup() as group:
        task = group.start_soon(desist.sleep_forever)
        assert wait_any(task, timeout=0) is None
        task.cancel()
        assert wait_any(desist.Event(), task) == (1, task)


def test_an_operation_may_be_used_again() -> None:
    queue: desist.Queue[int] = desist.Queue()
    queue.put(1)
    queue.put(2)
    get = queue.get_op()
    assert wait_any(get, get) == (0, 1)
    assert wait_any(get) == (0, 2)
    assert wait_any(get, get, timeout=0) is None


@pytest.mark.parametrize(
    ("what", "advice"),
    [
        (desist.Queue(), r"not Queue: give its get_op\(\) or put_op\(item\)"),
        (desist.Lock(), r"not Lock: give its acquire_op\(\)"),
        (sys.stdout, r"not \w+: give Op.readable\(file\) or Op.writable\(file\)"),
        ([desist.Event()], r"not list: unpack it, as in wait_any\(\*several\)"),
        (threading.Event(), "desist events and tokens, .* not Event$"),
        (threading.Thread(), "desist threads, .* not Thread$"),
        (5, "takes operations .*, not int$"),
    ],
)
def test_other_objects_raise_a_type_error_that_lists_the_accepted_ones(
    what: Any, advice: str
) -> None:
    with pytest.raises(TypeError, match=advice):
        wait_any(desist.Event(), what, timeout=0)


def test_no_argument_is_a_type_error() -> None:
    wait: Any = wait_any
    with pytest.raises(TypeError, match="needs something to wait for: operations "):
        wait()
    with pytest.raises(TypeError, match="needs something to wait for"):
        wait(timeout=0)


def test_a_queue_that_keeps_its_items_itself_cannot_be_put_into() -> None:
    with pytest.raises(TypeError, match=r"a PriorityQueue keeps its items .* use put\(\)"):
        desist.PriorityQueue[int]().put_op(1)


def test_a_file_is_checked_when_the_operation_is_made() -> None:
    with pytest.raises(TypeError, match="a descriptor or an object with fileno"):
        desist.Op.readable("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1 is no file descriptor"):
        desist.Op.writable(-1)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_times_to_wait_are_not_negative(seconds: float) -> None:
    with pytest.raises(ValueError, match="the time to wait"):
        desist.Op.after(seconds)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert desist.wait_writable(writer, timeout=NEVER)
    assert not desist.wait_readable(reader, timeout=0)
    assert not desist.wait_readable(reader, timeout=-1)
    with Victim(lambda ready: (ready(), desist.wait_readable(reader))) as waiter:  # type: ignore[func-returns-value]
        os.write(writer, b"x")
    assert waiter.results == [(None, True)]


def test_the_end_of_a_stream_is_readable() -> None:
    reader, writer = os.pipe()
    with (
        os.fdopen(reader) as file,
        Victim(lambda ready: (ready(), desist.wait_readable(file))) as waiter,  # type: ignore[func-returns-value]
    ):
        os.close(writer)
    assert waiter.results == [(None, True)]


def test_a_wait_for_a_file_is_cancelled(pipe: tuple[int, int]) -> None:
    with Victim(lambda ready: (ready(), desist.wait_readable(pipe[0]))) as waiter:  # type: ignore[func-returns-value]
        waiter.cancel()
    assert waiter.state is desist.TaskState.CANCELLED


def test_a_wait_for_a_file_ends_with_its_close_after_notify_closing() -> None:
    reader, writer = os.pipe()
    with Victim(lambda ready: (ready(), desist.wait_readable(reader))) as waiter:  # type: ignore[func-returns-value]
        while waiter.raised is None:  # the thread may not wait yet
            desist.notify_closing(reader)
    assert isinstance(waiter.raised, OSError)
    assert waiter.raised.errno == 9
    os.close(reader)
    # The descriptor is that of another file now, for which no close was notified.
    again, other = os.pipe()
    assert not desist.wait_readable(again, timeout=0)
    for fd in (writer, again, other):
        os.close(fd)


@pytest.mark.parametrize(
    ("file", "error"),
    [(-1, ValueError), (99_999, OSError), ("x", TypeError), (None, TypeError), (1.5, TypeError)],
)
def test_an_object_that_is_no_file_is_refused(file: Any, error: type[Exception]) -> None:
    for wait in (desist.wait_readable, desist.wait_writable):
        with pytest.raises(error):
            wait(file, timeout=0)


def test_a_closed_file_object_is_refused() -> None:
    with Path(os.devnull).open() as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        desist.wait_readable(file)


def test_many_waits_use_up_no_descriptors(pipe: tuple[int, int]) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    desist.wait_readable(pipe[0], timeout=0.001)
    before = open_files()
    for _ in range(50):
        desist.wait_readable(pipe[0], timeout=1e-5)
    assert open_files() == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no such signals here")
def test_signal_handlers_run_during_the_wait(pipe: tuple[int, int]) -> None:
    def handler(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(InterruptedError):
            desist.wait_readable(pipe[0])
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(InterruptedError):
            wait_any(desist.Op.readable(pipe[0]), desist.Event())
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_acquired_lock_is_held_by_the_waiting_thread() -> None:
    lock = desist.Lock()
    with held(lock):
        assert wait_any(lock.acquire_op(), timeout=0.001) is None
    assert wait_any(lock.acquire_op()) == (0, True)
    lock.release()
    reentrant = desist.RLock()
    assert wait_any(reentrant.acquire_op()) == (0, True)
    assert reentrant._is_owned()
    reentrant.release()


def test_waits_for_several_things_take_turns_in_simulated_time() -> None:
    def body() -> list[tuple[int, object]]:
        queue: desist.Queue[int] = desist.Queue()

        def produce() -> None:
            for item in range(3):
                desist.sleep(10)
                queue.put(item)

        desist.Thread(target=produce).start()
        seen: list[tuple[int, Any]] = []
        while len(seen) < 6:
            get = queue.get_op()
            found = wait_any(get, desist.Op.after(7))
            assert found
            seen.append(found)
        return seen

    expected = [(1, None), (0, 0), (1, None), (0, 1), (1, None), (0, 2)]
    assert testing.run(body) == expected
