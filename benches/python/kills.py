"""Random kills against workers that share a queue and a lock: desist, the usual recipe, the peers.

    python benches/python/kills.py [SIDE...]

Eight workers take items, and each item must be worked on once, at the end under a lock, while
random workers are killed. Each side runs in a process of its own, built as its documentation says,
and for a bounded time: a side that does not end is a result.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

SIDES = {
    "desist": ("desist", 100_000, 1800),
    "threading": ("", 100_000, 60),
    "stopit": ("stopit", 100_000, 60),
    "func_timeout": ("func_timeout", 100_000, 60),
    "kthread": ("kthread", 100_000, 60),
    "dramatiq": ("dramatiq", 100_000, 60),
    "pebble": ("pebble", 100_000, 60),
}
"""For each side: its package, the number of kills, and the seconds that it gets."""

HOW = """\
threading: queue.Queue, and PyThreadState_SetAsyncExc by ctypes; the item of a killed worker is put
back, a dead worker replaced. kthread, dramatiq: the same, by KThread.terminate() and
raise_thread_exception().
stopit, func_timeout: each item under ThreadingTimeout, or func_timeout(), of random length. pebble:
a ProcessPool whose futures are cancelled, which kills a process each time.
Lost: neither done nor in the queue at the end. Stuck locks: held, with no worker at work. Killed
outside: the exception was raised in the worker's own code, not in the item's. Goes on: afterwards,
as many further items as there are workers are done."""

GOOD = {"lost": 0, "twice": 0, "unended": 0, "stuck": 0, "outside": 0}
"""The values that the figures should have."""


def main() -> None:
    """Run the sides, and print the table."""
    wanted = sys.argv[1:] or list(SIDES)
    unknown = sorted(set(wanted) - set(SIDES))
    if unknown:
        sys.exit(f"no such side: {', '.join(unknown)}; there are {', '.join(SIDES)}")
    console = Console(width=150)
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    console.print(f"CPython {platform.python_version()}, {os.cpu_count()} cores, load {load}")
    console.print(HOW, highlight=False, end="\n\n")
    table = Table()
    for heading in (
        *("", "kills", "seconds", "items", "lost", "done twice", "not ended", "stuck locks"),
        *("killed outside", "workers alive", "goes on"),
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for side in wanted:
        with console.status(side):
            table.add_row(*row(side))
    console.print(table)


def row(side: str) -> list[str]:
    """Run one side in a process of its own, and give its figures."""
    package, kills, seconds = SIDES[side]
    name = f"{package} {version(package)}" if package else "threading + queue"
    script = str(Path(__file__).with_name("killed.py"))
    line = [sys.executable, script, side, str(kills), str(seconds)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603 (our own)
    if done.returncode:
        return [name, f"[bold red]failed:[/] {done.stderr[-300:]}"]
    found = json.loads(done.stdout.splitlines()[-1])
    figures = [name, f"{found['kills']:,}", f"{found['seconds']:.0f}", f"{found['items']:,}"]
    for figure, expected in GOOD.items():
        figures.append(coloured(f"{found[figure]:,}", good=found[figure] == expected))
    alive = found["alive"] == found["workers"]
    figures.append(coloured(f"{found['alive']} of {found['workers']}", good=alive))
    figures.append(coloured("yes" if found["goes_on"] else "no", good=found["goes_on"]))
    return figures


def coloured(text: str, *, good: bool) -> str:
    """Colour a figure by whether it is as it should be."""
    return f"[{'green' if good else 'bold red'}]{text}[/]"


if __name__ == "__main__":
    main()
