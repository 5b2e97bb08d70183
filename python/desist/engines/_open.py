"""Queues by name: `WorkerPool(handler, queue="redis://...")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from desist.engines._queue import EngineQueue
from desist.engines._url import scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from desist._core import RetryPolicy
    from desist.engines._port import Engine

_REDIS = (
    "desist.engines.redis",
    "RedisEngine",
    "the package redis: pip install 'desist[redis]'",
)
_POSTGRES = (
    "desist.engines.postgres",
    "PostgresEngine",
    "the package psycopg, and libpq: pip install 'desist[postgres]' (or 'psycopg[binary]')",
)
_ENGINES = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "unix": _REDIS,
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
}


def open_queue(
    where: str | PathLike[str],
    *,
    retry: RetryPolicy | None = None,
    codec: Literal["pickle", "json"] = "pickle",
) -> EngineQueue[Any]:
    """Open the queue at this URL. It has to be closed.

    `redis://`, `rediss://`, `unix://` (Redis at a socket), `postgresql://` or `postgres://`. The
    parameters `stream`, or `queue`, and `lease_timeout` are desist's; all else means what it means
    to redis-py or libpq.

    Blocks: never. The connection is made when something is put or leased.

    Raises:
        ValueError: there is no engine for this URL.
        ImportError: the package for the engine is not installed.
    """
    if isinstance(where, str) and "://" in where:
        return EngineQueue(_engine(where), retry=retry, codec=codec)
    raise ValueError(f"{where!r} names no queue; {_ADVICE}")


def _engine(url: str) -> Engine:
    scheme = scheme_of(url)
    if scheme not in _ENGINES:
        raise ValueError(f"there is no engine for {scheme}://; {_ADVICE}")
    module, name, needs = _ENGINES[scheme]
    try:
        from_url: Callable[[str], Engine] = getattr(import_module(module), name).from_url
    except ImportError as missing:
        raise ImportError(f"a queue at {scheme}:// needs {needs} ({missing})") from missing
    return from_url(url)


_ADVICE = "redis://host:port/0?stream=jobs or postgresql://user@host/database?queue=jobs does"
