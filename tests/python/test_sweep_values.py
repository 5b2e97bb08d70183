"""I20, I21: stopped at any bytecode, code leaves a guarded value whole, or poisoned."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from desist import Guarded
from desist.testing import sweep_kills
from support import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def one_more(value: list[int], at: int) -> None:
    value[at] += 1


def one_block(guarded: Guarded[list[int]]) -> None:
    with guarded.lock() as held:
        one_more(held.value, 0)
        one_more(held.value, 1)


def a_block_around_a_loop(guarded: Guarded[list[int]]) -> None:
    with guarded.lock() as held:
        at = 0
        while at < 2:
            held.value[at] += 1
            at += 1


def a_value_in_its_place(guarded: Guarded[list[int]]) -> None:
    def replace(*value: int) -> None:
        held.value = list(value)

    with guarded.lock() as held:
        replace(1, 0)
        replace(1, 1)


def a_block_in_a_generator(guarded: Guarded[list[int]]) -> None:
    def places() -> Iterator[int]:
        with guarded.lock() as held:
            for at in range(2):
                one_more(held.value, at)
                yield at

    for _at in places():
        pass


def a_block_that_fails(guarded: Guarded[list[int]]) -> None:
    with suppress(ZeroDivisionError), guarded.lock() as held:
        one_more(held.value, 0)
        one_more(held.value, 1 // 0)
    for _ in range(3):
        pass


VALUES = [
    one_block,
    a_block_around_a_loop,
    a_value_in_its_place,
    a_block_in_a_generator,
    a_block_that_fails,
]


def copied(value: list[int]) -> list[int]:
    saved = []
    for item in value:  # in Python, so that it can be killed
        saved.append(item)  # noqa: PERF402
    return saved


@pytest.mark.parametrize("defer", [False, True], ids=["killed in locks", "locks defer it"])
@pytest.mark.parametrize("rollback", [None, copied], ids=["no way back", "way back"])
@pytest.mark.parametrize("body", VALUES, ids=lambda body: body.__name__)
def test_i20_i21_a_value_is_whole_or_poisoned_after_a_kill_at_any_bytecode(
    body: Callable[[Guarded[list[int]]], None],
    rollback: Callable[[list[int]], list[int]] | None,
    *,
    defer: bool,
) -> None:
    poisoned = 0

    def check(guarded: Guarded[list[int]]) -> None:
        nonlocal poisoned
        assert not guarded.locked()
        if guarded.poisoned:
            poisoned += 1
            with guarded.repair() as held:
                held.value = [0, 0]
        with guarded.lock() as held:
            failed = body is a_block_that_fails and rollback is None
            assert held.value in ([0, 0], [1, 0] if failed else [1, 1])

    report = sweep_kills(body, check, setup=lambda: Guarded([0, 0], rollback=rollback), defer=defer)
    tell(f"Guarded: {body.__name__}{', way back' * bool(rollback)}{', deferred' * defer}", report)
    assert report.points > 40
    if body is not a_block_that_fails or not defer:  # the error goes there first
        assert report.stopped >= report.points * 0.9 - 8
    if rollback is None and not defer:
        assert poisoned > 5
    else:
        assert poisoned == 0
