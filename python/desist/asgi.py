"""An ASGI middleware: a request ends when its client has left, or when its time is up.

    app.add_middleware(desist.asgi.CancelMiddleware, timeout=5)

    @app.get("/report")
    @desist.asgi.stoppable
    def report():
        desist.sleep(60)

Guarantees: when the client leaves, or the time is up, the coroutines of the request are cancelled
by anyio, and calls of `stoppable` functions by their token; a client that waits has its answer at
that time, also if such a call goes on. Once the response is complete, nothing is cancelled any
more: what runs then, runs in the background. The application sees all messages in their order.

How: the application runs in a scope of anyio's, beside two tasks. One of them reads the server's
messages ahead of the application, for only so it sees the message that the client has left;
of a body it keeps one message that the application has not asked for. The other waits for the time.
anyio calls a function on a worker thread in a copy of the context, so that a `stoppable` function
finds its request there, on whatever thread it runs, and enters a native `Task` below its token.

Relies on anyio for calling all of it on the thread of the event loop, in turn, but for `stoppable`
functions: those read `_Request.token` alone.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio

from desist._core import (
    Cancelled,
    CancelSource,
    CancelToken,
    Task,
    check_runnable,
    checkpoint,
    current_token,
)
from desist._killing import failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import TypeAlias

    _Message: TypeAlias = MutableMapping[str, Any]
    _Receive: TypeAlias = Callable[[], Awaitable[_Message]]
    _Send: TypeAlias = Callable[[_Message], Awaitable[None]]
    _App: TypeAlias = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_P = ParamSpec("_P")
_R = TypeVar("_R")

__all__ = ["CancelMiddleware", "stoppable"]


def stoppable(fn: Callable[_P, _R], /) -> Callable[_P, _R]:
    """Have each call of a function stopped with the request that it is a part of.

    For endpoints, dependencies and other functions that are no coroutines, and that the framework
    calls on a thread of anyio's, or on another one in a copy of the context. Without a request of
    CancelMiddleware the function is called as it is. Its deadline is known inside of it, see
    current_effective_deadline().

    The decorator itself never blocks.

    On cancel: of the request: desist waits and checkpoints inside raise Cancelled, and clean-up
    zones have their grace. Cancelled goes on to the middleware, through the framework, whose error
    handlers do not see it.

    Raises:
        TypeError: `fn` is not callable, or it is a coroutine function or a generator function,
            whose call returns before its code runs. anyio cancels the former with the request.
        TaskCancelled: by a call that raised Cancelled, though its request was not cancelled: it has
            checked another token, say.
    """
    check_runnable(fn, "fn", "a coroutine needs no stoppable()")
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__

    @functools.wraps(fn)
    def stopped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        request = _current.get()
        token = None if request is None else request.token
        call = functools.partial(fn, *args, **kwargs)
        return call() if token is None else _call_under(token, name, call)

    return stopped


def _call_under(token: CancelToken, name: str, call: Callable[[], _R]) -> _R:
    """Call a function on this thread, as a task below the token."""
    results: list[_R] = []
    raised: BaseException | None = None

    def settle(result: _R, failure: BaseException | None) -> None:
        nonlocal raised
        raised = failure
        if failure is None:
            results.append(result)

    task = Task(name, token)
    task.run(call, settle)
    if not token.cancelled:
        raised = failure_of(task, raised)
    if raised is not None:
        try:
            raise raised
        finally:
            raised = None  # a cycle through the traceback
    return results.pop()


class CancelMiddleware:
    """ASGI middleware that cancels a request when its client has left, or its time is up.

    For Starlette, FastAPI and other frameworks that use anyio or asyncio, in asyncio and in trio.
    Coroutines are cancelled by anyio. Functions on threads are, if they are `stoppable`; others run
    on, with nothing to tell them. Websockets are passed on.

    When the time is up and no response has begun, the answer is 503 at once, also if functions on
    threads go on; a response that has begun is cut off. Both end with the response: what a
    framework runs afterwards in the background is not cancelled. That a client has left is seen
    when the application has read the body up to its last two messages.

    Blocks: each call, the awaiting task alone, until the application has ended. A checkpoint of
    desist.

    On cancel: of the awaiting task: the request is cancelled. In a desist scope that is cancelled
    around the event loop: likewise, and Cancelled is raised.

    Args:
        app: The application.
        timeout: Seconds from the beginning of the request; None: no limit.
    """

    def __init__(self, app: _App, *, timeout: float | None = None) -> None:
        """As a framework's add_middleware() calls it."""
        CancelSource(timeout=timeout)  # raises for a time that is not valid
        self._app = app
        self._timeout = timeout

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Run the application for one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        checkpoint()
        with CancelSource(current_token(), timeout=self._timeout) as source:
            request = _Request(source, self._timeout, receive, send)
            reset = _current.set(request)
            try:
                await request.run(self._app, scope)
            finally:
                _current.reset(reset)


class _Request:
    """One request, from the first message to the end of the application."""

    def __init__(
        self, source: CancelSource, timeout: float | None, receive: _Receive, send: _Send
    ) -> None:
        # It has the deadline, too.
        self._source = source
        self._timeout = timeout
        self._server_receive = receive
        self._server_send = send
        # The scope of the application's coroutines.
        self._scope = anyio.CancelScope()
        # Messages that the application has not asked for. Closed when the client has left.
        self._into, self._messages = anyio.create_memory_object_stream["_Message"](1)
        # Whether a response has begun, and whether it is complete.
        self._begun = self._complete = False
        # Whether the answer was that the time is up: the application's messages are dropped then.
        self._refused = False

    @property
    def token(self) -> CancelToken | None:
        """The token of its functions; None if the response is complete. For any thread."""
        return None if self._complete else self._source.token

    async def run(self, app: _App, scope: _Message) -> None:
        """Run the application; end it when the client leaves or the time is up."""
        failure: BaseException | None = None
        with self._into, self._messages:
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen)
                if self._timeout is not None:
                    group.start_soon(self._refuse_after, self._timeout)
                try:
                    with self._scope:
                        await app(scope, self._receive, self._send)
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as raised:  # noqa: BLE001 (raised below, outside of the group)
                    failure = raised
                is_over = self._source.token.cancelled
                group.cancel_scope.cancel()
        if failure is None:
            return
        if not (is_over and _is_cancelled(failure)):
            raise failure
        checkpoint()  # it was cancelled with the code around the event loop
        if self._timeout is not None and self._source.token.remaining() <= 0:
            await self._refuse()

    # --- messages to the application

    async def _listen(self) -> None:
        try:
            message = await self._server_receive()
            while message["type"] != "http.disconnect":
                await self._into.send(message)
                message = await self._server_receive()
        except anyio.get_cancelled_exc_class():
            # The application's task is cancelled, too, but perhaps in a shield, behind which it
            # waits for a function.
            self._source.cancel("the task of the request was cancelled")
            raise
        self._into.close()
        if not self._complete:
            self._stop("the client has left")

    async def _receive(self) -> _Message:
        try:
            return await self._messages.receive()
        except anyio.EndOfStream:
            return {"type": "http.disconnect"}

    # --- and from it

    async def _send(self, message: _Message) -> None:
        if self._refused:
            return
        self._begun = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True
        await self._server_send(message)

    async def _refuse_after(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        if not self._complete:
            self._stop("the time of the request is up")
            await self._refuse()

    async def _refuse(self) -> None:
        """Answer that the time is up, unless a response has begun."""
        if self._begun:
            return
        self._begun = self._refused = True
        with anyio.CancelScope(shield=True):
            for message in _UNAVAILABLE:
                await self._server_send(dict(message))

    def _stop(self, reason: str) -> None:
        self._source.cancel(reason)
        self._scope.cancel()


def _is_cancelled(failure: BaseException) -> bool:
    """Is it Cancelled, or a group of such exceptions, as a task group raises them?"""
    inner = getattr(failure, "exceptions", None)
    return isinstance(failure, Cancelled) if inner is None else all(map(_is_cancelled, inner))


_current: ContextVar[_Request | None] = ContextVar("desist.asgi.request", default=None)

_UNAVAILABLE: tuple[dict[str, Any], ...] = (
    {
        "type": "http.response.start",
        "status": 503,
        "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"19")],
    },
    {"type": "http.response.body", "body": b"Service Unavailable"},
)
