"""Thread and Timer: those of threading, made killable.

`run()` of the class, or of a subclass, is called by the native `Task`, which is the boundary of all
kills and cancellations of the thread: none is delivered before or after it. `join()` first waits
for that task, in a wait that can be cancelled, and then for the interpreter's own last steps of the
thread. The start is masked from kills: it takes locks of `threading`.
"""

from __future__ import annotations

import sys
import threading
from contextvars import Context, copy_context

from desist._core import (
    CancelToken,
    Event,
    KillReport,
    StopPolicy,
    Task,
    call_for_effect,
    call_masked,
    check_runnable,
    current_token,
    leave_calls_alone,
)
from desist._enums import TaskState
from desist._killing import kill_soon
from desist._pickling import refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, NoReturn

    from desist._core import Op
    from desist._future import Future


class StoppableThread(threading.Thread):
    """The common part of Thread and Timer: everything except cancel()."""

    if TYPE_CHECKING:
        # Of threading.Thread.
        _target: Callable[..., object] | None
        _args: Iterable[Any]
        _kwargs: Mapping[str, Any]

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
        foreign: bool = True,
        inherit: bool = False,
    ) -> None:
        """As threading.Thread of Python 3.14.

        `context`: the context (contextvars) in which the thread's code runs; a copy of the calling
        code's unless given. `foreign`: False if blocking calls of foreign code go on when the
        thread is cancelled or killed; see cancel_scope(). `inherit`: True if the thread is
        cancelled with the scope of the calling code as well, and has its deadline; when that scope
        is left, a thread that still runs is cancelled.

        Raises:
            TypeError: `context` is none, or `foreign` or `inherit` is no bool; or `target`, or
                run() of a subclass, is a coroutine function or a generator function, whose call
                returns before its code runs.
        """
        given: object = context
        if not (given is None or isinstance(given, Context)):
            raise TypeError(
                f"context must be a contextvars.Context, not {type(given).__qualname__}"
            )
        switches: dict[str, object] = {"foreign": foreign, "inherit": inherit}
        for option, switch in switches.items():
            if not isinstance(switch, bool):
                raise TypeError(f"{option} must be True or False, not {switch!r}")
        if target is not None:
            check_runnable(target, "target")
        super().__init__(group, target, name, args, kwargs, daemon=daemon)
        self._task = Task(self.name, current_token() if inherit else None)
        self._run_context = copy_context() if context is None else context
        self._ends_calls = foreign
        # A subclass may override run(), as with threading.Thread; the boundary goes around it.
        self._body = self.run
        check_runnable(self._body, "run()")
        self.__dict__["run"] = self._run_behind_the_boundary

    def _run_behind_the_boundary(self) -> None:
        body = self._body
        del self.run, self._body  # cycles, which would keep the thread's arguments alive

        def run() -> None:
            if not self._ends_calls:
                leave_calls_alone()
            self._run_context.run(body)

        self._task.run(run)

    def run(self) -> None:
        """Call the target, as threading.Thread.run() does.

        Raises:
            TypeError: it has returned a coroutine, a generator or another awaitable, whose code has
                not run.
        """
        try:
            if self._target is not None:
                call_for_effect(self._target, *self._args, **self._kwargs)
        finally:
            # The arguments may refer to the thread.
            del self._target, self._args, self._kwargs

    # Protocols 0 and 1 would fail over a lock of threading.
    def __reduce__(self) -> NoReturn:
        refuse(self)

    @property
    def token(self) -> CancelToken:
        """The thread's token."""
        return self._task.token

    @property
    def state(self) -> TaskState:
        """Where the thread is in its life."""
        return self._task.state

    def start(self) -> None:
        """As threading.Thread.

        Blocks: only until the new thread runs; a kill of the caller waits for that.
        On cancel: nothing changes: this is no checkpoint, and cancelled code can start a thread.

        Raises:
            RuntimeError: it was started before, or the system has no more threads.
        """
        # A kill in the middle would leave the new thread waiting for this one, or a lock of
        # threading held that every thread needs at its start.
        call_masked(self._launch_and_start)

    def _launch_and_start(self) -> None:
        first = self._task.launch()
        try:
            super().start()
        except BaseException:  # the system has no more threads
            if first:
                self._task.recall()
            raise

    def kill(self, reason: str | None = None, *, policy: StopPolicy | None = None) -> KillReport:
        """Stop the thread, rung by rung of the policy, and tell how it ended.

        Code in C that does not return is not ended, but for the blocking calls of foreign_status();
        the thread is abandoned: it stays alive, and the report says so.

        Blocks: until the thread's code has ended or was abandoned: at most for the sum of the
        policy's seconds, and as long as its clean-up blocks defer the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            RuntimeError: the thread was not started, or is the calling one.
        """
        return self._task.kill(reason, policy=policy)

    def kill_soon(
        self, reason: str | None = None, *, policy: StopPolicy | None = None
    ) -> Future[KillReport]:
        """Start a kill() without waiting for it; the future has its report.

        When this returns, the thread has been cancelled, and a daemon thread named "desist-kill"
        goes up the ladder. Never blocks, and never raises: the future raises kill()'s exceptions.
        The future cannot be cancelled.
        """
        return kill_soon(lambda: self._task.begin_kill(reason, policy=policy).finish)

    def raise_exc(self, exc: BaseException | type[BaseException]) -> None:
        """Raise an exception, or one made of the class given, in the thread, once.

        It is raised in the thread's own code and nowhere else: at a desist wait, at a blocking call
        of foreign_status(), or between two bytecodes; another call into C has to return first.
        Clean-up and commit blocks, and held desist locks, defer it until their end. Of several
        exceptions that have not been raised yet, the last one counts, and a kill comes before all.
        Nothing happens to a thread that has ended; in the calling thread the exception is raised at
        once. In a ``__del__``, or another call whose exceptions go to sys.unraisablehook, it is
        raised, and then raised again behind it. Never blocks.

        Raises:
            TypeError: `exc` is no exception, or a class that needs arguments.
            RuntimeError: the thread was not started.
        """
        exception: object = exc() if isinstance(exc, type) else exc
        if not isinstance(exception, BaseException):
            raise TypeError(f"exceptions must derive from BaseException, not {exc!r}")
        if self._task.is_current():
            raise exception
        if not self._task.inject(exception) and self._task.state is TaskState.PENDING:
            raise RuntimeError("cannot raise in a thread before it is started; start it first")

    def terminate(self) -> None:
        """Raise SystemExit in the thread, which ends it without a traceback; see raise_exc().

        The thread's code can catch it; kill() ends such code as well.
        """
        self.raise_exc(SystemExit)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread's end, at most for `timeout` seconds.

        Blocks: until the thread has ended or was abandoned. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the thread goes on.
        On timeout: returns; is_alive() tells.
        On kill: as on cancel, with Killed.

        Raises:
            RuntimeError: the thread was not started, or is the calling one.
        """
        # While the interpreter ends, a daemon thread does not end any more: threading's join()
        # handles that.
        leave_it = self is threading.current_thread() or sys.is_finalizing()
        if self.ident is not None and not leave_it:
            if self._is_abandoned() or not self._task.wait(timeout) or self._is_abandoned():
                return
            timeout = None  # only the interpreter's own last steps are left
        super().join(timeout)

    def _done_op(self) -> Op[StoppableThread]:
        return self._task.over_op(self)

    def _is_abandoned(self) -> bool:
        return self._task.state is TaskState.ABANDONED


class Thread(StoppableThread):
    """A threading.Thread that can be cancelled and killed.

    It runs in a copy of the context (contextvars) of the code that made it, and under a token of
    its own. Cancelled and Killed end at the thread's end, where all desist locks that it still
    holds are released; other exceptions go to threading.excepthook.
    """

    def cancel(self, reason: str | None = None, *, grace: float | None = None) -> bool:
        """Ask the thread to stop: its desist waits and checkpoints raise Cancelled from now on.

        Never blocks, never raises an exception of the thread. `grace`: seconds that its clean-up
        zones may take (5 unless given). True: this call was the first.
        """
        return self._task.cancel(reason, grace=grace)


class Timer(StoppableThread):
    """A threading.Timer: a thread that calls a function after some seconds, unless cancelled.

    It can be killed as a desist Thread can. Its cancel() is that of threading.Timer, which only
    stops the wait; so it is no Thread, whose cancel() asks the code that runs to stop.
    """

    def __init__(
        self,
        interval: float,
        function: Callable[..., object],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """As threading.Timer.

        Raises:
            TypeError: `function` is not callable, or its call would not run its code.
        """
        check_runnable(function, "function")
        super().__init__()
        self.interval: float = interval
        self.function: Callable[..., object] = function
        self.args: Iterable[Any] = [] if args is None else args
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        self.finished: Event = Event()

    def cancel(self) -> bool:
        """Stop the timer, if the function has not begun; then True.

        As with threading.Timer, a function that runs is left alone; kill() stops that as well.
        """
        first = not self.finished.is_set()
        self.finished.set()
        return first

    def run(self) -> None:
        """Wait, and call the function, on the timer's own thread.

        Blocks: for `interval` seconds, unless cancel() is called, and while the function runs.
        On cancel: a Timer has no cancellation but cancel(); the function is not called.
        On kill: of the timer: Killed is raised in the wait, or in the function.
        """
        if not self.finished.wait(self.interval):
            call_for_effect(self.function, *self.args, **self.kwargs)
        self.finished.set()
