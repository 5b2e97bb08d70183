"""Runs the work three times, undisturbed and under both saboteurs, and judges."""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from desist._demo.job import standard_library, study
from desist._demo.naive import NaiveWorkers
from desist._demo.report import report
from desist._demo.safe import SafeWorkers
from desist._demo.show import Board
from desist._demo.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What can be asked for on the command line."""

    workers: int = 4
    every: float = 0.003
    """Seconds between two kills."""
    limit: int | None = None
    """Number of files; all of them if it is None."""
    tests: bool = False
    """Whether CPython's own tests are files of the standard library too."""
    seed: int = 0


def compare(options: Options) -> bool:
    """Run the demo and print its table.

    Args:
        options: How large, how fierce.

    Returns:
        Whether the workers built with desist held.
    """
    console = Console()
    files = standard_library(tests=options.tests, limit=options.limit)
    undisturbed = Tally(len(files), workers=1)
    safe, naive = (Tally(len(files), options.workers) for _ in range(2))
    with ExitStack() as stack:
        for tally in (undisturbed, safe, naive):
            stack.enter_context(closing(tally.store))
        # Some files have warnings in them, and warning is not part of the work.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        with Board(console) as board:
            work_undisturbed(files, undisturbed, board.line("no kills", undisturbed))
            for title, tally, workers in (
                ("desist", safe, SafeWorkers),
                ("naive", naive, NaiveWorkers),
            ):
                workers(tally).run(
                    files,
                    every=options.every,
                    seed=options.seed,
                    watch=board.line(title, tally),
                )
                tally.audit(undisturbed.store.rows())
        report(console, undisturbed=undisturbed, safe=safe, naive=naive)
    return safe.held_up


def work_undisturbed(files: Sequence[Path], tally: Tally, watch: Callable[[Tally], object]) -> None:
    """Do the work in this thread, in order, with nobody killing anybody."""
    started = time.monotonic()
    for tally.starts, file in enumerate(files, start=1):
        tally.store.add(study(file))
        tally.seconds = time.monotonic() - started
        watch(tally)
