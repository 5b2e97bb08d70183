from __future__ import annotations

import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Cancelled, CancelSource, Killed, KillOutcome, interruptible
from desist._exceptions import Unblocked
from desist.testing import sweep_cancels, sweep_kills
from support import AT_WAIT, FORCE, NEVER, Victim, in_its_wait, tell
from test_signals import talk

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist.testing import SweepReport


class Foreign:
    """A blocking call of a foreign library, and its unblock function."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.begun, self.woken = threading.Event(), threading.Event()
        self.failure = failure
        self.wakers: list[str] = []

    def call(self) -> str:
        self.begun.set()
        self.woken.wait()
        if self.failure is not None:
            raise self.failure
        return "returned"

    def wake(self) -> None:
        self.wakers.append(threading.current_thread().name)
        self.woken.set()

    def run(self) -> str:
        return interruptible(self.call, unblock=self.wake)


def test_a_result_is_returned_and_unblock_is_not_called() -> None:
    foreign = Foreign()
    foreign.woken.set()
    with desist.cancel_scope(timeout=NEVER) as scope:
        assert foreign.run() == "returned"
        scope.cancel()
    assert interruptible(lambda: 7, unblock=foreign.wake) == 7
    assert not foreign.wakers


def test_an_error_of_the_call_itself_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError) as failure:
        interruptible(lambda: 1 / 0, unblock=lambda: None)
    assert failure.value.__cause__ is None


def test_a_call_that_was_unblocked_is_no_success_and_its_result_is_not_lost() -> None:
    foreign = Foreign()
    with in_its_wait(foreign.run) as victim:
        foreign.begun.wait()
        for _ in range(3):
            victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    assert unblocked(victim.raised) == "returned"
    assert not victim.results
    assert foreign.wakers == ["MainThread"]


def unblocked(stop: BaseException) -> object:
    """Give the result of the call that was unblocked for this stop."""
    assert isinstance(stop.__cause__, Unblocked)
    return stop.__cause__.result


def test_a_deadline_is_raised_though_the_unblocked_call_returned() -> None:
    foreign = Foreign()
    with pytest.raises(desist.DeadlineExceeded) as late, desist.fail_after(0.01):
        foreign.run()
    assert isinstance(late.value.__cause__, Cancelled)
    assert unblocked(late.value.__cause__) == "returned"


def test_a_result_that_comes_while_unblock_runs_is_not_lost() -> None:
    begun = threading.Event()

    def both() -> str:
        begun.set()
        ended.wait()
        return "of its own"

    def unblock() -> None:
        ended.set()
        desist._core.Latch().wait(0.02)  # the call has returned by now

    ended = threading.Event()
    with in_its_wait(lambda: interruptible(both, unblock=unblock)) as victim:
        begun.wait()
        victim.cancel()
    assert victim.raised is not None
    assert unblocked(victim.raised) == "of its own"


def test_a_cancel_behind_the_call_leaves_the_result_and_stops_the_next_checkpoint() -> None:
    def ends(ready: Callable[[], None]) -> int:
        ready()
        with desist.move_on_after(NEVER) as scope:
            result = interruptible(lambda: 7, unblock=lambda: None)
            scope.cancel()
            assert result == 7
            desist.checkpoint()
        return result

    with Victim(ends) as victim:
        pass
    assert victim.results == [7]


def test_an_error_after_the_wake_up_is_the_cause_of_cancelled() -> None:
    foreign = Foreign(OSError("connection closed"))
    with in_its_wait(foreign.run) as victim:
        victim.cancel("enough")
    assert isinstance(victim.raised, Cancelled)
    assert victim.raised.cause.reason == "enough"
    assert victim.raised.__cause__ is foreign.failure
    assert foreign.wakers == ["MainThread"]


def test_a_deadline_wakes_it_too() -> None:
    foreign = Foreign(OSError("connection closed"))
    with pytest.raises(desist.DeadlineExceeded) as late, desist.cancel_scope(timeout=0.01):
        foreign.run()
    assert isinstance(late.value.__cause__, Cancelled)
    assert late.value.__cause__.__cause__ is foreign.failure
    assert len(foreign.wakers) == 1


def test_in_cancelled_code_the_function_is_not_called() -> None:
    foreign = Foreign()
    with desist.move_on_after(0) as scope:
        foreign.run()
    assert scope.cancelled_caught
    assert not foreign.begun.is_set()
    assert not foreign.wakers


def test_a_cancel_between_the_check_and_the_call_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from desist import _interruptible

    foreign = Foreign()
    with desist.move_on_after(NEVER) as scope:

        def late() -> desist.CancelScope:
            scope.cancel()
            return desist.cleanup()

        monkeypatch.setattr(_interruptible, "cleanup", late)
        foreign.run()
    assert scope.cancelled_caught
    assert not foreign.begun.is_set()
    assert not foreign.wakers


class Race:
    """A call, and a cancel at a random moment."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.scope = desist.move_on_after(NEVER)
        self.near = threading.Barrier(2)
        self.woken = threading.Event()
        self.begun = self.over = False
        self.wrong: list[str] = []

    def call(self) -> None:
        self.begun = True
        self.woken.wait(0.002)

    def wake(self) -> None:
        self.woken.set()
        for _ in range(self.delay):  # the call may have ended, the block around it has not
            if self.over:
                self.wrong.append("after the end")

    def cancel(self) -> None:
        self.near.wait()
        for _ in range(self.delay):
            pass
        self.scope.cancel()

    def run(self) -> tuple[bool, bool]:
        canceller = threading.Thread(target=self.cancel)
        canceller.start()
        with self.scope:
            self.near.wait()
            try:
                interruptible(self.call, unblock=self.wake)
            finally:
                self.over = True
            desist.sleep_forever()
        canceller.join()
        assert not self.wrong
        return self.begun, self.woken.is_set()


def test_unblock_is_never_called_outside_of_the_call_however_a_cancel_races() -> None:
    outcomes = {Race(number).run() for number in range(300)}
    assert (False, True) not in outcomes


def test_an_error_of_unblock_is_reported_and_the_call_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(report.exc_value))
    foreign = Foreign()

    def fail() -> None:
        raise ZeroDivisionError

    with in_its_wait(lambda: interruptible(foreign.call, unblock=fail)) as victim:
        victim.cancel()
        assert [type(report) for report in reports] == [ZeroDivisionError]
        foreign.woken.set()
    assert victim.raised is not None
    assert unblocked(victim.raised) == "returned"


def test_of_nested_calls_both_may_be_woken() -> None:
    outer, inner = Foreign(), Foreign(OSError("inner"))

    def both() -> str:
        return interruptible(inner.run, unblock=outer.wake)

    with in_its_wait(both) as victim:
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    assert len(inner.wakers) == 1
    assert len(outer.wakers) <= 1  # unless the outer call has ended because of the inner one


def test_a_shield_hides_the_cancellation_from_it() -> None:
    foreign = Foreign()

    def shielded() -> list[str]:
        returned = []
        with desist.shield(NEVER):
            returned.append(foreign.run())
        return returned

    with in_its_wait(shielded) as victim:
        victim.cancel()
        assert not foreign.wakers
        foreign.woken.set()
    assert victim.results == [["returned"]]


@pytest.mark.parametrize("policy", [AT_WAIT, FORCE])
def test_a_kill_wakes_it_too(policy: desist.StopPolicy) -> None:
    foreign = Foreign()

    def body() -> None:
        foreign.run()
        desist.sleep_forever()

    with in_its_wait(body) as victim:
        victim.kill(policy=policy)
    assert isinstance(victim.raised, Killed | Cancelled)
    assert len(foreign.wakers) == 1


def test_a_kill_wakes_it_through_a_shield() -> None:
    foreign = Foreign()

    def shielded() -> None:
        with desist.shield(NEVER):
            foreign.run()
            desist.sleep_forever()

    with in_its_wait(shielded) as victim:
        report = victim.kill(policy=AT_WAIT)
    assert report.outcome is KillOutcome.AT_WAIT
    assert isinstance(victim.raised, Killed)
    assert len(foreign.wakers) == 1


def test_a_deferred_kill_does_not_wake_it() -> None:
    foreign = Foreign()

    def cleaning_up() -> None:
        with desist.cleanup():
            foreign.run()

    with in_its_wait(cleaning_up) as victim:
        killer = threading.Thread(target=victim.kill, kwargs={"policy": AT_WAIT})
        killer.start()
        victim.token.wait()
        assert not desist._core.Latch().wait(0.01)
        assert not foreign.wakers
        foreign.woken.set()
        killer.join()
    assert not foreign.wakers


def test_a_call_on_a_real_socket() -> None:
    one, other = socket.socketpair()

    def receive() -> bytes:
        return interruptible(lambda: one.recv(1), unblock=lambda: one.shutdown(socket.SHUT_RDWR))

    with one, other, in_its_wait(receive) as victim:
        victim.cancel()
    assert victim.raised is not None
    assert unblocked(victim.raised) == b""


def test_a_signal_handler_that_cancels_wakes_the_main_thread() -> None:
    said = talk(
        """
        reader, writer = os.pipe()
        def handler(*_):
            say("handled")
            scope.cancel()
        signal.signal(signal.SIGUSR1, handler)
        with desist.move_on_after(1000) as scope:
            say("waiting")
            desist.interruptible(
                lambda: os.read(reader, 1), unblock=lambda: os.write(writer, b"x")
            )
        assert scope.cancelled_caught
        say("left")
        """,
        signal.SIGUSR1,
    )
    assert said == ["handled", "left"]


@pytest.mark.parametrize("bad", [None, 7, "text"])
def test_an_object_that_is_not_callable_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="must be callable, not"):
        interruptible(bad, unblock=lambda: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be callable, not"):
        interruptible(lambda: None, unblock=bad)  # type: ignore[arg-type]


class Call:
    """A foreign call that waits for a token, which its unblock function cancels."""

    def __init__(self) -> None:
        self.source = CancelSource()
        self.inside = False
        self.wakers: list[bool] = []

    def begin(self) -> None:
        self.inside = True

    def run(self) -> None:
        with desist.move_on_after(NEVER) as self.scope:
            self.registration = self.source.token.on_cancel(lambda _: self.scope.cancel())
            interruptible(self.begin, unblock=lambda: self.wakers.append(self.inside))
            self.inside = False
            self.wakers.clear()  # a stop inside may have woken it

    def check(self) -> None:
        woken = len(self.wakers)
        self.source.cancel()
        assert len(self.wakers) == woken
        assert woken <= 1


@pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])
def test_wherever_a_stop_comes_unblock_is_not_called_after_the_call(
    sweep: Callable[..., SweepReport],
) -> None:
    report = sweep(Call.run, Call.check, setup=Call)
    tell(f"interruptible, {sweep.__name__}", report)
    assert report.points > 20
