"""Notices that a run does not get on any more."""

from __future__ import annotations

import time


class Watchdog:
    """Compares what it is shown with what it saw before."""

    def __init__(self, patience: float) -> None:
        """Bear with a standstill of that many seconds."""
        self.patience = patience
        self._seen: object = None
        self._since = time.monotonic()

    def stuck(self, progress: object) -> bool:
        """Whether the same progress has been shown for longer than the patience.

        Args:
            progress: Anything that differs as long as something gets on.

        Returns:
            Whether it is time to give up.
        """
        now = time.monotonic()
        if progress != self._seen:
            self._seen, self._since = progress, now
        return now - self._since > self.patience
