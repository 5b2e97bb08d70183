"""Values behind a lock, and the rollback of half changed ones: I20, I21."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Fenced, Guarded, KillOutcome, LockPoisoned, OwnerLost, ScopeMisuse
from desist._core import Task
from support import ABANDON, INSIST, NEVER, DeafEvent, Victim, in_thread, spin

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


def accounts(*, rollback: Callable[[Any], Any] | None = None) -> Guarded[dict[str, int]]:
    return Guarded({"a": 10, "b": 0}, rollback=rollback, name="accounts")


def look(guarded: Guarded[Any]) -> Any:
    with guarded.lock() as held:
        return held.value


WHOLE = {"a": 10, "b": 0}
HALF = {"a": 9, "b": 0}
DONE = {"a": 9, "b": 1}

# --- a value and its lock -------------------------------------------------------------------------


def test_one_thread_at_a_time_has_the_value() -> None:
    guarded = Guarded(0)

    def work() -> None:
        for _ in range(300):
            with guarded.lock() as held:
                held.value = held.value + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert look(guarded) == 1200


def test_it_is_reached_only_inside_the_block() -> None:
    guarded = Guarded([1])
    held = guarded.lock()
    early: list[Callable[[], object]] = [
        lambda: held.value,
        lambda: setattr(held, "value", []),
        lambda: held.__exit__(None, None, None),
    ]
    for use in early:
        with pytest.raises(ScopeMisuse, match="enter it with a `with` statement first"):
            use()
    with held:
        assert held.value == [1]
        assert guarded.locked()
        assert guarded.owner() == threading.current_thread().name
        with pytest.raises(ScopeMisuse, match="make a new one"):
            held.__enter__()
    assert not guarded.locked()
    assert guarded.owner() is None
    with pytest.raises(RuntimeError, match="the block has ended"):
        held.value  # noqa: B018 (it raises)
    with pytest.raises(RuntimeError, match="the block has ended"):
        held.value = [2]
    held.__exit__(None, None, None)
    with pytest.raises(ScopeMisuse), held:
        pass
    assert look(guarded) == [1]


def test_a_wait_for_it_can_be_cancelled() -> None:
    guarded = Guarded(1)
    with guarded.lock(), pytest.raises(desist.DeadlineExceeded):
        in_thread(lambda: waiting(guarded))
    assert look(guarded) == 1


def waiting(guarded: Guarded[int]) -> None:
    with desist.cancel_scope(timeout=0.01), guarded.lock():
        pass


def test_its_representation_has_its_state_and_not_its_value() -> None:
    guarded = Guarded("secret", name="accounts")
    assert repr(guarded) == f'<unlocked desist.Guarded object "accounts" at {id(guarded):#x}>'
    with guarded.lock():
        assert repr(guarded).startswith("<locked ")
    assert guarded.name == "accounts"


# --- left by an exception -------------------------------------------------------------------------


def fail_halfway(guarded: Guarded[dict[str, int]], raised: type[BaseException]) -> None:
    with guarded.lock() as held:
        held.value["a"] -= 1
        raise raised


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_rolls_back_if_asked_for(raised: type[BaseException]) -> None:
    for rollback, after in ((None, HALF), (copy.deepcopy, WHOLE), (dict, WHOLE)):
        guarded = accounts(rollback=rollback)
        with pytest.raises(raised):
            fail_halfway(guarded, raised)
        assert look(guarded) == after
        assert not guarded.poisoned


def test_a_cancellation_rolls_back() -> None:
    guarded = accounts(rollback=dict)
    with desist.move_on_after(0.01), guarded.lock() as held:
        held.value["a"] -= 1
        desist.sleep_forever()
    assert look(guarded) == WHOLE


def test_a_replaced_value_is_rolled_back() -> None:
    guarded = Guarded(1, rollback=copy.copy)

    def replace() -> None:
        with guarded.lock() as held:
            held.value = 2
            assert held.value == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replace()
    assert look(guarded) == 1


def test_a_block_that_ends_is_not_rolled_back() -> None:
    guarded = accounts(rollback=dict)
    with guarded.lock() as held:
        value = held.value
        value["a"] -= 1
        value["b"] += 1
    assert look(guarded) is value
    assert value == DONE


def test_a_copy_that_fails_ends_the_block_before_it_begins() -> None:
    guarded = accounts(rollback=lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), guarded.lock():
        raise AssertionError
    assert not guarded.locked()
    assert not guarded.poisoned


# --- killed inside --------------------------------------------------------------------------------


def halfway(guarded: Guarded[dict[str, int]]) -> Victim[None]:
    def body(ready: Callable[[], None]) -> None:
        with guarded.lock() as held:
            held.value["a"] -= 1
            spin(ready)

    return Victim(body)


def test_i21_without_a_rollback_a_kill_poisons() -> None:
    guarded = accounts()
    with halfway(guarded) as victim:
        report = victim.kill("enough", policy=INSIST)
    assert report.poisoned == ["accounts"]
    assert guarded.poisoned
    with pytest.raises(LockPoisoned, match="repair it inside repair") as raised, guarded.lock():
        pass
    assert raised.value.owner == "victim"
    with pytest.raises(ZeroDivisionError), guarded.repair():
        raise ZeroDivisionError
    assert guarded.poisoned
    with guarded.repair() as held:
        assert held.value == HALF
        held.value = dict(WHOLE)
    assert look(guarded) == WHOLE


def test_i21_with_a_rollback_a_kill_rolls_back() -> None:
    guarded = accounts(rollback=dict)
    with halfway(guarded) as victim:
        report = victim.kill(policy=INSIST)
    assert (report.poisoned, report.released) == ([], ["accounts"])
    assert not guarded.poisoned
    assert look(guarded) == WHOLE


def test_a_kill_in_the_copy_changes_nothing_and_does_not_poison() -> None:
    entered = threading.Event()

    def slow(value: dict[str, int]) -> dict[str, int]:
        spin(entered.set)
        return value

    guarded = accounts(rollback=slow)

    def body(ready: Callable[[], None]) -> None:
        ready()
        with guarded.lock():
            pass

    with Victim(body) as victim:
        entered.wait()
        assert guarded.locked()
        victim.kill(policy=INSIST)
    assert not guarded.poisoned
    assert not guarded.locked()


# --- abandoned inside -----------------------------------------------------------------------------


def abandoned_in(guarded: Guarded[dict[str, int]]) -> tuple[Victim[None], DeafEvent]:
    end = DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        with guarded.lock() as held:
            value = held.value
            value["a"] -= 1
            ready()
            end.wait()
            value["a"] -= 100  # it still has its former value
            held.value = value

    victim = Victim(body)
    with victim:
        assert victim.kill(policy=ABANDON).outcome is KillOutcome.ABANDONED
    return victim, end


def test_a_value_with_a_rollback_survives_an_abandoned_holder() -> None:
    guarded = accounts(rollback=dict)
    victim, end = abandoned_in(guarded)
    assert look(guarded) == WHOLE
    with guarded.lock() as held:
        held.value["a"] -= 1
        end.set()
        threading.Thread.join(victim)
        assert guarded.locked()
        held.value["b"] += 1
    assert isinstance(victim.raised, Fenced)
    assert look(guarded) == DONE


def test_a_value_without_a_rollback_is_unavailable_after_an_abandoned_holder() -> None:
    guarded = accounts()
    victim, end = abandoned_in(guarded)
    for block in (guarded.lock(), guarded.repair()):
        with pytest.raises(OwnerLost), block:
            pass
    end.set()
    threading.Thread.join(victim)
    with pytest.raises(OwnerLost):
        look(guarded)


def test_a_block_that_was_abandoned_while_it_copied_does_not_begin() -> None:
    entered, end = DeafEvent(), DeafEvent()
    first = [True]

    def slow(value: dict[str, int]) -> dict[str, int]:
        if first:
            first.pop()
            entered.set()
            end.wait()
        return dict(value)

    guarded, steps = accounts(rollback=slow), []

    def body(ready: Callable[[], None]) -> None:
        ready()
        with guarded.lock():
            steps.append("begun")

    victim = Victim(body)
    with victim:
        entered.wait()
        victim.kill(policy=ABANDON)
    with guarded.lock() as held:
        end.set()
        threading.Thread.join(victim)
        assert held.value == WHOLE
    assert isinstance(victim.raised, Fenced)
    assert not steps


# --- closed late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rollback", [None, dict])
def test_a_block_that_is_closed_late_does_not_touch_the_value_of_others(rollback: Any) -> None:
    guarded = accounts(rollback=rollback)

    def suspended() -> Generator[None]:
        with guarded.lock() as held:
            held.value["a"] -= 1
            yield

    generators = [suspended()]
    Task("one").run(lambda: next(generators[0]))
    assert not guarded.locked()  # released at the task's end
    with guarded.lock() as held:
        before = dict(held.value)
        generators.clear()
        gc.collect()
        assert held.value == before
        assert guarded.locked()
    assert not guarded.poisoned


def test_a_block_that_a_scope_has_ended_has_no_value() -> None:
    guarded = accounts(rollback=dict)
    with desist.move_on_after(NEVER):
        held = guarded.lock()
        held.__enter__()
    with pytest.raises(Fenced):
        held.value  # noqa: B018 (it raises)
    with pytest.raises(Fenced):
        held.__exit__(None, None, None)
    assert look(guarded) == WHOLE


# --- memory, bad input ----------------------------------------------------------------------------


def test_a_rolled_back_value_is_not_kept_alive() -> None:
    class Thing:
        pass

    guarded = Guarded([Thing()], rollback=lambda _: [])

    def body(ready: Callable[[], None]) -> weakref.ref[Thing]:
        with guarded.lock() as held:
            gone.append(weakref.ref(held.value[0]))
            spin(ready)
        raise AssertionError

    gone: list[weakref.ref[Thing]] = []
    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    victim.raised = None
    gc.collect()
    assert gone[0]() is None
    assert look(guarded) == []


def test_a_cycle_through_it_is_collected() -> None:
    class Thing:
        guarded: Guarded[Thing]

    def make() -> weakref.ref[Thing]:
        thing = Thing()
        thing.guarded = Guarded(thing, rollback=lambda _: thing)
        with thing.guarded.lock():
            return weakref.ref(thing)

    gone = make()
    gc.collect()
    assert gone() is None


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"rollback.* must be callable, not str"):
        Guarded(1, rollback="copy")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Guarded()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Guarded(1, dict)  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError):
        desist._core.GuardedValue()


def test_it_is_generic() -> None:
    assert Guarded[int].__origin__ is Guarded  # type: ignore[attr-defined]
    assert desist._core.GuardedValue[int].__origin__ is desist._core.GuardedValue  # type: ignore[attr-defined]
