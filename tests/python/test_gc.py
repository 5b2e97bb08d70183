"""Desist's objects are freed as those of the standard library are, in cycles and at any moment."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import CancelSource, CancelToken
from desist._core import Latch, PoolMetrics, Task, WorkerSlot
from desist._item_future import ItemFuture, ItemPromise
from desist._ports import port_of
from support import NEVER, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Thing:
    """A user's object. It can be put in an attribute of itself, by way of desist's objects."""

    def method(self, *_: object) -> Thing:
        return self

    def tell(self, called: list[object], _: object) -> None:
        called.append(self)


LASTING = CancelSource()


def of_callback(thing: Thing, parent: CancelToken | None = None) -> Any:
    source = CancelSource(parent)
    return source, source.token.on_cancel(thing.method)


def of_two_callbacks(thing: Thing) -> Any:
    source = CancelSource()
    registrations = [source.token.on_cancel(thing.method) for _ in range(2)]
    assert registrations.pop().unregister()
    return source, registrations


def of_child(thing: Thing) -> Any:
    source = CancelSource()
    child = CancelSource(source.token)
    source.token.on_cancel(thing.method)
    child.token.on_cancel(thing.method)
    return child


def of_any(thing: Thing) -> Any:
    source = CancelSource()
    both = CancelToken.any_of(source.token, LASTING.token)
    source.token.on_cancel(thing.method)
    both.on_cancel(thing.method)
    return source, both


def of_cancelled(thing: Thing) -> Any:
    source = CancelSource()
    registration = source.token.on_cancel(thing.method)
    source.cancel()
    return source, registration, source.token.on_cancel(thing.method)


def of_queue(queue: Any, thing: Thing) -> Any:
    queue.put(thing)
    return queue


def of_barrier(thing: Thing) -> Any:
    return desist.Barrier(2, action=thing.method)


class OwnAction(desist.Barrier):
    """A barrier whose action is a method of its own: no other object can break the cycle."""

    def __init__(self, thing: Thing) -> None:
        self.thing = thing
        super().__init__(2, action=self.act)

    def act(self) -> None:
        pass


class OwnLock(desist.Lock):
    """A lock with an attribute."""

    def __init__(self, thing: Thing) -> None:
        super().__init__()
        self.thing = thing


def of_guarded(thing: Thing) -> Any:
    guarded: desist.Guarded[Any] = desist.Guarded(thing, rollback=lambda value: (thing, value)[1])
    with guarded.lock() as held:
        held.value = (guarded, thing)  # a tuple cannot break a cycle either
    return guarded, held


def of_memory_lease(thing: Thing) -> Any:
    queue: desist.LeaseQueue[Thing] = desist.LeaseQueue()
    queue.put(thing)
    lease = queue.lease(0)
    assert lease is not None
    lease.heartbeat(thing)
    return lease


def of_failed_item(thing: Thing) -> Any:
    queue: desist.LeaseQueue[Thing] = desist.LeaseQueue()
    port_of(queue).cancel(queue.put(thing), "why")
    lease = of_memory_lease(thing)
    lease.nack()
    return queue, lease


def of_submitted_item(queue: Any, thing: Thing) -> Any:
    port = port_of(queue)
    future: Any = ItemFuture[Any]()
    future.thing = thing
    port.submit(1, ItemPromise(future))
    return port


class Observer:
    """Of a pool, with an object of its own."""

    def __init__(self, thing: Thing) -> None:
        self.thing = thing

    def note(self, *_: object) -> None:
        pass

    def close(self, *_: object) -> None:
        pass


def of_worker(thing: Thing) -> Any:
    port = port_of(of_queue(desist.LeaseQueue(), thing))
    return WorkerSlot(
        "worker",
        port,
        CancelSource().token,
        PoolMetrics(Observer(thing)),
        None,
        desist.StopPolicy(),
        thing.method,
    )


def of_group(thing: Thing) -> Any:
    with desist.TaskGroup() as group:
        task = group.start_soon(thing.method)
        task.result()
    return group, task


def of_raised_late(thing: Thing) -> Any:
    thread = desist.Thread(target=thing.method)
    hook = threading.excepthook
    threading.excepthook = lambda _: None  # mostly it comes too late; pytest would keep it if not
    thread.start()
    thread.raise_exc(KeyError(thing))
    thread.join()
    threading.excepthook = hook
    return thread


def subclassed(base: type[Any], thing: Thing) -> Any:
    made = type("Subclass", (base,), {})()
    made.thing = thing
    return made


def with_result(future: Any, thing: Thing) -> Any:
    future.set_result(thing)
    future.add_done_callback(thing.method)
    return future


def begun(thing: Thing) -> Any:
    task = Task("")
    task.expect()
    return task.begin_kill(policy=desist.StopPolicy(cooperative=0), abandoned=thing.method)


MAKE: dict[str, Callable[[Thing], Any]] = {
    "Queue": lambda thing: of_queue(desist.Queue(), thing),
    "LifoQueue": lambda thing: of_queue(desist.LifoQueue(), thing),
    "PriorityQueue": lambda thing: of_queue(desist.PriorityQueue(), thing),
    "SimpleQueue": lambda thing: of_queue(desist.SimpleQueue(), thing),
    "LeaseQueue": lambda thing: of_queue(desist.LeaseQueue(), thing),
    "LeaseQueue, a future": lambda thing: of_submitted_item(desist.LeaseQueue(), thing),
    "LeaseQueue, failures": of_failed_item,
    "Lease": of_memory_lease,
    "WorkerSlot": of_worker,
    "callback": of_callback,
    "callback below a lasting source": lambda thing: of_callback(thing, LASTING.token),
    "callbacks, one unregistered": of_two_callbacks,
    "callback of a parent": of_child,
    "callback of any_of()": of_any,
    "callback that has run": of_cancelled,
    "Barrier": of_barrier,
    "Barrier, its own action": OwnAction,
    "Condition": lambda thing: desist.Condition(OwnLock(thing)),
    "Lock": OwnLock,
    "LockGuard": lambda thing: OwnLock(thing).guard(),
    "Guarded": of_guarded,
    "Queue.put_op()": lambda thing: desist.Queue[Thing]().put_op(thing),
    "Queue.get_op()": lambda thing: of_queue(desist.Queue(), thing).get_op(),
    "SimpleQueue.get_op()": lambda thing: of_queue(desist.SimpleQueue(), thing).get_op(),
    "PriorityQueue.get_op()": lambda thing: of_queue(desist.PriorityQueue(), thing).get_op(),
    "Lock.acquire_op()": lambda thing: OwnLock(thing).acquire_op(),
    "Semaphore.acquire_op()": lambda thing: subclassed(desist.Semaphore, thing).acquire_op(),
    "Event.wait_op()": lambda thing: subclassed(desist.Event, thing).wait_op(),
    "CancelToken.cancelled_op()": lambda thing: of_callback(thing)[0].token.cancelled_op(),
    "Latch.wait_op()": lambda thing: Latch().wait_op(thing),
    "Task.over_op()": lambda thing: Task("").over_op(thing),
    "begin_kill()": begun,
    "Thread": lambda thing: desist.Thread(target=thing.method, args=(thing,)),
    "Timer": lambda thing: desist.Timer(1, thing.method, (thing,)),
    "Thread, an exception that comes late": of_raised_late,
    "TaskGroup": of_group,
    "Future": lambda thing: with_result(desist.Future(), thing),
    "ThreadPoolExecutor": lambda thing: desist.ThreadPoolExecutor(initializer=thing.method),
}


def left_of(make: Callable[[Thing], Any], cycles: int = 100) -> int:
    """Make cycles, collect them, and return how many are left."""

    def one() -> weakref.ref[Thing]:
        thing = Thing()
        thing.made = make(thing)  # type: ignore[attr-defined]
        return weakref.ref(thing)

    things = [one() for _ in range(cycles)]
    gc.collect()
    return sum(thing() is not None for thing in things)


@pytest.mark.parametrize("name", MAKE)
def test_cycles_are_collected(name: str) -> None:
    assert left_of(MAKE[name]) == 0


def test_cycles_through_the_futures_of_a_file_are_collected(tmp_path: Path) -> None:
    names = iter(range(100))

    def make(thing: Thing) -> Any:
        queue: desist.FileQueue[Any] = desist.FileQueue(tmp_path / str(next(names)))
        return of_submitted_item(queue, thing)

    assert left_of(make, 10) == 0


@pytest.mark.parametrize("name", ["callback", "Barrier", "Guarded", "LeaseQueue", "Lease", "Queue"])
def test_objects_in_use_are_not_collected(name: str) -> None:
    thing = Thing()
    made = MAKE[name](thing)
    gone = weakref.ref(thing)
    del thing
    for _ in range(3):
        gc.collect()
    assert gone() is not None
    del made
    gc.collect()
    assert gone() is None


# --- callbacks ------------------------------------------------------------------------------------


def test_a_callback_is_called_although_its_token_is_gone() -> None:
    """The core alone keeps it: a task, a scope, a child that is not the collector's to see."""
    called: list[str] = []
    outer = CancelSource()
    inner = CancelSource(outer.token)
    inner.token.on_cancel(lambda _: called.append("inner"))
    task = Task("", inner.token)
    del inner
    gc.collect()
    outer.cancel()
    assert called == ["inner"]
    assert task.token.cancelled


def test_a_callback_of_a_scope_is_called() -> None:
    called: list[str] = []
    with desist.cancel_scope() as scope:
        scope.token.on_cancel(lambda _: called.append("scope"))
        desist.current_token().on_cancel(lambda _: called.append("current"))
        gc.collect()
        scope.cancel()
    assert sorted(called) == ["current", "scope"]


def test_a_callback_is_dropped_with_the_last_reference_to_its_token() -> None:
    gc.disable()
    try:
        thing = Thing()
        source = CancelSource()
        registration = source.token.on_cancel(thing.method)
        gone = weakref.ref(thing)
        del thing, source
        assert gone() is not None
        del registration
        assert gone() is None
    finally:
        gc.enable()


def test_an_unregistered_callback_is_dropped_at_once() -> None:
    thing = Thing()
    source = CancelSource()
    registration = source.token.on_cancel(thing.method)
    other = source.token.on_cancel(thing.method)
    gone = weakref.ref(thing)
    del thing
    assert registration.unregister()
    assert gone() is not None
    other.close()
    assert gone() is None


def test_a_source_has_one_token() -> None:
    source = CancelSource()
    assert source.token is source.token


@pytest.fixture
def _often() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # a collection need not look at what earlier tests have left, which takes long
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*thresholds)


def tell_in_a_cycle(source: CancelSource, called: list[object]) -> None:
    thing = Thing()
    thing.made = source  # type: ignore[attr-defined]
    source.token.on_cancel(partial(Thing.tell, thing, called))


@pytest.mark.usefixtures("_often")
def test_no_callback_is_lost_to_a_collection_beside_it() -> None:
    """Sources are made, cancelled from above and dropped, while another thread collects."""
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            gc.collect()

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for _ in range(200):
            called: list[object] = []
            outer = CancelSource()
            inner = [CancelSource(outer.token) for _ in range(5)]
            for source in inner:
                tell_in_a_cycle(source, called)
            in_thread(outer.cancel)
            assert len(called) == len(inner)
    finally:
        done.set()
        collector.join(NEVER)


def test_the_collector_is_not_shown_a_lease_before_it_is_filled() -> None:
    queue: desist.LeaseQueue[int] = desist.LeaseQueue()
    waiting = desist.Thread(target=queue.lease, daemon=True)
    waiting.start()
    for _ in range(100):
        assert all(repr(each) for each in gc.get_objects() if type(each) is desist.Lease)
    waiting.kill(policy=desist.StopPolicy(cooperative=0, at_wait=NEVER))


# --- freed while an exception is on its way -------------------------------------------------------


def source_with_a_callback() -> object:
    source = CancelSource()
    source.token.on_cancel(lambda _: None)
    return source


def registration() -> object:
    return CancelSource().token.on_cancel(lambda _: None)


def lease() -> object:
    queue: desist.LeaseQueue[int] = desist.LeaseQueue()
    queue.put(1)
    return queue.lease()


def held_guard() -> object:
    return desist.Lock().guard().__enter__()


def caught_cancellation() -> object:
    with desist.cancel_scope() as scope:
        scope.cancel()
        try:
            desist.sleep(0)
        except desist.Cancelled as cancelled:
            return cancelled.with_traceback(None)
    raise AssertionError


def entered_group() -> object:
    return desist.TaskGroup().__enter__()


def pool() -> object:
    return desist.WorkerPool[int, None](lambda _: None, workers=1)


FREED = (
    source_with_a_callback,
    registration,
    lease,
    held_guard,
    caught_cancellation,
    entered_group,
    pool,
)


class Passing(Exception):
    pass


def fail() -> object:
    raise Passing


@pytest.mark.parametrize("make", FREED, ids=lambda make: make.__name__)
def test_an_object_that_an_unwinding_frame_frees_lets_the_exception_pass(
    make: Callable[[], object],
) -> None:
    def body() -> None:
        made = [make()]
        [made.pop(), fail()]  # the object is on the frame's stack, and nowhere else

    with pytest.raises(Passing):
        in_thread(body)  # on a thread that has not been asked for its name yet


def test_i41_a_scope_that_an_unwinding_frame_frees_lets_the_exception_pass() -> None:
    def body() -> None:
        open_here = [desist.move_on_after(NEVER)]
        open_here[0].__enter__()
        open_here[0].token.on_cancel(lambda _: None)
        [open_here.pop(), fail()]

    with pytest.raises(Passing):
        in_thread(body)
