"""Real servers for tests: find the program of each, and run a private instance.

A program is taken from PATH (or from Debian's own folder), else from a Debian package, which is
unpacked into target/servers without being installed. Without either, the test is skipped.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CACHE = Path(__file__).parents[2] / "target" / "servers"
SOON = 20.0
"""Seconds within which a server has started, or stopped."""


class Program:
    """An executable, and the environment it needs."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        libraries = [] if root is None else sorted({str(p.parent) for p in root.rglob("*.so*")})
        self.environment = os.environ | ({"LD_LIBRARY_PATH": ":".join(libraries)} if root else {})


def find_program(name: str, package: str, hidden: str = "") -> Program:
    """Find an executable, or skip the test.

    `hidden`: a pattern below the root folder for a place that is not on PATH.
    """
    if found := shutil.which(name):
        return Program(Path(found))
    for place in sorted(Path("/").glob(hidden or f"usr/sbin/{name}")):
        return Program(place)
    root = _unpacked(package)
    for place in sorted(root.rglob(f"bin/{name}")):
        if os.access(place, os.X_OK):
            return Program(place, root)
    pytest.skip(f"{package} has no {name}")


def _unpacked(package: str) -> Path:
    root = CACHE / package
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of other interpreters may run at once
        if not root.is_dir():
            if not (shutil.which("apt-get") and shutil.which("dpkg")):
                pytest.skip(f"there is no {package} here, nor apt-get to get it with")
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _unpack(package, Path(scratch))
                (Path(scratch) / "root").rename(root)
    return root


def _unpack(package: str, scratch: Path) -> None:
    """Unpack a package with its missing dependencies, without root rights."""
    archives, lists = scratch / "archives", scratch / "lists"
    for folder in (archives, lists):
        (folder / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::Cache={scratch}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
    get = ["apt-get", "-y", "-qq", "--no-install-recommends", "--download-only", *own]
    tries: list[list[list[str]]] = [
        [[*get, "install", package]],
        [
            ["apt-get", "-qq", *own, "-o", f"Dir::State::lists={lists}", "update"],
            [*get, "-o", f"Dir::State::lists={lists}", "install", package],
        ],
    ]
    why = ""
    for commands in tries:
        for command in commands:
            run = subprocess.run(command, check=False, capture_output=True, text=True)
            why = run.stderr.strip().rpartition("\n")[2]
        debs = sorted(archives.glob("*.deb"))
        if debs:
            for deb in debs:
                subprocess.run(["dpkg", "-x", deb, scratch / "root"], check=True)
            return
    pytest.skip(f"there is no {package} here, and apt-get cannot get it: {why}")


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


_LIBC = ctypes.CDLL(None)


def _die_with_the_test() -> None:
    """End the server with the test process, which may be killed without any clean-up."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """A process that runs when its port answers; it can be stopped and started again."""

    def __init__(
        self,
        command: Sequence[str | Path],
        program: Program,
        port: int,
        sockets: Path,
        user: dict[str, Any] | None = None,
    ) -> None:
        self._command = command
        self._program = program
        self.port = port
        self.sockets = sockets
        self._user = user or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._program.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_the_test,  # noqa: PLW1509 (one system call, no lock)
            **self._user,
        )
        until = time.monotonic() + SOON
        while not self._answers():
            assert self._process.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.01)  # there is no notification

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(SOON)


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """Run a Redis server that keeps its data when it is stopped and started."""
    program = find_program("redis-server", "redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory() as sockets:  # whose name is short enough
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        options += ["--unixsocket", f"{sockets}/redis.sock", "--appendonly", "yes", "--save", ""]
        server = Server([program.path, *options], program, port, Path(sockets))
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


class PostgresServer(Server):
    """A PostgreSQL server, whose port answers before the server does."""

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(host="127.0.0.1", port=self.port, user="postgres").close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres_server(folder: Path) -> Iterator[Server]:
    """Run a PostgreSQL server with a database and a trusted user `postgres`."""
    hidden = "usr/lib/postgresql/*/bin/{}"
    package = "postgresql"
    initdb = find_program("initdb", package, hidden.format("initdb"))
    postgres = find_program("postgres", package, hidden.format("postgres"))
    with _owned_by_the_user_that_may_run_it(folder) as (data, user):
        subprocess.run(
            [
                *(initdb.path, "-D", data, "-U", "postgres", "--auth=trust"),
                *("--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            env=initdb.environment,
            **user,
        )
        port = free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": data,
            "fsync": "off",
            "max_connections": 200,
        }
        settings = [f"--{name}={value}" for name, value in options.items()]
        server = PostgresServer([postgres.path, "-D", data, *settings], postgres, port, data, user)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGINT)


@contextmanager
def _owned_by_the_user_that_may_run_it(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give the folder to another user, because PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        yield folder, {}
        return
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as theirs:
        os.chown(theirs, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": theirs}
        yield Path(theirs), user
