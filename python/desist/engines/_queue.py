"""EngineQueue: a queue of leases that an engine on a server keeps."""

from __future__ import annotations

import math
import os
import uuid
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from desist._codec import codec as codec_named
from desist._codec import dead_item
from desist._core import (
    CancelCause,
    CancelSource,
    Condition,
    Lease,
    Lock,
    RetryPolicy,
    call_masked,
    cancel_because,
    cancel_scope,
    check_runnable,
    checked_time_limit,
    checkpoint,
    current_time,
    lease_from,
    shield,
)
from desist._exceptions import Fenced
from desist._item_future import ItemFuture, ItemPromise
from desist._items import check
from desist.engines._calls import CallsUnderWay
from desist.engines._heartbeat import HeartbeatThread
from desist.engines._held import HeldLease, retry_until_connected
from desist.engines._port import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from desist._codec import Codec
    from desist._items import ItemInfo, _State
    from desist.engines._calls import Call
    from desist.engines._port import Delivery

T = TypeVar("T")

_NO_COROUTINE = "its effect must be there when it returns"
_LOST = "its worker was lost at the last attempt, for an unknown reason"


class EngineQueue(Generic[T]):
    """Items that are leased to workers of any process and host, kept by an `Engine`.

    At least once: an item that its worker does not acknowledge is leased again, also when its
    process or host is lost, once the lease has not been extended for the engine's `lease_timeout`.
    As long as this process lives, a thread of it extends its leases. If a lease is lost
    all the same (the server was away for too long, the process stood still), its handler's token is
    cancelled, and ack() raises Fenced.

    While the server cannot be reached, workers wait for it, and finished items are acknowledged
    when it is back, unless the lease has run out by then. put(), counts(), dead() and retry() raise
    ConnectionError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        retry: RetryPolicy | None = None,
        codec: Literal["pickle", "json"] = "pickle",
    ) -> None:
        """Set up the queue; the connection is made at the first call that needs it.

        With `codec="pickle"`, a program that can write to the server can run code in the workers.

        Raises:
            TypeError: an operation of the engine is a coroutine function.
        """
        for name, operation in vars(Engine).items():
            if callable(operation) and not name.startswith("_"):
                what = f"{type(engine).__name__}.{name}()"
                check_runnable(getattr(engine, name), what, _NO_COROUTINE)
        retry = RetryPolicy() if retry is None else retry
        self.engine = engine
        self.port: EnginePort = EnginePort(engine, retry, codec_named(codec))

    def put(
        self,
        item: T,
        /,
        *,
        key: str | None = None,
        delay: float = 0.0,
        time_limit: float | None = None,
    ) -> str:
        """Add an item and return its id. The server has stored it when this returns.

        `delay`: seconds before which it is not leased. `key`: if there is an item with this key,
        dead or alive, nothing is added, and the id of that item is returned. `time_limit`: seconds
        that each attempt may take, instead of the time_limit of the pool that leases the item.

        Blocks: until the server has answered.
        On cancel: nothing changes: this is no checkpoint.
        On kill: a kill waits for the answer.

        Raises:
            TypeError: the codec cannot write it.
            ConnectionError: the server is away, and may or may not have it; with a key it does no
                harm to put it again.
        """
        return self.port.put(uuid.uuid4().hex, item, key, delay, time_limit)

    def lease(self, timeout: float | None = None) -> Lease[T] | None:
        """Lease the next item; waits for one, at most for `timeout` seconds (then None).

        The caller must acknowledge the lease or requeue it; a WorkerPool does that for its
        handlers. An item that cannot be decoded has failed: it is requeued, or dead, as the
        RetryPolicy says, and the next item is leased.

        Blocks: until there is an item, for `timeout` seconds at most; also while the server is
        away, and while the item is decoded.
        On cancel: a checkpoint; Cancelled means that nothing was leased.
        On timeout: returns None.
        On kill: Killed means that nothing was leased.

        Raises:
            ConnectionError: the server was away until `timeout` was over.
            RuntimeError: the queue is closed, or belongs to the parent process.
            ValueError: a negative timeout.
        """
        return lease_from(self.port, timeout)

    def counts(self) -> Mapping[str, int]:
        """Count the items in each state at one instant, those leased to other hosts included.

        Blocks: until the server has answered.
        On cancel: nothing changes: this is no checkpoint.
        """
        self.port.check_usable()
        return call_masked(self.engine.counts)

    def items(self, *, state: _State | None = None, limit: int | None = None) -> list[ItemInfo]:
        """List the items that are not done: their states, attempts, ages and holders.

        The items themselves are not decoded. Leased ones come first, then ready, delayed and dead
        ones; within a state about in the order in which they were put. `state` lists those of one
        state only, `limit` so many at most.

        Blocks: until the server has answered.
        On cancel: nothing changes: this is no checkpoint.

        Raises:
            NotImplementedError: the engine cannot.
            ValueError: there is no such state, or a negative limit.
        """
        self.port.check_usable()
        check(state, limit)
        return call_masked(self.engine.list_items, state, limit)

    def dead(self) -> list[tuple[str, T | bytes, list[str]]]:
        """List the dead items: id, item, and all failures.

        An item that cannot be decoded here is listed with its bytes in place of the item, and the
        decoder's exception as its last failure.

        Blocks: until the server has answered.
        On cancel: nothing changes: this is no checkpoint.
        """
        return self.port.dead()

    def retry(self, item_id: str, /) -> None:
        """Give a dead item all its attempts again.

        Blocks: until the server has answered.
        On cancel: nothing changes: this is no checkpoint.

        Raises:
            ValueError: it is not dead.
        """
        self.port.check_usable()
        if not call_masked(self.engine.retry, item_id):
            raise ValueError(f"item {item_id} is not dead; dead() lists those that are")

    def close(self) -> None:
        """Close the connections. Leases of this process run out, items stay. Idempotent.

        Blocks: until the thread that extends leases has ended. A checkpoint.
        On cancel: the connections are closed, and Cancelled is raised.
        On kill: as on cancel, with Killed.
        """
        self.port.close()

    def __enter__(self) -> EngineQueue[T]:
        """Return the queue itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        return f"<EngineQueue of {self.engine!r}>"


class EnginePort:
    """An EngineQueue as a WorkerPool and its workers' loops see it.

    Implements `QueuePort` and `EngineSource` of `desist._ports`.
    """

    def __init__(self, engine: Engine, retry: RetryPolicy, codec: Codec) -> None:
        self.retry = retry
        self.name: str = engine.name
        self._engine = engine
        self._codec = codec
        self._process = os.getpid()
        self._closed = False
        self._closing = CancelSource()
        self._promises: dict[str, ItemPromise] = {}
        """By the ids of the items. A promise is taken out by the thread that settles it; each step
        is one call of the dict, which is atomic."""
        self._leasing: CallsUnderWay[str | None] = CallsUnderWay()
        """Items that are cancelled while they are leased are noted, with the reasons."""
        self._submitting: CallsUnderWay[ItemPromise] = CallsUnderWay()
        """Items that end here are noted, with promises that are settled with them."""
        self._changed = changed = _Changed()
        self._heartbeat = HeartbeatThread(engine, changed)
        self._stop_heartbeat = weakref.finalize(self, self._heartbeat.stop)

    def put(
        self, item_id: str, item: Any, key: str | None, delay: float, time_limit: float | None
    ) -> str:
        """Put an item under this id, or find the one that stands for it; returns its id."""
        self.check_usable()
        if not 0 <= delay < float("inf"):
            raise ValueError(f"delay must not be negative, and not endless, but is {delay}")
        limit = checked_time_limit(time_limit)
        body = self._codec.encode(item)
        return call_masked(
            lambda: self._engine.put(item_id, body, key=key, delay=delay, time_limit=limit)
        )

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
        timeout: float | None = None,  # noqa: ARG002 (there is always room)
    ) -> str:
        """Add an item, as put() does; `promise` is settled when the item has ended here."""
        if priority or expires is not None:
            raise ValueError("this queue's engine knows neither priority nor expires")
        item_id = uuid.uuid4().hex
        self._promises[item_id] = promise
        call = self._submitting.begin()
        try:
            known = self.put(item_id, item, key, delay or 0.0, time_limit)
        except BaseException:
            self._promises.pop(item_id, None)
            raise
        if known != item_id:
            del self._promises[item_id]
            self._follow(known, promise, call)
        return known

    def _follow(self, item_id: str, promise: ItemPromise, call: Call[ItemPromise]) -> None:
        """Another item stands for the one that was submitted: settle `promise` with it."""
        first = self._promises.setdefault(item_id, promise)
        if item_id in call.noted:  # it has ended since the server has found it
            if first is promise:
                self._promises.pop(item_id, None)
            first = call.noted[item_id]
        if first is not promise:
            promise.follow(first)

    def deliver(self, timeout: float | None, /) -> HeldLease | None:
        """Lease the next item, waiting at most for `timeout` seconds."""
        self.check_usable()
        call_masked(self._heartbeat.start)
        end = math.inf if timeout is None else current_time() + timeout
        first = True
        while first or current_time() < end:
            first = False
            self._heartbeat.check()
            delivery, call = None, self._leasing.begin()
            with cancel_scope() as scope, self._closing.token.on_cancel(lambda _: scope.cancel()):
                delivery = retry_until_connected(lambda: self._lease(end), end)
            self.check_usable()
            held = None if delivery is None else call_masked(self._accept, delivery)
            if held is not None:
                # A cancel that came before the lease was held here is in `call`; a later one
                # finds the lease.
                if held.id in call.noted:
                    held.cancel(call.noted[held.id])
                return held
        return None

    def _lease(self, end: float) -> Delivery | None:
        checkpoint()
        left = max(end - current_time(), 0.0)
        return self._engine.lease(min(left, self._heartbeat.period))

    def _accept(self, delivery: Delivery) -> HeldLease | None:
        """None: it is not for any handler, and settled."""
        promise = self._promises.get(delivery.id)
        held = HeldLease(
            delivery,
            self._engine,
            self._codec,
            self.retry,
            on_release=self._heartbeat.remove,
            on_end=self._item_ended,
            take_promise=self._take_promise,
            context=None if promise is None else promise.context,
        )
        if delivery.attempt > self.retry.max_attempts:
            # If it is not rejected now, the next worker that leases it rejects it.
            with suppress(Fenced, ConnectionError):
                held.settle(lambda: self._engine.reject(delivery, _LOST))
            self._fail(delivery.id, RuntimeError(_LOST))
            return None
        self._heartbeat.add(held)
        return held

    def dead(self) -> list[tuple[str, Any, list[str]]]:
        """As EngineQueue.dead()."""
        self.check_usable()
        return [
            (dead.id, *dead_item(self._codec.decode, dead.body, dead.failures))
            for dead in call_masked(self._engine.dead)
        ]

    def failures_of(self, item_id: str) -> list[str] | None:
        """The failures of a dead item; None: it is not dead, or the engine cannot tell."""
        self.check_usable()
        try:
            dead = call_masked(self._engine.dead)
        except NotImplementedError:
            return None
        return next((one.failures for one in dead if one.id == item_id), None)

    def cancel(self, item_id: str, reason: str | None = None) -> bool | None:
        """Never lease the item again."""
        self.check_usable()
        cause = CancelCause.explicit(reason)
        dead = call_masked(self._engine.cancel, item_id, str(cause))
        if dead:
            self._fail(item_id, cause)
            self._changed()
        elif dead is False:
            self._leasing.note(item_id, reason)
            for held in self._heartbeat.held():
                if held.id == item_id:
                    held.cancel(reason)
        return dead

    def drain(self, timeout: float | None, failed: Callable[[BaseException], object], /) -> bool:
        """Wait until nothing is ready, leased or delayed (True), or the seconds have passed.

        An exception of the queue or its engine is passed to `failed(exception)`, and False
        returned; but ConnectionError is raised, if the server was away until the seconds had
        passed.
        """
        call_masked(self._heartbeat.start)
        end = math.inf if timeout is None else current_time() + timeout
        while True:
            seen = self._changed.times
            is_drained = retry_until_connected(lambda: call_masked(self._is_drained), end)
            if isinstance(is_drained, Exception):
                failed(is_drained)
                return False
            if is_drained:
                return True
            if not self._changed.wait(seen, end - current_time()):
                return False

    def _is_drained(self) -> bool | Exception:
        """Is nothing ready, leased or delayed? Returns the exception of a queue that has failed.

        Inside call_masked(): no exception that stops the calling code is taken for the queue's.
        """
        try:
            self.check_usable()
            self._heartbeat.check()
            counts = self._engine.counts()
        except ConnectionError:
            raise
        except Exception as failure:  # noqa: BLE001 (the caller passes it on)
            return failure
        return not counts["ready"] + counts["leased"] + counts["delayed"]

    def abandon(self, reason: str | None = None) -> None:
        """Close the queue, and fail the promises; the items stay with the server."""
        try:
            self.close()
        finally:
            cause = CancelCause.shutdown(reason)
            for item_id in list(self._promises):
                self._fail(item_id, cause)

    def close(self) -> None:
        """As EngineQueue.close()."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        cancel_because(self._closing.token, CancelCause.shutdown("the queue is closed"))
        self._stop_heartbeat()
        try:
            self._heartbeat.join()
        finally:
            call_masked(self._engine.close)

    def check_usable(self) -> None:
        """Raise RuntimeError if the queue is closed, or the parent process's."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "this queue's connections belong to the parent process; open it again after a fork"
            )
        if self._closed:
            raise RuntimeError("this queue is closed; open it again")

    def _item_ended(self) -> None:
        """An item left the queue for good: drain() looks again, if no lease is held here."""
        if self._heartbeat.idle:
            self._changed()

    def _take_promise(self, item_id: str) -> ItemPromise | None:
        """Take the promise of an item out, which has ended, to settle it."""
        if not self._submitting:
            return self._promises.pop(item_id, None)
        promise = self._promises.get(item_id) or ItemPromise(ItemFuture())
        self._submitting.note(item_id, promise)
        late = self._promises.pop(item_id, None)
        if late is not None and late is not promise:
            late.follow(promise)
        return promise

    def _fail(self, item_id: str, failure: BaseException | CancelCause) -> None:
        promise = self._take_promise(item_id)
        if promise is not None:
            call_masked(promise.fail, failure)


class _Changed:
    """Counts the times at which the queue may have become empty, and wakes waiters for the next."""

    def __init__(self) -> None:
        self.times = 0
        # A count cannot be half changed, and a caller of drain() may be killed in its wait.
        self._condition = Condition(Lock(on_kill="release"))

    def __call__(self) -> None:
        # A worker whose pool stops has settled its lease, and goes on to tell of it.
        with shield(math.inf), self._condition:
            self.times += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout: float) -> bool:
        """Wait until the count differs from `seen`; False: not in time."""
        with self._condition:
            patience = None if timeout == math.inf else max(timeout, 0.0)
            return self._condition.wait_for(lambda: self.times != seen, patience)
