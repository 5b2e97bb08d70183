"""A run for each place at which a kill can strike.

`sweep(trial)` runs `trial` again and again, on a thread of its own; in the k-th run a kill arrives
in front of the k-th bytecode of the tasks that the trial runs, in the way of a real one: through
the same lock and the same slot, delivered by CPython where it looks. A sweep is over with the
first run that has fewer than k bytecodes.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from desist._core import _Injector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MONITORED = sys.version_info >= (3, 12)
TOOL = 4  # 0 to 2 are for debuggers, coverage and profilers
LIMIT = 3000


def sweep(trial: Callable[[], None], *, defer: bool = False, block: int | None = None) -> int:
    """Run `trial` once for each of its bytecodes, and once more; how many it has.

    `trial` checks what it has done itself, in code that no task runs. `defer`: a held lock holds
    the kill off. `block`: not the task is killed, but this one of the thread's open blocks with
    kill_after (0 is the outermost), and only its bytecodes count.
    """
    at = 1
    while True:
        injector = _Injector(at, defer=defer, block=block)
        try:
            with watched(injector):
                run(trial, injector)
        except Exception as raised:
            raise AssertionError(f"killed in front of bytecode {at}") from raised
        if injector.passed < at:
            return at - 1
        at += 1
        if at > LIMIT:
            pytest.fail(f"a trial of more than {LIMIT} bytecodes is too long to sweep")


@contextmanager
def watched(injector: _Injector) -> Iterator[None]:
    """Every bytecode of every thread passes the injector; it looks at those of tasks only."""
    if not MONITORED:
        threading.settrace(injector)  # type: ignore[arg-type]
        try:
            yield
        finally:
            threading.settrace(None)
        return
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    event = monitoring.events.INSTRUCTION
    monitoring.use_tool_id(TOOL, "sweep")
    monitoring.register_callback(TOOL, event, injector)
    monitoring.set_events(TOOL, event)
    try:
        yield
    finally:
        monitoring.set_events(TOOL, 0)
        monitoring.register_callback(TOOL, event, None)
        monitoring.free_tool_id(TOOL)


def run(trial: Callable[[], None], injector: _Injector) -> None:
    """Run `trial` on a thread, for a trace function is a thread's own."""
    failed: list[BaseException] = []

    def target() -> None:
        if not MONITORED:
            sys.settrace(injector)  # type: ignore[arg-type]
        try:
            trial()
        except BaseException as raised:  # noqa: BLE001 (raised again below)
            failed.append(raised)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
