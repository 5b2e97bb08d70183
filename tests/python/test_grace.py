"""The grace of clean-up zones: a later cancel, or a kill, shortens it and never lengthens it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import CancelSource, CancelToken, testing
from support import AT_WAIT, NEVER, in_its_wait

if TYPE_CHECKING:
    from collections.abc import Callable

Cancel = tuple[float, float | None]
"""A time, and the grace that is named then."""

ORDERS: list[tuple[list[Cancel], float]] = [
    ([(0, None)], 5),
    ([(0, 60)], 60),
    ([(0, 60), (1, 2)], 3),
    ([(0, 60), (1, 2), (2, 7)], 3),
    ([(0, 60), (1, 30), (2, 1)], 3),
    ([(0, 2), (1, 60)], 2),
    ([(0, None), (1, 2)], 3),
    ([(0, None), (1, 60)], 5),
    ([(0, 60), (1, None)], 60),
    ([(0, 60), (1, 0)], 1),
]


def ends_of_zones(cancels: list[Cancel], cancel: Callable[..., Any]) -> list[float]:
    """Cancel at these times; tell when zones end that were entered before, between and after."""
    began = desist.current_time()
    ended: list[float] = []

    def zone(begins: float) -> None:
        with desist.shield(math.inf):
            desist.sleep_until(began + begins)
        with desist.cleanup():
            desist.sleep_forever()
        ended.append(desist.current_time() - began)

    def cancel_in_time() -> None:
        for at, grace in cancels:
            desist.sleep_until(began + at)
            cancel(zones, grace)

    zones = [desist.Thread(target=zone, args=(begins,)) for begins in (-1, 0.5, 1.5, 2.5)]
    for thread in zones:
        thread.start()
    canceller = desist.Thread(target=cancel_in_time)
    canceller.start()
    for thread in (*zones, canceller):
        thread.join()
    return ended


def threads(zones: list[desist.Thread], grace: float | None) -> None:
    for zone in zones:
        zone.cancel(grace=grace)


@pytest.mark.parametrize(("cancels", "end"), ORDERS)
def test_i8_a_later_cancel_shortens_the_grace_and_never_lengthens_it(
    cancels: list[Cancel], end: float
) -> None:
    ended = testing.run(lambda: ends_of_zones(cancels, threads))
    # A zone that is entered when the grace is spent ends at once.
    expected = [max(end, begins) for begins in (-1, 0.5, 1.5, 2.5)]
    assert sorted(ended) == pytest.approx(sorted(expected), abs=1e-6)


def below(source: CancelSource, kind: str) -> CancelToken:
    """A token that is cancelled with the source, from afar."""
    token = source.token
    if kind == "child":
        return CancelSource(CancelSource(token).token).token
    if kind == "linked":
        return CancelToken.any_of(CancelSource().token, token)
    return CancelToken.any_of(*[CancelToken.any_of(token, token)] * 2)


@pytest.mark.parametrize("kind", ["child", "linked", "linked twice"])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_i8_a_later_cancel_reaches_zones_below_the_source(kind: str, when: str) -> None:
    def body() -> float:
        source = CancelSource()
        task = desist._core.Task("a task", below(source, kind))
        began = desist.current_time()

        def zone() -> None:
            def cancel(grace: float) -> None:
                source.cancel(grace=grace)

            early = {"before": 0, "between": 1, "after": 2}[when]
            graces = [60, 2]
            for grace in graces[:early]:
                cancel(grace)
            with desist.cleanup():
                for grace in graces[early:]:
                    cancel(grace)
                desist.sleep_forever()

        task.run(zone)
        return desist.current_time() - began

    assert testing.run(body) == pytest.approx(2, abs=1e-6)


def test_i8_a_scope_that_was_cancelled_before_its_block_has_the_shortest_grace() -> None:
    def body() -> float:
        scope = desist.cancel_scope()
        for grace in (60, 3, 7):
            scope.cancel(grace=grace)
        began = desist.current_time()
        with scope, desist.cleanup():
            desist.sleep_forever()
        return desist.current_time() - began

    assert testing.run(body) == pytest.approx(3, abs=1e-6)


def test_i25_a_kill_shortens_a_longer_grace_to_that_of_a_kill() -> None:
    def zone() -> None:
        with desist.cancel_scope(grace=0.1), desist.cleanup():
            desist.sleep_forever()

    with in_its_wait(zone) as victim:
        victim.cancel(grace=NEVER)
        report = victim.kill(policy=AT_WAIT)
    assert 0.09 < report.elapsed < NEVER / 2


def test_no_hook_is_left_behind_by_a_zone() -> None:
    source = CancelSource()
    source.cancel(grace=NEVER)
    task = desist._core.Task("a task", source.token)

    def body() -> None:
        with testing.no_leaks():
            for _ in range(100):
                with desist.cleanup():
                    source.cancel(grace=NEVER)

    task.run(body)
