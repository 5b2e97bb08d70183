"""What several tests need."""

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
from desist import Cancelled, Killed, StopPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desist.testing import SweepReport

T = TypeVar("T")

LINUX = Path("/proc/self/fd").is_dir()

NEVER = 1000.0
"""Seconds that no test waits: what ends after it would hang."""

ASK = StopPolicy(cooperative=NEVER, at_wait=None, async_exc=None, trace=None)
"""Only asks."""
AT_WAIT = StopPolicy(cooperative=0, at_wait=NEVER, async_exc=None, trace=None, defer=NEVER)
"""Strikes at desist waits only."""
FORCE = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=NEVER)
"""Strikes anywhere, but not where a lock is held."""
INSIST = StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=0)
"""Strikes anywhere, also where a lock is held."""
TRACE = StopPolicy(cooperative=0, at_wait=0, async_exc=0.02, trace=NEVER, defer=0)
"""Strikes at every step, where striking now and then has not helped."""
GIVE_UP = StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None)
"""Does not even try."""

IN_HAND = sys.version_info < (3, 11)
"""CPython 3.10 strikes between any two bytecodes, also behind a call that has returned an item:
what a killed thread has in its hand is gone with it."""

SWEPT: list[tuple[str, SweepReport]] = []
"""What was swept, for the table at the end of a run of the tests."""


def tell(subject: str, report: SweepReport) -> None:
    """Put it in that table."""
    SWEPT.append((subject, report))


class Victim(desist.Thread, Generic[T]):
    """A daemon thread that runs `body(ready)`; the `with` block begins when it has said so.

    The block's end waits until the thread is gone.
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


def spin(ready: Callable[[], None]) -> None:
    """Run Python code without end, and without any wait."""
    ready()
    while True:
        pass


def until_asleep(victim: Victim[object]) -> None:
    """The victim's thread sleeps, and has for a while, so it will be in its wait."""
    stat = Path(f"/proc/self/task/{victim.native_id}/stat")
    calm, tick = 0, threading.Event()
    while LINUX and calm < 3:
        state = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        calm = calm + 1 if state == "S" else 0
        tick.wait(0.001)  # the system tells nobody


@contextmanager
def in_its_wait(wait: Callable[[], object]) -> Iterator[Victim[object]]:
    """A thread that has begun `wait()`, which is in it now."""

    def body(ready: Callable[[], None]) -> object:
        ready()
        return wait()

    with Victim(body) as victim:
        until_asleep(victim)
        yield victim


def ends_with_a_cancel(wait: Callable[[], object]) -> None:
    """A cancel ends it. `wait()` blocks for ever, here as below."""
    with in_its_wait(wait) as victim:
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    victim.raised = None  # its traceback keeps what the call had, a file of makefile() say


def ends_with_the_deadline_of_its_block(wait: Callable[[], object]) -> None:
    """The deadline of the block around it ends it."""
    with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.01):
        wait()


def looks_before_it_begins(wait: Callable[[], object]) -> None:
    """It does not begin in a block that is cancelled."""
    with desist.move_on_after(0) as scope:
        wait()
    assert scope.cancelled_caught


def ends_with_a_kill(wait: Callable[[], object]) -> None:
    """A kill ends it, also in a shield."""

    def shielded() -> None:
        with desist.shield(NEVER):
            wait()

    with in_its_wait(shielded) as victim:
        victim.kill(policy=AT_WAIT)
    assert isinstance(victim.raised, Killed)
    victim.raised = None


@contextmanager
def held(lock: desist.Lock) -> Iterator[Victim[None]]:
    """Another thread holds the lock during the block."""
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
    """What `body` returns or raises on another thread, which no scope of this one is around."""
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
    """Fork though this process has threads, of which 3.12+ warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(body: Callable[[], object]) -> str:
    """Fork; what `body` returns in the child, as text, or what it raises."""
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
