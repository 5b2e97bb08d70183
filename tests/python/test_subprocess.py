from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import Cancelled, Killed
from desist.testing import sweep_kills
from leaks import nothing_left
from support import AT_WAIT, FORCE, INSIST, NEVER, in_child, in_its_wait, in_thread, tell
from test_signals import talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these children are Unix's")


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", "import os, signal, sys, subprocess\n" + code]


class Tied:
    """A pipe that children inherit: it has their output, and shows whether one of them is left."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def __enter__(self) -> Tied:  # noqa: PYI034 (it is final)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)

    def hear(self, word: str) -> None:
        """Wait until a child has written this."""
        heard = b""
        while len(heard) < len(word):
            heard += os.read(self.reader, len(word) - len(heard))
        assert heard == word.encode()

    def rest(self) -> str:
        """Wait until all children have ended, and return the rest of their output."""
        os.close(self.writer)
        self.writer = -1
        heard = b""
        while part := os.read(self.reader, 1000):
            heard += part
        return heard.decode()


@contextmanager
def tied() -> Iterator[Tied]:
    """Check at the end that all processes with the pipe have ended, and nothing else is left."""
    with nothing_left(), Tied() as pipe:
        yield pipe


def blocker(pipe: Tied, before: str = "") -> Callable[[], object]:
    """Make a function that runs a child, which reports its start and blocks forever."""
    code = f"{before}\nos.write({pipe.writer}, b'up')\nsignal.pause()"
    return lambda: desist.subprocess.run(python(code), pass_fds=[pipe.writer])


def until_signalled(pipe: Tied, last: str, **options: Any) -> Callable[[], object]:
    """Make a function that runs a child, which reports its start and does `last` at SIGTERM.

    A handler would race with signal.pause(): a signal just before the call would not end it.
    """
    code = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        f"os.write({pipe.writer}, b'up')\n"
        f"signal.sigwait({{signal.SIGTERM}})\n{last}"
    )
    return lambda: desist.subprocess.run(python(code), pass_fds=[pipe.writer], **options)


# --- as subprocess.run ----------------------------------------------------------------------------

ECHO = python("sys.stdout.write(sys.stdin.read()); sys.stderr.write('err'); sys.exit(3)")
ALIKE: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing asked": (["true"], {}),
    "a code": (["false"], {}),
    "all captured": (ECHO, {"input": b"in", "capture_output": True}),
    "text": (ECHO, {"input": "l\u00e4\n", "capture_output": True, "text": True}),
    "encoding": (ECHO, {"input": "l\u00e4", "stdout": subprocess.PIPE, "encoding": "latin-1"}),
    "together": (ECHO, {"input": b"", "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}),
    "empty input": (ECHO, {"input": b"", "capture_output": True}),
    "input is a pipe": (["cat"], {"stdin": subprocess.PIPE, "capture_output": True}),
    "nowhere": (ECHO, {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": -3}),
    "shell": (
        "printf 'a\\r\\nb\\rc'; exit 5",
        {"shell": True, "capture_output": True, "text": True},
    ),
    "bytes stay": ("printf 'a\\r\\n'", {"shell": True, "capture_output": True}),
    "unbuffered": (ECHO, {"input": b"in", "capture_output": True, "bufsize": 0}),
    "an array": (["cat"], {"input": memoryview(b"abcd").cast("H"), "capture_output": True}),
    "reads nothing": (["true"], {"input": b"x" * 1_000_000, "capture_output": True}),
    "closes early": ("exec >&- 2>&-; true", {"shell": True, "capture_output": True}),
    "a signal": ("kill -9 $$", {"shell": True}),
    "in time": (["true"], {"timeout": NEVER}),
    "a session": (["true"], {"start_new_session": True}),
}


@pytest.mark.parametrize("name", ALIKE)
def test_results_are_those_of_subprocess_run(name: str) -> None:
    args, kwargs = ALIKE[name]
    expected = subprocess.run(args, **kwargs)  # noqa: PLW1510
    with nothing_left():
        assert vars(desist.subprocess.run(args, **kwargs)) == vars(expected)


def test_errors_are_those_of_subprocess_run() -> None:
    with nothing_left():
        with pytest.raises(subprocess.CalledProcessError) as failed:
            desist.subprocess.run(ECHO, input=b"in", capture_output=True, check=True)
        assert (failed.value.returncode, failed.value.output) == (3, b"in")
        assert failed.value.stderr == b"err"
        with pytest.raises(ValueError, match="stdin and input"):
            desist.subprocess.run(["cat"], input=b"", stdin=subprocess.PIPE)
        with pytest.raises(ValueError, match="capture_output"):
            desist.subprocess.run(["cat"], stdout=subprocess.PIPE, capture_output=True)
        with pytest.raises(FileNotFoundError):
            desist.subprocess.run(["no such program"])
        with pytest.raises(TypeError):
            desist.subprocess.run(["cat"], input="text")
        with pytest.raises(UnicodeDecodeError):
            desist.subprocess.run(["printf", "\\377"], capture_output=True, encoding="ascii")


def test_large_input_and_output_pass_at_the_same_time() -> None:
    data = os.urandom(3_000_000)
    code = (
        "data = sys.stdin.buffer.read()\n"
        "sys.stderr.buffer.write(data); sys.stdout.buffer.write(data)"
    )
    with nothing_left():
        assert desist.subprocess.run(["cat"], input=data, capture_output=True).stdout == data
        done = desist.subprocess.run(python(code), input=data, capture_output=True)
    assert done.stdout == done.stderr == data


# --- stopping -------------------------------------------------------------------------------------


def test_a_cancel_stops_the_child() -> None:
    with tied() as pipe:
        with in_its_wait(blocker(pipe)) as victim:
            pipe.hear("up")
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        assert pipe.rest() == ""


@pytest.mark.parametrize("policy", [AT_WAIT, FORCE, INSIST])
def test_a_kill_stops_the_child(policy: desist.StopPolicy) -> None:
    with tied() as pipe:
        with in_its_wait(blocker(pipe)) as victim:
            pipe.hear("up")
            victim.kill(policy=policy)
        assert isinstance(victim.raised, Killed | Cancelled)
        assert pipe.rest() == ""


def test_a_kill_that_goes_through_a_shield_stops_the_child() -> None:
    with tied() as pipe:
        run = blocker(pipe)

        def shielded() -> None:
            with desist.shield(NEVER):
                run()

        with in_its_wait(shielded) as victim:
            pipe.hear("up")
            victim.kill(policy=AT_WAIT)
        assert isinstance(victim.raised, Killed)
        assert pipe.rest() == ""


def test_a_deadline_stops_the_child() -> None:
    with tied() as pipe:
        with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.05):
            blocker(pipe)()
        pipe.rest()


def test_in_cancelled_code_no_child_is_made() -> None:
    with nothing_left(), desist.move_on_after(0) as scope:
        desist.subprocess.run(["no such program"])
    assert scope.cancelled_caught


def test_a_timeout_stops_the_child_and_has_its_output() -> None:
    with tied() as pipe:
        code = f"os.write({pipe.writer}, b'up'); os.write(1, b'half'); signal.pause()"
        with pytest.raises(subprocess.TimeoutExpired) as late:
            desist.subprocess.run(
                python(code), capture_output=True, timeout=0.5, pass_fds=[pipe.writer]
            )
        assert (late.value.timeout, late.value.stderr) == (0.5, None)
        assert late.value.stdout in (b"half", None)  # the child may have started late
        pipe.rest()


def test_ctrl_c_stops_the_child() -> None:
    said = talk(
        """
        reader, writer = os.pipe()
        code = f"import os, signal; os.write({writer}, b'up'); signal.pause()"
        def tell():
            os.read(reader, 2)
            say("waiting")
        threading.Thread(target=tell).start()
        try:
            desist.subprocess.run([sys.executable, "-c", code], pass_fds=[writer])
        except KeyboardInterrupt:
            say("interrupted")
        os.close(writer)
        assert os.read(reader, 1) == b""
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            say("none")
        """,
        signal.SIGINT,
    )
    assert said == ["interrupted", "none"]


def test_the_whole_group_is_stopped() -> None:
    with tied() as pipe:
        inner = "import signal; signal.pause()"
        more = f"subprocess.Popen([sys.executable, '-c', {inner!r}], pass_fds=[{pipe.writer}])"
        with in_its_wait(blocker(pipe, more)) as victim:
            pipe.hear("up")
            victim.cancel()
        assert pipe.rest() == ""


def test_a_child_may_clean_up() -> None:
    with tied() as pipe:
        last = f"os.write({pipe.writer}, b'bye')"
        with in_its_wait(until_signalled(pipe, last)) as victim:
            pipe.hear("up")
            victim.cancel()
        assert pipe.rest() == "bye"


def test_a_child_that_cleans_up_may_still_print_much() -> None:
    with tied() as pipe:
        last = (
            "for _ in range(100): sys.stdout.write('x' * 10_000)\n"
            f"sys.stdout.flush(); os.write({pipe.writer}, b'bye')"
        )
        with in_its_wait(until_signalled(pipe, last, capture_output=True)) as victim:
            pipe.hear("up")
            victim.cancel(grace=NEVER)
        assert pipe.rest() == "bye"


@pytest.mark.parametrize("stubborn", ["SIG_IGN", "stopped"])
def test_a_child_that_ignores_sigterm_is_killed(stubborn: str) -> None:
    with tied() as pipe:
        before = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        if stubborn == "stopped":
            before += f"\nos.write({pipe.writer}, b'up'); os.kill(0, signal.SIGSTOP)"
        with in_its_wait(blocker(pipe, before)) as victim:
            pipe.hear("up")
            victim.cancel(grace=0.05)
        assert isinstance(victim.raised, Cancelled)
        assert pipe.rest() in ("", "up")


def test_without_grace_there_is_no_warning() -> None:
    with tied() as pipe:
        last = f"signal.signal(signal.SIGTERM, lambda *_: os.write({pipe.writer}, b'bye'))"
        with in_its_wait(blocker(pipe, last)) as victim:
            pipe.hear("up")
            victim.cancel(grace=0)
        assert pipe.rest() == ""


def test_a_suspended_child_is_stopped() -> None:
    with tied() as pipe:
        before = f"os.write({pipe.writer}, b'up'); os.kill(os.getpid(), signal.SIGSTOP)"
        with in_its_wait(blocker(pipe, before)) as victim:
            pipe.hear("up")
            victim.cancel(grace=NEVER)
        assert isinstance(victim.raised, Cancelled)


def test_processes_that_a_child_leaves_running_are_left_alone_unless_it_is_stopped() -> None:
    with nothing_left(), Tied() as pipe, ExitStack() as kept:
        reader, writer = os.pipe()
        kept.callback(os.close, reader)
        code = f"""if not os.fork(): os.write({pipe.writer}, os.read({reader}, 10)); os._exit(0)
sys.exit(3)"""
        done = desist.subprocess.run(python(code), pass_fds=[reader, pipe.writer])
        assert done.returncode == 3
        os.write(writer, b"alive")
        os.close(writer)
        assert pipe.rest() == "alive"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="process_group is new in 3.11")
def test_a_child_in_the_group_of_its_parent_is_stopped_alone() -> None:
    with tied() as pipe:
        code = f"os.write({pipe.writer}, str(os.getpgrp()).encode() + b'.'); signal.pause()"

        def run() -> object:
            group: dict[str, Any] = {"process_group": os.getpgrp()}
            return desist.subprocess.run(python(code), pass_fds=[pipe.writer], **group)

        with in_its_wait(run) as victim:
            pipe.hear(f"{os.getpgrp()}.")
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        pipe.rest()


@pytest.mark.filterwarnings("ignore:.*preexec_fn:DeprecationWarning")
def test_a_preexec_fn_may_make_the_group() -> None:
    with tied() as pipe:
        inner = "import signal; signal.pause()"
        code = (
            f"subprocess.Popen([sys.executable, '-c', {inner!r}], pass_fds=[{pipe.writer}])\n"
            f"os.write({pipe.writer}, b'up'); signal.pause()"
        )

        def run() -> object:
            return desist.subprocess.run(python(code), preexec_fn=os.setsid, pass_fds=[pipe.writer])

        with in_its_wait(run) as victim:
            pipe.hear("up")
            victim.cancel()
        pipe.rest()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wherever_a_kill_is_raised_the_child_has_ended() -> None:
    def run(pipe: Tied) -> None:
        desist.subprocess.run(
            "exec cat", shell=True, input=b"x", capture_output=True, pass_fds=[pipe.writer]
        )

    def check(pipe: Tied) -> None:
        with pipe:
            pipe.rest()

    with nothing_left():
        report = sweep_kills(run, check, setup=Tied)
    tell("run()", report)


# --- the other functions --------------------------------------------------------------------------

CALLS: dict[str, Callable[..., object]] = {
    "call": desist.subprocess.call,
    "check_call": desist.subprocess.check_call,
    "check_output": desist.subprocess.check_output,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_cancel_stops_the_child_of_every_function(name: str) -> None:
    with tied() as pipe:
        code = f"os.write({pipe.writer}, b'up')\nsignal.pause()"
        call = partial(CALLS[name], python(code), pass_fds=[pipe.writer])
        with in_its_wait(call) as victim:
            pipe.hear("up")
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        assert pipe.rest() == ""


def test_a_cancel_stops_a_shell() -> None:
    with tied() as pipe:
        # The shell has no descriptors but those of the standard streams.
        path = f"/proc/{os.getpid()}/fd/{pipe.writer}"
        command = f"exec 9>{path}; printf up >&9; sleep 1000 & wait"
        with in_its_wait(partial(desist.subprocess.getoutput, command)) as victim:
            pipe.hear("up")
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        assert pipe.rest() == ""


def test_results_of_the_other_functions_are_those_of_subprocess() -> None:
    ours = desist.subprocess
    assert ours.call(["false"]) == 1
    assert ours.check_call(["true"]) == 0
    with pytest.raises(ours.CalledProcessError) as failed:
        ours.check_call(args=["false"])
    assert failed.value.cmd == ["false"]
    assert ours.check_output(["cat"], input=b"in") == b"in"
    assert ours.check_output(["cat"], input=None) == b""
    assert ours.check_output(["cat"], input=None, text=True) == ""
    assert ours.getstatusoutput("echo out; echo err >&2; exit 3") == (3, "out\nerr")
    assert ours.getoutput("echo out") == "out"


def test_the_other_names_are_those_of_subprocess() -> None:
    assert desist.subprocess.PIPE is subprocess.PIPE
    assert desist.subprocess.TimeoutExpired is subprocess.TimeoutExpired
    assert desist.subprocess.list2cmdline is subprocess.list2cmdline
    assert set(subprocess.__all__) <= set(dir(desist.subprocess))
    with pytest.raises(AttributeError, match="nothing"):
        _ = desist.subprocess.nothing


# --- Popen ----------------------------------------------------------------------------------------


def test_a_block_that_is_cancelled_stops_its_child() -> None:
    with tied() as pipe:
        code = f"os.write({pipe.writer}, b'up')\nsignal.pause()"

        def block() -> None:
            with desist.subprocess.Popen(python(code), pass_fds=[pipe.writer]) as process:
                process.wait()

        with in_its_wait(block) as victim:
            pipe.hear("up")
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        assert pipe.rest() == ""


@pytest.mark.parametrize("policy", [AT_WAIT, FORCE, INSIST])
def test_a_block_that_is_killed_stops_its_child(policy: desist.StopPolicy) -> None:
    with tied() as pipe:
        code = f"os.write({pipe.writer}, b'up')\nsignal.pause()"

        def block() -> None:
            with desist.subprocess.Popen(python(code), pass_fds=[pipe.writer]) as process:
                process.communicate()

        with in_its_wait(block) as victim:
            pipe.hear("up")
            victim.kill(policy=policy)
        assert isinstance(victim.raised, Killed | Cancelled)
        assert pipe.rest() == ""


def test_a_block_waits_for_its_child_as_subprocess_has_it() -> None:
    with nothing_left(), pytest.raises(ZeroDivisionError):  # noqa: SIM117
        with desist.subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            raise ZeroDivisionError
    assert process.returncode == 0


def test_in_cancelled_code_no_popen_is_made() -> None:
    with nothing_left(), desist.move_on_after(0) as scope:
        desist.subprocess.Popen(["no such program"])
    assert scope.cancelled_caught


def test_a_command_that_is_not_there_leaves_nothing() -> None:
    with nothing_left(), pytest.raises(FileNotFoundError):
        desist.subprocess.Popen(["no such program"], stdout=subprocess.PIPE)


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_communicate_goes_on_where_it_was_ended(end: str) -> None:
    code = (
        "print(sys.stdin.readline().strip(), flush=True)\n"
        "os.read({0}, 1); print(len(sys.stdin.read()))"
    )
    with nothing_left(), ExitStack() as closing:
        reader, writer = os.pipe()
        for fd in (reader, writer):
            closing.callback(os.close, fd)
        options: dict[str, Any] = {"pass_fds": [reader], "text": True}
        options |= dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        with desist.subprocess.Popen(python(code.format(reader)), **options) as process:
            data = "first\n" + "x" * 1_000_000
            if end == "timeout":
                with pytest.raises(subprocess.TimeoutExpired):
                    process.communicate(data, timeout=0.01)
            else:
                with desist.move_on_after(0.01):
                    process.communicate(data)
            with pytest.raises(ValueError, match="after starting communication"):
                process.communicate("more")
            os.write(writer, b"x")
            assert process.communicate() == ("first\n1000000\n", None)
            assert process.communicate() == ("first\n1000000\n", None)
    assert process.returncode == 0


def test_output_buffered_before_is_part_of_the_output() -> None:
    with (
        nothing_left(),
        desist.subprocess.Popen(["printf", "one\\ntwo\\n"], stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        assert process.communicate()[0] == b"two\n"


def test_files_block_as_before_after_communicate_was_ended() -> None:
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with nothing_left(), desist.subprocess.Popen(["cat"], **pipes) as process:  # type: ignore[call-overload]
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(b"x" * 1_000_000, timeout=0)
        for file in (process.stdin, process.stdout):
            assert os.get_blocking(file.fileno())
        output, _ = process.communicate()
    assert len(output) == 1_000_000


# --- wait -----------------------------------------------------------------------------------------


@pytest.fixture(params=["a descriptor", "a thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which the end of a child is found out."""
    if request.param == "a thread":

        def refuse(_pid: int) -> int:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    return str(request.param)


@contextmanager
def cat() -> Iterator[desist.subprocess.Popen[bytes]]:
    """Run a child that ends with its input."""
    with nothing_left(), desist.subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def close_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def test_wait_returns_the_exit_code(way: str) -> None:
    assert way
    with cat() as process:
        with in_its_wait(process.wait) as victim:
            close_input(process)
        assert victim.results == [0]
        assert process.wait() == 0
    with desist.subprocess.Popen("kill -9 $$", shell=True) as process:
        assert process.wait(timeout=NEVER) == -9


def test_wait_leaves_the_child_running_when_it_is_cancelled(way: str) -> None:
    with cat() as process:
        with in_its_wait(process.wait) as victim:
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        for timeout in (0, -1, 0.01):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout)
        with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.01):
            process.wait()
        close_input(process)
        assert process.wait() == 0
    del way


def test_several_may_wait_for_one_child(way: str) -> None:
    del way
    with cat() as process:
        with (
            in_its_wait(process.wait) as one,
            in_its_wait(process.wait) as other,
        ):
            close_input(process)
        assert one.results == other.results == [0]


def test_run_works_without_descriptors_for_processes(way: str) -> None:
    assert desist.subprocess.run(["cat"], input=b"x", capture_output=True).stdout == b"x"
    with tied() as pipe:
        with in_its_wait(blocker(pipe)) as victim:
            pipe.hear("up")
            victim.cancel()
        assert isinstance(victim.raised, Cancelled)
        pipe.rest()
    del way


def test_a_child_that_was_reaped_elsewhere_has_ended() -> None:
    with nothing_left(), desist.subprocess.Popen(["true"]) as process:
        os.waitpid(process.pid, 0)
        assert process.wait() == 0  # as subprocess has it
    with cat() as process:

        def wait() -> int:
            return process.wait()

        with in_its_wait(wait) as victim:
            close_input(process)
            # One of the two reaps the child; the other gets ECHILD.
            with suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
        assert victim.results == [0]


def test_children_are_waited_for_without_sigchld() -> None:
    code = """
import signal
from desist import subprocess
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
    try:
        process.wait(timeout=0.01)
    except subprocess.TimeoutExpired:
        process.stdin.close()
    assert process.wait() == 0
assert subprocess.run(["cat"], input=b"x", capture_output=True).stdout == b"x"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_child_of_another_process_cannot_be_waited_for() -> None:
    with cat() as process:
        assert in_child(process.wait).startswith("ChildProcessError: process ")
        with desist.subprocess.Popen(["true"]) as other:
            assert other.wait() == 0
            other.returncode = None
            other.pid = os.getppid()  # as if its pid had been reused
            with pytest.raises(ChildProcessError, match="is not a child of this process"):
                other.wait()
            other.returncode = 0
        close_input(process)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no such descriptors here")
def test_without_a_free_descriptor_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_pid: int, _flags: int = 0) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with tied() as pipe:
        with pytest.raises(OSError, match="Too many open files"):
            blocker(pipe)()
        pipe.rest()
    with nothing_left():
        process = desist.subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with pytest.raises(OSError, match="Too many open files"):
            process.wait()
        close_input(process)
        monkeypatch.undo()
        assert process.wait() == 0
    with nothing_left(), monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", refuse)
        with pytest.raises(OSError, match="Too many open files"), cat():
            pass


def test_a_fork_during_run_takes_no_output_from_it() -> None:
    with tied() as pipe:
        code = f"os.write({pipe.writer}, b'up'); sys.stdin.read()"
        reader, writer = os.pipe()

        def run() -> object:
            return desist.subprocess.run(
                python(code), stdin=reader, pass_fds=[pipe.writer]
            ).returncode

        with in_its_wait(run) as victim:
            pipe.hear("up")

            def child() -> object:
                os.close(writer)
                return desist.subprocess.run(["cat"], input=b"x", capture_output=True).stdout

            assert in_child(child) == "b'x'"
            os.close(writer)
        os.close(reader)
        assert victim.results == [0]


def test_it_works_on_every_thread_and_many_at_once() -> None:
    def run() -> bytes:
        return desist.subprocess.run(["cat"], input=b"x", capture_output=True).stdout

    assert in_thread(run) == b"x"
    with nothing_left(), desist.WorkerPool[int, bytes](lambda _: run(), workers=4) as pool:
        futures = [pool.submit(number) for number in range(20)]
        assert [future.result(NEVER) for future in futures] == [b"x"] * 20


def test_the_way_of_windows_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desist.subprocess, "_WINDOWS", True)
    assert desist.subprocess.run(["cat"], input=b"x", capture_output=True).stdout == b"x"
    with nothing_left():
        with pytest.raises(subprocess.TimeoutExpired):
            desist.subprocess.run(python("signal.pause()"), capture_output=True, timeout=0.05)
        with pytest.raises(desist.DeadlineExceeded), desist.cancel_scope(timeout=0.05):
            desist.subprocess.run(python("signal.pause()"), capture_output=True)
    for thread in threading.enumerate():
        if thread.name == "desist-communicate":
            thread.join()
