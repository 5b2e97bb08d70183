from __future__ import annotations

import itertools
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from decode_contract import EngineDecoding
from desist import WorkerPool
from desist.engines import EngineQueue, open_queue
from engine_contract import LONG, Contract
from engine_crash import crash
from engine_model import counts
from engine_network import survive_cuts
from engine_resets import LIVES, survive_resets
from network import FAULTS
from servers import Server, postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from desist.engines import Engine
    from engine_contract import Engines

pytestmark = pytest.mark.timeout(300)  # the first may have to download the server

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        import psycopg  # noqa: F401
    except ImportError as missing:
        pytest.skip(f"psycopg does not work here: {missing}")
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return f"postgresql://postgres@127.0.0.1:{server.port}/postgres?queue=jobs{next(NUMBERS)}"


@pytest.fixture
def engines(url: str) -> Iterator[Engines]:
    from desist.engines.postgres import PostgresEngine

    opened: list[Engine] = []

    def open_another(lease_timeout: float = LONG) -> Engine:
        opened.append(PostgresEngine.from_url(f"{url}&lease_timeout={lease_timeout}"))
        return opened[-1]

    yield open_another
    for engine in opened:
        engine.close()


class TestPostgres(Contract):
    """The engine, with a server of its own."""


class TestDecoding(EngineDecoding):
    """Items of the server's, whose decoding fails, hangs or is stopped."""


def test_a_pool_opens_a_queue_by_its_url(url: str) -> None:
    with WorkerPool[int, int](lambda lease: lease.item + 1, queue=url) as pool:
        assert pool.submit(1).result() == 2
    with open_queue(url) as queue:
        assert queue.counts() == counts(done=1)


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_i33_nothing_is_lost_when_hosts_are_killed(url: str, tmp_path: Path, kills: int) -> None:
    crash(url, tmp_path, items=15 * kills, kills=kills)


def test_i48_nothing_is_lost_when_the_network_is_cut(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("desist.engines.postgres._ANSWER", 0.3)
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


def test_a_pool_continues_after_the_server_was_away(server: Server, engines: Engines) -> None:
    with (
        EngineQueue[int](engines()) as queue,
        WorkerPool(lambda lease: lease.item, queue=queue, workers=2) as pool,
    ):
        assert pool.submit(1).result() == 1
        server.stop(signal.SIGINT)
        with pytest.raises(ConnectionError):
            pool.submit(2)
        server.start()
        assert pool.submit(2).result() == 2
