"""Threads that can be stopped safely.

    import desist

    with desist.cancel_scope(timeout=5):
        desist.sleep(3600)  # DeadlineExceeded after 5 seconds

Code is first asked to stop, its locks and leases are released, and force is the last rung.
"""

import importlib as _importlib

# First: it refuses subinterpreters, which must not load the extension.
from desist import _surroundings as _surroundings  # isort: split

from desist import _pickling as _pickling
from desist._core import (
    Barrier,
    BoundedSemaphore,
    CancelCause,
    Cancelled,
    CancelScope,
    CancelSource,
    CancelToken,
    Condition,
    Event,
    FailScope,
    FileQueue,
    Guarded,
    Killed,
    KillReport,
    Lease,
    LeaseQueue,
    Lock,
    Op,
    ProcessStopPolicy,
    Queue,
    RetryPolicy,
    RLock,
    Semaphore,
    SimpleQueue,
    StopPolicy,
    cancel_scope,
    checkpoint,
    cleanup,
    current_effective_deadline,
    current_time,
    current_token,
    defer_kill,
    fail_after,
    move_on_after,
    notify_closing,
    protect_modules,
    set_foreign,
    shield,
    sleep,
    sleep_forever,
    sleep_until,
    wait_any,
    wait_readable,
    wait_writable,
)
from desist._enums import CauseKind, KillOutcome, TaskState
from desist._exceptions import (
    CancelledSwallowedWarning,
    DeadlineExceeded,
    Fenced,
    LockPoisoned,
    LockUnavailable,
    OwnerLost,
    PoolExhausted,
    PoolFailed,
    QueueFileError,
    ScopeMisuse,
    ShutDown,
    TaskAborted,
    TaskCancelled,
    WorkerDied,
)
from desist._future import Future
from desist._queue import LifoQueue, PriorityQueue
from desist._thread import Thread, Timer

# The names below are imported when they are first used: the names take 21 ms together and the
# modules 53 ms, beside 26 ms for all the rest (CPU time, CPython 3.11, two loaded cores).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from desist import aio as aio
    from desist import asgi as asgi
    from desist import compat as compat
    from desist import engines as engines
    from desist import socket as socket
    from desist import ssl as ssl
    from desist import subprocess as subprocess
    from desist import wsgi as wsgi
    from desist._bind import bind
    from desist._call import call
    from desist._deadline import deadline
    from desist._events import WorkEvent
    from desist._executor import TaskFuture, ThreadPoolExecutor
    from desist._foreign import foreign_status
    from desist._group import Task, TaskGroup, race
    from desist._interruptible import interruptible
    from desist._item_future import ItemFuture
    from desist._items import ItemInfo
    from desist._pool import WorkerPool
    from desist._signals import cancel_on_signal
    from desist._supervisor import RestartPolicy
    from desist._worker import Worker


def get_include() -> str:
    """The folder of desist.h, for native code that polls CancelToken.flag."""
    return __path__[0] + "/include"


__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "CancelCause",
    "CancelScope",
    "CancelSource",
    "CancelToken",
    "Cancelled",
    "CancelledSwallowedWarning",
    "CauseKind",
    "Condition",
    "DeadlineExceeded",
    "Event",
    "FailScope",
    "Fenced",
    "FileQueue",
    "Future",
    "Guarded",
    "ItemFuture",
    "ItemInfo",
    "KillOutcome",
    "KillReport",
    "Killed",
    "Lease",
    "LeaseQueue",
    "LifoQueue",
    "Lock",
    "LockPoisoned",
    "LockUnavailable",
    "Op",
    "OwnerLost",
    "PoolExhausted",
    "PoolFailed",
    "PriorityQueue",
    "ProcessStopPolicy",
    "Queue",
    "QueueFileError",
    "RLock",
    "RestartPolicy",
    "RetryPolicy",
    "ScopeMisuse",
    "Semaphore",
    "ShutDown",
    "SimpleQueue",
    "StopPolicy",
    "Task",
    "TaskAborted",
    "TaskCancelled",
    "TaskFuture",
    "TaskGroup",
    "TaskState",
    "Thread",
    "ThreadPoolExecutor",
    "Timer",
    "WorkEvent",
    "Worker",
    "WorkerDied",
    "WorkerPool",
    "bind",
    "call",
    "cancel_on_signal",
    "cancel_scope",
    "checkpoint",
    "cleanup",
    "current_effective_deadline",
    "current_time",
    "current_token",
    "deadline",
    "defer_kill",
    "fail_after",
    "foreign_status",
    "get_include",
    "interruptible",
    "move_on_after",
    "notify_closing",
    "protect_modules",
    "race",
    "set_foreign",
    "shield",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "wait_any",
    "wait_readable",
    "wait_writable",
]


_LAZY = {
    "aio": "aio",
    "asgi": "asgi",
    "bind": "_bind",
    "call": "_call",
    "cancel_on_signal": "_signals",
    "compat": "compat",
    "deadline": "_deadline",
    "engines": "engines",
    "foreign_status": "_foreign",
    "interruptible": "_interruptible",
    "ItemFuture": "_item_future",
    "race": "_group",
    "RestartPolicy": "_supervisor",
    "socket": "socket",
    "ssl": "ssl",
    "subprocess": "subprocess",
    "Task": "_group",
    "TaskFuture": "_executor",
    "TaskGroup": "_group",
    "ThreadPoolExecutor": "_executor",
    "Worker": "_worker",
    "WorkerPool": "_pool",
    "ItemInfo": "_items",
    "WorkEvent": "_events",
    "wsgi": "wsgi",
}


def __getattr__(name: str) -> object:
    """Import a lazy name."""
    where = _LAZY.get(name)
    # A kill in the middle of an import would leave the module's import lock held.
    with cleanup():
        if where is not None:
            module = _importlib.import_module(f"desist.{where}")
            found = module if where == name else getattr(module, name)
            return globals().setdefault(name, found)
    raise AttributeError(f"module 'desist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY} - {"TYPE_CHECKING"})
