"""The answer to a settlement is lost: the item's future is settled all the same (I48)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Fenced, KillOutcome, LeaseQueue, RetryPolicy, TaskCancelled, WorkerPool, testing
from desist.engines import EngineQueue
from engine_contract import leased
from lost_answers import ENDS, acks, discards, nacks, raises, returns, snoozes
from support import ABANDON, NEVER, DeafEvent
from test_engines import DictEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from desist import Lease

SETTLEMENTS = ("ack", "nack", "reject")
CALLS = (*SETTLEMENTS, "extend")
LEASE = 30.0


class Lossy(DictEngine):  # type: ignore[misc] # it is loaded
    """An engine that is away for some seconds from its first call of one kind on.

    That call has its effect, or not. The engine recognises it when it is repeated.
    """

    def __init__(self, what: str, away: float, *, effect: bool) -> None:
        super().__init__(LEASE)
        self.what = what
        self.away = away
        self.effect = effect
        self.back: float | None = None
        self.ended: dict[int, tuple[str, Any]] = {}

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name in {"lease", "counts", "tend", *CALLS}:
            return lambda *args: self.reach(name, method, *args)
        return method

    def reach(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        if self.back is None and name == self.what:
            self.back = desist.current_time() + self.away
            if self.effect:
                answer = method(*args)
                if name in SETTLEMENTS:
                    self.ended[args[0].epoch] = (name, answer)
        if self.back is not None and desist.current_time() < self.back:
            raise ConnectionError("away")
        if name in SETTLEMENTS:
            settlement, answer = self.ended.get(args[0].epoch, (None, None))
            if settlement == name:
                return answer
        return method(*args)


def simulated(test: Callable[[], Any]) -> None:
    """Run it in simulated time, in the default order and in some others."""
    for seed in (None, 1, 2, 3):
        testing.run(test, seed=seed)


def live(
    end: Callable[[Lease[str]], object], away: float, *, effect: bool, **pool_options: Any
) -> tuple[str, list[int], Mapping[str, int]]:
    """Lose the answer to the settlement of an item: its end, attempts, and the counts."""
    attempts: list[int] = []
    happened: list[str] = []

    def handler(lease: Lease[str]) -> object:
        attempts.append(lease.epoch)
        return end(lease) if len(attempts) == 1 else "again"

    what, _ = ENDS[end]
    engine = Lossy(what, away, effect=effect)
    retry = RetryPolicy(max_attempts=10, backoff=0)
    with EngineQueue[str](engine, retry=retry) as queue:
        with WorkerPool(
            handler,
            queue=queue,
            workers=2,
            on_event=lambda event: happened.append(event.kind),
            **pool_options,
        ) as pool:
            future = pool.submit("item")
            try:
                ended = str(future.result(10 * LEASE))
            except TaskCancelled as cancelled:
                ended = str(cancelled.cause.reason)
            assert pool.drain(NEVER)
        assert happened.count("done") + happened.count("dead") == 1, happened
        return ended, attempts, queue.counts()


@pytest.mark.parametrize("effect", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_i48_a_future_is_settled_although_the_answer_to_its_settlement_is_lost(
    end: Callable[[Lease[str]], object], effect: bool
) -> None:
    # For less, and for longer than the lease lasts, and about as long.
    about = (LEASE + pause for pause in (-1.0, -0.01, 0.0, 0.01, 1.0, 5.0))
    for away in (0.01, 1.0, *about, 100.0):

        def run(away: float = away) -> None:
            ended, attempts, counts = live(end, away, effect=effect)
            what, expected = ENDS[end]
            if away < LEASE - 5 or (effect and what != "extend"):
                assert ended == expected
                assert len(attempts) == (2 if what == "nack" else 1)
            else:  # the lease may have been lost
                assert ended in (expected, "again")
            assert counts["done"] + counts["dead"] == sum(counts.values()) == 1
            assert counts["dead"] == (ended == "bad")

        simulated(run)


@pytest.mark.parametrize("effect", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("end", [acks, discards, nacks, snoozes], ids=lambda end: end.__name__)
def test_i48_a_handler_that_is_cancelled_while_it_settles_its_lease_leaves_no_future_unsettled(
    end: Callable[[Lease[str]], object], effect: bool
) -> None:
    def run() -> None:
        # Cancelled after 2 seconds, when it has 5 more to settle the lease.
        ended, _, counts = live(end, 100, effect=effect, time_limit=2)
        assert ended == (ENDS[end][1] if effect else "again")
        assert counts["done"] + counts["dead"] == sum(counts.values()) == 1

    simulated(run)


def test_a_cancel_during_a_settlement_says_that_the_end_is_unknown() -> None:
    def run() -> None:
        engine = Lossy("ack", 100, effect=True)
        with EngineQueue[str](engine) as queue:
            queue.put("item")
            lease = leased(queue)
            with desist.move_on_after(1), pytest.raises(ConnectionError, match="may or may not"):
                lease.ack()
            desist.sleep(100)
            lease.ack()
            with pytest.raises(Fenced):
                lease.ack()
            assert queue.counts()["done"] == 1

    testing.run(run)


def test_a_lease_that_is_lost_while_its_settlement_is_in_doubt_is_asked_for_all_the_same() -> None:
    def run() -> None:
        engine = Lossy("ack", 100, effect=True)
        with EngineQueue[str](engine) as queue:
            queue.put("item")
            held = queue.port.deliver(0)
            assert held is not None
            with pytest.raises(ConnectionError):
                held.ack()
            desist.sleep(100)
            held.lose("another worker has the item")
            with pytest.raises(Fenced):
                held.nack(0.0, None)
            held.ack()
            assert queue.counts()["done"] == 1

    testing.run(run)


def test_i48_the_future_of_an_item_that_could_not_be_rejected_is_settled() -> None:
    def run() -> None:
        for effect in (True, False):
            engine = Lossy("reject", 2 * LEASE, effect=effect)
            retry = RetryPolicy(max_attempts=1)
            with EngineQueue[str](engine, retry=retry) as queue:
                promised = WorkerPool[str, None](lambda _: None, queue=queue)
                promised.pause()
                future = promised.submit("item")
                leased(queue)  # dropped: it runs out
                promised.resume()
                with pytest.raises(RuntimeError, match="its worker was lost"):
                    future.result(10 * LEASE)
                assert promised.drain(NEVER)
                promised.stop()
                assert queue.counts()["dead"] == 1

    testing.run(run)


def test_i29_an_acknowledgement_whose_answer_was_lost_is_not_taken_for_that_of_a_later_lease() -> (
    None
):
    def run() -> None:
        engine = Lossy("ack", LEASE + 1, effect=False)
        with EngineQueue[str](engine) as queue:
            queue.put("item")
            lease = leased(queue)
            with pytest.raises(ConnectionError):
                lease.ack()
            desist.sleep(1)
            leased(queue).ack()
            with pytest.raises(Fenced):
                lease.ack()
            assert queue.counts()["done"] == 1

    testing.run(run)


@pytest.mark.parametrize("end", [returns, raises], ids=lambda end: end.__name__)
def test_a_pool_that_asks_for_a_lost_answer_can_be_stopped(end: Any) -> None:
    def run() -> None:
        engine = Lossy(ENDS[end][0], NEVER, effect=True)
        with EngineQueue[str](engine) as queue:
            pool = WorkerPool(end, queue=queue, workers=1)
            future = pool.submit("item")
            desist.sleep(2 * LEASE)
            begin = desist.current_time()
            pool.stop()
            assert desist.current_time() - begin <= 5.01  # the time for clean-up
            with pytest.raises(TaskCancelled):
                future.result(0)

    simulated(run)


def test_a_kill_does_not_wait_until_a_server_that_is_away_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("desist.engines._held._PATIENCE", 0.1)
    engine = Lossy("nack", NEVER, effect=True)
    engine.lease_timeout = 0.1
    begun = desist.Event()

    def handler(lease: Lease[str]) -> int:
        if not begun.is_set():
            begun.set()
            desist.sleep_forever()
        return lease.attempt

    with (
        EngineQueue[str](engine) as queue,
        WorkerPool(handler, queue=queue, workers=1) as pool,
    ):
        future = pool.submit("item")
        begun.wait()
        pool.workers[0].kill()
        assert not future.done()
        engine.back = 0.0
        assert future.result(NEVER) == 2


# --- a settlement before the handler was abandoned ------------------------------------------------


@pytest.mark.parametrize("end", [acks, discards], ids=lambda end: end.__name__)
def test_the_future_of_a_handler_that_is_abandoned_after_it_has_settled_its_lease_is_settled(
    end: Callable[[Lease[str]], object],
) -> None:
    begun, go_on = desist.Event(), DeafEvent()

    def handler(lease: Lease[str]) -> None:
        end(lease)
        begun.set()
        go_on.wait()

    queue: LeaseQueue[str] = LeaseQueue()
    with WorkerPool(handler, queue=queue, workers=1, policy=ABANDON) as pool:
        future = pool.submit("item")
        begun.wait()
        assert pool.workers[0].kill().outcome is KillOutcome.ABANDONED
        if end is acks:
            assert future.result(NEVER) == "result"
        else:
            with pytest.raises(TaskCancelled, match="bad"):
                future.result(NEVER)
        assert pool.stats().done + pool.stats().dead == 1
        go_on.set()
