"""A network between a program and a server, which can be cut or fail: a proxy."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Network:
    """Forwards connections to a port of this host, unless it is cut.

    While it is cut, no end hears anything of the other: no byte arrives, no new connection gets
    through, and no connection is reset.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._lock = threading.Lock()
        self._is_cut = False
        self._is_closed = False
        self._forgets = False
        self._peers: dict[socket.socket, socket.socket] = {}
        self._forgotten: list[socket.socket] = []
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Forward nothing from now on."""
        with self._lock:
            self._is_cut = True
            self._wake_writer.send(b"!")

    def heal(self, *, forget: bool = False) -> None:
        """Forward again, also what was sent meanwhile.

        `forget`: only on new connections, as a router that has restarted; the others stay silent.
        """
        with self._lock:
            self._is_cut, self._forgets = False, forget
            self._wake_writer.send(b"!")

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            self._is_closed = True
            self._wake_writer.send(b"!")
        self._thread.join()

    def _forward(self) -> None:
        with contextlib.ExitStack() as stack:
            for end in (self._listener, self._wake_reader, self._wake_writer):
                stack.enter_context(end)
            stack.callback(self._close_all)
            while True:
                with self._lock:
                    if self._is_closed:
                        return
                    is_cut, forgets, self._forgets = self._is_cut, self._forgets, False
                if forgets:
                    self._forgotten.extend(self._peers)
                    self._peers.clear()
                heard = [] if is_cut else [self._listener, *self._peers]
                ready, _, _ = select.select([self._wake_reader, *heard], [], [])
                for end in ready:
                    if end is self._wake_reader:
                        end.recv(100)
                    elif end is self._listener:
                        self._accept()
                    elif end in self._peers:
                        self._pass_on(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._server))
        except OSError:
            client.close()
            return
        self._peers[client], self._peers[server] = server, client

    def _pass_on(self, end: socket.socket) -> None:
        peer = self._peers[end]
        with contextlib.suppress(OSError):
            data = end.recv(1 << 16)
            if data and self._send(data, end, peer):
                return
        for one in (end, peer):
            del self._peers[one]
            one.close()

    def _send(self, data: bytes, _: socket.socket, peer: socket.socket) -> bool:
        """Forward this to the peer. False: the connection is to end."""
        peer.sendall(data)
        return True

    def _close_all(self) -> None:
        for end in (*self._peers, *self._forgotten):
            end.close()


Forwards = TypeVar("Forwards", bound=Network)

FAULTS = ("request", "answer", "half an answer", "idle")


class FailingOnce(Network):
    """Lets one connection fail once, at one of all messages: those of the program, or the server's.

    "request": the connection is reset, and the server never gets the request. "answer": it is reset
    in place of the answer. "half an answer": it ends in the middle. "idle": it is reset after the
    answer, so that the next request cannot be sent. A message is what one call of recv() returns.
    """

    def __init__(self, port: int, fault: str, number: int) -> None:
        self._fault = fault
        self.left = number
        """Messages up to the one at which it fails; zero or less: it has failed."""
        super().__init__(port)

    def _send(self, data: bytes, end: socket.socket, peer: socket.socket) -> bool:
        is_request = end.getsockname()[1] == self.port
        if is_request == (self._fault == "request"):
            self.left -= 1
            if not self.left:
                self._fail(data, end if is_request else peer)
                return False
        return super()._send(data, end, peer)

    def _fail(self, data: bytes, client: socket.socket) -> None:
        if self._fault == "half an answer":
            client.sendall(data[: len(data) // 2])
            return
        if self._fault == "idle":
            client.sendall(data)
        # Its close() resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def network(port: int) -> Iterator[Network]:
    """Put a network before the server at this port."""
    with forwarding(Network(port)) as made:
        yield made


@contextlib.contextmanager
def forwarding(made: Forwards) -> Iterator[Forwards]:
    """End the connections of a network after the block."""
    try:
        yield made
    finally:
        made.close()
