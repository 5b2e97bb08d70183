from __future__ import annotations

import gc
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Cancelled, Killed, KillOutcome, Lock, LockPoisoned, OwnerLost, TaskState
from desist._core import Task
from support import ABANDON, AT_WAIT, FORCE, INSIST, NEVER, DeafEvent, Victim, held, in_thread, spin

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# --- as threading.Lock ----------------------------------------------------------------------------


def test_one_thread_at_a_time_holds_it() -> None:
    lock = Lock()
    assert lock.acquire()
    assert lock.locked()
    assert not in_thread(lambda: lock.acquire(blocking=False))
    assert not lock.acquire(timeout=0)
    assert not lock.acquire(timeout=0.01)
    lock.release()
    assert not lock.locked()
    with lock:
        assert lock.locked()
    assert not lock.locked()


def test_a_timeout_of_minus_one_is_none() -> None:
    lock = Lock()
    assert lock.acquire(True, -1)


def test_another_thread_may_release_it() -> None:
    lock = Lock()
    lock.acquire()
    in_thread(lock.release)
    assert not lock.locked()


def test_many_threads_count_together() -> None:
    lock, count = Lock(), [0]

    def work() -> None:
        for _ in range(500):
            with lock:
                count[0] = count[0] + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [2000]


def test_its_representation_has_its_state() -> None:
    lock = Lock(name="accounts")
    assert repr(lock) == f'<unlocked desist.Lock object "accounts" at {id(lock):#x}>'
    with lock:
        assert repr(lock) == f'<locked desist.Lock object "accounts" at {id(lock):#x}>'


# --- cancelled waits ------------------------------------------------------------------------------


def test_a_cancelled_wait_has_not_acquired_it() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        ready()
        lock.acquire()

    with held(lock), Victim(body) as victim:
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    assert not lock.locked()


def test_a_blocking_call_is_a_checkpoint_even_if_the_lock_is_free() -> None:
    lock = Lock()
    with desist.move_on_after(0):
        with pytest.raises(Cancelled):
            lock.acquire()
        assert not lock.locked()
        assert lock.acquire(blocking=False)
        lock.release()


def test_a_wait_ends_with_the_deadline_of_its_block() -> None:
    lock = Lock()
    with held(lock), pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.01):
        lock.acquire()


# --- released, however the holder ends ------------------------------------------------------------


def test_the_locks_of_an_ended_thread_are_released() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        lock.acquire()
        ready()

    with Victim(body):
        pass
    assert not lock.locked()
    assert not lock.poisoned


def test_errors_and_cancels_do_not_poison() -> None:
    lock = Lock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError

    def body(ready: Callable[[], None]) -> None:
        with lock:
            ready()
            desist.sleep_forever()

    with Victim(body) as victim:
        victim.cancel()
    assert not lock.locked()
    assert not lock.poisoned


def test_a_block_that_is_closed_late_does_not_release_the_lock_of_others() -> None:
    lock = Lock()

    def suspended() -> Generator[None]:
        with lock:
            yield

    generator = suspended()
    task = Task("one")
    task.run(lambda: next(generator))
    assert not lock.locked()  # released at the task's end
    with held(lock):
        generator.close()
        assert lock.locked()
    with lock:
        assert lock.locked()
    assert not lock.locked()


def test_a_block_that_ends_without_its_lock_raises() -> None:
    lock = Lock()

    def suspended() -> Generator[None]:
        with lock:
            yield

    generator = suspended()
    Task("one").run(lambda: next(generator))
    with held(lock), pytest.raises(RuntimeError, match="released when the scope or task"):
        next(generator)


# --- poison ---------------------------------------------------------------------------------------


def victim_inside(lock: Lock) -> Victim[None]:
    def body(ready: Callable[[], None]) -> None:
        with lock:
            spin(ready)

    return Victim(body)


def test_a_lock_whose_holder_was_killed_inside_is_poisoned_until_it_is_repaired() -> None:
    lock = Lock(name="accounts")
    with victim_inside(lock) as victim:
        report = victim.kill("enough", policy=INSIST)
    assert report.outcome is KillOutcome.ASYNC_EXC
    assert report.poisoned == ["accounts"]
    assert (lock.poisoned, lock.locked()) == (True, False)
    with pytest.raises(LockPoisoned, match="repair it inside repair") as raised:
        lock.acquire()
    assert raised.value.owner == "victim"
    assert raised.value.cause.reason == "enough"
    assert raised.value.stack is not None
    assert "in spin" in raised.value.stack
    with pytest.raises(LockPoisoned), lock:
        pass
    with pytest.raises(LockPoisoned):
        lock.acquire(blocking=False)
    assert not lock.locked()
    with lock.repair():
        assert lock.locked()
    with lock:
        pass


def test_a_repair_that_fails_leaves_it_poisoned() -> None:
    lock = Lock()
    with victim_inside(lock) as victim:
        victim.kill(policy=INSIST)
    with pytest.raises(ZeroDivisionError), lock.repair():
        raise ZeroDivisionError
    assert lock.poisoned
    assert not lock.locked()


def test_a_waiter_of_a_lock_gets_lock_poisoned() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        ready()
        lock.acquire()

    with victim_inside(lock) as victim, Victim(body) as waiter:
        victim.kill(policy=INSIST)
        waiter.join()
    assert isinstance(waiter.raised, LockPoisoned)


def test_on_kill_release_frees_it() -> None:
    lock = Lock(name="cache", on_kill="release")
    with victim_inside(lock) as victim:
        report = victim.kill(policy=INSIST)
    assert (report.released, report.poisoned) == (["cache"], [])
    with lock:
        pass


def test_a_lock_that_a_finally_releases_is_poisoned_too() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        lock.acquire()
        try:
            spin(ready)
        finally:
            lock.release()

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    assert isinstance(victim.raised, Killed)
    assert lock.poisoned


def test_a_held_lock_defers_a_kill_until_it_is_released() -> None:
    lock, go_on = Lock(), DeafEvent()
    steps: list[str] = []

    def body(ready: Callable[[], None]) -> None:
        with lock:
            ready()
            go_on.wait()  # not a desist wait, so it is not interrupted
            steps.append("inside")
        spin(lambda: None)  # the kill may come late

    with Victim(body) as victim:
        killer = threading.Thread(target=victim.kill, kwargs={"policy": FORCE})
        killer.start()
        victim.token.wait()
        go_on.set()
        killer.join()
    assert steps == ["inside"]
    assert isinstance(victim.raised, Killed)
    assert not lock.poisoned


def test_a_wait_inside_a_held_lock_is_killed_when_the_time_is_up() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        with lock, desist.shield(NEVER):
            ready()
            desist.sleep_forever()

    at_wait = desist.StopPolicy(cooperative=0, at_wait=0, async_exc=NEVER, defer=0.01)
    with Victim(body) as victim:
        report = victim.kill(policy=at_wait)
    assert report.outcome is KillOutcome.AT_WAIT
    assert lock.poisoned


def test_a_killed_waiter_has_not_acquired_it() -> None:
    lock = Lock()

    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER):
            ready()
            lock.acquire()

    with held(lock), Victim(body) as victim:
        report = victim.kill(policy=AT_WAIT)
    assert report.outcome is KillOutcome.AT_WAIT
    assert isinstance(victim.raised, Killed)
    assert not lock.locked()
    assert not lock.poisoned


# --- an abandoned holder --------------------------------------------------------------------------


def test_a_lock_whose_holder_was_abandoned_is_unavailable_at_once() -> None:
    lock, end = Lock(name="accounts"), DeafEvent()

    def body(ready: Callable[[], None]) -> None:
        with lock:
            ready()
            end.wait()

    victim = Victim(body)
    with victim:
        report = victim.kill(policy=ABANDON)
        assert report.outcome is KillOutcome.ABANDONED
        assert report.poisoned == ["accounts"]
        assert victim.state is TaskState.ABANDONED
        with pytest.raises(OwnerLost, match="use a new one") as raised:
            lock.acquire()
        assert raised.value.owner == "victim"
        with pytest.raises(OwnerLost), lock.repair():
            pass
        end.set()
    threading.Thread.join(victim)  # desist's own join does not wait for an abandoned thread
    with pytest.raises(OwnerLost):
        lock.acquire()


def test_a_waiter_of_a_lock_gets_owner_lost() -> None:
    lock, end = Lock(), DeafEvent()

    def hold(ready: Callable[[], None]) -> None:
        with lock:
            ready()
            end.wait()

    def body(ready: Callable[[], None]) -> None:
        ready()
        lock.acquire()

    with Victim(hold) as victim, Victim(body) as waiter:
        victim.kill(policy=ABANDON)
        waiter.join()
        end.set()
    threading.Thread.join(victim)
    assert isinstance(waiter.raised, OwnerLost)


# --- memory ---------------------------------------------------------------------------------------


def test_dropped_locks_are_freed_even_after_a_holder_died() -> None:
    lock = Lock()
    with victim_inside(lock) as victim:
        victim.kill(policy=INSIST)
    gone = weakref.ref(lock)
    del lock, victim
    gc.collect()
    assert gone() is None
