from __future__ import annotations

import itertools
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import desist
from decode_contract import EngineDecoding
from desist import WorkerPool, wait_readable
from desist.engines import EngineQueue, open_queue
from desist.engines.redis import RedisEngine
from engine_contract import LONG, Contract, lease, leased
from engine_crash import crash
from engine_model import counts
from engine_network import survive_cuts
from engine_resets import LIVES, survive_resets
from network import FAULTS
from servers import Server, redis_server
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from desist import Lease
    from desist.engines import Delivery
    from engine_contract import Engines

pytestmark = pytest.mark.timeout(300)  # the first may have to download the server

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}/0?stream=jobs{next(NUMBERS)}"


@pytest.fixture
def engines(url: str) -> Iterator[Engines]:
    opened: list[RedisEngine] = []

    def open_another(lease_timeout: float = LONG) -> RedisEngine:
        opened.append(RedisEngine.from_url(f"{url}&lease_timeout={lease_timeout}"))
        return opened[-1]

    yield open_another
    for engine in opened:
        engine.close()


class TestRedis(Contract):
    """The engine, with a server of its own."""


class TestDecoding(EngineDecoding):
    """Items of the server's, whose decoding fails, hangs or is stopped."""


def test_another_program_may_add_an_item(engines: Engines) -> None:
    engine = engines()
    assert isinstance(engine, RedisEngine)
    engine._client.xadd(engine.stream, {"body": b"1"})
    assert engine.counts() == counts(ready=1)
    first = lease(engine)
    assert (first.body, first.attempt) == (b"1", 1)
    assert engine.nack(first, 0, "no")
    again = lease(engine)
    assert (again.id, again.attempt) == (first.id, 2)
    engine.ack(again)
    assert engine.counts() == counts(done=1)


def test_nothing_is_left_behind_on_the_server(engines: Engines) -> None:
    engine = engines()
    assert isinstance(engine, RedisEngine)
    for key in ("a", "b"):
        engine.put(key, b"", key=key, delay=0)
        engine.nack(lease(engine), 0, "no")
        engine.ack(lease(engine))
    keys: Any = engine._client.keys(f"{engine.stream}*")
    left = {key.decode().partition(":")[2] for key in keys}
    acked = f"acked:{engine.consumer}:{threading.get_ident()}"
    assert left == {"", "done", "epoch", "news", acked}
    assert engine._client.ttl(f"{engine.stream}:{acked}") > 0
    assert engine._client.xlen(engine.stream) == 0


def test_a_pool_opens_a_queue_by_its_url(url: str) -> None:
    with WorkerPool[int, int](lambda lease: lease.item + 1, queue=url) as pool:
        assert pool.submit(1).result() == 2
    with open_queue(url) as queue:
        assert queue.counts() == counts(done=1)


def test_queues_of_different_streams_are_separate(url: str) -> None:
    with open_queue(url) as queue, open_queue(url + "b") as other:
        queue.put(1)
        assert other.lease(0) is None
        assert leased(queue).item == 1


def test_i33_nothing_is_lost_when_hosts_are_killed(url: str, tmp_path: Path) -> None:
    crash(url, tmp_path, items=1000, kills=50)


@pytest.mark.soak
def test_i33_nothing_is_lost_when_hosts_are_killed_all_the_time(url: str, tmp_path: Path) -> None:
    crash(url, tmp_path, items=3000, kills=500)


def test_i48_nothing_is_lost_when_the_network_is_cut(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("desist.engines.redis._ANSWER", 0.3)
    survive_cuts(server, url, items=200, seconds=[0.1, 0.5, 0.2], lease_timeout=0.9)


@pytest.mark.parametrize("fault", FAULTS)
@LIVES
@pytest.mark.timeout(3600)
def test_i48_a_connection_that_fails_once_at_any_message_loses_nothing(
    server: Server, url: str, fault: str, items: int, step: int
) -> None:
    lives = survive_resets(server, url, fault, items=items, lease_timeout=1, step=step)
    sys.stdout.write(f"{lives} lives\n")  # for `pytest -rP`
    assert lives > 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_i48_nothing_is_lost_when_the_network_is_cut_for_long(server: Server, url: str) -> None:
    survive_cuts(server, url, items=2000, seconds=[1, 2, 5, 10, 30, 60], lease_timeout=20)


def test_an_item_that_arrives_together_with_a_cancel_is_requeued(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other = engines(), engines()

    def cancelled_when_it_is_there(file: Any, timeout: float) -> bool:
        other.put("a", b"", key=None, delay=0)
        assert wait_readable(file, timeout)
        scope.cancel()
        desist.checkpoint()
        return True

    monkeypatch.setattr("desist.engines.redis.wait_readable", cancelled_when_it_is_there)
    with desist.cancel_scope() as scope:
        engine.lease(NEVER)
    assert scope.cancelled_caught
    assert engine.counts() == counts(ready=1)
    assert lease(engine).attempt == 1


# --- a server that is away ------------------------------------------------------------------------


def test_work_finished_while_the_server_was_away_is_acknowledged_later(
    server: Server, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, tried = threading.Semaphore(0), threading.Event(), threading.Event()
    attempts: list[int] = []

    def handler(lease: Lease[int]) -> int:
        attempts.append(lease.attempt)
        begun.release()
        go_on.wait()
        return lease.item

    engine = engines()
    ack = engine.ack

    def watched(delivery: Delivery) -> None:
        try:
            ack(delivery)
        except ConnectionError:
            tried.set()
            raise

    monkeypatch.setattr(engine, "ack", watched)
    with EngineQueue[int](engine) as queue, WorkerPool(handler, queue=queue, workers=2) as pool:
        futures = [pool.submit(item) for item in (1, 2)]
        begun.acquire()
        begun.acquire()
        server.stop()
        with pytest.raises(ConnectionError):
            pool.submit(3)
        go_on.set()
        assert tried.wait(NEVER)
        server.start()
        assert [future.result() for future in futures] == [1, 2]
        assert pool.submit(3).result() == 3
    assert attempts == [1, 1, 1]


def test_nothing_is_lost_when_the_server_is_away_for_ten_seconds_in_the_middle(
    server: Server, engines: Engines
) -> None:
    done: list[int] = []
    half, stopped = threading.Event(), threading.Event()

    def handler(lease: Lease[int]) -> int:
        if len(done) >= 500:
            half.set()
            assert stopped.wait(NEVER)
        done.append(lease.item)
        return lease.item

    with (
        EngineQueue[int](engines(lease_timeout=5)) as queue,
        WorkerPool(handler, queue=queue, workers=4) as pool,
    ):
        futures = [pool.submit(item) for item in range(1000)]
        assert half.wait(NEVER)
        server.stop()
        stopped.set()
        desist.sleep(10)  # the time for which the server is away: twice as long as a lease lasts
        server.start()
        assert [future.result() for future in futures] == list(range(1000))
    assert set(done) == set(range(1000))
    assert len(done) <= 1000 + 4  # at most the item that each worker had at that moment


def test_a_lease_that_runs_out_while_the_server_is_away_is_lost(
    server: Server, engines: Engines
) -> None:
    begun, attempts = threading.Semaphore(0), []
    causes: list[str | None] = []

    def handler(lease: Lease[int]) -> int:
        attempts.append(lease.attempt)
        if lease.attempt == 1:
            begun.release()
            try:
                desist.sleep_forever()
            except desist.Cancelled as cancelled:
                causes.append(cancelled.cause.reason)
                gone.set()
                raise
        return lease.item

    gone = threading.Event()
    with (
        EngineQueue[int](engines(lease_timeout=0.3)) as queue,
        WorkerPool(handler, queue=queue, workers=1) as pool,
    ):
        future = pool.submit(1)
        begun.acquire()
        server.stop()
        assert gone.wait(NEVER)
        server.start()
        assert future.result() == 1
    assert "server was away" in str(causes)
    assert attempts[:2] == [1, 2]


def test_a_pool_that_waits_while_the_server_is_away_can_be_stopped(
    server: Server, engines: Engines
) -> None:
    with EngineQueue[int](engines()) as queue:
        pool = WorkerPool(lambda lease: lease.item, queue=queue, workers=2)
        pool.submit(1).result()
        server.stop()
        try:
            pool.stop()
        finally:
            server.start()
        assert pool.workers_alive() == 0
