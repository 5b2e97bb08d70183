"""Processes that are terminated from outside, and daemon threads at the exit of a process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

import desist
import recipes
from desist import LeaseQueue, LockPoisoned, Thread
from desist.compat import cancel_at_exit
from support import INSIST, Victim, spin

# --- terminate() of a process ---------------------------------------------------------------------


def test_a_terminated_process_leaves_a_lock_held() -> None:
    told = recipes.alone(recipes.a_terminated_process_leaves_a_lock_held)
    assert told == ["held without a holder: True"]


def test_a_killed_thread_leaves_a_poisoned_lock() -> None:
    lock = desist.Lock(name="accounts")

    def body(ready: Any) -> None:
        with lock:
            spin(ready)

    with Victim(body) as victim:
        victim.kill(policy=INSIST)
    with pytest.raises(LockPoisoned, match="victim was killed while it held"):
        lock.acquire()
    with lock.repair():
        pass
    assert lock.acquire(blocking=False)


def test_a_terminated_process_leaves_a_queue_locked() -> None:
    told = recipes.alone(recipes.a_terminated_process_leaves_a_queue_locked)
    assert told == ["every get() hangs: True"]


def test_the_item_of_a_killed_worker_goes_to_the_next_one() -> None:
    queue: LeaseQueue[int] = LeaseQueue()
    begun = threading.Event()
    seen: list[int] = []

    def handler(lease: desist.Lease[int]) -> None:
        seen.append(lease.item)
        begun.set()
        while len(seen) < 2:
            pass

    with desist.WorkerPool(handler, workers=1, queue=queue, policy=INSIST) as pool:
        pool.submit(1)
        begun.wait()
        pool.workers[0].kill()
    assert seen == [1, 1]
    assert queue.counts()["done"] == 1


# A handler would race with signal.pause(): a signal just before the call would not end it.
CHILD = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("cleaned up", flush=True)
"""


def test_a_child_of_run_gets_a_signal_and_time_to_clean_up() -> None:
    reader, writer = os.pipe()
    thread = Thread(
        target=desist.subprocess.run,
        args=([sys.executable, "-c", CHILD],),
        kwargs={"stdout": writer},
    )
    with os.fdopen(reader) as said:
        thread.start()
        assert said.readline() == "ready\n"
        os.close(writer)
        thread.cancel()
        thread.join()
        assert said.read() == "cleaned up\n"


# --- daemon threads at exit -----------------------------------------------------------------------


def ends_with(script: str) -> list[str]:
    line = [sys.executable, "-W", "error", "-c", SETTING + script]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


SETTING = """
import atexit, threading, desist
from desist.compat import cancel_at_exit

ready = threading.Event()

def body():
    try:
        ready.set()
        desist.sleep_forever()
    finally:
        with desist.cleanup():
            desist.sleep(0.01)
            print("cleaned up")

def stubborn():
    with desist.shield(1000):
        body()

thread = desist.Thread(target=body, daemon=True)
"""


def test_a_daemon_does_not_clean_up() -> None:
    assert recipes.alone(recipes.a_daemon_does_not_clean_up) == ["the process ends"]


def test_a_daemon_that_is_cancelled_at_exit_cleans_up() -> None:
    assert ends_with("""
cancel_at_exit(thread)
thread.start()
ready.wait()
print("the process ends")
""") == ["the process ends", "cleaned up"]


def test_it_is_cancelled_when_no_other_thread_needs_it_any_more() -> None:
    assert ends_with("""
def other():
    threading.main_thread().join()  # the interpreter has begun to exit
    print("needs it", thread.is_alive())

cancel_at_exit(thread)
thread.start()
ready.wait()
threading.Thread(target=other).start()
""") == ["needs it True", "cleaned up"]


def test_handlers_registered_before_run_after_its_end_and_later_ones_while_it_runs() -> None:
    assert ends_with("""
atexit.register(lambda: print("before", thread.is_alive()))
cancel_at_exit(thread)
atexit.register(lambda: print("after", thread.is_alive()))
thread.start()
ready.wait()
""") == ["after True", "cleaned up", "before False"]


def test_all_are_cancelled_at_once_and_each_is_waited_for_no_longer_than_its_grace() -> None:
    assert ends_with("""
deaf = desist.Thread(target=stubborn, daemon=True)
cancel_at_exit(deaf, grace=0.05)
cancel_at_exit(thread)
cancel_at_exit(desist.Thread(daemon=True))  # never started
for one in (deaf, thread):
    ready.clear()
    one.start()
    ready.wait()
atexit.register(lambda: print("exits"))
""") == ["exits", "cleaned up"]


def test_an_ended_thread_is_forgotten() -> None:
    from desist.compat import _at_exit

    thread = Thread(target=int, daemon=True)
    cancel_at_exit(thread)
    assert thread in _at_exit._graces
    thread.start()
    thread.join()
    del thread
    assert not _at_exit._graces


def test_an_object_that_cannot_be_cancelled_at_exit_is_refused() -> None:
    wrong: Any = threading.Thread(daemon=True)
    with pytest.raises(TypeError, match=r"must be a desist\.Thread, not Thread"):
        cancel_at_exit(wrong)
    with pytest.raises(ValueError, match="is no daemon"):
        cancel_at_exit(Thread())
    for grace in (-1, math.nan):
        with pytest.raises(ValueError, match="must not be"):
            cancel_at_exit(Thread(daemon=True), grace=grace)
    none: Any = "5"
    with pytest.raises(TypeError, match="number"):
        cancel_at_exit(Thread(daemon=True), grace=none)
