"""Arrivals: leases that an engine may have made for this process, and that are not held here yet.

Guarantees: an item that is cancelled after the server has leased it, and before the answer has made
a `HeldLease` here, is cancelled as soon as the lease is held.

How: each call of `Engine.lease` has an `Arrival` from before the request is sent, in which cancels
of leased items are recorded. The calling thread registers the lease first, and then reads its
arrival; a canceller writes to all arrivals first, and then looks for the lease: one of the two
finds the other. The references here are weak, so an arrival ends with its call, however that ends.
A call is short (a third of `lease_timeout`, while the server can be reached), and so few cancels
are recorded.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from desist.engines._held import HeldLease


class Arrival:
    """One call of `Engine.lease`."""

    def __init__(self) -> None:
        self.cancelled: dict[str, str | None] = {}
        """The reasons, by the ids of the items that were cancelled during the call, while leased.

        Written by cancellers; each access is one operation of the dict."""

    def cancel(self, held: HeldLease) -> None:
        """Cancel the lease that the call has returned, if its item was cancelled."""
        if held.id in self.cancelled:
            held.cancel(self.cancelled[held.id])


class Arrivals:
    """The calls of `Engine.lease` that are under way in this process."""

    def __init__(self) -> None:
        self._calls: dict[int, weakref.ref[Arrival]] = {}

    def begin(self) -> Arrival:
        """A call begins; it lasts as long as the returned object."""
        arrival = Arrival()
        key = id(arrival)
        self._calls[key] = weakref.ref(arrival, lambda _: self._calls.pop(key, None))
        return arrival

    def cancelled(self, item_id: str, reason: str | None) -> None:
        """An item was cancelled that is leased, by a call that is under way or any other."""
        for call in list(self._calls.values()):
            arrival = call()
            if arrival is not None:
                arrival.cancelled[item_id] = reason
