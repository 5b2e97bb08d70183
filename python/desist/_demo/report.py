"""What is seen at the end: one table, and one sentence about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from desist._demo.tally import Tally

RUNGS = {
    "COOPERATIVE": "when asked to stop",
    "AT_WAIT": "at a wait",
    "ASYNC_EXC": "by an asynchronous exception",
    "TRACE": "by tracing",
    "ABANDONED": "by abandoning the thread",
}
"""What to call the rungs of a kill."""

NOBODY = "ALREADY_DONE"
"""The rung of a kill that found nobody at work."""


class Cell(NamedTuple):
    """A number or a word, and whether it is as it ought to be."""

    text: str
    good: bool | None = None

    def __str__(self) -> str:
        """Colour it, in rich's markup."""
        if self.good is None:
            return self.text
        return f"[{'green' if self.good else 'bold red'}]{self.text}[/]"


def report(console: Console, *, undisturbed: Tally, safe: Tally, naive: Tally) -> None:
    """Print the table and the sentence.

    Args:
        console: Where to.
        undisturbed: The run in which nobody was killed.
        safe: The run of the workers built with desist.
        naive: The run of the workers built without.
    """
    table = Table(title="The same work, the same saboteur", title_justify="left")
    table.add_column("")
    table.add_column("desist", justify="right")
    table.add_column("threading.Lock + queue.Queue\n+ SetAsyncExc", justify="right")
    rungs = [rung for rung in RUNGS if safe.kills[rung] or naive.kills[rung]]
    for (label, left), (_, right) in zip(cells(safe, rungs), cells(naive, rungs), strict=True):
        table.add_row(label, str(left), str(right))
    console.print(table)
    console.print(sentence(undisturbed, safe, naive), highlight=False)


def cells(tally: Tally, rungs: Iterable[str]) -> Iterator[tuple[str, Cell]]:
    """Tell the rows of the table, top down, each with what one run measured."""
    yield "items", Cell(str(tally.items))
    yield "starts", Cell(str(tally.starts))
    yield "kills", Cell(str(kills(tally)))
    for rung in rungs:
        yield f"  {RUNGS[rung]}", Cell(str(tally.kills[rung]))
    yield "locks still held", none_of(len(tally.held), ", ".join(tally.held))
    yield "items lost", none_of(tally.lost)
    yield "items left in the queue", none_of(len(tally.queued))
    yield "rows written twice", none_of(tally.twice)
    yield "items acknowledged twice", none_of(tally.acked_twice)
    yield "items never acknowledged", none_of(tally.unacked)
    yield "exceptions that escaped", none_of(tally.escaped)
    able = tally.alive == tally.workers
    yield "workers able to go on", Cell(f"{tally.alive} of {tally.workers}", able)
    yield "totals agree with the rows", yes(not tally.torn)
    yield "result as without kills", yes(tally.same)
    yield "ended by itself", yes(not tally.hung)
    yield "seconds", Cell(f"{tally.seconds:.1f}")


def none_of(number: int, which: str = "") -> Cell:
    """Show a number that ought to be 0."""
    return Cell(f"{number} ({which})" if which else str(number), number == 0)


def yes(answer: bool) -> Cell:
    """Show an answer that ought to be yes."""
    return Cell("yes" if answer else "no", answer)


def kills(tally: Tally) -> int:
    """Count the kills that found somebody at work."""
    return tally.kills.total() - tally.kills[NOBODY]


def sentence(undisturbed: Tally, safe: Tally, naive: Tally) -> str:
    """Say what there is to see in the table."""
    calm = f"a run of {undisturbed.seconds:.1f} s in which nobody is killed"
    held = (
        f"desist: {kills(safe)} kills, and the result is that of {calm}."
        if safe.held_up
        else "desist did NOT hold: that is a bug, please report it with this table."
    )
    broke = (
        "The other workers got away with it this time: try again, or --kill-every 1."
        if naive.held_up
        else f"The other workers: {', '.join(damage(naive))}."
    )
    return f"{held}\n{broke}"


def damage(tally: Tally) -> Iterator[str]:
    """Name what went wrong in a run, worst first."""
    if tally.hung:
        yield f"hung after {tally.seconds:.1f} s ({tally.hung})"
    counts = {
        "lost": tally.lost,
        "left in the queue": len(tally.queued),
        "written twice": tally.twice,
        "never acknowledged": tally.unacked,
        "killed where no handler stood": tally.escaped,
    }
    yield from (f"{number} {what}" for what, number in counts.items() if number)
    if tally.torn:
        yield "totals that no longer agree with the rows"
