"""The command line: `desist demo`, `desist --version`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INTACT, DAMAGED, UNABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses. argparse uses 2 for arguments that it refuses."""

LONGEST = 60_000
"""Milliseconds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        return _version()
    if arguments.command == "demo":
        return _demo(arguments)
    parser.print_help()
    return UNABLE


def _version() -> int:
    from importlib.metadata import version

    print(f"desist {version('desist')}")
    return INTACT


def _demo(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("rich") is None:
        print("desist demo needs rich: pip install 'desist[demo]'", file=sys.stderr)
        return UNABLE
    from desist._demo.compare import Options, compare

    options = Options(
        workers=arguments.workers,
        every=arguments.kill_every / 1000,
        limit=arguments.limit,
        tests=arguments.tests,
        seed=arguments.seed,
    )
    try:
        return INTACT if compare(options) else DAMAGED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="desist", description="Threads that can be stopped safely."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="kill random workers all the time, and compare what is left of their work",
        description=(
            "Count lines and functions in every file of the standard library, while a random worker"
            " is killed every few milliseconds: once with workers built with desist, once with"
            " threading.Lock, queue.Queue and PyThreadState_SetAsyncExc. The exit status is 0 if"
            " and only if the work done with desist is complete and correct."
        ),
    )
    demo.add_argument("--workers", type=count, default=4, metavar="N", help="default: %(default)s")
    demo.add_argument(
        "--kill-every",
        type=milliseconds,
        default=3.0,
        metavar="MS",
        help="time between two kills, in milliseconds (default: %(default)s)",
    )
    demo.add_argument("--limit", type=count, metavar="N", help="use N files only (default: all)")
    demo.add_argument(
        "--tests",
        action="store_true",
        help="use CPython's own test files too: three times the work",
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="decides which workers are killed (default: %(default)s)",
    )
    return parser


def count(text: str) -> int:
    """Parse a number of things; argparse uses the name of the function in its message."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def milliseconds(text: str) -> float:
    """Parse a time of up to a minute."""
    number = float(text)
    if not 0 < number <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to {LONGEST}")
    return number


if __name__ == "__main__":
    sys.exit(main())
