"""The whole life of items on an engine, one of whose calls fails."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from desist import PoolFailed, RetryPolicy, WorkerPool
from desist.engines import EngineQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease
    from desist.engines import Engine

CALLS = frozenset({"put", "lease", "ack", "nack", "reject", "extend", "counts", "tend"})


class Fault:
    """Lets one of many calls fail, before or after its effect."""

    def __init__(self, number: int, error: Callable[[], Exception], *, after: bool) -> None:
        self.left = number
        self.error = error
        self.after = after

    def around(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Perform the call; or fail, if it is its turn."""
        self.left -= 1
        if self.left:
            return call(*args, **named)
        if self.after:
            call(*args, **named)
        raise self.error()


def live(engine: Engine, items: int, workers: int, work: Callable[[], object]) -> list[Exception]:
    """Have the items worked on by pools of this process; return what these were told.

    Nothing is lost, and nothing stays leased, whatever has failed: else this does not return.
    """
    told: list[Exception] = []
    runs: Counter[int] = Counter()

    def handler(lease: Lease[int]) -> None:
        runs[lease.item] += 1
        work()
        if lease.item % 3 == 0 and lease.attempt == 1:
            raise ValueError(lease.item)

    left = list(range(items))
    counts: dict[str, int] = {}
    retry = RetryPolicy(max_attempts=1000, backoff=0)
    with EngineQueue[int](engine, retry=retry) as queue:
        while not counts:
            try:
                with WorkerPool(handler, queue=queue, workers=workers) as pool:
                    while left:
                        pool.submit(left[-1])
                        left.pop()
                    assert pool.drain()
                counts = dict(queue.counts())
            except (PoolFailed, ConnectionError, ZeroDivisionError) as failure:  # noqa: PERF203
                told.append(failure)
    done = counts.pop("done")
    assert not any(counts.values()), counts
    assert done >= items  # a put whose answer was lost was repeated
    assert set(runs) == set(range(items))
    return told
