"""The loop of a worker process: it calls the handler for one item after the other.

The handler runs on the main thread, behind the boundary of a task of its own. A second thread, the
`ParentWatch`, reads cancellations from a pipe and cancels the task's token when the item's token in
the parent is cancelled. SIGTERM raises Killed in the handler, unless the kill is deferred, also in
calls that the system breaks for a signal; then the process ends. When the parent has ended, the
process ends itself and every process that it has started.

Answers of the parent are read by the thread that asked, under the channel's lock; the loop itself
reads only while no handler runs.
"""

from __future__ import annotations

import atexit
import math
import os
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from desist._channel import CODE, Channel, Verb, pack_exception, pickled, unpack_exception
from desist._core import (
    Cancelled,
    CancelSource,
    CancelToken,
    Killed,
    ParentWatch,
    Task,
    call_for_effect,
    call_masked,
    checkpoint,
    defer_kill,
)
from desist._future import BRIEFLY

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import FrameType, TracebackType

    from desist._core import Masked

T = TypeVar("T")

_RESULT_ADVICE = "return something that can be pickled, or nothing"


class ChildLease(Generic[T]):
    """The Lease of a handler in a worker process; its methods ask the parent."""

    def __init__(
        self,
        channel: Channel,
        token: CancelToken,
        item: T,
        progress: object,
        about: tuple[int | str, int, int],
    ) -> None:
        self.token = token
        self.item = item
        self.progress = progress
        self.id, self.attempt, self.epoch = about
        self._channel = channel

    def ack(self, result: object = None) -> None:
        """As Lease.ack(); TypeError, and no acknowledgement, if the result cannot be pickled."""
        self._ask(Verb.ACK, pickled(result, "the result", _RESULT_ADVICE))

    def nack(self, *, delay: float | None = None, reason: str | None = None) -> None:
        """As Lease.nack()."""
        self._ask(Verb.NACK, pickle.dumps((delay, reason), CODE))

    def discard(self, reason: str | None = None) -> None:
        """As Lease.discard()."""
        self._ask(Verb.DISCARD, pickle.dumps(reason, CODE))

    def snooze(self, seconds: float, /) -> None:
        """As Lease.snooze()."""
        self._ask(Verb.SNOOZE, pickle.dumps(seconds, CODE))

    def heartbeat(self, progress: object = None) -> None:
        """As Lease.heartbeat()."""
        checkpoint()
        advice = "give something that can be pickled"
        self._ask(Verb.HEARTBEAT, pickled(progress, "the progress", advice))

    def commit(self) -> Commit:
        """As Lease.commit(). The parent agrees to it first, and defers SIGKILL until its end."""
        return Commit(self)

    def _ask(self, verb: Verb, payload: bytes = b"") -> None:
        # A kill in the middle would leave half a message.
        verb, payload = call_masked(self._channel.ask, verb, payload)
        if verb is Verb.REFUSED:
            raise unpack_exception(payload)

    def __repr__(self) -> str:
        return f"<Lease of item {self.id} attempt {self.attempt}>"


class Commit:
    """The block of ChildLease.commit(): it begins only when the parent has agreed to it."""

    def __init__(self, lease: ChildLease[Any]) -> None:
        self._lease = lease
        self._masked: Masked = defer_kill(BRIEFLY)

    def __enter__(self) -> None:
        checkpoint()
        self._masked.__enter__()
        try:
            self._lease._ask(Verb.COMMIT)  # noqa: SLF001 (its own module)
        except BaseException:
            self._masked.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        try:
            self._lease._ask(Verb.COMMITTED)  # noqa: SLF001 (its own module)
        finally:
            self._masked.__exit__(kind, value, traceback)


class ChildLoop:
    """Calls the handler for the items that come through the channel."""

    def __init__(
        self,
        handler: Callable[[Any], object],
        channel: Channel,
        watch: ParentWatch,
        defer: float,
    ) -> None:
        self._handler = handler
        self._channel = channel
        self._parent_watch = watch
        self._defer = defer
        self._process = os.getpid()
        self._idle = False
        self._leaves = False
        self._round = 0

    def on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        """Kill the handler, and leave the loop."""
        if os.getpid() != self._process:
            os._exit(128 + number)  # forked by the handler
        self._leaves = True
        if self._idle:
            sys.exit()
        self._parent_watch.deliver(self._defer)

    def run(self) -> None:
        """Work until the parent closes the channel, or SIGTERM comes."""
        with suppress(EOFError, BrokenPipeError):
            self._channel.write(Verb.READY, b"")
            while not self._leaves:
                self._idle = True
                message = self._channel.read()
                self._idle = False
                assert message is not None  # noqa: S101 (for the type checker: it blocks)
                self._round += 1
                self._channel.write(*self._work(message[1]))

    def _work(self, payload: bytes) -> tuple[Verb, bytes]:
        """Call the handler for one item; give the answer for the parent."""
        # The item and the progress are still bytes: this runs no code of their classes.
        item, progress, remaining, about = pickle.loads(payload)  # noqa: S301 (of our own parent)
        bound = None if remaining == math.inf else CancelSource(timeout=remaining)
        task = Task(f"item {about[0]}", bound and bound.token)
        outcome: list[Any] = []

        def body() -> object:
            lease: ChildLease[Any] = ChildLease(
                self._channel, task.token, _decoded(item), _decoded(progress), about
            )
            checkpoint()  # for a cancel that came meanwhile
            return call_for_effect(self._handler, lease)

        self._parent_watch.begin(self._round, task)
        # No variable that a handler sets is seen by the next one.
        task.run(lambda: Context().run(body), lambda *ended: outcome.extend(ended))
        if os.getpid() != self._process:
            os._exit(0)  # forked by the handler: the original process answers
        self._parent_watch.end()
        return self._told(*outcome)

    def _told(self, result: object, raised: BaseException | None) -> tuple[Verb, bytes]:
        if raised is None:
            try:
                return Verb.DONE, pickled(result, "the handler's result", _RESULT_ADVICE)
            except TypeError as failure:
                return Verb.RAISED, pack_exception(failure)
        if isinstance(raised, Killed):
            self._leaves = True
            stack = "".join(traceback.format_tb(raised.__traceback__))
            return Verb.KILLED, pickle.dumps(stack, CODE)
        if isinstance(raised, Cancelled):
            return Verb.CANCELLED, b""
        if isinstance(raised, (SystemExit, KeyboardInterrupt)):
            raise raised  # the handler has asked for the end of the process
        return Verb.RAISED, pack_exception(raised)


def _decoded(content: tuple[Callable[[bytes], Any], bytes] | None) -> Any:
    if content is None:
        return None
    decode, body = content
    return decode(body)


def main(
    handler: Callable[[Any], object],
    channel: Connection[Any, Any],
    line: Connection[Any, Any],
    parent: int,
    times: tuple[float, float],
) -> None:
    """Run a worker process.

    Args:
        handler: The function that is called for each item.
        channel: The socket to the pool's thread.
        line: The pipe from which cancellations are read.
        parent: The pid of the pool's process.
        times: Seconds that the process may go on once it is dismissed, and the policy's `defer`.
    """
    with suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C is for the parent; and this one's children end with it
    grace, defer = times
    watch = ParentWatch(os.dup(line.fileno()), parent, grace)
    line.close()
    if os.getppid() != parent:
        return
    atexit.register(_leave_nothing, watch, parent)
    loop = ChildLoop(handler, Channel(channel.fileno()), watch, defer)
    signal.signal(signal.SIGTERM, loop.on_sigterm)
    loop.run()


def _leave_nothing(watch: ParentWatch, parent: int) -> None:
    """Kill the process group, unless the parent will: it has ended, or dismissed this process."""
    if (watch.dismissed or os.getppid() != parent) and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
