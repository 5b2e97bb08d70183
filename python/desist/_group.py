"""TaskGroup: functions that run side by side, and a block that ends after all of them.

The guarantees are native, in `TaskGroupCore`, the base class: that a started child is known, and
that the block does not end before its children, whatever is raised in its thread. This module has
what need not be atomic: results, errors and threads. It relies on being called by the core, on a
child's thread where no kill is delivered (`_run`, `_settle`), or on the killing thread
(`_abandoned`).

A `Task` is settled once, by whichever of `_settle` and `_abandoned` the core calls: it calls one of
them, before it tells the task's waiters. So `_result` and `_failure` need no lock: they are written
before the core's latch is set, and read after it.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar

from desist._core import (
    BegunKill,
    CancelCause,
    Cancelled,
    CancelToken,
    GroupCore,
    KillReport,
    Semaphore,
    StopPolicy,
    WorkerThread,
    cancel_because,
    check_runnable,
    checkpoint,
    defer_kill,
)
from desist._enums import CauseKind, KillOutcome, TaskState
from desist._exceptions import AnyTimeoutError, PoolExhausted, ScopeMisuse, TaskAborted
from desist._exit import CUT_OFF, REASON, end_at_exit, in_words
from desist._future import BRIEFLY, Future
from desist._killing import failure_of, kill_soon, lost_in_fork, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from typing_extensions import Self

    from desist._core import Op

P = ParamSpec("P")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)


class Task(Generic[T_co]):
    """A function that a TaskGroup runs on a thread; made by start_soon()."""

    def __init__(self, group: TaskGroup, name: str, body: Callable[[], T_co]) -> None:
        """For start_soon()."""
        self._core = group._make(name)
        self._group: TaskGroup | None = group
        self._body: Callable[[], T_co] | None = body
        self._result: T_co | None = None
        self._failure: BaseException | None = None
        # The ident of its thread, from the moment it begins.
        self._thread = 0
        # It was cancelled before its function was called. Written by its thread.
        self._never_began = False

    @property
    def id(self) -> int:
        """Its number; no other task of this program ever has it."""
        return self._core.id

    @property
    def name(self) -> str:
        """The name of its function."""
        return self._core.name

    @property
    def state(self) -> TaskState:
        """Where it is in its life."""
        return self._core.state

    @property
    def token(self) -> CancelToken:
        """Its token, below that of the group's scope."""
        return self._core.token

    def cancel(self, reason: str | None = None, *, grace: float | None = None) -> bool:
        """Ask it to stop: its desist waits and checkpoints raise Cancelled from now on.

        The group goes on. As with the other results, True says that its function has not begun and
        never will. Never blocks, never raises a task's exception. `grace`: seconds that its
        clean-up zones may take (5 unless given).
        """
        self._core.cancel(reason, grace=grace)
        self._end_if_waiting()
        return self._never_began

    def kill(self, reason: str | None = None, *, policy: StopPolicy | None = None) -> KillReport:
        """Stop it, rung by rung of the policy, and tell how it ended.

        For the group, a task that was killed or abandoned has failed, with TaskAborted; one that
        stopped when asked has not.

        Blocks: until its code has ended or was abandoned: at most for the sum of the policy's
        seconds, and as long as its clean-up blocks defer the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            RuntimeError: called by the task itself.
        """
        self._before_kill(reason)
        return self._core.kill(reason, policy=policy, abandoned=self._abandoned)

    def kill_soon(
        self, reason: str | None = None, *, policy: StopPolicy | None = None
    ) -> Future[KillReport]:
        """Start a kill() without waiting for it; the future has its report.

        When this returns, the task has been cancelled, and a daemon thread named "desist-kill" goes
        up the ladder. Never blocks, and never raises: the future raises kill()'s exceptions.
        The future cannot be cancelled.
        """

        def begin() -> Callable[[], KillReport]:
            self._before_kill(reason)
            return self._core.begin_kill(reason, policy=policy, abandoned=self._abandoned).finish

        return kill_soon(begin)

    def _before_kill(self, reason: str | None) -> None:
        if self.state is TaskState.PENDING:
            self.cancel(reason)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended or was abandoned (True), or `timeout` seconds have passed.

        Blocks: until then. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the task goes on.
        On timeout: returns False.
        On kill: as on cancel, with Killed.

        Raises:
            RuntimeError: called by the task itself.
        """
        return self._core.wait(timeout)

    def done(self) -> bool:
        """Has it ended, or was it abandoned? Then result() does not wait."""
        return self._core.is_over()

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the function's result, at most for `timeout` seconds.

        Raises the function's exception; TaskCancelled if it was cancelled, TaskAborted if it was
        killed or abandoned.

        Blocks: until it has ended or was abandoned, for `timeout` seconds at most. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the task goes on.
        On timeout: TimeoutError is raised; the task goes on.
        On kill: as on cancel, with Killed.
        """
        failure = self.exception(timeout)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # a cycle through the traceback
        return self._result  # type: ignore[return-value]  # there is one, as nothing failed

    def _done_op(self) -> Op[Task[T_co]]:
        return self._core.over_op(self)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As result(), but returns the exception that result() would raise, or None.

        Blocks: until it has ended or was abandoned, for `timeout` seconds at most. A checkpoint.
        On cancel: Cancelled is raised in the waiting code; the task goes on.
        On timeout: TimeoutError is raised; the task goes on.
        On kill: as on cancel, with Killed.
        """
        if not self.join(timeout):
            raise AnyTimeoutError
        return lost_in_fork(self.name) if self._core.is_lost() else self._failure

    def stack(self) -> str | None:
        """Where it is now, as the lines of a traceback; None unless its function runs."""
        return self._core.stack()

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.name!r} {self.state.name}>"

    # On the task's thread, or for a task without one on another, where no kill is delivered.

    def _run(self) -> None:
        body, self._body = self._body, None
        assert body is not None  # noqa: S101 (for the type checker: it runs once)
        self._thread = threading.get_ident()
        group = self._group
        self._never_began = self.token.cancelled or (
            group is not None and group._has_cancelled(self._core)  # noqa: SLF001 (its own module)
        )
        self._core.run(checkpoint if self._never_began else body, self._settle)

    def _run_exhausted(self) -> None:
        """End it without a thread; it fails, unless it was cancelled."""
        self._body = _raise_exhausted
        self._run()

    def _settle(self, result: Any, raised: BaseException | None) -> None:
        self._result = result
        self._failure = failure_of(self._core, raised)
        self._tell_group()

    # On the killing thread.

    def _abandoned(self) -> None:
        cause = self.token.cause
        assert cause is not None  # noqa: S101 (for the type checker: a kill cancels)
        self._failure = TaskAborted(self.name, KillOutcome.ABANDONED, cause)
        group = self._group
        self._tell_group()
        if group is not None:
            group._lose_thread(self._thread)  # noqa: SLF001 (its own module)

    def _end_if_waiting(self) -> None:
        group = self._group
        with defer_kill(BRIEFLY):  # once withdrawn, no thread of the group ends it
            if group is not None and group._withdraw(self._core):  # noqa: SLF001 (its own module)
                self._run()

    def _tell_group(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group._child_ended(self, self._failure)  # noqa: SLF001 (its own module)


class TaskGroup(GroupCore):
    """A `with` block that starts functions on threads, and ends when all of them have ended.

        with desist.TaskGroup() as group:
            page = group.start_soon(fetch, url)
            group.start_soon(watch)
        print(page.result())

    If a task fails, the other tasks and the block are cancelled, unless `on_error` is "continue".
    The failures, and an exception of the block itself, are raised by the block's end as an
    ExceptionGroup. A block that is left early, by an exception, by a cancellation or by a failure
    of a task, ends its tasks: they are cancelled, and those that do not end are killed, rung by
    rung of `policy`. A cancelled task has not failed; a task that was killed or abandoned has, with
    TaskAborted, which names it.

    Blocks: the block's end, until all tasks have ended or were abandoned; of a block that is left
    early, for the sum of the policy's seconds at most, and as long as clean-up blocks defer a
    kill. A checkpoint.
    On cancel: of the block: it is left early. So with Ctrl-C; pressed again, it kills the tasks at
    once.
    On kill: of the block's thread: it is left early, and the kill is deferred until its end.

    Args:
        on_error: Whether a failure cancels the other tasks.
        max_threads: At most this many tasks run at a time, abandoned ones that have not ended
            included; the others wait.
        policy: How the tasks of a block that is left early are ended.
        name: For the threads' names.
        token: The block is cancelled with this token as well; see cancel_scope().
    """

    _numbers = count(1)

    def __new__(
        cls,
        *,
        on_error: Literal["cancel", "continue"] = "cancel",
        max_threads: int | None = None,
        policy: StopPolicy | None = None,
        name: str | None = None,
        token: CancelToken | None = None,
    ) -> Self:
        """A group, whose block has not begun."""
        if on_error not in ("cancel", "continue"):
            message = f'on_error must be "cancel" or "continue", not {on_error!r}'
            raise ValueError(message)
        if max_threads is not None and max_threads < 1:
            message = f"max_threads must be at least 1, not {max_threads}"
            raise ValueError(message)
        del on_error, name  # for __init__
        return super().__new__(cls, policy, max_threads, token)  # type: ignore[return-value]  # a cls

    def __init__(
        self,
        *,
        on_error: Literal["cancel", "continue"] = "cancel",
        max_threads: int | None = None,
        policy: StopPolicy | None = None,
        name: str | None = None,
        token: CancelToken | None = None,
    ) -> None:
        """A group, whose block has not begun."""
        del max_threads, token  # for __new__
        self._policy = StopPolicy() if policy is None else policy
        self.name: str = name or f"TaskGroup-{next(self._numbers)}"
        self._fails_fast = on_error == "cancel"
        # The group's threads by their idents, each entered by itself. When there are `_too_many`,
        # threads that have ended are removed.
        self._threads: dict[int, threading.Thread] = {}
        self._too_many = 16
        self._errors: list[Exception] = []
        # The tasks that a thread has begun with, and that have not ended.
        self._at_work: set[Task[Any]] = set()
        # KeyboardInterrupt, SystemExit and the like, which a task raised.
        self._fatal: BaseException | None = None
        # The ended tasks that as_completed() has not yielded yet, and their number.
        self._ended: deque[Task[Any]] = deque()
        self._endings = Semaphore(0)

    def start_soon(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Task[R]:
        """Call `fn(*args, **kwargs)` on a thread of its own, in a copy of this context.

        It may also be called by the tasks of the group, and by other threads, until the block has
        ended. In a group that is cancelled the function is not called.

        Blocks: only for the start of the thread. A checkpoint.
        On cancel: Cancelled means that nothing was started.

        Raises:
            PoolExhausted: all of `max_threads` threads were abandoned, and have not ended.
            RuntimeError: the block has not begun or has ended, or the system has no more threads.
            TypeError: `fn` is not callable, or it is a coroutine function or a generator function,
                whose call returns before its code runs.
        """
        check_runnable(fn, "fn")
        checkpoint()
        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        task = Task(self, name, partial(copy_context().run, fn, *args, **kwargs))
        self._start(task._core, task)  # noqa: SLF001 (its own module)
        return task

    def cancel(self, reason: str | None = None, *, grace: float | None = None) -> bool:
        """Ask the block and all tasks to stop; the block then ends without an exception.

        Never blocks, never raises; works from any thread. `grace`: seconds that clean-up zones may
        take (5 unless given). True: this call was the first.
        """
        return self.cancel_scope.cancel(reason, grace=grace)

    def as_completed(self) -> Iterator[Task[Any]]:
        """Yield the tasks as they end, first the ended ones; each once, until no task is left.

        The group keeps a task, and its result, until it has been given here.

        Blocks: each step, until a task has ended. A checkpoint.
        On cancel: Cancelled is raised by the step, and no task is lost: a later step yields it.
        On kill: as on cancel, with Killed.
        """
        while self._claim():
            try:
                self._endings.acquire()
            except BaseException:
                self._unclaim()
                raise
            yield self._ended.popleft()

    def __repr__(self) -> str:
        return f"<TaskGroup {self.name!r}>"

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...

    # Called by the core.

    def _start_thread(self, hand: WorkerThread, task: Task[Any]) -> None:
        end_at_exit(self)
        name = f"{self.name}-{task.id}"
        # A daemon: the block waits for the thread, unless its task was abandoned.
        threading.Thread(target=hand.work, args=(self._work, task), name=name, daemon=True).start()

    def _verdict(self, raised: BaseException | None) -> BaseException | None:
        """Return the exception to raise in place of `raised`, when all tasks have ended."""
        for thread in list(self._threads.values()):
            thread.join()  # it is on its last few steps
        if raised is not None and not isinstance(raised, (Exception, Cancelled)):
            self._report()  # Killed, KeyboardInterrupt and the like go on as they are
            return None
        if self._fatal is not None:
            self._report()
            return self._fatal
        errors, self._errors = self._errors, []
        if isinstance(raised, Exception):
            errors.append(raised)
        if not errors:
            return None
        group = _group_of("unhandled errors in a TaskGroup", errors)
        group.__cause__ = None  # the exceptions in it are the cause
        return group

    # Of an Owner: a group whose block is on a daemon thread may be there at exit.

    _lets_work_end = False
    # The tasks that ran when the interpreter began to exit.
    _tasks_at_exit: tuple[Task[Any], ...] = ()

    def _begin_at_exit(self, _until: float, /) -> list[BegunKill]:
        self._tasks_at_exit = tuple(self._at_work)
        if self._tasks_at_exit:
            with suppress(ScopeMisuse):  # the tasks and the block have ended just now
                cancel_because(self.cancel_scope.token, CancelCause.shutdown(REASON))
        return [
            task._core.begin_kill(  # noqa: SLF001 (its own module)
                REASON,
                policy=self._policy,
                abandoned=task._abandoned,  # noqa: SLF001 (its own module)
                kind=CauseKind.SHUTDOWN,
            )
            for task in self._tasks_at_exit
        ]

    def _finish_at_exit(self) -> str | None:
        cut_off = [task for task in self._tasks_at_exit if task.state in CUT_OFF]
        return in_words([f"{task.name} ({task.state.name})" for task in cut_off])

    # Called by the core.

    def _on_abandoned(self) -> None:
        """The block's thread was killed, and the block's end has not run."""
        self._report()

    def _report(self) -> None:
        """Pass the errors to threading.excepthook, because no exception will carry them."""
        while self._errors:
            report(self._errors.pop(0))

    # On a thread of the group, between its tasks, or on the thread that abandoned a task.

    def _work(self, task: Task[Any] | None) -> None:
        thread = threading.current_thread()
        if len(self._threads) >= self._too_many:
            for ident, other in list(self._threads.items()):
                if not other.is_alive():
                    self._threads.pop(ident, None)
            self._too_many = 2 * len(self._threads) + 16
        self._threads[threading.get_ident()] = thread
        while task is not None:
            self._at_work.add(task)
            task._run()  # noqa: SLF001 (its own module)
            if task.state is TaskState.ABANDONED:
                task.join()  # the thread that has abandoned it is on its last few steps
                self._thread_regained()
                self._threads[threading.get_ident()] = thread
            del task
            task = self._next()

    def _child_ended(self, task: Task[Any], failure: BaseException | None) -> None:
        if failure is not None and task.state is not TaskState.CANCELLED:
            fails = self._fails_fast
            if isinstance(failure, Exception):
                self._errors.append(failure)
            else:
                self._fatal = failure
                fails = True
            if fails:
                self._fail(f"{task.name} failed with {type(failure).__name__}")
        self._at_work.discard(task)
        self._ended.append(task)
        self._endings.release()

    def _lose_thread(self, ident: int) -> None:
        self._threads.pop(ident, None)
        for task in self._thread_lost():
            task._run_exhausted()  # noqa: SLF001 (its own module)


def _raise_exhausted() -> NoReturn:
    raise PoolExhausted("all threads of the group were abandoned, and have not ended")


def _group_of(message: str, errors: list[Exception]) -> BaseException:
    if sys.version_info >= (3, 11):
        return ExceptionGroup(message, errors)  # noqa: F821 (3.11)
    import exceptiongroup  # only now, for it brings much along

    return exceptiongroup.ExceptionGroup(message, errors)


class _Race(TaskGroup):
    """The group of race(): once a task has won, the others' failures are dropped."""

    won = False

    def _verdict(self, raised: BaseException | None) -> BaseException | None:
        if self.won:
            self._errors.clear()
        return super()._verdict(raised)


def race(*fns: Callable[[], R]) -> R:
    """Call all functions at once, and return the first result.

    The other functions are cancelled, and waited for.

    Blocks: until all functions have ended. A checkpoint.
    On cancel: all functions are cancelled.

    Raises:
        ExceptionGroup: all functions failed.
        TypeError: one of them is not callable, or its call would not run its code.
        ValueError: no function was given.
    """
    if not fns:
        raise ValueError("race() needs a function to call")
    for fn in fns:
        check_runnable(fn, "each function")  # before the first one is started
    with _Race(on_error="continue", name="race") as group:
        tasks = [group.start_soon(fn) for fn in fns]
        winner = tasks[0]  # if all were cancelled, any of them says so
        for task in group.as_completed():
            if task.state is TaskState.DONE:
                winner, group.won = task, True
                group.cancel("the race is won")
                break
    return winner.result()
