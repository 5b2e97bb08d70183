"""The subprocess module, with waits that end when the calling code is to stop.

    from desist import subprocess

    done = subprocess.run(["make", "docs"], capture_output=True)

Names, signatures, results and exceptions are those of the standard library; a name that is not
defined here is the standard library's own. Every call that waits for a child is a checkpoint, and
raises Cancelled or Killed as soon as the calling code is to stop.

Guarantees: a child of run(), call(), check_call(), check_output(), getoutput() or of a
`with Popen(...)` block does not outlive the call or block when that is ended early: it is told to
terminate, given time, and killed, and its status is taken. A child of a Popen without a block is
left running.

How: the call that makes the child, and the steps that end it, run in clean-up blocks, which defer a
kill; the clean-up blocks are made before the `try`, since a kill may be delivered between the
making of one and its `with`. The end of a child is noticed by an ExitWatch, which takes no status,
so the child's number is its own for as long as signals are sent to it.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess as _std
import sys
from contextlib import suppress
from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    SubprocessError,
    TimeoutExpired,
)
from typing import TYPE_CHECKING, Any, AnyStr, TypeVar

from desist._core import (
    Cancelled,
    Killed,
    call_masked,
    checkpoint,
    cleanup,
    current_effective_deadline,
    current_time,
    current_token,
    wait_any,
)
from desist._exit_watch import ExitWatch
from desist._offload import Offloaded
from desist._pipes import Pipes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    _Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    _Command = _Word | Sequence[_Word]

_F = TypeVar("_F")

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "run",
]

_WINDOWS = sys.platform == "win32"
_GRACE = 5.0
"""Seconds that a child may take after SIGTERM unless the canceller gave another grace."""
_LAST_WAIT = 1.0
"""Seconds in which a child that got SIGKILL should have ended."""


def __getattr__(name: str) -> Any:
    """A name that is not defined here is the standard library's: no need to import both."""
    if name.startswith("__"):
        raise AttributeError(f"module 'desist.subprocess' has no attribute {name!r}")
    return getattr(_std, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_std)})


def _typed_as(_model: _F) -> Callable[[Callable[..., Any]], _F]:
    """Tell type checkers that a function has the signature of the model."""
    return lambda function: function  # type: ignore[return-value]


# --- children -------------------------------------------------------------------------------------


class _Popen(_std.Popen[AnyStr]):
    """A subprocess.Popen whose wait() and communicate() end when the calling code is to stop.

    Making one is a checkpoint: in cancelled code no child is started. Cancelled and Killed leave
    the child running; another wait() or communicate() goes on where the first one stopped. At the
    end of a `with` block the child is waited for, and if that wait is ended early, the child is
    stopped as run() stops it.

    The child is in the process group of its parent, as in the standard library.
    """

    _communication_started: bool
    """The standard library's: communicate() was called."""
    _pipes: Pipes | None = None
    """The pipes that communicate() reads and writes; made by the first call."""
    _talk: Offloaded[Any] | None = None
    """The helper thread that communicates instead, on Windows."""
    _stopper: _Stopper | None = None
    """During a `with` block."""

    if not TYPE_CHECKING:  # for type checkers it is the standard library's, with its overloads

        @functools.wraps(_std.Popen.__init__, assigned=())  # for its signature
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """As subprocess.Popen.

            On cancel: Cancelled is raised, on entry alone, and no child is made.

            On kill: Killed is raised, and a child that was being made is stopped.
            """
            checkpoint()
            starting, ending = cleanup(), cleanup()
            made = False
            try:
                with starting:
                    super().__init__(*args, **kwargs)
                made = True
            finally:
                # A number of 0 would mean this process's own group.
                if not made and getattr(self, "_child_created", False) and self.pid > 0:
                    with ending:
                        stopper = _Stopper()
                        stopper.adopt(self)
                        stopper.end(stop=True)

    def __enter__(self) -> Self:
        """Give the process; its end is waited for at the end of the block."""
        stopper = _Stopper()
        entering = cleanup()
        try:
            with entering:
                stopper.adopt(self)
                self._stopper = stopper
        except ChildProcessError:
            pass  # of another process: nothing to be stopped here
        except OSError:
            stopper.end(stop=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pipes and wait for the child.

        If the block, or that wait, is ended by Cancelled or Killed, the child is stopped.
        """
        ending = cleanup()
        stop = True
        try:
            # A wait in code that is being stopped would raise again at once.
            if kind is not Cancelled and kind is not Killed:
                super().__exit__(kind, value, traceback)
                stop = False
        finally:
            stopper = self._stopper
            if stopper is not None:
                with ending:
                    stopper.end(stop=stop)

    def poll(self) -> int | None:
        """As subprocess.Popen.poll: the returncode, or None if the child still runs."""
        # A kill in the middle would leave the object's own lock held.
        return call_masked(super().poll)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child's end; returns its returncode.

        Linux reports the end of a child by a descriptor; elsewhere a thread waits for it.

        Blocks: until the child has ended, or for `timeout` seconds.

        On cancel: Cancelled is raised, also on entry, and the child keeps running.

        On timeout: TimeoutExpired is raised, and the child keeps running.

        On kill: Killed is raised, and the child keeps running.

        Raises:
            ChildProcessError: no child of this process, or no longer one. (If its status was taken
                elsewhere in this process the result is 0, as in the standard library.)
        """
        checkpoint()
        # Not poll(): that takes the child of another process for one that ended with 0.
        if self.returncode is None:
            self._wait_for_end(timeout)
        return call_masked(super().wait)  # it has ended

    def _wait_for_end(self, timeout: float | None) -> None:
        watch = ExitWatch()
        opening, closing = cleanup(), cleanup()
        try:
            with opening:
                watch.open(self.pid, super().wait)
            seconds = None if timeout is None else max(timeout, 0.0)
            done = wait_any(watch.op(), timeout=seconds)
        finally:
            try:  # as in run()
                with closing:
                    watch.close()
            finally:
                watch.close()
        if done is None:
            raise TimeoutExpired(self.args, timeout)  # type: ignore[arg-type]

    def communicate(self, input: Any = None, timeout: float | None = None) -> Any:  # noqa: A002
        """Send `input` to the child, read its output to the end, and wait for its end.

        Returns a pair: the output from `stdout` and from `stderr`, each None if it is no pipe.
        After Cancelled or TimeoutExpired another call goes on, and nothing that was read is lost.
        Text that was read into the buffer of a file in text mode before is not part of the result.

        Blocks: until the child has closed its output and ended, or for `timeout` seconds.

        On cancel: Cancelled is raised, also on entry, and the child keeps running.

        On timeout: TimeoutExpired is raised, with the output so far, and the child keeps running.

        On kill: Killed is raised, and the child keeps running.

        Raises:
            ValueError: input in a second call.
        """
        started = self._communication_started
        if started and input:
            raise ValueError("Cannot send input after starting communication")
        checkpoint()
        if _WINDOWS:
            return self._communicate_offloaded(input, timeout)
        if self._pipes is None:
            self._pipes = Pipes(self, input)
            self._communication_started = True
        pipes = self._pipes
        until = math.inf if timeout is None else current_time() + timeout
        if not pipes.pump(until):
            raise self._too_late(pipes, timeout)
        try:
            self.wait(None if timeout is None else until - current_time())
        except TimeoutExpired:
            raise self._too_late(pipes, timeout) from None
        return pipes.text("stdout"), pipes.text("stderr")

    def _too_late(self, pipes: Pipes, timeout: float | None) -> TimeoutExpired:
        stdout, stderr = (pipes.read_so_far(name) for name in ("stdout", "stderr"))
        return TimeoutExpired(self.args, timeout or 0.0, output=stdout, stderr=stderr)

    def _communicate_offloaded(self, data: Any, timeout: float | None) -> Any:
        """Where pipes cannot be waited for, a thread does it, and ends when the child does."""
        if self._talk is None:
            communicate = super().communicate
            self._talk = Offloaded(lambda: communicate(data), "desist-communicate")
        if not self._talk.latch.wait(timeout):
            raise TimeoutExpired(self.args, timeout)  # type: ignore[arg-type]
        return self._talk.result()


if TYPE_CHECKING:
    # Its overloads give the Popen's type parameter, which type checkers cannot infer of a subclass.
    from subprocess import Popen
else:
    Popen = _Popen
    Popen.__name__ = Popen.__qualname__ = "Popen"


class _Stopper:
    """Ends one child early: from before the child is made until its status is taken."""

    def __init__(self) -> None:
        self.process: _Popen[Any] | None = None
        self.over = False
        """Whether end() has done all that it does."""
        self._watch = ExitWatch()
        self._token = current_token()
        """Of the code that made the child: if it is cancelled, the canceller gave the grace."""
        self._leads_group = False

    def spawn(self, popenargs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the child, in a group of its own unless the caller says how. In a clean-up block."""
        says_how = {"process_group", "start_new_session", "preexec_fn"} & kwargs.keys()
        if not _WINDOWS and not says_how:
            if sys.version_info >= (3, 11):
                kwargs["process_group"] = 0
            else:
                kwargs["start_new_session"] = True
        self.process = _Popen(*popenargs, **kwargs)
        self.adopt(self.process)

    def adopt(self, process: _Popen[Any]) -> None:
        """Take over a child that was made. In a clean-up block."""
        self.process = process
        if _WINDOWS or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._leads_group = os.getpgid(process.pid) == process.pid
        self._watch.open(process.pid, super(_Popen, process).wait)

    def end(self, *, stop: bool) -> None:
        """Give back all that belongs to the child. In a clean-up block.

        `stop`: if it still runs, end it; else it is left running.
        """
        process = self.process
        if process is None:
            self.over = True
            return
        try:
            if stop and process.returncode is None:
                self._stop(process)
            talk = process._talk  # noqa: SLF001 (its own module)
            if stop and talk is not None:
                # The helper thread ends with the child; a file closed before would keep it waiting.
                talk.latch.wait(_GRACE)
        finally:
            if stop:
                self._close_files(process)
            self._watch.close()
            self.over = True

    @staticmethod
    def _close_files(process: _Popen[Any]) -> None:
        for file in (process.stdin, process.stdout, process.stderr):
            if file is not None:
                with suppress(OSError):
                    file.close()

    def _stop(self, process: _Popen[Any]) -> None:
        if _WINDOWS:
            process.kill()
            process.wait()
            return
        try:
            # Not all of the block's time: the steps below need some of it.
            left = (current_effective_deadline() - current_time()) * 0.9
            if not self._token.cancelled:
                left = min(left, _GRACE)
            if left > 0 and self._watch.reports:
                self._signal(process, signal.SIGTERM)
                self._signal(process, signal.SIGCONT)  # a stopped child would not run its handler
                until = current_time() + left
                pipes = process._pipes  # noqa: SLF001 (its own module)
                if pipes is None:
                    self._close_files(process)  # or the child could block in a write
                    wait_any(self._watch.op(), timeout=left)
                else:
                    pipes.close_inputs()
                    pipes.pump(until, self._watch)
        finally:
            # Also for processes that the child leaves in its group. The group's number is the
            # child's, and its own until the status is taken.
            self._signal(process, signal.SIGKILL)
            try:
                if self._watch.reports:
                    self._watch.wait_uninterruptibly(_LAST_WAIT)
                else:
                    with suppress(TimeoutExpired):
                        super(_Popen, process).wait(_LAST_WAIT)
            finally:
                process.poll()

    def _signal(self, process: _Popen[Any], number: int) -> None:
        if not self._watch.is_ours():
            return
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if self._leads_group else os.kill)(process.pid, number)


# --- functions ------------------------------------------------------------------------------------


def _finish(
    popenargs: tuple[Any, ...], kwargs: dict[str, Any], talk: Callable[[_Popen[Any]], Any]
) -> tuple[_Popen[Any], Any]:
    """Make a child and `talk` with it until it has ended; stop it if that is ended early."""
    checkpoint()
    child = _Stopper()
    # Made beforehand: a kill may be delivered between the making of a block and its `with`.
    spawning, ending, again = cleanup(), cleanup(), cleanup()
    try:
        with spawning:
            child.spawn(popenargs, kwargs)
        process = child.process
        assert process is not None  # noqa: S101 (for the type checker)
        result = talk(process)
    finally:
        # CPython 3.10, too, delivers no kill where a handler begins with a try. Should one be
        # delivered nevertheless, right behind the exception that led here, this is done again.
        try:
            with ending:
                child.end(stop=True)
        finally:
            if not child.over:
                with again:
                    child.end(stop=True)
    return process, result


@_typed_as(_std.run)
def run(
    *popenargs: Any,
    input: Any = None,  # noqa: A002
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: Any,
) -> CompletedProcess[Any]:
    """Run a command and wait for its end, as subprocess.run does.

    Parameters, result and exceptions are those of subprocess.run.

    If Cancelled, Killed, KeyboardInterrupt or the call's own timeout ends it early, the child is
    stopped before the exception goes on: SIGTERM for its whole process group; then it may take the
    grace that the canceller gave, or 5 seconds without a canceller; then SIGKILL, also for
    processes that it has left in its group. No zombie and no descriptor is left.

    For this the child has a process group of its own, unless `process_group`, `start_new_session`
    or `preexec_fn` say otherwise; if it has not, only the child itself is stopped. So Ctrl-C on a
    terminal reaches this process alone, which gets KeyboardInterrupt and then stops the child; and
    a child that reads from the terminal is stopped by it (SIGTTIN): give it
    ``process_group=os.getpgrp()``. Before Python 3.11 it has a session of its own, without the
    terminal. Windows has neither groups nor SIGTERM: the child is terminated.

    Blocks: until the child has ended and closed its output, or for `timeout` seconds.

    On cancel: the child is stopped, and Cancelled is raised; on entry no child is made.

    On timeout: the child is stopped, and TimeoutExpired is raised, with the output so far.

    On kill: the child is stopped, and Killed is raised. A kill waits for that.
    """
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs["stdout"] = kwargs["stderr"] = PIPE
    process, (stdout, stderr) = _finish(
        popenargs, kwargs, lambda process: process.communicate(input, timeout)
    )
    code = process.returncode
    if check and code:
        raise CalledProcessError(code, process.args, output=stdout, stderr=stderr)
    return CompletedProcess(process.args, code, stdout, stderr)


@_typed_as(_std.call)
def call(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> int:
    """Run a command and wait for its end; returns its returncode, as subprocess.call does.

    Blocks: until the child has ended, or for `timeout` seconds.

    On cancel: the child is stopped as in run(), and Cancelled is raised; on entry none is made.

    On timeout: the child is stopped, and TimeoutExpired is raised.

    On kill: the child is stopped, and Killed is raised. A kill waits for that.
    """
    _, code = _finish(popenargs, kwargs, lambda process: process.wait(timeout))
    return int(code)


@_typed_as(_std.check_call)
def check_call(*popenargs: Any, **kwargs: Any) -> int:
    """As call(), but raises CalledProcessError unless the returncode is 0.

    Blocks: until the child has ended, or for `timeout` seconds.

    On cancel: the child is stopped as in run(), and Cancelled is raised; on entry none is made.

    On timeout: the child is stopped, and TimeoutExpired is raised.

    On kill: the child is stopped, and Killed is raised. A kill waits for that.

    Raises:
        CalledProcessError: the returncode is not 0.
    """
    code = call(*popenargs, **kwargs)
    if code:
        command = kwargs.get("args")
        raise CalledProcessError(code, popenargs[0] if command is None else command)
    return 0


@_typed_as(_std.check_output)
def check_output(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> Any:
    """Run a command and return its output, as subprocess.check_output does.

    Blocks: until the child has ended and closed its output, or for `timeout` seconds.

    On cancel: the child is stopped as in run(), and Cancelled is raised; on entry none is made.

    On timeout: the child is stopped, and TimeoutExpired is raised, with the output so far.

    On kill: the child is stopped, and Killed is raised. A kill waits for that.

    Raises:
        CalledProcessError: the returncode is not 0; it has the output.
    """
    for name in ("stdout", "check"):
        if name in kwargs:
            raise ValueError(f"{name} argument not allowed, it will be overridden.")
    if "input" in kwargs and kwargs["input"] is None:
        # There, too, None means no input, not the input of this process.
        text = any(
            kwargs.get(name) for name in ("text", "universal_newlines", "encoding", "errors")
        )
        kwargs["input"] = "" if text else b""
    kwargs |= {"stdout": PIPE, "timeout": timeout, "check": True}
    return run(*popenargs, **kwargs).stdout


def getstatusoutput(
    cmd: _Command, *, encoding: str | None = None, errors: str | None = None
) -> tuple[int, str]:
    """Run a command in a shell; returns its returncode and its output.

    As subprocess.getstatusoutput does.

    Blocks: until the shell has ended and closed its output.

    On cancel: the shell is stopped as in run(), and Cancelled is raised; on entry none is made.

    On kill: the shell is stopped, and Killed is raised. A kill waits for that.
    """
    text: dict[str, Any] = {"text": True, "encoding": encoding, "errors": errors}
    done = run(cmd, shell=True, stdout=PIPE, stderr=STDOUT, **text)  # noqa: S604 (as it is there)
    return done.returncode, done.stdout.removesuffix("\n")


def getoutput(cmd: _Command, *, encoding: str | None = None, errors: str | None = None) -> str:
    """Run a command in a shell; returns its output, as getstatusoutput() does.

    Blocks: until the shell has ended and closed its output.

    On cancel: the shell is stopped as in run(), and Cancelled is raised; on entry none is made.

    On kill: the shell is stopped, and Killed is raised. A kill waits for that.
    """
    text: dict[str, Any] = {"encoding": encoding, "errors": errors}
    return getstatusoutput(cmd, **text)[1]
