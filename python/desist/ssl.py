"""The ssl module, with TLS sockets whose waits end when the calling code is to stop.

    from desist import socket, ssl

    context = ssl.create_default_context()
    with socket.create_connection((host, 443)) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.sendall(b"...")

Names, signatures and results are those of the standard library; a name that is not defined here is
the standard library's own. For a context that was made elsewhere, assign
``context.sslsocket_class = desist.ssl.SSLSocket``. MemoryBIO and SSLObject never block.
"""

from __future__ import annotations

import ssl as _std
from typing import TYPE_CHECKING, Any, TypeVar

from desist import socket as _socket
from desist._core import Op, checkpoint

if TYPE_CHECKING:
    import socket as _plain
    from collections.abc import Callable

    from typing_extensions import Buffer

_T = TypeVar("_T")

__all__ = ["SSLContext", "SSLSocket", "create_default_context"]


def __getattr__(name: str) -> Any:
    """A name that is not defined here is the standard library's: no need to import both."""
    if name.startswith("__"):
        raise AttributeError(f"module 'desist.ssl' has no attribute {name!r}")
    return getattr(_std, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_std)})


class SSLSocket(_std.SSLSocket, _socket.socket):  # type: ignore[misc]
    """An ssl.SSLSocket whose waits end when the calling code is to stop.

    Made by SSLContext.wrap_socket(), of any socket. A timeout is for each call, however often it
    has to wait; in sendall() and sendfile(), as in the standard library, for each part.

    Blocks: each call, until TLS has done it, for the timeout's seconds at most.

    On cancel: Cancelled is raised; on entry, nothing was done. Nothing was read, and do_handshake()
    and unwrap() may be called again, to go on. Data that were to be written may have been sent in
    part: TLS accepts nothing else before the same data are written again, so write them or close.

    On timeout: TimeoutError is raised; the rest is as on cancel.

    On kill: Killed is raised; the rest is as on cancel.
    """

    if TYPE_CHECKING:
        do_handshake_on_connect: bool
        _connected: bool
        _sslobj: Any

    # The standard library's class calls read() and send(), the two methods that wait, and takes all
    # that does not concern TLS from the next class in the method resolution order: `socket` of
    # this package.

    @classmethod
    def _create(
        cls,
        sock: _plain.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> SSLSocket:
        # Without the handshake, which follows: older versions leave the socket open on Cancelled.
        create = super()._create  # type: ignore[misc]
        self: SSLSocket = create(sock, server_side, False, *args, **kwargs)
        try:
            # detach() of the plain socket made the descriptor block or not, by its own timeout.
            super(_socket.socket, self).settimeout(0.0)
            self.do_handshake_on_connect = do_handshake_on_connect
            if do_handshake_on_connect and self._connected:
                if self.gettimeout() == 0:
                    raise ValueError(  # noqa: TRY301 (closed as after any other failure)
                        "do_handshake_on_connect should not be specified for non-blocking sockets"
                    )
                self.do_handshake()
        except BaseException:
            self.close()
            raise
        return self

    def _in_tls(self, call: Callable[..., _T], *args: Any, block: bool = False) -> _T:
        """Call it, and again after each wait that TLS needs, which may read in order to write."""
        if self._timeout == 0 and not block:
            return call(*args)
        checkpoint()
        until = None if self._timeout == 0 else self._until()
        while True:
            try:
                return call(*args)
            except _std.SSLWantReadError:
                what = Op.readable
            except _std.SSLWantWriteError:
                what = Op.writable
            self._wait(what, until)

    def _real_connect(self, address: Any, connect_ex: bool) -> int | None:
        try:
            return super()._real_connect(address, connect_ex)  # type: ignore[misc,no-any-return]
        except Exception:
            raise
        except BaseException:
            # As after an ordinary failure: the connection may be tried again.
            if not self._connected:
                self._sslobj = None
            raise

    def do_handshake(self, block: bool = False) -> None:
        """As ssl.SSLSocket.do_handshake."""
        self._in_tls(super().do_handshake, block=block)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002
        """As ssl.SSLSocket.read."""
        return self._in_tls(super().read, len, buffer)

    def write(self, data: Buffer) -> int:
        """As ssl.SSLSocket.write."""
        return self._in_tls(super().write, data)

    def send(self, data: Buffer, flags: int = 0) -> int:
        """As ssl.SSLSocket.send."""
        return self._in_tls(super().send, data, flags)

    def unwrap(self) -> _plain.socket:
        """As ssl.SSLSocket.unwrap: ends TLS, and waits for the other side to do so, too."""
        return self._in_tls(super().unwrap)


class SSLContext(_std.SSLContext):
    """An ssl.SSLContext whose sockets are desist's."""

    sslsocket_class: type[_std.SSLSocket] = SSLSocket


def create_default_context(
    purpose: _std.Purpose = _std.Purpose.SERVER_AUTH,
    *,
    cafile: Any = None,
    capath: Any = None,
    cadata: Any = None,
) -> _std.SSLContext:
    """As ssl.create_default_context; the context's sockets are desist's."""
    context = _std.create_default_context(purpose, cafile=cafile, capath=capath, cadata=cadata)
    context.sslsocket_class = SSLSocket
    return context
