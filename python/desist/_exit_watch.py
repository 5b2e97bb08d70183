"""ExitWatch: the end of a child process, as an operation for wait_any().

Guarantees: the child's status is not taken, so its number stays its own until the caller takes the
status; and a signal is never sent to another process of the same number (`is_ours()`).

How: Linux reports the end by a descriptor (pidfd). Where there is none, a daemon thread waits for
the child and sets a latch. Only the thread that opened the watch closes it.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING

from desist._core import Latch, Op, call_masked

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class ExitWatch:
    """Reports the end of one child."""

    def __init__(self) -> None:
        self._fd = -1
        """The pidfd; -1 before open(), after close(), and where there is none."""
        self._latch = Latch()
        """Set when the child has ended and there is no descriptor that reports it."""
        self.reports = False
        """Whether op() will be done when the child has ended: open() has succeeded."""

    def open(self, pid: int, wait: Callable[[], object]) -> None:
        """Begin to watch. `wait` blocks until the child has ended, for systems without pidfd.

        Raises:
            ChildProcessError: no child of this process, or no longer one.
            OSError: there is no descriptor left.
        """
        try:
            self._fd = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
        except ProcessLookupError:  # ended, and its status was taken elsewhere
            self._latch.set()
        except (AttributeError, OSError) as failure:
            # Not Linux, an old one, or a sandbox. Without descriptors a thread would not help.
            if isinstance(failure, OSError) and failure.errno in _NO_DESCRIPTORS:
                raise
            watch = threading.Thread(
                target=self._watch, args=(pid, wait), name="desist-wait", daemon=True
            )
            call_masked(watch.start)
        else:
            if not self.is_ours():
                # Either another process of the same number; or the child of a process that ignores
                # SIGCHLD, whose status is given to no process.
                if not select.select([self._fd], [], [], 0)[0]:
                    raise ChildProcessError(
                        f"process {pid} is not a child of this process, or no longer; "
                        "its end cannot be waited for"
                    )
                self._latch.set()
        self.reports = True

    def _watch(self, pid: int, wait: Callable[[], object]) -> None:
        try:
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            else:
                wait()
        except ChildProcessError:
            pass  # its status was taken elsewhere
        finally:
            self._latch.set()

    def is_ours(self) -> bool:
        """Whether the number still means the child: it is ours, and its status was not taken."""
        if self._fd < 0:
            return True  # as far as can be told
        try:
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def op(self) -> Op[None]:
        """The child has ended: an operation for wait_any()."""
        if self._fd >= 0 and not self._latch.is_set():
            return Op.readable(self._fd)
        return self._latch.wait_op(None)

    def wait_uninterruptibly(self, seconds: float) -> None:
        """Wait for the end, for a short time, which neither a cancel nor a kill ends."""
        if self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.poll(seconds * 1000)

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
