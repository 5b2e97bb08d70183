"""Work that still runs when the interpreter exits: python/desist/_exit.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import desist

SETTING = """
import sys, threading, time, desist

FAST = desist.StopPolicy(cooperative=0.05, at_wait=0.05, async_exc=0.05, trace=0.05, defer=0.05)
PATIENT = desist.StopPolicy(cooperative=1000)
inside, go_on = threading.Event(), threading.Event()
desist.set_foreign(False)  # the handlers are deaf

def polite(*_):
    try:
        inside.set()
        desist.sleep_forever()
    finally:
        with desist.cleanup():
            desist.sleep(0.001)
            print("cleaned up")

def deaf(*_):
    inside.set()
    while True:
        try:
            go_on.wait(0.001)
        except BaseException:
            pass

def blocked(*_):
    inside.set()
    go_on.wait()  # in C: no rung ends it

def quick(*_):
    inside.set()
    go_on.wait(0.05)
    print("done")
"""

OWNERS = {
    "executor": """
executor = desist.ThreadPoolExecutor(1, policy={policy})
executor.submit({work})
""",
    "pool": """
pool = desist.WorkerPool({work}, workers=1, policy={policy})
pool.submit(1)
""",
    "group": """
def block():
    with desist.TaskGroup(policy={policy}) as group:
        group.start_soon({work})
threading.Thread(target=block, daemon=True).start()
""",
}


def run(script: str, *arguments: str) -> tuple[str, str, float]:
    """Run a script; give its output, its warnings, and the seconds that it took to exit."""
    begin = "\nexits = time.monotonic()\nprint(exits)"
    line = [sys.executable, "-c", SETTING + script + begin, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines(keepends=True)
    stamps = [line for line in lines if line.strip().replace(".", "").isdecimal()]
    return (
        "".join(line for line in lines if line not in stamps),
        done.stderr,
        time.monotonic() - float(stamps[0]),
    )


def owner(kind: str, work: str, policy: str = "FAST") -> str:
    return OWNERS[kind].format(work=work, policy=policy) + "inside.wait()"


@pytest.mark.parametrize("kind", OWNERS)
def test_i44_work_that_is_polite_is_cancelled_at_exit_and_cleans_up(kind: str) -> None:
    out, err, seconds = run(owner(kind, "polite", "PATIENT"))
    assert out == "cleaned up\n"
    assert err.count("the interpreter exits, and stops a ") == 1
    assert seconds < 10


@pytest.mark.parametrize("work", ["deaf", "blocked"])
@pytest.mark.parametrize("kind", OWNERS)
def test_i44_work_that_is_deaf_delays_the_exit_no_longer_than_its_policy(
    kind: str, work: str
) -> None:
    _, err, seconds = run(owner(kind, work))
    assert "the interpreter exits, and stops a " in err
    assert seconds < 5


@pytest.mark.parametrize("kind", OWNERS)
def test_work_that_comes_to_its_own_end_meanwhile_is_not_reported(kind: str) -> None:
    out, err, _ = run(owner(kind, "quick", "PATIENT"))
    assert (out, err) == ("done\n", "")


@pytest.mark.parametrize("kind", OWNERS)
def test_without_work_nothing_is_reported(kind: str) -> None:
    script = OWNERS[kind].format(work="int", policy="FAST")
    rest = {
        "executor": "executor.shutdown()",
        "pool": "pool.drain()",
        "group": "threading.enumerate()[-1].join(10)",
    }
    out, err, _ = run(script.replace("int", "lambda *_: 1") + rest[kind])
    assert (out, err) == ("", "")


def test_all_owners_are_ended_side_by_side() -> None:
    owners = "inside.clear()".join(owner(kind, "deaf") + "\n" for kind in OWNERS for _ in range(4))
    _, err, seconds = run(owners)
    assert err.count("stops a ThreadPoolExecutor") == 4
    assert err.count("stops a WorkerPool") == 4
    assert err.count("stops a TaskGroup") == 4
    assert seconds < 10


def test_a_thread_that_is_no_daemon_uses_its_pool_to_the_end() -> None:
    out, err, _ = run("""
pool = desist.WorkerPool(lambda lease: lease.item, workers=1)
def use():
    threading.main_thread().join()  # the interpreter has begun to exit
    print([pool.submit(item).result() for item in range(3)])
threading.Thread(target=use).start()
""")
    assert (out, err) == ("[0, 1, 2]\n", "")


def test_the_items_of_a_file_are_ready_again(tmp_path: Path) -> None:
    path = tmp_path / "queue"
    _, err, _ = run(
        """
pool = desist.WorkerPool(polite, workers=1, queue=sys.argv[1])
pool.submit("first")
pool.submit("second")
inside.wait()
""",
        str(path),
    )
    assert "handlers that were cut off: 1; items that are not done: 2 (still in its queue)" in err
    assert desist.FileQueue(path).counts()["ready"] == 2


@pytest.mark.parametrize("handler", ["sleep", "swallow", "wait_shielded"])
def test_i44_a_worker_process_ends_before_the_interpreter(handler: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    out, err, seconds = run(
        f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
import process_handlers
pool = desist.WorkerPool(
    process_handlers.{handler},
    workers=1,
    isolation="process",
    policy=desist.ProcessStopPolicy(cooperative=0.05, sigterm=0.05, sigkill=10),
)
pool.submit(sys.argv[1])
with open(sys.argv[1]) as told:
    print("pid", told.readline())
""",
        str(told),
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(out.split()[1]), 0)
    assert "stops a WorkerPool: handlers that were cut off: 1" in err
    assert seconds < 10


def test_an_idle_worker_process_ends_before_the_interpreter_without_a_word() -> None:
    out, err, _ = run(f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
import process_handlers
pool = desist.WorkerPool(process_handlers.pid, workers=1, isolation="process")
print("pid", pool.submit(1).result())
""")
    with pytest.raises(ProcessLookupError):
        os.kill(int(out.split()[1]), 0)
    assert err == ""


def test_a_forked_child_leaves_the_work_of_its_parent_alone() -> None:
    out, err, _ = run("""
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: of a fork beside threads
pool = desist.WorkerPool(polite, workers=1)
future = pool.submit(1)
inside.wait()
if (child := os.fork()) == 0:
    sys.exit()
_, status = os.waitpid(child, 0)
print("status", status, future.done())
future.kill()
""")
    assert out == "status 0 False\ncleaned up\n"
    assert err == ""
