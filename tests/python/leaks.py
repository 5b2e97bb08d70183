"""What a test leaves behind: descriptors and child processes."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support import Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINUX = Path("/proc/self/fd").is_dir()


def descriptors() -> dict[str, str]:
    """The open ones, and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # that of the listing
            continue
        # A thread keeps what wakes it from one wait to the next.
        if target != "anon_inode:[eventfd]":
            found[entry.name] = target
    return found


def children() -> set[int]:
    """The child processes, zombies too."""
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
    """After the block there are no more descriptors and children than before it."""
    if not LINUX:
        yield
        return
    before = descriptors(), children()
    yield
    assert (descriptors(), children()) == before


def until_asleep(victim: Victim[object]) -> None:
    """The victim's thread sleeps, and has for a while, so it will be in its wait."""
    stat = Path(f"/proc/self/task/{victim.native_id}/stat")
    calm, tick = 0, threading.Event()
    while LINUX and calm < 3:
        state = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        calm = calm + 1 if state == "S" else 0
        tick.wait(0.001)  # the system tells nobody


@contextmanager
def in_its_wait(wait: Callable[[], object]) -> Iterator[Victim[object]]:
    """A thread that has begun `wait()`, which is in it now."""

    def body(ready: Callable[[], None]) -> object:
        ready()
        return wait()

    with Victim(body) as victim:
        until_asleep(victim)
        yield victim
