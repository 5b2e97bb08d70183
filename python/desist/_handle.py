"""The protocol of all results: Future, TaskFuture, ItemFuture and the Task of a TaskGroup.

`Handle` is common to all of them. `KillableHandle` is for results whose code runs in this program
and can be killed. Nothing here is used at run time: the classes do not derive from the protocols; a
type checker and a test compare them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from desist._core import CancelToken, KillReport, StopPolicy
    from desist._enums import TaskState
    from desist._future import Future

R_co = TypeVar("R_co", covariant=True)


class Handle(Protocol[R_co]):
    """The result of code that runs elsewhere."""

    @property
    def state(self) -> TaskState:
        """Where the code is in its life."""

    @property
    def token(self) -> CancelToken:
        """Cancelled when the code has been asked to stop."""

    def done(self) -> bool:
        """Has it ended? Then result() and exception() do not wait."""

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the result, or raise the exception that ended the code.

        TaskCancelled: it was cancelled. TaskAborted: it was killed or abandoned.

        Blocks: until it is done. A checkpoint.
        On timeout: TimeoutError.
        """

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As result(), but returns the exception that result() would raise, or None.

        As with concurrent.futures, TaskCancelled of code that has never begun may be raised.
        """

    def cancel(self, reason: str | None = None) -> bool:
        """Ask the code to stop. True: it has not begun, and never will. Never blocks."""


class KillableHandle(Handle[R_co], Protocol[R_co]):
    """The result of code that runs in this program."""

    def kill(self, reason: str | None = None, *, policy: StopPolicy | None = None) -> KillReport:
        """Stop the code, rung by rung of the policy, and tell how it ended.

        Blocks: at most for the sum of the policy's seconds, and as long as clean-up blocks defer
        the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.
        """

    def kill_soon(
        self, reason: str | None = None, *, policy: StopPolicy | None = None
    ) -> Future[KillReport]:
        """Start a kill() without waiting for it; the future has its report. Never blocks."""
