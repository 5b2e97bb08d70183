"""is_kill_parent: a thread whose failure stops the block that it was made in."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from desist import _thread
from desist._core import CancelScope, cancel_scope, shield
from desist._exceptions import ScopeMisuse
from desist.compat._with import cancel_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextvars import Context


class _Family:
    """The threads of one parent_scope()."""

    def __init__(self, timeout: float | None) -> None:
        self.scope: CancelScope = cancel_scope(timeout)
        self.children: list[Thread] = []
        self.failed: tuple[Thread, BaseException] | None = None

    def fail(self, child: Thread, failure: BaseException) -> bool:
        """Cancel the block and all its threads. False: they were cancelled before."""
        first = self.scope.cancel(f"{child.name} failed: {failure!r}")
        if first:
            # Written once, by this thread; the parent reads it after it has joined the thread.
            self.failed = child, failure
        return first

    def join(self) -> None:
        for child in self.children:
            if child.ident is not None:  # it could be started
                child.join()

    def report(self) -> None:
        """Report the failure to threading.excepthook: another exception leaves the block."""
        if self.failed is not None:
            child, failure = self.failed
            told = type(failure), failure, failure.__traceback__, child
            threading.excepthook(threading.ExceptHookArgs(told))


class _Open(threading.local):
    """The parent_scope() blocks of the calling thread, the innermost last."""

    def __init__(self) -> None:
        self.families: list[_Family] = []


_open = _Open()


@contextmanager
def parent_scope(timeout: float | None = None) -> Iterator[CancelScope]:
    """A block that ends with its threads: those made in it with ``is_kill_parent=True``.

    It is a cancel_scope(). If one of the threads fails, the block and the other threads are
    cancelled, and once all of them have ended, the exception is raised out of the block. If the
    block ends early for another reason, its threads are cancelled, too.

    Blocks: at its end, until all its threads have ended.

    On cancel: the threads are cancelled, and waited for; a kill ends that wait.

    On timeout: as on cancel; then DeadlineExceeded is raised.
    """
    family = _Family(timeout)
    try:
        with family.scope as scope:
            _open.families.append(family)
            try:
                yield scope
                family.join()
            except BaseException:
                scope.cancel("the block ended early")
                with shield(math.inf):  # a kill goes through it
                    family.join()
                raise
            finally:
                _open.families.remove(family)
    except Exception:
        if family.failed is None:
            raise
        # The block's own exception, which its cancellation led to, becomes the context.
        raise family.failed[1]  # noqa: B904
    except BaseException:
        family.report()
        raise
    if family.failed is not None:
        raise family.failed[1]


class Thread(_thread.Thread):
    """A desist.Thread that can stop its parent.

    With `is_kill_parent`, made in a parent_scope() block, an exception out of the thread cancels
    that block and the other threads made in it, and is raised out of the block.
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        context: Context | None = None,
        is_kill_parent: bool = False,
    ) -> None:
        """As threading.Thread.

        Raises:
            ScopeMisuse: `is_kill_parent` outside any parent_scope().
        """
        super().__init__(group, target, name, args, kwargs, daemon=daemon, context=context)
        self._family: _Family | None = None
        if is_kill_parent:
            if not _open.families:
                raise ScopeMisuse(
                    "a thread that stops its parent has to be made in a block that can be stopped:"
                    " put `with desist.compat.parent_scope():` around it"
                )
            self._family = _open.families[-1]

    def start(self) -> None:
        """As threading.Thread.

        Blocks: only until the new thread runs; a kill of the caller waits for that.
        On cancel: nothing changes: this is no checkpoint. A thread of a cancelled block is
        cancelled before it begins.

        Raises:
            ScopeMisuse: the parent_scope() block has been left.
        """
        family = self._family
        if family is not None:
            # First, so that the end of the block, also by a kill in here, ends the thread.
            cancel_with(family.scope.token, self, "the block that it was made in has ended")
            family.children.append(self)
        super().start()

    def _run_behind_the_boundary(self) -> None:
        family, self._family = self._family, None
        try:
            super()._run_behind_the_boundary()
        except SystemExit:  # the end of a thread, not a failure
            raise
        except BaseException as failure:
            if family is None or not family.fail(self, failure):
                raise
