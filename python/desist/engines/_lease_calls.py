"""Calls of `Engine.lease` that are under way: each may have leased an item not held here yet.

Guarantees: if an item is cancelled after the server has leased it, and before the answer has made
a `HeldLease` here, then the lease is cancelled as soon as it is held.

How: each call of `Engine.lease` has a `LeaseCall` from before the request is sent, in which cancels
of leased items are recorded. The calling thread registers the lease first, and then reads its
record; a canceller writes to all records first, and then looks for the lease: one of the two
finds the other. The references here are weak, so a record ends with its call, however that ends.
A call is short (a third of `lease_timeout`, while the server can be reached), and so few cancels
are recorded.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from desist.engines._held import HeldLease


class LeaseCall:
    """One call of `Engine.lease`."""

    def __init__(self) -> None:
        self.cancelled: dict[str, str | None] = {}
        """The reasons, by the ids of the items that were cancelled during the call, while leased.

        Written by cancellers; each access is one operation of the dict."""

    def cancel(self, held: HeldLease) -> None:
        """Cancel the lease that the call has returned, if its item was cancelled."""
        if held.id in self.cancelled:
            held.cancel(self.cancelled[held.id])


class LeaseCalls:
    """The calls of `Engine.lease` that are under way in this process."""

    def __init__(self) -> None:
        self._calls: dict[int, weakref.ref[LeaseCall]] = {}

    def begin(self) -> LeaseCall:
        """Register a call, which is under way as long as the returned object lives."""
        call = LeaseCall()
        key = id(call)
        self._calls[key] = weakref.ref(call, lambda _: self._calls.pop(key, None))
        return call

    def note_cancelled(self, item_id: str, reason: str | None) -> None:
        """Record for all calls under way that a leased item was cancelled, whichever leased it."""
        for reference in list(self._calls.values()):
            call = reference()
            if call is not None:
                call.cancelled[item_id] = reason
