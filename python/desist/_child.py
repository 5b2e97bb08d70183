"""ChildHandler: calls the handler of a pool's worker in a process of its own.

The worker's thread stays in this process, and only waits. It is never killed itself: a kill signals
the process. Whatever ends the process, its thread notices, reaps it and its process group, and
starts another before the next item.

Only the worker's thread uses a `_Child`. Other threads reach the process through the native
`ChildProcess`, which knows under a lock whether the process works on the task that they kill, so
that no signal reaches the next item, or another process with the same pid.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from desist import _child_loop
from desist._channel import CODE, Channel, Verb, pack_exception, pickled, unpack_exception
from desist._core import (
    CancelToken,
    ChildProcess,
    Latch,
    Op,
    checkpoint,
    contents_of,
    defer_kill,
    shield,
    wait_any,
)
from desist._exceptions import WorkerDied
from desist._exit_watch import ExitWatch
from desist._future import BRIEFLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from desist._core import Lease, Masked, ProcessStopPolicy, WorkerSlot

T = TypeVar("T")
R = TypeVar("R")

_GRACE = 2.0
"""Seconds for a dismissed process to end by itself, if the policy has no sigterm."""
_LAST_WAIT = 1.0
"""Seconds within which a process ends that got SIGKILL, or has closed its socket."""
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


def pickled_item(item: object) -> bytes:
    """Pickle an item for a worker process, or raise TypeError."""
    return pickled(item, "the item", "put something that can be pickled, such as a path or an id")


class ChildHandler(Generic[T, R]):
    """Calls a handler in a process, which is started at once.

    An instance is for one seat of a pool, and for its thread.

    Raises:
        TypeError: the handler cannot be pickled.
    """

    def __init__(
        self,
        handler: Callable[[Lease[T]], R],
        policy: ProcessStopPolicy,
        pool: CancelToken,
        seat: WorkerSlot,
        could_not_start: Callable[[str], object],
    ) -> None:
        self.gone = Latch()
        self.seat = seat
        self._process = ChildProcess()
        self._handler = handler
        self._policy = policy
        self._pool = pool
        self._could_not_start = could_not_start
        self._owner = os.getpid()
        self._child: _Child | None = self._start()

    def _start(self) -> _Child:
        return _Child(self._handler, self._policy, self._process)

    def work(self, failed: Callable[[BaseException], object]) -> None:
        """Run the seat's loop, on its thread. At its end there is no process."""
        try:
            self.seat.work(self, failed, self._process)
        finally:
            try:
                if self._child is not None:
                    self._child.retire(_grace(self._policy))
            finally:
                self.gone.set()

    def dismiss(self) -> None:
        """Tell the process to end by itself, within the policy's `sigterm`. Never blocks."""
        if os.getpid() == self._owner:
            self._process.dismiss()

    def __call__(self, lease: Lease[T]) -> R:
        """Have the handler called in the process; return its result, or raise its exception.

        Raises:
            WorkerDied: the process has ended before the handler did.
        """
        work = _Work(lease)
        checkpoint()
        with shield(math.inf):
            ended = self._have_done(work)
        if ended is None:
            if work.died is not None:
                raise work.died
            checkpoint()  # raises the kill or cancellation that has ended the process
            raise WorkerDied("the worker process was stopped")
        verb, payload = ended
        if verb is Verb.CANCELLED:
            checkpoint()
            raise RuntimeError("the handler was cancelled in its process, and not here")
        if verb is Verb.RAISED:
            raise unpack_exception(payload)
        return _unpickled(payload)  # type: ignore[no-any-return]

    def _have_done(self, work: _Work) -> tuple[Verb, bytes] | None:
        """Give the process's answer; None: the process has died, or was killed."""
        child = self._child or self._replace()
        try:
            ended = self._try(child, work)
        except _NotBegunError:
            # It had died while it was idle.
            ended = self._try(self._replace(), work)
        return ended

    def _try(self, child: _Child, work: _Work) -> tuple[Verb, bytes] | None:
        self._process.begin(child.pid)
        ended: tuple[Verb, bytes] | None = None
        try:
            ended = child.do(work)
        finally:
            work.close()
            signalled = self._process.end(died=ended is None, stack=work.stack)
            if ended is None or signalled is not None:
                self._child = None
                code = child.reap()
                if signalled is None and not self._process.dismissed:
                    work.died = work.death(child, code)
                    if not child.ready:
                        self._could_not_start(str(work.died))
                if not self._pool.cancelled:
                    with suppress(OSError):  # the next item's call raises it
                        self._replace()
        return ended

    def _replace(self) -> _Child:
        self._child = None
        self._child = child = self._start()
        return child


def _unpickled(payload: bytes) -> Any:
    try:
        return pickle.loads(payload)  # noqa: S301 (of our own worker)
    except Exception as failure:
        message = f"the result cannot be unpickled here ({failure}); return something that can"
        raise TypeError(message) from failure


def _grace(policy: ProcessStopPolicy) -> float:
    return _GRACE if policy.sigterm is None else policy.sigterm


class _NotBegunError(Exception):
    """The process had died before it received the work."""


class _Work:
    """One item on its way through a process."""

    def __init__(self, lease: Lease[Any]) -> None:
        self.token = lease.token
        self.stack: str | None = None
        self._lease = lease
        self._commit: Masked | None = None
        self.died: WorkerDied | None = None
        self.payload = self._pickled()

    def _pickled(self) -> bytes:
        """Pickle it all, the item as bytes: reading that runs no code of the item's class.

        The process decodes the item as a part of its work, and can be killed meanwhile.
        """
        lease = self._lease
        (decode, item), progress = contents_of(lease)
        if decode is None:
            decode, item = pickle.loads, pickled_item(item)
        if progress is not None and progress[0] is None:
            advice = "give heartbeat() something that can be pickled"
            progress = pickle.loads, pickled(progress[1], "the progress", advice)
        about = (lease.id, lease.attempt, lease.epoch)
        return pickle.dumps(((decode, item), progress, self.token.remaining(), about), CODE)

    def close(self) -> None:
        """End a commit that the handler has not left: it defers no kill any more."""
        commit, self._commit = self._commit, None
        if commit is not None:
            commit.__exit__(None, None, None)

    def answer(self, verb: Verb, payload: bytes) -> tuple[Verb, bytes]:
        """Carry out a request of the handler, and return the answer to it."""
        try:
            self._obey(verb, payload)
        except Exception as refusal:  # noqa: BLE001 (it is raised in the process)
            return Verb.REFUSED, pack_exception(refusal)
        return Verb.OK, b""

    def _obey(self, verb: Verb, payload: bytes) -> None:
        if verb is Verb.COMMIT:
            # From here on SIGKILL waits for the commit's end. If it was sent before, no OK arrives.
            commit = defer_kill(BRIEFLY)
            commit.__enter__()
            self._commit = commit
        elif verb is Verb.COMMITTED:
            self.close()
        elif verb is Verb.ACK:
            self._lease.ack(_unpickled(payload))
        elif verb is Verb.NACK:
            delay, reason = pickle.loads(payload)  # noqa: S301 (of our own worker)
            self._lease.nack(delay=delay, reason=reason)
        elif verb is Verb.DISCARD:
            self._lease.discard(pickle.loads(payload))  # noqa: S301 (of our own worker)
        elif verb is Verb.SNOOZE:
            self._lease.snooze(pickle.loads(payload))  # noqa: S301 (of our own worker)
        else:
            self._lease.heartbeat(_unpickled(payload))

    def death(self, child: _Child, code: int | None) -> WorkerDied:
        """Make the exception for a process that ended with this code; None: it is unknown."""
        how, advice = _how(child, code)
        if self.stack is not None:
            how, advice = "was terminated", f"another program sent it SIGTERM, here:\n{self.stack}"
        item = self._lease.id
        message = f"worker process {child.pid} {how} while it worked on item {item}: {advice}"
        return WorkerDied(message, code)


def _how(child: _Child, code: int | None) -> tuple[str, str]:
    """Describe how a process has ended, with advice."""
    if code is None:
        how = "ended, and other code of this program has reaped it"
    elif code >= 0:
        how = f"ended with exit code {code}"
    else:
        try:
            how = f"died of {signal.Signals(-code).name}"
        except ValueError:
            how = f"died of signal {-code}"
    if not child.ready:
        advice = (
            "it could not start; see its output on stderr. The main module is imported there: "
            'code that is to run once belongs behind if __name__ == "__main__"'
        )
    elif code is not None and -code in _CRASHES:
        advice = "that is a crash in C code; set PYTHONFAULTHANDLER=1 to see where"
    elif code == -signal.SIGKILL:
        advice = "the system may have been out of memory; see its log"
    else:
        advice = "a handler that fails should raise an exception instead"
    return how, advice


class _Child:
    """One process, from its start until it is reaped."""

    def __init__(
        self, handler: Callable[[Any], object], policy: ProcessStopPolicy, process: ChildProcess
    ) -> None:
        self.ready = False
        self._process = process
        self._round = 0
        # Not "fork": this process has threads. Not "forkserver": the process would not be our
        # child, and its pid might be another process's when a signal is sent.
        context = multiprocessing.get_context("spawn")
        self._socket, theirs = context.Pipe()
        line, ours = context.Pipe(duplex=False)
        times = (_grace(policy), policy.defer)
        new = context.Process(
            target=_child_loop.main,
            args=(handler, theirs, line, os.getpid(), times),
            name="desist-worker",
        )
        self._end = ExitWatch()
        try:
            # Not start(): multiprocessing would wait for the process at exit, and might reap it
            # before we do.
            popen: Any = new._Popen(new)  # noqa: SLF001 (of multiprocessing)
        except (pickle.PicklingError, TypeError, AttributeError) as failure:
            self._socket.close()
            message = (
                f"the handler cannot be sent to a worker process ({failure}): a function at the "
                "top level of a module can, a lambda or one within another function cannot"
            )
            raise TypeError(message) from failure
        finally:
            theirs.close()
            line.close()
            writer = os.dup(ours.fileno())
            ours.close()
            process.connect(writer)
        self._popen = popen
        self.pid: int = popen.pid
        try:
            self._end.open(popen.pid, popen.wait)
        except OSError:  # there are no descriptors left
            os.kill(self.pid, signal.SIGKILL)
            popen.wait()
            raise
        os.set_blocking(self._socket.fileno(), False)
        self._channel = Channel(self._socket.fileno())
        self._incoming = Op.readable(self._socket)
        self._outgoing = Op.writable(self._socket)

    # ------------------------------------------------------------------ work

    def do(self, work: _Work) -> tuple[Verb, bytes] | None:
        """Send an item to the process, and wait for its answer. None: the process has ended."""
        self._round += 1
        try:
            self._write(Verb.WORK, work.payload)
        except BrokenPipeError as gone:
            if not self.ready:
                self._has_ended()
                return None
            raise _NotBegunError from gone
        try:
            return self._converse(work)
        except (EOFError, BrokenPipeError):
            self._has_ended()
            return None

    def _converse(self, work: _Work) -> tuple[Verb, bytes] | None:
        cancelled: list[Op[Any]] = [work.token.cancelled_op()]
        ended = self._end.op()
        over = False
        while True:
            message = self._channel.read()
            if message is None:
                if over:
                    return None
                done = wait_any(self._incoming, ended, *cancelled)
                assert done is not None  # noqa: S101 (for the type checker: there is no timeout)
                which, cause = done
                over = which == 1  # messages that it has sent before come first
                if which == 2:  # noqa: PLR2004 (the third of them)
                    self._process.cancel(self._round, cause)
                    cancelled = []
                continue
            verb, payload = message
            if verb is Verb.READY:
                self.ready = True
            elif verb is Verb.KILLED:
                work.stack = pickle.loads(payload)  # noqa: S301 (of our own worker)
            elif verb < Verb.ACK:
                return message
            else:
                self._write(*work.answer(verb, payload))

    def _write(self, verb: Verb, payload: bytes) -> None:
        self._channel.write(verb, payload, self._until_writable)

    def _until_writable(self) -> None:
        done = wait_any(self._outgoing, self._end.op())
        if done is not None and done[0] == 1:
            raise BrokenPipeError("the worker process has died")

    def _has_ended(self) -> None:
        wait_any(self._end.op(), timeout=_LAST_WAIT)

    # ------------------------------------------------------------------ the end

    def retire(self, grace: float) -> None:
        """Close its channel, so that it ends, and reap it."""
        self._socket.close()
        try:
            wait_any(self._end.op(), timeout=grace)
        finally:
            self.reap()

    def reap(self) -> int | None:
        """Kill its process group and reap it.

        Returns its exit code; None: other code of this program has reaped it.
        """
        try:
            if self._end.is_ours():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)  # if it has not made its group yet
            self._end.wait_uninterruptibly(_LAST_WAIT)
            code: int | None = self._popen.poll()
            return code
        finally:
            self._process.disconnect()
            self._socket.close()
            self._end.close()
            self._popen.close()
