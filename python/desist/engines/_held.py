"""HeldLease: one lease that this process holds, and how it is settled with the engine.

Guarantees:

- A lease is settled once. A second settlement, and one after the lease was lost, raises Fenced
  and changes nothing.
- A settlement is repeated while the server is away, until the lease has run out. Then, or when the
  calling code is cancelled, ConnectionError says that the lease may or may not be settled. The
  holder may repeat it even then: the engine recognises an earlier call that had its effect.
- A lease that could not be settled is not extended any more, whatever the error was. Its holder may
  try again; unless that succeeds, the lease runs out, and the item is leased again. So no item
  stays leased by a holder that has failed (I48), even while other code has the `Lease` object.
- In a forked child all calls raise RuntimeError: the lease, and the connection, are the parent's.

The handler's thread settles; the heartbeat thread calls `lose` and moves `until` on; any thread
calls `cancel`. The worker's thread writes `_running` before it reads `_lost` and `_cancelled`, the
others write these before they read it: so a handler that is about to begin is cancelled by one of
the two. `_over` and `_in_doubt` are written by the handler's thread, and by one that settles the
lease of an abandoned handler: of the two settlements the engine lets one succeed. It relies on
`Engine` to raise Fenced when another worker has the item, and knows neither the queue nor the pool.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any, TypeVar

from desist._codec import describe
from desist._core import RunningHandler, cleanup, current_time, retry_pause, sleep
from desist._exceptions import Fenced

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from desist._codec import Codec
    from desist._core import CancelCause, RetryPolicy
    from desist._item_future import ItemPromise
    from desist.engines._port import Delivery, Engine

R = TypeVar("R")

RECONNECT = 0.05, 2.0
"""Seconds between tries to reach an engine that is away: at first, and at most."""

_PATIENCE = 2.0
"""Seconds for which a settlement is tried at least, also when the lease has run out."""
_AWAY, _UNKNOWN = "the queue's server was away ", "; the item may or may not be settled"
_OVER = "this lease is over: the item was acknowledged or requeued; nothing was changed"


class HeldLease:
    """One lease that this process holds; the core's `Lease` calls it."""

    def __init__(
        self,
        delivery: Delivery,
        engine: Engine,
        codec: Codec,
        retry: RetryPolicy,
        *,
        on_release: Callable[[HeldLease], object],
        on_end: Callable[[], object],
        take_promise: Callable[[str], ItemPromise | None],
        context: Context | None,
    ) -> None:
        """`engine`, `codec` and `retry` are the queue's.

        `on_release(self)` is called when the lease is settled or lost, or could not be settled, and
        need not be extended any more; `on_end()` when its item has left the queue for good.
        `take_promise(item_id)` gives the promise of the item once, if it was submitted here, by
        code in this `context`.
        """
        self.delivery = delivery
        self.id: str = delivery.id
        self.epoch: int = delivery.epoch
        self.attempt: int = delivery.attempt
        self.key: str | None = delivery.key
        self.time_limit: float | None = delivery.time_limit
        self.body: bytes = delivery.body
        self.decode: Callable[[bytes], Any] = codec.decode
        self.progress: bytes | None = delivery.progress
        self.context: Context | None = context
        self.until: float = current_time() + engine.lease_timeout
        """When the lease runs out by this host's clock, unless it is extended before.

        Written by the thread that has extended it: the heartbeat's or the handler's."""
        self._engine = engine
        self._codec = codec
        self._retry = retry
        self._on_release = on_release
        self._on_end = on_end
        self._take_promise = take_promise
        self._process = os.getpid()
        self._over = False
        self._in_doubt = False
        """A settlement had no answer yet: only the engine knows whether it has ended the lease."""
        self._lost: str | None = None
        self._cancelled: tuple[str | None] | None = None
        """The reason, once the item was cancelled through this queue."""
        self._running: RunningHandler | None = None

    def settle(self, call: Callable[[], R]) -> R:
        """End the lease by `call`, in a clean-up zone: code that was cancelled can settle its item.

        Fenced: the lease is over. ConnectionError: the server is away, and `call` may or may not
        have had its effect.
        """
        self._check()
        was_in_doubt, self._in_doubt = self._in_doubt, True
        try:
            with cleanup():
                result = retry_until_connected(call, max(self.until, current_time() + _PATIENCE))
                self._over = True
                return result
        except Fenced:
            self._in_doubt = was_in_doubt
            raise
        except ConnectionError as away:
            raise ConnectionError(f"{_AWAY}until this lease had run out{_UNKNOWN}") from away
        finally:
            self._on_release(self)
        raise ConnectionError(f"{_AWAY}for longer than clean-up may take{_UNKNOWN}")

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "this lease belongs to the parent process; open the queue again after a fork"
            )
        if self._over:
            raise Fenced(_OVER)
        if self._lost is not None and not self._in_doubt:
            raise Fenced(f"this lease was lost: {self._lost}; nothing was changed")

    def lose(self, why: str) -> None:
        """Mark the lease as lost to another worker, and cancel the token of its handler."""
        self._lost = why
        self._on_release(self)
        if self._running is not None:
            self._running.cancel(why)

    def cancel(self, reason: str | None) -> None:
        """Cancel the token of the handler, or let it be cancelled when it begins."""
        self._cancelled = (reason,)
        if self._running is not None:
            self._running.cancel(reason)

    # `HeldDelivery` of desist._ports: called by the core, while a mask defers kills.

    def begun(self, running: RunningHandler, /) -> None:
        """A worker is about to call its handler."""
        self._running = running
        if self._lost is not None:
            running.cancel(self._lost)
        if self._cancelled is not None:
            running.cancel(*self._cancelled)

    def heartbeat(self, progress: object, /) -> None:
        """Extend the lease now. Fenced: it is over."""
        stored = None if progress is None else self._codec.encode(progress)
        self._check()
        asked = current_time()
        try:
            retry_until_connected(lambda: self._engine.extend(self.delivery, stored), self.until)
        except ConnectionError as away:
            raise Fenced(f"{_AWAY}until this lease had run out") from away
        self.until = asked + self._engine.lease_timeout

    def ack(self) -> None:
        """Settle the lease: the work is done."""
        self.settle(lambda: self._engine.ack(self.delivery))
        self._on_end()

    def discard(self, failure: BaseException | CancelCause, /) -> None:
        """Settle the lease: the work will not be done, and the item is dead."""
        why = describe(failure)
        self.settle(lambda: self._engine.reject(self.delivery, why))
        self._on_end()

    def nack(self, pause: float | None, failure: BaseException | CancelCause | None, /) -> bool:
        """Settle the lease: the work was not done. False: the item is dead now.

        Without a failure the attempt does not count.
        """
        delivery, retry = self.delivery, self._retry
        if failure is not None and delivery.attempt >= retry.max_attempts:
            self.discard(failure)
            return False
        why = None if failure is None else describe(failure)
        delay = retry_pause(retry, delivery.attempt, random.random()) if pause is None else pause  # noqa: S311
        requeued = self.settle(lambda: self._engine.nack(delivery, delay, why))
        if not requeued:
            self._on_end()
        return requeued

    def take_promise(self) -> ItemPromise | None:
        """The promise with which the item was submitted here, once."""
        return self._take_promise(self.id)


def retry_until_connected(call: Callable[[], R], end: float) -> R:
    """Call it again until the server answers; ConnectionError if it does not before `end`."""
    pause, longest = RECONNECT
    while True:
        try:
            return call()
        except ConnectionError:
            if current_time() + pause >= end:
                raise
        sleep(pause)
        pause = min(2 * pause, longest)
