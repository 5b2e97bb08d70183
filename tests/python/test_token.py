from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import (
    CancelCause,
    Cancelled,
    CancelSource,
    CancelToken,
    CauseKind,
    _core,
    testing,
)
from support import AT_WAIT, NEVER, Victim, in_its_wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desist._core import Registration

# --- causes and trees -----------------------------------------------------------------------------


def test_a_cancel_reaches_all_tokens_below_and_none_above() -> None:
    root = CancelSource()
    child = CancelSource(root.token)
    grandchild = CancelSource(child.token)
    sibling = CancelSource(root.token)
    assert child.cancel("why")
    assert grandchild.token.cancelled
    assert not root.token.cancelled
    assert not sibling.token.cancelled
    assert grandchild.token.cause == child.token.cause


def test_the_first_cause_stays() -> None:
    source = CancelSource()
    before = desist.current_time()
    assert source.cancel("first")
    assert not source.cancel("second")
    cause = source.token.cause
    assert cause is not None
    assert (cause.kind, cause.reason) == (CauseKind.EXPLICIT, "first")
    assert cause.by_thread == "MainThread"
    assert before <= cause.at <= desist.current_time()
    assert str(cause) == "cancelled by MainThread: first"


def test_of_many_concurrent_cancels_one_is_the_first() -> None:
    source = CancelSource()
    together = threading.Barrier(8)

    def cancel(number: int) -> bool:
        together.wait()
        return source.cancel(str(number))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(cancel, range(8)))
    cause = source.token.cause
    assert cause is not None
    assert [str(number) for number in range(8) if won[number]] == [cause.reason]


def test_a_passed_deadline_is_the_cause_despite_a_later_cancel() -> None:
    deadline = desist.current_time() - 1
    source = CancelSource(deadline=deadline)
    assert not source.cancel("too late")
    cause = source.token.cause
    assert cause is not None
    assert (cause.kind, cause.reason, cause.by_thread) == (CauseKind.DEADLINE, None, None)
    assert cause.at == pytest.approx(deadline)


def test_a_child_born_under_a_cancelled_parent_is_cancelled() -> None:
    source = CancelSource()
    source.cancel()
    assert CancelSource(source.token).token.cancelled


def test_the_tokens_below_a_closed_source_are_cancelled() -> None:
    source = CancelSource()
    child = CancelSource(source.token)
    with source:
        pass
    source.close()
    cause = child.token.cause
    assert cause is not None
    assert cause.kind is CauseKind.SCOPE_EXITED


def test_a_deadline_cancels_the_tokens_below_too() -> None:
    deadline = desist.current_time() + NEVER
    source = CancelSource(deadline=deadline)
    token = CancelSource(source.token).token
    assert token.deadline == pytest.approx(deadline)
    assert 0 < token.remaining() <= NEVER
    assert CancelSource().token.remaining() == float("inf")
    assert CancelSource(timeout=0).token.remaining() == 0


def test_a_token_of_several_is_cancelled_with_any_of_them() -> None:
    sources = [CancelSource() for _ in range(3)]
    token = CancelToken.any_of(*(source.token for source in sources))
    sources[1].cancel("that one")
    assert token.cancelled
    assert token.cause == sources[1].token.cause
    assert not CancelToken.any_of().cancelled


def test_the_deadline_of_a_token_of_several_is_the_earliest() -> None:
    now = desist.current_time()
    late, early = CancelSource(deadline=now + 200), CancelSource(deadline=now + 100)
    token = CancelToken.any_of(CancelSource().token, late.token, early.token)
    below = CancelSource(token, deadline=now + 300).token
    again = CancelToken.any_of(below, late.token, token)
    for one in (token, below, again):
        assert one.deadline == early.token.deadline
        assert 90 < one.remaining() <= 100
    assert CancelToken.any_of(CancelSource().token).deadline == math.inf
    assert CancelToken.any_of().remaining() == math.inf


def test_a_token_of_several_follows_a_deadline_that_is_moved() -> None:
    with desist.cancel_scope(timeout=100) as scope:
        token = CancelToken.any_of(scope.token, CancelSource().token)
        assert token.deadline == scope.deadline
        scope.deadline = desist.current_time() + 50
        assert token.deadline == scope.deadline
        scope.deadline = math.inf
        assert token.deadline == math.inf


def test_the_earliest_deadline_of_several_is_the_cause() -> None:
    now = desist.current_time()
    sources = [CancelSource(deadline=now + later) for later in (0.03, 0.02, 0.01)]
    token = CancelToken.any_of(*(source.token for source in sources))
    assert token.wait()
    assert token.cause == sources[2].token.cause


def test_i16_a_wait_for_a_token_of_several_ends_exactly_at_the_deadline() -> None:
    def body() -> float:
        sources = [CancelSource(timeout=later) for later in (30, 20)]
        token = CancelToken.any_of(*(source.token for source in sources))
        began = desist.current_time()
        assert token.wait()
        return desist.current_time() - began

    assert testing.run(body) == pytest.approx(20, abs=1e-6)


def test_tokens_of_several_that_meet_again_and_again_cost_no_more() -> None:
    token = CancelSource(timeout=NEVER).token
    first = token.deadline
    for _ in range(100):
        token = CancelToken.any_of(token, token)
    assert token.deadline == first
    assert token.wait(0) is False


def test_check_raises_with_the_cause() -> None:
    source = CancelSource()
    source.token.check()
    source.cancel("why")
    with pytest.raises(Cancelled, match="why") as raised:
        source.token.check()
    assert raised.value.cause == source.token.cause


def test_cancelled_cannot_be_made_derived_or_confused() -> None:
    with pytest.raises(TypeError):
        Cancelled()  # type: ignore[call-arg, unused-ignore]
    with pytest.raises(TypeError):
        type("Mine", (Cancelled,), {})
    assert Cancelled.__bases__ == (BaseException,)
    assert desist.Killed.__bases__ == (BaseException,)


# --- waiting --------------------------------------------------------------------------------------


def test_a_wait_ends_with_the_cancel() -> None:
    source = CancelSource()

    def body(ready: Any) -> bool:
        ready()
        return source.token.wait()

    with Victim(body) as victim:
        source.cancel()
    assert victim.results == [True]


def test_a_wait_ends_with_the_deadline_or_its_own_time() -> None:
    assert CancelSource(timeout=0.01).token.wait()
    assert CancelSource().token.wait(0.01) is False
    assert CancelSource().token.wait(0) is False


def test_a_cancelled_waiter_gets_cancelled() -> None:
    def body(ready: Any) -> None:
        ready()
        CancelSource().token.wait()

    with Victim(body) as victim:
        victim.cancel("you")
    assert isinstance(victim.raised, Cancelled)


# --- callbacks ------------------------------------------------------------------------------------


def test_a_callback_runs_once_with_the_cause() -> None:
    source = CancelSource()
    seen: list[CancelCause] = []
    source.token.on_cancel(seen.append)
    source.cancel("why")
    source.cancel("again")
    assert seen == [source.token.cause]


def test_a_callback_on_a_cancelled_token_runs_at_once() -> None:
    source = CancelSource()
    source.cancel()
    seen: list[CancelCause] = []
    assert not source.token.on_cancel(seen.append).unregister()
    assert len(seen) == 1


def test_a_callback_that_is_unregistered_never_runs() -> None:
    source = CancelSource()
    seen: list[CancelCause] = []
    registration = source.token.on_cancel(seen.append)
    assert registration.unregister()
    assert not registration.unregister()
    with source.token.on_cancel(seen.append):
        pass
    source.cancel()
    assert not seen


def test_a_callback_stays_registered_when_the_registration_is_dropped() -> None:
    source = CancelSource()
    called = threading.Event()
    source.token.on_cancel(lambda _: called.set())
    gc.collect()
    source.cancel()
    assert called.is_set()


def test_a_deadline_runs_callbacks_on_a_thread_of_its_own() -> None:
    source = CancelSource(timeout=0.01)
    called = threading.Event()
    threads: list[int] = []

    def callback(_: CancelCause) -> None:
        threads.append(threading.get_ident())
        called.set()

    source.token.on_cancel(callback)
    assert called.wait(NEVER)
    assert threads != [threading.get_ident()]


def test_an_error_of_a_callback_is_reported_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    source = CancelSource()
    seen: list[CancelCause] = []

    def fail(_: CancelCause) -> None:
        raise ZeroDivisionError

    source.token.on_cancel(seen.append)
    source.token.on_cancel(fail)
    source.token.on_cancel(seen.append)
    assert source.cancel()
    assert len(seen) == 2
    assert [one.exc_type for one in unraisable] == [ZeroDivisionError]
    unraisable.clear()


def test_close_waits_for_a_callback_that_runs() -> None:
    source = CancelSource()
    inside, go_on = threading.Event(), threading.Event()
    ended: list[bool] = []

    def callback(_: CancelCause) -> None:
        inside.set()
        go_on.wait()
        ended.append(True)

    registration = source.token.on_cancel(callback)
    canceller = threading.Thread(target=source.cancel)
    canceller.start()
    inside.wait()
    registration.close(timeout=0)
    assert not ended
    go_on.set()
    registration.close()
    assert ended
    canceller.join()


class Running:
    """A registration whose callback runs on another thread until `end` is set."""

    def __init__(self) -> None:
        source = CancelSource()
        self.end, inside = threading.Event(), threading.Event()

        def callback(_: CancelCause) -> None:
            inside.set()
            self.end.wait()

        self.registration = source.token.on_cancel(callback)
        self.canceller = threading.Thread(target=source.cancel)
        self.canceller.start()
        inside.wait()


@contextmanager
def running_callback() -> Iterator[Running]:
    running = Running()
    try:
        yield running
    finally:
        running.end.set()
        running.canceller.join()


def test_close_tells_whether_the_callback_still_runs() -> None:
    with running_callback() as running:
        assert running.registration.close(timeout=0) is False
        running.end.set()
        assert running.registration.close() is True
    assert CancelSource().token.on_cancel(print).close() is True


def test_i17_a_cancel_ends_the_wait_of_close_when_the_grace_is_spent() -> None:
    with running_callback() as running, in_its_wait(running.registration.close) as victim:
        victim.cancel(grace=0.05)
    assert isinstance(victim.raised, Cancelled)
    assert not running.canceller.is_alive()


def test_i17_close_in_cancelled_code_still_waits_for_the_callback() -> None:
    order: list[str] = []

    def body() -> None:
        with desist.move_on_after(0):
            try:
                desist.checkpoint()
            finally:
                running.registration.close()
                order.append("closed")

    with running_callback() as running, in_its_wait(body):
        order.append("ended")
        running.end.set()
    assert order == ["ended", "closed"]


def test_i17_a_kill_ends_the_wait_of_close() -> None:
    with running_callback() as running, in_its_wait(running.registration.close) as victim:
        victim.cancel(grace=0.05)
        victim.kill(policy=AT_WAIT)
    assert isinstance(victim.raised, desist.Killed | Cancelled)


def leave_block_of(registration: Registration) -> None:
    with registration:
        pass


@pytest.mark.parametrize("leave", [True, False])
def test_i17_a_signal_ends_the_wait_of_close_and_its_exception_is_not_lost(*, leave: bool) -> None:
    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None
    with running_callback() as running:
        interrupter = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1))
        interrupter.start()
        close = (
            partial(leave_block_of, running.registration) if leave else running.registration.close
        )
        try:
            with pytest.raises(KeyboardInterrupt):
                close()
        finally:
            interrupter.join()
            signal.signal(signal.SIGUSR1, before)
        assert running.canceller.is_alive()


def test_i18_close_in_the_callback_itself_returns_at_once() -> None:
    source = CancelSource()
    closed: list[bool] = []
    registration = source.token.on_cancel(lambda _: closed.append(registration.close()))
    source.cancel()
    assert closed == [True]


def test_a_registration_dropped_while_its_callback_runs_does_not_wait() -> None:
    source = CancelSource()
    inside, go_on = threading.Event(), threading.Event()

    def callback(_: CancelCause) -> None:
        inside.set()
        go_on.wait()

    registration = source.token.on_cancel(callback)
    canceller = threading.Thread(target=source.cancel)
    canceller.start()
    inside.wait()
    del registration
    go_on.set()
    canceller.join()


def test_callbacks_that_close_each_other_do_not_deadlock() -> None:
    sources = CancelSource(), CancelSource()
    together = threading.Barrier(2)
    registrations: list[desist._core.Registration] = []

    def close_other(number: int) -> None:
        together.wait()  # both are running now
        registrations[1 - number].close()

    registrations += [
        sources[0].token.on_cancel(lambda _: close_other(0)),
        sources[1].token.on_cancel(lambda _: close_other(1)),
    ]
    threads = [threading.Thread(target=source.cancel) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_cancel_works_from_a_callback_and_from_a_finalizer() -> None:
    first, second, third = CancelSource(), CancelSource(), CancelSource()

    class Last:
        def __del__(self) -> None:
            third.cancel()

    last = [Last()]
    first.token.on_cancel(lambda _: second.cancel())
    second.token.on_cancel(lambda _: last.clear())
    first.cancel()
    assert second.token.cancelled
    assert third.token.cancelled


# --- memory ---------------------------------------------------------------------------------------


def test_dropped_tokens_sources_and_callbacks_are_freed() -> None:
    class Callback:
        def __call__(self, _: CancelCause) -> None:
            pass

    root = CancelSource()
    source = CancelSource(root.token)
    token = source.token
    any_of = CancelToken.any_of(token, root.token)
    callback, other = Callback(), Callback()
    token.on_cancel(callback)
    root.token.on_cancel(other).unregister()
    gone = [weakref.ref(thing) for thing in (source, token, any_of, callback, other)]
    del source, token, any_of, callback, other
    gc.collect()
    assert [ref() for ref in gone] == [None] * 5
    root.cancel()


def test_i9_the_tokens_of_a_dropped_source_are_cancelled_by_its_deadline() -> None:
    def run() -> None:
        token = CancelSource(timeout=5).token
        below = CancelSource(CancelSource(timeout=7).token).token
        calls: list[float] = []
        registration = CancelSource(timeout=6).token.on_cancel(
            lambda _: calls.append(desist.current_time())
        )
        begin = desist.current_time()
        gc.collect()
        assert not token.cancelled
        assert not below.cancelled
        token.wait()
        assert desist.current_time() == pytest.approx(begin + 5)
        below.wait()
        assert desist.current_time() == pytest.approx(begin + 7)
        assert calls == [pytest.approx(begin + 6)]
        registration.close()

    testing.run(run)


def test_i9_the_tokens_below_a_dropped_source_are_cancelled_with_those_above() -> None:
    root = CancelSource()
    middle = CancelSource(root.token)
    alone, below = middle.token, CancelSource(CancelSource(middle.token).token).token
    calls: list[CancelCause] = []
    below.on_cancel(calls.append)
    del middle
    gc.collect()
    assert not alone.cancelled
    assert not below.cancelled
    root.cancel("root")
    assert alone.cause == below.cause == root.token.cause
    assert calls == [root.token.cause]


def test_i9_dropped_sources_leave_nothing_behind() -> None:
    root = CancelSource()

    def use() -> list[weakref.ref[Any]]:
        source = CancelSource(root.token, timeout=NEVER)
        below = CancelSource(source.token)
        token = CancelSource(below.token, timeout=NEVER).token
        linked = CancelToken.any_of(token, root.token)

        def callback(_: CancelCause) -> None:
            source.cancel()  # a cycle

        token.on_cancel(callback)
        linked.on_cancel(callback)
        return [weakref.ref(one) for one in (source, below, token, linked, callback)]

    gc.collect()
    before = _core.leak_counts()
    for _ in range(10):
        gone = [one for _ in range(1000) for one in use()]
        gc.collect()
        assert {one() for one in gone} == {None}
    assert _core.leak_counts() == before
    root.cancel()


def test_a_callback_is_freed_once_it_has_run() -> None:
    class Callback:
        def __call__(self, _: CancelCause) -> None:
            pass

    source = CancelSource()
    callback = Callback()
    gone = weakref.ref(callback)
    registration = source.token.on_cancel(callback)
    del callback
    source.cancel()
    gc.collect()
    assert gone() is None
    registration.close()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="True and False are not counted any more")
def test_the_counts_of_true_and_false_stay_balanced() -> None:
    def use(*, cancel: bool) -> None:
        source = CancelSource()
        token = source.token
        assert token.cancelled is False
        if cancel:
            source.cancel()
            assert [token.cancelled, source.token.cancelled] == [True, True]

    before = sys.getrefcount(True), sys.getrefcount(False)
    for number in range(5000):
        use(cancel=number % 2 == 0)
    after = sys.getrefcount(True), sys.getrefcount(False)
    assert abs(after[0] - before[0]) < 100
    assert abs(after[1] - before[1]) < 100
