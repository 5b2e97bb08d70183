from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import pytest

import desist
from desist import Cancelled, testing
from desist._core import Latch
from support import NEVER, Victim, ends_with_the_deadline_of_its_block, looks_before_it_begins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(
    params=[
        "sleep",
        "sleep_until",
        "sleep_forever",
        "token",
        "lock",
        "latch",
        "thread",
        "queue",
        "future",
    ]
)
def wait(request: pytest.FixtureRequest) -> Iterator[Callable[[], object]]:
    """Make a wait that ends by itself only after a very long time."""
    lock = desist.Lock()
    lock.acquire()
    never = threading.Event()
    asleep = desist.Thread(target=never.wait, daemon=True)
    asleep.start()
    source = desist.CancelSource()
    queue: desist.LeaseQueue[int] = desist.LeaseQueue()
    future: desist.Future[int] = desist.Future()
    waits: dict[str, Callable[[], object]] = {
        "sleep": lambda: desist.sleep(NEVER),
        "sleep_until": lambda: desist.sleep_until(desist.current_time() + NEVER),
        "sleep_forever": desist.sleep_forever,
        "token": source.token.wait,
        "lock": lock.acquire,
        "latch": Latch().wait,
        "thread": asleep.join,
        "queue": queue.lease,
        "future": future.result,
    }
    yield waits[str(request.param)]
    never.set()


def test_every_wait_ends_with_a_cancel(wait: Callable[[], object]) -> None:
    def body(ready: Callable[[], None]) -> None:
        ready()
        wait()

    with Victim(body) as victim:
        victim.cancel("enough")
    assert isinstance(victim.raised, Cancelled)


def test_every_wait_ends_with_the_deadline_of_its_block(wait: Callable[[], object]) -> None:
    ends_with_the_deadline_of_its_block(wait)


def test_every_wait_is_a_checkpoint_before_it_begins(wait: Callable[[], object]) -> None:
    looks_before_it_begins(wait)


def test_a_checkpoint_outside_any_scope_does_nothing() -> None:
    desist.checkpoint()
    desist.sleep(0)


def test_a_sleep_lasts_its_time() -> None:
    began = desist.current_time()
    desist.sleep(0.02)
    assert desist.current_time() - began >= 0.02
    until = desist.current_time() + 0.02
    desist.sleep_until(until)
    assert desist.current_time() >= until
    desist.sleep_until(0)


def test_a_sleep_without_end_can_be_asked_for_by_a_number() -> None:
    with desist.move_on_after(0.01) as scope:
        desist.sleep(math.inf)
    assert scope.cancelled_caught


def test_the_clock_is_that_of_time_monotonic() -> None:
    before = time.monotonic()
    now = desist.current_time()
    assert before - 1e-6 <= now <= time.monotonic() + 1e-6


def test_the_current_token_is_the_tasks_or_the_scopes() -> None:
    def body(ready: Callable[[], None]) -> tuple[bool, bool]:
        ready()
        with pytest.raises(Cancelled):
            desist.sleep_forever()
        outside = desist.current_token().cancelled
        with desist.shield(NEVER):
            inside = desist.current_token().cancelled
        return outside, inside

    with Victim(body) as victim:
        victim.cancel()
    assert victim.results == [(True, False)]
    assert not desist.current_token().cancelled


def test_a_latch_stays_set() -> None:
    latch = Latch()
    assert not latch.is_set()
    assert not latch.wait(0)
    latch.set()
    latch.set()
    assert latch.is_set()
    assert latch.wait()


def test_a_sleep_is_never_shorter_than_was_asked_for() -> None:
    def run() -> None:
        for seconds in (1e-12, 1e-10, 1.4e-9, 1 / 3, 0.1):
            before = desist.current_time()
            desist.sleep(seconds)
            assert desist.current_time() > before

    testing.run(run)
