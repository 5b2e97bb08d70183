"""Helpers of several tests."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest

import desist
from desist import Cancelled, CancelSource, FileQueue, Killed, LeaseQueue, StopPolicy
from desist._ports import port_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desist import CancelCause, Lease
    from desist._core import Registration
    from desist.testing import SweepReport

T = TypeVar("T")

LINUX = Path("/proc/self/fd").is_dir()

NEVER = 1000.0
"""Seconds that no test waits: a wait that lasts this long hangs."""

ASK = StopPolicy(cooperative=NEVER, at_wait=None, async_exc=None, trace=None)
"""Cancels, and uses no force."""
AT_WAIT = StopPolicy(cooperative=0, at_wait=NEVER, async_exc=None, trace=None, defer=NEVER)
"""Kills at desist waits only."""
FORCE = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=NEVER)
"""Kills anywhere, but not where a lock is held."""
INSIST = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=0)
"""Kills anywhere, also where a lock is held."""
TRACE = StopPolicy(cooperative=0, at_wait=0, async_exc=0.02, trace=NEVER, defer=0)
"""Kills at every step, after asynchronous exceptions have not helped."""
ABANDON = StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None)
"""Abandons the thread without any rung."""

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Without it no thread can look at the calls of another one."""

IN_HAND = sys.version_info < (3, 11) or not HAS_GIL
"""CPython 3.10 raises asynchronous exceptions between any two bytecodes, also behind a call that
has returned an item or a permit: that is lost with the killed thread. Without the GIL the rung
force traces, which does the same."""

SWEPT: list[tuple[str, SweepReport]] = []
"""The sweeps of this run, for the table at its end."""


def until_there_are(threads: int) -> None:
    """Wait until no more threads than these run."""
    pause = threading.Event()
    while threading.active_count() > threads:
        pause.wait(0.001)  # there is no notification


async def until(event: threading.Event) -> None:
    """Wait for an event of a thread, while the event loop runs."""
    import anyio

    while not event.is_set():  # noqa: ASYNC110 (there is no notification)
        await anyio.sleep(0.001)


async def turns(number: int = 20) -> None:
    """Let all tasks of the event loop that can go on do so."""
    from anyio.lowlevel import checkpoint

    for _ in range(number):
        await checkpoint()


def tell(subject: str, report: SweepReport) -> None:
    """Add a sweep to the table."""
    SWEPT.append((subject, report))


class Victim(desist.Thread, Generic[T]):
    """A daemon thread that runs `body(ready)`; the `with` block begins when `ready` was called.

    The block's end waits until the thread has ended.
    """

    def __init__(self, body: Callable[[Callable[[], None]], T]) -> None:
        super().__init__(name="victim", daemon=True)
        self.body = body
        self.raised: BaseException | None = None
        self.results: list[T] = []
        self._ready = threading.Event()

    def run(self) -> None:
        try:
            self.results.append(self.body(self._ready.set))
        except BaseException as raised:
            self.raised = raised
            if not isinstance(raised, Exception):
                raise

    def __enter__(self) -> Victim[T]:
        self.start()
        assert self._ready.wait(NEVER)
        return self

    def __exit__(self, *_: object) -> None:
        self.join()


class DeafEvent:
    """An event whose wait nothing else ends: it is one for a lock."""

    def __init__(self) -> None:
        self._unset = threading.Lock()
        self._unset.acquire()

    def is_set(self) -> bool:
        return not self._unset.locked()

    def set(self) -> None:
        if not self.is_set():
            self._unset.release()

    def clear(self) -> None:
        self._unset.acquire(blocking=False)

    def wait(self, timeout: float = -1) -> bool:
        is_set = self._unset.acquire(timeout=timeout)
        if is_set:
            self._unset.release()
        return is_set


class Deaf:
    """A handler that only the test ends."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = DeafEvent()

    def __call__(self, _: Lease[int]) -> None:
        self.begun.release()
        self.go_on.wait()


def queue_of(kind: str, folder: Path, **options: Any) -> Any:
    """Open an empty queue: in memory, or in a file of the folder."""
    if kind == "memory":
        return LeaseQueue(**options)
    return FileQueue(folder / "jobs.db", **options)


def drained(queue: Any, timeout: float | None = NEVER) -> bool:
    """Wait until the queue has no work left; an exception of the queue is raised."""

    def failed(failure: BaseException) -> None:
        raise failure

    return port_of(queue).drain(timeout, failed)


def spin(ready: Callable[[], None]) -> None:
    """Run Python code without end, and without any wait."""
    ready()
    while True:
        pass


def until_asleep(victim: threading.Thread) -> None:
    """Wait until the victim's thread has been asleep for a while, and so must be in its wait."""
    stat = Path(f"/proc/self/task/{victim.native_id}/stat")
    calm, tick = 0, threading.Event()
    while LINUX and calm < 3:
        state = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        calm = calm + 1 if state == "S" else 0
        tick.wait(0.001)  # there is no notification


@contextmanager
def in_its_wait(wait: Callable[[], object]) -> Iterator[Victim[object]]:
    """Run `wait()` on a thread; the block begins when the thread is in its wait."""

    def body(ready: Callable[[], None]) -> object:
        ready()
        return wait()

    with Victim(body) as victim:
        until_asleep(victim)
        yield victim


def ends_with_a_cancel(wait: Callable[[], object]) -> None:
    """Check that a cancel ends `wait()`, which blocks forever, here as below."""
    with in_its_wait(wait) as victim:
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    victim.raised = None  # its traceback keeps the locals of the call


def ends_with_the_deadline_of_its_block(wait: Callable[[], object]) -> None:
    """Check that the deadline of the block around `wait()` ends it."""
    with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.01):
        wait()


def looks_before_it_begins(wait: Callable[[], object]) -> None:
    """Check that `wait()` does not begin in a cancelled block."""
    with desist.move_on_after(0) as scope:
        wait()
    assert scope.cancelled_caught


def ends_with_a_kill(wait: Callable[[], object]) -> None:
    """Check that a kill ends `wait()`, also in a shield."""

    def shielded() -> None:
        with desist.shield(NEVER):
            wait()

    with in_its_wait(shielded) as victim:
        victim.kill(policy=AT_WAIT)
    assert isinstance(victim.raised, Killed)
    victim.raised = None


@contextmanager
def held(lock: desist.Lock) -> Iterator[Victim[None]]:
    """Hold the lock on another thread during the block."""
    done = threading.Event()

    def hold(ready: Callable[[], None]) -> None:
        with lock:
            ready()
            done.wait()

    with Victim(hold) as holder:
        try:
            yield holder
        finally:
            done.set()


def in_thread(body: Callable[[], T]) -> T:
    """Return or raise the outcome of `body` on another thread, outside of this thread's scopes."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((body(), None))
        except BaseException as raised:  # noqa: BLE001 (it is raised again, over there)
            outcome.append((None, raised))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, raised = outcome.pop()
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]


def fork() -> int:
    """Fork, without the warning of 3.12+ about the threads of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(body: Callable[[], object]) -> str:
    """Fork, run `body` in the child, and return its result or exception as text."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            answer = str(body())
        except BaseException as raised:  # noqa: BLE001 (it is the answer)
            answer = f"{type(raised).__name__}: {raised}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        answer = answers.read()
    assert os.waitpid(child, 0)[1] == 0, answer
    return answer


def on_deadline(callback: Callable[[CancelCause], object]) -> tuple[CancelSource, Registration]:
    """Register a callback before a deadline passes, so that the callback thread runs it.

    A registration that comes too late runs it itself: then again, with more time.
    """
    here, timeout = threading.get_ident(), 0.001
    late: list[CancelCause] = []

    def call(cause: CancelCause) -> None:
        if threading.get_ident() == here:
            late.append(cause)
        else:
            callback(cause)

    while True:
        late.clear()
        source = CancelSource(timeout=timeout)
        registration = source.token.on_cancel(call)
        if not late:
            return source, registration
        timeout *= 2


def left_with_its_end_skipped(block: Any) -> None:
    """Call `block`, which raises in a `with` statement; the statement's end does not run."""
    code: Any = block.__code__
    block.__code__ = code.replace(co_exceptiontable=b"")
    with pytest.raises(ZeroDivisionError):
        block()
