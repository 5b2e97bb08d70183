"""The end of the interpreter: running work is ended as its owner's policy says, and reported.

An owner has work on threads or processes of its own: an executor, a pool, or a group. When the
interpreter has waited for all threads that are no daemons, a handler of atexit begins to kill the
work of all owners, and finishes these kills side by side; so it waits for none longer than the
policy of that owner allows. It starts no thread, which CPython 3.12 refuses by then. A
RuntimeWarning then says which work was cut off; of work that has come to its own end meanwhile it
says nothing.

`_owners` has weak references: an owner is alive while its work is not done. Additions and
removals are single operations on a set, and the handler works on a copy.
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from typing import Any, Protocol

from desist._core import BegunKill, current_time, move_on_after
from desist._enums import TaskState

REASON = "the interpreter exits"

MOMENT = 1.0
"""Seconds in which the calls of executors may come to their own end."""
_LAST_STEPS = 1.0
"""Seconds for the last steps of an owner's threads, when their work has ended."""


CUT_OFF = (TaskState.CANCELLED, TaskState.KILLED, TaskState.ABANDONED)
"""The states of work that has not come to its own end."""

_LISTED = 5
"""At most this many pieces of work are listed in a warning."""


class Owner(Protocol):
    """Has work that runs beside the main thread."""

    _lets_work_end: bool
    """Whether its work has a moment to come to its own end; it is begun with last."""

    def _begin_at_exit(self, until: float, /) -> list[BegunKill]:
        """Begin to end the work that is not done; `until` is the end of the moment for it."""

    def _finish_at_exit(self) -> str | None:
        """Describe what was cut off, when the kills are finished; None: nothing. A checkpoint."""


_owners: set[weakref.ref[Any]] = set()


def end_at_exit(owner: Owner) -> None:
    """Have the work of this owner ended when the interpreter exits."""
    _owners.add(weakref.ref(owner, _owners.discard))


def _end_all() -> None:
    alive = [owner for owner in (reference() for reference in list(_owners)) if owner is not None]
    alive.sort(key=lambda owner: owner._lets_work_end)  # noqa: SLF001 (of an Owner)
    until = current_time() + MOMENT
    kills: list[BegunKill] = []
    for owner in alive:
        kills += owner._begin_at_exit(until)  # noqa: SLF001 (of an Owner)
    try:
        BegunKill.finish_all(kills)
    finally:  # Ctrl-C has made the kills use force at once
        for owner in alive:
            _finish(owner)


def _finish(owner: Owner) -> None:
    cut_off: str | None = "its threads have not ended"
    with move_on_after(_LAST_STEPS):
        cut_off = owner._finish_at_exit()  # noqa: SLF001 (of an Owner)
    if cut_off is not None:
        message = f"{REASON}, and stops a {type(owner).__name__}: {cut_off}"
        warnings.warn_explicit(message, RuntimeWarning, "sys", 1)  # no line of code is at fault


def in_words(works: list[str]) -> str | None:
    """List a few pieces of work that were cut off."""
    more = f", and {len(works) - _LISTED} more" if len(works) > _LISTED else ""
    return f"{', '.join(works[:_LISTED])}{more}" if works else None


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_owners.clear)  # their threads are in the parent
