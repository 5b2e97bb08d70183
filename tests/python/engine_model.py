"""A model of the state of any engine, which a real one is compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from desist import Fenced
from support import NEVER

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from desist.engines import Delivery, Engine


def counts(**expected: int) -> dict[str, int]:
    return {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 0} | expected


def put(
    engine: Engine,
    item_id: str = "a",
    key: str | None = None,
    delay: float = 0.0,
    time_limit: float | None = None,
) -> str:
    return engine.put(item_id, b"\0body\xff", key=key, delay=delay, time_limit=time_limit)


class Model:
    """The state of each item, its leases, attempts and time limit."""

    STEPS = (
        *("put", "put", "lease", "lease", "ack", "nack", "later", "snooze", "reject", "retry"),
        "cancel",
    )

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.leases: dict[str, Delivery] = {}
        self.unwanted: set[str] = set()
        self.time_limits: dict[str, float | None] = {}

    def put(self, engine: Engine, rng: random.Random, item_id: str) -> None:
        delay = rng.choice([0.0, 0.0, 0.0, NEVER])
        time_limit = rng.choice([None, None, 0.25, 3600.0, math.inf])
        put(engine, item_id, delay=delay, time_limit=time_limit)
        self.time_limits[item_id] = time_limit
        self.states[item_id] = "delayed" if delay else "ready"
        self.attempts[item_id] = 0

    def lease(self, engine: Engine, _: random.Random, __: str) -> None:
        delivery = engine.lease(0)
        assert (delivery is None) == ("ready" not in self.states.values())
        if delivery is not None:
            assert self.states[delivery.id] == "ready"
            self.states[delivery.id] = "leased"
            self.attempts[delivery.id] += 1
            assert delivery.attempt == self.attempts[delivery.id]
            assert delivery.time_limit == self.time_limits[delivery.id]
            assert all(delivery.epoch > other.epoch for other in self.leases.values())
            self.leases[delivery.id] = delivery

    def ack(self, engine: Engine, rng: random.Random, _: str) -> None:
        self._settle(engine.ack, rng, "done")

    def nack(self, engine: Engine, rng: random.Random, _: str) -> None:
        self._settle(lambda delivery: engine.nack(delivery, 0, "no"), rng, "ready")

    def later(self, engine: Engine, rng: random.Random, _: str) -> None:
        self._settle(lambda delivery: engine.nack(delivery, NEVER, "no"), rng, "delayed")

    def snooze(self, engine: Engine, rng: random.Random, _: str) -> None:
        def settle(delivery: Delivery) -> None:
            engine.nack(delivery, 0, None)
            self.attempts[delivery.id] -= 1

        self._settle(settle, rng, "ready")

    def reject(self, engine: Engine, rng: random.Random, _: str) -> None:
        self._settle(lambda delivery: engine.reject(delivery, "bad"), rng, "dead")

    def _settle(self, settle: Callable[[Delivery], object], rng: random.Random, state: str) -> None:
        """Settle any lease that there has ever been."""
        if not self.leases:
            return
        delivery = self.leases[rng.choice(list(self.leases))]
        if self.states[delivery.id] != "leased":
            with pytest.raises(Fenced):
                settle(delivery)
            return
        settle(delivery)
        unwanted = delivery.id in self.unwanted and state != "done"
        self.states[delivery.id] = "dead" if unwanted else state

    def retry(self, engine: Engine, rng: random.Random, _: str) -> None:
        item_id = rng.choice([*self.states, "unknown"])
        dead = self.states.get(item_id) == "dead"
        assert engine.retry(item_id) is dead
        if dead:
            self.states[item_id] = "ready"
            self.attempts[item_id] = 0
            self.unwanted.discard(item_id)

    def cancel(self, engine: Engine, rng: random.Random, _: str) -> None:
        item_id = rng.choice([*self.states, "unknown"])
        answers = {"ready": True, "delayed": True, "leased": False}
        expected = answers.get(self.states.get(item_id, "none"))
        assert engine.cancel(item_id, "unwanted") is expected
        if expected is not None:
            self.unwanted.add(item_id)
        if expected:
            self.states[item_id] = "dead"
