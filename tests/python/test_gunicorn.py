from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import desist

pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytest.importorskip("requests", reason="requests is not installed")

from desist.gunicorn import ThreadWorker, _Requests
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not desist.foreign_status().available,
    reason=f"calls cannot be ended here: {desist.foreign_status().reason}",
)

SHOP = """
import os
import requests

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        requests.get(os.environ["SILENT"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return stream() if path == "/stream" else [b"%d" % os.getpid()]

def stream():
    yield b"begun"
    requests.get(os.environ["SILENT"])
"""


class Site:
    """A gunicorn with one worker of two threads, and a server that never answers behind it."""

    def __init__(self, process: subprocess.Popen[str], silent: socket.socket) -> None:
        assert process.stderr is not None
        self.process = process
        self.silent = silent
        self.log: list[str] = []
        for line in process.stderr:
            self.log.append(line)
            if found := re.search(r"Listening at: http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            pytest.fail("".join(self.log))
        # It reads until the process has ended, so that gunicorn never waits for the pipe.
        self.reader = threading.Thread(target=self.log.extend, args=(process.stderr,))
        self.reader.start()

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.reader.join()


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Site]:
    """Serve the shop, and stop the server at the end of the block."""
    (folder / "shop.py").write_text(SHOP)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        command = [sys.executable, "-m", "gunicorn", "-k", "desist.gunicorn.ThreadWorker"]
        command += ["--threads=2", "--graceful-timeout=1", "--bind=127.0.0.1:0"]
        command += [*options, f"--chdir={folder}", "shop:app"]
        environment = os.environ | {
            "SILENT": f"http://127.0.0.1:{silent.getsockname()[1]}/",
            "HOME": str(folder),  # for a socket of gunicorn's own
        }
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            site = Site(process, silent)
            try:
                yield site
            finally:
                site.stop()


def test_requests_that_hang_have_their_answer_in_time_and_the_worker_lives(tmp_path: Path) -> None:
    with served(tmp_path, "--timeout=2") as site, ThreadPoolExecutor(10) as clients:
        before = site.get("/")
        begun = desist.current_time()
        answers = list(clients.map(site.get, ["/slow"] * 10))
        seconds = desist.current_time() - begun
        assert answers == [(503, "Service Unavailable")] * 10
        assert 2 <= seconds < 10  # without the time in the queue it would be 10
        with pytest.raises(http.client.IncompleteRead) as cut_off:
            site.get("/stream")
        assert cut_off.value.partial == b"begun"
        assert site.get("/") == before
    assert "DeadlineExceeded" in "".join(site.log)


@pytest.mark.parametrize("how", ["SIGTERM", "max_requests"])
def test_requests_that_hang_when_the_worker_stops_are_answered(tmp_path: Path, how: str) -> None:
    options = ["--max-requests=1"] if how == "max_requests" else []
    with served(tmp_path, *options) as site, ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(site.get, "/slow") for _ in range(2)]
        with site.silent.accept()[0], site.silent.accept()[0]:  # both hang
            if how == "SIGTERM":
                site.process.send_signal(signal.SIGTERM)
            for answer in answers:
                assert answer.result() == (503, "Service Unavailable")


def test_only_the_request_that_waited_in_the_queue_has_less_time_left() -> None:
    deadlines: list[float] = []

    def app(*_: Any) -> list[bytes]:
        deadlines.append(desist.current_effective_deadline())
        return []

    requests = _Requests(app, timeout=NEVER)
    requests.waiting.seconds = 100
    before = desist.current_time()
    for _ in range(2):
        requests({}, app)  # type: ignore[arg-type]
    assert NEVER - 100 <= deadlines[0] - before < NEVER <= deadlines[1] - before


def test_the_main_loop_is_quick_enough_for_a_short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        "gunicorn.workers.gthread.ThreadWorker.wait_for_and_dispatch_events",
        lambda _, timeout: waits.append(timeout),
    )
    worker: Any = ThreadWorker.__new__(ThreadWorker)
    for half in (0, 0.5, 15):
        worker.timeout = half  # half of the limit, as gunicorn sets it
        worker.wait_for_and_dispatch_events(1.0)
    assert waits == [1.0, 0.5, 1.0]
