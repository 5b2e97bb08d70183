"""Typical code of users, for the type checkers: checked by mypy --strict, never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import assert_type

import desist
from desist import _core, compat, testing

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable

# --- scopes ---------------------------------------------------------------------------------------


def a_block_that_fails_after_a_time_always_returns_or_raises() -> int:
    with desist.fail_after(1):
        return 1
    # No `return` here: such a block never swallows.


def a_deadline_says_the_same(limit: float | None) -> int:
    with desist.fail_after(deadline=0.0), desist.fail_after(limit, grace=0.5) as block:
        assert_type(block, desist.FailScope)
        return 1


def a_block_that_may_be_left_quietly_goes_on_behind_it() -> str:
    with desist.move_on_after(0.5) as scope:
        return "in time"
    assert_type(scope, desist.CancelScope)
    assert_type(scope.cancelled_caught, bool)
    return "too late"


def every_quiet_block_may_be_left(answer: int) -> int | None:
    with desist.move_on_after(deadline=0.0), desist.cancel_scope(timeout=1):
        return answer
    with desist.shield(1), desist.cleanup():
        return answer
    return None


def causes_are_typed(scope: desist.CancelScope) -> None:
    assert_type(scope.cancel("enough", grace=1), bool)
    assert_type(scope.cause, desist.CancelCause | None)
    scope.deadline += 1
    scope.deadline = 3
    cause = scope.cause
    if cause is not None and cause.kind is desist.CauseKind.DEADLINE:
        assert_type(cause.kind, Literal[desist.CauseKind.DEADLINE])
        assert_type(cause.by_thread, str | None)


def the_stop_exceptions_carry_their_cause() -> None:
    try:
        desist.checkpoint()
    except (desist.Cancelled, desist.Killed) as stop:
        assert_type(stop.cause, desist.CancelCause)
        raise


# --- tokens ---------------------------------------------------------------------------------------


def tokens(report: Callable[[desist.CancelCause], int]) -> None:
    with desist.CancelSource(timeout=1) as source:
        either = desist.CancelToken.any_of(source.token, desist.current_token())
        assert_type(either, desist.CancelToken)
        assert_type(either.cancelled, bool)
        assert_type(either.wait(1), bool)
        with either.on_cancel(report) as registration:
            assert_type(registration.unregister(), bool)


def callbacks_get_the_cause(token: desist.CancelToken) -> None:
    token.on_cancel(lambda cause: cause.reason)
    token.on_cancel(lambda: None)  # type: ignore[arg-type, misc]


# --- waiting for the first of several -------------------------------------------------------------


def operations_are_written_inline(
    queue: desist.Queue[str], lock: desist.Lock, event: desist.Event, token: desist.CancelToken
) -> None:
    assert_type(desist.wait_any(queue.get_op()), tuple[int, str] | None)
    assert_type(desist.wait_any(queue.get_op(), queue.get_op(), timeout=1), tuple[int, str] | None)
    assert_type(desist.wait_any(lock.acquire_op(), event.wait_op()), tuple[int, bool] | None)
    assert_type(desist.wait_any(event, desist.Event()), tuple[int, bool] | None)
    assert_type(desist.wait_any(token), tuple[int, desist.CancelCause] | None)
    assert_type(desist.Op.readable(0), desist.Op[None])
    desist.wait_any(queue.get_op(), lock.acquire_op(), queue.put_op("page"), desist.Op.after(1))
    done = desist.wait_any(queue.get_op(), desist.SimpleQueue[int]().get_op(), event, token)
    assert_type(done, tuple[int, Any] | None)
    desist.wait_any(*[queue.get_op(), queue.get_op()])
    desist.wait_any()  # type: ignore[call-overload]
    desist.wait_any(queue)  # type: ignore[call-overload]
    desist.wait_any([event])  # type: ignore[call-overload]
    queue.put_op(1)  # type: ignore[arg-type]


def results_are_given_as_they_are(
    one: desist.Future[str],
    other: concurrent.futures.Future[str],
    thread: desist.Thread,
    task: desist.Task[int],
    items: list[desist.ItemFuture[str]],
) -> None:
    assert_type(desist.wait_any(thread), tuple[int, desist.Thread] | None)
    assert_type(desist.wait_any(task, task), tuple[int, desist.Task[int]] | None)
    assert_type(desist.wait_any(*items), tuple[int, desist.ItemFuture[str]] | None)
    desist.wait_any(one, other, thread, task, desist.Event(), desist.Op.after(1))


# --- seconds --------------------------------------------------------------------------------------


def seconds_are_numbers() -> None:
    desist.sleep(1)
    desist.sleep(0.5)
    desist.sleep("1")  # type: ignore[arg-type]
    desist.fail_after("1")  # type: ignore[arg-type]
    desist.move_on_after(None)
    desist.cancel_scope(None, deadline=None)


# --- locks ----------------------------------------------------------------------------------------


def locks() -> int:
    lock = desist.Lock(name="ledger", on_kill="release")
    desist.Lock(on_kill="ignore")  # type: ignore[arg-type]
    assert_type(lock.acquire(timeout=1), bool)
    lock.release()
    with lock.repair() as repairer:
        assert_type(repairer, _core.LockGuard)
    lock.repair(list)
    lock.repair(1)  # type: ignore[call-overload]
    assert_type(lock.owner(), str | None)
    with desist.RLock(fenced=True).guard() as guard:
        assert_type(guard, _core.LockGuard)
        assert_type(guard.epoch, int)
        guard.check()
    with lock as held:
        assert_type(held, bool)
        return 1


def a_guarded_value_has_its_type() -> int:
    names = desist.Guarded(["one"], rollback=list)
    assert_type(names, desist.Guarded[list[str]])
    desist.Guarded(1, rollback=len)  # type: ignore[arg-type]
    with names.lock() as held:
        assert_type(held, _core.GuardedValue[list[str]])
        assert_type(held.value, list[str])
        held.value = ["two"]
        held.value = 2  # type: ignore[assignment]
    count = desist.Guarded(0)
    with count.repair() as number:
        number.value += 1
        return number.value


def a_kill_can_be_deferred() -> int:
    desist.defer_kill()  # type: ignore[call-arg]
    with desist.defer_kill(1):
        return 1


# --- leases and pools -----------------------------------------------------------------------------


def a_queue_has_items_of_one_type() -> None:
    queue = desist.LeaseQueue[str](retry=desist.RetryPolicy(max_attempts=3))
    assert_type(queue.put("page"), int)
    queue.put(1)  # type: ignore[arg-type]
    lease = queue.lease(timeout=1)
    assert_type(lease, desist.Lease[str] | None)
    if lease is not None:
        assert_type(lease.item, str)
        with lease.commit():
            lease.ack()
    assert_type(queue.counts()["ready"], int)
    queue.counts()["lost"]  # type: ignore[index]
    for item_id, item, failures in queue.dead():
        assert_type(item, str)
        assert_type(failures, list[BaseException | desist.CancelCause])
        queue.retry(item_id)


def length(lease: desist.Lease[str]) -> int:
    return len(lease.item)


def a_pool_takes_its_types_from_the_handler() -> None:
    with desist.WorkerPool(length, workers=2) as pool:
        assert_type(pool, desist.WorkerPool[str, int])
        assert_type(
            pool.queue,
            desist.LeaseQueue[str] | desist.FileQueue[str] | desist.engines.EngineQueue[str],
        )
        future = pool.submit("page")
        assert_type(future, desist.ItemFuture[int])
        assert_type(future.result(timeout=1), int)
        assert_type(pool.workers, tuple[desist.Worker, ...])
        assert_type(pool.workers[0].kill_soon(), desist.Future[desist.KillReport])
        assert_type(pool.workers[0].kill(), desist.KillReport)
        pool.submit(1)  # type: ignore[arg-type]


def a_pool_and_its_queue_agree(
    texts: desist.LeaseQueue[str], numbers: desist.LeaseQueue[int]
) -> None:
    desist.WorkerPool(length, queue=texts)
    desist.WorkerPool(length, queue=numbers)  # type: ignore[arg-type]


def a_pool_swallows_nothing(pool: desist.WorkerPool[str, int]) -> int:
    with pool:
        return pool.submit("page").result()


# --- threads --------------------------------------------------------------------------------------


def threads() -> None:
    thread = desist.Thread(target=length, args=("page",), daemon=True)
    thread.start()
    assert_type(thread.token, desist.CancelToken)
    assert_type(thread.state, desist.TaskState)
    assert_type(thread.cancel("enough", grace=1), bool)
    thread.kill(policy=desist.StopPolicy(cooperative=1, at_wait=None, async_exc=0.5))


def reports(report: desist.KillReport) -> None:
    assert_type(report.outcome, desist.KillOutcome | None)
    assert_type(report.elapsed, float)
    assert_type(report.released, list[str])
    assert_type(report.poisoned, list[str])
    assert_type(report.requeued, list[int | str])
    assert_type(report.fenced, list[int | str])
    assert_type(report.stack, str | None)


# --- tests ----------------------------------------------------------------------------------------


def sweeps(queue: desist.Queue[str]) -> None:
    report = testing.sweep_kills(lambda: queue.put("page"), lambda: queue.qsize() < 2)
    assert_type(report, testing.SweepReport)
    assert_type(report.points, int)


def use(queue: desist.Queue[str]) -> None:
    queue.put("page")


def sweeps_with_a_state_hand_it_on(texts: Callable[[], desist.Queue[str]]) -> None:
    testing.sweep_kills(use, setup=texts, victims="started", defer=True)
    testing.sweep_cancels(use, lambda queue: queue.empty(), setup=texts, only=7)
    testing.sweep_kills(use)  # type: ignore[arg-type]
    testing.sweep_cancels(use, setup=list[int])  # type: ignore[misc]
    testing.sweep_kills(use, setup=texts, victims="all")  # type: ignore[call-overload]


# --- recipes --------------------------------------------------------------------------------------


@compat.func_set_timeout(5)
def limited(page: str) -> int:
    return len(page)


@compat.timeout(5, timeout_exception=LookupError)
def limited_by_the_call(page: str) -> int:
    return len(page)


def timeouts_keep_the_types_of_what_they_limit() -> str:
    assert_type(compat.func_timeout(5, limited, ("page",)), int)
    assert_type(limited("page"), int)
    limited(1)  # type: ignore[arg-type]
    limited("page", forceTimeout=1)  # type: ignore[call-arg]
    assert_type(limited_by_the_call("page", timeout=1), int)
    with compat.ThreadingTimeout(5) as block:
        assert_type(block, compat.ThreadingTimeout)
        return "in time"
    return "too late"


def threads_of_recipes(stop: compat.StopEvent) -> None:
    worker = compat.StoppableThread(target=limited, args=("page",), stop_event=stop)
    assert_type(worker.stopped(), bool)
    compat.StoppableThread(stop_event=desist.Event())  # type: ignore[arg-type]
    with compat.parent_scope(timeout=1) as scope:
        assert_type(scope, desist.CancelScope)
        compat.Thread(target=limited, args=("page",), is_kill_parent=True).start()
    assert_type(compat.KThread().kill(), desist.KillReport)
    compat.cancel_at_exit(worker, grace=1)
