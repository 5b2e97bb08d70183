"""A table in PostgreSQL, through psycopg 3 (`pip install desist[postgres]`).

The table is `desist_items`: a row for each item that is not done. A lease is a row's `epoch`, and
`due`, when it runs out; the next lease of the item has a new epoch, and that is the fence. A lease
is one UPDATE of a row that is not locked (SKIP LOCKED); waiters are woken by NOTIFY. All times are
the server's.

Other programs may read, join and fill the table; `put` shows how.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from desist._core import call_masked, current_time, wait_readable
from desist._exceptions import Fenced
from desist._items import ItemInfo, this_holder
from desist.engines._port import DeadItem, Delivery, Engine
from desist.engines._url import check_lease_timeout, lease_timeout_of, take_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from desist._items import _State

_T = TypeVar("_T")

_ANSWER = 5.0
"""Seconds within which a reachable server answers."""

_TABLES = """
SELECT pg_advisory_xact_lock(7234021);
CREATE SEQUENCE IF NOT EXISTS desist_epoch;
CREATE TABLE IF NOT EXISTS desist_items (
    queue text NOT NULL, id text NOT NULL, key text, number bigserial,
    state text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'leased', 'dead')),
    due timestamptz NOT NULL DEFAULT now(), attempt integer NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0, body bytea NOT NULL, progress bytea,
    failures text[] NOT NULL DEFAULT '{}', unwanted text,
    holder text, put_at timestamptz DEFAULT now(), time_limit double precision,
    PRIMARY KEY (queue, id), UNIQUE (queue, key));
DO $$ BEGIN -- a table of an older version; only then, since it waits for all transactions
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'desist_items'::regclass
                   AND attname = 'holder' AND NOT attisdropped) THEN
        ALTER TABLE desist_items ADD COLUMN holder text, ADD COLUMN put_at timestamptz,
            ADD COLUMN time_limit double precision;
        ALTER TABLE desist_items ALTER COLUMN put_at SET DEFAULT now();
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS desist_next ON desist_items (queue, due, number) WHERE state <> 'dead';
CREATE TABLE IF NOT EXISTS desist_done (
    queue text, backend integer, done bigint NOT NULL, epoch bigint, PRIMARY KEY (queue, backend));
DO $$ BEGIN -- likewise
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'desist_done'::regclass
                   AND attname = 'epoch' AND NOT attisdropped) THEN
        ALTER TABLE desist_done ADD COLUMN epoch bigint;
    END IF;
END $$;
"""

_MINE = "queue = %(queue)s AND id = %(id)s AND epoch = %(epoch)s AND state = 'leased'"
_LOST = "its worker was lost: the lease was not extended in time"
_SQL = {
    # A delayed or leased item is not due yet.
    "lease": f"""
        UPDATE desist_items AS item SET
            attempt = item.attempt + 1, epoch = nextval('desist_epoch'), state = 'leased',
            failures = CASE item.state WHEN 'leased' THEN item.failures || '{_LOST}'::text
                                       ELSE item.failures END,
            due = now() + make_interval(secs => %(lease_timeout)s), holder = %(holder)s
        FROM (SELECT queue, id FROM desist_items
              WHERE queue = %(queue)s AND state <> 'dead' AND due <= now() AND unwanted IS NULL
              ORDER BY due, number LIMIT 1 FOR UPDATE SKIP LOCKED) AS next
        WHERE item.queue = next.queue AND item.id = next.id
        RETURNING item.id, item.epoch, item.attempt, item.body, item.progress, item.key,
            item.time_limit""",
    "next_due": """
        SELECT extract(epoch FROM min(due) - now())::float FROM desist_items
        WHERE queue = %(queue)s AND state <> 'dead'""",
    "put": """
        INSERT INTO desist_items (queue, id, key, body, time_limit, due)
        VALUES (%(queue)s, %(id)s, %(key)s, %(body)s, %(time_limit)s,
            now() + make_interval(secs => %(delay)s))
        ON CONFLICT DO NOTHING RETURNING id, pg_notify('desist', '')""",
    "known": """
        SELECT id FROM desist_items WHERE queue = %(queue)s AND (id = %(id)s OR key = %(key)s)
        ORDER BY key = %(key)s DESC NULLS LAST LIMIT 1""",
    # Each connection has a row of its own for the count, so that none waits for another. The row
    # keeps the lease of the last ack, whose answer may be lost together with the connection.
    "ack": f"""
        WITH gone AS (DELETE FROM desist_items WHERE {_MINE} RETURNING queue, epoch)
        INSERT INTO desist_done (queue, backend, done, epoch)
            SELECT queue, pg_backend_pid(), 1, epoch FROM gone
        ON CONFLICT (queue, backend) DO UPDATE SET
            done = desist_done.done + 1, epoch = excluded.epoch
        RETURNING 'done'""",
    "nack": f"""
        UPDATE desist_items SET
            state = CASE WHEN unwanted IS NULL THEN 'ready' ELSE 'dead' END,
            attempt = attempt - CASE WHEN %(failure)s::text IS NULL THEN 1 ELSE 0 END,
            failures = failures || array_remove(ARRAY[%(failure)s::text, unwanted], NULL),
            due = now() + make_interval(secs => %(delay)s)
        WHERE {_MINE} RETURNING state, pg_notify('desist', '')""",
    "reject": f"""
        UPDATE desist_items SET state = 'dead', failures = failures || %(failure)s::text
        WHERE {_MINE} RETURNING state""",
    "state": """
        SELECT 'done' FROM desist_done WHERE queue = %(queue)s AND epoch = %(epoch)s
        UNION ALL
        SELECT state FROM desist_items WHERE queue = %(queue)s AND id = %(id)s""",
    "extend": f"""
        UPDATE desist_items SET due = now() + make_interval(secs => %(lease_timeout)s),
            progress = coalesce(%(progress)s, progress)
        WHERE {_MINE} RETURNING id""",
    "counts": """
        SELECT count(*) FILTER (WHERE state <> 'dead' AND due <= now()),
            count(*) FILTER (WHERE state = 'leased' AND due > now()),
            count(*) FILTER (WHERE state = 'ready' AND due > now()),
            (SELECT coalesce(sum(done), 0)::bigint FROM desist_done WHERE queue = %(queue)s),
            count(*) FILTER (WHERE state = 'dead')
        FROM desist_items WHERE queue = %(queue)s""",
    "notify_if_drained": """
        SELECT pg_notify('desist', '') WHERE NOT EXISTS (
            SELECT FROM desist_items WHERE queue = %(queue)s AND state <> 'dead')""",
    "dead_letter_unwanted": f"""
        UPDATE desist_items SET state = 'dead', failures = failures || ARRAY['{_LOST}', unwanted]
        WHERE queue = %(queue)s AND state = 'leased' AND due <= now() AND unwanted IS NOT NULL""",
    # As "counts" has them: a lease that has run out is ready again.
    "items": """
        SELECT id, shown, attempt, extract(epoch FROM now() - put_at)::float,
            CASE shown WHEN 'leased' THEN holder END, key
        FROM desist_items CROSS JOIN LATERAL (SELECT CASE
            WHEN state = 'dead' THEN 'dead' WHEN due <= now() THEN 'ready'
            WHEN state = 'leased' THEN 'leased' ELSE 'delayed' END) AS as_is (shown)
        WHERE queue = %(queue)s AND (%(state)s::text IS NULL OR shown = %(state)s)
        ORDER BY array_position(ARRAY['leased', 'ready', 'delayed', 'dead'], shown), number
        LIMIT %(limit)s""",
    "dead": """
        SELECT id, body, failures FROM desist_items
        WHERE queue = %(queue)s AND state = 'dead' ORDER BY number""",
    "retry": """
        UPDATE desist_items SET state = 'ready', due = now(), attempt = 0, failures = '{}',
            unwanted = NULL
        WHERE queue = %(queue)s AND id = %(id)s AND state = 'dead'
        RETURNING pg_notify('desist', '')""",
    "cancel": """
        UPDATE desist_items SET
            state = CASE WHEN state = 'leased' AND due > now() THEN 'leased' ELSE 'dead' END,
            unwanted = %(failure)s,
            failures = CASE WHEN state = 'leased' AND due > now() THEN failures
                            ELSE failures || %(failure)s::text END
        WHERE queue = %(queue)s AND id = %(id)s AND state <> 'dead' RETURNING state""",
}

_OWN_EFFECT = {"ack": ("done",), "nack": ("ready", "dead"), "reject": ("dead",)}
"""The state in which a settlement whose answer was lost leaves an item."""


class PostgresEngine(Engine):
    """Items in a table of PostgreSQL.

    postgresql://user@host/database?queue=jobs&lease_timeout=30. All else is libpq's, as it is:
    other parameters (sslmode, service, options), several hosts, and sockets, as
    postgresql:///database?host=/var/run/postgresql&queue=jobs.
    """

    def __init__(self, url: str, *, queue: str = "desist", lease_timeout: float = 30.0) -> None:
        """Set up the engine; connections and tables are made when they are needed."""
        check_lease_timeout(lease_timeout)
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError as invalid:
            raise ValueError(f"not a URL that libpq takes: {str(invalid).strip()}") from None
        self.lease_timeout = lease_timeout
        self.queue = queue
        self.name: str = queue
        self._options: dict[str, Any] = {
            "connect_timeout": 5,
            "tcp_user_timeout": 5000,
            **given,
        }
        self._idle: list[_Connection] = []
        self._closed = False
        self._has_tables = False
        # Settlements, and the epochs of their leases, that may or may not have arrived.
        self._in_doubt: set[tuple[str, int]] = set()

    @classmethod
    def from_url(cls, url: str) -> PostgresEngine:
        """Make an engine from the URL that the class describes."""
        rest, own = take_parameters(url, "queue", "lease_timeout")
        queue = own.get("queue", "desist")
        return cls(rest, queue=queue, lease_timeout=lease_timeout_of(own))

    def put(
        self,
        item_id: str,
        body: bytes,
        *,
        key: str | None,
        delay: float,
        time_limit: float | None = None,
    ) -> str:
        """One round trip, if the item is new."""
        values = {
            "id": item_id,
            "body": body,
            "key": key,
            "delay": delay,
            "time_limit": time_limit,
        }
        while True:  # the conflicting item may have gone before "known" finds it
            row = self._run("put", values) or self._run("known", values)
            if row:
                return str(row[0])

    def lease(self, timeout: float) -> Delivery | None:
        """One round trip if an item is ready; else some more, and a wait."""
        values = {"holder": this_holder()}
        row = call_masked(self._run, "lease", values)
        if row is None and timeout > 0:
            row = self._listen(timeout, partial(self._lease_next, values))
        if row is None:
            return None
        item_id, epoch, attempt, body, progress, key, limit = row
        return Delivery(item_id, epoch, attempt, body, progress, None, key, limit)

    def _lease_next(self, values: dict[str, Any], connection: _Connection) -> Any:
        # A cancelled item whose worker was lost would be due, and never leased.
        self._execute(connection, "dead_letter_unwanted")
        return self._execute(connection, "lease", values)

    def ack(self, delivery: Delivery) -> None:
        """Two round trips."""
        self._settle("ack", delivery)
        self._notify_if_drained()

    def nack(self, delivery: Delivery, delay: float, failure: str | None) -> bool:
        """One round trip."""
        return bool(self._settle("nack", delivery, failure=failure, delay=delay) != "dead")

    def reject(self, delivery: Delivery, failure: str) -> None:
        """Two round trips."""
        self._settle("reject", delivery, failure=failure)
        self._notify_if_drained()

    def _settle(self, name: str, delivery: Delivery, **values: Any) -> Any:
        values |= {"id": delivery.id, "epoch": delivery.epoch}
        if values.get("failure") is not None:
            values["failure"] = values["failure"].replace("\0", "\\0")
        settlement = (name, delivery.epoch)
        in_doubt = settlement in self._in_doubt
        try:
            row = self._run(name, values)
            if row is None and in_doubt:
                row = self._run("state", values)
                row = row if row and row[0] in _OWN_EFFECT[name] else None
        except BaseException:
            self._in_doubt.add(settlement)
            raise
        self._in_doubt.discard(settlement)
        if row is None:
            raise Fenced(_FENCED)
        return row[0]

    def _notify_if_drained(self) -> None:
        with suppress(ConnectionError):  # a drain checks again periodically
            self._run("notify_if_drained")

    def extend(self, delivery: Delivery, progress: bytes | None) -> None:
        """One round trip."""
        values = {"id": delivery.id, "epoch": delivery.epoch, "progress": progress}
        if self._run("extend", values) is None:
            raise Fenced(_FENCED)

    def counts(self) -> dict[str, int]:
        """One round trip."""
        states = ("ready", "leased", "delayed", "done", "dead")
        return dict(zip(states, self._run("counts"), strict=True))

    def tend(self, timeout: float) -> None:
        """Dead-letter cancelled items whose worker was lost. Returns at a notification."""
        looks = iter([None])

        def look(connection: _Connection) -> bool | None:
            self._execute(connection, "dead_letter_unwanted")
            return next(looks, True)

        self._listen(timeout, look)

    def list_items(self, state: _State | None, limit: int | None) -> list[ItemInfo]:
        """One round trip."""
        return [ItemInfo(*row) for row in self._rows("items", state=state, limit=limit)]

    def dead(self) -> list[DeadItem]:
        """One round trip."""
        return [DeadItem(*row) for row in self._rows("dead")]

    def _rows(self, name: str, **values: Any) -> list[Any]:
        with self._connection() as connection:
            return connection.execute(_SQL[name], {"queue": self.queue} | values).fetchall()

    def retry(self, item_id: str) -> bool:
        """One round trip."""
        return self._run("retry", {"id": item_id}) is not None

    def cancel(self, item_id: str, failure: str) -> bool | None:
        """One round trip."""
        row = self._run("cancel", {"id": item_id, "failure": failure})
        return None if row is None else bool(row[0] == "dead")

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def __repr__(self) -> str:
        return f"<PostgresEngine {self.queue}>"

    def _listen(self, timeout: float, look: Callable[[_Connection], _T | None]) -> _T | None:
        """Call `look()` at every notification and due time, until it finds something."""
        end = current_time() + timeout
        news: list[Any] = []
        with self._connection() as connection:
            connection.add_notify_handler(news.append)
            try:
                call_masked(connection.execute, "LISTEN desist")
                while True:
                    news.clear()
                    found = call_masked(look, connection)
                    left = end - current_time()
                    if found is not None or left <= 0:
                        return found
                    [due] = call_masked(self._execute, connection, "next_due")
                    left = left if due is None else min(left, max(due, 0))
                    # A notification that came with an answer has been read already.
                    if not news:
                        wait_readable(connection.fileno(), left)
            finally:
                call_masked(_stop_listening, connection, news.append)

    def _run(self, name: str, values: dict[str, Any] | None = None) -> Any:
        with self._connection() as connection:
            return self._execute(connection, name, values)

    def _execute(
        self, connection: _Connection, name: str, values: dict[str, Any] | None = None
    ) -> Any:
        always = {"queue": self.queue, "lease_timeout": self.lease_timeout}
        cursor = connection.execute(_SQL[name], always | (values or {}))
        return cursor.fetchone() if cursor.description else None

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """Borrow a connection. The errors of a server that is away become ConnectionError."""
        connection: _Connection | None = None
        try:
            connection = call_masked(self._borrow)
            yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as gone:
            raise ConnectionError(str(gone)) from gone
        finally:
            if connection is not None:
                call_masked(self._return, connection)

    def _return(self, connection: _Connection) -> None:
        usable = connection.info.transaction_status == TransactionStatus.IDLE
        if usable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def _borrow(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        connection = _Connection.connect(**self._options, autocommit=True)
        if not self._has_tables:
            connection.execute(_TABLES)
            self._has_tables = True
        return connection


class _Connection(psycopg.Connection[Any]):
    """A connection that fails when the server does not answer, for example across a cut network."""

    def wait(self, gen: Generator[Any, Any, _T], *args: Any, **kwargs: Any) -> _T:
        """As of psycopg, which asks the generator ten times in a second."""
        return super().wait(_answered_in_time(gen), *args, **kwargs)


def _answered_in_time(gen: Generator[Any, Any, _T]) -> Generator[Any, Any, _T]:
    end = current_time() + _ANSWER
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                end = current_time() + _ANSWER
            elif current_time() >= end:
                raise psycopg.OperationalError("the server did not answer in time")
            wanted = gen.send(ready)
    except StopIteration as over:
        result: _T = over.value
        return result


def _stop_listening(connection: _Connection, handler: Callable[[Any], None]) -> None:
    connection.remove_notify_handler(handler)
    try:
        connection.execute("UNLISTEN desist")
    except psycopg.Error:
        connection.close()


_FENCED = (
    "this lease is over: the item was acknowledged or requeued, or the lease was not extended in "
    "time and the item was leased again; nothing was changed"
)
