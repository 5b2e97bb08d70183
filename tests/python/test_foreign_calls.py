"""Blocking calls of foreign code end in cancelled scopes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import errno
import fcntl
import hashlib
import io
import os
import pickle
import pty
import queue
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, DeadlineExceeded, Killed
from leaks import children
from support import (
    ASK,
    AT_WAIT,
    NEVER,
    DeafEvent,
    Victim,
    in_child,
    in_thread,
    left_with_its_end_skipped,
    until_asleep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.skipif(
    not desist.foreign_status().available,
    reason=f"calls cannot be ended here: {desist.foreign_status().reason}",
)

# --- which calls ----------------------------------------------------------------------------------


LOCKED = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("x", end="", flush=True)
    sys.stdin.read()
"""


class Calls:
    """Calls that block for ever, by name; what they use is closed with the stack."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder

    def pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe()
        self.stack.callback(os.close, reader)
        self.stack.callback(os.close, writer)
        return reader, writer

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        here, there = socket.socketpair()
        return self.stack.enter_context(here), self.stack.enter_context(there)

    def server(self) -> socket.socket:
        return self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def time_sleep(self) -> Callable[[], object]:
        return partial(time.sleep, NEVER)

    def os_read(self) -> Callable[[], object]:
        return partial(os.read, self.pipe()[0], 1)

    def os_write(self) -> Callable[[], object]:
        _, writer = self.pipe()
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(writer, True)
        return partial(os.write, writer, b"x")

    def file_read(self) -> Callable[[], object]:
        reader, _ = self.pipe()
        file = self.stack.enter_context(io.FileIO(reader, closefd=False))
        return partial(file.read, 1)

    def recv(self) -> Callable[[], object]:
        return partial(self.sockets()[0].recv, 1)

    def recv_with_a_timeout(self) -> Callable[[], object]:
        here, _ = self.sockets()
        here.settimeout(NEVER)
        return partial(here.recv, 1)

    def send_into_a_full_buffer(self) -> Callable[[], object]:
        here, there = self.sockets()
        del there
        here.setblocking(False)
        try:
            while True:
                here.send(b"x" * 4096)
        except BlockingIOError:
            here.setblocking(True)
        return partial(here.send, b"x" * 4096)

    def accept(self) -> Callable[[], object]:
        return self.server().accept

    def connect(self) -> Callable[[], object]:
        # A server whose queue is full answers no more.
        server = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        name = str(self.folder / "server")
        server.bind(name)
        server.listen(0)
        for _ in range(2):
            client = self.stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(name)
        client = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        return partial(client.connect, name)

    def select_select(self) -> Callable[[], object]:
        return partial(select.select, [self.pipe()[0]], [], [])

    def poll(self) -> Callable[[], object]:
        poll = select.poll()
        poll.register(self.pipe()[0])
        return poll.poll

    def epoll(self) -> Callable[[], object]:
        epoll = self.stack.enter_context(select.epoll())
        epoll.register(self.pipe()[0])

        def wait() -> object:  # it is known by the name in the code that calls it
            return epoll.poll()

        return wait

    def wait4(self) -> Callable[[], object]:
        child = self.stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        self.stack.callback(child.kill)
        return partial(os.wait4, child.pid, 0)

    def popen_wait(self) -> Callable[[], object]:
        child = self.stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        self.stack.callback(child.kill)
        return child.wait

    def subprocess_run(self) -> Callable[[], object]:
        return partial(subprocess.run, ["sleep", "1000"], check=False)

    def check_output(self) -> Callable[[], object]:
        return partial(subprocess.check_output, ["sleep", "1000"])

    def flock(self) -> Callable[[], object]:
        name = self.folder / "lock"
        holder = self.stack.enter_context(name.open("w"))
        fcntl.flock(holder, fcntl.LOCK_EX)
        file = self.stack.enter_context(name.open("w"))
        return partial(fcntl.flock, file, fcntl.LOCK_EX)

    def lockf(self) -> Callable[[], object]:
        name = self.folder / "lock"
        file = self.stack.enter_context(name.open("w"))
        holder = subprocess.Popen(
            [sys.executable, "-c", LOCKED, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.stack.enter_context(holder)
        assert holder.stdout
        assert holder.stdout.read(1) == b"x"
        return partial(fcntl.lockf, file, fcntl.LOCK_EX)

    def open_of_a_fifo(self) -> Callable[[], object]:
        name = self.folder / "fifo"
        os.mkfifo(name)
        return partial(os.open, name, os.O_RDONLY)

    def event(self) -> Callable[[], object]:
        return threading.Event().wait

    def event_with_a_timeout(self) -> Callable[[], object]:
        return partial(threading.Event().wait, NEVER)

    def condition(self) -> Callable[[], object]:
        condition = threading.Condition()

        def wait() -> None:
            with condition:
                condition.wait_for(lambda: False)

        return wait

    def queue_get(self) -> Callable[[], object]:
        return queue.Queue[int]().get

    def queue_put(self) -> Callable[[], object]:
        full = queue.Queue[int](1)
        full.put(1)
        return partial(full.put, 2, timeout=NEVER)

    def semaphore(self) -> Callable[[], object]:
        return threading.Semaphore(0).acquire

    def barrier(self) -> Callable[[], object]:
        return threading.Barrier(2).wait

    def future(self) -> Callable[[], object]:
        return concurrent.futures.Future[int]().result

    def futures_wait(self) -> Callable[[], object]:
        return partial(concurrent.futures.wait, [concurrent.futures.Future[int]()])

    def as_completed(self) -> Callable[[], object]:
        future = concurrent.futures.Future[int]()
        return lambda: list(concurrent.futures.as_completed([future]))


CALLS = sorted(set(vars(Calls)) - set(vars(object)) - {"pipe", "sockets", "server"})
CALLS = [name for name in CALLS if not name.startswith("__")]


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    with ExitStack() as stack:
        yield Calls(stack, tmp_path)


def here(body: Callable[[], Any]) -> Any:
    return body()


def is_ended(call: Callable[[], object]) -> bool:
    """Make the call in a cancelled scope."""
    before = desist.foreign_status().ended
    with desist.cancel_scope() as scope:
        scope.cancel()
        call()
    assert desist.foreign_status().ended > before
    return scope.cancelled_caught


@pytest.mark.parametrize("where", [here, in_thread])
@pytest.mark.parametrize("name", CALLS)
def test_i46_a_blocking_call_ends_in_a_cancelled_scope(
    name: str, where: Callable[[Callable[[], object]], object], calls: Calls
) -> None:
    call = getattr(calls, name)()
    assert where(lambda: is_ended(call))


@pytest.mark.parametrize("name", CALLS)
def test_i46_a_blocking_call_ends_at_the_deadline(name: str, calls: Calls) -> None:
    call = getattr(calls, name)()
    with pytest.raises(DeadlineExceeded), desist.cancel_scope(timeout=0.01):
        call()


def test_i46_a_wait_of_the_standard_library_is_ended() -> None:
    """Whatever `Condition.wait` looks like in this version: see `condition.rs`."""
    assert is_ended(threading.Event().wait)


FIRST = """
import threading, time, desist
ready = threading.Event()
def body():
    ready.set()
    time.sleep(1000)
thread = desist.Thread(target=body)
thread.start()
ready.wait()
thread.cancel()
thread.join()
print(desist.foreign_status().ended, thread.state.name)
"""


def test_the_first_call_of_a_process_is_ended() -> None:
    """Nothing has been asked of the interpreter's frames before, and no scope was entered."""
    run = subprocess.run([sys.executable, "-c", FIRST], check=True, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("1 CANCELLED\n", "")


SCRIPT = """
import desist
with desist.cancel_scope() as scope:
    scope.cancel()
    input()
print(scope.cancelled_caught)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_i46_input_is_ended(terminal: bool, calls: Calls) -> None:
    here, there = pty.openpty() if terminal else calls.pipe()
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        stdin=there if terminal else here,
        capture_output=True,
        text=True,
    )
    if terminal:
        os.close(here)
        os.close(there)
    assert (run.stdout, run.stderr) == ("True\n", "")


def test_i46_a_call_whose_result_tells_of_the_error_returns_and_the_next_one_raises() -> None:
    before = children()
    with desist.cancel_scope() as scope:
        scope.cancel()
        assert os.system("exec sleep 1000") == -1
        time.sleep(NEVER)
    assert scope.cancelled_caught
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_code_that_takes_the_error_for_another_try_is_left_alone(calls: Calls) -> None:
    reader, writer = calls.pipe()
    wants = ctypes.create_string_buffer(struct.pack("ihh", reader, select.POLLIN, 0))
    system_poll = ctypes.CDLL(None, use_errno=True).poll

    def poll() -> int:
        ready: int = system_poll(wants, 1, -1)
        while ready < 0 and ctypes.get_errno() == errno.EINTR:  # a signal that came too late
            ready = system_poll(wants, 1, -1)
        return ready

    alone = __name__.rpartition(".")[2]
    assert alone not in desist.foreign_status().left_alone

    def feed() -> None:
        while alone not in desist.foreign_status().left_alone:
            other_calls_are_ended()
        os.write(writer, b"x")

    with desist.cancel_scope() as scope:
        with desist.shield(NEVER):
            feeder = threading.Thread(target=feed)
            feeder.start()
        scope.cancel()
        assert [poll() for _ in range(4)] == [-1, -1, -1, 1]
        with desist.shield(NEVER):
            feeder.join()
            os.read(reader, 1)
        desist.checkpoint()
    assert scope.cancelled_caught
    assert is_ended(partial(os.read, reader, 1))


@pytest.mark.parametrize("name", ["time_sleep", "os_read", "event", "queue_get"])
def test_a_kill_ends_a_blocking_call(name: str, calls: Calls) -> None:
    call = getattr(calls, name)()

    def body(ready: Callable[[], None]) -> None:
        ready()
        call()

    with Victim(body) as victim:
        assert victim.kill(policy=ASK).outcome is desist.KillOutcome.COOPERATIVE
    assert isinstance(victim.raised, Cancelled)


@pytest.mark.parametrize("name", ["time_sleep", "os_read", "event"])
def test_a_kill_ends_also_the_calls_of_clean_up_code_that_takes_too_long(
    name: str, calls: Calls
) -> None:
    call = getattr(calls, name)()
    cleaning_up = threading.Event()

    def body(ready: Callable[[], None]) -> None:
        ready()
        try:
            call()
        finally:
            cleaning_up.set()
            call()

    with Victim(body) as victim:
        victim.cancel(grace=NEVER)
        assert cleaning_up.wait(NEVER)
        report = victim.kill(policy=AT_WAIT)
    assert report.outcome is desist.KillOutcome.AT_WAIT
    assert isinstance(victim.raised, Killed)


SLEEP = "clock_nanosleep" if sys.version_info >= (3, 11) else "pselect6"
"""The system call of time.sleep()."""


@pytest.mark.parametrize(
    ("name", "waited_in", "ended"),
    [
        ("time_sleep", SLEEP, SLEEP),
        ("os_read", "read of descriptor {} (pipe:[", "read of descriptor {} (pipe:["),
        ("recv", "recvfrom of descriptor {} (127.0.0.1:", "recvfrom of descriptor {} (127.0.0.1:"),
        ("event", "futex", "a wait of threading.Condition"),
    ],
)
def test_the_report_of_a_kill_names_the_call_its_descriptor_and_its_peer(
    name: str, waited_in: str, ended: str, calls: Calls
) -> None:
    descriptor = -1
    if name == "os_read":
        descriptor, _ = calls.pipe()
        call: Callable[[], object] = partial(os.read, descriptor, 1)
    elif name == "recv":
        client = calls.stack.enter_context(socket.create_connection(calls.server().getsockname()))
        descriptor, call = client.fileno(), partial(client.recv, 1)
    else:
        call = getattr(calls, name)()

    def body(ready: Callable[[], None]) -> None:
        with suppress(Cancelled), desist.move_on_after(0):
            call()  # ended before the kill, by another cancellation: of no interest
        ready()
        call()

    with Victim(body) as victim:
        until_asleep(victim)
        report = pickle.loads(pickle.dumps(victim.kill(policy=ASK)))
    assert report.waited_in is not None
    assert report.waited_in.startswith(waited_in.format(descriptor))
    (only,) = report.ended_calls
    assert only.startswith(ended.format(descriptor))


def test_the_report_of_a_kill_says_what_an_abandoned_thread_waits_in() -> None:
    event = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        ready()
        event.wait()

    with Victim(body) as victim:
        until_asleep(victim)
        report = victim.kill(policy=desist.StopPolicy(cooperative=0, at_wait=0.01))
        event.set()
    assert report.waited_in == "futex"
    assert report.ended_calls == []


@pytest.mark.parametrize("name", ["time_sleep", "os_read", "event"])
def test_a_kill_ends_a_call_inside_a_shield(name: str, calls: Calls) -> None:
    call = getattr(calls, name)()

    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER):
            ready()
            call()

    with Victim(body) as victim:
        until_asleep(victim)
        assert victim.kill(policy=AT_WAIT).outcome is desist.KillOutcome.AT_WAIT
    assert isinstance(victim.raised, Killed)


@pytest.mark.parametrize("deferring", ["cleanup", "defer_kill", "lock"])
def test_i24_a_kill_that_is_deferred_ends_no_call_inside_a_shield(
    deferring: str, calls: Calls
) -> None:
    reader, writer = calls.pipe()
    blocks: dict[str, Callable[[], Any]] = {
        "cleanup": lambda: desist.cleanup(NEVER),
        "defer_kill": lambda: desist.defer_kill(NEVER),
        "lock": desist.Lock,
    }
    got = []

    def body(ready: Callable[[], None]) -> None:
        with blocks[deferring](), desist.shield(NEVER):
            ready()
            got.append(os.read(reader, 1))
        os.read(reader, 1)

    policy = desist.StopPolicy(cooperative=0, at_wait=NEVER, defer=NEVER)
    with Victim(body) as victim:
        until_asleep(victim)
        killing = victim.kill_soon(policy=policy)
        other_calls_are_ended()
        os.write(writer, b"x")
        assert killing.result().outcome is desist.KillOutcome.AT_WAIT
    assert got == [b"x"]
    assert isinstance(victim.raised, Killed)


# On 3.10 the exception may be raised in a finalizer first, and then again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["time_sleep", "os_read", "event"])
def test_an_exception_for_a_thread_is_raised_at_its_blocking_call_and_once(
    name: str, calls: Calls
) -> None:
    call = getattr(calls, name)()
    reader, writer = calls.pipe()

    def body(ready: Callable[[], None]) -> bytes:
        ready()
        with pytest.raises(ZeroDivisionError):
            call()
        return os.read(reader, 1)

    with Victim(body) as victim:
        until_asleep(victim)
        victim.raise_exc(ZeroDivisionError)
        other_calls_are_ended()
        os.write(writer, b"x")
    assert victim.results == [b"x"]


def test_a_kill_leaves_calls_alone_in_a_thread_that_was_told_so(calls: Calls) -> None:
    reader, writer = calls.pipe()

    def body() -> None:
        with desist.shield(NEVER):
            os.read(reader, 1)

    thread = desist.Thread(target=body, foreign=False)
    thread.start()
    until_asleep(thread)
    killing = thread.kill_soon(policy=desist.StopPolicy(cooperative=0, at_wait=NEVER))
    other_calls_are_ended()
    assert not killing.done()
    os.write(writer, b"x")
    assert killing.result().ended_calls == []


def test_kill_after_ends_the_calls_inside_a_shield() -> None:
    with (
        pytest.raises(DeadlineExceeded) as late,
        desist.cancel_scope(timeout=0.01, kill_after=0.01),
        desist.shield(NEVER),
    ):
        time.sleep(NEVER)
    assert isinstance(late.value.__cause__, Killed)


def test_kill_after_ends_the_calls_of_clean_up_code() -> None:
    def body() -> None:
        try:
            time.sleep(NEVER)
        finally:
            time.sleep(NEVER)

    with (
        pytest.raises(DeadlineExceeded),
        desist.cancel_scope(timeout=0.01, grace=NEVER, kill_after=0.05),
    ):
        body()


# --- raised if and only if ended ------------------------------------------------------------------


def test_i46_nothing_is_received_and_the_connection_goes_on(calls: Calls) -> None:
    ours, theirs = calls.sockets()
    assert is_ended(partial(ours.recv, 1))
    theirs.send(b"xy")
    assert ours.recv(2) == b"xy"


def test_i46_a_condition_keeps_no_waiter_and_loses_no_notification() -> None:
    items: queue.Queue[int] = queue.Queue()
    for _ in range(3):
        assert is_ended(items.get)
    assert not items.not_empty._waiters  # type: ignore[attr-defined]
    assert not items.mutex.locked()
    items.put(1)
    assert items.get() == 1


def test_i46_an_error_that_a_library_in_c_makes_of_it_is_the_cause(tmp_path: Path) -> None:
    """SQLite sleeps again and again while another connection has the lock, then gives up."""
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(closing(sqlite3.connect(tmp_path / "data", isolation_level=None)))
            for _ in range(2)
        )
        first.execute("create table items (name)")
        first.execute("begin exclusive")
        with pytest.raises(DeadlineExceeded) as late, desist.cancel_scope(timeout=0):
            second.execute("insert into items values ('one')")
        cancelled = late.value.__cause__
        assert isinstance(cancelled, Cancelled)
        assert isinstance(cancelled.__cause__, sqlite3.OperationalError)
        first.execute("rollback")
        assert second.execute("select count(*) from items").fetchone() == (0,)


def test_i46_an_error_of_the_same_number_is_not_replaced() -> None:
    def raises() -> None:
        raise OSError(errno.ECANCELED, "of its own")

    with desist.cancel_scope() as scope:
        scope.cancel()
        with pytest.raises(OSError, match="of its own"):
            raises()

    def sleeps_and_then(raises: Callable[[], object]) -> None:
        with desist.cancel_scope() as scope:
            scope.cancel()
            try:
                time.sleep(NEVER)
            finally:
                raises()

    with pytest.raises(OSError, match="of its own"):
        sleeps_and_then(raises)
    with pytest.raises(ZeroDivisionError):
        sleeps_and_then(lambda: 1 / 0)


def test_i46_running_code_is_left_alone() -> None:
    """The watcher looks at this thread many times, and at one that blocks."""
    with desist.cancel_scope() as scope:
        scope.cancel()
        for _ in range(3):
            other_calls_are_ended()
        swallowed = sum(range(1000))
    assert not scope.cancelled_caught
    assert swallowed == 499500


# --- calls that are not ended ---------------------------------------------------------------------


class OtherCalls:
    """Calls that no cancellation ends, by name: each with an act that does, and its result."""

    def lock_acquire(self) -> tuple[Callable[[], object], Callable[[], object], object]:
        lock = threading.Lock()
        lock.acquire()
        return lock.acquire, lock.release, True

    def simple_queue_get(self) -> tuple[Callable[[], object], Callable[[], object], object]:
        items = queue.SimpleQueue[int]()
        return items.get, partial(items.put, 1), 1

    def thread_join(self) -> tuple[Callable[[], object], Callable[[], object], object]:
        over = DeafEvent()
        thread = threading.Thread(target=over.wait)
        thread.start()
        return thread.join, over.set, None

    def computation(self) -> tuple[Callable[[], object], Callable[[], object], object]:
        def compute() -> int:
            return len(hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 300_000))

        return compute, bool, 32

    def read_of_a_file(self) -> tuple[Callable[[], object], Callable[[], object], object]:
        return Path(__file__).read_bytes, bool, Path(__file__).read_bytes()


OTHER_CALLS = [name for name in vars(OtherCalls) if not name.startswith("__")]


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_i46_another_call_goes_on_in_a_cancelled_scope(name: str) -> None:
    call, end, result = getattr(OtherCalls(), name)()
    with desist.cancel_scope() as scope, after_a_few_looks(end):
        scope.cancel()
        assert call() == result
    assert not scope.cancelled_caught


# --- only there, and only once --------------------------------------------------------------------


def other_calls_are_ended() -> None:
    """Have the watcher look at all threads that are in cancelled scopes, a few times."""
    with desist.shield(NEVER):  # the calling thread's waits in here are not ended
        for _ in range(5):
            assert in_thread(lambda: is_ended(partial(time.sleep, NEVER)))


@contextmanager
def after_a_few_looks(act: Callable[[], object]) -> Iterator[None]:
    """A thread acts after the watcher has looked at all threads a few times."""

    def look_and_act() -> None:
        other_calls_are_ended()
        act()

    thread = threading.Thread(target=look_and_act)
    with desist.shield(NEVER):
        thread.start()
    yield
    thread.join()


def fed(writer: int) -> AbstractContextManager[None]:
    """A thread writes a byte after the watcher has looked at all threads a few times."""
    return after_a_few_looks(partial(os.write, writer, b"x"))


def test_i47_a_call_goes_on_in_a_scope_that_is_not_cancelled(calls: Calls) -> None:
    reader, writer = calls.pipe()
    with desist.cancel_scope() as scope, fed(writer):
        assert os.read(reader, 1) == b"x"
    assert not scope.cancel_called


def test_i47_a_call_goes_on_in_a_shield(calls: Calls) -> None:
    reader, writer = calls.pipe()
    with desist.cancel_scope() as scope:
        scope.cancel()
        with desist.shield(NEVER), fed(writer):
            assert os.read(reader, 1) == b"x"
        os.read(reader, 1)
    assert scope.cancelled_caught


def test_i47_clean_up_code_has_the_grace_and_no_more(calls: Calls) -> None:
    reader, writer = calls.pipe()
    with desist.cancel_scope() as scope:
        scope.cancel(grace=NEVER)
        try:
            os.read(reader, 1)
        finally:
            with fed(writer):
                assert os.read(reader, 1) == b"x"
    assert scope.cancelled_caught
    before = desist.foreign_status().ended
    with desist.cancel_scope() as scope:
        scope.cancel(grace=0)
        try:
            os.read(reader, 1)
        finally:
            os.read(reader, 1)
    assert scope.cancelled_caught
    assert desist.foreign_status().ended == before + 2


@pytest.mark.parametrize("inner", [True, False])
def test_i47_a_scope_can_leave_calls_alone(inner: bool, calls: Calls) -> None:
    reader, writer = calls.pipe()
    with desist.cancel_scope(foreign=False) as scope:
        scope.cancel()
        with desist.cancel_scope(foreign=True) if inner else nullcontext(), fed(writer):
            assert os.read(reader, 1) == b"x"
    assert is_ended(partial(os.read, reader, 1))


def test_i47_a_thread_can_leave_calls_alone(calls: Calls) -> None:
    reader, writer = calls.pipe()
    read: list[bytes] = []
    thread = desist.Thread(target=lambda: read.append(os.read(reader, 1)), foreign=False)
    thread.start()
    thread.cancel()
    other_calls_are_ended()
    os.write(writer, b"x")
    thread.join()
    assert read == [b"x"]


@pytest.mark.parametrize("at_most", [NEVER, 0.001])
def test_i47_a_call_goes_on_while_kills_are_deferred_and_no_longer(
    at_most: float, calls: Calls
) -> None:
    reader, writer = calls.pipe()

    def body(ready: Callable[[], None]) -> bytes:
        with desist.defer_kill(at_most):
            ready()
            return os.read(reader, 1)

    with Victim(body) as victim:
        victim.cancel()
        if at_most == NEVER:
            other_calls_are_ended()
            os.write(writer, b"x")
    assert victim.results == ([b"x"] if at_most == NEVER else [])


def test_i47_the_switch_for_all_scopes(calls: Calls) -> None:
    reader, writer = calls.pipe()
    assert desist.set_foreign(False) is True
    try:
        status = desist.foreign_status()
        assert not status.available
        assert status.reason == "set_foreign(False) was called"
        with desist.cancel_scope() as scope:
            scope.cancel()
            os.write(writer, b"x")
            assert os.read(reader, 1) == b"x"
    finally:
        assert desist.set_foreign(True) is False
    assert is_ended(partial(os.read, reader, 1))


def test_what_is_no_switch_is_refused() -> None:
    for wrong in ("no", None, 0):
        with pytest.raises(TypeError):
            desist.cancel_scope(foreign=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            desist.Thread(foreign=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            desist.set_foreign(wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its code has no exception table")
def test_i41_a_scope_whose_end_was_skipped_ends_no_call(calls: Calls) -> None:
    reader, writer = calls.pipe()
    kept = []

    def block() -> None:
        kept.append(desist.cancel_scope(timeout=0))
        with kept[0]:
            raise ZeroDivisionError

    left_with_its_end_skipped(block)
    with fed(writer):
        assert os.read(reader, 1) == b"x"
    assert is_ended(partial(os.read, reader, 1))


def test_i41_a_suspended_generator_ends_no_call_of_its_consumer(calls: Calls) -> None:
    reader, writer = calls.pipe()

    def numbers() -> Iterator[int]:
        with desist.move_on_after(0):
            yield 1

    suspended = numbers()
    next(suspended)
    with fed(writer):
        assert os.read(reader, 1) == b"x"
    with desist.cancel_scope() as scope:
        second = numbers()
        next(second)
        scope.cancel()
        os.read(reader, 1)
    assert scope.cancelled_caught


# --- beside other tools ---------------------------------------------------------------------------


def test_a_tracer_of_the_thread_stays_and_sees_the_exception(calls: Calls) -> None:
    reader, _ = calls.pipe()
    seen: Counter[str] = Counter()

    def tracer(_frame: object, event: str, _argument: object) -> Any:
        seen[event] += 1
        return tracer

    def body() -> None:
        sys.settrace(tracer)
        assert is_ended(partial(os.read, reader, 1))
        if sys.version_info >= (3, 12):  # before, the exception comes while another tracer is set
            assert seen["exception"] > 0
        before = sum(seen.values())
        here(lambda: None)
        assert sum(seen.values()) > before
        assert sys.gettrace() is tracer
        sys.settrace(None)

    in_thread(body)


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="before 3.12 there is no tool that could stay"
)
def test_the_tool_is_free_again_when_a_thread_has_ended_behind_its_ended_call() -> None:
    monitoring: Any = vars(sys)["monitoring"]

    def tools() -> list[str | None]:
        return list(map(monitoring.get_tool, range(6)))

    before = tools()
    # os.system() keeps the error for itself, and nothing of the thread comes behind it.
    thread = desist.Thread(target=os.system, args=("exec sleep 1000",))
    thread.start()
    until_asleep(thread)
    thread.cancel()
    thread.join()
    tick = threading.Event()
    while tools() != before:
        tick.wait(0.001)  # there is no notification


def test_other_signals_do_not_matter(calls: Calls) -> None:
    reader, _ = calls.pipe()
    handled: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, _: handled.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(20):
            with desist.move_on_after(0.003) as scope:
                os.read(reader, 1)
            assert scope.cancelled_caught
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert handled


def test_a_forked_child_ends_its_calls(calls: Calls) -> None:
    reader, _ = calls.pipe()

    def body() -> bool:
        return is_ended(partial(os.read, reader, 1))

    assert body()
    assert in_child(body) == "True"
    with desist.cancel_scope():
        assert in_child(body) == "True"


def test_work_of_an_executor_is_ended_in_its_call(calls: Calls) -> None:
    reader, _ = calls.pipe()
    begun = threading.Event()

    def work() -> bytes:
        begun.set()
        return os.read(reader, 1)

    with desist.ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        assert begun.wait(NEVER)
        assert not future.cancel()
        with pytest.raises(desist.TaskCancelled):
            future.result()
        assert executor.submit(int, "1").result() == 1


def test_a_scope_around_an_event_loop_ends_it_as_ctrl_c_does() -> None:
    cleaned_up: list[bool] = []

    async def main() -> None:
        try:
            await asyncio.sleep(NEVER)
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    with desist.cancel_scope() as scope:
        scope.cancel()
        asyncio.run(main())
    assert scope.cancelled_caught
    assert cleaned_up == [True]


def test_an_event_loop_in_c_which_would_abort_is_left_alone() -> None:
    uvloop = pytest.importorskip("uvloop", reason="it cannot be built for this version")
    loop = uvloop.new_event_loop()
    over = loop.create_future()

    def feed() -> None:
        other_calls_are_ended()
        loop.call_soon_threadsafe(over.set_result, True)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with desist.cancel_scope() as scope:
        scope.cancel()
        assert loop.run_until_complete(over)
    feeder.join()
    loop.close()
