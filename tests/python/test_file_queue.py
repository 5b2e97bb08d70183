"""FileQueue: a put item is on the disk, and the next process finds the items of an earlier one."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from queue import Full
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import FileQueue, QueueFileError, RetryPolicy, StopPolicy, WorkerPool
from support import NEVER, drained, ends_with_a_cancel, ends_with_a_kill, in_child, in_its_wait

if TYPE_CHECKING:
    from pathlib import Path

    from desist import Lease

AT_ONCE = RetryPolicy(max_attempts=3, backoff=0)
EMPTY = {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def program(code: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


def leased(queue: FileQueue[Any]) -> Lease[Any]:
    lease = queue.lease(0)
    assert lease is not None
    return lease


# --- items ----------------------------------------------------------------------------------------


def test_items_outlive_the_queue_that_they_were_put_into(path: Path) -> None:
    queue: FileQueue[object] = FileQueue(path)
    first, second = queue.put({"a": 1}), queue.put(("b", 2.5))
    del queue
    again: FileQueue[object] = FileQueue(path)
    lease = leased(again)
    assert (lease.id, lease.item, lease.attempt) == (first, {"a": 1}, 1)
    lease.ack()
    other = leased(again)
    assert other.item == ("b", 2.5)
    assert second > first
    assert again.counts() == {**EMPTY, "leased": 1, "done": 1}


def test_a_pool_takes_a_path(path: Path) -> None:
    done: list[str] = []
    with WorkerPool[str, None](lambda lease: done.append(lease.item), queue=str(path)) as pool:
        pool.submit("a").result()
    with WorkerPool[str, None](lambda lease: done.append(lease.item), queue=path) as pool:
        pool.submit("b")
    assert done == ["a", "b"]
    assert FileQueue[str](path).counts() == {**EMPTY, "done": 2}


def test_json_is_readable_by_other_programs(path: Path) -> None:
    queue: FileQueue[object] = FileQueue(path, codec="json")
    queue.put({"path": "/tmp/ä", "size": [1, 2]})
    read = program(
        """
        import sqlite3, sys
        with sqlite3.connect(sys.argv[1]) as db:
            print(db.execute("SELECT item FROM items").fetchone()[0].decode())
        """,
        path,
    )
    assert json.loads(read.communicate()[0]) == {"path": "/tmp/ä", "size": [1, 2]}
    assert leased(queue).item == {"path": "/tmp/ä", "size": [1, 2]}


def test_many_are_put_at_once_or_not_at_all(path: Path) -> None:
    queue: FileQueue[object] = FileQueue(path)
    with pytest.raises(TypeError, match="pickle refuses it"):
        queue.put_many([1, 2, lambda: None])
    assert queue.counts() == EMPTY
    assert queue.put_many(range(1000)) == list(range(1, 1001))
    assert queue.put_many([]) == []


def test_the_options_of_an_item_are_kept(path: Path) -> None:
    queue: FileQueue[str] = FileQueue(path, retry=AT_ONCE)
    queue.put("late", priority=1)
    soon = queue.put("soon", key="k")
    assert queue.put("another soon", key="k") == soon
    queue.put("later", delay=NEVER)
    held = [leased(queue) for _ in range(2)]
    assert [lease.item for lease in held] == ["soon", "late"]
    assert queue.lease(0) is None
    assert queue.counts() == {**EMPTY, "leased": 2, "delayed": 1}


def test_an_expired_item_is_dead_and_its_future_is_cancelled(path: Path) -> None:
    with WorkerPool[str, str](lambda lease: lease.item, queue=path) as pool:
        future = pool.submit("a", delay=NEVER, expires=0.01)
        with pytest.raises(desist.TaskCancelled, match="its time was over"):
            future.result()
        assert pool.submit("b", expires=NEVER).result() == "b"


def test_the_handler_of_a_cancelled_item_is_asked_to_stop(path: Path) -> None:
    def handler(lease: Lease[str]) -> None:
        assert lease.token.deadline < math.inf
        desist.sleep_forever()

    with WorkerPool(handler, queue=path) as pool:
        future = pool.submit("a", expires=0.05)
        with pytest.raises(desist.TaskCancelled):
            future.result()
        pool.drain()
        assert pool.queue.counts() == {**EMPTY, "dead": 1}


def test_progress_is_available_at_the_next_attempt(path: Path) -> None:
    queue: FileQueue[str] = FileQueue(path, retry=AT_ONCE)
    queue.put("a")
    seen: list[object] = []

    def handler(lease: Lease[str]) -> None:
        seen.append(lease.progress)
        lease.heartbeat({"half": lease.attempt})
        if lease.attempt < 3:
            raise ZeroDivisionError

    with WorkerPool(handler, queue=queue) as pool:
        pool.drain()
    assert seen == [None, {"half": 1}, {"half": 2}]


def test_dead_items_have_their_failures_and_can_be_retried(path: Path) -> None:
    def handler(_: Lease[str]) -> None:
        raise ZeroDivisionError("no luck")

    queue: FileQueue[str] = FileQueue(path, retry=AT_ONCE)
    with WorkerPool(handler, queue=queue) as pool, pytest.raises(ZeroDivisionError):
        pool.submit("a").result()
    [(item_id, item, why)] = FileQueue[str](path).dead()
    assert (item, len(why)) == ("a", 3)
    assert "ZeroDivisionError: no luck" in why[0]
    assert "in handler" in why[0]
    queue.retry(item_id)
    assert queue.counts()["ready"] == 1
    with pytest.raises(ValueError, match="is not dead"):
        queue.retry(item_id)


def test_both_futures_of_one_key_are_settled(path: Path) -> None:
    gate = threading.Event()

    def handler(lease: Lease[int]) -> int:
        gate.wait()
        return lease.item

    with WorkerPool(handler, queue=path, workers=1) as pool:
        one, two = pool.submit(1, key="k"), pool.submit(2, key="k")
        gate.set()
        assert (one.result(), two.result()) == (1, 1)
        assert one.item_id == two.item_id


# --- waits ----------------------------------------------------------------------------------------


def test_waits_for_work_and_for_room_can_be_cancelled_and_killed(path: Path) -> None:
    queue: FileQueue[int] = FileQueue(path, maxsize=1)
    ends_with_a_cancel(queue.lease)
    ends_with_a_kill(queue.lease)
    queue.put(1)
    ends_with_a_cancel(lambda: queue.put(2))
    ends_with_a_kill(lambda: queue.put(2))
    with pytest.raises(Full):
        queue.put(2, timeout=0)
    assert queue.counts()["ready"] == 1
    leased(queue).ack()
    assert queue.put(2) > 1


def test_processes_wake_each_other(path: Path) -> None:
    queue: FileQueue[str] = FileQueue(path)
    code = """
    import sys, desist
    queue = desist.FileQueue(sys.argv[1])
    lease = queue.lease()
    lease.ack()
    sys.stdin.readline()
    queue.put(lease.item + "!")
    """
    with program(code, path, stdin=subprocess.PIPE) as other:
        queue.put("hello")
        assert drained(queue)  # it waits for the ack of the other process
        with in_its_wait(queue.lease) as waiting:
            assert other.stdin is not None
            other.stdin.close()
            waiting.join()
        assert other.wait() == 0
    assert queue.counts()["leased"] == 1


# --- killed processes -----------------------------------------------------------------------------

WORKER = """
import os, sys, desist
effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
queue = desist.FileQueue(sys.argv[1], retry=desist.RetryPolicy(max_attempts=1000, backoff=0))
def handler(lease):
    os.write(effects, f"{lease.item} {lease.attempt}\\n".encode())
    lease.ack()
print("working", flush=True)
with desist.WorkerPool(handler, workers=int(sys.argv[3]), queue=queue) as pool:
    pool.drain()
"""


@pytest.mark.parametrize("workers", [1, 4])
def test_i33_no_item_is_lost_when_its_process_is_killed_again_and_again(
    tmp_path: Path, path: Path, workers: int
) -> None:
    items, kills, rng = 3000, 0, random.Random(workers)
    FileQueue[int](path).put_many(range(items))
    effects = tmp_path / "effects"
    finished = False
    while not finished:
        with program(WORKER, path, effects, workers) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            try:
                worker.wait(rng.uniform(0, 0.02) if kills < 50 else 60)
                finished = True
            except subprocess.TimeoutExpired:
                worker.kill()
                kills += 1
    lines = [line.split() for line in effects.read_text().splitlines()]
    done = Counter(int(item) for item, _ in lines)
    assert set(done) == set(range(items))
    again = sum(done.values()) - items
    assert again <= kills * workers
    # Every attempt is counted, and no other.
    last = {int(item): int(attempt) for item, attempt in lines}
    assert all(last[item] >= done[item] for item in done)
    assert sum(last.values()) - items <= kills * workers
    assert FileQueue[int](path).counts() == {**EMPTY, "done": items}


def test_i30_an_item_that_kills_its_process_is_dead_after_its_last_attempt(path: Path) -> None:
    queue: FileQueue[str] = FileQueue(path, retry=AT_ONCE)
    queue.put("poison")
    pids = []
    for _ in range(3):
        with program(
            """
            import os, signal, sys, desist
            retry = desist.RetryPolicy(max_attempts=3, backoff=0)
            queue = desist.FileQueue(sys.argv[1], retry=retry)
            lease = queue.lease()
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            path,
        ) as worker:
            assert worker.wait() == -signal.SIGKILL
            pids.append(str(worker.pid))
    with desist.fail_after(30):
        while queue.counts()["dead"] == 0:
            assert queue.lease(0.01) is None
    [(_, item, why)] = queue.dead()
    assert (item, len(why)) == ("poison", 3)
    assert all(pid in text for pid, text in zip(pids, why, strict=True))


# --- bad input ------------------------------------------------------------------------------------


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Ann, " * 1000)
    with pytest.raises(QueueFileError, match="not a queue of desist"):
        FileQueue(letter)
    assert letter.read_text() == "Dear Ann, " * 1000
    with pytest.raises(QueueFileError):
        FileQueue(tmp_path)
    with pytest.raises(QueueFileError):
        FileQueue(tmp_path / "no" / "such" / "folder")
    assert issubclass(QueueFileError, OSError)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"codec": "xml"}, ValueError, "codec must be 'pickle' or 'json', not 'xml'"),
        ({"lease_timeout": 0}, ValueError, "lease_timeout must be more than 0"),
        ({"lease_timeout": -1}, ValueError, "negative"),
        ({"maxsize": "many"}, TypeError, "int"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(
    path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FileQueue(path, **arguments)
    assert not path.exists()


def test_an_item_that_cannot_be_decoded_any_more_is_dead_and_stops_no_worker(path: Path) -> None:
    with program(
        """
        import sys, desist
        class Gone: pass
        queue = desist.FileQueue(sys.argv[1])
        queue.put(Gone())
        queue.put("good")
        """,
        path,
    ) as other:
        assert other.wait() == 0
    queue: FileQueue[object] = FileQueue(path, retry=AT_ONCE)
    done: list[object] = []
    with WorkerPool[object, None](lambda lease: done.append(lease.item), queue=queue):
        pass
    assert done == ["good"]
    assert queue.counts()["dead"] == 1


def test_a_forked_child_leaves_the_file_to_its_parent(path: Path) -> None:
    queue: FileQueue[str] = FileQueue(path)
    queue.put("a")

    def child() -> None:
        for use in (lambda: queue.put("b"), lambda: queue.lease(0), queue.counts, queue.dead):
            with pytest.raises(RuntimeError, match="forked"):
                use()

    assert in_child(child) == "None"
    held = leased(queue)
    assert held.item == "a"
    assert queue.counts()["leased"] == 1


def test_a_handler_may_leave_the_process_and_the_item_is_still_there(path: Path) -> None:
    FileQueue[str](path).put("a")
    with program(
        """
        import os, sys, desist
        with desist.WorkerPool(lambda lease: os._exit(3), queue=sys.argv[1]) as pool:
            pool.drain()
        """,
        path,
    ) as other:
        assert other.wait() == 3
    assert FileQueue[str](path).counts()["ready"] == 1


def test_a_full_disk_loses_nothing_and_says_so(path: Path) -> None:
    code = """
    import resource, signal, sys, desist
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    queue = desist.FileQueue(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    put = 0
    try:
        while True:
            queue.put(b"x" * 20_000)
            put += 1
    except desist.QueueFileError as full:
        print(put, queue.counts()["ready"], full)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    queue.put(b"x")
    """
    with program(
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + textwrap.dedent(code),
        path,
    ) as other:
        out, _ = other.communicate()
    put, ready, message = out.split(" ", 2)
    assert other.returncode == 0
    assert int(put) == int(ready) > 0
    assert "cannot be used" in message
    assert FileQueue[bytes](path).counts()["ready"] == int(put) + 1


def test_the_item_of_a_killed_worker_is_requeued_in_the_file(path: Path) -> None:
    begun = threading.Semaphore(0)

    def handler(lease: Lease[str]) -> int:
        begun.release()
        while lease.attempt == 1:
            pass
        return lease.attempt

    policy = StopPolicy(cooperative=0, at_wait=0)
    with WorkerPool(handler, queue=path, workers=1, policy=policy) as pool:
        future = pool.submit("a")
        begun.acquire()
        report = pool.workers[0].kill()
        assert report.requeued == [future.item_id]
        assert future.result() == 2
    assert FileQueue[str](path).counts() == {**EMPTY, "done": 1}


def test_read_only_files_are_refused(path: Path) -> None:
    FileQueue[str](path).put("a")
    path.chmod(0o444)
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    with pytest.raises(QueueFileError, match="cannot be written"):
        FileQueue(path)


def recurse(lease: Lease[str]) -> None:
    recurse(lease)


def leave(_: Lease[str]) -> None:
    sys.exit(3)


def fork(lease: Lease[str]) -> None:
    child = os.fork()
    if child == 0:
        try:
            lease.ack()
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    raise ChildProcessError


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("handler", "error"),
    [(recurse, RecursionError), (leave, SystemExit), (fork, ChildProcessError)],
)
def test_handlers_that_end_in_unusual_ways_have_failed(
    path: Path, handler: Any, error: type[BaseException]
) -> None:
    queue: FileQueue[str] = FileQueue(path, retry=AT_ONCE)
    with WorkerPool(handler, queue=queue, workers=2) as pool:
        with pytest.raises(error):
            pool.submit("a").result()
        assert pool.workers_alive() == 2
    [(_, _, why)] = queue.dead()
    assert [error.__name__ in text for text in why] == [True] * 3
