"""Work that blocks, done on a thread of its own, so that the caller can stop waiting for it.

`Offloaded` is for calls that block in C and cannot be woken. Its latch is set after its result is
stored, and the thread that waits for the latch is the only one that reads the result.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from desist._core import Latch, call_masked

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Offloaded(Generic[_T]):
    """One call, on a daemon thread of its own, which begins at once.

    `latch` is set when the call has ended. A caller that stops waiting abandons the thread: it runs
    until the call returns, and the call's result is dropped.
    """

    def __init__(self, call: Callable[[], _T], name: str) -> None:
        self.latch = Latch()
        # Taken by the thread, so that nothing keeps the call's arguments alive after it.
        self._call: Callable[[], _T] | None = call
        self._result: list[_T] = []
        self._raised: BaseException | None = None
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        call_masked(thread.start)  # a kill in it would leave locks of threading held

    def _run(self) -> None:
        call, self._call = self._call, None
        assert call is not None  # noqa: S101 (for the type checker: it runs once)
        try:
            self._result.append(call())
        except BaseException as raised:  # noqa: BLE001 (result() raises it)
            self._raised = raised
        finally:
            del call
            self.latch.set()

    def result(self) -> _T:
        """Wait for the end of the call; return its result or raise its exception. A checkpoint."""
        self.latch.wait()
        if self._raised is not None:
            try:
                raise self._raised
            finally:
                self._raised = None  # a cycle through its traceback
        return self._result.pop()
