"""I48: stopped at any bytecode, a lease from an engine is the caller's, or there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from desist.engines import EngineQueue
from desist.testing import sweep_cancels, sweep_kills
from support import IN_HAND, NEVER, ends_with_a_kill, tell
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease
    from desist.testing import SweepReport


class Letter:
    """Is decoded by code that takes some bytecodes."""

    def __init__(self, letter: str) -> None:
        self.letter = letter

    def __setstate__(self, state: dict[str, str]) -> None:
        letters = [one for one in "abc" if one == state["letter"]]
        self.letter = letters[0]


class Office:
    """A queue with an item, and the lease of it."""

    def __init__(self) -> None:
        self.engine = DictEngine(NEVER)
        self.queue: EngineQueue[Letter] = EngineQueue(self.engine)
        self.queue.put(Letter("a"))
        self.leases: list[Lease[Letter] | None] = []

    def lease(self) -> None:
        # Recorded by the call that leases: CPython raises no kill between the two.
        self.leases.append(self.queue.lease(NEVER))

    def check(self) -> None:
        [item] = self.engine.items.values()
        if self.leases:
            [lease] = self.leases
            assert lease is not None
            assert (item.state, item.attempt, lease.item.letter) == ("leased", 1, "a")
            lease.ack()
        else:
            assert item.state == "ready" or IN_HAND
        self.queue.close()


@pytest.mark.parametrize("sweep", [sweep_kills, sweep_cancels])
def test_i48_a_lease_that_is_stopped_anywhere_is_the_callers_or_there_is_none(
    sweep: Callable[..., SweepReport],
) -> None:
    report = sweep(Office.lease, Office.check, setup=Office)
    tell(f"EngineQueue: lease, {sweep.__name__}", report)
    assert report.points > 100
    assert report.stopped > 10


def test_a_kill_ends_the_wait_of_a_lease_at_once() -> None:
    with EngineQueue[Any](DictEngine(NEVER)) as queue:
        ends_with_a_kill(queue.lease)
