"""Libraries that know nothing of desist: their blocking calls end, as by an error of the system.

Each case gives a call that blocks for ever, mostly on a server that does not answer. Behind its
`yield` it checks the state of the library after the call was ended: which connections are closed,
and which calls work again.
"""

from __future__ import annotations

import http.client
import os
import pty
import smtplib
import socket
import ssl
import struct
import threading
import urllib.request
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, DeadlineExceeded, KillOutcome
from servers import postgres_server, redis_server
from support import ASK, NEVER, Victim, until_asleep
from test_foreign_calls import after_a_few_looks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from servers import Server

    Call = Callable[[], object]
    Serve = Callable[[socket.socket, threading.Event], None]
    Case = Callable[["Servers"], AbstractContextManager[Call]]

pytestmark = [
    pytest.mark.skipif(
        not desist.foreign_status().available,
        reason=f"calls cannot be ended here: {desist.foreign_status().reason}",
    ),
    pytest.mark.timeout(300),  # the first may have to download a server
]

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"
HOST = "127.0.0.1"
SOON = 20.0
"""Seconds within which a library has closed a connection."""


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


# --- servers --------------------------------------------------------------------------------------


@contextmanager
def serving(serve: Serve) -> Iterator[tuple[int, threading.Event]]:
    """Serve each connection on a thread; give the port, and the event that lets `serve` answer.

    The block's end checks that the clients have closed all connections.
    """
    answers = threading.Event()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the listener was shut down
                return
            threads.append(threading.Thread(target=drain, args=(connection,)))
            threads[-1].start()

    def drain(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client may end the connection anywhere
            serve(connection, answers)
            while connection.recv(4096):
                pass

    with socket.create_server((HOST, 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield listener.getsockname()[1], answers
        finally:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive(), "a connection is open"


def silent(_connection: socket.socket, _answers: threading.Event) -> None:
    """Answer nothing."""


def answer_http(connection: socket.socket, answers: threading.Event) -> None:
    """Answer a request that comes while answers are allowed."""
    connection.recv(4096)
    if answers.is_set():
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback")


class Servers:
    """Real servers, each started when a case asks for it."""

    def __init__(self, stack: ExitStack, folders: pytest.TempPathFactory) -> None:
        self.stack = stack
        self.folders = folders

    @cached_property
    def redis(self) -> Server:
        return self.stack.enter_context(redis_server(self.folders.mktemp("redis")))

    @cached_property
    def postgres(self) -> Server:
        return self.stack.enter_context(postgres_server(self.folders.mktemp("postgres")))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory)


# --- cases: HTTP and TLS --------------------------------------------------------------------------


@contextmanager
def requests_get(
    _servers: Servers, timeout: float | None = None, retries: int = 0
) -> Iterator[Call]:
    requests = library("requests")
    with serving(answer_http) as (port, answers), requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
        get = partial(session.get, f"http://{HOST}:{port}/", timeout=timeout)
        yield get
        answers.set()
        assert get().text == "back"


def requests_get_with_a_timeout(servers: Servers) -> AbstractContextManager[Call]:
    return requests_get(servers, timeout=NEVER)


def requests_get_with_retries(servers: Servers) -> AbstractContextManager[Call]:
    return requests_get(servers, retries=5)


@contextmanager
def urllib3_request(_servers: Servers) -> Iterator[Call]:
    urllib3 = library("urllib3")
    with serving(answer_http) as (port, answers), urllib3.PoolManager() as pool:
        request = partial(pool.request, "GET", f"http://{HOST}:{port}/")
        yield request
        answers.set()
        assert request().data == b"back"


@contextmanager
def httpx_get(_servers: Servers) -> Iterator[Call]:
    httpx = library("httpx")
    with serving(answer_http) as (port, answers), httpx.Client(timeout=None) as client:
        get = partial(client.get, f"http://{HOST}:{port}/")
        yield get
        answers.set()
        assert get().text == "back"


@contextmanager
def http_client_getresponse(_servers: Servers) -> Iterator[Call]:
    with (
        serving(answer_http) as (port, answers),
        closing(http.client.HTTPConnection(HOST, port)) as client,
    ):
        client.request("GET", "/")
        yield client.getresponse
        answers.set()
        with pytest.raises(http.client.CannotSendRequest):
            client.request("GET", "/")
        client.close()
        client.request("GET", "/")
        assert client.getresponse().read() == b"back"


@contextmanager
def urllib_urlopen(_servers: Servers) -> Iterator[Call]:
    with serving(silent) as (port, _):
        yield partial(urllib.request.urlopen, f"http://{HOST}:{port}/")


@contextmanager
def tls_client(port: int) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    with (
        socket.create_connection((HOST, port)) as connection,
        context.wrap_socket(
            connection, server_hostname="localhost", do_handshake_on_connect=False
        ) as client,
    ):
        yield client


@contextmanager
def tls_handshake(_servers: Servers) -> Iterator[Call]:
    with serving(silent) as (port, _), tls_client(port) as client:
        yield client.do_handshake


def after_a_handshake(serve: Serve) -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def shake_hands_and_serve(connection: socket.socket, answers: threading.Event) -> None:
        with context.wrap_socket(connection.dup(), server_side=True) as server:
            serve(server, answers)
            server.recv(4096)

    return shake_hands_and_serve


@contextmanager
def tls_recv(_servers: Servers) -> Iterator[Call]:
    with serving(after_a_handshake(silent)) as (port, _), tls_client(port) as client:
        client.do_handshake()
        yield partial(client.recv, 1)


@contextmanager
def requests_get_over_tls(_servers: Servers) -> Iterator[Call]:
    requests = library("requests")
    with serving(after_a_handshake(answer_http)) as (port, answers), requests.Session() as session:
        get = partial(session.get, f"https://localhost:{port}/", verify=CERTIFICATE)
        yield get
        answers.set()
        assert get().text == "back"


# --- cases: databases -----------------------------------------------------------------------------


@contextmanager
def redis_client(servers: Servers) -> Iterator[Any]:
    with library("redis").Redis(host=HOST, port=servers.redis.port) as client:
        client.ping()
        yield client
        assert client.ping()


@contextmanager
def redis_blpop(servers: Servers) -> Iterator[Call]:
    with redis_client(servers) as client:
        yield partial(client.blpop, "nothing", 0)


@contextmanager
def redis_blpop_in_a_lock(servers: Servers) -> Iterator[Call]:
    def work() -> None:
        try:
            client.blpop("nothing", 0)
        finally:
            lock.release()

    with redis_client(servers) as client:
        lock = client.lock("lock", timeout=NEVER, thread_local=False)
        lock.acquire()
        yield work
        assert not client.exists("lock")


@contextmanager
def redis_listen(servers: Servers) -> Iterator[Call]:
    with redis_client(servers) as client, client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe("news")
        assert messages.get_message(timeout=None) is None  # the server's answer
        yield partial(next, messages.listen())
        assert client.publish("news", "late") == 1
        assert messages.get_message(timeout=None)["data"] == b"late"


@contextmanager
def psycopg_connect(_servers: Servers) -> Iterator[Call]:
    psycopg = library("psycopg")
    with serving(silent) as (port, _):
        yield partial(psycopg.connect, host=HOST, port=port)


@contextmanager
def psycopg_execute(servers: Servers) -> Iterator[Call]:
    client = library("psycopg").connect(host=HOST, port=servers.postgres.port, user="postgres")

    def work() -> None:
        with client:
            client.execute("select pg_sleep(1000)")

    yield work
    assert client.closed


@contextmanager
def pymysql_connect(_servers: Servers) -> Iterator[Call]:
    pymysql = library("pymysql")
    with serving(silent) as (port, _):
        yield partial(pymysql.connect, host=HOST, port=port)


@contextmanager
def pymysql_query(_servers: Servers) -> Iterator[Call]:
    pymysql = library("pymysql")
    greeting = struct.pack(
        "<B6sI9sHBHHB10s13s22s",
        *(
            10,
            b"8.0.0",
            1,
            b"x" * 8,
            0x8200,
            45,
            2,
            8,
            21,
            b"",
            b"x" * 12,
            b"mysql_native_password",
        ),
    )

    def serve(connection: socket.socket, _answers: threading.Event) -> None:
        connection.sendall(struct.pack("<I", len(greeting)) + greeting)
        for number in (2, 1):  # the password, and SET NAMES
            connection.recv(4096)
            connection.sendall(bytes([7, 0, 0, number, 0, 0, 0, 2, 0, 0, 0]))

    with serving(serve) as (port, _):
        client = pymysql.connect(host=HOST, port=port, autocommit=True)
        yield partial(client.query, "select 1")
        assert not client.open


@contextmanager
def pymongo_selection(_servers: Servers) -> Iterator[Call]:
    pymongo = library("pymongo")
    with serving(silent) as (port, _), pymongo.MongoClient(HOST, port) as client:
        yield partial(client.admin.command, "ping")


@contextmanager
def pymongo_command(_servers: Servers) -> Iterator[Call]:
    pymongo, bson = library("pymongo"), library("bson")
    hello = {"ok": 1, "helloOk": True, "isWritablePrimary": True, "maxWireVersion": 21}

    def serve(connection: socket.socket, answers: threading.Event) -> None:
        while head := connection.recv(16, socket.MSG_WAITALL):
            length, request, _, _ = struct.unpack("<iiii", head)
            body = connection.recv(length - 16, socket.MSG_WAITALL)
            if b"ping" not in body or answers.is_set():
                answer = b"\0\0\0\0\0" + bson.encode(hello)
                connection.sendall(
                    struct.pack("<iiii", len(answer) + 16, 0, request, 2013) + answer
                )

    api = pymongo.server_api.ServerApi("1")  # no other message than the one above
    with (
        serving(serve) as (port, answers),
        pymongo.MongoClient(HOST, port, server_api=api) as client,
    ):
        ping = partial(client.admin.command, "ping")
        answers.set()
        ping()  # a server was selected
        answers.clear()
        yield ping
        answers.set()
        assert ping()["ok"] == 1


# --- cases: the rest ------------------------------------------------------------------------------


@contextmanager
def paramiko_start_client(_servers: Servers) -> Iterator[Call]:
    paramiko = library("paramiko")
    with serving(silent) as (port, _), paramiko.Transport((HOST, port)) as transport:
        yield transport.start_client


@contextmanager
def paramiko_recv(_servers: Servers) -> Iterator[Call]:
    paramiko = library("paramiko")

    class Anyone(paramiko.ServerInterface):  # type: ignore[misc, name-defined]
        def check_auth_none(self, _: str) -> int:
            return int(paramiko.AUTH_SUCCESSFUL)

        def check_channel_request(self, _kind: str, _number: int) -> int:
            return int(paramiko.OPEN_SUCCEEDED)

    here, there = socket.socketpair()
    with closing(paramiko.Transport(there)) as server, closing(paramiko.Transport(here)) as client:
        server.add_server_key(paramiko.ECDSAKey.generate())
        server.start_server(threading.Event(), Anyone())
        client.start_client()
        client.auth_none("me")
        channel = client.open_session()
        yield partial(channel.recv, 1)
        server.accept().sendall(b"x")
        assert channel.recv(1) == b"x"


@contextmanager
def smtplib_mail(_servers: Servers) -> Iterator[Call]:
    received: list[bytes] = []

    def serve(connection: socket.socket, _answers: threading.Event) -> None:
        connection.sendall(b"220 here\r\n")
        while line := connection.recv(4096):
            received.append(line)
            if line == b"QUIT\r\n":
                connection.sendall(b"221 bye\r\n")

    def send() -> None:
        with client:
            client.mail("me")

    with serving(serve) as (port, _):
        client = smtplib.SMTP(HOST, port, local_hostname="localhost")
        yield send
        assert [line.lower() for line in received] == [b"mail from:<me>\r\n", b"quit\r\n"]


@contextmanager
def serial_read(_servers: Servers) -> Iterator[Call]:
    serial = library("serial")
    here, there = pty.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, here)
        stack.callback(os.close, there)
        port = stack.enter_context(serial.Serial(os.ttyname(there)))
        yield partial(port.read, 1)
        os.write(here, b"x")
        assert port.read(1) == b"x"


@contextmanager
def grpc_channel() -> Iterator[Any]:
    grpc = library("grpc")
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with grpc.insecure_channel(f"{HOST}:{port}") as channel:
            yield channel


@contextmanager
def grpc_future(_servers: Servers) -> Iterator[Call]:
    with grpc_channel() as channel:
        future = channel.unary_unary("/service/method").future(b"")
        yield future.result
        future.cancel()


@contextmanager
def grpc_stream(_servers: Servers) -> Iterator[Call]:
    with grpc_channel() as channel:
        answers = channel.unary_stream("/service/method")(b"")
        yield partial(next, answers)
        answers.cancel()


CASES = [
    requests_get,
    requests_get_with_a_timeout,
    requests_get_with_retries,
    urllib3_request,
    httpx_get,
    http_client_getresponse,
    urllib_urlopen,
    tls_handshake,
    tls_recv,
    requests_get_over_tls,
    redis_blpop,
    redis_blpop_in_a_lock,
    redis_listen,
    psycopg_connect,
    psycopg_execute,
    pymysql_connect,
    pymysql_query,
    pymongo_selection,
    pymongo_command,
    paramiko_start_client,
    paramiko_recv,
    smtplib_mail,
    serial_read,
    grpc_future,
    grpc_stream,
]


def here(body: Call) -> object:
    return body()


def in_a_desist_thread(body: Call) -> object:
    def run(ready: Callable[[], None]) -> object:
        ready()
        return body()

    with Victim(run) as victim:
        pass
    assert victim.raised is None
    return victim.results.pop()


def ended_at_the_deadline(call: Call) -> tuple[type | None, int]:
    """Give the type of the exception's cause, and the number of system calls that were ended.

    The exception itself would keep the connections of its frames open.
    """
    before = desist.foreign_status().ended
    with pytest.raises(DeadlineExceeded) as late, desist.cancel_scope(timeout=0.02):
        call()
    cause = type(late.value.__cause__)
    del late
    return cause, desist.foreign_status().ended - before


@pytest.mark.parametrize("where", [here, in_a_desist_thread])
@pytest.mark.parametrize("case", CASES)
def test_i46_a_call_of_a_library_ends_at_the_deadline(
    case: Case, where: Callable[[Call], object], servers: Servers
) -> None:
    with case(servers) as call:
        assert where(partial(ended_at_the_deadline, call)) == (Cancelled, 1)


@pytest.mark.parametrize("case", CASES)
def test_a_kill_ends_a_call_of_a_library(case: Case, servers: Servers) -> None:
    with case(servers) as call:

        def body(ready: Callable[[], None]) -> None:
            ready()
            call()

        with Victim(body) as victim:
            until_asleep(victim)
            report = victim.kill(policy=ASK)
        assert report.outcome is KillOutcome.COOPERATIVE
        assert len(report.ended_calls) == 1
        assert isinstance(victim.raised, Cancelled)
        victim.raised = None  # as above


# --- calls that are not ended ---------------------------------------------------------------------


def test_a_read_from_tls_with_a_timeout_takes_the_error_for_another_try() -> None:
    def serve(connection: socket.socket, answers: threading.Event) -> None:
        answers.wait()
        connection.sendall(b"x")

    with serving(after_a_handshake(serve)) as (port, answers), tls_client(port) as client:
        client.do_handshake()
        client.settimeout(NEVER)
        with desist.cancel_scope() as scope, after_a_few_looks(answers.set):
            scope.cancel()
            assert client.recv(1) == b"x"
        assert not scope.cancelled_caught
        assert "ssl" in desist.foreign_status().left_alone


def test_the_event_loop_of_grpc_under_a_plain_call_is_left_alone() -> None:
    with (
        grpc_channel() as channel,
        desist.cancel_scope() as scope,
        after_a_few_looks(channel.close),
    ):
        scope.cancel()
        with pytest.raises(library("grpc").RpcError, match="Channel closed"):
            channel.unary_unary("/service/method")(b"")
    assert not scope.cancelled_caught
