"""The files of a FileQueue: their permissions, those that are refused, and those that are gone."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

import desist
from desist import FileQueue, PoolFailed, QueueFileError, WorkerPool
from support import in_its_wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BESIDE = ["-wal", "-shm", "-journal", "-wake"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "queue"
    folder.mkdir()
    return folder / "jobs.db"


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def program(code: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def modes(path: Path) -> set[int]:
    return {
        stat.S_IMODE(beside(path, ending).stat().st_mode) for ending in ["", *BESIDE[:2], "-wake"]
    }


# --- permissions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o644], ids=oct)
def test_the_files_have_the_permissions_of_the_mode_whatever_the_umask_is(
    path: Path, umask: int, mode: int
) -> None:
    code = """
    import desist, sys
    queue = desist.FileQueue(sys.argv[1], mode=int(sys.argv[2]))
    queue.put(1)
    print("open", flush=True)
    sys.stdin.read()
    """
    with program(code, path, mode, umask=umask) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert modes(path) == {mode}


def test_the_files_are_for_their_user_alone_by_default(path: Path) -> None:
    queue: FileQueue[int] = FileQueue(path)
    queue.put(1)
    assert modes(path) == {0o600}
    with WorkerPool[int, int](lambda lease: lease.item, queue=beside(path, ".pool")) as pool:
        assert pool.submit(1).result() == 1
        assert modes(beside(path, ".pool")) == {0o600}


@pytest.mark.parametrize("mode", [0, 0o060, 0o400, 0o700, 0o1600, -1, 10**30])
def test_permissions_that_no_queue_can_have_are_refused(path: Path, mode: int) -> None:
    with pytest.raises((ValueError, OverflowError), match=r"mode must be|too"):
        FileQueue(path, mode=mode)
    with pytest.raises(TypeError):
        FileQueue(path, mode="rw")  # type: ignore[arg-type]
    assert not path.exists()


class Effect:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_items_are_unpickled_only_from_a_file_that_no_other_user_can_write(path: Path) -> None:
    effect = path.with_name("effect")
    FileQueue[Effect](path).put(Effect(effect))
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        for use in (FileQueue, lambda path: WorkerPool(lambda _: None, queue=path)):
            with pytest.raises(QueueFileError, match=r"other users can write it.*chmod go-w.*json"):
                use(path)
        assert not effect.exists()
        assert FileQueue[object](path, codec="json").counts()["ready"] == 1
        again: FileQueue[object] = FileQueue(path, mode=mode)
        assert again.counts()["ready"] == 1
        del again
    path.chmod(0o600)
    lease = FileQueue[Effect](path).lease(0)
    assert lease is not None
    assert effect.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_items_are_not_unpickled_from_the_file_of_another_user(path: Path) -> None:
    FileQueue[int](path).put(1)
    os.chown(path, 12345, os.getegid())
    with pytest.raises(QueueFileError, match=r"belongs to another user.*chown"):
        FileQueue(path)
    assert FileQueue[int](path, codec="json").counts()["ready"] == 1
    path.chmod(0o660)
    assert FileQueue[int](path, mode=0o660).counts()["ready"] == 1
    os.chown(path, 12345, 12345)
    with pytest.raises(QueueFileError, match="belongs to another user"):
        FileQueue(path, mode=0o660)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_file_that_root_makes_beside_the_queue_of_another_user_is_theirs(path: Path) -> None:
    FileQueue[int](path).put(1)
    for ending in ("", *BESIDE):
        if beside(path, ending).exists():
            os.chown(beside(path, ending), 12345, 12345)
    beside(path, "-wake").unlink()
    queue: FileQueue[int] = FileQueue(path, codec="json")
    assert queue.counts()["ready"] == 1
    assert (beside(path, "-wake").stat().st_uid, beside(path, "-wake").stat().st_gid) == (
        12345,
    ) * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("ending", BESIDE)
def test_nothing_that_another_user_of_a_sticky_folder_has_made_is_used(
    tmp_path: Path, ending: str
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    path = folder / "jobs.db"
    FileQueue[int](path, codec="json").put(1)
    beside(path, ending).unlink(missing_ok=True)
    beside(path, ending).write_bytes(b"theirs")
    beside(path, ending).chmod(0o600)
    os.chown(beside(path, ending), 12345, 12345)
    for codec in ("pickle", "json"):
        with pytest.raises(QueueFileError, match="not to be trusted"):
            FileQueue(path, codec=codec)
    assert beside(path, ending).read_bytes() == b"theirs"


# --- links and FIFOs ------------------------------------------------------------------------------

IRREGULAR: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, victim: path.symlink_to(victim),
    "dangling link": lambda path, _: path.symlink_to("nowhere"),
    "hard link": lambda path, victim: os.link(victim, path),
    "fifo": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
}


@pytest.mark.parametrize("ending", ["", *BESIDE])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_no_link_is_followed_and_no_fifo_is_waited_for(path: Path, ending: str, kind: str) -> None:
    victim = path.with_name("victim")
    victim.write_text("hello")
    IRREGULAR[kind](beside(path, ending), victim)
    with pytest.raises(QueueFileError, match=r"remove|choose|copy"), desist.fail_after(60):
        FileQueue(path)
    assert victim.read_text() == "hello"
    assert not path.with_name("nowhere").exists()


# --- files that are gone --------------------------------------------------------------------------


def replace(path: Path) -> None:
    new = beside(path, ".new")
    shutil.copy(path, new)
    new.rename(path)


GOING: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "moved": lambda path: path.rename(beside(path, ".old")),
    "replaced": replace,
    "without its wal": lambda path: beside(path, "-wal").unlink(),
    "with another shm": lambda path: replace(beside(path, "-shm")),
    "without its folder": lambda path: shutil.rmtree(path.parent),
    "with its folder": lambda path: path.parent.rename(beside(path.parent, ".old")),
}


@pytest.mark.parametrize("how", GOING)
def test_i48_a_pool_and_its_callers_are_told_of_a_file_that_is_gone(path: Path, how: str) -> None:
    queue: FileQueue[int] = FileQueue(path)
    other: FileQueue[int] = FileQueue(path)
    pool = WorkerPool[int, int](lambda lease: lease.item, queue=queue)
    assert pool.submit(1).result() == 1
    late = pool.submit(2, delay=1000)
    with in_its_wait(other.lease) as waiting:
        GOING[how](path)
        waiting.join()
        assert isinstance(waiting.raised, QueueFileError)
    with pytest.raises(PoolFailed):
        late.result()
    with pytest.raises(PoolFailed) as failed:
        pool.drain()
    pool.stop()
    assert isinstance(failed.value.__cause__, QueueFileError)
    for use in (lambda: queue.put(1), lambda: queue.lease(0), queue.counts, queue.dead):
        with pytest.raises(QueueFileError, match="open the queue again"):
            use()


WORKER = """
import sys, desist
def handler(lease):
    sys.stdout.write("x")
    sys.stdout.flush()
    return lease.item
queue = desist.FileQueue(sys.argv[1])
with desist.WorkerPool(handler, workers=4, queue=queue) as pool:
    while pool.drain():
        queue.put_many(range(200))
"""


BACK: dict[str, Callable[[Path], object]] = {
    "moved": lambda path: beside(path, ".old").rename(path),
    "with its folder": lambda path: beside(path.parent, ".old").rename(path.parent),
}


@pytest.mark.parametrize("how", GOING)
@pytest.mark.parametrize(
    "rounds", [1, pytest.param(15, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_i48_pools_of_several_processes_end_when_their_file_goes_in_the_middle(
    tmp_path: Path, how: str, rounds: int
) -> None:
    rng = random.Random(48)
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "jobs.db"
        programs = [program(WORKER, path) for _ in range(3)]
        for other in programs:
            assert other.stdout is not None
            there = rng.randrange(1, 400)
            assert other.stdout.read(there) == "x" * there
        GOING[how](path)
        for other in programs:
            _, said = other.communicate(timeout=60)
            assert other.returncode == 1
            assert said.count("deleted, moved or replaced") == 1, said
        if how in BACK:
            BACK[how](path)
            all_is_done(path)


def all_is_done(path: Path) -> None:
    """A pool does what the others have left, and no item is lost or stays leased."""
    queue: FileQueue[int] = FileQueue(path)
    with WorkerPool[int, int](lambda lease: lease.item, queue=queue) as pool:
        assert pool.drain(60)
    done = queue.counts()["done"]
    assert queue.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": done, "dead": 0}
    assert done % 200 == 0


def test_a_queue_whose_wal_was_deleted_leaves_that_of_the_next_one_alone(path: Path) -> None:
    code = """
    import sys, desist
    queue = desist.FileQueue(sys.argv[1])
    queue.put(sys.argv[2])
    print("open", flush=True)
    sys.stdin.read()
    """
    with program(code, path, "lost") as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "open\n"
        for ending in ("-wal", "-shm"):
            beside(path, ending).unlink()
        program(code, path, "kept").communicate()
        old.communicate()
    queue: FileQueue[str] = FileQueue(path)
    lease = queue.lease(0)
    assert lease is not None
    assert lease.item == "kept"
    assert queue.counts()["ready"] == 0


def test_i12_i48_a_wake_file_that_is_deleted_is_made_again_and_wakes_all(path: Path) -> None:
    queue: FileQueue[str] = FileQueue(path)
    code = """
    import sys, desist
    queue = desist.FileQueue(sys.argv[1])
    print("open", flush=True)
    for line in sys.stdin:
        queue.put(line)
    """
    with program(code, path) as early, program(code, path) as late:
        for other in (early, late):
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
        for _ in range(5):
            for other in (early, late):
                with in_its_wait(lambda: queue.lease(60)) as waiting:
                    beside(path, "-wake").unlink(missing_ok=True)
                    assert other.stdin is not None
                    other.stdin.write("item\n")
                    other.stdin.flush()
                results: list[Any] = waiting.results
                results[0].ack()
        beside(path, "-wake").unlink(missing_ok=True)
        until = time.monotonic() + 30
        while not beside(path, "-wake").exists():
            assert time.monotonic() < until
            time.sleep(0.01)  # there is no notification


def test_a_pickle_of_another_kind_is_no_queue(path: Path) -> None:
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(QueueFileError, match="not a queue"):
        FileQueue(path)
