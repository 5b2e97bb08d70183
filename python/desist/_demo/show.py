"""What is seen while the demo runs: how far each run is, and who was killed how."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console
    from typing_extensions import Self

    from desist._demo.tally import Tally

RARELY = 2.0
"""Seconds between two lines of progress where nothing can be drawn over."""

RUNGS = {
    "COOPERATIVE": "asked",
    "AT_WAIT": "wait",
    "ASYNC_EXC": "async",
    "TRACE": "traced",
    "ABANDONED": "abandoned",
}
"""Short names for the rungs that end a kill."""


class Board:
    """Live progress of the runs: drawn on a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        """Prepare; nothing is shown before the `with` block."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )

    def __enter__(self) -> Self:
        """Show."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave what was shown where it is."""
        self._progress.stop()

    def line(self, title: str, tally: Tally) -> Callable[[Tally], None]:
        """Add a run.

        Args:
            title: What to call it.
            tally: Its numbers.

        Returns:
            What to call when they have changed.
        """
        if not self._console.is_terminal:
            return self._speaker(title)
        task = self._progress.add_task(title, total=tally.items, note="")

        def draw(tally: Tally) -> None:
            self._progress.update(task, completed=tally.finished, note=note(tally))

        return draw

    def _speaker(self, title: str) -> Callable[[Tally], None]:
        spoken = time.monotonic()

        def speak(tally: Tally) -> None:
            nonlocal spoken
            if time.monotonic() - spoken > RARELY:
                spoken = time.monotonic()
                done = f"{title}: {tally.finished} of {tally.items}"
                self._console.print(f"{done}, {note(tally)}", soft_wrap=True)

        return speak


def note(tally: Tally) -> str:
    """Say in a few words how a run gets on."""
    pace = tally.finished / tally.seconds if tally.seconds else 0.0
    kills = [f"{tally.kills[rung]} {RUNGS[rung]}" for rung in RUNGS if tally.kills[rung]]
    said = f"{pace:.0f}/s, {tally.starts} starts"
    return f"{said}, kills: {' '.join(kills)}" if kills else said
