"""The three runs: undisturbed, with desist, and with threading."""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from desist._demo.measure import RunStats
from desist._demo.report import Board, report
from desist._demo.with_desist import DesistWorkers
from desist._demo.with_threading import ThreadingWorkers
from desist._demo.work import standard_library, study

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

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

    Returns:
        Whether the work done with desist is intact.
    """
    console = Console()
    files = standard_library(tests=options.tests, limit=options.limit)
    undisturbed = RunStats(len(files), workers=1)
    ours, theirs = (RunStats(len(files), options.workers) for _ in range(2))
    with ExitStack() as stack:
        for stats in (undisturbed, ours, theirs):
            stack.enter_context(closing(stats.store))
        # Parsing some of the files warns; the warnings are no part of the work.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        with Board(console) as board:
            work_undisturbed(files, undisturbed, board.line("no kills", undisturbed))
            for title, stats, workers in (
                ("desist", ours, DesistWorkers),
                ("threading", theirs, ThreadingWorkers),
            ):
                workers(stats).run(
                    files,
                    every=options.every,
                    seed=options.seed,
                    watch=board.line(title, stats),
                )
                stats.audit(undisturbed.store.rows())
        report(console, undisturbed=undisturbed, ours=ours, theirs=theirs)
    return ours.intact


def work_undisturbed(
    files: Sequence[Path], stats: RunStats, watch: Callable[[RunStats], object]
) -> None:
    """Do the work in this thread, in order and without kills."""
    started = time.monotonic()
    for stats.starts, file in enumerate(files, start=1):
        stats.store.add(study(file))
        stats.seconds = time.monotonic() - started
        watch(stats)
