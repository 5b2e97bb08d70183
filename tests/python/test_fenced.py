"""Guards and their epochs, fenced locks, repairs, owners: I20, I21, I34."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Fenced, KillOutcome, Lock, LockPoisoned, OwnerLost, RLock, ScopeMisuse
from desist._core import LockGuard, Task
from support import ABANDON, HAS_GIL, INSIST, NEVER, DeafEvent, Victim, held, in_thread, spin

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

KINDS = pytest.mark.parametrize("kind", [Lock, RLock])


@contextmanager
def abandoned_in(
    hold: Callable[[], object], afterwards: Callable[[], object]
) -> Iterator[Victim[object]]:
    """Run the block while a thread is abandoned in `hold`; then the thread runs `afterwards`."""
    go_on = DeafEvent()

    def body(ready: Callable[[], None]) -> object:
        hold()
        ready()
        go_on.wait()
        return afterwards()

    victim = Victim(body)
    with victim:
        assert victim.kill("enough", policy=ABANDON).outcome is KillOutcome.ABANDONED
        yield victim
        go_on.set()
    threading.Thread.join(victim)


# --- guards ---------------------------------------------------------------------------------------


@KINDS
def test_i34_each_holder_has_a_greater_epoch(kind: type[Lock]) -> None:
    lock, epochs = kind(), []
    for _ in range(3):
        with lock.guard() as guard:
            epochs.append(guard.epoch)
            guard.check()
            assert lock.locked()
        assert not lock.locked()
        with lock:
            pass
    epochs.append(in_thread(lambda: epoch_of(lock)))
    assert epochs == sorted(set(epochs))


def epoch_of(lock: Lock) -> int:
    with lock.guard() as guard:
        return guard.epoch


def test_i34_epochs_increase_when_many_threads_take_turns() -> None:
    lock, epochs = Lock(), []

    def work() -> None:
        for _ in range(200):
            with lock.guard() as guard:
                epochs.append(guard.epoch)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(epochs) == 800
    assert epochs == sorted(set(epochs))


def test_a_holder_that_acquires_it_again_keeps_its_epoch() -> None:
    lock = RLock()
    with lock.guard() as outer:
        with lock.guard() as inner:
            assert inner.epoch == outer.epoch
        outer.check()
        with pytest.raises(Fenced):
            inner.check()
        assert lock.locked()
    assert not lock.locked()


def test_i34_the_epoch_increases_when_a_condition_releases_the_lock() -> None:
    lock = Lock(fenced=True)
    condition = desist.Condition(lock)
    with lock.guard() as guard:
        before = guard.epoch
        condition.wait(0)
        guard.check()
        assert guard.epoch > before
    assert not lock.locked()


def test_a_guard_can_be_released_early() -> None:
    lock = Lock()
    with lock.guard() as guard:
        guard.release()
        assert not lock.locked()
        with pytest.raises(Fenced):
            guard.check()
        with pytest.raises(RuntimeError, match="released before"):
            guard.release()
        with held(lock):
            pass
    with lock.guard() as guard:
        in_thread(guard.release)
        assert not lock.locked()


def test_a_guard_waits_as_acquire_does() -> None:
    lock = Lock()
    with (
        held(lock),
        pytest.raises(desist.DeadlineExceeded),
        desist.cancel_scope(timeout=0.01),
        lock.guard(),
    ):
        pass
    with desist.move_on_after(0) as scope, lock.guard():
        pass
    assert scope.cancelled_caught
    assert not lock.locked()


def test_a_guard_is_entered_once() -> None:
    lock = Lock()
    guard = lock.guard()
    early: list[Callable[[], object]] = [
        guard.check,
        guard.release,
        lambda: guard.epoch,
        lambda: guard.__exit__(None, None, None),
    ]
    for use in early:
        with pytest.raises(ScopeMisuse, match="enter it with a `with` statement first"):
            use()
    with guard, pytest.raises(ScopeMisuse, match="make a new one"):
        guard.__enter__()
    with pytest.raises(ScopeMisuse), guard:
        pass
    with pytest.raises(TypeError):
        LockGuard()


def test_the_guard_of_a_block_that_a_scope_has_ended_is_stale() -> None:
    lock = Lock()
    with desist.move_on_after(NEVER):
        guard = lock.guard()
        guard.__enter__()
    assert not lock.locked()
    with held(lock):
        with pytest.raises(Fenced, match="leave its data alone"):
            guard.check()
        with pytest.raises(Fenced):
            guard.__exit__(None, None, None)
        assert lock.locked()


def test_a_block_that_is_closed_late_does_not_release_the_lock_of_others() -> None:
    lock = Lock()

    def suspended() -> Generator[None]:
        with lock.guard():
            yield

    generators = [suspended()]
    Task("one").run(lambda: next(generators[0]))
    assert not lock.locked()  # released at the task's end
    with lock.guard() as guard:
        generators.clear()
        gc.collect()
        guard.check()
        assert lock.locked()
    assert not lock.locked()


def test_i21_a_guard_whose_holder_is_killed_poisons_its_lock() -> None:
    lock = Lock(name="accounts")

    def body(ready: Callable[[], None]) -> None:
        with lock.guard():
            spin(ready)

    with Victim(body) as victim:
        report = victim.kill(policy=INSIST)
    assert report.poisoned == ["accounts"]
    assert lock.poisoned
    assert not lock.locked()


def test_i21_a_guard_that_a_finally_releases_poisons_its_lock_too() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        with lock.guard() as guard:
            try:
                spin(ready)
            finally:
                guard.release()

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert lock.poisoned


@pytest.mark.parametrize("block", [lambda lock: lock, lambda lock: lock.guard()])
def test_i21_a_generator_that_is_closed_by_a_kill_poisons_its_lock(
    block: Callable[[Lock], Any],
) -> None:
    lock = Lock()

    def steps() -> Generator[None]:
        with block(lock):
            yield
            raise AssertionError

    def body(ready: Callable[[], None]) -> None:
        for _ in steps():
            spin(ready)

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert lock.poisoned


def test_its_representation_has_its_state() -> None:
    lock = Lock(name="accounts")
    guard = lock.guard()
    assert repr(guard) == f"<LockGuard not entered of {lock!r}>"
    with guard:
        assert repr(guard) == f"<LockGuard epoch=1 of {lock!r}>"
    assert repr(guard) == f"<LockGuard released of {lock!r}>"


# --- fenced locks ---------------------------------------------------------------------------------


@KINDS
def test_i34_a_fenced_lock_goes_to_the_next_waiter_when_its_holder_is_abandoned(
    kind: type[Lock],
) -> None:
    lock = kind(fenced=True, on_kill="release")
    guards: list[LockGuard] = []

    def hold() -> None:
        guards.append(lock.guard())
        guards[0].__enter__()
        guards[0].check()

    with abandoned_in(hold, lambda: guards[0].__exit__(None, None, None)) as victim:
        stale = guards[0].epoch
        with lock.guard() as guard:
            assert guard.epoch > stale
            assert guards[0].epoch == stale
            with pytest.raises(Fenced):
                guards[0].check()
    assert isinstance(victim.raised, Fenced)
    assert not lock.locked()


WAYS: dict[str, Callable[[Lock], tuple[Callable[[], Any], Callable[[], Any]]]] = {
    "acquire": lambda lock: (lock.acquire, lock.release),
    "with": lambda lock: (lock.__enter__, lambda: lock.__exit__(None, None, None)),
    "guard": lambda lock: (
        (guard := lock.guard()).__enter__,
        lambda: guard.__exit__(None, None, None),
    ),
    "guard, released": lambda lock: ((guard := lock.guard()).__enter__, guard.release),
    "repair": lambda lock: (
        (guard := lock.repair()).__enter__,
        lambda: guard.__exit__(None, None, None),
    ),
}


@KINDS
@pytest.mark.parametrize("way", WAYS)
def test_a_stale_holder_does_not_free_the_lock_of_the_next(way: str, kind: type[Lock]) -> None:
    lock = kind(fenced=True, on_kill="release")
    hold, give_back = WAYS[way](lock)
    with abandoned_in(hold, give_back) as victim:
        lock.acquire()
    assert isinstance(victim.raised, RuntimeError)
    assert isinstance(victim.raised, Fenced)
    assert lock.locked()
    assert not lock.acquire(blocking=False) or kind is RLock
    lock.release()


@pytest.mark.parametrize("way", WAYS)
def test_a_stale_holder_that_unwinds_gets_no_error(way: str) -> None:
    lock = Lock(fenced=True, on_kill="release")

    def fail() -> None:
        blocks: dict[str, Any] = {"with": lock, "guard": guard, "repair": guard}
        failed = ZeroDivisionError()
        if way in blocks:
            blocks[way].__exit__(type(failed), failed, None)
        raise failed

    guard = lock.repair() if way == "repair" else lock.guard()
    ways: dict[str, Callable[[], object]] = {"with": lock.__enter__, "acquire": lock.acquire}
    hold = ways.get(way, guard.__enter__)
    with abandoned_in(hold, fail) as victim:
        lock.acquire()
    assert isinstance(victim.raised, ZeroDivisionError)
    assert lock.locked()


def test_i21_a_fenced_lock_whose_holder_is_abandoned_is_poisoned_until_it_is_repaired() -> None:
    lock = Lock(fenced=True, name="accounts")
    with abandoned_in(lock.acquire, lambda: None):
        assert lock.poisoned
        with pytest.raises(LockPoisoned, match="repair it inside repair") as raised:
            lock.acquire()
        assert not isinstance(raised.value, OwnerLost)
        assert raised.value.owner == "victim"
        assert raised.value.cause.reason == "enough"
        assert raised.value.stack is not None
        assert ("go_on.wait()" if HAS_GIL else "waiter.acquire()") in raised.value.stack
        with lock.repair():
            pass
        with lock:
            pass


def test_a_lock_that_is_not_fenced_stays_unavailable() -> None:
    lock = Lock(on_kill="release")
    with abandoned_in(lock.acquire, lock.release) as victim:
        for take in (lock.acquire, lock.guard().__enter__, lock.repair().__enter__):
            with pytest.raises(OwnerLost, match="use a new one"):
                take()
    assert isinstance(victim.raised, RuntimeError)
    with pytest.raises(OwnerLost):
        lock.acquire()


def test_a_waiter_of_a_fenced_lock_gets_it_when_its_holder_is_abandoned() -> None:
    lock, end = Lock(fenced=True, on_kill="release"), DeafEvent()

    def hold(ready: Callable[[], None]) -> None:
        with lock.guard():
            ready()
            end.wait()

    def body(ready: Callable[[], None]) -> int:
        ready()
        with lock.guard() as guard:
            return guard.epoch

    with Victim(hold) as victim, Victim(body) as waiter:
        victim.kill(policy=ABANDON)
        waiter.join()
        end.set()
    threading.Thread.join(victim)
    assert waiter.results == [2]
    assert isinstance(victim.raised, Fenced)


def test_an_abandoned_holder_may_acquire_the_lock_again() -> None:
    lock = Lock(fenced=True, on_kill="release")

    def again() -> int | None:
        with desist.shield(NEVER), lock.guard() as guard:
            guard.check()
            return guard.epoch
        return None

    with abandoned_in(lock.acquire, again) as victim:
        pass
    assert victim.results == [2]
    assert not lock.locked()


def test_only_its_holder_releases_a_fenced_lock() -> None:
    lock = Lock(fenced=True)
    with held(lock), pytest.raises(RuntimeError, match="only its holder may release it"):
        lock.release()
    with pytest.raises(RuntimeError, match="is not held"):
        lock.release()


def test_a_stale_repair_does_not_clear_the_poison_of_another_repair() -> None:
    lock = Lock(fenced=True)
    first = lock.repair()
    with abandoned_in(first.__enter__, lambda: first.__exit__(None, None, None)) as victim:
        second = lock.repair()
        second.__enter__()
    assert isinstance(victim.raised, Fenced)
    assert lock.poisoned
    second.__exit__(None, None, None)
    assert not lock.poisoned


# --- repairs --------------------------------------------------------------------------------------


def poisoned() -> Lock:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        with lock:
            spin(ready)

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert lock.poisoned
    return lock


def test_a_repair_may_be_a_function() -> None:
    lock, seen = poisoned(), []
    lock.repair(lambda: seen.append((lock.locked(), lock.poisoned)))
    assert seen == [(True, True)]
    assert not lock.poisoned
    assert not lock.locked()


def test_a_function_that_fails_leaves_it_poisoned() -> None:
    lock = poisoned()
    with pytest.raises(ZeroDivisionError):
        lock.repair(lambda: 1 / 0)
    assert lock.poisoned
    assert not lock.locked()
    with pytest.raises(TypeError, match="must be callable"):
        lock.repair(1)  # type: ignore[call-overload]
    assert not lock.locked()


def test_a_function_that_is_killed_leaves_it_poisoned() -> None:
    lock = poisoned()
    with Victim(lambda ready: lock.repair(lambda: spin(ready))) as victim:
        victim.kill("in the repair", policy=INSIST)
    with pytest.raises(LockPoisoned) as raised:
        lock.acquire()
    assert raised.value.cause.reason == "in the repair"


def test_a_repair_has_a_guard() -> None:
    lock = poisoned()
    with lock.repair() as guard:
        guard.check()
        assert guard.epoch == 2
        guard.release()
    assert lock.poisoned  # the repair did not end normally
    with lock.repair():
        pass
    assert not lock.poisoned


# --- owners ---------------------------------------------------------------------------------------


@KINDS
def test_a_lock_names_its_holder(kind: type[Lock]) -> None:
    lock = kind()
    assert lock.owner() is None
    with lock:
        assert lock.owner() == threading.current_thread().name
    assert lock.owner() is None
    with held(lock):
        assert lock.owner() == "victim"

    def hold() -> None:
        with lock:
            names.append(lock.owner())

    names: list[str | None] = []
    thread = threading.Thread(target=hold, name="plain")
    thread.start()
    thread.join()
    assert names == ["plain"]


# --- bad input ------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        Lock(fenced="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Lock().guard(1)  # type: ignore[call-arg]
