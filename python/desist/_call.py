"""call(): a function is called elsewhere, and its caller has control back in time.

Guarantees: the caller waits no longer than the time limit, `kill_after` and twice `_FORCED_FOR`,
whatever the function does; with ``abandon=False`` it waits until the function has ended. A function
that has not ended is killed meanwhile, and abandoned if that does not end it. No more than
`_MAX_ABANDONED` such functions run on threads at a time.

How: the function runs as work of an executor that all calls share, or of a pool of one process. On
a thread it is under the scope of the caller, in a block of its own with the deadline. The caller
waits for it, and begins the kill at the deadline, or when it is stopped itself.
"""

from __future__ import annotations

import math
import os
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from desist._channel import pickled
from desist._core import (
    LeaseQueue,
    ProcessStopPolicy,
    RetryPolicy,
    Simulation,
    StopPolicy,
    call_within,
    check_runnable,
    current_time,
    fail_after,
    shield,
    wait_any,
)
from desist._enums import TaskState
from desist._exceptions import DeadlineExceeded
from desist._executor import ThreadPoolExecutor
from desist._pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist._core import KillReport, Lease
    from desist._executor import TaskFuture
    from desist._item_future import ItemFuture

_R = TypeVar("_R")

_MAX_ABANDONED = 16
"""So many abandoned functions of all calls may run at a time."""

KILL_AFTER = 0.1
"""Seconds after the time limit until force is used, unless the call says otherwise."""

_FORCED_FOR = 0.1
"""Seconds for force, and then again for its report."""


def call(
    fn: Callable[..., _R],
    /,
    *args: Any,
    timeout: float | None,
    kill_after: float = KILL_AFTER,
    abandon: bool = True,
    isolation: Literal["process"] | None = None,
) -> _R:
    """Call `fn(*args)` elsewhere, and have control back in time, whatever `fn` does.

    `fn` runs on another thread, in a copy of the calling code's context (contextvars), and under
    its scope. It is for code that may not stop when it is asked to; for other code a block with
    fail_after() costs less. Keyword arguments are for functools.partial().

    After `timeout` seconds (None: no limit) `fn` is asked to stop: its waits and blocking calls
    end with Cancelled, and its clean-up blocks have `kill_after` seconds. Then it is killed, rung
    by rung, for 0.1 seconds. If that does not end it, it is abandoned: its thread runs on. The
    `report` of the exception says so, and where the thread is. With ``abandon=False`` call() waits
    for its end.

    C code that keeps the interpreter to itself, as a regular expression does, stops all threads,
    the caller's as well. ``isolation="process"`` calls `fn` in a process of its own, which SIGKILL
    ends in any case: `fn`, its arguments and its result are pickled, and the start of the process
    takes a part of the time.

    In simulated time, in which no code is killed, `fn` runs on the calling thread.

    Blocks: until `fn` has ended; at most for `timeout` + `kill_after` + 0.2 seconds, unless
    `abandon` is false.

    On cancel: of the calling code: `fn` is cancelled, too, and killed `kill_after` seconds later.
    Cancelled is raised when it has ended or was abandoned.

    On timeout: DeadlineExceeded, when `fn` has ended or was abandoned. If `fn` returns or raises
    before it is killed, that is the result.

    On kill: of the calling code: as on cancel, with Killed.

    Raises:
        PoolExhausted: more than 16 functions were abandoned, and still run.
        TypeError: `fn` is not callable, or its call would not run its code; or the call cannot be
            pickled for a process.
        ValueError: a time that is negative or NaN, or another isolation.
        WorkerDied: the process has ended before `fn` did.
    """
    check_runnable(fn, "fn")
    check_isolation(isolation)
    deadline = fail_after(timeout).deadline  # raises for a time that is not valid
    if Simulation.is_current():  # no code is killed there
        return call_within(fn, args, {}, timeout, grace=kill_after)
    if isolation is None:
        stop: StopPolicy | ProcessStopPolicy = StopPolicy(
            cooperative=kill_after,
            at_wait=0.0,
            async_exc=_FORCED_FOR / 2,
            trace=_FORCED_FOR / 2,
            defer=_FORCED_FOR / 2,
            abandon=abandon,
        )
        work = _executor.submit(call_within, fn, args, {}, timeout, grace=kill_after)
        return _result(work, deadline, kill_after, stop)
    stop = ProcessStopPolicy(cooperative=kill_after, sigterm=_FORCED_FOR / 2, abandon=abandon)
    advice = "give a function at the top level of a module, and arguments that can be pickled"
    item = pickled((fn, args), "the call", advice)
    queue: LeaseQueue[bytes] = LeaseQueue(retry=RetryPolicy(max_attempts=1))
    with WorkerPool(_call_item, workers=1, queue=queue, isolation="process", policy=stop) as pool:
        result: _R = _result(pool.submit(item), deadline, kill_after, stop)
        return result


def check_isolation(isolation: object) -> None:
    """Raise ValueError for an isolation that there is not."""
    if isolation not in (None, "process"):
        message = f'isolation must be None or "process", not {isolation!r}'
        raise ValueError(message)


def _result(
    work: TaskFuture[_R] | ItemFuture[_R],
    deadline: float,
    kill_after: float,
    policy: Any,  # of the same kind
) -> _R:
    """Wait for the result until the deadline; end the work if it has none by then."""
    try:
        wait_any(work, timeout=deadline - current_time())
    except BaseException:
        _end(work, "the code that waited for it was stopped", kill_after, policy)
        raise
    report = None
    if not work.done():
        report = _end(work, "it was not done in time", kill_after, policy)
    if work.done() and work.state not in _ENDED:
        return work.result()
    late = DeadlineExceeded("the deadline passed before the function was done")
    late.report = report
    raise late


_ENDED = {TaskState.CANCELLED, TaskState.KILLED, TaskState.ABANDONED}
"""The states in which the work has no result, because it was ended."""


def _end(
    work: TaskFuture[Any] | ItemFuture[Any], reason: str, kill_after: float, policy: Any
) -> KillReport | None:
    """Kill the work, and return the report; None: a block defers the kill for longer."""
    with shield(math.inf):
        killing = work.kill_soon(reason, policy=policy)
        if not policy.abandon:
            wait_any(work)
        with suppress(TimeoutError):
            return killing.result(kill_after + 2 * _FORCED_FOR)
    return None


_MOST_THREADS = 1_000_000
"""More than a system has: no call waits for another one's thread."""


def _make_executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        _MOST_THREADS, "desist-call", inherit=True, max_abandoned=_MAX_ABANDONED
    )


_executor = _make_executor()
"""Of all calls. A forked child has another one: the threads are in the parent process."""


def _after_fork() -> None:
    global _executor  # noqa: PLW0603 (see there)
    _executor = _make_executor()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _call_item(lease: Lease[bytes]) -> Any:
    """Make the call, in the process."""
    fn, args = pickle.loads(lease.item)  # noqa: S301 (of our own parent)
    return fn(*args)
