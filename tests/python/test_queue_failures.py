"""Which exceptions of a queue end its pool, whether a worker or drain() meets them first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from desist import FileQueue, PoolFailed, QueueFileError, WorkerPool
from desist.engines import EngineQueue, open_queue
from servers import postgres_server, redis_server
from support import NEVER, Deaf, ends_with_a_cancel, ends_with_a_kill, in_its_wait, queue_of
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from desist import Lease
    from servers import Server

pytestmark = pytest.mark.timeout(300)  # the first may have to download the servers

STORES = ["file", "dict", "redis", "postgres"]
ENGINES = STORES[1:]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("psycopg", exc_type=ImportError)
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def opened(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Any]:
    if kind in ("memory", "file"):
        yield queue_of(kind, tmp_path)
        return
    if kind == "dict":
        queue = EngineQueue[Any](DictEngine())
    else:
        port, name = request.getfixturevalue(kind).port, request.node.name
        name = "".join(one for one in name if one.isalnum())
        queue = open_queue(
            f"redis://127.0.0.1:{port}/0?stream={name}"
            if kind == "redis"
            else f"postgresql://postgres@127.0.0.1:{port}/postgres?queue={name}"
        )
    with queue:
        yield queue


@pytest.fixture
def break_at(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., type[Exception]]:
    """Let the queue fail from now on: a file as a whole, an engine at one of its calls."""

    def break_it(call: str) -> type[Exception]:
        def fail(*_: object) -> None:
            raise ZeroDivisionError(call)

        if isinstance(opened, FileQueue):
            (tmp_path / "jobs.db").unlink()
            return QueueFileError
        monkeypatch.setattr(opened.engine, call, fail)
        return ZeroDivisionError

    return break_it


def has_failed(pool: WorkerPool[Any, Any], failure: type[Exception]) -> None:
    for call in (pool.drain, lambda: pool.drain(0), lambda: pool.submit("b")):
        with pytest.raises(PoolFailed) as raised:
            call()
        assert type(raised.value.__cause__) is failure
    pool.stop()


@pytest.mark.parametrize("kind", STORES)
def test_a_failure_of_the_queue_that_drain_meets_first_ends_the_pool(
    opened: Any, break_at: Callable[..., type[Exception]]
) -> None:
    handler = Deaf()
    pool = WorkerPool(handler, queue=opened, workers=1)
    pool.submit("a")
    handler.begun.acquire()  # no worker looks at the queue now
    failure = break_at("counts")
    with pytest.raises(PoolFailed) as raised:
        pool.drain()
    assert type(raised.value.__cause__) is failure
    handler.go_on.set()
    has_failed(pool, failure)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("call", ["ack", "lease"])
def test_a_failure_of_the_queue_that_a_worker_meets_first_ends_the_pool(
    opened: Any, break_at: Callable[..., type[Exception]], call: str
) -> None:
    handler = Deaf()
    pool = WorkerPool(handler, queue=opened, workers=1)
    pool.submit("a")
    next_one = pool.submit("b")
    handler.begun.acquire()
    failure = break_at(call)
    handler.go_on.set()
    with pytest.raises(PoolFailed) as raised:
        next_one.result(NEVER)
    assert type(raised.value.__cause__) is failure
    has_failed(pool, failure)


def ends_with_a_key_error(wait: Callable[[], object]) -> None:
    with in_its_wait(wait) as victim:
        victim.raise_exc(KeyError)
    assert isinstance(victim.raised, KeyError)
    victim.raised = None


@pytest.mark.parametrize("kind", ["memory", *STORES])
@pytest.mark.parametrize("stops", [ends_with_a_cancel, ends_with_a_kill, ends_with_a_key_error])
def test_an_exception_that_stops_the_caller_of_drain_does_not_end_the_pool(
    opened: Any, stops: Callable[[Callable[[], object]], None]
) -> None:
    handler = Deaf()
    with WorkerPool(handler, queue=opened, workers=1) as pool:
        pool.submit("a")
        handler.begun.acquire()
        stops(pool.drain)
        pool.submit("b")
        handler.go_on.set()
        assert pool.drain(NEVER)
        assert opened.counts()["done"] == 2


@pytest.mark.parametrize("kind", ENGINES)
def test_a_server_that_is_away_until_drain_gives_up_does_not_end_the_pool(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise ConnectionError("away")

    def handler(lease: Lease[str]) -> str:
        return lease.item

    with WorkerPool(handler, queue=opened, workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(opened.engine, "counts", away)
            with pytest.raises(ConnectionError):
                pool.drain(0.06)  # longer than the pause before the second try
        assert pool.submit("a").result(NEVER) == "a"
