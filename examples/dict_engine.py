"""An engine of your own behind a queue: a dict takes the place of a server.

It keeps the rules of every engine: an item is in one state at a time, a lease that is not extended
runs out, and the worker that has lost it gets Fenced.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import desist
from desist.engines import Delivery, Engine, EngineQueue


@dataclass
class Item:
    body: bytes
    due: float  # it can be leased from then on: the end of a delay, or of a lease
    state: str = "ready"
    attempt: int = 0
    epoch: int = 0
    progress: bytes | None = None
    time_limit: float | None = None


class DictEngine(Engine):
    def __init__(self, lease_timeout: float = 30.0) -> None:
        self.lease_timeout = lease_timeout
        self.items: dict[str, Item] = {}
        self.changed = desist.Condition()
        self.epochs = itertools.count(1)
        self.done = 0

    def put(
        self,
        item_id: str,
        body: bytes,
        *,
        key: str | None,
        delay: float,
        time_limit: float | None = None,
    ) -> str:
        if key is not None:
            raise NotImplementedError("this engine has no keys")
        with self.changed:
            item = Item(body, desist.current_time() + delay, time_limit=time_limit)
            self.items.setdefault(item_id, item)
            self.changed.notify_all()
        return item_id

    def lease(self, timeout: float) -> Delivery | None:
        end = desist.current_time() + timeout
        with self.changed:
            while True:
                now = desist.current_time()
                alive = [(item.due, i) for i, item in self.items.items() if item.state != "dead"]
                due, item_id = min(alive, default=(end, ""))
                if item_id and due <= now:
                    return self.deliver(item_id, self.items[item_id])
                if end <= now:
                    return None
                self.changed.wait(min(due, end) - now)  # a desist wait: it can be cancelled

    def deliver(self, item_id: str, item: Item) -> Delivery:
        item.state = "leased"
        item.attempt += 1
        item.epoch = next(self.epochs)
        item.due = desist.current_time() + self.lease_timeout
        lease = Delivery(item_id, item.epoch, item.attempt, item.body, item.progress)
        return lease._replace(time_limit=item.time_limit)

    def leased(self, delivery: Delivery) -> Item:
        item = self.items.get(delivery.id)
        if item is None or item.state != "leased" or item.epoch != delivery.epoch:
            raise desist.Fenced("this lease is over; nothing was changed")
        self.changed.notify_all()
        return item

    def ack(self, delivery: Delivery) -> None:
        with self.changed:
            self.leased(delivery)
            del self.items[delivery.id]
            self.done += 1

    def nack(self, delivery: Delivery, delay: float, failure: str | None) -> bool:
        with self.changed:
            item = self.leased(delivery)
            item.state = "ready"
            item.attempt -= failure is None  # snoozed
            item.due = desist.current_time() + delay
        return True

    def reject(self, delivery: Delivery, failure: str) -> None:
        with self.changed:
            self.leased(delivery).state = "dead"

    def extend(self, delivery: Delivery, progress: bytes | None) -> None:
        with self.changed:
            item = self.leased(delivery)
            item.due = desist.current_time() + self.lease_timeout
            item.progress = item.progress if progress is None else progress

    def counts(self) -> dict[str, int]:
        counts = dict.fromkeys(("ready", "leased", "delayed", "dead"), 0) | {"done": self.done}
        with self.changed:
            for item in self.items.values():
                delayed = item.state == "ready" and item.due > desist.current_time()
                counts["delayed" if delayed else item.state] += 1
        return counts


def upper(lease: desist.Lease[str]) -> str:
    if lease.attempt == 1:
        raise ValueError("not yet")
    return lease.item.upper()


def main() -> None:
    no_backoff = desist.RetryPolicy(backoff=0)
    queue: EngineQueue[str] = EngineQueue(DictEngine(), retry=no_backoff)
    with queue, desist.WorkerPool(upper, queue=queue) as pool:
        assert pool.submit("hello").result() == "HELLO"
        pool.drain()
        print(queue.counts())  # {'ready': 0, 'leased': 0, 'delayed': 0, 'dead': 0, 'done': 1}


if __name__ == "__main__":
    main()
