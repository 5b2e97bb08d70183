"""The main thread handles signals during every wait.

Each test is a process of its own. It prints a line when it is about to wait, and is signalled then,
again and again until it answers, because it may not have begun to wait yet.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

WAITS = {
    "sleep": "desist.sleep(1000)",
    "sleep_forever": "desist.sleep_forever()",
    "sleep in a scope": "with desist.cancel_scope(timeout=1000): desist.sleep(1000)",
    "lock": "lock.acquire()",
    "with lock": "with lock: pass",
    "token": "desist.CancelSource().token.wait()",
    "join": "thread.join()",
    "queue": "desist.LeaseQueue().lease()",
    "future": "desist.Future().result()",
    "kill": "desist_kill()",
}

PROLOGUE = """
import os, signal, sys, threading
import desist
lock = desist.Lock()
lock.acquire()
stuck = threading.Lock()
stuck.acquire()
thread = desist.Thread(target=stuck.acquire, daemon=True)
thread.start()
def desist_kill():
    thread.kill(policy=desist.StopPolicy(cooperative=1000))
def say(word):
    os.write(1, word.encode() + b"\\n")
"""


def talk(code: str, signum: int) -> list[str]:
    """Signal the process once after its first line; return its output of the next 0.4 s.

    A wait that a signal does not interrupt ends its time slice only after half a second.
    """
    script = PROLOGUE + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    wait_until_asleep(process.pid)
    process.send_signal(signum)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.split()


def wait_until_asleep(pid: int) -> None:
    """Wait until its main thread has been in a blocking system call for a while."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return
    calm = 0
    tick = threading.Event()
    while calm < 5:
        state = stat.read_text().rpartition(")")[2].split()[0]
        calm = calm + 1 if state == "S" else 0
        tick.wait(0.002)  # polls another process, whose waits cannot be observed otherwise


@pytest.mark.parametrize("name", WAITS)
def test_ctrl_c_ends_every_wait_at_once(name: str) -> None:
    said = talk(
        f"""
        import time
        say("waiting")
        try:
            {WAITS[name]}
        except KeyboardInterrupt:
            say("interrupted")
        assert lock.locked()
        """,
        signal.SIGINT,
    )
    assert said == ["interrupted"]


@pytest.mark.parametrize("name", ["sleep", "lock", "token", "join"])
def test_a_signal_handler_runs_at_once_and_the_wait_goes_on(name: str) -> None:
    said = talk(
        f"""
        source = desist.CancelSource()
        def handler(*_):
            say("handled")
            source.cancel("from the handler")
            assert source.token.cancelled
            scope.cancel()
        signal.signal(signal.SIGUSR1, handler)
        with desist.move_on_after(1000) as scope:
            say("waiting")
            {WAITS[name]}
        assert scope.cancelled_caught
        say("left")
        """,
        signal.SIGUSR1,
    )
    assert said == ["handled", "left"]


def test_a_handler_that_raises_in_a_wait_leaves_the_lock_as_it_was() -> None:
    said = talk(
        """
        def handler(*_):
            raise ZeroDivisionError
        signal.signal(signal.SIGUSR1, handler)
        say("waiting")
        try:
            lock.acquire()
        except ZeroDivisionError:
            say("raised")
        lock.release()
        with lock:
            say("free")
        """,
        signal.SIGUSR1,
    )
    assert said == ["raised", "free"]


def test_a_signal_to_another_thread_is_handled_by_the_main_thread() -> None:
    said = talk(
        """
        def handler(*_):
            say("handled")
            scope.cancel()
        signal.signal(signal.SIGUSR1, handler)
        other = desist.Thread(target=desist.sleep_forever, daemon=True)
        other.start()
        with desist.move_on_after(1000) as scope:
            say("waiting")
            desist.sleep_forever()
        say("left")
        """,
        signal.SIGUSR1,
    )
    assert said == ["handled", "left"]


def test_handlers_run_long_before_the_end_of_the_time_slice() -> None:
    # From the parent's signal to the child's answer, over several signals: the best of them is
    # far below the half second after which the main thread's time slice would end.
    script = PROLOGUE + textwrap.dedent(
        """
        signal.signal(signal.SIGUSR1, lambda *_: say("handled"))
        signal.signal(signal.SIGUSR2, lambda *_: scope.cancel())
        with desist.move_on_after(1000) as scope:
            say("waiting")
            desist.sleep_forever()
        """
    )
    import time

    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    delays = []
    for _ in range(5):
        wait_until_asleep(process.pid)
        before = time.monotonic()
        os.kill(process.pid, signal.SIGUSR1)
        assert process.stdout.readline() == b"handled\n"
        delays.append(time.monotonic() - before)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 0
    process.stdout.close()
    assert min(delays) < 0.1


def test_a_threads_name_is_found_without_running_python_code() -> None:
    code = """
import _thread, threading, desist
threading.current_thread = None  # where a signal handler might raise
source = desist.CancelSource()
source.cancel()
assert source.token.cause.by_thread == "MainThread"
lock, foreign = desist.Lock(), desist.CancelSource()
names = []
def stranger():
    with lock:
        names.append(lock.owner())
    foreign.cancel()
    over.release()
over = _thread.allocate_lock()
over.acquire()
_thread.start_new_thread(stranger, ())
over.acquire()
assert names == ["a thread"]
assert foreign.token.cause.by_thread is None
assert len(threading.enumerate()) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
