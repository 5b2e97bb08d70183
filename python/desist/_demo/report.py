"""Progress on the terminal while the demo runs, and the table at its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from rich.console import Console
    from typing_extensions import Self

    from desist._demo.measure import RunStats

PRINT_EVERY = 2.0
"""Seconds between two lines of progress where the output is not a terminal."""

OUTCOMES = {
    "COOPERATIVE": ("asked", "when asked to stop"),
    "AT_WAIT": ("wait", "at a wait"),
    "ASYNC_EXC": ("async", "by an asynchronous exception"),
    "TRACE": ("traced", "by tracing"),
    "ABANDONED": ("abandoned", "by abandoning the thread"),
}
"""The words for the outcomes of a kill: one for the progress, and some for the table."""

IDLE = "ALREADY_DONE"
"""The outcome of a kill whose worker was idle."""


class Board:
    """Live progress of the runs: drawn on a terminal, otherwise a line now and then."""

    def __init__(self, console: Console) -> None:
        """Prepare; nothing is shown before the `with` block."""
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )

    def __enter__(self) -> Self:
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; the drawing stays on the screen."""
        self._progress.stop()

    def line(self, title: str, stats: RunStats) -> Callable[[RunStats], None]:
        """Add a line for a run.

        Returns:
            The function to call with the stats when they have changed.
        """
        if not self._console.is_terminal:
            return self._printer(title)
        task = self._progress.add_task(title, total=stats.items, note="")

        def draw(stats: RunStats) -> None:
            self._progress.update(task, completed=stats.finished, note=note(stats))

        return draw

    def _printer(self, title: str) -> Callable[[RunStats], None]:
        printed = time.monotonic()

        def print_line(stats: RunStats) -> None:
            nonlocal printed
            if time.monotonic() - printed > PRINT_EVERY:
                printed = time.monotonic()
                done = f"{title}: {stats.finished} of {stats.items}"
                self._console.print(f"{done}, {note(stats)}", soft_wrap=True)

        return print_line


def note(stats: RunStats) -> str:
    """Say in a few words how fast a run is, and how its kills ended."""
    pace = stats.finished / stats.seconds if stats.seconds else 0.0
    kills = [
        f"{stats.kills[outcome]} {short}"
        for outcome, (short, _) in OUTCOMES.items()
        if stats.kills[outcome]
    ]
    said = f"{pace:.0f}/s, {stats.starts} starts"
    return f"{said}, kills: {' '.join(kills)}" if kills else said


def report(console: Console, *, undisturbed: RunStats, ours: RunStats, theirs: RunStats) -> None:
    """Print the table and the sentences below it.

    Args:
        console: Prints them.
        undisturbed: The run without kills.
        ours: The run of the workers built with desist.
        theirs: The run of the workers built with threading.
    """
    table = Table(title="The same work, the same random kills", title_justify="left")
    table.add_column("")
    table.add_column("desist", justify="right")
    table.add_column("threading.Lock + queue.Queue\n+ SetAsyncExc", justify="right")
    outcomes = [name for name in OUTCOMES if ours.kills[name] or theirs.kills[name]]
    rows = zip(cells(ours, outcomes), cells(theirs, outcomes), strict=True)
    for (label, left), (_, right) in rows:
        table.add_row(label, str(left), str(right))
    console.print(table)
    console.print(summary(undisturbed, ours, theirs), highlight=False)


class Cell(NamedTuple):
    """A number or a word, and whether it is as it should be; None: neither good nor bad."""

    text: str
    good: bool | None = None

    def __str__(self) -> str:
        """Give it a colour, in rich's markup."""
        if self.good is None:
            return self.text
        return f"[{'green' if self.good else 'bold red'}]{self.text}[/]"


def cells(stats: RunStats, outcomes: Iterable[str]) -> Iterator[tuple[str, Cell]]:
    """List the rows of the table from the top, each with the number of one run."""
    yield "items", Cell(str(stats.items))
    yield "starts", Cell(str(stats.starts))
    yield "kills", Cell(str(kills(stats)))
    for outcome in outcomes:
        yield f"  {OUTCOMES[outcome][1]}", Cell(str(stats.kills[outcome]))
    yield "locks still held", zero(len(stats.locks_held), ", ".join(stats.locks_held))
    yield "items lost", zero(stats.lost)
    yield "items left in the queue", zero(len(stats.queued))
    yield "rows written twice", zero(stats.twice)
    yield "items acknowledged twice", zero(stats.acked_twice)
    yield "items never acknowledged", zero(stats.unacked)
    yield "exceptions that escaped", zero(stats.escaped)
    able = stats.alive == stats.workers
    yield "workers able to go on", Cell(f"{stats.alive} of {stats.workers}", able)
    yield "totals agree with the rows", yes(not stats.torn)
    yield "result as without kills", yes(stats.same)
    yield "ended by itself", yes(not stats.hung)
    yield "seconds", Cell(f"{stats.seconds:.1f}")


def zero(number: int, which: str = "") -> Cell:
    """Show a number that should be 0."""
    return Cell(f"{number} ({which})" if which else str(number), number == 0)


def yes(answer: bool) -> Cell:
    """Show an answer that should be yes."""
    return Cell("yes" if answer else "no", answer)


def kills(stats: RunStats) -> int:
    """Count the kills that found a busy worker."""
    return stats.kills.total() - stats.kills[IDLE]


def summary(undisturbed: RunStats, ours: RunStats, theirs: RunStats) -> str:
    """Print the conclusions from the table."""
    calm = f"a run of {undisturbed.seconds:.1f} s without kills"
    held = (
        f"desist: {kills(ours)} kills, and the result is that of {calm}."
        if ours.intact
        else "desist did NOT hold: that is a bug, please report it with this table."
    )
    broke = (
        "threading: no damage this time; try again, or --kill-every 1."
        if theirs.intact
        else f"threading: {', '.join(damage(theirs))}."
    )
    return f"{held}\n{broke}"


def damage(stats: RunStats) -> Iterator[str]:
    """Name the faults of a run, worst first."""
    if stats.hung:
        yield f"hung after {stats.seconds:.1f} s ({stats.hung})"
    counts = {
        "lost": stats.lost,
        "left in the queue": len(stats.queued),
        "written twice": stats.twice,
        "never acknowledged": stats.unacked,
        "killed outside of every handler": stats.escaped,
    }
    yield from (f"{number} {what}" for what, number in counts.items() if number)
    if stats.torn:
        yield "totals that no longer agree with the rows"
