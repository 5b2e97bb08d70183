"""Messages between a pool and one of its worker processes: each whole, or not at all.

A message is a byte that says what it is, and a pickle that is looked at by whom it is for.
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
    """What a message is."""

    # To the worker.
    WORK = 1
    OK = 2
    REFUSED = 3
    # From the worker: what came of the work, and that it is there.
    READY = 10
    DONE = 11
    RAISED = 12
    CANCELLED = 13
    KILLED = 14
    # From the worker, which waits for an answer.
    ACK = 20
    NACK = 21
    HEARTBEAT = 22
    COMMIT = 23
    COMMITTED = 24


class Channel:
    """One end of a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._torn = False

    def write(self, verb: Verb, payload: bytes, wait: Callable[[], object] | None = None) -> None:
        """Send a message; `wait()` is for a socket that does not block, when it takes no more.

        BrokenPipeError: there is nobody at the other end, and the message has not come there. Or
        this end was left in the middle of a message.
        """
        if self._torn:
            raise BrokenPipeError("the last message was left in the middle")
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
            raise BrokenPipeError("nobody is at the other end") from gone
        self._torn = False

    def read(self) -> tuple[Verb, bytes] | None:
        """The next message; None if it is not there yet and the socket does not block.

        EOFError: there will be none.
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
        """The first of what has come, or how much is missing."""
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
        """Send a message, and wait for the answer; any thread may."""
        with self._lock:
            self.write(verb, payload)
            self._torn = True
            answer = self.read()
            self._torn = False
        assert answer is not None  # noqa: S101 (for the type checker: it blocks)
        return answer


def pickled(what: object, name: str, advice: str) -> bytes:
    """A pickle; TypeError with advice if there is none."""
    try:
        return pickle.dumps(what, CODE)
    except Exception as failure:
        message = f"{name} cannot be sent to another process ({failure}): {advice}"
        raise TypeError(message) from failure


class RemoteTraceback(Exception):
    """The traceback of an exception that comes from another process, as text."""

    def __init__(self, text: str) -> None:
        """Keep it."""
        super().__init__(text)

    def __str__(self) -> str:
        """The text, set apart."""
        return f'\n"""\n{self.args[0]}"""'


def pack_exception(raised: BaseException) -> bytes:
    """As much of an exception as can be sent."""
    text = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__))
    summary = "".join(traceback.format_exception_only(type(raised), raised)).strip()
    try:
        itself = pickle.dumps(raised, CODE)
        pickle.loads(itself)  # noqa: S301 (our own)
    except Exception:  # noqa: BLE001 (whatever its class does)
        itself = b""
    return pickle.dumps((itself, summary, text), CODE)


def unpack_exception(payload: bytes) -> BaseException:
    """The exception, its traceback over there as its cause; if it could not be sent, another."""
    itself, summary, text = pickle.loads(payload)  # noqa: S301 (of our own worker)
    raised: Any = None
    try:
        raised = pickle.loads(itself) if itself else None  # noqa: S301
    except Exception:  # noqa: BLE001 (its module may be known over there only)
        raised = None
    if not isinstance(raised, BaseException):
        raised = RuntimeError(f"{summary} (raised in a worker process; it cannot be pickled)")
    failure: BaseException = raised
    failure.__cause__ = RemoteTraceback(text)
    return failure
