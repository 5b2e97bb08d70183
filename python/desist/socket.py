"""The socket module, with sockets whose waits end when the calling code is to stop.

    from desist import socket

    with socket.create_connection(("example.org", 80)) as connection:
        connection.sendall(b"...")

Names, signatures and results are those of the standard library; a name that is not defined here is
the standard library's own. Every call that may block is a checkpoint, and raises Cancelled or
Killed as soon as the calling code is to stop. A timeout is still a TimeoutError.

Name resolution (getaddrinfo; create_connection, connect and sendto with a host's name) blocks in C.
It is done by a helper thread, which is abandoned if the caller is to stop earlier. gethostbyname
and the like are the standard library's, and block as they always did; so does bind with a name.

How: a descriptor never blocks. A call is tried first; if it would block, wait_any() waits for the
descriptor and for the socket's `_gone` latch, and the call is tried again.
"""

from __future__ import annotations

import errno
import functools
import io
import math
import os
import socket as _std
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from desist._core import (
    Latch,
    Op,
    checkpoint,
    cleanup,
    current_time,
    notify_closing,
    sleep,
    wait_any,
)
from desist._offload import Offloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer, Self

    _Wait = Callable[[int], Op[None]]

_T = TypeVar("_T")

__all__ = [
    "SocketType",
    "create_connection",
    "create_server",
    "fromfd",
    "getaddrinfo",
    "socket",
    "socketpair",
]


def __getattr__(name: str) -> Any:
    """A name that is not defined here is the standard library's: no need to import both."""
    if name.startswith("__"):
        raise AttributeError(f"module 'desist.socket' has no attribute {name!r}")
    return getattr(_std, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_std)})


# Kept under other names, for a program may put desist's functions in their places.
_create_server, _fromfd, _getaddrinfo, _socketpair = (
    _std.create_server,
    _std.fromfd,
    _std.getaddrinfo,
    _std.socketpair,
)
_DEFAULT: Any = _std._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined] # noqa: SLF001 (the standard library's own)
_DONTWAIT = getattr(_std, "MSG_DONTWAIT", 0)
_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)
_NAMED = (_std.AF_INET, _std.AF_INET6)
_UNIX = getattr(_std, "AF_UNIX", None)
_MOST_AT_ONCE = 2**30


class socket(_std.socket):  # noqa: N801 (as it is called there)
    """A socket.socket whose waits end when the calling code is to stop.

    Its descriptor never blocks, whatever the timeout; duplicates of it (dup, a child process) share
    that. The timeout is kept in this object, with its usual meaning: None waits as long as it
    takes, 0 not at all, and then a call is no checkpoint either.

    MSG_WAITALL returns the data that are there, as in the standard library for sockets with a
    timeout.

    Blocks: each call, until it is possible, for the timeout's seconds at most.

    On cancel: Cancelled is raised, and nothing was received or sent, except in sendall, sendfile
    and connect, whose docstrings describe the state then.

    On timeout: TimeoutError is raised; the rest is as on cancel.

    On kill: Killed is raised; the rest is as on cancel.

    Raises:
        OSError: (EBADF) another thread has called close() or detach(); the waiter is woken.
    """

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        """As socket.socket."""
        super().__init__(family, type, proto, fileno)
        # Set when the descriptor is not this object's any more. Waiters test it first, for the
        # number may mean another file by then.
        self._gone = Latch()
        self._timeout = super().gettimeout()
        super().settimeout(0.0)

    # ------------------------------------------------------------------ waiting

    def _until(self) -> float | None:
        return None if self._timeout is None else current_time() + self._timeout

    def _wait(self, what: _Wait, until: float | None) -> None:
        """Wait until the descriptor is ready; raise if the socket is closed or it is too late."""
        left = None if until is None else max(until - current_time(), 0.0)
        fd = self.fileno()
        done = None
        if fd >= 0:
            done = wait_any(self._gone.wait_op(None), what(fd), timeout=left)
            if done is None:
                raise TimeoutError("timed out")
        if done is None or done[0] == 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _do(self, what: _Wait, call: Callable[..., _T], *args: Any, flags: int = 0) -> _T:
        """Call it, and again after each wait, until it no longer would block."""
        if self._timeout == 0 or flags & _DONTWAIT:
            return call(*args)
        checkpoint()
        until = self._until()
        tries = 0
        while True:
            try:
                return call(*args)
            except BlockingIOError:
                tries += 1
            self._wait(what, until)
            # A Unix datagram socket always reports that it can be written, even while the
            # receiver's queue is full.
            if tries > 1 and what is Op.writable and self.family == _UNIX:
                _pause(tries, until)

    # ------------------------------------------------------------------ timeouts

    def settimeout(self, value: float | None, /) -> None:
        """As socket.socket.settimeout; waits that have begun keep the old one."""
        if value is not None:
            seconds = math.fabs(value)  # TypeError: not a number
            if not value >= 0:
                raise ValueError("Timeout value out of range")
            value = seconds
        super().settimeout(0.0)  # changes nothing, but raises OSError if the socket is closed
        self._timeout = value

    def gettimeout(self) -> float | None:
        """Seconds that a call waits; None: as long as it takes."""
        return self._timeout

    @property
    def timeout(self) -> float | None:
        """Seconds that a call waits; None: as long as it takes."""
        return self._timeout

    def setblocking(self, flag: bool, /) -> None:
        """True: wait as long as it takes. False: never wait."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Whether a call may wait."""
        return self._timeout != 0

    # ------------------------------------------------------------------ connecting

    def connect(self, address: Any, /) -> None:
        """As socket.socket.connect.

        After Cancelled or TimeoutError the attempt may still be under way. Calling connect() again
        goes on with it; close() ends it.
        """
        if self._timeout == 0:
            super().connect(address)
        else:
            self._connect(address)

    def connect_ex(self, address: Any, /) -> int:
        """As socket.socket.connect_ex: the number of the error, or 0."""
        if self._timeout == 0:
            return super().connect_ex(address)
        try:
            self._connect(address)
        except (_std.gaierror, _std.herror):
            raise
        except TimeoutError as late:
            return late.errno or errno.EWOULDBLOCK
        except OSError as failure:
            if failure.errno is None:
                raise
            return failure.errno
        return 0

    def _connect(self, address: Any) -> None:
        checkpoint()
        until = self._until()
        address = self._resolved(address)
        tries = 0
        while True:
            try:
                return super().connect(address)
            except BlockingIOError as busy:
                if busy.errno in _UNDER_WAY:
                    break
            # The queue of a Unix socket's listener is full. The system does not report when there
            # is room again, so all that can be done is to try again.
            tries += 1
            _pause(tries, until)
        self._wait(Op.writable, until)
        failed = self.getsockopt(_std.SOL_SOCKET, _std.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        return None

    def _resolved(self, address: Any) -> Any:
        """Resolve the address's name; else connect() would do so in C, where it cannot be woken."""
        if self.family not in _NAMED or not isinstance(address, tuple) or not address:
            return address
        host = address[0]
        if not isinstance(host, str) or host in ("", "<broadcast>") or _is_numeric(host):
            return address
        found = getaddrinfo(host, None, self.family)
        return (found[0][4][0], *address[1:])

    def accept(self) -> tuple[socket, Any]:
        """As socket.socket.accept; the connection is a socket of this class."""
        return self._do(Op.readable, self._accept_one)

    def _accept_one(self) -> tuple[socket, Any]:
        with cleanup():  # defers a kill until the connection has its socket, which closes it
            fd, address = super()._accept()  # type: ignore[misc]
            return socket(self.family, self.type, self.proto, fileno=fd), address
        raise AssertionError  # for type checkers: nothing in the zone is absorbed by it

    # ------------------------------------------------------------------ receiving

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As socket.socket.recv."""
        return self._do(Op.readable, super().recv, bufsize, flags, flags=flags)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.socket.recv_into."""
        return self._do(Op.readable, super().recv_into, buffer, nbytes, flags, flags=flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As socket.socket.recvfrom."""
        return self._do(Op.readable, super().recvfrom, bufsize, flags, flags=flags)

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As socket.socket.recvfrom_into."""
        return self._do(Op.readable, super().recvfrom_into, buffer, nbytes, flags, flags=flags)

    if hasattr(_std.socket, "recvmsg"):

        def recvmsg(
            self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
        ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
            """As socket.socket.recvmsg."""
            receive = super().recvmsg
            return self._do(Op.readable, receive, bufsize, ancbufsize, flags, flags=flags)

        def recvmsg_into(
            self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
        ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
            """As socket.socket.recvmsg_into."""
            receive, buffers = super().recvmsg_into, list(buffers)
            return self._do(Op.readable, receive, buffers, ancbufsize, flags, flags=flags)

        def sendmsg(
            self,
            buffers: Iterable[Buffer],
            ancdata: Iterable[tuple[int, int, Buffer]] = (),
            flags: int = 0,
            address: Any = None,
            /,
        ) -> int:
            """As socket.socket.sendmsg."""
            parts, more = list(buffers), list(ancdata)
            return self._do(Op.writable, super().sendmsg, parts, more, flags, address, flags=flags)

    # ------------------------------------------------------------------ sending

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """As socket.socket.send: returns the number of bytes sent."""
        return self._do(Op.writable, super().send, data, flags, flags=flags)

    def sendto(self, data: Buffer, *flags_and_address: Any) -> int:
        """As socket.socket.sendto: data, flags if there are any, and the address."""
        *given, address = flags_and_address or (None,)
        flags = given[0] if len(given) == 1 and isinstance(given[0], int) else 0
        if flags_and_address and self._timeout != 0:
            checkpoint()
            flags_and_address = (*given, self._resolved(address))
        return self._do(Op.writable, super().sendto, data, *flags_and_address, flags=flags)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """As socket.socket.sendall. The timeout is for all of it.

        After Cancelled, as after any other exception, an unknown part of the data has been sent:
        the connection can only be closed. If it was raised on entry, nothing has been sent.
        """
        if self._timeout == 0:
            return super().sendall(data, flags)
        checkpoint()
        until = self._until()
        with memoryview(data) as view, view.cast("B") as left:
            sent = 0
            while True:
                try:
                    sent += super().send(left[sent:], flags)
                except BlockingIOError:
                    self._wait(Op.writable, until)
                    continue
                if sent >= len(left):
                    return None
                checkpoint()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As socket.socket.sendfile. The timeout is for each part that is sent.

        After Cancelled, as after any other exception, file.tell() says how much was sent.
        """
        return super().sendfile(file, offset, count)

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a regular file by os.sendfile(); the original waits in a selector."""
        give_up = _std._GiveupOnSendfile  # type: ignore[attr-defined] # noqa: SLF001 (the standard library's own)
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        if not hasattr(os, "sendfile"):
            raise give_up("os.sendfile() not available on this platform")
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
        except (AttributeError, OSError, io.UnsupportedOperation) as failure:
            raise give_up(failure) from None
        total = 0
        most = min(count or size, _MOST_AT_ONCE)
        try:
            while size and not (count and total >= count):
                part = min(count - total, most) if count else most
                try:
                    sent = self._do(
                        Op.writable, os.sendfile, self.fileno(), source, offset + total, part
                    )
                except OSError as failure:
                    if total == 0 and failure.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK):
                        raise give_up(failure) from None
                    raise
                if sent == 0:
                    break
                total += sent
        finally:
            if total and hasattr(file, "seek"):
                file.seek(offset + total)
        return total

    # ------------------------------------------------------------------ the end

    def _wake_waiters(self) -> None:
        self._gone.set()
        fd = self.fileno()
        if fd >= 0:
            notify_closing(fd)  # for waits for the descriptor alone

    def _real_close(self) -> None:
        # Called by close(), once the last file of makefile() is closed.
        self._wake_waiters()
        super()._real_close()  # type: ignore[misc]

    def detach(self) -> int:
        """As socket.socket.detach; the descriptor blocks or not, as the timeout says."""
        self._wake_waiters()
        fd = super().detach()
        if fd >= 0 and self._timeout is None and sys.platform != "win32":
            os.set_blocking(fd, True)
        return fd

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
        def dup(self) -> Self: ...  # noqa: D102


SocketType = socket


def _pause(tries: int, until: float | None) -> None:
    """Sleep before another try, where the system does not report readiness: up to 50 ms."""
    seconds = min(0.0005 * 2**tries, 0.05)
    if until is not None and current_time() + seconds > until:
        raise TimeoutError("timed out")
    sleep(seconds)


def _adopt(other: _std.socket) -> socket:
    """Make a socket of this module's class of one of the standard library's."""
    with cleanup():  # defers a kill until the descriptor has its socket
        family, kind, proto = other.family, other.type, other.proto
        return socket(family, kind, proto, fileno=other.detach())
    raise AssertionError  # for type checkers: nothing in the zone is absorbed by it


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> socket:  # noqa: A002
    """As socket.fromfd: a socket of its own, for a duplicate of the descriptor."""
    return _adopt(_fromfd(fd, family, type, proto))


def socketpair(
    family: int | None = None,
    type: int = _std.SOCK_STREAM,  # noqa: A002
    proto: int = 0,
) -> tuple[socket, socket]:
    """As socket.socketpair."""
    with cleanup():
        one, other = _socketpair(family, type, proto)
        return _adopt(one), _adopt(other)
    raise AssertionError


@functools.wraps(_create_server, assigned=())  # for its signature
def create_server(*args: Any, **kwargs: Any) -> socket:
    """As socket.create_server. A name instead of an address is resolved in C, and blocks."""
    with cleanup():
        return _adopt(_create_server(*args, **kwargs))
    raise AssertionError


def create_connection(
    address: tuple[str | None, int],
    timeout: float | None = _DEFAULT,
    source_address: Any = None,
    *,
    all_errors: bool = False,
) -> socket:
    """As socket.create_connection; `timeout` seconds are for each address that is tried.

    They do not bound the resolution of the name; a scope does. `all_errors` needs Python 3.11.

    Blocks: until the name is resolved and an address has answered.

    On cancel: Cancelled is raised, also on entry; the sockets made so far are closed.

    On timeout: the next address is tried; after the last one TimeoutError is raised.

    On kill: as on cancel, with Killed.

    Raises:
        OSError: no address could be connected to; gaierror, a subclass: the name has no address.
    """
    failures: list[OSError] = []
    try:
        for family, kind, proto, _, found in getaddrinfo(*address, 0, _std.SOCK_STREAM):
            sock = None
            try:
                sock = socket(family, kind, proto)
                if timeout is not _DEFAULT:
                    sock.settimeout(timeout)
                if source_address:
                    sock.bind(source_address)
                sock.connect(found)
            except BaseException as failure:
                if sock is not None:
                    sock.close()
                if not isinstance(failure, OSError):
                    raise
                failures.append(failure)
            else:
                return sock
        if not failures:
            raise OSError("getaddrinfo returns an empty list")
        if all_errors and sys.version_info >= (3, 11):
            raise ExceptionGroup("create_connection failed", failures)  # noqa: F821 (3.11)
        raise failures[-1]
    finally:
        failures.clear()  # a cycle through their tracebacks


def getaddrinfo(  # noqa: PLR0917 (as it is there)
    host: bytes | str | None,
    port: bytes | str | int | None,
    family: int = 0,
    type: int = 0,  # noqa: A002
    proto: int = 0,
    flags: int = 0,
) -> list[tuple[Any, Any, int, str, Any]]:
    """As socket.getaddrinfo. A checkpoint.

    A name is resolved by a helper thread. If the caller is to stop earlier, the thread is
    abandoned, and its result is dropped.

    Blocks: until the resolver of the system has answered, unless `host` is an address.

    On cancel: Cancelled is raised, also on entry.

    On kill: Killed is raised.
    """
    checkpoint()

    def resolve() -> list[tuple[Any, Any, int, str, Any]]:
        return _getaddrinfo(host, port, family, type, proto, flags)

    if host is None or host in ("", b"") or (isinstance(host, str) and _is_numeric(host)):
        return resolve()
    return Offloaded(resolve, "desist-getaddrinfo").result()


def _is_numeric(host: str) -> bool:
    """An address, which needs no resolution."""
    for family in _NAMED:
        try:
            _std.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False
