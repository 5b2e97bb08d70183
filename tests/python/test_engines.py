"""The behaviour of all engines, with one that is a dict, mostly in simulated time."""

from __future__ import annotations

import importlib.util
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Fenced, PoolFailed, RetryPolicy, WorkerPool, testing
from desist._item_future import ItemFuture, ItemPromise
from desist.engines import Delivery, Engine, EngineQueue, open_queue
from engine_contract import leased
from support import drained, in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from desist import Lease

ROOT = Path(__file__).parents[2]


def load_dict_engine() -> Any:
    spec = importlib.util.spec_from_file_location("dict_engine", ROOT / "examples/dict_engine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dict_engine"] = module
    spec.loader.exec_module(module)
    return module.DictEngine


DictEngine = load_dict_engine()


class Away(DictEngine):  # type: ignore[misc, valid-type] # it is loaded
    """An engine that cannot be reached for a while."""

    def __init__(self, begin: float, end: float, lease_timeout: float = 30.0) -> None:
        super().__init__(lease_timeout)
        now = desist.current_time()
        self.begin, self.end = now + begin, now + end
        self.refused = 0

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name in {"put", "lease", "ack", "nack", "reject", "extend", "counts", "tend"}:
            return lambda *args, **named: self.reach(method, *args, **named)
        return method

    def reach(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if self.begin <= desist.current_time() < self.end:
            self.refused += 1
            raise ConnectionError("away")
        return method(*args, **named)


def simulated(test: Callable[[], Any]) -> None:
    """Run it in simulated time, in the default order and in some others."""
    for seed in (None, 1, 2, 3):
        testing.run(test, seed=seed)


# --- leases are extended --------------------------------------------------------------------------


def test_a_handler_may_take_longer_than_a_lease_lasts() -> None:
    def run() -> None:
        attempts: list[int] = []

        def handler(lease: Lease[str]) -> None:
            attempts.append(lease.attempt)
            begun.set()
            desist.sleep(1000)

        begun, engine = desist.Event(), DictEngine()
        with EngineQueue[str](engine) as queue, EngineQueue[str](engine) as other:
            with WorkerPool(handler, queue=queue, workers=1) as pool:
                pool.submit("a")
                begun.wait()
                assert other.lease(500) is None
            assert queue.counts()["done"] == 1
        assert attempts == [1]

    simulated(run)


def test_a_dropped_lease_runs_out() -> None:
    def run() -> None:
        with EngineQueue[str](DictEngine()) as queue:
            queue.put("a")
            begin = desist.current_time()
            leased(queue)
            assert leased(queue).attempt == 2
            assert desist.current_time() - begin == pytest.approx(30)

    simulated(run)


def test_the_handler_of_a_lost_lease_is_cancelled() -> None:
    def run() -> None:
        reasons: list[str | None] = []

        def handler(lease: Lease[str]) -> None:
            if lease.attempt > 1:
                return
            engine.items[lease.id].epoch = 0  # another worker has it now
            try:
                desist.sleep_forever()
            finally:
                reasons.append(lease.token.cause and lease.token.cause.reason)
                with desist.cleanup(), pytest.raises(Fenced, match="lost"):
                    lease.ack()

        engine = DictEngine()
        with EngineQueue[str](engine) as queue, WorkerPool(handler, queue=queue) as pool:
            pool.submit("a")
        assert engine.counts()["done"] == 1
        assert reasons == ["its lease is over, and another worker has the item"]

    simulated(run)


def test_a_heartbeat_leaves_progress_for_the_next_attempt() -> None:
    with EngineQueue[str](DictEngine(), codec="json") as queue:
        queue.put("a")
        held = queue.port.deliver(0)
        assert held is not None
        assert held.progress is None
        held.heartbeat({"page": 3})
        held.heartbeat(None)
        held.nack(0.0, ValueError("no"))
        with pytest.raises(Fenced):
            held.heartbeat(None)
        again = queue.port.deliver(0)
        assert again is not None
        assert again.progress is not None
        assert again.decode(again.progress) == {"page": 3}


# --- a server that is away ------------------------------------------------------------------------


def test_a_pool_continues_after_the_server_was_away_for_ten_seconds() -> None:
    def run() -> None:
        attempts: list[int] = []

        def handler(lease: Lease[int]) -> int:
            attempts.append(lease.attempt)
            desist.sleep(1)
            return lease.item

        engine = Away(4.5, 14.5)
        with EngineQueue[int](engine) as queue, WorkerPool(handler, queue=queue) as pool:
            futures = [pool.submit(item) for item in range(40)]
            assert [future.result() for future in futures] == list(range(40))
        assert engine.refused
        assert attempts == [1] * 40

    simulated(run)


@pytest.mark.parametrize("leased_meanwhile", [False, True])
def test_an_acknowledgement_may_take_longer_than_its_lease_if_no_other_worker_has_the_item(
    leased_meanwhile: bool,
) -> None:
    def run() -> None:
        attempts: list[int] = []

        def handler(lease: Lease[str]) -> None:
            attempts.append(lease.attempt)
            desist.sleep(5)
            if leased_meanwhile and lease.attempt == 1:
                engine.items[lease.id].epoch = 0  # another worker has it now

        engine = Away(1, 60)
        with EngineQueue[str](engine) as queue, WorkerPool(handler, queue=queue) as pool:
            pool.submit("a").result()
        assert attempts == ([1, 2] if leased_meanwhile else [1])

    simulated(run)


def test_a_pool_that_waits_for_a_server_can_be_stopped() -> None:
    def run() -> None:
        engine = Away(1, 1000, lease_timeout=100)
        with EngineQueue[str](engine) as queue:
            pool = WorkerPool[str, None](lambda _: desist.sleep(5), queue=queue, workers=2)
            pool.submit("a")
            desist.sleep(10)  # one worker waits to acknowledge, the other for an item
            begin = desist.current_time()
            pool.stop()
            assert desist.current_time() - begin <= 5.01  # the time for clean-up

    simulated(run)


def test_put_says_that_the_server_is_away() -> None:
    engine = Away(0, 1000)
    with EngineQueue[str](engine) as queue, pytest.raises(ConnectionError):
        queue.put("a")


# --- an engine that fails -------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("method", ["lease", "ack", "nack"])
def test_a_pool_fails_with_the_cause_when_its_engine_fails(method: str) -> None:
    def handler(lease: Lease[str]) -> None:
        if method == "nack":
            raise ValueError(lease.item)

    def run() -> None:
        engine = DictEngine()
        setattr(engine, method, fail)
        with EngineQueue[str](engine) as queue:
            pool = WorkerPool(handler, queue=queue)
            pool.submit("a")
            with pytest.raises(PoolFailed, match="the queue failed") as raised, pool:
                pass
            assert isinstance(raised.value.__cause__, ZeroDivisionError)

    simulated(run)


@pytest.mark.parametrize("method", ["tend", "extend"])
@pytest.mark.parametrize("wait", ["lease", "drain"])
def test_a_waiter_gets_a_failure_of_the_heartbeat(method: str, wait: str) -> None:
    def run() -> None:
        engine = DictEngine()
        setattr(engine, method, fail)
        with EngineQueue[str](engine) as queue:
            queue.put("a")
            _held = leased(queue)
            with pytest.raises(ZeroDivisionError):
                queue.lease(1000) if wait == "lease" else drained(queue)

    simulated(run)


# --- items as bytes -------------------------------------------------------------------------------


def test_an_item_that_cannot_be_encoded_is_refused_at_once() -> None:
    engine = DictEngine()
    with EngineQueue[Any](engine) as queue:
        with pytest.raises(TypeError, match="function cannot be put"):
            queue.put(lambda: None)
        endless: list[Any] = []
        for _ in range(100_000):
            endless = [endless]
        with pytest.raises(TypeError, match="list cannot be put"):
            queue.put(endless)
        while endless:
            [endless] = endless
    with EngineQueue[Any](engine, codec="json") as queue:
        with pytest.raises(TypeError, match="set cannot be put into this queue, because json"):
            queue.put({1})
        assert queue.counts()["ready"] == 0
    with pytest.raises(ValueError, match="'pickle' or 'json', not 'xml'"):
        EngineQueue(engine, codec="xml")  # type: ignore[arg-type]


def test_json_is_readable_by_other_programs() -> None:
    engine = DictEngine()
    with EngineQueue[Any](engine, codec="json") as queue:
        item_id = queue.put({"page": 3, "of": "ä"})
        assert engine.items[item_id].body == '{"page":3,"of":"ä"}'.encode()
        assert leased(queue).item == {"page": 3, "of": "ä"}


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_an_item_that_cannot_be_decoded_is_dead_and_does_not_stop_others(codec: Any) -> None:
    why: list[str] = []

    class Watched(DictEngine):  # type: ignore[misc, valid-type] # it is loaded
        def reject(self, delivery: Delivery, failure: str) -> None:
            super().reject(delivery, failure)
            why.append(failure)

    engine = Watched()
    with EngineQueue[str](engine, codec=codec, retry=RetryPolicy(max_attempts=1)) as queue:
        engine.put("bad", b"\xff nonsense", key=None, delay=0)
        queue.put("good")
        with WorkerPool[str, str](lambda lease: lease.item, queue=queue) as pool:
            assert pool.submit("x").result() == "x"
        assert {name: n for name, n in queue.counts().items() if n} == {"dead": 1, "done": 2}
    assert len(why) == 1
    assert "Error: " in why[0]


# --- misuse ---------------------------------------------------------------------------------------


def test_a_closed_queue_says_so() -> None:
    queue: EngineQueue[str] = EngineQueue(DictEngine())
    queue.close()
    queue.close()
    calls: list[Callable[[], object]] = [lambda: queue.put("a"), queue.lease, queue.counts]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_i37_a_queue_is_not_used_in_a_forked_child() -> None:
    with EngineQueue[str](DictEngine()) as queue:
        queue.put("a")
        assert "open it again after a fork" in in_child(lambda: queue.lease(0))
        assert leased(queue).item == "a"


@pytest.mark.parametrize(
    ("delay", "failure"),
    [(-1.0, ValueError), (float("nan"), ValueError), (float("inf"), ValueError)],
)
def test_a_delay_is_a_number_of_seconds(delay: float, failure: type[Exception]) -> None:
    with EngineQueue[str](DictEngine()) as queue, pytest.raises(failure):
        queue.put("a", delay=delay)


def test_an_engine_says_which_operation_it_lacks() -> None:
    with EngineQueue[str](DictEngine()) as queue:
        for call in (queue.dead, lambda: queue.retry("a"), lambda: queue.port.cancel("a", None)):
            with pytest.raises(NotImplementedError, match="DictEngine cannot"):
                call()


@pytest.mark.parametrize("where", ["", "jobs", "amqp://localhost", "http://[", "redis:/x"])
def test_an_unknown_url_is_refused_with_advice(where: str) -> None:
    with pytest.raises(ValueError, match=r"redis://|Invalid"):
        open_queue(where)
    if "://" in where:
        with pytest.raises(ValueError, match=r"redis://|Invalid"):
            WorkerPool(print, queue=where)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("redis://", "redis", "redis"), ("postgresql://", "psycopg", "postgres")],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"desist.engines.{extra}", raising=False)
    with pytest.raises(ImportError, match=rf"desist\[{extra}\]"):
        open_queue(url)


def test_futures_of_a_stopped_pool_are_cancelled() -> None:
    class Never(DictEngine):  # type: ignore[misc, valid-type] # it is loaded
        def lease(self, timeout: float) -> None:
            desist.sleep(timeout)

    queue: EngineQueue[str] = EngineQueue(Never())
    pool = WorkerPool[str, None](lambda _: None, queue=queue)
    future = pool.submit("a")
    pool._owns_queue = True
    pool.stop()
    with pytest.raises(desist.TaskCancelled):
        future.result()


def test_an_item_that_loses_its_workers_is_not_tried_forever() -> None:
    def run() -> None:
        engine = DictEngine()
        with EngineQueue[str](engine, retry=RetryPolicy(max_attempts=2)) as queue:
            queue.put("a")
            for attempt in (1, 2):
                assert leased(queue).attempt == attempt
            assert queue.lease(100) is None
            assert engine.counts()["dead"] == 1

    simulated(run)


def test_an_engine_must_implement_every_abstract_method() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Engine()  # type: ignore[abstract]


# --- options and progress of items ----------------------------------------------------------------


def test_all_futures_of_one_key_are_settled() -> None:
    gate = threading.Event()

    def handler(lease: Lease[int]) -> int:
        gate.wait()
        return lease.item

    with EngineQueue[int](KeyIsId()) as queue, WorkerPool(handler, queue=queue) as pool:
        futures = [pool.submit(item, key="k") for item in (1, 2, 3)]
        assert len({future.item_id for future in futures}) == 1
        gate.set()
        assert [future.result() for future in futures] == [1, 1, 1]


class KeyIsId(DictEngine):  # type: ignore[misc, valid-type] # it is loaded
    """An engine with keys, and a moment between the server's answer to a put and its arrival."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def put(self, item_id: str, body: bytes, *, key: str | None, **options: Any) -> str:
        known = super().put(key or item_id, body, key=None, **options)
        self.meanwhile()
        return str(known)

    def cancel(self, item_id: str, failure: str) -> bool:  # noqa: ARG002
        del self.items[item_id]
        return True


@pytest.mark.parametrize("first", ["submit", "put"])
@pytest.mark.parametrize("end", ["done", "dead", "cancelled"])
def test_i48_a_future_is_settled_although_its_item_ends_before_its_submission_is_answered(
    first: str, end: str
) -> None:
    def run() -> None:
        def handler(lease: Lease[int]) -> int:
            if end == "dead":
                lease.discard("bad")
            return lease.item

        def end_it() -> None:
            if end == "cancelled":
                queue.port.cancel("key", "unwanted")
            else:
                pool.resume()
                assert pool.drain()

        engine = KeyIsId()
        with EngineQueue[int](engine) as queue, WorkerPool(handler, queue=queue) as pool:
            pool.pause()
            if first == "submit":
                futures = [pool.submit(1, key="key")]
            else:
                queue.put(1, key="key")
                futures = []
            engine.meanwhile = end_it
            futures.append(pool.submit(2, key="key"))
            for future in futures:
                if end == "done":
                    assert future.result(1000) == 1
                else:
                    with pytest.raises(desist.TaskCancelled):
                        future.result(1000)
            assert not queue.port._promises
            pool.resume()

    simulated(run)


@pytest.mark.parametrize("has_promise", [True, False])
@pytest.mark.parametrize("outer", ["follow", "end"])
def test_i48_an_item_may_end_at_any_instant_of_the_submission_that_found_it(
    outer: str, has_promise: bool
) -> None:
    instants = 0
    while meet(outer, instants, has_promise=has_promise):
        instants += 1
    assert instants > 10


def meet(outer: str, instant: int, *, has_promise: bool) -> bool:
    """Let one of the two happen at that bytecode of the other. False: there is no such bytecode."""
    left = instant

    def trace(frame: FrameType, what: str, _: object) -> Any:
        nonlocal left
        if "engines" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if what == "opcode":
            left -= 1
            if left == -1:
                inner()
        return trace

    with EngineQueue[int](DictEngine()) as queue:
        port, first, future = queue.port, ItemFuture[str](), ItemFuture[str]()
        call = port._submitting.begin()
        if has_promise:
            port._promises["a"] = ItemPromise(first)
        steps: dict[str, Callable[[], object]] = {
            "follow": partial(port._follow, "a", ItemPromise(future), call),
            "end": lambda: port._fail("a", ZeroDivisionError("it is dead")),
        }
        act, inner = steps.pop(outer), *steps.values()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            act()
        finally:
            sys.settrace(before)
        if left >= 0:
            return False
        for one in (first, future) if has_promise else (future,):
            assert isinstance(one.exception(0), ZeroDivisionError)
        assert not port._promises
    return True


def test_progress_reaches_the_next_attempt_through_the_lease() -> None:
    seen: list[object] = []

    def handler(lease: Lease[str]) -> None:
        seen.append(lease.progress)
        lease.heartbeat(lease.attempt)
        if lease.attempt == 1:
            raise ZeroDivisionError

    queue = EngineQueue[str](DictEngine(), retry=desist.RetryPolicy(backoff=0))
    with queue, WorkerPool(handler, queue=queue) as pool:
        pool.submit("a").result()
    assert seen == [None, 1]


def test_options_that_the_engine_lacks_are_refused() -> None:
    with EngineQueue[int](DictEngine()) as queue, WorkerPool[int, None](print, queue=queue) as pool:
        for more in ({"priority": 1}, {"expires": 1.0}):
            with pytest.raises(ValueError, match="neither priority nor expires"):
                pool.submit(1, **more)
