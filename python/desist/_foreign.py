"""What this system can do about blocking calls of foreign code."""

from __future__ import annotations

from typing import NamedTuple

from desist._core import foreign_state


class ForeignStatus(NamedTuple):
    """Whether blocking calls of foreign code are ended in cancelled scopes."""

    available: bool
    """Are they ended?"""
    reason: str | None
    """Why not; None if they are."""
    ended: int
    """How many were ended in this process so far."""
    left_alone: tuple[str, ...]
    """The modules that have called code which takes the error for another try: it is left alone."""


def foreign_status() -> ForeignStatus:
    """Tell whether blocking calls of foreign code are ended in cancelled scopes.

    They are on Linux (x86-64 and aarch64), in an interpreter with the GIL. Never blocks.
    """
    reason, ended, left_alone = foreign_state()
    return ForeignStatus(reason is None, reason, ended, tuple(left_alone))
