"""Checks that a test leaves no descriptors and no child processes behind."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support import LINUX

if TYPE_CHECKING:
    from collections.abc import Iterator


def descriptors() -> dict[str, str]:
    """Return the open descriptors, with the target of each."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        # A thread keeps its waker from one wait to the next; the watcher looks at a thread's call.
        if target != "anon_inode:[eventfd]" and not target.endswith("/syscall"):
            found[entry.name] = target
    return found


def children() -> set[int]:
    """Give the child processes, zombies included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
            found.add(int(entry.parent.name))
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves no more descriptors and children than there were before it."""
    if not LINUX:
        yield
        return
    files, processes = descriptors(), children()
    yield
    opened = descriptors().items() - files.items()
    assert not opened, f"open: {sorted(opened)}"
    assert children() - processes == set()
