"""I19. A cancel in code that interrupts other code runs no callback on the interrupted thread."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from desist import CancelSource
from support import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Shared:
    """A source with a callback that needs a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.source = CancelSource()
        self.ran = threading.Event()
        self.thread = 0
        self.source.token.on_cancel(self.callback)

    def callback(self, _: object) -> None:
        with self.lock:
            self.thread = threading.get_ident()
        self.ran.set()

    def cancel(self) -> None:
        self.source.cancel()

    def check(self) -> None:
        assert self.source.token.cancelled
        assert self.ran.wait(NEVER)
        assert self.thread != threading.get_ident()


class Handler:
    """Signal handlers of every form."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def method(self, _number: int, _frame: object) -> None:
        self.shared.cancel()

    def __call__(self, *_: object) -> None:
        self.shared.cancel()

    def with_a_closure(self, number: int, frame: object) -> None:
        def inner() -> tuple[int, object]:
            return number, frame

        assert inner()
        self.shared.cancel()

    def that_restores(self, number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.shared.cancel()

    def indirect(self, number: int, frame: object) -> None:
        def deep(depth: int) -> None:
            if depth:
                deep(depth - 1)
            else:
                self.method(number, frame)

        deep(20)


def canceller(shared: Shared, *_: object) -> None:
    shared.cancel()


HANDLERS: dict[str, Callable[[Shared], Any]] = {
    "a lambda": lambda shared: lambda *_: shared.cancel(),
    "a lambda with arguments": lambda shared: lambda number, frame: shared.cancel(),  # noqa: ARG005
    "a method": lambda shared: Handler(shared).method,
    "an object": Handler,
    "a partial": lambda shared: functools.partial(canceller, shared),
    "a closure": lambda shared: Handler(shared).with_a_closure,
    "one that restores": lambda shared: Handler(shared).that_restores,
    "an indirect one": lambda shared: Handler(shared).indirect,
}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal here")
@pytest.mark.parametrize("handler", HANDLERS)
def test_i19_a_signal_handler_cancels_while_its_thread_holds_a_lock(handler: str) -> None:
    shared = Shared()
    before = signal.signal(signal.SIGUSR1, HANDLERS[handler](shared))
    try:
        with shared.lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            while not shared.source.token.cancelled:
                pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    shared.check()


class WithFinalizer:
    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.cycle: object = None

    def __del__(self) -> None:
        self.shared.cancel()


class Plain:
    pass


def generator(shared: Shared) -> Iterator[None]:
    try:
        yield
    finally:
        shared.cancel()


def dropped_object(shared: Shared) -> object:
    return WithFinalizer(shared)


def collected_cycle(shared: Shared) -> object:
    thing = WithFinalizer(shared)
    thing.cycle = thing
    return thing


def dropped_generator(shared: Shared) -> object:
    started = generator(shared)
    next(started)
    return started


def weak_callback(shared: Shared) -> object:
    thing = Plain()
    KEPT.append(weakref.ref(thing, lambda _: shared.cancel()))
    return thing


def finalize(shared: Shared) -> object:
    thing = Plain()
    weakref.finalize(thing, shared.cancel)
    return thing


KEPT: list[object] = []
FINALIZERS = [dropped_object, collected_cycle, dropped_generator, weak_callback, finalize]


@pytest.mark.parametrize("make", FINALIZERS)
def test_i19_a_finalizer_cancels_while_its_thread_holds_a_lock(
    make: Callable[[Shared], object],
) -> None:
    shared = Shared()
    thing: object = make(shared)
    with shared.lock:
        del thing
        gc.collect()
    shared.check()
    KEPT.clear()


def test_i19_a_trace_function_cancels_while_its_thread_holds_a_lock() -> None:
    shared = Shared()

    def trace(_frame: object, _event: str, _argument: object) -> None:
        if not shared.source.token.cancelled:
            shared.cancel()

    before = sys.gettrace()
    with shared.lock:
        sys.settrace(trace)
        len([None for _ in range(1)])
        functools.partial(shared.source.token.check)
        Handler(shared)
        sys.settrace(before)
    shared.check()


def canceller_key(shared: Shared, key: int) -> int:
    shared.cancel()
    return key


def test_an_ordinary_cancel_runs_callbacks_on_its_thread_before_it_returns() -> None:
    shared = Shared()
    sorted((1, 2), key=functools.partial(canceller_key, shared))
    assert shared.ran.is_set()
    assert shared.thread == threading.get_ident()


def test_the_variables_of_other_calls_are_not_kept_alive() -> None:
    source = CancelSource()
    source.token.on_cancel(lambda _: None)
    thing = Plain()
    gone = weakref.ref(thing)
    source.cancel()
    del thing
    gc.collect()
    assert gone() is None
