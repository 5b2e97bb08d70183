"""I20, I21: stopped at any bytecode, code that acquires and releases leaves nothing held."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist.testing import sweep_cancels, sweep_kills
from support import HAS_GIL, NEVER, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Protected:
    """Two locks, and a value that is changed in two steps."""

    def __init__(self, make: Callable[[], Any], permits: int) -> None:
        self.guard, self.other = make(), make()
        self.permits = permits
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.poisoned = False

    def change(self) -> None:
        self.begun.append(1)
        self.ended.append(1)

    def check(self) -> None:
        for guard in (self.guard, self.other):
            self.mend(guard)
            taken = [guard.acquire(timeout=0) for _ in range(self.permits)]
            assert taken == [True] * self.permits, "not all came back"
            # Nor are there more permits than before; a reentrant lock would be acquired once more.
            assert isinstance(guard, desist.RLock) or not guard.acquire(blocking=False)
            for _ in taken:
                guard.release()

    def mend(self, guard: Any) -> None:
        """Repair a half changed value, which poison must have reported."""
        try:
            guard.acquire()
            guard.release()
        except desist.LockPoisoned:
            self.poisoned = True
            lock = guard.lock if isinstance(guard, Conditional) else guard
            with lock.repair():
                pass


class Conditional(desist.Condition):
    """A condition with a reference to its lock."""

    def __init__(self) -> None:
        self.lock = desist.Lock(name="of a condition")
        super().__init__(self.lock)


GUARDS: dict[str, Callable[[], Protected]] = {
    "Lock": lambda: Protected(desist.Lock, 1),
    "fenced Lock": lambda: Protected(lambda: desist.Lock(fenced=True), 1),
    "RLock": lambda: Protected(desist.RLock, 1),
    "Condition": lambda: Protected(Conditional, 1),
    "Semaphore": lambda: Protected(lambda: desist.Semaphore(2), 2),
    "BoundedSemaphore": lambda: Protected(lambda: desist.BoundedSemaphore(1), 1),
}


# --- ways to use a lock ---------------------------------------------------------------------------


def with_block(state: Protected) -> None:
    with state.guard:
        state.change()


def with_block_around_a_loop(state: Protected) -> None:
    with state.guard:
        n = 0
        while n < 3:
            n += 1
        state.change()


def with_block_in_a_loop(state: Protected) -> None:
    for _ in range(2):
        with state.guard:
            state.change()


def acquire_and_finally(state: Protected) -> None:
    state.guard.acquire()
    try:
        state.change()
    finally:
        state.guard.release()


def acquire_in_try(state: Protected) -> None:
    got = False
    try:
        got = state.guard.acquire(timeout=NEVER)
        state.change()
    finally:
        if got:
            state.guard.release()


def with_guard(state: Protected) -> None:
    with state.guard.guard() as guard:
        state.change()
        guard.check()


def guard_around_a_loop(state: Protected) -> None:
    with state.guard.guard():
        n = 0
        while n < 3:
            n += 1
        state.change()


def guard_released_early(state: Protected) -> None:
    with state.guard.guard() as guard:
        try:
            state.change()
        finally:
            guard.release()


def nested(state: Protected) -> None:
    with state.guard:
        state.change()
        with state.other:
            state.change()


def both_at_once(state: Protected) -> None:
    with state.guard, state.other:
        state.change()


def in_a_generator(state: Protected) -> None:
    def numbers() -> Iterator[int]:
        with state.guard:
            yield 1
            state.change()
            yield 2

    for _number in numbers():
        pass


def in_a_generator_that_is_left(state: Protected) -> None:
    def numbers() -> Iterator[int]:
        with state.guard:
            state.change()
            yield 1

    next(numbers())


def in_a_contextmanager(state: Protected) -> None:
    @contextmanager
    def locked() -> Iterator[None]:
        with state.guard:
            yield

    with locked():
        state.change()


def in_an_exit_stack(state: Protected) -> None:
    with ExitStack() as stack:
        stack.enter_context(state.guard)
        state.change()


def under_a_decorator(state: Protected) -> None:
    def locked(function: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def wrapper() -> None:
            with state.guard:
                function()

        return wrapper

    locked(state.change)()


def in_a_scope(state: Protected) -> None:
    with desist.cancel_scope(timeout=NEVER), state.guard:
        state.change()


def in_a_shield(state: Protected) -> None:
    with desist.shield(NEVER), state.guard:
        state.change()


def in_clean_up(state: Protected) -> None:
    try:
        state.change()
    finally:
        with desist.cleanup(), state.guard:
            state.change()


def in_a_scope_that_swallows(state: Protected) -> None:
    try:
        with desist.move_on_after(NEVER), state.guard:
            state.change()
    except BaseException:  # noqa: BLE001 (as a victim does)
        pass


GUARDED = [with_guard, guard_around_a_loop, guard_released_early]
USES = [
    with_block,
    with_block_around_a_loop,
    with_block_in_a_loop,
    acquire_and_finally,
    acquire_in_try,
    nested,
    both_at_once,
    in_a_generator,
    in_a_generator_that_is_left,
    in_a_contextmanager,
    in_an_exit_stack,
    under_a_decorator,
    in_a_scope,
    in_a_shield,
    in_clean_up,
    in_a_scope_that_swallows,
]

CASES = [
    pytest.param(guard, use, id=f"{guard}-{use.__name__}")
    for guard in GUARDS
    for use in [*USES, *(GUARDED if "Lock" in guard and guard != "RLock" else [])]
]
cases = pytest.mark.parametrize(("guard", "use"), CASES)


def skip_lost_permits(guard: str, use: Callable[[Protected], None]) -> None:
    """Skip a case in which a permit is lost that `acquire()` has returned: no thread owns it."""
    if not HAS_GIL and "Semaphore" in guard and use in (acquire_and_finally, acquire_in_try):
        pytest.skip("without the GIL a kill may be raised right behind acquire()")


@cases
def test_i20_a_kill_at_any_bytecode_leaves_nothing_held(
    guard: str, use: Callable[[Protected], None]
) -> None:
    skip_lost_permits(guard, use)
    poisoned = 0

    def check(state: Protected) -> None:
        nonlocal poisoned
        state.check()
        # I21, as far as the code can tell: a kill in between was reported by poison.
        if len(state.begun) != len(state.ended) and "Semaphore" not in guard:
            assert state.poisoned or use is in_clean_up
        poisoned += state.poisoned

    report = sweep_kills(use, check, setup=GUARDS[guard])
    tell(f"{guard}: {use.__name__}", report)
    assert report.points > 20
    assert report.missed == 0
    if use not in (in_a_scope_that_swallows, in_clean_up, in_a_generator_that_is_left):
        assert report.stopped > report.points * 0.8
    assert (poisoned > 0) == ("Semaphore" not in guard and use is not in_clean_up)


@cases
def test_i24_a_deferred_kill_leaves_nothing_held_and_poisons_nothing(
    guard: str, use: Callable[[Protected], None]
) -> None:
    skip_lost_permits(guard, use)

    def check(state: Protected) -> None:
        state.check()
        assert not state.poisoned
        if "Semaphore" not in guard and use is not in_clean_up:
            assert len(state.begun) == len(state.ended)

    report = sweep_kills(use, check, setup=GUARDS[guard], defer=True)
    tell(f"{guard}: {use.__name__}, deferred", report)
    assert report.stopped > 0 or use is in_a_scope_that_swallows


@cases
def test_i11_a_cancel_at_any_bytecode_leaves_nothing_held(
    guard: str, use: Callable[[Protected], None]
) -> None:
    def check(state: Protected) -> None:
        state.check()
        assert not state.poisoned
        assert len(state.begun) == len(state.ended)

    report = sweep_cancels(use, check, setup=GUARDS[guard])
    tell(f"{guard}: {use.__name__}, cancelled", report)
    assert report.points > 20
    assert report.stopped > 0 or use in (in_a_scope_that_swallows, in_a_shield, in_clean_up)
