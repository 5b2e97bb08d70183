"""The ladder: I22 to I27."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, Killed, KillOutcome, StopPolicy, TaskState
from support import ABANDON, ASK, AT_WAIT, FORCE, HAS_GIL, INSIST, NEVER, DeafEvent, Victim, spin

if TYPE_CHECKING:
    from collections.abc import Callable

# --- rung by rung ---------------------------------------------------------------------------------


def test_a_thread_that_stops_when_asked_is_not_forced() -> None:
    def body(ready: Callable[[], None]) -> None:
        ready()
        desist.sleep_forever()

    with Victim(body) as victim:
        report = victim.kill("enough", policy=ASK)
    assert report.outcome is KillOutcome.COOPERATIVE
    assert isinstance(victim.raised, Cancelled)
    assert victim.raised.cause.reason == "enough"
    assert victim.state is TaskState.CANCELLED
    assert report.elapsed < NEVER


def test_a_shield_does_not_hold_at_a_wait() -> None:
    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER):
            ready()
            desist.sleep_forever()

    with Victim(body) as victim:
        report = victim.kill("enough", policy=AT_WAIT)
    assert report.outcome is KillOutcome.AT_WAIT
    assert isinstance(victim.raised, Killed)
    assert victim.raised.cause.reason == "enough"
    assert str(victim.raised) == "killed (cancelled by MainThread: enough)"
    assert victim.state is TaskState.KILLED
    assert report.stack is not None
    assert "sleep_forever" in report.stack


def test_code_that_does_not_wait_is_killed_anywhere() -> None:
    with Victim(spin) as victim:
        report = victim.kill("enough", policy=FORCE)
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert isinstance(victim.raised, Killed)
    assert victim.raised.cause.reason == "enough"
    assert victim.state is TaskState.KILLED
    assert report.stack is not None
    assert "in spin" in report.stack


def test_a_thread_that_cannot_be_ended_is_abandoned() -> None:
    end = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        ready()
        end.wait()  # in C, where nothing interrupts it

    victim = Victim(body)
    with victim:
        policy = StopPolicy(cooperative=0, at_wait=0, async_exc=0.02, trace=0.02, defer=0)
        report = victim.kill(policy=policy)
        assert report.outcome is KillOutcome.ABANDONED
        assert victim.state is TaskState.ABANDONED
        assert victim.is_alive()
        assert report.stack is not None
        assert ("end.wait()" if HAS_GIL else "self._unset.acquire") in report.stack
        assert report.blocked is not None
        assert "self._unset.acquire" in report.blocked
        victim.join()  # does not hang
        end.set()
    threading.Thread.join(victim)
    assert victim.state is TaskState.ABANDONED


def test_a_thread_that_must_not_be_abandoned_goes_on() -> None:
    end = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        ready()
        end.wait()

    with Victim(body) as victim:
        policy = StopPolicy(cooperative=0, at_wait=None, async_exc=None, trace=None, abandon=False)
        report = victim.kill(policy=policy)
        assert report.outcome is None
        assert report.stack is not None
        assert victim.state.name == "CANCELLING"
        end.set()
    assert victim.state is TaskState.DONE


def test_an_ended_thread_cannot_be_killed() -> None:
    with Victim(lambda ready: ready()) as victim:
        pass
    assert victim.kill(policy=INSIST).outcome is KillOutcome.ALREADY_DONE
    assert victim.state is TaskState.DONE


def test_a_thread_may_be_killed_as_soon_as_it_is_started() -> None:
    for _ in range(50):
        victim = desist.Thread(target=lambda: spin(lambda: None), daemon=True)
        victim.start()
        report = victim.kill(policy=INSIST)
        assert report.outcome in (KillOutcome.ASYNC_EXC, KillOutcome.AT_WAIT)
        victim.join()


def test_several_killers_get_the_same_report() -> None:
    reports: list[desist.KillReport] = []
    with Victim(spin) as victim:
        killers = [
            threading.Thread(target=lambda: reports.append(victim.kill(policy=FORCE)))
            for _ in range(4)
        ]
        for killer in killers:
            killer.start()
        for killer in killers:
            killer.join()
    assert {report.outcome for report in reports} <= {
        KillOutcome.ASYNC_EXC,
        KillOutcome.ALREADY_DONE,
    }
    assert victim.state is TaskState.KILLED


def test_the_end_is_never_reported_early() -> None:
    inside, go_on = DeafEvent(), DeafEvent()
    steps: list[str] = []

    def body(ready: Callable[[], None]) -> None:
        try:
            spin(ready)
        finally:
            with desist.cleanup():
                inside.set()
                go_on.wait()
                steps.append("cleaned up")

    with Victim(body) as victim:
        killer = threading.Thread(target=victim.kill, kwargs={"policy": FORCE})
        killer.start()
        inside.wait()
        assert victim.state.name == "CANCELLING"
        assert killer.is_alive()
        assert not steps
        go_on.set()
        killer.join()
        assert steps == ["cleaned up"]
        assert victim.state is TaskState.KILLED


def test_a_kill_is_never_raised_behind_the_body() -> None:
    # The thread itself goes on after each body; that code is not the victim's.
    for _ in range(100):
        started, over = DeafEvent(), DeafEvent()
        task = desist._core.Task("short")
        seen: list[BaseException] = []

        def run(
            task: Any = task, seen: Any = seen, started: Any = started, over: Any = over
        ) -> None:
            try:
                task.run(started.set)
                for _ in range(50):
                    pass
            except BaseException as raised:  # noqa: BLE001 (shown below)
                seen.append(raised)
            over.set()

        thread = threading.Thread(target=run)
        task.launch()
        thread.start()
        task.kill(policy=INSIST)
        thread.join()
        assert not seen
        assert over.is_set()


# --- deferred kills -------------------------------------------------------------------------------


def killed_while(victim: Victim[Any], inside: DeafEvent, go_on: DeafEvent) -> None:
    """Let a killer reach its strongest rung while the victim is inside of a block."""
    killer = threading.Thread(target=victim.kill, kwargs={"policy": INSIST})
    killer.start()
    inside.wait()
    victim.token.wait()
    for _ in range(3):  # the kill is delivered, or would be, again and again
        assert not desist._core.Latch().wait(0.002)
    assert killer.is_alive()
    go_on.set()
    killer.join()


@pytest.mark.parametrize("zone", ["cleanup", "commit"])
def test_a_mask_defers_a_kill_and_then_it_is_raised(zone: str) -> None:
    inside, go_on = DeafEvent(), DeafEvent()
    steps: list[str] = []
    queue: desist.LeaseQueue[int] = desist.LeaseQueue()
    queue.put(1)
    lease = queue.lease()
    assert lease is not None

    def body(ready: Callable[[], None]) -> None:
        with desist.cleanup() if zone == "cleanup" else lease.commit():
            ready()
            inside.set()
            while not go_on.is_set():
                pass
            steps.append("inside")
        spin(lambda: None)  # the kill may come late

    with Victim(body) as victim:
        killed_while(victim, inside, go_on)
    assert steps == ["inside"]
    assert isinstance(victim.raised, Killed)


def test_a_clean_up_zone_defers_a_kill_no_longer_than_its_grace() -> None:
    def body(ready: Callable[[], None]) -> None:
        with desist.cleanup():
            spin(ready)

    with Victim(body) as victim:
        victim.cancel(grace=0.01)
        report = victim.kill(policy=INSIST)
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert isinstance(victim.raised, Killed)


def test_a_clean_up_zone_ends_with_its_own_bound() -> None:
    def body(ready: Callable[[], None]) -> None:
        with desist.cleanup(0.01):
            spin(ready)

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert isinstance(victim.raised, Killed)


def test_clean_up_after_a_kill_may_wait_and_is_not_killed() -> None:
    steps: list[str] = []

    def body(ready: Callable[[], None]) -> None:
        try:
            spin(ready)
        finally:
            with desist.cleanup():
                desist.sleep(0.01)
                steps.append("cleaned up")

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert steps == ["cleaned up"]
    assert isinstance(victim.raised, Killed)


def test_clean_up_after_a_kill_at_a_wait_is_not_killed_at_once() -> None:
    steps: list[int] = []

    def body(ready: Callable[[], None]) -> None:
        try:
            with desist.shield(NEVER):
                ready()
                desist.sleep_forever()
        finally:
            for step in range(100):
                steps.append(step)  # noqa: PERF402 (bytecodes are the point)

    for _ in range(20):
        steps.clear()
        with Victim(body) as victim:
            victim.kill(policy=INSIST)
        assert len(steps) == 100


def test_masks_are_not_inherited_by_threads_started_inside() -> None:
    inner = Victim(spin)

    def body(ready: Callable[[], None]) -> None:
        with desist.cleanup(), inner:
            ready()

    with Victim(body):
        inner._ready.wait()
        assert inner.kill(policy=INSIST).outcome is KillOutcome.ASYNC_EXC


# --- swallowed kills ------------------------------------------------------------------------------


def test_a_swallowed_kill_is_delivered_again() -> None:
    swallowed: list[BaseException] = []

    def body(ready: Callable[[], None]) -> None:
        ready()
        while len(swallowed) < 3:
            try:
                while True:
                    pass
            except BaseException as raised:  # noqa: BLE001, PERF203 (as a victim does)
                swallowed.append(raised)
        while True:
            pass

    with Victim(body) as victim:
        report = victim.kill(policy=INSIST)
    assert [type(one) for one in swallowed] == [Killed] * 3
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert isinstance(victim.raised, Killed)


def test_a_kill_swallowed_at_a_wait_is_raised_at_the_next() -> None:
    swallowed: list[BaseException] = []

    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER):
            ready()
            for _ in range(5):
                try:
                    desist.sleep(NEVER)
                except Killed as raised:  # noqa: PERF203 (as a victim does)
                    swallowed.append(raised)
            desist.checkpoint()

    with Victim(body) as victim:
        victim.kill(policy=AT_WAIT)
    assert len(swallowed) == 5
    assert isinstance(victim.raised, Killed)


def test_code_that_swallows_forever_is_abandoned_in_time() -> None:
    end = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        ready()
        while not end.is_set():
            with suppress(BaseException):
                end.wait(0.001)

    victim = Victim(body)
    with victim:
        report = victim.kill(
            policy=StopPolicy(cooperative=0, at_wait=0, async_exc=0.12, trace=None, defer=0)
        )
        end.set()
    threading.Thread.join(victim)
    assert report.outcome is KillOutcome.ABANDONED
    assert 0.1 < report.elapsed < NEVER


def test_a_body_that_returns_after_it_has_swallowed_its_kill_is_done() -> None:
    def body(ready: Callable[[], None]) -> int:
        with suppress(Killed):
            spin(ready)
        return 1

    with Victim(body) as victim:
        report = victim.kill(policy=INSIST)
    assert victim.results == [1]
    assert victim.state is TaskState.DONE
    assert report.outcome is KillOutcome.COOPERATIVE


# --- reports and policies -------------------------------------------------------------------------


def test_a_report_names_the_released_locks() -> None:
    first, second = desist.Lock(name="first"), desist.Lock(name="second", on_kill="release")

    def body(ready: Callable[[], None]) -> None:
        with first, second:
            spin(ready)

    with Victim(body) as victim:
        report = victim.kill(policy=INSIST)
    assert (report.poisoned, report.released) == (["first"], ["second"])
    assert (report.requeued, report.fenced) == ([], [])
    assert repr(report).startswith("<KillReport KillOutcome.ASYNC_EXC after ")


def test_a_cancelled_killer_goes_on_with_its_kill() -> None:
    with Victim(spin) as victim, desist.move_on_after(0):
        report = victim.kill(policy=INSIST)
        assert report.outcome is KillOutcome.ASYNC_EXC


def test_policies_are_values() -> None:
    policy = StopPolicy(cooperative=1, at_wait=None, async_exc=2.5, defer=0, abandon=False)
    assert policy == StopPolicy(cooperative=1, at_wait=None, async_exc=2.5, defer=0, abandon=False)
    assert policy != StopPolicy()
    assert eval(repr(policy), {"StopPolicy": StopPolicy}) == policy
    assert ABANDON.abandon
