"""Threads that can be stopped safely.

    import desist

    with desist.cancel_scope(timeout=5):
        desist.sleep(3600)  # DeadlineExceeded after 5 seconds

Code is asked to stop, what it held is given back, and force is the last rung.
"""

from desist._core import (
    CancelCause,
    Cancelled,
    CancelScope,
    CancelSource,
    CancelToken,
    Killed,
    KillReport,
    Lease,
    LeaseQueue,
    Lock,
    Registration,
    RetryPolicy,
    StopPolicy,
    Timeout,
    cancel_scope,
    checkpoint,
    cleanup,
    current_effective_deadline,
    current_time,
    current_token,
    fail_after,
    fail_at,
    move_on_after,
    move_on_at,
    shield,
    sleep,
    sleep_forever,
    sleep_until,
)
from desist._enums import CauseKind, Outcome, TaskState
from desist._exceptions import (
    CancelledSwallowedWarning,
    DeadlineExceeded,
    Fenced,
    LockPoisoned,
    OwnerLost,
    PoolExhausted,
    ScopeMisuse,
    TaskCancelled,
)
from desist._pool import Future, WorkerPool
from desist._thread import Thread

timeout = fail_after  # asyncio's name for it

__all__ = [
    "CancelCause",
    "CancelScope",
    "CancelSource",
    "CancelToken",
    "Cancelled",
    "CancelledSwallowedWarning",
    "CauseKind",
    "DeadlineExceeded",
    "Fenced",
    "Future",
    "KillReport",
    "Killed",
    "Lease",
    "LeaseQueue",
    "Lock",
    "LockPoisoned",
    "Outcome",
    "OwnerLost",
    "PoolExhausted",
    "Registration",
    "RetryPolicy",
    "ScopeMisuse",
    "StopPolicy",
    "TaskCancelled",
    "TaskState",
    "Thread",
    "Timeout",
    "WorkerPool",
    "cancel_scope",
    "checkpoint",
    "cleanup",
    "current_effective_deadline",
    "current_time",
    "current_token",
    "fail_after",
    "fail_at",
    "move_on_after",
    "move_on_at",
    "shield",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "timeout",
]
