"""The seam between the extension and the Python code: desist._ports and src/python/ports.rs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import desist
from desist import _core, _ports
from desist._future import Future
from desist._group import Task, TaskGroup
from desist._item_future import ItemPromise
from desist._ports import (
    EngineSource,
    GroupHooks,
    GroupTask,
    HeldDelivery,
    HookedQueue,
    Promise,
    QueuePort,
    Waitable,
    WorkOwner,
)
from desist._queue import _Hooked
from desist.engines._held import HeldLease
from desist.engines._queue import EnginePort

if TYPE_CHECKING:
    # A type checker compares signatures as well.
    _promise: type[Promise] = ItemPromise
    _source: type[EngineSource] = EnginePort
    _held: type[HeldDelivery] = HeldLease
    _of_engine: type[QueuePort] = EnginePort
    _of_core: type[QueuePort] = _core.QueuePort

PROTOCOLS: dict[str, Any] = {
    name: value
    for name, value in vars(_ports).items()
    # By its bases: issubclass() of a protocol may answer by the members of the class.
    if inspect.isclass(value) and Protocol in value.__mro__ and value is not Protocol
}


class Empty(Protocol):
    """Has the members of every protocol."""


IMPLEMENTED = [
    (GroupHooks, TaskGroup),
    (GroupTask, Task),
    (WorkOwner, desist.ThreadPoolExecutor),
    (WorkOwner, desist.WorkerPool),
    (HookedQueue, _Hooked),
    (Waitable, desist.Thread),
    (Waitable, Task),
    (Waitable, Future),
    (Promise, ItemPromise),
    (EngineSource, EnginePort),
    (HeldDelivery, HeldLease),
    (QueuePort, EnginePort),
    (QueuePort, _core.QueuePort),
]


def members(protocol: type) -> set[str]:
    """What the protocol itself declares."""
    ours = vars(protocol).keys() - vars(Empty).keys()
    return {name for name in ours if not name.startswith("__")}


def test_the_extension_calls_the_members_of_the_protocols_and_no_others() -> None:
    called = {name: set(names) for name, names in _core.ports().items()}
    declared = {name: members(protocol) for name, protocol in PROTOCOLS.items()}
    assert called == {name: names for name, names in declared.items() if name != "QueuePort"}


@pytest.mark.parametrize(("protocol", "implementation"), IMPLEMENTED)
def test_a_class_has_the_members_of_its_protocol(protocol: type, implementation: type) -> None:
    known = set(dir(implementation)) | _set_in_init(implementation)
    assert members(protocol) <= known


def _set_in_init(implementation: type) -> set[str]:
    init = vars(implementation).get("__init__")
    return set(init.__code__.co_names) if inspect.isfunction(init) else set()
