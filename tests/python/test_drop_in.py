"""What CPython's own tests do not ask of those who stand in for its classes."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

import desist
from support import NEVER, in_thread


@pytest.mark.parametrize("truth", [0, 1, "", "yes", [], None])
def test_blocking_is_whatever_is_true_or_false(truth: Any) -> None:
    for make in (desist.Lock, desist.RLock, desist.Semaphore, desist.Condition):
        assert make().acquire(truth)
    waiting: desist.Queue[int] = desist.Queue(1)
    waiting.put(1, truth)
    assert waiting.get(truth) == 1


def test_a_queue_that_is_made_larger_admits_who_waits() -> None:
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


def test_a_queue_that_is_made_smaller_admits_nobody_until_there_is_a_place() -> None:
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


def test_the_representation_of_an_rlock_tells_how_often_it_is_held() -> None:
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
    """What a subclass adds in front of any of them."""

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
def test_a_subclass_takes_what_arguments_it_likes(
    base: type[Any], arguments: tuple[int, ...]
) -> None:
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
def test_a_subclass_that_forgets_init_is_told(base: type[Any]) -> None:
    cls = type("Subclass", (base,), {"__init__": lambda _self: None})
    with pytest.raises(RuntimeError, match=r"__init__\(\) was not called"):
        cls().wait()
