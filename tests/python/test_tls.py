from __future__ import annotations

import errno
import os
import socket as plain
import ssl as std
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Cancelled, socket, ssl
from leaks import nothing_left
from support import (
    NEVER,
    Victim,
    ends_with_a_cancel,
    ends_with_a_kill,
    ends_with_the_deadline_of_its_block,
    in_its_wait,
    looks_before_it_begins,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[[], object]

# TLS needs the same bytes again after a write that would have blocked.
DATA = b"x" * 4096
CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


@pytest.fixture(scope="module")
def server_side() -> std.SSLContext:
    context = ssl.SSLContext(std.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture(scope="module")
def client_side() -> std.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATE)


@pytest.fixture
def pair(
    server_side: std.SSLContext, client_side: std.SSLContext
) -> Iterator[tuple[std.SSLSocket, std.SSLSocket]]:
    """A client and a server after their handshake."""
    one, other = socket.socketpair()

    def serve(ready: Callable[[], None]) -> std.SSLSocket:
        ready()
        return server_side.wrap_socket(other, server_side=True)

    with Victim(serve) as victim:
        client = client_side.wrap_socket(one, server_hostname="localhost")
    (server,) = victim.results
    with client, server:
        # The server's messages after the handshake have been read.
        server.send(b"x")
        assert client.recv(10) == b"x"
        yield client, server


def fill(sock: std.SSLSocket) -> None:
    sock.settimeout(0)
    with suppress(std.SSLWantWriteError):
        while True:
            sock.send(DATA)
    sock.settimeout(None)


WAITS = ["recv", "recv_into", "read", "makefile", "write", "send", "sendall", "sendfile", "unwrap"]
HANDSHAKES = ["client", "server", "do_handshake", "connect", "accept"]


@pytest.fixture(params=WAITS)
def wait(
    request: pytest.FixtureRequest,
    pair: tuple[std.SSLSocket, std.SSLSocket],
    tmp_path: Path,
) -> Iterator[tuple[Call, std.SSLSocket]]:
    """Make a call that blocks forever, and its socket."""
    name, (sock, _) = str(request.param), pair
    if name.startswith(("send", "write")):
        fill(sock)
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as file:
        calls: dict[str, Call] = {
            "recv": lambda: sock.recv(1),
            "recv_into": lambda: sock.recv_into(bytearray(1)),
            "read": lambda: sock.read(1),
            "makefile": lambda: sock.makefile("rb").read(1),
            "write": lambda: sock.write(DATA),
            "send": lambda: sock.send(DATA),
            "sendall": lambda: sock.sendall(DATA),
            "sendfile": lambda: sock.sendfile(file),
            "unwrap": sock.unwrap,
        }
        yield calls[name], sock


Wait = tuple["Call", std.SSLSocket]


@pytest.fixture(params=HANDSHAKES)
def handshake(
    request: pytest.FixtureRequest, server_side: std.SSLContext, client_side: std.SSLContext
) -> Iterator[Call]:
    """A handshake with a peer that sends nothing."""
    with nothing_left(), ExitStack() as kept:
        one, other = socket.socketpair()
        kept.enter_context(one)
        kept.enter_context(other)
        server = kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = server.getsockname()

        def client() -> object:
            return client_side.wrap_socket(one, server_hostname="localhost")

        def later() -> None:
            sock = client_side.wrap_socket(
                one, server_hostname="localhost", do_handshake_on_connect=False
            )
            with sock:
                sock.do_handshake()

        def connect() -> None:
            with client_side.wrap_socket(socket.socket(), server_hostname="localhost") as sock:
                sock.connect(address)

        def accept() -> object:
            kept.enter_context(plain.create_connection(address))
            with server_side.wrap_socket(server, server_side=True) as listener:
                return listener.accept()

        yield {
            "client": client,
            "server": lambda: server_side.wrap_socket(one, server_side=True),
            "do_handshake": later,
            "connect": connect,
            "accept": accept,
        }[str(request.param)]


def test_every_wait_ends_with_a_cancel(wait: Wait) -> None:
    ends_with_a_cancel(wait[0])


def test_every_wait_ends_with_the_deadline_of_its_block(wait: Wait) -> None:
    ends_with_the_deadline_of_its_block(wait[0])


def test_every_wait_is_a_checkpoint_before_it_begins(wait: Wait) -> None:
    looks_before_it_begins(wait[0])


def test_every_wait_ends_with_a_kill(wait: Wait) -> None:
    ends_with_a_kill(wait[0])


def test_every_wait_ends_with_the_timeout_of_its_socket(wait: Wait) -> None:
    call, sock = wait
    sock.settimeout(0.01)
    with pytest.raises(TimeoutError) as late:
        call()
    assert not isinstance(late.value, desist.DeadlineExceeded)


def test_every_wait_ends_when_its_socket_is_closed(wait: Wait) -> None:
    call, sock = wait
    with in_its_wait(call) as victim:
        if sock._io_refs:  # type: ignore[attr-defined]
            os.close(sock.detach())  # a file of makefile() would delay close()
        sock.close()
    assert isinstance(victim.raised, OSError)
    assert victim.raised.errno == errno.EBADF


def test_a_handshake_ends_with_a_cancel_and_leaves_nothing(handshake: Call) -> None:
    with in_its_wait(handshake) as victim:
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)


def test_a_handshake_ends_with_the_deadline_of_its_block(handshake: Call) -> None:
    with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.01):
        handshake()


def test_a_handshake_is_a_checkpoint_before_it_begins(handshake: Call) -> None:
    with desist.move_on_after(0) as scope:
        handshake()
    assert scope.cancelled_caught


def test_a_cancelled_handshake_can_be_continued(
    server_side: std.SSLContext, client_side: std.SSLContext
) -> None:
    one, other = socket.socketpair()
    client = client_side.wrap_socket(
        one, server_hostname="localhost", do_handshake_on_connect=False
    )
    with client:
        with desist.move_on_after(0.01) as scope:
            client.do_handshake()
        assert scope.cancelled_caught

        def serve(ready: Callable[[], None]) -> bytes:
            ready()
            with server_side.wrap_socket(other, server_side=True) as server:
                return server.recv(10)

        with Victim(serve) as victim:
            client.do_handshake()
            client.sendall(b"hello")
    assert victim.results == [b"hello"]


def test_a_server_and_a_client_talk(
    server_side: std.SSLContext, client_side: std.SSLContext
) -> None:
    with nothing_left(), ExitStack() as kept:
        listener = kept.enter_context(
            server_side.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        )

        def serve(ready: Callable[[], None]) -> None:
            ready()
            connection, _ = listener.accept()
            assert isinstance(connection, ssl.SSLSocket)
            with connection, connection.makefile("rw") as file:
                for line in file:
                    file.write(line.upper())
                    file.flush()
                connection.unwrap().close()

        with Victim(serve) as victim:
            base = socket.create_connection(listener.getsockname(), timeout=NEVER)
            with client_side.wrap_socket(base, server_hostname="localhost") as client:
                assert client.gettimeout() == NEVER
                assert client.version() in ("TLSv1.2", "TLSv1.3")
                client.sendall(b"hello " * 100_000 + b"\n")
                received = bytearray()
                while not received.endswith(b"\n"):
                    received += client.recv(100_000)
                assert received == b"HELLO " * 100_000 + b"\n"
                client.unwrap().close()
        assert victim.raised is None


def test_a_certificate_that_is_not_trusted_is_refused(server_side: std.SSLContext) -> None:
    with nothing_left():
        one, other = socket.socketpair()

        def serve(ready: Callable[[], None]) -> None:
            ready()
            with pytest.raises(OSError):  # noqa: PT011 (whatever the other side does)
                server_side.wrap_socket(other, server_side=True)

        with Victim(serve), pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(one, server_hostname="localhost")


def test_a_context_made_by_ssl_makes_desist_sockets(
    pair: tuple[std.SSLSocket, std.SSLSocket],
) -> None:
    context = std.create_default_context(cafile=CERTIFICATE)
    context.sslsocket_class = ssl.SSLSocket
    with context.wrap_socket(plain.socket(), server_hostname="localhost") as sock:
        assert isinstance(sock, ssl.SSLSocket)
        assert isinstance(sock, socket.socket)
    assert isinstance(pair[0], ssl.SSLSocket)
    assert ssl.CERT_REQUIRED is std.CERT_REQUIRED
    assert set(dir(std)) <= set(dir(ssl))
    with pytest.raises(AttributeError):
        ssl.no_such_thing  # noqa: B018


def test_a_non_blocking_socket_says_what_it_needs(
    pair: tuple[std.SSLSocket, std.SSLSocket],
) -> None:
    client, _ = pair
    client.setblocking(False)
    with desist.move_on_after(NEVER) as scope:
        scope.cancel()
        with pytest.raises(std.SSLWantReadError):
            client.recv(1)
    assert not scope.cancelled_caught
    one, other = socket.socketpair()
    one.setblocking(False)
    with other, pytest.raises(ValueError, match="non-blocking"):
        ssl.create_default_context().wrap_socket(one, server_hostname="localhost")
