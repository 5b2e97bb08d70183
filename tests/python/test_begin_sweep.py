"""What comes between the lease of an item and the call of its handler is not lost."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from begin_sweep import ACTIONS, AT_ONCE, sweep
from desist import FileQueue, LeaseQueue
from desist.engines import EngineQueue
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desist.engines import Delivery


class CancellingEngine(DictEngine):  # type: ignore[misc] # it is loaded
    """A dict that keeps the cancels of leased items, too."""

    def __init__(self) -> None:
        super().__init__()
        self.unwanted: set[str] = set()

    def cancel(self, item_id: str, failure: str) -> bool | None:  # noqa: ARG002
        with self.changed:
            item = self.items[item_id]
            self.unwanted.add(item_id)
            if item.state != "leased":
                item.state = "dead"
            return bool(item.state == "dead")

    def nack(self, delivery: Delivery, delay: float, failure: str) -> bool:
        super().nack(delivery, delay, failure)
        with self.changed:
            if delivery.id in self.unwanted:
                self.items[delivery.id].state = "dead"
            return delivery.id not in self.unwanted


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("kind", ["memory", "file", "engine"])
def test_i31_nothing_is_lost_between_a_lease_and_its_handler(
    kind: str, action: Any, tmp_path: Path
) -> None:
    numbers = itertools.count()
    queues: dict[str, Callable[[], Any]] = {
        "memory": lambda: LeaseQueue[Any](retry=AT_ONCE),
        "file": lambda: FileQueue[Any](tmp_path / f"{next(numbers)}", retry=AT_ONCE),
        "engine": lambda: EngineQueue[Any](CancellingEngine(), retry=AT_ONCE),
    }
    instants = sweep(queues[kind], action)
    assert instants >= {"memory": 1, "file": 2, "engine": 40}[kind]
