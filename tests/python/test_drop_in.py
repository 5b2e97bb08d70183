"""Requirements for the drop-in classes that CPython's own tests do not cover."""

from __future__ import annotations

import inspect
import queue
import threading
import time
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import desist
from support import AT_WAIT, NEVER, Victim, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("truth", [0, 1, "", "yes", [], None])
def test_blocking_is_whatever_is_true_or_false(truth: Any) -> None:
    for make in (desist.Lock, desist.RLock, desist.Semaphore, desist.Condition):
        assert make().acquire(truth)
    waiting: desist.Queue[int] = desist.Queue(1)
    waiting.put(1, truth)
    assert waiting.get(truth) == 1


def test_a_queue_that_is_made_larger_admits_waiting_puts() -> None:
    waiting: desist.Queue[int] = desist.Queue(1)
    waiting.put(0)
    threads = [threading.Thread(target=waiting.put, args=(item,)) for item in (1, 2)]
    for thread in threads:
        thread.start()
    waiting.maxsize = 0
    for thread in threads:
        thread.join(NEVER)
    assert waiting.qsize() == 3
    assert waiting.unfinished_tasks == 3


def test_a_queue_that_is_made_smaller_admits_no_put_until_there_is_room() -> None:
    waiting: desist.Queue[int] = desist.Queue(2)
    waiting.put(0)
    waiting.put(1)
    waiting.maxsize = 1
    waiting.get()
    assert waiting.full()
    with pytest.raises(queue.Full):
        waiting.put_nowait(2)
    waiting.get()
    waiting.put_nowait(2)


@pytest.mark.parametrize(
    "make", [desist.Queue, desist.LifoQueue, desist.PriorityQueue, desist.SimpleQueue]
)
@pytest.mark.parametrize("by", ["cancelling", "deadline"])
def test_a_call_that_need_not_wait_is_still_a_checkpoint(make: Any, by: str) -> None:
    items = make()
    items.put(1)
    calls = [items.get, lambda: items.get(timeout=NEVER)]
    if make is not desist.SimpleQueue:
        calls += [lambda: items.put(2), lambda: items.put(item=2)]
    for call in calls:
        with desist.move_on_after(0 if by == "deadline" else NEVER) as scope:
            if by == "cancelling":
                scope.cancel()
            with pytest.raises(desist.Cancelled):
                call()
        assert items.qsize() == 1, "something was done"
    assert items.get() == 1


@pytest.mark.parametrize("name", ["put", "get"])
def test_a_kill_is_raised_in_a_call_that_need_not_wait(name: str) -> None:
    items: desist.Queue[int] = desist.Queue()
    end = time.monotonic() + 30
    put: Callable[[int], None] = items.put if name == "put" else items.put_nowait
    get: Callable[[], int] = items.get if name == "get" else items.get_nowait

    def body(ready: Callable[[], None]) -> None:
        with desist.shield(NEVER):
            ready()
            while time.monotonic() < end:
                inside[0] = "put"
                put(1)
                inside[0] = "get"
                get()

    inside = [""]  # get_nowait() does not lose an item to a kill either
    with Victim(body) as victim:
        report = victim.kill(policy=AT_WAIT)
    assert report.outcome is desist.KillOutcome.AT_WAIT
    assert items.qsize() == (0 if inside == ["put"] else 1), "something was done"


def test_a_simple_queue_never_keeps_an_item_from_being_put() -> None:
    items: desist.SimpleQueue[int] = desist.SimpleQueue()
    with desist.cancel_scope() as scope:
        scope.cancel()
        items.put(1)
    assert items.get() == 1


@pytest.mark.parametrize("base", [desist.Queue, desist.SimpleQueue])
def test_put_and_get_take_the_same_arguments_as_in_queue(base: Any) -> None:
    items = base()
    for put in (items.put, items.put_nowait):
        for wrong in ((), (1, True, None, 4)):
            with pytest.raises(TypeError):
                put(*wrong)
        put(1)
        put(item=2)
        with pytest.raises(TypeError):
            put(1, item=2)
    items.put(3, False)
    items.put(4, timeout=None)
    with pytest.raises(TypeError):
        items.get(True, None, 3)
    assert [items.get(), items.get(True), items.get(block=False)] == [1, 2, 1]
    assert [items.get(timeout=None), items.get_nowait(), items.get()] == [2, 3, 4]
    with pytest.raises(queue.Empty):
        items.get(False)


@pytest.mark.parametrize("base", [desist.Queue, desist.SimpleQueue])
def test_a_method_is_for_its_own_class(base: Any) -> None:
    """A method that gets an object of another class raises TypeError."""
    other: object = desist.SimpleQueue() if base is desist.Queue else desist.Queue()
    for wrong in (other, object(), None, 1, base):
        with pytest.raises(TypeError):
            base.put(wrong, 1)
        with pytest.raises(TypeError):
            base.get(wrong)
    subclassed = type("Subclass", (base,), {})()
    base.put(subclassed, 1)
    assert base.get(subclassed) == 1
    assert isinstance(base.put, types.MethodDescriptorType)
    assert str(inspect.signature(base.put)) == "(self, /, item, block=True, timeout=None)"
    assert "Put an item" in (base.put.__doc__ or "")


def test_a_refused_item_is_not_kept_alive() -> None:
    class Item:
        pass

    items: desist.Queue[Item] = desist.Queue(1)
    items.put(Item())
    item = Item()
    gone = weakref.ref(item)
    with desist.move_on_after(0.001):
        items.put(item)
    items.shutdown()
    with pytest.raises(desist.ShutDown):
        items.put(item)
    del item
    assert gone() is None


@pytest.mark.parametrize("block", [True, False])
def test_a_put_that_is_overridden_is_called_once(block: bool) -> None:
    class Wrapping(desist.PriorityQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put((1, item), block, timeout)

    wrapping = Wrapping()
    wrapping.put("item", block)
    assert wrapping.get(block) == (1, "item")


@pytest.mark.parametrize("base", [desist.Queue, desist.LifoQueue, desist.PriorityQueue])
def test_hooks_can_be_extended(base: Any) -> None:
    class Counting(base):  # type: ignore[misc]
        def __init__(self, maxsize: int) -> None:
            self.calls: list[str] = []
            super().__init__(maxsize)

        def _put(self, item: Any) -> None:
            self.calls.append("put")
            super()._put(item)

        def _get(self) -> Any:
            self.calls.append("get")
            return super()._get()

    counting, model = Counting(3), getattr(queue, base.__name__)(3)
    for each in (counting, model):
        for item in (2, 1, 3):
            each.put(item)
    assert [counting.get() for _ in range(3)] == [model.get() for _ in range(3)]
    assert counting.calls == ["put"] * 3 + ["get"] * 3


def test_the_representation_of_an_rlock_has_its_recursion_count() -> None:
    lock = desist.RLock(name="accounts")
    assert repr(lock).startswith('<unlocked desist.RLock object "accounts" count=0 at ')
    with lock, lock:
        told = in_thread(lambda: repr(lock))
    assert told.startswith('<locked desist.RLock object "accounts" count=2 at ')


def test_classes_may_be_subclassed() -> None:
    for base in (desist.Lock, desist.RLock, desist.Semaphore, desist.BoundedSemaphore):
        assert type("Subclass", (base,), {})().acquire()


def test_a_condition_of_a_plain_lock_can_be_used_in_place_of_it() -> None:
    condition = desist.Condition(desist.Lock())
    assert not condition._is_owned()
    condition.acquire()
    assert condition._is_owned()
    released = condition._release_save()
    assert not condition.locked()
    condition._acquire_restore(released)
    assert condition.locked()
    condition._at_fork_reinit()
    assert not condition.locked()


class Named:
    """A subclass that takes another argument first."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.name = name


@pytest.mark.parametrize(
    ("base", "arguments"),
    [
        (desist.Lock, ()),
        (desist.RLock, ()),
        (desist.Semaphore, (2,)),
        (desist.BoundedSemaphore, (2,)),
        (desist.Event, ()),
        (desist.Condition, ()),
        (desist.Barrier, (2,)),
        (desist.Queue, (2,)),
        (desist.LifoQueue, (2,)),
        (desist.PriorityQueue, (2,)),
        (desist.SimpleQueue, ()),
    ],
)
def test_a_subclass_may_take_other_arguments(base: type[Any], arguments: tuple[int, ...]) -> None:
    cls = type("Subclass", (Named, base), {"name": None})
    made = cls("name", *arguments)
    assert made.name == "name"
    assert isinstance(made, base)
    for wrong in (("too", "many", "arguments"), (object(),)):
        if base in (desist.Condition, desist.Barrier) and len(wrong) == 1:
            continue
        with pytest.raises(TypeError):
            base(*wrong, "and one more")
    if base in (desist.Semaphore, desist.BoundedSemaphore):
        assert made._value == 2
    if base is desist.Barrier:
        assert made.parties == 2
    if base in (desist.Queue, desist.LifoQueue, desist.PriorityQueue):
        assert made.maxsize == 2
    if base is desist.RLock:
        with made, made:
            assert made._recursion_count() == 2


@pytest.mark.parametrize("base", [desist.Condition, desist.Barrier])
def test_a_subclass_that_forgets_init_gets_an_error(base: type[Any]) -> None:
    cls = type("Subclass", (base,), {"__init__": lambda _self: None})
    with pytest.raises(RuntimeError, match=r"__init__\(\) was not called"):
        cls().wait()
