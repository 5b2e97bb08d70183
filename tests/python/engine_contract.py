"""The contract of every engine, as tests, and their helpers.

A module of tests has a class of `Contract`, and a fixture `engines` that opens more engines of the
same queue, as other processes would.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import begin_sweep
import desist
from desist import Fenced, RetryPolicy, WorkerPool
from desist.engines import Delivery, Engine, EngineQueue
from engine_model import Model, counts, put
from lost_answers import ENDS
from pool_model import run_programs
from support import ABANDON, NEVER, DeafEvent, Victim, drained, in_its_wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist import Lease

    Engines = Callable[..., Engine]

SHORT = 0.05
"""Seconds of a lease that runs out in a test."""
LONG = 1000.0
"""Seconds of a lease that no test outlives."""
AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)


def lease(engine: Engine) -> Delivery:
    delivery = engine.lease(0)
    assert delivery is not None
    return delivery


def lease_due_item(engine: Engine) -> Delivery:
    while True:
        engine.tend(0.01)
        delivery = engine.lease(0)
        if delivery is not None:
            return delivery


def leased(queue: EngineQueue[Any]) -> Lease[Any]:
    found = queue.lease(NEVER)
    assert found is not None
    return found


def lose_an_answer(engine: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> list[Any]:
    """Let the server perform one call, but lose its answer."""
    real = engine._run
    lost: list[Any] = []

    def run(name: str, *arguments: Any) -> Any:
        answer = real(name, *arguments)
        if name == what and not lost:
            lost.append(answer)
            raise ConnectionError("the answer is lost")
        return answer

    monkeypatch.setattr(engine, "_run", run)
    return lost


def lose_the_way(
    engine: Any, monkeypatch: pytest.MonkeyPatch, what: str, *, effect: bool, tries: int
) -> list[str]:
    """Reach the server no more from the first call of one kind on, for so many calls.

    The server has performed that call, or not. Returns the settlements that were tried meanwhile.
    """
    real = engine._run
    tried: list[str] = []
    settlements = {"ack", "nack", "reject", "extend"}

    def run(name: str, *arguments: Any) -> Any:
        if tried or name == what:
            if effect and not tried:
                real(name, *arguments)
            if len(tried) <= tries:
                tried.extend({name} & settlements)
                raise ConnectionError("the way to the server is lost")
        return real(name, *arguments)

    monkeypatch.setattr(engine, "_run", run)
    return tried


class Contract:
    """The tests of one engine; the fixture `engines(lease_timeout=...)` opens its queue again."""

    def test_an_item_is_in_one_state_at_a_time(self, engines: Engines) -> None:
        engine = engines()
        assert engine.counts() == counts()
        assert engine.lease(0) is None
        assert put(engine) == "a"
        assert engine.counts() == counts(ready=1)
        first = lease(engine)
        assert (first.id, first.body, first.attempt) == ("a", b"\0body\xff", 1)
        assert engine.counts() == counts(leased=1)
        assert engine.nack(first, NEVER, "no")
        assert engine.counts() == counts(delayed=1)
        put(engine, "b")
        engine.ack(lease(engine))
        put(engine, "c")
        engine.reject(lease(engine), "bad")
        assert engine.counts() == counts(delayed=1, done=1, dead=1)

    def test_the_oldest_item_is_leased_first(self, engines: Engines) -> None:
        engine = engines()
        for item_id in "abc":
            put(engine, item_id)
        assert [lease(engine).id for _ in "abc"] == ["a", "b", "c"]

    def test_i29_a_lease_is_settled_once(self, engines: Engines) -> None:
        engine, other = engines(), engines()
        put(engine)
        stale = lease(engine)
        assert engine.nack(stale, 0, "no")
        current = lease(other)
        assert (current.id, current.attempt) == ("a", 2)
        assert current.epoch > stale.epoch
        before = engine.counts()
        settlements: list[Callable[[], object]] = [
            lambda: engine.ack(stale),
            lambda: engine.nack(stale, 0, "late"),
            lambda: engine.reject(stale, "late"),
            lambda: engine.extend(stale, b"late"),
        ]
        for settle in settlements:
            with pytest.raises(Fenced):
                settle()
        assert engine.counts() == before == counts(leased=1)
        other.ack(current)
        with pytest.raises(Fenced):
            other.ack(current)
        assert engine.counts() == counts(done=1)

    def test_i29_a_worker_that_lost_its_lease_is_fenced(self, engines: Engines) -> None:
        lost, other = engines(lease_timeout=SHORT), engines(lease_timeout=SHORT)
        put(lost)
        stale = lease(lost)
        current = lease_due_item(other)
        assert (current.id, current.attempt) == ("a", 2)
        assert current.epoch > stale.epoch
        with pytest.raises(Fenced):
            lost.extend(stale, None)
        with pytest.raises(Fenced):
            lost.ack(stale)
        with pytest.raises(Fenced):
            lost.nack(stale, 0, "late")
        other.reject(current, "bad")
        [dead] = other.dead()
        assert dead[:2] == ("a", b"\0body\xff")
        assert len(dead.failures) == 2
        assert "lost" in dead.failures[0]
        assert dead.failures[1] == "bad"

    def test_an_item_waits_until_it_is_due(self, engines: Engines) -> None:
        engine, other = engines(), engines()
        put(engine, delay=0.05)
        assert engine.counts() == counts(delayed=1)
        assert engine.lease(0) is None
        assert lease_due_item(other).attempt == 1

    def test_progress_is_kept_for_the_next_attempt(self, engines: Engines) -> None:
        engine = engines()
        put(engine)
        first = lease(engine)
        assert first.progress is None
        engine.extend(first, b"\0half")
        engine.extend(first, None)
        engine.nack(first, 0, "no")
        assert lease(engine).progress == b"\0half"

    def test_an_item_put_twice_with_one_key_is_queued_once(self, engines: Engines) -> None:
        engine, other = engines(), engines()
        assert put(engine, "a", key="k") == "a"
        assert put(other, "b", key="k") == "a"
        assert put(other, "c", key="other") == "c"
        assert engine.counts() == counts(ready=2)
        engine.reject(lease(engine), "bad")
        assert put(other, "d", key="k") == "a"
        assert engine.retry("a")
        engine.ack(lease(engine))
        engine.ack(lease(engine))
        assert put(other, "e", key="k") == "e"
        assert engine.counts() == counts(ready=1, done=2)

    def test_putting_an_item_again_does_no_harm(self, engines: Engines) -> None:
        engine = engines()
        put(engine)
        put(engine)
        put(engine, delay=NEVER)
        assert engine.counts() == counts(ready=1)
        engine.reject(lease(engine), "bad")
        put(engine)
        assert engine.counts() == counts(dead=1)

    def test_a_dead_item_can_be_retried(self, engines: Engines) -> None:
        engine = engines()
        put(engine)
        engine.nack(lease(engine), 0, "one")
        engine.reject(lease(engine), "two")
        [dead] = engine.dead()
        assert dead == ("a", b"\0body\xff", ["one", "two"])
        assert engine.retry("a")
        assert not engine.retry("a")
        again = lease(engine)
        assert (again.attempt, again.body) == (1, b"\0body\xff")
        assert engine.dead() == []

    def test_i31_a_cancelled_item_is_not_leased_again(self, engines: Engines) -> None:
        engine, other = engines(), engines(lease_timeout=SHORT)
        for item_id, delay in (("a", 0.0), ("b", NEVER), ("c", 0.0), ("d", 0.0)):
            put(engine, item_id, delay=delay)
        assert engine.cancel("a", "unwanted") is True
        assert engine.cancel("b", "unwanted") is True
        leased = lease(engine)
        assert engine.cancel(leased.id, "unwanted") is False
        assert engine.nack(leased, 0, "no") is False
        lease(other)  # and the worker is lost
        assert engine.cancel("d", "unwanted") is False
        while engine.counts() != counts(dead=4):
            other.tend(0.01)
        assert engine.cancel("d", "unwanted") is None
        assert engine.cancel("unknown", "unwanted") is None
        dead = {one.id: one.failures for one in engine.dead()}
        assert dead["a"] == dead["b"] == ["unwanted"]
        assert dead["c"] == ["no", "unwanted"]
        assert dead["d"][1:] == ["unwanted"]

    @pytest.mark.parametrize("settlement", ["ack", "nack", "reject"])
    def test_a_lost_answer_makes_no_difference(
        self, engines: Engines, monkeypatch: pytest.MonkeyPatch, settlement: str
    ) -> None:
        with EngineQueue[str](engines()) as queue:
            queue.put("a")
            if settlement == "reject":
                queue.port.retry = RetryPolicy(max_attempts=1)
            found = leased(queue)
            lost = lose_an_answer(queue.engine, monkeypatch, settlement)
            if settlement == "ack":
                found.ack()
            else:
                found.nack()
            assert lost
            expected = {"ack": "done", "nack": "ready", "reject": "dead"}[settlement]
            assert queue.counts() == counts(**{expected: 1})

    @pytest.mark.parametrize("effect", [True, False], ids=["done", "not done"])
    @pytest.mark.parametrize("over", [False, True], ids=["lease lasts", "lease over"])
    @pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
    def test_i48_a_future_is_settled_although_the_answer_to_its_settlement_is_lost(
        self,
        engines: Engines,
        monkeypatch: pytest.MonkeyPatch,
        end: Callable[[Lease[str]], object],
        over: bool,
        effect: bool,
    ) -> None:
        def handler(lease: Lease[str]) -> object:
            begun.append(lease.attempt)
            return end(lease) if len(begun) == 1 else "again"

        begun: list[int] = []
        engine = engines(lease_timeout=SHORT if over else LONG)
        what, expected = ENDS[end]
        # The second try comes after 0.05 seconds.
        tried = lose_the_way(engine, monkeypatch, what, effect=effect, tries=2)
        with EngineQueue[str](engine, retry=RetryPolicy(max_attempts=1000, backoff=0)) as queue:
            with WorkerPool(handler, queue=queue, workers=1) as pool:
                future = pool.submit("item")
                try:
                    ended = future.result(NEVER)
                except desist.TaskCancelled as cancelled:
                    ended = str(cancelled.cause.reason)
                assert pool.drain(NEVER)
                if over and not (effect and what in {"ack", "reject"}):
                    assert ended in {expected, "again"}
                else:
                    assert ended == expected
                assert pool.stats().done + pool.stats().dead == 1
            assert tried[0] == what
            assert queue.counts() == counts(**{"dead" if ended == "bad" else "done": 1})

    def test_i29_a_lost_acknowledgement_is_not_taken_for_that_of_a_later_lease(
        self, engines: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, other = engines(lease_timeout=SHORT), engines(lease_timeout=SHORT)
        put(engine)
        lost = lease(engine)
        lose_the_way(engine, monkeypatch, "ack", effect=False, tries=1)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                engine.ack(lost)
        other.ack(lease_due_item(other))
        with pytest.raises(Fenced):
            engine.ack(lost)
        assert other.counts() == counts(done=1)

    def test_i30_a_snoozed_attempt_is_taken_back(self, engines: Engines) -> None:
        engine = engines()
        put(engine)
        assert engine.nack(lease(engine), 0, "no")
        for _ in range(3):
            snoozed = lease(engine)
            assert snoozed.attempt == 2
            assert engine.nack(snoozed, 0, None)
        assert engine.nack(lease(engine), NEVER, None)
        assert engine.counts() == counts(delayed=1)
        assert engine.cancel("a", "unwanted")
        [dead] = engine.dead()
        assert dead.failures == ["no", "unwanted"]

    def test_i31_a_cancelled_item_is_dead_when_it_is_snoozed(self, engines: Engines) -> None:
        engine = engines()
        put(engine)
        found = lease(engine)
        assert engine.cancel("a", "unwanted") is False
        assert engine.nack(found, 0, None) is False
        [dead] = engine.dead()
        assert dead.failures == ["unwanted"]

    def test_i28_counts_add_up_after_every_operation(self, engines: Engines) -> None:
        engine, rng = engines(), random.Random(28)
        model = Model()
        for step in range(300):
            getattr(model, rng.choice(Model.STEPS))(engine, rng, str(step))
            assert engine.counts() == counts(**Counter(model.states.values()))
            listed = engine.list_items(None, None)
            alive = {name: state for name, state in model.states.items() if state != "done"}
            assert {one.id: one.state for one in listed} == alive
            assert {one.id: one.attempt for one in listed} == {
                name: model.attempts[name] for name in alive
            }
            assert len(listed) == len(alive)

    @pytest.mark.parametrize(
        "programs", [10, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
    )
    def test_i28_a_pool_does_what_the_model_says(self, engines: Engines, programs: int) -> None:
        run_programs(lambda: EngineQueue[int](engines(), retry=AT_ONCE), programs)

    def test_i38_the_clocks_of_hosts_do_not_matter(
        self, engines: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, other = engines(), engines()
        put(engine)
        put(engine, "b", delay=NEVER)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        other.tend(0)
        assert engine.counts() == counts(ready=1, delayed=1)
        lease(engine)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        put(other, "c", delay=0.01)
        other.tend(0)
        assert engine.counts()["leased"] == 1
        assert lease_due_item(other).id == "c"

    def test_items_are_listed_by_state(self, engines: Engines) -> None:
        engine, other = engines(), engines()
        assert engine.list_items(None, None) == []
        for item_id in "abc":
            put(engine, item_id)
        engine.reject(lease(engine), "bad")
        lease(other)
        put(engine, "d", delay=NEVER)
        put(engine, "e", key="a key")
        listed = engine.list_items(None, None)
        assert [(one.id, one.state, one.attempt) for one in listed] == [
            ("b", "leased", 1),
            ("c", "ready", 0),
            ("e", "ready", 0),
            ("d", "delayed", 0),
            ("a", "dead", 1),
        ]
        assert [one.key for one in listed] == [None, None, "a key", None, None]
        assert all(one.age is not None and 0 <= one.age < LONG for one in listed)
        [holder, *none] = [one.holder for one in listed]
        assert holder is not None
        assert holder.endswith(f"/{os.getpid()}/{threading.current_thread().name}")
        assert none == [None] * 4
        for state in ("leased", "ready", "delayed", "dead"):
            expected = [one.id for one in listed if one.state == state]
            assert [one.id for one in engine.list_items(state, None)] == expected
            assert [one.id for one in engine.list_items(state, 1)] == expected[:1]
        assert [one.id for one in engine.list_items(None, 3)] == ["b", "c", "e"]
        assert engine.retry("a")
        assert [one.attempt for one in engine.list_items("ready", None) if one.id == "a"] == [0]

    def test_a_list_needs_no_item_that_can_be_decoded(self, engines: Engines) -> None:
        with EngineQueue[Any](engines()) as queue:
            put(queue.engine)
            [info] = queue.items(state="ready")
            assert (info.id, info.state) == ("a", "ready")
            with pytest.raises(ValueError, match="state must be one of"):
                queue.items(state="done")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="limit must not be negative"):
                queue.items(limit=-1)

    # --- behind a queue, and behind a pool --------------------------------------------------------

    def test_a_waiter_gets_the_next_item(self, engines: Engines) -> None:
        with EngineQueue[str](engines()) as queue, EngineQueue[str](engines()) as other:
            with in_its_wait(lambda: leased(queue).item) as victim:
                other.put("a")
            assert victim.results == ["a"]

    def test_a_waiter_gets_a_delayed_item_in_time(self, engines: Engines) -> None:
        with EngineQueue[str](engines()) as queue, EngineQueue[str](engines()) as other:
            other.put("b", delay=NEVER)
            with in_its_wait(lambda: leased(queue).item) as victim:
                other.put("a", delay=0.05)
            assert victim.results == ["a"]

    def test_a_cancelled_wait_has_leased_nothing(self, engines: Engines) -> None:
        with EngineQueue[str](engines()) as queue:
            with in_its_wait(queue.lease) as victim:
                victim.cancel()
            assert isinstance(victim.raised, desist.Cancelled)
            queue.put("a")
            with desist.move_on_after(0):
                queue.lease()
            assert queue.counts() == counts(ready=1)
            assert leased(queue).attempt == 1

    def test_no_item_is_lost_between_a_delivery_and_a_cancel(self, engines: Engines) -> None:
        with EngineQueue[int](engines()) as queue, EngineQueue[int](engines()) as other:
            got: list[Lease[int]] = []
            for item in range(60):

                def body(ready: Callable[[], None]) -> None:
                    ready()
                    got.append(leased(queue))

                with Victim(body) as victim:
                    other.put(item)
                    victim.cancel()
            assert queue.counts() == counts(leased=len(got), ready=60 - len(got))
            assert {one.attempt for one in got} <= {1}

    def test_a_pool_works_on_it(self, engines: Engines) -> None:
        def handler(lease: Lease[int]) -> int:
            if lease.item == 3 and lease.attempt < 3:
                raise ZeroDivisionError
            return lease.item * 2

        with EngineQueue[int](engines(), retry=AT_ONCE) as queue:
            with WorkerPool(handler, queue=queue, workers=2) as pool:
                futures = [pool.submit(item) for item in range(20)]
                assert [future.result() for future in futures] == [item * 2 for item in range(20)]
            assert queue.counts() == counts(done=20)
            assert pool.stats().requeued == 2

    def test_i30_after_its_last_attempt_an_item_is_dead_with_all_its_causes(
        self, engines: Engines
    ) -> None:
        def handler(lease: Lease[str]) -> None:
            raise ZeroDivisionError(str(lease.attempt))

        with EngineQueue[str](engines(), retry=AT_ONCE) as queue:
            with WorkerPool(handler, queue=queue) as pool, pytest.raises(ZeroDivisionError):
                pool.submit("a").result()
            [(_, item, failures)] = queue.dead()
            assert item == "a"
            last = [failure.splitlines()[-1] for failure in failures]
            assert last == [f"ZeroDivisionError: {attempt}" for attempt in (1, 2, 3)]

    def test_a_handler_ends_its_item_early(self, engines: Engines) -> None:
        def handler(lease: Lease[str]) -> int:
            begun.append(lease.item)
            if lease.item == "later" and begun.count("later") < 4:
                lease.snooze(0)
            elif lease.item == "bad":
                lease.discard("no such page")
            elif lease.item == "broken":
                raise ZeroDivisionError
            return lease.attempt

        begun: list[str] = []
        retry = RetryPolicy(max_attempts=2, backoff=0, retry_for=OSError)
        with EngineQueue[str](engines(), retry=retry) as queue:
            with WorkerPool(handler, queue=queue) as pool:
                assert pool.submit("later").result() == 1
                with pytest.raises(desist.TaskCancelled, match="no such page"):
                    pool.submit("bad").result()
                with pytest.raises(ZeroDivisionError):
                    pool.submit("broken").result()
            assert begun == ["later"] * 4 + ["bad", "broken"]
            assert queue.counts() == counts(done=1, dead=2)
            [(_, bad, [why]), (_, broken, [failure])] = queue.dead()
            assert (bad, broken) == ("bad", "broken")
            assert "no such page" in why
            assert "ZeroDivisionError" in failure

    def test_i30_workers_that_are_lost_count_as_attempts(self, engines: Engines) -> None:
        lost = engines(lease_timeout=SHORT)
        policy = RetryPolicy(max_attempts=2)
        with EngineQueue[str](engines(), retry=policy) as queue:
            queue.put("a")
            assert lease(lost).attempt == 1
            assert lease_due_item(lost).attempt == 2
            while lost.counts()["leased"]:
                lost.tend(0.01)
            assert queue.lease(0) is None
            assert queue.counts() == counts(dead=1)
            [(_, item, failures)] = queue.dead()
            assert (item, len(failures)) == ("a", 3)

    def test_the_item_of_a_killed_worker_is_requeued(self, engines: Engines) -> None:
        begun, attempts = threading.Semaphore(0), []

        def handler(lease: Lease[str]) -> str:
            attempts.append(lease.attempt)
            if lease.attempt == 1:
                begun.release()
                desist.sleep_forever()
            return lease.item

        with (
            EngineQueue[str](engines()) as queue,
            WorkerPool(handler, queue=queue, workers=1) as pool,
        ):
            future = pool.submit("a")
            begun.acquire()
            report = pool.workers[0].kill()
            assert report.requeued == [future.item_id]
            assert future.result() == "a"
        assert attempts == [1, 2]

    def test_an_abandoned_worker_is_fenced(self, engines: Engines) -> None:
        begun, go_on = threading.Semaphore(0), DeafEvent()
        late: list[BaseException] = []

        def handler(lease: Lease[str]) -> int:
            if lease.attempt == 1:
                begun.release()
                go_on.wait()
                try:
                    lease.ack()
                except Fenced as fenced:
                    late.append(fenced)
                over.set()
            return lease.attempt

        over = DeafEvent()
        with (
            EngineQueue[str](engines()) as queue,
            WorkerPool(handler, queue=queue, workers=1, policy=ABANDON) as pool,
        ):
            future = pool.submit("a")
            begun.acquire()
            assert pool.workers[0].kill().fenced == [future.item_id]
            assert future.result() == 2
            go_on.set()
            assert over.wait(NEVER)
            assert queue.counts() == counts(done=1)
        assert len(late) == 1

    def test_a_closed_queue_leases_no_more(self, engines: Engines) -> None:
        queue: EngineQueue[str] = EngineQueue(engines())
        with in_its_wait(queue.lease) as victim:
            queue.close()
        assert "closed" in str(victim.raised)

    def test_an_item_that_is_cancelled_stops_its_handler(self, engines: Engines) -> None:
        begun = threading.Semaphore(0)

        def handler(_: Lease[str]) -> None:
            begun.release()
            desist.sleep_forever()

        with EngineQueue[str](engines()) as queue:
            with WorkerPool(handler, queue=queue, workers=1) as pool:
                future = pool.submit("a")
                begun.acquire()
                waiting = pool.submit("b")
                assert waiting.cancel()
                assert not future.cancel()
                for one in (future, waiting):
                    with pytest.raises(desist.TaskCancelled):
                        one.result()
            assert queue.counts() == counts(dead=2)

    @pytest.mark.parametrize("action", begin_sweep.ACTIONS, ids=lambda action: action.__name__)
    def test_i31_nothing_is_lost_between_a_lease_and_its_handler(
        self, engines: Engines, action: Any
    ) -> None:
        assert begin_sweep.sweep(lambda: EngineQueue(engines(), retry=AT_ONCE), action) >= 40

    def test_a_drain_waits_for_other_hosts(self, engines: Engines) -> None:
        with EngineQueue[str](engines()) as queue, EngineQueue[str](engines()) as other:
            queue.put("a")
            far = leased(other)
            assert not drained(queue, 0)
            with in_its_wait(lambda: drained(queue, None)) as victim:
                far.ack()
            assert victim.results == [True]
