"""Events: WorkEvent, and the order in which a pool's listener is told of the events of an item.

Guarantees: the listener is told of every event, of those of one item one after another and in
their order: "submitted" first, and all events of one lease before those of the next. What it raises
stops nothing.

How: an item has a `_Stream` for each lease, and one for its submission, in the order in which they
began. An event is appended to its stream by the thread that it happens on; a thread that finds no
other at it then tells the listener of all events that are due (`_deliver`): those of the first
stream, and of the next one when that is closed. A worker closes its stream when it has settled the
lease, since the item may be leased again before its "requeued" is told.

A worker may lease an item before submit() knows its number. So a worker that leases an item which
is not known first waits for the submissions under way, one of which may be for it (`_quick`). It
does not wait for a submission that waits for room in the queue, since that may wait for workers
(`_waiting`): then the item's events are kept until such a submission has returned.

`_lock` protects all fields; it is never held while the listener is called, and only inside a mask,
where no kill is delivered.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from desist._core import CancelCause, Event, call_for_effect, call_masked, shield
from desist._exceptions import Full

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist._core import PoolMetrics

    # Of WorkEvent.kind.
    _Kind = Literal[
        "submitted",
        "leased",
        "started",
        "done",
        "failed",
        "cancelled",
        "killed",
        "requeued",
        "dead",
    ]


class WorkEvent(NamedTuple):
    """An event of one item of a WorkerPool."""

    kind: Literal[
        "submitted",
        "leased",
        "started",
        "done",
        "failed",
        "cancelled",
        "killed",
        "requeued",
        "dead",
    ]
    """What has happened to the item, or how the attempt has ended: "done", "failed", "cancelled",
    "killed". Unless "done", an event for the item's new state follows: "requeued" or "dead". A
    handler that has settled its lease itself ends with that event alone."""
    item_id: int | str
    attempt: int
    """The number of the attempt; 0 if the event belongs to none."""
    worker: str
    """The worker's name; empty if the event belongs to no worker."""
    failure: BaseException | CancelCause | None
    """The handler's exception, or the reason of its stop; None if it succeeded."""
    time: float = 0.0
    """When it happened, by the wall clock, as time.time() tells it."""
    duration: float | None = None
    """Seconds from "leased" to this event, by a clock that is never set; None without a lease."""
    key: str | None = None
    """The item's key, if it was put with one."""
    queue: str = ""
    """The queue's name: the path of its file, its name on the server, or "memory"."""


class Put(Protocol):
    """A put of one item; Full: there was no room in time."""

    def __call__(self, *, timeout: float | None) -> int | str:
        """Returns the item's id."""


class _Stream:
    """The events of one lease, or of a submission, that were not told yet."""

    def __init__(self, epoch: int | None) -> None:
        # Of the lease; None for a stream without one, which is closed from the beginning.
        self.epoch = epoch
        self.closed = epoch is None
        self.events: deque[WorkEvent] = deque()
        self.leased = time.monotonic()


class _Item:
    """The streams of one item. It is known while there are any."""

    def __init__(self) -> None:
        self.streams: deque[_Stream] = deque()
        # Submissions that may be for it; nothing is told until they have returned.
        self.awaits: set[object] = set()
        # A thread is telling the listener.
        self.busy = False


class Events:
    """Tells a pool's listener of events; `PoolObserver` of desist._ports."""

    def __init__(self, listener: Callable[[WorkEvent], object], queue: str) -> None:
        self._listener = listener
        self._queue = queue
        self._lock = threading.Lock()
        self._items: dict[int | str, _Item] = {}
        # Submissions under way, whose items may be leased already; each is set when it was told.
        self._quick: set[Event] = set()
        # Those that may wait for room.
        self._waiting: set[object] = set()
        # Items whose "submitted" was told and which no worker of the pool has leased yet.
        self._announced: set[int | str] = set()
        # The types of the listener's exceptions that were reported.
        self._reported: set[type[BaseException]] = set()
        self.metrics: PoolMetrics | None = None
        """Reports exceptions of the listener; set by the pool, which has made both."""

    # Called by the extension, on the workers' threads, while a mask defers kills.

    def note(  # noqa: PLR0917 (called by the extension)
        self,
        kind: _Kind,
        item_id: int | str,
        attempt: int,
        worker: str,
        failure: BaseException | CancelCause | None,
        epoch: int,
        key: str | None,
        /,
    ) -> None:
        """Something has happened to an item in a lease of the pool."""
        if kind == "leased" and attempt == 1:
            self._wait_for_submissions(item_id)
        with self._lock:
            item = self._items.setdefault(item_id, _Item())
            stream = next((one for one in item.streams if one.epoch == epoch), None)
            if stream is None:
                stream = _Stream(epoch)
                if not item.streams and attempt == 1 and item_id not in self._announced:
                    item.awaits = set(self._waiting)
                self._announced.discard(item_id)
                item.streams.append(stream)
            lasted = time.monotonic() - stream.leased
            stream.events.append(
                WorkEvent(
                    kind, item_id, attempt, worker, failure, time.time(), lasted, key, self._queue
                )
            )
        self._deliver(item_id)

    def close(self, item_id: int | str, epoch: int, /) -> None:
        """The lease is settled, and has no more events. Idempotent."""
        with self._lock:
            item = self._items.get(item_id)
            for stream in item.streams if item is not None else ():
                if stream.epoch == epoch:
                    stream.closed = True
        self._deliver(item_id)

    # Called by the pool.

    def submit(self, put: Put, key: str | None, timeout: float | None) -> int | str:
        """Put an item by `put(timeout=...)`, and tell that it was submitted."""
        quick = Event()
        self._quick.add(quick)
        item_id: int | str | None = None
        with suppress(Full):
            try:
                item_id = put(timeout=0)
            finally:
                call_masked(self._end_submission, quick, item_id, key)
            return item_id
        waiting = object()
        self._waiting.add(waiting)
        try:
            item_id = put(timeout=timeout)
        finally:
            call_masked(self._end_submission, waiting, item_id, key)
        return item_id

    def _wait_for_submissions(self, item_id: int | str) -> None:
        with self._lock:
            # One that is announced may not have been told yet.
            item = self._items.get(item_id)
            told = item_id in self._announced and item is None
            submissions = [] if told else list(self._quick)
        with shield(math.inf):
            for submission in submissions:
                submission.wait()

    def _end_submission(
        self, submission: object, item_id: int | str | None, key: str | None
    ) -> None:
        """The item was put, and has this id; or it was not (None)."""
        try:
            self._submitted(submission, item_id, key)
        finally:
            if isinstance(submission, Event):
                self._quick.discard(submission)
                submission.set()

    def _submitted(self, submission: object, item_id: int | str | None, key: str | None) -> None:
        with self._lock:
            self._waiting.discard(submission)
            due = [one for one, item in self._items.items() if submission in item.awaits]
            for one in due:
                self._items[one].awaits.discard(submission)
            if item_id is not None:
                due.append(item_id)
                if item_id not in self._items:
                    self._announced.add(item_id)
                item = self._items.setdefault(item_id, _Item())
                item.awaits.clear()
                stream = _Stream(None)
                stream.events.append(self._bare("submitted", item_id, None, key))
                if item.busy:
                    item.streams.append(stream)  # its key stands for an item that is known
                else:
                    item.streams.appendleft(stream)
        for one in due:
            self._deliver(one)

    def dead(self, item_id: int | str, failure: BaseException | CancelCause | None) -> None:
        """The item is dead, and no worker had it. Inside call_masked()."""
        with self._lock:
            self._announced.discard(item_id)
            item = self._items.setdefault(item_id, _Item())
            stream = _Stream(None)
            stream.events.append(self._bare("dead", item_id, failure, None))
            item.streams.append(stream)
        self._deliver(item_id)

    def _bare(
        self,
        kind: _Kind,
        item_id: int | str,
        failure: BaseException | CancelCause | None,
        key: str | None,
    ) -> WorkEvent:
        return WorkEvent(kind, item_id, 0, "", failure, time.time(), None, key, self._queue)

    def _deliver(self, item_id: int | str) -> None:
        """Tell the listener of all events of the item that are due, unless another thread does."""
        while True:
            with self._lock:
                item = self._items.get(item_id)
                if item is None or item.busy or item.awaits:
                    return
                event = self._next(item)
                if event is None:
                    if not item.streams:
                        del self._items[item_id]
                    return
                item.busy = True
            try:
                call_for_effect(self._listener, event)
            except BaseException as raised:  # noqa: BLE001 (it stops nothing)
                self._report(raised)
            finally:
                item.busy = False

    @staticmethod
    def _next(item: _Item) -> WorkEvent | None:
        while item.streams:
            first = item.streams[0]
            if first.events:
                return first.events.popleft()
            if not first.closed:
                return None
            item.streams.popleft()
        return None

    def _report(self, raised: BaseException) -> None:
        with self._lock:
            known = type(raised) in self._reported
            self._reported.add(type(raised))
        if not known and self.metrics is not None:
            self.metrics.report(raised)
