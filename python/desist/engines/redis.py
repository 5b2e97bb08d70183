"""Redis Streams, through redis-py (`pip install desist[redis]`), for Redis 6.2 and newer.

The keys for a stream `jobs`; with Redis Cluster, name it `{jobs}`, so that all are on one node:

| key | content |
|---|---|
| `jobs` | the stream: an entry `id ...` for each item that is ready or leased |
| `jobs:item:...` | a hash for each item that is not done: body, attempt, progress, failures, ... |
| `jobs:delayed` | a sorted set: the times at which delayed items are ready, by the server's clock |
| `jobs:dead` | a second stream: the dead items, with all their failures |
| `jobs:dead-entries` | a hash: the entry of each dead item in that stream |
| `jobs:keys` | a hash: which item has which key |
| `jobs:epoch`, `jobs:done` | counters |
| `jobs:acked:...` | for each thread that has done work today: the entry of its last ack |
| `jobs:news` | a stream of one entry, which wakes waiters for other changes than new entries |

A lease is a pending entry of the consumer group. An item gets a new entry whenever it becomes ready
again, so that the entry of a lost lease is not pending any more: that is the fence. Every step is
one Lua script, so that neither the death of a worker nor a lost reply leaves it half done.

Another program may add an item: `XADD jobs * body ...`.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from desist._core import call_masked, cleanup, current_time, wait_readable
from desist._exceptions import Fenced
from desist._items import STATES, ItemInfo, this_holder
from desist.engines import _redis_scripts as scripts
from desist.engines._port import DeadItem, Delivery, Engine
from desist.engines._url import check_lease_timeout, lease_timeout_of, take_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desist._items import _State

_GONE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,  # a replica by now; the client will connect to the new master
)
_MOST = 2**31 - 1
"""A limit that no list reaches."""
_ANSWER = 5.0
"""Seconds within which a reachable server answers."""
_STATES = {state.encode(): state for state in STATES}


class RedisEngine(Engine):
    """Items in a Redis stream, leased through a consumer group.

    redis://host:port/db?stream=jobs&lease_timeout=30. All else is redis-py's, as it is: other
    parameters, rediss:// for TLS, and unix://path?db=0&stream=jobs for a socket.
    """

    def __init__(
        self, url: str = "redis://localhost", *, stream: str = "desist", lease_timeout: float = 30.0
    ) -> None:
        """Set up the engine; connections are made when they are needed."""
        check_lease_timeout(lease_timeout)
        self.lease_timeout = lease_timeout
        self.stream = stream
        self.name: str = stream
        self.consumer: str = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # Retries are done by EngineQueue, in waits that can be cancelled.
        self._client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=_ANSWER,
            socket_connect_timeout=_ANSWER,
            retry=Retry(NoBackoff(), 0),
        )
        self._scripts = {
            name: self._client.register_script(source) for name, source in scripts.ALL.items()
        }
        self._news = b"0-0"
        # Settlements, and the entries of their leases, that may or may not have arrived.
        self._in_doubt: set[tuple[str, bytes]] = set()

    @classmethod
    def from_url(cls, url: str) -> RedisEngine:
        """Make an engine from the URL that the class describes."""
        rest, own = take_parameters(url, "stream", "lease_timeout")
        stream = own.get("stream", "desist")
        return cls(rest, stream=stream, lease_timeout=lease_timeout_of(own))

    def put(
        self,
        item_id: str,
        body: bytes,
        *,
        key: str | None,
        delay: float,
        time_limit: float | None = None,
    ) -> str:
        """One round trip."""
        limit = "" if time_limit is None else repr(time_limit)
        rest = [] if key is None else [key]
        known: bytes = self._run("put", item_id, body, _ms(delay), limit, *rest)
        return known.decode()

    def lease(self, timeout: float) -> Delivery | None:
        """One round trip if an item is ready; else two more, and a wait on the server."""
        holder = this_holder()
        found = call_masked(self._run, "take", self.consumer, holder)
        if not found and timeout > 0:
            command = ("XREADGROUP", "GROUP", scripts.GROUP, self.consumer, "COUNT", 1)
            reply = self._blocked(timeout, command, self.stream, ">", self._put_back)
            found = reply and call_masked(self._begin, reply, holder)
        if not found:
            return None
        item_id, entry, attempt, epoch, body, progress, key, limit = found
        named = None if key is None else key.decode()
        time_limit = None if limit is None else float(limit)
        found_id = item_id.decode()
        return Delivery(found_id, epoch, attempt, body, progress, entry, named, time_limit)

    def _begin(self, reply: Any, holder: str) -> Any:
        entry, fields = _only_entry(reply)
        return self._run("begin", entry, holder, *fields)

    def _put_back(self, reply: Any) -> None:
        self._run("put_back", _only_entry(reply)[0])

    def ack(self, delivery: Delivery) -> None:
        """One round trip."""
        self._settle("ack", delivery, f"{self.consumer}:{threading.get_ident()}")

    def nack(self, delivery: Delivery, delay: float, failure: str | None) -> bool:
        """One round trip."""
        why = () if failure is None else (failure,)
        state = self._settle("nack", delivery, _ms(delay), *why)
        return state not in (scripts.IS_DEAD, scripts.NOW_DEAD)

    def reject(self, delivery: Delivery, failure: str) -> None:
        """One round trip."""
        self._settle("reject", delivery, failure)

    def _settle(self, name: str, delivery: Delivery, *arguments: str | int) -> int:
        settlement = (name, delivery.tag)
        in_doubt = settlement in self._in_doubt
        try:
            state: int = self._run(name, delivery.tag, delivery.id, *arguments)
        except BaseException:
            self._in_doubt.add(settlement)
            raise
        self._in_doubt.discard(settlement)
        # A lease in doubt may have been ended by the earlier call.
        if state < 0 and not (in_doubt and state in _OWN_EFFECT[name]):
            raise Fenced(_FENCED)
        return state

    def extend(self, delivery: Delivery, progress: bytes | None) -> None:
        """One round trip."""
        rest = [] if progress is None else [progress]
        if not self._run("extend", delivery.tag, delivery.id, self.consumer, *rest):
            raise Fenced(_FENCED)

    def counts(self) -> dict[str, int]:
        """One round trip."""
        states = ("ready", "leased", "delayed", "done", "dead")
        return dict(zip(states, self._run("counts"), strict=True))

    def tend(self, timeout: float) -> None:
        """Make due items and those of lost workers ready; then wait for the next one, or for news.

        Returns when there was news.
        """
        end = current_time() + timeout
        while True:
            due, self._news = call_masked(self._run, "tend", self.consumer, _ms(self.lease_timeout))
            left = end - current_time()
            if left <= 0:
                return
            pause = left if due < 0 else min(left, due / 1000)
            if pause > 0:
                command = ("XREAD", "COUNT", 1)
                if self._blocked(pause, command, f"{self.stream}:news", self._news, _nothing):
                    return

    def list_items(self, state: _State | None, limit: int | None) -> list[ItemInfo]:
        """One round trip, in which the server looks at all items of the states."""
        rows = self._run("items", state or "", _MOST if limit is None else limit)
        return [_info(row) for row in rows]

    def dead(self) -> list[DeadItem]:
        """One round trip. Other programs can read the dead stream, too."""
        with _translated():
            entries: Any = self._client.xrange(f"{self.stream}:dead")
        return [_dead_item(fields) for _, fields in entries]

    def retry(self, item_id: str) -> bool:
        """One round trip."""
        return bool(self._run("retry", item_id))

    def cancel(self, item_id: str, failure: str) -> bool | None:
        """One round trip."""
        return {0: None, 1: True, 2: False}[self._run("cancel", item_id, failure)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._client.connection_pool.disconnect()

    def __repr__(self) -> str:
        return f"<RedisEngine {self.stream}>"

    def _run(self, name: str, *arguments: Any) -> Any:
        with _translated():
            return self._scripts[name](keys=[self.stream], args=arguments)

    def _blocked(
        self,
        seconds: float,
        command: tuple[str | int, ...],
        stream: str,
        after: str | bytes,
        undo: Callable[[Any], object],
    ) -> Any:
        """Wait for the next entry of a stream after this one; None: not within the seconds.

        Cancelled and Killed end the server's wait; `undo(reply)` gets an entry that was read
        anyway.
        """
        pool = self._client.connection_pool
        connection = call_masked(self._connection)
        try:
            block = max(_ms(seconds), 1)
            number = call_masked(
                _begin_to_read, connection, (*command, "BLOCK", block, "STREAMS", stream, after)
            )
            try:
                # The answer may have been read together with the number.
                there = call_masked(_has_more, connection) or wait_readable(
                    connection._sock,  # noqa: SLF001 (the package has no other way)
                    seconds + _ANSWER,
                )
            except ConnectionError:  # there is no connection any more, and so nothing to unblock
                raise
            except BaseException:
                with cleanup():
                    self._unblock(connection, number, undo)
                raise
            return call_masked(_answer if there else _no_answer, connection)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _connection(self) -> Any:
        with _translated():
            return self._client.connection_pool.get_connection()

    def _unblock(self, connection: Any, number: int, undo: Callable[[Any], object]) -> None:
        # If the server is away now, an entry that was read is pending, and its lease runs out.
        with suppress(ConnectionError):
            with _translated():
                self._client.client_unblock(number)
            reply = _answer(connection)
            if reply:
                undo(reply)


def _begin_to_read(connection: Any, command: tuple[str | int | bytes, ...]) -> int:
    """Send a blocking command; return the connection's id, by which it can be unblocked."""
    with _translated():
        connection.send_command("CLIENT", "ID")
        connection.send_command(*command)
        number: int = connection.read_response()
    return number


def _has_more(connection: Any) -> bool:
    with _translated():
        return bool(connection.can_read())


def _answer(connection: Any) -> Any:
    with _translated():
        return connection.read_response()


def _no_answer(connection: Any) -> NoReturn:
    raise ConnectionError(f"{connection!r} did not answer in time")


def _only_entry(reply: Any) -> tuple[bytes, list[bytes]]:
    [[_stream, [(entry, fields)]]] = reply
    return entry, fields


def _dead_item(fields: dict[bytes, bytes]) -> DeadItem:
    numbers = range(1, int(fields.get(b"failures", 0)) + 1)
    failures = [fields[b"failure:%d" % number].decode() for number in numbers]
    return DeadItem(fields[b"id"].decode(), fields[b"body"], failures)


def _info(row: tuple[bytes, bytes, int, int, bytes, bytes]) -> ItemInfo:
    item_id, state, attempt, age, holder, key = row
    return ItemInfo(
        item_id.decode(),
        _STATES[state],
        attempt,
        None if age < 0 else age / 1000,
        holder.decode() or None,
        key.decode() or None,
    )


def _nothing(_: object) -> None:
    """Reading news needs no undo."""


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn redis-py's errors of a server that is away into ConnectionError."""
    try:
        yield
    except _GONE as gone:
        raise ConnectionError(str(gone)) from gone


_FENCED = (
    "this lease is over: the item was acknowledged or requeued, or the lease was not extended in "
    "time and the item was leased again; nothing was changed"
)
_OWN_EFFECT = {
    "ack": {scripts.IS_DONE},
    "nack": {scripts.IS_QUEUED, scripts.IS_DEAD},
    "reject": {scripts.IS_DEAD},
}
"""The states of the item after a settlement whose answer was lost."""
