"""Blocks, threads and work under a token that other code has."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing.pool
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    Cancelled,
    CancelSource,
    CauseKind,
    DeadlineExceeded,
    TaskCancelled,
    TaskState,
    bind,
    cancel_scope,
    current_time,
    move_on_after,
    testing,
)
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATE = 0.05


def wait_for_the_end() -> None:
    desist.sleep(NEVER)


# --- scopes -------------------------------------------------------------------------------------


def test_a_cancellation_of_the_token_leaves_the_block_quietly_with_its_cause() -> None:
    source = CancelSource()
    with cancel_scope(token=source.token) as scope:
        source.cancel("enough", grace=0.5)
        wait_for_the_end()
    assert scope.cancelled_caught
    assert scope.cause == source.token.cause
    assert scope.cause is not None
    assert scope.cause.reason == "enough"


def test_a_deadline_of_the_token_leaves_the_block_as_its_own_does() -> None:
    source = CancelSource(timeout=LATE)
    with pytest.raises(DeadlineExceeded) as late, cancel_scope(token=source.token) as scope:
        wait_for_the_end()
    assert isinstance(late.value.__cause__, Cancelled)
    assert scope.cause == source.token.cause
    assert scope.deadline == float("inf")


@pytest.mark.parametrize("own", [True, False])
def test_i2_the_earlier_of_both_deadlines_is_the_cause(own: bool) -> None:
    now = current_time()
    source = CancelSource(deadline=now - 1 if own else now - 2)
    with (
        pytest.raises(DeadlineExceeded),
        cancel_scope(deadline=now - 2 if own else now - 1, token=source.token) as scope,
    ):
        desist.checkpoint()
    assert scope.cause is not None
    assert scope.cause.kind is CauseKind.DEADLINE
    assert scope.cause.at == now - 2


def test_a_token_that_is_cancelled_already_stops_the_block_at_its_first_checkpoint() -> None:
    source = CancelSource()
    source.cancel()
    reached = []
    with cancel_scope(token=source.token) as scope:
        reached.append("inside")
        desist.checkpoint()
        reached.append("behind")
    assert reached == ["inside"]
    assert scope.cancelled_caught


def test_i1_a_scope_further_out_comes_first_and_the_token_is_left_alone() -> None:
    source = CancelSource()
    with move_on_after(LATE) as outer, cancel_scope(token=source.token) as inner:
        wait_for_the_end()
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    assert not source.token.cancelled


def test_the_effective_deadline_is_that_of_the_token_and_follows_it() -> None:
    source = CancelSource(timeout=1000)
    with cancel_scope(2000, token=source.token):
        assert desist.current_effective_deadline() == source.deadline
        assert desist.current_token().deadline == source.deadline
        source.deadline += 500
        assert desist.current_effective_deadline() == source.deadline
        source.deadline += 5000
        assert desist.current_effective_deadline() < source.deadline


def test_the_end_of_the_block_leaves_nothing_at_the_token() -> None:
    source = CancelSource()
    with testing.no_leaks():
        for _ in range(100):
            with cancel_scope(token=source.token):
                pass
    source.cancel()


def test_a_block_that_was_not_entered_does_not_keep_the_token() -> None:
    source = CancelSource()
    scope = cancel_scope(token=source.token)
    gone = weakref.ref(source.token)
    del source
    gc.collect()
    assert gone() is None
    with scope:
        desist.checkpoint()


def test_a_blocking_call_of_foreign_code_ends_with_the_token() -> None:
    if not desist.foreign_status().available:
        pytest.skip("this system ends no calls of foreign code")
    source = CancelSource(timeout=LATE)
    with pytest.raises(DeadlineExceeded), cancel_scope(token=source.token):
        threading.Event().wait()


def test_force_comes_after_the_cancellation_of_the_token() -> None:
    source = CancelSource()

    def spin() -> None:
        source.cancel()
        while True:
            pass

    with cancel_scope(kill_after=0, token=source.token) as scope:
        spin()
    assert scope.cancelled_caught


@pytest.mark.parametrize("token", [1, "token", CancelSource])
def test_what_is_no_token_is_refused(token: Any) -> None:
    with pytest.raises(TypeError, match="CancelToken"):
        cancel_scope(token=token)
    with pytest.raises(TypeError, match="CancelToken"):
        desist.TaskGroup(token=token)


# --- groups, threads, executors -----------------------------------------------------------------


def test_a_group_ends_its_tasks_with_the_token() -> None:
    source = CancelSource()
    with desist.TaskGroup(token=source.token) as group:
        task = group.start_soon(wait_for_the_end)
        source.cancel("enough")
    assert task.state is TaskState.CANCELLED
    assert task.token.cause == source.token.cause
    with (
        pytest.raises(DeadlineExceeded),
        desist.TaskGroup(token=CancelSource(timeout=LATE).token) as group,
    ):
        group.start_soon(wait_for_the_end)


def test_a_thread_that_inherits_ends_with_the_scope_of_the_code_that_made_it() -> None:
    with cancel_scope() as scope:
        thread = desist.Thread(target=wait_for_the_end, inherit=True)
        thread.start()
        scope.cancel("enough")
        thread.join()
    assert thread.token.cause == scope.cause
    with move_on_after(1000) as scope:
        thread = desist.Thread(target=wait_for_the_end, inherit=True)
        thread.start()
        assert thread.token.deadline == scope.deadline
    thread.join()
    assert thread.token.cause is not None
    assert thread.token.cause.kind is CauseKind.SCOPE_EXITED


def test_a_thread_inherits_nothing_unless_it_is_told_to() -> None:
    with cancel_scope() as scope:
        thread = desist.Thread(target=lambda: None)
        scope.cancel()
    assert not thread.token.cancelled
    assert not desist.Thread(inherit=True).token.cancelled


@pytest.mark.parametrize("switch", [1, None, "yes"])
def test_a_switch_that_is_no_bool_is_refused(switch: Any) -> None:
    with pytest.raises(TypeError, match="inherit must be True or False"):
        desist.Thread(inherit=switch)


def test_the_work_of_an_executor_ends_with_the_scope_of_its_submit() -> None:
    with desist.ThreadPoolExecutor(1, inherit=True) as executor:
        other = executor.submit(wait_for_the_end)
        with move_on_after(LATE) as scope:
            waiting = executor.submit(wait_for_the_end)
            waiting.result()
        assert scope.cancelled_caught
        assert not other.token.cancelled
        other.cancel()
        with pytest.raises(TaskCancelled):
            waiting.result()
        assert waiting.token.cause == scope.cause


# --- bind() -------------------------------------------------------------------------------------


@pytest.fixture(params=["executor", "multiprocessing"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """A call on a thread of a pool of the standard library, whose result is waited for."""
    if request.param == "executor":
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            yield lambda fn: executor.submit(fn).result()
            assert executor.submit(abs, -1).result() == 1
    else:
        with multiprocessing.pool.ThreadPool(1) as pool:
            yield pool.apply
            assert pool.apply(abs, (-1,)) == 1


def test_a_bound_function_ends_with_the_deadline_of_its_scope(call: Any) -> None:
    with pytest.raises(DeadlineExceeded), cancel_scope(LATE):
        call(bind(wait_for_the_end))


def test_a_bound_function_ends_with_its_scope_which_is_left_quietly(call: Any) -> None:
    with cancel_scope() as scope:

        def work() -> None:
            scope.cancel("enough")
            wait_for_the_end()

        call(bind(work))
    assert scope.cancelled_caught


def test_the_end_of_a_bound_function_is_an_ordinary_exception_elsewhere(call: Any) -> None:
    with cancel_scope() as scope:
        late = bind(wait_for_the_end)
        scope.cancel("enough")
    with pytest.raises(TaskCancelled) as cancelled:
        call(late)
    assert cancelled.value.cause == scope.cause
    with cancel_scope() as left:
        late = bind(partial(pytest.fail, "it must not be called"))
    with pytest.raises(TaskCancelled) as cancelled:
        call(late)
    assert cancelled.value.cause.kind is CauseKind.SCOPE_EXITED
    assert left.cause is None


def test_an_ended_call_is_no_failure_of_a_group(call: Any) -> None:
    with desist.TaskGroup() as group:

        def work() -> None:
            group.cancel("enough")
            wait_for_the_end()

        call(bind(work))
    assert group.cancel_scope.cancelled_caught


def test_the_cancellation_of_another_scope_is_not_absorbed(call: Any) -> None:
    with cancel_scope() as other:
        late = bind(wait_for_the_end)
        other.cancel()
    scope = cancel_scope()

    def wait_for_the_other() -> None:
        with scope:
            try:
                call(late)
            finally:
                scope.cancel()

    with pytest.raises(TaskCancelled):
        wait_for_the_other()
    assert not scope.cancelled_caught


def test_a_bound_function_has_the_results_and_exceptions_of_its_own(call: Any) -> None:
    @bind
    def divide(by: int = 2) -> float:
        """Divide."""
        return 1 / by

    assert call(divide) == 0.5
    assert divide.__name__ == "divide"
    with pytest.raises(ZeroDivisionError):
        call(partial(divide, 0))
    with pytest.raises(DeadlineExceeded), cancel_scope(1000):
        call(bind(_own_deadline))


def _own_deadline() -> None:
    with desist.fail_after(0):
        desist.checkpoint()


def test_a_bound_function_ends_with_the_scope_around_its_call_too() -> None:
    bound = bind(wait_for_the_end)
    with pytest.raises(DeadlineExceeded), cancel_scope(LATE):
        bound()


async def _coroutine() -> None: ...


def _made(make: Callable[[], Any]) -> Any:
    return make()


def _generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("fn", [_coroutine, _generator, None])
def test_i43_a_function_whose_call_runs_nothing_is_not_bound(fn: Any) -> None:
    with pytest.raises(TypeError, match="fn"):
        bind(fn)
    with pytest.raises(TypeError, match="returned a coroutine"):
        bind(partial(_made, _coroutine))()
