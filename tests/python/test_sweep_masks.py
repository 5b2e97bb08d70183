"""I24: a masked block runs whole or not at all, and the kill is raised behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import desist
from desist import Lock
from desist.testing import sweep_kills
from support import NEVER, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def one_mask(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    with desist.defer_kill(NEVER):
        first()
        second()


def a_mask_around_a_loop(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    with desist.defer_kill(NEVER):
        first()
        n = 0
        while n < 3:
            n += 1
        second()


def a_mask_in_a_mask(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    with desist.defer_kill(NEVER):
        with desist.defer_kill(NEVER):
            first()
        second()


def a_mask_in_a_generator(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    def steps() -> Iterator[int]:
        with desist.defer_kill(NEVER):
            first()
            yield 1
            second()
            yield 2

    for _number in steps():
        pass


def a_mask_in_a_lock(first: Callable[[], None], second: Callable[[], None], lock: Lock) -> None:
    with lock, desist.defer_kill(NEVER):
        first()
        second()


def a_mask_around_a_lock(first: Callable[[], None], second: Callable[[], None], lock: Lock) -> None:
    with desist.defer_kill(NEVER), lock:
        first()
        second()


def a_cancel_callback(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    def callback(_cause: desist.CancelCause) -> None:
        first()
        second()

    source = desist.CancelSource()
    source.token.on_cancel(callback)
    source.cancel()
    desist.checkpoint()


def a_late_callback(first: Callable[[], None], second: Callable[[], None], _: Lock) -> None:
    def callback(_cause: desist.CancelCause) -> None:
        first()
        second()

    source = desist.CancelSource()
    source.cancel()
    source.token.on_cancel(callback)
    desist.checkpoint()


MASKED = [
    one_mask,
    a_mask_around_a_loop,
    a_mask_in_a_mask,
    a_mask_in_a_generator,
    a_mask_in_a_lock,
    a_mask_around_a_lock,
    a_cancel_callback,
    a_late_callback,
]


class Steps:
    """The steps that were taken."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.lock = Lock()


@pytest.mark.parametrize("defer", [False, True], ids=["killed in locks", "locks defer it"])
@pytest.mark.parametrize("body", MASKED, ids=lambda body: body.__name__)
def test_i24_a_masked_block_runs_whole_or_not_at_all_and_the_kill_is_raised(
    body: Callable[[Callable[[], None], Callable[[], None], Lock], None], *, defer: bool
) -> None:
    whole = 0

    def run(steps: Steps) -> None:
        taken = steps.taken
        body(lambda: taken.append("first"), lambda: taken.append("second"), steps.lock)
        for _ in range(10):
            pass  # the kill may be deferred until behind the block

    def check(steps: Steps) -> None:
        nonlocal whole
        assert steps.taken in ([], ["first", "second"])
        assert not steps.lock.locked()
        assert not steps.lock.poisoned or not defer
        if body is a_mask_around_a_lock:
            assert not steps.lock.poisoned
        whole += bool(steps.taken)

    report = sweep_kills(run, check, setup=Steps, defer=defer)
    tell(f"defer_kill: {body.__name__}{', deferred' * defer}", report)
    assert report.points > 40
    # At the last few points CPython does not check for the kill any more.
    assert report.stopped >= report.points - 8
    assert 10 < whole < report.points
