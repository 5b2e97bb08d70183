from __future__ import annotations

import errno
import math
import os
import signal
import socket as plain
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, socket
from leaks import nothing_left
from support import (
    AT_WAIT,
    FORCE,
    NEVER,
    Victim,
    ends_with_a_cancel,
    ends_with_a_kill,
    ends_with_the_deadline_of_its_block,
    in_child,
    in_its_wait,
    looks_before_it_begins,
)
from test_signals import talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Call = Callable[[], object]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def fill(sock: socket.socket) -> int:
    """Send until the buffers are full, and return the amount."""
    timeout, sent = sock.gettimeout(), 0
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 4096)
    sock.settimeout(timeout)
    return sent


def full_listener(kept: ExitStack, family: int, address: Any) -> Any:
    """Give the address of a listener that accepts no more connections."""
    listener = kept.enter_context(plain.socket(family))
    listener.bind(address)
    listener.listen(0)
    for _ in range(3):
        waiting = kept.enter_context(plain.socket(family))
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return listener.getsockname()


WAITS = [
    "recv",
    "recv_into",
    "recvfrom",
    "recvfrom_into",
    "recvmsg",
    "recvmsg_into",
    "makefile",
    "accept",
    "send",
    "sendall",
    "sendto",
    "sendmsg",
    "sendfile",
    "connect",
    "connect_ex",
    "connect to a Unix socket",
]


@pytest.fixture(params=WAITS)
def wait(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Call, list[socket.socket]]]:
    """Make a call that blocks forever, and its socket in a list of its own."""
    name = str(request.param)
    with nothing_left(), ExitStack() as kept:
        one, other = socket.socketpair()
        kept.enter_context(other)
        if name.startswith("send"):
            fill(one)
        if name == "accept":
            one.close()
            one = socket.create_server(("127.0.0.1", 0))
        address: Any = None
        if name == "sendto":
            one.close()
            receiver = kept.enter_context(plain.socket(plain.AF_UNIX, plain.SOCK_DGRAM))
            receiver.bind(str(tmp_path / "receiver"))
            address = receiver.getsockname()
            one = socket.socket(plain.AF_UNIX, plain.SOCK_DGRAM)
            one.settimeout(0)
            with suppress(BlockingIOError):
                while True:
                    one.sendto(b"x", address)
            one.settimeout(None)
        if name.startswith("connect"):
            one.close()
            if "Unix" in name:
                address = full_listener(kept, plain.AF_UNIX, str(tmp_path / "listener"))
                one = socket.socket(plain.AF_UNIX)
            else:
                address = full_listener(kept, plain.AF_INET, ("127.0.0.1", 0))
                one = socket.socket(plain.AF_INET)
        sockets = [one]
        kept.callback(sockets.clear)
        kept.enter_context(one)
        path = tmp_path / "file"
        path.write_bytes(b"y" * 100_000)
        file = kept.enter_context(path.open("rb"))
        room = bytearray(10)
        calls: dict[str, Call] = {
            "recv": lambda: sockets[0].recv(10),
            "recv_into": lambda: sockets[0].recv_into(room),
            "recvfrom": lambda: sockets[0].recvfrom(10),
            "recvfrom_into": lambda: sockets[0].recvfrom_into(room),
            "recvmsg": lambda: sockets[0].recvmsg(10, 10),
            "recvmsg_into": lambda: sockets[0].recvmsg_into([room]),
            "makefile": lambda: sockets[0].makefile("rb").readline(),
            "accept": lambda: sockets[0].accept()[0],
            "send": lambda: sockets[0].send(b"y"),
            "sendall": lambda: sockets[0].sendall(b"y"),
            "sendto": lambda: sockets[0].sendto(b"y", address),
            "sendmsg": lambda: sockets[0].sendmsg([b"y"]),
            "sendfile": lambda: sockets[0].sendfile(file),
            "connect": lambda: sockets[0].connect(address),
            "connect_ex": lambda: sockets[0].connect_ex(address),
            "connect to a Unix socket": lambda: sockets[0].connect(address),
        }
        yield calls[name], sockets


Wait = tuple["Call", "list[socket.socket]"]


def test_every_wait_ends_with_a_cancel(wait: Wait) -> None:
    ends_with_a_cancel(wait[0])


def test_every_wait_ends_with_the_deadline_of_its_block(wait: Wait) -> None:
    ends_with_the_deadline_of_its_block(wait[0])


def test_every_wait_is_a_checkpoint_before_it_begins(wait: Wait) -> None:
    looks_before_it_begins(wait[0])


def test_every_wait_ends_with_a_kill(wait: Wait) -> None:
    ends_with_a_kill(wait[0])


def test_every_wait_ends_with_the_timeout_of_its_socket(wait: Wait) -> None:
    call, (sock,) = wait
    sock.settimeout(0.01)
    assert sock.timeout == 0.01
    try:
        returned = call()
    except TimeoutError as late:
        assert type(late) is TimeoutError  # noqa: PT017
    else:
        assert returned == errno.EWOULDBLOCK


def test_every_wait_ends_when_its_socket_is_closed(wait: Wait) -> None:
    call, (sock,) = wait
    with in_its_wait(call) as victim:
        if sock._io_refs:  # type: ignore[attr-defined]
            os.close(sock.detach())  # a file of makefile() would delay close()
        sock.close()
    if victim.results:
        assert victim.results == [errno.EBADF]
    else:
        assert isinstance(victim.raised, OSError)
        assert victim.raised.errno == errno.EBADF
    victim.raised = None


def test_a_wait_never_reads_from_the_next_file_with_the_same_descriptor() -> None:
    with nothing_left():
        one, other = socket.socketpair()
        number = one.fileno()
        with other, in_its_wait(lambda: one.recv(1)) as victim:
            one.close()
            reader, writer = os.pipe()
            assert reader == number
            os.write(writer, b"not yours")
        assert os.read(reader, 100) == b"not yours"
        os.close(reader)
        os.close(writer)
    assert isinstance(victim.raised, OSError)


def test_a_wait_on_a_bare_descriptor_ends_with_its_close() -> None:
    one, other = socket.socketpair()
    with other, in_its_wait(lambda: desist.wait_readable(one)) as victim:
        one.close()
    assert isinstance(victim.raised, OSError)
    assert victim.raised.errno == errno.EBADF


def test_a_closed_socket_refuses_everything(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    one.close()
    one.close()
    uses: list[Call] = [
        lambda: one.recv(1),
        lambda: one.send(b"x"),
        lambda: one.sendall(b"x"),
        one.accept,
        lambda: one.settimeout(1),
        one.dup,
    ]
    for use in uses:
        with pytest.raises(OSError, match="Bad file descriptor") as failure:
            use()
        assert failure.value.errno == errno.EBADF
    assert one.detach() == -1
    assert "[closed]" in repr(one)


# --- cancelled without an effect ------------------------------------------------------------------


def test_data_after_a_cancelled_recv_is_for_the_next_one(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    for _ in range(50):
        with in_its_wait(lambda: one.recv(1)) as victim:
            sender = threading.Thread(target=other.send, args=(b"x",))
            sender.start()
            victim.cancel()
            sender.join()
        received = victim.results or [one.recv(1)]
        assert received == [b"x"]
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        one.recv(1)


def test_a_ready_operation_is_not_performed_in_cancelled_code(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    with desist.move_on_after(0):
        one.send(b"x")
    with desist.move_on_after(0):
        one.sendall(b"x")
    one.send(b"y")
    with desist.move_on_after(0):
        other.recv(1)
    assert other.recv(10) == b"y"


def test_a_cancelled_sendall_has_sent_a_part(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    with in_its_wait(lambda: one.sendall(b"x" * 10_000_000)) as victim:
        victim.cancel()
    assert isinstance(victim.raised, Cancelled)
    other.setblocking(False)
    assert 0 < len(other.recv(10_000_000)) < 10_000_000


def test_the_file_position_after_a_cancelled_sendfile_is_the_amount_sent(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    one, other = pair
    (tmp_path / "file").write_bytes(b"x" * 10_000_000)
    with (tmp_path / "file").open("rb") as file:
        with in_its_wait(lambda: one.sendfile(file)) as victim:
            victim.cancel()
        sent = file.tell()
    one.close()
    received = 0
    while part := other.recv(1_000_000):
        received += len(part)
    assert 0 < received == sent < 10_000_000


def test_a_cancelled_connect_can_be_continued() -> None:
    with nothing_left(), ExitStack() as kept:
        listener = kept.enter_context(plain.socket())
        listener.bind(("127.0.0.1", 0))
        sock = kept.enter_context(socket.socket())
        with desist.move_on_after(0):
            sock.connect(listener.getsockname())
        listener.listen()
        sock.connect(listener.getsockname())
        assert sock.getpeername() == listener.getsockname()


# An accepted connection that is lost to a kill is closed with a ResourceWarning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("policy", [AT_WAIT, FORCE])
def test_a_killed_accept_leaves_no_connection(policy: desist.StopPolicy) -> None:
    with nothing_left(), socket.create_server(("127.0.0.1", 0)) as server:

        def serve(ready: Callable[[], None]) -> None:
            ready()
            while True:
                server.accept()[0].close()

        with Victim(serve) as victim:
            for _ in range(20):
                plain.create_connection(server.getsockname()).close()
            victim.kill(policy=policy)
        victim.raised = None


# --- as in the standard library -------------------------------------------------------------------


def test_a_server_and_a_client_talk() -> None:
    with nothing_left(), socket.create_server(("127.0.0.1", 0)) as server:

        def serve(ready: Callable[[], None]) -> None:
            ready()
            connection, address = server.accept()
            with connection, connection.makefile("rw") as file:
                assert address[0] == "127.0.0.1"
                assert connection.getblocking()
                for line in file:
                    file.write(line.upper())
                    file.flush()

        with Victim(serve):
            address = ("localhost", server.getsockname()[1])
            with socket.create_connection(address, timeout=NEVER) as client:
                assert client.gettimeout() == NEVER
                client.sendall(b"hello\n")
                assert client.recv(100) == b"HELLO\n"
                assert client.send(b"bye\n") == 4
                assert client.recv_into(bytearray(3)) == 3
                client.shutdown(plain.SHUT_WR)
                assert client.recv(100) == b"\n"
                assert client.recv(100) == b""


def test_datagrams_have_their_sender() -> None:
    with socket.socket(type=plain.SOCK_DGRAM) as one, socket.socket(type=plain.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        assert one.sendto(b"hello", ("localhost", other.getsockname()[1])) == 5
        assert other.recvfrom(100) == (b"hello", one.getsockname())
        assert one.sendto(b"again", 0, other.getsockname()) == 5
        assert other.recvmsg(100)[0] == b"again"
        with pytest.raises(TypeError):
            one.sendto(b"to no address")
        one.connect(other.getsockname())
        one.sendall(b"")
        assert other.recv(100) == b""


def test_all_other_names_are_those_of_the_standard_library() -> None:
    assert socket.AF_INET is plain.AF_INET
    assert socket.gaierror is plain.gaierror
    assert set(socket.__all__) <= set(plain.__all__) <= set(dir(socket))
    with pytest.raises(AttributeError):
        socket.no_such_thing  # noqa: B018
    with pytest.raises(AttributeError):
        desist.no_such_thing  # noqa: B018
    assert {"socket", "ssl", "subprocess"} <= set(dir(desist))


def test_a_non_blocking_socket_is_no_checkpoint(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    other.setblocking(False)
    assert not other.getblocking()
    with desist.move_on_after(NEVER) as scope:
        scope.cancel()
        with pytest.raises(BlockingIOError):
            other.recv(1)
        other.sendall(b"x")
        with pytest.raises(BlockingIOError):
            one.recv(1, plain.MSG_DONTWAIT) + one.recv(1, plain.MSG_DONTWAIT)
    assert not scope.cancelled_caught
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.settimeout(0)
        assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS


def test_timeouts_are_checked_and_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    for bad in (-1, math.nan):
        with pytest.raises(ValueError, match="Timeout value out of range"):
            one.settimeout(bad)
    with pytest.raises(TypeError):
        one.settimeout("1")  # type: ignore[arg-type]
    assert one.gettimeout() is None
    one.settimeout(7)
    with one.dup() as twin:
        assert isinstance(twin, socket.socket)
        assert twin.gettimeout() == 7.0
    plain.setdefaulttimeout(5)
    try:
        with socket.socket() as new:
            assert new.gettimeout() == 5
    finally:
        plain.setdefaulttimeout(None)


def test_a_detached_socket_blocks_again(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert not os.get_blocking(one.fileno())
    with in_its_wait(lambda: one.recv(1)) as victim:
        fd = one.detach()
    assert isinstance(victim.raised, OSError)
    assert os.get_blocking(fd)
    with socket.fromfd(fd, plain.AF_UNIX, plain.SOCK_STREAM) as again:
        other.send(b"x")
        assert again.recv(1) == b"x"
    os.close(fd)


def test_a_refused_connection_says_so() -> None:
    with nothing_left():
        with plain.create_server(("127.0.0.1", 0)) as gone:
            address = gone.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with socket.socket() as sock:
            assert sock.connect_ex(address) == errno.ECONNREFUSED


def test_every_address_is_tried_and_all_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with plain.create_server(("127.0.0.1", 0)) as gone:
        refused = gone.getsockname()
    with nothing_left(), plain.create_server(("127.0.0.1", 0)) as server:
        entry = (plain.AF_INET, plain.SOCK_STREAM, 0, "")
        found = [(*entry, refused), (*entry, server.getsockname())]
        monkeypatch.setattr(socket, "_getaddrinfo", lambda *_: found)
        with socket.create_connection(("anything", 1), source_address=("127.0.0.1", 0)) as sock:
            assert sock.getpeername() == server.getsockname()
        del found[1]
        failed = "create_connection failed" if sys.version_info >= (3, 11) else "refused"
        with pytest.raises(Exception, match=failed):
            socket.create_connection(("anything", 1), all_errors=True)
        found.clear()
        with pytest.raises(OSError, match="empty list"):
            socket.create_connection(("anything", 1))


@pytest.mark.parametrize("use", ["getaddrinfo", "create_connection", "connect", "sendto"])
def test_a_slow_resolution_is_abandoned(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        go_on.wait()
        over.set()
        raise ZeroDivisionError

    monkeypatch.setattr(socket, "_getaddrinfo", slow)
    with nothing_left(), socket.socket() as sock, socket.socket(type=plain.SOCK_DGRAM) as other:
        uses: dict[str, Call] = {
            "getaddrinfo": lambda: socket.getaddrinfo("host.invalid", 80),
            "create_connection": lambda: socket.create_connection(("host.invalid", 80)),
            "connect": lambda: sock.connect(("host.invalid", 80)),
            "sendto": lambda: other.sendto(b"x", ("host.invalid", 80)),
        }
        with in_its_wait(uses[use]) as victim:
            begun.wait()
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
    assert not over.is_set()
    go_on.set()
    assert over.wait(NEVER)


def test_a_resolution_raises_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise plain.gaierror(plain.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "_getaddrinfo", unknown)
    with pytest.raises(plain.gaierror):
        socket.create_connection(("host.invalid", 80))
    with socket.socket() as sock, pytest.raises(plain.gaierror):
        sock.connect_ex(("host.invalid", 80))


# --- other processes, signals ---------------------------------------------------------------------


def test_a_child_process_uses_the_socket_that_a_thread_of_its_parent_waits_for() -> None:
    one, other = socket.socketpair()
    with nothing_left(), in_its_wait(lambda: one.recv(1)) as victim:

        def child() -> object:
            with desist.move_on_after(0.01) as scope:
                one.recv(1)
            one.close()  # wakes no thread of the parent
            other.send(b"x")
            return scope.cancelled_caught

        assert in_child(child) == "True"
    assert victim.results == [b"x"]
    one.close()
    other.close()


def test_ctrl_c_ends_a_wait_at_once() -> None:
    said = talk(
        """
        from desist import socket
        one, other = socket.socketpair()
        say("waiting")
        try:
            one.recv(1)
        except KeyboardInterrupt:
            say("interrupted")
        """,
        signal.SIGINT,
    )
    assert said == ["interrupted"]
