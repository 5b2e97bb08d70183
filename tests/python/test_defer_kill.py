"""Blocks that defer a kill: I24, I25, I26."""

from __future__ import annotations

import gc
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Killed, KillOutcome, ScopeMisuse, TaskState, defer_kill
from desist._core import Task
from support import ABANDON, AT_WAIT, FORCE, INSIST, NEVER, DeafEvent, Victim, in_thread, spin

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from desist import StopPolicy


def masked(seconds: float = NEVER) -> Generator[None]:
    with defer_kill(seconds):
        yield


class Deferred:
    """A kill that is requested while the victim is in a mask, and cannot be delivered yet."""

    def __init__(self, policy: StopPolicy = INSIST) -> None:
        self.policy = policy
        self.go_on = DeafEvent()

    def __call__(self, victim: Victim[Any]) -> None:
        killer = threading.Thread(target=victim.kill, kwargs={"policy": self.policy})
        killer.start()
        victim.token.wait()
        for _ in range(3):
            assert not desist._core.Latch().wait(0.002)
        assert killer.is_alive()
        self.go_on.set()
        killer.join()


def test_i24_a_kill_is_raised_when_the_outermost_block_is_left() -> None:
    kill, steps = Deferred(), []

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(NEVER):
            with defer_kill(NEVER):
                ready()
                kill.go_on.wait()
                steps.append("inner")
            steps.append("outer")
        steps.append("behind")  # at once: not one bytecode later

    with Victim(body) as victim:
        kill(victim)
    assert steps == ["inner", "outer"]
    assert isinstance(victim.raised, Killed)
    assert victim.state is TaskState.KILLED


@pytest.mark.parametrize("first_takes", [0, NEVER])
def test_i24_blocks_may_overlap_and_each_closes_its_own_mask(first_takes: float) -> None:
    kill, steps = Deferred(), []

    def body(ready: Callable[[], None]) -> None:
        first, second = masked(first_takes), masked()
        next(first)
        next(second)
        ready()
        kill.go_on.wait()
        first.close()
        steps.append("masked by the second one")
        second.close()
        steps.append("behind")

    with Victim(body) as victim:
        kill(victim)
    assert steps == ["masked by the second one"]
    assert isinstance(victim.raised, Killed)


@pytest.mark.parametrize("beginning", ["defer_kill", "commit"])
def test_i24_a_block_does_not_begin_when_a_kill_is_due(beginning: str) -> None:
    kill, steps = Deferred(AT_WAIT), []
    queue: desist.LeaseQueue[int] = desist.LeaseQueue()
    queue.put(1)
    lease = queue.lease()
    assert lease is not None

    strangers = [masked()]
    Task("stranger").run(lambda: next(strangers[0]))

    def body(ready: Callable[[], None]) -> None:
        mask = masked()
        next(mask)
        ready()
        kill.go_on.wait()
        in_thread(mask.close)  # the block belongs to another thread, so nothing is raised here
        strangers.pop().close()  # nor here, because it is not this task's block
        steps.append("due")
        with defer_kill(NEVER) if beginning == "defer_kill" else lease.commit():
            steps.append("inside")

    with Victim(body) as victim:
        kill(victim)
    assert steps == ["due"]
    assert isinstance(victim.raised, Killed)


def test_i24_a_kill_takes_the_place_of_an_error_that_leaves_the_block() -> None:
    kill = Deferred()

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(NEVER):
            ready()
            kill.go_on.wait()
            raise ZeroDivisionError

    with Victim(body) as victim:
        kill(victim)
    assert isinstance(victim.raised, Killed)
    assert isinstance(victim.raised.__context__, ZeroDivisionError)


def test_i24_a_wait_inside_is_cancelled_and_not_killed() -> None:
    kill = Deferred()

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(NEVER):
            ready()
            kill.go_on.wait()  # by now the kill is requested
            with pytest.raises(desist.Cancelled):
                desist.sleep_forever()

    with Victim(body) as victim:
        kill(victim)
    assert isinstance(victim.raised, Killed)


def test_i25_a_kill_is_deferred_no_longer_than_the_block_asks_for() -> None:
    def body(ready: Callable[[], None]) -> None:
        with defer_kill(0.01):
            spin(ready)

    with Victim(body) as victim:
        report = victim.kill(policy=INSIST)
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert isinstance(victim.raised, Killed)


def test_i25_a_block_is_not_abandoned_before_its_time() -> None:
    end = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(0.05):
            ready()
            end.wait()  # in C, where nothing interrupts it

    victim = Victim(body)
    policy = desist.StopPolicy(cooperative=0, at_wait=0, async_exc=0.01, defer=0)
    with victim:
        before = desist.current_time()
        assert victim.kill(policy=policy).outcome is KillOutcome.ABANDONED
        assert desist.current_time() - before > 0.04
        end.set()
    threading.Thread.join(victim)


def test_i26_threads_that_are_started_inside_can_be_killed() -> None:
    inner = Victim(spin)

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(NEVER), inner:
            ready()

    with Victim(body):
        inner._ready.wait()
        assert inner.kill(policy=INSIST).outcome is KillOutcome.ASYNC_EXC


def test_i26_a_task_inside_the_block_of_another_has_no_mask() -> None:
    task = Task("inner")

    def inner() -> None:
        killer.start()
        spin(lambda: None)

    killer = threading.Thread(target=task.kill, kwargs={"policy": INSIST})

    def body(ready: Callable[[], None]) -> None:
        ready()
        with defer_kill(NEVER):
            task.run(inner)

    with Victim(body) as victim:
        pass
    killer.join()
    assert task.state is TaskState.KILLED
    assert victim.state is TaskState.DONE


def test_a_block_left_by_another_thread_closes_no_mask_of_that_thread() -> None:
    kill, steps = Deferred(), []
    strangers: list[Generator[None]] = []

    def stranger(ready: Callable[[], None]) -> None:
        strangers.append(masked())
        next(strangers[0])
        ready()

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(NEVER):
            ready()
            kill.go_on.wait()
            strangers.pop().close()
            steps.append("still masked")
        steps.append("behind")

    with Victim(stranger):
        pass
    with Victim(body) as victim:
        kill(victim)
    assert steps == ["still masked"]
    assert isinstance(victim.raised, Killed)


def test_a_generator_that_is_closed_by_another_thread_defers_no_kill() -> None:
    masks: list[Generator[None]] = []

    def body(ready: Callable[[], None]) -> None:
        masks.append(masked())
        next(masks[0])
        spin(ready)

    with Victim(body) as victim:
        killer = threading.Thread(target=victim.kill, kwargs={"policy": INSIST})
        killer.start()
        victim.token.wait()
        assert not desist._core.Latch().wait(0.005)
        assert killer.is_alive()
        masks.clear()
        gc.collect()
        killer.join()
    assert isinstance(victim.raised, Killed)


def test_the_mask_of_a_block_that_is_never_left_ends_with_its_object() -> None:
    def body(ready: Callable[[], None]) -> None:
        mask = defer_kill(NEVER)
        mask.__enter__()
        del mask
        spin(ready)

    with Victim(body) as victim:
        assert victim.kill(policy=INSIST).outcome is KillOutcome.ASYNC_EXC


def test_a_generator_that_is_never_resumed_defers_a_kill_for_its_time_only() -> None:
    masks: list[Generator[None]] = []

    def body(ready: Callable[[], None]) -> None:
        masks.append(masked(0.01))
        next(masks[0])
        spin(ready)

    with Victim(body) as victim:
        assert victim.kill(policy=INSIST).outcome is KillOutcome.ASYNC_EXC
    masks[0].close()


def test_outside_any_task_it_does_nothing() -> None:
    with defer_kill(0), defer_kill(math.inf), defer_kill(1):
        pass
    with pytest.raises(ZeroDivisionError), defer_kill(1):
        raise ZeroDivisionError


def test_it_is_not_a_checkpoint_for_cancellations() -> None:
    with desist.move_on_after(0) as scope, defer_kill(1):
        pass
    assert not scope.cancelled_caught


def test_without_a_bound_it_defers_a_kill_until_its_end() -> None:
    kill, steps = Deferred(FORCE), []

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(math.inf):
            ready()
            kill.go_on.wait()
            steps.append("inside")
        spin(lambda: None)

    with Victim(body) as victim:
        kill(victim)
    assert steps == ["inside"]


def test_an_abandoned_task_may_still_leave_its_block() -> None:
    end = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        with defer_kill(NEVER):
            ready()
            end.wait()

    victim = Victim(body)
    with victim:
        assert victim.kill(policy=ABANDON).outcome is KillOutcome.ABANDONED
        end.set()
    threading.Thread.join(victim)
    assert victim.raised is None


def test_a_block_is_entered_once() -> None:
    mask = defer_kill(1)
    with pytest.raises(ScopeMisuse, match="enter it with a `with` statement first"):
        mask.__exit__(None, None, None)
    with mask, pytest.raises(ScopeMisuse, match="make a new one for each block"):
        mask.__enter__()
    with pytest.raises(ScopeMisuse), mask:
        pass


def test_the_bound_is_required_and_is_a_number_of_seconds() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        defer_kill()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="the time to hold a kill off must be a number of seconds"):
        defer_kill(None)  # type: ignore[arg-type]
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="the time to hold a kill off"):
            defer_kill(wrong)
