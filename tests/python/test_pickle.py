"""I45. Exceptions, causes, reports and policies survive pickle, copies and pools of processes."""

from __future__ import annotations

import concurrent.futures
import copy
import enum
import functools
import inspect
import math
import multiprocessing
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
import process_handlers as handlers
from desist import (
    CancelCause,
    Cancelled,
    CancelSource,
    CauseKind,
    Killed,
    KillOutcome,
    KillReport,
    LockPoisoned,
    OwnerLost,
    ProcessStopPolicy,
    RestartPolicy,
    RetryPolicy,
    StopPolicy,
    TaskAborted,
    TaskCancelled,
    WorkerDied,
    WorkerPool,
)
from desist import _exceptions as exceptions
from desist._pool import PoolStats
from desist.compat import FunctionTimedOut
from support import ABANDON, AT_WAIT, INSIST, NEVER, DeafEvent, Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def explicit() -> CancelCause:
    source = CancelSource()
    source.cancel("a reason", grace=0.25)
    cause = source.token.cause
    assert cause is not None
    return cause


def deadline() -> CancelCause:
    token = CancelSource(timeout=0).token
    token.wait()
    cause = token.cause
    assert cause is not None
    return cause


def cancelled() -> Cancelled:
    source = CancelSource()
    source.cancel("a reason")
    with pytest.raises(Cancelled) as raised:
        source.token.check()
    return raised.value


@functools.cache
def kill() -> tuple[Killed, KillReport, LockPoisoned]:
    """A kill of a thread that holds a lock: what it raised, its report, what the lock raises."""
    lock = desist.Lock(name="a lock")

    def body(ready: Callable[[], None]) -> None:
        lock.acquire()
        ready()
        with desist.shield(NEVER):
            desist.sleep_forever()

    with Victim(body) as victim:
        report = victim.kill("a reason", policy=INSIST)
    assert isinstance(victim.raised, Killed)
    with pytest.raises(LockPoisoned) as poisoned:
        lock.acquire()
    return victim.raised, report, poisoned.value


@functools.cache
def abandoned() -> tuple[KillReport, OwnerLost]:
    lock, end = desist.Lock(name="a lock"), DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        with lock:
            ready()
            end.wait()

    with Victim(body) as victim:
        report = victim.kill(policy=ABANDON)
        with pytest.raises(OwnerLost) as lost:
            lock.acquire()
        end.set()
    return report, lost.value


@functools.cache
def aborted() -> TaskAborted:
    begun = threading.Event()

    def body() -> None:
        with desist.shield(NEVER):
            begun.set()
            desist.sleep_forever()

    with desist.ThreadPoolExecutor(1) as executor:
        future = executor.submit(body)
        begun.wait()
        future.kill(policy=AT_WAIT)
        failure = future.exception()
    assert isinstance(failure, TaskAborted)
    return failure


def exceeded() -> desist.DeadlineExceeded:
    with pytest.raises(desist.DeadlineExceeded) as raised, desist.fail_after(0):
        desist.checkpoint()
    return raised.value


def misused() -> desist.ScopeMisuse:
    scope = desist.cancel_scope()
    with scope, pytest.raises(desist.ScopeMisuse) as raised:
        scope.__enter__()
    return raised.value


VALUES: dict[str, Callable[[], Any]] = {
    "CancelCause": explicit,
    "CancelCause of a deadline": deadline,
    "Cancelled": cancelled,
    "CancelledSwallowedWarning": lambda: desist.CancelledSwallowedWarning("text"),
    "DeadlineExceeded": exceeded,
    "Deadlock": lambda: exceptions.Deadlock("text"),
    "Fenced": lambda: desist.Fenced("text"),
    "FunctionTimedOut": lambda: FunctionTimedOut("", 1.5, math.sin, (1,), {}),
    "ItemInfo": lambda: desist.ItemInfo(7, "leased", 1, 0.5, "host/1/worker", "key"),
    "KillReport": lambda: kill()[1],
    "KillReport of an abandoned thread": lambda: abandoned()[0],
    "KillReport of nothing": KillReport.already_done,
    "Killed": lambda: kill()[0],
    "LeakError": lambda: exceptions.LeakError("text"),
    "LockPoisoned": lambda: kill()[2],
    "LockUnavailable": lambda: desist.LockUnavailable("text", "owner", explicit(), "stack"),
    "OwnerLost": lambda: abandoned()[1],
    "PoolExhausted": lambda: desist.PoolExhausted("text"),
    "PoolFailed": lambda: desist.PoolFailed("text"),
    "PoolStats": lambda: PoolStats._make(range(len(PoolStats._fields))),
    "ProcessStopPolicy": ProcessStopPolicy,
    "ProcessStopPolicy with all fields": lambda: ProcessStopPolicy(
        cooperative=0.1, sigterm=None, sigkill=math.inf, defer=1e-9, abandon=False
    ),
    "QueueFileError": lambda: desist.QueueFileError("text"),
    "RestartPolicy": lambda: RestartPolicy(intensity=7),
    "RetryPolicy": lambda: RetryPolicy(max_attempts=2, backoff=0.3, max_backoff=7, jitter=0.1),
    "RetryPolicy with types": lambda: RetryPolicy(
        retry_for=OSError, discard_for=(KeyError, EOFError)
    ),
    "RungReport": lambda: kill()[1].rungs[-1],
    "ScopeMisuse": misused,
    "ShutDown": lambda: desist.ShutDown("text"),
    "StopPolicy": StopPolicy,
    "StopPolicy with all fields": lambda: StopPolicy(
        cooperative=0.1,
        at_wait=None,
        async_exc=math.inf,
        trace=1e9 + 0.1,
        defer=1e-9,
        abandon=False,
    ),
    "SweepError": lambda: exceptions.SweepError(
        "text", point=3, function="fn", filename="file", line=5, offset=8
    ),
    "TaskAborted": aborted,
    "TaskCancelled": lambda: TaskCancelled(explicit()),
    "Unblocked": lambda: exceptions.Unblocked([7]),
    "WorkEvent": lambda: desist.WorkEvent("failed", 7, 1, "worker", TaskCancelled(explicit())),
    "WorkerDied": lambda: WorkerDied("text", -9),
}
"""By the name of its class, and what is special."""

PYTHON: Any = pickle
"""The pickler in Python, which takes other ways than the one in C."""

ENUMS = {"CauseKind", "KillOutcome", "TaskState"}


def fields(value: object) -> Any:
    """Everything that Python code can read of a value, in a form that can be compared."""
    if value is None or isinstance(value, (str, int, float, bytes, enum.Enum)):
        return value
    if isinstance(value, (list, tuple)):
        return [fields(part) for part in value]
    if isinstance(value, dict):
        return {name: fields(part) for name, part in value.items()}
    if callable(value):
        return value
    native = type(value)
    read = [name for name in dir(native) if inspect.isdatadescriptor(getattr(native, name))]
    own = {*read, *getattr(value, "__dict__", ())}
    return {
        "class": native,
        "text": str(value),
        **{name: fields(getattr(value, name, None)) for name in own if not name.startswith("__")},
        "notes": getattr(value, "__notes__", None),
    }


WAYS: dict[str, Callable[[Any], Any]] = {
    **{
        f"pickle, protocol {protocol}": functools.partial(
            lambda protocol, value: pickle.loads(pickle.dumps(value, protocol)), protocol
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    **{
        f"pickle in Python, protocol {protocol}": functools.partial(
            lambda protocol, value: PYTHON._loads(PYTHON._dumps(value, protocol)),
            protocol,
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", VALUES)
def test_i45_a_copy_has_the_type_and_all_fields(name: str, way: str) -> None:
    value = VALUES[name]()
    assert name.startswith(type(value).__name__)
    copied = WAYS[way](value)
    assert fields(copied) == fields(value)


@pytest.mark.parametrize("way", WAYS)
def test_i45_a_copied_member_of_an_enum_is_the_member(way: str) -> None:
    for member in (*CauseKind, *KillOutcome, *desist.TaskState):
        assert WAYS[way](member) is member


def test_i45_equal_values_are_equal_after_the_way() -> None:
    for value in (explicit(), deadline(), StopPolicy(trace=0.3), RetryPolicy(), kill()[1].rungs[0]):
        copied = pickle.loads(pickle.dumps(value))
        assert copied == value


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no notes before 3.11")
@pytest.mark.parametrize("name", ["Cancelled", "Killed", "LockPoisoned", "TaskCancelled"])
def test_i45_notes_are_kept(name: str) -> None:
    value = VALUES[name]()
    value.add_note("a note")
    try:
        assert pickle.loads(pickle.dumps(value)).__notes__ == ["a note"]
    finally:
        del value.__notes__


def test_i45_a_subclass_with_a_constructor_of_its_own_is_kept() -> None:
    copied = pickle.loads(pickle.dumps(Unavailable(7)))
    assert (type(copied), copied.number, copied.owner) == (Unavailable, 7, "owner")


class Unavailable(LockPoisoned):
    def __init__(self, number: int) -> None:
        super().__init__("text", "owner", explicit(), None)
        self.number = number


def test_i45_a_copied_stop_is_no_stop_of_this_thread() -> None:
    copied = pickle.loads(pickle.dumps(cancelled()))
    with pytest.raises(Cancelled), desist.cancel_scope() as scope:
        raise copied
    assert not scope.cancelled_caught
    desist.checkpoint()


# --- every class is accounted for -----------------------------------------------------------------

LIVE = {
    "Barrier", "BoundedSemaphore", "CancelScope", "CancelSource", "CancelToken", "Condition",
    "Event", "FailScope", "FileQueue", "Future", "Guarded", "ItemFuture", "Lease", "LeaseQueue",
    "LifoQueue", "Lock", "Op", "PriorityQueue", "Queue", "RLock", "Semaphore", "SimpleQueue",
    "Task", "TaskFuture", "TaskGroup", "Thread", "ThreadPoolExecutor", "Timer", "Worker",
    "WorkerPool",
}  # fmt: skip
"""Objects of one process, which refuse to be pickled."""


def public_classes() -> Iterator[type]:
    for name in desist.__all__:
        thing = getattr(desist, name)
        if inspect.isclass(thing):
            yield thing


def exception_classes() -> Iterator[type]:
    for name, thing in vars(exceptions).items():
        own = inspect.isclass(thing) and thing.__module__.startswith("desist")
        if own and issubclass(thing, BaseException) and not name.startswith("_"):
            yield thing


def test_i45_every_public_class_and_every_exception_is_a_value_or_refuses() -> None:
    described = {name.split(" ")[0].split(".")[0] for name in VALUES} | ENUMS | LIVE
    classes = {thing.__name__ for thing in (*public_classes(), *exception_classes())}
    assert classes - described <= {"AnyTimeoutError"}  # a base class on 3.10


def leases() -> desist.Lease[int]:
    queue: desist.LeaseQueue[int] = desist.LeaseQueue()
    queue.put(1)
    lease = queue.lease()
    assert lease is not None
    return lease


LIVE_OBJECTS: dict[str, Callable[[], object]] = {
    "Barrier": lambda: desist.Barrier(2),
    "BoundedSemaphore": desist.BoundedSemaphore,
    "CancelScope": desist.cancel_scope,
    "CancelSource": CancelSource,
    "CancelToken": lambda: CancelSource().token,
    "Condition": desist.Condition,
    "Event": desist.Event,
    "FailScope": lambda: desist.fail_after(1),
    "Future": desist.Future,
    "Guarded": lambda: desist.Guarded(1),
    "Lease": leases,
    "LeaseQueue": desist.LeaseQueue,
    "LifoQueue": desist.LifoQueue,
    "Lock": desist.Lock,
    "Op": CancelSource().token.cancelled_op,
    "PriorityQueue": desist.PriorityQueue,
    "Queue": desist.Queue,
    "RLock": desist.RLock,
    "Registration": lambda: CancelSource().token.on_cancel(print),
    "Semaphore": desist.Semaphore,
    "SimpleQueue": desist.SimpleQueue,
    "TaskGroup": desist.TaskGroup,
    "Thread": desist.Thread,
    "ThreadPoolExecutor": lambda: desist.ThreadPoolExecutor(1),
    "Timer": lambda: desist.Timer(1, print),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", LIVE_OBJECTS)
def test_i45_an_object_of_one_process_refuses_to_be_pickled(name: str, protocol: int) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(LIVE_OBJECTS[name](), protocol)
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(LIVE_OBJECTS[name]())


# --- through pools of processes -------------------------------------------------------------------


def stuck() -> None:
    desist.sleep(NEVER)


FAILURES = [name for name in VALUES if issubclass(getattr(desist, name, int), BaseException)]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
def test_i45_the_pool_of_the_standard_library_survives_every_exception() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        futures = [(name, pool.submit(handlers.throw, VALUES[name]())) for name in FAILURES]
        for name, future in futures:
            failure = future.exception(NEVER)
            assert type(failure).__name__ == name
            assert vars(failure).keys() == vars(VALUES[name]()).keys()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_i45_a_forked_worker_that_inherits_a_cancelled_scope_says_cancelled() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("there is no fork here")
    context = multiprocessing.get_context("fork")
    forked = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
    with desist.move_on_after(0.2), forked as pool:
        future = pool.submit(stuck)
        with desist.shield(NEVER):
            failure = future.exception(NEVER)
    assert isinstance(failure, Cancelled)
    assert failure.cause.kind is CauseKind.DEADLINE


def test_i45_desist_worker_processes_keep_the_type_and_the_fields() -> None:
    once = RetryPolicy(max_attempts=1)
    queue: desist.LeaseQueue[Any] = desist.LeaseQueue(retry=once)
    with WorkerPool(handlers.throw_item, workers=1, queue=queue, isolation="process") as pool:
        for name in ("LockPoisoned", "OwnerLost", "TaskAborted", "TaskCancelled", "WorkerDied"):
            thrown = VALUES[name]()
            failure = pool.submit(thrown).exception()
            assert failure is not thrown
            assert fields(failure) == fields(thrown)
