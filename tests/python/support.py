"""What several tests need."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import desist
from desist import StopPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

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


def in_child(body: Callable[[], object]) -> str:
    """Fork; what `body` returns in the child, as text, or what it raises."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12+: this process has threads
        child = os.fork()
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
