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
    """A desist.Thread whose kill() has no cooperative step.

    The recipe traces every line of its thread, and does not notice a kill while the thread waits.
    This class traces nothing, and a kill ends the thread's desist waits, too.
    """

    killed: bool = False
    """Was kill() called?"""

    def kill(self, reason: str | None = None, *, policy: StopPolicy | None = None) -> KillReport:
        """Stop the thread, and report how it ended: as Thread.kill(), by force from the beginning.

        The recipe's kill() returns at once; kill_soon() does here.

        Blocks: until the thread's code has ended or was abandoned: at most for the sum of the
        policy's seconds, and as long as its clean-up blocks defer the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            RuntimeError: the thread was not started, or is the calling one.
        """
        self.killed = True
        return super().kill(reason, policy=_AT_ONCE if policy is None else policy)

    def kill_soon(
        self, reason: str | None = None, *, policy: StopPolicy | None = None
    ) -> Future[KillReport]:
        """As Thread.kill_soon(), by force from the beginning, like the recipe's kill().

        Never blocks, and never raises: the future raises kill()'s exceptions.
        """
        self.killed = True
        return super().kill_soon(reason, policy=_AT_ONCE if policy is None else policy)
