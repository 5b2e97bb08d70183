"""The table "What can be stopped" of docs/foreign-calls.md: each row has cases that run."""

from __future__ import annotations

import re
from pathlib import Path

import test_foreign_calls
import test_foreign_libraries
from test_foreign_calls import CALLS, OTHER_CALLS
from test_foreign_libraries import CASES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "foreign-calls.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

# First column of the table: the cases of its calls, or tests of their own.
ENDED = {
    "`time.sleep`": ["time_sleep"],
    "`recv`, `send`, `accept`, `connect` of a socket, with or without a timeout": [
        "recv",
        "recv_with_a_timeout",
        "send_into_a_full_buffer",
        "accept",
        "connect",
    ],
    "`os.read`, `os.write` of a pipe; `read()` of a file on one; `input()`": [
        "os_read",
        "os_write",
        "file_read",
        "test_i46_input_is_ended",
    ],
    "`select`, `poll`, `epoll`; a scope around `asyncio.run()`": [
        "select_select",
        "poll",
        "epoll",
        "test_a_scope_around_an_event_loop_ends_it_as_ctrl_c_does",
        "test_an_event_loop_in_c_which_would_abort_is_left_alone",
    ],
    "`Popen.wait`, `subprocess.run`, `check_output`, `os.wait4`": [
        "popen_wait",
        "subprocess_run",
        "check_output",
        "wait4",
    ],
    "`flock` and other file locks, `open` of a FIFO": ["flock", "lockf", "open_of_a_fifo"],
    "`Event.wait`, `Condition.wait`, `queue.Queue.get` and `put`, `Semaphore.acquire`, "
    "`Barrier.wait` of the standard library": [
        "event",
        "event_with_a_timeout",
        "condition",
        "queue_get",
        "queue_put",
        "semaphore",
        "barrier",
    ],
    "`Future.result`, `concurrent.futures.wait` and `as_completed`": [
        "future",
        "futures_wait",
        "as_completed",
    ],
    "`ssl`: the handshake and `recv`, without a timeout": ["tls_handshake", "tls_recv"],
    "`http.client`, `urllib.request`": ["http_client_getresponse", "urllib_urlopen"],
    "`smtplib`": ["smtplib_mail"],
    "SQLite's wait for a lock": [
        "test_i46_an_error_that_a_library_in_c_makes_of_it_is_the_cause",
    ],
    "`os.system`": [
        "test_i46_a_call_whose_result_tells_of_the_error_returns_and_the_next_one_raises",
    ],
    "Requests": [
        "requests_get",
        "requests_get_with_a_timeout",
        "requests_get_with_retries",
        "requests_get_over_tls",
    ],
    "urllib3": ["urllib3_request"],
    "HTTPX": ["httpx_get"],
    "redis-py": ["redis_blpop", "redis_blpop_in_a_lock", "redis_listen"],
    "Psycopg": ["psycopg_connect", "psycopg_execute"],
    "PyMySQL": ["pymysql_connect", "pymysql_query"],
    "PyMongo": ["pymongo_selection", "pymongo_command"],
    "Paramiko": ["paramiko_start_client", "paramiko_recv"],
    "pySerial": ["serial_read"],
    "gRPC: `future(...).result()`, the answers of a stream": ["grpc_future", "grpc_stream"],
}
NOT_ENDED = {
    "gRPC: a plain call of a method": [
        "test_the_event_loop_of_grpc_under_a_plain_call_is_left_alone",
    ],
    "`ssl`: `recv` with a timeout": [
        "test_a_read_from_tls_with_a_timeout_takes_the_error_for_another_try",
    ],
    "`Lock.acquire` of `threading`, `queue.SimpleQueue.get`, `Thread.join`": [
        "lock_acquire",
        "simple_queue_get",
        "thread_join",
    ],
    "code in C that makes no call; reads of ordinary files": ["computation", "read_of_a_file"],
}


def rows() -> list[list[str]]:
    _, _, table = PAGE.partition("\n|---|---|---|\n")
    lines = table.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table_has_the_rows_that_have_cases() -> None:
    assert [call for call, _, _ in rows()] == [*ENDED, *NOT_ENDED]
    assert [call for call, ended_with, _ in rows() if ended_with == "no"] == [*NOT_ENDED]


def test_each_case_has_one_row_and_each_test_of_a_row_runs() -> None:
    for table, cases in (
        (ENDED, [*CALLS, *(case.__name__ for case in CASES)]),
        (NOT_ENDED, OTHER_CALLS),
    ):
        named = [name for names in table.values() for name in names]
        tests = [name for name in named if name.startswith("test_")]
        assert sorted(named) == sorted([*cases, *tests])
        for test in tests:
            assert hasattr(test_foreign_calls, test) or hasattr(test_foreign_libraries, test)


def test_the_versions_of_the_table_are_those_that_the_tests_run_with() -> None:
    pythons = re.findall(r"Python :: (3\.\d+)", PROJECT)
    for call, ended_with, _ in rows():
        if library := re.fullmatch(r"(\w+) ([\d.]+) and later", ended_with):
            assert re.search(rf'"{library[1]}(\[\w+\])?>={library[2]}"', PROJECT), call
        elif ended_with != "no":
            assert ended_with == f"CPython {pythons[0]} to {pythons[-1]}"
