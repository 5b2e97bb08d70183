"""Each drop-in takes the arguments of its original, in the standard library that runs the tests.

The parameters have the names, kinds and defaults of the original's; more of them are keyword-only.
A difference has a line in DIFFERENCES, with its reason.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import queue
import socket
import ssl
import subprocess
import threading
from inspect import Parameter
from typing import TYPE_CHECKING, Any

import pytest

import desist
import desist.socket
import desist.ssl
import desist.subprocess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

THREADING = (
    *("Thread", "Timer", "Lock", "RLock", "Condition", "Event"),
    *("Semaphore", "BoundedSemaphore", "Barrier"),
)
QUEUE = ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue")

MINUS_ONE = "None says the same; -1 is taken as well"
DIFFERENCES = {
    "threading.RLock": "a function there, which takes anything",
    "threading.Lock.acquire": MINUS_ONE,
    "threading.RLock.acquire": MINUS_ONE,
    "threading.Lock.acquire_lock": "an old name, not documented",
    "threading.Lock.release_lock": "an old name, not documented",
    "threading.Lock.locked_lock": "an old name, not documented",
    "concurrent.futures.Future.cancel": "a reason, as for all results of desist",
    "concurrent.futures.ThreadPoolExecutor": "from 3.14 on it takes arguments of its subclasses",
    "concurrent.futures.ThreadPoolExecutor.prepare_context": "for its own subclasses",
    "socket.SocketType": "the class that the C module has; here it is another name of socket",
}


def signature(of: Any) -> list[Parameter] | None:
    """Return the parameters but for `self`; None if the object does not tell them."""
    try:
        parameters = list(inspect.signature(of).parameters.values())
    except (ValueError, TypeError):
        return None  # a function in C without a signature
    return [each.replace(annotation=Parameter.empty) for each in parameters if each.name != "self"]


def drop_ins() -> Iterator[tuple[str, Any, Any]]:
    """All pairs of an original and its drop-in: classes, their methods, and functions."""
    pairs: list[tuple[ModuleType, ModuleType, tuple[str, ...]]] = [
        (threading, desist, THREADING),
        (queue, desist, QUEUE),
        (concurrent.futures, desist, ("ThreadPoolExecutor", "Future")),
        (subprocess, desist.subprocess, tuple(desist.subprocess.__all__)),
        (socket, desist.socket, tuple(desist.socket.__all__)),
        (ssl, desist.ssl, tuple(desist.ssl.__all__)),
    ]
    for theirs, ours, names in pairs:
        for name in names:
            original = getattr(theirs, name, None)
            drop_in = getattr(ours, name)
            if original is None or original is drop_in or not callable(original):
                continue
            full = f"{theirs.__name__}.{name}"
            yield full, original, drop_in
            if full == "socket.SocketType":
                continue
            yield from methods(full, original, drop_in)


def methods(full: str, original: Any, drop_in: Any) -> Iterator[tuple[str, Any, Any]]:
    if not inspect.isclass(drop_in):
        return
    # Lock is a function up to 3.12, RLock is one.
    theirs = original if inspect.isclass(original) else type(original())
    for name in dir(theirs):
        method = getattr(theirs, name)
        if not name.startswith("_") and callable(method):
            yield f"{full}.{name}", method, getattr(drop_in, name, None)


PAIRS = {name: (original, drop_in) for name, original, drop_in in drop_ins()}


def differs(original: Any, drop_in: Any) -> str:
    """Say how the signatures differ."""
    if drop_in is None:
        return "is missing"
    expected, given = signature(original), signature(drop_in)
    if expected is None or given is None or original is drop_in:
        return ""
    own = [each for each in given if each.kind is not Parameter.KEYWORD_ONLY]
    named = {each.name: each for each in given if each.kind is Parameter.KEYWORD_ONLY}
    for parameter in expected:
        if parameter.kind is Parameter.KEYWORD_ONLY:
            counterpart = named.get(parameter.name)
        else:
            counterpart = own.pop(0) if own else None
        if counterpart is not None and parameter.kind is Parameter.POSITIONAL_ONLY:
            counterpart = counterpart.replace(name=parameter.name)  # which no call can use
        if counterpart != parameter:
            return f"takes {counterpart} in place of {parameter}"
    return f"takes {own} as well, not only as keywords" if own else ""


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in DIFFERENCES])
def test_a_drop_in_takes_the_arguments_of_its_original(name: str) -> None:
    assert differs(*PAIRS[name]) == ""


def test_the_sweep_sees_the_drop_ins() -> None:
    assert len(PAIRS) > 150
    assert {"threading.Thread", "queue.Queue.put", "subprocess.run", "ssl.SSLSocket"} <= set(PAIRS)
