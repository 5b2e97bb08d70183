from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

import desist
from desist import CancelSource
from desist.asgi import CancelMiddleware, stoppable
from support import NEVER, turns, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Run

HTTP = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
EMPTY = {"type": "http.request", "body": b"", "more_body": False}
LEFT = {"type": "http.disconnect"}


class Server:
    """A server's side of one request."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages or [EMPTY])
        self.sent: list[Any] = []
        self.left = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        if self.messages:
            return self.messages.pop(0)
        await self.left.wait()
        return LEFT

    async def send(self, message: Any) -> None:
        await checkpoint()  # as for a connection that is slow
        self.sent.append(message)

    async def request(self, app: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await CancelMiddleware(app, timeout=timeout)(dict(HTTP), self.receive, self.send)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None


async def answer(send: Any, body: bytes = b"ok") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def on_thread(call: Callable[[], object]) -> Any:
    """Make an application that calls a function on one of anyio's threads."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await anyio.to_thread.run_sync(call)
        await answer(send)

    return app


class Endpoint:
    """A function on a thread, which waits until it is stopped."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.raised: BaseException | None = None

    def __call__(self) -> None:
        self.begun.set()
        try:
            desist.sleep_forever()
        except BaseException as raised:
            self.raised = raised
            raise


# --- the middleware -------------------------------------------------------------------------------


def test_a_request_that_ends_in_time_is_not_touched(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/"
        assert await receive() == EMPTY
        await answer(send)

    async def main() -> None:
        server = Server()
        await server.request(app, timeout=NEVER)
        assert [message["type"] for message in server.sent] == [
            "http.response.start",
            "http.response.body",
        ]

    run(main)


def test_a_client_that_leaves_stops_the_function_of_its_request(run: Run) -> None:
    endpoint = Endpoint()

    async def main() -> None:
        server = Server()
        async with anyio.create_task_group() as group:
            group.start_soon(server.request, on_thread(stoppable(endpoint)))
            await until(endpoint.begun)
            server.left.set()
        assert not server.sent

    run(main)
    assert isinstance(endpoint.raised, desist.Cancelled)


def test_when_the_time_is_up_the_function_is_stopped_and_the_answer_is_503(run: Run) -> None:
    endpoint = Endpoint()

    async def main() -> None:
        server = Server()
        await server.request(on_thread(stoppable(endpoint)), timeout=0.02)
        assert server.status == 503
        assert server.sent[1]["body"] == b"Service Unavailable"
        assert len(server.sent) == 2

    run(main)
    assert isinstance(endpoint.raised, desist.Cancelled)


def test_the_deadline_of_the_request_is_known_in_its_functions(run: Run) -> None:
    remaining: list[float] = []

    @stoppable
    def look() -> None:
        remaining.append(desist.current_token().remaining())

    async def app(*_: Any) -> None:
        await anyio.to_thread.run_sync(look)

    async def main() -> None:
        await Server().request(app, timeout=NEVER)
        look()  # outside of the request

    run(main)
    assert 0 < remaining[0] <= NEVER
    assert remaining[1] == float("inf")


def test_a_function_that_cannot_be_stopped_does_not_hold_up_the_answer(run: Run) -> None:
    go_on = threading.Event()

    async def main() -> None:
        server = Server()
        async with anyio.create_task_group() as group:
            group.start_soon(server.request, on_thread(go_on.wait), 0.02)
            while not server.sent:  # noqa: ASYNC110 (the server has no notification)
                await anyio.sleep(0.001)
            assert server.status == 503
            go_on.set()
        assert len(server.sent) == 2

    run(main)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_coroutine_is_cancelled_too(run: Run, leaves: bool) -> None:
    cleaned: list[int] = []

    async def main() -> None:
        begun = anyio.Event()

        async def app(_scope: Any, _receive: Any, _send: Any) -> None:
            try:
                begun.set()
                await anyio.sleep_forever()
            finally:
                cleaned.append(1)

        server = Server()
        async with anyio.create_task_group() as group:
            group.start_soon(server.request, app, None if leaves else 0.02)
            await begun.wait()
            if leaves:
                server.left.set()
        assert server.status == (None if leaves else 503)
        assert len(server.sent) == (0 if leaves else 2)

    run(main)
    assert cleaned == [1]


def test_functions_in_a_task_group_end_with_the_request(run: Run) -> None:
    endpoint = Endpoint()

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, stoppable(endpoint))

    async def main() -> None:
        server = Server()
        await server.request(app, timeout=0.02)
        assert server.status == 503

    run(main)


def test_an_error_of_the_clean_up_is_raised(run: Run) -> None:
    def fail() -> None:
        try:
            desist.sleep_forever()
        finally:
            raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await Server().request(on_thread(stoppable(fail)), timeout=0.02)

    run(main)


def test_a_response_that_has_begun_is_cut_off(run: Run) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await anyio.sleep_forever()

    async def main() -> None:
        server = Server()
        await server.request(app, timeout=0.02)
        assert server.status == 200
        assert len(server.sent) == 2

    run(main)


def test_what_runs_after_the_response_is_not_stopped(run: Run) -> None:
    done: list[int] = []

    def background() -> None:
        assert desist.current_effective_deadline() == float("inf")
        desist.checkpoint()
        done.append(1)

    async def main() -> None:
        server = Server()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await answer(send)
            server.left.set()
            await anyio.sleep(0.04)
            await anyio.to_thread.run_sync(stoppable(background))

        await server.request(app, timeout=0.02)
        assert server.status == 200

    run(main)
    assert done == [1]


def test_the_messages_of_a_body_arrive_in_their_order_and_then_the_disconnect(run: Run) -> None:
    body = [{"type": "http.request", "body": bytes([n]), "more_body": n < 4} for n in range(5)]
    got: list[Any] = []

    async def main() -> None:
        server = Server(*body)

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await turns()
            assert len(server.messages) >= 3  # it does not read the whole body ahead
            got.extend([await receive() for _ in body])
            await answer(send)
            server.left.set()
            got.extend([await receive(), await receive()])

        await server.request(app)

    run(main)
    assert got == [*body, LEFT, LEFT]


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3)])
def test_an_error_of_the_application_is_raised_as_it_is(run: Run, error: BaseException) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise error

    async def main() -> None:
        with pytest.raises(type(error)) as raised:
            await Server().request(app, timeout=NEVER)
        assert raised.value is error

    run(main)


def test_cancelled_of_another_token_is_no_end_of_the_request(run: Run) -> None:
    source = CancelSource()
    source.cancel()

    async def check(*_: Any) -> None:
        source.token.check()

    async def main() -> None:
        with pytest.raises(desist.TaskCancelled):
            await Server().request(on_thread(stoppable(source.token.check)))
        with pytest.raises(desist.Cancelled):
            await Server().request(check)

    run(main)


def test_a_cancelled_task_of_the_server_stops_the_function(run: Run) -> None:
    endpoint = Endpoint()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(Server().request, on_thread(stoppable(endpoint)))
            await until(endpoint.begun)
            group.cancel_scope.cancel()

    run(main)
    assert isinstance(endpoint.raised, desist.Cancelled)


def test_a_scope_around_the_event_loop_stops_the_function(run: Run) -> None:
    endpoint = Endpoint()

    async def main() -> None:
        await Server().request(on_thread(stoppable(endpoint)))

    with desist.move_on_after(0.1) as scope:
        run(main)
    assert scope.cancelled_caught
    assert isinstance(endpoint.raised, desist.Cancelled)


def test_in_a_cancelled_scope_around_the_event_loop_no_request_begins(run: Run) -> None:
    begun: list[int] = []

    async def app(*_: Any) -> None:
        begun.append(1)

    async def main() -> None:
        scope.cancel()
        await Server().request(app)

    with desist.move_on_after(NEVER) as scope:
        run(main)
    assert scope.cancelled_caught
    assert not begun


def test_other_connections_are_passed_on(run: Run) -> None:
    got: list[Any] = []

    async def app(*arguments: Any) -> None:
        got.extend(arguments)

    async def main() -> None:
        await CancelMiddleware(app)({"type": "websocket"}, 1, 2)  # type: ignore[arg-type]

    run(main)
    assert got == [{"type": "websocket"}, 1, 2]


@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), ("x", TypeError)])
def test_a_time_that_is_not_valid_is_refused(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        CancelMiddleware(None, timeout=bad)  # type: ignore[arg-type]


def test_of_nested_middlewares_the_shorter_time_counts(run: Run) -> None:
    async def main() -> None:
        for times in ((0.02, NEVER), (NEVER, 0.02)):
            server, endpoint = Server(), Endpoint()
            inner = CancelMiddleware(on_thread(stoppable(endpoint)), timeout=times[0])
            await server.request(inner, timeout=times[1])
            assert server.status == 503
            assert len(server.sent) == 2
            assert isinstance(endpoint.raised, desist.Cancelled)

    run(main)


# --- stoppable ------------------------------------------------------------------------------------


def test_without_a_request_a_function_is_called_as_it_is() -> None:
    @stoppable
    def add(one: int, *, more: int) -> int:
        """Add."""
        return one + more

    assert add(3, more=4) == 7
    assert add.__doc__ == "Add."
    with pytest.raises(ZeroDivisionError):
        stoppable(lambda: 1 / 0)()


def test_results_and_errors_of_a_function_in_a_request_are_its_own(run: Run) -> None:
    got: list[object] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        got.append(await anyio.to_thread.run_sync(stoppable(lambda: 7)))
        with pytest.raises(ZeroDivisionError):
            await anyio.to_thread.run_sync(stoppable(lambda: 1 / 0))
        await answer(send)

    async def main() -> None:
        await Server().request(app)

    run(main)
    assert got == [7]


async def coroutine() -> None:
    """Do nothing."""


def generator() -> Iterator[None]:
    yield


@pytest.mark.parametrize("bad", [coroutine, generator, None])
def test_a_function_whose_call_runs_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="fn must"):
        stoppable(bad)


# --- frameworks -----------------------------------------------------------------------------------


class Site:
    """A function that takes long, and one that does not."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)

    def answer(self, path: str) -> str:
        if path == "slow":
            self.begun.release()
            desist.sleep(NEVER)
        return "pong"


def starlette_app(site: Site) -> Any:
    applications = pytest.importorskip(
        "starlette.applications", reason="starlette is not installed"
    )
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    @stoppable
    def endpoint(request: Any) -> Any:
        return PlainTextResponse(site.answer(request.path_params["path"]))

    app = applications.Starlette(routes=[Route("/{path}", endpoint)])
    app.add_middleware(CancelMiddleware)
    return app


def fastapi_app(site: Site) -> Any:
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
    app = fastapi.FastAPI()
    app.add_middleware(CancelMiddleware)

    @stoppable
    def endpoint(path: str) -> str:
        return site.answer(path)

    app.get("/{path}")(endpoint)
    return app


@contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve an application with uvicorn, on a thread; yields the port."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=partial(server.run, sockets=[listener]))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def get(port: int, path: str) -> socket.socket:
    """Send a request, and do not wait for the response."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return client


def response(client: socket.socket) -> str:
    with client, client.makefile("rb") as file:
        return file.read().decode()


@pytest.mark.parametrize("make", [starlette_app, fastapi_app])
def test_clients_that_give_up_leave_no_thread_of_the_server_busy(
    make: Callable[[Site], Any],
) -> None:
    site = Site()
    with served(make(site)) as port:
        clients = [get(port, "/slow") for _ in range(45)]
        for _ in range(40):  # so many threads has anyio
            site.begun.acquire()
        for client in clients:
            client.close()
        assert "pong" in response(get(port, "/ping"))


def test_a_request_whose_time_is_up_is_answered_and_the_next_one_too() -> None:
    with served(CancelMiddleware(starlette_app(Site()), timeout=0.1)) as port:
        assert response(get(port, "/slow")).startswith("HTTP/1.1 503 Service Unavailable")
        assert "pong" in response(get(port, "/ping"))
