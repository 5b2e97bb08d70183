"""A thread is held at one line of desist's code, until another has done all that it can."""

from __future__ import annotations

import queue
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import desist

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

DESIST = str(Path(desist.__file__).parent)
PATIENCE = 20.0
"""Seconds after which a test fails: work was lost."""
STUCK = 0.2
"""Seconds after which a thread waits for the one that is held: then that goes on."""


class Hold:
    """Holds a thread at one of the lines that it executes."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.go_on = threading.Event()

    def trace(self, frame: FrameType, what: str, _: object) -> Any:
        """The thread's trace function."""
        if not frame.f_code.co_filename.startswith(DESIST):
            return None
        if what == "line":
            self.count()
        return self.trace

    def count(self) -> None:
        """Count a line, and hold the thread if it is the one."""
        if self.left:
            self.left -= 1
            if not self.left:
                self.news.put("held")
                self.go_on.wait()

    def run(self, act: Callable[[], object]) -> threading.Thread:
        """Call it on a thread that is held, and return when it is, or has ended."""

        def traced() -> None:
            sys.settrace(self.trace)
            try:
                act()
            finally:
                sys.settrace(None)
                self.news.put("ended")

        thread = threading.Thread(target=traced)
        thread.start()
        return thread
