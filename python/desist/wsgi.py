"""A WSGI middleware: a request whose time is up is answered 503, and its thread is free again.

    app.wsgi_app = desist.wsgi.CancelMiddleware(app.wsgi_app, timeout=5)

Guarantees: when the time of a request is up, the wait that the application is in is ended, in its
call or in the iteration over the body. The client gets 503 if the server has nothing of the
response yet; else the server gets DeadlineExceeded, for which it closes the connection. The
iterable of the application is closed with that of the middleware. An exception of the application
is raised as it is. Cancelled never reaches the server, unless the server's own code is cancelled.

How: a server runs code of the application in steps: the call, each chunk of the body, the close().
Each step is one block of a scope with the deadline of the request, for no scope may be open while
the server has control. Status and headers are kept until the first chunk, since some servers send
both heads if start_response() is called again. A body without code of the application, a list or
the server's own file wrapper, is passed on as it is, so that the server can use its length and
sendfile(). `_Steps` contains the open scopes, so that a server that stops can bring their deadlines
forward.

Relies on the server for the steps of a request being on one thread at a time.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from desist._core import (
    Cancelled,
    CancelSource,
    checkpoint,
    cleanup,
    current_time,
    current_token,
    fail_after,
)
from desist._exceptions import DeadlineExceeded, ScopeMisuse, TaskCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from desist._core import FailScope

    _Head: TypeAlias = tuple[str, list[tuple[str, str]]]

_P = ParamSpec("_P")
_R = TypeVar("_R")

__all__ = ["CancelMiddleware"]


class CancelMiddleware:
    """WSGI middleware that ends a request when its time is up.

    For Flask, Django and all others, on any server with threads. The time ends desist's waits, and
    the blocking calls of other code where foreign_status() says so; code that runs is left alone,
    and an answer that is there is sent, however late. The deadline is known inside, see
    current_effective_deadline().

    Blocks: each call, until the application has returned. A checkpoint.

    On timeout: the application's wait raises Cancelled; its clean-up code, and the close() of its
    body, have their grace. If no part of the response has gone to the server, the answer is 503; a
    response that has begun is cut off by a DeadlineExceeded, which the server logs.

    On cancel: of the calling code: Cancelled is raised, and nothing is answered.

    Raises:
        TypeError, ValueError: a time that is not valid.
        TaskCancelled: by a request that raised Cancelled, though it was not cancelled: it has
            checked another token, say.

    Args:
        app: The application.
        timeout: Seconds from the call to the end of the body; None: no limit.
    """

    def __init__(self, app: WSGIApplication, *, timeout: float | None) -> None:
        """Wrap the application."""
        CancelSource(timeout=timeout)  # raises for a time that is not valid
        self._app = app
        self._timeout = inf if timeout is None else timeout
        self._steps = _Steps()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the application for one request."""
        deadline = self._time_of_arrival() + self._timeout
        return _Response(self._steps, deadline, start_response).begin(self._app, environ)

    def shutdown(self, timeout: float) -> None:
        """Let no request, present or future, go on for more than these seconds from now.

        For a server that stops, which would otherwise cut off the requests that go on for longer.

        Never blocks. It works from any thread and signal handler.

        Raises:
            TypeError, ValueError: a time that is not valid.
        """
        self._steps.end_by(CancelSource(timeout=timeout).token.deadline)

    def _time_of_arrival(self) -> float:
        """When the time of the request that is being called has begun."""
        return current_time()


class _Steps:
    """The steps of all requests of one middleware."""

    def __init__(self) -> None:
        # When all steps end. Written before `_scopes` is read, and a step reads it after it has
        # entered its scope there: one of both sees the other.
        self._end = inf
        # The scopes of the steps under way; added and removed by their threads.
        self._scopes: set[FailScope] = set()

    def run(
        self,
        scope: FailScope,
        step: Callable[_P, _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Run one step in its scope."""
        with scope:
            self._scopes.add(scope)
            try:
                self._shorten(scope)
                return step(*args, **kwargs)
            finally:
                self._scopes.discard(scope)

    def end_by(self, end: float) -> None:
        """Bring the deadlines of all steps forward."""
        self._end = min(self._end, end)
        for scope in self._scopes.copy():
            with suppress(ScopeMisuse):  # its block was left in the meantime
                self._shorten(scope)

    def _shorten(self, scope: FailScope) -> None:
        scope.deadline = min(scope.deadline, self._end)


class _TimeIsUp(Exception):
    """The time is up, and the server has nothing of the response yet."""


class _Response:
    """The response of one request: the iterable for the server."""

    def __init__(self, steps: _Steps, deadline: float, start_response: StartResponse) -> None:
        self._steps = steps
        self._deadline = deadline
        self._server_start_response = start_response
        # The server's write(), once it has the head.
        self._server_write: Callable[[bytes], object] | None = None
        # Status and headers, while the server does not have them.
        self._head: _Head | None = None
        # The iterable of the application, and the iterator over it, made by the first step.
        self._body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None

    def begin(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """Call the application, and return the body for the server."""
        try:
            self._body = self._in_time(self._called, app, environ)
        except _TimeIsUp:
            self._body = self._refusal()
        if isinstance(self._body, list | tuple) or _is_file(self._body, environ):
            self._send_head()
            return self._body
        return self

    # --- for the server

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = self._in_time(self._next_chunk)
        except StopIteration:
            self._send_head()
            raise
        except _TimeIsUp:
            self._chunks = iter(self._refusal())
            chunk = next(self._chunks)
        self._send_head()
        return chunk

    def close(self) -> None:
        """Close the iterable of the application."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._in_time(_cleaned, close)

    # --- for the application

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        if self._server_write is not None:
            return self._server_start_response(status, headers, exc_info)  # raises the exception
        if self._head is not None and exc_info is None:
            raise AssertionError("start_response() was called before, and there is no exc_info")
        self._head = (status, headers)
        return self._write

    def _write(self, data: bytes) -> None:
        self._send_head()
        assert self._server_write is not None  # noqa: S101 (for the type checker)
        self._server_write(data)

    # --- steps

    def _in_time(self, step: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a step under the deadline of the request."""
        scope = fail_after(deadline=self._deadline)
        try:
            return self._steps.run(scope, step, *args, **kwargs)
        except DeadlineExceeded as raised:
            if scope.expired and self._server_write is None:
                raise _TimeIsUp from raised
            raise
        except Cancelled as raised:
            if current_token().cancelled:
                raise
            # A server expects no such exception: it can end a worker.
            raise TaskCancelled(raised.cause) from raised

    def _called(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        checkpoint()  # the time may have passed in a queue
        return app(environ, self._start_response)

    def _next_chunk(self) -> bytes:
        if self._chunks is None:
            self._chunks = iter(self._body)
        return next(self._chunks)

    def _refusal(self) -> list[bytes]:
        """Replace the head of the application; return the body."""
        self._head = ("503 Service Unavailable", list(_UNAVAILABLE_HEADERS))
        return [_UNAVAILABLE]

    def _send_head(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._server_write = self._server_start_response(*head)


def _cleaned(close: Callable[[], object]) -> None:
    """Close an iterable within the grace of the request."""
    with cleanup():
        close()


def _is_file(body: object, environ: WSGIEnvironment) -> bool:
    """Is it a file that the server sends by itself?"""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


_UNAVAILABLE = b"Service Unavailable"
_UNAVAILABLE_HEADERS = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(_UNAVAILABLE))),
)
