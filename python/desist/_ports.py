"""The protocols between the extension and the Python code, apart from the public surface.

The extension calls objects that are written in Python by the names in the first part;
`src/python/ports.rs` has the same list, and `tests/python/test_ports.py` compares the two. The
second part is implemented by the extension too, so that a queue of the core and one of an engine
are the same to a pool. Type checkers compare each protocol with the classes that implement it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from desist._core import FileQueue, LeaseQueue, queue_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from desist._core import CancelCause, Op, RetryPolicy, RunningHandler, WorkerThread
    from desist._item_future import ItemPromise


# --- called by the extension


class Promise(Protocol):
    """Settles the future of a submitted item. The first call counts."""

    @property
    def context(self) -> Context:
        """The context of the code that has submitted the item; its handler runs in a copy."""

    def finish(self, result: Any, /) -> object:
        """The item was acknowledged with this result."""

    def fail(self, failure: BaseException | CancelCause, /) -> object:
        """The item is dead, or will not be worked on."""


class EngineSource(Protocol):
    """A queue that an engine on a server keeps, as a worker's loop sees it."""

    @property
    def retry(self) -> RetryPolicy:
        """The queue's policy."""

    def deliver(self, timeout: float | None, /) -> HeldDelivery | None:
        """Lease the next item, waiting at most for `timeout` seconds."""


class HeldDelivery(Protocol):
    """One lease of such a queue, and how it is settled. Fenced from any method: it is over.

    ConnectionError from a settlement: the queue's server is away, and may or may not have done it.
    It may be repeated. If the lease is over, a repeated settlement succeeds only if an earlier call
    of the same method has ended the lease, and changes nothing.
    """

    @property
    def id(self) -> str:
        """The item's id."""

    @property
    def epoch(self) -> int:
        """The number of the lease: a later one of the item has a greater number."""

    @property
    def attempt(self) -> int:
        """How often the item has been leased, this time included."""

    @property
    def body(self) -> bytes:
        """The item's bytes."""

    @property
    def decode(self) -> Callable[[bytes], Any]:
        """Makes the item, and the progress, of their bytes. May run any code, and never return."""

    @property
    def context(self) -> Context | None:
        """That of the code that has submitted the item; None: it was put, or not here."""

    @property
    def progress(self) -> bytes | None:
        """The progress that an earlier attempt has stored with heartbeat(); None if none has."""

    @property
    def key(self) -> str | None:
        """The key with which the item was put."""

    @property
    def time_limit(self) -> float | None:
        """Seconds that this attempt may take; None: the item has no limit of its own."""

    def begun(self, running: RunningHandler, /) -> object:
        """A worker is about to call its handler, which `running` can cancel."""

    def ack(self) -> object:
        """The work is done."""

    def nack(self, pause: float | None, failure: BaseException | CancelCause | None, /) -> bool:
        """The work was not done. True: the item will be leased again; False: it is dead.

        `pause`: seconds until then; None for that of the queue's RetryPolicy. Without a failure the
        attempt does not count.
        """

    def discard(self, failure: BaseException | CancelCause, /) -> object:
        """The work will not be done: the item is dead."""

    def heartbeat(self, progress: Any, /) -> object:
        """Extend the lease now, and store `progress` unless it is None."""

    def take_promise(self) -> Promise | None:
        """The promise with which the item was submitted here, once."""


class PoolObserver(Protocol):
    """Told of the events of a pool's items, on the workers' threads."""

    def note(  # noqa: PLR0917 (called by the extension)
        self,
        kind: Any,
        item_id: int | str,
        attempt: int,
        worker: str,
        failure: BaseException | CancelCause | None,
        epoch: int,
        key: str | None,
        /,
    ) -> object:
        """Something has happened to an item in the lease of this epoch."""

    def close(self, item_id: int | str, epoch: int, /) -> object:
        """The lease is settled, and has no more events. Idempotent."""


class LostException(Protocol):
    """An exception of a worker process that has no pickle."""

    @property
    def type_names(self) -> tuple[tuple[str, str], ...]:
        """Module and qualified name of its class and the base classes."""


# These are methods of public classes, and so their names begin with an underscore.


class GroupHooks(Protocol):
    """The hooks of a subclass of `GroupCore`: a TaskGroup, or one of compat's."""

    def _verdict(self, raised: BaseException | None) -> BaseException | None:
        """The exception that leaves the block instead of `raised`; None for `raised` itself."""

    def _on_abandoned(self) -> None:
        """The block's `__exit__` was skipped, and its tasks have ended all the same."""

    def _start_thread(self, hand: WorkerThread, task: Any) -> None:
        """Start a thread that runs `task` first."""


class GroupTask(Protocol):
    """A task of a group."""

    def _run(self) -> None:
        """Call its function, or end it if it was cancelled, on the calling thread."""

    def _abandoned(self) -> None:
        """The task was abandoned: its thread is not the group's any more."""


class WorkOwner(Protocol):
    """A subclass of `OwnerBlock`: work runs that belongs to its block."""

    def _join_work(self) -> object:
        """Wait until all work has ended."""

    def _end_work(self) -> object:
        """End all work that has not ended, as the policy says. Idempotent."""


class HookedQueue(Protocol):
    """A subclass of `Queue` whose hooks keep the items."""

    def _set_up(self, maxsize: int) -> None:
        """Prepare the queue, before it is used."""

    def _has_news(self) -> bool:
        """Could get() return, or raise ShutDown, at once?"""


class Waitable(Protocol):
    """A class of desist's whose objects `wait_any` takes as they are."""

    def _done_op(self) -> Op[Any]:
        """The operation of waiting for its end."""


# --- implemented by the extension, and by the queues of engines


class QueuePort(Protocol):
    """A queue of leases, as a WorkerPool sees it."""

    @property
    def retry(self) -> RetryPolicy:
        """The queue's policy."""

    @property
    def name(self) -> str:
        """The queue's name in events."""

    def submit(
        self,
        item: Any,
        promise: ItemPromise,
        /,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float | None = None,
        expires: float | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> int | str:
        """Add an item, as put() does; `promise` is settled when the item has ended."""

    def cancel(self, item_id: Any, reason: str | None = None) -> bool | None:
        """Never lease the item again.

        True: it is dead now. False: it will be, when its worker requeues it. None: it had ended.
        """

    def failures_of(self, item_id: Any) -> list[Any] | None:
        """The failures of a dead item, without decoding any item. None: it is not dead."""

    def drain(self, timeout: float | None, failed: Callable[[BaseException], object], /) -> bool:
        """Wait until nothing is ready, leased or delayed (True), or the seconds have passed.

        An exception of the queue is passed to `failed(exception)`, and False returned. Those that
        stop the calling code are raised, and ConnectionError, if the queue's server was away
        until the seconds had passed.
        """

    def abandon(self, reason: str | None = None) -> None:
        """Fail the promises: the pool that owns the queue has stopped."""


def port_of(queue: Any) -> QueuePort:
    """The operations of a pool on a queue.

    Raises:
        TypeError: it is no queue of leases.
    """
    if isinstance(queue, (LeaseQueue, FileQueue)):
        return queue_port(queue)
    port: QueuePort | None = getattr(queue, "port", None)
    if port is None:
        raise TypeError(
            f"queue must be a queue of leases, a path or a URL, not {type(queue).__name__}"
        )
    return port
