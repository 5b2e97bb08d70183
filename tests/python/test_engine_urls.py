"""A queue's URL: desist takes its own parameters out, and the client library reads the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from desist import WorkerPool
from desist.engines import open_queue
from desist.engines._url import take_parameters
from engine_model import counts
from servers import postgres_server, redis_server

if TYPE_CHECKING:
    from pathlib import Path

OWN = "queue=my%20jobs&lease_timeout=7.5"


def postgres(url: str) -> Any:
    pytest.importorskip("psycopg", reason="psycopg does not work here")
    from desist.engines.postgres import PostgresEngine

    return PostgresEngine.from_url(url)


def redis(url: str) -> Any:
    from desist.engines.redis import RedisEngine

    return RedisEngine.from_url(url)


REST = [
    "postgresql://",
    "postgres:///jobs",
    "postgresql:///jobs?host=/var/run/postgresql",
    "postgresql:///jobs?host=%2Fvar%2Frun",
    "postgresql://%2Fvar%2Frun%2Fpostgresql/jobs",
    "postgresql://user@%2Fsocket:5433/jobs",
    "postgresql://host/jobs?options=-c%20search_path%3Da%2Cb%20-c%20geqo%3Doff",
    "postgresql://host/jobs?options=-c+x",
    "postgresql://us%40er:p%2Fa%3Fs%20s%25@host:5433/my%20jobs?sslmode=require",
    "postgresql://user:a?b@host/jobs?sslmode=disable",
    "postgresql://[2001:db8::1]:5433/jobs",
    "postgresql://one:1,two:2,[::3]:3/jobs?target_session_attrs=read-write",
    "postgresql://one,two/jobs?hostaddr=127.0.0.1,127.0.0.2",
    "postgresql:///?service=mine&passfile=/tmp/p",
    "postgresql://host/jobs?application_name=a%26b%3Dc&sslcert=/a%20b.crt",
]


@pytest.mark.parametrize("url", REST)
def test_libpq_reads_the_rest_of_the_url_as_it_is(url: str) -> None:
    psycopg = pytest.importorskip("psycopg", reason="psycopg does not work here")
    read = psycopg.conninfo.conninfo_to_dict(url)
    mark = "&" if "?" in url.rpartition("@")[2] else "?"
    for with_own in (url + mark + OWN, _first(url, mark)):
        engine = postgres(with_own)
        assert (engine.queue, engine.lease_timeout) == ("my jobs", 7.5)
        usual = {"connect_timeout": 5, "tcp_user_timeout": 5000}
        assert engine._options == usual | read
    engine = postgres(url)
    assert (engine.queue, engine.lease_timeout) == ("desist", 30)


def _first(url: str, mark: str) -> str:
    """Put desist's parameters in front of the others."""
    if mark == "?":
        return f"{url}?{OWN}"
    begin, _, query = url.rpartition("?")
    return f"{begin}?{OWN}&{query}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {}),
        ("redis://host:1/3", {"host": "host", "port": 1, "db": 3}),
        ("redis://[::1]:1", {"host": "::1", "port": 1}),
        ("redis://host?db=2&client_name=a%20b%2Bc", {"db": 2, "client_name": "a b+c"}),
        ("redis://us%40er:p%2Fs%3Fs@host", {"username": "us@er", "password": "p/s?s"}),
        ("redis://:p%25@host", {"password": "p%"}),
        ("unix:///run/my%20redis.sock", {"path": "/run/my redis.sock"}),
        ("unix://user:p%40ss@/run/redis.sock?db=4", {"path": "/run/redis.sock", "db": 4}),
        ("rediss://host?ssl_cert_reqs=none", {"host": "host", "ssl_cert_reqs": "none"}),
    ],
)
def test_redis_reads_the_rest_of_the_url_as_it_is(url: str, expected: dict[str, Any]) -> None:
    mark = "&" if "?" in url else "?"
    engine = redis(f"{url}{mark}stream=my%20jobs&lease_timeout=7.5")
    assert (engine.stream, engine.lease_timeout) == ("my jobs", 7.5)
    options = engine._client.connection_pool.connection_kwargs
    assert {name: options.get(name) for name in expected} == expected
    assert not {"stream", "lease_timeout"} & set(options)
    with open_queue(f"{url}{mark}stream=jobs"):
        pass


@pytest.mark.parametrize("make", [postgres, redis])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("lease_timeout=soon", "must be a number of seconds, not 'soon'"),
        ("lease_timeout=0", "positive and finite, but is 0"),
        ("lease_timeout=-1", "positive and finite, but is -1"),
        ("lease_timeout=nan", "positive and finite, but is nan"),
        ("lease_timeout=inf", "positive and finite, but is inf"),
        ("lease_timeout=", "lease_timeout of a queue's URL is given once, with a value"),
        ("lease_timeout=1&lease_timeout=2", "is given once"),
    ],
)
def test_an_invalid_parameter_is_refused(make: Any, query: str, message: str) -> None:
    scheme = "postgresql" if make is postgres else "redis"
    with pytest.raises(ValueError, match=message):
        make(f"{scheme}://host/0?{query}")


def test_a_url_that_libpq_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match='libpq takes: invalid URI query parameter: "stream"'):
        postgres("postgresql://host/jobs?stream=x")
    with pytest.raises(ValueError, match="libpq takes: invalid percent-encoded token"):
        postgres("postgresql://host/jo%zzbs")


@pytest.mark.parametrize("url", ["mysql://host/jobs", "://", "http://host", "REDIS://host"])
def test_a_url_without_an_engine_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"there is no engine for .*://; redis://"):
        open_queue(url)


def test_the_rest_of_a_url_is_not_changed() -> None:
    for rest in ("a://b", "a://b?c", "a://b?c=d&&e=%zz", "a://u?q=1@b?c=+&d"):
        mark = "&" if "?" in rest.rpartition("@")[2] else "?"
        assert take_parameters(f"{rest}{mark}own=1%2B+", "own") == (rest, {"own": "1++"})
        assert take_parameters(rest, "own") == (rest, {})


# --- sockets --------------------------------------------------------------------------------------


@pytest.mark.timeout(300)  # it may have to download the server
def test_a_pool_works_at_a_socket_of_postgres(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg does not work here")
    with postgres_server(tmp_path) as server:
        folder, port = server.sockets, server.port
        quoted = str(folder).replace("/", "%2F")
        for url in (
            f"postgresql://postgres@/postgres?host={folder}&port={port}&queue=one",
            f"postgresql://postgres@{quoted}:{port}/postgres?queue=two&options=-c%20geqo%3Doff",
        ):
            _works_at(url)


@pytest.mark.timeout(300)  # it may have to download the server
def test_a_pool_works_at_a_socket_of_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        _works_at(f"unix://{server.sockets}/redis.sock?db=1&stream=jobs")


def _works_at(url: str) -> None:
    with WorkerPool[int, int](lambda lease: lease.item + 1, queue=url) as pool:
        assert pool.submit(1).result() == 2
    with open_queue(url) as queue:
        assert queue.counts() == counts(done=1)
