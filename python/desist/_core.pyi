"""
Native core of desist.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from email.message import Message
from types import GenericAlias, TracebackType
from typing import (
    Any,
    Generic,
    Literal,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    TypeVar,
    final,
    overload,
)

from _typeshed import FileDescriptorLike, SupportsGetItem
from typing_extensions import Self, disjoint_base

from desist._enums import CauseKind, KillOutcome, TaskState
from desist._group import Task as _GroupTask
from desist._items import ItemInfo
from desist._ports import PoolObserver
from desist._thread import StoppableThread

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_Ending = TypeVar("_Ending", bound=StoppableThread | _GroupTask[Any] | Future[Any])
_Awaited: TypeAlias = (
    Op[Any] | Event | CancelToken | StoppableThread | _GroupTask[Any] | Future[Any]
)

__all__ = [
    "Barrier",
    "BegunKill",
    "BoundedSemaphore",
    "CancelCause",
    "CancelScope",
    "CancelSource",
    "CancelToken",
    "Cancelled",
    "ChildProcess",
    "Condition",
    "Event",
    "FailScope",
    "FileQueue",
    "GroupCore",
    "Guarded",
    "GuardedValue",
    "KillReport",
    "KillSignal",
    "Killed",
    "Latch",
    "Lease",
    "LeaseQueue",
    "Lock",
    "LockGuard",
    "Masked",
    "Op",
    "OwnerBlock",
    "ParentWatch",
    "PoolMetrics",
    "ProcessStopPolicy",
    "Queue",
    "QueuePort",
    "RLock",
    "Registration",
    "Released",
    "RetryPolicy",
    "RungReport",
    "RunningHandler",
    "Semaphore",
    "SimpleQueue",
    "Simulation",
    "StopPolicy",
    "Task",
    "WorkerSlot",
    "WorkerThread",
    "_Injector",
    "call_for_effect",
    "call_left_alone",
    "call_masked",
    "call_under",
    "call_within",
    "cancel_because",
    "cancel_scope",
    "check_runnable",
    "checked_time_limit",
    "checkpoint",
    "cleanup",
    "contents_of",
    "current_effective_deadline",
    "current_time",
    "current_token",
    "defer_kill",
    "fail_after",
    "foreign_state",
    "fork_timeouts",
    "knows_homes",
    "leak_counts",
    "lease_from",
    "leave_calls_alone",
    "move_on_after",
    "notify_closing",
    "ports",
    "protect_modules",
    "queue_port",
    "restore_cancelled",
    "restore_cause",
    "restore_killed",
    "restore_report",
    "restore_rung",
    "retry_pause",
    "set_foreign",
    "shield",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "wait_any",
    "wait_readable",
    "wait_writable",
]

@disjoint_base
class Barrier:
    """
    A barrier like threading.Barrier, whose waits can be cancelled.

    The last of `parties` threads to arrive calls `action`, if there is one, before all pass.
    `timeout`, in seconds, is the default of wait(). Making a barrier never blocks.
    """
    def __init__(
        self,
        /,
        parties: SupportsIndex,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
    ) -> None: ...
    def __repr__(self, /) -> str: ...
    def abort(self, /) -> None:
        """
        Break the barrier: threads that wait, and all later ones, get BrokenBarrierError.
        """
    @property
    def broken(self, /) -> bool:
        """
        Is it broken?
        """
    @property
    def n_waiting(self, /) -> int:
        """
        How many threads wait in the barrier.
        """
    @property
    def parties(self, /) -> int:
        """
        How many threads have to arrive.
        """
    def reset(self, /) -> None:
        """
        Make the barrier usable again. Threads that wait get BrokenBarrierError.
        """
    def wait(self, /, timeout: float | None = None) -> int:
        """
        Wait until all parties have arrived; returns the number of threads that arrived before.

        Blocks: until the last party has arrived, for `timeout` seconds at most.
        On cancel: Cancelled is raised; the thread does not count as arrived, and the others keep waiting.
        On timeout: the barrier breaks, for all of its waiters.
        On kill: as on cancel, with Killed.

        Raises:
            BrokenBarrierError: the barrier is broken, or was while this waited.
        """

@final
class BegunKill:
    """
    A kill that has begun: its task is cancelled, and an urgent one has been delivered once.

    finish() continues with the further rungs, on this thread or another. Without finish() the kill
    stops here.
    """
    def finish(self, /) -> KillReport:
        """
        Go from rung to rung until the task is over or abandoned. A second call finds it over.
        """
    @staticmethod
    def finish_all(kills: SupportsGetItem[int, BegunKill]) -> list[KillReport]:
        """
        finish() of several, side by side, with kills of the calling thread deferred for as long as that
        takes. What a signal handler raises meanwhile makes them use force at once, and is raised
        when all of them are finished.
        """

@disjoint_base
class BoundedSemaphore(Semaphore):
    """
    A semaphore like threading.BoundedSemaphore: releasing more often than acquiring is an error.
    """
    def __init__(self, /, value: SupportsIndex = 1) -> None: ...
    def __repr__(self, /) -> str: ...

@final
class CancelCause:
    """
    Why code was cancelled. Immutable; the first cause recorded is final.

    It can be pickled. `at` is a time of this machine since its start: it means nothing on another one.
    """
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __repr__(self, /) -> str: ...
    def __str__(self, /) -> str: ...
    @property
    def at(self, /) -> float:
        """
        When, on the clock of `current_time()`: for a deadline the deadline itself, not the moment at
        which a thread noticed it.
        """
    @property
    def by_thread(self, /) -> str | None:
        """
        The name of the cancelling thread; None for a deadline.
        """
    @staticmethod
    def explicit(reason: str | None = None) -> CancelCause:
        """
        The cause that cancel(reason) records when the calling thread calls it now.
        """
    @staticmethod
    def forked() -> CancelCause:
        """
        The cause of the end, in a forked child, of work whose thread is in the parent process.
        """
    @property
    def kind(self, /) -> CauseKind:
        """
        The kind of event.
        """
    @property
    def reason(self, /) -> str | None:
        """
        The reason that the canceller gave.
        """
    @staticmethod
    def shutdown(reason: str | None = None, *, grace: float | None = None) -> CancelCause:
        """
        The cause of work that ends with its owner, or with the interpreter. `grace`: seconds that its
        clean-up zones may take.
        """

@final
class CancelScope:
    """
    A block that can be cancelled; made by cancel_scope(), move_on_after(), shield() and
    cleanup(), and used in a `with` statement, once, by one thread.
    """
    def __enter__(self, /) -> CancelScope: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> bool:
        """
        True if the block's own cancellation ends here.
        """
    def cancel(self, /, reason: str | None = None, *, grace: float | None = None) -> bool:
        """
        Cancel the block: it is left quietly at its next checkpoint. True: this call was the
        first; False: it was cancelled, or left, before.

        Never raises, and never waits for the block; works from any thread, signal handler and
        finalizer. `grace`: seconds that clean-up zones inside may still take (5 unless given).
        """
    @property
    def cancel_called(self, /) -> bool:
        """
        Was this block itself cancelled, by cancel() or its own deadline?
        """
    @property
    def cancelled_caught(self, /) -> bool:
        """
        Was the block left early, and did that end here?
        """
    @property
    def cause(self, /) -> CancelCause | None:
        """
        Why this block itself was cancelled; else None.
        """
    @property
    def deadline(self, /) -> float:
        """
        When the block is to end, on the clock of current_time(); infinity if it has no deadline.

        It can be moved, also by other threads, until the block is left.
        """
    @deadline.setter
    def deadline(self, /, value: float) -> None: ...
    @property
    def token(self, /) -> CancelToken:
        """
        The block's token, to hand out to other threads. The block must be open.
        """

@final
class CancelSource:
    """
    Cancels its `token`, and all tokens below it. Give the token to other code, and keep the source.

    As a context manager it closes itself at the end of the block. Making one never blocks. One that is
    dropped without close() cancels nothing: the tokens below it are still cancelled by its deadline, and
    with its parent, and when they are gone, too, nothing is left of it.
    """
    def __enter__(self, /) -> CancelSource: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __new__(
        cls,
        /,
        parent: CancelToken | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> CancelSource:
        """
        A source, below `parent` if one is given; `deadline` on the clock of current_time(), or
        `timeout` in seconds from now, cancels it in time. Never blocks.

        Raises:
            TypeError: a time that is not a number, or both a deadline and a timeout.
            ValueError: a time that is NaN, or a negative number of seconds.
        """
    def __repr__(self, /) -> str: ...
    def cancel(self, /, reason: str | None = None, *, grace: float | None = None) -> bool:
        """
        Cancel. True: this call was the first; False: it was cancelled, or closed, before.

        Never raises, and never waits for the cancelled code; works from any thread, signal handler and
        finalizer. `grace`: seconds that clean-up zones may still take (5 unless given); a later call
        can shorten it, counted from that call, and never lengthens it. Callbacks run on
        this thread; in a signal handler, a finalizer or a trace function, which interrupt code that may
        hold a lock, on a thread of desist's.
        """
    def close(self, /) -> None:
        """
        Close: sources and tokens below are cancelled (SCOPE_EXITED). Idempotent.
        """
    @property
    def deadline(self, /) -> float:
        """
        When it is cancelled at the latest, on the clock of current_time(); infinity if it has no deadline of
        its own.

        It can be moved, earlier or later, by any thread, until the source is cancelled.
        """
    @deadline.setter
    def deadline(self, /, value: float) -> None: ...
    @staticmethod
    def from_headers(
        headers: Mapping[str, str] | Message, parent: CancelToken | None = None
    ) -> CancelSource:
        """
        A source for the work that a message asks for: below `parent` if one is given, with the deadline in the
        headers that CancelToken.to_headers() has made, and cancelled (REMOTE) if they say so. Never blocks.

        The deadline is counted from now: the clocks of the two hosts are not compared. Other headers are
        passed over, and the names may be in any case.

        Raises:
            TypeError: `headers` has no items(), or has names or values that are no strings.
            ValueError: the time in the headers is not a number of seconds.
        """
    @property
    def token(self, /) -> CancelToken:
        """
        The token to hand out.
        """

@final
class CancelToken:
    """
    Shows whether its source was cancelled; can be waited for, and takes callbacks. It cannot cancel.

    `cancelled` is a slot that the interpreter reads without a call.
    """
    def __repr__(self, /) -> str: ...
    @staticmethod
    def any_of(*tokens: CancelToken) -> CancelToken:
        """
        A token that is cancelled with any of the given ones, with that one's cause. Its deadline is the
        earliest of theirs.

        It leaves nothing behind in them.
        """
    @property
    def cancelled(self, /) -> bool:
        """
        True once cancelled.
        """
    def cancelled_op(self, /) -> Op[CancelCause]:
        """
        The token is cancelled: an operation for wait_any() that yields the cause. The token itself
        means the same there.
        """
    @property
    def cause(self, /) -> CancelCause | None:
        """
        Why, once cancelled; else None.
        """
    def check(self, /) -> None:
        """
        Raise Cancelled if the token is cancelled. Never blocks.
        """
    @property
    def deadline(self, /) -> float:
        """
        The earliest deadline of the token and those above it, on the clock of current_time();
        infinity if there is none.
        """
    @property
    def flag(self, /) -> int:
        """
        Address of a 32-bit word for native code: its lowest bit is set once the token is cancelled.

        Valid as long as this token is kept. To be read as desist.h does, see get_include().
        """
    def on_cancel(self, fn: Callable[[CancelCause], object], /) -> Registration:
        """
        Call `fn(cause)` once when the token is cancelled; at once if it is already.

        It runs on the thread that cancels, or for a deadline, and for a cancel in a signal handler or
        a finalizer, on a thread of desist's, in an empty
        context (contextvars), after all waiters have been woken. Its exceptions go to
        sys.unraisablehook. A kill of the cancelling thread is deferred until it returns, for 5 seconds
        at most. It stays registered as long as the token lives, whether or not the registration is
        kept.
        """
    def remaining(self, /) -> float:
        """
        Seconds until the deadline, 0.0 once it has passed; infinity if there is none.
        """
    def to_headers(self, /) -> dict[str, str]:
        """
        The headers that carry this token to another process: the seconds that are left until its deadline,
        and its cancellation, if it is cancelled. CancelSource.from_headers() reads them there.

        They are valid in HTTP and in other protocols whose headers are text. Without a deadline and a
        cancellation there are none.
        """
    def wait(self, /, timeout: float | None = None) -> bool:
        """
        Block until the token is cancelled (True), or for the given seconds (False).

        Blocks: until then. A checkpoint.
        On cancel: of the calling code: Cancelled is raised.
        On timeout: returns False.
        On kill: of the calling code: Killed is raised.
        """

@final
class Cancelled(BaseException):
    """
    Raised at a checkpoint once the code around it is cancelled. Do not catch it, or raise it
    again: the cancelled scope absorbs it.
    """
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __str__(self, /) -> str: ...
    @property
    def cause(self, /) -> CancelCause:
        """
        Why and when the code was cancelled, and by which thread.
        """

@final
class ChildProcess:
    """
    The process in which a worker's handler is called; another one after each that has died.

    It is signalled only between begin() and end().
    """
    def __new__(cls, /) -> ChildProcess: ...
    def begin(self, /, pid: SupportsIndex) -> None:
        """
        The calling task's body is about to run in this process.
        """
    def cancel(self, /, round: SupportsIndex, cause: CancelCause) -> None:
        """
        Tell the process that the work with this number was cancelled.
        """
    def connect(self, /, pipe: SupportsIndex) -> None:
        """
        A process was started; this object owns the pipe to it from now on.
        """
    def disconnect(self, /) -> None:
        """
        The process has ended.
        """
    def dismiss(self, /) -> None:
        """
        Dismiss the process, and any that is started later: it stops its work, soon by force, and ends.
        Never blocks.
        """
    @property
    def dismissed(self, /) -> bool:
        """
        Was it dismissed?
        """
    def end(self, /, *, died: bool, stack: str | None = None) -> KillOutcome | None:
        """
        The body has ended, and the process is not signalled any more. Returns the rung of the last
        signal, if there was one. If the process has `died`, that rung has ended the body, at `stack`.
        """

@disjoint_base
class Condition:
    """
    A condition variable like threading.Condition, whose waits can be cancelled.

    `lock` is a desist Lock or RLock; an RLock of its own if none is given.
    """
    def __enter__(self, /) -> bool: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __init__(self, /, lock: Lock | None = None) -> None: ...
    def __repr__(self, /) -> str: ...
    def _acquire_restore(self, /, released: Released) -> None:
        """
        Hold the lock as before _release_save().
        """
    def _at_fork_reinit(self, /) -> None:
        """
        In a forked child, as in threading.Condition: the lock is free, and has no waiters.
        """
    def _is_owned(self, /) -> bool:
        """
        Does the calling code hold the lock? For a lock that is not reentrant: does any thread?
        """
    def _release_save(self, /) -> Released:
        """
        Release the lock however often it is held; for _acquire_restore().
        """
    def _wait(self, /, timeout: float | None = None) -> bool:
        """
        wait(), inside a function that call_masked() calls: a kill is delivered in the wait, not around it.
        """
    def acquire(self, /, blocking: bool = True, timeout: float | None = None) -> bool:
        """
        Acquire the lock, as Lock.acquire() does.

        Blocks: until the lock is free, for `timeout` seconds at most; not at all with
        `blocking=False`.
        On cancel: Cancelled is raised, and the lock is not held.
        On timeout: returns False.
        On kill: Killed is raised, and the lock is not held.
        """
    def locked(self, /) -> bool:
        """
        Does any thread hold the lock?
        """
    def notify(self, /, n: SupportsIndex = 1) -> None:
        """
        Wake one waiter, or `n`, the longest waiting first. Never blocks.

        Raises:
            RuntimeError: the lock is not held.
        """
    def notifyAll(self, /) -> None:
        """
        notify_all(), by its old name, which is deprecated in threading, too.
        """
    def notify_all(self, /) -> None:
        """
        Wake all waiters. Never blocks.

        Raises:
            RuntimeError: the lock is not held.
        """
    def release(self, /) -> None:
        """
        Release the lock, as Lock.release() does. Never blocks.
        """
    def wait(self, /, timeout: float | None = None) -> bool:
        """
        Release the lock, wait for a notify (True) or until the seconds have passed (False), and
        reacquire the lock.

        Blocks: until a notify, for `timeout` seconds at most, and then until the lock is free.
        On cancel: Cancelled is raised when the lock has been reacquired. A notify that comes too late
        for this waiter goes to the next one.
        On timeout: returns False, when the lock has been reacquired.
        On kill: as on cancel, with Killed.

        Raises:
            RuntimeError: the lock is not held.
            LockPoisoned: the lock was poisoned meanwhile, and is not held.
        """
    def wait_for(self, /, predicate: Callable[[], _T], timeout: float | None = None) -> _T:
        """
        wait() until `predicate()` is true, or the seconds have passed. Returns its last value.

        Blocks: until then, and until the lock is free; `timeout` is for all waits together.
        On cancel: Cancelled is raised when the lock has been reacquired.
        On timeout: returns the predicate's last value, which is false.
        On kill: as on cancel, with Killed.

        Raises:
            RuntimeError: the lock is not held.
            LockPoisoned: the lock was poisoned meanwhile, and is not held.
        """

@disjoint_base
class Event:
    """
    A flag like threading.Event, whose waits can be cancelled.
    """
    def __init__(self, /) -> None: ...
    def __repr__(self, /) -> str: ...
    def _at_fork_reinit(self, /) -> None:
        """
        In a forked child, as in threading.Event: there are no waiters any more.
        """
    def clear(self, /) -> None:
        """
        Clear the flag: from now on wait() blocks.
        """
    def isSet(self, /) -> bool:
        """
        is_set(), by its old name, which is deprecated in threading, too.
        """
    def is_set(self, /) -> bool:
        """
        Is the flag set?
        """
    def set(self, /) -> None:
        """
        Set the flag and wake all waiters. Never blocks.
        """
    def wait(self, /, timeout: float | None = None) -> bool:
        """
        Wait until the flag is set (True), or the seconds have passed (False).

        Blocks: until then.
        On cancel: Cancelled is raised, also if the flag is set.
        On timeout: returns False.
        On kill: Killed is raised.
        """
    def wait_op(self, /) -> Op[bool]:
        """
        The operation wait(), for wait_any(); yields True. The event itself means the same there.
        """

@final
class FailScope:
    """
    A block whose deadline is an error; made by fail_after(), and used in a `with` statement, once,
    by one thread.

    It has no cancel(): it never leaves a block quietly.
    """
    def __enter__(self, /) -> FailScope: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None:
        """
        Raises DeadlineExceeded where the block was left because of its deadline.
        """
    @property
    def deadline(self, /) -> float:
        """
        When the block is to end, on the clock of current_time(). It can be moved.
        """
    @deadline.setter
    def deadline(self, /, value: float) -> None: ...
    @property
    def expired(self, /) -> bool:
        """
        Was the block left because of its deadline?
        """
    @property
    def token(self, /) -> CancelToken:
        """
        The block's token, to hand out to other threads. The block must be open.
        """

@final
class FileQueue(Generic[_T]):
    """
    A LeaseQueue in a file.

    put() returns when the item is on the disk. An item whose worker's process dies, of SIGKILL or a
    crash, is leased again by another process that has the file open, or by the next that opens it, and
    the attempt counts. After a loss of power, items whose end was not on the disk yet may be done
    again. Any number of processes may have the same file open.

    The file is a SQLite database that can be read with the sqlite3 program: its view `queue` is
    made for that. Never open it with the sqlite3 module in a process that has it open as a
    FileQueue: when that closes the file, the locks of both are lost.

    Items are kept with pickle, or as JSON with `codec="json"`; failures are kept as text. As unpickling
    can run any code, a pickled file must belong to the user of the process or to root, and be
    writable by other users only as far as `mode` says. The files are made with the permissions `mode`,
    by default for their user alone. None of them may be a symbolic or hard link, or a FIFO.

    `retry`, `maxsize` and `lease_timeout` are as with LeaseQueue; each process has its own.

    Blocks: all methods, for as long as the disk or another process's transaction takes. Only those
    with a timeout are checkpoints.

    On cancel: a method without a timeout goes on, and so does a commit that has begun.

    Raises:
        QueueFileError: (an OSError) the file cannot be used, or is no queue; it is not changed then. If
            a file of the queue was deleted, moved or replaced, all later calls raise it as well.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __new__(
        cls,
        /,
        path: str | os.PathLike[str],
        *,
        retry: RetryPolicy | None = None,
        maxsize: SupportsIndex = 0,
        lease_timeout: float | None = None,
        codec: Literal["pickle", "json"] = "pickle",
        mode: int = 384,
    ) -> FileQueue[_T]: ...
    def __repr__(self, /) -> str: ...
    def counts(self, /) -> dict[Literal["ready", "leased", "delayed", "done", "dead"], int]:
        """
        How many items are in each state, at one instant. `done` counts from the file's beginning.
        """
    def dead(self, /) -> list[tuple[int, _T | bytes, list[str]]]:
        """
        The dead items: id, item, and all failures, as text.

        An item that cannot be decoded here is listed with its bytes in place of the item, and the
        decoder's exception as its last failure.
        """
    def items(
        self,
        /,
        *,
        state: Literal["leased", "ready", "delayed", "dead"] | None = None,
        limit: SupportsIndex | None = None,
    ) -> list[ItemInfo]:
        """
        The items that are not done: their states, attempts, ages and holders, but not the items
        themselves. Leased ones come first, then ready, delayed and dead ones; within a state in the
        order in which they were put. `state` lists those of one state only, `limit` so many at most.
        Ages are by the wall clock.

        Raises:
            ValueError: there is no such state, or a negative limit.
        """
    def lease(self, /, timeout: float | None = None) -> Lease[_T] | None:
        """
        Lease the next item. The caller must acknowledge or requeue it; a WorkerPool does that for its
        handlers.

        An item that cannot be decoded has failed: it is requeued, or dead, as the RetryPolicy says, and the
        next item is leased.

        Blocks: until there is an item, for `timeout` seconds at most, and while the item is decoded.
        On cancel: a checkpoint; Cancelled means that nothing was leased.
        On timeout: returns None.
        On kill: Killed means that nothing was leased.
        """
    def put(
        self,
        item: _T,
        /,
        *,
        key: str | None = None,
        priority: SupportsIndex = 0,
        delay: float | None = None,
        expires: float | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """
        Add an item; returns its id, when the item is on the disk. The arguments are those of
        LeaseQueue.put().

        Blocks: for the disk, and where there is a maxsize, until there is room, for `timeout` seconds
        at most.
        On cancel: a checkpoint; Cancelled means that nothing was added.
        On kill: Killed means that nothing was added.

        Raises:
            Full: no room in time.
            TypeError: the codec cannot write it.
        """
    def put_many(
        self,
        items: Iterable[_T],
        /,
        *,
        priority: SupportsIndex = 0,
        delay: float | None = None,
        expires: float | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> list[int]:
        """
        Add many items; returns their ids, in order. All of them or none, and much quicker than one
        by one.

        Blocks: for the disk, and where there is a maxsize, until there is room for all, for `timeout`
        seconds at most.
        On cancel: a checkpoint; Cancelled means that nothing was added.
        On kill: Killed means that nothing was added.

        Raises:
            Full: no room in time.
            TypeError: the codec cannot write one of them.
        """
    def retry(self, item_id: int, /) -> None:
        """
        Give a dead item all its attempts again.

        Raises:
            ValueError: it is not dead.
        """

@disjoint_base
class GroupCore:
    """
    The children of a TaskGroup, and the block that joins them.
    """
    def __enter__(self, /) -> GroupCore: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> bool:
        """
        Waits until all tasks have ended.
        """
    def __new__(
        cls, /, policy: StopPolicy | None, most: SupportsIndex | None, token: CancelToken | None
    ) -> GroupCore: ...
    def _claim(self, /) -> bool:
        """
        The caller will wait for one more task to end. False: there is none to wait for.
        """
    def _fail(self, /, reason: str) -> None:
        """
        A task has failed: the others, and the block, are cancelled.
        """
    def _has_cancelled(self, /, core: Task) -> bool:
        """
        Are the tasks cancelled? Then `core` is, though the cancellation may be on its way to it still: an
        ended sibling must not be followed by a task that is called all the same.
        """
    def _make(self, /, name: str) -> Task:
        """
        A task to be started in the group. RuntimeError: its block is not open.
        """
    def _next(self, /) -> Any | None:
        """
        The next task for the calling worker thread; None: end.
        """
    def _start(self, /, core: Task, task: Any) -> None:
        """
        Start the body that `_make` has made, as `task`: on a new thread, or, if there are enough, on the
        first one that has nothing else to do.
        """
    def _thread_lost(self, /) -> list[Any]:
        """
        The task of one of the threads was abandoned, and is not over yet. Returns the tasks that wait, if
        no thread is left for them.
        """
    def _thread_regained(self, /) -> None:
        """
        The function of an abandoned task has returned, and its thread goes on.
        """
    def _unclaim(self, /) -> None:
        """
        The caller does not wait any more.
        """
    def _withdraw(self, /, core: Task) -> bool:
        """
        Take out a task that has no thread yet. False: it has one, or has ended.
        """
    @property
    def cancel_scope(self, /) -> CancelScope:
        """
        The block's scope: cancelling it cancels the block and its tasks.
        """

@final
class Guarded(Generic[_T]):
    """
    A value that is reached only while its lock is held: `with guarded.lock() as held:` and then
    `held.value`.

    If a block is killed in the middle, the value may be half changed: then lock() raises LockPoisoned
    until `with guarded.repair() as held:` has restored it.

    `rollback` is a function that takes the value and returns a copy, copy.deepcopy for instance. It
    is called at the beginning of each block, and must change nothing. If the block is left by any
    exception, is killed, or its thread is abandoned, the copy takes the value's place, and the lock
    stays usable. Without `rollback` an exception leaves the value as it is at that moment.

    `name` is for reports.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __new__(
        cls, /, value: _T, *, rollback: Callable[[_T], _T] | None = None, name: str | None = None
    ) -> Guarded[_T]: ...
    def __repr__(self, /) -> str: ...
    def lock(self, /) -> GuardedValue[_T]:
        """
        A block that has the value: `with guarded.lock() as held:`.

        Blocks: at its beginning, until the lock is free, as Lock.acquire() does.
        On cancel: Cancelled is raised there; the block has not begun, and nothing is held.

        Raises:
            LockPoisoned, OwnerLost: as Lock.acquire(). An exception of `rollback` is raised as well.
        """
    def locked(self, /) -> bool:
        """
        Does a block have the value?
        """
    @property
    def name(self, /) -> str:
        """
        For reports.
        """
    def owner(self, /) -> str | None:
        """
        The name of the task, or the thread, that has the value, for reports; None if none does.
        """
    @property
    def poisoned(self, /) -> bool:
        """
        Was the last block that had the value killed or abandoned in the middle?
        """
    def repair(self, /) -> GuardedValue[_T]:
        """
        A block that has the value although it is poisoned, to restore it.

        The end of the block clears the poison; if the block raises, the value stays poisoned.

        Blocks: at its beginning, until the lock is free, as Lock.acquire() does.
        On cancel: Cancelled is raised there; the block has not begun, and nothing is held.

        Raises:
            OwnerLost: as Lock.acquire().
        """

@final
class GuardedValue(Generic[_T]):
    """
    A block that has a guarded value; made by Guarded.lock() and Guarded.repair(), and used in a
    `with` statement, once.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __enter__(self, /) -> GuardedValue[_T]: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...
    @property
    def value(self, /) -> _T:
        """
        The value; assign to put another one in its place.

        Do not keep references to parts of it beyond the block.

        Raises:
            RuntimeError: the block is over.
            Fenced: the lock was taken from this block.
        """
    @value.setter
    def value(self, /, value: _T) -> None: ...

@final
class KillReport:
    """
    How a kill ended, and its effects.
    """
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __repr__(self, /) -> str: ...
    @staticmethod
    def already_done() -> KillReport:
        """
        The report where there was nothing to kill.
        """
    @property
    def blocked(self, /) -> str | None:
        """
        The last call of `stack`, if it is a call into C that has not returned while force was used:
        no rung on a thread can end it. Else None.
        """
    @property
    def elapsed(self, /) -> float:
        """
        Seconds from the call until the code had ended and all its holds were released.
        """
    @property
    def ended_calls(self, /) -> list[str]:
        """
        The blocking calls of foreign code that were ended, in the same words, in order.
        """
    @property
    def fenced(self, /) -> list[int | str]:
        """
        Ids of the items whose old lease is fenced, because its worker was abandoned.
        """
    @property
    def interrupted(self, /) -> list[str]:
        """
        Names of the modules with locks of their own, as of threading or logging, inside whose code
        Killed had to be raised, because the policy's `defer` had passed: they may have left one held.
        """
    @property
    def outcome(self, /) -> KillOutcome | None:
        """
        The last rung that reached the code; None: it still runs, and the policy does not abandon it.
        """
    @property
    def poisoned(self, /) -> list[str]:
        """
        Names of the locks that are poisoned now, or lost with an abandoned thread.
        """
    @property
    def released(self, /) -> list[str]:
        """
        Names of the locks that were released for it.
        """
    @property
    def requeued(self, /) -> list[int | str]:
        """
        Ids of the items that will be leased again.
        """
    @property
    def rungs(self, /) -> list[RungReport]:
        """
        The rungs that were tried, in order; none if there was nothing to kill. The code ended
        during the last one, unless `outcome` is ABANDONED or None. `outcome` may be a softer rung:
        that one's Killed reached the code, which then took longer to end than the rung's time.
        """
    @property
    def stack(self, /) -> str | None:
        """
        Where the code was stopped, or where it is now; None if that is not known.
        """
    @property
    def waited_in(self, /) -> str | None:
        """
        The system call that the thread was in when the kill began, with the descriptor and the peer if it has
        any, such as "recvfrom of descriptor 5 (127.0.0.1:6379)"; "futex" is a wait for a lock. None: it ran, or
        the system does not tell.
        """

@final
class KillSignal:
    """
    Has a token that is cancelled when a kill of the calling task may be delivered: not while it is
    deferred, and never outside any task.
    """
    def __new__(cls, /) -> KillSignal: ...
    @property
    def token(self, /) -> CancelToken: ...

@final
class Killed(BaseException):
    """
    Raised in code that is being killed. Do not catch it: it is absorbed by the end of the task, or of
    the block with `kill_after` that is being killed.
    """
    def __new__(cls, /) -> Killed: ...
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __str__(self, /) -> str: ...
    @property
    def cause(self, /) -> CancelCause:
        """
        Why and when the code was killed, and by which thread.
        """

@final
class Latch:
    """
    A flag that is set once.
    """
    def __new__(cls, /) -> Latch: ...
    def is_set(self, /) -> bool:
        """
        Is it set?
        """
    def set(self, /) -> None:
        """
        Set it and wake all waiters.
        """
    def wait(self, /, timeout: float | None = None) -> bool:
        """
        Wait until it is set (True) or the seconds have passed (False).

        Blocks: until then. A checkpoint.
        On cancel: Cancelled is raised.
        """
    def wait_op(self, value: _T, /) -> Op[_T]:
        """
        It is set: an operation for wait_any() that yields `value`.
        """

@final
class Lease(Generic[_T]):
    """
    One delivery of one item to one worker.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __repr__(self, /) -> str: ...
    def ack(self, /, result: object = None) -> None:
        """
        Acknowledge the item: the work is done.

        Blocks: until the queue's file or server has answered; while the server is away, until the lease has
        run out.
        On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.

        Raises:
            Fenced: the lease is over: the item was acknowledged or requeued, or the lease was lost.
            ConnectionError: the queue's server is away; the lease may or may not be settled.
        """
    @property
    def attempt(self, /) -> int:
        """
        How often the item has been leased, this time included; attempts that were snoozed are left out.
        """
    def commit(self, /) -> Masked:
        """
        A block in which kills are deferred, for at most 5 seconds: write the result of the work, then
        ack() the lease.

        On kill: before the block, the item is leased again; after it, the item is done; there is no
        third outcome.
        """
    def discard(self, /, reason: str | None = None) -> None:
        """
        Dead-letter the item: it is kept, with the reason among its failures, and is not leased again,
        whatever attempts it has left, unless `retry()` of the queue gives it new ones. An item that
        is to leave no trace is acknowledged instead. The item's future raises TaskCancelled.

        Blocks: until the queue's file or server has answered; while the server is away, until the lease has
        run out.
        On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.

        Raises:
            Fenced: the lease is over.
            ConnectionError: the queue's server is away; the lease may or may not be settled.
        """
    @property
    def epoch(self, /) -> int:
        """
        The lease's number; a later lease of any item has a greater one.
        """
    def heartbeat(self, /, progress: object = None) -> None:
        """
        Extend the lease: in a queue with a lease_timeout, that time begins again. `progress` is stored for
        the next attempt, in case this one does not finish.

        On cancel: a checkpoint.

        Raises:
            Fenced: the lease is over, and another worker may have the item.
        """
    @property
    def id(self, /) -> int | str:
        """
        The item's id.
        """
    @property
    def item(self, /) -> _T:
        """
        The item.
        """
    def nack(self, /, *, delay: float | None = None, reason: str | None = None) -> None:
        """
        Requeue the item, to be leased again after `delay` seconds.

        Blocks: until the queue's file or server has answered; while the server is away, until the lease has
        run out.
        On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.

        Raises:
            Fenced: the lease is over.
            ConnectionError: the queue's server is away; the lease may or may not be settled.
        """
    @property
    def progress(self, /) -> Any | None:
        """
        The progress that an earlier attempt has stored with heartbeat(); None if none has.
        """
    def snooze(self, seconds: float, /) -> None:
        """
        Requeue the item, to be leased again after that many seconds. The attempt does not count, and
        no failure is stored: the work is to be done later.

        Blocks: until the queue's file or server has answered; while the server is away, until the lease has
        run out.
        On cancel: no checkpoint; while the server is away, it goes on for the time of clean-up.

        Raises:
            Fenced: the lease is over.
            ConnectionError: the queue's server is away; the lease may or may not be settled.
            ValueError: `seconds` is negative.
        """
    @property
    def token(self, /) -> CancelToken:
        """
        The handler's token: cancelled when it is to stop.
        """

@final
class LeaseQueue(Generic[_T]):
    """
    Items that are leased to workers, in memory. Each is in one state at any time: ready, leased,
    delayed, done or dead. An item that its worker does not acknowledge is leased again.

    `retry` says how failed work is tried again. While `maxsize` items are ready, leased or delayed,
    put() waits; 0 means any number. With a `lease_timeout`, in seconds, a lease that is not
    extended with its heartbeat() for that time is lost, and the item leased again; without, a lease
    lasts until it is settled, or its Lease object is dropped, which requeues the item.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __new__(
        cls,
        /,
        *,
        retry: RetryPolicy | None = None,
        maxsize: SupportsIndex = 0,
        lease_timeout: float | None = None,
    ) -> LeaseQueue[_T]: ...
    def __repr__(self, /) -> str: ...
    def counts(self, /) -> dict[Literal["ready", "leased", "delayed", "done", "dead"], int]:
        """
        How many items are in each state, at one instant.
        """
    def dead(self, /) -> list[tuple[int, _T, list[BaseException | CancelCause]]]:
        """
        The dead items: id, item, and all failures (exceptions and CancelCauses).
        """
    def items(
        self,
        /,
        *,
        state: Literal["leased", "ready", "delayed", "dead"] | None = None,
        limit: SupportsIndex | None = None,
    ) -> list[ItemInfo]:
        """
        The items that are not done: their states, attempts, ages and holders, but not the items
        themselves. Leased ones come first, then ready, delayed and dead ones; within a state in the
        order in which they were put. `state` lists those of one state only, `limit` so many at most.
        Looks at all items while no other thread uses the queue.

        Raises:
            ValueError: there is no such state, or a negative limit.
        """
    def lease(self, /, timeout: float | None = None) -> Lease[_T] | None:
        """
        Lease the next item. The caller must acknowledge or requeue it; a WorkerPool does that for its
        handlers.

        Blocks: until there is an item, for `timeout` seconds at most.
        On cancel: a checkpoint; Cancelled means that nothing was leased.
        On timeout: returns None.
        On kill: Killed means that nothing was leased.
        """
    def put(
        self,
        item: _T,
        /,
        *,
        key: str | None = None,
        priority: SupportsIndex = 0,
        delay: float | None = None,
        expires: float | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """
        Add an item; returns its id.

        `key`: as long as an item with that key is there, dead or alive, its id is returned and
        nothing is added. `priority`: of the ready items one with the least is leased first, then
        the oldest. `delay`: seconds before it is leased. `expires`: seconds after which the item
        expires; then it is dead, and a handler at work on it is cancelled. `time_limit`: seconds that
        each attempt may take, instead of the time_limit of the pool that leases it (see WorkerPool).

        Blocks: where there is a maxsize, until there is room, for `timeout` seconds at most.
        On cancel: a checkpoint; Cancelled means that nothing was added.
        On kill: Killed means that nothing was added.

        Raises:
            Full: no room in time.
        """
    def retry(self, item_id: int, /) -> None:
        """
        Give a dead item all its attempts again.

        Raises:
            ValueError: it is not dead.
        """

@disjoint_base
class Lock:
    """
    A lock like threading.Lock, whose waits can be cancelled, and which is released however its holder
    ends.

    Not reentrant: use RLock for that. Any thread may release it. `name` is for reports. When its
    holder is killed inside, the lock is poisoned: acquire() raises LockPoisoned until repair() has
    restored the data that it protects; with `on_kill="release"` the lock is freed instead.

    When its holder is abandoned, and may still be inside, acquire() raises OwnerLost. A `fenced` lock
    goes to the next waiter instead, as after a kill; guard() has numbers that distinguish the stale
    holder from later ones. Only its holder, or the guard, releases a fenced lock.
    """
    def __enter__(self, /) -> bool: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __init__(
        self,
        /,
        *,
        name: str | None = None,
        on_kill: Literal["poison", "release"] = "poison",
        fenced: bool = False,
    ) -> None: ...
    def __repr__(self, /) -> str: ...
    def _at_fork_reinit(self, /) -> None:
        """
        In a forked child, as in threading.Lock: the lock is free.
        """
    def acquire(self, /, blocking: bool = True, timeout: float | None = None) -> bool:
        """
        Acquire the lock; True if it is held now. It is held until it is released, or the task ends.

        Blocks: until the lock is free, for `timeout` seconds at most; not at all with
        `blocking=False`.
        On cancel: Cancelled is raised, also if the lock is free, and it is not held.
        On timeout: returns False.
        On kill: Killed is raised, and the lock is not held.

        Raises:
            LockPoisoned: the last holder was killed inside.
            OwnerLost: the holder was abandoned and may still be inside.
        """
    def acquire_op(self, /) -> Op[bool]:
        """
        The operation acquire(), for wait_any(); yields True.

        The lock is then held as after acquire().
        """
    def guard(self, /) -> LockGuard:
        """
        A block that holds the lock, with the number of this hold: `with lock.guard() as guard:`.

        Blocks: at its beginning, until the lock is free.
        On cancel: Cancelled is raised there; the block has not begun, and the lock is not held.
        On kill: as on cancel, with Killed.

        Raises:
            LockPoisoned, OwnerLost: as acquire().
        """
    def locked(self, /) -> bool:
        """
        Does any thread hold the lock?
        """
    @property
    def name(self, /) -> str:
        """
        For reports.
        """
    def owner(self, /) -> str | None:
        """
        The name of the task, or the thread, that holds it, for reports; None if none does.
        """
    @property
    def poisoned(self, /) -> bool:
        """
        Was its last holder killed or abandoned inside?
        """
    def release(self, /) -> None:
        """
        Release the lock: from any thread, unless it is fenced. Never blocks.

        On kill: a kill that the lock deferred is raised here.

        Raises:
            RuntimeError: the lock is not held.
            Fenced: the calling code has lost this fenced lock, for it was abandoned.
        """
    @overload
    def repair(self, fn: None = None, /) -> LockGuard: ...
    @overload
    def repair(self, fn: Callable[[], object], /) -> None:
        """
        A block that acquires the lock although it is poisoned, to repair the data that it protects:
        `with lock.repair():`. Or give a function to do that, and it is called here, with the lock
        held.

        The end of the block clears the poison; if the block raises, the lock stays poisoned. Otherwise
        the block is like that of guard().

        Blocks: at its beginning, until the lock is free.
        On cancel: Cancelled is raised there; the block has not begun, and the lock is not held.
        On kill: as on cancel, with Killed.

        Raises:
            OwnerLost: the last holder was abandoned and may still be inside.
        """

@final
class LockGuard:
    """
    A block that holds a lock; made by Lock.guard() and Lock.repair(), and used in a `with`
    statement, once.

    It waits for the lock as acquire() does. Its end releases its own hold of the lock and no other, also
    when it was abandoned while another thread has the lock, or when it ends late, as a suspended
    generator that is dropped.
    """
    def __enter__(self, /) -> LockGuard: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __repr__(self, /) -> str: ...
    def check(self, /) -> None:
        """
        Fenced, if the lock was taken from this block and others may hold it. Never blocks.

        That may happen right after the check: work that must not be done twice needs the epoch.
        """
    @property
    def epoch(self, /) -> int:
        """
        The number of this hold. Later holds of the lock have greater numbers, so a service that gets
        the number with each request made under the lock, say a database, can refuse a number smaller
        than one it has seen.

        It also rises when Condition.wait() releases and reacquires the lock. An RLock that its holder
        acquires again keeps it.
        """
    def release(self, /) -> None:
        """
        Release the lock before the block ends; from any thread, never blocks. In the block of
        repair() the lock stays poisoned then.

        RuntimeError: it was released before. Fenced: the lock was taken from this block. A kill
        that the lock deferred is raised here.
        """

@final
class Masked:
    """
    A block in which kills are deferred; made by defer_kill() and Lease.commit(), and used in a `with`
    statement, once.

    It may be left by another thread, or late, as a suspended generator that is dropped: it then closes
    its own mask and no other. If it is never left, the mask is closed when this object is dropped.
    """
    def __enter__(self, /) -> None: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Op(Generic[_T_co]):
    """
    One operation for wait_any(): made by the object that it waits for, as `queue.get_op()`, or by
    readable(), writable() and after().

    It is a description: nothing is done before wait_any() does it, and it may be used again.
    """
    @staticmethod
    def after(seconds: float, /) -> Op[None]:
        """
        This many seconds have passed since this call: an operation that yields None.

        Raises:
            TypeError: not a number.
            ValueError: negative, or NaN.
        """
    @staticmethod
    def readable(file: FileDescriptorLike, /) -> Op[None]:
        """
        The file can be read without blocking: an operation that yields None. See wait_readable().

        `file`: a descriptor, or an object with fileno().

        Raises:
            TypeError: neither of these.
            ValueError: the file is closed.
        """
    @staticmethod
    def writable(file: FileDescriptorLike, /) -> Op[None]:
        """
        The file can be written without blocking: an operation that yields None. See
        wait_writable().

        `file`, and the exceptions, are as with readable().
        """

@disjoint_base
class OwnerBlock:
    """
    A block that waits for work of its object, and ends it when it is left early.
    """
    def __enter__(self, /) -> Self:
        """
        Return the object itself.
        """
    def __exit__(
        self,
        type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None:
        """
        Wait for the work, unless an exception leaves the block, and end it.
        """
    def __new__(cls, /, *_arguments: object, **_named: object) -> OwnerBlock: ...

@final
class ParentWatch:
    """
    In a worker process: cancels its work when the parent's side is cancelled, and ends the process
    when the parent dismisses it.
    """
    def __new__(
        cls, /, pipe: SupportsIndex, parent: SupportsIndex, grace: SupportsFloat | SupportsIndex
    ) -> ParentWatch:
        """
        Listen to a pipe, which this object owns from now on. A dismissed process may go on for `grace`
        seconds.
        """
    def begin(self, /, round: SupportsIndex, task: Task) -> None:
        """
        The process works on this from now on.
        """
    def deliver(self, /, defer: SupportsFloat | SupportsIndex) -> bool:
        """
        For a signal handler: raise Killed in the work, now, or when it is not deferred any more; held
        locks defer it for `defer` seconds. False: there is no work.
        """
    @property
    def dismissed(self, /) -> bool:
        """
        Has the parent dismissed this process?
        """
    def end(self, /) -> None:
        """
        The process does not work on it any more.
        """

@final
class PoolMetrics:
    """
    Counts a pool's events, and tells its observer, if there is one, on the worker's thread, where no kill
    is delivered.
    """
    def __new__(cls, /, observer: PoolObserver | None = None) -> PoolMetrics: ...
    def counts(self, /) -> dict[str, int]:
        """
        How often each event has happened.
        """
    def report(self, /, raised: Any) -> None:
        """
        Tell `sys.unraisablehook` of an exception of the pool's listener.
        """

@final
class ProcessStopPolicy:
    """
    How long a kill of code in a worker process stays on each rung of the ladder, in seconds.

    A kill takes at most the sum, and as long as an open commit block defers SIGKILL. A rung that is
    None, or 0, is left out.

    Args:
        cooperative: Seconds to end after a cancellation; 0: the next rung comes at once.
        sigterm: Seconds in which SIGTERM is sent, again and again; it raises Killed in the process,
            which then ends.
        sigkill: Seconds in which SIGKILL is sent, to the process and to all that it has started.
        defer: Seconds that desist locks, held in the process, delay the Killed of SIGTERM;
            afterwards it is raised, and they are poisoned.
        abandon: Whether the process is abandoned, while it still runs, when no rung has ended it.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(
        cls,
        /,
        *,
        cooperative: float = 5.0,
        sigterm: float | None = 2.0,
        sigkill: float | None = 5.0,
        defer: float = 1.0,
        abandon: bool = True,
    ) -> ProcessStopPolicy: ...
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __repr__(self, /) -> str: ...
    @property
    def abandon(self, /) -> bool:
        """
        Is the process abandoned when no rung has ended it?
        """
    @property
    def cooperative(self, /) -> float:
        """
        Seconds to end after a cancellation; 0: the next rung comes at once.
        """
    @property
    def defer(self, /) -> float:
        """
        Seconds that desist locks, held in the process, delay the Killed of SIGTERM.
        """
    @property
    def sigkill(self, /) -> float | None:
        """
        Seconds in which SIGKILL is sent, again and again; None: it is not.
        """
    @property
    def sigterm(self, /) -> float | None:
        """
        Seconds in which SIGTERM is sent, again and again; None: it is not.
        """

@disjoint_base
class Queue(Generic[_T]):
    """
    A queue like queue.Queue, whose waits can be cancelled.

    `maxsize`: how many items it may have; any number if that is zero or less. A subclass may
    override the hooks `_init`, `_qsize`, `_put` and `_get`, as it may with queue.Queue.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __init__(self, /, maxsize: SupportsIndex = 0) -> None: ...
    @classmethod
    def __init_subclass__(cls, /, *, native: bool = False, **kwargs: object) -> None:
        """
        `native`: its hooks do the same as the native methods.
        """
    def _configure(self, /, maxsize: SupportsIndex, *, lifo: bool = False) -> None:
        """
        Set order and size, before the queue is used.
        """
    def _get(self, /) -> _T: ...
    def _init(self, /, maxsize: int) -> None: ...
    def _put(self, /, item: _T) -> None: ...
    def _qsize(self, /) -> int: ...
    def _set_up(self, /, maxsize: int) -> None:
        """
        Configure the queue as its class is; called once, before it is used.
        """
    def empty(self, /) -> bool:
        """
        Is it empty, at this instant?
        """
    def full(self, /) -> bool:
        """
        Is it full, at this instant?
        """
    def get(self, /, block: bool = True, timeout: float | None = None) -> _T:
        """
        Get an item.

        Blocks: until there is an item, for `timeout` seconds at most; not at all with `block=False`.
        On cancel: a blocking call raises Cancelled, also if there is an item; none was taken.
        On timeout: Empty is raised.
        On kill: Killed is raised, and no item was taken.

        Raises:
            Empty: no item in time.
            ShutDown: the queue is empty and shut down.
        """
    def get_nowait(self, /) -> _T:
        """
        get(block=False). Never blocks.
        """
    def get_op(self, /) -> Op[_T]:
        """
        The operation get(), for wait_any(); yields the item. Making it never blocks.
        """
    @property
    def is_shutdown(self, /) -> bool:
        """
        Is it shut down?
        """
    def join(self, /) -> None:
        """
        Wait until task_done() was called for each item that was put.

        Blocks: until then.
        On cancel: Cancelled is raised.
        On kill: Killed is raised.
        """
    @property
    def maxsize(self, /) -> int:
        """
        The most items that it may have; zero or less means any number.
        """
    @maxsize.setter
    def maxsize(self, /, maxsize: SupportsIndex) -> None:
        """
        Waiting putters get the added places.
        """
    def put(self, /, item: _T, block: bool = True, timeout: float | None = None) -> None:
        """
        Put an item.

        Blocks: until there is a free place, for `timeout` seconds at most; not at all with
        `block=False`.
        On cancel: a blocking call raises Cancelled, also if there is a place; the item was not put.
        On timeout: Full is raised.
        On kill: Killed is raised, and the item was not put.

        Raises:
            Full: no place in time.
            ShutDown: the queue was shut down.
        """
    def put_nowait(self, /, item: _T) -> None:
        """
        put(item, block=False). Never blocks.
        """
    def put_op(self, item: _T, /) -> Op[None]:
        """
        The operation put(item), for wait_any(); yields None.

        Raises:
            TypeError: a PriorityQueue, or another queue with hooks of its own.
        """
    def qsize(self, /) -> int:
        """
        How many items are in it, at this instant.
        """
    def shutdown(self, /, immediate: bool = False) -> None:
        """
        Shut the queue down: put() raises ShutDown, and so does get() once the queue is empty, also in
        threads that wait. `immediate`: the queue is emptied at once, and its items count as done.
        """
    def task_done(self, /) -> None:
        """
        Count one item as done.

        Raises:
            ValueError: all items that were put are counted as done already.
        """
    @property
    def unfinished_tasks(self, /) -> int:
        """
        How many items were put and not yet counted as done.
        """

@final
class QueuePort:
    """
    The operations of a pool on a queue.
    """
    def abandon(self, /, reason: str | None = None) -> None:
        """
        Fail the futures: the pool that owns the queue has stopped.
        """
    def cancel(self, /, item_id: int, reason: str | None = None) -> bool | None:
        """
        Never lease the item again. True: it is dead now. False: it will be, when its worker
        requeues it. None: it had ended.
        """
    def drain(self, timeout: float | None, failed: Callable[[BaseException], object], /) -> bool:
        """
        Wait until nothing is ready, leased or delayed (True), or the seconds have passed. An exception of
        the queue is passed to `failed(exception)`, and False returned.

        Blocks: a checkpoint.
        """
    def failures_of(self, /, item_id: int) -> list[Any] | None:
        """
        The failures of a dead item, without decoding any item. None: it is not dead.
        """
    @property
    def name(self, /) -> str:
        """
        The queue's name in events: the path of its file, or "memory".
        """
    @property
    def retry(self, /) -> RetryPolicy:
        """
        The queue's policy.
        """
    def submit(
        self,
        item: object,
        promise: object,
        /,
        *,
        key: str | None = None,
        priority: SupportsIndex = 0,
        delay: float | None = None,
        expires: float | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """
        Add an item, as put() does; `promise` is settled when the item has ended.
        """

@disjoint_base
class RLock(Lock):
    """
    A reentrant lock like threading.RLock, whose waits can be cancelled, and which is released however
    its holder ends.

    Its holder is a task, or a thread outside any; it may acquire it again, and releases it as
    often. `name`, `on_kill` and `fenced` are as with Lock.
    """
    def __init__(
        self,
        /,
        *,
        name: str | None = None,
        on_kill: Literal["poison", "release"] = "poison",
        fenced: bool = False,
    ) -> None: ...
    def _acquire_restore(self, /, released: Released) -> None:
        """
        Hold it as before _release_save().
        """
    def _is_owned(self, /) -> bool:
        """
        Does the calling code hold it?
        """
    def _recursion_count(self, /) -> int:
        """
        How often does the calling code hold it?
        """
    def _release_save(self, /) -> Released:
        """
        Release it however often it is held; for _acquire_restore().
        """

@final
class Registration:
    """
    A callback registered with CancelToken.on_cancel(). As a context manager it closes itself.
    """
    def __enter__(self, /) -> Registration: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...
    def close(self, /, timeout: float | None = None) -> bool:
        """
        Unregister; if the callback is running on another thread, wait for its end, at most for
        the given seconds. True: it is not running, and never will; False: it still runs.

        Blocks: until the callback has ended; not at all from inside any cancel callback. What a signal
        handler raises ends the wait.
        On cancel: the wait is clean-up: it goes on until the canceller's grace is spent, and then raises
        Cancelled. A kill is deferred as long. No checkpoint if there is nothing to wait for.
        On timeout: returns False; the callback still runs.
        """
    def unregister(self, /) -> bool:
        """
        Never blocks. True: the callback has not started and never will.
        """

@final
class Released:
    """
    The depth of a hold, between RLock._release_save() and _acquire_restore().
    """

@final
class RetryPolicy:
    """
    How often, and how soon, failed work is tried again.

    After `max_attempts` leases an item is dead. The pause after a failure is `backoff` seconds at
    first and doubles each time up to `max_backoff`, randomised by ±`jitter` (a part of it). Work
    whose worker was killed is ready again at once.

    `retry_for` names the types of exceptions, one or a tuple, after which work is tried again: after
    another exception of the handler the item is dead at once, with the exception kept. After one of
    `discard_for` it is dead in any case. An exception of the item's decoding counts as one of the handler.
    Exceptions that do not come from the handler are not judged: work whose worker process died is tried
    again, unless `discard_for` names WorkerDied.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(
        cls,
        /,
        *,
        max_attempts: int = 5,
        backoff: float = 0.5,
        max_backoff: float = 60.0,
        jitter: float = 0.2,
        retry_for: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        discard_for: type[BaseException] | tuple[type[BaseException], ...] | None = None,
    ) -> RetryPolicy: ...
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __repr__(self, /) -> str: ...
    @property
    def backoff(self, /) -> float:
        """
        Seconds of the pause after the first failure.
        """
    @property
    def discard_for(self, /) -> tuple[type[BaseException], ...] | None:
        """
        After exceptions of these types the item is dead at once; None means no types.
        """
    @property
    def jitter(self, /) -> float:
        """
        The part of a pause by which it is randomised, up or down.
        """
    @property
    def max_attempts(self, /) -> int:
        """
        After this many leases an item is dead.
        """
    @property
    def max_backoff(self, /) -> float:
        """
        Seconds of the longest pause.
        """
    @property
    def retry_for(self, /) -> tuple[type[BaseException], ...] | None:
        """
        After exceptions of these types, work is tried again; None means all types.
        """

@final
class RungReport:
    """
    One rung that a kill has tried.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __repr__(self, /) -> str: ...
    @property
    def attempts(self, /) -> int:
        """
        How often the rung was tried: a cancellation, an exception to be raised, a signal.
        """
    @property
    def limit(self, /) -> float:
        """
        Seconds that the policy lets it stay there, not counting those in which it was deferred.
        """
    @property
    def rung(self, /) -> KillOutcome:
        """
        Which rung it was, by the outcome that it leads to.
        """
    @property
    def seconds(self, /) -> float:
        """
        Seconds that the kill stayed on the rung.
        """

@final
class RunningHandler:
    """
    The handler's task, as the engine's side sees it: it can cancel it when the lease is lost.
    """
    def cancel(self, /, reason: str | None = None) -> bool:
        """
        Cancel the handler's token. False: it was cancelled before.
        """

@disjoint_base
class Semaphore:
    """
    A counter like threading.Semaphore, whose waits can be cancelled.

    A permit that a `with` block acquired is released however the block ends, also if the thread is
    killed there. One that acquire() took has no owner: any thread may release it.
    """
    def __enter__(self, /) -> bool: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __init__(self, /, value: SupportsIndex = 1) -> None: ...
    def __repr__(self, /) -> str: ...
    @property
    def _value(self, /) -> int:
        """
        The number of free permits; by the name that threading has for it.
        """
    def acquire(self, /, blocking: bool = True, timeout: float | None = None) -> bool:
        """
        Acquire a permit; True if one was taken.

        Blocks: until a permit is free, for `timeout` seconds at most; not at all with
        `blocking=False`.
        On cancel: a blocking call raises Cancelled, also if a permit is free; none was taken.
        On timeout: returns False.
        On kill: Killed is raised, and no permit was taken.

        Raises:
            ValueError: a timeout for a call that does not block.
        """
    def acquire_op(self, /) -> Op[bool]:
        """
        The operation acquire(), for wait_any(); yields True.
        """
    def release(self, /, n: SupportsIndex = 1) -> None:
        """
        Release `n` permits; waiters get them first. Never blocks.

        Raises:
            ValueError: less than one, or more than a BoundedSemaphore may have; none is released.
        """

@disjoint_base
class SimpleQueue(Generic[_T]):
    """
    An unbounded queue like queue.SimpleQueue, whose waits can be cancelled.
    """
    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __init__(self, /) -> None: ...
    def empty(self, /) -> bool:
        """
        Is it empty, at this instant?
        """
    def get(self, /, block: bool = True, timeout: float | None = None) -> _T:
        """
        Get an item.

        Blocks: until there is an item, for `timeout` seconds at most; not at all with `block=False`.
        On cancel: a blocking call raises Cancelled, also if there is an item; none was taken.
        On timeout: Empty is raised.
        On kill: Killed is raised, and no item was taken.

        Raises:
            Empty: no item in time.
        """
    def get_nowait(self, /) -> _T:
        """
        get(block=False). Never blocks.
        """
    def get_op(self, /) -> Op[_T]:
        """
        The operation get(), for wait_any(); yields the item. Making it never blocks.
        """
    def put(self, /, item: _T, block: bool = True, timeout: float | None = None) -> None:
        """
        Put an item. Never blocks, and is no checkpoint; the other arguments are ignored, and
        are there so that the signature is that of Queue.put().
        """
    def put_nowait(self, /, item: _T) -> None:
        """
        put(item). Never blocks.
        """
    def qsize(self, /) -> int:
        """
        How many items are in it, at this instant.
        """

@final
class Simulation:
    """
    A simulated clock, and the threads that run under it.
    """
    def __new__(cls, /, autojump: bool, seed: SupportsIndex | None = None) -> Simulation: ...
    @staticmethod
    def is_current() -> bool:
        """
        Does the calling thread run under one?
        """
    def jump(self, /, seconds: float) -> None:
        """
        Move the clock forward by this many seconds.
        """
    def run(self, /, fn: Callable[[], _T]) -> _T:
        """
        Run `fn()` under the clock, and wait for all threads that it has started.
        """
    def time(self, /) -> float:
        """
        The clock's time.
        """

@final
class StopPolicy:
    """
    How long a kill of code on a thread stays on each rung of the ladder, in seconds.

    A kill takes at most the sum, and as long as open clean-up and commit blocks defer it. A rung
    that is None, or 0, is left out.

    Args:
        cooperative: Seconds to end after a cancellation; 0: the next rung comes at once.
        at_wait: Seconds in which Killed is raised at desist waits, through shields.
        async_exc: Seconds in which Killed is raised anywhere in the code, again and again.
        trace: Seconds in which Killed is raised at every instruction (before CPython 3.12: every line), so
            that code that swallows it cannot go on. Other threads that run the traced code are slower.
        defer: Seconds that held desist locks delay the kill; afterwards it is delivered, and they
            are poisoned. Seconds, too, that code of threading, queue, logging, concurrent.futures and
            the import system delays it, and of modules named to protect_modules().
        abandon: Whether the thread is abandoned, while it still runs, when no rung has ended it.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(
        cls,
        /,
        *,
        cooperative: float = 5.0,
        at_wait: float | None = 1.0,
        async_exc: float | None = 1.0,
        trace: float | None = 1.0,
        defer: float = 1.0,
        abandon: bool = True,
    ) -> StopPolicy: ...
    def __reduce__(self, /) -> tuple[Any, Any, Any]: ...
    def __repr__(self, /) -> str: ...
    @property
    def abandon(self, /) -> bool:
        """
        Is the thread abandoned when no rung has ended it?
        """
    @property
    def async_exc(self, /) -> float | None:
        """
        Seconds in which Killed is raised anywhere in the code; None: it is not.
        """
    @property
    def at_wait(self, /) -> float | None:
        """
        Seconds in which Killed is raised at desist waits; None: it is not.
        """
    @property
    def cooperative(self, /) -> float:
        """
        Seconds to end after a cancellation; 0: the next rung comes at once.
        """
    @property
    def defer(self, /) -> float:
        """
        Seconds that held desist locks, and modules with locks of their own, delay the kill.
        """
    @property
    def trace(self, /) -> float | None:
        """
        Seconds in which Killed is raised at every line; None: it is not.
        """

@final
class Task:
    """
    One run of a callable that can be cancelled and killed.
    """
    def __new__(cls, /, name: str, parent: CancelToken | None = None) -> Task:
        """
        A task, cancelled with `parent` if there is one.
        """
    def begin_kill(
        self,
        /,
        reason: str | None = None,
        *,
        policy: StopPolicy | None = None,
        abandoned: Callable[[], object] | None = None,
        kind: CauseKind | None = None,
    ) -> BegunKill:
        """
        Begin to stop it, rung by rung; finish() of the returned object goes on with it.

        `abandoned()` is called if it is abandoned, before its waiters are woken. `kind` is of the kill's
        cause; EXPLICIT if it is not given.
        """
    def cancel(self, /, reason: str | None = None, *, grace: float | None = None) -> bool:
        """
        Ask it to stop. True: this call was the first.
        """
    def expect(self, /) -> None:
        """
        It waits for a thread that exists already: it can be killed from now on.
        """
    @property
    def id(self, /) -> int:
        """
        Its number; never used again.
        """
    def inject(self, /, exception: BaseException) -> bool:
        """
        Raise an exception in it, once, and go on. False: it is not there, yet or any more.
        """
    def is_current(self, /) -> bool:
        """
        Is it the calling code's own?
        """
    def is_lost(self, /) -> bool:
        """
        Is this a forked child, and the task's thread in the parent process?
        """
    def is_over(self, /) -> bool:
        """
        Has it ended, or was it abandoned, and has everything about it been settled?
        """
    def kill(
        self,
        /,
        reason: str | None = None,
        *,
        policy: StopPolicy | None = None,
        abandoned: Callable[[], object] | None = None,
    ) -> KillReport:
        """
        Stop it, rung by rung; blocks until it has ended or was abandoned. See begin_kill().
        """
    @property
    def killed_at(self, /) -> KillOutcome | None:
        """
        The rung of the ladder at which it was killed; None: it was not, or not yet.
        """
    def launch(self, /) -> bool:
        """
        Its thread is being started: it can be killed from now on. False: it was started before.
        """
    @property
    def name(self, /) -> str:
        """
        Its name.
        """
    def over_op(self, value: _T, /) -> Op[_T]:
        """
        It is over or was abandoned: an operation for wait_any() that yields `value`.
        """
    def recall(self, /) -> None:
        """
        Its thread could not be started.
        """
    def run(
        self,
        /,
        body: Callable[[], object],
        settle: Callable[[Any, BaseException | None], object] | None = None,
    ) -> None:
        """
        Run it on the calling thread. Cancelled and Killed end here; other exceptions pass.

        `settle(result, exception)`, if given, gets any end instead, before the task is over and where
        no kill is delivered; it is not called if the task was abandoned.
        """
    def stack(self, /) -> str | None:
        """
        Where its body is now, as the lines of a traceback; None unless it runs.
        """
    @property
    def state(self, /) -> TaskState:
        """
        Where it is in its life.
        """
    @property
    def token(self, /) -> CancelToken:
        """
        The task's token.
        """
    def wait(self, /, timeout: float | None = None) -> bool:
        """
        Wait until it is over or was abandoned (True), or the seconds have passed (False).

        Blocks: until then. A checkpoint.
        """

@final
class WorkerSlot:
    """
    A worker's place in its pool, where its current work can be cancelled and killed.
    """
    def __new__(
        cls,
        /,
        name: str,
        queue: object,
        pool: CancelToken,
        tally: PoolMetrics,
        time_limit: float | None,
        policy: StopPolicy | ProcessStopPolicy,
        overdue: Callable[[WorkerSlot, BegunKill], object],
    ) -> WorkerSlot: ...
    @property
    def abandoned(self, /) -> bool:
        """
        Was it abandoned?
        """
    def begin_kill(
        self,
        /,
        reason: str | None,
        policy: StopPolicy | ProcessStopPolicy,
        item_id: int | str | None = None,
        *,
        kind: CauseKind | None = None,
    ) -> BegunKill:
        """
        Begin to kill the handler's current call, if there is one, and if it is for `item_id`, if that is
        given; its item is leased again, by the same worker or another. finish() of the returned
        object goes on with it. `kind` is of the kill's cause; EXPLICIT if it is not given.
        """
    @property
    def busy(self, /) -> bool:
        """
        Is the handler being called? Not for an abandoned worker.
        """
    def cancel(self, /, reason: str | None = None, item_id: int | str | None = None) -> bool:
        """
        Ask the handler's current call to stop, if it is for `item_id`, if that is given.
        """
    def is_over(self, /) -> bool:
        """
        Has its thread left the loop, or was it abandoned?
        """
    @property
    def item_id(self, /) -> int | str | None:
        """
        The id of the item that the handler is called for now. None for an abandoned worker.
        """
    def launch(self, /) -> None:
        """
        Its thread is being started.
        """
    @property
    def name(self, /) -> str:
        """
        The worker's name.
        """
    def pause(self, /) -> None:
        """
        Let it lease nothing more, until it is resumed; it ends the item that it works on. Never blocks.
        """
    def resume(self, /) -> None:
        """
        Let it lease items again.
        """
    def retire(self, /) -> None:
        """
        Let it leave its loop, when it has ended the item that it works on. Never blocks.
        """
    @property
    def retired(self, /) -> bool:
        """
        Was it retired?
        """
    def unlaunch(self, /) -> None:
        """
        No thread could be started for it: it is over.
        """
    def until_not_leasing(self, /) -> None:
        """
        Wait until it is not leasing: after pause() or retire() it leases nothing more then.

        Blocks: at most until the queue's file or server has answered. A checkpoint.
        """
    def wait(self, /, timeout: float | None = None) -> bool:
        """
        Wait until the worker has left its loop or was abandoned.

        Blocks: until then. A checkpoint.
        """
    def work(
        self,
        /,
        handler: Callable[[Lease[Any]], object],
        failed: Callable[[BaseException], object],
        process: ChildProcess | None = None,
    ) -> None:
        """
        Work, until it is retired, or the pool's token is cancelled. A kill is delivered in `handler(lease)` only, or in
        the process that this waits for. An exception of the queue, other than Cancelled, ends the
        loop, and is passed to `failed(exception)`.
        """

@final
class WorkerThread:
    """
    A thread that runs tasks, or finishes a kill. It is a task itself, so that a kill between two bodies
    is not delivered in its own code.
    """
    def __new__(cls, /, name: str) -> WorkerThread:
        """
        For a thread that the calling one is about to start.
        """
    def abandoned(self, /) -> None:
        """
        Its current task was abandoned, and the thread with it.
        """
    def wait(self, /) -> None:
        """
        Wait until it has ended its work, or was abandoned.

        Blocks: until then. A checkpoint.
        """
    def withdraw(self, /) -> bool:
        """
        The thread could not be started. False: it was started all the same, and works.
        """
    def work(self, /, work: Callable[..., object], *arguments: object) -> None:
        """
        On the thread: call `work(*arguments)`.
        """

@final
class _Injector:
    """
    Kills or cancels a task before a bytecode of choice.

    A trace function for sys.settrace, and a callback for sys.monitoring's INSTRUCTION events. It is
    native because the kill would be delivered in one written in Python. Before bytecode `at` of its
    victims (the first is 1; 0 is none) it does what a kill does that reaches the rung ASYNC_EXC at this
    moment: CPython delivers at its next check.

    Its victims are the bodies of all tasks; or of `task` alone; or, with `started`, of all tasks
    that are made after `task`. `cancels`: it only cancels. `defer`: a held lock defers
    the kill, as at the beginning of the rung; otherwise it is delivered inside. `block`: kill not the task
    but this one of its thread's open blocks that have `kill_after`, the outermost is 0; bytecodes
    count only while it is open. `signal`: no kill at all, but this signal arrives, and CPython calls its
    handler at its next check; on the main thread only. `trace`: the kill has reached the rung TRACE.
    """
    def __call__(self, /, *arguments: object) -> object:
        """
        `(frame, event, arg)` from tracing, `(code, offset)` from monitoring.
        """
    def __new__(
        cls,
        /,
        at: int,
        task: Task | None = None,
        *,
        started: bool = False,
        cancels: bool = False,
        defer: bool = False,
        block: int | None = None,
        signal: int | None = None,
        trace: bool = False,
    ) -> _Injector: ...
    @property
    def outcome(self, /) -> str | None:
        """
        "stopped": the exception came out of the victim. "swallowed": it was raised, and did not come
        out. "finished": it was not raised before the victim's end; a cancellation, or the kill of a
        block, may have been raised and swallowed all the same.
        """
    @property
    def passed(self, /) -> int:
        """
        How many bytecodes of its victims it has seen; it acts before at most one of them.
        """
    @property
    def place(self, /) -> tuple[Any, Any] | None:
        """
        Where it acted: code object and offset.
        """
    @property
    def stack(self, /) -> str | None:
        """
        Where the exception was raised, as text, if a kill ended the victim.
        """

def call_for_effect(fn: Callable[..., _T], /, *arguments: object, **named: object) -> _T:
    """
    Call a function whose result is dropped or acknowledged, and return the result.

    Raises:
        TypeError: it has returned a coroutine, a generator or another awaitable, whose code has not run to
            its end.
    """

def call_left_alone(fn: Callable[[], _T], /) -> _T:
    """
    Call a function whose blocking calls go on, also in a cancelled scope: they are ended in another way.
    """

def call_masked(fn: Callable[..., _T], *arguments: object) -> _T:
    """
    Call a short function that a kill must not interrupt half-way, and return its result.

    On kill: deferred. The result is returned all the same; the kill is raised at the next checkpoint,
    or delivered again.
    """

def call_under(
    function: Callable[..., _T],
    arguments: tuple[object, ...],
    named: dict[str, object],
    token: CancelToken,
) -> _T:
    """
    Call a function as a block that is cancelled with this token. TaskCancelled is raised in place of a Cancelled
    that is the token's.
    """

def call_within(
    function: Callable[..., _T],
    arguments: tuple[object, ...],
    named: dict[str, object],
    timeout: float | None,
    *,
    grace: float | None = None,
    kill_after: float | None = None,
) -> _T:
    """
    Call a function as a block of its own, which DeadlineExceeded leaves after the given seconds.
    """

def cancel_because(token: CancelToken, cause: CancelCause, /) -> bool:
    """
    Cancel a token by this cause, which need not be an explicit one. True: this call was the first.
    """

def cancel_scope(
    timeout: float | None = None,
    *,
    deadline: float | None = None,
    grace: float | None = None,
    kill_after: float | None = None,
    foreign: bool = True,
    token: CancelToken | None = None,
) -> CancelScope:
    """
    A block that can be cancelled, and whose deadline, if it has one, is an error.

    If the deadline passes, DeadlineExceeded (a TimeoutError) leaves the block. If the scope's
    cancel() is called, the block is left quietly, and `cancelled_caught` is true.

    `timeout`: seconds from when the block is entered; None: no deadline. `deadline`: the time
    itself instead, on the clock of current_time(). `grace`: seconds that clean-up blocks inside may
    take after the deadline.

    `token`: the block is cancelled with this token as well, and then has its cause and its grace: a deadline
    of the token leaves the block as DeadlineExceeded, as the block's own does, and any other cancellation
    leaves it quietly.

    Blocking calls of foreign code are left early, too, where foreign_status() says so: time.sleep(), the
    recv() of a library's socket, the wait for a child process, threading.Event.wait(). Cancelled is raised at
    the call, which has then had no effect: once; then clean-up code may block for the canceller's grace
    (`grace`), and is left early again. `foreign`: False if such calls are to go on.

    `kill_after`: if the block still runs this many seconds after its deadline, or its cancel(), Killed
    is raised in it by force, again and again until it is left, and never after it: at desist waits,
    through shields, and anywhere in its code. The exception that leaves the block is the same as
    without force, with Killed as the `__cause__` of DeadlineExceeded. Clean-up and commit blocks
    inside defer it, and so do, for a second, desist locks that were taken inside; afterwards they
    are poisoned. At its end a killed block's locks and leases are released.

    On the main thread (Linux) a blocking system call is interrupted as well, by a real-time signal;
    on other threads Killed is raised when the call returns. The block has to be one of a `with`
    statement itself: force waits while the statement's function is suspended, as a generator is, or
    has returned, as ExitStack.enter_context() has. In simulated time kill_after is not in force.

    Blocks: never; every desist wait inside ends in time.
    On cancel: a cancellation from outside goes through the block, and ends at its own scope.
    On timeout: DeadlineExceeded leaves the block.

    Raises:
        TypeError: a time that is not a number, or both a timeout and a deadline.
        ValueError: a time that is NaN, or a negative number of seconds.
    """

def check_runnable(function: object, what: str, advice: str | None = None) -> None:
    """
    Raise TypeError unless a call of the function runs its code: it is callable, and neither a coroutine
    function nor a generator function, whose call returns before its code runs. `what` is its name in the
    message. Methods, partials and callable objects are looked through.
    """

def checked_time_limit(time_limit: float | None = None) -> float | None:
    """
    The seconds of an argument `time_limit`, checked. For code in Python.
    """

def checkpoint() -> None:
    """
    Raise Cancelled or Killed if the calling code is to stop.

    Never blocks. Outside any scope and task it does nothing.
    """

def cleanup(seconds: float | None = None, /) -> CancelScope:
    """
    A block for cleaning up: a cancellation outside is hidden from it until the grace of that
    cancellation is spent (5 seconds unless given); then it is left quietly. All such blocks under one
    cancellation share that time. `seconds`: at most this long in any case.

    On kill: deferred for as long.
    """

def contents_of(lease: Lease[Any]) -> tuple[tuple[Any, Any], tuple[Any, Any] | None]:
    """
    The item and the progress of a lease, for a worker process, which decodes them: each as its decoder and
    its bytes, or as None and the object.
    """

def current_effective_deadline() -> float:
    """
    The tightest deadline that the calling code is under; infinity if there is none.
    """

def current_time() -> float:
    """
    The clock of all deadlines, in seconds: on Linux the same as time.monotonic().
    """

def current_token() -> CancelToken:
    """
    The token that the calling code is under: of the innermost scope, else of the task.

    Outside both, a token that is never cancelled.
    """

def defer_kill(seconds: float, /) -> Masked:
    """
    A block in which kills are deferred, for at most the given seconds from its beginning: for a few
    steps that must all be done, or none.

    On kill: one that was requested before is raised at the beginning; one that comes inside is raised
    at the end. Threads that are started inside can be killed.
    On cancel: nothing changes: the block's own ends do not raise Cancelled, a wait inside does.

    The bound is required, for until then even the strongest rung of a kill() waits; write out math.inf
    only where the block surely comes to an end. Outside any task it does nothing. Never blocks.

    To undo things while a kill unwinds the code, use cleanup().
    """

def fail_after(
    timeout: float | None = None,
    *,
    deadline: float | None = None,
    grace: float | None = None,
    kill_after: float | None = None,
) -> FailScope:
    """
    A block that DeadlineExceeded (a TimeoutError) leaves when its deadline has passed.

    `timeout`: seconds from when the block is entered; None: no deadline. `deadline`, `grace`,
    `kill_after` and the errors are those of cancel_scope().

    Blocks: never; every desist wait inside ends in time.
    On cancel: a cancellation from outside goes through the block, and ends at its own scope.
    On timeout: DeadlineExceeded leaves the block.
    """

def foreign_state() -> tuple[str | None, int, list[str]]:
    """
    Why blocking calls of foreign code are not ended, or None; how many were ended; and the modules whose calls were
    left alone.
    """

def fork_timeouts() -> int:
    """
    Number of forks that timed out waiting for a thread to leave the core.
    """

def knows_homes() -> bool:
    """
    True if blocks can be found on the stack: for tests.
    """

def leak_counts() -> tuple[int, int, int, int]:
    """
    Counts of objects that code may leave behind by mistake: tasks that have not ended; armed deadlines,
    those of blocks with `kill_after` included; locks and permits that the calling thread holds; scopes
    that it is in.
    """

def lease_from(source: object, timeout: float | None = None) -> Lease[Any] | None:
    """
    Lease the next item of an `EngineSource`, for a caller that settles the lease itself; see
    `EngineQueue.lease()`.
    """

def leave_calls_alone() -> None:
    """
    The calls of foreign code in the innermost scope, and in those that are opened inside it, go on when it is
    cancelled.
    """

def move_on_after(
    timeout: float | None = None,
    *,
    deadline: float | None = None,
    grace: float | None = None,
    kill_after: float | None = None,
) -> CancelScope:
    """
    A block that is left quietly when its deadline has passed, or its cancel() is called.

    `cancelled_caught` says afterwards whether it was. `timeout`: seconds from when the block is
    entered; None: no deadline. `deadline`, `grace`, `kill_after` and the errors are those of
    cancel_scope().

    Blocks: never; every desist wait inside ends in time.
    On cancel: a cancellation from outside goes through the block, and ends at its own scope.
    On timeout: the block is left quietly.
    """

def notify_closing(file: FileDescriptorLike, /) -> None:
    """
    Wake the threads that wait for the file, which is about to be closed: they get OSError (EBADF).

    The system does not wake the waiting threads, and reuses the number for the next file. desist's own
    sockets and processes call this themselves.
    """

def ports() -> dict[str, list[str]]:
    """
    The protocols of `desist._ports` that the extension calls, with the members it calls.
    """

def protect_modules(*names: str) -> None:
    """
    Defer kills while their victim runs code of these modules, as for threading, queue or logging.

    For modules that hold locks which an exception in the middle of their code would leave held. A
    package stands for all of its modules. A kill waits until the victim has left them, for at most the
    policy's `defer` seconds (one second for `kill_after`); the modules need not be imported yet.

    Never blocks; cannot be undone.

    Raises:
        TypeError: a name that is no string.
        ValueError: a name that is empty, or relative.
    """

def queue_port(queue: LeaseQueue[Any] | FileQueue[Any]) -> QueuePort:
    """
    The operations of a pool on one of the core's queues.
    """

def restore_cancelled(cause: CancelCause, /) -> Cancelled:
    """
    For pickles: a Cancelled with this cause.
    """

def restore_cause(
    kind: CauseKind,
    reason: str | None,
    at: SupportsIndex,
    grace: SupportsIndex | None,
    by_thread: str | None,
    /,
) -> CancelCause:
    """
    For pickles: the cause with these fields; the times in nanoseconds.
    """

def restore_killed(cause: CancelCause, /) -> Killed:
    """
    For pickles: a Killed with this cause.
    """

def restore_report(
    outcome: KillOutcome | None,
    elapsed: SupportsIndex,
    rungs: SupportsGetItem[int, RungReport],
    effects: tuple[
        SupportsGetItem[int, str],
        SupportsGetItem[int, str],
        SupportsGetItem[int, str],
        SupportsGetItem[int, int | str],
        SupportsGetItem[int, int | str],
    ],
    places: tuple[str | None, str | None, str | None],
    ended_calls: SupportsGetItem[int, str],
    /,
) -> KillReport:
    """
    For pickles: the report with these fields; `elapsed` in nanoseconds.
    """

def restore_rung(
    rung: KillOutcome, elapsed: SupportsIndex, limit: SupportsIndex, attempts: SupportsIndex, /
) -> RungReport:
    """
    For pickles: the record of a rung with these fields; the times in nanoseconds.
    """

def retry_pause(policy: RetryPolicy, attempt: int, random: float) -> float:
    """
    Seconds of a policy's pause after that attempt; `random` is between 0 and 1. For the queues of
    engines, which schedule retries in Python.
    """

def set_foreign(on: bool) -> bool:
    """
    Switch the ending of foreign calls on or off, for all scopes of the process; what it was before.

    It is on at the start. Off: a blocking call of foreign code in a cancelled scope goes on, as
    without desist. Never blocks.
    """

def shield(seconds: float, /) -> CancelScope:
    """
    A block that sees no cancellation from outside, for at most the given seconds; then it is left
    quietly. The bound is required: write out math.inf if you mean it.

    Blocks: never.
    On cancel: deferred: it is seen by the first checkpoint after the block.
    On kill: Killed is raised inside; a shield does not defer kills.
    """

def sleep(seconds: float, /) -> None:
    """
    Sleep for the given number of seconds; like time.sleep, but it can be cancelled.

    Blocks: for that long. Signal handlers run at once, as in time.sleep.
    On cancel: Cancelled is raised, also on entry.
    On kill: Killed is raised.

    Raises:
        TypeError: not a number.
        ValueError: negative, or NaN.
    """

def sleep_forever() -> None:
    """
    Sleep until the calling code is to stop.

    Blocks: until then, and never returns.
    On cancel: Cancelled is raised, also on entry.
    On kill: Killed is raised.
    """

def sleep_until(deadline: float, /) -> None:
    """
    Sleep until `current_time()` has reached the given value, in seconds.

    Blocks: until then.
    On cancel: Cancelled is raised, also on entry.
    On kill: Killed is raised.

    Raises:
        TypeError: not a number.
        ValueError: NaN.
    """

@overload
def wait_any(
    first: Op[_T], /, *more: Op[_T], timeout: float | None = None
) -> tuple[int, _T] | None: ...
@overload
def wait_any(
    first: _Ending, /, *more: _Ending, timeout: float | None = None
) -> tuple[int, _Ending] | None: ...
@overload
def wait_any(
    first: CancelToken, /, *more: CancelToken, timeout: float | None = None
) -> tuple[int, CancelCause] | None: ...
@overload
def wait_any(
    first: Event, /, *more: Event, timeout: float | None = None
) -> tuple[int, bool] | None: ...
@overload
def wait_any(
    first: _Awaited, /, *more: _Awaited, timeout: float | None = None
) -> tuple[int, Any] | None:
    """
    Wait for several things at once, and do the first that is possible, and none of the others.

    Returns a pair: the position of the argument, and its result. Or None, if `timeout` seconds have
    passed first. If several are possible at once, the first of them in the order given is done.

    ==========================  =================================  =============================
    Argument                    Done when                          Result
    ==========================  =================================  =============================
    `queue.get_op()`            an item could be taken             the item
    `queue.put_op(item)`        the item was put                   None
    `lock.acquire_op()`         the lock is held by the caller     True
    `semaphore.acquire_op()`    a permit was taken                 True
    `Op.readable(file)`         the file can be read               None
    `Op.writable(file)`         the file can be written            None
    `Op.after(seconds)`         the time is over                   None
    an Event                    it is set                          True
    a CancelToken               it is cancelled                    its CancelCause
    a Thread                    it has ended, or was abandoned     that thread
    a Task of a TaskGroup       it has ended, or was abandoned     that task
    a Future                    it is done                         that future
    ==========================  =================================  =============================

    A future is one of desist's or of concurrent.futures; its result() then returns, or raises, at
    once. A queue or a lock has more than one operation, so its method says which is meant.

    Blocks: until one of them is possible, or the timeout is over.

    On cancel: Cancelled is raised, also on entry, and nothing was done.

    On timeout: None is returned, and nothing was done.

    On kill: Killed is raised, and nothing was done. A kill that comes when one of them was just
    done is raised at the next checkpoint.

    Raises:
        TypeError: no argument, or one that is none of the above; a list has to be unpacked.
        LockPoisoned, OwnerLost: as acquire() raises them.
        ShutDown: as get() and put() raise it.
        OSError: a bad descriptor.
    """

def wait_readable(file: FileDescriptorLike, /, timeout: float | None = None) -> bool:
    """
    Wait until the file can be read without blocking (True), or the seconds have passed (False).

    `file`: a descriptor, or an object with fileno(). A new connection, the end of the stream and an
    error count as readable.

    Blocks: until then.
    On cancel: Cancelled is raised, also if the file is ready.
    On timeout: returns False.
    On kill: Killed is raised.

    Raises:
        OSError: the descriptor is bad, or notify_closing() was called for it.
    """

def wait_writable(file: FileDescriptorLike, /, timeout: float | None = None) -> bool:
    """
    Wait until the file can be written without blocking (True), or the seconds have passed (False).

    `file`: as with wait_readable(). An error counts as writable.

    Blocks: until then.
    On cancel: Cancelled is raised, also if the file is ready.
    On timeout: returns False.
    On kill: Killed is raised.

    Raises:
        OSError: the descriptor is bad, or notify_closing() was called for it.
    """
