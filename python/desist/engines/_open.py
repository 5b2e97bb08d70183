"""Queues by name: `WorkerPool(handler, queue="redis://...")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from desist.engines._queue import EngineQueue

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
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
}


def open_queue(
    where: str | PathLike[str],
    *,
    retry: RetryPolicy | None = None,
    codec: Literal["pickle", "json"] = "pickle",
) -> EngineQueue[Any]:
    """The queue that is kept there, which has to be closed: `redis://...` or `postgresql://...`.

    Never blocks; the server is asked for when something is put or leased. ValueError: nothing is
    known to be kept there. ImportError: the package that speaks to the server is not installed.
    """
    if isinstance(where, str) and "://" in where:
        return EngineQueue(_engine(where), retry=retry, codec=codec)
    raise ValueError(f"{where!r} names no queue; {_ADVICE}")


def _engine(url: str) -> Engine:
    scheme = urlsplit(url).scheme
    if scheme not in _ENGINES:
        raise ValueError(f"nothing keeps queues at {scheme}://; {_ADVICE}")
    module, name, needs = _ENGINES[scheme]
    try:
        from_url: Callable[[str], Engine] = getattr(import_module(module), name).from_url
    except ImportError as missing:
        raise ImportError(f"a queue at {scheme}:// needs {needs} ({missing})") from missing
    return from_url(url)


_ADVICE = "redis://host:port/0?stream=jobs or postgresql://user@host/database?queue=jobs does"
