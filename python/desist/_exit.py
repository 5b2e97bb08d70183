"""The end of the interpreter: running work is ended as its owner's policy says, and reported.

An owner has work on threads or processes of its own: an executor, a pool, or a group. When the
interpreter has waited for all threads that are no daemons, a handler of atexit ends the work of all
owners, side by side, each on a thread of its own. It waits for none longer than the policy of that
owner allows. A RuntimeWarning then says which work was cut off; of work that has come to its own
end meanwhile it says nothing.

`_owners` has weak references: an owner is alive while its work is not done. Additions and
removals are single operations on a set, and the handler works on a copy.
"""

from __future__ import annotations

import atexit
import os
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from desist._enums import TaskState
from desist._offload import Offloaded

if TYPE_CHECKING:
    from desist._core import ProcessStopPolicy, StopPolicy

REASON = "the interpreter exits"

_ZONE = 5.0
"""Seconds for which the clean-up zones of cancelled work may defer its kill."""


CUT_OFF = (TaskState.CANCELLED, TaskState.KILLED, TaskState.ABANDONED)
"""The states of work that has not come to its own end."""

_LISTED = 5
"""At most this many pieces of work are listed in a warning."""


class Owner(Protocol):
    """Has work that runs beside the main thread."""

    def _policy_at_exit(self) -> StopPolicy | ProcessStopPolicy | None:
        """Give the policy for the work that is not done; None: there is none."""

    def _end_at_exit(self) -> str | None:
        """End the work, and describe what was cut off; None: all of it has come to its own end."""


_owners: set[weakref.ref[Any]] = set()


def end_at_exit(owner: Owner) -> None:
    """Have the work of this owner ended when the interpreter exits."""
    _owners.add(weakref.ref(owner, _owners.discard))


def _end_all() -> None:
    begin = time.monotonic()
    endings = []
    for reference in list(_owners):
        owner = reference()
        policy = None if owner is None else owner._policy_at_exit()  # noqa: SLF001 (of an Owner)
        if owner is not None and policy is not None:
            ending = Offloaded(owner._end_at_exit, "desist-exit")  # noqa: SLF001 (of an Owner)
            endings.append((owner, _longest(policy), ending))
    for owner, longest, ending in endings:
        if ending.latch.wait(max(begin + longest - time.monotonic(), 0.0)):
            cut_off = ending.result()
        else:
            cut_off = f"its work has not ended within {longest:g} seconds"
        if cut_off is not None:
            message = f"{REASON}, and stops a {type(owner).__name__}: {cut_off}"
            warnings.warn_explicit(message, RuntimeWarning, "sys", 1)  # no line of code is at fault


def in_words(works: list[str]) -> str | None:
    """List a few pieces of work that were cut off."""
    more = f", and {len(works) - _LISTED} more" if len(works) > _LISTED else ""
    return f"{', '.join(works[:_LISTED])}{more}" if works else None


def _longest(policy: StopPolicy | ProcessStopPolicy) -> float:
    """Give the seconds that a kill by this policy takes at most."""
    names = ("cooperative", "at_wait", "async_exc", "trace", "sigterm", "sigkill", "defer")
    return sum(getattr(policy, name, None) or 0.0 for name in names) + _ZONE


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_owners.clear)  # their threads are in the parent
