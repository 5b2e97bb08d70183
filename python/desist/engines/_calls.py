"""Calls to the server that are under way, and what has happened to items meanwhile.

Guarantees: what happens to an item after the server has carried out a call for it, and before the
answer has made an object of it here, is known to the calling thread when it has made that object.

How: each call has a `Call` from before the request is sent, in which other threads note what
happens. The calling thread makes its object known first, and then reads its record; another thread
writes to all records first, and then looks for the object: one of the two finds the other. The
references here are weak, so a record ends with its call, however that ends.

| calls | the object | noted |
|---|---|---|
| `Engine.lease`, for at most a third of `lease_timeout` | a `HeldLease` | cancels of leased items |
| `Engine.put`, by submit() | the promise of the item that has the same key | ends of items |
"""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """One call."""

    def __init__(self) -> None:
        self.noted: dict[str, T] = {}
        """By the ids of the items. Written by other threads; each access is one operation of the
        dict."""


class CallsUnderWay(Generic[T]):
    """The calls of one kind that are under way in this process."""

    def __init__(self) -> None:
        self._calls: dict[int, weakref.ref[Call[T]]] = {}

    def begin(self) -> Call[T]:
        """Register a call, which is under way as long as the returned object lives."""
        call: Call[T] = Call()
        key = id(call)
        self._calls[key] = weakref.ref(call, lambda _: self._calls.pop(key, None))
        return call

    def __bool__(self) -> bool:
        """Is there any?"""
        return bool(self._calls)

    def note(self, item_id: str, what: T) -> None:
        """Note this for the item in all calls under way, whichever is for it."""
        for reference in list(self._calls.values()):
            call = reference()
            if call is not None:
                call.noted[item_id] = what
