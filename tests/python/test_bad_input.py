"""Invalid input is refused by an error that says what to do, and leaves nothing behind."""

from __future__ import annotations

import concurrent.futures
import logging
import math
import sys
import threading
from contextlib import nullcontext, suppress
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    CancelSource,
    CancelToken,
    Fenced,
    LeaseQueue,
    Lock,
    ProcessStopPolicy,
    RestartPolicy,
    RetryPolicy,
    ScopeMisuse,
    StopPolicy,
    WorkerPool,
)
from desist._core import Latch, Task
from support import NEVER, drained, in_child, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

# --- times ----------------------------------------------------------------------------------------

SPANS: dict[str, Callable[[Any], object]] = {
    "cancel_scope": lambda span: desist.cancel_scope(timeout=span),
    "cancel_scope grace": lambda span: desist.cancel_scope(grace=span),
    "cancel_scope kill_after": lambda span: desist.cancel_scope(kill_after=span),
    "move_on_after kill_after": lambda span: desist.move_on_after(1, kill_after=span),
    "fail_after kill_after": lambda span: desist.fail_after(1, kill_after=span),
    "deadline": desist.deadline,
    "deadline grace": lambda span: desist.deadline(1, grace=span),
    "deadline kill_after": lambda span: desist.deadline(1, kill_after=span),
    "move_on_after": desist.move_on_after,
    "move_on_after grace": lambda span: desist.move_on_after(1, grace=span),
    "fail_after": desist.fail_after,
    "fail_after grace": lambda span: desist.fail_after(1, grace=span),
    "shield": desist.shield,
    "cleanup": desist.cleanup,
    "sleep": desist.sleep,
    "source": lambda span: CancelSource(timeout=span),
    "source cancel": lambda span: CancelSource().cancel(grace=span),
    "scope cancel": lambda span: desist.cancel_scope().cancel(grace=span),
    "thread cancel": lambda span: desist.Thread().cancel(grace=span),
    "token wait": CancelSource().token.wait,
    "defer_kill": desist.defer_kill,
    "lock": lambda span: Lock().acquire(timeout=span),
    "queue": lambda span: LeaseQueue().lease(span),
    "drain": lambda span: drained(LeaseQueue(), span),
    "nack": lambda span: leased(LeaseQueue()).nack(delay=span),
    "registration": lambda span: CancelSource().token.on_cancel(print).close(span),
    "policy cooperative": lambda span: StopPolicy(cooperative=span),
    "policy at_wait": lambda span: StopPolicy(at_wait=span),
    "policy async_exc": lambda span: StopPolicy(async_exc=span),
    "policy trace": lambda span: StopPolicy(trace=span),
    "policy defer": lambda span: StopPolicy(defer=span),
    "process policy cooperative": lambda span: ProcessStopPolicy(cooperative=span),
    "process policy sigterm": lambda span: ProcessStopPolicy(sigterm=span),
    "process policy sigkill": lambda span: ProcessStopPolicy(sigkill=span),
    "process policy defer": lambda span: ProcessStopPolicy(defer=span),
    "put delay": lambda span: LeaseQueue[int]().put(1, delay=span),
    "put expires": lambda span: LeaseQueue[int]().put(1, expires=span),
    "put timeout": lambda span: LeaseQueue[int]().put(1, timeout=span),
    "lease_timeout": lambda span: LeaseQueue(lease_timeout=span),
    "op": desist.Op.after,
    "retry backoff": lambda span: RetryPolicy(backoff=span),
    "retry max_backoff": lambda span: RetryPolicy(max_backoff=span),
}
started = desist.Thread(target=desist.sleep_forever, daemon=True)
started.start()
# A negative time has passed, as with the classes of the standard library.
TIMEOUTS: dict[str, Callable[[Any], object]] = {
    "event": lambda span: desist.Event().wait(span),
    "condition": lambda span: in_condition(lambda condition: condition.wait(span)),
    "condition for": lambda span: in_condition(lambda condition: condition.wait_for(bool, span)),
    "semaphore": lambda span: desist.Semaphore(0).acquire(timeout=span),
    "barrier": lambda span: desist.Barrier(2).wait(span),
    "barrier default": lambda span: desist.Barrier(2, timeout=span).wait(),
    "latch": lambda span: Latch().wait(span),
    "task": lambda span: Task("").wait(span),
    "thread": started.join,
    "wait_any": lambda span: desist.wait_any(desist.Event(), timeout=span),
    "readable": lambda span: desist.wait_readable(0, span),
    "future": lambda span: desist.Future[None]().result(span),
    "future exception": lambda span: desist.Future[None]().exception(span),
}
# A negative time is refused by the queues.
QUEUES: dict[str, Callable[[Any], object]] = {
    "get": lambda span: desist.Queue[int]().get(timeout=span),
    "simple get": lambda span: desist.SimpleQueue[int]().get(timeout=span),
    "put": lambda span: full(desist.Queue(1)).put(1, timeout=span),
    "priority get": lambda span: desist.PriorityQueue[int]().get(timeout=span),
    "priority put": lambda span: full(desist.PriorityQueue(1)).put(1, timeout=span),
}
INSTANTS: dict[str, Callable[[Any], object]] = {
    "cancel_scope": lambda instant: desist.cancel_scope(deadline=instant),
    "move_on_after": lambda instant: desist.move_on_after(deadline=instant),
    "fail_after": lambda instant: desist.fail_after(deadline=instant),
    "sleep_until": desist.sleep_until,
    "source": lambda instant: CancelSource(deadline=instant),
    "moved": lambda instant: setattr(desist.cancel_scope(), "deadline", instant),
}


def in_condition(wait: Callable[[desist.Condition], object]) -> object:
    condition = desist.Condition()
    with condition:
        return wait(condition)


def full(queue: desist.Queue[int]) -> desist.Queue[int]:
    queue.put(1)
    return queue


def leased(queue: LeaseQueue[Any]) -> desist.Lease[Any]:
    queue.put(1)
    lease = queue.lease(0)
    assert lease is not None
    return lease


@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("span", [-0.5, -math.inf, -2])
def test_a_negative_time_is_refused(name: str, span: float) -> None:
    with pytest.raises(ValueError, match="must not be negative, but is -"):
        SPANS[name](span)


@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("span", [-1e-300, -1e300, -(10**400), Fraction(-1, 3)], ids=repr)
def test_a_negative_time_is_shown_briefly(name: str, span: Any) -> None:
    with pytest.raises(ValueError, match="must not be negative, but is -") as refused:
        SPANS[name](span)
    assert len(str(refused.value)) < 100


class Real:
    """A number, as those of other libraries are: with `__float__` alone."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


class Whole:
    """An integer, as those of other libraries are: with `__index__` alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class BrokenError(Exception):
    """An exception of a number's own."""


class Broken:
    """A number that cannot be converted."""

    def __float__(self) -> float:
        raise BrokenError


class BrokenWhole:
    """As `Broken`, but an integer."""

    def __index__(self) -> int:
        raise BrokenError


EVERYWHERE = {**SPANS, **TIMEOUTS, **QUEUES}


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize(
    "span",
    [True, 1, 1.5, Decimal("1.5"), Fraction(3, 2), Real(1.5), Whole(1), math.inf, 1e300, 10**400],
    ids=lambda span: type(span).__name__ + repr(span)[:10],
)
def test_any_number_is_a_time_and_a_great_one_never_passes(name: str, span: Any) -> None:
    # A lock has the bound of threading.Lock.
    refused = name == "lock" and span in (math.inf, 10**400, 1e300)
    with desist.move_on_after(0), pytest.raises(OverflowError) if refused else nullcontext():
        EVERYWHERE[name](span)
    if name != "lease_timeout":  # which must be more than 0
        with desist.move_on_after(0):
            EVERYWHERE[name](-0.0)


@pytest.mark.parametrize("name", TIMEOUTS)
def test_a_negative_timeout_has_passed(name: str) -> None:
    for span in (-1, -0.5, -math.inf, -(10**400), -1e-300):
        with suppress(TimeoutError, concurrent.futures.TimeoutError, threading.BrokenBarrierError):
            TIMEOUTS[name](span)


@pytest.mark.parametrize("name", QUEUES)
def test_a_negative_timeout_of_a_queue_is_refused(name: str) -> None:
    for span in (-1, -0.5, -math.inf, -(10**400), -1e-300):
        with pytest.raises(ValueError, match=r"must (be a non-|not be )negative"):
            QUEUES[name](span)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_time_that_is_not_a_number_is_refused(name: str) -> None:
    for span in (math.nan, Decimal("nan"), Real(math.nan)):
        with pytest.raises(ValueError, match="must not be NaN; give a number"):
            EVERYWHERE[name](span)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize(
    "span",
    ["5", b"5", [1], 1j, object(), timedelta(seconds=1)],
    ids=lambda span: type(span).__name__,
)
def test_a_time_of_another_type_is_refused(name: str, span: object) -> None:
    advice = r": give its total_seconds\(\)" if isinstance(span, timedelta) else ""
    kind = type(span).__name__
    with pytest.raises(TypeError, match=rf"must be a number of seconds, not {kind}{advice}(\n|$)"):
        EVERYWHERE[name](span)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("span", [Broken(), BrokenWhole()], ids=["float", "index"])
def test_an_exception_of_a_number_of_its_own_is_raised(name: str, span: Any) -> None:
    with pytest.raises(BrokenError):
        EVERYWHERE[name](span)


@pytest.mark.parametrize("name", INSTANTS)
@pytest.mark.parametrize(("instant", "error"), [(math.nan, ValueError), ("soon", TypeError)])
def test_an_invalid_instant_is_refused(name: str, instant: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="number of seconds"):
        INSTANTS[name](instant)


def test_a_lease_whose_requeue_was_refused_is_still_held() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    lease = leased(queue)
    with pytest.raises(ValueError, match="delay"):
        lease.nack(delay=-1)
    assert queue.counts()["leased"] == 1
    lease.ack()


def test_a_lock_whose_wait_was_refused_is_not_held() -> None:
    lock = Lock()
    with pytest.raises(ValueError, match="timeout must not be negative"):
        lock.acquire(timeout=-0.5)
    with pytest.raises(ValueError, match="non-blocking"):
        lock.acquire(blocking=False, timeout=1)
    with pytest.raises(OverflowError, match="leave it out"):
        lock.acquire(timeout=1e300)
    assert not lock.locked()


def test_a_timeout_together_with_a_deadline_is_refused() -> None:
    makers: list[Callable[..., object]]
    makers = [desist.cancel_scope, desist.move_on_after, desist.fail_after, CancelSource]
    for make in makers:
        with pytest.raises(TypeError, match="a timeout or a deadline, not both"):
            make(timeout=1, deadline=1)


# --- scopes ---------------------------------------------------------------------------------------

SCOPES: list[Callable[[], Any]] = [
    desist.cancel_scope,
    lambda: desist.fail_after(NEVER),
    lambda: desist.shield(NEVER),
    desist.cleanup,
]


@pytest.mark.parametrize("make", SCOPES)
def test_a_scope_entered_twice_is_refused(make: Callable[[], Any]) -> None:
    scope = make()
    with scope, pytest.raises(ScopeMisuse, match="make a new one for each block"):
        scope.__enter__()
    with pytest.raises(ScopeMisuse, match="make a new one for each block"), scope:
        pass
    assert desist.current_effective_deadline() == math.inf


@pytest.mark.parametrize("make", SCOPES)
def test_a_scope_left_by_another_thread_stays_open_where_it_belongs(
    make: Callable[[], Any],
) -> None:
    scope = make()
    with scope:
        deadline = desist.current_effective_deadline()
        with pytest.raises(ScopeMisuse, match=r"hand the other thread `scope\.token`"):
            in_thread(lambda: scope.__exit__(None, None, None))
        assert desist.current_effective_deadline() == deadline
    assert desist.current_effective_deadline() == math.inf


@pytest.mark.parametrize("make", SCOPES)
def test_a_scope_left_out_of_order_is_refused(make: Callable[[], Any]) -> None:
    scope, inner = make(), desist.cancel_scope(timeout=NEVER)
    scope.__enter__()
    with inner:
        with pytest.raises(ScopeMisuse, match="reverse of the order"):
            scope.__exit__(None, None, None)
        assert desist.current_effective_deadline() <= inner.deadline
    assert desist.current_effective_deadline() == math.inf


@pytest.mark.parametrize("make", SCOPES)
def test_a_scope_that_is_not_open_is_refused(make: Callable[[], Any]) -> None:
    scope = make()
    with pytest.raises(ScopeMisuse, match="enter it with a `with` statement"):
        scope.__exit__(None, None, None)
    with pytest.raises(ScopeMisuse, match="enter it with a `with` statement"):
        _ = scope.token
    with scope:
        pass
    with pytest.raises(ScopeMisuse, match="enter it with a `with` statement"):
        scope.__exit__(None, None, None)
    with pytest.raises(ScopeMisuse, match="enter it with a `with` statement"):
        scope.deadline = 1


def test_a_shield_must_say_how_long() -> None:
    with pytest.raises(TypeError, match="seconds"):
        desist.shield()  # type: ignore[call-arg]


# --- locks ----------------------------------------------------------------------------------------


def test_a_lock_that_is_not_held_cannot_be_released() -> None:
    lock = Lock()
    with pytest.raises(RuntimeError, match="acquire it first, and release it once"):
        lock.release()
    with lock:
        lock.release()
        assert lock.acquire(timeout=0)
    with pytest.raises(RuntimeError, match="acquire it first, and release it once"):
        lock.release()
    assert lock.acquire(timeout=0)


def test_an_unknown_on_kill_is_refused() -> None:
    with pytest.raises(ValueError, match='on_kill must be "poison" or "release", not "ignore"'):
        Lock(on_kill="ignore")  # type: ignore[arg-type, unused-ignore]


# --- leases ---------------------------------------------------------------------------------------


def test_a_lease_acknowledged_twice_is_refused() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    lease = leased(queue)
    lease.ack()
    with pytest.raises(Fenced, match="nothing was changed"):
        lease.ack()
    with pytest.raises(Fenced, match="nothing was changed"):
        lease.nack()
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 0}


def test_a_stale_lease_is_refused_and_the_current_one_is_good() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    stale = leased(queue)
    stale.nack()
    current = queue.lease(0)
    assert current is not None
    with pytest.raises(Fenced, match="this lease is over"):
        stale.ack()
    current.ack()
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 0}


def test_only_a_dead_item_can_be_retried() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    item_id = queue.put(1)
    with pytest.raises(ValueError, match=r"is not dead; dead\(\) lists"):
        queue.retry(item_id)
    with pytest.raises(ValueError, match=r"is not dead; dead\(\) lists"):
        queue.retry(99)
    assert queue.counts()["ready"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_attempts": 0}, "at least 1"),
        ({"jitter": 2}, "between 0 and 1"),
        ({"jitter": math.nan}, "between 0 and 1"),
    ],
    ids=str,
)
def test_an_invalid_retry_policy_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**arguments)


@pytest.mark.parametrize(
    ("handler", "arguments", "error", "message"),
    [
        (None, {}, TypeError, "handler must be callable, not NoneType"),
        (print, {"workers": 0}, ValueError, "workers must be at least 1, not 0"),
        (print, {"queue": 5}, TypeError, "queue must be a queue of leases, a path or a URL"),
        (print, {"policy": 3}, TypeError, "must be a StopPolicy, not int"),
        (print, {"policy": ProcessStopPolicy()}, TypeError, "must be a StopPolicy, not Process"),
        (
            print,
            {"policy": StopPolicy(), "isolation": "process"},
            TypeError,
            "must be a ProcessStopPolicy, not StopPolicy",
        ),
        (print, {"restart": 3}, TypeError, "restart must be a RestartPolicy, not int"),
        (print, {"on_event": 3}, TypeError, "on_event must be callable, not int"),
        (
            print,
            {"restart": RestartPolicy(-1)},
            ValueError,
            "intensity of RestartPolicy",
        ),
        (
            print,
            {"restart": RestartPolicy(1, math.nan)},
            ValueError,
            "period of RestartPolicy",
        ),
        (
            print,
            {"restart": RestartPolicy(max_abandoned=-1)},
            ValueError,
            "max_abandoned of Restart",
        ),
    ],
    ids=str,
)
def test_invalid_arguments_of_a_pool_are_refused(
    handler: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = threading.active_count()
    with pytest.raises(error, match=message):
        WorkerPool(handler, **arguments)
    assert threading.active_count() == before


# --- cancelling and killing -----------------------------------------------------------------------


def test_a_cancel_after_a_close_does_nothing() -> None:
    source = CancelSource()
    source.close()
    assert source.cancel("late") is False
    source.close()
    with desist.cancel_scope() as scope:
        pass
    assert scope.cancel("late") is False


def test_a_token_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="CancelToken"):
        CancelToken()
    with pytest.raises(TypeError):
        CancelToken.any_of(1)  # type: ignore[arg-type, unused-ignore]


def test_a_thread_that_is_not_started_cannot_be_killed() -> None:
    with pytest.raises(RuntimeError, match="start it first"):
        desist.Thread().kill()


def test_a_thread_cannot_kill_itself() -> None:
    refused: list[RuntimeError] = []

    def body() -> None:
        try:
            thread.kill()
        except RuntimeError as raised:
            refused.append(raised)

    thread = desist.Thread(target=body)
    thread.start()
    thread.join()
    assert "return from its function or raise" in str(refused[0])
    assert thread.state is desist.TaskState.DONE


def test_a_task_runs_once() -> None:
    task = Task("once")
    task.run(lambda: None)
    with pytest.raises(RuntimeError, match="make a new one for each run"):
        task.run(lambda: None)


# --- after a fork ---------------------------------------------------------------------------------


def test_queues_and_pools_are_refused_after_a_fork() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    queue.put(1)
    with WorkerPool[int, int](lambda lease: lease.item) as pool:
        assert "RuntimeError: this queue and its items belong to the parent" in in_child(
            lambda: queue.lease(0)
        )
        assert "make a new pool after a fork" in in_child(lambda: pool.submit(1))
        assert pool.submit(2).result() == 2
    assert queue.counts()["ready"] == 1


# --- callbacks and handlers -----------------------------------------------------------------------


def test_an_exception_of_a_callback_is_reported_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    lock, source, seen = Lock(), CancelSource(), list[int]()

    def callback(_: object) -> None:
        lock.acquire()
        raise ZeroDivisionError

    source.token.on_cancel(callback)
    source.token.on_cancel(lambda _: seen.append(1))
    child = CancelSource(source.token)
    assert source.cancel() is True
    assert child.token.cancelled
    assert seen == [1]
    assert told[0].exc_type is ZeroDivisionError
    assert told[0].object is callback
    told.clear()
    lock.release()


def test_a_callback_must_be_callable() -> None:
    source = CancelSource()
    with pytest.raises(TypeError, match="callable"):
        source.token.on_cancel(None)  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize("raised", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_an_exception_of_a_handler_releases_everything(
    raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    lock = Lock()
    queue: LeaseQueue[int] = LeaseQueue(retry=RetryPolicy(max_attempts=2, backoff=0))

    def handler(lease: desist.Lease[int]) -> int:
        lock.acquire()
        if lease.item == 1:
            raise raised
        return lease.item

    with caplog.at_level(logging.ERROR), WorkerPool(handler, workers=1, queue=queue) as pool:
        bad, good = pool.submit(1), pool.submit(2)
        assert isinstance(bad.exception(NEVER), raised)
        assert good.result(NEVER) == 2
        assert pool.workers_alive() == 1
    assert not lock.locked()
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 1}
