"""The ways in which a handler ends its first attempt; in the next one it returns "again"."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease


def returns(_: Lease[str]) -> str:
    return "result"


def raises(_: Lease[str]) -> None:
    raise ZeroDivisionError


def acks(lease: Lease[str]) -> None:
    lease.ack("result")


def discards(lease: Lease[str]) -> None:
    lease.discard("bad")


def nacks(lease: Lease[str]) -> None:
    lease.nack(delay=0.01)


def snoozes(lease: Lease[str]) -> None:
    lease.snooze(0.01)


def extends(lease: Lease[str]) -> str:
    lease.heartbeat("half")
    return "result"


def swallows(lease: Lease[str]) -> str:
    with suppress(ConnectionError):
        lease.ack("result")
    return "returned"


ENDS: dict[Callable[[Lease[str]], object], tuple[str, str]] = {
    returns: ("ack", "result"),
    raises: ("nack", "again"),
    acks: ("ack", "result"),
    swallows: ("ack", "result"),
    discards: ("reject", "bad"),
    nacks: ("nack", "again"),
    snoozes: ("nack", "again"),
    extends: ("extend", "result"),
}
"""The call that each leads to, and how the item ends."""
