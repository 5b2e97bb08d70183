"""The port: what an engine has to be able to do for workers of desist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from desist._core import sleep

if TYPE_CHECKING:
    from collections.abc import Mapping


class Delivery(NamedTuple):
    """One lease of one item."""

    id: str
    """The item's: the same at each of its deliveries."""
    epoch: int
    """The lease's: a later lease of the item has a greater one."""
    attempt: int
    """How often the item has been leased, this time included, also by workers that were lost."""
    body: bytes
    progress: bytes | None = None
    """What the attempt before has left behind with extend()."""
    tag: Any = None
    """What the engine itself needs to know of it."""


class DeadItem(NamedTuple):
    """An item that nobody will work on any more."""

    id: str
    body: bytes
    failures: list[str]
    """All that went wrong, the first first."""


class Engine(ABC):
    """Where items are kept: bytes, under an id, at any time in one state.

    The states are ready, leased, delayed, done and dead. A lease is over when it is settled (ack,
    nack, reject), and when nobody has extended it for `lease_timeout` seconds: then the item is
    ready again, for any worker. All times are the engine's own, so that the clocks of the workers'
    hosts do not matter.

    Many threads call at once. Methods raise `Fenced`, and change nothing, if the lease is over;
    `ConnectionError` if the engine cannot be reached: they are called again then, and must not take
    for somebody else's what the call before has done. No kill strikes in them (in lease(), if it is
    a pool that calls). No method but lease() and tend() blocks for longer than an answer takes.
    """

    lease_timeout: float = 30.0
    """Seconds. Leases are extended when a third of it has passed."""

    @abstractmethod
    def put(self, item_id: str, body: bytes, *, key: str | None, delay: float) -> str:
        """Add an item, to be ready after `delay` seconds; returns its id.

        Nothing is added if an item with this id, or this key, is there: that one's id is returned.
        """

    @abstractmethod
    def lease(self, timeout: float) -> Delivery | None:
        """Lease the next item; waits for one, at most for `timeout` seconds.

        The wait is one of desist's, so that it can be cancelled; then nothing is leased, or the
        engine has it back at once.
        """

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """The item is done, and forgotten."""

    @abstractmethod
    def nack(self, delivery: Delivery, delay: float, failure: str) -> bool:
        """The item is ready again after `delay` seconds.

        False: nobody wants it any more (see cancel()), and it is dead.
        """

    @abstractmethod
    def reject(self, delivery: Delivery, failure: str) -> None:
        """The item is dead: kept, with all its failures, but leased no more."""

    @abstractmethod
    def extend(self, delivery: Delivery, progress: bytes | None) -> None:
        """The lease lasts for another `lease_timeout` from now.

        `progress` is for the next attempt, should there be one; None leaves it as it is.
        """

    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """How many items are ready, leased, delayed, done and dead."""

    def tend(self, timeout: float) -> None:
        """What has to be done now and then; called over and over, on a thread of its own.

        Blocks for at most `timeout` seconds, in waits of desist; returns earlier when there may be
        news for those who wait until all is done.
        """
        sleep(timeout)

    def dead(self) -> list[DeadItem]:
        """The dead items."""
        raise self._cannot("list dead items")

    def retry(self, item_id: str) -> bool:  # noqa: ARG002 (for who can)
        """Give a dead item all its attempts again. False: it is not dead."""
        raise self._cannot("retry dead items")

    def cancel(self, item_id: str, failure: str) -> bool | None:  # noqa: ARG002 (for who can)
        """Nobody wants the item any more, it is not to be leased again.

        True: it is dead now. False: it is leased, and dead when it is given back. None: it is not
        there any more.
        """
        raise self._cannot("cancel items")

    def close(self) -> None:  # noqa: B027 (not all have to do something)
        """Nobody will call again. Leases are left to run out."""

    def _cannot(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} cannot {what}")
