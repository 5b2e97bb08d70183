"""Calls that block in C and cannot be woken: done on a thread that can be left behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from desist._core import Latch, hold_off

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Offloaded(Generic[_T]):
    """One call, on a daemon thread of its own, which begins at once.

    `latch` is set when it is over. Who stops waiting leaves the thread behind: it runs on until
    the call returns, and what it returns is dropped.
    """

    def __init__(self, call: Callable[[], _T], name: str) -> None:
        self.latch = Latch()
        self._call: Callable[[], _T] | None = call
        self._result: list[_T] = []
        self._raised: BaseException | None = None
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        hold_off(thread.start)  # a kill in it would leave locks of threading held

    def _run(self) -> None:
        call, self._call = self._call, None
        assert call is not None  # noqa: S101 (for the type checker: it runs once)
        try:
            self._result.append(call())
        except BaseException as raised:  # noqa: BLE001 (it is raised again, over there)
            self._raised = raised
        finally:
            del call
            self.latch.set()

    def result(self) -> _T:
        """Wait for the end of the call; what it returned, or raised. A checkpoint."""
        self.latch.wait()
        if self._raised is not None:
            try:
                raise self._raised
            finally:
                self._raised = None  # a cycle through its traceback
        return self._result.pop()
