"""Deadlines and cancellations in the headers of messages."""

from __future__ import annotations

import math
from email.message import Message
from typing import Any

import pytest

import desist
from desist import CancelSource, CancelToken, CauseKind, testing


def test_i38_the_time_that_is_left_is_sent_and_never_an_instant() -> None:
    def send() -> dict[str, str]:
        source = CancelSource(timeout=5)
        desist.sleep(2)
        return source.token.to_headers()

    def receive() -> None:
        desist.sleep(1000)  # the clock of this host shows another time
        source = CancelSource.from_headers(headers)
        assert source.token.remaining() == pytest.approx(3)
        with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(token=source.token):
            desist.sleep(3.5)
        assert desist.current_time() - received == pytest.approx(1003)

    headers = testing.run(send)
    assert headers == {"Desist-Timeout": "3.000000"}
    clock = testing.MockClock()
    received = clock.time()
    testing.run(receive, clock=clock)


def test_a_token_without_a_deadline_has_no_headers() -> None:
    assert CancelToken.any_of().to_headers() == {}
    source = CancelSource.from_headers({"Content-Type": "text/plain"})
    assert not source.token.cancelled
    assert source.deadline == math.inf


@pytest.mark.parametrize("reason", [None, "enough", "two\r\nlines", "100 % é 漢 \0", " x ", "%41"])
def test_a_cancellation_arrives_as_one_from_another_process(reason: str | None) -> None:
    source = CancelSource()
    source.cancel(reason)
    headers = source.token.to_headers()
    assert headers.keys() == {"Desist-Cancelled"}
    assert headers["Desist-Cancelled"].isascii()
    assert headers["Desist-Cancelled"].isprintable()
    cause = CancelSource.from_headers(headers).token.cause
    assert cause is not None
    assert cause.kind is CauseKind.REMOTE
    assert cause.reason == reason
    assert cause.by_thread is None


def test_a_deadline_that_has_passed_arrives_as_such() -> None:
    source = CancelSource(timeout=0)
    headers = source.token.to_headers()
    assert headers == {"Desist-Timeout": "0.000000"}
    received = CancelSource.from_headers(headers).token
    received.wait()
    assert received.cause is not None
    assert received.cause.kind is CauseKind.DEADLINE


def test_names_may_be_in_any_case_and_in_any_mapping() -> None:
    message = Message()
    message["DESIST-TIMEOUT"] = " 1000 "
    message["desist-cancelled"] = ""
    source = CancelSource.from_headers(message)
    assert source.deadline < math.inf
    assert source.token.cause is not None
    assert source.token.cause.reason is None


def test_the_source_is_below_its_parent() -> None:
    parent = CancelSource()
    source = CancelSource.from_headers({"Desist-Timeout": "1000"}, parent.token)
    parent.cancel("enough")
    assert source.token.cause == parent.token.cause


def test_the_longest_time_is_no_deadline() -> None:
    assert CancelSource.from_headers({"Desist-Timeout": "9" * 400}).deadline == math.inf


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "+1", "nan", "inf", "1e3", "1.2.3", ".", "1_0", "٣"]
)
def test_a_time_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Desist-Timeout must be a number of seconds"):
        CancelSource.from_headers({"Desist-Timeout": text})


@pytest.mark.parametrize(
    "headers", [None, [("Desist-Timeout", "1")], {b"Desist-Timeout": b"1"}, {"Desist-Timeout": 1}]
)
def test_what_are_no_headers_is_refused(headers: Any) -> None:
    with pytest.raises(TypeError):
        CancelSource.from_headers(headers)
