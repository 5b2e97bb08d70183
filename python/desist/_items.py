"""ItemInfo: one item of a queue, as the queue's items() lists it.

The extension imports this module by name: its queues check the arguments of items() here, and have
their rows made into ItemInfos. The queues of engines use the same functions.
"""

from __future__ import annotations

import os
import platform
import threading
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    _State = Literal["leased", "ready", "delayed", "dead"]
    _Row = tuple[int, _State, int, float, tuple[int, str | int] | None, str | None]

STATES: tuple[_State, ...] = ("leased", "ready", "delayed", "dead")
"""The states of an item that is not done, in the order in which items() lists them."""


class ItemInfo(NamedTuple):
    """An item that is not done, as a queue's items() lists it, without the item itself."""

    id: int | str
    state: Literal["leased", "ready", "delayed", "dead"]
    attempt: int
    """How often it has been leased, since it was put or last retried."""
    age: float | None
    """Seconds since it was put; None if the queue does not know."""
    holder: str | None
    """The worker that has it leased, as "host/pid/thread"; None if none has, or it is not known."""
    key: str | None
    """Its key, if it was put with one."""


def check(state: object, limit: object) -> None:
    """Check the arguments of items().

    Raises:
        ValueError: there is no such state, or the limit is negative.
    """
    if state is not None and state not in STATES:
        message = f"state must be one of {', '.join(STATES)}, or None for all, not {state!r}"
        raise ValueError(message)
    if isinstance(limit, int) and limit < 0:
        message = f"limit must not be negative, but is {limit}"
        raise ValueError(message)


def listed(rows: Iterable[_Row]) -> list[ItemInfo]:
    """Make the list out of the extension's rows, in which a holder is a pid and a thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}

    def info(row: _Row) -> ItemInfo:
        item_id, state, attempt, age, holder, key = row
        if holder is None:
            return ItemInfo(item_id, state, attempt, age, None, key)
        pid, thread = holder
        # A thread that has ended has a number only.
        name = names.get(thread, str(thread)) if isinstance(thread, int) else thread
        return ItemInfo(item_id, state, attempt, age, holder_named(pid, name), key)

    return [info(row) for row in rows]


def holder_named(pid: int, thread: str) -> str:
    """Name a worker of this host."""
    return f"{platform.node()}/{pid}/{thread}"


def this_holder() -> str:
    """Name the calling thread."""
    return holder_named(os.getpid(), threading.current_thread().name)
