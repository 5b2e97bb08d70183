"""Child processes: waiting for their end, and never leaving them behind."""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from desist._core import (
    Latch,
    Op,
    checkpoint,
    cleanup,
    current_effective_deadline,
    current_time,
    current_token,
    wait_any,
)
from desist._offload import Offloaded

if TYPE_CHECKING:
    from collections.abc import Callable


_F = TypeVar("_F")

_WINDOWS = sys.platform == "win32"
_GRACE = 5.0
"""Seconds that a child may take after SIGTERM where no canceller says otherwise."""
_LAST_WAIT = 1.0
"""Seconds in which a child that got SIGKILL should be gone."""
_CHUNK = 65536
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def wait(process: subprocess.Popen[Any], timeout: float | None = None) -> int:
    """Wait for the end of a child; returns its returncode, as Popen.wait() does.

    A checkpoint: Cancelled and Killed leave the child running. subprocess.TimeoutExpired if it
    still runs after `timeout` seconds. ChildProcessError if it is not, or no longer, a child of
    this process; 0, as Popen.wait() says it, if somebody else has already been told of its end.

    Linux tells of the end of a child by a descriptor; elsewhere a thread waits for it.
    """
    checkpoint()
    # Not poll(): it takes a child of another process for one that ended with 0.
    if process.returncode is not None:
        return int(process.returncode)
    end = End()
    opening, closing = cleanup(), cleanup()
    try:
        with opening:
            end.open(process)
        done = wait_any(end.op(), timeout=None if timeout is None else max(timeout, 0.0))
    finally:
        try:  # as in run()
            with closing:
                end.close()
        finally:
            end.close()
    if done is None:
        assert timeout is not None  # noqa: S101 (for the type checker)
        raise subprocess.TimeoutExpired(process.args, timeout)
    return process.wait()  # it has ended


def _typed_as(_model: _F) -> Callable[[Callable[..., Any]], _F]:
    """Tell type checkers that a function takes and returns what the model does."""
    return lambda function: function  # type: ignore[return-value]


@_typed_as(subprocess.run)
def run(
    *popenargs: Any,
    input: Any = None,  # noqa: A002
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a command and wait for its end: subprocess.run(), with waits that end.

    Parameters, result and exceptions are those of subprocess.run. A checkpoint on entry.

    Whatever ends it early, Cancelled, Killed, KeyboardInterrupt or its own timeout, the child is
    stopped before the exception goes on: SIGTERM for its whole process group; then it may take the
    time that the canceller gave for cleaning up, or 5 seconds where nobody has said anything; then
    SIGKILL, also for what its group has left running once it has ended and closed its output. No
    zombie and no descriptor is left. TimeoutExpired has the output so far.

    For this the child has a process group of its own, unless `process_group`, `start_new_session`
    or `preexec_fn` say otherwise; if it has not, only the child itself is stopped. So Ctrl-C on a
    terminal reaches this process alone, which gets KeyboardInterrupt and then stops the child; and
    a child that reads from the terminal is stopped by it (SIGTTIN): give it
    ``process_group=os.getpgrp()``. Before Python 3.11 it is a session of its own, without the
    terminal.

    Windows has neither groups nor SIGTERM: the child is terminated.
    """
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = subprocess.PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs["stdout"] = kwargs["stderr"] = subprocess.PIPE
    checkpoint()
    child = _Child()
    # Made beforehand: between the making of a zone and its block a kill could strike.
    spawning, ending, again = cleanup(), cleanup(), cleanup()
    try:
        with spawning:
            child.spawn(popenargs, kwargs)
        stdout, stderr = child.communicate(input, timeout)
    finally:
        # Also CPython 3.10 lets no kill strike where a handler begins with a try; should one
        # strike nevertheless, right behind the exception that came here, this is done again.
        try:
            with ending:
                child.end()
        finally:
            if not child.over:
                with again:
                    child.end()
    process = child.process
    assert process is not None  # noqa: S101 (for the type checker)
    code = process.returncode
    if check and code:
        raise subprocess.CalledProcessError(code, process.args, output=stdout, stderr=stderr)
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


class End:
    """Tells of the end of a child, without taking its status, so that its number stays its own."""

    def __init__(self) -> None:
        self._fd = -1
        self._latch = Latch()

    def open(self, process: subprocess.Popen[Any]) -> None:
        try:
            self._fd = os.pidfd_open(process.pid)  # type: ignore[attr-defined,unused-ignore]
        except ProcessLookupError:  # gone, and somebody else was told
            self._latch.set()
        except (AttributeError, OSError) as failure:
            # Not Linux, an old one, or a sandbox; but without descriptors nothing goes on.
            if isinstance(failure, OSError) and failure.errno in _NO_DESCRIPTORS:
                raise
            watch = threading.Thread(
                target=self._watch, args=(process,), name="desist-wait", daemon=True
            )
            watch.start()
        else:
            if not self.is_ours():
                # Of the same number, but not our child; or ours, and nobody is told of its end
                # because SIGCHLD is ignored.
                if not select.select([self._fd], [], [], 0)[0]:
                    raise ChildProcessError(
                        f"process {process.pid} is not a child of this process, or no longer; "
                        "its end cannot be waited for"
                    )
                self._latch.set()

    def _watch(self, process: subprocess.Popen[Any]) -> None:
        try:
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            else:
                process.wait()
        except ChildProcessError:
            pass  # somebody else was told
        finally:
            self._latch.set()

    def is_ours(self) -> bool:
        """Whether its number still means it: it is our child, and its status was not taken."""
        if self._fd < 0:
            return True  # as far as can be told
        try:
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def op(self) -> Op[None]:
        """For wait_any(): it has ended."""
        if self._fd >= 0 and not self._latch.is_set():
            return Op.readable(self._fd)
        return self._latch.wait_op(None)

    def has_come_within(self, seconds: float) -> None:
        """Wait for it, deaf to everything but signals, for a short time."""
        if self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.poll(seconds * 1000)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Stream:
    """One pipe to or from the child, on our side."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self._fd = file.fileno()
        os.set_blocking(self._fd, False)

    def op(self) -> Op[None]:
        return Op.readable(self._fd)

    def close(self) -> None:
        with suppress(OSError):  # nothing is buffered in it
            self.file.close()


class _Output(_Stream):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.parts: list[bytes] = []

    def turn(self) -> bool:
        """Take what is there. False: that was all."""
        try:
            part = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return True
        self.parts.append(part)
        return bool(part)


class _Input(_Stream):
    def __init__(self, file: Any, data: Any) -> None:
        super().__init__(file)
        self._left = memoryview(data).cast("B")

    def op(self) -> Op[None]:
        return Op.writable(self._fd)

    def turn(self) -> bool:
        """Give what it takes. False: that was all, or it reads no more."""
        try:
            written = os.write(self._fd, self._left[:_CHUNK])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._left = self._left[written:]
        return bool(self._left)


class _Child:
    """One child of run(): from before it is there until it is gone."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[Any] | None = None
        self._end = End()
        self._talk: Offloaded[Any] | None = None
        self._token = current_token()
        self._leads_group = False
        self.over = False
        self._open: list[_Output | _Input] = []
        self._outputs: dict[str, _Output] = {}

    def spawn(self, popenargs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        says_how = {"process_group", "start_new_session", "preexec_fn"} & kwargs.keys()
        if not _WINDOWS and not says_how:
            if sys.version_info >= (3, 11):
                kwargs["process_group"] = 0
            else:
                kwargs["start_new_session"] = True
        self.process = process = subprocess.Popen(*popenargs, **kwargs)  # noqa: S603 (the caller's)
        if _WINDOWS:
            return
        with suppress(ProcessLookupError):
            self._leads_group = os.getpgid(process.pid) == process.pid
        self._end.open(process)

    # ------------------------------------------------------------------ talking

    def communicate(self, data: Any, timeout: float | None) -> tuple[Any, Any]:
        """Give it its input, take its output, and wait for its end."""
        process = self.process
        assert process is not None  # noqa: S101 (for the type checker)
        if _WINDOWS:
            return self._communicate_aside(process, data, timeout)
        if process.stdin is not None:
            if data and process.text_mode:  # type: ignore[attr-defined]
                text: Any = process.stdin
                data = data.encode(text.encoding, text.errors)
            if data:
                self._open.append(_Input(process.stdin, data))
            else:
                process.stdin.close()
        for name in ("stdout", "stderr"):
            file = getattr(process, name)
            if file is not None:
                self._outputs[name] = stream = _Output(file)
                self._open.append(stream)
        until = math.inf if timeout is None else current_time() + timeout
        if not self._pump(until):
            assert timeout is not None  # noqa: S101 (for the type checker)
            stdout, stderr = (self._so_far(name) for name in ("stdout", "stderr"))
            raise subprocess.TimeoutExpired(process.args, timeout, output=stdout, stderr=stderr)
        process.wait()  # it has ended
        return self._text("stdout"), self._text("stderr")

    def _pump(self, until: float) -> bool:
        """Talk until all pipes are closed and the child has ended. False: it is too late."""
        ended = False
        while self._open or not ended:
            ops = [stream.op() for stream in self._open]
            if not ended:
                ops.append(self._end.op())
            done = wait_any(*ops, timeout=max(until - current_time(), 0.0))
            if done is None:
                return False
            which = done[0]
            if which == len(self._open):
                ended = True
                continue
            stream = self._open.pop(which)
            if stream.turn():
                self._open.append(stream)  # last, for the first that is ready has its turn
            else:
                stream.close()
        return True

    def _so_far(self, name: str) -> bytes | None:
        stream = self._outputs.get(name)
        return b"".join(stream.parts) or None if stream is not None else None

    def _text(self, name: str) -> Any:
        stream = self._outputs.get(name)
        if stream is None:
            return None
        data = b"".join(stream.parts)
        if not self.process.text_mode:  # type: ignore[union-attr]
            return data
        text = data.decode(stream.file.encoding, stream.file.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _communicate_aside(
        self, process: subprocess.Popen[Any], data: Any, timeout: float | None
    ) -> tuple[Any, Any]:
        """Where pipes cannot be waited for: a thread talks, and ends when the child does."""
        self._talk = talk = Offloaded(lambda: process.communicate(data), "desist-communicate")
        if not talk.latch.wait(timeout):
            assert timeout is not None  # noqa: S101 (for the type checker)
            raise subprocess.TimeoutExpired(process.args, timeout)
        return talk.result()

    # ------------------------------------------------------------------ the end

    def end(self) -> None:
        """Stop it if it still runs; leave nothing behind. To be called in a clean-up zone."""
        process = self.process
        if process is None:
            self.over = True
            return
        try:
            if process.returncode is None:
                self._stop(process)
            if self._talk is not None:
                # It has come to the end of the pipes; closed before, it would not notice.
                self._talk.latch.wait(_GRACE)
        finally:
            for file in (process.stdin, process.stdout, process.stderr):
                if file is not None:
                    with suppress(OSError):
                        file.close()
            self._end.close()
            self.over = True

    def _stop(self, process: subprocess.Popen[Any]) -> None:
        if _WINDOWS:
            process.kill()
            process.wait()
            return
        try:
            # Not all of the zone's time: what comes below must not be struck either.
            left = (current_effective_deadline() - current_time()) * 0.9
            if not self._token.cancelled:
                left = min(left, _GRACE)
            if left > 0:
                self._signal(process, signal.SIGTERM)
                self._signal(process, signal.SIGCONT)  # one that is stopped would not notice
                for stream in [one for one in self._open if isinstance(one, _Input)]:
                    self._open.remove(stream)
                    stream.close()
                self._pump(current_time() + left)
        finally:
            # What it leaves in its group, too. Its number is its own until its status is taken.
            self._signal(process, signal.SIGKILL)
            try:
                self._end.has_come_within(_LAST_WAIT)
            finally:
                process.poll()

    def _signal(self, process: subprocess.Popen[Any], number: int) -> None:
        if not self._end.is_ours():
            return
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if self._leads_group else os.kill)(process.pid, number)
