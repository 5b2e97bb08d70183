from __future__ import annotations

import io
import math
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

import desist
from desist import CancelSource
from desist.wsgi import CancelMiddleware
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADERS = [("Content-Type", "text/plain"), ("Application", "yes")]
REFUSED = b"Service Unavailable"
SOON = 0.05


class Server(SimpleHandler):
    """A server's side of one request."""

    def __init__(self) -> None:
        environ: dict[str, Any] = {"QUERY_STRING": ""}
        setup_testing_defaults(environ)
        self.out = io.BytesIO()
        super().__init__(io.BytesIO(), self.out, io.StringIO(), environ)
        self.raised: BaseException | None = None

    def log_exception(self, exc_info: Any) -> None:
        self.raised = exc_info[1]

    def request(self, app: Any, timeout: float | None = NEVER) -> Server:
        self.run(CancelMiddleware(app, timeout=timeout))
        return self

    @property
    def code(self) -> int:
        return int(self.out.getvalue().split()[1])

    @property
    def body(self) -> bytes:
        return self.out.getvalue().partition(b"\r\n\r\n")[2]


def request(app: Any, timeout: float | None = NEVER) -> Server:
    """Serve one request."""
    return Server().request(app, timeout)


def hang(_environ: Any = None, _start_response: Any = None) -> Any:
    desist.sleep_forever()


class Body:
    """A body that consists of the results of functions, and notes that it was closed."""

    def __init__(self, *chunks: Callable[[], bytes | None]) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> Any:
        return next(self.chunks)()

    def close(self) -> None:
        self.closed += 1

    def app(self, _environ: Any, start_response: Any) -> Body:
        start_response("200 OK", HEADERS)
        return self


class Heads(list[Any]):
    """A start_response() that notes its calls."""

    def __call__(self, *head: Any) -> Any:
        self.append(head)


def of(chunk: bytes) -> Callable[[], bytes]:
    return lambda: chunk


# --- in time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[], [b"all"], [b"some, ", b"", b"more"]])
def test_a_request_that_ends_in_time_is_not_touched(chunks: list[bytes]) -> None:
    body = Body(*map(of, chunks))
    server = request(body.app)
    assert server.raised is None
    assert server.code == 200
    assert b"Application: yes" in server.out.getvalue()
    assert server.body == b"".join(chunks)
    assert body.closed == 1


@pytest.mark.parametrize("timeout", [SOON, None])
def test_both_sides_of_the_middleware_are_valid_wsgi(timeout: float | None) -> None:
    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", HEADERS)
        if timeout is not None:
            desist.sleep_forever()
        yield b"in time"

    server = Server()
    server.run(validator(CancelMiddleware(validator(app), timeout=timeout)))
    assert server.raised is None
    assert server.body == (b"in time" if timeout is None else REFUSED)


@pytest.mark.parametrize("body", [[b"x"], (), FileWrapper(io.BytesIO(b"x"))])
def test_a_body_without_code_of_the_application_is_passed_on_as_it_is(body: Any) -> None:
    heads = Heads()

    def app(_environ: Any, start_response: Any) -> Any:
        start_response("200 OK", HEADERS)
        return body

    environ = {"wsgi.file_wrapper": FileWrapper}
    assert CancelMiddleware(app, timeout=NEVER)(environ, heads) is body
    assert heads == [("200 OK", HEADERS)]


def test_what_is_written_arrives_before_the_body() -> None:
    def app(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", HEADERS)(b"written ")
        return [b"returned"]

    assert request(app).body == b"written returned"


def test_the_deadline_is_known_in_each_step_and_nowhere_else() -> None:
    found: list[float] = []

    class Noted(Body):
        def close(self) -> None:
            found.append(desist.current_effective_deadline())

    def note() -> bytes:
        found.append(desist.current_effective_deadline())
        return b"x"

    def app(environ: Any, start_response: Any) -> Body:
        note()
        return Noted(note, note).app(environ, start_response)

    before = desist.current_time()
    response: Any = CancelMiddleware(app, timeout=NEVER)({}, Heads())
    between = [desist.current_effective_deadline() for _ in response]
    response.close()
    assert between == [math.inf, math.inf]
    assert len(found) == 4
    assert before + NEVER <= found[0] <= desist.current_time() + NEVER
    assert found[:3] == [found[0]] * 3
    assert found[0] < found[3] < math.inf  # with the grace of clean-up


# --- the time is up -------------------------------------------------------------------------------


def test_when_the_time_is_up_the_wait_ends_and_the_answer_is_503() -> None:
    raised: list[BaseException] = []

    def app(*_: Any) -> None:
        try:
            desist.sleep_forever()
        except BaseException as error:
            raised.append(error)
            raise

    server = request(app, SOON)
    assert server.raised is None
    assert server.code == 503
    assert server.body == REFUSED
    assert isinstance(raised.pop(), desist.Cancelled)


@pytest.mark.skipif(
    not desist.foreign_status().available,
    reason=f"calls cannot be ended here: {desist.foreign_status().reason}",
)
def test_a_call_of_requests_that_has_no_answer_ends_too() -> None:
    requests = pytest.importorskip("requests", reason="requests is not installed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert request(lambda *_: requests.get(url), 0.1).code == 503


def test_before_the_first_chunk_the_answer_is_503_and_has_no_header_of_the_application() -> None:
    body = Body(hang, of(b"more"))
    server = request(body.app, SOON)
    assert server.raised is None
    assert server.code == 503
    assert b"Application" not in server.out.getvalue()
    assert server.body == REFUSED
    assert body.closed == 1


@pytest.mark.parametrize("chunk", [b"begun", b""])
def test_after_the_first_chunk_the_response_is_cut_off(chunk: bytes) -> None:
    body = Body(of(chunk), hang)
    server = request(body.app, SOON)
    assert isinstance(server.raised, desist.DeadlineExceeded)
    assert server.code == 200
    assert server.body == chunk
    assert body.closed == 1


def test_after_written_data_the_response_is_cut_off() -> None:
    def app(_environ: Any, start_response: Any) -> None:
        start_response("200 OK", HEADERS)(b"begun")
        desist.sleep_forever()

    server = request(app, SOON)
    assert isinstance(server.raised, desist.DeadlineExceeded)
    assert server.body == b"begun"


def test_a_generator_cleans_up_and_so_does_the_close_of_a_body_within_the_grace() -> None:
    cleaned: list[str] = []

    class Slow(Body):
        def close(self) -> None:
            desist.sleep(SOON)
            cleaned.append("closed")

    def chunks() -> Iterator[bytes]:
        try:
            desist.sleep_forever()
            yield b""
        finally:
            cleaned.append("generator")

    assert request(Slow(chunks().__next__).app, SOON).code == 503
    assert cleaned == ["generator", "closed"]


def test_an_answer_that_is_there_is_sent_also_if_it_is_late() -> None:
    def late() -> bytes:
        with desist.shield(NEVER):
            desist.sleep_until(until + SOON)
        return b"late"

    until = desist.current_time() + SOON
    body = Body(late, of(b" and whole"))
    server = request(body.app, SOON)
    assert server.raised is None
    assert server.code == 200
    assert server.body == b"late and whole"


def test_a_request_without_any_time_left_does_not_begin() -> None:
    begun: list[int] = []
    assert request(lambda *_: begun.append(1), 0).code == 503
    assert not begun


def test_of_nested_middlewares_the_shorter_time_counts() -> None:
    for inner, outer in ((SOON, NEVER), (NEVER, SOON), (SOON, SOON)):
        for chunks in ((), (of(b"begun"),)):
            body = Body(*chunks, hang)
            server = request(CancelMiddleware(body.app, timeout=inner), outer)
            assert server.code == (200 if chunks else 503)
            assert isinstance(server.raised, desist.DeadlineExceeded) is bool(chunks)
            assert body.closed == 1


@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), ("x", TypeError)])
def test_a_time_that_is_not_valid_is_refused(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        CancelMiddleware(hang, timeout=bad)
    with pytest.raises(error):
        CancelMiddleware(hang, timeout=NEVER).shutdown(bad)


# --- exceptions -----------------------------------------------------------------------------------


def test_an_error_of_the_application_is_raised_as_it_is() -> None:
    def fail(error: BaseException) -> Any:
        raise error

    for error in (ValueError("x"), SystemExit(3), desist.DeadlineExceeded("of its own")):
        body = Body(of(b"x"), lambda error=error: fail(error))  # type: ignore[misc]
        assert request(lambda *_, error=error: fail(error)).raised is error
        assert request(body.app).raised is error
        assert body.closed == 1


def test_the_deadline_of_a_block_in_the_application_is_no_end_of_the_request() -> None:
    def app(*_: Any) -> None:
        with desist.fail_after(SOON):
            desist.sleep_forever()

    server = request(app)
    assert isinstance(server.raised, desist.DeadlineExceeded)
    assert server.code == 500


def test_cancelled_of_another_token_is_an_ordinary_exception_for_the_server() -> None:
    source = CancelSource()
    source.cancel("another")
    server = request(lambda *_: source.token.check())
    assert isinstance(server.raised, desist.TaskCancelled)
    assert isinstance(server.raised.__cause__, desist.Cancelled)


def test_a_cancelled_scope_around_the_server_is_no_end_of_the_request() -> None:
    heads = Heads()
    middleware = CancelMiddleware(hang, timeout=NEVER)
    with desist.move_on_after(SOON) as scope:
        middleware({}, heads)
    assert scope.cancelled_caught
    assert not heads


def test_in_a_cancelled_scope_around_the_server_no_request_begins() -> None:
    heads = Heads()
    with desist.move_on_after(NEVER) as scope:
        scope.cancel()
        CancelMiddleware(Body().app, timeout=NEVER)({}, heads)
    assert scope.cancelled_caught
    assert not heads


@pytest.mark.parametrize("chunks", [0, 1])
def test_an_error_replaces_the_head_until_the_first_chunk(chunks: int) -> None:
    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", HEADERS)
        yield from [b"begun"] * chunks
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        yield b"error"

    server = request(app)
    assert server.code == (200 if chunks else 500)
    assert server.body == (b"begun" if chunks else b"error")
    assert isinstance(server.raised, ZeroDivisionError) is bool(chunks)


def test_a_second_head_without_an_error_is_refused() -> None:
    def app(_environ: Any, start_response: Any) -> Any:
        start_response("200 OK", HEADERS)
        start_response("200 OK", HEADERS)

    assert isinstance(request(app).raised, AssertionError)


# --- shutdown -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["call", "body"])
def test_a_shutdown_ends_the_requests_that_run_after_its_time(where: str) -> None:
    begun = threading.Event()

    def wait() -> Any:
        begun.set()
        desist.sleep_forever()

    app = Body(wait).app if where == "body" else (lambda *_: wait())
    middleware = CancelMiddleware(app, timeout=NEVER)

    def stop() -> None:
        begun.wait()
        middleware.shutdown(SOON)

    thread = threading.Thread(target=stop)
    thread.start()
    server = Server()
    server.run(middleware)
    thread.join()
    assert server.code == 503
    assert not middleware._steps._scopes


def test_requests_after_a_shutdown_have_the_rest_of_its_time() -> None:
    deadlines: list[float] = []

    def app(_environ: Any, start_response: Any) -> list[bytes]:
        deadlines.append(desist.current_effective_deadline())
        start_response("200 OK", HEADERS)
        return [b"x"]

    middleware = CancelMiddleware(app, timeout=None)
    servers = [Server() for _ in range(4)]
    servers[0].run(middleware)
    for server, seconds in zip(servers[1:], (NEVER, 2 * NEVER, 0), strict=True):
        middleware.shutdown(seconds)
        server.run(middleware)
    assert [server.code for server in servers] == [200, 200, 200, 503]
    assert deadlines[0] == math.inf
    assert deadlines[1] == deadlines[2] < desist.current_time() + NEVER


def test_a_shutdown_passes_over_steps_that_end_in_the_same_moment() -> None:
    middleware = CancelMiddleware(hang, timeout=NEVER)
    steps: Any = middleware._steps
    with desist.fail_after(NEVER) as one, desist.fail_after(NEVER) as other:
        steps._scopes |= {one, other}
    shorten = steps._shorten

    def end_first(scope: Any) -> None:
        steps._scopes.clear()
        shorten(scope)

    steps._shorten = end_first
    middleware.shutdown(NEVER)
