"""ThreadPoolExecutor: that of concurrent.futures, whose work can be cancelled and killed.

It keeps the fields and locks of its base class (`_work_queue`, `_threads`, `_shutdown_lock`), but
`_exit` ends its work with the interpreter, not the standard library, which waits without a bound.
Its worker threads run behind a boundary (`WorkerThread`) that no kill enters; only a submitted
function has a boundary of its own, so that a kill ends the function and the thread goes on.

Every future is in `_unfinished` from its submission, under `_shutdown_lock`, until its call has
ended or was abandoned. So a shutdown that ends the work finds all calls: those that wait, those
that run, and those on their way from the queue to their thread.

The base class's locks are `threading`'s: they are taken only while kills of the thread are
deferred. `_hands` and `_abandoned` are written under `_shutdown_lock`.
"""

from __future__ import annotations

import concurrent.futures.thread
import logging
import math
import threading
import weakref
from concurrent.futures import InvalidStateError
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from desist._core import (
    BegunKill,
    CancelCause,
    KillReport,
    OwnerBlock,
    SimpleQueue,
    StopPolicy,
    Task,
    WorkerThread,
    call_for_effect,
    call_masked,
    cancel_because,
    check_runnable,
    checkpoint,
    current_time,
    current_token,
    defer_kill,
    move_on_after,
    shield,
)
from desist._enums import KillOutcome, TaskState
from desist._exceptions import Empty, PoolExhausted, TaskAborted
from desist._exit import CUT_OFF, REASON, end_at_exit, in_words
from desist._future import BRIEFLY, Future
from desist._killing import ThreadFuture, end_now, failure_of, kill_soon, report_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from desist._core import CancelToken

# Its lock, and its flag that the interpreter exits, are shared: no executor takes calls after that.
stdlib: Any = concurrent.futures.thread

P = ParamSpec("P")
R = TypeVar("R")


class TaskFuture(ThreadFuture[R]):
    """The result of a call that was submitted to a ThreadPoolExecutor."""

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        name: str,
        body: Callable[[], R],
        parent: CancelToken | None,
    ) -> None:
        """For ThreadPoolExecutor.submit()."""
        super().__init__()
        self._task = Task(name, parent)
        self._task.expect()
        self._executor: ThreadPoolExecutor | None = executor
        self._body: Callable[[], R] | None = body
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> TaskState:
        """Where the code is in its life."""
        return TaskState.CANCELLED if self.cancelled() else self._task.state

    @property
    def token(self) -> CancelToken:
        """The code's token."""
        return self._task.token

    def cancel(self, reason: str | None = None, *, grace: float | None = None) -> bool:
        """Ask the code to stop: its desist waits and checkpoints raise Cancelled from now on.

        As with concurrent.futures, True says that the code has not begun and never will. If it
        stops because of this, result() raises TaskCancelled. Never blocks, and never raises an
        exception of the code. `grace`: seconds that its clean-up zones may take (5 unless given).
        """
        if not self.done():
            self._task.cancel(reason, grace=grace)
        return self._cancelled_unbegun()

    def _cancelled_unbegun(self) -> bool:
        with defer_kill(BRIEFLY):
            if self._cancel_unbegun():
                self._end_unstarted()
        return self.cancelled()

    def kill(self, reason: str | None = None, *, policy: StopPolicy | None = None) -> KillReport:
        """Stop the code, rung by rung of the policy, and tell how it ended.

        The policy is the executor's unless one is given. The code's thread survives, and goes on
        with other work; result() raises TaskAborted. If no rung ends the code, it is abandoned,
        and another thread takes the place of its own, as often as `max_abandoned` allows.

        Blocks: at most for the sum of the policy's seconds, and as long as clean-up blocks defer
        the kill.
        On cancel: goes on; the caller's own cancellation does not interrupt it.

        Raises:
            RuntimeError: called by the code itself.
        """
        return self._begin_kill(CancelCause.explicit(reason), policy).finish()

    def kill_soon(
        self, reason: str | None = None, *, policy: StopPolicy | None = None
    ) -> Future[KillReport]:
        """Start a kill() without waiting for it; the future has its report.

        When this returns, the code has been cancelled, and a daemon thread named "desist-kill" goes
        up the ladder. Never blocks, and never raises: the future raises kill()'s exceptions.
        The future cannot be cancelled.
        """
        return kill_soon(lambda: self._begin_kill(CancelCause.explicit(reason), policy).finish)

    def _end_waiting(self, cause: CancelCause) -> None:
        """Cancel the code by this cause, and end a call that has not begun."""
        if not self.done():
            cancel_because(self._task.token, cause)
        self._cancelled_unbegun()

    def _begin_kill(self, cause: CancelCause, policy: StopPolicy | None = None) -> BegunKill:
        """Begin a kill; a call that has not begun is ended."""
        if not self.running():
            self._end_waiting(cause)
        executor = self._executor
        if policy is None and executor is not None:
            policy = executor._policy  # noqa: SLF001 (its own module)
        return self._task.begin_kill(
            cause.reason, policy=policy, abandoned=self._abandoned, kind=cause.kind
        )

    def _work_name(self) -> str:
        return self._task.name

    def _cause(self) -> CancelCause:
        cause = self._task.token.cause
        assert cause is not None  # noqa: S101 (for the type checker: it was cancelled)
        return cause

    # On the worker's thread, where no kill is delivered.

    def _run(self) -> bool:
        """Call the function. False: it was abandoned meanwhile, and this thread is to end."""
        body, self._body = self._body, None
        self._thread = threading.current_thread()
        if self.set_running_or_notify_cancel() and body is not None:
            self._task.run(checkpoint if self._task.token.cancelled else body, self._settle)
        return self._task.state is not TaskState.ABANDONED

    def _settle(self, result: R, raised: BaseException | None) -> None:
        failure = failure_of(self._task, raised)
        self._leave_executor()
        self._thread = None
        with suppress(InvalidStateError):  # user code has settled it
            if failure is None:
                self.set_result(result)
            else:
                self.set_exception(failure)

    # On the killing thread.

    def _abandoned(self) -> None:
        executor = self._leave_executor()
        thread, self._thread = self._thread, None
        with suppress(InvalidStateError):
            self.set_exception(TaskAborted(self._task.name, KillOutcome.ABANDONED, self._cause()))
        if executor is not None and thread is not None:
            executor._replace(thread)

    # Where no kill is delivered.

    def _leave_executor(self) -> ThreadPoolExecutor | None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor._unfinished.discard(self)  # noqa: SLF001 (its own module)
        return executor

    def _end_unstarted(self, body: Callable[[], object] = checkpoint) -> None:
        """End the task of a call that no thread will run; `body` raises its exception."""
        self._leave_executor()
        self._body = None
        with suppress(RuntimeError):  # another thread is doing it
            self._task.run(body, lambda _result, _raised: None)

    def _fail_unstarted(self, failure: BaseException) -> None:
        def fail() -> NoReturn:
            raise failure

        if self.set_running_or_notify_cancel():
            self._task.cancel(str(failure))
            self._end_unstarted(fail)
            self.set_exception(failure)


class ThreadPoolExecutor(OwnerBlock, concurrent.futures.ThreadPoolExecutor):
    """concurrent.futures.ThreadPoolExecutor, whose work can be cancelled and killed.

    Signatures and results are those of the standard library. submit() gives a future that has
    kill() and kill_soon(), and whose cancel() also asks code that runs to stop; so
    `asyncio.wait_for(loop.run_in_executor(...))` really stops it, once this is the loop's
    executor. A kill is raised in the submitted function and nowhere else in its thread.

    A `with` block that is left early, by an exception, Ctrl-C or a cancellation, also while it
    waits for its work, ends the work: as shutdown(cancel_running=True) does. The exception goes on
    when the work has ended.

    `inherit_context`: a function runs in a copy of the context (contextvars) of its submit().
    `inherit`: a function is cancelled with the scope of its submit(), too, and has its deadline;
    when that scope is left, functions that still wait or run are cancelled.
    `max_abandoned`: so many threads that were abandoned and still run are replaced. With one more
    the executor is exhausted until one of them ends: submitted calls that have not begun fail with
    PoolExhausted, and submit() raises it. `policy` is for TaskFuture.kill(), and for shutdown().
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        inherit_context: bool = True,
        inherit: bool = False,
        max_abandoned: int = 2,
        policy: StopPolicy | None = None,
    ) -> None:
        """As concurrent.futures.ThreadPoolExecutor."""
        if max_abandoned < 0:
            message = f"max_abandoned must not be negative, but is {max_abandoned}"
            raise ValueError(message)
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        if initializer is not None:
            check_runnable(initializer, "initializer")
        self._initialize = partial(call_for_effect, initializer, *initargs) if initializer else None
        self._inherit_context = inherit_context
        self._inherit = inherit
        self._max_abandoned = max_abandoned
        self._policy = StopPolicy() if policy is None else policy
        self._number = 0
        # Typeshed has other types for these.
        self._work_queue: SimpleQueue[Any] = SimpleQueue()  # type: ignore[assignment]
        self._threads: set[threading.Thread] = set()
        self._broken: Any = False
        self._hands: dict[threading.Thread, WorkerThread] = {}
        # Those that were alive when the last one was added.
        self._abandoned: list[threading.Thread] = []
        self._unfinished: set[TaskFuture[Any]] = set()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Have `fn(*args, **kwargs)` called by a thread of the pool.

        A coroutine function or a generator function is refused, whose call returns before its code
        runs. A function may return a generator, or a future of asyncio: the caller gets it as the
        result, as from the standard library's executor. If it returns a coroutine, the result is a
        TypeError.

        Never blocks. A checkpoint.
        On cancel: Cancelled means that nothing was submitted.

        Raises:
            RuntimeError: the executor has been shut down.
            PoolExhausted: more than `max_abandoned` abandoned threads still run.
            TypeError: `fn` is not callable, or its call would not run its code.
        """
        check_runnable(fn, "fn")
        checkpoint()
        call: Callable[[], R] = partial(fn, *args, **kwargs)
        if self._inherit_context:
            call = partial(copy_context().run, call)
        parent = current_token() if self._inherit else None
        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        # A kill of the calling thread must not leave these locks held.
        with defer_kill(BRIEFLY), self._shutdown_lock, stdlib._global_shutdown_lock:  # noqa: SLF001 (the standard library's own)
            if self._broken:
                raise stdlib.BrokenThreadPool(self._broken)
            if self._is_exhausted():
                raise PoolExhausted(_EXHAUSTED)
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if stdlib._shutdown:  # noqa: SLF001 (the standard library's own)
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            future = TaskFuture(self, name, call, parent)
            self._unfinished.add(future)
            self._work_queue.put(future)
            self._adjust_thread_count()
        return future

    def _adjust_thread_count(self) -> None:
        if self._idle_semaphore.acquire(timeout=0):
            return
        if len(self._threads) < self._max_workers:
            self._start_worker()

    def _start_worker(self) -> None:
        name = f"{self._thread_name_prefix or self}_{self._number}"
        self._number += 1
        hand = WorkerThread(name)
        # When the executor is dropped, its queue gets the dead reference, which wakes a worker.
        me = weakref.ref(self, self._work_queue.put)
        # A daemon, and not among the threads that the standard library joins at exit: it would wait
        # without a bound, also for an abandoned one.
        thread = threading.Thread(
            target=hand.work,
            args=(_worker, me, self._work_queue, self._initialize),
            name=name,
            daemon=True,
        )
        try:
            call_masked(thread.start)  # its wait for the thread is not to be ended, either
        except BaseException:
            if hand.withdraw():
                raise
        self._hands[thread] = hand
        self._threads.add(thread)
        end_at_exit(self)

    def _replace(self, thread: threading.Thread) -> None:
        """Start a thread in the place of an abandoned one, unless the executor is exhausted."""
        with self._shutdown_lock:
            self._threads.discard(thread)
            hand = self._hands.pop(thread, None)
            if hand is not None:
                hand.abandoned()
            self._abandoned = [one for one in (*self._abandoned, thread) if one.is_alive()]
            exhausted = self._is_exhausted()
            if not exhausted:
                with suppress(RuntimeError):  # the interpreter is at its end
                    self._start_worker()
            if exhausted or not self._threads:
                self._fail_waiting(PoolExhausted(_EXHAUSTED))

    def _is_exhausted(self) -> bool:
        return sum(thread.is_alive() for thread in self._abandoned) > self._max_abandoned

    def _initializer_failed(self) -> None:
        with self._shutdown_lock:
            self._broken = "A thread initializer failed, the thread pool is not usable anymore"
            self._fail_waiting(stdlib.BrokenThreadPool(self._broken))

    def _fail_waiting(self, failure: BaseException) -> None:
        with suppress(Empty):
            while True:
                future = self._work_queue.get_nowait()
                if isinstance(future, TaskFuture):
                    future._fail_unstarted(failure)  # noqa: SLF001 (its own module)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, cancel_running: bool = False
    ) -> None:
        """As concurrent.futures.ThreadPoolExecutor.shutdown().

        `cancel_futures` cancels calls that have not begun, and none that run. `cancel_running` ends
        both: calls that run are cancelled, and those that do not end are killed, rung by rung of
        the executor's policy. One that no rung ends is abandoned, and the TaskAborted of its future
        is passed to threading.excepthook as well.

        Blocks: with `wait`, until all threads have ended that were not abandoned; with
        `cancel_running`, for the sum of the policy's seconds at most, and as long as clean-up
        blocks defer a kill. A checkpoint, but not with `cancel_running`.
        On cancel: Cancelled is raised by the wait; the executor is shut down all the same, and
        another call goes on with the wait. With `cancel_running` it goes on. Ctrl-C then has the
        calls killed at once, and is raised when they have ended.
        On kill: as on cancel, with Killed.

        Raises:
            RuntimeError: called with `wait` by a thread of the executor.
        """
        with defer_kill(BRIEFLY), self._shutdown_lock:
            self._shutdown = True
            if cancel_futures or cancel_running:
                with suppress(Empty):
                    while True:
                        future = self._work_queue.get_nowait()
                        if isinstance(future, TaskFuture):
                            future._end_waiting(CancelCause.shutdown(_SHUT_DOWN))  # noqa: SLF001 (its own module)
            self._work_queue.put(None)
        if not cancel_running:
            self._join(wait)
        elif wait:
            # A cancelled caller leaves nothing running either.
            with shield(math.inf):
                try:
                    end_now(self._begin_end)
                finally:
                    call_masked(self._join, wait)
        else:
            kill_soon(self._begin_end)

    def _begin_end(self) -> Callable[[], None]:
        """Begin to kill the calls that have not ended; returns the function that goes on."""
        calls = [call for call in list(self._unfinished) if not call._task.is_current()]  # noqa: SLF001 (its own module)
        cause = CancelCause.shutdown(_SHUT_DOWN)
        kills = [call._begin_kill(cause) for call in calls]  # noqa: SLF001 (its own module)

        def finish() -> None:
            try:
                BegunKill.finish_all(kills)
            finally:
                report_abandoned(calls)

        return finish

    def _join(self, wait: bool) -> None:
        while wait:
            with defer_kill(BRIEFLY), self._shutdown_lock:
                thread, hand = next(iter(self._hands.items()), (None, None))
            if thread is None or hand is None:
                return
            if thread is threading.current_thread():
                raise RuntimeError("a thread of the pool cannot wait for its own end")
            if thread.is_alive():  # in a forked child it is not
                hand.wait()
            if self._hands.pop(thread, None) is not None:  # else it was abandoned
                thread.join()  # only the interpreter's own last steps are left

    # Of an Owner.

    _lets_work_end = True
    # The calls that had not ended when the interpreter began to exit.
    _calls_at_exit: tuple[TaskFuture[Any], ...] = ()

    def _begin_at_exit(self, until: float, /) -> list[BegunKill]:
        self._calls_at_exit = tuple(self._unfinished)
        # Code that relies on the standard library's executor has its short calls run to their end.
        begin = current_time()
        if self._unfinished:
            with move_on_after(min(max(until - begin, 0.0), self._policy.cooperative)):
                self.shutdown()
        policy = _without(current_time() - begin, self._policy)
        self.shutdown(wait=False, cancel_futures=True)
        cause = CancelCause.shutdown(REASON)
        return [call._begin_kill(cause, policy) for call in list(self._unfinished)]  # noqa: SLF001 (its own module)

    def _finish_at_exit(self) -> str | None:
        if self._calls_at_exit:
            self._join(wait=True)
        cut_off = [call for call in self._calls_at_exit if call.state in CUT_OFF]
        return in_words([f"{call._task.name} ({call.state.name})" for call in cut_off])  # noqa: SLF001 (its own module)

    # Of the block's end.

    def _join_work(self) -> None:
        self.shutdown()

    def _end_work(self) -> None:
        self.shutdown(cancel_running=True)


_logger = logging.getLogger("concurrent.futures")
_SHUT_DOWN = "the executor was shut down"
_EXHAUSTED = (
    "more than max_abandoned threads of this executor were abandoned, and have not ended; "
    "make a new executor"
)


def _without(seconds: float, policy: StopPolicy) -> StopPolicy:
    """Give the policy with so many seconds less for a cancellation."""
    return StopPolicy(
        cooperative=max(policy.cooperative - seconds, 0.0),
        at_wait=policy.at_wait,
        async_exc=policy.async_exc,
        trace=policy.trace,
        defer=policy.defer,
        abandon=policy.abandon,
    )


def _worker(
    reference: weakref.ref[ThreadPoolExecutor],
    work_queue: SimpleQueue[Any],
    initialize: Callable[[], object] | None,
) -> None:
    """Work until the executor ends, as the standard library's worker does."""
    if initialize is not None:
        try:
            initialize()
        except BaseException:
            _logger.critical("Exception in initializer:", exc_info=True)
            executor = reference()
            if executor is not None:
                executor._initializer_failed()  # noqa: SLF001 (its own module)
            return
    while True:
        item = _next_item(reference, work_queue)
        if isinstance(item, TaskFuture):
            if not item._run():  # noqa: SLF001 (its own module)
                return
        elif _is_over(reference):
            work_queue.put(None)  # ends the next worker
            return
        del item


def _next_item(reference: weakref.ref[ThreadPoolExecutor], work_queue: SimpleQueue[Any]) -> object:
    with suppress(Empty):
        return work_queue.get_nowait()
    executor = reference()
    if executor is not None:
        executor._idle_semaphore.release()  # noqa: SLF001 (the standard library's own)
    del executor
    return work_queue.get()


def _is_over(reference: weakref.ref[ThreadPoolExecutor]) -> bool:
    executor = reference()
    if executor is None:
        return True
    if stdlib._shutdown:  # noqa: SLF001 (the standard library's own)
        executor._shutdown = True  # noqa: SLF001 (the standard library's own)
    return executor._shutdown  # noqa: SLF001 (the standard library's own)
