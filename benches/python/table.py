"""The table; each row is printed as soon as it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Row:
    """One row. All its figures are in the same unit."""

    work: str
    unit: str
    desist: float
    floor: tuple[str, float]
    """The name and the figure of the thing that desist is compared with."""
    target: float | None = None
    """The ratio to the floor that is to be reached."""
    peers: Mapping[str, float] = field(default_factory=dict)


WIDTHS = "{:<52} {:>10}  {:<33} {:>7}  {:<8} {:<7} {}"


def print_head() -> None:
    """Print the names of the columns."""
    line = WIDTHS.format(
        "work", "desist", "floor", "ratio", "target", "", "peers, as ratio to the floor"
    )
    print(line)
    print("-" * len(line))


def print_row(row: Row) -> None:
    """Print one row."""
    name, floor = row.floor
    ratio = row.desist / floor
    verdict = "" if row.target is None else "met" if ratio <= row.target else "missed"
    target = "" if row.target is None else f"<= {row.target:g}x"
    peers = ", ".join(f"{peer} {times(figure / floor)}" for peer, figure in row.peers.items())
    shown = WIDTHS.format(
        row.work,
        show(row.desist, row.unit),
        f"{name} {show(floor, row.unit)}",
        times(ratio),
        target,
        verdict,
        peers,
    )
    print(shown.rstrip(), flush=True)


def show(figure: float, unit: str) -> str:
    """Format a figure with three significant digits."""
    return f"{figure:,.{0 if figure >= 100 else 1}f} {unit}"


def times(ratio: float) -> str:
    """Format a ratio."""
    return f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}x"
