"""Messages between a pool and one of its worker processes: each whole, or not at all.

A message is its length, a byte with its verb, and a pickle that only its recipient decodes. A write
or a question that was left in the middle marks the channel as torn; it then refuses every other
message, so that the other end never reads the rest of one message as the beginning of another.
"""

from __future__ import annotations

import enum
import os
import pickle
import struct
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = struct.Struct("!QB")
_CHUNK = 65536
CODE = pickle.HIGHEST_PROTOCOL


class Verb(enum.IntEnum):
    """The kind of a message."""

    # To the worker.
    WORK = 1
    OK = 2
    REFUSED = 3
    # From the worker: that it has started, and how the work ended.
    READY = 10
    DONE = 11
    RAISED = 12
    CANCELLED = 13
    KILLED = 14
    # From the worker, which waits for OK or REFUSED.
    ACK = 20
    NACK = 21
    HEARTBEAT = 22
    COMMIT = 23
    COMMITTED = 24
    DISCARD = 25
    SNOOZE = 26


class Channel:
    """One end of a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._torn = False

    def write(self, verb: Verb, payload: bytes, wait: Callable[[], object] | None = None) -> None:
        """Send a message; on a non-blocking socket, `wait()` waits until it is writable.

        Raises:
            BrokenPipeError: the other end is closed, and has not received the message; or this end
                was left in the middle of a message.
        """
        if self._torn:
            raise BrokenPipeError("the channel is torn: a message was only partly sent")
        self._torn = True
        left = memoryview(_HEAD.pack(len(payload), verb) + payload)
        try:
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:  # noqa: PERF203 (that is where it may come)
                    assert wait is not None  # noqa: S101 (for the type checker)
                    wait()
        except ConnectionResetError as gone:
            raise BrokenPipeError("the other end of the channel is closed") from gone
        self._torn = False

    def read(self) -> tuple[Verb, bytes] | None:
        """Read the next message; None if a non-blocking socket does not have it yet.

        Raises:
            EOFError: the other end is closed.
        """
        while True:
            message, missing = self._first()
            if message is not None:
                return message
            try:
                part = os.read(self._fd, max(_CHUNK, missing))
            except BlockingIOError:
                return None
            except ConnectionResetError:
                part = b""
            if not part:
                raise EOFError
            self._buffer += part

    def _first(self) -> tuple[tuple[Verb, bytes] | None, int]:
        """Take the first message out of the buffer, or tell how many bytes of it are missing."""
        buffer = self._buffer
        if len(buffer) < _HEAD.size:
            return None, 0
        length, verb = _HEAD.unpack_from(buffer)
        end = _HEAD.size + length
        if len(buffer) < end:
            return None, end - len(buffer)
        payload = bytes(memoryview(buffer)[_HEAD.size : end])
        del buffer[:end]
        return (Verb(verb), payload), 0

    def ask(self, verb: Verb, payload: bytes) -> tuple[Verb, bytes]:
        """Send a message, and wait for the answer. Any thread may call it."""
        with self._lock:
            self.write(verb, payload)
            self._torn = True
            answer = self.read()
            self._torn = False
        assert answer is not None  # noqa: S101 (for the type checker: it blocks)
        return answer


def pickled(what: object, name: str, advice: str) -> bytes:
    """Pickle an object, or raise TypeError with advice."""
    try:
        return pickle.dumps(what, CODE)
    except Exception as failure:
        message = f"{name} cannot be sent to another process ({failure}): {advice}"
        raise TypeError(message) from failure


class RemoteTraceback(Exception):
    """The traceback of an exception that comes from another process, as text."""

    def __init__(self, text: str) -> None:
        """Keep the text."""
        super().__init__(text)

    def __str__(self) -> str:
        """Quote the text as a block of its own."""
        return f'\n"""\n{self.args[0]}"""'


class LostException(RuntimeError):
    """Stands for an exception that has no pickle, with its text and the names of its types."""

    type_names: tuple[tuple[str, str], ...] = ()
    """Module and qualified name of its class and the base classes, for RetryPolicy."""


def _type_names(raised: BaseException) -> tuple[tuple[str, str], ...]:
    # In the process, the main module of the parent has a name of its own.
    return tuple(
        ("__main__" if kind.__module__ == "__mp_main__" else kind.__module__, kind.__qualname__)
        for kind in type(raised).__mro__
    )


def pack_exception(raised: BaseException) -> bytes:
    """Pickle an exception with its traceback as text; without the object if it has no pickle."""
    text = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__))
    summary = "".join(traceback.format_exception_only(type(raised), raised)).strip()
    try:
        itself = pickle.dumps(raised, CODE)
        pickle.loads(itself)  # noqa: S301 (our own)
    except Exception:  # noqa: BLE001 (whatever its class does)
        itself = b""
    return pickle.dumps((itself, summary, text, _type_names(raised)), CODE)


def unpack_exception(payload: bytes) -> BaseException:
    """Make the exception, with the other process's traceback as its cause.

    One that could not be pickled becomes a RuntimeError with its text.
    """
    itself, summary, text, names = pickle.loads(payload)  # noqa: S301 (of our own worker)
    raised: Any = None
    try:
        raised = pickle.loads(itself) if itself else None  # noqa: S301
    except Exception:  # noqa: BLE001 (its module may be known over there only)
        raised = None
    if not isinstance(raised, BaseException):
        raised = LostException(f"{summary} (raised in a worker process; it cannot be pickled)")
        raised.type_names = names
    failure: BaseException = raised
    failure.__cause__ = RemoteTraceback(text)
    return failure
