"""The work of the demo: count lines and functions in each file of the standard library.

`study` reads one file and gives its row; it uses nothing that is shared. `Store` keeps the rows of
all workers; it is shared, and is right only under a lock.
"""

from __future__ import annotations

import ast
import json
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

PAUSE = 0.001
"""Seconds that every item waits, as real work waits for a disk or a network."""

_FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS = frozenset({"test", "tests", "idle_test"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def standard_library(*, tests: bool = False, limit: int | None = None) -> list[Path]:
    """List the .py files of the running interpreter's standard library.

    Args:
        tests: Take CPython's own tests too, which are longer than the library.
        limit: Take that many files, spread evenly over the whole.

    Returns:
        The files, in the order of their names.
    """
    root = Path(sysconfig.get_path("stdlib"))
    unwanted = _FOREIGN if tests else _FOREIGN | _TESTS
    files = sorted(
        path for path in root.rglob("*.py") if unwanted.isdisjoint(path.relative_to(root).parts)
    )
    if limit is None or limit >= len(files):
        return files
    return [files[i * len(files) // limit] for i in range(limit)]


class Row(NamedTuple):
    """The counts of one file."""

    path: str
    lines: int
    functions: int
    error: str

    @property
    def package(self) -> str:
        """The directory that the file is in."""
        return str(Path(self.path).parent)


def study(path: Path) -> Row:
    """Read, parse and count one file. A file that does not parse has a row as well.

    It changes nothing, so that a kill at any of its bytecodes does no harm.
    """
    try:
        source = path.read_bytes()
        tree = ast.parse(source)  # C code: a kill is raised when it returns
    except (OSError, SyntaxError, ValueError) as error:
        return Row(str(path), 0, 0, type(error).__name__)
    functions = sum(isinstance(node, _FUNCTIONS) for node in ast.walk(tree))
    return Row(str(path), source.count(b"\n"), functions, "")


@dataclass
class Totals:
    """The sums over all rows."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    errors: int = 0
    packages: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count one more row, in several steps."""
        self.files += 1
        self.lines += row.lines
        self.functions += row.functions
        self.errors += bool(row.error)
        self.packages[row.package] += row.functions

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Totals:
        """Count from the beginning."""
        totals = cls()
        for row in rows:
            totals.add(row)
        return totals


class Store:
    """A file of rows, and running totals that must always agree with it.

    The caller of `add` holds a lock. A worker that is killed inside `add` leaves a row without its
    totals, and they stay wrong from then on.
    """

    def __init__(self) -> None:
        """Start with an empty file, which `close` deletes."""
        self.totals = Totals()
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (see close)

    def add(self, row: Row) -> None:
        """Write one row and bring the totals up to date."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self.totals.add(row)

    def rows(self) -> list[Row]:
        """Read all rows back, in order."""
        self._file.seek(0)
        return sorted(Row(*json.loads(line)) for line in self._file)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
