"""The exceptions and warnings that are written in Python.

The extension raises them by name, so a class's name and the parameters of its constructor are part
of its interface. Cancelled and Killed, which only the core makes, are classes of the extension.
"""

from __future__ import annotations

import concurrent.futures
import copyreg
import sys
from queue import Empty, Full
from threading import BrokenBarrierError

from desist._enums import KillOutcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from desist._core import CancelCause, KillReport

__all__ = [
    "BrokenBarrierError",
    "CancelledSwallowedWarning",
    "DeadlineExceeded",
    "Deadlock",
    "Empty",
    "Fenced",
    "Full",
    "LeakError",
    "LockPoisoned",
    "LockUnavailable",
    "OwnerLost",
    "PoolExhausted",
    "PoolFailed",
    "ScopeMisuse",
    "ShutDown",
    "TaskAborted",
    "TaskCancelled",
    "Unblocked",
    "WorkerDied",
]

if TYPE_CHECKING or sys.version_info >= (3, 11):
    AnyTimeoutError = TimeoutError
else:
    # Before 3.11 these are classes of their own, and code catches them by these names.
    from asyncio.exceptions import TimeoutError as _AsyncioTimeout

    class AnyTimeoutError(TimeoutError, concurrent.futures.TimeoutError, _AsyncioTimeout):
        """Every exception of the standard library that means "timed out"."""


if TYPE_CHECKING or sys.version_info < (3, 13):

    class ShutDown(Exception):
        """The queue was shut down."""

else:
    from queue import ShutDown


class _WithFields(BaseException):
    """An exception with fields, whose constructor takes others than `args`.

    Exceptions are pickled and copied by a call of the class with `args`. This one is made without a
    call of `__init__`, and its fields are set.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class DeadlineExceeded(AnyTimeoutError):
    """The block's own deadline passed before the block ended.

    `report`, of desist.call() alone: how the function was ended. None there: it ended by itself at
    its deadline, or a block still defers its kill.
    """

    report: KillReport | None = None


class ScopeMisuse(RuntimeError):
    """A scope was used in a way that cannot work; the message says what to do instead."""


class LockUnavailable(_WithFields, RuntimeError):
    """The lock cannot be acquired, because of how its last holder ended; it is not held.

    `owner` is that holder's name, `cause` why it was killed, `stack` where it was, as text.
    """

    def __init__(self, message: str, owner: str, cause: CancelCause, stack: str | None) -> None:
        """Keep the holder's name, the cause of its kill, and its stack."""
        super().__init__(message)
        self.owner = owner
        self.cause = cause
        self.stack = stack


class LockPoisoned(LockUnavailable):
    """The lock's last holder was killed inside, so its data may be half changed.

    Restore the data inside ``with lock.repair():``; afterwards the lock can be acquired again.
    """


class OwnerLost(LockUnavailable):
    """The lock's holder was abandoned and may still be inside, so the lock is lost for good.

    Use a new lock. A lock with ``fenced=True`` is not lost when its holder is abandoned.
    """


class Fenced(RuntimeError):
    """The lease, or the hold of a lock, has ended, so the operation changed nothing.

    Leave the item, or the data that the lock protects, alone: another holder may have it now.
    """


class PoolExhausted(RuntimeError):
    """The pool has stopped: its workers had to be replaced more often than its limits allow.

    Find out what the workers block in (KillReport.blocked), or raise the limits.
    """


class PoolFailed(RuntimeError):
    """The pool has stopped because its queue failed; `__cause__` is the queue's exception.

    Unfinished items are still in the queue: make a new pool for it once it works again.
    """


class WorkerDied(RuntimeError):
    """The process in which a handler was called has ended before the handler did.

    `exitcode` is negative for the signal that ended it; None: its status was taken elsewhere.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.exitcode = exitcode


class TaskCancelled(_WithFields, concurrent.futures.CancelledError):
    """Another task was cancelled, so it has no result. An ordinary exception."""

    def __init__(self, cause: CancelCause) -> None:
        """Keep the cause."""
        super().__init__(str(cause))
        self.cause = cause


class QueueFileError(OSError):
    """The file of a FileQueue cannot be used; nothing was done, and the message says what to do."""


class TaskAborted(_WithFields, Exception):
    """Another task was killed, or abandoned while it still runs, so it has no result.

    `outcome` is the rung that ended it; ABANDONED: none did.
    """

    def __init__(self, name: str, outcome: KillOutcome, cause: CancelCause) -> None:
        """Keep the outcome and the cause."""
        how = (
            "was abandoned and may still run" if outcome is KillOutcome.ABANDONED else "was killed"
        )
        super().__init__(f"{name} {how} ({cause})")
        self.outcome = outcome
        self.cause = cause


class Unblocked(_WithFields, Exception):
    """The `__cause__` of a stop: the call returned after it was unblocked, or asked to stop.

    `result` is what it returned: because of that, or by itself in the same moment.
    """

    def __init__(self, result: object) -> None:
        """Keep the result."""
        super().__init__("the call returned after it was asked to stop; its result is kept here")
        self.result = result


class Deadlock(RuntimeError):
    """In a simulation, every thread waits and none has a deadline, so none will ever go on."""


class LeakError(AssertionError):
    """A block of no_leaks() left a thread, a deadline, a lock or an open block behind."""


class SweepError(_WithFields, AssertionError):
    """A sweep found a bytecode at which a stop breaks the state; the attributes say which."""

    def __init__(
        self, message: str, *, point: int, function: str, filename: str, line: int, offset: int
    ) -> None:
        """Keep the number of the bytecode and its place; 0 and empty if no run was stopped."""
        super().__init__(message)
        self.point = point
        self.function = function
        self.filename = filename
        self.line = line
        self.offset = offset


class CancelledSwallowedWarning(RuntimeWarning):
    """Code caught Cancelled and went on; re-raise it, or put clean-up into `cleanup()`."""
