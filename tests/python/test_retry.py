"""How a handler ends its item early: discard(), snooze(), and the exceptions of a RetryPolicy."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    CancelCause,
    CauseKind,
    Fenced,
    LeaseQueue,
    RetryPolicy,
    TaskCancelled,
    WorkerPool,
    testing,
)
from support import queue_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist import Lease

    Opened = Callable[[RetryPolicy], Any]

FINAL = RetryPolicy(max_attempts=1, backoff=0)
AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)


@pytest.fixture(params=["memory", "file"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens an empty queue with a policy."""
    return lambda retry: queue_of(request.param, tmp_path, retry=retry)


def leased(queue: Any) -> Lease[Any]:
    lease: Lease[Any] | None = queue.lease(0)
    assert lease is not None
    return lease


# --- discard() ------------------------------------------------------------------------------------


def test_a_discarded_item_is_dead_with_the_reason_and_attempts_left(opened: Opened) -> None:
    attempts: list[int] = []

    def handler(lease: Lease[str]) -> None:
        attempts.append(lease.attempt)
        lease.discard("no such page")

    queue = opened(AT_ONCE)
    with WorkerPool(handler, queue=queue) as pool:
        future = pool.submit("item")
        with pytest.raises(TaskCancelled, match="no such page"):
            future.result()
        assert future.cancelled()
    assert attempts == [1]
    [(item_id, item, [why])] = queue.dead()
    assert (item_id, item) == (future.item_id, "item")
    assert "no such page" in str(why)
    assert pool.stats().dead == 1


def test_a_discarded_item_can_be_given_new_attempts(opened: Opened) -> None:
    queue = opened(AT_ONCE)
    item_id = queue.put("item")
    leased(queue).discard()
    assert queue.lease(0) is None
    queue.retry(item_id)
    assert leased(queue).attempt == 1


def test_the_reason_of_a_discard_is_a_cause() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    queue.put(1)
    leased(queue).discard("why")
    [(_, _, [why])] = queue.dead()
    assert isinstance(why, CancelCause)
    assert (why.kind, why.reason) == (CauseKind.EXPLICIT, "why")


# --- snooze() -------------------------------------------------------------------------------------


def test_i30_a_snoozed_attempt_does_not_count(opened: Opened) -> None:
    attempts: list[int] = []

    def handler(lease: Lease[int]) -> int:
        attempts.append(lease.attempt)
        if len(attempts) < 5:
            lease.snooze(0)
        return lease.attempt

    queue = opened(FINAL)
    with WorkerPool(handler, queue=queue) as pool:
        assert pool.submit(1).result() == 1
    assert attempts == [1, 1, 1, 1, 1]
    assert queue.counts()["done"] == 1
    assert pool.stats().requeued == 4


def test_a_snoozed_item_waits_for_its_time(opened: Opened) -> None:
    queue = opened(AT_ONCE)
    queue.put("item")
    leased(queue).snooze(60)
    assert queue.counts()["delayed"] == 1
    assert queue.lease(0) is None


def test_a_snoozed_item_is_leased_again_when_its_time_has_come() -> None:
    def body() -> None:
        queue: LeaseQueue[str] = LeaseQueue(retry=FINAL)
        queue.put("item")
        before = desist.current_time()
        leased(queue).snooze(60)
        again = queue.lease()
        assert again is not None
        assert again.attempt == 1
        assert desist.current_time() - before >= 60

    testing.run(body)


def test_a_snooze_keeps_progress_and_failures(opened: Opened) -> None:
    queue = opened(AT_ONCE)
    queue.put("item")
    leased(queue).nack(reason="first")
    second = leased(queue)
    second.heartbeat("halfway")
    second.snooze(0)
    third = leased(queue)
    assert (third.attempt, third.progress) == (2, "halfway")
    third.discard("last")
    [(_, _, failures)] = queue.dead()
    assert len(failures) == 2
    for why, says in zip(failures, ["first", "last"], strict=True):
        assert says in str(why)


def test_i31_a_cancelled_item_cannot_be_snoozed(opened: Opened) -> None:
    def handler(lease: Lease[str]) -> None:
        pool.cancel_item(lease.id, "not wanted")
        lease.snooze(0)

    queue = opened(AT_ONCE)
    with WorkerPool(handler, queue=queue, workers=1) as pool:
        future = pool.submit("item")
        with pytest.raises(TaskCancelled):
            future.result()
    [(_, _, [why])] = queue.dead()
    assert "not wanted" in str(why)


@pytest.mark.parametrize("seconds", [-1, -1e-9, float("nan")])
def test_a_snooze_of_less_than_no_time_is_refused_and_the_lease_goes_on(
    opened: Opened, seconds: float
) -> None:
    queue = opened(AT_ONCE)
    queue.put("item")
    lease = leased(queue)
    with pytest.raises(ValueError, match="seconds"):
        lease.snooze(seconds)
    lease.ack()


def discard(lease: Lease[Any]) -> None:
    lease.discard()


def snooze(lease: Lease[Any]) -> None:
    lease.snooze(0)


@pytest.mark.parametrize("end", [discard, snooze])
def test_i29_a_settled_lease_cannot_be_ended_otherwise(
    opened: Opened, end: Callable[[Lease[Any]], None]
) -> None:
    queue = opened(AT_ONCE)
    queue.put("item")
    lease = leased(queue)
    end(lease)
    before = queue.counts()
    for again in (type(lease).ack, type(lease).nack, discard, snooze):
        with pytest.raises(Fenced):
            again(lease)
    assert queue.counts() == before


# --- the exceptions of a RetryPolicy --------------------------------------------------------------


class OfItsOwn(ConnectionError):
    """An exception of a program."""


def attempts_until_dead(opened: Opened, raised: BaseException, **types: Any) -> int:
    attempts: list[int] = []

    def handler(lease: Lease[str]) -> None:
        attempts.append(lease.attempt)
        raise raised

    queue = opened(RetryPolicy(max_attempts=3, backoff=0, **types))
    with WorkerPool(handler, queue=queue) as pool, pytest.raises(type(raised)):
        pool.submit("item").result()
    [(_, _, failures)] = queue.dead()
    assert len(failures) == len(attempts)
    assert type(raised).__name__ in str(failures[-1]) or failures[-1] is raised
    stats = pool.stats()
    assert (stats.failed, stats.dead) == (len(attempts), 1)
    return len(attempts)


@pytest.mark.parametrize(
    ("raised", "types", "attempts"),
    [
        (ConnectionError(), {"retry_for": ConnectionError}, 3),
        (OfItsOwn(), {"retry_for": (TimeoutError, ConnectionError)}, 3),
        (ValueError(), {"retry_for": (TimeoutError, ConnectionError)}, 1),
        (ConnectionError(), {"retry_for": OfItsOwn}, 1),
        (ValueError(), {"retry_for": ()}, 1),
        (ValueError(), {"discard_for": ValueError}, 1),
        (UnicodeError(), {"discard_for": (KeyError, ValueError)}, 1),
        (OSError(), {"discard_for": (KeyError, ValueError)}, 3),
        (OfItsOwn(), {"retry_for": ConnectionError, "discard_for": OfItsOwn}, 1),
        (SystemExit(), {}, 3),
        (SystemExit(), {"retry_for": Exception}, 1),
    ],
    ids=str,
)
def test_an_exception_is_retried_if_the_policy_names_its_type(
    opened: Opened, raised: BaseException, types: dict[str, Any], attempts: int
) -> None:
    assert attempts_until_dead(opened, raised, **types) == attempts


def test_the_policy_judges_no_end_but_a_handlers_exception() -> None:
    def handler(lease: Lease[int]) -> int:
        if lease.attempt == 1:
            lease.nack()
        elif lease.attempt == 2:
            desist.sleep_forever()
        return lease.attempt

    queue: LeaseQueue[int] = LeaseQueue(retry=RetryPolicy(max_attempts=3, retry_for=()))
    with WorkerPool(handler, workers=1, queue=queue) as pool:
        future = pool.submit(1)
        [worker] = pool.workers
        while future.state is not desist.TaskState.RUNNING or not worker.kill().requeued:
            desist.checkpoint()
        assert future.result() == 3


@pytest.mark.parametrize("name", ["retry_for", "discard_for"])
@pytest.mark.parametrize(
    "value", [3, "ValueError", int, (ValueError, 3), [ValueError], ValueError()]
)
def test_types_that_are_no_exceptions_are_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a type of exceptions, or a tuple"):
        RetryPolicy(**{name: value})


def test_policies_with_the_same_types_are_equal() -> None:
    one = RetryPolicy(retry_for=OSError, discard_for=(KeyError, OSError))
    assert one == RetryPolicy(retry_for=(OSError,), discard_for=(KeyError, OSError))
    assert one != RetryPolicy(retry_for=OSError)
    assert one != RetryPolicy(retry_for=OSError, discard_for=(OSError, KeyError))
    assert RetryPolicy() != RetryPolicy(retry_for=())
    assert (one.retry_for, one.discard_for) == ((OSError,), (KeyError, OSError))
    assert (RetryPolicy().retry_for, RetryPolicy().discard_for) == (None, None)
    assert "retry_for=(<class 'OSError'>,)" in repr(one)
    assert "retry_for" not in repr(RetryPolicy())


def test_a_queue_whose_policy_names_a_type_that_has_the_queue_is_collected(opened: Opened) -> None:
    kind = type("Kind", (Exception,), {})
    queue = opened(RetryPolicy(retry_for=kind))
    kind.queue = queue  # type: ignore[attr-defined]
    alive = weakref.ref(kind)
    del kind, queue
    gc.collect()
    assert alive() is None
