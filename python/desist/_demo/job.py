"""The work of the demo: count what is in one file of the standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from typing import NamedTuple

PAUSE = 0.001
"""Seconds that every item waits, as real work waits for a disk or a network."""

_FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS = frozenset({"test", "tests", "idle_test"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Row(NamedTuple):
    """What is known of one file."""

    path: str
    lines: int
    functions: int
    error: str

    @property
    def package(self) -> str:
        """The directory that the file is in."""
        return str(Path(self.path).parent)


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


def study(path: Path) -> Row:
    """Read, parse and count one file.

    It touches nothing that is shared, so a kill at any of its bytecodes does no
    harm. A file that does not parse is a result as well.

    Args:
        path: The file.

    Returns:
        Its row.
    """
    try:
        source = path.read_bytes()
        tree = ast.parse(source)  # C code: a kill cannot come before it returns
    except (OSError, SyntaxError, ValueError) as error:
        return Row(str(path), 0, 0, type(error).__name__)
    functions = sum(isinstance(node, _FUNCTIONS) for node in ast.walk(tree))
    return Row(str(path), source.count(b"\n"), functions, "")
