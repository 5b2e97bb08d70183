from __future__ import annotations

import gc
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import CancelCause, Fenced, Lease, LeaseQueue, RetryPolicy
from support import NEVER, Victim, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)


def counts(**expected: int) -> dict[str, int]:
    return {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 0} | expected


def lease(queue: LeaseQueue[str]) -> Lease[str]:
    leased = queue.lease(0)
    assert leased is not None
    return leased


def test_an_item_is_in_one_state_at_a_time() -> None:
    queue: LeaseQueue[str] = LeaseQueue(retry=AT_ONCE)
    assert queue.counts() == counts()
    item_id = queue.put("a")
    assert queue.counts() == counts(ready=1)
    first = lease(queue)
    assert (first.item, first.id, first.attempt) == ("a", item_id, 1)
    assert queue.counts() == counts(leased=1)
    first.nack(delay=NEVER)
    assert queue.counts() == counts(delayed=1)
    assert queue.lease(0) is None
    queue.put("b")
    lease(queue).ack()
    assert queue.counts() == counts(delayed=1, done=1)


def test_a_settled_item_is_freed_at_once() -> None:
    queue: LeaseQueue[object] = LeaseQueue()
    thing = object()
    queue.put(thing)
    leased = queue.lease()
    assert leased is not None
    before = sys.getrefcount(thing)
    leased.ack()
    assert sys.getrefcount(thing) == before - 1


class Thing:
    """An object with weak references."""


@pytest.mark.parametrize("settle", ["ack", "nack", "result", "progress", "nothing"])
def test_the_item_of_a_dropped_lease_is_freed(settle: str) -> None:
    queue: LeaseQueue[Thing] = LeaseQueue(retry=AT_ONCE)
    thing, said = Thing(), Thing()
    queue.put(thing)
    leased = queue.lease()
    assert leased is not None
    match settle:
        case "ack":
            leased.ack()
        case "result":
            leased.ack(said)
        case "nack":
            leased.nack()
        case "progress":
            leased.heartbeat(said)
            leased.nack()
            leased = queue.lease()
            assert leased is not None
            assert leased.progress is said
            leased.ack()
    watched = weakref.WeakSet[object]([queue, thing, said])
    del queue, thing, said
    assert watched
    del leased
    assert not watched


def test_a_lease_taken_while_another_is_freed_is_a_different_one() -> None:
    queue: LeaseQueue[object] = LeaseQueue()
    leases = []

    class Last:
        def __del__(self) -> None:
            leases.append(queue.lease(0))

    queue.put(Last())
    queue.put("a")
    first = queue.lease()
    assert first is not None
    first.ack()
    del first
    assert [leased.item for leased in leases if leased] == ["a"]
    assert queue.counts() == counts(done=1, leased=1)


@pytest.mark.parametrize("timeout", [(), (0,)], ids=["bare", "with a timeout"])
def test_nothing_is_leased_when_memory_runs_out(timeout: tuple[float, ...]) -> None:
    testcapi = pytest.importorskip("_testcapi", reason="some distributions leave it out")
    queue: LeaseQueue[str] = LeaseQueue(retry=RetryPolicy(max_attempts=1))
    for number in range(31):
        queue.put(str(number))
    leases = [lease(queue) for _ in range(30)]  # none is left to be used again
    raised = False
    testcapi.set_nomemory(0, 40)
    try:
        queue.lease(*timeout)
    except MemoryError:
        raised = True
    finally:
        testcapi.remove_mem_hooks()
    assert raised
    assert queue.counts() == counts(ready=1, leased=len(leases))
    assert lease(queue).item == "30"


def test_leases_of_several_threads_are_different_objects() -> None:
    queue: LeaseQueue[tuple[int, int]] = LeaseQueue()

    def work(thread: int) -> None:
        for number in range(2_000):
            queue.put((thread, number))
            leases = [leased for _ in range(3) if (leased := queue.lease(0))]
            items = [leased.item for leased in leases]
            assert len({leased.epoch for leased in leases}) == len(leases)
            desist.sleep(0)
            assert [leased.item for leased in leases] == items
            for leased in leases:
                leased.ack()

    with desist.TaskGroup() as group:
        for thread in range(4):
            group.start_soon(work, thread)
    assert queue.counts() == counts(done=8_000)


def test_epochs_increase() -> None:
    queue: LeaseQueue[str] = LeaseQueue(retry=AT_ONCE)
    queue.put("a")
    queue.put("b")
    first = lease(queue)
    first.nack()
    epochs = [first.epoch, lease(queue).epoch, lease(queue).epoch]
    assert epochs == sorted(set(epochs))


def test_a_lease_is_settled_once() -> None:
    queue: LeaseQueue[str] = LeaseQueue(retry=AT_ONCE)
    queue.put("a")
    stale = lease(queue)
    stale.nack()
    current = lease(queue)
    assert (current.id, current.attempt) == (stale.id, 2)
    with pytest.raises(Fenced):
        stale.ack()
    with pytest.raises(Fenced):
        stale.nack()
    current.ack()
    with pytest.raises(Fenced):
        current.ack()
    assert queue.counts() == counts(done=1)


def test_after_its_last_attempt_an_item_is_dead_with_all_its_causes() -> None:
    queue: LeaseQueue[str] = LeaseQueue(retry=AT_ONCE)
    item_id = queue.put("a")
    for attempt in (1, 2, 3):
        leased = lease(queue)
        assert leased.attempt == attempt
        leased.nack(reason=f"failure {attempt}")
    assert queue.counts() == counts(dead=1)
    [(dead_id, item, failures)] = queue.dead()
    assert (dead_id, item) == (item_id, "a")
    reasons = [failure.reason for failure in failures if isinstance(failure, CancelCause)]
    assert reasons == ["failure 1", "failure 2", "failure 3"]


def test_a_dead_item_can_be_retried() -> None:
    queue: LeaseQueue[str] = LeaseQueue(retry=RetryPolicy(max_attempts=1))
    item_id = queue.put("a")
    lease(queue).nack()
    queue.retry(item_id)
    assert queue.counts() == counts(ready=1)
    assert lease(queue).attempt == 1


def test_a_waiter_gets_the_next_item() -> None:
    queue: LeaseQueue[str] = LeaseQueue()

    def body(ready: Callable[[], None]) -> str | None:
        ready()
        leased = queue.lease()
        return leased and leased.item

    with Victim(body) as victim:
        queue.put("a")
    assert victim.results == ["a"]


def test_a_waiter_gets_a_delayed_item_in_time() -> None:
    queue: LeaseQueue[str] = LeaseQueue()
    queue.put("a")
    lease(queue).nack(delay=0.01)
    assert queue.lease(NEVER) is not None


def test_a_cancelled_wait_has_leased_nothing() -> None:
    queue: LeaseQueue[str] = LeaseQueue()

    def body(ready: Callable[[], None]) -> None:
        ready()
        queue.lease()

    with Victim(body) as victim:
        victim.cancel()
    queue.put("a")
    assert queue.counts() == counts(ready=1)
    with desist.move_on_after(0):
        queue.lease()
    assert queue.counts() == counts(ready=1)
    held = queue.lease(0.0)
    assert held is not None
    assert queue.lease(0.01) is None


def test_a_lease_may_be_settled_by_another_thread() -> None:
    queue: LeaseQueue[str] = LeaseQueue()
    queue.put("a")
    in_thread(lease(queue).ack)
    assert queue.counts() == counts(done=1)


def test_a_commit_that_is_cancelled_does_not_begin() -> None:
    queue: LeaseQueue[str] = LeaseQueue()
    queue.put("a")
    leased = lease(queue)
    with desist.move_on_after(0) as scope, leased.commit():
        leased.ack()
    assert scope.cancelled_caught
    with leased.commit():
        leased.ack()
    assert queue.counts() == counts(done=1)


def test_retry_policies_have_their_values() -> None:
    policy = RetryPolicy(max_attempts=2, backoff=0.25, max_backoff=3, jitter=0)
    assert (policy.max_attempts, policy.backoff) == (2, 0.25)
    assert (policy.max_backoff, policy.jitter) == (3, 0)


def test_dropped_items_and_queues_are_freed() -> None:
    class Item:
        pass

    queue: LeaseQueue[Item] = LeaseQueue()
    items = [Item(), Item()]
    gone: list[weakref.ref[Any]] = [weakref.ref(queue), *map(weakref.ref, items)]
    for item in items:
        queue.put(item)
    leased = queue.lease()
    assert leased is not None
    leased.ack()
    del item, leased
    items.clear()
    gc.collect()
    assert [ref() is None for ref in gone] == [False, True, False]
    del queue
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
