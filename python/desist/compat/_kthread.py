"""KThread: the recipe that traces a thread from its start, so that kill() can raise in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desist._core import StopPolicy
from desist._thread import Thread

if TYPE_CHECKING:
    from desist._core import KillReport
    from desist._future import Future

_AT_ONCE = StopPolicy(cooperative=0, at_wait=0)


class KThread(Thread):
    """A desist.Thread whose kill() does not ask first.

    The recipe's thread pays for every line, and does not notice a kill while it waits. This one
    pays nothing, and the kill ends its desist waits, too.
    """

    killed: bool = False
    """Was kill() called?"""

    def kill(self, reason: str | None = None, *, policy: StopPolicy | None = None) -> KillReport:
        """Stop the thread, and tell how it ended: as Thread.kill(), by force from the beginning.

        The recipe returns at once, and what becomes of the thread nobody knows. This one returns
        when the thread's code has ended, or was given up.
        """
        self.killed = True
        return super().kill(reason, policy=_AT_ONCE if policy is None else policy)

    def kill_soon(
        self, reason: str | None = None, *, policy: StopPolicy | None = None
    ) -> Future[KillReport]:
        """As Thread.kill_soon(), by force from the beginning; this is what the recipe does."""
        self.killed = True
        return super().kill_soon(reason, policy=_AT_ONCE if policy is None else policy)
