from __future__ import annotations

import collections
import gc
import math
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import desist
import process_handlers as handlers
from desist import (
    CauseKind,
    KillOutcome,
    KillReport,
    LeaseQueue,
    ProcessStopPolicy,
    RetryPolicy,
    TaskCancelled,
    WorkerDied,
    WorkerPool,
)
from support import NEVER, Victim, in_child, until_asleep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux and its pidfd")

HERE = Path(__file__).parent
AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)
TERMINATE = ProcessStopPolicy(cooperative=0, sigterm=NEVER, sigkill=None)
KILL = ProcessStopPolicy(cooperative=0, sigterm=0)


def pool_of(
    handler: Callable[[Any], Any],
    *,
    workers: int = 1,
    policy: ProcessStopPolicy = TERMINATE,
    retry: RetryPolicy = AT_ONCE,
) -> WorkerPool[Any, Any]:
    queue: LeaseQueue[Any] = LeaseQueue(retry=retry)
    return WorkerPool(handler, workers=workers, queue=queue, isolation="process", policy=policy)


class Told:
    """Lines that handlers write."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        # Open for writing as well, so that the pipe has no end of file.
        self._lines = os.fdopen(os.open(path, os.O_RDWR))

    def line(self) -> str:
        return self._lines.readline().strip()

    def pid(self) -> int:
        return int(self.line())

    def close(self) -> None:
        self._lines.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path / "told")
    yield told
    told.close()


class Process:
    """A process whose end can be waited for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def has_gone(self) -> bool:
        """Wait for the end of the process."""
        desist.wait_readable(self._fd, NEVER)
        os.close(self._fd)
        return True


# --- results --------------------------------------------------------------------------------------


def test_futures_have_the_handlers_result() -> None:
    with pool_of(handlers.double, workers=2) as pool:
        futures = [pool.submit(item) for item in range(20)]
        assert [future.result() for future in futures] == [item * 2 for item in range(20)]
    assert pool.queue.counts()["done"] == 20


def test_the_handler_runs_in_a_process_that_stays() -> None:
    with pool_of(handlers.pid) as pool:
        pids = {pool.submit(None).result() for _ in range(5)}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_a_lease_has_the_same_attributes() -> None:
    with pool_of(handlers.face) as pool:
        future = pool.submit("it")
        item, number, attempt, epoch, cancelled, text = future.result()
    assert (item, number, attempt, cancelled) == ("it", future.item_id, 1, False)
    assert epoch > 0
    assert text == f"<Lease of item {number} attempt 1>"


def test_a_handler_may_set_the_result() -> None:
    with pool_of(handlers.acknowledge) as pool:
        assert pool.submit(1).result() == 2


def test_i29_a_second_acknowledgement_is_fenced_in_the_child() -> None:
    with pool_of(handlers.acknowledge_twice) as pool:
        assert "lease is over" in pool.submit(1).result()


def test_a_handler_may_requeue_its_lease() -> None:
    with pool_of(handlers.hand_back) as pool:
        assert pool.submit(1).result() == 3


def test_an_exception_has_the_traceback_of_the_child() -> None:
    with pool_of(handlers.fail) as pool:
        with pytest.raises(ZeroDivisionError, match="3") as raised:
            pool.submit(1).result()
        assert "in fail" in str(raised.value.__cause__)
    [(_, _, failures)] = pool.queue.dead()
    assert [str(failure) for failure in failures] == ["1", "2", "3"]


def test_an_exception_that_cannot_be_pickled_is_described() -> None:
    with pool_of(handlers.fail_in_a_way_of_its_own) as pool:
        with pytest.raises(RuntimeError, match="OnlyHereError: cannot be made again") as raised:
            pool.submit(1).result()
        assert "in fail_in_a_way_of_its_own" in str(raised.value.__cause__)


def test_a_handler_ends_its_item_early(told: Told) -> None:
    with pool_of(handlers.end_early) as pool:
        with pytest.raises(TaskCancelled, match="no such page"):
            pool.submit("discard").result()
        future = pool.submit(f"snooze {told.path}")
        assert future.result() == 1
        assert [told.line() for _ in range(3)] == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("types", "attempts"),
    [
        ({}, 3),
        ({"retry_for": ZeroDivisionError}, 1),
        ({"retry_for": LookupError}, 3),
        ({"discard_for": LookupError}, 1),
        ({"discard_for": ZeroDivisionError}, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "handler", [handlers.fail_with_key_error, handlers.fail_in_a_way_of_its_own]
)
def test_the_type_of_an_exception_is_judged_as_it_was_raised(
    handler: Callable[[Any], Any], types: dict[str, Any], attempts: int
) -> None:
    retry = RetryPolicy(max_attempts=3, backoff=0, **types)
    with pool_of(handler, retry=retry) as pool:
        assert pool.submit(1).exception() is not None
    [(_, _, failures)] = pool.queue.dead()
    assert len(failures) == attempts


def test_work_whose_process_died_is_retried_unless_the_policy_discards_it() -> None:
    for types, attempts in (({"retry_for": OSError}, 3), ({"discard_for": WorkerDied}, 1)):
        retry = RetryPolicy(max_attempts=3, backoff=0, **types)
        with pool_of(handlers.always_dies, retry=retry) as pool:
            assert isinstance(pool.submit(1).exception(), WorkerDied)
        [(_, _, failures)] = pool.queue.dead()
        assert len(failures) == attempts


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_large_items_and_results_pass(size: int) -> None:
    with pool_of(handlers.same) as pool:
        assert pool.submit(bytes(size)).result() == bytes(size)


# --- bad input ------------------------------------------------------------------------------------


def test_a_handler_that_cannot_be_pickled_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match="top level of a module"):
        pool_of(lambda lease: lease.item)


def test_an_item_that_cannot_be_pickled_is_refused_at_once() -> None:
    with pool_of(handlers.same) as pool:
        with pytest.raises(TypeError, match="the item cannot be sent to another process"):
            pool.submit(lambda: None)
        assert pool.submit(1).result() == 1


def test_an_item_that_was_put_and_cannot_be_pickled_is_dead_with_the_reason() -> None:
    with pool_of(handlers.same) as pool:
        pool.queue.put(lambda: None)
    [(_, _, failures)] = pool.queue.dead()
    assert all("the item cannot be sent" in str(failure) for failure in failures)


def test_an_item_that_cannot_be_unpickled_in_the_child_fails() -> None:
    with pool_of(handlers.same) as pool, pytest.raises(ValueError, match="not a number"):
        pool.submit(handlers.Unreadable()).result()


def test_a_result_that_cannot_be_pickled_fails_with_advice() -> None:
    with pool_of(handlers.function) as pool, pytest.raises(TypeError, match="return something"):
        pool.submit(1).result()


def test_a_result_that_cannot_be_unpickled_in_the_parent_fails_with_advice() -> None:
    with pool_of(handlers.unreadable) as pool, pytest.raises(TypeError, match="unpickled here"):
        pool.submit(1).result()


def test_an_unknown_isolation_is_refused() -> None:
    with pytest.raises(ValueError, match='"thread" or "process"'):
        WorkerPool(handlers.same, isolation="subinterpreter")  # type: ignore[arg-type]


def test_a_handler_that_forks_has_one_result() -> None:
    with pool_of(handlers.fork) as pool:
        pids = {pool.submit(1).result() for _ in range(3)}
        assert len(pids) == 1


def alone(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        timeout=50,
    )


def test_a_main_module_that_cannot_be_imported_twice_is_explained(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import desist, process_handlers\n"
        "retry = desist.RetryPolicy(max_attempts=1)\n"
        "queue = desist.LeaseQueue(retry=retry)\n"
        "with desist.WorkerPool(process_handlers.same, workers=1, queue=queue,\n"
        "                       isolation='process') as pool:\n"
        "    print(pool.submit(1).exception())\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        timeout=50,
    )
    assert "could not start" in run.stdout
    assert "__main__" in run.stdout
    assert run.returncode == 0, run.stderr


# --- processes that die ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "item", "code", "says"),
    [
        (handlers.exit_at_once, 7, 7, "exit code 7"),
        (handlers.exit_by_exception, 7, 7, "exit code 7"),
        (handlers.crash, 0, -signal.SIGSEGV, "PYTHONFAULTHANDLER"),
        (handlers.signal_itself, int(signal.SIGKILL), -signal.SIGKILL, "out of memory"),
        (handlers.signal_itself, int(signal.SIGTERM), 0, "another program sent it SIGTERM"),
    ],
)
def test_i31_the_item_of_a_process_that_dies_is_tried_again(
    handler: Callable[[Any], int], item: int, code: int, says: str
) -> None:
    died = dead_of(handler, item)
    assert died.exitcode == code
    assert says in str(died)
    with pool_of(handler) as pool:
        assert pool.submit(item).result() == 2
    assert pool.queue.counts()["done"] == 1


def dead_of(handler: Callable[[Any], int], item: int) -> WorkerDied:
    queue: LeaseQueue[int] = LeaseQueue(retry=RetryPolicy(max_attempts=1))
    with WorkerPool(handler, workers=1, queue=queue, isolation="process") as pool:
        died = pool.submit(item).exception()
    assert isinstance(died, WorkerDied)
    return died


def test_i30_an_item_whose_process_always_dies_is_dead_in_the_end() -> None:
    with pool_of(handlers.always_dies) as pool, pytest.raises(WorkerDied, match="exit code 3"):
        pool.submit(1).result()
    [(_, _, failures)] = pool.queue.dead()
    codes = [failure.exitcode for failure in failures if isinstance(failure, WorkerDied)]
    assert codes == [1, 2, 3]


def test_an_idle_process_that_dies_costs_no_attempt() -> None:
    with pool_of(handlers.face) as pool:
        pool.submit(1).result()
        [child] = pool._roster.children
        assert child._child is not None
        process = Process(child._child.pid)
        os.kill(process.pid, signal.SIGKILL)
        assert process.has_gone()
        assert pool.submit(1).result()[2] == 1


def test_worker_died_can_be_pickled() -> None:
    died = pickle.loads(pickle.dumps(WorkerDied("so", -9)))
    assert (str(died), died.exitcode) == ("so", -9)


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "policy", "outcome"),
    [
        (handlers.wait, ProcessStopPolicy(cooperative=NEVER), KillOutcome.COOPERATIVE),
        (handlers.look, ProcessStopPolicy(cooperative=NEVER), KillOutcome.COOPERATIVE),
        (handlers.wait_shielded, TERMINATE, KillOutcome.SIGTERM),
        (handlers.sleep, TERMINATE, KillOutcome.SIGTERM),
        (handlers.swallow, ProcessStopPolicy(cooperative=0, sigterm=0.2), KillOutcome.SIGKILL),
        (handlers.block, ProcessStopPolicy(cooperative=0, sigterm=0.2), KillOutcome.SIGKILL),
        (handlers.sleep, KILL, KillOutcome.SIGKILL),
        (handlers.sleep, ProcessStopPolicy(cooperative=0, sigterm=None), KillOutcome.SIGKILL),
    ],
)
def test_i31_the_item_of_a_killed_process_is_leased_again(
    told: Told, handler: Callable[[Any], int], policy: ProcessStopPolicy, outcome: KillOutcome
) -> None:
    with pool_of(handler, policy=policy) as pool:
        future = pool.submit(told.path)
        process = Process(told.pid())
        report = pool.workers[0].kill("enough")
        assert report.outcome is outcome
        assert report.requeued == [future.item_id]
        assert outcome is KillOutcome.COOPERATIVE or process.has_gone()
        assert future.result() == 2
        assert pool.workers_alive() == 1


def test_the_report_has_the_stack_at_the_sigterm(told: Told) -> None:
    with pool_of(handlers.sleep) as pool:
        pool.submit(told.path)
        told.pid()
        assert ", in sleep\n" in str(pool.workers[0].kill().stack)


def test_clean_up_code_runs_on_sigterm(told: Told) -> None:
    with pool_of(handlers.sleep_with_finally) as pool:
        pool.submit(told.path)
        told.pid()
        assert pool.workers[0].kill().outcome is KillOutcome.SIGTERM
        assert told.line() == "cleaned"


def test_child_processes_of_the_handler_are_killed_with_it(told: Told) -> None:
    with pool_of(handlers.start_others, policy=KILL) as pool:
        pool.submit(told.path)
        processes = [Process(int(pid)) for pid in told.line().split()]
        assert pool.workers[0].kill().outcome is KillOutcome.SIGKILL
        assert all(process.has_gone() for process in processes)


def test_an_idle_worker_has_nothing_to_kill() -> None:
    with pool_of(handlers.pid) as pool:
        before = pool.submit(1).result()
        while pool.queue.counts()["leased"]:
            os.sched_yield()
        assert pool.workers[0].kill().outcome in (KillOutcome.ALREADY_DONE, KillOutcome.COOPERATIVE)
        assert pool.submit(1).result() == before


def test_a_process_that_may_not_be_killed_is_abandoned_and_ends_with_the_pool(told: Told) -> None:
    policy = ProcessStopPolicy(cooperative=0, sigterm=0.05, sigkill=None)
    with pool_of(handlers.block, policy=policy) as pool:
        future = pool.submit(told.path)
        process = Process(told.pid())
        report = pool.workers[0].kill()
        assert report.outcome is KillOutcome.ABANDONED
        assert report.fenced == [future.item_id]
        assert future.result() == 2
    assert process.has_gone()


def test_i32_a_kill_waits_for_a_commit_and_the_committed_item_is_done(
    told: Told, tmp_path: Path
) -> None:
    go_on = Told(tmp_path / "go on")
    with pool_of(handlers.commit_slowly, policy=KILL) as pool:
        future = pool.submit((told.path, go_on.path))
        told.line()

        def kill(ready: Callable[[], None]) -> object:
            ready()
            return pool.workers[0].kill()

        with Victim(kill) as killer:
            until_asleep(killer)
            handlers.tell(go_on.path)
        [report] = killer.results
        assert isinstance(report, KillReport)
        assert report.outcome is KillOutcome.SIGKILL
        assert report.requeued == []
        assert future.result() == 1
        assert pool.queue.counts()["done"] == 1
    go_on.close()


def test_i22_a_kill_never_hits_the_next_item() -> None:
    # If this thread is slow, all kills hit the same item.
    retry = RetryPolicy(max_attempts=100, backoff=0)
    with pool_of(handlers.attempt, policy=KILL, retry=retry) as pool:
        futures = [pool.submit(item) for item in range(400)]
        requeued = 0
        for future in futures[::20]:
            future.result()
            requeued += len(pool.workers[0].kill().requeued)
        attempts = [future.result() for future in futures]
    assert sum(attempts) == len(attempts) + requeued


# --- cancelled items ------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [handlers.wait, handlers.look])
def test_i31_a_cancelled_item_is_stopped_in_the_child_and_not_tried_again(
    told: Told, handler: Callable[[Any], int]
) -> None:
    with pool_of(handler) as pool:
        future = pool.submit(told.path)
        process = told.pid()
        assert pool.cancel_item(future.item_id, "unwanted")
        with pytest.raises(TaskCancelled, match="unwanted") as raised:
            future.result()
        assert raised.value.cause.kind is CauseKind.EXPLICIT
        if handler is handlers.wait:
            assert told.line() == "EXPLICIT unwanted"
        again = pool.submit(told.path)
        assert told.pid() == process
        again.cancel()
    assert pool.queue.counts()["dead"] == 2


def test_without_a_deadline_in_the_parent_the_child_has_none() -> None:
    with pool_of(handlers.effective_deadline) as pool:
        assert pool.submit(1).result() == math.inf


# --- no process is left ---------------------------------------------------------------------------


def test_stop_leaves_no_process(told: Told) -> None:
    pool = pool_of(handlers.block, workers=2, policy=KILL)
    pool.submit(told.path)
    pool.submit(told.path)
    processes = [Process(told.pid()) for _ in range(2)]
    pool.stop()
    assert all(process.has_gone() for process in processes)
    assert pool.queue.counts()["ready"] == 2


def test_a_dropped_pool_leaves_no_process(told: Told) -> None:
    pool = pool_of(handlers.block, policy=ProcessStopPolicy(sigterm=0.1))
    queue = pool.queue
    queue.put(told.path)  # a future would keep the pool alive
    process = Process(told.pid())
    del pool
    gc.collect()
    assert process.has_gone()
    assert queue.dead() == []


PARENT = """
import sys, desist, process_handlers as handlers
pool = desist.WorkerPool(
    handlers.{handler}, workers=1, isolation="process", policy=desist.ProcessStopPolicy(sigterm=0.1)
)
pool.submit(sys.argv[1])
{then}
"""


def test_a_process_that_exits_leaves_none(told: Told) -> None:
    then = "process_handlers = None\nhandlers.until_told(sys.argv[2])"
    go_on = Told(Path(told.path).with_name("go on"))
    parent = start(PARENT.format(handler="start_others", then=then), told.path, go_on.path)
    processes = [Process(int(pid)) for pid in told.line().split()]
    handlers.tell(go_on.path)
    assert parent.wait(NEVER) == 0
    assert all(process.has_gone() for process in processes)
    go_on.close()


@pytest.mark.parametrize("handler", ["start_others", "block", "swallow"])
def test_i33_a_process_that_is_killed_leaves_none(told: Told, handler: str) -> None:
    parent = start(PARENT.format(handler=handler, then="pool.drain()"), told.path)
    processes = [Process(int(pid)) for pid in told.line().split()]
    parent.kill()
    assert parent.wait(NEVER) == -signal.SIGKILL
    assert all(process.has_gone() for process in processes)


def test_i33_also_if_a_fork_of_it_keeps_its_descriptors_open(told: Told) -> None:
    then = (
        "import os\n"
        "if os.fork() == 0: handlers.tell(sys.argv[1], os.getpid()); handlers.until_killed()\n"
        "pool.drain()"
    )
    parent = start(PARENT.format(handler="block", then=then), told.path)
    pids = [told.pid(), told.pid()]
    [forked] = [pid for pid in pids if parent_of(pid) == parent.pid and same_program(pid, parent)]
    [worker] = [pid for pid in pids if pid != forked]
    process = Process(worker)
    parent.kill()
    parent.wait(NEVER)
    assert process.has_gone()
    os.kill(forked, signal.SIGKILL)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def same_program(pid: int, parent: subprocess.Popen[bytes]) -> bool:
    lines = [Path(f"/proc/{one}/cmdline").read_bytes() for one in (pid, parent.pid)]
    return lines[0] == lines[1]


def start(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(HERE)})


def test_i37_a_forked_child_leaves_the_parents_processes_alone() -> None:
    with pool_of(handlers.pid) as pool:
        before = pool.submit(1).result()

        def child() -> object:
            pool.stop()
            for one in pool._roster.children:
                one.dismiss()
            with pytest.raises(RuntimeError, match="make a new pool after a fork"):
                pool.submit(1)
            with pool_of(handlers.pid) as own:
                return own.submit(1).result() != before

        assert in_child(child) == "True"
        assert pool.submit(1).result() == before


# --- random kills ---------------------------------------------------------------------------------


def test_i33_nothing_is_lost_when_processes_are_killed_at_random(
    told: Told, tmp_path: Path
) -> None:
    items, kills, workers = 3000, 60, 3
    chance = random.Random(33)
    effects = tmp_path / "effects"
    effects.touch()
    queue: LeaseQueue[Any] = LeaseQueue(retry=RetryPolicy(max_attempts=kills + 1, backoff=0))
    killed: set[int] = set()
    with WorkerPool(handlers.append, workers=workers, queue=queue, isolation="process"):
        for number in range(items):
            queue.put((str(effects), told.path, number))
        # Each item writes the process that works on it.
        while len(killed) < kills:
            for _ in range(chance.randint(0, 20)):
                told.pid()
            pid = told.pid()
            while pid in killed:
                pid = told.pid()
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
    attempts = collections.defaultdict(list)
    for line in effects.read_text().splitlines():
        number, attempt = map(int, line.split())
        attempts[number].append(attempt)
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": items, "dead": 0}
    assert sorted(attempts) == list(range(items))
    assert all(one == sorted(set(one)) for one in attempts.values())
    assert len(killed) >= 50
    assert sum(max(one) - 1 for one in attempts.values()) <= len(killed)
