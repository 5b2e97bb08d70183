"""Where the rows go: shared by all workers, right only under a lock."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desist._demo.job import Row

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass
class Totals:
    """What all rows add up to."""

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
        """Count anew."""
        totals = cls()
        for row in rows:
            totals.add(row)
        return totals


class Store:
    """A file of rows, and running totals that must always agree with it.

    It does not protect itself: whoever calls `add` holds a lock. A worker that dies
    in the midst of `add` leaves a row without totals, and they stay wrong for ever.
    """

    def __init__(self) -> None:
        """Start with an empty file, which is gone when the store is closed."""
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
        """Throw the file away."""
        self._file.close()
