"""The pipes to and from a child process, read and written at once without blocking.

Guarantees: after a cancel or a timeout, all that was read is kept and all that was written is
counted, so that another pump() goes on where this one stopped.

How: one thread at a time pumps. The descriptors are non-blocking during pump() alone, so that code
that uses the files afterwards finds them as they were.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from desist._core import Op, current_time, wait_any

if TYPE_CHECKING:
    from subprocess import Popen

    from desist._exit_watch import ExitWatch

_CHUNK = 65536


class _Pipe:
    """One pipe, at this process's end."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.fd: int = file.fileno()

    def close(self) -> None:
        with suppress(OSError):  # nothing is buffered in it
            self.file.close()


class _Output(_Pipe):
    """A pipe from the child."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.parts: list[bytes] = []
        self.op = Op.readable(self.fd)

    def take_buffered(self) -> None:
        """Take the data that the file has buffered, because the caller has read a line before, say.

        The descriptor is non-blocking, for an empty buffer is filled by looking into it.
        """
        buffer = getattr(self.file, "buffer", self.file)
        if hasattr(buffer, "peek"):
            buffered = len(buffer.peek())
            if buffered:
                self.parts.append(buffer.read(buffered))

    def step(self) -> bool:
        """Read the available data. False: that was all."""
        try:
            part = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return True
        self.parts.append(part)
        return bool(part)


class _Input(_Pipe):
    """A pipe to the child."""

    def __init__(self, file: Any, data: Any) -> None:
        super().__init__(file)
        self.op = Op.writable(self.fd)
        self._left = memoryview(data).cast("B")

    def step(self) -> bool:
        """Write as much as the pipe takes. False: that was all, or the child reads no more."""
        try:
            written = os.write(self.fd, self._left[:_CHUNK])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._left = self._left[written:]
        return bool(self._left)


class Pipes:
    """The pipes of one child, and the data read from them."""

    def __init__(self, process: Popen[Any], data: Any) -> None:
        """`data`: the input; without any, the pipe to the child is closed at once."""
        self._text_mode: bool = process.text_mode  # type: ignore[attr-defined]
        self._open: list[_Output | _Input] = []
        """Pipes that are not at their end, the one that waited longest first."""
        self._outputs: dict[str, _Output] = {}
        self._begun = False
        """Whether a pump() has begun, and so has taken the buffered data."""
        stdin: Any = process.stdin
        if stdin is not None:
            if data and self._text_mode:
                data = data.encode(stdin.encoding, stdin.errors)
            self._begin_input(stdin, data)
        for name in ("stdout", "stderr"):
            file = getattr(process, name)
            if file is not None and not file.closed:
                self._outputs[name] = pipe = _Output(file)
                self._open.append(pipe)

    def _begin_input(self, stdin: Any, data: Any) -> None:
        try:
            stdin.flush()
        except BrokenPipeError:
            pass  # the child reads no more
        except ValueError:
            if stdin.closed:
                return
            raise
        if data:
            self._open.append(_Input(stdin, data))
        else:
            with suppress(BrokenPipeError):
                stdin.close()

    def pump(self, until: float, watch: ExitWatch | None = None) -> bool:
        """Read and write until all pipes are at their end, and the child too if it is watched.

        False: `until` has come first.
        """
        # Another thread may have closed one meanwhile.
        self._open = [pipe for pipe in self._open if not pipe.file.closed]
        for pipe in self._open:
            os.set_blocking(pipe.fd, False)
        try:
            if not self._begun:
                self._begun = True
                for output in self._outputs.values():
                    output.take_buffered()
            return self._pump(until, watch)
        finally:
            for pipe in self._open:
                if not pipe.file.closed:
                    os.set_blocking(pipe.fd, True)

    def _pump(self, until: float, watch: ExitWatch | None) -> bool:
        while self._open or watch is not None:
            ops = [pipe.op for pipe in self._open]
            if watch is not None:
                ops.append(watch.op())
            left = until - current_time()
            done = wait_any(*ops, timeout=None if left == math.inf else max(left, 0.0))
            if done is None:
                return False
            which = done[0]
            if which == len(self._open):
                watch = None
                continue
            pipe = self._open[which]
            more = pipe.step()
            del self._open[which]
            if more:
                self._open.append(pipe)  # behind the others: the first that is ready has its turn
            else:
                pipe.close()
        return True

    def close_inputs(self) -> None:
        """Give the child no more input."""
        for pipe in [one for one in self._open if isinstance(one, _Input)]:
            self._open.remove(pipe)
            pipe.close()

    def read_so_far(self, name: str) -> bytes | None:
        """The data read from `stdout` or `stderr`; None if there were none."""
        pipe = self._outputs.get(name)
        return b"".join(pipe.parts) or None if pipe is not None else None

    def text(self, name: str) -> Any:
        """The data read from `stdout` or `stderr`, as text or bytes, by the child's mode."""
        pipe = self._outputs.get(name)
        if pipe is None:
            return None
        data = b"".join(pipe.parts)
        if not self._text_mode:
            return data
        text = data.decode(pipe.file.encoding, pipe.file.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")
