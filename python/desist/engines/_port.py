"""The port between desist and a server that keeps items: the operations of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from desist._core import sleep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from desist._items import ItemInfo, _State


class Delivery(NamedTuple):
    """One lease of one item."""

    id: str
    """The item's id, the same at each of its deliveries."""
    epoch: int
    """The number of the lease; a later lease of the item has a greater one."""
    attempt: int
    """How often the item has been leased: this time and lost workers included, snoozed attempts
    left out."""
    body: bytes
    progress: bytes | None = None
    """The progress that an earlier attempt has stored with extend()."""
    tag: Any = None
    """Data of the engine itself."""
    key: str | None = None
    """The key with which the item was put."""
    time_limit: float | None = None
    """The time_limit with which the item was put."""


class DeadItem(NamedTuple):
    """An item that is not leased any more."""

    id: str
    body: bytes
    failures: list[str]
    """All failures, the oldest first."""


class Engine(ABC):
    """Where items are kept: bytes, under an id, at any time in one state.

    The states are ready, leased, delayed, done and dead. A lease is over when it is settled (ack,
    nack, reject), and when it has not been extended for `lease_timeout` seconds: then the item is
    ready again, for any worker. All times are the engine's own, so that the clocks of the workers'
    hosts do not matter.

    Many threads call at once. Methods raise `Fenced`, and change nothing, if the lease is over, and
    `ConnectionError` if the engine cannot be reached. They are called again then, also when the
    lease has run out, and must recognise the effect of an earlier call whose answer was lost: of
    that call, not of a later lease. Kills are held off during all of them (for lease(), if a pool
    calls it). Only lease() and tend() block for longer than an answer takes.
    """

    lease_timeout: float = 30.0
    """Seconds. Leases are extended when a third of it has passed."""
    name: str = ""
    """The queue's name on the server, for events."""

    @abstractmethod
    def put(
        self,
        item_id: str,
        body: bytes,
        *,
        key: str | None,
        delay: float,
        time_limit: float | None = None,
    ) -> str:
        """Add an item, to be ready after `delay` seconds; returns its id.

        Nothing is added if there is an item with this id, or this key: its id is returned. The
        `time_limit` (seconds; None: there is none) is only kept, for the item's deliveries.
        """

    @abstractmethod
    def lease(self, timeout: float) -> Delivery | None:
        """Lease the next item; waits for one, at most for `timeout` seconds.

        Blocks: until there is an item, for `timeout` seconds at most, in desist waits.
        On cancel: Cancelled is raised; nothing is leased, or the item is requeued at once.
        On timeout: returns None.
        On kill: as on cancel, with Killed.
        """

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """The item is done, and forgotten."""

    @abstractmethod
    def nack(self, delivery: Delivery, delay: float, failure: str | None) -> bool:
        """The item is ready again after `delay` seconds.

        Without a failure the handler has snoozed the item: the attempt is taken back. False: the
        item was cancelled meanwhile, and is dead.
        """

    @abstractmethod
    def reject(self, delivery: Delivery, failure: str) -> None:
        """The item is dead: kept, with all its failures, and leased no more."""

    @abstractmethod
    def extend(self, delivery: Delivery, progress: bytes | None) -> None:
        """Let the lease last for another `lease_timeout` from now.

        `progress` is for the next attempt, should there be one; None leaves it as it is.
        """

    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Count the items that are ready, leased, delayed, done and dead."""

    def tend(self, timeout: float) -> None:
        """Do periodic work; called again and again, on a thread of its own.

        Blocks: for `timeout` seconds at most, in desist waits; returns earlier when the queue may
        have become empty, for drain().
        On cancel: Cancelled is raised: the queue is closed.
        """
        sleep(timeout)

    def list_items(self, state: _State | None, limit: int | None) -> list[ItemInfo]:  # noqa: ARG002 (if it can)
        """The items that are not done, as EngineQueue.items() lists them."""
        raise self._cannot("list items")

    def dead(self) -> list[DeadItem]:
        """The dead items."""
        raise self._cannot("list dead items")

    def retry(self, item_id: str) -> bool:  # noqa: ARG002 (if it can)
        """Give a dead item all its attempts again. False: it is not dead."""
        raise self._cannot("retry dead items")

    def cancel(self, item_id: str, failure: str) -> bool | None:  # noqa: ARG002 (if it can)
        """Cancel the item: it is not leased again.

        True: it is dead now. False: it is leased, and dead when it is requeued. None: there is no
        such item any more.
        """
        raise self._cannot("cancel items")

    def close(self) -> None:  # noqa: B027 (not all engines need it)
        """Release all connections; there are no more calls. Leases run out."""

    def _cannot(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} cannot {what}")
