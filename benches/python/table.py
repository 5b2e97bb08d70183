"""The table: a row as soon as it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Row:
    """One subject. All figures are in the same unit."""

    work: str
    unit: str
    desist: float
    floor: tuple[str, float]
    """What desist is measured by: a name and its figure."""
    target: float | None = None
    """At most so many times the floor."""
    peers: Mapping[str, float] = field(default_factory=dict)


WIDTHS = "{:<52} {:>10}  {:<33} {:>7}  {:<8} {:<7} {}"


def print_head() -> None:
    """Name the columns."""
    line = WIDTHS.format(
        "work", "desist", "floor", "ratio", "target", "", "peers, as ratio to the floor"
    )
    print(line)
    print("-" * len(line))


def print_row(row: Row) -> None:
    """One line."""
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
    """With three digits that count."""
    return f"{figure:,.{0 if figure >= 100 else 1}f} {unit}"


def times(ratio: float) -> str:
    """As a multiple."""
    return f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}x"
