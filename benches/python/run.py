"""desist against its peers, and against the cost of the interpreter itself, all in one run.

    python benches/python/run.py [SUBJECT...]

A subject is one of the modules beside this one. The exit status is 0 whatever the figures are.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from table import print_head, print_row

SUBJECTS = ("tokens", "scopes", "locks", "queues", "jobs", "crowds", "wake", "stops", "imports")
PEERS = (
    "aiologic",
    "anyio",
    "cantok",
    "culsans",
    "gevent",
    "persist-queue",
    "redis",
    "stopit",
    "trio",
)
METHOD = """\
The sides take turns; a figure is the median of its rounds, in CPU time without the loop around it;
for the wake-ups it is wall time, and for the imports the CPU time of fresh processes, less that of
bare Python. A ratio is relative to the floor, which is measured in the same run."""


def main() -> None:
    """Measure the subjects and print the table."""
    wanted = sys.argv[1:] or SUBJECTS
    unknown = sorted(set(wanted) - set(SUBJECTS))
    if unknown:
        print(
            f"no such subject: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}",
            file=sys.stderr,
        )
        return
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; load {load}")
    print(f"CPython {platform.python_version()}; desist {version('desist')}", end="; ")
    print(", ".join(f"{peer} {version(peer)}" for peer in PEERS))
    print(METHOD, end="\n\n")
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # stopit's
    print_head()
    for subject in wanted:
        for row in importlib.import_module(subject).rows():
            print_row(row)


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown CPU"
    )


if __name__ == "__main__":
    main()
