"""desist in coroutines, for asyncio and for trio: calls on threads, and desist's own waits.

    page = await aio.to_thread(fetch, url)  # a cancelled task stops the thread, and waits for it
    item = await aio.perform(queue.get_op())

Guarantees: the await ends when the work has ended, and never before: a cancelled task leaves no
thread behind, and no exception or result of the work reaches any other task. What `perform` was
asked to do is done if and only if it returns.

How: one `_Work` is awaited by one task. Its thread writes the outcome and then schedules a callback
on the event loop, which resumes the task; so the outcome needs no lock. A cancellation of the task
does not resume it, it is passed on to the work, on the loop's thread: asyncio calls cancel() of the
future that the task awaits, which is a `_Waiter`, and trio calls the abort function. The task is
resumed by the end of the work alone, and then finds the request (`_Stop`), which it raises or puts
off.

The thread of a call runs a native `Task`, as a desist Thread does: the boundary of all
cancellations and kills. The thread of a wait has none, since the end of a task releases the locks
that the task holds. Threads are daemons; `_Calls` ends the calls that still run when the
interpreter exits.

Relies on the event loop for calling cancel(), or the abort function, on its own thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from desist._core import (
    BegunKill,
    CancelCause,
    Cancelled,
    CancelSource,
    CancelToken,
    Event,
    Task,
    call_masked,
    check_runnable,
    checkpoint,
    current_token,
    wait_any,
)
from desist._enums import CauseKind
from desist._exceptions import Unblocked
from desist._exit import CUT_OFF, REASON, end_at_exit, in_words
from desist._killing import failure_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from typing import NoReturn

    from desist._core import Op
    from desist._group import Task as GroupTask
    from desist._thread import StoppableThread

    _Ending = TypeVar("_Ending", bound=StoppableThread | GroupTask[Any] | Future[Any])

_P = ParamSpec("_P")
_R = TypeVar("_R")

__all__ = ["perform", "to_thread"]


async def to_thread(fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call `fn(*args, **kwargs)` on a thread of its own, in a copy of this context, and await it.

    As asyncio.to_thread(), but a cancelled await stops the call. It works in asyncio, with any
    event loop, and in trio, also by way of anyio. Each call has a thread of its own; a semaphore
    of the event loop bounds their number.

    The call is under a token of its own, below that of the calling code: the deadline of a scope
    around `asyncio.run()` reaches it. asyncio.timeout() and the scopes of trio and anyio reach it
    as the cancellation of the awaiting task, so no deadline of theirs is known inside.

    Blocks: the awaiting task alone, until the call has ended, also when it is cancelled. A
    checkpoint, of desist and of trio.

    On cancel: of the awaiting task: the call is cancelled, so that its desist waits and checkpoints
    raise Cancelled, and its clean-up zones have their grace. When it has ended, the task's own
    exception is raised, asyncio.CancelledError or trio.Cancelled, also if the call has returned in
    the same moment. Its `__cause__` is then an exception whose `result` is what the call returned,
    or the exception other than Cancelled that the call raised. No force is used: a call that
    reaches no checkpoint runs to its end. In a desist scope that is cancelled around the event
    loop, the call is cancelled, too, and Cancelled is raised here.

    On kill: of the event loop's thread: the call is cancelled.

    Raises:
        TypeError: `fn` is not callable, or it is a coroutine function or a generator function,
            whose call returns before its code runs. The former are to be awaited.
        RuntimeError: the system has no more threads.
        TaskCancelled: the call raised Cancelled, though neither the task nor the calling code was
            cancelled: it has checked another token, say.
        TaskAborted: the call was killed, because the interpreter exits.
    """
    check_runnable(fn, "fn", "await a coroutine without to_thread()")
    checkpoint()
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    call: _Call[_R] = _Call(name, partial(copy_context().run, fn, *args, **kwargs))
    stop = await _end_of(call)
    if stop is not None:
        stop.raise_from(call.ended_by_itself())
    return call.result()


@overload
async def perform(what: Op[_R], /) -> _R: ...
@overload
async def perform(what: _Ending, /) -> _Ending: ...
@overload
async def perform(what: CancelToken, /) -> CancelCause: ...
@overload
async def perform(what: Event, /) -> bool: ...
async def perform(what: Any, /) -> Any:
    """Await a wait of desist: what wait_any() would do with this one argument; return the result.

        item = await aio.perform(queue.get_op())
        await aio.perform(queue.put_op(item))
        await aio.perform(lock.acquire_op())  # then, in a `finally`, lock.release()
        cause = await aio.perform(token)

    An operation that is possible at once is done at once, as asyncio.Queue.get() does. One that has
    to wait does so on a thread of its own; a token needs none. A lock that was waited for is
    held in the name of that thread: so not for a fenced lock, which only its holder releases.

    Blocks: the awaiting task alone, until the operation is done. A checkpoint, of desist.

    On cancel: of the awaiting task: its own exception is raised, asyncio.CancelledError or
    trio.Cancelled, and nothing was done. If the operation was done in the same moment, its result
    is returned, and the task's next await raises that exception: no item is lost. In a desist scope
    that is cancelled around the event loop, Cancelled is raised, and nothing was done.

    On kill: of the event loop's thread: nothing is done.

    Raises:
        TypeError: `what` is nothing that can be waited for.
        LockPoisoned, OwnerLost: as acquire() raises them.
        ShutDown: as get() and put() raise it.
        OSError: a bad descriptor.
        RuntimeError: the system has no more threads.
    """
    done = wait_any(what, timeout=0)
    if done is not None:
        return done[1]
    wait = _TokenWait(what) if isinstance(what, CancelToken) else _Wait(what)
    stop = await _end_of(wait)
    if stop is not None:
        if wait.is_undone():
            stop.raise_from(None)
        stop.postpone()
    return wait.result()


# --- the work ------------------------------------------------------------------------------------


class _Work(Generic[_R]):
    """Work that one task awaits."""

    def __init__(self) -> None:
        # Written by the thread that ends the work, before it calls `_wake`.
        self._results: list[_R] = []
        self._raised: BaseException | None = None

    def start(self, wake: Callable[[], object]) -> None:
        """Begin; call `wake` once, on any thread, when the outcome is known."""
        raise NotImplementedError

    def cancel(self, reason: str | None) -> None:
        """Ask it to end. It ends by `wake` as before. Never blocks."""
        raise NotImplementedError

    def is_undone(self) -> bool:
        """Has it ended because it was cancelled?"""
        return not self._results and self._raised is None

    def result(self) -> _R:
        """Return or raise its outcome, which is then no longer here."""
        raised, self._raised = self._raised, None
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # a cycle through the traceback
        if not self._results:
            checkpoint()  # it was cancelled with the calling code
        return self._results.pop()


class _Call(_Work[_R]):
    """A call on a thread of its own."""

    def __init__(self, name: str, body: Callable[[], _R]) -> None:
        super().__init__()
        # Taken by the thread, so that nothing keeps the call's arguments alive after it.
        self._body: Callable[[], _R] | None = body
        self.task = Task(name, current_token())
        self._wake: Callable[[], object] = _nothing

    def start(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        call_masked(self._start)  # a kill in it would leave locks of threading held

    def _start(self) -> None:
        self.task.launch()
        _calls.add(self)
        name = f"desist-aio-{self.task.id}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except BaseException:  # the system has no more threads
            _calls.discard(self)
            self.task.recall()
            raise

    def cancel(self, reason: str | None) -> None:
        self.task.cancel(reason)

    def _run(self) -> None:
        body, self._body = self._body, None
        assert body is not None  # noqa: S101 (for the type checker: it runs once)
        self.task.run(checkpoint if self.task.token.cancelled else body, self._settle)

    # On the call's thread, where no kill is delivered.

    def _settle(self, result: _R, raised: BaseException | None) -> None:
        self._raised = failure_of(self.task, raised)
        if raised is None:
            self._results.append(result)
        wake, self._wake = self._wake, _nothing
        _calls.discard(self)
        wake()

    # On the thread of the event loop, when the call has ended.

    def ended_by_itself(self) -> BaseException | None:
        """Give the outcome as an exception, unless the call has ended because it was cancelled."""
        if self._results:
            return Unblocked(self._results.pop())
        raised, self._raised = self._raised, None
        return None if raised is None or isinstance(raised.__cause__, Cancelled) else raised

    def result(self) -> _R:
        if self._raised is not None and isinstance(self._raised.__cause__, Cancelled):
            checkpoint()  # it was cancelled with the calling code
        return super().result()


class _Wait(_Work[Any]):
    """A desist wait on a thread of its own, which is no task's."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self._what = what
        self._source = CancelSource(current_token())

    def start(self, wake: Callable[[], object]) -> None:
        thread = threading.Thread(target=self._run, args=(wake,), name="desist-aio", daemon=True)
        call_masked(thread.start)  # a kill in it would leave locks of threading held

    def cancel(self, reason: str | None) -> None:
        self._source.cancel(reason)

    def _run(self, wake: Callable[[], object]) -> None:
        try:
            # Cancelled in the same moment, nothing is done.
            done = wait_any(self._source.token, self._what)
            if done is not None and done[0] == 1:
                self._results.append(done[1])
        except BaseException as raised:  # noqa: BLE001 (result() raises it)
            self._raised = raised
        finally:
            wake()


class _TokenWait(_Work[CancelCause]):
    """A wait for a token, by a callback."""

    def __init__(self, token: CancelToken) -> None:
        super().__init__()
        self._token = token
        self._either = CancelToken.any_of(token, current_token())

    def start(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._registration = self._either.on_cancel(self._cancelled)

    def cancel(self, _reason: str | None) -> None:
        if self._registration.unregister():
            self._wake()

    def _cancelled(self, _cause: CancelCause) -> None:
        cause = self._token.cause
        if cause is not None:
            self._results.append(cause)
        self._wake()


def _nothing() -> None:
    """Wake no task."""


class _Calls:
    """The calls that run; an Owner, which ends them when the interpreter exits.

    Its set is changed by single operations, on the threads of event loops and of calls.
    """

    _lets_work_end = False

    def __init__(self) -> None:
        self._running: set[_Call[Any]] = set()
        # Those that ran when the interpreter began to exit.
        self._at_exit: list[_Call[Any]] = []

    def add(self, call: _Call[Any]) -> None:
        end_at_exit(self)  # also in a forked child, which has forgotten all owners
        self._running.add(call)

    def discard(self, call: _Call[Any]) -> None:
        self._running.discard(call)

    def _begin_at_exit(self, _until: float, /) -> list[BegunKill]:
        self._at_exit = list(self._running)
        return [call.task.begin_kill(REASON, kind=CauseKind.SHUTDOWN) for call in self._at_exit]

    def _finish_at_exit(self) -> str | None:
        cut_off = [call.task for call in self._at_exit if call.task.state in CUT_OFF]
        return in_words([f"{task.name} ({task.state.name})" for task in cut_off])


_calls = _Calls()


# --- the event loops -----------------------------------------------------------------------------


class _Stop(Protocol):
    """The request that the awaiting task be cancelled, which has not been raised in it."""

    def raise_from(self, cause: BaseException | None, /) -> NoReturn:
        """Raise it."""

    def postpone(self) -> None:
        """Have it raised by the task's next await."""


async def _end_of(work: _Work[Any]) -> _Stop | None:
    """Start the work, and await its end; return the request that the task be cancelled, if any."""
    # trio imports it; so where it is not imported, this is asyncio.
    sniffio = sys.modules.get("sniffio")
    library = "asyncio" if sniffio is None else sniffio.current_async_library()
    if library == "trio":
        return await _in_trio(work)
    if library == "asyncio":
        return await _in_asyncio(work)
    raise RuntimeError(f"desist.aio works in asyncio and in trio, not in {library}")


_CANCELLED = "the awaiting task was cancelled"


async def _in_asyncio(work: _Work[Any]) -> _Stop | None:
    with _scope_of_anyio() as scope:
        waiter = _Waiter(work, scope)
        work.start(waiter.wake_soon)
        try:
            await waiter
        except BaseException:  # the loop was closed, and drops its tasks
            work.cancel(_CANCELLED)
            raise
    return waiter.stop


def _scope_of_anyio() -> AbstractContextManager[Any]:
    """A scope of anyio's, if it is in use.

    A cancelled scope of anyio's cancels its tasks again in each turn of the loop, until they have
    left it. Behind a shield it does not.
    """
    anyio = sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope()


class _Waiter(asyncio.Future[None]):
    """The future that a task of asyncio awaits; only the end of the work sets it."""

    def __init__(self, work: _Work[Any], scope: Any) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._work = work
        self._scope = scope
        self.stop: _AsyncioStop | None = None

    def cancel(self, msg: Any = None) -> bool:
        """Pass the cancellation of the task on; asyncio then raises nothing in the task."""
        if self.stop is None:
            self.stop = _AsyncioStop(msg)
            if self._scope is not None:
                self._scope.shield = True
            self._work.cancel(msg if isinstance(msg, str) and msg else _CANCELLED)
        return True

    def wake_soon(self) -> None:
        """Have the task resumed. Called once, on any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.get_loop().call_soon_threadsafe(self.set_result, None)


class _AsyncioStop:
    """A cancel() of a task of asyncio."""

    def __init__(self, msg: Any) -> None:
        self._args = () if msg is None else (msg,)

    def raise_from(self, cause: BaseException | None, /) -> NoReturn:
        raise asyncio.CancelledError(*self._args) from cause

    def postpone(self) -> None:
        task = asyncio.current_task()
        asyncio.get_running_loop().call_soon(self._cancel, task)

    def _cancel(self, task: Any) -> None:
        if sys.version_info >= (3, 11):
            if not task.cancelling():  # the block that had requested it has ended
                return
            task.uncancel()
        task.cancel(*self._args)


async def _in_trio(work: _Work[Any]) -> _Stop | None:
    import trio

    await trio.lowlevel.checkpoint_if_cancelled()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
    stops: list[_TrioStop] = []

    def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        stops.append(_TrioStop(raise_cancel))
        work.cancel(_CANCELLED)
        return trio.lowlevel.Abort.FAILED

    def wake_soon() -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(trio.lowlevel.reschedule, task)

    work.start(wake_soon)
    await trio.lowlevel.wait_task_rescheduled(abort)
    return stops[0] if stops else None


class _TrioStop:
    """A cancellation of a task of trio."""

    def __init__(self, raise_cancel: Callable[[], NoReturn]) -> None:
        self._raise_cancel = raise_cancel

    def raise_from(self, cause: BaseException | None, /) -> NoReturn:
        try:
            self._raise_cancel()
        except BaseException as cancelled:
            raise cancelled from cause

    def postpone(self) -> None:
        """Leave it to trio, whose next checkpoint raises it."""
